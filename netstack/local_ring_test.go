package netstack

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"sluice/packet"
)

// TestRing: what goes in comes out, in order, whatever the sizes, what does not
// fit is counted, and the bytes held never pass the limit.
func TestRing(t *testing.T) {
	r := newRing[int](1, nil)
	if r.limit != 256<<10 {
		t.Fatalf("limit %d", r.limit)
	}
	var queue []int
	rnd := rand.New(rand.NewPCG(1, 2))
	drops := uint64(0)
	size := func(i int) int {
		if i%20 == 0 {
			return packet.MaxLen - i%3000
		}
		return 1 + i%1500
	}
	for i := range 200000 {
		if rnd.IntN(5) < 3 {
			if !r.room(size(i)) {
				drops++
				continue
			}
			r.put(i, size(i))
			queue = append(queue, i)
			if r.held.Load() > r.limit {
				t.Fatalf("%d bytes held", r.held.Load())
			}
			continue
		}
		x := r.peek()
		if x == nil {
			if len(queue) != 0 {
				t.Fatalf("empty, with %d queued", len(queue))
			}
			continue
		}
		if *x != queue[0] {
			t.Fatalf("%d came out, want %d", *x, queue[0])
		}
		queue = queue[1:]
		r.release(size(*x))
	}
	if r.drops.Load() != drops || drops == 0 {
		t.Errorf("%d drops counted, %d seen", r.drops.Load(), drops)
	}
	for r.peek() != nil {
		r.release(size(*r.peek()))
	}
	if r.held.Load() != 0 || !r.room(packet.MaxLen) {
		t.Errorf("empty, it holds %d bytes", r.held.Load())
	}
}

// TestRingTwoSides is for the race detector: one fills, one empties and sleeps.
func TestRingTwoSides(t *testing.T) {
	wake := make(chan struct{}, 1)
	r := newRing[*int](0, func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	const n = 100000
	go func() {
		for i := 0; i < n; {
			if r.room(100) {
				x := i
				r.put(&x, 100)
				i++
			} else {
				runtime.Gosched()
			}
		}
	}()
	for i := 0; i < n; {
		x := r.peek()
		if x == nil {
			if r.arm() {
				<-wake
			}
			continue
		}
		if **x != i {
			t.Fatalf("%d is %d", i, **x)
		}
		r.release(100)
		i++
	}
}

// TestDeliverOverflow: a full ring refuses, says so and counts.
func TestDeliverOverflow(t *testing.T) {
	l, err := NewLocal(LocalOptions{RingSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody takes anything out
	p := l4("10.0.0.2", "10.0.0.1", packet.ProtoUDP, udpHeader(1, 2, 1000))
	took := 0
	for p.Reason == 0 && took < 1000 {
		if l.Deliver(p) {
			took++
		}
	}
	if p.Reason != ReasonLocalFull || took < 200 || took > 256 {
		t.Errorf("%d taken into 256 KiB, then %s", took, p.Reason)
	}
	if s := l.Stats(); s.Delivered != uint64(took) || s.QueueFull != 1 {
		t.Errorf("counted %d delivered, %d refused", s.Delivered, s.QueueFull)
	}
}

// TestOutputOverflow: a worker that does not come loses packets, nothing blocks.
func TestOutputOverflow(t *testing.T) {
	rings := NewLocalRings(1, 1, nil)
	l, err := NewLocal(LocalOptions{Output: rings})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := l.ListenPacket("udp4", ap("127.0.0.1:5"), Owner{7, 8})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err := c.WriteFromTo(make([]byte, 1000), ap("127.0.0.1:1").Addr(), ap("127.0.0.1:9")); err != nil {
			t.Fatal(err)
		}
	}
	s := l.Stats()
	if s.OutputFull == 0 || s.OutputFull != rings.Drops(0) || s.Sent+s.OutputFull != 1000 {
		t.Errorf("%d sent, %d lost, %d drops of the ring", s.Sent, s.OutputFull, rings.Drops(0))
	}
	p := packet.New()
	n := uint64(0)
	for rings.Get(0, p) {
		n++
		if !p.Is(packet.Local|packet.HasOwner|packet.HasL4) || p.UID != 7 || p.GID != 8 || p.DstPort() != 9 || p.Len() != 1028 {
			t.Fatalf("packet: flags %x, owner %d/%d, port %d, length %d", p.Flags, p.UID, p.GID, p.DstPort(), p.Len())
		}
	}
	if n != s.Sent {
		t.Errorf("%d came out of %d", n, s.Sent)
	}
}

// TestFlowHash: both directions of a flow go to the same worker.
func TestFlowHash(t *testing.T) {
	workers := map[uint32]int{}
	for i := range 200 {
		port := uint16(1000 + i)
		for _, a := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00:2::2"}} {
			x := l4(a[0], a[1], packet.ProtoUDP, udpHeader(port, 53, 0))
			y := l4(a[1], a[0], packet.ProtoUDP, udpHeader(53, port, 0))
			h := flowHash(x.Bytes(), x.Proto, int(x.L4))
			if h != flowHash(y.Bytes(), y.Proto, int(y.L4)) {
				t.Fatalf("%v: the directions differ", a)
			}
			workers[h>>30]++
		}
	}
	for i := range uint32(4) {
		if workers[i] < 50 {
			t.Errorf("worker %d of 4 has %d of 400 flows", i, workers[i])
		}
	}
}

func TestRingAllocs(t *testing.T) {
	rings := NewLocalRings(1, 0, nil)
	l := &Local{rings: []*ring[arrival]{newRing[arrival](0, nil)}}
	l.stats.delivered = make([]paddedCounter, 1)
	p := l4("10.0.0.2", "10.0.0.1", packet.ProtoUDP, udpHeader(1, 2, 1000))
	o := &Outgoing{Len: p.Len(), views: [][]byte{p.Bytes()}}
	q := packet.New()
	if n := testing.AllocsPerRun(100, func() {
		if !l.Deliver(p) {
			t.Fatal("not delivered")
		}
		l.take()
		if !rings.Output(o) || !rings.Get(0, q) {
			t.Fatal("not carried")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !bytes.Equal(p.Bytes(), q.Bytes()) {
		t.Error("the packet changed")
	}
}

// take is what inject does, without gVisor.
func (l *Local) take() {
	v := l.rings[0].peek().view
	n := v.Size()
	v.Release()
	l.rings[0].release(n)
}

func BenchmarkDeliver(b *testing.B) {
	for _, n := range []int{8, 1400, 64000} {
		b.Run(sizeName(n), func(b *testing.B) {
			l := &Local{rings: []*ring[arrival]{newRing[arrival](0, nil)}}
			l.stats.delivered = make([]paddedCounter, 1)
			p := l4("10.0.0.2", "10.0.0.1", packet.ProtoUDP, udpHeader(1, 2, n))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				l.Deliver(p)
				l.take()
			}
		})
	}
}

func sizeName(n int) string {
	return map[int]string{8: "8B", 1400: "1400B", 64000: "64000B"}[n]
}
