package uplink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// Publish is a host port that reaches inside: what connects to it arrives as
// packets on the uplink, from its own address where that can be.
type Publish struct {
	Network string         // "tcp" or "udp"
	Listen  netip.AddrPort // on the host; [::] takes IPv4 as well
	To      netip.AddrPort // the packets' destination
}

// String is "tcp://127.0.0.1:8080 to 10.0.2.100:80".
func (p Publish) String() string {
	return p.Network + "://" + p.Listen.String() + " to " + p.To.String()
}

// listener is what both kinds of published ports are.
type listener struct {
	flow // its lock guards the socket; no flow in the table
	pub  Publish
}

// tcpListener accepts; udpListener reads datagrams of many peers.
type (
	tcpListener struct{ listener }
	udpListener struct {
		listener
		readable bool
		sending  sync.RWMutex // held for writing while the socket is closed: a flow that sends has its own lock, not the listener's
	}
)

// SetPublish makes the published ports those of want. With an error (a port in
// use…) nothing has changed. What stays the same keeps its connections; those of
// a port that goes live on, but UDP, which has no socket then.
func (l *Link) SetPublish(want []Publish) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	next := map[Publish]conn{}
	var made []conn
	for _, p := range want {
		if c := l.publish[p]; c != nil {
			next[p] = c
			continue
		}
		c, err := l.listen(p)
		if err != nil {
			for _, c := range made {
				shut(c)
			}
			return fmt.Errorf("publish %s: %w", p, err)
		}
		next[p] = c
		made = append(made, c)
	}
	old := l.publish
	l.publish = next
	fds := map[int]conn{}
	for _, c := range next {
		fds[c.base().fd] = c
	}
	for _, q := range l.queues {
		q.listeners.Store(&fds)
	}
	for _, c := range made {
		for _, q := range l.queues {
			if err := q.watch(c.base().fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); err != nil {
				l.log.Error("watching a published port", "err", err)
			}
		}
	}
	for p, c := range old {
		if next[p] == nil {
			shut(c)
		}
	}
	return nil
}

func shut(c conn) {
	f := c.base()
	f.mu.Lock()
	defer f.mu.Unlock()
	if u, ok := c.(*udpListener); ok {
		u.sending.Lock()
		defer u.sending.Unlock()
	}
	f.dead = true
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// listen opens a published port's socket.
func (l *Link) listen(p Publish) (conn, error) {
	domain, typ := unix.AF_INET, unix.SOCK_STREAM
	if p.Listen.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if p.Network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	fail := func(call string, err error) (conn, error) {
		unix.Close(fd)
		if errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("%w: ports below net.ipv4.ip_unprivileged_port_start take CAP_NET_BIND_SERVICE", os.NewSyscallError(call, err))
		}
		return nil, os.NewSyscallError(call, err)
	}
	if domain == unix.AF_INET6 {
		only := 1
		if p.Listen.Addr().IsUnspecified() {
			only = 0
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return fail("setsockopt", err)
		}
	}
	if typ == unix.SOCK_STREAM {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	} else if domain == unix.AF_INET {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	} else {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	if err := unix.Bind(fd, sockaddr(p.Listen)); err != nil {
		return fail("bind", err)
	}
	if typ == unix.SOCK_DGRAM {
		s := &udpListener{}
		s.link, s.fd, s.pub = l, fd, p
		return s, nil
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return fail("listen", err)
	}
	s := &tcpListener{}
	s.link, s.fd, s.pub = l, fd, p
	return s, nil
}

func (s *listener) segment(*queue, *packet.Packet) bool { return false }
func (s *listener) timer(*queue, int64)                 {}
func (s *listener) sweep(*queue, int64)                 {}

func (s *tcpListener) next(*queue, *packet.Packet) bool { return false }

// event accepts what has connected.
func (s *tcpListener) event(q *queue, _ uint32) {
	for range 64 {
		fd, sa, err := unix.Accept4(s.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			if (err == unix.EMFILE || err == unix.ENFILE) && !s.link.noFiles.Swap(true) {
				s.link.log.Warn("the uplink has no descriptors left; raise RLIMIT_NOFILE (ulimit -n)", "interface", s.link.cfg.Name)
			}
			return
		}
		peer := addrPort(sa)
		k, ok := s.link.arrival(packet.ProtoTCP, peer, s.pub.To)
		if !ok {
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			unix.Close(fd)
			continue
		}
		q.published(s.link, &k, fd, peer)
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// arrival is the flow that peer's packets to a destination inside belong to. A
// peer that cannot arrive under its own address does under the router's.
func (l *Link) arrival(proto uint8, peer, to netip.AddrPort) (k key, ok bool) {
	k = key{in: packet.AddrBytes(to.Addr()), inPort: to.Port(), outPort: peer.Port(), proto: proto, family: packet.IPv6}
	if to.Addr().Is4() {
		k.family = packet.IPv4
	}
	a := peer.Addr()
	if a.IsValid() && a.Is4() == to.Addr().Is4() && a != to.Addr() {
		k.out = packet.AddrBytes(a)
		if !refused(k.family, &k.out) && (l.cfg.IsLocal == nil || !l.cfg.IsLocal(k.family, k.out)) {
			return k, true
		}
	}
	if l.cfg.Router == nil {
		return k, false
	}
	if k.out, ok = l.cfg.Router(k.family, k.in); !ok {
		return k, false
	}
	if proto == packet.ProtoTCP {
		for range 64 { // two peers may have the same port
			if l.find(&k) == nil {
				return k, true
			}
			k.outPort = uint16(32768 + rand.IntN(28232))
		}
		return k, false
	}
	return k, true
}

func (s *udpListener) event(*queue, uint32) { s.readable = true }

// next reads the next datagram, of whichever peer.
func (s *udpListener) next(q *queue, p *packet.Packet) bool {
	for s.readable && !s.dead {
		at := packet.Headroom + 40 + 8
		if s.pub.To.Addr().Is4() {
			at = packet.Headroom + 20 + 8
		}
		n, _, errno := q.recvmsg(s.fd, p.Buf[at:packet.Headroom+packet.MaxLen], 0)
		if errno == syscall.EAGAIN {
			s.readable = false
			return false
		}
		if errno != 0 {
			continue
		}
		if s.arrived(q, p, n) {
			return true
		}
	}
	return false
}

// arrived makes the flow of the datagram at hand, if there is none, and p its packet.
func (s *udpListener) arrived(q *queue, p *packet.Packet, n int) bool {
	peer := nameOf(q.name[:])
	var at netip.Addr
	q.controls(func(h *unix.Cmsghdr, data []byte) {
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12:
			at = netip.AddrFrom4([4]byte(data[4:8]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 20:
			at = netip.AddrFrom16([16]byte(data[:16]))
		}
	})
	k, ok := s.link.arrival(packet.ProtoUDP, peer, s.pub.To)
	for range 64 {
		if !ok {
			return false
		}
		var c *udpConn
		switch have := s.link.find(&k).(type) {
		case nil:
			c = &udpConn{server: s, at: at}
			c.init(q, &k)
			c.mu.Lock()
			c.peer = peer
			if !s.link.enter(c) {
				c.dead = true
				c.mu.Unlock()
				return false
			}
		case *udpConn:
			c = have
			c.mu.Lock()
			if c.server != s || c.peer != peer || c.dead {
				c.mu.Unlock()
				k.outPort = uint16(32768 + rand.IntN(28232)) // another peer has that port
				continue
			}
			c.at = at
			c.touch(q)
		}
		c.datagram(q, p, n, 0)
		c.mu.Unlock()
		return true
	}
	return false
}

// nameOf reads a struct sockaddr_in or sockaddr_in6.
func nameOf(b []byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(b[2:])
	if binary.NativeEndian.Uint16(b) == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), port)
}

// send sends a flow's datagram to its peer, from the address that the peer sent to.
func (s *udpListener) send(q *queue, c *udpConn, b []byte) syscall.Errno {
	s.sending.RLock()
	defer s.sending.RUnlock()
	if s.fd < 0 {
		return syscall.EBADF
	}
	var oob []byte
	to := c.peer
	if s.pub.Listen.Addr().Is4() {
		if c.at.Is4() {
			oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: c.at.As4()})
		}
	} else {
		to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
		if c.at.IsValid() {
			oob = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: c.at.As16()})
		}
	}
	c.answered = true
	_, err := unix.SendmsgN(s.fd, b, oob, sockaddr(to), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return 0
}
