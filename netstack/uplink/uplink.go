// Package uplink is an interface whose far side is the host's ordinary sockets:
// a packet that the router sends out of it ends here, and what it carries goes
// on through a socket of the process; what such a socket receives comes in as
// packets. It takes no privilege.
//
// TCP is terminated by a small stack of its own rather than by gVisor's: a
// worker that writes a segment to the link sends its payload to the socket in
// the same breath, straight from the packet's buffer, and what it reads from a
// socket it copies into packets of up to 64 KB, without a goroutine, a
// channel or a queue between. The path to the other end is a device of this
// machine or a router's link, so the stack has what TCP cannot do without
// (windows with scaling, retransmission with RFC 6298's timer, fast retransmit,
// slow start, zero-window probes, keepalive) and leaves out SACK and timestamps.
//
// Nothing is acknowledged before the host has taken it or there is room to keep
// it, and a connection is accepted inside only after the host's connect has
// worked; so refusals, half-close, resets and backpressure are the far end's.
package uplink

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sluice/netstack"
	"sluice/packet"
)

// Config describes an uplink.
type Config struct {
	Name   string
	Index  int // the router's number for it
	MTU    int // bytes; 0: 65520
	Queues int // at least 1; one per worker

	// Loopback4 and Loopback6 are addresses that stand for the host's
	// 127.0.0.1 and ::1; invalid: the host's loopback is closed.
	Loopback4, Loopback6 netip.Addr
	// Source4 and Source6 are what the host's sockets are bound to; invalid: the host's choice.
	Source4, Source6 netip.Addr
	// MaxFlows is how many connections there may be at once; 0: 65536.
	MaxFlows int

	// Router gives the router's own address on the way to an address inside:
	// the source of ICMP errors, and of published connections whose peer's
	// address cannot arrive inside. nil, or false: there is none.
	Router func(family uint8, to [16]byte) ([16]byte, bool)
	// IsLocal says whether an address is the router's own; nil: none is.
	IsLocal func(family uint8, a [16]byte) bool
	// Check may look at the first bytes that a TCP client sends, before the
	// host's socket sees any; nil: nothing is looked at.
	Check Checker

	Log *slog.Logger // nil: nothing is logged
}

// DefaultMTU is an uplink's MTU: nothing on the far side is a packet, so what
// counts is that few are needed.
const DefaultMTU = 65520

// Why an uplink lost a packet.
var (
	ReasonAddress  = packet.NewReason("uplink.address", "the uplink takes no packets to that address: loopback, multicast, broadcast, link-local or unspecified")
	ReasonProtocol = packet.NewReason("uplink.protocol", "the uplink carries TCP, UDP and ICMP echo; protocol unreachable was sent")
	ReasonInvalid  = packet.NewReason("uplink.invalid", "a packet that no connection of the uplink can use")
	ReasonChecksum = packet.NewReason("uplink.bad_checksum", "a packet to the uplink whose transport checksum is wrong")
	ReasonFull     = packet.NewReason("uplink.full", "the uplink has as many connections as it may have")
	ReasonSocket   = packet.NewReason("uplink.no_socket", "the host gave the uplink no socket")
	ReasonUnseen   = packet.NewReason("uplink.unseen", "a datagram to where clients have to say a server's name, which is looked at in TCP alone; prohibited was sent")
	ReasonHost     = packet.NewReason("uplink.host_refused", "the host's socket did not take the datagram")
)

// key names a flow by its two ends: the one that packets have inside the
// router, and the one that lies beyond the uplink. ICMP echo: the identifier is inPort.
type key struct {
	in, out         [16]byte // as packet.Packet.Src
	inPort, outPort uint16
	proto, family   uint8
}

func (k *key) inside() netip.AddrPort {
	return netip.AddrPortFrom(packet.Addr(k.family, k.in), k.inPort)
}

func (k *key) outside() netip.AddrPort {
	return netip.AddrPortFrom(packet.Addr(k.family, k.out), k.outPort)
}

// conn is a flow: TCP, UDP or ICMP echo. All methods are called with the flow locked.
type conn interface {
	base() *flow
	// segment takes a packet of the flow from inside. false: p.Reason says why it is lost.
	segment(q *queue, p *packet.Packet) bool
	// event is what epoll says of the flow's socket.
	event(q *queue, ev uint32)
	// next fills p with the next packet towards inside; false: there is none now.
	next(q *queue, p *packet.Packet) bool
	// timer runs when the flow's deadline has passed.
	timer(q *queue, now int64)
	// sweep runs every 75 s.
	sweep(q *queue, now int64)
}

// flow is what all kinds of flows have.
type flow struct {
	mu sync.Mutex // guards the flow; a worker holds at most one

	link  *Link
	key   key
	fd    int // -1: none
	dead  bool
	queue int // whose epoll watches fd

	ready    bool  // in some queue's list of flows that have something to say
	deadline int64 // when timer is to run; 0: never
	timerAt  int64 // the earliest entry for the flow in some queue's timers; 0: none

	peer netip.AddrPort // of a published flow: who connected; else invalid
	ipID uint16
}

func (f *flow) base() *flow { return f }

const shards = 64

type shard struct {
	mu    sync.RWMutex
	flows map[key]conn
	_     [24]byte
}

// Link is an uplink.
type Link struct {
	cfg     Config
	log     *slog.Logger
	iface   atomic.Pointer[packet.Iface]
	queues  []*queue
	shards  [shards]shard
	seed    maphash.Seed
	count   atomic.Int64
	local   atomic.Int64 // flows whose outside address is one of the router's own
	started time.Time
	noPing  atomic.Bool // that ping sockets are not allowed was logged
	noFiles atomic.Bool // that descriptors ran out was logged

	mu      sync.Mutex
	publish map[Publish]conn
	closed  bool
}

// Open makes an uplink.
func Open(cfg Config) (*Link, error) {
	cfg.Queues = max(cfg.Queues, 1)
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 65536
	}
	l := &Link{cfg: cfg, log: cfg.Log, seed: maphash.MakeSeed(), started: time.Now(), publish: map[Publish]conn{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	for i := range l.shards {
		l.shards[i].flows = map[key]conn{}
	}
	l.iface.Store(packet.NewIface(cfg.Index, cfg.Name, cfg.MTU))
	for i := range cfg.Queues {
		q, err := newQueue(l, i)
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("queue %d: %w", i, err)
		}
		l.queues = append(l.queues, q)
	}
	return l, nil
}

// Iface is the interface; see netstack.Link.
func (l *Link) Iface() *packet.Iface { return l.iface.Load() }

// Queues is the number of queues.
func (l *Link) Queues() int { return len(l.queues) }

// Queue is the i-th queue.
func (l *Link) Queue(i int) netstack.Queue { return l.queues[i] }

// SetMTU changes the MTU, for connections that come.
func (l *Link) SetMTU(mtu int) error {
	i := l.iface.Load()
	l.iface.Store(packet.NewIface(i.Index, i.Name, mtu))
	return nil
}

// Close ends all flows and listeners: host sockets are reset or closed.
func (l *Link) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	for _, c := range l.publish {
		shut(c)
	}
	l.mu.Unlock()
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.RLock()
		var all []conn
		for _, c := range s.flows {
			all = append(all, c)
		}
		s.mu.RUnlock()
		for _, c := range all {
			f := c.base()
			f.mu.Lock()
			f.end()
			f.mu.Unlock()
		}
	}
	for _, q := range l.queues {
		q.close()
	}
	return nil
}

// now is the link's clock, monotonic nanoseconds.
func (l *Link) now() int64 { return int64(time.Since(l.started)) }

// Flows counts the connections that there are.
func (l *Link) Flows() int { return int(l.count.Load()) }

// Peer is who really connected to a published port, where a packet from out to
// in arrived on the uplink; false: there is no such connection, or nobody
// published it.
func (l *Link) Peer(proto uint8, in, out netip.AddrPort) (netip.AddrPort, bool) {
	family := packet.IPv6
	if in.Addr().Unmap().Is4() {
		family = packet.IPv4
	}
	c := l.find(&key{
		in: packet.AddrBytes(in.Addr().Unmap()), out: packet.AddrBytes(out.Addr().Unmap()),
		inPort: in.Port(), outPort: out.Port(), proto: proto, family: family,
	})
	if c == nil {
		return netip.AddrPort{}, false
	}
	return c.base().peer, c.base().peer.IsValid()
}

func (l *Link) shard(k *key) *shard {
	return &l.shards[maphash.Comparable(l.seed, *k)%shards]
}

func (l *Link) find(k *key) conn {
	s := l.shard(k)
	s.mu.RLock()
	c := s.flows[*k]
	s.mu.RUnlock()
	return c
}

// enter adds a flow; false: there are as many as there may be, or one of that name.
func (l *Link) enter(c conn) bool {
	f := c.base()
	if l.count.Add(1) > int64(l.cfg.MaxFlows) {
		l.count.Add(-1)
		return false
	}
	s := l.shard(&f.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows[f.key] != nil {
		l.count.Add(-1)
		return false
	}
	s.flows[f.key] = c
	if f.peer.IsValid() {
		l.local.Add(1)
	}
	return true
}

// end takes a flow out and closes its socket. The flow is locked.
func (f *flow) end() {
	if f.dead {
		return
	}
	f.dead, f.deadline = true, 0
	s := f.link.shard(&f.key)
	s.mu.Lock()
	if c := s.flows[f.key]; c != nil && c.base() == f {
		delete(s.flows, f.key)
		f.link.count.Add(-1)
		if f.peer.IsValid() {
			f.link.local.Add(-1)
		}
	}
	s.mu.Unlock()
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// Takes says whether a packet to one of the router's own addresses belongs to a
// flow of the uplink: one whose peer appears as the router. Such a packet is to
// be written to the link instead of delivered.
func (l *Link) Takes(p *packet.Packet) bool {
	if l.local.Load() == 0 || p.Flags&packet.HasPorts == 0 {
		return false
	}
	k := keyOf(p)
	return l.find(&k) != nil
}

// keyOf is the key of a packet from inside.
func keyOf(p *packet.Packet) key {
	return key{in: p.Src(), out: p.Dst(), inPort: p.SrcPort(), outPort: p.DstPort(), proto: p.Proto, family: p.Family}
}

// refused says why the uplink carries nothing to an address; 0: it does.
func refused(family uint8, a *[16]byte) bool {
	if family == packet.IPv4 {
		// 0.0.0.0 would be the host's loopback. 240/4 and broadcast go nowhere.
		return a[0] == 0 || a[0] == 127 || a[0] >= 224
	}
	hi, lo := binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(a[8:])
	switch {
	case a[0] == 0xff, a[0] == 0xfe && a[1]&0xc0 == 0x80: // multicast; link-local lacks its link
		return true
	case hi == 0 && (lo <= 1 || lo>>32 == 0xffff): // ::, ::1, and IPv4 in disguise, as 127.0.0.1 would be
		return true
	}
	return false
}

// target is where on the host a flow to k.out goes; false: nowhere.
func (l *Link) target(k *key) (netip.AddrPort, bool) {
	a := packet.Addr(k.family, k.out)
	switch {
	case l.cfg.Loopback4.IsValid() && a == l.cfg.Loopback4:
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case l.cfg.Loopback6.IsValid() && a == l.cfg.Loopback6:
		a = netip.IPv6Loopback()
	case refused(k.family, &k.out):
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, k.outPort), true
}

// socket makes a host socket towards to, not connected yet.
func (l *Link) socket(family uint8, typ, proto int) (int, error) {
	domain := unix.AF_INET
	src := l.cfg.Source4
	if family == packet.IPv6 {
		domain, src = unix.AF_INET6, l.cfg.Source6
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		if (err == unix.EMFILE || err == unix.ENFILE) && !l.noFiles.Swap(true) {
			l.log.Warn("the uplink has no descriptors left; raise RLIMIT_NOFILE (ulimit -n)", "interface", l.cfg.Name)
		}
		return -1, err
	}
	if domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && src.IsValid() {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0)))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// unreachable is the ICMP type and code that an error of the host's connect or
// send stands for; ok is false where the network would say nothing.
func unreachable(family uint8, err error) (typ, code uint8, ok bool) {
	v4 := family == packet.IPv4
	typ = packet.ICMPv6DestUnreach
	if v4 {
		typ = packet.ICMPDestUnreach
	}
	pick := func(four, six uint8) (uint8, uint8, bool) {
		if v4 {
			return typ, four, true
		}
		return typ, six, true
	}
	switch err {
	case unix.ENETUNREACH, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT, unix.EINVAL:
		return pick(0, 0)
	case unix.EHOSTUNREACH, unix.EHOSTDOWN:
		return pick(1, 3)
	case unix.EACCES, unix.EPERM:
		return pick(13, 1)
	case unix.ECONNREFUSED:
		return pick(3, 4)
	case unix.ENOPROTOOPT:
		return pick(2, 4)
	}
	return 0, 0, false
}
