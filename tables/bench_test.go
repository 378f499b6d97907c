package tables_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
	"sluice/tables/ext"
)

// rig is an engine and one worker's context. The worker and DoWorkers exclude
// each other by mu, as batches and commands do in the router.
type rig struct {
	testing.TB
	*tables.Engine
	mu  sync.Mutex
	ctx tables.Context
}

func newRig(t testing.TB, fam uint8) *rig {
	r := &rig{TB: t}
	env := &tables.Env{CT: conntrack.New(sysctl.NewSet(), conntrack.Options{})}
	env.DoWorkers = func(f func(c *tables.Context)) {
		r.mu.Lock()
		defer r.mu.Unlock()
		f(&r.ctx)
	}
	r.ctx.Env, r.ctx.CT = env, env.CT.NewWorker()
	r.Engine = tables.NewEngine(fam, env)
	return r
}

// edit applies lines such as "filter -A INPUT -j DROP" in one commit.
func (r *rig) edit(lines ...string) error {
	return r.Commit(func(rs *tables.Ruleset) error {
		for _, l := range lines {
			if err := apply(rs, r.Family, l); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *rig) must(lines ...string) {
	r.Helper()
	if err := r.edit(lines...); err != nil {
		r.Fatal(err)
	}
}

func apply(rs *tables.Ruleset, fam uint8, line string) error {
	w := strings.Fields(line)
	id, ok := tables.TableByName(w[0])
	if !ok {
		return fmt.Errorf("no table in %q", line)
	}
	t := rs.Table(id)
	n := 0
	rule := func(args []string) (*tables.Rule, error) {
		rules, err := tables.ParseRule(ext.Registry, fam, id, w[2], args)
		if err != nil {
			return nil, err
		}
		return rules[0], nil
	}
	switch w[1] {
	case "-N":
		return t.NewChain(w[2])
	case "-X":
		return t.DeleteChain(w[2])
	case "-E":
		return t.RenameChain(w[2], w[3])
	case "-F":
		return t.Flush(w[2])
	case "-P":
		v, _ := tables.VerdictByName(w[3])
		return t.SetPolicy(w[2], v)
	case "-Z":
		return t.Zero(w[2])
	case "-D#":
		fmt.Sscan(w[3], &n)
		return t.Delete(w[2], n)
	case "-I", "-R":
		fmt.Sscan(w[3], &n)
		r, err := rule(w[4:])
		if err != nil {
			return err
		}
		if w[1] == "-I" {
			return t.Insert(w[2], n, r)
		}
		return t.Replace(w[2], n, r)
	}
	r, err := rule(w[3:])
	if err != nil {
		return err
	}
	if w[1] == "-D" {
		return t.DeleteRule(w[2], r)
	}
	return t.Append(w[2], r)
}

func (r *rig) run(t tables.TableID, h hooks.Hook, p *packet.Packet) hooks.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	pr := r.Program()
	r.ctx.Prepare(pr)
	r.ctx.Hook = h
	return pr.Run(&r.ctx, t, p)
}

// counts prints the packets of a chain's rules, and of its policy behind a slash.
func (r *rig) counts(t tables.TableID, chain string) string {
	v := r.View(nil)
	c := v.Ruleset.Table(t).Chain(chain)
	var s []string
	for _, x := range c.Rules() {
		s = append(s, fmt.Sprint(v.Rule(x).Packets))
	}
	out := strings.Join(s, " ")
	if c.Builtin {
		out += fmt.Sprintf("/%d", v.Policy(c).Packets)
	}
	return out
}

func (r *rig) save(t tables.TableID) string {
	var b strings.Builder
	for _, c := range r.Ruleset().Table(t).Chains() {
		for _, x := range c.Rules() {
			fmt.Fprintf(&b, "-A %s%s\n", c.Name, x.Save())
		}
	}
	return b.String()
}

var (
	lan = packet.NewIface(2, "lan0", 1500)
	wan = packet.NewIface(3, "wan0", 1500)
)

func forwarded(t testing.TB, desc string) *packet.Packet {
	p := packettest.New(t, desc)
	p.In, p.Out = lan, wan
	return p
}

// manyRules is n rules of the usual kinds, none of which matches the packets of
// the benchmarks.
func manyRules(n int) []string {
	out := []string{"filter -P FORWARD DROP"}
	for i := range n - 1 {
		switch i % 4 {
		case 0:
			out = append(out, fmt.Sprintf("filter -A FORWARD -s 172.16.%d.0/24 -j DROP", i%256))
		case 1:
			out = append(out, fmt.Sprintf("filter -A FORWARD -p tcp --dport %d -j ACCEPT", 1000+i))
		case 2:
			out = append(out, fmt.Sprintf("filter -A FORWARD -i eth%d -o wan0 -j ACCEPT", i))
		case 3:
			out = append(out, fmt.Sprintf("filter -A FORWARD -d 10.9.%d.1 -p udp --sport %d -j DROP", i%256, 2000+i))
		}
	}
	return append(out, "filter -A FORWARD -i lan0 -j ACCEPT")
}

func BenchmarkWalk(b *testing.B) {
	for _, n := range []int{1, 20, 1000} {
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			r := newRig(b, packet.IPv4)
			r.must(manyRules(n)...)
			p := forwarded(b, "udp 10.0.0.2:5000 > 9.9.9.9:53")
			pr := r.Program()
			r.ctx.Prepare(pr)
			r.ctx.Hook = hooks.Forward
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if pr.Run(&r.ctx, tables.Filter, p) != hooks.Accept {
					b.Fatal("not accepted")
				}
			}
		})
	}
}

func BenchmarkWalk6(b *testing.B) {
	r := newRig(b, packet.IPv6)
	var lines []string
	for i := range 19 {
		lines = append(lines, fmt.Sprintf("filter -A FORWARD -s 2001:db8:%x::/48 -p tcp --dport 80 -j DROP", i))
	}
	r.must(append(lines, "filter -A FORWARD -i lan0 -j ACCEPT")...)
	p := forwarded(b, "udp [2001:db8:ffff::1]:5000 > [2001:db8::2]:53")
	pr := r.Program()
	r.ctx.Prepare(pr)
	r.ctx.Hook = hooks.Forward
	b.ReportAllocs()
	for b.Loop() {
		pr.Run(&r.ctx, tables.Filter, p)
	}
}

func BenchmarkAppendToThousand(b *testing.B) {
	r := newRig(b, packet.IPv4)
	r.must(manyRules(1000)...)
	rules, err := tables.ParseRule(ext.Registry, packet.IPv4, tables.Filter, "FORWARD", strings.Fields("-p tcp --dport 80 -j ACCEPT"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		err := r.Commit(func(rs *tables.Ruleset) error { return rs.Table(tables.Filter).Append("FORWARD", rules[0]) })
		if err != nil {
			b.Fatal(err)
		}
	}
}

func TestNoAlloc(t *testing.T) {
	r := newRig(t, packet.IPv4)
	r.must(append(manyRules(50), "filter -I FORWARD 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
		"filter -I FORWARD 2 -m limit --limit 1/s", "filter -I FORWARD 3 -p udp -m multiport --dports 1,2,3 -j DROP",
		"filter -N sub", "filter -A sub -m mark --mark 1 -j DROP", "filter -I FORWARD 1 -j sub")...)
	p := forwarded(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	pr := r.Program()
	r.ctx.Prepare(pr)
	r.ctx.Hook = hooks.Forward
	if n := testing.AllocsPerRun(1000, func() { pr.Run(&r.ctx, tables.Filter, p) }); n != 0 {
		t.Errorf("%v allocations in a walk", n)
	}
}

// BenchmarkEditAmongChains changes one rule in a table of many chains, the
// shape that container hosts have.
func BenchmarkEditAmongChains(b *testing.B) {
	r := newRig(b, packet.IPv4)
	var lines []string
	for i := range 5000 {
		lines = append(lines, fmt.Sprintf("filter -N c%d", i), fmt.Sprintf("filter -A c%d -p tcp --dport 80 -j ACCEPT", i), fmt.Sprintf("filter -A FORWARD -d 10.%d.%d.1 -j c%d", i/256, i%256, i))
	}
	r.must(lines...)
	rules, err := tables.ParseRule(ext.Registry, packet.IPv4, tables.Filter, "c7", strings.Fields("-p udp -j DROP"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		err := r.Commit(func(rs *tables.Ruleset) error {
			t := rs.Table(tables.Filter)
			if err := t.Append("c7", rules[0]); err != nil {
				return err
			}
			return t.Delete("c7", 2)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
