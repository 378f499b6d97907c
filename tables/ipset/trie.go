package ipset

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/gaissmai/bart"

	"sluice/packet"
)

// trie finds the longest prefix of an address at once. It never changes: an edit
// makes a new one that shares what it does not touch.
type trie struct {
	table *bart.Fast[*leaf]
	flat  *flat // the same, of a large set of IPv4 networks that is not being edited; else nil
}

type leaf struct {
	value
	bits uint8
}

// fewLengths is up to how many prefix lengths looking in the hash table for each
// is as quick as the trie.
const fewLengths = 3

// Edits that follow each other closely make the trie go, until it has been quiet
// for a while: a set that is being filled is not copied with every element.
const (
	burstEdits = 64
	quiet      = 50 * time.Millisecond
	buildShare = 20 // a set that is edited all the time is built anew for a 20th of it at most
)

func (t *trie) lookup(family uint8, a [2]uint64) (v value, bits uint8, ok bool) {
	if t.flat != nil {
		l := t.flat.lookup(uint32(a[0] >> 32))
		return l.value, l.bits, l != &t.flat.leaves[0]
	}
	l, ok := t.table.Lookup(addrOf(family, a))
	if !ok {
		return value{}, 0, false
	}
	return l.value, l.bits, true
}

func addrOf(family uint8, a [2]uint64) netip.Addr {
	if family == packet.IPv4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(a[0]>>32))
		return netip.AddrFrom4(b)
	}
	return netip.AddrFrom16(unwords(a))
}

func (h *hashSet) prefix(k key) netip.Prefix {
	return netip.PrefixFrom(addrOf(h.family, k.addr), int(k.bits()))
}

// plainNets reports whether the set holds networks and nothing else.
func (h *hashSet) plainNets() bool {
	return len(h.set.typ.dims) == 1 && h.set.typ.dims[0] == dimNet
}

// edited keeps the trie true to the hash table, under the set's lock; the hash
// table has been changed already.
func (h *hashSet) edited(k key, v value, there bool) {
	if !h.plainNets() {
		return
	}
	if now := time.Now(); now.Sub(h.lastEdit) > quiet {
		h.edits, h.lastEdit = 0, now
	} else {
		h.lastEdit = now
	}
	h.edits++
	if t := h.trie.Load(); t != nil {
		switch {
		case h.edits > burstEdits:
			h.trie.Store(nil)
		case there:
			h.trie.Store(&trie{table: t.table.InsertPersist(h.prefix(k), &leaf{v, k.bits()})})
		default:
			h.trie.Store(&trie{table: t.table.DeletePersist(h.prefix(k))})
		}
	}
	if !h.ready() {
		h.plan()
	}
}

// ready says that the trie is there with all that the set can have.
func (h *hashSet) ready() bool {
	t := h.trie.Load()
	return t != nil && (t.flat != nil || !h.wantsFlat())
}

// Settled says that the set has taken the form that it keeps while nobody edits it.
func (s *Set) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hash
	return h == nil || !h.plainNets() || len(*h.lengths[0].Load()) <= fewLengths || h.ready()
}

func (h *hashSet) wantsFlat() bool { return h.family == packet.IPv4 && h.store.len() >= flatMin }

// plan sees to it that the trie is made once no more edits come.
func (h *hashSet) plan() {
	if h.planned {
		return
	}
	h.planned = true
	time.AfterFunc(max(quiet, buildShare*h.took), h.build)
}

func (h *hashSet) build() {
	s := h.set
	s.mu.Lock()
	h.planned = false
	if h.ready() || len(*h.lengths[0].Load()) <= fewLengths {
		s.mu.Unlock()
		return
	}
	if time.Since(h.lastEdit) < quiet {
		h.plan()
		s.mu.Unlock()
		return
	}
	gen, old, flat := s.gen.Load(), h.trie.Load(), h.wantsFlat()
	s.mu.Unlock()

	begun := time.Now()
	t := h.newTrie(old, flat)

	s.mu.Lock()
	defer s.mu.Unlock()
	h.took = time.Since(begun)
	if s.gen.Load() != gen {
		h.plan()
		return
	}
	h.edits = 0
	h.trie.Store(t)
}

// newTrie makes a trie; one that is there already gets the flat form that is missing.
func (h *hashSet) newTrie(old *trie, withFlat bool) *trie {
	t := &trie{table: new(bart.Fast[*leaf])}
	if old != nil {
		t.table = old.table
	}
	var all []flatPrefix
	h.store.each(func(k key, v value) bool {
		if old == nil {
			t.table.Insert(h.prefix(k), &leaf{v, k.bits()})
		}
		if withFlat {
			all = append(all, flatPrefix{uint32(k.addr[0] >> 32), leaf{v, k.bits()}})
		}
		return true
	})
	if withFlat {
		t.flat = newFlat(all)
	}
	return t
}
