package iptables

import (
	"cmp"
	"slices"

	"sluice/tables"
)

// becomeTable edits t until it says what want says. Rules that say the same, in
// the same chain and in the same order, stay the rules they are, with their
// counters and state.
func becomeTable(t, want *tables.Table) error {
	for _, ch := range want.Chains() {
		if t.Chain(ch.Name) == nil {
			if err := t.NewChain(ch.Name); err != nil {
				return err
			}
		}
	}
	for _, ch := range t.Chains() {
		w := want.Chain(ch.Name)
		switch {
		case w == nil:
			if err := t.Flush(ch.Name); err != nil {
				return err
			}
			continue
		case ch.Builtin && ch.Policy != w.Policy:
			if err := t.SetPolicy(ch.Name, w.Policy); err != nil {
				return err
			}
		}
		if err := becomeChain(t, ch, w.Rules()); err != nil {
			return err
		}
	}
	for _, ch := range t.Chains() {
		if want.Chain(ch.Name) == nil {
			if err := t.DeleteChain(ch.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func becomeChain(t *tables.Table, ch *tables.Chain, want []*tables.Rule) error {
	have := ch.Rules()
	keep := kept(have, want)
	if len(keep) == len(have) && len(keep) == len(want) {
		return nil
	}
	if keepsFirst(keep) == len(have) {
		for _, r := range want[len(have):] { // what is there is only added to
			if err := t.Append(ch.Name, r); err != nil {
				return err
			}
		}
		return nil
	}
	next := slices.Clone(want)
	for _, p := range keep {
		next[p.want] = have[p.have]
	}
	return t.SetRules(ch.Name, next)
}

// keepsFirst is how many rules stay where they are, at the beginning of a chain.
func keepsFirst(keep []pair) (n int) {
	for n < len(keep) && keep[n] == (pair{n, n}) {
		n++
	}
	return n
}

// pair is a rule that stays: its place in the old chain and in the new one.
type pair struct{ have, want int }

// kept pairs the rules of two chains that say the same, as many as can stay in
// order: common ends first, then the longest increasing run of what is between.
func kept(have, want []*tables.Rule) []pair {
	same := func(a, b *tables.Rule) bool { return a == b || a.Save() == b.Save() }
	lo := 0
	for lo < len(have) && lo < len(want) && same(have[lo], want[lo]) {
		lo++
	}
	hi := 0
	for hi < len(have)-lo && hi < len(want)-lo && same(have[len(have)-1-hi], want[len(want)-1-hi]) {
		hi++
	}
	var out []pair
	for i := range lo {
		out = append(out, pair{i, i})
	}
	places := map[string][]int{}
	for i := lo; i < len(have)-hi; i++ {
		places[have[i].Save()] = append(places[have[i].Save()], i)
	}
	var middle []pair
	for j := lo; j < len(want)-hi; j++ {
		text := want[j].Save()
		if p := places[text]; len(p) > 0 {
			middle = append(middle, pair{p[0], j})
			places[text] = p[1:]
		}
	}
	out = append(out, increasing(middle)...)
	for i := hi; i > 0; i-- {
		out = append(out, pair{len(have) - i, len(want) - i})
	}
	return out
}

// increasing is a longest run of pairs, which are in order of want, whose have
// increases too.
func increasing(ps []pair) []pair {
	var ends []int // ends[n]: index of the pair with the least have that ends a run of n+1
	prev := make([]int, len(ps))
	for i, p := range ps {
		n, _ := slices.BinarySearchFunc(ends, p.have, func(e, have int) int { return cmp.Compare(ps[e].have, have) })
		prev[i] = -1
		if n > 0 {
			prev[i] = ends[n-1]
		}
		if n == len(ends) {
			ends = append(ends, i)
		} else {
			ends[n] = i
		}
	}
	if len(ends) == 0 {
		return nil
	}
	out := make([]pair, len(ends))
	for n, i := len(ends)-1, ends[len(ends)-1]; n >= 0; n, i = n-1, prev[i] {
		out[n] = ps[i]
	}
	return out
}
