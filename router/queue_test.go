package router

import (
	"fmt"
	"io"
	"net/netip"
	"testing"

	"sluice/netstack"
	"sluice/router/nfqueue"
)

// TestQueueReroute: a packet of the router's own that waited at OUTPUT is routed
// again if its addresses, its mark or, with IPv4 alone, its TOS changed, as Linux
// does. Routes that changed meanwhile show it.
func TestQueueReroute(t *testing.T) {
	b := newBed(t, edge(nil))
	for _, tool := range []string{"iptables", "ip6tables"} {
		if _, err := b.r.Command("", tool, "-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "5"); err != nil {
			t.Fatal(err)
		}
	}
	port := 5000
	for _, fam := range []struct {
		src, dst, other, via string
		tos                  string // the device after a change of it
	}{
		{"198.51.100.1", "203.0.113.9", "203.0.113.8", "10.0.1.9", "lan0"},
		{"fd00:2::1", "2001:db8::9", "2001:db8::8", "fd00:1::9", "wan0"},
	} {
		via := netip.MustParseAddr(fam.via)
		route := netstack.RouteSpec{To: netip.PrefixFrom(netip.MustParseAddr(fam.other), via.BitLen()-8).Masked(), Via: via, Dev: "lan0"}
		for _, c := range []struct {
			dst, fields string
			mark        uint32
			out         string
		}{
			{fam.dst, "", 0, "wan0"},
			{fam.dst, "tos=16", 0, fam.tos},
			{fam.dst, "ttl=33", 0, "wan0"},
			{fam.dst, "flow=5", 0, "wan0"},
			{fam.dst, "", 7, "lan0"},
			{fam.dst, "tos=16", 7, "lan0"},
			{fam.other, "", 0, "lan0"},
		} {
			port++
			was := fmt.Sprintf("udp %s > %s", netip.AddrPortFrom(netip.MustParseAddr(fam.src), uint16(port)), netip.AddrPortFrom(netip.MustParseAddr(fam.dst), 53))
			is := fmt.Sprintf("udp %s > %s %s", netip.AddrPortFrom(netip.MustParseAddr(fam.src), uint16(port)), netip.AddrPortFrom(netip.MustParseAddr(c.dst), 53), c.fields)
			d := nfqueue.Decision{Verdict: nfqueue.Accept, Payload: frame(t, is), SetMark: c.mark != 0, Mark: c.mark}
			for _, l := range b.links {
				l.out = nil
			}
			b.decided(frame(t, was), d, func(tx *netstack.Tx) error { return tx.AddRoute(route) })
			for name, l := range b.links {
				if want := map[bool]int{true: 1}[name == c.out]; len(l.out) != want {
					t.Errorf("%s became %s with mark %d: %d packets left by %s, want %d (%v)", was, is, c.mark, len(l.out), name, want, b.reasons())
				}
			}
			if err := b.r.fib.Update(func(tx *netstack.Tx) error { return tx.DelRoute(route) }); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// decided sends a packet of the router's own, which waits in queue 5 until the
// routes have changed and d is said.
func (b *bed) decided(f []byte, d nfqueue.Decision, routes func(*netstack.Tx) error) {
	b.t.Helper()
	in, say := io.Pipe()
	hear, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- b.r.ServeQueue(5, nfqueue.Options{}, in, out, nil) }()
	if _, err := io.ReadFull(hear, make([]byte, 4)); err != nil {
		b.t.Fatal(err)
	}
	b.w.do(func(w *worker) {
		w.begin(b.r.clock())
		p := w.alloc()
		p.Reset()
		p.SetBytes(f)
		p.Reason = p.Parse()
		w.sendOwn(p)
		w.end()
	})
	if q := (*b.r.queues.Load())[5]; q.next != 1 {
		b.t.Fatal("the packet does not wait: ", b.reasons())
	}
	m, err := nfqueue.ReadMessage(hear)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := nfqueue.ParsePacket(m)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.r.fib.Update(routes); err != nil {
		b.t.Fatal(err)
	}
	d.ID = p.ID
	if _, err := say.Write(nfqueue.AppendDecision(nil, &d)); err != nil {
		b.t.Fatal(err)
	}
	say.Close()
	if err := <-ended; err != nil {
		b.t.Fatal(err)
	}
}
