package nat

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"sluice/conntrack"
)

// bySource finds the connections whose source is changed by that source, so that
// a source's next connection is mapped alike. Only the first and the last packet
// of a translated connection come here: a shard's mutex is held for a few
// instructions and never on the packet path.
//
// A chain runs through the entries themselves: NAT[next] is the index of the one
// behind, NAT[prev] of the one before, or isFirst. An entry is in a chain from
// when its source is bound until it is destroyed.
type bySource struct {
	table  *conntrack.Table
	seed   uint64
	shards [sourceShards]sourceShard
}

const (
	next = 0
	prev = 1

	isFirst = 1<<32 - 1

	sourceShards = 256
	// maxSources bounds the search. A chain is only long where one socket has
	// many connections, and the newest of those is its first.
	maxSources = 256
)

// SourceHead is the head of a chain: an entry's index (0: none) below, above it a
// bit for each source that may be in the chain, by its hash.
type SourceHead struct{ word atomic.Uint64 }

// First is the index of the chain's first connection; 0: there is none.
func (h *SourceHead) First() uint32 { return uint32(h.word.Load()) }

// sourceShard has heads, a power of two. The mutex guards all of it, and the links
// of the entries; only heads are read without it.
type sourceShard struct {
	mu    sync.Mutex
	used  int
	heads atomic.Pointer[[]SourceHead]
	_     [40]byte
}

func newBySource(t *conntrack.Table) *bySource {
	b := &bySource{table: t, seed: rand.Uint64()}
	for i := range b.shards {
		b.shards[i].heads.Store(new(make([]SourceHead, 1)))
	}
	return b
}

// hash of who speaks: one socket of one host, whoever it speaks to.
func (b *bySource) hash(orig *conntrack.Tuple) uint64 {
	lo := binary.LittleEndian.Uint64(orig.Src[:8]) ^ b.seed
	hi := binary.LittleEndian.Uint64(orig.Src[8:]) ^ 0x9e3779b97f4a7c15
	x := uint64(orig.SrcPort)<<32 | uint64(orig.Zone)<<16 | uint64(orig.Proto)<<8 | uint64(orig.Family)
	h1, l1 := bits.Mul64(lo^x*0xff51afd7ed558ccd, hi^b.seed)
	h2, l2 := bits.Mul64(h1^l1^x, 0xa0761d6478bd642f^b.seed)
	return h2 ^ l2
}

func sameSource(a, b *conntrack.Tuple) bool {
	return a.Src == b.Src && a.SrcPort == b.SrcPort && a.Zone == b.Zone && a.Proto == b.Proto && a.Family == b.Family
}

func (b *bySource) shard(h uint64) *sourceShard { return &b.shards[h%sourceShards] }

func (s *sourceShard) head(h uint64) *SourceHead {
	heads := *s.heads.Load()
	return &heads[h/sourceShards&uint64(len(heads)-1)]
}

// sourceBit is a source's bit in its chain's head.
func sourceBit(h uint64) uint64 { return 1 << (32 + h>>59) }

// add puts e, of index idx, at the front of its source's chain: the newest
// mapping is tried first.
func (b *bySource) add(e *conntrack.Entry, idx uint32) {
	h := b.hash(e.Tuple(conntrack.Original))
	s := b.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if heads := len(*s.heads.Load()); s.used >= 2*heads {
		s.grow(b, 2*heads)
	}
	push(b.table, s.head(h), h, e, idx)
	s.used++
}

func push(t *conntrack.Table, head *SourceHead, h uint64, e *conntrack.Entry, idx uint32) {
	old := head.word.Load()
	e.NAT[next] = uint32(old)
	e.NAT[prev] = isFirst
	if uint32(old) != 0 {
		t.At(uint32(old)).NAT[prev] = idx
	} else {
		old = 0 // nobody is there any more
	}
	head.word.Store(old>>32<<32 | sourceBit(h) | uint64(idx))
}

// remove takes e out of its chain.
func (b *bySource) remove(e *conntrack.Entry) {
	h := b.hash(e.Tuple(conntrack.Original))
	s := b.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	after, before := e.NAT[next], e.NAT[prev]
	if before == isFirst {
		head := s.head(h)
		head.word.Store(head.word.Load()>>32<<32 | uint64(after))
	} else {
		b.table.At(before).NAT[next] = after
	}
	if after != 0 {
		b.table.At(after).NAT[prev] = before
	}
	e.NAT[prev] = 0
	s.used--
}

// find looks for a mapping of orig's source that r allows, and puts it into t.
func (b *bySource) find(orig *conntrack.Tuple, t *conntrack.Tuple, r *Range) bool {
	h := b.hash(orig)
	s := b.shard(h)
	if s.head(h).word.Load()&sourceBit(h) == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.head(h).First()
	for n := 0; i != 0 && n < maxSources; n++ {
		e := b.table.At(i)
		if sameSource(e.Tuple(conntrack.Original), orig) {
			seen := e.Tuple(conntrack.Reply)
			try := *t
			try.Src, try.SrcPort = seen.Dst, seen.DstPort
			if r.holdsSrc(&try) {
				*t = try
				return true
			}
		}
		i = e.NAT[next]
	}
	return false
}

// change runs f, which changes the reply tuple of e, while nobody looks at it.
func (b *bySource) change(e *conntrack.Entry, f func()) {
	s := b.shard(b.hash(e.Tuple(conntrack.Original)))
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// len counts the connections that are held.
func (b *bySource) len() (n int) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		n += s.used
		s.mu.Unlock()
	}
	return n
}

// grow gives a shard n heads; a shard is a 256th of the whole, so this is short.
// Who reads a bit meanwhile may read it of the old ones, which stay as they were.
func (s *sourceShard) grow(b *bySource, n int) {
	old := *s.heads.Load()
	heads := make([]SourceHead, n)
	for i := range old {
		// From the back, so that each chain keeps its order.
		last := uint32(0)
		for j := old[i].First(); j != 0; j = b.table.At(j).NAT[next] {
			last = j
		}
		for last != 0 {
			e := b.table.At(last)
			before := e.NAT[prev]
			h := b.hash(e.Tuple(conntrack.Original))
			push(b.table, &heads[h/sourceShards&uint64(n-1)], h, e, last)
			if last = before; before == isFirst {
				last = 0
			}
		}
	}
	s.heads.Store(&heads)
}
