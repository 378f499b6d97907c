package nat

import (
	"encoding/binary"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/packet/jhash"
)

// pickAddress puts one of the range's addresses into the end of t that m
// changes. The choice is a hash of source and destination (with Persistent: of
// the source alone), with Linux's function and without a secret, so that a
// client meets the same address on either kind of router and after a restart.
func (r *Range) pickAddress(t *conntrack.Tuple, m Manip, zone uint16) {
	if r.Flags&MapIPs == 0 {
		return
	}
	out := &t.Src
	if m == Dst {
		out = &t.Dst
	}
	if r.Min == r.Max {
		*out = r.Min
		return
	}
	last := 3
	if t.Family == packet.IPv4 {
		last = 0
	}
	seed := uint32(0)
	if r.Flags&Persistent == 0 {
		seed = word(&t.Dst, last) ^ uint32(zone)
	}
	h := hashAddress(&t.Src, seed)
	// Words of the address, the most significant first: while they are at the
	// range's upper end the next one is bounded too, after that it is free.
	free := false
	for i := 0; i <= last; i++ {
		lo, span := uint32(0), ^uint32(0)
		if !free {
			lo = binary.BigEndian.Uint32(r.Min[4*i:])
			span = binary.BigEndian.Uint32(r.Max[4*i:]) - lo + 1
		}
		binary.BigEndian.PutUint32(out[4*i:], lo+jhash.Scale(h, span))
		if word(out, i) != word(&r.Max, i) {
			free = true
		}
		if r.Flags&Persistent == 0 {
			h ^= word(&t.Dst, i)
		}
	}
}

// word is the i-th 32-bit word of an address as a little-endian machine loads it.
func word(a *[16]byte, i int) uint32 { return binary.LittleEndian.Uint32(a[4*i:]) }

// hashAddress is the hash of the four words of an address.
func hashAddress(k *[16]byte, seed uint32) uint32 {
	return jhash.Hash4([4]uint32{word(k, 0), word(k, 1), word(k, 2), word(k, 3)}, seed)
}
