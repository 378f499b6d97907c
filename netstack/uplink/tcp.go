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
	window   = 1 << 20 // bytes of each direction that may be on the way or waiting
	rcvShift = 7       // window scale that we offer

	rtoFirst = int64(time.Second)
	rtoMin   = int64(200 * time.Millisecond)
	rtoMax   = int64(60 * time.Second)
	retries  = 15 // net.ipv4.tcp_retries2
	synTries = 6  // net.ipv4.tcp_syn_retries

	ackDelay = int64(500 * time.Microsecond)

	keepIdle   = int64(2 * time.Hour) // net.ipv4.tcp_keepalive_time; probes then go out with each sweep
	keepProbes = 9                    // net.ipv4.tcp_keepalive_probes
	sweepEvery = int64(75 * time.Second)
)

// States of a connection inside; the host's socket has its own.
const (
	connecting = iota // the host's connect is on its way, inside waits for an answer to its SYN
	synRcvd           // SYN-ACK sent
	synSent           // a published connection: SYN sent
	open
)

// tcpConn is a TCP connection, terminated.
type tcpConn struct {
	flow
	state uint8

	// From inside to the host.
	irs, rcvNxt uint32
	told        uint32 // right edge of the window that inside knows
	scaled      bool   // windows are scaled
	pend        ring   // acknowledged, or about to be, and not taken by the host yet
	writable    bool   // as far as we know
	finIn       bool   // inside has sent its FIN
	shut        bool   // and the host knows
	needAck     bool
	owed        int   // bytes taken and not acknowledged yet
	ackAt       int64 // when they are, at the latest; 0: nothing is owed
	ackQueued   bool  // in some queue's list of those
	check       bool  // pend is held until the Checker has seen enough
	resetHost   bool  // close with a RST
	sends       uint8 // to the host so far: 0, 1, or 2 for more
	kept        bool  // SO_KEEPALIVE is on

	// From the host to inside.
	iss, una, nxt, sent uint32 // sent: the highest nxt there was
	wnd                 int    // inside's window, bytes
	sndShift            uint8
	mss                 int
	flight              ring // una and what follows it
	readable, hup       bool // of the host's socket; hup: an end or an error is to come
	eof                 bool // the host has sent its FIN: it follows flight
	finAcked            bool
	synDue, probe       bool // SYN or SYN-ACK, a window probe or keepalive are to be sent
	reset               bool // inside gets a RST
	resetSeq            uint32

	cwnd, ssthresh int
	dupAcks        int
	recover        uint32 // fast recovery until this is acknowledged
	recovering     bool
	resend         bool // one segment at una

	rto, srtt, rttvar int64
	rttSeq            uint32
	rttAt             int64 // when rttSeq was sent; 0: none is timed
	tries             int
	heard             int64 // when inside was last heard of
}

// before: a lies before b in sequence space.
func before(a, b uint32) bool { return int32(a-b) < 0 }

func (c *tcpConn) init(l *Link, k *key) {
	c.flow = flow{link: l, key: *k, fd: -1, ipID: uint16(rand.Uint32())}
	c.iss = rand.Uint32()
	c.una, c.nxt, c.sent = c.iss, c.iss, c.iss
	c.rto, c.ssthresh = rtoFirst, 1<<30
	c.heard = l.now()
}

// openTCP begins a connection with a SYN from inside, or answers what belongs to none.
func (q *queue) openTCP(p *packet.Packet, k *key) bool {
	const syn = packet.TCPSyn
	if p.TCPHeaderLen() == 0 {
		return lose(p, ReasonInvalid)
	}
	if p.TCPFlags()&(syn|packet.TCPAckFlag|packet.TCPRst|packet.TCPFin) != syn {
		q.refuse(p)
		return lose(p, ReasonInvalid)
	}
	to, ok := q.link.target(k)
	if !ok {
		q.unreachable(p, unix.ENETUNREACH)
		return lose(p, ReasonAddress)
	}
	c := &tcpConn{state: connecting}
	c.init(q.link, k)
	c.irs = p.TCPSeq()
	c.rcvNxt = c.irs + 1
	c.told = c.rcvNxt
	c.options(p)
	c.wnd = int(p.TCPWindow())
	if ch := q.link.cfg.Check; ch != nil {
		c.check = ch.Wants(k.inside(), k.outside())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !q.link.enter(c) {
		return lose(p, ReasonFull)
	}
	fd, err := q.socket(k.family, unix.SOCK_STREAM, 0)
	if err != nil {
		c.end()
		if typ, code, ok := unreachable(k.family, err); ok {
			q.icmpError(p, typ, code, 0, nil)
		}
		return lose(p, ReasonSocket)
	}
	c.fd = fd
	err = unix.Connect(fd, sockaddr(to))
	if err == nil || err == unix.EINPROGRESS {
		if err = q.adopt(c); err == nil {
			return true
		}
	}
	q.failed(c, err)
	return true
}

// unreachable answers p with the ICMP error that err stands for, if it does.
func (q *queue) unreachable(p *packet.Packet, err error) {
	if typ, code, ok := unreachable(p.Family, err); ok {
		q.icmpError(p, typ, code, 0, nil)
	}
}

// failed tells inside that the host's connect did not work.
func (q *queue) failed(c *tcpConn, err error) {
	if err == unix.ECONNREFUSED || err == unix.ECONNRESET {
		c.reset, c.resetSeq = true, 0
		q.wake(c)
		return
	}
	if typ, code, ok := unreachable(c.key.family, err); ok {
		q.flowError(&c.flow, typ, code, 0, nil, c.irs, nil)
	}
	c.finish()
}

// finish ends the connection without a further word to inside.
func (c *tcpConn) finish() {
	if c.dead {
		return
	}
	if c.resetHost && c.fd >= 0 {
		unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	c.pend.free()
	c.flight.free()
	c.end()
}

// options reads a SYN's or SYN-ACK's options.
func (c *tcpConn) options(p *packet.Packet) {
	c.mss = 536
	if c.key.family == packet.IPv6 {
		c.mss = 1220
	}
	o := p.TCPOptions()
	for i := 0; i < len(o) && o[i] != 0; {
		if o[i] == 1 {
			i++
			continue
		}
		if i+1 >= len(o) || o[i+1] < 2 || i+int(o[i+1]) > len(o) {
			break
		}
		switch n := o[i+1]; {
		case o[i] == 2 && n == 4:
			c.mss = max(int(binary.BigEndian.Uint16(o[i+2:])), 64)
		case o[i] == 3 && n == 3:
			c.scaled, c.sndShift = true, min(o[i+2], 14)
		}
		i += int(o[i+1])
	}
	c.setMSS(c.link.iface.Load().MTU)
}

// setMSS keeps segments within an MTU.
func (c *tcpConn) setMSS(mtu int) {
	c.mss = max(min(c.mss, mtu-headerLen(c.key.family)-20), 64)
	if c.cwnd == 0 {
		c.cwnd = 10 * c.mss // RFC 6928
	}
}

// event is what the host's socket has to say.
func (c *tcpConn) event(q *queue, ev uint32) {
	if c.state == connecting {
		if ev&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
			return
		}
		if ev&(unix.EPOLLERR|unix.EPOLLHUP) != 0 { // else it has worked
			errno, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && errno != 0 {
				err = syscall.Errno(errno)
			}
			if err != nil {
				q.failed(c, err)
				return
			}
			if ev&unix.EPOLLOUT == 0 {
				return
			}
		}
		c.state, c.synDue = synRcvd, true
	}
	if ev&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.readable = true
	}
	if ev&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.hup = true
	}
	if ev&unix.EPOLLERR != 0 && c.eof { // else reading tells, after the data
		if errno, _ := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
			c.abort()
			return
		}
	}
	if ev&unix.EPOLLOUT != 0 {
		c.writable = true
		c.flush()
		c.done()
	}
}

// segment takes a segment from inside.
func (c *tcpConn) segment(q *queue, p *packet.Packet) bool {
	if p.TCPHeaderLen() == 0 {
		return lose(p, ReasonInvalid)
	}
	flags, seq, ack := p.TCPFlags(), p.TCPSeq(), p.TCPAck()
	now := q.link.now()
	if c.una == c.sent {
		c.tries = 0
	}
	c.heard = now
	switch {
	case flags&packet.TCPRst != 0:
		return c.gotReset(p, flags, seq, ack)
	case c.state == connecting:
		return true // a SYN again, most likely: the host has not answered yet
	case c.state == synSent:
		return c.accepted(q, p, flags, seq, ack)
	case flags&packet.TCPSyn != 0:
		if c.state == synRcvd && seq == c.irs {
			c.synDue = true
		} else {
			c.needAck = true // RFC 5961, 4: the peer says RST if it means it
		}
		return true
	case flags&packet.TCPAckFlag == 0:
		return lose(p, ReasonInvalid)
	}
	if c.state == synRcvd {
		if ack != c.iss+1 {
			q.refuse(p)
			return lose(p, ReasonInvalid)
		}
		c.state, c.una, c.nxt, c.sent, c.tries = open, ack, ack, ack, 0
		c.deadline = 0
		if c.rttAt != 0 {
			c.sample(now - c.rttAt)
			c.rttAt = 0
		}
	}
	wnd := int(p.TCPWindow())
	if c.scaled {
		wnd <<= c.sndShift
	}
	data := p.Payload()
	if !c.acked(q, ack, wnd, len(data) > 0 || flags&packet.TCPFin != 0, now) {
		return lose(p, ReasonInvalid)
	}
	c.receive(q, seq, data, flags&packet.TCPFin != 0)
	c.done()
	return true
}

// gotReset ends the connection if the RST is one that counts (RFC 5961, 3).
func (c *tcpConn) gotReset(p *packet.Packet, flags uint8, seq, ack uint32) bool {
	switch {
	case c.state == synSent:
		if flags&packet.TCPAckFlag == 0 || ack != c.iss+1 {
			return lose(p, ReasonInvalid)
		}
	case seq != c.rcvNxt:
		if c.state != connecting && seq-c.rcvNxt < window {
			c.needAck = true
		}
		return lose(p, ReasonInvalid)
	}
	c.resetHost = true
	c.finish()
	return true
}

// accepted takes inside's answer to our SYN.
func (c *tcpConn) accepted(q *queue, p *packet.Packet, flags uint8, seq, ack uint32) bool {
	const want = packet.TCPSyn | packet.TCPAckFlag
	if flags&want != want || ack != c.iss+1 {
		q.refuse(p)
		return lose(p, ReasonInvalid)
	}
	c.irs, c.rcvNxt, c.told = seq, seq+1, seq+1
	c.options(p)
	c.wnd = int(p.TCPWindow())
	c.una, c.nxt, c.sent = ack, ack, ack
	c.state, c.tries, c.needAck = open, 0, true
	c.deadline = 0
	return true
}

// acked takes what a segment acknowledges; false: it acknowledges what was never sent.
func (c *tcpConn) acked(q *queue, ack uint32, wnd int, carries bool, now int64) bool {
	if before(c.sent, ack) {
		c.needAck = true
		return false
	}
	if before(ack, c.una) {
		return true // old
	}
	n := int(ack - c.una)
	if n == 0 {
		if !carries && wnd == c.wnd && c.una != c.sent && wnd > 0 {
			c.duplicate()
		}
		if wnd == 0 {
			c.tries = 0 // it is there, only full
		}
		c.wnd = wnd
		return true
	}
	c.wnd = wnd
	data := min(n, c.flight.n)
	c.flight.drop(data)
	c.finAcked = c.finAcked || n > data
	c.una = ack
	if before(c.nxt, ack) {
		c.nxt = ack
	}
	c.tries, c.dupAcks = 0, 0
	if c.rttAt != 0 && !before(ack, c.rttSeq) {
		c.sample(now - c.rttAt)
		c.rttAt = 0
	}
	switch {
	case c.recovering && before(ack, c.recover):
		c.resend = true // RFC 6582: the next hole
	case c.recovering:
		c.recovering = false
	case c.cwnd < c.ssthresh:
		c.cwnd = min(c.cwnd+n, 1<<30)
	default:
		c.cwnd = min(c.cwnd+max(1, c.mss*n/c.cwnd), 1<<30)
	}
	if c.una == c.sent {
		c.deadline = 0
	} else {
		q.arm(c, now+c.rto)
	}
	return true
}

// duplicate counts an acknowledgement of nothing new (RFC 5681, 3.2).
func (c *tcpConn) duplicate() {
	if c.dupAcks++; c.dupAcks != 3 || c.recovering {
		return
	}
	c.ssthresh = max(int(c.sent-c.una)/2, 2*c.mss)
	c.cwnd = c.ssthresh
	c.recovering, c.recover, c.resend, c.rttAt = true, c.sent, true, 0
}

// sample takes a round-trip time (RFC 6298).
func (c *tcpConn) sample(rtt int64) {
	if c.srtt == 0 {
		c.srtt, c.rttvar = rtt, rtt/2
	} else {
		d := c.srtt - rtt
		if d < 0 {
			d = -d
		}
		c.rttvar += (d - c.rttvar) / 4
		c.srtt += (rtt - c.srtt) / 8
	}
	c.rto = min(max(c.srtt+4*c.rttvar, rtoMin), rtoMax)
}

// receive takes a segment's data. What lies before rcvNxt is there already,
// what leaves a hole is not taken.
func (c *tcpConn) receive(q *queue, seq uint32, data []byte, fin bool) {
	if len(data) == 0 && !fin {
		c.needAck = c.needAck || seq != c.rcvNxt // a keepalive or window probe
		return
	}
	skip := int(c.rcvNxt - seq)
	if before(c.rcvNxt, seq) || c.finIn || skip > len(data) || skip == len(data) && !fin {
		c.needAck = true
		return
	}
	data = data[skip:]
	n := c.deliver(data)
	c.rcvNxt += uint32(n)
	c.owed += n
	// A short message may have its answer soon, and the acknowledgement goes with that.
	if fin || skip > 0 || n < len(data) || c.pend.n > 0 || c.owed >= min(2*c.mss, 8192) {
		c.needAck = true
	} else if !c.needAck && c.ackAt == 0 {
		q.ackLater(c)
	}
	if fin && n == len(data) {
		c.rcvNxt++
		c.finIn = true
		if c.check { // it has said too little
			c.resetHost = true
			c.abort()
		}
		c.flush()
	}
}

// deliver gives data to the host, keeps what it does not take as far as there
// is room, and says how much that was together.
func (c *tcpConn) deliver(data []byte) int {
	n := 0
	if c.pend.n == 0 && c.writable && !c.check {
		n = c.send(data)
	}
	if rest := data[n:min(len(data), n+max(window-c.pend.n, 0))]; len(rest) > 0 {
		c.pend.add(rest)
		n += len(rest)
	}
	if c.check {
		c.judge()
	}
	return n
}

// judge asks the Checker about what the client has said so far.
func (c *tcpConn) judge() {
	buf := make([]byte, min(c.pend.n, maxCheck))
	c.pend.copy(buf, 0, len(buf))
	v := c.link.cfg.Check.Judge(c.key.inside(), c.key.outside(), buf)
	if v == More && len(buf) < maxCheck {
		return
	}
	if v == Pass {
		c.check = false
		c.flush()
		return
	}
	c.pend.free()
	c.check, c.resetHost = false, true
	c.abort()
}

// abort has inside get a RST.
func (c *tcpConn) abort() { c.reset, c.resetSeq = true, c.nxt }

// send gives b to the host's socket and says how much it took.
func (c *tcpConn) send(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	// Inside has its own Nagle; the first message never waits for an answer.
	if c.sends++; c.sends == 2 {
		unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	c.sends = min(c.sends, 2)
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	switch errno {
	case 0:
		c.writable = int(n) == len(b)
		return int(n)
	case syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS, syscall.ENOMEM:
		c.writable = false
		return 0
	}
	c.resetHost = true
	c.abort()
	return len(b) // it makes no difference any more
}

// flush gives the host what waits for it, and inside's FIN after it.
func (c *tcpConn) flush() {
	for c.pend.n > 0 && c.writable && !c.check && !c.reset {
		c.pend.drop(c.send(c.pend.first()))
	}
	if c.finIn && c.pend.n == 0 && !c.shut && !c.reset && !c.check {
		c.shut = true
		if !c.eof || !c.finAcked { // else it is closed right away
			unix.Shutdown(c.fd, unix.SHUT_WR)
		}
	}
	if c.state == open && window-c.pend.n-int(c.told-c.rcvNxt) >= window/2 {
		c.needAck = true // the window has opened
	}
}

// done ends a connection that both sides have closed.
func (c *tcpConn) done() {
	if c.shut && c.eof && c.finAcked && !c.needAck && !c.reset {
		c.finish()
	}
}

// timer is the retransmission timer, and that of window probes and keepalive.
func (c *tcpConn) timer(q *queue, now int64) {
	c.rttAt = 0
	switch {
	case c.state == synRcvd || c.state == synSent:
		if c.tries++; c.tries > synTries {
			c.resetHost = true
			c.finish()
			return
		}
		c.synDue, c.rto = true, min(2*c.rto, rtoMax)
	case c.una != c.sent:
		if c.tries++; c.tries > retries {
			c.resetHost = true
			c.abort()
			return
		}
		if c.tries == 1 {
			c.ssthresh = max(int(c.sent-c.una)/2, 2*c.mss)
		}
		c.cwnd, c.nxt = c.mss, c.una // go back
		c.recovering, c.dupAcks, c.resend = false, 0, false
		c.probe = c.wnd == 0
		c.rto = min(2*c.rto, rtoMax)
	case c.wnd == 0 && c.readable:
		c.probe = true
		c.rto = min(2*c.rto, rtoMax)
	}
}

// sweep is called once in a while: keepalive.
func (c *tcpConn) sweep(q *queue, now int64) {
	if !c.kept { // not before now: most connections do not live so long
		c.kept = true
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	}
	if c.state != open || c.una != c.sent || now-c.heard < keepIdle {
		return
	}
	if c.tries++; c.tries > keepProbes {
		c.resetHost = true
		c.abort()
	} else {
		c.probe = true
	}
	q.wake(c)
}

// published begins a connection to inside for a host socket that was accepted.
func (q *queue) published(l *Link, k *key, fd int, peer netip.AddrPort) {
	c := &tcpConn{state: synSent, synDue: true}
	c.init(l, k)
	c.peer = peer
	c.fd = fd
	c.mu.Lock()
	defer c.mu.Unlock()
	if !l.enter(c) {
		c.resetHost = true
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
		return
	}
	if q.adopt(c) != nil {
		c.finish()
		return
	}
	q.wake(c)
}
