package tables

import "slices"

// ruleList is the array of a chain's rules that this edit has made, and so may
// change in place: rules is a part of it, with room before.
type ruleList struct {
	array []*Rule
	off   int // where the chain's rules begin
}

// list gives the chain's own array; front says that room is needed before the
// rules. Many inserts and deletes in one edit so cost what they move, at most half
// of the chain, and at its ends next to nothing.
func (ed *edit) list(c *Chain, front bool) *ruleList {
	l := ed.lists[c]
	if !l.holds(c.rules) || front && l.off == 0 {
		room := 0
		if front {
			room = len(c.rules)/2 + 8
		}
		l = &ruleList{make([]*Rule, room+len(c.rules), room+len(c.rules)+len(c.rules)/8+8), room}
		copy(l.array[room:], c.rules)
		ed.lists[c] = l
	}
	l.array = l.array[:l.off+len(c.rules)]
	return l
}

// holds: rules still are in l's array, and not in a larger one since an append.
func (l *ruleList) holds(rules []*Rule) bool {
	if l == nil || len(rules) == 0 {
		return false
	}
	all := l.array[:cap(l.array)]
	return l.off < len(all) && &all[l.off] == &rules[0]
}

// insert puts r before rule i (from 0).
func (ed *edit) insert(c *Chain, i int, r *Rule) {
	front := i <= len(c.rules)/2
	l := ed.list(c, front)
	if front {
		copy(l.array[l.off-1:], l.array[l.off:l.off+i])
		l.off--
		l.array[l.off+i] = r
	} else {
		l.array = slices.Insert(l.array, l.off+i, r)
	}
	c.rules = l.array[l.off:]
}

// replace puts r in the place of rule i.
func (ed *edit) replace(c *Chain, i int, r *Rule) {
	l := ed.list(c, false)
	l.array[l.off+i] = r
	c.rules = l.array[l.off:]
}

// delete takes rule i out.
func (ed *edit) delete(c *Chain, i int) {
	l := ed.list(c, false)
	if i < len(c.rules)/2 {
		copy(l.array[l.off+1:], l.array[l.off:l.off+i])
		l.array[l.off] = nil
		l.off++
	} else {
		l.array = slices.Delete(l.array, l.off+i, l.off+i+1)
	}
	c.rules = l.array[l.off:]
}

// SetRules makes a chain's rules those of a list. Rules that are in the chain
// already stay the rules they are.
func (t *Table) SetRules(chain string, rules []*Rule) error {
	c, err := t.own(OpReplace, chain)
	if err != nil {
		return err
	}
	t.rs.edit.callers[t.ID] = nil
	stay := make(map[*Rule]bool, len(rules))
	for _, r := range rules {
		stay[r] = true
	}
	have := make(map[*Rule]bool, len(c.rules))
	for _, r := range c.rules {
		if have[r] = true; !stay[r] {
			t.remove(r)
		}
	}
	next := make([]*Rule, len(rules))
	for i, r := range rules {
		if !have[r] {
			r = t.adopt(r)
		}
		delete(have, r) // a rule that comes twice is two rules
		next[i] = r
	}
	c.rules, c.code = next, nil
	return nil
}
