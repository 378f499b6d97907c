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
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.owners[e]; o != nil {
		s.Owner, s.HasOwner = *o, true
	}
	return s, true
}
