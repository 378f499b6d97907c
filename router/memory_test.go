package router

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// repeating is a side to which every frame comes several times, by a clock of its own.
type repeating struct {
	*ourSide
	times int
}

func (x *repeating) do(st *step, frames []sending, more int) (out []sent) {
	x.r.replayed.Add(int64(40 * time.Millisecond))
	if st.verb != "in" {
		return x.ourSide.do(st, frames, more)
	}
	for range x.times {
		out = append(out, x.ourSide.do(st, frames, 0)...)
	}
	return out
}

// edits are changes of rules in the middle of a run.
var edits = []string{
	"iptables -I FORWARD -p udp -m length --length 0:100 -j ACCEPT", "iptables -A FORWARD -p tcp --tcp-flags ACK ACK -j RETURN", "iptables -Z",
	"iptables -t mangle -A PREROUTING -m ttl --ttl-gt 60 -j MARK --set-xmark 0x1/0xffffffff", "iptables -t mangle -F", "iptables -t nat -F",
	"iptables -t raw -I PREROUTING -j MARK --set-xmark 0x2/0x2", "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT",
	"iptables -t mangle -I FORWARD -m conntrack --ctstatus ASSURED -j DSCP --set-dscp 0x0a", "iptables -I FORWARD -m connmark --mark 1 -j DROP",
	"ip6tables -t mangle -A POSTROUTING -j HL --hl-dec 1", "ip6tables -I FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "ip6tables -F",
	"conntrack -U -p udp -m 1", "conntrack -F",
}

// memoryRun takes two routers through a random scenario; forgetful says which of
// them remember no walks. ok is false for rules that are refused.
func memoryRun(t *testing.T, seed uint64, forgetful [2]bool) (c *compare, routers [2]*Router, ok bool) {
	g := newGenerator(seed + 0x3e3)
	g.edits, g.transit = edits, true
	s := g.scenario(networks[seed%uint64(len(networks))])
	sc := &scope{TB: t}
	defer sc.end()
	var sides [2]*repeating
	for i := range sides {
		x, err := tryOurSide(sc, s)
		if err != nil {
			return nil, routers, false
		}
		routers[i] = x.r
		x.r.forgetful.Store(forgetful[i])
		x.r.replayed.Store(int64(time.Minute))
		x.r.replaying.Store(true)
		sides[i] = &repeating{x, 2 + int(seed%4)}
	}
	c = &compare{s: s, k: sides[0], o: sides[1]}
	c.run()
	return c, routers, true
}

// TestMemory takes two routers, one of which remembers no walks, through the
// same random rules, packets and changes of rules: what leaves, every counter
// and every connection are the same. SLUICE_MEMORY_RUNS is how many runs.
func TestMemory(t *testing.T) {
	runs := 100
	if v := os.Getenv("SLUICE_MEMORY_RUNS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		runs = n
	}
	recalled, packets, chance := uint64(0), uint64(0), 0
	for seed := range uint64(runs) {
		c, r, ok := memoryRun(t, seed, [2]bool{true, false})
		if !ok {
			continue
		}
		recalled += r[1].workers[0].mem.recalled
		packets += r[1].workers[0].packets
		if r[0].workers[0].mem.recalled != 0 {
			t.Fatal("a walk was remembered although that is switched off")
		}
		if len(c.diffs) == 0 {
			continue
		}
		// A port drawn by chance shows in what an ICMP error quotes: then two
		// routers without memory differ too.
		if again, _, _ := memoryRun(t, seed, [2]bool{true, true}); len(again.diffs) > 0 {
			chance++
			continue
		}
		for _, l := range c.diffs {
			t.Error(l)
		}
		t.Fatalf("seed %d: the run with memory (ours) differs from that without (kernel)\n%s", seed, c.s.format(false))
	}
	t.Logf("%d of %d packets needed no walk; %d of %d runs were left to chance", recalled, packets, chance, runs)
	if recalled*20 < packets || chance*50 > runs+50 {
		t.Error("too little was compared")
	}
}
