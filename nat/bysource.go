package nat

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync"

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

// sourceShard has the heads of chains, a power of two: an entry's index (0: none)
// below, above it a bit for each source that may be in the chain, by its hash.
// The mutex guards all of it, and the links of the entries.
type sourceShard struct {
	mu    sync.Mutex
	heads []uint64
	used  int
	_     [24]byte
}

func newBySource(t *conntrack.Table) *bySource { return &bySource{table: t, seed: rand.Uint64()} }

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

// shard gives the shard of a hash, locked.
func (b *bySource) shard(h uint64) *sourceShard {
	s := &b.shards[h%sourceShards]
	s.mu.Lock()
	return s
}

// head is nil before the first connection.
func (s *sourceShard) head(h uint64) *uint64 {
	if len(s.heads) == 0 {
		return nil
	}
	return &s.heads[h/sourceShards&uint64(len(s.heads)-1)]
}

// sourceBit is a source's bit in its chain's head.
func sourceBit(h uint64) uint64 { return 1 << (32 + h>>59) }

// add puts e, of index idx, at the front of its source's chain: the newest
// mapping is tried first.
func (b *bySource) add(e *conntrack.Entry, idx uint32) {
	h := b.hash(e.Tuple(conntrack.Original))
	s := b.shard(h)
	defer s.mu.Unlock()
	if s.used >= len(s.heads) {
		s.grow(b)
	}
	s.push(b.table, h, e, idx)
	s.used++
}

func (s *sourceShard) push(t *conntrack.Table, h uint64, e *conntrack.Entry, idx uint32) {
	head := s.head(h)
	old := *head
	e.NAT[next] = uint32(old)
	e.NAT[prev] = isFirst
	if uint32(old) != 0 {
		t.At(uint32(old)).NAT[prev] = idx
	} else {
		old = 0 // nobody is there any more
	}
	*head = old>>32<<32 | sourceBit(h) | uint64(idx)
}

// remove takes e out of its chain.
func (b *bySource) remove(e *conntrack.Entry) {
	h := b.hash(e.Tuple(conntrack.Original))
	s := b.shard(h)
	defer s.mu.Unlock()
	after, before := e.NAT[next], e.NAT[prev]
	if before == isFirst {
		head := s.head(h)
		*head = *head>>32<<32 | uint64(after)
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
	defer s.mu.Unlock()
	head := s.head(h)
	if head == nil || *head&sourceBit(h) == 0 {
		return false
	}
	i := uint32(*head)
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

// grow doubles a shard's heads; a shard is a 256th of the whole, so this is short.
func (s *sourceShard) grow(b *bySource) {
	old := s.heads
	s.heads = make([]uint64, max(8, 2*len(old)))
	for i := range old {
		// From the back, so that each chain keeps its order.
		last := uint32(0)
		for j := uint32(old[i]); j != 0; j = b.table.At(j).NAT[next] {
			last = j
		}
		for last != 0 {
			e := b.table.At(last)
			before := e.NAT[prev]
			s.push(b.table, b.hash(e.Tuple(conntrack.Original)), e, last)
			if last = before; before == isFirst {
				last = 0
			}
		}
	}
}
