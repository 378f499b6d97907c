package conntrack

import (
	"sort"
	"sync"
	"sync/atomic"
)

// ExpectFlags, with the kernel's values.
type ExpectFlags uint32

const (
	ExpectPermanent ExpectFlags = 1 << iota // stays after a connection matched
	ExpectInactive                          // does not match (yet)
	ExpectUserspace                         // made by conntrack -I
)

// Expectation announces a connection that a helper saw coming. A connection
// whose tuple, under Mask, equals Tuple becomes Expected and gets Master's mark.
type Expectation struct {
	Tuple      Tuple
	Mask       TupleMask
	Flags      ExpectFlags
	Class      uint8
	Helper     *Helper // given to the expected connection; nil: none
	Master     uint32  // entry index
	MasterGen  uint32
	MasterOrig Tuple
	Timeout    uint32 // seconds left, when listed; when made, 0 means the helper's
	ID         uint32

	// NAT is set by a NATHelper: the direction of the master that the announcement
	// ran in, and the port the payload named before it was changed.
	NATDir    Dir
	NATTuple  Tuple
	SavedPort uint16
	NAT       bool // NATHelper.Expected is called for the connection

	expires int64
	seq     uint32 // counts up
	index   uint8  // the master's helper
}

// HelperName is the name of the master's helper in t, "" if it has none.
func (t *Table) HelperName(x *Expectation) string {
	if h := t.helperOf(x.index); h != nil {
		return h.Name
	}
	return ""
}

// TupleMask says which bits of a tuple an expectation compares; protocol,
// family and the destination address and port always are, as in Linux.
type TupleMask struct {
	Src     [16]byte
	SrcPort uint16
}

// expectations is kept under a lock: a packet takes it only if it has no
// connection yet and there are expectations, or if a helper looks at it.
type expectations struct {
	mu    sync.Mutex
	list  map[expectKey][]*Expectation
	count atomic.Int32
	next  uint32
}

type expectKey struct {
	dst           [16]byte
	dstPort, zone uint16
	proto, family uint8
}

func (x *expectations) init() { x.list = map[expectKey][]*Expectation{} }

func keyOf(u *Tuple) expectKey {
	return expectKey{u.Dst, u.DstPort, u.Zone, u.Proto, u.Family}
}

func (m *TupleMask) match(a, b *Tuple) bool {
	if (a.SrcPort^b.SrcPort)&m.SrcPort != 0 {
		return false
	}
	for i := range m.Src {
		if (a.Src[i]^b.Src[i])&m.Src[i] != 0 {
			return false
		}
	}
	return true
}

// ExpectResult says what became of Expect.
type ExpectResult uint8

const (
	ExpectOK    ExpectResult = iota
	ExpectClash              // an expectation of another kind or connection has the tuple (EBUSY)
	ExpectFull               // nf_conntrack_expect_max, or the helper's limit (EMFILE)
	ExpectGone               // the master has no helper, or is gone
)

// Expect registers x, whose Master is e. An equal one of the same master is
// replaced; a helper at its limit loses its oldest. The table keeps x.
func (w *Worker) Expect(e *Entry, idx uint32, x *Expectation) ExpectResult {
	t := w.t
	h := t.helperOf(e.helper)
	ext := t.ensureExt(e)
	if h == nil || ext == nil || int(x.Class) >= len(h.Classes) {
		return ExpectGone
	}
	return t.addExpect(w, e, idx, ext, h, x)
}

func (t *Table) addExpect(w *Worker, e *Entry, idx uint32, ext *extension, h *Helper, x *Expectation) ExpectResult {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	x.Master, x.MasterGen, x.MasterOrig, x.index = idx, e.gen.Load(), e.orig, e.helper
	for _, o := range xs.list[keyOf(&x.Tuple)] {
		same := o.Mask == x.Mask && x.Mask.match(&o.Tuple, &x.Tuple)
		switch {
		case same && o.Class == x.Class && o.ofMaster(x.Master, x.MasterGen):
			xs.remove(t, w, o)
		case same, o.clashes(x):
			return ExpectClash
		}
	}
	policy := h.Classes[x.Class]
	if policy.Max > 0 && int(ext.expecting[x.Class]) >= policy.Max {
		if old := xs.oldest(x); old != nil {
			xs.remove(t, w, old)
		}
		if int(ext.expecting[x.Class]) >= policy.Max {
			return ExpectFull
		}
	}
	if int64(xs.count.Load()) >= t.sys.expectMax.Load() {
		return ExpectFull
	}
	if x.Timeout == 0 {
		x.Timeout = policy.Timeout
	}
	x.expires = w.now + int64(x.Timeout)*second
	xs.next++
	x.seq = xs.next
	x.ID = t.publicID(x.seq, ^uint32(0))
	ext.announced.Store(true)
	ext.expecting[x.Class]++
	k := keyOf(&x.Tuple)
	xs.list[k] = append([]*Expectation{x}, xs.list[k]...)
	xs.count.Add(1)
	w.stat(statExpectCreate)
	t.emitExpect(EvNew, x, w.now)
	return ExpectOK
}

func (x *Expectation) ofMaster(idx, gen uint32) bool { return x.Master == idx && x.MasterGen == gen }

// clashes: some connection could match both.
func (x *Expectation) clashes(o *Expectation) bool {
	m := x.Mask
	m.SrcPort &= o.Mask.SrcPort
	for i := range m.Src {
		m.Src[i] &= o.Mask.Src[i]
	}
	return m.match(&x.Tuple, &o.Tuple)
}

// oldest finds the master's oldest expectation of x's class.
func (xs *expectations) oldest(x *Expectation) (old *Expectation) {
	for _, l := range xs.list {
		for _, o := range l {
			if o.ofMaster(x.Master, x.MasterGen) && o.Class == x.Class && (old == nil || o.seq < old.seq) {
				old = o
			}
		}
	}
	return old
}

// remove takes x out; the lock is held.
func (xs *expectations) remove(t *Table, w *Worker, x *Expectation) {
	k := keyOf(&x.Tuple)
	l := xs.list[k]
	for i, o := range l {
		if o != x {
			continue
		}
		if len(l) == 1 {
			delete(xs.list, k)
		} else {
			xs.list[k] = append(l[:i:i], l[i+1:]...)
		}
		xs.count.Add(-1)
		if e := t.at(x.Master); e.gen.Load() == x.MasterGen {
			if ext := t.extOf(e); ext != nil && ext.expecting[x.Class] > 0 {
				ext.expecting[x.Class]--
			}
		}
		w.stat(statExpectDelete)
		return
	}
}

// expected finds the expectation that a first packet's tuple fulfils, and makes
// e the connection that was expected.
func (w *Worker) expected(e *Entry, u *Tuple) *Expectation {
	t := w.t
	xs := &t.expects
	if xs.count.Load() == 0 {
		return nil
	}
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, x := range xs.list[keyOf(u)] {
		if x.Flags&ExpectInactive != 0 || !x.Mask.match(&x.Tuple, u) || x.expires <= w.now {
			continue
		}
		m := t.at(x.Master)
		if st := m.Status(); m.gen.Load() != x.MasterGen || st&Confirmed == 0 || st&Dying != 0 {
			return nil // its announcement has not left the router yet
		}
		if x.Flags&ExpectPermanent == 0 {
			xs.remove(t, w, x)
			t.emitExpect(EvDestroy, x, w.now)
		}
		e.SetStatus(Expected)
		e.master, e.mastGen, e.mhelper = x.Master, x.MasterGen, m.helper
		e.mark.Store(m.Mark())
		e.secmark.Store(m.SecMark())
		if x.Helper != nil {
			w.setHelper(e, x.Helper)
		}
		if ext := t.ensureExt(e); ext != nil {
			ext.hasMaster, ext.masterTuple = true, m.orig
		}
		w.stat(statExpectNew)
		return x
	}
	return nil
}

// unexpectAll forgets what a connection announced; it is going.
func (t *Table) unexpectAll(w *Worker, idx, gen uint32) {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, l := range xs.list {
		for _, x := range append([]*Expectation(nil), l...) {
			if x.ofMaster(idx, gen) {
				xs.remove(t, w, x)
				t.emitExpect(EvDestroy, x, w.now)
			}
		}
	}
}

// expire removes what nobody came for.
func (xs *expectations) expire(t *Table, now int64) {
	if xs.count.Load() == 0 {
		return
	}
	t.DeleteExpectations(func(x *Expectation) bool { return x.expires <= now })
}

// Expectations lists the expectations, oldest first, as copies with the seconds
// they have left.
func (t *Table) Expectations() (out []Expectation) {
	now := t.Now()
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, l := range xs.list {
		for _, x := range l {
			if x.expires > now {
				out = append(out, x.copy(now))
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].seq < out[j].seq })
	return out
}

func (x *Expectation) copy(now int64) Expectation {
	c := *x
	c.Timeout = uint32(max(x.expires-now, 0) / second)
	return c
}

// ExpectCount is the number of expectations.
func (t *Table) ExpectCount() int { return int(t.expects.count.Load()) }

// DeleteExpectations removes the expectations that match says yes to.
func (t *Table) DeleteExpectations(match func(*Expectation) bool) (n int) {
	t.withGuest(func(w *Worker) {
		xs := &t.expects
		xs.mu.Lock()
		defer xs.mu.Unlock()
		for _, l := range xs.list {
			for _, x := range append([]*Expectation(nil), l...) {
				if match(x) {
					xs.remove(t, w, x)
					t.emitExpect(EvDestroy, x, w.now)
					n++
				}
			}
		}
	})
	return n
}

// CreateExpectation enters an expectation for the connection that has master as
// one of its tuples, as conntrack -I expect does.
func (t *Table) CreateExpectation(master *Tuple, x Expectation) (err error) {
	t.withGuest(func(w *Worker) {
		e, idx, _ := t.lookup(master, t.hashTuple(master), w.now)
		if e == nil {
			err = ErrHelper
			return
		}
		x.Flags |= ExpectUserspace
		n := new(Expectation)
		*n = x
		h := t.helperOf(e.helper)
		if h == nil { // no limits but the table's
			h = &Helper{Classes: []ExpectPolicy{{}}}
		}
		ext := t.ensureExt(e)
		if ext == nil || int(n.Class) >= len(h.Classes) {
			err = ErrInvalid
			return
		}
		switch t.addExpect(w, e, idx, ext, h, n) {
		case ExpectClash:
			err = ErrBusy
		case ExpectFull:
			err = ErrTooMany
		}
	})
	return err
}
