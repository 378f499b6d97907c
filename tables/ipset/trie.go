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
type trie struct{ table *bart.Fast[*leaf] }

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
)

func (t *trie) lookup(family uint8, a [2]uint64) (v value, bits uint8, ok bool) {
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
			h.trie.Store(&trie{t.table.InsertPersist(h.prefix(k), &leaf{v, k.bits()})})
			return
		default:
			h.trie.Store(&trie{t.table.DeletePersist(h.prefix(k))})
			return
		}
	}
	h.plan()
}

// plan sees to it that the trie is made once no more edits come.
func (h *hashSet) plan() {
	if h.planned {
		return
	}
	h.planned = true
	time.AfterFunc(quiet, h.build)
}

func (h *hashSet) build() {
	s := h.set
	s.mu.Lock()
	h.planned = false
	if h.trie.Load() != nil || len(*h.lengths[0].Load()) <= fewLengths {
		s.mu.Unlock()
		return
	}
	if time.Since(h.lastEdit) < quiet {
		h.plan()
		s.mu.Unlock()
		return
	}
	gen := s.gen.Load()
	s.mu.Unlock()

	t := h.newTrie()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen.Load() != gen {
		h.plan()
		return
	}
	h.edits = 0
	h.trie.Store(t)
}

func (h *hashSet) newTrie() *trie {
	t := &trie{new(bart.Fast[*leaf])}
	h.store.each(func(k key, v value) bool {
		t.table.Insert(h.prefix(k), &leaf{v, k.bits()})
		return true
	})
	return t
}
