//go:build linux

package packet_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sluice/packet"
	"sluice/packet/packettest"
)

// makeFragment makes a fragment by its parts; the datagram is a UDP one whose
// bytes at each offset are always the same unless twist changes them.
func makeFragment(v6 bool, id, off, n int, more, df bool, tos, twist byte, extra ...string) []byte {
	desc := "udp 10.1.0.2:5000 > 10.2.0.2:53"
	if v6 {
		desc = "udp [fd01::2]:5000 > [fd02::2]:53"
	}
	data := make([]byte, 9000)
	for i := range data {
		data[i] = byte(i>>3) ^ twist
	}
	from := off
	if off == 0 {
		from = 8 // the transport header is made for us, with a checksum that is not the datagram's
	}
	m, d := "", ""
	if more {
		m = "+"
	}
	if df {
		d = " df"
	}
	return packettest.MustFrame(fmt.Sprintf("17 %s frag=%d%s ipid=%d tos=%d%s %s hex=%x",
		desc[4:], off, m, id, tos, d, strings.Join(extra, " "), data[from:max(from, off+n)]))
}

// TestKernelFragments: fragments in many orders, sizes and overlaps.
func TestKernelFragments(t *testing.T) {
	l := newLab(t)
	rnd := rand.New(rand.NewPCG(13, 8))
	id, done := 0, 0
	for i := range 1500 {
		v6 := i%2 == 1
		id++
		total := 8 * (2 + rnd.IntN(200))
		step := 8 * (1 + rnd.IntN(60))
		var fs [][]byte
		df := rnd.IntN(3)
		extra := [2][]string{{"", "opts=94040000", "opts=01010101820400009404000001"}, {"", "ext=hop", "ext=dest", "ext=hop,dest,route", "ext=route,dest"}}[i%2]
		extra = []string{extra[max(0, rnd.IntN(len(extra)*2)-len(extra))]}
		for off := 0; off < total; {
			n := step
			if rnd.IntN(4) == 0 {
				n = 8 * (1 + rnd.IntN(40))
			}
			n = min(n, total-off)
			last := off+n == total
			if last && rnd.IntN(2) == 0 {
				n -= rnd.IntN(8)
			}
			tos := byte(0)
			if rnd.IntN(20) == 0 {
				tos = byte(rnd.IntN(4))
			}
			fs = append(fs, makeFragment(v6, id, off, n, !last, !v6 && (df == 1 || df == 2 && rnd.IntN(2) == 0), tos, 0, extra...))
			if off += n; last {
				break
			}
		}
		switch rnd.IntN(3) {
		case 0:
			rnd.Shuffle(len(fs), func(a, b int) { fs[a], fs[b] = fs[b], fs[a] })
		case 1:
			a, b := rnd.IntN(len(fs)), rnd.IntN(len(fs))
			fs[a], fs[b] = fs[b], fs[a]
		}
		for range rnd.IntN(3) { // duplicates, overlaps, contradictions
			x := fs[rnd.IntN(len(fs))]
			if rnd.IntN(2) == 0 {
				off := 8 * rnd.IntN(total/8)
				x = makeFragment(v6, id, off, max(1, rnd.IntN(80)), rnd.IntN(4) > 0, false, 0, 1, extra...)
			}
			at := rnd.IntN(len(fs) + 1)
			fs = append(fs[:at], append([][]byte{x}, fs[at:]...)...)
		}
		for j, f := range fs {
			l.k.Send(0, f)
			want, back := l.k.Drain(1), l.k.Drain(0)
			l.route(f, packet.GSO{})
			what := fmt.Sprintf("datagram %d, fragment %d of %d", i, j, len(fs))
			done += len(want)
			if !l.same(what, f, "forwarded", l.out, want) || !l.same(what, f, "sent back", l.back, back) {
				return
			}
		}
	}
	if done < 500 {
		t.Fatalf("only %d packets came out", done)
	}
}

// TestKernelFragmentEdges are single cases whose outcome in Linux is not obvious.
func TestKernelFragmentEdges(t *testing.T) {
	l := newLab(t)
	send := func(what string, frames ...[]byte) {
		t.Helper()
		for i, f := range frames {
			l.both(fmt.Sprintf("%s %d", what, i), f, packet.GSO{})
		}
	}
	f := packettest.MustFrame
	send("not a multiple of eight", f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=1 len=11 l4len=27"), f("17 10.1.0.2 > 10.2.0.2 frag=16 ipid=1 len=11"))
	send("the same on IPv6", f("udp [fd01::2]:1 > [fd02::2]:2 frag=0+ ipid=1 len=11 l4len=27"), f("17 fd01::2 > fd02::2 frag=16 ipid=1 len=11"))
	send("empty last", f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=2 len=8 l4len=16"), f("17 10.1.0.2 > 10.2.0.2 frag=16 ipid=2"))
	send("beyond 65535", f("17 10.1.0.2 > 10.2.0.2 frag=65528 ipid=3 len=100"), f("17 10.1.0.2 > 10.2.0.2 frag=65512 ipid=3 len=23"))
	send("beyond on IPv6", f("17 fd01::2 > fd02::2 frag=65528 ipid=3 len=100"))
	send("TCP header cut", f("6 10.1.0.2 > 10.2.0.2 frag=0+ ipid=4 len=4"), f("6 10.1.0.2 > 10.2.0.2 frag=8 ipid=4 len=40"))
	send("TCP header cut on IPv6", f("99 fd01::2 > fd02::2 frag=0+ ipid=4 hex=0001000200000001"), f("99 fd01::2 > fd02::2 frag=8 ipid=4 len=40"))
	send("TCP header cut behind options", func() []byte {
		b := f("99 fd01::2 > fd02::2 frag=0+ ipid=4 ext=dest hex=0001000200000001")
		b[48] = packet.ProtoTCP
		return b
	}())
	send("UDP header cut on IPv6", f("17 fd01::2 > fd02::2 frag=0 ipid=4 len=7"))
	send("no transport header on IPv6", f("47 fd01::2 > fd02::2 frag=0+ ipid=4"), f("47 fd01::2 > fd02::2 frag=0+ ipid=5 len=8"), f("47 fd01::2 > fd02::2 frag=8 ipid=5 len=8"))
	send("extension behind the fragment header", f("60 fd01::2 > fd02::2 frag=0+ ipid=6 hex=1100010400000000"), f("17 fd01::2 > fd02::2 frag=8 ipid=6 len=8"))
	send("later fragment of an extension", f("60 fd01::2 > fd02::2 frag=8 ipid=7 hex=1100010400000000"))
	send("protocols differ on IPv6", f("udp [fd01::2]:1 > [fd02::2]:2 frag=0+ ipid=8 len=8 l4len=24"), f("6 fd01::2 > fd02::2 frag=16 ipid=8 len=8"))
	send("options", f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=9 len=800 l4len=1616 opts=9404000001070704aabbccdd"), f("17 10.1.0.2 > 10.2.0.2 frag=808 ipid=9 len=808 opts=94040000"))
	send("too big with DF", f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=10 df len=1592 l4len=1608"), f("17 10.1.0.2 > 10.2.0.2 frag=1600 ipid=10 df len=8"))
	send("too big without", f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=10 len=1592 l4len=1608"), f("17 10.1.0.2 > 10.2.0.2 frag=1600 ipid=10 df len=8"))
	send("too big on IPv6", f("udp [fd01::2]:1 > [fd02::2]:2 frag=0+ ipid=10 len=1592 l4len=1608"), f("17 fd01::2 > fd02::2 frag=1600 ipid=10 len=8"))
	send("DF on the small one", f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=11 len=1392 l4len=1408"), f("17 10.1.0.2 > 10.2.0.2 frag=1400 ipid=11 df len=8"))
	send("TTL of the first", f("17 10.1.0.2 > 10.2.0.2 frag=16 ipid=12 ttl=1 len=8"), f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=12 ttl=9 len=8 l4len=24"))
	send("TTL of the first, expired", f("17 10.1.0.2 > 10.2.0.2 frag=16 ipid=13 ttl=9 len=8"), f("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=13 ttl=1 len=8 l4len=24"))
	for _, v6 := range []bool{false, true} {
		for a := range byte(4) {
			for b := range byte(4) {
				send(fmt.Sprintf("ECN %d %d", a, b), makeFragment(v6, 100+int(a*4+b), 0, 16, true, false, a, 0), makeFragment(v6, 100+int(a*4+b), 16, 16, false, false, b, 0))
			}
		}
	}
}

// TestKernelMaxDist: a source that sends 65 other fragments in between.
func TestKernelMaxDist(t *testing.T) {
	l := newLab(t)
	for _, n := range []int{62, 63, 64, 65} {
		base := 1000 * n
		l.both("first", makeFragment(false, base, 0, 16, true, false, 0, 0), packet.GSO{})
		for i := range n {
			l.both("between", makeFragment(false, base+1+i, 0, 16, true, false, 0, 0), packet.GSO{})
		}
		l.both(fmt.Sprintf("last after %d", n), makeFragment(false, base, 16, 16, false, false, 0, 0), packet.GSO{})
	}
}

// TestKernelTimeout: which datagrams that stay incomplete are answered with an ICMP error.
func TestKernelTimeout(t *testing.T) {
	l := newLab(t)
	l.k.Sysctl("net/ipv4/ipfrag_time=1")
	l.k.Sysctl("net/netfilter/nf_conntrack_frag6_timeout=1")
	frames := [][]byte{
		packettest.MustFrame("udp [fd01::2]:1 > [fd02::2]:2 frag=0+ ipid=1 len=8 l4len=24"),
		packettest.MustFrame("17 fd01::2 > fd02::2 frag=16 ipid=2 len=8"),
		packettest.MustFrame("udp 10.1.0.2:1 > 10.2.0.2:2 frag=0+ ipid=1 len=8 l4len=24"), // in transit: no error
		packettest.MustFrame("17 10.1.0.2 > 10.1.0.1 frag=16 ipid=2 len=8"),
		packettest.MustFrame("udp 10.1.0.2:1 > 10.1.0.1:2 frag=0+ ipid=3 len=8 l4len=24"),
	}
	for _, f := range frames {
		l.k.Send(0, f)
		l.route(f, packet.GSO{})
	}
	var want [][]byte
	for end := time.Now().Add(10 * time.Second); len(want) < 2 && time.Now().Before(end); {
		want = append(want, l.k.Wait(0, time.Second)...)
	}
	l.back = nil
	l.r.Expire(61e9, func(first *packet.Packet, user uint32) {
		l.p.Copy(first)
		switch {
		case first.Family == packet.IPv6:
			l.error(packet.ICMPv6TimeExceeded, 1, 0)
		case first.Dst() == l.address(0):
			l.error(packet.ICMPTimeExceeded, 1, 0)
		}
	})
	if len(want) == 2 && want[0][0]>>4 == 6 {
		want[0], want[1] = want[1], want[0]
	}
	l.same("timeout", nil, "sent back", l.back, want)
}
