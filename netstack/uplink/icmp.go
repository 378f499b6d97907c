package uplink

import (
	"encoding/binary"
	"math/rand/v2"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// icmp takes an ICMP message from inside: echo requests go on, "too big" is
// heeded, and the rest is for nobody.
func (q *queue) icmp(p *packet.Packet) bool {
	typ, code, ok := p.ICMPType()
	if !ok || p.Flags&packet.Fragment != 0 {
		return lose(p, ReasonInvalid)
	}
	if !p.VerifyL4() {
		return lose(p, ReasonChecksum)
	}
	t := p.Transport()
	v4 := p.Family == packet.IPv4
	switch {
	case v4 && typ == packet.ICMPEcho || !v4 && typ == packet.ICMPv6EchoRequest:
		return q.echo(p, t)
	case v4 && typ == packet.ICMPDestUnreach && code == packet.ICMPFragNeeded:
		q.pathMTU(p.Family, t[8:], int(binary.BigEndian.Uint16(t[6:])))
		return true
	case !v4 && typ == packet.ICMPv6PacketTooBig:
		q.pathMTU(p.Family, t[8:], int(binary.BigEndian.Uint32(t[4:])))
		return true
	case v4 && (typ == packet.ICMPDestUnreach || typ == packet.ICMPTimeExceeded || typ == packet.ICMPParamProblem), !v4 && typ < 128:
		return true // soft errors: what they mean shows in the flow itself
	}
	return lose(p, ReasonInvalid)
}

// echo sends an echo request on.
func (q *queue) echo(p *packet.Packet, t []byte) bool {
	k := key{in: p.Src(), out: p.Dst(), inPort: binary.BigEndian.Uint16(t[4:]), proto: p.Proto, family: p.Family}
	c := q.link.find(&k)
	if c == nil {
		if c = q.openUDP(p, &k); c == nil {
			return false
		}
	}
	f := c.base()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return lose(p, ReasonInvalid)
	}
	ok := c.segment(q, p)
	q.wake(c)
	return ok
}

// pathMTU heeds an error about a packet of ours, of which quoted is the beginning.
func (q *queue) pathMTU(family uint8, quoted []byte, mtu int) {
	hl := headerLen(family)
	if len(quoted) < hl+4 {
		return
	}
	k := key{family: family}
	if family == packet.IPv4 {
		hl = int(quoted[0]&15) * 4
		if hl < 20 || len(quoted) < hl+4 {
			return
		}
		copy(k.out[:], quoted[12:16])
		copy(k.in[:], quoted[16:20])
		k.proto = quoted[9]
		mtu = max(mtu, 552) // net.ipv4.route.min_pmtu
	} else {
		copy(k.out[:], quoted[8:24])
		copy(k.in[:], quoted[24:40])
		k.proto = quoted[6]
		mtu = max(mtu, 1280)
	}
	k.outPort, k.inPort = binary.BigEndian.Uint16(quoted[hl:]), binary.BigEndian.Uint16(quoted[hl+2:])
	c := q.link.find(&k)
	if c == nil {
		return
	}
	f := c.base()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return
	}
	switch c := c.(type) {
	case *tcpConn:
		if old := c.mss; c.state == open {
			if c.setMSS(mtu); c.mss < old {
				c.nxt = c.una // what is on its way was too large
				q.wake(c)
			}
		}
	case *udpConn:
		c.mtu = mtu
	}
}

// openPing makes a socket for echo requests: a ping socket, which needs no
// privilege but net.ipv4.ping_group_range, or else a raw one.
func (c *udpConn) openPing(q *queue) error {
	proto := unix.IPPROTO_ICMP
	if c.key.family == packet.IPv6 {
		proto = unix.IPPROTO_ICMPV6
	}
	fd, err := q.socket(c.key.family, unix.SOCK_DGRAM, proto)
	if err == nil {
		c.fd = fd
		return nil
	}
	raw, rawErr := c.link.socket(c.key.family, unix.SOCK_RAW, proto)
	if rawErr != nil {
		if !c.link.noPing.Swap(true) {
			c.link.log.Warn("pings do not pass the uplink: no ping sockets for this group. As root: sysctl net.ipv4.ping_group_range=\"0 2147483647\"", "interface", c.link.cfg.Name, "err", err)
		}
		return err
	}
	c.fd, c.rawICMP, c.ident = raw, true, uint16(rand.Uint32())
	if c.key.family == packet.IPv4 {
		err = unix.SetsockoptInt(raw, unix.SOL_RAW, unix.ICMP_FILTER, ^(1 << packet.ICMPEchoReply))
	} else {
		filter := &unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[packet.ICMPv6EchoReply>>5] &^= 1 << (packet.ICMPv6EchoReply & 31)
		err = unix.SetsockoptICMPv6Filter(raw, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, filter)
	}
	return err
}

// sendPing sends an echo request; the identifier is the socket's.
func (c *udpConn) sendPing(q *queue, p *packet.Packet) bool {
	t := p.Transport()
	c.seq = binary.BigEndian.Uint16(t[6:])
	if c.rawICMP {
		binary.BigEndian.PutUint16(t[4:], c.ident)
		if c.key.family == packet.IPv4 {
			t[2], t[3] = 0, 0
			binary.BigEndian.PutUint16(t[2:], ^packet.Sum(t))
		}
	}
	errno := c.send(t)
	if errno != 0 && errno != syscall.EAGAIN {
		c.readErrors(q)
		errno = c.send(t)
	}
	if errno == syscall.EMSGSIZE {
		c.tooBig(q, p)
	}
	if errno != 0 {
		c.readErrors(q)
		return lose(p, ReasonHost)
	}
	return true
}

// readPing reads a message of the socket into p. again: it was not an answer of the flow's, look on.
func (c *udpConn) readPing(p *packet.Packet) (ok, again bool) {
	hl := headerLen(c.key.family)
	at := packet.Headroom + hl
	b := p.Buf[at : packet.Headroom+packet.MaxLen]
	r, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if errno == syscall.EAGAIN {
		c.readable = false
		return false, false
	}
	if errno != 0 {
		return false, true
	}
	n := int(r)
	if c.rawICMP && c.key.family == packet.IPv4 { // with the IP header
		h := int(b[0]&15) * 4
		if n < h {
			return false, true
		}
		n = copy(b, b[h:n])
	}
	reply := uint8(packet.ICMPEchoReply)
	if c.key.family == packet.IPv6 {
		reply = packet.ICMPv6EchoReply
	}
	if n < 8 || b[0] != reply || c.rawICMP && binary.BigEndian.Uint16(b[4:]) != c.ident {
		return false, true
	}
	t := c.start(p, c.key.proto, n)
	binary.BigEndian.PutUint16(t[4:], c.key.inPort)
	t[2], t[3] = 0, 0
	sum := packet.Sum(t)
	if c.key.family == packet.IPv6 {
		sum = packet.AddSum(sum, packet.PseudoSum(c.key.out[:], c.key.in[:], packet.ProtoICMPv6, n))
	}
	binary.BigEndian.PutUint16(t[2:], ^sum)
	return true, false
}
