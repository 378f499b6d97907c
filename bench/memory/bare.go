package memory

import (
	"errors"
	"math/rand/v2"
	"time"
)

// bare is the yardstick, the least that a NAT router can do for a packet: the
// copy, the header's fields, one look-up in an open-addressing table, a new
// source with both checksums; a batch of 32 at a time.
type bare struct {
	frames []byte
	table  []bareFlow
	next   int
	buf    [bareBatch][frameLen]byte
}

const bareBatch = 32

type bareKey struct {
	src, dst uint32
	ports    uint32
	proto    uint32
}

type bareFlow struct {
	key              bareKey
	src              uint32
	port             uint16
	delta, portDelta uint16
}

func newBare(flows int) *bare {
	size := 1
	for size < 2*flows {
		size *= 2
	}
	b := &bare{table: make([]bareFlow, size)}
	order := rand.New(rand.NewPCG(1, 2)).Perm(flows)
	b.frames = udpFrames(flows, func(i int) flow { return flowOf(order[i]) })
	for i := range flows {
		f := b.frames[i*frameLen:]
		k := bareKeyOf((*[frameLen]byte)(f))
		at := b.place(k)
		for b.table[at].key.proto != 0 {
			at = (at + 1) & (size - 1)
		}
		const src = 0xc6336401
		port := uint16(1024 + i)
		b.table[at] = bareFlow{key: k, src: src, port: port,
			delta:     fold(uint32(^uint16(k.src>>16)) + uint32(^uint16(k.src)) + src>>16 + src&0xffff),
			portDelta: fold(uint32(^be.Uint16(f[20:])) + uint32(port))}
	}
	return b
}

func (b *bare) Close() {}

func (b *bare) place(k bareKey) int {
	h := (uint64(k.src)*0x9e3779b97f4a7c15 ^ uint64(k.dst)<<32 ^ uint64(k.ports)) * 0xff51afd7ed558ccd
	return int(h>>32) & (len(b.table) - 1)
}

func bareKeyOf(f *[frameLen]byte) bareKey {
	return bareKey{be.Uint32(f[12:]), be.Uint32(f[16:]), be.Uint32(f[20:]), uint32(f[9])}
}

func (b *bare) Do(n int) (d time.Duration, err error) {
	missed := 0
	d = measure(func() { missed = b.run(n) })
	if missed > 0 {
		return d, errors.New("flows were not found")
	}
	return d, nil
}

func (b *bare) run(n int) (missed int) {
	var keys [bareBatch]bareKey
	var at [bareBatch]int
	for n > 0 {
		m := min(n, bareBatch)
		n -= m
		for i := range m {
			f := &b.buf[i]
			copy(f[:], b.frames[b.next:b.next+frameLen])
			if b.next += frameLen; b.next == len(b.frames) {
				b.next = 0
			}
			keys[i] = bareKeyOf(f)
			at[i] = b.place(keys[i])
		}
		for i := range m {
			k, j := keys[i], at[i]
			for b.table[j].key != k {
				if b.table[j].key.proto == 0 {
					missed++
					break
				}
				j = (j + 1) & (len(b.table) - 1)
			}
			f, fl := &b.buf[i], &b.table[j]
			be.PutUint32(f[12:], fl.src)
			be.PutUint16(f[10:], ^fold(uint32(^be.Uint16(f[10:]))+uint32(fl.delta)+0xfeff))
			be.PutUint16(f[20:], fl.port)
			be.PutUint16(f[26:], ^fold(uint32(^be.Uint16(f[26:]))+uint32(fl.delta)+uint32(fl.portDelta)))
			f[8]--
		}
	}
	return missed
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}
