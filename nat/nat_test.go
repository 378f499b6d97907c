package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
)

// checkUnique fails if a packet could belong to two live connections.
func checkUnique(t *testing.T, table *conntrack.Table) (n int) {
	t.Helper()
	owner := map[conntrack.Tuple]conntrack.Tuple{}
	table.Each(func(s *conntrack.Snapshot) bool {
		n++
		for _, u := range []conntrack.Tuple{s.Orig, s.Reply} {
			if o, ok := owner[u]; ok && o != s.Orig {
				t.Errorf("%v belongs to %v and to %v", u, o, s.Orig)
			}
			owner[u] = s.Orig
		}
		return true
	})
	return n
}

// TestNoSharedTuples makes connections at random, through a few addresses and
// ports, so that they clash all the time.
func TestNoSharedTuples(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	ranges := []Range{
		snat("198.51.100.7", 0, 0, 0),
		snat("198.51.100.7", 2000, 2040, 0),
		snat("198.51.100.7", 2000, 2040, ProtoRandom),
		snat("198.51.100.7", 0, 0, ProtoRandomFully),
		ranged("198.51.100.7", "198.51.100.9", 0, 0, 0),
		ranged("198.51.100.7", "198.51.100.9", 2000, 2010, Persistent),
		{MinPort: 3000, MaxPort: 3050, Flags: ProtoSpecified},
	}
	dnats := []Range{
		snat("9.9.9.1", 0, 0, 0),
		snat("9.9.9.1", 53, 53, 0),
		ranged("9.9.9.1", "9.9.9.3", 53, 55, 0),
	}
	b := newBox(t)
	b.rules[hookPrerouting] = func(p *packet.Packet) bool {
		if r.IntN(2) == 0 {
			return true
		}
		return b.nat.Setup(b.w, p, &dnats[r.IntN(len(dnats))], Dst)
	}
	b.rules[hookPostrouting] = func(p *packet.Packet) bool {
		if r.IntN(3) == 0 {
			return true
		}
		return b.nat.Setup(b.w, p, &ranges[r.IntN(len(ranges))], Src)
	}
	passed, dropped := 0, 0
	for i := 0; i < 20000; i++ {
		src, dst := fmt.Sprintf("10.0.1.%d", 2+r.IntN(6)), fmt.Sprintf("9.9.9.%d", 1+r.IntN(4))
		var in []byte
		switch r.IntN(4) {
		case 0:
			in = tcp(src, uint16(2000+r.IntN(30)), dst, uint16(50+r.IntN(6)), syn)
		case 1:
			in = echo(src, dst, uint16(r.IntN(60)))
		default:
			in = udp(src, uint16(2000+r.IntN(30)), dst, uint16(50+r.IntN(6)), "x")
		}
		got := b.pass(b.c, in)
		if got == nil {
			dropped++
			if b.dropped != ReasonExhausted {
				t.Fatalf("packet %d is dropped for %s", i, b.dropped)
			}
			continue
		}
		passed++
		verify(t, got)
		if r.IntN(2) == 0 {
			back := b.pass(b.s, reply(got))
			if back == nil {
				t.Fatalf("packet %d: the answer is dropped (%s)", i, b.dropped)
			}
			verify(t, back)
			proto, _, _ := split(in)
			src, dst := endpoints(in)
			backSrc, backDst := endpoints(back)
			if isICMP(proto) {
				_, _, x := split(in)
				_, _, y := split(back)
				if src.Addr() != backDst.Addr() || dst.Addr() != backSrc.Addr() || !bytes.Equal(x[4:6], y[4:6]) {
					t.Fatalf("packet %d: %x is answered by %x", i, in, back)
				}
			} else if src != backDst || dst != backSrc {
				t.Fatalf("packet %d: %v > %v is answered by %v > %v", i, src, dst, backSrc, backDst)
			}
		}
		if i%4000 == 0 {
			checkUnique(t, b.table)
		}
	}
	checkUnique(t, b.table)
	if passed < 1000 || dropped == 0 {
		t.Errorf("%d passed, %d were dropped: the test does not test", passed, dropped)
	}
	b.table.Flush()
	if n := b.nat.sources.len(); n != 0 {
		t.Errorf("%d mappings outlive their connections", n)
	}
}

func TestExhaustion(t *testing.T) {
	for _, v := range []struct{ client, server, alias string }{
		{"10.0.1.2", "9.9.9.9", "198.51.100.7"}, {"fd00:1::2", "2001:db8::9", "2001:db8:7::7"},
	} {
		for _, proto := range []uint8{packet.ProtoUDP, packet.ProtoTCP, packet.ProtoSCTP, packet.ProtoUDPLite} {
			for _, f := range []RangeFlags{0, ProtoRandom, ProtoRandomFully} {
				b := newBox(t)
				if proto == packet.ProtoUDPLite { // as on Linux, conntrack refuses its checksum
					b.sys.Lookup("net.netfilter.nf_conntrack_checksum").Store(0)
				}
				const n = 100 // below a search's length: every port is tried
				b.rule(hookPostrouting, snat(v.alias, 2000, 2000+n-1, f), nil)
				make := func(port int) []byte {
					s := flowSpec{src: v.client, dst: v.server, proto: proto, sport: uint16(port), dport: 80, flags: syn}
					if proto == packet.ProtoSCTP {
						s.payload = []byte{1, 0, 0, 20, 0, 0, 0, 7, 0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 9}
					}
					return s.build()
				}
				used := map[uint16]bool{}
				for i := 0; i < n; i++ {
					src, _ := endpoints(b.must(b.c, make(10000+i)))
					if p := src.Port(); p < 2000 || p >= 2000+n || used[p] {
						t.Fatalf("port %d is outside the range or used twice", p)
					}
					used[src.Port()] = true
				}
				for i := 0; i < 5; i++ {
					if got := b.pass(b.c, make(11000+i)); got != nil || b.dropped != ReasonExhausted {
						t.Fatalf("connection %d of %d gets %x (%s)", n+i, n, got, b.dropped)
					}
				}
				if got := checkUnique(t, b.table); got != n {
					t.Fatalf("%d connections are tracked, want %d", got, n)
				}
				// A place that becomes free is found.
				b.table.Delete(func(s *conntrack.Snapshot) bool { return s.Orig.SrcPort == 10042 })
				b.must(b.c, make(11000))
			}
		}
	}
}

func TestPortClasses(t *testing.T) {
	b := newBox(t)
	b.rule(hookPostrouting, snat("198.51.100.7", 0, 0, 0), nil)
	for _, c := range []struct{ port, lo, hi uint16 }{
		{1, 1, 511}, {80, 1, 511}, {511, 1, 511}, {512, 600, 1023}, {599, 600, 1023}, {1023, 600, 1023},
		{1024, 1024, 65535}, {65535, 1024, 65535},
	} {
		src, _ := endpoints(b.must(b.c, udp("10.0.1.2", c.port, "9.9.9.9", c.port, "x")))
		if src.Port() != c.port {
			t.Errorf("port %d is free and becomes %d", c.port, src.Port())
		}
		for i := 3; i < 60; i++ {
			src, _ := endpoints(b.must(b.c, udp(fmt.Sprintf("10.0.1.%d", i), c.port, "9.9.9.9", c.port, "x")))
			if p := src.Port(); p < c.lo || p > c.hi {
				t.Errorf("port %d becomes %d, outside %d to %d", c.port, p, c.lo, c.hi)
			}
		}
	}
	checkUnique(t, b.table)
}

func TestPersistent(t *testing.T) {
	for _, f := range []RangeFlags{0, Persistent} {
		b := newBox(t)
		b.rule(hookPostrouting, ranged("198.51.100.0", "198.51.100.63", 0, 0, f), nil)
		addrs := map[string]bool{}
		for i := 1; i < 40; i++ {
			src, _ := endpoints(b.must(b.c, udp("10.0.1.2", uint16(4000+i), fmt.Sprintf("9.9.9.%d", i), 53, "x")))
			addrs[src.Addr().String()] = true
		}
		if one := len(addrs) == 1; one != (f == Persistent) {
			t.Errorf("flags %#x: one client has %d addresses", f, len(addrs))
		}
	}
}

func TestRandomPorts(t *testing.T) {
	for _, f := range []RangeFlags{ProtoRandom, ProtoRandomFully} {
		b := newBox(t)
		b.rule(hookPostrouting, snat("198.51.100.7", 0, 0, f), nil)
		same, ports := 0, map[uint16]bool{}
		for i := 0; i < 200; i++ {
			src, _ := endpoints(b.must(b.c, udp("10.0.1.2", uint16(20000+i), "9.9.9.9", 53, "x")))
			if src.Port() == uint16(20000+i) {
				same++
			}
			if src.Port() < 1024 {
				t.Errorf("port %d left its class", src.Port())
			}
			ports[src.Port()] = true
		}
		if same > 5 || len(ports) != 200 {
			t.Errorf("flags %#x: %d of 200 ports are kept, %d differ", f, same, len(ports))
		}
	}
}

func TestSameSourceSameMapping(t *testing.T) {
	b := newBox(t)
	b.rule(hookPostrouting, ranged("198.51.100.0", "198.51.100.255", 2000, 2999, 0), nil)
	first, _ := endpoints(b.must(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "x")))
	for i := 1; i < 50; i++ {
		src, _ := endpoints(b.must(b.c, udp("10.0.1.2", 5000, fmt.Sprintf("9.9.8.%d", i), 53, "x")))
		if src != first {
			t.Fatalf("one source is %v and %v", first, src)
		}
	}
}

// TestNullBinding: a connection that no rule touches may still have to give way.
func TestNullBinding(t *testing.T) {
	b := newBox(t)
	b.rules[hookPrerouting] = func(p *packet.Packet) bool {
		r := snat("9.9.9.9", 53, 53, 0)
		return p.Dst() != ip("198.51.100.7") || b.nat.Setup(b.w, p, &r, Dst)
	}
	b.must(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "straight"))
	got := b.must(b.c, udp("10.0.1.2", 5000, "198.51.100.7", 53, "by the alias"))
	src, dst := endpoints(got)
	if src.Port() == 5000 || src.Port() < 1024 || src.Addr().String() != "10.0.1.2" || dst.String() != "9.9.9.9:53" {
		t.Fatalf("%v > %v shares its replies with another connection", src, dst)
	}
	back := b.must(b.s, reply(got))
	if src, dst := endpoints(back); src.String() != "198.51.100.7:53" || dst.String() != "10.0.1.2:5000" {
		t.Fatalf("the answer goes %v > %v", src, dst)
	}
	// The same at INPUT.
	b.rules[hookPrerouting] = func(p *packet.Packet) bool {
		r := snat("10.0.1.1", 7, 7, 0)
		return p.Dst() != ip("198.51.100.7") || b.nat.Setup(b.w, p, &r, Dst)
	}
	b.must(b.c, udp("10.0.1.2", 6000, "10.0.1.1", 7, "straight"))
	got = b.must(b.c, udp("10.0.1.2", 6000, "198.51.100.7", 7, "by the alias"))
	if src, dst := endpoints(got); src.Port() == 6000 || dst.String() != "10.0.1.1:7" {
		t.Fatalf("%v > %v shares its replies with another connection", src, dst)
	}
	checkUnique(t, b.table)
}

func TestMasqueradeNeedsAnAddress(t *testing.T) {
	b := newBox(t)
	var addr [16]byte
	b.rules[hookPostrouting] = func(p *packet.Packet) bool { return b.nat.Masquerade(b.w, p, &Range{}, addr) }
	if b.pass(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "x")) != nil || b.dropped != ReasonNoAddress {
		t.Fatalf("it passes without an address (%s)", b.dropped)
	}
	addr = ip("10.0.2.1")
	if src, _ := endpoints(b.must(b.c, udp("0.0.0.0", 68, "9.9.9.9", 67, "dhcp"))); src.Addr().String() != "0.0.0.0" {
		t.Fatalf("a packet without a source gets %v", src)
	}
}

// TestMasqueradeGone: the connection ends with what it was masqueraded as.
func TestMasqueradeGone(t *testing.T) {
	fresh := func() *box {
		b := newBox(t)
		b.rules[hookPostrouting] = func(p *packet.Packet) bool {
			return p.Out != b.s || b.nat.Masquerade(b.w, p, &Range{}, ip("10.0.2.1"))
		}
		b.must(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "x"))
		b.must(b.s, udp("10.0.2.9", 5000, "10.0.1.2", 53, "not masqueraded"))
		return b
	}
	b := fresh()
	if n := b.nat.InterfaceGone(1) + b.nat.AddressGone(2, ip("10.0.2.3")) + b.nat.AddressGone(1, ip("10.0.2.1")); n != 0 {
		t.Errorf("%d connections end that have nothing to do with it", n)
	}
	if n := b.nat.AddressGone(2, ip("10.0.2.1")); n != 1 {
		t.Errorf("%d connections end with the address, want 1", n)
	}
	b = fresh()
	if n := b.nat.InterfaceGone(2); n != 1 {
		t.Errorf("%d connections end with the interface, want 1", n)
	}
	// Routed elsewhere: this packet is dropped, the next makes a new connection.
	b = fresh()
	wan := b.s
	b.s = packet.NewIface(9, "wan1", 1500)
	if b.pass(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "x")) != nil || b.dropped != ReasonOifChanged {
		t.Errorf("it leaves by another interface with the old address (%s)", b.dropped)
	}
	b.must(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "x"))
	b.s = wan
}

func TestRedirect(t *testing.T) {
	b := newBox(t)
	b.rules[hookPrerouting] = func(p *packet.Packet) bool {
		return b.nat.Redirect(b.w, p, &Range{MinPort: 3128, MaxPort: 3128, Flags: ProtoSpecified}, ip("10.0.1.1"))
	}
	got := b.must(b.c, tcp("10.0.1.2", 5000, "9.9.9.9", 80, syn))
	if _, dst := endpoints(got); dst.String() != "10.0.1.1:3128" {
		t.Fatalf("redirected to %v", dst)
	}
	// What the router's own socket answers comes from whom the client asked.
	back := b.send(reply(got), b.c)
	if back == nil {
		t.Fatal("the answer is dropped: ", b.dropped)
	}
	verify(t, back)
	if src, dst := endpoints(back); src.String() != "9.9.9.9:80" || dst.String() != "10.0.1.2:5000" {
		t.Fatalf("the answer goes %v > %v", src, dst)
	}
	b.rules[hookPrerouting] = func(p *packet.Packet) bool { return b.nat.Redirect(b.w, p, &Range{}, [16]byte{}) }
	if b.pass(b.c, tcp("10.0.1.2", 5001, "9.9.9.9", 80, syn)) != nil || b.dropped != ReasonNoAddress {
		t.Errorf("it passes without an address (%s)", b.dropped)
	}
}

// TestOutput: the router's own packets are translated at both ends.
func TestOutput(t *testing.T) {
	b := newBox(t)
	b.rule(hookOutput, snat("9.9.9.9", 8080, 8080, 0), nil)
	b.rule(hookPostrouting, snat("198.51.100.7", 0, 0, 0), nil)
	got := b.send(tcp("10.0.2.1", 5000, "9.9.9.1", 80, syn), b.s)
	if got == nil {
		t.Fatal("dropped: ", b.dropped)
	}
	verify(t, got)
	if src, dst := endpoints(got); src.String() != "198.51.100.7:5000" || dst.String() != "9.9.9.9:8080" {
		t.Fatalf("it leaves as %v > %v", src, dst)
	}
	back := b.must(b.s, reply(got))
	if src, dst := endpoints(back); src.String() != "9.9.9.1:80" || dst.String() != "10.0.2.1:5000" {
		t.Fatalf("the answer goes %v > %v", src, dst)
	}
}

// TestBadErrors: an error with a wrong checksum, or a redirect, does not pass where its
// connection is translated.
func TestBadErrors(t *testing.T) {
	b := newBox(t)
	b.rule(hookPostrouting, snat("198.51.100.7", 0, 0, 0), nil)
	got := b.must(b.c, udp("10.0.1.2", 5000, "9.9.9.9", 53, "question"))
	e := icmpError("10.0.2.2", 5, 1, 0x0a000203, got, 100)
	if b.pass(b.s, e) != nil || b.dropped != ReasonRedirect {
		t.Errorf("a redirect passes (%s)", b.dropped)
	}
	e = icmpError("10.0.2.2", 3, 3, 0, got, 100)
	e[len(e)-1] ^= 0x55
	b.sys.Lookup("net.netfilter.nf_conntrack_checksum").Store(0) // else conntrack sees it first
	if b.pass(b.s, e) != nil || b.dropped != ReasonBadError {
		t.Errorf("an error with a wrong checksum passes (%s)", b.dropped)
	}
}

// TestOffload: a super-packet's checksum stays partial and right.
func TestOffload(t *testing.T) {
	for _, v := range []struct{ client, server, alias string }{
		{"10.0.1.2", "9.9.9.9", "198.51.100.7"}, {"fd00:1::2", "2001:db8::9", "2001:db8:7::7"},
	} {
		b := newBox(t)
		b.rule(hookPostrouting, snat(v.alias, 2000, 2000, 0), nil)
		b.must(b.s, reply(b.must(b.c, tcp(v.client, 5000, v.server, 80, syn))))
		f := flowSpec{src: v.client, dst: v.server, proto: packet.ProtoTCP, sport: 5000, dport: 80, flags: ack, seq: 1001, ack: 7001, payload: bytes.Repeat([]byte("data"), 2000)}
		in := f.build()
		h := 20
		typ := packet.GSOTCPv4
		if in[0]>>4 == 6 {
			h, typ = 40, packet.GSOTCPv6
		}
		_, pseudo, l4 := split(in)
		binary.BigEndian.PutUint16(l4[16:], ^csum(pseudo))
		b.w.Begin(b.now)
		p := b.p
		p.SetBytes(in)
		p.In, p.Now = b.c, b.now
		p.GSO = packet.GSO{Type: typ, NeedsCsum: true, HdrLen: uint16(h + 20), Size: 1400, CsumStart: uint16(h), CsumOffset: 16}
		if r := p.Parse(); r != 0 {
			t.Fatal(r)
		}
		p.Out = b.s
		if !b.w.Track(p, hookPrerouting) || !b.hook(p, hookPrerouting) || !b.hook(p, hookPostrouting) {
			t.Fatal("dropped: ", p.Reason)
		}
		out := bytes.Clone(p.Bytes())
		b.w.Release(p)
		b.w.End()
		_, pseudo, l4 = split(out)
		if got, want := binary.BigEndian.Uint16(l4[16:]), ^csum(pseudo); got != want {
			t.Errorf("the partial checksum is %#x, want %#x", got, want)
		}
		if src, _ := endpoints(out); src.String() != fmt.Sprintf("%v", netipPort(v.alias, 2000)) {
			t.Errorf("it leaves from %v", src)
		}
	}
}

// TestConcurrent: workers that choose at once never agree on one tuple.
func TestConcurrent(t *testing.T) {
	b := newBox(t)
	r := snat("198.51.100.7", 2000, 2999, 0)
	const workers, each = 4, 600
	var wg sync.WaitGroup
	passed := make([]int, workers)
	for g := 0; g < workers; g++ {
		w := b.table.NewWorker()
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := packet.New()
			for i := 0; i < each; i++ {
				w.Begin(b.now)
				p.SetBytes(udp(fmt.Sprintf("10.0.1.%d", 2+g), uint16(10000+i/2), "9.9.9.9", uint16(53+i%2), "x"))
				p.In, p.Out, p.Now = b.c, b.s, b.now
				p.Parse()
				ok := w.Track(p, hookPrerouting) && Hook(b.nat, w, p, hookPrerouting, func(*packet.Packet) uint8 { return 1 }) == 1 &&
					Hook(b.nat, w, p, hookPostrouting, func(p *packet.Packet) uint8 {
						if b.nat.Setup(w, p, &r, Src) {
							return 1
						}
						return 0
					}) == 1 && w.Confirm(p)
				if ok {
					passed[g]++
				}
				w.Release(p)
				w.End()
			}
		}()
	}
	wg.Wait()
	total := 0
	for _, n := range passed {
		total += n
	}
	if n := checkUnique(t, b.table); n != total || n < 1500 {
		t.Errorf("%d connections are tracked, %d packets passed", n, total)
	}
}

// TestConcurrentDelete: bindings are made and forgotten at once; in the end none is left over.
func TestConcurrentDelete(t *testing.T) {
	b := newBox(t)
	r := snat("198.51.100.7", 2000, 2399, 0)
	var wg sync.WaitGroup
	var passed atomic.Int64
	stop := make(chan struct{})
	for g := 0; g < 3; g++ {
		w := b.table.NewWorker()
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := packet.New()
			for i := 0; i < 1500; i++ {
				w.Begin(b.now)
				p.SetBytes(udp(fmt.Sprintf("10.0.1.%d", 2+i%5), uint16(10000+i/3), "9.9.9.9", uint16(53+g), "x"))
				p.In, p.Out, p.Now = b.c, b.s, b.now
				p.Parse()
				ok := w.Track(p, hookPrerouting) && Hook[uint8](b.nat, w, p, hookPrerouting, nil) == 1 &&
					Hook(b.nat, w, p, hookPostrouting, func(p *packet.Packet) uint8 {
						if b.nat.Setup(w, p, &r, Src) {
							return 1
						}
						return 0
					}) == 1 && w.Confirm(p)
				if ok {
					passed.Add(1)
				}
				w.Release(p)
				w.End()
			}
		}()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			b.table.Delete(func(s *conntrack.Snapshot) bool { return int(s.Orig.SrcPort)%3 == n%3 })
		}
	}()
	wg.Wait()
	close(stop)
	<-done
	checkUnique(t, b.table)
	if n := passed.Load(); n < 1000 {
		t.Errorf("only %d packets passed", n)
	}
	b.table.Flush()
	if n := b.nat.sources.len(); n != 0 {
		t.Errorf("%d mappings outlive their connections", n)
	}
}

// established gives a packet of a masqueraded flow as it arrives, with its connection.
func established(t testing.TB, in []byte, r Range) (*box, *packet.Packet) {
	b := newBox(t)
	b.rule(hookPostrouting, r, nil)
	first := b.must(b.c, in)
	b.must(b.s, reply(first))
	p := b.p
	p.SetBytes(in)
	p.In, p.Out, p.Now = b.c, b.s, b.now
	if r := p.Parse(); r != 0 {
		t.Fatal(r)
	}
	b.w.Begin(b.now)
	if !b.w.Track(p, hookPrerouting) || p.CtInfo != packet.CtEstablished {
		t.Fatal("not established")
	}
	return b, p
}

func TestEstablishedAllocatesNothing(t *testing.T) {
	for _, in := range [][]byte{
		udp("10.0.1.2", 5000, "9.9.9.9", 53, "x"), udp("fd00:1::2", 5000, "2001:db8::9", 53, "x"), echo("10.0.1.2", "9.9.9.9", 7),
	} {
		r := snat("198.51.100.7", 0, 0, 0)
		if in[0]>>4 == 6 {
			r = snat("2001:db8:7::7", 0, 0, 0)
		}
		b, p := established(t, in, r)
		if n := testing.AllocsPerRun(1000, func() {
			copy(p.Bytes(), in)
			if Hook[uint8](b.nat, b.w, p, hookPrerouting, nil) != 1 || Hook[uint8](b.nat, b.w, p, hookPostrouting, nil) != 1 {
				t.Fatal(p.Reason)
			}
		}); n != 0 {
			t.Errorf("%v allocations for a packet", n)
		}
		b.w.End()
	}
}

func BenchmarkRewrite(b *testing.B) {
	for _, c := range []struct {
		name string
		in   []byte
		r    Range
	}{
		{"udp4", udp("10.0.1.2", 5000, "9.9.9.9", 53, "x"), snat("198.51.100.7", 2000, 2000, 0)},
		{"udp6", udp("fd00:1::2", 5000, "2001:db8::9", 53, "x"), snat("2001:db8:7::7", 2000, 2000, 0)},
		{"untouched", udp("10.0.1.2", 5000, "9.9.9.9", 53, "x"), snat("10.0.1.2", 0, 0, 0)},
	} {
		b.Run(c.name, func(b *testing.B) {
			x, p := established(b, c.in, c.r)
			b.ReportAllocs()
			for b.Loop() {
				x.nat.Rewrite(x.w, p, hookPrerouting)
				x.nat.Rewrite(x.w, p, hookPostrouting)
				copy(p.Bytes(), c.in)
			}
			x.w.End()
		})
	}
}

// BenchmarkNewConnection is the whole way of a first packet: track, bind, confirm.
func BenchmarkNewConnection(b *testing.B) {
	x := newBox(b)
	r := snat("198.51.100.7", 0, 0, 0)
	in := udp("10.0.1.2", 5000, "9.9.9.9", 53, "x")
	p := x.p
	table := func(p *packet.Packet) uint8 {
		x.nat.Setup(x.w, p, &r, Src)
		return 1
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		if i++; i%60000 == 0 {
			x.table.Flush()
		}
		x.w.Begin(x.now)
		p.SetBytes(in)
		p.Parse()
		p.SetSrcPort(uint16(1024 + i%60000))
		x.w.Track(p, hookPrerouting)
		Hook[uint8](x.nat, x.w, p, hookPrerouting, nil)
		Hook(x.nat, x.w, p, hookPostrouting, table)
		x.w.Confirm(p)
		x.w.Release(p)
		x.w.End()
	}
}

// FuzzQuoted: whatever an ICMP error quotes, nothing panics and only what is
// to change changes.
func FuzzQuoted(f *testing.F) {
	f.Add(udp("10.0.1.2", 5000, "9.9.9.9", 53, "x"), uint8(17), uint8(0))
	f.Add(tcp("fd00:1::2", 5000, "2001:db8::9", 80, syn), uint8(6), uint8(1))
	f.Add(echo("fd00:1::2", "2001:db8::9", 9), uint8(58), uint8(0))
	f.Add(flowSpec{src: "10.0.1.2", dst: "9.9.9.9", proto: 132, sport: 1, dport: 2}.build(), uint8(132), uint8(1))
	f.Add([]byte{0x60, 0, 0, 0, 0, 16, 0, 64}, uint8(47), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, proto, m uint8) {
		for _, fam := range []uint8{packet.IPv4, packet.IPv6} {
			want := conntrack.Tuple{Src: ip("2001:db8::1"), Dst: ip("2001:db8::2"), SrcPort: 7, DstPort: 8, Proto: proto, Family: fam}
			c := append(bytes.Clone(b), 0xaa)
			rewriteQuoted(c[:len(b)], fam, &want, Manip(m&1))
			if c[len(b)] != 0xaa {
				t.Fatal("written beyond the packet")
			}
		}
	})
}
