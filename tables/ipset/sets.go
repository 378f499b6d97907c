package ipset

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Sets are a router's sets by name. Its methods may be called from any goroutine
// but a worker's; workers ask a Ref.
type Sets struct {
	clock func() int64
	gen   atomic.Uint64

	mu     sync.Mutex // never taken while a set's own lock is held
	byName map[string]*Ref
	order  []*Ref // nil where a set was destroyed
}

// Ref is the place of a name. Swap exchanges what is behind two of them.
type Ref struct {
	sets  *Sets
	name  string // guarded by sets.mu
	cur   atomic.Pointer[Set]
	users int // rules and lists; guarded by sets.mu
	index int
}

// maxSets is how many sets there can be: the kernel counts them in 16 bits.
const maxSets = 65535

// New makes an empty collection. clock is the time that packets have (Packet.Now),
// in ns; nil: the time since now.
func New(clock func() int64) *Sets {
	if clock == nil {
		start := time.Now()
		clock = func() int64 { return int64(time.Since(start)) }
	}
	return &Sets{clock: clock, byName: map[string]*Ref{}}
}

func (s *Sets) now() int64 { return s.clock() }

// Generation counts what may change the answer to a lookup in any of the sets.
// It is read before the lookup that it goes with.
func (s *Sets) Generation() *atomic.Uint64 { return &s.gen }

// Create makes a set.
func (s *Sets) Create(name, typ string, opt Options) error {
	if len(name) > MaxName {
		return ErrInvalid
	}
	set, err := s.Make(typ, opt)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[name] != nil {
		return ErrExistName
	}
	return s.place(name, set)
}

// Make makes a set without a name, for Put.
func (s *Sets) Make(typ string, opt Options) (*Set, error) {
	t := TypeNamed(typ)
	if t == nil {
		return nil, ErrFindType
	}
	return newSet(s, t, opt)
}

// Put gives a set a name. The set that had it is replaced at once for whoever
// refers to it, and returned; it is nil if there was none.
func (s *Sets) Put(name string, set *Set) (was *Set, err error) {
	if len(name) > MaxName {
		return nil, ErrInvalid
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.byName[name]; r != nil {
		was = r.cur.Swap(set)
		s.gen.Add(1)
		return was, nil
	}
	return nil, s.place(name, set)
}

// place gives a set a name that is free.
func (s *Sets) place(name string, set *Set) error {
	i := slices.Index(s.order, nil)
	if i < 0 {
		if i = len(s.order); i == maxSets {
			return ErrMaxSets
		}
		s.order = append(s.order, nil)
	}
	r := &Ref{sets: s, name: name, index: i}
	r.cur.Store(set)
	s.order[i], s.byName[name] = r, r
	return nil
}

// Same reports whether the set called name is what Create would make.
func (s *Sets) Same(name, typ string, opt Options) bool {
	set := s.Get(name)
	if set == nil || set.typ.Name != typ {
		return false
	}
	n, err := newSet(s, set.typ, opt)
	if err != nil {
		return false
	}
	a, b := set.opt, n.opt
	a.HashSize, b.HashSize, a.InitVal, b.InitVal, a.BucketSize, b.BucketSize = 0, 0, 0, 0, 0, 0
	a.ForceAdd, b.ForceAdd = false, false
	return a == b
}

// Get is the set called name, nil if there is none. After a Swap another set has
// that name.
func (s *Sets) Get(name string) *Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.byName[name]; r != nil {
		return r.cur.Load()
	}
	return nil
}

// Take is a hold on a name: until Release nobody can destroy or rename it. nil:
// there is no such set.
func (s *Sets) Take(name string) *Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byName[name]
	if r != nil {
		r.users++
	}
	return r
}

// Release ends a hold.
func (r *Ref) Release() {
	r.sets.mu.Lock()
	defer r.sets.mu.Unlock()
	r.users--
}

// Set is the set that the name has now. Workers call it with every packet.
func (r *Ref) Set() *Set { return r.cur.Load() }

// Name is the name.
func (r *Ref) Name() string { return r.name }

// Users is how many rules and lists hold the name.
func (r *Ref) Users() int {
	r.sets.mu.Lock()
	defer r.sets.mu.Unlock()
	return r.users
}

// Refs are all names in the order in which ipset lists their sets, lists last.
func (s *Sets) Refs() []*Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out, lists []*Ref
	for _, r := range s.order {
		switch {
		case r == nil:
		case r.cur.Load().list != nil:
			lists = append(lists, r)
		default:
			out = append(out, r)
		}
	}
	return append(out, lists...)
}

// Ref finds a name without a hold on it; nil: there is none.
func (s *Sets) Ref(name string) *Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name]
}

// Destroy deletes a set that nothing refers to.
func (s *Sets) Destroy(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byName[name]
	if r == nil {
		return ErrNoEntry
	}
	if r.users > 0 {
		return ErrBusy
	}
	s.drop(r)
	return nil
}

// DestroyAll deletes all sets, or none where something refers to one.
func (s *Sets) DestroyAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.byName {
		if r.users > 0 {
			return ErrBusy
		}
	}
	for _, r := range s.order {
		if r != nil {
			s.drop(r)
		}
	}
	return nil
}

func (s *Sets) drop(r *Ref) {
	set := r.cur.Load()
	if set.list != nil {
		set.mu.Lock()
		set.list.flush()
		set.mu.Unlock()
	}
	delete(s.byName, r.name)
	s.order[r.index] = nil
}

// Flush deletes the elements of a set.
func (s *Sets) Flush(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byName[name]
	if r == nil {
		return ErrNoEntry
	}
	r.cur.Load().flushLocked()
	return nil
}

// FlushAll deletes the elements of all sets.
func (s *Sets) FlushAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.byName {
		r.cur.Load().flushLocked()
	}
}

// Rename gives a set that nothing refers to another name.
func (s *Sets) Rename(from, to string) error {
	if len(to) > MaxName {
		return ErrInvalid
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.byName[from]
	if r == nil {
		return ErrNoEntry
	}
	if r.users > 0 {
		return ErrReferenced
	}
	if s.byName[to] != nil {
		return ErrExistSetname2
	}
	delete(s.byName, from)
	// a worker that knows the old Ref goes on with it
	n := &Ref{sets: s, name: to, index: r.index}
	n.cur.Store(r.cur.Load())
	s.byName[to], s.order[r.index] = n, n
	return nil
}

// Swap exchanges the sets behind two names. Each name has a set all the time.
func (s *Sets) Swap(a, b string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, y := s.byName[a], s.byName[b]
	if x == nil {
		return ErrNoEntry
	}
	if y == nil {
		return ErrExistSetname2
	}
	sx, sy := x.cur.Load(), y.cur.Load()
	if sx.typ.features != sy.typ.features || sx.Family() != sy.Family() {
		return ErrTypeMismatch
	}
	x.cur.Store(sy)
	y.cur.Store(sx)
	s.gen.Add(1)
	return nil
}

// Expire deletes elements whose time is over; the router's housekeeping calls it
// now and then. Lookups do not wait for it.
func (s *Sets) Expire() {
	now := s.now()
	for _, r := range s.Refs() {
		set := r.cur.Load()
		if set.list != nil {
			s.mu.Lock()
			set.expire(now)
			s.mu.Unlock()
			continue
		}
		set.expire(now)
	}
}
