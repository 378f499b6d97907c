package ipset

import "sync/atomic"

// store keeps a hash set's elements. find and each may run beside anything;
// the others only under the set's lock.
type store interface {
	find(k key) (v value, ok bool)
	put(k key, v value)
	del(k key) bool
	each(f func(k key, v value) bool)
	len() int
	clear()
}

// value is what belongs to a key.
type value struct {
	x     *extra // nil in a set without extensions
	flags uint8
}

const valNoMatch = 1

// table is an open hash table that readers need no lock for: a slot is a tag,
// which tells most keys apart, and a pointer to an element that never changes.
type table[K hashable] struct {
	seed   uint64
	pack   func(key) K
	unpack func(K) key
	live   atomic.Pointer[slots[K]]
	n      int // elements
	used   int // slots that are not empty
}

type hashable interface {
	comparable
	hash(seed uint64) uint64
}

type slots[K hashable] struct {
	mask  uint64
	tags  []atomic.Uint32 // tagEmpty, tagGone or the hash's upper half
	elems []atomic.Pointer[element[K]]
}

type element[K hashable] struct {
	key K
	value
}

const (
	tagEmpty = 0
	tagGone  = 1
)

func newTable[K hashable](seed uint64, pack func(key) K, unpack func(K) key) *table[K] {
	t := &table[K]{seed: seed, pack: pack, unpack: unpack}
	t.clear()
	return t
}

func newSlots[K hashable](n int) *slots[K] {
	size := 16
	for size < 2*n {
		size *= 2
	}
	return &slots[K]{uint64(size - 1), make([]atomic.Uint32, size), make([]atomic.Pointer[element[K]], size)}
}

func tagOf(h uint64) uint32 { return uint32(h>>32) | 2 }

func (t *table[K]) find(k key) (value, bool) {
	sk := t.pack(k)
	if e := t.look(sk, t.live.Load()); e != nil {
		return e.value, true
	}
	return value{}, false
}

func (t *table[K]) look(k K, s *slots[K]) *element[K] {
	h := k.hash(t.seed)
	tag := tagOf(h)
	for i := h & s.mask; ; i = (i + 1) & s.mask {
		switch s.tags[i].Load() {
		case tagEmpty:
			return nil
		case tag:
			if e := s.elems[i].Load(); e != nil && e.key == k {
				return e
			}
		}
	}
}

// slot finds a key's slot, or else the one where it belongs.
func (t *table[K]) slot(k K, s *slots[K]) (at uint64, there bool) {
	h := k.hash(t.seed)
	tag := tagOf(h)
	gone := ^uint64(0)
	for i := h & s.mask; ; i = (i + 1) & s.mask {
		switch s.tags[i].Load() {
		case tagEmpty:
			if gone != ^uint64(0) {
				return gone, false
			}
			return i, false
		case tagGone:
			if gone == ^uint64(0) {
				gone = i
			}
		case tag:
			if e := s.elems[i].Load(); e.key == k {
				return i, true
			}
		}
	}
}

func (t *table[K]) put(k key, v value) {
	e := &element[K]{t.pack(k), v}
	s := t.live.Load()
	i, there := t.slot(e.key, s)
	if there {
		s.elems[i].Store(e)
		return
	}
	if 4*(t.used+1) > 3*len(s.tags) {
		s = t.grow(s)
		i, _ = t.slot(e.key, s)
	}
	if s.tags[i].Load() == tagEmpty {
		t.used++
	}
	s.elems[i].Store(e)
	s.tags[i].Store(tagOf(e.key.hash(t.seed))) // after the element: readers go by the tag
	t.n++
}

func (t *table[K]) grow(old *slots[K]) *slots[K] {
	s := newSlots[K](t.n + t.n/4 + 1)
	for i := range old.elems {
		if e := old.elems[i].Load(); e != nil {
			h := e.key.hash(t.seed)
			at := h & s.mask
			for s.tags[at].Load() != tagEmpty {
				at = (at + 1) & s.mask
			}
			s.elems[at].Store(e)
			s.tags[at].Store(tagOf(h))
		}
	}
	t.used = t.n
	t.live.Store(s)
	return s
}

func (t *table[K]) del(k key) bool {
	s := t.live.Load()
	i, there := t.slot(t.pack(k), s)
	if !there {
		return false
	}
	if s.tags[(i+1)&s.mask].Load() == tagEmpty { // nothing lies behind it
		s.tags[i].Store(tagEmpty)
		t.used--
	} else {
		s.tags[i].Store(tagGone)
	}
	s.elems[i].Store(nil)
	t.n--
	return true
}

func (t *table[K]) each(f func(k key, v value) bool) {
	s := t.live.Load()
	for i := range s.elems {
		if e := s.elems[i].Load(); e != nil && !f(t.unpack(e.key), e.value) {
			return
		}
	}
}

func (t *table[K]) len() int { return t.n }

func (t *table[K]) clear() {
	t.live.Store(newSlots[K](0))
	t.n, t.used = 0, 0
}
