package ext

import "math/bits"

// Hashes that Linux spreads packets by. They must give the kernel's numbers:
// several routers share a load by them.

const jhashInit = 0xdeadbeef

// jhash is Bob Jenkins' lookup3 (public domain) over 32-bit words, as jhash2.
func jhash(k []uint32, seed uint32) uint32 {
	a := jhashInit + uint32(len(k))<<2 + seed
	b, c := a, a
	for len(k) > 3 {
		a, b, c = jhashMix(a+k[0], b+k[1], c+k[2])
		k = k[3:]
	}
	switch len(k) {
	case 3:
		c += k[2]
		fallthrough
	case 2:
		b += k[1]
		fallthrough
	case 1:
		a += k[0]
		return jhashFinal(a, b, c)
	}
	return c
}

// jhash3, jhash2 and jhash1 are jhash_3words and its kin.
func jhash3(a, b, c, seed uint32) uint32 {
	seed += jhashInit + 3<<2
	return jhashFinal(a+seed, b+seed, c+seed)
}

func jhash2(a, b, seed uint32) uint32 {
	seed += jhashInit + 2<<2
	return jhashFinal(a+seed, b+seed, seed)
}

func jhash1(a, seed uint32) uint32 {
	seed += jhashInit + 1<<2
	return jhashFinal(a+seed, seed, seed)
}

func jhashMix(a, b, c uint32) (uint32, uint32, uint32) {
	a -= c
	a ^= bits.RotateLeft32(c, 4)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 6)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 8)
	b += a
	a -= c
	a ^= bits.RotateLeft32(c, 16)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 19)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

func jhashFinal(a, b, c uint32) uint32 {
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return c
}

// scale maps a 32-bit hash evenly to [0, n), as reciprocal_scale.
func scale(h, n uint32) uint32 { return uint32(uint64(h) * uint64(n) >> 32) }
