package nat

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
)

// begun is an unconfirmed connection with a mapped source.
type begun struct {
	p    *packet.Packet
	e    *conntrack.Entry
	addr [16]byte
	port uint16
}

func begin(t testing.TB, b *box, w *conntrack.Worker, host, sport int, addr [16]byte, port uint16) begun {
	src := ip("10.0.0.0")
	src[3] = byte(host)
	p := packet.New()
	p.SetBytes(flowSpec{src: "10.0.0.0", dst: "9.9.9.9", proto: 17, sport: uint16(sport), dport: 53}.build())
	p.Parse()
	p.SetSrc(src)
	if !w.Track(p, hookPrerouting) {
		t.Fatal("no connection was made")
	}
	x := begun{p, w.Entry(p), addr, port}
	reply := *x.e.Tuple(conntrack.Reply)
	reply.Dst, reply.DstPort = addr, port
	w.AlterReply(x.e, reply)
	b.nat.sources.add(x.e, p.Ct)
	return x
}

func (x begun) end(b *box, w *conntrack.Worker) {
	b.nat.sources.remove(x.e)
	w.Release(x.p)
}

// TestBySource compares the index with a list, the slow obvious way.
func TestBySource(t *testing.T) {
	b := newBox(t)
	b.w.Begin(b.now)
	defer b.w.End()
	s := b.nat.sources
	var live []begun // oldest first
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		if i < 10000 && r.IntN(3) != 0 || len(live) == 0 {
			to := ip("192.0.2.1")
			to[3] = byte(r.IntN(3))
			live = append(live, begin(t, b, b.w, r.IntN(8), 1+r.IntN(300), to, uint16(1000+r.IntN(3))))
		} else {
			n := r.IntN(len(live))
			live[n].end(b, b.w)
			live = slices.Delete(live, n, n+1)
		}
		if s.len() != len(live) {
			t.Fatalf("%d connections are held, %d live", s.len(), len(live))
		}
		if len(live) == 0 {
			continue
		}
		// What any connection's source finds: the newest that the range allows.
		orig := live[r.IntN(len(live))].e.Tuple(conntrack.Original)
		only := Range{MinPort: 1000, MaxPort: uint16(1000 + r.IntN(3)), Flags: ProtoSpecified}
		got := *orig
		want := *orig
		found := false
		for _, x := range slices.Backward(live) {
			if sameSource(x.e.Tuple(conntrack.Original), orig) && x.port <= only.MaxPort {
				want.Src, want.SrcPort, found = x.addr, x.port, true
				break
			}
		}
		if s.find(orig, &got, &only) != found || got != want {
			t.Fatalf("%v: found %v, want %v %v", orig, got, want, found)
		}
	}
	for _, x := range live {
		x.end(b, b.w)
	}
	if s.len() != 0 {
		t.Fatalf("%d connections are left", s.len())
	}
}

func TestBySourceConcurrent(t *testing.T) {
	b := newBox(t)
	var wg sync.WaitGroup
	for g := range 4 {
		w := b.table.NewWorker()
		wg.Go(func() {
			w.Begin(b.now)
			defer w.End()
			for i := range 3000 {
				x := begin(t, b, w, 1, 1+i%500, ip("192.0.2.1"), uint16(g))
				orig := x.e.Tuple(conntrack.Original)
				got := *orig
				if !b.nat.sources.find(orig, &got, &Range{MinPort: uint16(g), MaxPort: uint16(g), Flags: ProtoSpecified}) || got.SrcPort != uint16(g) {
					t.Error("a mapping is lost")
				}
				x.end(b, w)
			}
		})
	}
	wg.Wait()
	if n := b.nat.sources.len(); n != 0 {
		t.Fatalf("%d connections are left", n)
	}
}
