package netstack

import (
	"net/netip"
	"sort"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"sluice/packet"
)

// Socket is one of the router's own sockets.
type Socket struct {
	Proto    uint8          // packet.ProtoTCP or packet.ProtoUDP
	Local    netip.AddrPort // an invalid address: all of the router's
	Remote   netip.AddrPort // port 0: none
	State    string         // TCP's state ("LISTEN", "ESTABLISHED"); UDP: "BOUND", "CONNECTED"…
	Owner    Owner
	HasOwner bool // false: closed by its owner, and still saying good-bye
}

// SockOpts are a socket's options beside its owner.
type SockOpts struct {
	Transparent bool   // it may have addresses that are not the router's (IP_TRANSPARENT)
	Mark        uint32 // of the packets that it sends (SO_MARK)
}

// sock is what is known of a socket of ours. gVisor carries it, as the owner,
// with each packet of the socket's, and of the connections that it accepts.
type sock struct {
	Owner
	SockOpts
	ep        tcpip.Endpoint
	id        uint32
	wildcard  bool // bound to no address
	connected bool
}

// fits says whether s may have address a.
func (s *sock) fits(l *Local, a netip.Addr) bool {
	return s.Transparent || !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || l.mayHave(a)
}

// someConnection is the ID of connections that nobody has accepted yet.
const someConnection = 1

// SockKey is a packet's ends as a socket sees them.
type SockKey struct {
	Proto         uint8 // packet.ProtoTCP or ProtoUDP
	Local, Remote netip.AddrPort
	Listener      bool // connections do not count
}

// SockInfo is what rules want to know of a socket.
type SockInfo struct {
	ID       uint32 // names it in packet.Packet.Socket
	Wildcard bool   // bound to no address
	SockOpts
	Connected bool
	TimeWait  bool
	Known     bool // its options are its own: not half open, not in TIME_WAIT
}

// FindSocket finds the socket that a packet would reach: a connection, or else
// whoever listens. It takes gVisor's lock for reading and does not allocate.
func (l *Local) FindSocket(k *SockKey) (SockInfo, bool) {
	ep := l.find(k)
	if ep == nil {
		return SockInfo{}, false
	}
	return l.info(ep, k), true
}

func (l *Local) find(k *SockKey) stack.TransportEndpoint {
	trans := tcp.ProtocolNumber
	if k.Proto == packet.ProtoUDP {
		trans = udp.ProtocolNumber
	}
	id := stack.TransportEndpointID{LocalAddress: tcpAddr(k.Local.Addr()), LocalPort: k.Local.Port()}
	if !k.Listener {
		id.RemoteAddress, id.RemotePort = tcpAddr(k.Remote.Addr()), k.Remote.Port()
	}
	return l.stack.FindTransportEndpoint(netProto(k.Local.Addr()), trans, id, localNIC)
}

func (l *Local) info(ep stack.TransportEndpoint, k *SockKey) SockInfo {
	e, _ := ep.(tcpip.Endpoint)
	if s, ok := l.socks.Load(e); ok {
		s := s.(*sock)
		return s.info(k.Proto)
	}
	// A connection that nobody has accepted yet, or that was closed: its options
	// are those of whoever listens there. Where nobody does, TPROXY brought it.
	in := SockInfo{ID: someConnection, Connected: true, TimeWait: timeWait(e, k.Proto), SockOpts: SockOpts{Transparent: true}}
	if l.mayHave(k.Local.Addr()) && !k.Listener {
		at := *k
		at.Listener = true
		if ep := l.find(&at); ep != nil && any(ep) != any(e) {
			in.SockOpts = l.info(ep, &at).SockOpts
		}
	}
	return in
}

func (s *sock) info(proto uint8) SockInfo {
	in := SockInfo{ID: s.id, Wildcard: s.wildcard, SockOpts: s.SockOpts, Connected: s.connected}
	in.TimeWait = s.connected && timeWait(s.ep, proto)
	in.Known = !in.TimeWait
	return in
}

func timeWait(ep tcpip.Endpoint, proto uint8) bool {
	return proto == packet.ProtoTCP && ep != nil && tcp.EndpointState(ep.State()) == tcp.StateTimeWait
}

// SocketByID finds a socket that FindSocket has named.
func (l *Local) SocketByID(id uint32) (SockInfo, bool) {
	switch id {
	case 0:
		return SockInfo{}, false
	case someConnection:
		return SockInfo{ID: id, Connected: true, SockOpts: SockOpts{Transparent: true}}, true
	}
	s, ok := l.byID.Load(id)
	if !ok {
		return SockInfo{}, false
	}
	return s.(*sock).info(packet.ProtoTCP), true
}

// Sockets lists the sockets that packets can reach, by protocol and address.
func (l *Local) Sockets() []Socket {
	var out []Socket
	seen := map[stack.TransportEndpoint]bool{}
	for _, ep := range l.stack.RegisteredEndpoints() {
		if s, ok := l.socket(ep); ok && !seen[ep] {
			seen[ep] = true
			out = append(out, s)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := &out[i], &out[j]
		if a.Proto != b.Proto {
			return a.Proto < b.Proto
		}
		if c := a.Local.Compare(b.Local); c != 0 {
			return c < 0
		}
		return a.Remote.Compare(b.Remote) < 0
	})
	return out
}

// LookupSocket finds the socket that a packet from remote to local would reach:
// a connection, or else whoever listens. Not for the packet path: it locks.
func (l *Local) LookupSocket(proto uint8, local, remote netip.AddrPort) (Socket, bool) {
	trans := tcp.ProtocolNumber
	if proto == packet.ProtoUDP {
		trans = udp.ProtocolNumber
	} else if proto != packet.ProtoTCP {
		return Socket{}, false
	}
	ep := l.stack.FindTransportEndpoint(netProto(local.Addr()), trans, stack.TransportEndpointID{
		LocalAddress: tcpAddr(local.Addr()), LocalPort: local.Port(),
		RemoteAddress: tcpAddr(remote.Addr()), RemotePort: remote.Port(),
	}, localNIC)
	if ep == nil {
		return Socket{}, false
	}
	return l.socket(ep)
}

func (l *Local) socket(ep stack.TransportEndpoint) (Socket, bool) {
	e, ok := ep.(tcpip.Endpoint)
	if !ok {
		return Socket{}, false
	}
	info, ok := e.Info().(*stack.TransportEndpointInfo)
	if !ok {
		return Socket{}, false
	}
	s := Socket{
		Local:  netip.AddrPortFrom(netAddr(info.ID.LocalAddress), info.ID.LocalPort),
		Remote: netip.AddrPortFrom(netAddr(info.ID.RemoteAddress), info.ID.RemotePort),
	}
	switch info.TransProto {
	case tcp.ProtocolNumber:
		s.Proto, s.State = packet.ProtoTCP, tcp.EndpointState(e.State()).String()
	case udp.ProtocolNumber:
		s.Proto, s.State = packet.ProtoUDP, transport.DatagramEndpointState(e.State()).String()
	default:
		return Socket{}, false
	}
	if o, ok := l.socks.Load(e); ok {
		s.Owner, s.HasOwner = o.(*sock).Owner, true
	}
	return s, true
}
