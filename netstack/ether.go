package netstack

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"sluice/packet"
)

// etherLen is the length of an Ethernet header without tags.
const etherLen = 14

const etherARP = 0x0806

// MAC is an Ethernet address.
type MAC = [6]byte

var broadcastMAC = MAC{255, 255, 255, 255, 255, 255}

// Why an Ethernet link lost a frame.
var (
	ReasonNoNeighbour = packet.NewReason("link.no_neighbour", "no host answered for the next hop's address (ARP, neighbour discovery)")
	ReasonOtherHost   = packet.NewReason("link.other_host", "the frame is for another Ethernet address")
)

// ether is what the queues of an Ethernet link share: the router's own Ethernet
// address, and the neighbours'.
type ether struct {
	mac   MAC
	iface *atomic.Pointer[packet.Iface]
	addrs atomic.Pointer[[]netip.Prefix] // the router's own, on this link
	// proxied are answered for as well; set before the link is used.
	proxied []netip.Addr
	// known is replaced, never changed: the packet path reads it without a lock.
	known atomic.Pointer[map[netip.Addr]neighbour]

	mu      sync.Mutex
	asked   map[netip.Addr]*inquiry
	emptied time.Time // when what nobody answered was last looked through
}

// neighbour is a host on the link.
type neighbour struct {
	mac       MAC
	confirmed time.Time
}

// inquiry is an address that is being asked for.
type inquiry struct {
	tries int
	last  time.Time
	held  [][]byte // frames that wait for the answer, virtio-net header included
}

const (
	neighbourFresh = 30 * time.Second // then it is asked again, while it is still used
	neighbourGone  = 60 * time.Second // then it is not used any more
	askEvery       = time.Second
	maxTries       = 3
	maxHeld        = 16   // frames per address that wait for an answer
	maxNeighbours  = 4096 // as gc_thresh3 is not much more than
)

func newEther(mac MAC, iface *atomic.Pointer[packet.Iface]) *ether {
	e := &ether{mac: mac, iface: iface, asked: map[netip.Addr]*inquiry{}}
	e.addrs.Store(&[]netip.Prefix{})
	e.known.Store(&map[netip.Addr]neighbour{})
	return e
}

func (e *ether) setAddresses(addrs []netip.Prefix) {
	list := append([]netip.Prefix{}, addrs...)
	e.addrs.Store(&list)
}

// own reports whether a is the router's on this link.
func (e *ether) own(a netip.Addr) bool {
	for _, p := range *e.addrs.Load() {
		if p.Addr() == a {
			return true
		}
	}
	return slices.Contains(e.proxied, a)
}

// source is the router's address to ask for a from.
func (e *ether) source(a netip.Addr) (src netip.Addr, ok bool) {
	for _, p := range *e.addrs.Load() {
		if p.Addr().Is4() != a.Is4() {
			continue
		}
		if p.Contains(a) {
			return p.Addr(), true
		}
		if !ok {
			src, ok = p.Addr(), true
		}
	}
	return src, ok
}

// etherQueue is one descriptor that carries Ethernet frames, each after a
// virtio-net header if there is one: a TAP queue or a packet socket.
type etherQueue struct {
	fd   int
	hdr  int // length of the virtio-net header, bytes
	uso  bool
	e    *ether
	emit func(*packet.Packet)
	err  error // of the segments being emitted
	gone func(errno syscall.Errno) bool
}

func newEtherQueue(fd, hdr int, e *ether, gone func(syscall.Errno) bool) *etherQueue {
	q := &etherQueue{fd: fd, hdr: hdr, e: e, gone: gone}
	q.emit = q.emitSegment
	return q
}

func (q *etherQueue) FD() int { return q.fd }

func (q *etherQueue) Flush() error { return nil }

func (q *etherQueue) Read(p *packet.Packet) error {
	for {
		at := packet.Headroom - etherLen - q.hdr
		b := p.Buf[at : packet.Headroom+packet.MaxLen+1]
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN, errno != 0 && !q.gone(errno):
			return ErrAgain
		case errno != 0:
			return ErrGone
		}
		if int(n) < q.hdr+etherLen {
			p.Reason = ReasonBadVnetHeader
			return ErrFrame
		}
		frame := b[q.hdr:n]
		switch binary.BigEndian.Uint16(frame[12:]) {
		case etherIPv4, etherIPv6:
		case etherARP:
			q.arp(frame)
			continue
		default: // LLDP, spanning tree…: not for a router
			continue
		}
		p.Off, p.End = packet.Headroom, at+int(n)
		if p.End-p.Off > packet.MaxLen {
			p.Reason = ReasonFrameTooLong
			return ErrFrame
		}
		switch dst := MAC(frame); {
		case dst == broadcastMAC:
			p.PktType = packet.PktBroadcast
		case dst[0]&1 != 0:
			p.PktType = packet.PktMulticast
		case dst != q.e.mac:
			p.Reason = ReasonOtherHost
			return ErrFrame
		}
		if q.hdr != 0 {
			shiftVnet(b[:vnetHdrLen], -etherLen)
			if !readVnet(b[:vnetHdrLen], p) {
				p.Reason = ReasonBadVnetHeader
				return ErrFrame
			}
		}
		if q.discovery(p.Bytes()) {
			p.Reset()
			continue
		}
		return nil
	}
}

// shiftVnet moves the offsets of a virtio-net header, which count from the
// beginning of the frame.
func shiftVnet(h []byte, by int) {
	if h[0]&vnetNeedsCsum != 0 {
		binary.NativeEndian.PutUint16(h[6:], uint16(int(binary.NativeEndian.Uint16(h[6:]))+by))
	}
	if h[1] != packet.GSONone {
		binary.NativeEndian.PutUint16(h[2:], uint16(int(binary.NativeEndian.Uint16(h[2:]))+by))
	}
}

func (q *etherQueue) Write(p *packet.Packet) error {
	if p.GSO.Type != packet.GSONone && (q.hdr == 0 || !q.uso && p.GSO.Type == packet.GSOUDPL4) {
		q.err = nil
		packet.Segments(p, q.emit)
		return q.err
	}
	if q.hdr == 0 {
		p.CompleteChecksum()
	}
	if room := q.hdr + etherLen; p.Off < room {
		n := copy(p.Buf[packet.Headroom:], p.Buf[p.Off:p.End])
		p.Off, p.End = packet.Headroom, packet.Headroom+n
	}
	b := p.Buf[p.Off-q.hdr-etherLen : p.End]
	frame := b[q.hdr:]
	if q.hdr != 0 {
		writeVnet(b, p)
		shiftVnet(b, etherLen)
	}
	copy(frame[6:], q.e.mac[:])
	typ := uint16(etherIPv4)
	if p.Family == packet.IPv6 {
		typ = etherIPv6
	}
	binary.BigEndian.PutUint16(frame[12:], typ)
	hop := nextHop(p)
	mac, ok := groupMAC(hop)
	if !ok {
		var n neighbour
		n, ok = (*q.e.known.Load())[hop]
		mac = n.mac
		if age := time.Since(n.confirmed); !ok || age > neighbourFresh {
			if ok = q.resolve(hop, ok && age < neighbourGone, b); !ok {
				return nil // it is held until an answer comes
			}
		}
	}
	copy(frame, mac[:])
	return q.send(p, b)
}

// nextHop is the address whose owner gets the packet.
func nextHop(p *packet.Packet) netip.Addr {
	if p.Family == packet.IPv4 {
		hop := [4]byte(p.Route.NextHop[:4])
		if hop == ([4]byte{}) {
			hop = [4]byte(p.Bytes()[16:20])
		}
		return netip.AddrFrom4(hop)
	}
	hop := p.Route.NextHop
	if hop == ([16]byte{}) {
		hop = [16]byte(p.Bytes()[24:40])
	}
	return netip.AddrFrom16(hop)
}

// groupMAC is the Ethernet address of a group (RFC 1112, RFC 2464); broadcasts
// of a network are asked for like a host's address and never answered.
func groupMAC(a netip.Addr) (MAC, bool) {
	if !a.IsMulticast() {
		return broadcastMAC, a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	if a.Is4() {
		b := a.As4()
		return MAC{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}, true
	}
	b := a.As16()
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}, true
}

func (q *etherQueue) emitSegment(seg *packet.Packet) {
	if err := q.Write(seg); err != nil && q.err == nil {
		q.err = err
	}
}

func (q *etherQueue) send(p *packet.Packet, b []byte) error {
	errno := q.put(b)
	switch {
	case errno == 0:
		return nil
	case errno == syscall.EIO, errno == syscall.ENETDOWN:
		p.Reason = ReasonLinkDown
		return ErrDown
	case q.gone(errno):
		p.Reason = ReasonLinkDown
		return ErrGone
	}
	p.Reason = ReasonSendError
	return ErrSend
}

// put writes a frame with its virtio-net header.
func (q *etherQueue) put(b []byte) syscall.Errno {
	for {
		_, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(q.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != syscall.EINTR {
			return errno
		}
	}
}
