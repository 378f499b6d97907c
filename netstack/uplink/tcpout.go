package uplink

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// next fills p with what inside is to get next.
func (c *tcpConn) next(q *queue, p *packet.Packet) bool {
	switch {
	case c.reset:
		if c.state == connecting { // refused: the answer to the SYN
			c.header(p, 0, packet.TCPRst|packet.TCPAckFlag, nil, 0)
		} else {
			c.header(p, c.resetSeq, packet.TCPRst|packet.TCPAckFlag, nil, 0)
		}
		c.finish()
		return true
	case c.state == connecting:
		return false
	case c.state == synRcvd || c.state == synSent:
		if !c.synDue {
			return false
		}
		c.syn(q, p)
		return true
	}
	if c.data(q, p) || c.reset && c.next(q, p) {
		return true
	}
	if c.needAck {
		c.header(p, c.nxt, packet.TCPAckFlag, nil, 0)
		c.done()
		return true
	}
	return false
}

// syn makes p our SYN or SYN-ACK.
func (c *tcpConn) syn(q *queue, p *packet.Packet) {
	mss := c.link.iface.Load().MTU - headerLen(c.key.family) - 20
	var o [8]byte
	o[0], o[1] = 2, 4
	binary.BigEndian.PutUint16(o[2:], uint16(mss))
	n := 4
	if c.scaled || c.state == synSent {
		copy(o[4:], []byte{1, 3, 3, rcvShift})
		n = 8
	}
	flags := packet.TCPSyn | packet.TCPAckFlag
	if c.state == synSent {
		flags = packet.TCPSyn
	}
	c.header(p, c.iss, flags, o[:n], 0)
	c.synDue = false
	c.nxt, c.sent = c.iss+1, c.iss+1
	now := q.link.now()
	if c.tries == 0 && c.rttAt == 0 {
		c.rttAt = now
	}
	q.arm(c, now+c.rto)
}

// data makes p the next segment with data or FIN; false: there is none that may be sent.
func (c *tcpConn) data(q *queue, p *packet.Packet) bool {
	if c.resend {
		c.resend = false
		n := min(c.flight.n, c.mss)
		fin := c.eof && !c.finAcked && n == c.flight.n && c.sent == c.una+uint32(n)+1
		c.segmentOut(p, c.una, n, 0, fin)
		return true
	}
	old := int(c.sent - c.nxt) // sent before and to be sent again
	flying := int(c.nxt - c.una)
	room := min(c.wnd, c.cwnd) - flying
	if c.probe {
		return c.sendProbe(q, p)
	}
	if old > 0 {
		n := c.flight.n - flying
		fin := c.eof && !c.finAcked
		if n > 0 && room <= 0 {
			return false
		}
		if n > room {
			n, fin = room, false
		}
		if most := c.most(n); n > most {
			n, fin = most, false
		}
		if n <= 0 && !fin {
			return false
		}
		c.segmentOut(p, c.nxt, n, flying, fin)
		c.advance(q, n, fin)
		return true
	}
	if c.eof {
		if c.finAcked || c.nxt != c.una+uint32(c.flight.n) {
			return false // it is on its way
		}
		c.header(p, c.nxt, packet.TCPAckFlag|packet.TCPFin, nil, 0)
		c.advance(q, 0, true)
		return true
	}
	if !c.readable {
		return false
	}
	room = min(room, window-c.flight.n)
	if room <= 0 || room < c.mss && flying > 0 {
		if c.wnd == 0 && flying == 0 && c.deadline == 0 {
			q.arm(c, q.link.now()+c.rto) // should the window's opening be lost
		}
		return false
	}
	return c.fresh(q, p, c.most(room))
}

// most is how much of n bytes one packet takes: a multiple of the segment size, if more than one.
func (c *tcpConn) most(n int) int {
	n = min(n, packet.MaxLen-headerLen(c.key.family)-20)
	if n > c.mss {
		n -= n % c.mss
	}
	return n
}

// fresh reads up to n bytes from the host straight into p.
func (c *tcpConn) fresh(q *queue, p *packet.Packet, n int) bool {
	at := packet.Headroom + headerLen(c.key.family) + 20
	got := 0
	for got < n {
		b := p.Buf[at+got : at+n]
		k, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			c.readable = false
			if errno != syscall.EAGAIN {
				c.abort() // the host's peer has reset it
			}
			break
		}
		if k == 0 {
			c.eof, c.readable = true, false
			break
		}
		got += int(k)
		if !c.hup { // with an end to come, look for it: it can go with the data
			c.readable = got == n
			break
		}
	}
	if got == 0 && !c.eof {
		return false
	}
	c.flight.add(p.Buf[at : at+got])
	c.segmentHeader(p, c.nxt, got, c.eof)
	c.advance(q, got, c.eof)
	return true
}

// advance notes that n bytes at nxt, and perhaps the FIN, are on their way.
func (c *tcpConn) advance(q *queue, n int, fin bool) {
	c.nxt += uint32(n)
	if fin {
		c.nxt++
	}
	now := q.link.now()
	if before(c.sent, c.nxt) {
		c.sent = c.nxt
		if c.rttAt == 0 {
			c.rttAt, c.rttSeq = now, c.nxt
		}
	}
	if c.deadline == 0 {
		q.arm(c, now+c.rto)
	}
}

// sendProbe makes inside tell its window, or that it is there.
func (c *tcpConn) sendProbe(q *queue, p *packet.Packet) bool {
	c.probe = false
	now := q.link.now()
	if c.una == c.sent && c.wnd > 0 { // keepalive
		c.header(p, c.una-1, packet.TCPAckFlag, nil, 0)
		return true
	}
	if c.una == c.sent && c.readable && c.fresh(q, p, 1) {
		return true
	}
	if c.flight.n > 0 {
		c.segmentOut(p, c.una, 1, 0, false)
		if before(c.nxt, c.una+1) {
			c.nxt = c.una + 1
		}
	} else {
		c.header(p, c.una-1, packet.TCPAckFlag, nil, 0)
	}
	q.arm(c, now+c.rto)
	return true
}

// segmentOut makes p a segment with n bytes of flight from off on.
func (c *tcpConn) segmentOut(p *packet.Packet, seq uint32, n, off int, fin bool) {
	c.flight.copy(p.Buf[packet.Headroom+headerLen(c.key.family)+20:], off, n)
	c.segmentHeader(p, seq, n, fin)
}

// segmentHeader puts headers before the n bytes of payload that p holds.
func (c *tcpConn) segmentHeader(p *packet.Packet, seq uint32, n int, fin bool) {
	flags := packet.TCPAckFlag
	if n > 0 {
		flags |= packet.TCPPsh
	}
	if fin {
		flags |= packet.TCPFin
	}
	c.header(p, seq, flags, nil, n)
}

// header writes the headers of a segment with options o and n bytes of payload,
// which are in their place already.
func (c *tcpConn) header(p *packet.Packet, seq uint32, flags uint8, o []byte, n int) {
	hl := 20 + len(o)
	t := c.start(p, packet.ProtoTCP, hl+n)
	be := binary.BigEndian
	be.PutUint16(t, c.key.outPort)
	be.PutUint16(t[2:], c.key.inPort)
	be.PutUint32(t[4:], seq)
	clear(t[8:20])
	if flags&packet.TCPAckFlag != 0 {
		be.PutUint32(t[8:], c.rcvNxt)
	}
	t[12], t[13] = uint8(hl/4)<<4, flags
	room := max(window-c.pend.n, 0)
	if c.scaled && flags&packet.TCPSyn == 0 {
		w := min(room>>rcvShift, 0xffff)
		be.PutUint16(t[14:], uint16(w))
		room = w << rcvShift
	} else {
		room = min(room, 0xffff)
		be.PutUint16(t[14:], uint16(room))
	}
	c.told = c.rcvNxt + uint32(room)
	c.needAck, c.owed, c.ackAt = false, 0, 0
	copy(t[20:], o)
	c.partial(p, t, packet.ProtoTCP, 16)
	if n > c.mss {
		p.GSO.Type, p.GSO.HdrLen, p.GSO.Size = packet.GSOTCPv4, uint16(headerLen(c.key.family)+hl), uint16(c.mss)
		if c.key.family == packet.IPv6 {
			p.GSO.Type = packet.GSOTCPv6
		}
	}
}
