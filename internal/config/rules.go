package config

import (
	"errors"
	"slices"
	"strings"

	"sluice/conntrack"
	"sluice/internal/iptables"
	"sluice/nat"
	"sluice/packet"
	"sluice/router"
	"sluice/tables"
)

// rulesets checks [iptables] and [ip6tables].
func (c *checker) rulesets() {
	for _, f := range []struct {
		key    string
		family uint8
		set    *router.RulesetConfig
	}{{"iptables", packet.IPv4, &c.cfg.IPTables}, {"ip6tables", packet.IPv6, &c.cfg.IP6Tables}} {
		before := len(c.errs)
		for _, t := range f.set.Tables() {
			id, _ := tables.TableByName(t.Name)
			c.policies(id, t)
			for i := range t.Rules {
				c.ruleForm(f.key, t.Name, &t.Rules[i])
			}
		}
		if len(c.errs) == before {
			c.tryRules(f.family, f.set.Script())
		}
	}
}

func (c *checker) policies(id tables.TableID, t router.NamedTable) {
	for _, p := range t.Policy {
		builtin := builtinChains(id)
		if !slices.Contains(builtin, p.Chain) {
			c.errorf(p.Pos, "policy: table %s has no builtin chain %q: %s", t.Name, p.Chain, strings.Join(builtin, ", "))
		} else if v, ok := tables.VerdictByName(p.Target); !ok || v == tables.VerdictReturn {
			c.errorf(p.Pos, "policy of %s: %q is neither ACCEPT nor DROP", p.Chain, p.Target)
		} else if id == tables.NAT && v == tables.VerdictDrop {
			c.errorf(p.Pos, "policy of %s: %s", p.Chain, strings.TrimSpace(tables.NATDrop.Error()))
		}
	}
}

func builtinChains(id tables.TableID) []string {
	var out []string
	for _, ch := range tables.Empty(packet.IPv4).Table(id).Chains() {
		out = append(out, ch.Name)
	}
	return out
}

// ruleForm finds what is wrong with a line before iptables looks at it.
func (c *checker) ruleForm(program, table string, l *router.RuleLine) {
	if len(l.Args) == 0 {
		c.errorf(l.Pos, "an empty rule")
		return
	}
	first := l.Args[0]
	switch {
	case first.Text == program || first.Text == "iptables" || first.Text == "ip6tables":
		c.errorf(first.Pos, "leave the program's name out: a rule begins with -A")
		return
	case !strings.HasPrefix(first.Text, "-"):
		c.errorf(first.Pos, "a rule begins with a command such as -A or -N, not with %q", first.Text)
		return
	}
	for i, a := range l.Args {
		if a.Text == "-t" || a.Text == "--table" || strings.HasPrefix(a.Text, "--table=") {
			if i == 0 || l.Args[i-1].Text != "--comment" {
				c.errorf(a.Pos, "leave %s out: the rule is in [%s.%s]", a.Text, program, table)
			}
		}
	}
}

// maxRuleErrors ends the search for faults in rules: a file that is in another
// format altogether has one in each line.
const maxRuleErrors = 20

// tryRules loads the rules into tables that nothing uses. Loading stops at the
// first fault, so it is done again without the line, as long as other lines can
// do without it.
func (c *checker) tryRules(family uint8, script []router.ScriptLine) {
	if len(script) == 0 {
		return
	}
	lines := make([]iptables.Line, len(script))
	for i, l := range script {
		lines[i] = iptables.Line{File: l.Pos.File, Line: l.Pos.Line, Column: l.Pos.Column, Text: l.Text}
		for _, a := range l.Args {
			lines[i].Words = append(lines[i].Words, iptables.Word{Text: a.Text, Line: a.Pos.Line, Column: a.Pos.Column})
		}
	}
	set := c.tunables()
	ct := conntrack.New(set, conntrack.Options{})
	for i := range c.cfg.Timeouts {
		c.cfg.Timeouts[i].Check(ct) // said already
	}
	env := &tables.Env{CT: ct, NAT: nat.New(ct, set), Sysctl: set, Sets: c.ipsets}
	engines := iptables.New(tables.NewEngine(packet.IPv4, env), tables.NewEngine(packet.IPv6, env))
	if c.resolver != nil {
		engines.Resolver = c.resolver
	}
	for range maxRuleErrors {
		err := engines.Check(family, lines)
		if err == nil {
			return
		}
		var at *iptables.ScriptError
		if !errors.As(err, &at) {
			c.errorf(router.Position{File: c.ix.file}, "rules: %v", err)
			return
		}
		pos := router.Position{File: at.File, Line: at.Line, Column: at.Column}
		c.errorf(pos, "%s", strings.TrimPrefix(at.Error(), pos.String()+": "))
		if !isRule(lines[at.Index].Text) {
			return
		}
		lines[at.Index] = iptables.Line{File: at.File, Line: at.Line, Column: at.Column}
	}
}

// isRule: no other line needs this one.
func isRule(line string) bool {
	if _, after, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(line, "[") { // counters
		line = after
	}
	return strings.HasPrefix(line, "-A") || strings.HasPrefix(line, "-I") || strings.HasPrefix(line, "--append") || strings.HasPrefix(line, "--insert")
}
