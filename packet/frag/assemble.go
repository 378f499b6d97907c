package frag

import (
	"encoding/binary"
	"slices"

	"sluice/packet"
)

var be = binary.BigEndian

// fragment is what one packet brings to its datagram.
type fragment struct {
	p        *packet.Packet
	body     int // where the payload begins in the packet
	next     int // IPv6: the next-header field before the fragment header
	off, end int // the payload's place in the datagram's
	more     bool
}

func (f *fragment) layout4() {
	b := f.p.Bytes()
	f.body = int(b[0]&15) * 4
	f.place(len(b))
}

func (f *fragment) place(n int) {
	f.off = int(f.p.FragOff)
	f.end = f.off + n - f.body
	f.more = f.p.Flags&packet.MoreFragments != 0
}

// IPv6 next headers before a fragment header.
const (
	hopByHop  = 0
	routing   = 43
	fragmentH = 44
	destOpts  = 60
)

// layout6 finds the fragment header and says Complete if it did. Pass is for
// what Linux does not reassemble: a payload length of zero (jumbo), a first
// fragment that does not hold the whole transport header (RFC 8200 4.5).
func (f *fragment) layout6() (Verdict, packet.Reason) {
	b := f.p.Bytes()
	if be.Uint16(b[4:]) == 0 {
		return Pass, 0
	}
	at, next := 40, 6
	for b[next] != fragmentH {
		if at+2 > len(b) {
			return Pass, 0
		}
		l := 0
		switch b[next] {
		case hopByHop, routing, destOpts:
			l = (int(b[at+1]) + 1) * 8
		case packet.ProtoAH:
			l = (int(b[at+1]) + 2) * 4
		default:
			return Pass, 0
		}
		next = at
		if at += l; at > len(b) {
			return Pass, 0
		}
	}
	if at+8 > len(b) {
		return Dropped, DropLength
	}
	f.next, f.body = next, at+8
	f.place(len(b))
	if f.off == 0 && HeadersCut(f.p) {
		return Pass, 0
	}
	return Complete, 0
}

// HeadersCut reports that a first fragment of IPv6 ends within the transport header.
func HeadersCut(p *packet.Packet) bool {
	if p.Flags&packet.BadHeaders != 0 || p.Proto == packet.ProtoNone {
		return false
	}
	need := 1
	switch p.Proto {
	case packet.ProtoTCP:
		need = 20
	case packet.ProtoUDP, packet.ProtoICMPv6:
		need = 8
	}
	return int(p.L4)+need > p.Len()
}

// passOn is check's word for a fragment that is let through as it is, so that
// the host it goes to may answer it (RFC 8200 4.5: parameter problem).
const passOn = ^packet.Reason(0)

// check holds the fragment against where the datagram ends, and moves that end.
// kill: the whole datagram is to be given up.
func (q *queue) check(f *fragment) (reason packet.Reason, kill bool) {
	v4 := q.key.family == packet.IPv4
	if !v4 && f.end > 65535 {
		return DropTooLong, false
	}
	if f.more {
		if f.end&7 != 0 {
			if !v4 {
				return passOn, true
			}
			f.end &^= 7
		}
		if f.end > q.length {
			if q.last {
				return DropLength, v4
			}
			q.length = f.end
		}
	} else {
		if f.end < q.length || q.last && f.end != q.length {
			return DropLength, v4
		}
		q.last = true
		q.length = f.end
	}
	if f.end <= f.off {
		return DropLength, v4
	}
	return 0, false
}

// bad marks the impossible entry of ecnTable.
const bad = 0xff

// ecnTable gives, for the set of ECN codepoints seen (bit 0 Not-ECT, 1 ECT(1),
// 2 ECT(0), 3 CE), what is added to the first fragment's (RFC 3168 5.3).
var ecnTable = [16]uint8{
	1<<3 | 1<<1: 3, 1<<3 | 1<<2: 3, 1<<3 | 1<<2 | 1<<1: 3,
	1<<0 | 1<<1: bad, 1<<0 | 1<<2: bad, 1<<0 | 1<<3: bad,
	1<<0 | 1<<1 | 1<<2: bad, 1<<0 | 1<<1 | 1<<3: bad, 1<<0 | 1<<2 | 1<<3: bad, 15: bad,
}

// assemble writes the complete datagram into p.
func (q *queue) assemble(p *packet.Packet) packet.Reason {
	ecn := ecnTable[q.ecn]
	if ecn == bad {
		return DropECN
	}
	head := q.first[:q.body]
	v4 := q.key.family == packet.IPv4
	if !v4 {
		head = head[:q.body-8]
	}
	n := len(head) + q.length
	if v4 && n > 65535 || n-40 > 65535 || packet.Headroom+n > len(p.Buf) {
		return DropTooLong
	}
	p.Off, p.End = packet.Headroom, packet.Headroom+n
	b := p.Bytes()
	copy(b, head)
	slices.SortFunc(q.pieces, func(x, y piece) int { return x.off - y.off })
	p.Pieces = make([]uint16, len(q.pieces))
	for i, x := range q.pieces {
		copy(b[len(head)+x.off:], x.data)
		p.Pieces[i] = uint16(len(x.data))
	}
	p.Flags &^= packet.L4ChecksumOK
	p.GSO = packet.GSO{}
	p.PktType = q.typ
	p.FragMax = uint16(q.max)
	if v4 {
		b[1] |= ecn
		be.PutUint16(b[2:], uint16(n))
		be.PutUint16(b[6:], 0)
		if q.maxDF == q.max {
			b[6] = 0x40
		}
		p.FixHeader()
	} else {
		b[q.next] = q.first[q.body-8]
		be.PutUint16(b[4:], uint16(n-40))
		b[1] |= ecn << 4
	}
	p.ParseL4()
	p.Flags |= packet.Reassembled
	return 0
}
