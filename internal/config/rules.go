package config

import (
	"slices"
	"strings"

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
			c.errs = append(c.errs, c.tryRules(f.family, f.set.Script())...)
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
