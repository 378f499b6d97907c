package conntrack

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"sluice/packet"
)

var (
	be = binary.BigEndian
	le = binary.LittleEndian
)

// ICMP query types and what answers them (RFC 792, 950); 0 is not a query but
// echo reply, so the lists hold type+1.
var icmpInverse = [19]uint8{8: 0 + 1, 0: 8 + 1, 13: 14 + 1, 14: 13 + 1, 15: 16 + 1, 16: 15 + 1, 17: 18 + 1, 18: 17 + 1}

// icmpv6Inverse, counted from type 128: echo (RFC 4443) and node information (RFC 4620).
var icmpv6Inverse = [13]uint8{0: 129 + 1, 1: 128 + 1, 11: 140 + 1, 12: 139 + 1}

func inverseICMP(proto, typ uint8) (uint8, bool) {
	if proto == packet.ProtoICMP {
		if int(typ) < len(icmpInverse) && icmpInverse[typ] != 0 {
			return icmpInverse[typ] - 1, true
		}
		return 0, false
	}
	if i := int(typ) - 128; i >= 0 && i < len(icmpv6Inverse) && icmpv6Inverse[i] != 0 {
		return icmpv6Inverse[i] - 1, true
	}
	return 0, false
}

// Invert gives the tuple of the other direction; false where there is none (an
// ICMP type that nothing answers).
func (u *Tuple) Invert() (Tuple, bool) {
	r := Tuple{Src: u.Dst, Dst: u.Src, SrcPort: u.DstPort, DstPort: u.SrcPort, Zone: u.Zone, Proto: u.Proto, Family: u.Family}
	if isICMP(u.Family, u.Proto) {
		typ, ok := inverseICMP(u.Proto, uint8(u.DstPort>>8))
		if !ok {
			return Tuple{}, false
		}
		r.SrcPort, r.DstPort = u.SrcPort, uint16(typ)<<8|u.DstPort&0xff
	}
	return r, true
}

func isICMP(family, proto uint8) bool {
	return proto == packet.ProtoICMP && family == packet.IPv4 || proto == packet.ProtoICMPv6 && family == packet.IPv6
}

// SrcAddr and DstAddr are the addresses as net/netip has them.
func (u *Tuple) SrcAddr() netip.Addr { return addr(u.Family, &u.Src) }

// DstAddr is the destination as net/netip has it.
func (u *Tuple) DstAddr() netip.Addr { return addr(u.Family, &u.Dst) }

func addr(family uint8, a *[16]byte) netip.Addr {
	if family == packet.IPv4 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(*a)
}

// AddrBytes is the inverse of SrcAddr: IPv4 in the first four bytes.
func AddrBytes(a netip.Addr) (b [16]byte) {
	if a.Is4() {
		x := a.As4()
		copy(b[:], x[:])
		return b
	}
	return a.As16()
}

// ports reads the part of a tuple that comes from the transport header l4.
func ports(family, proto uint8, l4 []byte) (src, dst uint16, ok bool) {
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP:
		if len(l4) < 4 {
			return 0, 0, false
		}
		return be.Uint16(l4), be.Uint16(l4[2:]), true
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if !isICMP(family, proto) {
			return 0, 0, true
		}
		if len(l4) < 8 {
			return 0, 0, false
		}
		if _, ok := inverseICMP(proto, l4[0]); !ok {
			return 0, be.Uint16(l4), true
		}
		return be.Uint16(l4[4:]), be.Uint16(l4), true
	case packet.ProtoGRE:
		return greCalls(l4)
	}
	return 0, 0, true
}

// littleEndian: a tuple's words can be put together in registers.
var littleEndian = func() bool { x := uint16(1); return *(*byte)(unsafe.Pointer(&x)) == 1 }()

// words is the tuple as the hash and the comparison read it. Stores and loads
// of the same width forward to each other; bytes stored and words loaded stall.
func (u *Tuple) words() *[5]uint64 { return (*[5]uint64)(unsafe.Pointer(u)) }

// equal is ==, without the call.
func (u *Tuple) equal(v *Tuple) bool {
	a, b := u.words(), v.words()
	return (a[0]^b[0])|(a[1]^b[1])|(a[2]^b[2])|(a[3]^b[3])|(a[4]^b[4]) == 0
}

// tuple reads p's tuple in zone.
func (t *Table) tuple(u *Tuple, p *packet.Packet, zone uint16) bool {
	b := p.Bytes()
	if int(p.L4) > len(b) {
		return false
	}
	src, dst, ok := ports(p.Family, p.Proto, b[p.L4:])
	if !ok || len(b) < 20 || p.Family != packet.IPv4 && len(b) < 40 {
		return false
	}
	if !littleEndian {
		*u = Tuple{SrcPort: src, DstPort: dst, Zone: zone, Proto: p.Proto, Family: p.Family}
		if p.Family == packet.IPv4 {
			copy(u.Src[:4], b[12:16])
			copy(u.Dst[:4], b[16:20])
		} else {
			copy(u.Src[:], b[8:24])
			copy(u.Dst[:], b[24:40])
		}
		if p.Proto == packet.ProtoGRE && dst != 0 {
			t.gre.fill(u)
		}
		return true
	}
	w := u.words()
	if p.Family == packet.IPv4 {
		w[0], w[1] = uint64(le.Uint32(b[12:])), 0
		w[2], w[3] = uint64(le.Uint32(b[16:])), 0
	} else {
		w[0], w[1] = le.Uint64(b[8:]), le.Uint64(b[16:])
		w[2], w[3] = le.Uint64(b[24:]), le.Uint64(b[32:])
	}
	w[4] = uint64(src) | uint64(dst)<<16 | uint64(zone)<<32 | uint64(p.Proto)<<48 | uint64(p.Family)<<56
	if p.Proto == packet.ProtoGRE && dst != 0 {
		t.gre.fill(u)
	}
	return true
}

// InnerTuple reads the tuple of a packet quoted in an ICMP error (from its
// network header on) and gives the offset of its transport header. A quoted
// later fragment, or one too short for its ports, has none.
func (t *Table) InnerTuple(b []byte, family uint8, zone uint16) (u Tuple, l4 int, ok bool) {
	u.Zone, u.Family = zone, family
	if family == packet.IPv4 {
		if len(b) < 20 || b[0]>>4 != 4 {
			return u, 0, false
		}
		l4 = int(b[0]&15) * 4
		if l4 < 20 || len(b) < l4 || be.Uint16(b[6:])&0x1fff != 0 {
			return u, 0, false
		}
		copy(u.Src[:4], b[12:16])
		copy(u.Dst[:4], b[16:20])
		u.Proto = b[9]
	} else {
		if len(b) < 40 || b[0]>>4 != 6 {
			return u, 0, false
		}
		copy(u.Src[:], b[8:24])
		copy(u.Dst[:], b[24:40])
		var frag bool
		if u.Proto, l4, frag = skipExt(b, b[6], 40); l4 < 0 || frag {
			return u, 0, false
		}
	}
	u.SrcPort, u.DstPort, ok = ports(family, u.Proto, b[l4:])
	if u.Proto == packet.ProtoGRE && u.DstPort != 0 {
		t.gre.fill(&u)
	}
	return u, l4, ok
}

// skipExt walks IPv6 extension headers from off; off < 0: truncated or none.
func skipExt(b []byte, proto uint8, off int) (uint8, int, bool) {
	for n := 0; n < 16; n++ {
		size := 0
		switch proto {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(b) < off+8 {
				return proto, -1, false
			}
			size = (int(b[off+1]) + 1) * 8
		case 44:
			if len(b) < off+8 {
				return proto, -1, false
			}
			if be.Uint16(b[off+2:])&^7 != 0 {
				return b[off], off, true
			}
			size = 8
		case packet.ProtoAH:
			if len(b) < off+8 {
				return proto, -1, false
			}
			size = (int(b[off+1]) + 2) * 4
		case packet.ProtoNone:
			return proto, -1, false
		default:
			return proto, off, false
		}
		if len(b) < off+size {
			return proto, -1, false
		}
		proto, off = b[off], off+size
	}
	return proto, -1, false
}
