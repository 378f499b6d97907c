package netstack

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"sluice/packet"
)

// Local is the stack that owns the router's own addresses: gVisor's TCP, UDP
// and ICMP, and nothing more of gVisor. Its hooks, conntrack, NAT and
// forwarding stay off; what reaches it has passed our INPUT, what it sends goes
// to our OUTPUT. The choices:
//
//   - One NIC holds every address. Which interface a packet leaves by is the
//     routing tables' business, so a NIC per interface would only repeat them,
//     and gVisor's strong host model would refuse what Linux allows (a packet
//     for one interface's address coming in by another).
//   - The stack does not loop packets to its own addresses back itself: they
//     leave by OUTPUT and come back by INPUT, as through lo.
//   - The NIC's MTU is 65535, so gVisor never fragments: the router does that
//     after POSTROUTING, as Linux does, and fragments keep their owner. That
//     TCP stays within the route's MTU is ensured where packets cross the
//     border: the MSS option of each SYN is lowered to what PathMTU says, on the
//     way in (what we may send) and on the way out (what we ask for). An MTU
//     that shrinks later is found by path MTU discovery: DF is set on TCP, and
//     gVisor obeys "fragmentation needed" and "packet too big".
//   - TCP sends super-packets (up to 64 KB, checksum partial), which the router
//     treats like those of a TUN device with offload; it takes them likewise.
//   - Checksums are verified by the worker, if conntrack has not done so
//     already, and gVisor is told that they are good.
//   - There is no neighbour discovery, DAD, router solicitation, IGMP or MLD:
//     a TUN device has no link layer. Such packets coming in are ignored.
//   - A socket's owner is on every packet that it sends: SYN-ACK, RST and
//     retransmissions too. Linux forgets the owner once the socket is closed,
//     so that late packets match no uid; here they still do.
type Local struct {
	opt   LocalOptions
	stack *stack.Stack
	link  *localLink
	rings []*ring[arrival]
	done  chan struct{}
	wg    sync.WaitGroup

	own atomic.Pointer[map[netip.Addr]bool] // every own address; false: a broadcast address

	// answered is the TCP segment that each worker's injector is giving to gVisor,
	// as far as a reset that answers it needs to know.
	answering sync.Mutex
	answered  [][]byte

	socks  sync.Map // tcpip.Endpoint: *sock
	byID   sync.Map // uint32: *sock, the transparent ones
	lastID atomic.Uint32

	burying sync.Mutex
	muted   atomic.Pointer[flow] // what gVisor sends of this one is thrown away

	mu     sync.Mutex // guards what follows; no packet takes it
	addrs  map[netip.Addr]netip.Prefix
	closed bool

	listeners map[*listener]struct{}

	stats localCounters
}

// LocalOptions is what a Local is made of. The functions may be called from any
// goroutine, and not while the caller holds a lock that Deliver's caller needs.
type LocalOptions struct {
	Workers  int // packet workers; each has a ring of its own
	RingSize int // bytes that each such ring holds; 0: 16 MiB
	Output   LocalOutput

	// Source is the address that the routing tables choose for packets to
	// dst; nil or false: the first address of the family.
	Source func(dst netip.Addr) (netip.Addr, bool)
	// PathMTU is the MTU (bytes) of the route to dst; 0: not known, 1500 then.
	PathMTU func(dst netip.Addr) int
	// IsLocal says whether the routing tables take dst for the router's own
	// (a route of type local in table local); nil: its addresses are all.
	IsLocal func(dst netip.Addr) bool
	// AllowICMP is asked before an ICMP error (IPv4: types 3 and 12, IPv6: 1
	// and 4) goes to dst: the router's rate limits. nil: 1000 a second and 50
	// at once, as net.ipv4.icmp_msgs_per_sec has it.
	AllowICMP func(family, typ, code uint8, dst netip.Addr) bool
}

// Owner is whose a socket is, as the owner match sees it.
type Owner struct{ UID, GID uint32 }

// KUID and KGID make Owner gVisor's tcpip.PacketOwner.
func (o *Owner) KUID() uint32 { return o.UID }

// KGID is the group.
func (o *Owner) KGID() uint32 { return o.GID }

// LocalStats counts packets.
type LocalStats struct {
	Delivered   uint64 // taken by Deliver
	QueueFull   uint64 // refused by Deliver: the worker's ring was full
	BadChecksum uint64 // refused by Deliver
	Ignored     uint64 // not for a socket: neighbour discovery, echo to a broadcast address…
	Sent        uint64 // taken by the output
	OutputFull  uint64 // lost: the output had no room
	ICMPLimited uint64 // ICMP errors not sent because of AllowICMP
}

type localCounters struct {
	badChecksum, ignored, sent, outputFull, icmpLimited atomic.Uint64
	delivered                                           []paddedCounter // by worker
}

type paddedCounter struct {
	atomic.Uint64
	_ [56]byte
}

// Why Deliver refused a packet.
var (
	ReasonLocalFull     = packet.NewReason("local.queue_full", "the queue to the local sockets is full")
	ReasonLocalChecksum = packet.NewReason("local.bad_checksum", "a local packet's transport checksum is wrong")
	ReasonLocalFragment = packet.NewReason("local.fragment", "a fragment came to the local sockets unassembled")
)

const localNIC tcpip.NICID = 1

var loopback = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.1/8"),
	netip.MustParsePrefix("::1/128"),
}

// NewLocal makes the stack; it has the loopback addresses only.
func NewLocal(opt LocalOptions) (*Local, error) {
	if opt.Workers <= 0 {
		opt.Workers = 1
	}
	l := &Local{
		opt:   opt,
		done:  make(chan struct{}),
		addrs: map[netip.Addr]netip.Prefix{},

		listeners: map[*listener]struct{}{},
	}
	l.stats.delivered = make([]paddedCounter, opt.Workers)
	l.answered = make([][]byte, opt.Workers)
	l.link = &localLink{local: l}
	l.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocolWithOptions(ipv4.Options{AllowExternalLoopbackTraffic: true}),
			ipv6.NewProtocolWithOptions(ipv6.Options{AllowExternalLoopbackTraffic: true}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := l.tune(); err != nil {
		return nil, err
	}
	if err := l.stack.CreateNIC(localNIC, l.link); err != nil {
		return nil, fmt.Errorf("local stack: %s", err)
	}
	// Which packets are local, and which addresses a socket may have, is decided
	// by routes and by us, not by gVisor's list of addresses.
	if err := l.stack.SetPromiscuousMode(localNIC, true); err != nil {
		return nil, fmt.Errorf("local stack: %s", err)
	}
	if err := l.stack.SetSpoofing(localNIC, true); err != nil {
		return nil, fmt.Errorf("local stack: %s", err)
	}
	l.lastID.Store(someConnection)
	l.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: localNIC},
		{Destination: header.IPv6EmptySubnet, NIC: localNIC},
	})
	if err := l.SetAddresses(nil); err != nil {
		return nil, err
	}
	for i := range opt.Workers {
		wake := make(chan struct{}, 1)
		r := newRing[arrival](opt.RingSize, func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		})
		l.rings = append(l.rings, r)
		l.wg.Add(1)
		go l.inject(i, r, wake)
	}
	return l, nil
}

// tune sets what differs from gVisor's defaults. RACK is off: BenchmarkTCP's
// plain segments go a tenth to a third faster without its bookkeeping, and the
// packets lost between us and a TUN device are few. CUBIC is not used: when HyStart
// ends slow start it has no window of its own yet, and can count the congestion window
// down to nothing, which stops the connection for ever.
func (l *Local) tune() error {
	sack, moderate, cc := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true), tcpip.CongestionControlOption("reno")
	recovery := tcpip.TCPRecovery(0)
	wait := tcpip.TCPTimeWaitTimeoutOption(60 * time.Second)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &cc, &recovery, &wait, &rcv, &snd} {
		if err := l.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("local stack: %T: %s", o, err)
		}
	}
	// net.core.rmem_default and wmem_default; gVisor's own are 4 MiB at most.
	for _, o := range []any{
		tcpip.ReceiveBufferSizeOption{Min: 4096, Default: 212992, Max: 4 << 20},
		tcpip.SendBufferSizeOption{Min: 4096, Default: 212992, Max: 4 << 20},
	} {
		if err := l.stack.SetOption(o); err != nil {
			return fmt.Errorf("local stack: %T: %s", o, err)
		}
	}
	if l.opt.AllowICMP != nil {
		l.stack.SetICMPLimit(rate.Inf)
	}
	return l.SetPortRange(32768, 60999)
}

// SetPortRange sets the ports that sockets without one get (net.ipv4.ip_local_port_range).
func (l *Local) SetPortRange(first, last uint16) error {
	if err := l.stack.SetPortRange(first, last); err != nil {
		return fmt.Errorf("port range %d-%d: %s", first, last, err)
	}
	return nil
}

// SetTTL sets the TTL and hop limit of packets that say nothing else
// (net.ipv4.ip_default_ttl, net.ipv6.conf.all.hop_limit); 1 to 255.
func (l *Local) SetTTL(v4, v6 uint8) error {
	for p, v := range map[tcpip.NetworkProtocolNumber]uint8{ipv4.ProtocolNumber: v4, ipv6.ProtocolNumber: v6} {
		o := tcpip.DefaultTTLOption(v)
		if err := l.stack.SetNetworkProtocolOption(p, &o); err != nil {
			return fmt.Errorf("default TTL: %s", err)
		}
	}
	return nil
}

// SetAddresses makes addrs, and the loopback addresses, the stack's own. Each
// is an address with its network's length, from which IPv4's broadcast address
// follows. Connections and listeners of addresses that stay are untouched;
// those of an address that goes can send no more.
func (l *Local) SetAddresses(addrs []netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := map[netip.Addr]netip.Prefix{}
	for _, p := range append(append([]netip.Prefix{}, loopback...), addrs...) {
		a := p.Addr().Unmap().WithZone("")
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%s is no address that a router can have", p)
		}
		if _, ok := want[a]; !ok {
			want[a] = netip.PrefixFrom(a, p.Bits())
		}
	}
	for a, p := range l.addrs {
		if want[a] != p {
			if err := l.stack.RemoveAddress(localNIC, tcpAddr(a)); err != nil {
				return fmt.Errorf("address %s: %s", a, err)
			}
			delete(l.addrs, a)
		}
	}
	own := map[netip.Addr]bool{}
	for a, p := range want {
		own[a] = true
		if _, ok := l.addrs[a]; ok {
			continue
		}
		var props stack.AddressProperties
		if a.IsLoopback() {
			props.PEB = stack.NeverPrimaryEndpoint // record route would tell it to others
		}
		err := l.stack.AddProtocolAddress(localNIC, tcpip.ProtocolAddress{
			Protocol:          netProto(a),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpAddr(a), PrefixLen: p.Bits()},
		}, props)
		if err != nil {
			return fmt.Errorf("address %s: %s", p, err)
		}
		l.addrs[a] = p
	}
	l.own.Store(&own)
	return nil
}

// IsOwn says whether a is one of the stack's addresses.
func (l *Local) IsOwn(a netip.Addr) bool { return (*l.own.Load())[a.Unmap().WithZone("")] }

// mayHave says whether sockets that are not transparent may have address a.
func (l *Local) mayHave(a netip.Addr) bool {
	return l.IsOwn(a) || l.opt.IsLocal != nil && l.opt.IsLocal(a.Unmap().WithZone(""))
}

// Source is the address of the router's that packets to dst come from; false: none.
func (l *Local) Source(dst netip.Addr) (netip.Addr, bool) {
	a := l.source(dst)
	return a, a.IsValid()
}

// source chooses the address that packets to dst come from; invalid: none.
func (l *Local) source(dst netip.Addr) netip.Addr {
	dst = dst.Unmap()
	if dst.IsLoopback() {
		for _, p := range loopback {
			if p.Addr().Is4() == dst.Is4() {
				return p.Addr()
			}
		}
	}
	if l.IsOwn(dst) {
		return dst
	}
	if l.opt.Source != nil {
		if a, ok := l.opt.Source(dst); ok && l.IsOwn(a) {
			return a.Unmap().WithZone("")
		}
	}
	if r, err := l.stack.FindRoute(localNIC, tcpip.Address{}, tcpAddr(dst), netProto(dst), false); err == nil {
		defer r.Release()
		return netAddr(r.LocalAddress())
	}
	return netip.Addr{}
}

// pathMTU is the MTU of the route to dst, in bytes.
func (l *Local) pathMTU(dst netip.Addr) int {
	if l.opt.PathMTU != nil {
		if m := l.opt.PathMTU(dst); m > 0 {
			return m
		}
	}
	return 1500
}

// Stats reads the counters.
func (l *Local) Stats() LocalStats {
	s := LocalStats{
		BadChecksum: l.stats.badChecksum.Load(),
		Ignored:     l.stats.ignored.Load(),
		Sent:        l.stats.sent.Load(),
		OutputFull:  l.stats.outputFull.Load(),
		ICMPLimited: l.stats.icmpLimited.Load(),
	}
	for i, r := range l.rings {
		s.QueueFull += r.drops.Load()
		s.Delivered += l.stats.delivered[i].Load()
	}
	return s
}

// Idle reports that the stack has seen all that was delivered to it. What
// answers at once (ICMP, resets, errors about closed ports) has answered then;
// TCP connections may still be at work.
func (l *Local) Idle() bool {
	for _, r := range l.rings {
		if !r.empty() {
			return false
		}
	}
	return true
}

// Close resets all connections, closes all sockets and ends the stack's
// goroutines. Deliver may still be called; nobody takes what it queues.
func (l *Local) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.socks.Range(func(ep, _ any) bool {
		ep.(tcpip.Endpoint).Abort()
		return true
	})
	close(l.done)
	l.wg.Wait()
	l.stack.Destroy()
	return nil
}

func netProto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Unmap().Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// tcpAddr is gVisor's form of a; the zero Addr stays the zero Address.
func tcpAddr(a netip.Addr) tcpip.Address {
	if a = a.Unmap(); a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	} else if a.Is6() {
		return tcpip.AddrFrom16(a.As16())
	}
	return tcpip.Address{}
}

func netAddr(a tcpip.Address) netip.Addr {
	b, _ := netip.AddrFromSlice(a.AsSlice())
	return b.Unmap()
}
