package tables

import (
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"sluice/hooks"
)

// Engine holds one family's rules: the live program that packets use and the
// ruleset it was made of.
type Engine struct {
	Family uint8
	env    *Env
	live   atomic.Pointer[Program]

	mu       sync.Mutex // serialises Commit and counter reading; no packet takes it
	src      *Ruleset
	counters counterIDs
	fresh    []*Rule // rules given a counter by the commit in progress
	slots    slots
}

// counterIDs hands out counter ids and keeps what was set apart from what
// workers counted: a counter's value is its base plus every worker's part.
type counterIDs struct {
	base []Counter
	free []uint32 // zero in every worker and in base
	dead []uint32 // given back, not yet zeroed in the workers
	room int      // counters that each worker has at least
}

func (k *counterIDs) alloc() uint32 {
	if n := len(k.free); n > 0 {
		id := k.free[n-1]
		k.free = k.free[:n-1]
		return id
	}
	k.base = append(k.base, Counter{})
	return uint32(len(k.base) - 1)
}

// NewEngine makes an engine with empty tables, all policies ACCEPT.
func NewEngine(fam uint8, env *Env) *Engine {
	e := &Engine{Family: fam, env: env}
	rs := Empty(fam)
	for _, t := range rs.tables {
		for c := range t.all {
			c.policy.id, c.policy.entered = e.counters.alloc(), e.counters.alloc()
			e.slots.next = max(e.slots.next, c.slot+1)
		}
	}
	pr, err := e.compile(rs)
	if err != nil {
		panic(err) // empty tables always compile
	}
	e.src = rs
	e.live.Store(pr)
	return e
}

// Program is the live program. Workers load it once a batch.
func (e *Engine) Program() *Program { return e.live.Load() }

// Ruleset is the ruleset in force, read only.
func (e *Engine) Ruleset() *Ruleset { return e.Program().Ruleset }

// Env is what the engine was made with.
func (e *Engine) Env() *Env { return e.env }

// Commit applies edit to a copy of the ruleset and publishes the whole, or
// changes nothing. An edit's own error is returned as it is; what compiling
// refuses is an *EditError.
func (e *Engine) Commit(edit func(*Ruleset) error) error { return e.commit(edit, true) }

// Check does all of a Commit but publishing: iptables-restore --test.
func (e *Engine) Check(edit func(*Ruleset) error) error { return e.commit(edit, false) }

func (e *Engine) commit(edit func(*Ruleset) error, publish bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.src.clone(e.slots)
	e.fresh = e.fresh[:0]
	err := edit(next)
	var pr *Program
	if err == nil {
		pr, err = e.compile(next)
	}
	if err != nil || !publish {
		// Nothing has run with these ids: they are still zero everywhere.
		for _, r := range e.fresh {
			e.counters.free = append(e.counters.free, r.state.id)
			r.state.end()
			r.state = nil
		}
		return err
	}
	ed := next.edit
	next.edit = nil
	e.slots = *ed.slots
	e.slots.free = append(e.slots.free[:len(e.slots.free):len(e.slots.free)], ed.freed...)
	e.src = next
	e.setCounters(ed)
	e.makeRoom(pr.counters)
	e.live.Store(pr)
	e.retire(ed)
	return nil
}

func (e *Engine) compile(rs *Ruleset) (*Program, error) {
	pr := &Program{Ruleset: rs, Family: rs.Family}
	set := func(t *Table, c *Chain) {
		pr.chains[c.slot] = c.code
		if c.Builtin {
			pr.bases[t.ID][c.Hook] = base{c.code, c.Policy, c.policy.id, c.policy.entered}
		}
	}
	live, ed := e.live.Load(), rs.edit
	if live == nil { // the first program
		pr.chains = make([]*code, e.slots.next)
	} else {
		pr.bases = live.bases
		pr.chains = make([]*code, max(int(ed.slots.next), len(live.chains)))
		copy(pr.chains, live.chains)
		for _, s := range ed.freed {
			pr.chains[s] = nil
		}
	}
	for id, t := range rs.tables {
		if live == nil || ed.tables[id] {
			if err := e.compileTable(t, ed); err != nil {
				return nil, err
			}
			if live == nil {
				for c := range t.all {
					set(t, c)
				}
			} else {
				for c := range ed.owned {
					if t.get(c.Name) == c {
						set(t, c)
					}
				}
			}
		}
		pr.depth = max(pr.depth, t.depth)
	}
	pr.counters = len(e.counters.base)
	return pr, nil
}

// compileTable compiles the chains that an edit touched (ed nil: all) and links
// the table anew if their jumps changed. The order is the kernel's: of rules that
// share a state by its name, the first one's options make it.
func (e *Engine) compileTable(t *Table, ed *edit) (err error) {
	whole := ed == nil || ed.shrunk[t.ID]
	var chains []*Chain
	if whole {
		chains = t.Chains()
	} else {
		for c := range ed.owned {
			if t.get(c.Name) == c { // else another table's
				chains = append(chains, c)
			}
		}
		slices.SortFunc(chains, (*Chain).order)
	}
	same := !whole
	for _, c := range chains {
		if err := e.compileChain(t, c); err != nil {
			return err
		}
		if same {
			was := ed.owned[c]
			same = was != nil && slices.EqualFunc(c.code.edges, was.code.edges, edge.equal)
		}
	}
	if !same {
		t.depth, err = link(t)
		return err
	}
	for _, c := range chains { // the same chains are reached from the same hooks
		if err := checkChain(t, c, hooks.Mask(ed.owned[c].code.hooks)); err != nil {
			return err
		}
	}
	return nil
}

// setCounters gives counters the values that an edit asked for.
func (e *Engine) setCounters(ed *edit) {
	if len(ed.counters)+len(ed.policies) == 0 {
		return
	}
	set := map[uint32]Counter{}
	for r, k := range ed.counters {
		if r.state != nil {
			set[r.state.id] = k
		}
	}
	for c, k := range ed.policies {
		set[c.policy.id] = k
	}
	e.eachWorker(func(c *Context) {
		for id := range set {
			if int(id) < len(c.Counters) {
				c.Counters[id] = Counter{}
			}
		}
	})
	for id, k := range set {
		e.counters.base[id] = k
	}
}

// makeRoom gives the workers so many counters before a program needs them, in
// memory that is made and touched here: for what many rules take, a worker
// would keep its packets waiting.
func (e *Engine) makeRoom(n int) {
	if n <= e.counters.room {
		return
	}
	workers := 0
	e.eachWorker(func(*Context) { workers++ })
	if workers == 0 {
		return
	}
	n += n / 4
	e.counters.room = n
	room := make([][]Counter, workers)
	for i := range room {
		room[i] = make([]Counter, n)
		for j := 0; j < n; j += 4096 / int(unsafe.Sizeof(Counter{})) {
			room[i][j] = Counter{}
		}
	}
	e.eachWorker(func(c *Context) {
		if workers--; workers >= 0 && len(c.Counters) < n {
			copy(room[workers], c.Counters)
			c.Counters = room[workers]
		}
	})
}

func (e *Engine) eachWorker(f func(c *Context)) {
	if e.env != nil && e.env.DoWorkers != nil {
		e.env.DoWorkers(f)
	}
}

// retire takes back the counters of rules that are gone. They are zeroed in the
// workers in large groups, so that an edit does not wait for workers.
func (e *Engine) retire(ed *edit) {
	for _, st := range ed.removed {
		if st.compiled {
			st.compiled = false // a copy of the rule starts afresh
			st.end()
			e.counters.dead = append(e.counters.dead, st.id)
		}
	}
	if dead := e.counters.dead; len(dead) > 4096 && len(dead) > len(e.counters.base)/4 {
		e.eachWorker(func(c *Context) {
			for _, id := range dead {
				if int(id) < len(c.Counters) {
					c.Counters[id] = Counter{}
				}
			}
		})
		for _, id := range dead {
			e.counters.base[id] = Counter{}
		}
		e.counters.free = append(e.counters.free, dead...)
		e.counters.dead = nil
	}
}

// View is a ruleset with its counters as they were at one moment.
type View struct {
	Ruleset *Ruleset
	sums    []Counter
}

// Rule is a rule's counters.
func (v *View) Rule(r *Rule) Counter { return v.sums[r.state.id] }

// Policy is a builtin chain's policy counters.
func (v *View) Policy(c *Chain) Counter { return v.sums[c.policy.id] }

// Entered is what a builtin chain has met. While it has no rules, and so is not
// walked, that is what its policy has counted; so it begins anew with the first
// rule, and goes back to the policy's count with the last.
func (v *View) Entered(c *Chain) Counter {
	if len(c.rules) == 0 {
		return v.Policy(c)
	}
	return v.sums[c.policy.entered]
}

// View reads the counters. With zero, the counters of the rules and chains for
// which zero is true are set to zero in the same step, so no packet is lost
// between reading and zeroing (-L -Z). zero gets a nil rule for a policy.
func (e *Engine) View(zero func(t *Table, c *Chain, r *Rule) bool) *View {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := &View{Ruleset: e.src, sums: make([]Counter, len(e.counters.base))}
	copy(v.sums, e.counters.base)
	var clear []uint32
	if zero != nil {
		for _, t := range e.src.tables {
			for c := range t.all {
				if c.Builtin && zero(t, c, nil) {
					clear = append(clear, c.policy.id)
				}
				for _, r := range c.rules {
					if zero(t, c, r) {
						clear = append(clear, r.state.id)
					}
				}
			}
		}
		for _, id := range clear {
			e.counters.base[id] = Counter{}
		}
	}
	var mu sync.Mutex // workers may run side by side
	e.eachWorker(func(c *Context) {
		mu.Lock()
		defer mu.Unlock()
		for i := range min(len(c.Counters), len(v.sums)) {
			v.sums[i].Packets += c.Counters[i].Packets
			v.sums[i].Bytes += c.Counters[i].Bytes
		}
		for _, id := range clear {
			if int(id) < len(c.Counters) {
				c.Counters[id] = Counter{}
			}
		}
	})
	return v
}
