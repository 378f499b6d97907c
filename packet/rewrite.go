package packet

import (
	"encoding/binary"
	"math/bits"
)

// SetSrc rewrites the source address and, incrementally, the checksums that cover it.
func (p *Packet) SetSrc(a [16]byte) {
	if p.Family == IPv4 {
		p.setAddr4(12, be.Uint32(a[:]))
	} else {
		p.setAddr6(8, &a)
	}
}

// SetDst rewrites the destination address, as SetSrc.
func (p *Packet) SetDst(a [16]byte) {
	if p.Family == IPv4 {
		p.setAddr4(16, be.Uint32(a[:]))
	} else {
		p.setAddr6(24, &a)
	}
}

func (p *Packet) setAddr4(at int, new uint32) {
	b := p.Bytes()
	old := be.Uint32(b[at:])
	if old == new {
		return
	}
	be.PutUint32(b[at:], new)
	d := Delta32(old, new)
	be.PutUint16(b[10:], ApplyDelta(be.Uint16(b[10:]), d))
	p.pseudoChanged(b, d)
}

func (p *Packet) setAddr6(at int, new *[16]byte) {
	b := p.Bytes()
	a := b[at : at+16]
	d := bits.ReverseBytes16(AddSum(^sum16(a), sum16(new[:])))
	copy(a, new[:])
	p.pseudoChanged(b, d)
}

// sum16 is the sum of 16 bytes, its bytes swapped.
func sum16(a []byte) uint16 {
	s, c := bits.Add64(binary.LittleEndian.Uint64(a), binary.LittleEndian.Uint64(a[8:]), 0)
	s, c = bits.Add64(s, 0, c)
	return fold64(s + c)
}

// pseudoChanged brings the transport checksum up to date after a change of the
// pseudo header. A partial checksum holds the pseudo header's plain sum.
func (p *Packet) pseudoChanged(b []byte, d uint16) {
	if p.Flags&HasL4 == 0 {
		return
	}
	at := 16
	if p.Proto != ProtoTCP {
		var kind sumKind
		if at, kind = p.sumField(); kind != sumPseudo {
			return
		}
	}
	f := b[int(p.L4)+at:]
	if p.partial() {
		be.PutUint16(f, AddSum(be.Uint16(f), d))
		return
	}
	p.applyDelta(f, d)
}

// applyDelta changes a full transport checksum.
func (p *Packet) applyDelta(f []byte, d uint16) {
	old := be.Uint16(f)
	udp := p.Proto == ProtoUDP || p.Proto == ProtoUDPLite
	if old == 0 && p.Proto == ProtoUDP {
		return // the sender made none
	}
	new := ApplyDelta(old, d)
	if new == 0 && udp {
		new = 0xffff
	}
	be.PutUint16(f, new)
}

// SetSrcPort rewrites the source port, if the packet has one, and the transport checksum.
func (p *Packet) SetSrcPort(port uint16) { p.setPort(0, port) }

// SetDstPort rewrites the destination port, as SetSrcPort.
func (p *Packet) SetDstPort(port uint16) { p.setPort(2, port) }

func (p *Packet) setPort(at int, port uint16) {
	if p.Flags&HasPorts == 0 {
		return
	}
	if p.Proto != ProtoTCP && p.Proto != ProtoUDP {
		p.SetL4Word(at, port)
		return
	}
	t := p.Transport()
	old := be.Uint16(t[at:])
	be.PutUint16(t[at:], port)
	switch {
	case p.partial(): // which does not cover its header yet
	case p.Proto == ProtoTCP:
		f := t[16:18]
		be.PutUint16(f, ApplyDelta(be.Uint16(f), Delta16(old, port)))
	default:
		p.applyDelta(t[6:8], Delta16(old, port))
	}
}

// SetL4Word writes one 16-bit word of the transport header or payload at an
// even offset from the transport header, keeping the checksum right. It does
// nothing beyond the packet's end. UDP-Lite and DCCP may not cover their
// payload; the header's first eight bytes always are.
func (p *Packet) SetL4Word(at int, v uint16) {
	t := p.Transport()
	if at < 0 || at+2 > len(t) {
		return
	}
	old := be.Uint16(t[at:])
	be.PutUint16(t[at:], v)
	if old == v || p.Flags&HasL4 == 0 || p.partial() {
		return // what is partial does not cover its header yet
	}
	sum, kind := p.sumField()
	switch kind {
	case sumNone:
	case sumCRC32c:
		if p.Flags&Fragment == 0 {
			p.fixTransport()
		}
	default:
		if n, ok := p.covered(t); ok && at < n {
			p.applyDelta(t[sum:], Delta16(old, v))
		}
	}
}

// SetTTL sets the time to live (with the IPv4 header checksum) or the hop limit.
func (p *Packet) SetTTL(ttl uint8) {
	b := p.Bytes()
	if p.Family != IPv4 {
		b[7] = ttl
		return
	}
	old := be.Uint16(b[8:])
	new := uint16(ttl)<<8 | old&0xff // reading back what was just written in part would stall
	be.PutUint16(b[8:], new)
	be.PutUint16(b[10:], ApplyDelta(be.Uint16(b[10:]), Delta16(old, new)))
}

// SetTOS sets the type of service or the traffic class, ECN bits included.
func (p *Packet) SetTOS(tos uint8) {
	b := p.Bytes()
	old := be.Uint16(b)
	if p.Family != IPv4 {
		be.PutUint16(b, old&^0x0ff0|uint16(tos)<<4)
		return
	}
	new := old&0xff00 | uint16(tos)
	be.PutUint16(b, new)
	be.PutUint16(b[10:], ApplyDelta(be.Uint16(b[10:]), Delta16(old, new)))
}

// SetID sets the IPv4 identification.
func (p *Packet) SetID(id uint16) {
	if p.Family != IPv4 {
		return
	}
	b := p.Bytes()
	old := be.Uint16(b[4:])
	be.PutUint16(b[4:], id)
	p.FragID = uint32(id)
	be.PutUint16(b[10:], ApplyDelta(be.Uint16(b[10:]), Delta16(old, id)))
}

// Resize makes room for new bytes where old ones were, at offset at of the
// network packet; what follows moves. It mends the lengths in the IP and UDP
// headers and the IPv4 checksum; the transport checksum is the caller's (see
// Mangled), who fills in the new bytes first. False, and nothing changed, if
// at lies before the transport header or the result would be too long.
func (p *Packet) Resize(at, old, new int) bool {
	n := p.Len()
	d := new - old
	if at < int(p.L4) || old < 0 || new < 0 || at+old > n || p.End+d > len(p.Buf) || n+d > MaxLen {
		return false
	}
	b := p.Buf[p.Off : p.End+max(d, 0)]
	copy(b[at+new:], b[at+old:n])
	p.End += d
	p.setLen()
	if p.Proto == ProtoUDP && p.Flags&HasL4 != 0 {
		t := p.Transport()
		if len(t) >= 8 {
			be.PutUint16(t[4:], uint16(int(be.Uint16(t[4:]))+d))
		}
	}
	p.Flags &^= L4ChecksumOK
	p.Pieces = nil
	p.ParseL4()
	return true
}

// setLen writes the packet's length into the network header.
func (p *Packet) setLen() {
	b := p.Bytes()
	if p.Family == IPv4 {
		old := be.Uint16(b[2:])
		be.PutUint16(b[2:], uint16(len(b)))
		be.PutUint16(b[10:], ApplyDelta(be.Uint16(b[10:]), Delta16(old, uint16(len(b)))))
	} else {
		be.PutUint16(b[4:], uint16(len(b)-40))
	}
}

// Copy makes p a copy of from: bytes, view and state. The connection is not
// shared: p.Ct and p.CtInfo are left at none, for whoever owns entries to set.
func (p *Packet) Copy(from *Packet) {
	buf := p.Buf
	*p = *from
	p.Buf = buf
	p.Off = Headroom
	p.End = p.Off + copy(p.Buf[p.Off:], from.Bytes())
	p.Ct, p.CtInfo = 0, CtNone
}
