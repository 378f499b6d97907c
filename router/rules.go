package router

import (
	"errors"

	"sluice/internal/iptables"
	"sluice/packet"
)

// script is a family's rules as iptables reads them.
func script(c *RulesetConfig) []iptables.Line {
	lines := c.Script()
	out := make([]iptables.Line, len(lines))
	for i, l := range lines {
		out[i] = iptables.Line{File: l.Pos.File, Line: l.Pos.Line, Column: l.Pos.Column, Text: l.Text}
		for _, a := range l.Args {
			out[i].Words = append(out[i].Words, iptables.Word{Text: a.Text, Line: a.Pos.Line, Column: a.Pos.Column})
		}
	}
	return out
}

// newRules is the rules of a configuration, checked.
type newRules struct {
	engines iptables.Engines
	scripts [2][]iptables.Line
}

var families = [2]uint8{packet.IPv4, packet.IPv6}

// checkRules says what is wrong with a configuration's rules, without changing any.
func (r *Router) checkRules(cfg *Config) (*newRules, error) {
	n := &newRules{engines: r.IPTables(), scripts: [2][]iptables.Line{script(&cfg.IPTables), script(&cfg.IP6Tables)}}
	var errs []error
	for f, fam := range families {
		errs = append(errs, n.engines.Check(fam, n.scripts[f]))
	}
	return n, errors.Join(errs...)
}

// commit puts them in force; rules that were there already keep their counters and state.
func (n *newRules) commit() error {
	var errs []error
	for f, fam := range families {
		errs = append(errs, n.engines.Load(fam, n.scripts[f]))
	}
	return errors.Join(errs...)
}

// IPTables is what the iptables commands act on.
func (r *Router) IPTables() iptables.Engines { return r.iptables }
