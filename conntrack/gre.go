package conntrack

import (
	"slices"
	"sync"
	"sync/atomic"

	"sluice/packet"
)

// greKey is what a PPTP tunnel's packet says of itself: it carries the
// receiver's call id and not the sender's.
type greKey struct {
	src, dst [4]byte
	call     uint16
}

func greKeyOf(u *Tuple) greKey { return greKey{[4]byte(u.Src[:]), [4]byte(u.Dst[:]), u.DstPort} }

const greBuckets = 1 << 10

// greKeys gives the senders' call ids of the tunnels that control connections
// have announced. Chains are immutable: packets read them without a lock.
type greKeys struct {
	mu      sync.Mutex
	seed    uint64
	buckets [greBuckets]atomic.Pointer[greNode]
}

// greTunnel is a key with the sender's call id; the zero value is none.
type greTunnel struct {
	greKey
	source uint16
}

type greNode struct {
	greTunnel
	next *greNode
}

func (g *greKeys) bucket(k *greKey) *atomic.Pointer[greNode] {
	h := (uint64(be.Uint32(k.src[:]))<<32 | uint64(be.Uint32(k.dst[:]))) ^ g.seed
	h = (h ^ uint64(k.call)<<16 ^ h>>29) * 0x9e3779b97f4a7c15
	return &g.buckets[h>>54]
}

// fill gives a tunnel's tuple the sender's call id; none if no control
// connection has announced it.
func (g *greKeys) fill(u *Tuple) {
	if u.Family != packet.IPv4 {
		return
	}
	k := greKeyOf(u)
	for n := g.bucket(&k).Load(); n != nil; n = n.next {
		if n.greKey == k {
			u.SrcPort = n.source
			return
		}
	}
}

// announce keeps the key of a control connection's tunnel in direction d; false
// if it has one already with another key. Of equal keys the first counts.
func (g *greKeys) announce(ext *extension, d Dir, u *Tuple) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := greKeyOf(u)
	if old := ext.tunnels[d]; old != (greTunnel{}) {
		return old.greKey == k
	}
	ext.tunnels[d] = greTunnel{k, u.SrcPort}
	b := g.bucket(&k)
	b.Store(chain(append(b.Load().tunnels(), ext.tunnels[d])))
	return true
}

// forget takes back what a control connection has announced.
func (g *greKeys) forget(ext *extension) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for d, x := range ext.tunnels {
		if x == (greTunnel{}) {
			continue
		}
		b := g.bucket(&x.greKey)
		all := b.Load().tunnels()
		if i := slices.Index(all, x); i >= 0 {
			b.Store(chain(slices.Delete(all, i, i+1)))
		}
		ext.tunnels[d] = greTunnel{}
	}
}

func (n *greNode) tunnels() (all []greTunnel) {
	for ; n != nil; n = n.next {
		all = append(all, n.greTunnel)
	}
	return all
}

func chain(all []greTunnel) (first *greNode) {
	for _, x := range slices.Backward(all) {
		first = &greNode{x, first}
	}
	return first
}
