// Package jhash is Bob Jenkins' lookup3 (public domain) over 32-bit words. It
// gives the numbers of the kernel's jhash2, jhash_3words and jhash_1word, which
// routers that share a load with Linux ones have to agree with.
package jhash

import "math/bits"

const initial = 0xdeadbeef

// Hash3 is the hash of three words.
func Hash3(a, b, c, seed uint32) uint32 {
	seed += initial + 3<<2
	return final(a+seed, b+seed, c+seed)
}

// Hash1 is the hash of one word.
func Hash1(a, seed uint32) uint32 {
	seed += initial + 1<<2
	return final(a+seed, seed, seed)
}

// Hash4 is the hash of four words, such as an IPv6 address.
func Hash4(k [4]uint32, seed uint32) uint32 {
	seed += initial + 4<<2
	a, b, c := mix(seed+k[0], seed+k[1], seed+k[2])
	return final(a+k[3], b, c)
}

// Scale maps a hash evenly to [0, n), as reciprocal_scale.
func Scale(h, n uint32) uint32 { return uint32(uint64(h) * uint64(n) >> 32) }

func mix(a, b, c uint32) (uint32, uint32, uint32) {
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

func final(a, b, c uint32) uint32 {
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
