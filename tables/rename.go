package tables

// callers are the rules of a table that jump or go to a chain, by its name. An
// edit of nothing but names keeps them, so that many renames cost no more than
// the rules that they change.
type callers struct {
	of    map[string][]place
	names map[uint32]string // of chains with such rules, by slot
}

// place is where a rule is.
type place struct {
	slot uint32 // the chain's
	i    int
}

// maxLooked bounds the rules that one edit looks at to find callers, again and
// again where it renames chains and changes rules in turn.
const maxLooked = 1 << 25

// findCallers looks at all rules; nil: this edit has looked at too many.
func (t *Table) findCallers() *callers {
	cs := &callers{map[string][]place{}, map[uint32]string{}}
	ed := t.rs.edit
	for ch := range t.all {
		if ed.looked += 1 + len(ch.rules); ed.looked > maxLooked {
			return nil
		}
		for i, r := range ch.rules {
			if r.Jump != "" {
				cs.of[r.Jump] = append(cs.of[r.Jump], place{ch.slot, i})
				cs.names[ch.slot] = ch.Name
			}
		}
	}
	return cs
}

// rename follows a chain's new name in the rules that name it.
func (cs *callers) rename(t *Table, slot uint32, from, to string) {
	if _, ok := cs.names[slot]; ok {
		cs.names[slot] = to
	}
	ed := t.rs.edit
	for _, p := range cs.of[from] {
		ch, err := t.own(OpRenameChain, cs.names[p.slot])
		if err != nil {
			panic(err) // names has every chain
		}
		r := ch.rules[p.i]
		n := *r // same counter, same state: the same rule
		n.Jump, n.text = to, ""
		if k, ok := ed.counters[r]; ok {
			delete(ed.counters, r)
			ed.counters[&n] = k
		}
		ed.replace(ch, p.i, &n)
		ch.code = nil
	}
	cs.of[to] = cs.of[from]
	delete(cs.of, from)
}
