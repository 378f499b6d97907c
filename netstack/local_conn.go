package netstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"sluice/packet"
)

// listenBacklog is net.core.somaxconn.
const listenBacklog = 4096

// endpoint makes the gVisor side of s. network is "tcp", "tcp4", "tcp6",
// "udp", "udp4" or "udp6"; a is the address that it will have to do with.
// A bare "tcp" or "udp" on [::] takes IPv4 as well, as Linux's default is.
func (l *Local) endpoint(network string, a netip.Addr, s *sock) (*waiter.Queue, error) {
	trans := tcp.ProtocolNumber
	switch network {
	case "tcp", "tcp4", "tcp6":
	case "udp", "udp4", "udp6":
		trans = udp.ProtocolNumber
	default:
		return nil, net.UnknownNetworkError(network)
	}
	proto := ipv6.ProtocolNumber
	if a.Unmap().Is4() {
		proto = ipv4.ProtocolNumber
	}
	if last := network[len(network)-1]; last == '4' && proto != ipv4.ProtocolNumber || last == '6' && proto == ipv4.ProtocolNumber {
		return nil, &net.AddrError{Err: "address does not fit the network " + network, Addr: a.String()}
	}
	wq := new(waiter.Queue)
	ep, terr := l.stack.NewEndpoint(trans, proto, wq)
	if terr != nil {
		return nil, sysError("socket", terr)
	}
	if proto == ipv6.ProtocolNumber {
		ep.SocketOptions().SetV6Only(network[len(network)-1] == '6' || !a.IsUnspecified())
	}
	ep.SetOwner(s)
	s.ep = ep
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		ep.Close()
		return nil, net.ErrClosed
	}
	l.know(s)
	return wq, nil
}

// keepAlive asks after silent peers, as Go's net does on Linux.
func keepAlive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(15*time.Second), tcpip.KeepaliveIntervalOption(15*time.Second)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, 9)
	ep.SocketOptions().SetKeepAlive(true)
}

// know and forget keep the list of sockets.
func (l *Local) know(s *sock) {
	s.id = l.lastID.Add(1)
	l.socks.Store(s.ep, s)
	if s.Transparent {
		l.byID.Store(s.id, s)
	}
}

func (l *Local) forget(ep tcpip.Endpoint) {
	if s, ok := l.socks.LoadAndDelete(ep); ok {
		l.byID.Delete(s.(*sock).id)
	}
}

func (l *Local) drop(ep tcpip.Endpoint) {
	ep.Close()
	l.forget(ep)
}

// Listen opens a TCP socket that accepts connections at addr; the unspecified
// address stands for all of the router's. network is "tcp", "tcp4" or "tcp6".
// What it accepts has the same owner.
func (l *Local) Listen(network string, addr netip.AddrPort, owner Owner) (net.Listener, error) {
	return l.ListenWith(network, addr, owner, SockOpts{})
}

// ListenWith is Listen with options.
func (l *Local) ListenWith(network string, addr netip.AddrPort, owner Owner, opt SockOpts) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: net.TCPAddrFromAddrPort(addr), Err: err}
	}
	if len(network) < 3 || network[:3] != "tcp" {
		return fail(net.UnknownNetworkError(network))
	}
	sk := &sock{Owner: owner, SockOpts: opt, wildcard: addr.Addr().IsUnspecified()}
	wq, err := l.endpoint(network, addr.Addr(), sk)
	if err != nil {
		return fail(err)
	}
	ep := sk.ep
	// As net does on Linux: connections in TIME_WAIT do not keep the port. With
	// this option gVisor lets listeners overlap, which Linux does not.
	ep.SocketOptions().SetReuseAddress(true)
	s := &listener{local: l, ep: ep, wq: wq, sock: sk, network: network, bound: addr, done: make(chan struct{})}
	if !sk.fits(l, addr.Addr()) {
		l.drop(ep)
		return fail(os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
	}
	if !l.claim(s) {
		l.drop(ep)
		return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	if terr := ep.Bind(bindAddr(addr)); terr != nil {
		s.Close()
		return fail(sysError("bind", terr))
	}
	if terr := ep.Listen(listenBacklog); terr != nil {
		s.Close()
		return fail(sysError("listen", terr))
	}
	return s, nil
}

// claim enters s into the list of listeners, unless it overlaps one of them.
func (l *Local) claim(s *listener) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := range l.listeners {
		if s.overlaps(o) || o.overlaps(s) {
			return false
		}
	}
	l.listeners[s] = struct{}{}
	return true
}

// overlaps says whether s takes connections to o's address.
func (s *listener) overlaps(o *listener) bool {
	x, y := s.bound.Addr().Unmap(), o.bound.Addr().Unmap()
	if s.bound.Port() != o.bound.Port() || s.bound.Port() == 0 {
		return false
	}
	if x == y {
		return true
	}
	return x.IsUnspecified() && (x.Is4() == y.Is4() || x.Is6() && s.network == "tcp")
}

type listener struct {
	local *Local
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	sock  *sock

	network string
	bound   netip.AddrPort

	once sync.Once
	done chan struct{}
}

// Accept implements net.Listener.
func (s *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&entry)
	defer s.wq.EventUnregister(&entry)
	for {
		ep, wq, terr := s.ep.Accept(nil)
		switch terr.(type) {
		case nil:
			keepAlive(ep)
			s.local.know(&sock{Owner: s.sock.Owner, SockOpts: s.sock.SockOpts, ep: ep, connected: true})
			return &tcpConn{TCPConn: gonet.NewTCPConn(wq, ep), local: s.local, ep: ep}, nil
		case *tcpip.ErrWouldBlock:
		default:
			select {
			case <-s.done:
				return nil, s.fail(net.ErrClosed)
			default:
				return nil, s.fail(sysError("accept", terr))
			}
		}
		select {
		case <-s.done:
			return nil, s.fail(net.ErrClosed)
		case <-ready:
		}
	}
}

func (s *listener) fail(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: s.Addr(), Err: err}
}

// Close implements net.Listener; accepted connections live on.
func (s *listener) Close() error {
	err := net.ErrClosed
	s.once.Do(func() {
		close(s.done)
		s.local.drop(s.ep)
		s.local.mu.Lock()
		delete(s.local.listeners, s)
		s.local.mu.Unlock()
		err = nil
	})
	return err
}

// Addr implements net.Listener.
func (s *listener) Addr() net.Addr {
	a, terr := s.ep.GetLocalAddress()
	if terr != nil {
		return nil
	}
	return net.TCPAddrFromAddrPort(addrPort(a))
}

// tcpConn is gonet's connection, plus forgetting its owner, and copying by as much
// as there is.
type tcpConn struct {
	*gonet.TCPConn
	local *Local
	ep    tcpip.Endpoint
	until atomic.Int64 // read deadline, Unix nanoseconds; 0: none
}

// copyBuffer is what WriteTo reads at once, bytes: several super-packets.
const copyBuffer = 256 << 10

// SetDeadline implements net.Conn.
func (c *tcpConn) SetDeadline(t time.Time) error {
	c.setUntil(t)
	return c.TCPConn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *tcpConn) SetReadDeadline(t time.Time) error {
	c.setUntil(t)
	return c.TCPConn.SetReadDeadline(t)
}

func (c *tcpConn) setUntil(t time.Time) {
	if t.IsZero() {
		c.until.Store(0)
	} else {
		c.until.Store(t.UnixNano())
	}
}

// WriteTo implements io.WriterTo, which io.Copy uses. What is thrown away is not
// copied before: the discard service takes a tenth more so (BenchmarkTCP/discard).
func (c *tcpConn) WriteTo(to io.Writer) (total int64, err error) {
	var buf []byte
	for {
		for to == io.Discard {
			if until := c.until.Load(); until != 0 && time.Now().UnixNano() >= until {
				break
			}
			res, terr := c.ep.Read(to, tcpip.ReadOptions{})
			if terr != nil || res.Count == 0 {
				break
			}
			c.ep.ModerateRecvBuf(res.Count)
			total += int64(res.Count)
		}
		if buf == nil {
			buf = make([]byte, copyBuffer)
		}
		n, rerr := c.Read(buf)
		if n > 0 {
			m, werr := to.Write(buf[:n])
			total += int64(m)
			if werr == nil && m < n {
				werr = io.ErrShortWrite
			}
			if werr != nil {
				return total, werr
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

func (c *tcpConn) Close() error {
	err := c.TCPConn.Close()
	c.local.forget(c.ep)
	return err
}

// DialContext connects to raddr; network is that of Listen or ListenPacket. An
// invalid or unspecified laddr is chosen by the routing tables, port 0 by us.
func (l *Local) DialContext(ctx context.Context, network string, laddr, raddr netip.AddrPort, owner Owner) (net.Conn, error) {
	return l.DialWith(ctx, network, laddr, raddr, owner, SockOpts{})
}

// DialWith is DialContext with options.
func (l *Local) DialWith(ctx context.Context, network string, laddr, raddr netip.AddrPort, owner Owner, opt SockOpts) (net.Conn, error) {
	tcpNet := len(network) >= 3 && network[:3] == "tcp"
	fail := func(err error) (net.Conn, error) {
		var a net.Addr = net.UDPAddrFromAddrPort(raddr)
		if tcpNet {
			a = net.TCPAddrFromAddrPort(raddr)
		}
		return nil, &net.OpError{Op: "dial", Net: network, Addr: a, Err: err}
	}
	raddr = netip.AddrPortFrom(raddr.Addr().Unmap(), raddr.Port())
	if !raddr.IsValid() {
		return fail(&net.AddrError{Err: "no address to connect to"})
	}
	sk := &sock{Owner: owner, SockOpts: opt, connected: true}
	wq, err := l.endpoint(network, raddr.Addr(), sk)
	if err != nil {
		return fail(err)
	}
	ep := sk.ep
	if !sk.fits(l, laddr.Addr()) {
		l.drop(ep)
		return fail(os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
	}
	if terr := l.bindSource(ep, laddr, raddr.Addr()); terr != nil {
		l.drop(ep)
		return fail(sysError("bind", terr))
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ctx.Err(); err != nil {
		l.drop(ep)
		return fail(err)
	}
	terr := ep.Connect(fullAddr(raddr))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			l.drop(ep)
			return fail(ctx.Err())
		case <-ready:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		l.drop(ep)
		return fail(sysError("connect", terr))
	}
	if tcpNet {
		keepAlive(ep)
		return &tcpConn{TCPConn: gonet.NewTCPConn(wq, ep), local: l, ep: ep}, nil
	}
	c := l.packetConn(sk, wq)
	if a, terr := ep.GetLocalAddress(); terr == nil {
		c.bound = addrPort(a)
	}
	return &udpConn{PacketConn: c, remote: raddr}, nil
}

// bindSource gives ep the address that the routing tables choose. Where gVisor
// would take it of itself it is left unbound, so that the port is chosen with
// the destination in view and many connections can share one.
func (l *Local) bindSource(ep tcpip.Endpoint, laddr netip.AddrPort, dst netip.Addr) tcpip.Error {
	src := laddr.Addr().Unmap()
	if !src.IsValid() || src.IsUnspecified() {
		if src = l.source(dst); !src.IsValid() {
			return &tcpip.ErrHostUnreachable{}
		}
		if laddr.Port() == 0 {
			r, terr := l.stack.FindRoute(localNIC, tcpip.Address{}, tcpAddr(dst), netProto(dst), false)
			if terr == nil {
				same := netAddr(r.LocalAddress()) == src
				r.Release()
				if same {
					return nil
				}
			}
		}
	}
	return ep.Bind(bindAddr(netip.AddrPortFrom(src, laddr.Port())))
}

// PacketConn is an unconnected UDP socket. On top of net.PacketConn it tells
// which of the router's addresses a datagram was sent to, and answers from that
// one. Sending does not go through gVisor, which can choose the source of IPv4
// datagrams per socket only.
type PacketConn struct {
	local *Local
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	sock  *sock
	bound netip.AddrPort
	once  sync.Once
	done  chan struct{}

	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{} // closed when the read deadline passes
}

var _ net.PacketConn = (*PacketConn)(nil)

// ListenPacket opens a UDP socket at addr; the unspecified address stands for
// all of the router's. network is "udp", "udp4" or "udp6".
func (l *Local) ListenPacket(network string, addr netip.AddrPort, owner Owner) (*PacketConn, error) {
	return l.ListenPacketWith(network, addr, owner, SockOpts{})
}

// ListenPacketWith is ListenPacket with options.
func (l *Local) ListenPacketWith(network string, addr netip.AddrPort, owner Owner, opt SockOpts) (*PacketConn, error) {
	fail := func(err error) (*PacketConn, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: net.UDPAddrFromAddrPort(addr), Err: err}
	}
	if len(network) < 3 || network[:3] != "udp" {
		return fail(net.UnknownNetworkError(network))
	}
	sk := &sock{Owner: owner, SockOpts: opt, wildcard: addr.Addr().IsUnspecified()}
	wq, err := l.endpoint(network, addr.Addr(), sk)
	if err != nil {
		return fail(err)
	}
	ep := sk.ep
	if !sk.fits(l, addr.Addr()) {
		l.drop(ep)
		return fail(os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
	}
	o := ep.SocketOptions()
	o.SetReceiveOriginalDstAddress(opt.Transparent)
	o.SetReceivePacketInfo(true)
	if !addr.Addr().Unmap().Is4() {
		o.SetIPv6ReceivePacketInfo(true)
	}
	if terr := ep.Bind(bindAddr(addr)); terr != nil {
		l.drop(ep)
		return fail(sysError("bind", terr))
	}
	c := l.packetConn(sk, wq)
	if a, terr := ep.GetLocalAddress(); terr == nil {
		c.bound = netip.AddrPortFrom(addr.Addr().Unmap(), a.Port)
	}
	return c, nil
}

func (l *Local) packetConn(s *sock, wq *waiter.Queue) *PacketConn {
	return &PacketConn{local: l, ep: s.ep, wq: wq, sock: s, done: make(chan struct{}), expired: make(chan struct{})}
}

// udpConn is a connected UDP socket: reads and writes fail with what ICMP says
// of the peer. (gonet's would not wake a reader for that.)
type udpConn struct {
	*PacketConn
	remote netip.AddrPort
}

// Read implements net.Conn.
func (c *udpConn) Read(b []byte) (int, error) {
	n, _, _, err := c.ReadFromTo(b)
	return n, err
}

// Write implements net.Conn.
func (c *udpConn) Write(b []byte) (int, error) {
	if terr := c.ep.LastError(); terr != nil {
		return 0, c.fail("write", sysError("sendto", terr))
	}
	return c.WriteFromTo(b, netip.Addr{}, c.remote)
}

// RemoteAddr implements net.Conn.
func (c *udpConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }

// ReadFromTo reads one datagram: where it came from, and which address it was
// sent to (perhaps a broadcast address).
func (c *PacketConn) ReadFromTo(b []byte) (n int, from netip.AddrPort, to netip.Addr, err error) {
	n, from, at, err := c.ReadMsg(b)
	return n, from, at.Addr(), err
}

// ReadMsg is ReadFromTo with the port that the datagram was sent to, which in a
// transparent socket may be another one than its own.
func (c *PacketConn) ReadMsg(b []byte) (n int, from, to netip.AddrPort, err error) {
	c.mu.Lock()
	expired := c.expired
	c.mu.Unlock()
	var entry waiter.Entry
	var ready chan struct{}
	for {
		select {
		case <-expired:
			return 0, from, to, c.fail("read", os.ErrDeadlineExceeded)
		default:
		}
		w := tcpip.SliceWriter(b)
		res, terr := c.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch terr.(type) {
		case nil:
			switch cm := &res.ControlMessages; {
			case cm.HasOriginalDstAddress:
				to = addrPort(cm.OriginalDstAddress)
			case cm.HasIPPacketInfo:
				to = netip.AddrPortFrom(netAddr(cm.PacketInfo.DestinationAddr), c.bound.Port())
			case cm.HasIPv6PacketInfo:
				to = netip.AddrPortFrom(netAddr(cm.IPv6PacketInfo.Addr), c.bound.Port())
			}
			return res.Count, addrPort(res.RemoteAddr), to, nil
		case *tcpip.ErrWouldBlock:
		default:
			select {
			case <-c.done:
				return 0, from, to, c.fail("read", net.ErrClosed)
			default:
				return 0, from, to, c.fail("read", sysError("recvfrom", terr))
			}
		}
		if ready == nil {
			entry, ready = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
			c.wq.EventRegister(&entry)
			defer c.wq.EventUnregister(&entry)
			continue
		}
		select {
		case <-c.done:
			return 0, from, to, c.fail("read", net.ErrClosed)
		case <-expired:
		case <-ready:
		}
	}
}

// WriteFromTo sends one datagram from one of the router's addresses; an invalid
// or foreign from is chosen by the socket's address or the routing tables.
func (c *PacketConn) WriteFromTo(b []byte, from netip.Addr, to netip.AddrPort) (int, error) {
	return c.WriteMsg(b, netip.AddrPortFrom(from, c.bound.Port()), to)
}

// WriteMsg is WriteFromTo for transparent sockets, which may send from any
// address and port.
func (c *PacketConn) WriteMsg(b []byte, src, to netip.AddrPort) (int, error) {
	select {
	case <-c.done:
		return 0, c.fail("write", net.ErrClosed)
	default:
	}
	dst, from := to.Addr().Unmap(), src.Addr()
	port := c.bound.Port()
	switch {
	case c.sock.Transparent && from.IsValid() && !from.IsUnspecified() && !c.sock.connected:
		port = src.Port()
	case c.bound.Addr().IsValid() && !c.bound.Addr().IsUnspecified():
		from = c.bound.Addr()
	case !from.IsValid() || !c.local.mayHave(from):
		from = c.local.source(dst)
	}
	from = from.Unmap()
	if !from.IsValid() || !dst.IsValid() || from.Is4() != dst.Is4() {
		return 0, c.fail("write", os.NewSyscallError("sendto", syscall.ENETUNREACH))
	}
	if !c.sock.fits(c.local, from) || from.IsMulticast() {
		return 0, c.fail("write", os.NewSyscallError("sendto", syscall.EADDRNOTAVAIL))
	}
	hl := header.IPv4MinimumSize
	if dst.Is6() {
		hl = header.IPv6MinimumSize
	}
	n := header.UDPMinimumSize + len(b)
	if hl+n > packet.MaxLen {
		return 0, c.fail("write", os.NewSyscallError("sendto", syscall.EMSGSIZE))
	}
	buf := make([]byte, hl+header.UDPMinimumSize, hl+n)
	if dst.Is4() {
		buf[0], buf[8], buf[9] = 0x45, c.local.ttl(false), packet.ProtoUDP
		binary.BigEndian.PutUint16(buf[2:], uint16(hl+n))
		binary.BigEndian.PutUint16(buf[4:], uint16(rand.Uint32()))
		s, d := from.As4(), dst.As4()
		copy(buf[12:], s[:])
		copy(buf[16:], d[:])
		fixIPv4(buf, hl)
	} else {
		buf[0], buf[6], buf[7] = 0x60, packet.ProtoUDP, c.local.ttl(true)
		binary.BigEndian.PutUint16(buf[4:], uint16(n))
		s, d := from.As16(), dst.As16()
		copy(buf[8:], s[:])
		copy(buf[24:], d[:])
	}
	u := buf[hl:]
	binary.BigEndian.PutUint16(u, port)
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(n))
	sum := header.PseudoHeaderChecksum(udp.ProtocolNumber, tcpAddr(from), tcpAddr(dst), uint16(n))
	buf = append(buf, b...)
	sum = ^checksum.Checksum(buf[hl:], sum)
	if sum == 0 {
		sum = 0xffff // zero says "no checksum"
	}
	binary.BigEndian.PutUint16(buf[hl+6:], sum)
	c.local.send(&Outgoing{Len: len(buf), Owner: c.sock.Owner, HasOwner: true, Mark: c.sock.Mark, foreign: c.sock.Transparent, views: [][]byte{buf}})
	return len(b), nil
}

// ttl is the default TTL, or hop limit.
func (l *Local) ttl(v6 bool) uint8 {
	p := ipv4.ProtocolNumber
	if v6 {
		p = ipv6.ProtocolNumber
	}
	var o tcpip.DefaultTTLOption
	if err := l.stack.NetworkProtocolOption(p, &o); err != nil {
		return 64
	}
	return uint8(o)
}

// ReadFrom implements net.PacketConn.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, _, err := c.ReadFromTo(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo implements net.PacketConn; addr is a *net.UDPAddr.
func (c *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	u, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, c.fail("write", &net.AddrError{Err: "not a UDP address", Addr: fmt.Sprint(addr)})
	}
	return c.WriteFromTo(b, netip.Addr{}, u.AddrPort())
}

// Close implements net.PacketConn.
func (c *PacketConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.done)
		c.local.drop(c.ep)
		err = nil
	})
	return err
}

// LocalAddr implements net.PacketConn.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.bound) }

// SetDeadline implements net.PacketConn.
func (c *PacketConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writes do not block.
func (c *PacketConn) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.PacketConn; it concerns reads that begin later.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	ch := make(chan struct{})
	c.expired = ch
	if t.IsZero() {
		return nil
	}
	if d := time.Until(t); d > 0 {
		c.timer = time.AfterFunc(d, func() { close(ch) })
	} else {
		close(ch)
	}
	return nil
}

func (c *PacketConn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
}

// bindAddr is a for Bind: the unspecified address is none.
func bindAddr(a netip.AddrPort) tcpip.FullAddress {
	if a.Addr().IsUnspecified() {
		return tcpip.FullAddress{Port: a.Port()}
	}
	return fullAddr(a)
}

func fullAddr(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{Addr: tcpAddr(a.Addr()), Port: a.Port()}
}

func addrPort(a tcpip.FullAddress) netip.AddrPort {
	return netip.AddrPortFrom(netAddr(a.Addr), a.Port)
}

// sysError is terr as the system call would have failed.
func sysError(call string, terr tcpip.Error) error {
	var e syscall.Errno
	switch terr.(type) {
	case *tcpip.ErrPortInUse, *tcpip.ErrNoPortAvailable:
		e = syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		e = syscall.EADDRNOTAVAIL
	case *tcpip.ErrConnectionRefused:
		e = syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		e = syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		e = syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		e = syscall.ETIMEDOUT
	case *tcpip.ErrNetworkUnreachable:
		e = syscall.ENETUNREACH
	case *tcpip.ErrHostUnreachable:
		e = syscall.EHOSTUNREACH
	case *tcpip.ErrHostDown:
		e = syscall.EHOSTDOWN
	case *tcpip.ErrNoNet:
		e = syscall.ENONET
	case *tcpip.ErrMessageTooLong:
		e = syscall.EMSGSIZE
	case *tcpip.ErrInvalidEndpointState:
		e = syscall.EINVAL
	default:
		return os.NewSyscallError(call, fmt.Errorf("%s", terr))
	}
	return os.NewSyscallError(call, e)
}
