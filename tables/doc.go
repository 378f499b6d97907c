// Package tables holds the rules: tables, chains, rules and counters, the
// compiler from rules to a program, and the walk that takes a packet through it.
// Extensions (matches and targets) are in package tables/ext.
//
// # From text to a rule
//
//	ps := tables.NewParser(ext.Registry, packet.IPv4, args, commandOptions)
//	for {
//		g, more, err := ps.Next() // reads the rule's options, hands back the program's
//		…                         // ps.Take() reads a word such as -L's chain name
//	}
//	err := ps.Options(table)
//	rules, err := ps.Rules(chain) // several if -s or -d list several addresses
//
// or, without a program around it, tables.ParseRule. Errors are *Error: Msg is
// what iptables prints after its name and version, Code its exit status.
// Rule.Save prints a rule as -S does after "-A CHAIN", Rule.ListExtras what -L
// prints after the addresses.
//
// # Rules in force
//
//	e := tables.NewEngine(packet.IPv4, env)
//	err := e.Commit(func(rs *tables.Ruleset) error {
//		return rs.Table(tables.Filter).Append("INPUT", rule)
//	})
//	view := e.View(nil) // rules with their counters: view.Rule(r), view.Policy(chain)
//
// Rulesets are immutable; Commit edits a clone that shares what is not touched,
// compiles what changed, makes the kernel's checks and publishes the whole or
// nothing. What an edit or the checks refuse is an *EditError (errno, chain,
// rule, source position); EditError.Text is iptables' sentence. Check is a
// Commit that publishes nothing (iptables-restore --test).
//
// # Packets
//
// A worker loads e.Program() once a batch, calls Context.Prepare, and then
// Program.Run(c, table, p) with c.Hook set. The walk is linear, rule by rule,
// with an explicit jump stack. Rules keep their counters and the state of their
// extensions (limit, recent …) through any commit that keeps the rule.
package tables
