package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/header/parse"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"sluice/packet"
)

// flow is the ends of what the router sends.
type flow struct{ from, to netip.AddrPort }

// flowOf reads the ends of a packet with a network header of off bytes.
func flowOf(b []byte, off int) (f flow) {
	if len(b) < off+4 {
		return f
	}
	sport, dport := binary.BigEndian.Uint16(b[off:]), binary.BigEndian.Uint16(b[off+2:])
	if b[0]>>4 == 4 {
		return flow{netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), sport), netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), dport)}
	}
	return flow{netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])), sport), netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:])), dport)}
}

// tcpQueue is what gVisor's TCP takes segments by, for a socket that is found already.
type tcpQueue interface {
	QueuePacket(stack.TransportEndpoint, stack.TransportEndpointID, *stack.PacketBuffer)
}

// steer decides about a packet whose address is not the router's, or for which
// TPROXY chose a socket; false: gVisor finds the socket by the packet's own ends.
// A connection's packets find it so. What begins one, and datagrams, go to the
// socket that was chosen: it sees the packet's own ends, whatever it is bound to.
func (l *Local) steer(pkt *stack.PacketBuffer, k *SockKey, chosen uint32, own bool, l4 []byte) bool {
	ep := l.find(k)
	var in SockInfo
	if ep != nil {
		in = l.info(ep, k)
	}
	isTCP := k.Proto == packet.ProtoTCP
	if s, ok := l.byID.Load(chosen); ok && !s.(*sock).connected {
		s := s.(*sock)
		if ep != nil && in.Connected {
			if !in.TimeWait || l4[header.TCPFlagsOffset]&0x17 != uint8(header.TCPFlagSyn) {
				return false
			}
			l.bury(ep, k)
		}
		to, ok := s.ep.(stack.TransportEndpoint)
		if !ok || !parsed(pkt, k) {
			return true
		}
		id := stack.TransportEndpointID{
			LocalAddress: tcpAddr(k.Local.Addr()), LocalPort: k.Local.Port(),
			RemoteAddress: tcpAddr(k.Remote.Addr()), RemotePort: k.Remote.Port(),
		}
		if isTCP {
			l.stack.TransportProtocolInstance(tcp.ProtocolNumber).(tcpQueue).QueuePacket(to, id, pkt)
		} else {
			to.HandlePacket(id, pkt)
		}
		return true
	}
	// Linux answers from an IPv4 address that is not its own where a socket is
	// transparent, and not else.
	if !own && isTCP && k.Local.Addr().Is4() && (ep == nil || !in.Transparent) {
		l.stats.ignored.Add(1)
		return true
	}
	return false
}

// bury ends a connection that is nothing but TIME_WAIT, without a word to its peer.
func (l *Local) bury(ep stack.TransportEndpoint, k *SockKey) {
	e, ok := ep.(tcpip.Endpoint)
	if !ok {
		return
	}
	l.burying.Lock()
	defer l.burying.Unlock()
	l.muted.Store(&flow{k.Local, k.Remote})
	e.Abort()
	l.muted.Store(nil)
}

// parsed fills in what gVisor's transport expects of a packet.
func parsed(pkt *stack.PacketBuffer, k *SockKey) bool {
	pkt.NICID, pkt.RXChecksumValidated = localNIC, true
	if netProto(k.Local.Addr()) == ipv4.ProtocolNumber {
		if !parse.IPv4(pkt) {
			return false
		}
	} else if _, _, _, _, ok := parse.IPv6(pkt); !ok {
		return false
	}
	pkt.TransportProtocolNumber = tcpip.TransportProtocolNumber(k.Proto)
	if k.Proto == packet.ProtoTCP {
		return parse.TCP(pkt)
	}
	return parse.UDP(pkt)
}
