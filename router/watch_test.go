package router

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/packet/packettext"
)

// TestWatch: only what matches is recorded, what was asked for and no more, and
// the router does the same as ever.
func TestWatch(t *testing.T) {
	cfg := masqueraded()
	b, plain := newBed(t, cfg), newBed(t, masqueraded())
	open := func(opt WatchOptions) *Watch {
		t.Helper()
		v, err := b.r.Watch(opt)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	web := open(WatchOptions{Match: strings.Fields("-p tcp --dport 80"), Count: 2})
	out := open(WatchOptions{Match: strings.Fields("-o wan0 -p udp")})
	old := open(WatchOptions{Match: strings.Fields("-m conntrack --ctstate ESTABLISHED"), Frames: 64})
	all := open(WatchOptions{Queue: 4})
	got := 0
	for _, x := range []struct{ in, desc string }{
		{"lan0", "tcp 10.0.1.2:4000 > 203.0.113.9:80 S"}, {"wan0", "tcp 203.0.113.9:80 > 198.51.100.1:4000 SA seq=1 ack=1"},
		{"lan0", "udp 10.0.1.2:4000 > 203.0.113.9:53"}, {"lan0", "tcp 10.0.1.3:4003 > 203.0.113.9:443 S"},
		{"lan0", "tcp 10.0.1.4:4004 > 203.0.113.9:80 S"}, {"lan0", "tcp 10.0.1.5:4005 > 203.0.113.9:80 S"},
	} {
		f := frame(t, x.desc)
		with, without := b.send(x.in, f), plain.send(x.in, f)
		for iface := range without {
			for i := range without[iface] {
				if string(with[iface][i]) != string(without[iface][i]) {
					t.Errorf("%s: watched, another packet left", x.desc)
				}
				got++
			}
		}
	}
	if got != 6 {
		t.Errorf("%d packets left", got)
	}
	next := func(v *Watch) string {
		select {
		case x, ok := <-v.Traces():
			if !ok {
				return "closed"
			}
			x.text()
			return x.Packet
		default:
			return "nothing"
		}
	}
	for _, x := range []struct {
		v    *Watch
		want string
	}{
		{web, "tcp 10.0.1.2:4000 > 203.0.113.9:80"}, {web, "tcp 10.0.1.4:4004 > 203.0.113.9:80"},
		{out, "udp 10.0.1.2:4000"}, {out, "nothing"},
		{old, "tcp 203.0.113.9:80 > 198.51.100.1:4000"}, {old, "nothing"},
		{all, "tcp 10.0.1.2:4000"}, {all, "tcp 203.0.113.9:80"}, {all, "udp"}, {all, "tcp 10.0.1.3"}, {all, "nothing"},
	} {
		if s := next(x.v); !strings.HasPrefix(s, x.want) {
			t.Errorf("got %q, want %q", s, x.want)
		}
	}
	done := make(chan struct{})
	defer time.AfterFunc(10*time.Second, func() { close(done) }).Stop()
	if x := web.Next(done); x != nil || !web.ended.Load() {
		t.Errorf("more than two: %v", x)
	}
	if all.Lost() != 2 {
		t.Errorf("%d were lost", all.Lost())
	}
	for _, v := range []*Watch{web, out, old, all} {
		v.Close()
	}
	if b.r.watches.Load() != nil || b.w.watching != nil {
		t.Error("somebody still watches")
	}
	if _, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp --dport x")}); err == nil {
		t.Error("a bad port was taken")
	}
	if _, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp -j ACCEPT")}); err == nil {
		t.Error("a target was taken")
	}
}

// TestWatchAnswers: the router's own answer to a recorded packet is recorded with it.
func TestWatchAnswers(t *testing.T) {
	b := newBed(t, edge(map[string][]string{"filter": {"-A FORWARD -p tcp -j REJECT"}}))
	unlimited(b.r, edge(nil))
	v, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp")})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	b.send("lan0", frame(t, "udp 10.0.1.2:4000 > 203.0.113.9:53"), frame(t, "tcp 10.0.1.2:4000 > 203.0.113.9:80 S"))
	first, second := nextSoon(t, v), nextSoon(t, v)
	if first.Reason != "filter.FORWARD.rule" || first.Rule == nil || first.Rule.Text != "-A FORWARD -p tcp -j REJECT --reject-with icmp-port-unreachable" {
		t.Errorf("%+v", first.Rule)
	}
	if second.Cause != "answer" || !strings.HasPrefix(second.Packet, "icmp 10.0.1.1 > 10.0.1.2 type=3/3") {
		t.Errorf("%s: %s", second.Cause, second.Packet)
	}
}

// nextSoon is Next of a trace that must come.
func nextSoon(t *testing.T, v *Watch) *Trace {
	t.Helper()
	done := make(chan struct{})
	timer := time.AfterFunc(10*time.Second, func() { close(done) })
	defer timer.Stop()
	x := v.Next(done)
	if x == nil {
		t.Fatal("nothing was recorded")
	}
	return x
}

// TestWatchedOutput: under bursts of many flows, with rules of all kinds, those
// who look (at all, at some, with frames, not reading, coming and going) change
// no packet that leaves, no counter and no drop.
func TestWatchedOutput(t *testing.T) {
	packets, answers := 0, 0
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		rules := randomRules(rnd)
		rules["nat"] = rules["nat"][:1] // without MASQUERADE: where two want one port it draws by chance
		watched, plain := newBed(t, edge(rules)), newBed(t, edge(rules))
		unlimited(watched.r, edge(nil))
		unlimited(plain.r, edge(nil))
		var open []*Watch
		var left []string
		for n := range 60 {
			if n%7 == 0 && n < 50 {
				opts := []WatchOptions{{Queue: 3}, {Match: strings.Fields("-p tcp --dport 80"), Frames: 100}, {Match: strings.Fields("-m conntrack --ctstate ESTABLISHED")}, {Match: strings.Fields("-o wan0"), Count: 20}}
				v, err := watched.r.Watch(opts[rnd.IntN(len(opts))])
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, v)
			}
			if n%11 == 10 {
				open[rnd.IntN(len(open))].Close()
			}
			in, burst := "lan0", [][]byte{}
			if len(left) > 0 && rnd.IntN(3) == 0 {
				in = "wan0"
			}
			for range 1 + rnd.IntN(40) {
				server, to := 1+rnd.IntN(2), rnd.IntN(3)
				host := 2 + rnd.IntN(4)
				ends := fmt.Sprintf("10.0.1.%d:%d > 203.0.113.%d:%d", host, 5000+100*host+10*server+to, server, []int{53, 80, 81}[to])
				words := []string{"udp %s len=20", "udp %s len=20", "tcp %s S seq=7", "tcp %s A seq=8 ack=1 len=30", "udp %s len=20 ttl=1"}[rnd.IntN(5)]
				if in == "wan0" { // an answer to something that left
					w := strings.Fields(left[rnd.IntN(len(left))])
					ends, words = w[3]+" > "+w[1], w[0]+" %s len=9"
				}
				burst = append(burst, frame(t, fmt.Sprintf(words, ends)))
			}
			if packets += len(burst); in == "wan0" {
				answers += len(burst)
			}
			with, without := watched.send(in, burst...), plain.send(in, burst...)
			for _, iface := range []string{"lan0", "wan0"} {
				a, b := describeFrames(with[iface]), describeFrames(without[iface])
				if iface == "wan0" {
					left = append(left, b...)
				}
				if !slices.Equal(a, b) {
					t.Fatalf("seed %d burst %d: by %s left\n%s\nand watched\n%s\n%v", seed, n, iface, strings.Join(b, "\n"), strings.Join(a, "\n"), rules)
				}
			}
		}
		if a, b := traceCounters(watched.r), traceCounters(plain.r); !maps.Equal(a, b) {
			t.Errorf("seed %d: counters %v, watched %v", seed, b, a)
		}
		if a, b := watched.w.drops, plain.w.drops; a != b {
			t.Errorf("seed %d: drops %v, watched %v", seed, b, a)
		}
		for _, v := range open {
			v.Close()
		}
	}
	if packets < 10000 || answers < 1000 {
		t.Errorf("%d packets and %d answers only", packets, answers)
	}
}

func describeFrames(fs [][]byte) (out []string) {
	for _, f := range fs {
		out = append(out, packettext.Describe(f)) // an answer's IP identification is drawn by chance
	}
	return out
}

// TestNotWatchedCostsNothing: with nobody looking, before and after somebody did,
// a packet takes what its connection remembers and allocates nothing; and so do
// the packets that a looker's matches do not pick.
func TestNotWatchedCostsNothing(t *testing.T) {
	b := newBed(t, twenty())
	out, back := frame(t, "udp 10.0.1.2:5000 > 9.9.9.9:53 len=18"), frame(t, "udp 9.9.9.9:53 > 198.51.100.1:5000 len=18")
	for range 3 {
		b.send("lan0", out)
		b.send("wan0", back)
	}
	for _, l := range b.links {
		l.keep = false
	}
	w, d := b.w, b.w.port(b.links["lan0"].iface)
	const n = 200
	measure := func(what string) (recalled uint64) {
		was := w.mem.recalled
		allocs := testing.AllocsPerRun(n-1, func() {
			w.begin(b.r.clock())
			w.batch[0].SetBytes(out)
			w.burst(d, w.batch[:1])
			w.end()
		})
		if recalled = w.mem.recalled - was; allocs != 0 && recalled > 0 {
			t.Errorf("%s: %v allocations a packet", what, allocs)
		}
		return recalled
	}
	before := measure("before anybody looks")
	v, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp --dport 80")})
	if err != nil {
		t.Fatal(err)
	}
	beside := measure("somebody looks at others")
	all, err := b.r.Watch(WatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	looked := measure("somebody looks at it")
	all.Close()
	v.Close()
	after := measure("after they went")
	if before != n || beside != n || looked != 0 || after < n-1 { // the first may find that it has to decide anew
		t.Errorf("of %d packets took what was remembered: %d before, %d beside, %d looked at, %d after", n, before, beside, looked, after)
	}
	if w.watching != nil {
		t.Error("the worker still asks")
	}
}
