// Package lint says what in a ruleset cannot be meant: rules that can never
// match, duplicates, chains that nothing leads to, ways that lead nowhere.
//
// Whether a rule can match is decided over all packets at once: a rule's matches
// are a product of ranges, and what earlier rules take is cut out of it. A match
// that has no such form (limit, recent, mac …) makes a rule take less than is
// known, never more; so every claim holds, and some truths are not found.
package lint

import (
	"fmt"
	"slices"
	"strings"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// Kinds of finding.
const (
	NeverMatches = "never-matches"
	Duplicate    = "duplicate"
	EmptyChain   = "empty-chain"
	Unused       = "unused-chain"
	DNATBlocked  = "dnat-blocked"
	NoAnswers    = "no-answers"
	NoDNS        = "no-dns"
)

// Finding is one thing to look at.
type Finding struct {
	Kind   string        `json:"kind"`
	Family string        `json:"family"` // ipv4 or ipv6
	Table  string        `json:"table"`
	Chain  string        `json:"chain"`
	Rule   int           `json:"rule,omitempty"` // from 1; 0: the chain
	Source tables.Source `json:"source"`
	Text   string        `json:"text"` // the rule
	Why    string        `json:"why"`
	Covers []int         `json:"covers,omitempty"` // earlier rules of the chain that take what it could match

	rule *tables.Rule
}

// String is the finding in a line.
func (f *Finding) String() string {
	at := f.Source.File
	if f.Source.Line > 0 {
		at = fmt.Sprintf("%s:%d", at, f.Source.Line)
	}
	if at == "" {
		at = f.Family
	}
	what := f.Text
	if f.Rule == 0 {
		what = "chain " + f.Chain
	}
	return fmt.Sprintf("%s: %s: table %s: %s: %s", at, f.Kind, f.Table, what, f.Why)
}

// linter works on one table.
type linter struct {
	*universe
	t     *tables.Table
	known map[*tables.Rule]*known
	entry map[string]region // what may get to a chain, or more
	falls map[string]region // what may come back from it, or more
	order []*tables.Chain   // callers before callees; those that a hook leads to
	out   []Finding
}

// Rules lints a family's ruleset.
func Rules(rs *tables.Ruleset) []Finding {
	var out []Finding
	for id := range tables.NumTables {
		l := newLinter(rs, id)
		l.dead()
		l.chains()
		l.duplicates()
		if id == tables.Filter {
			l.ways(rs)
		}
		out = append(out, l.out...)
	}
	slices.SortStableFunc(out, func(a, b Finding) int {
		if n := strings.Compare(a.Source.File, b.Source.File); n != 0 {
			return n
		}
		return a.Source.Line - b.Source.Line
	})
	return out
}

func newLinter(rs *tables.Ruleset, id tables.TableID) *linter {
	t := rs.Table(id)
	l := &linter{universe: newUniverse(rs.Family, t), t: t, known: map[*tables.Rule]*known{}, entry: map[string]region{}, falls: map[string]region{}}
	for _, ch := range t.Chains() {
		for _, r := range ch.Rules() {
			k := l.know(id, r)
			l.known[r] = &k
		}
	}
	l.reach()
	return l
}

func (l *linter) add(kind string, ch *tables.Chain, n int, why string, covers ...int) {
	f := Finding{Kind: kind, Family: "ipv4", Table: l.t.ID.String(), Chain: ch.Name, Rule: n, Why: why, Covers: covers}
	if l.family == packet.IPv6 {
		f.Family = "ipv6"
	}
	if n > 0 {
		f.rule = ch.Rules()[n-1]
		f.Source, f.Text = f.rule.Source, "-A "+ch.Name+f.rule.Save()
	} else if rs := ch.Rules(); len(rs) > 0 {
		f.Source = rs[0].Source
	}
	l.out = append(l.out, f)
}

// start is what may come to a builtin chain.
func (l *linter) start(h hooks.Hook) region {
	b := l.all
	none, some := small(0, 0), small(1, uint64(len(l.ifaces)-1))
	switch h {
	case hooks.Prerouting, hooks.Input:
		b[dimIn], b[dimOut] = some, none
	case hooks.Forward:
		b[dimIn], b[dimOut] = some, some
	case hooks.Output:
		b[dimIn], b[dimOut] = none, some
	case hooks.Postrouting:
		b[dimOut] = some
	}
	if l.t.ID == tables.NAT {
		// Only the first packet of a connection comes here.
		b[dimState] = small(2, stateNew)
	}
	return region{b}
}

// What a rule does to a packet that it matches, for those after it in its chain.
const (
	goesOn  = iota // some of it at least
	ends           // the walk is over
	returns        // to the caller
	jumps
	gotos
)

// Targets of extensions after which no rule comes.
var endings = map[string]bool{"REJECT": true, "DNAT": true, "SNAT": true, "MASQUERADE": true, "REDIRECT": true, "NETMAP": true, "QUEUE": true, "NFQUEUE": true, "TPROXY": true}

func does(r *tables.Rule) int {
	switch {
	case r.Verdict == tables.VerdictAccept, r.Verdict == tables.VerdictDrop, r.Target != nil && endings[r.Target.Ext.Name]:
		return ends
	case r.Verdict == tables.VerdictReturn:
		return returns
	case r.Jump != "" && r.Goto:
		return gotos
	case r.Jump != "":
		return jumps
	}
	return goesOn
}

// reach finds what may come to each chain and what may come back from it.
func (l *linter) reach() {
	state := map[string]int{}
	var visit func(ch *tables.Chain)
	visit = func(ch *tables.Chain) {
		if state[ch.Name] != 0 {
			return
		}
		state[ch.Name] = 1
		for _, r := range ch.Rules() {
			if to := l.t.Chain(r.Jump); to != nil {
				visit(to)
			}
		}
		l.falls[ch.Name] = l.fall(ch)
		l.order = append(l.order, ch)
	}
	for _, ch := range l.t.Chains() {
		if ch.Builtin {
			visit(ch)
		}
	}
	slices.Reverse(l.order)
	for _, ch := range l.order {
		if ch.Builtin {
			l.entry[ch.Name] = l.start(ch.Hook)
		}
		now := l.entry[ch.Name].narrow(16)
		l.entry[ch.Name] = now
		for _, r := range ch.Rules() {
			k := l.known[r]
			if r.Jump != "" {
				l.entry[r.Jump] = append(l.entry[r.Jump], now.and(&k.box)...).narrow(200)
			}
			now = l.after(now, r, len(k.rest) == 0, manyBoxes)
		}
	}
}

// fall is what may come back from a chain to its caller: by its end, or RETURN.
func (l *linter) fall(ch *tables.Chain) region {
	now := region{l.all}
	var back region
	for _, r := range ch.Rules() {
		k := l.known[r]
		switch does(r) {
		case returns:
			back = append(back, now.and(&k.box)...)
		case gotos:
			for i := range l.falls[r.Jump] {
				x := l.falls[r.Jump][i].and(&k.box)
				if !x.empty() {
					back = append(back, now.and(&x)...)
				}
			}
		}
		now = l.after(now, r, len(k.rest) == 0, manyBoxes)
	}
	return append(back, now...).narrow(16)
}

// after is what of now is left for the rules after r, or more; exact: all that r's box says it matches.
func (l *linter) after(now region, r *tables.Rule, exact bool, most int) region {
	d := does(r)
	if d == goesOn || !exact {
		return now
	}
	k := l.known[r]
	left := now.minus(&k.box, most)
	if d != jumps {
		return left
	}
	// What comes back from the chain goes on.
	falls := l.falls[r.Jump]
	if len(falls) == 1 && !l.less(&falls[0]) {
		return now
	}
	matched := now.and(&k.box)
	for i := range falls {
		for m := range matched {
			if x := matched[m].and(&falls[i]); !x.empty() {
				left = append(left, x)
			}
		}
	}
	if len(left) > most {
		return now
	}
	return left
}

// less: b is not everything.
func (l *linter) less(b *box) bool {
	for d := range b {
		if !b[d].equal(l.all[d]) {
			return true
		}
	}
	return false
}

// dead finds rules that can never match.
func (l *linter) dead() {
	for _, ch := range l.order {
		if len(l.entry[ch.Name]) == 0 && !ch.Builtin {
			continue // nothing comes to the chain: the rules that lead to it are told
		}
		for i, r := range ch.Rules() {
			covers, never := l.never(ch, i)
			if !never {
				continue
			}
			switch {
			case l.known[r].box.empty():
				l.add(NeverMatches, ch, i+1, "its own matches exclude each other")
			case len(covers) == 0:
				l.add(NeverMatches, ch, i+1, "no packet that it asks for comes to its chain: "+l.callers(ch))
			default:
				var names []string
				for _, c := range covers {
					names = append(names, place(ch, c))
				}
				l.add(NeverMatches, ch, i+1, "taken before by "+strings.Join(names, ", "), covers...)
			}
		}
	}
}

func place(ch *tables.Chain, n int) string {
	r := ch.Rules()[n-1]
	s := fmt.Sprintf("rule %d", n)
	if r.Source.Line > 0 {
		s += fmt.Sprintf(" (line %d)", r.Source.Line)
	}
	return s + " \"" + strings.TrimSpace(r.Save()) + "\""
}

// never reports whether rule i (from 0) of a chain can match nothing, and the
// rules (from 1) that take it all.
func (l *linter) never(ch *tables.Chain, i int) (covers []int, never bool) {
	rules := ch.Rules()
	k := l.known[rules[i]]
	left := l.entry[ch.Name].and(&k.box)
	if len(left) == 0 {
		return nil, true
	}
	for n, e := range rules[:i] {
		ek := l.known[e]
		if does(e) == goesOn || !ek.within(k) {
			continue
		}
		next := l.after(left, e, true, mostBoxes)
		if !same(left, next) {
			covers = append(covers, n+1)
		}
		if left = next; len(left) == 0 {
			return l.fewest(ch, i, covers), true
		}
	}
	return nil, false
}

func same(a, b region) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		for d := range a[i] {
			if !a[i][d].equal(b[i][d]) {
				return false
			}
		}
	}
	return true
}

// fewest leaves out rules without which the others take it all as well.
func (l *linter) fewest(ch *tables.Chain, i int, covers []int) []int {
	rules := ch.Rules()
	takes := func(by []int) bool {
		left := l.entry[ch.Name].and(&l.known[rules[i]].box)
		for _, n := range by {
			if left = l.after(left, rules[n-1], true, mostBoxes); len(left) == 0 {
				return true
			}
		}
		return false
	}
	for n := len(covers) - 1; n >= 0 && len(covers) > 1 && len(covers) < 40; n-- {
		if less := slices.Delete(slices.Clone(covers), n, n+1); takes(less) {
			covers = less
		}
	}
	return covers
}

// callers says how a chain is come to.
func (l *linter) callers(ch *tables.Chain) string {
	if ch.Builtin {
		return "it is a chain of " + ch.Hook.String()
	}
	var out []string
	for _, c := range l.order {
		for i, r := range c.Rules() {
			if r.Jump == ch.Name && len(out) < 4 {
				s := fmt.Sprintf("%s rule %d", c.Name, i+1)
				if r.Source.Line > 0 {
					s = fmt.Sprintf("%s (line %d)", s, r.Source.Line)
				}
				out = append(out, s+" \""+strings.TrimSpace(r.Save())+"\"")
			}
		}
	}
	return "it is called by " + strings.Join(out, ", ")
}

// chains finds jumps to empty chains, and chains that nothing leads to.
func (l *linter) chains() {
	led := map[string]bool{}
	for _, ch := range l.order {
		led[ch.Name] = true
	}
	for _, ch := range l.t.Chains() {
		if !led[ch.Name] && !ch.Builtin {
			why := "no rule jumps to it"
			if l.t.References(ch.Name) > 0 {
				why = "only chains that nothing leads to jump to it"
			}
			l.add(Unused, ch, 0, why)
		}
		for i, r := range ch.Rules() {
			if to := l.t.Chain(r.Jump); to != nil && len(to.Rules()) == 0 {
				why := "chain " + to.Name + " is empty: the packet comes back at once"
				if r.Goto {
					why = "chain " + to.Name + " is empty: the packet goes back to the caller at once"
				}
				l.add(EmptyChain, ch, i+1, why)
			}
		}
	}
}

// duplicates finds rules that say what an earlier one of their chain says, where
// that is not told as never matching already.
func (l *linter) duplicates() {
	told := map[*tables.Rule]bool{}
	for i := range l.out {
		if l.out[i].Kind == NeverMatches {
			told[l.out[i].rule] = true
		}
	}
	for _, ch := range l.t.Chains() {
		first := map[string]int{}
		for i, r := range ch.Rules() {
			text := r.Save()
			if n, ok := first[text]; ok {
				if !told[r] && repeats(r) && !slices.Contains(l.known[r].rest, "") {
					l.add(Duplicate, ch, i+1, "says what "+place(ch, n)+" says")
				}
				continue
			}
			first[text] = i + 1
		}
	}
}

// repeats: the rule does nothing more when it is there twice. Counting, logging
// and limits do.
func repeats(r *tables.Rule) bool {
	for _, m := range r.Matches {
		if m.Ext.Depends == 0 && m.Ext.Compile != nil {
			return false
		}
	}
	if r.Target != nil {
		return r.Target.Ext.Depends != 0
	}
	return r.Jump != "" || r.Verdict != tables.VerdictNone
}
