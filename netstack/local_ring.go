package netstack

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"sluice/packet"
)

// defaultRing is the size of a ring in bytes: what a few full TCP windows need.
const defaultRing = 4 << 20

// A ring carries packets of any length from one producer to one consumer
// without a lock, a channel or an allocation. Its memory is bytes, not slots,
// so that sixty-four super-packets fit where fifty thousand acknowledgements
// do. A record is a header and the packet, 8-byte aligned, never wrapped: one
// that does not fit before the end is preceded by a record that says "skip".
type ring struct {
	buf  []byte
	size uint64 // a power of two

	_    [64]byte
	head atomic.Uint64 // consumer's position; grows for ever
	_    [56]byte
	tail atomic.Uint64 // producer's position
	seen uint64        // producer's last look at head
	_    [48]byte

	asleep atomic.Bool   // the consumer waits to be woken
	drops  atomic.Uint64 // records that found no room
	wake   func()        // called by the producer, only when asleep was set
}

const (
	recHeader = 32
	recSkip   = ^uint32(0)

	recHasOwner  = 1 << 0
	recNeedsCsum = 1 << 1
	recUnicast   = 1 << 2
)

// record is what travels beside the bytes.
type record struct {
	owner    Owner
	hasOwner bool
	unicast  bool   // to the router alone, not by broadcast or multicast
	mark     uint32 // from a socket
	socket   uint32 // to a socket: the one that TPROXY chose; it shares mark's place
	proto    uint8
	l4       uint16
	gso      packet.GSO
}

func newRing(size int, wake func()) *ring {
	if size <= 0 {
		size = defaultRing
	}
	if size < 4*packet.MaxLen {
		size = 4 * packet.MaxLen // any packet must fit, also after a skip
	}
	n := uint64(1) << bits.Len64(uint64(size-1))
	return &ring{buf: make([]byte, n), size: n, wake: wake}
}

func recLen(n int) uint64 { return uint64(recHeader+n+7) &^ 7 }

// reserve gives n bytes to fill, or nil (and counts a drop) where there is no room.
func (r *ring) reserve(n int) []byte {
	need, tail := recLen(n), r.tail.Load()
	off := tail & (r.size - 1)
	total := need
	if rest := r.size - off; rest < need {
		total += rest
	}
	if r.size-(tail-r.seen) < total {
		if r.seen = r.head.Load(); r.size-(tail-r.seen) < total {
			r.drops.Add(1)
			return nil
		}
	}
	if total != need {
		binary.LittleEndian.PutUint32(r.buf[off:], recSkip)
		off = 0
	}
	return r.buf[off+recHeader : off+recHeader+uint64(n)]
}

// commit publishes what the last reserve gave, and wakes the consumer if it sleeps.
func (r *ring) commit(n int, rec *record) {
	need, tail := recLen(n), r.tail.Load()
	off := tail & (r.size - 1)
	if rest := r.size - off; rest < need {
		tail, off = tail+rest, 0
	}
	h := r.buf[off : off+recHeader]
	le := binary.LittleEndian
	le.PutUint32(h, uint32(n))
	le.PutUint32(h[4:], rec.owner.UID)
	le.PutUint32(h[8:], rec.owner.GID)
	le.PutUint16(h[12:], rec.l4)
	h[14] = rec.proto
	h[15] = 0
	if rec.hasOwner {
		h[15] |= recHasOwner
	}
	if rec.gso.NeedsCsum {
		h[15] |= recNeedsCsum
	}
	if rec.unicast {
		h[15] |= recUnicast
	}
	h[16] = rec.gso.Type
	le.PutUint32(h[28:], rec.mark|rec.socket)
	le.PutUint16(h[18:], rec.gso.HdrLen)
	le.PutUint16(h[20:], rec.gso.Size)
	le.PutUint16(h[22:], rec.gso.CsumStart)
	le.PutUint16(h[24:], rec.gso.CsumOffset)
	r.tail.Store(tail + need)
	if r.asleep.Load() && r.asleep.CompareAndSwap(true, false) && r.wake != nil {
		r.wake()
	}
}

// peek gives the oldest packet and fills rec; nil if there is none. The bytes
// are the consumer's until release.
func (r *ring) peek(rec *record) []byte {
	for {
		head := r.head.Load()
		if head == r.tail.Load() {
			return nil
		}
		off := head & (r.size - 1)
		h := r.buf[off:]
		le := binary.LittleEndian
		n := le.Uint32(h)
		if n == recSkip {
			r.head.Store(head + r.size - off)
			continue
		}
		rec.owner = Owner{UID: le.Uint32(h[4:]), GID: le.Uint32(h[8:])}
		rec.hasOwner = h[15]&recHasOwner != 0
		rec.unicast = h[15]&recUnicast != 0
		rec.mark = le.Uint32(h[28:])
		rec.socket = rec.mark
		rec.l4, rec.proto = le.Uint16(h[12:]), h[14]
		rec.gso = packet.GSO{
			Type: h[16], NeedsCsum: h[15]&recNeedsCsum != 0,
			HdrLen: le.Uint16(h[18:]), Size: le.Uint16(h[20:]),
			CsumStart: le.Uint16(h[22:]), CsumOffset: le.Uint16(h[24:]),
		}
		return h[recHeader : recHeader+n]
	}
}

// release gives the space of n bytes (the last peek's) back to the producer.
func (r *ring) release(n int) { r.head.Store(r.head.Load() + recLen(n)) }

func (r *ring) empty() bool { return r.head.Load() == r.tail.Load() }

// arm says that the consumer is about to sleep; false: it must not, there is work.
func (r *ring) arm() bool {
	r.asleep.Store(true)
	if r.empty() {
		return true
	}
	r.asleep.Store(false)
	return false
}

// Outgoing is one packet on its way from a local socket to the router. It is
// valid only during the call that hands it over.
type Outgoing struct {
	Len      int        // bytes, network header first
	Owner    Owner      // of the socket
	HasOwner bool       // false: no socket sends this (RST for a closed port, ICMP)
	GSO      packet.GSO // a TCP super-packet, or a partial checksum
	Mark     uint32     // of the socket
	Hash     uint32     // the same for both directions of a flow

	foreign bool // the socket may have any address
	views   [][]byte
}

// CopyTo copies the packet into b, which holds Len bytes or more.
func (o *Outgoing) CopyTo(b []byte) int {
	n := 0
	for _, v := range o.views {
		n += copy(b[n:], v)
	}
	return n
}

// LocalOutput takes what the local sockets send. Output may be called from any
// goroutine, copies what it keeps and never blocks; false: the packet is lost
// (and counted by the one who lost it).
type LocalOutput interface {
	Output(o *Outgoing) bool
}

// LocalRings is the LocalOutput of a router: one bounded ring per worker, a
// flow always in the same one. The senders share a mutex per ring, held for the
// copy; workers take none.
type LocalRings struct {
	rings []*ring
	mu    []sync.Mutex
}

// NewLocalRings makes rings of size bytes (0: 4 MiB) for so many workers. wake
// is called when a packet is put into the ring of a worker that has armed it.
func NewLocalRings(workers, size int, wake func(worker int)) *LocalRings {
	l := &LocalRings{mu: make([]sync.Mutex, workers)}
	for i := range workers {
		var w func()
		if wake != nil {
			w = func() { wake(i) }
		}
		l.rings = append(l.rings, newRing(size, w))
	}
	return l
}

// Output implements LocalOutput.
func (l *LocalRings) Output(o *Outgoing) bool {
	i := int(uint64(o.Hash) * uint64(len(l.rings)) >> 32)
	r := l.rings[i]
	l.mu[i].Lock()
	defer l.mu[i].Unlock()
	b := r.reserve(o.Len)
	if b == nil {
		return false
	}
	o.CopyTo(b)
	r.commit(o.Len, &record{owner: o.Owner, hasOwner: o.HasOwner, mark: o.Mark, gso: o.GSO})
	return true
}

// Get takes the next packet of a worker's ring into p (Reset, filled and
// parsed, with Local and the socket's owner set); false: there is none. Only
// that worker calls it; it neither locks nor allocates.
func (l *LocalRings) Get(worker int, p *packet.Packet) bool {
	r := l.rings[worker]
	var rec record
	for {
		b := r.peek(&rec)
		if b == nil {
			return false
		}
		p.SetBytes(b)
		r.release(len(b))
		p.GSO = rec.gso
		p.Worker, p.Mark = uint16(worker), rec.mark
		p.Flags = packet.Local | packet.L4ChecksumOK // before Parse, which lets a local packet have ::1
		if p.Parse() != 0 {
			continue // the stack makes no such packet
		}
		if !rec.hasOwner && (p.Family == packet.IPv4 || p.Proto == packet.ProtoICMPv6) {
			p.Flags |= packet.SystemSocket
		}
		if rec.hasOwner {
			p.Flags |= packet.HasOwner
			p.UID, p.GID = rec.owner.UID, rec.owner.GID
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
