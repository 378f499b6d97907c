// Package graph draws rules: chains, the jumps between them, and counters.
package graph

import (
	"fmt"
	"slices"
	"strings"

	"sluice/internal/iptables"
	"sluice/router"
)

// Options chooses what is drawn.
type Options struct {
	Family string // "ipv4", "ipv6"; "" is both
	Table  string // "" is every table that somebody has written to
	Limit  int    // rules of a chain that are drawn, besides those that lead to another chain; 0: all
}

// Graph is what is drawn.
type Graph struct{ tables []*table }

type table struct {
	family, name string
	chains       []*chain // in the order of the save format
	layers       [][]*chain
}

type chain struct {
	name           string
	policy         string // of a builtin chain
	packets, bytes uint64 // the policy's
	rules          []rule
	layer          int
	called         bool
	y, h           int // in the drawing
}

type rule struct {
	text           string // without -A and the chain
	match          string // what of text comes before the target
	target         string // as -j or -g names it; "" if it has none
	goes           bool   // -g
	to             *chain // the chain it leads to
	packets, bytes uint64
	left           int // this many rules that are not drawn stand here
}

// Build makes a graph of a router's tables. The error names what is not there.
func Build(all []router.TableStatus, opt Options) (*Graph, error) {
	g := &Graph{}
	for i := range all {
		t := &all[i]
		if opt.Family != "" && t.Family != opt.Family || opt.Table != "" && t.Name != opt.Table || opt.Table == "" && untouched(t) {
			continue
		}
		g.tables = append(g.tables, build(t, opt.Limit))
	}
	if len(g.tables) == 0 {
		if opt.Table != "" {
			return nil, fmt.Errorf("there is no table %s", opt.Table)
		}
		return nil, fmt.Errorf("there are no rules to draw; name a table with --table to see it all the same")
	}
	return g, nil
}

// untouched: no rule, no chain, no policy that is not the table's from the start.
func untouched(t *router.TableStatus) bool {
	return !slices.ContainsFunc(t.Chains, func(c router.ChainStatus) bool { return c.Policy != "ACCEPT" || len(c.Rules) > 0 })
}

func build(st *router.TableStatus, limit int) *table {
	t := &table{family: st.Family, name: st.Name}
	byName := map[string]*chain{}
	for i := range st.Chains {
		s := &st.Chains[i]
		c := &chain{name: s.Name, policy: s.Policy, packets: s.Packets, bytes: s.Bytes}
		t.chains = append(t.chains, c)
		byName[c.name] = c
	}
	for i, c := range t.chains {
		for _, r := range st.Chains[i].Rules {
			c.rules = append(c.rules, parse(r, byName))
		}
		c.rules = shorten(c.rules, limit)
	}
	t.arrange()
	return t
}

// parse reads a rule as the save format prints it.
func parse(st router.RuleStatus, chains map[string]*chain) rule {
	r := rule{text: st.Text, match: st.Text, packets: st.Packets, bytes: st.Bytes}
	words, cols, err := iptables.Split(st.Text)
	if err != nil || len(words) < 3 { // too long for a restore line, or -A CHAIN alone
		if err == nil {
			r.text, r.match = "", ""
		}
		return r
	}
	first := cols[2] - 1
	r.text, r.match = st.Text[first:], st.Text[first:]
	for i := 2; i+1 < len(words); i++ {
		if words[i] == "-j" || words[i] == "-g" {
			r.target, r.goes = words[i+1], words[i] == "-g"
			r.to = chains[r.target]
			r.match = strings.TrimSuffix(st.Text[first:cols[i]-1], " ")
			break
		}
	}
	return r
}

// shorten keeps the first limit rules and those that lead to a chain.
func shorten(rules []rule, limit int) []rule {
	if limit <= 0 || len(rules) <= limit {
		return rules
	}
	out := slices.Clone(rules[:limit])
	seen := map[*chain]bool{}
	for _, r := range rules[limit:] {
		if r.to != nil && !seen[r.to] {
			seen[r.to] = true
			out = append(out, r)
			continue
		}
		if last := &out[len(out)-1]; last.left > 0 {
			last.left++
			last.packets += r.packets
			last.bytes += r.bytes
		} else {
			out = append(out, rule{left: 1, packets: r.packets, bytes: r.bytes})
		}
	}
	return out
}

// arrange puts every chain right of those that call it. Jumps make no loops:
// the table engine refuses them.
func (t *table) arrange() {
	for _, c := range t.chains {
		for _, r := range c.rules {
			if r.to != nil {
				r.to.called = true
			}
		}
	}
	var place func(c *chain, layer int)
	place = func(c *chain, layer int) {
		if layer <= c.layer && layer > 0 {
			return
		}
		c.layer = layer
		for _, r := range c.rules {
			if r.to != nil {
				place(r.to, layer+1)
			}
		}
	}
	for _, c := range t.chains {
		if c.policy != "" {
			place(c, 0)
		}
	}
	for _, c := range t.chains {
		if c.policy == "" && c.layer == 0 {
			place(c, 1)
		}
	}
	for _, c := range t.chains {
		for len(t.layers) <= c.layer {
			t.layers = append(t.layers, nil)
		}
		t.layers[c.layer] = append(t.layers[c.layer], c)
	}
	t.layers = slices.DeleteFunc(t.layers, func(l []*chain) bool { return len(l) == 0 })
	for i, l := range t.layers {
		for _, c := range l {
			c.layer = i
		}
	}
}

func (t *table) title() string { return t.family + " " + t.name }

// label is a rule's line.
func (r *rule) label() string {
	switch {
	case r.left == 1:
		return "… 1 more rule"
	case r.left > 1:
		return fmt.Sprintf("… %d more rules", r.left)
	case r.text == "":
		return "(counts)"
	}
	return r.text
}

// head is a chain's first line.
func (c *chain) head() string {
	switch {
	case c.policy != "":
		return fmt.Sprintf("%s (policy %s, %s)", c.name, c.policy, count(c.packets, c.bytes))
	case !c.called:
		return c.name + " (not called)"
	}
	return c.name
}

// count is packets and bytes, shortened as iptables -L -v does.
func count(packets, bytes uint64) string { return short(packets) + " pkts " + short(bytes) + "B" }

func short(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= 10*u.size {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	return fmt.Sprint(n)
}

// shorter cuts s to n characters.
func shorter(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
