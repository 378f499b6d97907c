package ipset

import (
	"encoding/binary"
	"math/bits"

	"sluice/packet"
)

// key is an element's identity. Addresses are big-endian words, so that a prefix
// is the upper bits, also of IPv4, which is in the upper half of the first word.
type key struct {
	addr, addr2 [2]uint64
	iface       [2]uint64
	info        uint64 // mark<<32 | port<<16 | protocol<<8 | prefix length
	more        uint64 // MAC<<16 | flags<<8 | second prefix length
}

const (
	keyPhysdev  = 1 << 8
	keyWildcard = 1 << 9
)

// small is the key of the types for which one word is enough.
type small uint64

// mix is a multiplication whose halves are folded: every bit of both counts.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

const (
	mul1 = 0x9e3779b97f4a7c15
	mul2 = 0xd6e8feb86659fd93
)

func (k small) hash(seed uint64) uint64 { return mix(mix(uint64(k)^seed, mul1)^seed, mul2) }

func (k key) hash(seed uint64) uint64 {
	h := mix(k.addr[0]^seed, mul1) ^ mix(k.addr[1]^seed, mul2)
	h = mix(h^k.info, mul1) ^ mix(k.more^seed, mul2)
	if k.addr2 != [2]uint64{} {
		h = mix(h^k.addr2[0], mul1) ^ mix(k.addr2[1]^seed, mul2)
	}
	if k.iface != [2]uint64{} {
		h = mix(h^k.iface[0], mul1) ^ mix(k.iface[1]^seed, mul2)
	}
	return mix(h, mul2)
}

func words(a [16]byte) [2]uint64 {
	return [2]uint64{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

func unwords(w [2]uint64) (a [16]byte) {
	binary.BigEndian.PutUint64(a[:8], w[0])
	binary.BigEndian.PutUint64(a[8:], w[1])
	return a
}

// masked keeps the first n bits.
func masked(w [2]uint64, n uint8) [2]uint64 {
	switch {
	case n == 0:
		return [2]uint64{}
	case n <= 64:
		return [2]uint64{w[0] &^ (^uint64(0) >> n), 0}
	case n < 128:
		return [2]uint64{w[0], w[1] &^ (^uint64(0) >> (n - 64))}
	}
	return w
}

func (k *key) bits() uint8  { return uint8(k.info) }
func (k *key) bits2() uint8 { return uint8(k.more) }

func (k *key) setBits(n uint8)  { k.info = k.info&^0xff | uint64(n) }
func (k *key) setBits2(n uint8) { k.more = k.more&^0xff | uint64(n) }
func (k *key) setPort(proto uint8, port uint16) {
	k.info = k.info&^0xffffff00 | uint64(port)<<16 | uint64(proto)<<8
}
func (k *key) setMark(m uint32) { k.info = k.info&0xffffffff | uint64(m)<<32 }

// network is the key's first address and its length alone.
func (k *key) network() key { return key{addr: k.addr, info: uint64(k.bits())} }

func macWord(m [6]byte) (w uint64) {
	for _, b := range m {
		w = w<<8 | uint64(b)
	}
	return w
}

func wordMAC(w uint64) (m [6]byte) {
	for i := range m {
		m[i] = byte(w >> (40 - 8*i))
	}
	return m
}

// ifaceName undoes packet.NameWords.
func ifaceName(w [2]uint64) string {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], w[0])
	binary.LittleEndian.PutUint64(b[8:], w[1])
	n := 0
	for n < len(b) && b[n] != 0 {
		n++
	}
	return string(b[:n])
}

// cut keeps the first n bytes of an interface's name.
func cut(w [2]uint64, n int) [2]uint64 {
	switch {
	case n >= 16:
		return w
	case n >= 8:
		return [2]uint64{w[0], w[1] & (1<<(8*(n-8)) - 1)}
	}
	return [2]uint64{w[0] & (1<<(8*n) - 1), 0}
}

// host is a family's length of an address in bits.
func host(family uint8) uint8 {
	if family == packet.IPv6 {
		return 128
	}
	return 32
}
