package conntrack

import (
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// ExpectFlags, with the kernel's values.
type ExpectFlags uint32

const (
	ExpectPermanent ExpectFlags = 1 << iota // stays after a connection matched
	ExpectInactive                          // does not match (yet)
)

// Follow says what becomes of an expected connection beside being RELATED.
type Follow uint8

const (
	FollowNone   Follow = iota
	FollowMaster        // NAT: it goes between the ends that the master's messages really went between
	FollowCall          // PPTP: as FollowMaster, by call ids; the call's other tunnel is expected no more
	FollowSaved         // NAT: it goes to SavedAddr (SIP)
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

	// For the connection's translation: the direction of the master that the
	// announcement ran in, and what it named before it was changed.
	Follow    Follow
	NATDir    Dir
	SavedAddr [16]byte
	SavedPort uint16

	expires int64
	seq     uint32 // counts up
	index   uint8  // the master's helper
	silent  bool   // makes no events
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
	mu       sync.Mutex
	list     map[expectKey][]*Expectation // newest first
	byMaster map[masterKey][]*Expectation // oldest first
	count    atomic.Int32
	next     uint32
}

type masterKey struct{ idx, gen uint32 }

type expectKey struct {
	dst           [16]byte
	dstPort, zone uint16
	proto, family uint8
}

func (x *expectations) init() {
	x.list, x.byMaster = map[expectKey][]*Expectation{}, map[masterKey][]*Expectation{}
}

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
	ExpectOK      ExpectResult = iota
	ExpectClash                // a connection could match this one and another (EBUSY)
	ExpectAlready              // the same is expected already, of another class or master (EALREADY)
	ExpectFull                 // nf_conntrack_expect_max, or the helper's limit (EMFILE)
	ExpectGone                 // the master has no helper, or is gone
)

// Expect registers x, whose Master is e. An equal one of the same master is
// replaced; a helper at its limit loses its oldest. The table keeps x.
func (w *Worker) Expect(e *Entry, idx uint32, x *Expectation) ExpectResult {
	return w.expect(e, idx, false, x)
}

// expect registers one expectation or several, all or none. shared: masters
// may announce the same one (ExpectAlready), which is no clash.
func (w *Worker) expect(e *Entry, idx uint32, shared bool, all ...*Expectation) ExpectResult {
	t := w.t
	h := t.helperOf(e.helper)
	ext := t.ensureExt(e)
	if h == nil || ext == nil || int(all[0].Class) >= len(h.Classes) {
		return ExpectGone
	}
	return t.addExpect(w, e, idx, ext, h, shared, all...)
}

func (t *Table) addExpect(w *Worker, e *Entry, idx uint32, ext *extension, h *Helper, shared bool, all ...*Expectation) ExpectResult {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	done := 0
	for ; done < len(all); done++ {
		x := all[done]
		x.Master, x.MasterGen, x.MasterOrig, x.index = idx, e.gen.Load(), e.orig, e.helper
		x.silent = e.flags&(entryNoEvents|entryNoExpEvents) != 0
		if r := xs.admit(t, w, ext, h, shared, x); r != ExpectOK {
			for _, o := range all[:done] {
				ext.expecting[o.Class]--
			}
			return r
		}
		ext.expecting[x.Class]++ // the next one finds it counted
	}
	ext.announced.Store(true)
	for _, x := range all {
		if x.Timeout == 0 {
			x.Timeout = h.Classes[x.Class].Timeout
		}
		x.expires = w.now + int64(x.Timeout)*second
		xs.next++
		x.seq = xs.next
		x.ID = t.publicID(x.seq, ^uint32(0))
		k, m := keyOf(&x.Tuple), masterKey{x.Master, x.MasterGen}
		xs.list[k] = append([]*Expectation{x}, xs.list[k]...)
		xs.byMaster[m] = append(xs.byMaster[m], x)
		xs.count.Add(1)
		w.stat(statExpectCreate)
		t.emitExpect(EvNew, x, w.now)
	}
	return ExpectOK
}

// admit makes room for x or says why it cannot be; the lock is held.
func (xs *expectations) admit(t *Table, w *Worker, ext *extension, h *Helper, shared bool, x *Expectation) ExpectResult {
	for _, o := range xs.list[keyOf(&x.Tuple)] {
		mine := o.ofMaster(x.Master, x.MasterGen)
		switch same := o.Tuple == x.Tuple && o.Mask == x.Mask; {
		case o.expires <= w.now:
			xs.drop(t, w, o)
			continue
		case same && mine && o.Class == x.Class:
			xs.drop(t, w, o)
		case same && (mine || shared):
			return ExpectAlready
		case o.clashes(x):
			return ExpectClash
		default:
			continue
		}
		break
	}
	policy := h.Classes[x.Class]
	if policy.Max > 0 && int(ext.expecting[x.Class]) >= policy.Max {
		if old := xs.oldest(x); old != nil {
			xs.drop(t, w, old)
		}
		if int(ext.expecting[x.Class]) >= policy.Max {
			return ExpectFull
		}
	}
	if int64(xs.count.Load()) >= t.sys.expectMax.Load() {
		return ExpectFull
	}
	return ExpectOK
}

// ExpectPort registers x at its port, or at a higher one that is free, as
// translation needs it.
func (w *Worker) ExpectPort(e *Entry, idx uint32, x *Expectation) bool {
	const maxAttempts = 128
	low := x.Tuple.DstPort
	span := 65535 - int(low)
	for left := min(span, maxAttempts); ; left-- {
		switch w.Expect(e, idx, x) {
		case ExpectOK:
			return true
		case ExpectClash:
		default:
			return false
		}
		if left <= 0 {
			return false
		}
		x.Tuple.DstPort = low + uint16(rand.IntN(span))
	}
}

// unexpect takes back what was registered.
func (w *Worker) unexpect(all ...*Expectation) {
	xs := &w.t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, x := range all {
		xs.drop(w.t, w, x)
	}
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
func (xs *expectations) oldest(x *Expectation) *Expectation {
	for _, o := range xs.byMaster[masterKey{x.Master, x.MasterGen}] {
		if o.Class == x.Class {
			return o
		}
	}
	return nil
}

// find is the newest expectation that a connection with the tuple u would
// fulfil, an inactive one too; the lock is held.
func (xs *expectations) find(u *Tuple, now int64) *Expectation {
	for _, x := range xs.list[keyOf(u)] {
		if x.expires > now && x.Mask.match(&x.Tuple, u) {
			return x
		}
	}
	return nil
}

// drop is remove with its event.
func (xs *expectations) drop(t *Table, w *Worker, x *Expectation) {
	if xs.remove(t, w, x) {
		t.emitExpect(EvDestroy, x, w.now)
	}
}

// remove takes x out, if it is there; the lock is held.
func (xs *expectations) remove(t *Table, w *Worker, x *Expectation) bool {
	k := keyOf(&x.Tuple)
	l := without(xs.list[k], x)
	if len(l) == len(xs.list[k]) {
		return false
	}
	if xs.list[k] = l; len(l) == 0 {
		delete(xs.list, k)
	}
	m := masterKey{x.Master, x.MasterGen}
	if xs.byMaster[m] = without(xs.byMaster[m], x); len(xs.byMaster[m]) == 0 {
		delete(xs.byMaster, m)
	}
	xs.count.Add(-1)
	if e := t.at(x.Master); e.gen.Load() == x.MasterGen {
		if ext := t.extOf(e); ext != nil && ext.expecting[x.Class] > 0 {
			ext.expecting[x.Class]--
		}
	}
	w.stat(statExpectDelete)
	return true
}

// without is a new list that x is not on.
func without(l []*Expectation, x *Expectation) []*Expectation {
	i := slices.Index(l, x)
	if i < 0 {
		return l
	}
	return append(l[:i:i], l[i+1:]...)
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
			xs.drop(t, w, x)
		}
		e.SetStatus(Expected)
		e.mhelper = m.helper
		e.mark.Store(m.Mark())
		t.setSecMark(e, t.SecMark(m))
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
	t.unexpectSome(w, idx, gen, func(*Expectation) bool { return true })
}

// unexpectSome forgets what a connection announced and match says yes to.
func (t *Table) unexpectSome(w *Worker, idx, gen uint32, match func(*Expectation) bool) {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, x := range xs.byMaster[masterKey{idx, gen}] { // remove makes new lists
		if match(x) {
			xs.drop(t, w, x)
		}
	}
}

// unexpectTuple forgets the expectation that u would fulfil; false if there is none.
func (t *Table) unexpectTuple(w *Worker, u *Tuple) bool {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	x := xs.find(u, w.now)
	if x != nil {
		xs.drop(t, w, x)
	}
	return x != nil
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
			for _, x := range l {
				if match(x) {
					xs.drop(t, w, x)
					n++
				}
			}
		}
	})
	return n
}

// CreateExpectation enters an expectation for the connection that has master as
// one of its tuples, as conntrack -I expect does: of the class 0 of its helper,
// and as long as that says.
func (t *Table) CreateExpectation(master *Tuple, x Expectation) (err error) {
	t.withGuest(func(w *Worker) {
		e, idx, _ := t.lookup(master, t.hashTuple(master), w.now)
		if e == nil {
			err = ErrMaster
			return
		}
		t.expects.mu.Lock()
		have := t.expects.find(&x.Tuple, w.now)
		t.expects.mu.Unlock()
		if have != nil {
			err = ErrExists
			return
		}
		n := new(Expectation)
		*n = x
		n.Timeout = 0
		switch w.Expect(e, idx, n) {
		case ExpectGone:
			err = ErrUnsupported
		case ExpectClash, ExpectAlready:
			err = ErrBusy
		case ExpectFull:
			err = ErrTooMany
		}
	})
	return err
}

// Covers says whether a connection with the tuple u would fulfil x.
func (x *Expectation) Covers(u *Tuple) bool {
	return keyOf(&x.Tuple) == keyOf(u) && x.Mask.match(&x.Tuple, u)
}

// AnnouncedAs is the address and port under which the source of u, a stream
// that x expected, has been announced to the other side by the same master.
func (t *Table) AnnouncedAs(x *Expectation, u *Tuple) (addr [16]byte, port uint16, ok bool) {
	if x.Class == sipSignalling {
		return addr, 0, false
	}
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, o := range slices.Backward(xs.byMaster[masterKey{x.Master, x.MasterGen}]) {
		if o.Tuple.Proto == u.Proto && o.Tuple.Family == u.Family && o.SavedAddr == u.Src && o.SavedPort == u.SrcPort {
			return o.Tuple.Dst, o.Tuple.DstPort, true
		}
	}
	return addr, 0, false
}
