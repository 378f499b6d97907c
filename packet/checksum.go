package packet

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

var be = binary.BigEndian

// Sum is the Internet checksum's ones' complement sum of b (RFC 1071), not
// complemented; an odd last byte counts as the high byte of a word.
func Sum(b []byte) uint16 { return bits.ReverseBytes16(fold64(sum64(b))) }

// sum64 is a sum of b that folds to Sum's, its bytes swapped: little-endian
// words give the same but for that.
func sum64(b []byte) uint64 {
	var s, c uint64
	for len(b) >= 32 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s += c // cannot wrap twice: s is at most 2^64-2 after a carry
		b = b[32:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	if len(b) >= 4 {
		s, c = bits.Add64(s, uint64(binary.LittleEndian.Uint32(b)), 0)
		s += c
		b = b[4:]
	}
	var t uint64
	if len(b) >= 2 {
		t = uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		t += uint64(b[0])
	}
	s, c = bits.Add64(s, t, 0)
	return s + c
}

func fold64(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	return fold(uint32(s))
}

// fold brings a 32-bit sum of words to 16 bits with end-around carry.
func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// AddSum is the ones' complement sum of two sums.
func AddSum(a, b uint16) uint16 { return fold(uint32(a) + uint32(b)) }

// Delta is what replacing old by new (equal, even lengths, at an even place)
// adds to a sum: a rewrite's checksum change, worth keeping for the next packet.
func Delta(old, new []byte) uint16 { return AddSum(^Sum(old), Sum(new)) }

// Delta16 is Delta for one word.
func Delta16(old, new uint16) uint16 { return AddSum(^old, new) }

// Delta32 is Delta for two words.
func Delta32(old, new uint32) uint16 {
	return fold(uint32(^uint16(old>>16)) + uint32(^uint16(old)) + new>>16 + new&0xffff)
}

// ApplyDelta gives a checksum field its new value after a change (RFC 1624, equation 3).
func ApplyDelta(field, delta uint16) uint16 { return ^AddSum(^field, delta) }

// PseudoSum is the sum of the pseudo header: src and dst are 4 or 16 bytes
// each, n the transport length in bytes.
func PseudoSum(src, dst []byte, proto uint8, n int) uint16 {
	return fold(uint32(Sum(src)) + uint32(Sum(dst)) + uint32(proto) + uint32(n)>>16 + uint32(n)&0xffff)
}

// pseudo is the pseudo header's sum for a transport part of n bytes.
func (p *Packet) pseudo(n int) uint16 {
	b := p.Bytes()
	s := uint32(p.Proto) + uint32(n)>>16 + uint32(n)&0xffff
	if p.Family == IPv4 {
		return fold(s + uint32(Sum(b[12:20])))
	}
	return fold(s + uint32(Sum(b[8:40])))
}

// sumKind says how a protocol's checksum is made.
type sumKind uint8

const (
	sumNone   sumKind = iota
	sumPlain          // over the transport part alone
	sumPseudo         // with the pseudo header
	sumCRC32c         // SCTP
)

// sumField is where the transport checksum lies, from the transport header, and its kind.
func (p *Packet) sumField() (int, sumKind) {
	switch p.Proto {
	case ProtoTCP:
		return 16, sumPseudo
	case ProtoUDP, ProtoUDPLite, ProtoDCCP:
		return 6, sumPseudo
	case ProtoICMPv6:
		if p.Family == IPv6 {
			return 2, sumPseudo
		}
	case ProtoICMP:
		if p.Family == IPv4 {
			return 2, sumPlain
		}
	case ProtoSCTP:
		return 8, sumCRC32c
	}
	return 0, sumNone
}

// covered is how many bytes of t the checksum covers, false where the header's
// own coverage field is impossible (UDP-Lite RFC 3828, DCCP RFC 4340 9.2).
func (p *Packet) covered(t []byte) (int, bool) {
	switch p.Proto {
	case ProtoUDPLite:
		n := int(be.Uint16(t[4:]))
		if n == 0 {
			return len(t), true
		}
		return n, n >= 8 && n <= len(t)
	case ProtoDCCP:
		if cov := int(t[5] & 15); cov != 0 {
			n := int(t[4])*4 + (cov-1)*4
			return n, int(t[4])*4 >= 12 && n <= len(t)
		}
	}
	return len(t), true
}

// transportSum computes what the checksum field should hold, given that the
// field is part of t; the field's present value does not matter.
func (p *Packet) transportSum(t []byte, at int, kind sumKind) (uint16, bool) {
	n, ok := p.covered(t)
	if !ok {
		return 0, false
	}
	s := AddSum(Sum(t[:n]), ^be.Uint16(t[at:]))
	if kind == sumPseudo {
		s = AddSum(s, p.pseudo(len(t)))
	}
	s = ^s
	if s == 0xffff { // the field took part and left minus zero
		s = 0
	}
	if s == 0 && (p.Proto == ProtoUDP || p.Proto == ProtoUDPLite) {
		s = 0xffff // zero would say "no checksum"
	}
	return s, true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpSum is the CRC32c of an SCTP packet with its checksum field taken as zero.
func sctpSum(t []byte) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, t[:8])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, t[12:])
}

// VerifyL4 checks the transport checksum as netfilter does: over everything
// after the network header. It is true where there is nothing to check (no
// checksum in the protocol, UDP's zero, a fragment, a partial checksum), and
// remembers success in L4ChecksumOK.
func (p *Packet) VerifyL4() bool {
	if p.Flags&L4ChecksumOK != 0 || p.GSO.NeedsCsum {
		return true
	}
	if p.Flags&(HasL4|Fragment) != HasL4 {
		return true
	}
	if p.Family == IPv4 && p.L4 == 20 && (p.Proto == ProtoUDP || p.Proto == ProtoTCP) {
		return p.verifyPlain()
	}
	at, kind := p.sumField()
	t := p.Transport()
	switch kind {
	case sumNone:
	case sumCRC32c:
		if binary.LittleEndian.Uint32(t[8:]) != sctpSum(t) {
			return false
		}
	default:
		field := be.Uint16(t[at:])
		if p.Proto == ProtoUDP && field == 0 {
			return true
		}
		if p.Proto == ProtoUDPLite && field == 0 {
			return false // RFC 3828: a checksum is mandatory
		}
		n, ok := p.covered(t)
		if !ok {
			return false
		}
		s := Sum(t[:n])
		if kind == sumPseudo {
			s = AddSum(s, p.pseudo(len(t)))
		}
		if s != 0xffff {
			return false
		}
	}
	p.Flags |= L4ChecksumOK
	return true
}

// verifyPlain is VerifyL4 for TCP and UDP over IPv4 without options, where the
// addresses lie before the transport header and are summed with it.
func (p *Packet) verifyPlain() bool {
	b := p.Bytes()
	if p.Proto == ProtoUDP && b[26]|b[27] == 0 {
		return true
	}
	length := uint64(bits.ReverseBytes16(uint16(len(b) - 20)))
	s, c := bits.Add64(sum64(b[12:]), uint64(p.Proto)<<8+length, 0)
	if fold64(s+c) != 0xffff {
		return false
	}
	p.Flags |= L4ChecksumOK
	return true
}

// FixHeader recomputes the IPv4 header checksum in full.
func (p *Packet) FixHeader() {
	if p.Family != IPv4 {
		return
	}
	b := p.Bytes()
	n := int(b[0]&15) * 4
	if n > len(b) {
		return
	}
	b[10], b[11] = 0, 0
	be.PutUint16(b[10:], ^Sum(b[:n]))
}

// FixChecksums computes the IPv4 header checksum and the transport checksum in
// full; a partial checksum stays partial. A UDP packet gets one even if it had none.
func (p *Packet) FixChecksums() {
	p.FixHeader()
	p.fixTransport()
}

// Mangled recomputes the checksums after a change to the payload. A UDP packet
// without a checksum stays without.
func (p *Packet) Mangled() {
	p.FixHeader()
	if p.Proto == ProtoUDP && p.Flags&HasL4 != 0 && !p.GSO.NeedsCsum && be.Uint16(p.Transport()[6:]) == 0 {
		return
	}
	p.fixTransport()
}

func (p *Packet) fixTransport() {
	if p.Flags&(HasL4|Fragment) != HasL4 {
		return
	}
	at, kind := p.sumField()
	t := p.Transport()
	switch {
	case kind == sumNone:
		return
	case p.partial():
		if kind == sumPseudo {
			be.PutUint16(t[at:], p.pseudo(len(t)))
		}
		return
	case kind == sumCRC32c:
		binary.LittleEndian.PutUint32(t[8:], sctpSum(t))
	default:
		s, ok := p.transportSum(t, at, kind)
		if !ok {
			return
		}
		be.PutUint16(t[at:], s)
	}
	p.Flags |= L4ChecksumOK
}

// partial: the transport header's own checksum is the one left to a device.
func (p *Packet) partial() bool {
	return p.GSO.NeedsCsum && p.GSO.CsumStart == p.L4
}

// CompleteChecksum turns a partial checksum into a full one: for a device
// without offload, a capture, or the local stack. A super-packet ceases to be
// one and is then a single large packet.
func (p *Packet) CompleteChecksum() {
	if p.GSO.NeedsCsum {
		b := p.Bytes()
		at := int(p.GSO.CsumStart) + int(p.GSO.CsumOffset)
		if at+2 <= len(b) {
			if p.Proto == ProtoSCTP && p.partial() && p.Flags&HasL4 != 0 {
				t := p.Transport()
				binary.LittleEndian.PutUint32(t[8:], sctpSum(t))
			} else {
				s := ^Sum(b[p.GSO.CsumStart:])
				if s == 0 {
					s = 0xffff
				}
				be.PutUint16(b[at:], s)
			}
		}
		p.Flags |= L4ChecksumOK
	}
	p.GSO = GSO{}
}
