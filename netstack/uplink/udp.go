package uplink

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

const (
	udpTimeout       = int64(30 * time.Second)  // net.netfilter.nf_conntrack_udp_timeout
	udpTimeoutStream = int64(120 * time.Second) // …_stream: once there was an answer
	pingTimeout      = int64(30 * time.Second)  // net.netfilter.nf_conntrack_icmp_timeout
)

// udpConn is a UDP flow, or one of echo requests: a connected socket, so that
// what ICMP says of it can be passed on.
type udpConn struct {
	flow
	server *udpListener // of a published flow, which has no socket of its own
	at     netip.Addr   // the host's address that its peer sent to

	ping, rawICMP bool
	ident         uint16 // of a raw socket's echo requests

	readable, failed bool
	answered         bool
	last             int64
	ttl              uint8  // 0: the host's default
	mtu              int    // of the path inside, as ICMP told; 0: not told
	seq              uint16 // of the last echo request
}

func (c *udpConn) init(q *queue, k *key) {
	c.flow = flow{link: q.link, key: *k, fd: -1, ipID: uint16(rand.Uint32())}
	c.touch(q)
}

// touch keeps the flow for its timeout from now on.
func (c *udpConn) touch(q *queue) {
	c.last = q.link.now()
	q.arm(c, c.last+c.timeout())
}

func (c *udpConn) timeout() int64 {
	switch {
	case c.ping:
		return pingTimeout
	case c.answered:
		return udpTimeoutStream
	}
	return udpTimeout
}

func (c *udpConn) timer(q *queue, now int64) {
	if at := c.last + c.timeout(); at > now {
		q.arm(c, at)
		return
	}
	c.end()
}

func (c *udpConn) sweep(*queue, int64) {}

// openUDP makes a flow for a datagram or echo request from inside.
func (q *queue) openUDP(p *packet.Packet, k *key) conn {
	to, ok := q.link.target(k)
	if !ok {
		q.unreachable(p, unix.ENETUNREACH)
		p.Reason = ReasonAddress
		return nil
	}
	if ch := q.link.cfg.Check; ch != nil && k.proto == packet.ProtoUDP && ch.Wants(k.inside(), k.outside()) {
		ch.Unseen(k.inside(), k.outside())
		q.unreachable(p, unix.EACCES)
		p.Reason = ReasonUnseen
		return nil
	}
	c := &udpConn{ping: k.proto != packet.ProtoUDP}
	c.init(q, k)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !q.link.enter(c) {
		p.Reason = ReasonFull
		c.dead = true
		return nil
	}
	var err error
	if c.ping {
		err = c.openPing(q)
	} else {
		c.fd, err = q.socket(k.family, unix.SOCK_DGRAM, 0)
	}
	if err == nil {
		c.tellErrors()
		if !c.ping {
			unix.SetsockoptInt(c.fd, unix.SOL_UDP, unix.UDP_GRO, 1)
		}
		if err = unix.Connect(c.fd, sockaddr(to)); err == nil {
			err = q.adopt(c)
		}
	}
	if err != nil {
		c.end()
		q.unreachable(p, err)
		p.Reason = ReasonSocket
		return nil
	}
	return c
}

// tellErrors has the host tell what ICMP says.
func (c *udpConn) tellErrors() {
	if c.key.family == packet.IPv4 {
		unix.SetsockoptInt(c.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		unix.SetsockoptInt(c.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
}

// passTTL makes small TTLs count on the host's side too, as traceroute's do.
func (c *udpConn) passTTL(ttl uint8) {
	if ttl >= 32 {
		ttl = 0
	}
	if ttl == c.ttl || c.fd < 0 {
		return
	}
	c.ttl = ttl
	n := int(ttl)
	if n == 0 {
		n = -1
	}
	if c.key.family == packet.IPv4 {
		unix.SetsockoptInt(c.fd, unix.IPPROTO_IP, unix.IP_TTL, n)
	} else {
		unix.SetsockoptInt(c.fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n)
	}
}

// segment sends a datagram from inside on.
func (c *udpConn) segment(q *queue, p *packet.Packet) bool {
	c.touch(q)
	c.passTTL(p.TTL())
	if c.ping {
		return c.sendPing(q, p)
	}
	data := p.Payload()
	if n := int(binary.BigEndian.Uint16(p.Transport()[4:])) - 8; n >= 0 && n < len(data) && p.GSO.Type == packet.GSONone {
		data = data[:n]
	}
	var errno syscall.Errno
	switch {
	case c.server != nil:
		errno = c.server.send(q, c, data)
	case p.GSO.Type == packet.GSOUDPL4 && len(data) > int(p.GSO.Size):
		errno = c.sendSegments(data, int(p.GSO.Size))
	default:
		if errno = c.send(data); errno != 0 && errno != syscall.EAGAIN {
			c.readErrors(q)
			errno = c.send(data) // the first was about an earlier datagram
		}
	}
	switch errno {
	case 0:
		return true
	case syscall.EMSGSIZE:
		c.tooBig(q, p)
	}
	c.readErrors(q)
	return lose(p, ReasonHost)
}

// tooBig answers a datagram that the host's path does not take.
func (c *udpConn) tooBig(q *queue, p *packet.Packet) {
	if c.fd < 0 {
		return
	}
	if c.key.family == packet.IPv4 {
		if mtu, err := unix.GetsockoptInt(c.fd, unix.IPPROTO_IP, unix.IP_MTU); err == nil {
			q.icmpError(p, packet.ICMPDestUnreach, packet.ICMPFragNeeded, uint32(mtu), nil)
		}
	} else if mtu, err := unix.GetsockoptInt(c.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU); err == nil {
		q.icmpError(p, packet.ICMPv6PacketTooBig, 0, uint32(mtu), nil)
	}
}

func (c *udpConn) send(b []byte) syscall.Errno {
	var at unsafe.Pointer
	if len(b) > 0 {
		at = unsafe.Pointer(&b[0])
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(c.fd), uintptr(at), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return errno
}

// sendSegments sends a super-packet's datagrams, in one call where the host can.
func (c *udpConn) sendSegments(b []byte, size int) syscall.Errno {
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
	_, err := unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err == nil || err == unix.EAGAIN {
		return 0
	}
	for len(b) > 0 {
		n := min(size, len(b))
		if errno := c.send(b[:n]); errno != 0 {
			return errno
		}
		b = b[n:]
	}
	return 0
}

func (c *udpConn) event(q *queue, ev uint32) {
	if ev&unix.EPOLLIN != 0 {
		c.readable = true
	}
	if ev&unix.EPOLLERR != 0 {
		c.failed = true
	}
}

// next reads a datagram from the host.
func (c *udpConn) next(q *queue, p *packet.Packet) bool {
	if c.failed {
		c.failed = false
		c.readErrors(q)
	}
	for c.readable {
		if c.ping {
			if ok, again := c.readPing(p); ok || !again {
				if ok {
					c.answer(q)
				}
				return ok
			}
			continue
		}
		at := packet.Headroom + headerLen(c.key.family) + 8
		n, size, errno := q.recvmsg(c.fd, p.Buf[at:packet.Headroom+packet.MaxLen], 0)
		switch errno {
		case 0:
			c.answer(q)
			c.datagram(q, p, n, size)
			return true
		case syscall.EAGAIN:
			c.readable = false
		default: // what ICMP said of an earlier datagram
			c.readErrors(q)
		}
	}
	return false
}

func (c *udpConn) answer(q *queue) {
	c.answered = true
	c.touch(q)
}

// datagram makes p a datagram of n bytes, which are in their place; size, if it
// is not 0, is that of each of the datagrams that it consists of.
func (c *udpConn) datagram(q *queue, p *packet.Packet, n, size int) {
	t := c.start(p, packet.ProtoUDP, 8+n)
	be := binary.BigEndian
	be.PutUint16(t, c.key.outPort)
	be.PutUint16(t[2:], c.key.inPort)
	be.PutUint16(t[4:], uint16(8+n))
	c.partial(p, t, packet.ProtoUDP, 6)
	if size > 0 && n > size {
		p.GSO.Type, p.GSO.HdrLen, p.GSO.Size = packet.GSOUDPL4, uint16(headerLen(c.key.family)+8), uint16(size)
	} else if c.mtu != 0 && p.Len() > c.mtu {
		c.cut(q, p)
	}
}

// cut has a datagram that is too large for the path inside leave in fragments,
// as its sender would; p is left with the first.
func (c *udpConn) cut(q *queue, p *packet.Packet) {
	if p.Parse() != 0 {
		return
	}
	p.CompleteChecksum()
	var parts [][]byte
	packet.FragmentTo(p, c.mtu, func(f *packet.Packet) { parts = append(parts, append([]byte(nil), f.Bytes()...)) })
	if len(parts) == 0 {
		return
	}
	p.SetBytes(parts[0])
	for _, b := range parts[1:] {
		q.push(b)
	}
}

// recvmsg reads a message; size is that of UDP GRO's datagrams, 0 for one alone.
func (q *queue) recvmsg(fd int, b []byte, flags int) (n, size int, errno syscall.Errno) {
	q.iov[0].Base = &b[0]
	q.iov[0].SetLen(len(b))
	m := &q.msg
	*m = unix.Msghdr{Iov: &q.iov[0], Iovlen: 1, Control: &q.oob[0], Name: &q.name[0], Namelen: uint32(len(q.name))}
	m.SetControllen(len(q.oob))
	r, _, errno := syscall.RawSyscall(syscall.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), uintptr(unix.MSG_DONTWAIT|flags))
	q.iov[0].Base = nil
	if errno != 0 {
		return 0, 0, errno
	}
	q.controls(func(h *unix.Cmsghdr, data []byte) {
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			size = int(binary.NativeEndian.Uint32(data))
		}
	})
	return int(r), size, 0
}

// controls calls f for each control message of the last recvmsg.
func (q *queue) controls(f func(h *unix.Cmsghdr, data []byte)) {
	b := q.oob[:min(int(q.msg.Controllen), len(q.oob))]
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(b) {
			return
		}
		f(h, b[unix.CmsgLen(0):n])
		b = b[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(b)):]
	}
}

// readErrors passes on what ICMP has told the host about the flow.
func (c *udpConn) readErrors(q *queue) {
	if c.fd < 0 {
		return
	}
	var payload [1280]byte
	for range 16 {
		n, _, errno := q.recvmsg(c.fd, payload[:], unix.MSG_ERRQUEUE)
		if errno != 0 {
			break
		}
		q.controls(func(h *unix.Cmsghdr, data []byte) {
			if (h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR || h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR) && len(data) >= 16 {
				c.passError(q, data, payload[:n])
			}
		})
	}
	unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR) // clears it
}

// passError makes an ICMP error of a struct sock_extended_err, which is followed
// by the address of who sent it.
func (c *udpConn) passError(q *queue, e, payload []byte) {
	const (
		local = 1 // SO_EE_ORIGIN_LOCAL
		icmp  = 2
		icmp6 = 3
	)
	errno, origin, typ, code := syscall.Errno(binary.NativeEndian.Uint32(e)), e[4], e[5], e[6]
	rest := uint32(0)
	var from *[16]byte
	v4 := c.key.family == packet.IPv4
	switch {
	case origin == local && errno == syscall.EMSGSIZE:
		typ, code = packet.ICMPv6PacketTooBig, 0
		if v4 {
			typ, code = packet.ICMPDestUnreach, packet.ICMPFragNeeded
		}
		rest = binary.NativeEndian.Uint32(e[8:])
	case origin == local:
		var ok bool
		if typ, code, ok = unreachable(c.key.family, errno); !ok {
			return
		}
	case origin == icmp && v4:
		if typ == packet.ICMPDestUnreach && code == packet.ICMPFragNeeded {
			rest = binary.NativeEndian.Uint32(e[8:])
		}
		if len(e) >= 24 && binary.NativeEndian.Uint16(e[16:]) == unix.AF_INET {
			from = new([16]byte)
			copy(from[:4], e[20:24])
		}
	case origin == icmp6 && !v4:
		if typ == packet.ICMPv6PacketTooBig {
			rest = binary.NativeEndian.Uint32(e[8:])
		}
		if len(e) >= 40 && binary.NativeEndian.Uint16(e[16:]) == unix.AF_INET6 {
			from = new([16]byte)
			copy(from[:], e[24:40])
		}
	default:
		return
	}
	// The host's own addresses mean nothing inside.
	if from != nil && (refused(c.key.family, from) || *from == c.key.in) {
		from = nil
	}
	if c.ping && len(payload) >= 8 { // the quote holds the ICMP header
		payload = payload[8:]
	}
	q.flowError(&c.flow, typ, code, rest, from, uint32(c.seq), payload)
}
