package conntrack

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// The hash table: buckets of one cache line, seven places each, chained to
// overflow buckets of the same array. A place is fingerprint, direction and
// entry index in one atomic word, so that a lookup reads words and takes
// nothing. Whoever changes a chain holds its first bucket's lock bit.
//
// Growing builds a larger state beside the old one and moves chain by chain; a
// moved chain says so in its header, and whoever meets that goes to the newer
// state. Places never move within a state, so a lookup that runs beside any
// change finds every entry that was there all the time.

const (
	bucketPlaces = 7
	chainMax     = 10 // buckets in a chain: 70 places; the kernel's limit is 50 to 80 entries

	headLock  = 1 << 63
	headMoved = 1 << 62
	headNext  = 1<<32 - 1 // index of the next bucket in overflow, plus 1
)

type bucket struct {
	head  atomic.Uint64
	place [bucketPlaces]atomic.Uint64
}

var _ = [1]byte{}[unsafe.Sizeof(bucket{})-64]

// hashState is one generation of the table.
type hashState struct {
	buckets  []bucket // power of two
	mask     uint64
	overflow []bucket
	used     atomic.Uint32             // overflow buckets handed out
	old      atomic.Pointer[hashState] // being moved from; nil when whole
}

func newHashState(n int) *hashState {
	all := make([]bucket, n+n/4+64)
	adviseHuge(unsafe.Pointer(&all[0]), uintptr(len(all))*unsafe.Sizeof(all[0]))
	return &hashState{buckets: all[:n:n], mask: uint64(n - 1), overflow: all[n:]}
}

// spin lets another thread run; only reached when a lock is held for longer
// than its handful of instructions, that is when its holder was preempted.
func spin() { runtime.Gosched() }

// hashTuple mixes the five words of a tuple under the table's secret.
func (t *Table) hashTuple(u *Tuple) uint64 {
	w := u.words()
	s := &t.seed
	a1, a0 := bits.Mul64(w[0]^s[0], w[1]^s[1])
	b1, b0 := bits.Mul64(w[2]^s[2], w[3]^s[3])
	c1, c0 := bits.Mul64(w[4]^a0^a1^s[4], b0^b1^s[5])
	return c0 ^ c1
}

// place packs a hash's upper bits, the direction and the index.
func place(h uint64, d Dir, idx uint32) uint64 {
	return h&^(1<<33-1) | uint64(d&1)<<32 | uint64(idx)
}

const fingerprint = ^uint64(1<<33 - 1)

func placeDir(w uint64) Dir { return Dir(w >> 32 & 1) }

// lookup finds the connection that has u as a tuple; dying and expired ones do
// not count. The caller is between Begin and End.
func (t *Table) lookup(u *Tuple, h uint64, now int64) (*Entry, uint32, Dir) {
	st := t.state.Load()
	if old := st.old.Load(); old != nil {
		if b := &old.buckets[h&old.mask]; b.head.Load()&headMoved == 0 {
			if e, i, d := t.search(old, b, u, h, now); e != nil {
				return e, i, d
			}
			if b.head.Load()&headMoved == 0 {
				return nil, 0, 0
			}
		}
	}
	for {
		b := &st.buckets[h&st.mask]
		if e, i, d := t.search(st, b, u, h, now); e != nil {
			return e, i, d
		}
		if b.head.Load()&headMoved == 0 {
			return nil, 0, 0
		}
		t.guest.stat(statSearchRestart)
		st = t.state.Load()
	}
}

func (t *Table) search(st *hashState, b *bucket, u *Tuple, h uint64, now int64) (*Entry, uint32, Dir) {
	for {
		for i := range b.place {
			w := b.place[i].Load()
			if (w^h)&fingerprint != 0 || uint32(w) == 0 {
				continue
			}
			e, d := t.at(uint32(w)), placeDir(w)
			if e.Tuple(d).equal(u) && Status(e.status.Load())&Dying == 0 && e.expiry.Load() > now {
				return e, uint32(w), d
			}
		}
		next := uint32(b.head.Load() & headNext)
		if next == 0 {
			return nil, 0, 0
		}
		b = &st.overflow[next-1]
	}
}

func (b *bucket) lock() (moved bool) {
	for n := 0; ; n++ {
		h := b.head.Load()
		if h&headLock == 0 && b.head.CompareAndSwap(h, h|headLock) {
			return h&headMoved != 0
		}
		if n > 64 {
			spin()
		}
	}
}

func (b *bucket) unlock() { b.head.And(^uint64(headLock)) }

// lockPair locks the chains of two hashes in the newest state.
func (t *Table) lockPair(h1, h2 uint64) (st *hashState, b1, b2 *bucket) {
	for {
		st = t.state.Load()
		if old := st.old.Load(); old != nil {
			t.move(st, old, h1)
			t.move(st, old, h2)
		}
		i1, i2 := h1&st.mask, h2&st.mask
		b1, b2 = &st.buckets[i1], &st.buckets[i2]
		lo, hi := b1, b2
		if i1 > i2 {
			lo, hi = b2, b1
		}
		moved := lo.lock()
		if hi != lo {
			moved = hi.lock() || moved
		}
		if !moved {
			return st, b1, b2
		}
		unlockPair(b1, b2)
	}
}

func unlockPair(b1, b2 *bucket) {
	b1.unlock()
	if b2 != b1 {
		b2.unlock()
	}
}

// free finds an empty place in a locked chain; nil if the chain is too long or
// no more than keep overflow buckets are left.
func (st *hashState) free(b *bucket, keep int) *atomic.Uint64 {
	for n := 1; ; n++ {
		for i := range b.place {
			if b.place[i].Load() == 0 {
				return &b.place[i]
			}
		}
		next := uint32(b.head.Load() & headNext)
		if next == 0 {
			if n >= chainMax {
				return nil
			}
			if next = st.used.Add(1); int(next)+keep > len(st.overflow) {
				st.used.Add(^uint32(0))
				return nil
			}
			b.head.Or(uint64(next))
		}
		b = &st.overflow[next-1]
	}
}

// remove clears idx's place for direction d in a locked chain.
func (st *hashState) remove(b *bucket, h uint64, d Dir, idx uint32) bool {
	w := place(h, d, idx)
	for {
		for i := range b.place {
			if b.place[i].Load() == w {
				b.place[i].Store(0)
				return true
			}
		}
		next := uint32(b.head.Load() & headNext)
		if next == 0 {
			return false
		}
		b = &st.overflow[next-1]
	}
}

// dirs is a set of directions, 1<<Dir each.
type dirs uint8

const bothDirs dirs = 1<<Original | 1<<Reply

// find is search for a locked chain: it sees entries whatever their state, by
// tuples of the directions in ds.
func (t *Table) find(st *hashState, b *bucket, u *Tuple, h uint64, ds dirs) (*Entry, uint32, Dir) {
	for {
		for i := range b.place {
			w := b.place[i].Load()
			if (w^h)&fingerprint == 0 && uint32(w) != 0 {
				if e, d := t.at(uint32(w)), placeDir(w); ds>>d&1 != 0 && e.Tuple(d).equal(u) {
					return e, uint32(w), d
				}
			}
		}
		next := uint32(b.head.Load() & headNext)
		if next == 0 {
			return nil, 0, 0
		}
		b = &st.overflow[next-1]
	}
}

// move takes the chain that h is in from the old state to st. The places stay
// behind as they are: a lookup that is still in there sees what it would have.
// A chain is split over chains that are empty so far, so that it needs no more
// overflow buckets than it had, and insertion leaves as many alone: there is
// always room.
func (t *Table) move(st, old *hashState, h uint64) {
	b := &old.buckets[h&old.mask]
	if b.head.Load()&headMoved != 0 {
		return
	}
	if moved := b.lock(); moved {
		b.unlock()
		return
	}
	for c := b; ; {
		for i := range c.place {
			w := c.place[i].Load()
			if uint32(w) == 0 {
				continue
			}
			h := t.hashTuple(t.at(uint32(w)).Tuple(placeDir(w)))
			if p := st.free(&st.buckets[h&st.mask], 0); p != nil {
				p.Store(w)
			}
		}
		next := uint32(c.head.Load() & headNext)
		if next == 0 {
			break
		}
		c = &old.overflow[next-1]
	}
	b.head.Or(headMoved)
	b.unlock()
}

// keep is how many overflow buckets insertion leaves to move: as many as it may
// ever come to need.
func (st *hashState) keep() int {
	if old := st.old.Load(); old != nil {
		return len(old.overflow)
	}
	return 0
}

// growTo starts growing to at least n buckets in the background, unless that is
// under way.
func (t *Table) growTo(n int) {
	if t.growing.CompareAndSwap(false, true) {
		go func() {
			t.moveAll(t.widen(n))
			t.growing.Store(false)
		}()
	}
}

// outgrow is called by an insertion that found no place in st. true: there is a
// wider state now, try again. Only the moving is left to the background.
func (t *Table) outgrow(st *hashState) bool {
	if st.old.Load() != nil || t.count.Load()*2 < int64(len(st.buckets))*bucketPlaces/8 {
		return false // it is not for lack of buckets
	}
	for t.state.Load() == st {
		if t.growing.CompareAndSwap(false, true) {
			next := t.widen(len(st.buckets) * 2)
			go func() {
				t.moveAll(next)
				t.growing.Store(false)
			}()
			break
		}
		spin()
	}
	return true
}

// widen publishes a state of at least n buckets beside the current one; nil if
// that is as wide already.
func (t *Table) widen(n int) *hashState {
	cur := t.state.Load()
	size := len(cur.buckets)
	if n <= size {
		return nil
	}
	for size < n {
		size *= 2
	}
	next := newHashState(size)
	next.old.Store(cur)
	t.state.Store(next)
	return next
}

// moveAll takes every chain over, one at a time.
func (t *Table) moveAll(next *hashState) {
	if next == nil {
		return
	}
	cur := next.old.Load()
	for i := range cur.buckets {
		t.move(next, cur, uint64(i))
	}
	next.old.Store(nil)
}
