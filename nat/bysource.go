package nat

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync"

	"sluice/conntrack"
)

// source names who speaks: one socket of one host, whoever it speaks to.
type source struct {
	addr  [16]byte
	port  uint16
	zone  uint16
	proto uint8
	fam   uint8
}

func sourceOf(orig *conntrack.Tuple) source {
	return source{orig.Src, orig.SrcPort, orig.Zone, orig.Proto, orig.Family}
}

// mapping is what a source looks like behind its binding. It has no pointers,
// and nodes link by index, so the collector never walks the slabs.
type mapping struct {
	from source
	port uint16
	addr [16]byte
	refs uint32 // connections that have this mapping
	next uint32 // node index + 1; 0 ends the chain
}

const sourceShards = 256

// bySource remembers the mapped source of every connection that has one, so
// that a source's next connection is mapped alike. Only the first and the last
// packet of a translated connection come here: a shard's mutex is held for a
// few instructions and never on the packet path.
type bySource struct {
	seed   uint64
	shards [sourceShards]sourceShard
}

type sourceShard struct {
	mu      sync.Mutex
	buckets []uint32 // a power of two of chain heads, node index + 1
	nodes   []mapping
	free    uint32 // chain of unused nodes
	used    int
	_       [40]byte
}

func newBySource() *bySource { return &bySource{seed: rand.Uint64()} }

func (b *bySource) hash(s *source) uint64 {
	lo := binary.LittleEndian.Uint64(s.addr[:8]) ^ b.seed
	hi := binary.LittleEndian.Uint64(s.addr[8:]) ^ 0x9e3779b97f4a7c15
	x := uint64(s.port)<<32 | uint64(s.zone)<<16 | uint64(s.proto)<<8 | uint64(s.fam)
	h1, l1 := bits.Mul64(lo^x*0xff51afd7ed558ccd, hi^b.seed)
	h2, l2 := bits.Mul64(h1^l1^x, 0xa0761d6478bd642f^b.seed)
	return h2 ^ l2
}

// shard gives the shard of a hash, locked.
func (b *bySource) shard(h uint64) *sourceShard {
	s := &b.shards[h%sourceShards]
	s.mu.Lock()
	return s
}

func (s *sourceShard) head(h uint64) *uint32 {
	return &s.buckets[h/sourceShards&uint64(len(s.buckets)-1)]
}

// add counts one more connection from src that looks like addr:port, and moves
// that mapping to the front: the newest is tried first.
func (b *bySource) add(src source, addr [16]byte, port uint16) {
	h := b.hash(&src)
	s := b.shard(h)
	defer s.mu.Unlock()
	if s.used >= len(s.buckets) {
		s.grow(b)
	}
	head := s.head(h)
	i := s.unlink(head, &src, &addr, port)
	if i == 0 {
		if i = s.free; i != 0 {
			s.free = s.nodes[i-1].next
		} else {
			s.nodes = append(s.nodes, mapping{})
			i = uint32(len(s.nodes))
		}
		s.nodes[i-1] = mapping{from: src, addr: addr, port: port}
		s.used++
	}
	m := &s.nodes[i-1]
	m.refs++
	m.next, *head = *head, i
}

// unlink takes the node out of the chain and returns it; 0 if it is not there.
func (s *sourceShard) unlink(link *uint32, src *source, addr *[16]byte, port uint16) uint32 {
	for i := *link; i != 0; i = *link {
		m := &s.nodes[i-1]
		if m.port == port && m.from == *src && m.addr == *addr {
			*link = m.next
			return i
		}
		link = &m.next
	}
	return 0
}

// remove undoes one add.
func (b *bySource) remove(src source, addr [16]byte, port uint16) {
	h := b.hash(&src)
	s := b.shard(h)
	defer s.mu.Unlock()
	if s.used == 0 {
		return
	}
	for link := s.head(h); *link != 0; {
		i := *link
		m := &s.nodes[i-1]
		if m.port != port || m.from != src || m.addr != addr {
			link = &m.next
			continue
		}
		if m.refs--; m.refs == 0 {
			*link, m.next, s.free = m.next, s.free, i
			s.used--
		}
		return
	}
}

// find looks for a mapping of t's source, as it stands in orig, that r allows,
// and puts it into t.
func (b *bySource) find(orig *conntrack.Tuple, t *conntrack.Tuple, r *Range) bool {
	src := sourceOf(orig)
	h := b.hash(&src)
	s := b.shard(h)
	defer s.mu.Unlock()
	if s.used == 0 {
		return false
	}
	for i := *s.head(h); i != 0; {
		m := &s.nodes[i-1]
		if m.from == src {
			try := *t
			try.Src, try.SrcPort = m.addr, m.port
			if r.holdsSrc(&try) {
				*t = try
				return true
			}
		}
		i = m.next
	}
	return false
}

// len counts the mappings that are held.
func (b *bySource) len() (n int) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		n += s.used
		s.mu.Unlock()
	}
	return n
}

// grow doubles a shard's buckets; a shard is a 256th of the whole, so this is short.
func (s *sourceShard) grow(b *bySource) {
	old := s.buckets
	s.buckets = make([]uint32, max(8, 2*len(old)))
	for _, i := range old {
		// A chain is turned round twice, so that its order stays.
		var rev uint32
		for i != 0 {
			m := &s.nodes[i-1]
			i, m.next, rev = m.next, rev, i
		}
		for rev != 0 {
			m := &s.nodes[rev-1]
			head := s.head(b.hash(&m.from))
			rev, m.next, *head = m.next, *head, rev
		}
	}
}
