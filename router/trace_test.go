package router

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"sluice/packet/packettext"
	"sluice/tables"
)

func sim(t testing.TB, cfg *Config) *Sim {
	t.Helper()
	s, err := NewSim(cfg, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *Sim) one(t testing.TB, in, desc string) *Trace {
	t.Helper()
	ts, err := s.Send(in, frame(t, desc))
	if err != nil || len(ts) == 0 {
		t.Fatal(err, len(ts))
	}
	return ts[0]
}

func (t *Trace) lines() (out []string) {
	for i := range t.Steps {
		s := &t.Steps[i]
		l := s.Kind + " " + s.Hook
		switch s.Kind {
		case StepRule, StepPolicy, StepReturn:
			l = fmt.Sprintf("%s %s.%s.%d %v %s", s.Kind, s.Table, s.Chain, s.Rule.Num, s.Matched, s.Result)
		case StepChange:
			l = fmt.Sprintf("change %s %s>%s", s.Field, s.Before, s.After)
		case StepConntrack:
			l = "conntrack " + s.Conn.State
		case StepRoute:
			l = fmt.Sprintf("route %s %s %s %s", s.Route.Type, s.Route.Dev, s.Route.Prefix, s.Route.Rule)
		case StepSend, StepDrop:
			l = s.Kind + " " + s.Result
		}
		out = append(out, strings.TrimSpace(l))
	}
	return out
}

func has(t *testing.T, tr *Trace, want ...string) {
	t.Helper()
	lines := tr.lines()
	at := 0
	for _, w := range want {
		for at < len(lines) && lines[at] != w {
			at++
		}
		if at == len(lines) {
			t.Fatalf("no %q (in this order) in\n%s", w, strings.Join(lines, "\n"))
		}
	}
}

func TestTraceForwarded(t *testing.T) {
	s := sim(t, edge(map[string][]string{
		"mangle": {"-A PREROUTING -p tcp --dport 80 -j MARK --set-mark 7"},
		"filter": {"-P FORWARD DROP", "-N web", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A FORWARD -i lan0 -j web", "-A web -p udp -j DROP", "-A web -p tcp --dport 80 -j ACCEPT"},
		"nat":    {"-A POSTROUTING -o wan0 -j MASQUERADE"},
	}))
	tr := s.one(t, "lan0", "tcp 10.0.1.2:4000 > 203.0.113.9:80 S")
	has(t, tr,
		"hook PREROUTING", "conntrack NEW", "rule mangle.PREROUTING.1 true MARK", "change mark 0x0>0x7", "policy mangle.PREROUTING.2 false ACCEPT",
		"route unicast wan0 default 32766: from all lookup main", "change ttl 64>63", "hook FORWARD",
		"rule filter.FORWARD.1 false", "rule filter.FORWARD.2 true web", "rule filter.web.1 false", "rule filter.web.2 true ACCEPT",
		"hook POSTROUTING", "rule nat.POSTROUTING.1 true MASQUERADE: ACCEPT", "change source 10.0.1.2:4000>198.51.100.1:4000", "send wan0")
	if tr.Verdict != VerdictForwarded || len(tr.Out) != 1 || !strings.HasPrefix(tr.Out[0].Packet, "tcp 198.51.100.1:4000 > 203.0.113.9:80 S") {
		t.Errorf("%s %v", tr.Verdict, tr.Out)
	}
	back := s.one(t, "wan0", "tcp 203.0.113.9:80 > 198.51.100.1:4000 SA seq=9 ack=1")
	has(t, back, "conntrack ESTABLISHED", "change destination 198.51.100.1:4000>10.0.1.2:4000", "rule filter.FORWARD.1 true ACCEPT", "send lan0")
}

func TestTraceDropped(t *testing.T) {
	s := sim(t, edge(map[string][]string{"filter": {"-P FORWARD DROP", "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset", "-A INPUT -p icmp -j ACCEPT"}}))
	tr := s.one(t, "lan0", "udp 10.0.1.2:4000 > 203.0.113.9:53")
	has(t, tr, "policy filter.FORWARD.2 false DROP", "drop filter.FORWARD.policy")
	if tr.Verdict != VerdictDropped || tr.Rule == nil || tr.Rule.Num != 0 {
		t.Errorf("%+v", tr.Rule)
	}
	ts, _ := s.Send("lan0", frame(t, "tcp 10.0.1.2:4000 > 203.0.113.9:80 S seq=5"))
	if len(ts) != 2 || ts[0].Reason != "filter.FORWARD.rule" || ts[1].Cause != "answer" || len(ts[1].Out) != 1 || !strings.Contains(ts[1].Out[0].Packet, "RA") {
		t.Fatalf("%d traces: %v", len(ts), ts[len(ts)-1])
	}
	tr = s.one(t, "lan0", "udp 10.0.1.2:4000 > 203.0.113.9:53 ttl=1")
	if tr.Reason != "ip.ttl_expired" {
		t.Error(tr.Reason)
	}
	ts, _ = s.Send("lan0", frame(t, "icmp 10.0.1.2 > 10.0.1.1 type=8 id=4 seq=1"))
	if len(ts) != 2 || ts[0].Verdict != VerdictDelivered || ts[1].Cause != "socket" || ts[1].Verdict != VerdictSent {
		t.Fatalf("a ping: %d traces, %s", len(ts), ts[0].Verdict)
	}
}

// randomRules makes rules of which many match, with chains, gotos and returns.
func randomRules(rnd *rand.Rand) map[string][]string {
	out := map[string][]string{}
	match := func() string {
		return []string{"", "-p tcp", "-p udp", "-s 10.0.1.0/25", "! -s 10.0.1.0/26", "-d 203.0.113.0/28", "-p tcp --dport 80", "-p tcp --dport 1:100", "-p udp --sport 5000:5009",
			"-m mark --mark 1/1", "-m mark --mark 2", "-m conntrack --ctstate NEW", "-m length --length 0:60", "-m ttl --ttl-lt 64", "-p icmp"}[rnd.IntN(15)]
	}
	for _, t := range []string{"raw", "mangle", "filter"} {
		hooks := map[string][]string{"raw": {"PREROUTING"}, "mangle": {"PREROUTING", "FORWARD", "POSTROUTING", "INPUT"}, "filter": {"FORWARD", "INPUT"}}[t]
		lines := []string{"-N a", "-N b", "-N c"}
		jumps := []string{"-j a", "-j b", "-j c", "-g b", "-g c"}
		plain := []string{"-j ACCEPT", "-j RETURN", "-j DROP", ""}
		if t == "mangle" {
			plain = append(plain, "-j MARK --set-xmark 0x1/0x1", "-j TTL --ttl-inc 1", "-j TOS --set-tos 0x10", "-j MARK --or-mark 2")
		}
		for range 3 + rnd.IntN(8) {
			lines = append(lines, fmt.Sprintf("-A %s %s %s", hooks[rnd.IntN(len(hooks))], match(), append(plain, jumps...)[rnd.IntN(len(plain)+len(jumps))]))
		}
		for i, ch := range []string{"a", "b", "c"} {
			for range rnd.IntN(4) {
				to := append([]string{}, plain...)
				if i == 0 {
					to = append(to, "-j b", "-g c", "-j c")
				}
				lines = append(lines, fmt.Sprintf("-A %s %s %s", ch, match(), to[rnd.IntN(len(to))]))
			}
		}
		out[t] = lines
	}
	out["nat"] = []string{"-A PREROUTING -p tcp --dport 81 -j DNAT --to-destination 203.0.113.5:80", "-A POSTROUTING -o wan0 " + match() + " -j MASQUERADE"}
	return out
}

// traceCounters are the packets of every rule and policy.
func traceCounters(r *Router) map[string]uint64 {
	out := map[string]uint64{}
	v := r.engines[0].View(nil)
	for id := range tables.NumTables {
		for _, c := range v.Ruleset.Table(id).Chains() {
			if c.Builtin {
				out[fmt.Sprintf("%s.%s.0", id, c.Name)] = v.Policy(c).Packets
			}
			for i, rule := range c.Rules() {
				out[fmt.Sprintf("%s.%s.%d", id, c.Name, i+1)] = v.Rule(rule).Packets
			}
		}
	}
	return out
}

// TestTraceTellsTheTruth: for random rules and packets the router does the same
// with and without a trace, and the trace says just what the counters and the
// output say.
func TestTraceTellsTheTruth(t *testing.T) {
	for seed := range uint64(150) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		rules := randomRules(rnd)
		plain, traced := newBed(t, edge(rules)), sim(t, edge(rules))
		unlimited(plain.r, edge(nil))
		for n := range 25 {
			desc := fmt.Sprintf("%s 10.0.1.%d > 203.0.113.%d id=%d ttl=%d", []string{"icmp", "esp"}[rnd.IntN(2)], 2+rnd.IntN(120), 1+rnd.IntN(30), n, 1+rnd.IntN(70))
			if rnd.IntN(4) > 0 {
				desc = fmt.Sprintf("%s 10.0.1.%d:%d > 203.0.113.%d:%d %s ttl=%d len=%d", "tcp", 2+rnd.IntN(120), 5000+n, 1+rnd.IntN(30), []int{53, 80, 81, 443}[rnd.IntN(4)], "S", 1+rnd.IntN(70), rnd.IntN(40))
				if rnd.IntN(2) > 0 {
					desc = strings.Replace(strings.Replace(desc, "tcp", "udp", 1), " S ", " ", 1)
				}
			}
			was, wasDrops := traceCounters(traced.r), traced.r.Status().Drops
			out := plain.send("lan0", frame(t, desc))
			ts, err := traced.Send("lan0", frame(t, desc))
			if err != nil {
				t.Fatal(err)
			}
			where := func() string {
				s := fmt.Sprintf("seed %d packet %d: %s\n%v", seed, n, desc, rules)
				for _, x := range ts {
					s += "\n" + strings.Join(x.lines(), "\n")
				}
				return s
			}
			// What left is what left.
			said := map[string][]string{}
			for _, x := range ts {
				for _, o := range x.Out {
					said[o.Iface] = append(said[o.Iface], string(o.raw))
				}
			}
			real := map[string][]string{}
			for iface, fs := range out {
				for _, f := range fs {
					real[iface] = append(real[iface], string(f))
				}
			}
			if !reflect.DeepEqual(withoutIDs(said), withoutIDs(real)) {
				t.Fatalf("the trace has other packets than the router\nsaid %v\nreal %v\n%s", describeAll(said), describeAll(real), where())
			}
			// What was counted is what matched.
			now := traceCounters(traced.r)
			moved := map[string]uint64{}
			for k, v := range now {
				if v != was[k] {
					moved[k] = v - was[k]
				}
			}
			told := map[string]uint64{}
			for _, x := range ts {
				for i := range x.Steps {
					switch s := &x.Steps[i]; {
					case s.Kind == StepRule && s.Matched:
						told[fmt.Sprintf("%s.%s.%d", s.Table, s.Chain, s.Rule.Num)]++
					case s.Kind == StepPolicy:
						told[fmt.Sprintf("%s.%s.0", s.Table, s.Chain)]++
					}
				}
			}
			if !reflect.DeepEqual(told, moved) {
				t.Fatalf("told %v\nmoved %v\n%s", told, moved, where())
			}
			if !reflect.DeepEqual(traceCounters(plain.r), now) {
				t.Fatalf("counters differ between the router and the traced one\n%s", where())
			}
			// The verdict is the drop counter's.
			drops := map[string]uint64{}
			for _, d := range traced.r.Status().Drops {
				drops[d.Reason] += d.Packets
			}
			for _, d := range wasDrops {
				drops[d.Reason] -= d.Packets
			}
			for _, x := range ts {
				if x.Verdict == VerdictDropped {
					drops[x.Reason]--
				}
			}
			for reason, k := range drops {
				if k != 0 {
					t.Fatalf("%s: counted %d more than told\n%s", reason, int64(k), where())
				}
			}
			if !reflect.DeepEqual(plain.reasons(), traced.reasons()) {
				t.Fatalf("drops: %v, traced %v\n%s", plain.reasons(), traced.reasons(), where())
			}
			// Changes lead from what came to what left.
			if tr := ts[0]; len(tr.Out) == 1 {
				ttl := packettextField(tr.Packet, "ttl=")
				for i := range tr.Steps {
					if s := &tr.Steps[i]; s.Kind == StepChange && s.Field == "ttl" {
						if s.Before != ttl {
							t.Fatalf("ttl: %s before the change, was %s\n%s", s.Before, ttl, where())
						}
						ttl = s.After
					}
				}
				if got := packettextField(tr.Out[0].Packet, "ttl="); got != ttl {
					t.Fatalf("ttl: left with %s, told %s\n%s", got, ttl, where())
				}
			}
		}
	}
}

func (s *Sim) reasons() map[string]uint64 {
	out := map[string]uint64{}
	for _, d := range s.r.Status().Drops {
		out[d.Reason] = d.Packets
	}
	return out
}

func packettextField(desc, key string) string {
	for _, w := range strings.Fields(desc) {
		if v, ok := strings.CutPrefix(w, key); ok {
			return v
		}
	}
	return "64"
}

// withoutIDs describes frames: an answer's IP identification is drawn by chance.
func withoutIDs(m map[string][]string) map[string][]string {
	out := map[string][]string{}
	for k, fs := range m {
		for _, f := range fs {
			out[k] = append(out[k], packettext.Describe([]byte(f)))
		}
	}
	return out
}

func describeAll(m map[string][]string) map[string][]string { return withoutIDs(m) }

// TestSimIsNotFlooded: a Sim's worker is never busy, as its clock stands still: a
// full table drops connections early whenever a packet wants room.
func TestSimIsNotFlooded(t *testing.T) {
	cfg := edge(nil)
	cfg.Sysctl = append(cfg.Sysctl, SysctlConfig{Name: "net.netfilter.nf_conntrack_max", Value: "10000"})
	s := sim(t, cfg)
	for i := range 13000 {
		s.one(t, "lan0", fmt.Sprintf("udp 10.0.1.2:%d > 203.0.113.9:53", 1+i))
	}
	for _, d := range s.r.Status().Drops {
		if d.Reason == "conntrack.table_flooded" {
			t.Errorf("%d packets were taken for a flood", d.Packets)
		}
	}
	if n := s.r.Conntrack().Stats()[0].EarlyDrop; n < 1000 {
		t.Errorf("%d connections were dropped early", n)
	}
}
