package netstack

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"sluice/packet"
)

// defaultRing is how many bytes a ring holds: what a few full TCP windows need.
const defaultRing = 16 << 20

// A ring carries packets of any length from one producer to one consumer
// without a lock, a channel or an allocation. It is bounded by the bytes that
// the packets hold, so that sixty-four super-packets fit where thousands of
// acknowledgements do, and by their number.
type ring[T any] struct {
	slots []T // as many as a power of two
	limit int64

	_    [64]byte
	head atomic.Uint64 // consumer's position; grows for ever
	_    [56]byte
	tail atomic.Uint64 // producer's position
	_    [56]byte
	held atomic.Int64 // bytes

	asleep atomic.Bool   // the consumer waits to be woken
	drops  atomic.Uint64 // packets that found no room
	wake   func()        // called by the producer, only when asleep was set
}

const (
	overhead  = 64   // bytes that a packet counts beside its own
	slotBytes = 1024 // of a ring's size, for each slot
)

func newRing[T any](size int, wake func()) *ring[T] {
	if size <= 0 {
		size = defaultRing
	}
	size = 1 << bits.Len(uint(max(size, 4*packet.MaxLen)-1)) // any packet must fit
	return &ring[T]{slots: make([]T, size/slotBytes), limit: int64(size), wake: wake}
}

// room says whether a packet of n bytes fits, and counts a drop where it does not.
func (r *ring[T]) room(n int) bool {
	if r.tail.Load()-r.head.Load() < uint64(len(r.slots)) && r.held.Load()+int64(n+overhead) <= r.limit {
		return true
	}
	r.drops.Add(1)
	return false
}

// put adds a packet of n bytes, for which there was room, and wakes the consumer if it sleeps.
func (r *ring[T]) put(x T, n int) {
	tail := r.tail.Load()
	r.slots[tail&uint64(len(r.slots)-1)] = x
	r.held.Add(int64(n + overhead))
	r.tail.Store(tail + 1)
	if r.asleep.Load() && r.asleep.CompareAndSwap(true, false) && r.wake != nil {
		r.wake()
	}
}

// peek gives the oldest packet; nil if there is none. It is the consumer's until release.
func (r *ring[T]) peek() *T {
	head := r.head.Load()
	if head == r.tail.Load() {
		return nil
	}
	return &r.slots[head&uint64(len(r.slots)-1)]
}

// release gives the place of the last peek's packet, of n bytes, back to the producer.
func (r *ring[T]) release(n int) {
	head := r.head.Load()
	var none T
	r.slots[head&uint64(len(r.slots)-1)] = none
	r.held.Add(-int64(n + overhead))
	r.head.Store(head + 1)
}

func (r *ring[T]) empty() bool { return r.head.Load() == r.tail.Load() }

// arm says that the consumer is about to sleep; false: it must not, there is work.
func (r *ring[T]) arm() bool {
	r.asleep.Store(true)
	if r.empty() {
		return true
	}
	r.asleep.Store(false)
	return false
}

// Outgoing is one packet on its way from a local socket to the router. Its
// bytes stay as they are; whoever takes it calls done in the end.
type Outgoing struct {
	Len      int        // bytes, network header first
	Owner    Owner      // of the socket
	HasOwner bool       // false: no socket sends this (RST for a closed port, ICMP)
	GSO      packet.GSO // a TCP super-packet, or a partial checksum
	Hash     uint32     // the same for both directions of a flow
	Mark     uint32     // of the socket

	foreign bool // the socket may have any address
	views   [][]byte
	pkt     *stack.PacketBuffer // whose the views are; nil: nobody else's
}

// CopyTo copies the packet into b, which holds Len bytes or more.
func (o *Outgoing) CopyTo(b []byte) int {
	n := 0
	for _, v := range o.views {
		n += copy(b[n:], v)
	}
	return n
}

func (o *Outgoing) done() {
	if o.pkt != nil {
		o.pkt.DecRef()
	}
}

// LocalOutput takes what the local sockets send. Output may be called from any
// goroutine and never blocks; false: the packet is lost (and counted by the one
// who lost it), and not taken.
type LocalOutput interface {
	Output(o *Outgoing) bool
}

// LocalRings is the LocalOutput of a router: one bounded ring per worker, a
// flow always in the same one. The senders share a mutex per ring; workers take
// none.
type LocalRings struct {
	rings []*ring[Outgoing]
	mu    []sync.Mutex
}

// NewLocalRings makes rings of size bytes (0: 16 MiB) for so many workers. wake
// is called when a packet is put into the ring of a worker that has armed it.
func NewLocalRings(workers, size int, wake func(worker int)) *LocalRings {
	l := &LocalRings{mu: make([]sync.Mutex, workers)}
	for i := range workers {
		var w func()
		if wake != nil {
			w = func() { wake(i) }
		}
		l.rings = append(l.rings, newRing[Outgoing](size, w))
	}
	return l
}

// Output implements LocalOutput.
func (l *LocalRings) Output(o *Outgoing) bool {
	i := int(uint64(o.Hash) * uint64(len(l.rings)) >> 32)
	r := l.rings[i]
	l.mu[i].Lock()
	defer l.mu[i].Unlock()
	if !r.room(o.Len) {
		return false
	}
	if o.pkt != nil {
		o.pkt.IncRef()
	}
	r.put(*o, o.Len)
	return true
}

// Get takes the next packet of a worker's ring into p (Reset, filled and
// parsed, with Local and the socket's owner set); false: there is none. Only
// that worker calls it; it neither locks nor allocates.
func (l *LocalRings) Get(worker int, p *packet.Packet) bool {
	r := l.rings[worker]
	for {
		o := r.peek()
		if o == nil {
			return false
		}
		p.Reset()
		p.End = p.Off + o.CopyTo(p.Buf[p.Off:p.Off+packet.MaxLen])
		p.GSO = o.GSO
		p.Worker, p.Mark = uint16(worker), o.Mark
		owner, hasOwner := o.Owner, o.HasOwner
		o.done()
		r.release(o.Len)
		p.Flags = packet.Local | packet.L4ChecksumOK // before Parse, which lets a local packet have ::1
		if p.Parse() != 0 {
			continue // the stack makes no such packet
		}
		if !hasOwner && (p.Family == packet.IPv4 || p.Proto == packet.ProtoICMPv6) {
			p.Flags |= packet.SystemSocket
		}
		if hasOwner {
			p.Flags |= packet.HasOwner
			p.UID, p.GID = owner.UID, owner.GID
		}
		return true
	}
}

// Arm is what a worker calls before it sleeps: true, and the next packet will
// wake it; false, and there are packets to get first.
func (l *LocalRings) Arm(worker int) bool { return l.rings[worker].arm() }

// Disarm takes Arm back: the worker is awake, for whatever reason.
func (l *LocalRings) Disarm(worker int) { l.rings[worker].asleep.Store(false) }

// Waiting says whether there is a packet for a worker.
func (l *LocalRings) Waiting(worker int) bool { return !l.rings[worker].empty() }

// Drops counts the packets that found a worker's ring full.
func (l *LocalRings) Drops(worker int) uint64 { return l.rings[worker].drops.Load() }
