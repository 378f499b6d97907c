// Package memory measures the packet path without devices: frames come from
// memory and go nowhere. Its cases run under `go test -bench` and in `sluice bench`.
package memory

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sluice/netstack"
	"sluice/packet"
	"sluice/router"
)

// Case is one measurement.
type Case struct {
	Name  string // with its parameters, as in "pipeline/rules=20/flows=1000"
	Goal  string // what is to be reached, in the words of the report; "" for a yardstick
	Flows int    // flows that its packets belong to; 0: each packet starts one, or they are untracked
	Rules int    // filter rules
	Huge  bool   // needs gigabytes of memory: left out of short runs
	// Unit is what an operation is: "packet", "load" (a whole ruleset), "append"
	// (one rule), "lookup", "collection" (of garbage), or "connection", of which
	// not the time but the bytes are the result.
	Unit  string
	Setup func() (Run, error)
}

// Run is a case made ready. Do performs n operations and says how long the
// measured part of them took; an error means that packets went astray, so that
// the time is of no worth. Close gives everything back.
type Run interface {
	Do(n int) (time.Duration, error)
	Close()
}

// Cases lists the cases in the order of the report.
func Cases() []Case {
	var all []Case
	add := func(c Case) {
		if c.Unit == "" {
			c.Unit = "packet"
		}
		all = append(all, c)
	}
	counts := []int{1000, 100_000, 1_000_000}
	for _, n := range counts {
		add(Case{Name: fmt.Sprintf("bare/flows=%d", n), Flows: n, Setup: func() (Run, error) { return newBare(n), nil }})
	}
	add(Case{Name: "route-only/flows=1000", Flows: 1000, Setup: func() (Run, error) { return newTransit(transit{flows: 1000}) }})
	for _, rules := range []int{20, 10_000} {
		for i, n := range counts {
			goal := ""
			if rules == 10_000 {
				goal = [...]string{"10 Mpps", "5 Mpps", "3 Mpps"}[i]
			}
			add(Case{Name: fmt.Sprintf("pipeline/rules=%d/flows=%d", rules, n), Goal: goal, Flows: n, Rules: rules,
				Setup: func() (Run, error) { return newTransit(transit{flows: n, rules: rules}) }})
		}
	}
	add(Case{Name: "pipeline/rules=10000/flows=10000000", Goal: "runs", Flows: 10_000_000, Rules: 10_000, Huge: true,
		Setup: func() (Run, error) { return newTransit(transit{flows: 10_000_000, rules: 10_000}) }})
	for _, n := range counts[:2] {
		for _, w := range []int{1, 2} {
			goal := ""
			if w == 2 {
				goal = "1.8 x one worker"
			}
			add(Case{Name: fmt.Sprintf("workers=%d/flows=%d", w, n), Goal: goal, Flows: n, Rules: 20,
				Setup: func() (Run, error) { return newTransit(transit{flows: n, rules: 20, workers: w, replies: true}) }})
		}
		add(Case{Name: fmt.Sprintf("workers=2/crossed/flows=%d", n), Goal: "1.4 x one worker", Flows: n, Rules: 20,
			Setup: func() (Run, error) {
				return newTransit(transit{flows: n, rules: 20, workers: 2, replies: true, crossed: true})
			}})
	}
	for _, rules := range []int{20, 10_000} {
		goal := "1 Mpps"
		if rules > 20 {
			goal = "0.8 x rules=20"
		}
		add(Case{Name: fmt.Sprintf("new/rules=%d", rules), Goal: goal, Rules: rules, Setup: func() (Run, error) { return newFresh(rules, 0, false) }})
	}
	add(Case{Name: "established/full-table", Flows: 1000, Rules: 20, Setup: func() (Run, error) { return newFresh(20, 1000, false) }})
	add(Case{Name: "established/flooded-table", Goal: "0.7 x full-table, counted in established packets", Flows: 1000, Rules: 20,
		Setup: func() (Run, error) { return newFresh(20, 1000, true) }})
	for _, rules := range []int{10, 1000, 100_000} {
		goal := ""
		if rules == 100_000 {
			goal = "time 2 x that of 10"
		}
		add(Case{Name: fmt.Sprintf("notrack/rules=%d", rules), Goal: goal, Rules: rules, Setup: func() (Run, error) { return newStateless(rules) }})
	}
	// With 1.5 million the hash table has just grown.
	for _, n := range []int{1000, 1_000_000, 1_500_000, 10_000_000} {
		goal := ""
		if n > 1000 {
			goal = "256 bytes"
			add(Case{Name: fmt.Sprintf("memory/connections=%d", n), Goal: goal, Huge: n > 1_500_000, Unit: "connection", Setup: func() (Run, error) {
				t, err := newTable(n)
				return sizedTable{t}, err
			}})
			goal = "time 1.5 x that of 1000"
		}
		if n == 1_500_000 {
			continue
		}
		add(Case{Name: fmt.Sprintf("collect/connections=%d", n), Goal: goal, Huge: n > 1_000_000, Unit: "collection", Setup: func() (Run, error) { return newTable(n) }})
	}
	for _, n := range []int{10, 1_000_000} {
		goal := ""
		if n > 10 {
			goal = "time 2 x that of 10"
		}
		add(Case{Name: fmt.Sprintf("set/prefixes=%d", n), Goal: goal, Unit: "lookup", Setup: func() (Run, error) { return newLookups(n) }})
	}
	add(Case{Name: "load/rules=100000", Goal: "1 s", Rules: 100_000, Unit: "load", Setup: func() (Run, error) { return newLoad(100_000, false) }})
	add(Case{Name: "append/rules=100000", Goal: "20 ms", Rules: 100_000, Unit: "append", Setup: func() (Run, error) { return newLoad(100_000, true) }})
	return all
}

// transit is a router with lan0 and wan0, MASQUERADE on wan0, and tracked flows
// from 10/8 to 9/8.
type transit struct {
	flows, rules, workers int
	replies               bool // both directions; otherwise only what the first sender sends, answered once
	crossed               bool // replies go to the other worker
}

// config is n filter rules, the last of which accepts, with conntrack and MASQUERADE.
func config(n, workers int) *router.Config {
	c := &router.Config{
		Router: router.RouterConfig{Workers: workers},
		Interfaces: []router.InterfaceConfig{
			{Name: "lan0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}},
			{Name: "wan0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
		},
		Routes: []router.RouteConfig{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("198.51.100.2"), Dev: "wan0"}},
		Sysctl: []router.SysctlConfig{{Name: "net.netfilter.nf_conntrack_max", Value: "20000000"}, {Name: "net.netfilter.nf_conntrack_udp_timeout", Value: "100000"}},
	}
	if n > 0 {
		f := &c.IPTables.Filter
		f.Rules = append(f.Rules, router.RuleLine{Text: "-A FORWARD -m conntrack --ctstate INVALID -j DROP"})
		for i := range n - 2 {
			f.Rules = append(f.Rules, router.RuleLine{Text: fmt.Sprintf("-A FORWARD -s 172.16.%d.0/24 -p tcp --dport %d -j DROP", i%256, 1000+i)})
		}
		f.Rules = append(f.Rules, router.RuleLine{Text: "-A FORWARD -j ACCEPT"})
		c.IPTables.NAT.Rules = []router.RuleLine{{Text: "-A POSTROUTING -o wan0 -j MASQUERADE"}}
	}
	return c
}

// bed is a router over links in memory, one pair of queues for each worker.
type bed struct {
	r        *router.Router
	lan, wan *link
}

func newBed(cfg *router.Config, queues int) (*bed, error) {
	b := &bed{lan: newLink(queues), wan: newLink(queues)}
	r, err := router.New(cfg, router.Options{Open: func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
		l := b.lan
		if c.Name != "lan0" {
			l = b.wan
		}
		l.iface = packet.NewIface(index, c.Name, 1500)
		return l, nil
	}})
	b.r = r
	return b, err
}

func (b *bed) Close() { b.r.Close() }

// step lets every worker take what its queues have, all at once, and says how
// long the busiest one took.
func (b *bed) step() time.Duration {
	took := make([]time.Duration, b.lan.Queues())
	var wg sync.WaitGroup
	for i := range took {
		wg.Go(func() { took[i] = measure(func() { b.r.Step(i) }) })
	}
	wg.Wait()
	return slices.Max(took)
}

// expect compares what was forwarded in all with what should have been.
func (b *bed) expect(n uint64) error {
	if s := b.r.Status(); s.Forwarded != n {
		return fmt.Errorf("%d of %d packets were forwarded; dropped: %v", s.Forwarded, n, s.Drops)
	}
	return nil
}

type transitRun struct {
	*bed
	sent uint64
	to   []*queue // the queues that are fed in turn
}

func newTransit(c transit) (Run, error) {
	workers := max(c.workers, 1)
	b, err := newBed(config(c.rules, workers), workers)
	if err != nil {
		return nil, err
	}
	t := &transitRun{bed: b}
	order := rand.New(rand.NewPCG(1, 2)).Perm(c.flows)
	for q := range workers {
		var out []int
		for i, f := range order {
			if i%workers == q {
				out = append(out, f)
			}
		}
		b.lan.queues[q].frames = udpFrames(len(out), func(i int) flow { return flowOf(out[i]) })
	}
	if err := t.first(c); err != nil {
		b.Close()
		return nil, err
	}
	t.to = append(t.to, b.lan.queues...)
	if c.replies {
		t.to = append(t.to, b.wan.queues...)
	}
	return t, nil
}

// first sends the first packet of every flow and an answer to it; the answers
// stay in wan0's queues.
func (t *transitRun) first(c transit) error {
	workers := len(t.lan.queues)
	for q := range workers {
		t.lan.queues[q].left = len(t.lan.queues[q].frames) / frameLen
		t.wan.queues[q].sent = make([]byte, 0, len(t.lan.queues[q].frames))
		t.r.Step(q)
	}
	t.sent = uint64(c.flows)
	if err := t.expect(t.sent); err != nil {
		return err
	}
	for q := range workers {
		back := t.wan.queues[q]
		answers := answer(back.sent)
		back.sent = nil
		to := q
		if c.crossed {
			to = (q + 1) % workers
		}
		t.wan.queues[to].frames = answers
	}
	for q := range workers {
		t.wan.queues[q].left = len(t.wan.queues[q].frames) / frameLen
		t.r.Step(q)
	}
	t.sent += uint64(c.flows)
	if err := t.expect(t.sent); err != nil {
		return err
	}
	_, err := t.all() // now they are established
	return err
}

// all sends every frame there is once.
func (t *transitRun) all() (n int, err error) {
	for _, q := range slices.Concat(t.lan.queues, t.wan.queues) {
		q.left = len(q.frames) / frameLen
		n += q.left
	}
	t.step()
	t.sent += uint64(n)
	return n, t.expect(t.sent)
}

func (t *transitRun) Do(n int) (time.Duration, error) {
	left := n
	for i, q := range t.to {
		q.left = left / (len(t.to) - i)
		left -= q.left
	}
	d := t.step()
	t.sent += uint64(n)
	return d, t.expect(t.sent)
}
