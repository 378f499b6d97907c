package tables_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ext"
)

func TestRefusedCommitChangesNothing(t *testing.T) {
	r := newRig(t, packet.IPv4)
	r.must("filter -N a", "filter -N b", "filter -A a -j b", "filter -A FORWARD -j a", "nat -N n", "nat -A n -j DNAT --to-destination 1.1.1.1", "nat -A PREROUTING -j n")
	before, live := r.save(tables.Filter)+r.save(tables.NAT), r.Program()
	for _, c := range []struct {
		edit string
		no   syscall.Errno
		text string // what iptables says
	}{
		{"filter -A b -j a", syscall.ELOOP, "Too many levels of symbolic links"},
		{"filter -A a -j a", syscall.ELOOP, "Too many levels of symbolic links"},
		{"filter -A a -g a", syscall.ELOOP, "Too many levels of symbolic links"},
		{"filter -A a -j nosuch", syscall.ENOENT, "No chain/target/match by that name"},
		{"filter -A a -j INPUT", syscall.EINVAL, "Invalid argument. Run `dmesg' for more information"},
		{"filter -A nosuch -j ACCEPT", syscall.ENOENT, "No chain/target/match by that name"},
		{"filter -A a -j DNAT --to-destination 1.1.1.1", syscall.EINVAL, "Invalid argument. Run `dmesg' for more information"},
		{"nat -A POSTROUTING -j n", syscall.EINVAL, "Invalid argument. Run `dmesg' for more information"},
		{"nat -A n -j SNAT --to-source 1.1.1.1", syscall.EINVAL, "Invalid argument. Run `dmesg' for more information"},
		{"filter -A b -p udp -m tcp", syscall.EINVAL, "Invalid argument. Run `dmesg' for more information"},
		{"filter -X a", syscall.EMLINK, "Too many links"},
		{"filter -X FORWARD", syscall.EINVAL, "Invalid argument. Run `dmesg' for more information"},
		{"filter -X nosuch", syscall.ENOENT, "No chain/target/match by that name"},
		{"filter -N a", syscall.EEXIST, "Chain already exists"},
		{"filter -N INPUT", syscall.EEXIST, "Chain already exists"},
		{"filter -E a b", syscall.EEXIST, "File exists"},
		{"filter -E nosuch c", syscall.ENOENT, "No chain/target/match by that name"},
		{"filter -D# a 5", syscall.E2BIG, "Index of deletion too big"},
		{"filter -I a 3 -j ACCEPT", syscall.E2BIG, "Index of insertion too big"},
		{"filter -R a 3 -j ACCEPT", syscall.E2BIG, "Index of replacement too big"},
		{"filter -D a -j ACCEPT", syscall.ENOENT, "Bad rule (does a matching rule exist in that chain?)"},
		{"filter -P a DROP", syscall.ENOENT, "Bad built-in chain name"},
	} {
		// What is done before the refused edit is undone with it.
		err := r.edit("filter -A INPUT -j DROP", "filter -N x", "filter -P INPUT DROP", c.edit)
		var e *tables.EditError
		if !errors.As(err, &e) || e.Errno != c.no || e.Text() != c.text {
			t.Errorf("%s: %v, want %v %q", c.edit, err, c.no, c.text)
		}
		if r.Program() != live || r.save(tables.Filter)+r.save(tables.NAT) != before || r.Ruleset().Table(tables.Filter).Chain("x") != nil {
			t.Fatalf("%s: refused, and yet something changed", c.edit)
		}
	}
	err := r.Check(func(rs *tables.Ruleset) error { return rs.Table(tables.Filter).Flush("a") })
	if err != nil || r.Program() != live {
		t.Error("Check published: ", err)
	}
}

// An extension that is not for the table is told first, then what extensions say
// when they are compiled, and then who is out of place in the chain.
func TestOutOfPlace(t *testing.T) {
	r := newRig(t, packet.IPv4)
	r.must("nat -N n", "nat -A PREROUTING -j n")
	for _, c := range []struct{ edit, target, detail string }{
		{"filter -A INPUT -m rpfilter -j ACCEPT", "rpfilter", "match rpfilter cannot be used in table filter"},
		{"filter -A INPUT -m rpfilter -m set --match-set nosuch src -j ACCEPT", "rpfilter", "match rpfilter cannot be used in table filter"},
		{"filter -A INPUT -m set --match-set nosuch src -j DNAT --to-destination 1.1.1.1", "DNAT", "target DNAT cannot be used in table filter"},
		{"raw -A PREROUTING -p udp -m tcp -j DNAT --to-destination 1.1.1.1", "DNAT", "target DNAT cannot be used in table raw"},
		{"nat -A n -j SNAT --to-source 1.1.1.1", "SNAT", "target SNAT cannot be used in a chain that is reached from PREROUTING"},
		{"nat -A n -p udp -m tcp -j SNAT --to-source 1.1.1.1", "tcp", "match tcp needs its protocol given with -p"},
	} {
		var e *tables.EditError
		if err := r.edit(c.edit); !errors.As(err, &e) || e.Errno != syscall.EINVAL || e.Target != c.target || e.Detail != c.detail {
			t.Errorf("%s: %v, %+v", c.edit, err, e)
		}
	}
}

// As in Linux, a loop that no builtin chain leads to is let be.
func TestUnreachableLoop(t *testing.T) {
	r := newRig(t, packet.IPv4)
	r.must("filter -N a", "filter -N b", "filter -A a -j b", "filter -A b -j a", "filter -A b -j b")
	if err := r.edit("filter -A OUTPUT -j b"); !errors.Is(err, syscall.ELOOP) {
		t.Error(err)
	}
	r.must("filter -D# b 2", "filter -D# b 1", "filter -A OUTPUT -j b")
}

func TestErrorNamesTheRule(t *testing.T) {
	r := newRig(t, packet.IPv4)
	rules, err := tables.ParseRule(ext.Registry, packet.IPv4, tables.Filter, "FORWARD", strings.Fields("-j nosuch"))
	if err != nil {
		t.Fatal(err)
	}
	rules[0].Source = tables.Source{File: "edge.rules", Line: 7}
	err = r.Commit(func(rs *tables.Ruleset) error {
		if err := apply(rs, r.Family, "filter -A FORWARD -j ACCEPT"); err != nil {
			return err
		}
		return rs.Table(tables.Filter).Append("FORWARD", rules[0])
	})
	if got := fmt.Sprint(err); got != `edge.rules:7: No chain/target/match by that name (chain FORWARD: there is no chain "nosuch" in table filter)` {
		t.Error(got)
	}
	var e *tables.EditError
	if !errors.As(err, &e) || e.Rule != 2 || e.Chain != "FORWARD" || e.Target != "nosuch" {
		t.Errorf("%+v", e)
	}
}

func TestCountersAndStateOutliveEdits(t *testing.T) {
	r := newRig(t, packet.IPv4)
	r.must("filter -N sub", "filter -A sub -m limit --limit 1/hour --limit-burst 2 -j ACCEPT", "filter -A FORWARD -j sub", "filter -A FORWARD -j DROP")
	p := forwarded(t, "udp 10.0.0.1:1 > 10.0.0.2:2")
	send := func() string {
		p.Reason = 0
		if r.run(tables.Filter, hooks.Forward, p) == hooks.Accept {
			return "accept"
		}
		return "drop"
	}
	if send() != "accept" {
		t.Fatal("first packet")
	}
	r.must("filter -E sub web", "filter -I FORWARD 1 -p tcp -j ACCEPT", "filter -A web -j RETURN", "filter -P INPUT DROP")
	if got := r.counts(tables.Filter, "web") + " | " + r.counts(tables.Filter, "FORWARD"); got != "1 0 | 0 1 0/0" {
		t.Error(got)
	}
	if s := send() + send(); s != "acceptdrop" {
		t.Error("the limit did not outlive the edit: ", s)
	}
	if got := r.counts(tables.Filter, "web") + " | " + r.counts(tables.Filter, "FORWARD"); got != "2 1 | 0 3 1/0" {
		t.Error(got)
	}
	if s := r.save(tables.Filter); !strings.Contains(s, "-A FORWARD -j web\n") || strings.Contains(s, "sub") {
		t.Error(s)
	}
	r.must("filter -R web 1 -m limit --limit 1/hour --limit-burst 2 -j ACCEPT")
	if send() != "accept" || r.counts(tables.Filter, "web") != "1 1" {
		t.Error("a replaced rule starts afresh: ", r.counts(tables.Filter, "web"))
	}
}

// TestEntered: a chain has met every packet, whatever became of it there.
func TestEntered(t *testing.T) {
	r := newRig(t, packet.IPv4)
	p := forwarded(t, "udp 10.0.0.1:1 > 10.0.0.2:2")
	entered := func() tables.Counter {
		v := r.View(nil)
		return v.Entered(v.Ruleset.Table(tables.Filter).Chain("FORWARD"))
	}
	send := func() { r.run(tables.Filter, hooks.Forward, p); p.Reason = 0 }
	send()
	if k := entered(); k.Packets != 1 {
		t.Errorf("without rules: %+v", k)
	}
	r.must("filter -A FORWARD -p tcp -j DROP", "filter -A FORWARD -j ACCEPT")
	send()
	r.must("filter -P FORWARD DROP", "filter -D FORWARD -j ACCEPT")
	send()
	if k := entered(); k.Packets != 2 || k.Bytes != 2*uint64(p.Len()) {
		t.Errorf("with rules: %+v", k)
	}
}

func TestZeroAndSet(t *testing.T) {
	r := newRig(t, packet.IPv4)
	r.must("filter -A FORWARD -c 5 600 -p udp", "filter -A FORWARD -p udp")
	p := forwarded(t, "udp 10.0.0.1:1 > 10.0.0.2:2")
	r.run(tables.Filter, hooks.Forward, p)
	if got := r.counts(tables.Filter, "FORWARD"); got != "6 1/1" {
		t.Error(got)
	}
	chain := r.Ruleset().Table(tables.Filter).Chain("FORWARD")
	v := r.View(func(_ *tables.Table, c *tables.Chain, x *tables.Rule) bool { return x == chain.Rules()[0] })
	if k := v.Rule(chain.Rules()[0]); k != (tables.Counter{Packets: 6, Bytes: 628}) {
		t.Error("read while zeroing: ", k)
	}
	r.run(tables.Filter, hooks.Forward, p)
	if got := r.counts(tables.Filter, "FORWARD"); got != "1 2/2" {
		t.Error(got)
	}
	r.must("filter -Z FORWARD")
	if got := r.counts(tables.Filter, "FORWARD"); got != "0 0/0" {
		t.Error(got)
	}
	err := r.Commit(func(rs *tables.Ruleset) error {
		t := rs.Table(tables.Filter)
		return errors.Join(t.SetRuleCounters("FORWARD", 2, tables.Counter{Packets: 40}), t.SetPolicyCounters("FORWARD", tables.Counter{Packets: 50}))
	})
	r.run(tables.Filter, hooks.Forward, p)
	if got := r.counts(tables.Filter, "FORWARD"); err != nil || got != "1 41/51" {
		t.Error(err, got)
	}
}

// Counters of deleted rules are used again, and start at zero.
func TestCounterReuse(t *testing.T) {
	r := newRig(t, packet.IPv4)
	p := forwarded(t, "udp 10.0.0.1:1 > 10.0.0.2:2")
	for i := range 20 {
		lines := make([]string, 1000)
		for j := range lines {
			lines[j] = "filter -A FORWARD -p udp"
		}
		r.must(lines...)
		r.run(tables.Filter, hooks.Forward, p)
		if got := r.counts(tables.Filter, "FORWARD"); got != strings.TrimSpace(strings.Repeat("1 ", 1000))+fmt.Sprintf("/%d", i+1) {
			t.Fatalf("round %d: %.60s…", i, got)
		}
		r.must("filter -F FORWARD")
	}
	if n := len(r.ctx.Counters); n > 12000 {
		t.Errorf("%d counters for at most 1,000 rules at a time", n)
	}
}

func TestDeepJumps(t *testing.T) {
	r := newRig(t, packet.IPv4)
	var lines []string
	for i := range 3000 {
		lines = append(lines, fmt.Sprintf("filter -N c%d", i))
		if i > 0 {
			lines = append(lines, fmt.Sprintf("filter -A c%d -j c%d", i-1, i))
		}
	}
	r.must(append(lines, "filter -A c2999 -p tcp -j DROP", "filter -A FORWARD -j c0", "filter -A FORWARD -j DROP")...)
	p := forwarded(t, "udp 10.0.0.1:1 > 10.0.0.2:2")
	if r.run(tables.Filter, hooks.Forward, p) != hooks.Drop || r.counts(tables.Filter, "FORWARD") != "1 1/0" {
		t.Error(r.counts(tables.Filter, "FORWARD"))
	}
}

// TestCommitUnderTraffic edits rules while two workers run packets: each packet
// sees one ruleset as a whole, and no count is lost.
func TestCommitUnderTraffic(t *testing.T) {
	type worker struct {
		mu   sync.Mutex
		ctx  tables.Context
		sent uint64
	}
	workers := []*worker{{}, {}}
	env := &tables.Env{DoWorkers: func(f func(*tables.Context)) {
		for _, w := range workers {
			w.mu.Lock()
			f(&w.ctx)
			w.mu.Unlock()
		}
	}}
	e := tables.NewEngine(packet.IPv4, env)
	r := &rig{TB: t, Engine: e}
	// Either both rules are there and accept, or neither is and the policy does.
	r.must("filter -A FORWARD -m comment --comment always", "filter -N x", "filter -A FORWARD -j x")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := forwarded(t, "udp 10.0.0.1:1 > 10.0.0.2:2")
			for {
				select {
				case <-stop:
					return
				default:
				}
				w.mu.Lock()
				pr := e.Program()
				w.ctx.Prepare(pr)
				w.ctx.Hook = hooks.Forward
				for range 64 {
					if pr.Run(&w.ctx, tables.Filter, p) != hooks.Accept {
						t.Error("a packet saw half of an edit: ", p.Reason)
					}
					w.sent++
				}
				w.mu.Unlock()
			}
		}()
	}
	for i := range 300 {
		r.must("filter -A x -p udp -j ACCEPT", "filter -A FORWARD -j DROP")
		r.must("filter -F x", "filter -D FORWARD -j DROP")
		if i%50 == 0 {
			r.must("filter -E x y", "filter -E y x")
			e.View(nil)
		}
	}
	close(stop)
	wg.Wait()
	v := e.View(nil)
	first := v.Ruleset.Table(tables.Filter).Chain("FORWARD").Rules()[0]
	if got, want := v.Rule(first).Packets, workers[0].sent+workers[1].sent; got != want {
		t.Errorf("counted %d of %d packets", got, want)
	}
}

func TestParserHandsCommandsBack(t *testing.T) {
	cmds := []tables.CommandOption{{Long: "append", Short: 'A', Arg: tables.NeedArg, ID: 1}, {Long: "list", Short: 'L', Arg: tables.MayArg, ID: 2},
		{Long: "verbose", Short: 'v', ID: 3}, {Long: "table", Short: 't', Arg: tables.NeedArg, ID: 4}}
	args := strings.Fields("-vvtnat -p tcp --app PREROUTING --dport 80 --table=nat ! -L foo -j ACCEPT -v")
	ps := tables.NewParser(ext.Registry, packet.IPv4, args, cmds)
	var got []string
	for {
		g, more, err := ps.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		if g.ID == 2 {
			g.Arg, _ = ps.Take()
		}
		got = append(got, fmt.Sprintf("%s=%s,%v", g.Name, g.Arg, g.Invert))
	}
	if s := strings.Join(got, " "); s != "-v=,false -v=,false -t=nat,false --app=PREROUTING,false --table=nat=nat,false -L=foo,true -v=,false" {
		t.Error(s)
	}
	if err := ps.Options(tables.NAT); err != nil {
		t.Fatal(err)
	}
	rules, err := ps.Rules("PREROUTING")
	if err != nil || len(rules) != 1 || rules[0].Save() != " -p tcp -m tcp --dport 80 -j ACCEPT" {
		t.Error(rules, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"-p tcp --dport 80 -j ACCEPT", "! -s 10.0.0.0/8 -d 1.2.3.4/255.0.255.0 -i eth+ -f -g x", "-m conntrack --ctstate NEW,ESTABLISHED --ctorigsrc 1.2.3.4/8 -j LOG --log-prefix x",
		"-m multiport -p udp --ports 1,2:3", "-p sctp --chunk-types any DATA:uBe", "-j CT --zone 5 --helper ftp", "-p tcp -j SNAT --to-source 1.2.3.4-1.2.3.9:1-5 --random",
		"-m limit --limit 5/m --limit-burst 7 -m mark ! --mark 1/2 -j MARK --set-mark 4", "-p icmp --icmp-type 3/4 -j REJECT --reject-with net-unreach", "-c 1 2",
	} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, six bool) {
		fam := packet.IPv4
		if six {
			fam = packet.IPv6
		}
		rules, err := tables.ParseRule(ext.Registry, fam, tables.Filter, "FORWARD", strings.Fields(s))
		if err != nil {
			return
		}
		for _, r := range rules {
			text := r.Save()
			r.ListExtras(true)
			r.ListExtras(false)
			if strings.ContainsAny(text, "\"\\") {
				continue // quoted: Fields does not take quotes apart
			}
			again, err := tables.ParseRule(ext.Registry, fam, tables.Filter, "FORWARD", strings.Fields(text))
			if err != nil || len(again) != 1 || again[0].Save() != text {
				t.Fatalf("%q was saved as %q, which reads as %v, %v", s, text, again, err)
			}
		}
	})
}

// TestManyEditsInOne: inserts, deletes, replacements and appends in one edit give
// what they give one by one, and the ruleset before stays as it is.
func TestManyEditsInOne(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 5))
		e := newRig(t, packet.IPv4)
		var want []string // the rules' marks
		n := 0
		for range 4 {
			before, live := slices.Clone(want), e.Ruleset()
			if err := e.Commit(func(rs *tables.Ruleset) error {
				for range r.IntN(120) {
					n++
					at, len := 0, len(want)
					if len > 0 {
						at = []int{0, len - 1, r.IntN(len)}[r.IntN(3)]
					}
					line := fmt.Sprintf("filter -A INPUT -m mark --mark %#x", n)
					switch op := r.IntN(8); {
					case op < 3:
						at = min(at+r.IntN(2), len)
						line = fmt.Sprintf("filter -I INPUT %d -m mark --mark %#x", at+1, n)
						want = slices.Insert(want, at, fmt.Sprintf("%#x", n))
					case op < 5 && len > 0:
						line = fmt.Sprintf("filter -D# INPUT %d", at+1)
						want = slices.Delete(want, at, at+1)
					case op == 5 && len > 0:
						line = fmt.Sprintf("filter -R INPUT %d -m mark --mark %#x", at+1, n)
						want[at] = fmt.Sprintf("%#x", n)
					case op == 6 && r.IntN(10) == 0:
						line = "filter -F INPUT"
						want = want[:0]
					default:
						want = append(want, fmt.Sprintf("%#x", n))
					}
					if err := apply(rs, packet.IPv4, line); err != nil {
						return fmt.Errorf("%s: %w", line, err)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(seed, err)
			}
			marks := func(rs *tables.Ruleset) (out []string) {
				for _, x := range rs.Table(tables.Filter).Chain("INPUT").Rules() {
					out = append(out, strings.TrimPrefix(x.Save(), " -m mark --mark "))
				}
				return out
			}
			if got := marks(e.Ruleset()); !slices.Equal(got, want) {
				t.Fatalf("seed %d\n%s\nwant\n%s", seed, got, want)
			}
			if got := marks(live); !slices.Equal(got, before) {
				t.Fatalf("seed %d: the ruleset before has become\n%s\nfrom\n%s", seed, got, before)
			}
		}
	}
}
