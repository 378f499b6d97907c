package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"sluice/packet"
)

// What Linux sends where a route, and no interface's address, makes a packet local.

// mayLeave says whether a packet of ours goes out: over IPv4 its source is the
// router's own, or its socket is transparent, or it is a reset for who came to
// such a socket. (steer lets nobody else come.)
func (l *Local) mayLeave(o *Outgoing, b []byte, proto uint8, off int) bool {
	if m := l.muted.Load(); m != nil && proto == packet.ProtoTCP && *m == flowOf(b, off) {
		return false
	}
	if b[0]>>4 != 4 || o.foreign || l.mayHave(netip.AddrFrom4([4]byte(b[12:]))) {
		return true
	}
	return !o.HasOwner && proto == packet.ProtoTCP && len(b) > off+header.TCPFlagsOffset && b[off+header.TCPFlagsOffset]&uint8(header.TCPFlagRst) != 0
}

// echo answers a ping to an IPv4 address that a route makes the router's own;
// gVisor answers for its addresses alone. false: it is no ping.
func (l *Local) echo(b, l4 []byte) bool {
	if len(l4) < header.ICMPv4MinimumSize || l4[0] != 8 {
		return false
	}
	r := make([]byte, header.IPv4MinimumSize+len(l4))
	r[0], r[1], r[8], r[9] = 0x45, b[1], l.ttl(false), packet.ProtoICMP
	binary.BigEndian.PutUint16(r[2:], uint16(len(r)))
	copy(r[12:16], b[16:20])
	copy(r[16:20], b[12:16])
	t := r[header.IPv4MinimumSize:]
	copy(t, l4)
	t[0], t[2], t[3] = 0, 0, 0
	binary.BigEndian.PutUint16(t[2:], ^checksum.Checksum(t, 0))
	l.send(&Outgoing{Len: len(r), views: [][]byte{r}})
	return true
}

// ownSource6 has an ICMPv6 error come from an interface's address.
func (l *Local) ownSource6(b, t []byte, dst netip.Addr) {
	if l.IsOwn(netip.AddrFrom16([16]byte(b[8:]))) {
		return
	}
	src := l.source(dst)
	if !src.Is6() {
		return
	}
	a := src.As16()
	copy(b[8:24], a[:])
	t[2], t[3] = 0, 0
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, tcpAddr(src), tcpAddr(dst), uint16(len(t)))
	binary.BigEndian.PutUint16(t[2:], ^checksum.Checksum(t, sum))
}
