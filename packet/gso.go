package packet

// SegmentCount is how many packets p leaves as on a device without offload.
func (p *Packet) SegmentCount() int {
	n, hdr := p.Len(), p.gsoHeader()
	if hdr == 0 || p.GSO.Size == 0 || n <= hdr {
		return 1
	}
	return (n - hdr + int(p.GSO.Size) - 1) / int(p.GSO.Size)
}

// SegmentLen is the length of p's largest segment as an IP packet (p's own length if it is no super-packet).
func (p *Packet) SegmentLen() int {
	n, hdr := p.Len(), p.gsoHeader()
	if hdr == 0 || p.GSO.Size == 0 {
		return n
	}
	return min(n, hdr+int(p.GSO.Size))
}

// gsoHeader is the length of the headers each segment repeats; 0: p is not a
// super-packet of that kind.
func (p *Packet) gsoHeader() int {
	switch p.GSO.Type &^ GSOECN {
	case GSOTCPv4, GSOTCPv6:
		if n := p.TCPHeaderLen(); n != 0 {
			return int(p.L4) + n
		}
	case GSOUDPL4:
		if p.Flags&HasL4 != 0 {
			return int(p.L4) + 8
		}
	}
	return 0
}

// Segments calls emit for each packet that Linux's software segmentation makes
// of p, in order, with complete checksums; a packet that is no super-packet is
// emitted once, its checksum completed. emit gets p itself each time, its view
// moved over the payload in place, so it must be done with the bytes when it
// returns; afterwards p is empty.
func Segments(p *Packet, emit func(seg *Packet)) {
	if p.GSO.Type&^GSOECN == GSOUDP && p.GSO.Size != 0 {
		p.ufo(emit)
		return
	}
	hdr, size := p.gsoHeader(), int(p.GSO.Size)
	if hdr == 0 || size == 0 || p.Len() <= hdr+size || hdr > maxHeader {
		p.completeSegment(emit)
		return
	}
	var head [maxHeader]byte
	copy(head[:], p.Buf[p.Off:p.Off+hdr])
	whole := *p
	data, end := p.Off+hdr, p.End
	tcp := p.Proto == ProtoTCP
	id, seq := p.ID(), p.TCPSeq()
	for at := data; at < end; at += size {
		*p = whole
		p.GSO = GSO{}
		p.Off, p.End = at-hdr, min(at+size, end)
		b := p.Bytes()
		copy(b, head[:hdr])
		t := b[p.L4:]
		if tcp {
			be.PutUint32(t[4:], seq)
			seq += uint32(size)
			if p.End < end {
				t[13] &^= TCPFin | TCPPsh
			}
			if at > data {
				t[13] &^= TCPCwr
			}
		} else {
			be.PutUint16(t[4:], uint16(len(t)))
		}
		if p.Family == IPv4 {
			be.PutUint16(b[2:], uint16(len(b)))
			be.PutUint16(b[4:], id)
			p.FragID = uint32(id)
			id++
		} else {
			be.PutUint16(b[4:], uint16(len(b)-40))
		}
		if !tcp && !whole.GSO.NeedsCsum && head[whole.L4+6]|head[whole.L4+7] == 0 {
			p.FixHeader() // a UDP sender without checksums stays without
		} else {
			p.FixChecksums()
		}
		emit(p)
	}
	p.Off, p.End, p.GSO = Headroom, Headroom, GSO{}
}

// maxHeader bounds network and transport header of a super-packet.
const maxHeader = 512

func (p *Packet) completeSegment(emit func(*Packet)) {
	p.CompleteChecksum()
	emit(p)
	p.Off, p.End = Headroom, Headroom
}

// ufo sends a UDP datagram as fragments of GSO.Size bytes of payload.
func (p *Packet) ufo(emit func(*Packet)) {
	size := int(p.GSO.Size) &^ 7
	p.CompleteChecksum()
	mtu := int(p.L4) + size
	if p.Family == IPv6 {
		mtu += 8
	}
	if p.Len() <= mtu || !FragmentTo(p, mtu, emit) {
		p.completeSegment(emit)
	}
}
