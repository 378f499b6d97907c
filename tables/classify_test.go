package tables_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// ruleMaker makes random rules over few values, so that packets meet many of them.
type ruleMaker struct {
	*rand.Rand
	v6 bool
}

func one[T any](g *ruleMaker, of ...T) T { return of[g.IntN(len(of))] }

func (g *ruleMaker) not() string {
	if g.IntN(6) == 0 {
		return " !"
	}
	return ""
}

func (g *ruleMaker) net() string {
	if g.v6 {
		return fmt.Sprintf("2001:db8:%x::%x/%d", g.IntN(4), g.IntN(8), one(g, 0, 16, 32, 47, 48, 64, 120, 127, 128))
	}
	if g.IntN(20) == 0 {
		return fmt.Sprintf("10.%d.0.%d/255.255.0.255", g.IntN(4), g.IntN(8))
	}
	return fmt.Sprintf("10.%d.%d.%d/%d", g.IntN(4), g.IntN(4), g.IntN(8), one(g, 0, 7, 8, 9, 14, 15, 16, 22, 24, 29, 30, 31, 32))
}

func (g *ruleMaker) addr() string {
	if g.v6 {
		return fmt.Sprintf("2001:db8:%x::%x", g.IntN(4), g.IntN(8))
	}
	return fmt.Sprintf("10.%d.%d.%d", g.IntN(4), g.IntN(4), g.IntN(8))
}

func (g *ruleMaker) ports() string {
	a, b := g.IntN(40), g.IntN(40)
	return one(g, strconv.Itoa(a), strconv.Itoa(a), fmt.Sprintf("%d:%d", min(a, b), max(a, b)), fmt.Sprintf(":%d", b), fmt.Sprintf("%d:", a))
}

func (g *ruleMaker) matches() (s string) {
	if g.IntN(3) == 0 {
		s += g.not() + " -s " + g.net()
	}
	if g.IntN(3) == 0 {
		s += g.not() + " -d " + g.net()
	}
	if g.IntN(5) == 0 {
		s += g.not() + " -i " + one(g, "lan0", "lan+", "wan0", "+", "dmz0")
	}
	if g.IntN(5) == 0 {
		s += g.not() + " -o " + one(g, "wan0", "wa+", "lan0")
	}
	if g.IntN(12) == 0 {
		s += " -m limit --limit 1/hour --limit-burst " + strconv.Itoa(1+g.IntN(30))
	}
	switch g.IntN(8) {
	case 0, 1:
		s += " -p " + one(g, "tcp", "udp") + g.not() + one(g, " --dport ", " --sport ") + g.ports()
	case 2:
		s += " -p " + one(g, "tcp", "udp") + " -m multiport" + g.not() + one(g, " --dports ", " --sports ", " --ports ") + fmt.Sprintf("%d,%d:%d,%d", g.IntN(9), 10+g.IntN(9), 20+g.IntN(19), 39)
	case 3:
		s += " -p tcp" + one(g, " --syn", " --tcp-flags ACK ACK", " --tcp-option 2", " --tcp-option 2 -m multiport --dports 1:20", " --sport 1:30 --syn -m multiport --dports 5")
	case 4:
		s += g.not() + " -p " + one(g, "tcp", "udp", "47", "132")
	case 5:
		a, b := g.addr(), g.addr()
		if a > b {
			a, b = b, a
		}
		s += " -m iprange" + g.not() + one(g, " --src-range ", " --dst-range ") + a + "-" + b
	}
	switch g.IntN(14) {
	case 0:
		s += " -m mark" + g.not() + " --mark " + strconv.Itoa(g.IntN(3))
	case 1:
		s += " -m length --length " + one(g, "0:60", "60:")
	case 2:
		s += " -m limit --limit 1/hour --limit-burst 5 -m iprange --src-range " + g.addr()
	case 3:
		s += " -m comment --comment x"
	}
	return s
}

func (g *ruleMaker) rule(chains ...string) string {
	m := g.matches()
	switch g.IntN(12) {
	case 0:
		return m + one(g, " -j ACCEPT", " -j DROP")
	case 1, 2, 3:
		if len(chains) > 0 {
			return m + one(g, " -j ", " -j ", " -g ") + one(g, chains...)
		}
	case 4, 5:
		return m + fmt.Sprintf(" -j MARK --set-xmark %d/0x3", g.IntN(3))
	case 6:
		if g.IntN(3) == 0 {
			return m + " -j RETURN"
		}
	case 7:
		return m + " -j TOS --set-tos 0x10"
	}
	return m
}

// templates are packets whose addresses and ports are then set at random.
func (g *ruleMaker) templates(t testing.TB) (out []*packet.Packet) {
	shapes := []string{"udp %s:1 > %s:2", "udp %s:1 > %s:2 len=100", "tcp %s:1 > %s:2 S mss=1460", "tcp %s:1 > %s:2 A", "tcp %s:1 > %s:2 SA", "47 %s > %s len=20", "sctp %s:1 > %s:2 len=20", "6 %s > %s len=6", "17 %s > %s len=3"}
	a := "10.0.0.1"
	if g.v6 {
		a = "2001:db8::1"
	} else {
		shapes = append(shapes, "icmp %s > %s id=1", "udp %s > %s frag=1480 len=8", "tcp %s > %s frag=8 len=8", "tcp %s > %s frag=16 len=8")
	}
	for _, s := range shapes {
		x := a
		if g.v6 && strings.Contains(s, ":") {
			x = "[" + a + "]"
		}
		out = append(out, forwarded(t, fmt.Sprintf(s, x, x)))
	}
	return out
}

// change gives p, a copy of a template, addresses, ports and interfaces.
func (g *ruleMaker) change(p *packet.Packet) {
	b := p.Bytes()
	if g.v6 {
		for _, at := range []int{8, 24} {
			b[at+5], b[at+15] = byte(g.IntN(4)), byte(g.IntN(8))
		}
	} else {
		for _, at := range []int{12, 16} {
			b[at+1], b[at+2], b[at+3] = byte(g.IntN(4)), byte(g.IntN(4)), byte(g.IntN(8))
		}
	}
	if p.Is(packet.HasPorts) {
		binary.BigEndian.PutUint16(b[p.L4:], uint16(g.IntN(41)))
		binary.BigEndian.PutUint16(b[p.L4+2:], uint16(g.IntN(41)))
	}
	p.In, p.Out = lan, wan
	if g.IntN(4) == 0 {
		p.In, p.Out = wan, lan
	}
	p.Mark = uint32(g.IntN(3))
}

// TestClassifier holds walks by candidates against walks rule by rule, over
// random rules that are added to in between: verdict, reason, changes, and the
// counters moved, in order. SLUICE_CLASSIFIER_PACKETS asks for more of them.
func TestClassifier(t *testing.T) {
	total := 60_000
	if v := os.Getenv("SLUICE_CLASSIFIER_PACKETS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		total = n
	}
	const each, policies = 3000, 17
	compared, moved := 0, 0
	for seed := uint64(1); compared < total; seed++ {
		g := &ruleMaker{rand.New(rand.NewPCG(seed, 7)), seed%3 == 0}
		fam := packet.IPv4
		if g.v6 {
			fam = packet.IPv6
		}
		fast, slow := newRig(t, fam), newRig(t, fam)
		lines := []string{"mangle -N a", "mangle -N b"}
		size := one(g, 5, 30, 100, 600)
		for range size {
			lines = append(lines, "mangle -A FORWARD"+g.rule("a", "b"))
			if g.IntN(3) == 0 {
				lines = append(lines, "mangle -A a"+g.rule("b"), "mangle -A b"+g.rule())
			}
		}
		templates := g.templates(t)
		p, q := packet.New(), packet.New()
		for i := range each {
			if i%(each/6) == 0 {
				for _, r := range []*rig{fast, slow} {
					for _, l := range lines {
						r.must(l) // one by one, so that both number their counters alike
					}
				}
				lines = lines[:0]
				for range one(g, 1, 40, 70, 300) {
					lines = append(lines, "mangle -A "+one(g, "FORWARD", "a")+g.rule("b"))
				}
				if g.IntN(3) == 0 {
					lines = append(lines, fmt.Sprintf("mangle -I FORWARD %d", 1+g.IntN(size))+g.rule("a"))
				}
			}
			from := one(g, templates...)
			p.Copy(from)
			g.change(p)
			q.Copy(p)
			q.In, q.Out, q.Mark = p.In, p.Out, p.Mark
			var trails [2]tables.Trail
			var verdicts [2]hooks.Verdict
			for n, r := range []*rig{fast, slow} {
				pr := r.Program()
				r.ctx.Prepare(pr)
				r.ctx.Hook = hooks.Forward
				trails[n].Counters = make([]uint32, 0, 4096)
				r.ctx.Trail = &trails[n]
				if n == 0 {
					verdicts[n] = pr.Run(&r.ctx, tables.Mangle, p)
				} else {
					verdicts[n] = pr.RunLinear(&r.ctx, tables.Mangle, q)
				}
				r.ctx.Trail = nil
				for i, id := range trails[n].Counters {
					if id < policies { // numbered in any order
						trails[n].Counters[i] = 0
					}
				}
			}
			if verdicts[0] != verdicts[1] || p.Reason != q.Reason || p.Mark != q.Mark || !slices.Equal(p.Bytes(), q.Bytes()) || !slices.Equal(trails[0].Counters, trails[1].Counters) {
				t.Fatalf("seed %d, packet %d (%x): by candidates verdict %v, reason %v, mark %d, counters %v; rule by rule %v, %v, %d, %v",
					seed, i, q.Bytes(), verdicts[0], p.Reason, p.Mark, trails[0].Counters, verdicts[1], q.Reason, q.Mark, trails[1].Counters)
			}
			compared++
			moved += len(trails[0].Counters)
		}
		for _, chain := range []string{"FORWARD", "a", "b"} {
			if f, s := fast.counts(tables.Mangle, chain), slow.counts(tables.Mangle, chain); f != s {
				t.Fatalf("seed %d: counters of %s by candidates %s, rule by rule %s", seed, chain, f, s)
			}
		}
	}
	t.Logf("%d packets, which moved %d counters", compared, moved)
	if moved < 3*compared {
		t.Error("the packets met too few rules")
	}
}
