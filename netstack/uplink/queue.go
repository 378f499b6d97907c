package uplink

import (
	"math"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/netstack"
	"sluice/packet"
)

// queue is one worker's part of the link: the sockets of the flows that began
// with it, in an epoll of its own, which the worker's epoll watches in turn.
type queue struct {
	link  *Link
	id    int
	epoll int
	clock int // timerfd

	raw   [][]byte // whole packets towards inside: ICMP errors, resets
	ready deque    // flows that have something to say
	fds   []conn   // by descriptor; also flows that are gone

	prompted  bool // the flows made ready by writes are being read, and no more
	polled    bool // the sockets have been asked, and said no more
	events    [64]unix.EpollEvent
	timers    timers
	acks      []*tcpConn // that owe an acknowledgement, the earliest first: all wait equally long
	acksAt    int64      // when the first is due; 0: there is none
	clockSet  int64      // when clock goes off; 0: not set
	sweepAt   int64
	listeners atomic.Pointer[map[int]conn] // by descriptor

	answer, quoted *packet.Packet // what is being built

	msg  unix.Msghdr
	iov  [2]unix.Iovec
	oob  [256]byte
	name [unix.SizeofSockaddrInet6]byte
}

const maxRaw = 1024

func newQueue(l *Link, id int) (*queue, error) {
	q := &queue{link: l, id: id, epoll: -1, clock: -1, sweepAt: sweepEvery, answer: packet.New(), quoted: packet.New()}
	q.listeners.Store(&map[int]conn{})
	var err error
	if q.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if q.clock, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err == nil {
		err = q.watch(q.clock, unix.EPOLLIN)
		q.setClock()
	}
	if err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *queue) close() {
	unix.Close(q.clock)
	unix.Close(q.epoll)
}

func (q *queue) watch(fd int, events uint32) error {
	return unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// adopt makes the queue watch a flow's socket, edge-triggered. Only q's worker calls it.
func (q *queue) adopt(c conn) error {
	f := c.base()
	for len(q.fds) <= f.fd {
		q.fds = append(q.fds, nil)
	}
	q.fds[f.fd] = c
	f.queue = q.id
	return q.watch(f.fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
}

// FD is what the worker's epoll waits on.
func (q *queue) FD() int { return q.epoll }

// Flush sends nothing: Write has.
func (q *queue) Flush() error { return nil }

// Prompt says whether flows have something to say because of what was written.
// After true, Read gives that until ErrAgain, and looks at no socket's events.
func (q *queue) Prompt() bool {
	q.prompted = len(q.raw) > 0 || q.ready.len() > 0
	return q.prompted
}

// Read gives the next packet towards inside.
func (q *queue) Read(p *packet.Packet) error {
	for {
		if n := len(q.raw); n > 0 {
			p.End = p.Off + copy(p.Buf[p.Off:], q.raw[0])
			q.raw[0] = nil
			if q.raw = q.raw[1:]; len(q.raw) == 0 {
				q.raw = nil
			}
			return nil
		}
		for q.ready.len() > 0 {
			c := q.ready.pop()
			f := c.base()
			f.mu.Lock()
			ok := !f.dead && c.next(q, p)
			if ok && !f.dead {
				q.ready.push(c)
			} else {
				f.ready = false
			}
			f.mu.Unlock()
			if ok {
				return nil
			}
			if len(q.raw) > 0 {
				break
			}
		}
		if len(q.raw) > 0 {
			continue
		}
		if q.prompted || q.polled {
			q.prompted, q.polled = false, false
			return netstack.ErrAgain
		}
		if !q.poll() {
			return netstack.ErrAgain
		}
	}
}

// poll asks the sockets.
func (q *queue) poll() bool {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(q.epoll), uintptr(unsafe.Pointer(&q.events[0])), uintptr(len(q.events)), 0, 0, 0)
	if errno != 0 || n == 0 {
		return false
	}
	q.polled = int(n) < len(q.events) // more would wake the worker again
	for i := range q.events[:n] {
		fd, ev := int(q.events[i].Fd), q.events[i].Events
		if fd == q.clock {
			q.tick()
			continue
		}
		c := (*q.listeners.Load())[fd]
		if c == nil && fd < len(q.fds) {
			c = q.fds[fd]
		}
		if c == nil {
			continue
		}
		f := c.base()
		f.mu.Lock()
		if !f.dead && f.fd == fd {
			c.event(q, ev)
			q.wake(c)
		}
		f.mu.Unlock()
	}
	return true
}

// wake puts a flow (locked) into the list of those that may have something to say.
func (q *queue) wake(c conn) {
	if f := c.base(); !f.ready {
		f.ready = true
		q.ready.push(c)
	}
}

// push queues a whole packet, copied, towards inside.
func (q *queue) push(b []byte) {
	if len(q.raw) < maxRaw {
		q.raw = append(q.raw, append([]byte(nil), b...))
	}
}

// Write takes a packet that the router sent out of the uplink; ErrRefused, and
// p.Reason, where it ends without a use.
func (q *queue) Write(p *packet.Packet) error {
	if q.write(p) {
		return nil
	}
	return netstack.ErrRefused
}

func (q *queue) write(p *packet.Packet) bool {
	switch {
	case p.Proto == packet.ProtoTCP, p.Proto == packet.ProtoUDP:
	case p.Proto == packet.ProtoICMP && p.Family == packet.IPv4, p.Proto == packet.ProtoICMPv6 && p.Family == packet.IPv6:
		return q.icmp(p)
	case p.Family == packet.IPv4:
		q.icmpError(p, packet.ICMPDestUnreach, 2, 0, nil)
		return lose(p, ReasonProtocol)
	default:
		q.icmpError(p, packet.ICMPv6ParamProblem, 1, uint32(p.NextHeaderAt()), nil)
		return lose(p, ReasonProtocol)
	}
	if p.Flags&(packet.HasL4|packet.Fragment) != packet.HasL4 {
		return lose(p, ReasonInvalid)
	}
	if !p.VerifyL4() {
		return lose(p, ReasonChecksum)
	}
	k := keyOf(p)
	c := q.link.find(&k)
	if c == nil {
		if p.Proto == packet.ProtoTCP {
			return q.openTCP(p, &k)
		}
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
	if !f.dead {
		q.wake(c)
	}
	return ok
}

func lose(p *packet.Packet, r packet.Reason) bool {
	p.Reason = r
	return false
}

// socket is Link.socket; without a descriptor left, the datagram flow that has
// been silent longest gives its own.
func (q *queue) socket(family uint8, typ, proto int) (int, error) {
	fd, err := q.link.socket(family, typ, proto)
	if (err == unix.EMFILE || err == unix.ENFILE) && q.evict() {
		fd, err = q.link.socket(family, typ, proto)
	}
	return fd, err
}

// evict ends the queue's datagram flow that has been silent longest; false: there is none.
func (q *queue) evict() bool {
	var oldest *udpConn
	least := int64(math.MaxInt64)
	for fd, c := range q.fds {
		u, ok := c.(*udpConn)
		if !ok || !u.mu.TryLock() { // a flow may be locked already, by whoever asks
			continue
		}
		if !u.dead && u.fd == fd && u.last < least {
			oldest, least = u, u.last
		}
		u.mu.Unlock()
	}
	if oldest == nil || !oldest.mu.TryLock() {
		return false
	}
	defer oldest.mu.Unlock()
	oldest.end()
	return true
}

// timerGrain is what deadlines are rounded up to, ns. The shortest is 200 ms.
const timerGrain = int64(8e6)

// arm sees to it that the flow's timer runs soon after at, or before; a flow has
// one deadline, and an entry that comes too early looks again.
func (q *queue) arm(c conn, at int64) {
	f := c.base()
	f.deadline = at
	if f.timerAt != 0 && f.timerAt <= at {
		return
	}
	at = (at/timerGrain + 1) * timerGrain // so that many run at once
	f.timerAt = at
	q.timers.push(timer{at, c})
	q.setClock()
}

func (q *queue) setClock() {
	at := q.sweepAt
	if len(q.timers) > 0 {
		at = min(at, q.timers[0].at)
	}
	if q.acksAt != 0 {
		at = min(at, q.acksAt)
	}
	if q.clockSet != 0 && q.clockSet <= at {
		return
	}
	q.clockSet = at
	d := max(at-q.link.now(), 1000)
	unix.TimerfdSettime(q.clock, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(d)}, nil)
}

// tick runs the timers that are due.
func (q *queue) tick() {
	var b [8]byte
	unix.Read(q.clock, b[:])
	q.clockSet = 0
	now := q.link.now()
	if q.acksAt != 0 && q.acksAt <= now {
		q.payAcks(now)
	}
	for len(q.timers) > 0 && q.timers[0].at <= now {
		t := q.timers.pop()
		f := t.conn.base()
		f.mu.Lock()
		if f.timerAt == t.at {
			f.timerAt = 0
		}
		switch {
		case f.dead || f.deadline == 0:
		case f.deadline > now:
			q.arm(t.conn, f.deadline)
		default:
			f.deadline = 0
			t.conn.timer(q, now)
			if !f.dead {
				q.wake(t.conn)
			}
		}
		f.mu.Unlock()
	}
	if now >= q.sweepAt {
		q.sweepAt = now + sweepEvery
		for fd, c := range q.fds {
			if c == nil {
				continue
			}
			f := c.base()
			f.mu.Lock()
			if f.dead || f.fd != fd {
				q.fds[fd] = nil
			} else {
				c.sweep(q, now)
			}
			f.mu.Unlock()
		}
	}
	q.setClock()
}

// ackLater notes that a connection (locked) owes an acknowledgement.
func (q *queue) ackLater(c *tcpConn) {
	c.ackAt = q.link.now() + ackDelay
	if c.ackQueued {
		return
	}
	c.ackQueued = true
	q.acks = append(q.acks, c)
	if q.acksAt == 0 {
		q.acksAt = c.ackAt
		q.setClock()
	}
}

// payAcks has the connections acknowledge whose time has come.
func (q *queue) payAcks(now int64) {
	q.acksAt = 0
	n := 0
	for ; n < len(q.acks); n++ {
		c := q.acks[n]
		c.mu.Lock()
		if at := c.ackAt; at > now && !c.dead {
			c.mu.Unlock()
			q.acksAt = at
			break
		}
		c.ackQueued = false
		if c.ackAt != 0 && !c.dead {
			c.ackAt, c.needAck = 0, true
			q.wake(c)
		}
		c.mu.Unlock()
	}
	rest := copy(q.acks, q.acks[n:])
	clear(q.acks[rest:])
	q.acks = q.acks[:rest]
}

// timer is an entry of a queue's timers.
type timer struct {
	at   int64
	conn conn
}

// timers is a heap, earliest first.
type timers []timer

func (h *timers) push(t timer) {
	*h = append(*h, t)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if s[up].at <= s[i].at {
			break
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
}

func (h *timers) pop() timer {
	s := *h
	t, n := s[0], len(s)-1
	s[0], s[n] = s[n], timer{}
	s = s[:n]
	*h = s
	for i := 0; ; {
		least := i
		for _, down := range [2]int{2*i + 1, 2*i + 2} {
			if down < n && s[down].at < s[least].at {
				least = down
			}
		}
		if least == i {
			return t
		}
		s[least], s[i] = s[i], s[least]
		i = least
	}
}

// deque is a queue of flows in a ring.
type deque struct {
	ring       []conn // a power of two
	head, tail int
}

func (d *deque) len() int { return d.tail - d.head }

func (d *deque) push(c conn) {
	if d.len() == len(d.ring) {
		ring := make([]conn, max(16, 2*len(d.ring)))
		n := d.len()
		for i := range n {
			ring[i] = d.ring[(d.head+i)&(len(d.ring)-1)]
		}
		d.ring, d.head, d.tail = ring, 0, n
	}
	d.ring[d.tail&(len(d.ring)-1)] = c
	d.tail++
}

func (d *deque) pop() conn {
	i := d.head & (len(d.ring) - 1)
	c := d.ring[i]
	d.ring[i] = nil
	d.head++
	return c
}
