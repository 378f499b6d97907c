package packet

import "math/rand/v2"

func rand32() uint32 { return rand.Uint32() }

// ExceedsMTU says whether p must not leave on a link of mtu bytes: a router
// answers it with "fragmentation needed" or "packet too big". What was
// reassembled may be fragmented again, unless a piece of it was too large.
func (p *Packet) ExceedsMTU(mtu int) bool {
	if p.SegmentLen() <= mtu || p.Family == IPv4 && p.Flags&DontFragment == 0 {
		return false
	}
	return p.FragMax == 0 || int(p.FragMax) > mtu
}

// NeedsFragmenting says whether FragmentTo is due before p leaves on a link of
// mtu bytes. A packet that came in fragments leaves in fragments.
func (p *Packet) NeedsFragmenting(mtu int) bool {
	n := p.Len()
	return n > mtu || p.FragMax != 0 && (p.Family == IPv4 || n > int(p.FragMax))
}

// FragmentTo calls emit for each fragment that Linux makes of p for a link of
// mtu bytes, in order. A packet that was reassembled leaves in the pieces it came
// in, or else in none larger (FragMax). An IPv4 packet's fragments keep its
// identification; later ones have the options that do not ask to be copied
// overwritten with no-ops. IPv6 gets a random identification. emit gets p
// itself each time, its view moved in place, so it must be done with the bytes
// when it returns; afterwards p is empty. It is false, with nothing emitted,
// where p cannot be fragmented: an MTU without room for eight bytes, or an IPv6
// packet that is a fragment already. Whether p may be is ExceedsMTU's to say.
func FragmentTo(p *Packet, mtu int, emit func(*Packet)) bool {
	if m := int(p.FragMax); m != 0 && m < mtu {
		mtu = m
	}
	if p.Family == IPv4 {
		return fragment4(p, mtu, emit)
	}
	return fragment6(p, max(mtu, 1280), emit)
}

// cut is where a payload of n bytes is cut for a link that has room for so
// many of them at once.
type cut struct {
	n, room int
	pieces  []uint16 // as it came, or nil
}

func newCut(p *Packet, n, room int) cut {
	c := cut{n: n, room: room}
	if len(p.Pieces) < 2 {
		return c
	}
	first := n
	for i, x := range p.Pieces[1:] {
		if int(x) > room || x&7 != 0 && i < len(p.Pieces)-2 {
			return c
		}
		first -= int(x)
	}
	if first > 0 && first <= room && first&7 == 0 {
		c.pieces = p.Pieces
	}
	return c
}

// next is the length of the piece that begins at offset at, the i-th.
func (c *cut) next(i, at int) int {
	left := c.n - at
	if c.pieces == nil {
		if left > c.room {
			return c.room &^ 7
		}
		return left
	}
	if i == 0 {
		for _, x := range c.pieces[1:] {
			left -= int(x)
		}
		return left
	}
	return int(c.pieces[i])
}

func fragment4(p *Packet, mtu int, emit func(*Packet)) bool {
	b := p.Bytes()
	hlen := int(b[0]&15) * 4
	if mtu-hlen < 8 {
		return false
	}
	if p.GSO.NeedsCsum {
		p.CompleteChecksum()
	}
	c := newCut(p, len(b)-hlen, mtu-hlen)
	var head [60]byte
	copy(head[:], b[:hlen])
	word := be.Uint16(b[6:]) & 0x3fff
	if c.pieces == nil && p.Flags&(Reassembled|DontFragment) == Reassembled|DontFragment {
		word |= 0x4000 // Linux keeps it only where it makes new pieces
	}
	whole := *p
	data := p.Off + hlen
	for i, at := 0, 0; at < c.n; i++ {
		n := c.next(i, at)
		w := word + uint16(at>>3)
		if at+n < c.n {
			w |= 0x2000
		}
		*p = whole
		p.Off, p.End = data+at-hlen, data+at+n
		b := p.Bytes()
		copy(b, head[:hlen])
		be.PutUint16(b[2:], uint16(len(b)))
		be.PutUint16(b[6:], w)
		if at == 0 {
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
	room := mtu - hlen - 8
	if room < 8 || hlen > maxHeader-8 || hlen >= p.Len() {
		return false
	}
	if p.GSO.NeedsCsum {
		p.CompleteChecksum()
	}
	c := newCut(p, p.Len()-hlen, room)
	var head [maxHeader]byte
	copy(head[:], p.Buf[p.Off:p.Off+hlen])
	h := head[hlen : hlen+8]
	h[0] = head[next]
	head[next] = fragmentH
	be.PutUint32(h[4:], rand32())
	whole := *p
	data := p.Off + hlen
	for i, at := 0, 0; at < c.n; i++ {
		n := c.next(i, at)
		w := uint16(at)
		if at+n < c.n {
			w |= 1
		}
		be.PutUint16(h[2:], w)
		*p = whole
		p.Off, p.End = data+at-hlen-8, data+at+n
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
