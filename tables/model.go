package tables

import (
	"cmp"
	"slices"
	"syscall"

	"sluice/hooks"
)

func sortBy[T any](s []T, key func(T) string) {
	slices.SortFunc(s, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}

// TableID is one of the five tables.
type TableID uint8

const (
	Raw TableID = iota
	Mangle
	NAT
	Filter
	Security
	NumTables
)

var tableNames = [NumTables]string{"raw", "mangle", "nat", "filter", "security"}

func (t TableID) String() string { return tableNames[t] }

// TableByName finds a table by the name that -t takes.
func TableByName(name string) (TableID, bool) {
	i := slices.Index(tableNames[:], name)
	return TableID(max(i, 0)), i >= 0
}

// TableHooks are the hooks at which a table has builtin chains.
var TableHooks = [NumTables]hooks.Mask{
	Raw:      hooks.At(hooks.Prerouting, hooks.Output),
	Mangle:   hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward, hooks.Output, hooks.Postrouting),
	NAT:      hooks.At(hooks.Prerouting, hooks.Input, hooks.Output, hooks.Postrouting),
	Filter:   hooks.At(hooks.Input, hooks.Forward, hooks.Output),
	Security: hooks.At(hooks.Input, hooks.Forward, hooks.Output),
}

// Ruleset is the tables of one family. A Ruleset that an Engine has accepted
// never changes: edits are made to a clone inside Engine.Commit, and clones
// share what was not edited.
type Ruleset struct {
	Family uint8
	tables [NumTables]*Table
	edit   *edit // nil: read only
}

// edit collects what a commit has to do besides publishing.
type edit struct {
	owned    map[*Chain]*Chain // chains this edit may change in place, and what they were before (nil: new)
	tables   [NumTables]bool   // tables it may change in place
	shrunk   [NumTables]bool   // tables that lost or renamed a chain
	removed  []*ruleState      // of rules taken out
	counters map[*Rule]Counter
	policies map[*Chain]Counter
	orphans  map[slotName]int // jumps to chains that are not there (yet)
	lists    map[*Chain]*ruleList
	callers  [NumTables]*callers // nil: not known
	looked   int                 // rules looked at to know callers
	slots    *slots              // copy of the engine's
	freed    []uint32            // slots of chains taken out
}

// Table is a set of chains: those of base, which is shared between rulesets and
// never changes, as far as over says nothing else of their name (nil: gone). So
// an edit copies what differs, not all chains.
type Table struct {
	ID    TableID
	rs    *Ruleset
	base  map[string]*Chain
	over  map[string]*Chain
	n     int // chains
	depth int // deepest nesting of jumps, once compiled
}

// slotName is a chain that rules of this edit jump to before it is made.
type slotName struct {
	table TableID
	name  string
}

// slots hands out places in Program.chains.
type slots struct {
	next uint32
	free []uint32
}

func (s *slots) take() uint32 {
	if n := len(s.free); n > 0 {
		x := s.free[n-1]
		s.free = s.free[:n-1]
		return x
	}
	s.next++
	return s.next - 1
}

func (t *Table) get(name string) *Chain {
	if c, ok := t.over[name]; ok {
		return c
	}
	return t.base[name]
}

// put sets a chain; nil takes it out.
func (t *Table) put(name string, c *Chain) {
	switch had := t.get(name) != nil; {
	case had && c == nil:
		t.n--
	case !had && c != nil:
		t.n++
	}
	t.over[name] = c
}

// all runs over the chains, in no order.
func (t *Table) all(yield func(*Chain) bool) {
	for _, c := range t.over {
		if c != nil && !yield(c) {
			return
		}
	}
	for name, c := range t.base {
		if _, ok := t.over[name]; !ok && !yield(c) {
			return
		}
	}
}

// clone gives a table to edit. Where much differs from base, it is merged into a
// new one: over many edits that costs little for each.
func (t *Table) clone(rs *Ruleset) *Table {
	n := &Table{ID: t.ID, rs: rs, base: t.base, n: t.n, depth: t.depth}
	if len(t.over) > 16 && len(t.over)*len(t.over) > len(t.base) {
		n.base, n.over = make(map[string]*Chain, t.n), map[string]*Chain{}
		for c := range t.all {
			n.base[c.Name] = c
		}
		return n
	}
	n.over = make(map[string]*Chain, len(t.over)+2)
	for k, v := range t.over {
		n.over[k] = v
	}
	return n
}

// Chain is a list of rules.
type Chain struct {
	Name    string
	Builtin bool
	Hook    hooks.Hook // of a builtin chain
	Policy  Verdict    // of a builtin chain: VerdictAccept or VerdictDrop
	refs    int        // rules that jump to it
	slot    uint32     // its place in Program.chains: stays the same through edits and renames
	policy  *policy
	rules   []*Rule
	code    *code // compiled form of the first len(code.ops) rules; nil: of none
}

// policy has a builtin chain's counter identities; it outlives edits of the chain.
type policy struct{ id, entered uint32 }

// Rules are the chain's rules in order; not to be changed.
func (c *Chain) Rules() []*Rule { return c.rules }

// Empty makes the ruleset that Linux starts with: builtin chains, policy ACCEPT.
func Empty(family uint8) *Ruleset {
	rs := &Ruleset{Family: family}
	slot := uint32(0)
	for id := range NumTables {
		t := &Table{ID: id, base: map[string]*Chain{}}
		for h := range hooks.NumHooks {
			if TableHooks[id].Has(h) {
				t.n++
				t.base[h.String()] = &Chain{Name: h.String(), Builtin: true, Hook: h, Policy: VerdictAccept, slot: slot, policy: &policy{}}
				slot++
			}
		}
		rs.tables[id] = t
	}
	return rs
}

// Table is one of the five, for reading or, inside Commit, for editing.
func (rs *Ruleset) Table(id TableID) *Table {
	t := rs.tables[id]
	if rs.edit != nil && !rs.edit.tables[id] {
		n := t.clone(rs)
		rs.tables[id], rs.edit.tables[id] = n, true
		return n
	}
	return t
}

func (rs *Ruleset) clone(free slots) *Ruleset {
	return &Ruleset{Family: rs.Family, tables: rs.tables, edit: &edit{
		owned: map[*Chain]*Chain{}, counters: map[*Rule]Counter{}, policies: map[*Chain]Counter{},
		orphans: map[slotName]int{}, lists: map[*Chain]*ruleList{}, slots: &free,
	}}
}

// Chain finds a chain by name; nil: there is none.
func (t *Table) Chain(name string) *Chain { return t.get(name) }

// Chains lists the builtin chains in hook order, then the others by name.
func (t *Table) Chains() []*Chain {
	out := make([]*Chain, 0, t.n)
	for c := range t.all {
		out = append(out, c)
	}
	slices.SortFunc(out, (*Chain).order)
	return out
}

// order compares two chains' places in a table: builtin chains by hook, then the
// others by name.
func (c *Chain) order(o *Chain) int {
	switch {
	case c.Builtin && o.Builtin:
		return cmp.Compare(c.Hook, o.Hook)
	case c.Builtin:
		return -1
	case o.Builtin:
		return 1
	}
	return cmp.Compare(c.Name, o.Name)
}

// References is how many rules jump or go to the user chain.
func (t *Table) References(name string) int {
	if c := t.get(name); c != nil {
		return c.refs
	}
	return 0
}

func (t *Table) fail(op Op, no syscall.Errno, chain string, rule int) *EditError {
	return &EditError{Op: op, Errno: no, Table: t.ID, Chain: chain, Rule: rule}
}

// own gives a chain that this edit may change, or ENOENT.
func (t *Table) own(op Op, name string) (*Chain, error) {
	if t.rs == nil || t.rs.edit == nil {
		panic("tables: edit of a ruleset outside Commit")
	}
	c := t.get(name)
	if c == nil {
		return nil, t.fail(op, syscall.ENOENT, name, 0)
	}
	if _, ok := t.rs.edit.owned[c]; !ok {
		n := *c
		n.code = c.code.fork()
		t.put(name, &n)
		t.rs.edit.owned[&n] = c
		c = &n
	}
	return c, nil
}

func (t *Table) ref(r *Rule, d int) {
	t.rs.edit.callers[t.ID] = nil // rules move
	if r.Jump == "" {
		return
	}
	if c, err := t.own(OpCommit, r.Jump); err == nil {
		c.refs += d
	} else {
		t.rs.edit.orphans[slotName{t.ID, r.Jump}] += d
	}
}

// remove notes that a rule leaves its chain.
func (t *Table) remove(r *Rule) {
	t.ref(r, -1)
	if r.state != nil {
		t.rs.edit.removed = append(t.rs.edit.removed, r.state)
	}
}

// adopt makes a rule ready to be put into a chain: a rule that sits in a chain
// already is copied, so that counters and state are never shared by accident.
func (t *Table) adopt(r *Rule) *Rule {
	if r.placed {
		r = r.copy()
	}
	r.placed = true
	t.ref(r, 1)
	if r.Initial != (Counter{}) {
		t.rs.edit.counters[r] = r.Initial
	}
	return r
}

// NewChain makes a user chain.
func (t *Table) NewChain(name string) error {
	if t.get(name) != nil {
		return t.fail(OpNewChain, syscall.EEXIST, name, 0)
	}
	if t.rs == nil || t.rs.edit == nil {
		panic("tables: edit of a ruleset outside Commit")
	}
	ed := t.rs.edit
	c := &Chain{Name: name, slot: ed.slots.take(), refs: ed.orphans[slotName{t.ID, name}]}
	delete(ed.orphans, slotName{t.ID, name})
	t.put(name, c)
	ed.owned[c] = nil
	return nil
}

// DeleteChain deletes an empty user chain that no rule refers to.
func (t *Table) DeleteChain(name string) error {
	c, err := t.own(OpDeleteChain, name)
	switch {
	case err != nil:
		return err
	case c.Builtin:
		return t.fail(OpDeleteChain, syscall.EINVAL, name, 0)
	case c.refs > 0:
		return t.fail(OpDeleteChain, syscall.EMLINK, name, 0)
	case len(c.rules) > 0:
		return t.fail(OpDeleteChain, syscall.ENOTEMPTY, name, 0)
	}
	t.put(name, nil)
	delete(t.rs.edit.owned, c)
	t.rs.edit.freed = append(t.rs.edit.freed, c.slot)
	t.rs.edit.shrunk[t.ID] = true
	return nil
}

// DeleteUserChains deletes every empty user chain without references, as -X
// without a name does; the first one that cannot go stops it.
func (t *Table) DeleteUserChains() error {
	for _, c := range t.Chains() {
		if !c.Builtin {
			if err := t.DeleteChain(c.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// RenameChain renames a user chain and the jumps to it.
func (t *Table) RenameChain(from, to string) error {
	c, err := t.own(OpRenameChain, from)
	switch {
	case err != nil:
		return err
	case t.get(to) != nil:
		return t.fail(OpRenameChain, syscall.EEXIST, to, 0)
	case c.Builtin:
		return t.fail(OpRenameChain, syscall.ENOENT, from, 0)
	}
	ed := t.rs.edit
	if c.refs > 0 && ed.callers[t.ID] == nil {
		if ed.callers[t.ID] = t.findCallers(); ed.callers[t.ID] == nil {
			e := t.fail(OpRenameChain, syscall.E2BIG, from, 0)
			e.Detail = "renames between changes of rules look at all rules each time"
			return e
		}
	}
	ed.shrunk[t.ID] = true
	t.put(from, nil)
	c.Name = to
	t.put(to, c)
	if ed.callers[t.ID] != nil {
		ed.callers[t.ID].rename(t, c.slot, from, to)
	}
	return nil
}

// SetPolicy sets a builtin chain's policy.
func (t *Table) SetPolicy(chain string, v Verdict) error {
	c, err := t.own(OpPolicy, chain)
	if err != nil || !c.Builtin {
		return t.fail(OpPolicy, syscall.ENOENT, chain, 0)
	}
	if v != VerdictAccept && v != VerdictDrop {
		return t.fail(OpPolicy, syscall.EINVAL, chain, 0)
	}
	c.Policy = v
	return nil
}

// SetPolicyCounters sets a builtin chain's policy counters.
func (t *Table) SetPolicyCounters(chain string, n Counter) error {
	c, err := t.own(OpPolicy, chain)
	if err != nil || !c.Builtin {
		return t.fail(OpPolicy, syscall.ENOENT, chain, 0)
	}
	t.rs.edit.policies[c] = n
	return nil
}

// Append adds a rule at the end of a chain.
func (t *Table) Append(chain string, r *Rule) error {
	c, err := t.own(OpAppend, chain)
	if err != nil {
		return err
	}
	// Appending in place is safe: only the newest ruleset grows the array, and
	// older ones do not look past their own length.
	c.rules = append(c.rules, t.adopt(r))
	return nil
}

// Insert puts a rule before the n'th (from 1; one past the end appends).
func (t *Table) Insert(chain string, n int, r *Rule) error {
	c, err := t.own(OpInsert, chain)
	if err != nil {
		return err
	}
	if n < 1 || n > len(c.rules)+1 {
		return t.fail(OpInsert, syscall.E2BIG, chain, n)
	}
	c.code = nil
	t.rs.edit.insert(c, n-1, t.adopt(r))
	return nil
}

// Replace puts a rule in the place of the n'th.
func (t *Table) Replace(chain string, n int, r *Rule) error {
	c, err := t.own(OpReplace, chain)
	if err != nil {
		return err
	}
	if n < 1 || n > len(c.rules) {
		return t.fail(OpReplace, syscall.E2BIG, chain, n)
	}
	t.remove(c.rules[n-1])
	c.code = nil
	t.rs.edit.replace(c, n-1, t.adopt(r))
	return nil
}

// Delete deletes the n'th rule.
func (t *Table) Delete(chain string, n int) error {
	c, err := t.own(OpDeleteNum, chain)
	if err != nil {
		return err
	}
	if n < 1 || n > len(c.rules) {
		return t.fail(OpDeleteNum, syscall.E2BIG, chain, n)
	}
	t.remove(c.rules[n-1])
	c.code = nil
	t.rs.edit.delete(c, n-1)
	return nil
}

// DeleteRule deletes the first rule equal to r.
func (t *Table) DeleteRule(chain string, r *Rule) error {
	n, err := t.find(OpDelete, chain, r)
	if err != nil {
		return err
	}
	return t.Delete(chain, n)
}

// Find is the number (from 1) of the first rule equal to r, for -C.
func (t *Table) Find(chain string, r *Rule) (int, error) { return t.find(OpCheck, chain, r) }

func (t *Table) find(op Op, chain string, r *Rule) (int, error) {
	c := t.get(chain)
	if c == nil {
		return 0, t.fail(op, syscall.ENOENT, chain, 0)
	}
	for i, x := range c.rules {
		if x.Equal(r) {
			return i + 1, nil
		}
	}
	return 0, t.fail(op, syscall.ENOENT, chain, 0)
}

// Flush deletes a chain's rules.
func (t *Table) Flush(chain string) error {
	c, err := t.own(OpFlush, chain)
	if err != nil {
		return err
	}
	for _, r := range c.rules {
		t.remove(r)
	}
	c.rules, c.code = nil, nil
	return nil
}

// FlushAll deletes the rules of every chain.
func (t *Table) FlushAll() error {
	for _, c := range t.Chains() {
		if err := t.Flush(c.Name); err != nil {
			return err
		}
	}
	return nil
}

// Clear makes the table what it was at the start: no user chains, no rules,
// policies ACCEPT. (iptables-restore without --noflush begins with it; it then
// sets the policies that its text names.)
func (t *Table) Clear(policies bool) error {
	if err := t.FlushAll(); err != nil {
		return err
	}
	if err := t.DeleteUserChains(); err != nil {
		return err
	}
	if policies {
		for _, c := range t.Chains() {
			if err := t.SetPolicy(c.Name, VerdictAccept); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetRuleCounters sets the counters of the n'th rule.
func (t *Table) SetRuleCounters(chain string, n int, k Counter) error {
	c := t.get(chain)
	if c == nil {
		return t.fail(OpZero, syscall.ENOENT, chain, 0)
	}
	if n < 1 || n > len(c.rules) {
		return t.fail(OpZero, syscall.E2BIG, chain, n)
	}
	t.rs.edit.counters[c.rules[n-1]] = k
	return nil
}

// Zero zeroes the counters of a chain: of its policy and all its rules.
func (t *Table) Zero(chain string) error {
	c := t.get(chain)
	if c == nil {
		return t.fail(OpZero, syscall.ENOENT, chain, 0)
	}
	for _, r := range c.rules {
		t.rs.edit.counters[r] = Counter{}
	}
	if c.Builtin {
		t.rs.edit.policies[c] = Counter{}
	}
	return nil
}

// ZeroAll zeroes every counter of the table.
func (t *Table) ZeroAll() error {
	for c := range t.all {
		if err := t.Zero(c.Name); err != nil {
			return err
		}
	}
	return nil
}
