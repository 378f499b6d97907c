package conformance

import (
	"testing"
	"time"
)

// repeating is a side to which every frame comes several times.
type repeating struct {
	*ourSide
	times int
}

func (x *repeating) do(st *step, frames []sending, more int) (out []sent) {
	if st.verb != "in" {
		return x.ourSide.do(st, frames, more)
	}
	for range x.times {
		out = append(out, x.ourSide.do(st, frames, 0)...)
	}
	return out
}

// edits are changes of rules and connections in the middle of a run.
var edits = []string{
	"iptables -I FORWARD -p udp -m length --length 0:100 -j ACCEPT", "iptables -A FORWARD -p tcp --tcp-flags ACK ACK -j RETURN", "iptables -Z",
	"iptables -t mangle -A PREROUTING -m ttl --ttl-gt 60 -j MARK --set-xmark 0x1/0xffffffff", "iptables -t mangle -F", "iptables -t nat -F",
	"iptables -t raw -I PREROUTING -j MARK --set-xmark 0x2/0x2", "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT",
	"iptables -t mangle -I FORWARD -m conntrack --ctstatus ASSURED -j DSCP --set-dscp 0x0a", "iptables -I FORWARD -m connmark --mark 1 -j DROP",
	"ip6tables -t mangle -A POSTROUTING -j HL --hl-dec 1", "ip6tables -I FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "ip6tables -F",
	"conntrack -U -p udp -m 1", "conntrack -F",
}

// memoryRun takes routers through a random scenario: the first of variants is
// held against the others. recalled is how many packets these did not walk.
func memoryRun(t *testing.T, seed uint64, vs ...variant) (c *compare, recalled, packets uint64) {
	net, offload := place(seed)
	g := newGenerator(seed)
	g.edits, g.transit, g.narrow = edits, true, seed%4 != 0
	s := g.scenario(net)
	now := int64(time.Minute)
	c = &compare{s: s}
	sc := &scope{TB: t}
	defer sc.end()
	var sides []*ourSide
	for i, v := range vs {
		v.offload, v.clock = offload, func() int64 { return now }
		x := newOurSide(sc, &scenario{net: net}, v)
		sides = append(sides, x)
		if x.load(s) != "" {
			return nil, 0, 0 // rules that are refused
		}
		r := &repeating{x, 12 + int(seed%4)}
		if i == 0 {
			c.k = r
		} else {
			c.add(x)
			c.ours[i-1].side = r
		}
	}
	c.before = func() { now += int64(40 * time.Millisecond) }
	c.run()
	for _, x := range sides {
		for _, w := range x.r.Status().Workers {
			if x.v.forget && w.Recalled > 0 {
				t.Fatal("a walk was remembered although that is switched off")
			}
			if !x.v.forget {
				recalled, packets = recalled+w.Recalled, packets+w.Packets
			}
		}
	}
	return c, recalled, packets
}

// TestMemory takes routers that remember no walks, and such that do, through the
// same random rules, packets and changes of rules: what leaves, every counter
// and every connection are the same.
func TestMemory(t *testing.T) {
	layer(t, "packets")
	runs, chance := *cases/10, 0
	recalled, packets := uint64(0), uint64(0)
	for n := range uint64(runs) {
		c, r, p := memoryRun(t, *seed+n, variant{workers: 1, forget: true}, variant{workers: 1}, variant{workers: 2})
		if c == nil {
			continue
		}
		recalled, packets = recalled+r, packets+p
		mismatches := 0
		for _, o := range c.ours {
			mismatches += len(o.diffs)
		}
		if mismatches == 0 {
			continue
		}
		// A port drawn by chance shows in what an ICMP error quotes: then routers
		// without memory differ too.
		if again, _, _ := memoryRun(t, *seed+n, variant{workers: 1, forget: true}, variant{workers: 1, forget: true}); len(again.ours[0].diffs) > 0 {
			chance++
			continue
		}
		for _, o := range c.ours {
			for _, l := range o.diffs {
				t.Errorf("%s: %s", o.name, l)
			}
		}
		t.Fatalf("seed %d: a run with memory differs from that without (kernel)\n%s", *seed+n, c.s.format(false))
	}
	t.Logf("%d of %d packets needed no walk; %d of %d runs were left to chance", recalled, packets, chance, runs)
	if recalled < 20*uint64(runs) || chance*50 > runs+50 {
		t.Error("too little was compared")
	}
}

// scope is a part of a test that cleans up when it ends.
type scope struct {
	testing.TB
	undo []func()
}

func (s *scope) Cleanup(f func()) { s.undo = append(s.undo, f) }

func (s *scope) end() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
}
