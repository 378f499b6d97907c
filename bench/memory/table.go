package memory

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"sluice/packet"
	"sluice/tables/ipset"
)

// Sized is a Run that measures bytes for each operation, in place of time.
type Sized interface{ Bytes() float64 }

// table is a router with n tracked connections, translated and remembered. Do
// collects garbage.
type table struct {
	*bed
	bytes float64
}

// sizedTable is one whose memory is the result.
type sizedTable struct{ *table }

// Bytes is the memory of one connection, with its part of all tables.
func (t sizedTable) Bytes() float64 { return t.bytes }

func newTable(n int) (*table, error) {
	b, err := newBed(config(20, 1), 1)
	if err != nil {
		return nil, err
	}
	lan := b.lan.queues[0]
	i := 0
	lan.made = func(f []byte) { flowOf(i % n).put(f); i++ }
	before := heap()
	lan.left = 2 * n // the second packet's way is remembered
	b.step()
	if err := b.expect(uint64(2 * n)); err != nil {
		b.Close()
		return nil, err
	}
	if got := b.r.Conntrack().Count(); got != n {
		b.Close()
		return nil, fmt.Errorf("%d connections, not %d", got, n)
	}
	return &table{bed: b, bytes: (heap() - before) / float64(n)}, nil
}

// heap is what is allocated and in use, in bytes.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func (t *table) Do(n int) (time.Duration, error) {
	start := time.Now()
	for range n {
		runtime.GC()
	}
	return time.Since(start), nil
}

// lookups asks a set of IPv4 networks for addresses.
type lookups struct {
	set *ipset.Set
	q   ipset.Query
	ps  []*packet.Packet
	at  int
}

func newLookups(n int) (Run, error) {
	sets := ipset.New(func() int64 { return 0 })
	if err := sets.Create("s", "hash:net", ipset.Options{MaxElem: uint32(2 * n), HasMaxElem: true}); err != nil {
		return nil, err
	}
	s := sets.Get("s")
	r := rand.New(rand.NewPCG(5, uint64(n)))
	for s.Len() < n {
		bits := uint8(16 + r.IntN(17))
		var e ipset.Elem
		be.PutUint32(e.Addr[:], (uint32(1+r.IntN(222))<<24|r.Uint32()>>8)&^(1<<(32-bits)-1))
		e.Bits = bits
		if err := s.Add(&e, nil, true); err != nil {
			return nil, err
		}
	}
	for !s.Settled() {
		time.Sleep(10 * time.Millisecond) // until it has taken the form that it keeps
	}
	l := &lookups{set: s, q: ipset.Query{Dims: 1, Src: 1}}
	for range 4096 {
		f := make([]byte, frameLen)
		flow{src: uint32(1+r.IntN(222))<<24 | r.Uint32()>>8, dst: 9<<24 | 1, sport: 1, dport: 53}.put(f)
		p := &packet.Packet{Buf: f, End: len(f)}
		if p.Parse() != 0 {
			return nil, errors.New("a frame is malformed")
		}
		l.ps = append(l.ps, p)
	}
	return l, nil
}

func (l *lookups) Do(n int) (time.Duration, error) {
	return measure(func() {
		for range n {
			l.q.P = l.ps[l.at&(len(l.ps)-1)]
			l.at++
			l.set.Match(&l.q)
		}
	}), nil
}

func (l *lookups) Close() {}
