package nat

import (
	"encoding/binary"
	"hash/crc32"

	"sluice/conntrack"
	"sluice/packet"
)

// ICMP and ICMPv6 message types that are looked at here.
const (
	icmpRedirect    = 5
	icmpv6Redirect  = 137
	icmpv6EchoReq   = 128
	icmpv6EchoReply = 129
	icmpHeaderLen   = 8
)

// isICMPError reports whether p is an error about another connection, as
// conntrack classified it.
func isICMPError(p *packet.Packet) bool {
	if p.CtInfo != packet.CtRelated && p.CtInfo != packet.CtRelatedReply {
		return false
	}
	if p.Family == packet.IPv4 {
		return p.Proto == packet.ProtoICMP
	}
	return p.Proto == packet.ProtoICMPv6
}

// rewriteError translates an ICMP error about e: the packet it quotes is one
// that went the other way, so there the other end is changed; then the error's
// own address as for any packet of the connection. The kernel's order of
// checksums is kept: inner ones incrementally where the quote holds them, the
// error's own one anew.
func (n *NAT) rewriteError(p *packet.Packet, e *conntrack.Entry, m Manip, dir conntrack.Dir) bool {
	l4 := p.Transport()
	if !p.Is(packet.HasL4) || len(l4) < icmpHeaderLen || !p.VerifyL4() {
		p.Reason = ReasonBadError
		return false
	}
	status := e.Status()
	redirect := uint8(icmpRedirect)
	if p.Family == packet.IPv6 {
		redirect = icmpv6Redirect
	}
	if l4[0] == redirect && (status&conntrack.NATDoneMask != conntrack.NATDoneMask || status&conntrack.NATMask != 0) {
		p.Reason = ReasonRedirect
		return false
	}
	if status&statusBit(m, dir) == 0 {
		return true
	}
	// The quoted packet, as it is to look, has the addresses that the other
	// direction's packets have before translation.
	want := e.Tuple(dir.Other())
	if !rewriteQuoted(l4[icmpHeaderLen:], p.Family, want, m^1) {
		p.Reason = ReasonBadError
		return false
	}
	if m == Src {
		p.SetSrc(want.Dst)
	} else {
		p.SetDst(want.Src)
	}
	if !p.GSO.NeedsCsum {
		l4[2], l4[3] = 0, 0
		s := packet.Sum(l4)
		if p.Family == packet.IPv6 {
			b := p.Bytes()
			s = packet.AddSum(s, packet.PseudoSum(b[8:24], b[24:40], packet.ProtoICMPv6, len(l4)))
		}
		binary.BigEndian.PutUint16(l4[2:], ^s)
	}
	return true
}

// rewriteQuoted translates one end of the packet in b, which may be cut off
// anywhere behind the first eight bytes of its transport header.
func rewriteQuoted(b []byte, family uint8, want *conntrack.Tuple, m Manip) bool {
	var addr, repl []byte
	var l4 int
	if family == packet.IPv4 {
		if len(b) < 20 {
			return false
		}
		l4 = int(b[0]&15) * 4
		if l4 < 20 || l4 > len(b) {
			return false
		}
		addr, repl = b[12:16], want.Src[:4]
		if m == Dst {
			addr, repl = b[16:20], want.Dst[:4]
		}
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			l4 = -1
		}
	} else {
		if len(b) < 40 {
			return false
		}
		l4 = skipExtensions(b)
		addr, repl = b[8:24], want.Src[:]
		if m == Dst {
			addr, repl = b[24:40], want.Dst[:]
		}
	}
	if l4 >= 0 && !rewriteTransport(b[l4:], addr, repl, want, m) {
		return false
	}
	if family == packet.IPv4 {
		adjust(b[10:12], addr, repl)
	}
	copy(addr, repl)
	return true
}

// adjust updates the checksum in check for bytes that change from old to repl.
func adjust(check, old, repl []byte) {
	d := packet.Delta(old, repl)
	binary.BigEndian.PutUint16(check, packet.ApplyDelta(binary.BigEndian.Uint16(check), d))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpChecksum computes the CRC32c of an SCTP packet into its header (RFC 9260, 6.8).
func sctpChecksum(b []byte) {
	b[8], b[9], b[10], b[11] = 0, 0, 0, 0
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
}

// rewriteTransport changes the port of a quoted transport header and adjusts
// its checksum, where it is within the quote, for that and for an address
// that goes from old to repl.
func rewriteTransport(b, old, repl []byte, want *conntrack.Tuple, m Manip) bool {
	if !hasPorts(want.Proto) && !isICMP(want.Proto) && want.Proto != packet.ProtoGRE {
		return true
	}
	if len(b) < 8 {
		return false
	}
	var v [2]byte
	port, at := want.SrcPort, 0
	if m == Dst {
		port, at = want.DstPort, 2
	}
	binary.BigEndian.PutUint16(v[:], port)
	field := b[at : at+2]
	var check []byte
	switch want.Proto {
	case packet.ProtoTCP:
		if len(b) >= 20 {
			check = b[16:18]
		}
	case packet.ProtoUDP, packet.ProtoUDPLite:
		check = b[6:8]
		if want.Proto == packet.ProtoUDP && check[0]|check[1] == 0 {
			check = nil
		}
	case packet.ProtoSCTP:
		copy(field, v[:])
		if len(b) >= 12 {
			sctpChecksum(b)
		}
		return true
	case packet.ProtoICMP:
		if isICMPQuery(b[0]) {
			binary.BigEndian.PutUint16(v[:], want.SrcPort)
			adjust(b[2:4], b[4:6], v[:])
			copy(b[4:6], v[:])
		}
		return true
	case packet.ProtoICMPv6:
		adjust(b[2:4], old, repl)
		if b[0] == icmpv6EchoReq || b[0] == icmpv6EchoReply {
			binary.BigEndian.PutUint16(v[:], want.SrcPort)
			adjust(b[2:4], b[4:6], v[:])
			copy(b[4:6], v[:])
		}
		return true
	case packet.ProtoGRE:
		return rewriteGRE(b, want.DstPort, m)
	}
	if check != nil {
		adjust(check, old, repl)
		adjust(check, field, v[:])
		if want.Proto != packet.ProtoTCP && check[0]|check[1] == 0 {
			check[0], check[1] = 0xff, 0xff
		}
	}
	copy(field, v[:])
	return true
}

// isICMPQuery says whether an ICMP message has an identifier.
func isICMPQuery(typ uint8) bool {
	switch typ {
	case 0, 8, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}

// rewriteGRE sets the call id of an enhanced GRE packet (RFC 2637), which names
// the receiver's end of a tunnel and nothing of the sender's. Plain GRE has
// nothing to change; an unknown version is refused.
func rewriteGRE(b []byte, key uint16, m Manip) bool {
	if len(b) < 8 {
		return false
	}
	if m != Dst {
		return true
	}
	switch b[1] & 7 {
	case 0:
		return true
	case 1:
		binary.BigEndian.PutUint16(b[6:], key)
		return true
	}
	return false
}

// skipExtensions is the offset of the transport header of an IPv6 packet; -1
// where there is none, also in a fragment other than the first.
func skipExtensions(b []byte) int {
	next, at := b[6], 40
	for {
		var n int
		if at+2 > len(b) {
			if isExtension(next) {
				return -1
			}
			return min(at, len(b))
		}
		switch next {
		case 0, 43, 60:
			n = int(b[at+1])*8 + 8
		case 51:
			n = int(b[at+1])*4 + 8
		case 44:
			if at+8 > len(b) || binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return -1
			}
			n = 8
		case packet.ProtoNone:
			return -1
		default:
			return at
		}
		next = b[at]
		at += n
		if at > len(b) {
			return -1
		}
	}
}

func isExtension(next uint8) bool {
	switch next {
	case 0, 43, 44, 51, 59, 60:
		return true
	}
	return false
}
