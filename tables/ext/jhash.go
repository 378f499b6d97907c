package ext

import "math/bits"

// Hashes that Linux spreads packets by. They must give the kernel's numbers:
// several routers share a load by them.

const jhashInit = 0xdeadbeef

// jhash3 and jhash1 are Bob Jenkins' lookup3 (public domain) over so many 32-bit
// words, as the kernel's jhash_3words and jhash_1word.
func jhash3(a, b, c, seed uint32) uint32 {
	seed += jhashInit + 3<<2
	return jhashFinal(a+seed, b+seed, c+seed)
}

func jhash1(a, seed uint32) uint32 {
	seed += jhashInit + 1<<2
	return jhashFinal(a+seed, seed, seed)
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
