package conntrack

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

// setFlow makes p the UDP packet of flow n, in either direction.
func setFlow(p *packet.Packet, n uint32, back bool) {
	b := p.Bytes()
	c, s := b[12:16], b[16:20]
	cp, sp := b[20:22], b[22:24]
	if back {
		c, s, cp, sp = s, c, sp, cp
	}
	be.PutUint32(c, 0x0a000000|n>>12)
	be.PutUint32(s, 0x09090909)
	be.PutUint16(cp, uint16(n&0xfff)+1024)
	be.PutUint16(sp, 53)
	p.Ct, p.CtInfo, p.Reason = 0, packet.CtNone, 0
	p.Flags |= packet.L4ChecksumOK
}

// twin is the obvious table: a map of tuples.
type twin struct {
	flows map[Tuple]*twinFlow
}

type twinFlow struct {
	orig, reply Tuple
	expiry      int64
	replied     bool
}

func (x *twin) expire(now int64) {
	for _, f := range x.flows {
		if f.expiry <= now {
			delete(x.flows, f.orig)
			delete(x.flows, f.reply)
		}
	}
}

// TestTwin drives the table and a map with the same random flows, deletions and
// passing time, across several growths, and compares all they say.
func TestTwin(t *testing.T) {
	b := newBox(t)
	b.sysctl("max", 0)
	tw := &twin{flows: map[Tuple]*twinFlow{}}
	rng := rand.New(rand.NewPCG(1, 2))
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53 len=4")
	steps, flows := 300000, uint32(60000)
	if testing.Short() {
		steps, flows = 60000, 12000
	}
	for i := range steps {
		switch r := rng.Uint32() % 1000; {
		case r == 0:
			b.now += int64(rng.Uint32()%3000) * 1e6
			tw.expire(b.now)
			b.tbl.Housekeep(b.now)
		case r < 60:
			setFlow(p, rng.Uint32()%flows, false)
			var u Tuple
			b.tbl.tuple(&u, p, 0)
			f := tw.flows[u]
			if got := b.tbl.Kill(&u); got != (f != nil) {
				t.Fatalf("step %d: kill %v, twin has %v", i, got, f != nil)
			}
			if f != nil {
				delete(tw.flows, f.orig)
				delete(tw.flows, f.reply)
			}
		default:
			setFlow(p, rng.Uint32()%flows, rng.Uint32()%4 == 0)
			var u Tuple
			b.tbl.tuple(&u, p, 0)
			b.passPacket(p)
			f := tw.flows[u]
			want := packet.CtNew
			switch {
			case f == nil:
				r, _ := u.Invert()
				f = &twinFlow{orig: u, reply: r}
				tw.flows[u], tw.flows[r] = f, f
			case u == f.reply:
				want, f.replied = packet.CtEstablishedReply, true
			case f.replied:
				want = packet.CtEstablished
			}
			if x := b.now + 30*second; x-f.expiry >= second {
				f.expiry = x
			}
			if p.CtInfo == packet.CtEstablished || p.CtInfo == packet.CtEstablishedReply || f.replied {
				f.expiry = b.tbl.At(p.Ct).expiry.Load() // streams have timeouts of their own; see the UDP test
			}
			if p.CtInfo != want {
				t.Fatalf("step %d: %v, want %v", i, infoNames[p.CtInfo], infoNames[want])
			}
		}
	}
	tw.expire(b.now)
	seen := 0
	b.tbl.Each(func(s *Snapshot) bool {
		f := tw.flows[s.Orig]
		if f == nil || f.orig != s.Orig || f.reply != s.Reply {
			t.Errorf("the twin does not have %v", s.Orig)
		}
		seen++
		return true
	})
	if seen*2 != len(tw.flows) {
		t.Errorf("%d connections, twin has %d", seen, len(tw.flows)/2)
	}
	if n := len(b.tbl.state.Load().buckets); n <= 4096 && !testing.Short() {
		t.Errorf("the table did not grow: %d buckets", n)
	}
}

// TestConcurrent has workers, housekeeping, deletion, dumping and growing at
// each other, and then counts.
func TestConcurrent(t *testing.T) {
	b := newBox(t)
	var clock atomic.Int64
	clock.Store(b.now)
	b.tbl.opt.Clock = clock.Load
	b.sysctl("max", 40000)
	b.sysctl("acct", 1)
	const workers, rounds, flows = 4, 400, 30000
	var wg, bg sync.WaitGroup
	stop := make(chan struct{})
	for i := range workers {
		w := b.tbl.NewWorker()
		p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53 len=4")
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for range rounds {
				w.Begin(clock.Add(1e6))
				for range 64 {
					n := rng.Uint32() % flows
					setFlow(p, n, rng.Uint32()%2 == 0)
					if !w.Track(p, hookPre) || !w.Confirm(p) {
						w.Release(p)
						continue
					}
					e := w.Entry(p)
					if e == nil {
						t.Error("a UDP packet without a connection")
						return
					}
					if u := e.Tuple(PacketDir(p)); u.SrcPort != be.Uint16(p.Bytes()[20:]) {
						t.Error("a connection changed under its packet")
						return
					}
					e.SetMark(n)
				}
				w.End()
			}
		}()
	}
	background := func(f func()) {
		bg.Add(1)
		go func() {
			defer bg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					f()
					runtime.Gosched()
				}
			}
		}()
	}
	background(func() { b.tbl.Housekeep(clock.Add(1e8)) })
	background(func() { b.tbl.Delete(func(s *Snapshot) bool { return s.Orig.SrcPort%97 == 3 }) })
	background(func() { b.tbl.Each(func(s *Snapshot) bool { return s.Mark != 12345 }) })
	sub := b.tbl.Subscribe()
	background(func() {
		var ev Event
		for sub.Next(&ev) {
		}
	})
	wg.Wait()
	close(stop)
	bg.Wait()
	sub.Close()
	n := 0
	b.tbl.Each(func(s *Snapshot) bool {
		n++
		e := b.tbl.At(s.Index)
		for _, u := range []*Tuple{e.Tuple(Original), e.Tuple(Reply)} {
			if x, _, _ := b.tbl.lookup(u, b.tbl.hashTuple(u), clock.Load()); x != e {
				t.Errorf("a listed connection is not found by %v", u)
			}
		}
		return true
	})
	clock.Add(1000 * second)
	for range 40 {
		b.tbl.Housekeep(clock.Load())
	}
	if c := b.tbl.Count(); c != 0 {
		t.Errorf("%d connections counted in an empty table (%d before)", c, n)
	}
	st := b.tbl.state.Load()
	for i := range st.buckets {
		for j := range st.buckets[i].place {
			if st.buckets[i].place[j].Load() != 0 {
				t.Fatal("a place is taken in an empty table")
			}
		}
	}
}

// TestClash: two packets of a new flow are under way at once.
func TestClash(t *testing.T) {
	for _, c := range []struct {
		desc string
		ok   bool
	}{{"udp 10.0.0.2:5000 > 9.9.9.9:53", true}, {"tcp 10.0.0.2:5000 > 9.9.9.9:80 S", false},
		{"50 10.0.0.2 > 9.9.9.9 len=8", true}, {"icmp 10.0.0.2 > 9.9.9.9 type=8 id=1", false}} {
		b := newBox(t)
		p, q := packettest.New(t, c.desc), packettest.New(t, c.desc)
		b.w.Begin(b.now)
		b.w.Track(p, hookPre)
		b.w.Track(q, hookPre)
		if p.Ct == q.Ct {
			t.Fatal("two packets share an unconfirmed connection")
		}
		if !b.w.Confirm(p) {
			t.Error("the first was dropped")
		}
		ok := b.w.Confirm(q)
		if ok != c.ok {
			t.Errorf("%s: second passes: %v, want %v", c.desc, ok, c.ok)
		}
		if ok && q.Ct != p.Ct {
			t.Error("the second did not join the first's connection")
		}
		b.w.Release(q)
		b.w.End()
		if n := b.tbl.Count(); n != 1 {
			t.Errorf("%s: %d connections", c.desc, n)
		}
		s := b.tbl.Stats()[0]
		if ok && s.ClashResolve != 1 || !ok && (s.InsertFailed != 1 || s.Drop != 1 || q.Reason != ReasonInsertFailed) {
			t.Errorf("%s: %+v", c.desc, s)
		}
	}
}

// TestReverseClash: both ends spoke first at once.
func TestReverseClash(t *testing.T) {
	b := newBox(t)
	p, q := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53"), packettest.New(t, "udp 9.9.9.9:53 > 10.0.0.2:5000")
	b.w.Begin(b.now)
	b.w.Track(p, hookPre)
	b.w.Track(q, hookPre)
	b.w.Entry(p).SetStatus(NATDoneMask)
	b.w.Entry(q).SetStatus(NATDoneMask)
	if !b.w.Confirm(p) || !b.w.Confirm(q) || p.Ct != q.Ct || q.CtInfo != packet.CtEstablishedReply {
		t.Errorf("%d %d %v", p.Ct, q.Ct, infoNames[q.CtInfo])
	}
	b.w.End()
}

func TestNoAllocationsOnATrackedFlow(t *testing.T) {
	for _, c := range [][]string{
		{"udp 10.0.0.2:5000 > 9.9.9.9:53 len=4", "udp 9.9.9.9:53 > 10.0.0.2:5000 len=4"},
		{"tcp 10.0.0.2:5000 > 9.9.9.9:80 S seq=1", "tcp 9.9.9.9:80 > 10.0.0.2:5000 SA seq=1 ack=2",
			"tcp 10.0.0.2:5000 > 9.9.9.9:80 A seq=2 ack=2 len=100"},
		{"icmp 10.0.0.2 > 9.9.9.9 type=8 id=3", "icmp 9.9.9.9 > 10.0.0.2 type=0 id=3"},
		{"udp 10.0.0.2:5000 > 9.9.9.9:53 len=4", "icmp 9.9.9.1 > 10.0.0.2 type=3/3 about udp 10.0.0.2:5000 > 9.9.9.9:53"},
	} {
		b := newBox(t)
		b.sysctl("acct", 1)
		for _, d := range c {
			b.pass(d)
		}
		p := packettest.New(t, c[len(c)-1])
		n := testing.AllocsPerRun(1000, func() {
			p.Ct, p.CtInfo = 0, packet.CtNone
			b.now += 1e6
			b.passPacket(p)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", c[len(c)-1], n)
		}
	}
}

func TestEntriesAreReused(t *testing.T) {
	b := newBox(t)
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53 len=4")
	for i := range uint32(200000) {
		setFlow(p, i, false)
		b.passPacket(p)
		var u Tuple
		b.tbl.tuple(&u, p, 0)
		if i >= 100 {
			setFlow(p, i-100, false)
			b.tbl.tuple(&u, p, 0)
			if !b.tbl.Kill(&u) {
				t.Fatal("not there to be killed")
			}
		}
	}
	if n := b.tbl.bump.Load(); n > 4096 {
		t.Errorf("%d entries were used for 100 at a time", n)
	}
}

func benchTable(tb testing.TB, n int) (*box, *packet.Packet) {
	b := newBox(tb)
	b.sysctl("max", 0)
	p := packettest.New(tb, "udp 10.0.0.2:5000 > 9.9.9.9:53 len=22")
	for i := range uint32(n) {
		setFlow(p, i, false)
		b.passPacket(p)
		setFlow(p, i, true)
		b.passPacket(p)
	}
	b.now += 3 * second
	return b, p
}

func BenchmarkTrack(bb *testing.B) {
	for _, n := range []int{1000, 100000, 1000000} {
		name := map[int]string{1000: "1k", 100000: "100k", 1000000: "1M"}[n]
		bb.Run(name, func(bb *testing.B) {
			b, p := benchTable(bb, n)
			rng := rand.New(rand.NewPCG(3, 4))
			b.w.Begin(b.now)
			bb.ReportAllocs()
			bb.ResetTimer()
			for range bb.N {
				setFlow(p, rng.Uint32()%uint32(n), true)
				b.w.Track(p, hookPre)
				b.w.Confirm(p)
			}
			bb.StopTimer()
			b.w.End()
		})
	}
}

func BenchmarkTrackTCP(bb *testing.B) {
	b := newBox(bb)
	b.pass("tcp 10.0.0.2:5000 > 9.9.9.9:80 S seq=1")
	b.pass("tcp 9.9.9.9:80 > 10.0.0.2:5000 SA seq=1 ack=2")
	p := packettest.New(bb, "tcp 10.0.0.2:5000 > 9.9.9.9:80 A seq=2 ack=2 len=10")
	p.Flags |= packet.L4ChecksumOK
	b.w.Begin(b.now)
	bb.ReportAllocs()
	for range bb.N {
		p.Ct, p.CtInfo = 0, packet.CtNone
		b.w.Track(p, hookPre)
		b.w.Confirm(p)
	}
	b.w.End()
}

// BenchmarkNewFlow makes and, 50,000 later, deletes connections.
func BenchmarkNewFlow(bb *testing.B) {
	b := newBox(bb)
	b.sysctl("max", 0)
	p := packettest.New(bb, "udp 10.0.0.2:5000 > 9.9.9.9:53 len=22")
	bb.ReportAllocs()
	for i := range uint32(bb.N) {
		if i%64 == 0 {
			b.w.End()
			b.now += 1e6
			b.w.Begin(b.now)
		}
		setFlow(p, i, false)
		b.w.Track(p, hookPre)
		b.w.Confirm(p)
		if i >= 50000 {
			setFlow(p, i-50000, false)
			var u Tuple
			b.tbl.tuple(&u, p, 0)
			e, idx, _ := b.tbl.lookup(&u, b.tbl.hashTuple(&u), 0)
			b.tbl.kill(b.w, e, idx)
		}
	}
}

// BenchmarkMemory reports what a million flows take.
func BenchmarkMemory(bb *testing.B) {
	for range bb.N {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		b, _ := benchTable(bb, 1000000)
		runtime.GC()
		runtime.ReadMemStats(&after)
		bb.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "B/flow")
		bb.ReportMetric(float64(after.PauseTotalNs-before.PauseTotalNs)/float64(max(after.NumGC-before.NumGC, 1)), "ns/gcpause")
		runtime.KeepAlive(b)
	}
}
