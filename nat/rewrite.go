package nat

import (
	"encoding/binary"
	"math/bits"

	"sluice/conntrack"
	"sluice/packet"
)

// Rewrite translates p at a hook as its connection's bindings say: an ICMP
// error with the packet it quotes, any other packet in its header. False means
// drop; p.Reason says why.
func (n *NAT) Rewrite(w *conntrack.Worker, p *packet.Packet, hook uint8) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	return n.rewrite(p, e, ManipOf(hook))
}

func (n *NAT) rewrite(p *packet.Packet, e *conntrack.Entry, m Manip) bool {
	dir := dirOf(p)
	if isICMPError(p) {
		return n.rewriteError(p, e, m, dir)
	}
	if e.Status()&statusBit(m, dir) == 0 {
		return true
	}
	// p is to look like the inverse of what the other direction looks like.
	want := e.Tuple(dir.Other())
	proto := want.Proto
	if (proto == packet.ProtoTCP || proto == packet.ProtoUDP) && p.Is(packet.HasPorts) && !p.Is(packet.Fragment) {
		rewritePorts(p, want, m)
		return true
	}
	if m == Src {
		p.SetSrc(want.Dst)
	} else {
		p.SetDst(want.Src)
	}
	if !p.Is(packet.HasL4) {
		return true
	}
	switch {
	case hasPorts(proto):
		if m == Src {
			p.SetSrcPort(want.DstPort)
		} else {
			p.SetDstPort(want.SrcPort)
		}
	case isICMP(proto):
		setICMPID(p, want.SrcPort)
	case proto == packet.ProtoGRE:
		if !rewriteGRE(p.Transport(), want.SrcPort, m) {
			p.Reason = ReasonBadHeader
			return false
		}
	}
	return true
}

// Translate is Rewrite for a TCP or UDP packet of e, in direction d, that has
// its ports, is no fragment and belongs to the connection itself.
func Translate(p *packet.Packet, e *conntrack.Entry, m Manip, d conntrack.Dir) {
	if e.Status()&statusBit(m, d) != 0 {
		rewritePorts(p, e.Tuple(d.Other()), m)
	}
}

// Forward does to a TCP or UDP packet over IPv4 without options all that a
// router does: the TTL, which is above 1, and where e translates direction d,
// addresses and ports, with a single change of each checksum. The checksums are
// whole; the sums are taken of little-endian words, which is as good.
func Forward(p *packet.Packet, e *conntrack.Entry, d conntrack.Dir) {
	le := binary.LittleEndian
	b := p.Bytes()
	h := (*[28]byte)(b)
	h[8]--
	sum := uint64(^le.Uint16(h[10:])) + 0xfffe // what the TTL adds
	if e.Status()&(conntrack.SrcNAT|conntrack.DstNAT) == 0 {
		le.PutUint16(h[10:], ^fold(sum))
		return
	}
	want := e.Tuple(d.Other())
	src, dst := le.Uint32(want.Dst[:]), le.Uint32(want.Src[:])
	ports := uint32(bits.ReverseBytes16(want.DstPort)) | uint32(bits.ReverseBytes16(want.SrcPort))<<16
	change := uint64(^le.Uint32(h[12:])) + uint64(^le.Uint32(h[16:])) + uint64(src) + uint64(dst)
	le.PutUint16(h[10:], ^fold(sum+change))
	change += uint64(^le.Uint32(h[20:])) + uint64(ports)
	le.PutUint32(h[12:], src)
	le.PutUint32(h[16:], dst)
	le.PutUint32(h[20:], ports)
	check := b[26:28]
	if want.Proto == packet.ProtoTCP {
		check = b[36:38]
	}
	old := le.Uint16(check)
	if old == 0 && want.Proto == packet.ProtoUDP {
		return // the sender made none
	}
	sum16 := ^fold(uint64(^old) + change)
	if sum16 == 0 && want.Proto == packet.ProtoUDP {
		sum16 = 0xffff
	}
	le.PutUint16(check, sum16)
}

// fold brings a sum of words to 16 bits with end-around carry.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// rewritePorts does for TCP and UDP what the packet's setters would do one by
// one: one sum of all changes goes to the transport checksum. A partial checksum
// covers the addresses alone, and not inverted.
func rewritePorts(p *packet.Packet, want *conntrack.Tuple, m Manip) {
	be := binary.BigEndian
	b, l4 := p.Bytes(), p.Transport()
	addr, port, at := &want.Dst, want.DstPort, 0
	if m == Dst {
		addr, port, at = &want.Src, want.SrcPort, 1
	}
	var d uint16
	if p.Family == packet.IPv4 {
		field := b[12+4*at : 16+4*at]
		v := be.Uint32(addr[:])
		d = packet.Delta32(be.Uint32(field), v)
		be.PutUint32(field, v)
		be.PutUint16(b[10:], packet.ApplyDelta(be.Uint16(b[10:]), d))
	} else {
		field := b[8+16*at : 24+16*at]
		d = packet.Delta(field, addr[:])
		copy(field, addr[:])
	}
	old := be.Uint16(l4[2*at:])
	be.PutUint16(l4[2*at:], port)
	check := l4[6:8]
	if want.Proto == packet.ProtoTCP {
		check = l4[16:18]
	}
	sum := be.Uint16(check)
	if p.GSO.NeedsCsum && p.GSO.CsumStart == p.L4 {
		be.PutUint16(check, packet.AddSum(sum, d))
		return
	}
	if sum == 0 && want.Proto == packet.ProtoUDP {
		return // the sender made none
	}
	sum = packet.ApplyDelta(sum, packet.AddSum(d, packet.Delta16(old, port)))
	if sum == 0 && want.Proto == packet.ProtoUDP {
		sum = 0xffff
	}
	be.PutUint16(check, sum)
}

// setICMPID changes the identifier of a query or its answer; other messages have none.
func setICMPID(p *packet.Packet, id uint16) {
	b := p.Transport()
	if len(b) < icmpHeaderLen {
		return
	}
	if p.Proto == packet.ProtoICMP {
		if !isICMPQuery(b[0]) {
			return
		}
	} else if b[0] != icmpv6EchoReq && b[0] != icmpv6EchoReply {
		return
	}
	p.SetL4Word(4, id)
}
