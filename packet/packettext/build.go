package packettext

import (
	"encoding/binary"
	"hash/crc32"
)

var be = binary.BigEndian

// slowSum is RFC 1071 as its text has it.
func slowSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func (f *frame) pseudo(n int) []byte {
	b := append(f.src.AsSlice(), f.dst.AsSlice()...)
	b = be.AppendUint32(b, uint32(n))
	return be.AppendUint32(b, uint32(f.proto))
}

// transport makes the transport header, its checksum, and the payload. A later
// fragment is payload only.
func (f *frame) transport() []byte {
	if f.frag > 0 {
		return f.payload
	}
	var t []byte
	at, pseudo := -1, true
	switch f.proto {
	case 6:
		opts := f.tcpopts
		if f.mss != 0 {
			opts = append([]byte{2, 4, byte(f.mss >> 8), byte(f.mss)}, opts...)
		}
		for len(opts)%4 != 0 {
			opts = append(opts, 0)
		}
		t = f.ports(20)
		be.PutUint32(t[4:], f.seq)
		be.PutUint32(t[8:], f.ack)
		t[12], t[13] = byte((20+len(opts))/4)<<4, f.flags
		be.PutUint16(t[14:], f.win)
		be.PutUint16(t[18:], f.urg)
		t = append(t, opts...)
		at = 16
	case 17, 136:
		t = f.ports(8)
		be.PutUint16(t[4:], uint16(8+len(f.payload)))
		at = 6
	case 33:
		t = f.ports(12)
		t[4], t[8] = 3, f.typ<<1
		at = 6
	case 132:
		t = f.ports(12)
	case 1, 58:
		t = make([]byte, 8)
		t[0], t[1] = f.typ, f.code
		be.PutUint16(t[4:], f.id)
		be.PutUint16(t[6:], uint16(f.seq))
		if f.hasRest {
			be.PutUint32(t[4:], f.rest)
		}
		at, pseudo = 2, f.proto == 58
	}
	if f.length >= 0 && len(t) >= 8 {
		be.PutUint16(t[4:], uint16(f.length))
	}
	t = append(t, f.payload...)
	switch {
	case f.proto == 132:
		binary.LittleEndian.PutUint32(t[8:], crc32.Checksum(t, crc32.MakeTable(crc32.Castagnoli)))
	case at >= 0:
		all := t
		if pseudo {
			all = append(f.pseudo(len(t)), t...)
		}
		s := ^slowSum(all)
		if s == 0 && (f.proto == 17 || f.proto == 136) {
			s = 0xffff
		}
		be.PutUint16(t[at:], s)
	}
	if at >= 0 {
		switch {
		case f.nocsum:
			t[at], t[at+1] = 0, 0
		case f.checksum >= 0:
			be.PutUint16(t[at:], uint16(f.checksum))
		case f.badcsum:
			t[at] ^= 0x55
		}
	}
	return t
}

func (f *frame) ports(n int) []byte {
	t := make([]byte, n)
	be.PutUint16(t, f.sport)
	be.PutUint16(t[2:], f.dport)
	return t
}

var extensions = map[string]byte{"hop": 0, "dest": 60, "route": 43, "ah": 51}

// network puts the network header, with its extensions, before t.
func (f *frame) network(t []byte) []byte {
	if f.src.Is4() {
		return f.network4(t)
	}
	return f.network6(t)
}

func (f *frame) network4(t []byte) []byte {
	opts := f.opts
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	h := make([]byte, 20, 20+len(opts)+len(t))
	h[0], h[1] = byte(0x40|(20+len(opts))/4), f.tos
	be.PutUint16(h[2:], uint16(20+len(opts)+len(t)))
	be.PutUint16(h[4:], uint16(f.ipid))
	var w uint16
	if f.df {
		w |= 0x4000
	}
	if f.more {
		w |= 0x2000
	}
	if f.frag > 0 {
		w |= uint16(f.frag / 8)
	}
	be.PutUint16(h[6:], w)
	h[8], h[9] = f.ttl, f.proto
	copy(h[12:], f.src.AsSlice())
	copy(h[16:], f.dst.AsSlice())
	h = append(h, opts...)
	be.PutUint16(h[10:], ^slowSum(h))
	if f.badip {
		h[10] ^= 0x55
	}
	return append(h, t...)
}

func (f *frame) network6(t []byte) []byte {
	h := make([]byte, 40)
	be.PutUint32(h, 6<<28|uint32(f.tos)<<20|f.flow)
	h[7] = f.ttl
	copy(h[8:], f.src.AsSlice())
	copy(h[24:], f.dst.AsSlice())
	next := 6
	for _, x := range f.ext {
		h[next] = extensions[x]
		next = len(h)
		e := make([]byte, 8)
		switch x {
		case "ah":
			e = make([]byte, 24)
			e[1] = 4
		case "route":
			e[2] = 253 // a type nobody knows, no segments left
		default:
			e[2], e[3] = 1, 4 // PadN
		}
		h = append(h, e...)
	}
	if f.frag >= 0 {
		h[next] = 44
		next = len(h)
		e := make([]byte, 8)
		w := uint16(f.frag) &^ 7
		if f.more {
			w |= 1
		}
		be.PutUint16(e[2:], w)
		be.PutUint32(e[4:], f.ipid)
		h = append(h, e...)
	}
	h[next] = f.proto
	be.PutUint16(h[4:], uint16(len(h)-40+len(t)))
	return append(h, t...)
}
