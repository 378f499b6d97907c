package packet

import "math/rand/v2"

func rand32() uint32 { return rand.Uint32() }

// FragmentTo calls emit for each fragment that Linux makes of p for a link of
// mtu bytes, in order. A packet that was reassembled leaves in pieces no larger
// than it came in (FragMax). An IPv4 packet's fragments keep its identification,
// and DF only if p was reassembled from fragments that had it; later ones have
// the options that do not ask to be copied overwritten with no-ops. IPv6 gets a
// random identification. emit gets p itself each time, its view moved in
// place, so it must be done with the bytes when it returns; afterwards p is
// empty. It is false, with nothing emitted, where p cannot be fragmented: an MTU
// without room for eight bytes, or an IPv6 packet that is a fragment already.
// Whether p may be (DF, IPv6 in transit) is the caller's decision.
func FragmentTo(p *Packet, mtu int, emit func(*Packet)) bool {
	if m := int(p.FragMax); m != 0 && m < mtu {
		mtu = m
	}
	if p.Family == IPv4 {
		return fragment4(p, mtu, emit)
	}
	return fragment6(p, max(mtu, 1280), emit)
}

func fragment4(p *Packet, mtu int, emit func(*Packet)) bool {
	b := p.Bytes()
	hlen := int(b[0]&15) * 4
	step := (mtu - hlen) &^ 7
	if step < 8 {
		return false
	}
	p.CompleteChecksum()
	var head [60]byte
	copy(head[:], b[:hlen])
	word := be.Uint16(b[6:]) & 0x3fff // a DF that is to stay comes back below
	if p.Flags&(Reassembled|DontFragment) == Reassembled|DontFragment {
		word |= 0x4000
	}
	whole := *p
	data, end := p.Off+hlen, p.End
	room := mtu - hlen
	for at := data; at < end; {
		n := end - at
		w := word
		if n > room {
			n = step
			w |= 0x2000
		}
		w += uint16((at - data) >> 3)
		*p = whole
		p.Off, p.End = at-hlen, at+n
		b := p.Bytes()
		copy(b, head[:hlen])
		be.PutUint16(b[2:], uint16(len(b)))
		be.PutUint16(b[6:], w)
		if at == data {
			blankOptions(head[20:hlen])
		}
		at += n
		p.ParseL4()
		p.FixHeader()
		emit(p)
	}
	p.Off, p.End = Headroom, Headroom
	return true
}

// blankOptions turns the options that stay out of later fragments into no-ops.
func blankOptions(o []byte) {
	for at := 0; at < len(o); {
		switch o[at] {
		case optEnd:
			return
		case optNop:
			at++
			continue
		}
		if at+1 >= len(o) {
			return
		}
		n := int(o[at+1])
		if n < 2 || n > len(o)-at {
			return
		}
		if o[at]&0x80 == 0 {
			for i := range o[at : at+n] {
				o[at+i] = optNop
			}
		}
		at += n
	}
}

// unfragmentable is the length of the headers that every fragment repeats and
// the place of the last next-header field among them (RFC 8200 4.5).
func (p *Packet) unfragmentable() (n, next int) {
	b := p.Bytes()
	n, next = 40, 6
	routing := false
	for n+8 <= len(b) {
		switch b[next] {
		case hopByHop:
		case routingH:
			routing = true
		case destOpts:
			if routing {
				return n, next
			}
		default:
			return n, next
		}
		l := (int(b[n+1]) + 1) * 8
		if n+l > len(b) {
			return n, next
		}
		next = n
		n += l
	}
	return n, next
}

func fragment6(p *Packet, mtu int, emit func(*Packet)) bool {
	if p.Flags&Fragment != 0 || p.Off < 8 {
		return false
	}
	hlen, next := p.unfragmentable()
	step := (mtu - hlen - 8) &^ 7
	if step < 8 || hlen > maxHeader-8 || hlen >= p.Len() {
		return false
	}
	p.CompleteChecksum()
	var head [maxHeader]byte
	copy(head[:], p.Buf[p.Off:p.Off+hlen])
	h := head[hlen : hlen+8]
	h[0] = head[next]
	head[next] = fragmentH
	be.PutUint32(h[4:], rand32())
	whole := *p
	data, end := p.Off+hlen, p.End
	room := mtu - hlen - 8
	for at := data; at < end; {
		n := end - at
		w := uint16(at - data)
		if n > room {
			n = step
			w |= 1
		}
		be.PutUint16(h[2:], w)
		*p = whole
		p.Off, p.End = at-hlen-8, at+n
		b := p.Bytes()
		copy(b, head[:hlen+8])
		be.PutUint16(b[4:], uint16(len(b)-40))
		at += n
		p.ParseL4()
		emit(p)
	}
	p.Off, p.End = Headroom, Headroom
	return true
}
