package ext

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"weak"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

const sec = int64(1e9)

// chain loads rules into filter FORWARD and gives a function that tells which
// of them matched a packet, one letter each.
func (b *bench) chain(fam uint8, rules ...string) (e *tables.Engine, run func(p *packet.Packet) string) {
	b.Helper()
	e = tables.NewEngine(fam, b.env)
	b.env.DoWorkers = func(f func(*tables.Context)) { f(&b.ctx) }
	err := e.Commit(func(rs *tables.Ruleset) error {
		for _, text := range rules {
			parsed, err := tables.ParseRule(Registry, fam, tables.Filter, "FORWARD", packettest.Words(text))
			if err != nil {
				return fmt.Errorf("%s: %w", text, err)
			}
			if err := rs.Table(tables.Filter).Append("FORWARD", parsed[0]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ctx.Counters = nil
	return e, func(p *packet.Packet) (s string) {
		before := e.View(nil)
		b.ctx.Prepare(e.Program())
		b.ctx.Hook = hooks.Forward
		if e.Program().Run(&b.ctx, tables.Filter, p) != hooks.Accept {
			s = "!"
		}
		v := e.View(nil)
		for _, r := range e.Ruleset().Table(tables.Filter).Chain("FORWARD").Rules() {
			if v.Rule(r) != before.Rule(r) {
				s += "x"
			} else {
				s += "."
			}
		}
		return s
	}
}

type event struct {
	at     int64 // ns
	packet string
	want   string
}

func (b *bench) play(run func(*packet.Packet) string, events []event) {
	b.Helper()
	for i, e := range events {
		p := packettest.New(b, e.packet)
		p.Now = 1000*sec + e.at
		if got := run(p); got != e.want {
			b.Errorf("packet %d, %s at %d ms: %s, want %s", i, e.packet, e.at/1e6, got, e.want)
		}
	}
}

func TestRecentTimes(t *testing.T) {
	b := newBench(t)
	x, y := "udp 10.0.0.2:1 > 9.9.9.9:2", "udp 10.0.0.3:1 > 9.9.9.9:2"
	_, run := b.chain(packet.IPv4,
		"-m recent --name l --rcheck --seconds 10", "-m recent --name l --rcheck --seconds 10 --hitcount 3", "-m recent --name l --rcheck", "-s 10.0.0.2 -m recent --name l --set")
	b.play(run, []event{
		{0, x, "...x"}, {1 * sec, x, "x.xx"}, {2 * sec, y, "...."}, {9 * sec, x, "x.xx"}, {10 * sec, x, "xxxx"}, // 0, 1, 9 are within ten seconds
		{11 * sec, x, "xxxx"}, {21*sec + 1, x, "..xx"}, {22 * sec, x, "x.xx"},
	})
	_, run = b.chain(packet.IPv4, "-m recent --name m --update --seconds 10 --hitcount 2", "-s 10.0.0.2 -m recent --name m ! --rcheck", "-m recent --name m --set")
	b.play(run, []event{
		{0, x, ".xx"}, {1 * sec, x, "..x"}, {2 * sec, x, "x.x"}, {30 * sec, x, "..x"}, {31 * sec, y, "..x"},
	})
}

// Only --update refreshes; and --reap takes the oldest away.
func TestRecentReap(t *testing.T) {
	b := newBench(t)
	e, run := b.chain(packet.IPv4, "-m ttl --ttl-eq 9 -m recent --name r --set", "-m ttl --ttl-eq 8 -m recent --name r --update --seconds 10 --reap", "-m ttl --ttl-eq 7 -m recent --name r --remove")
	pk := func(host, ttl int) string { return fmt.Sprintf("udp 10.0.0.%d:1 > 9.9.9.9:2 ttl=%d", host, ttl) }
	b.play(run, []event{
		{0, pk(1, 9), "x.."}, {1 * sec, pk(2, 9), "x.."}, {2 * sec, pk(3, 9), "x.."},
		{5 * sec, pk(1, 8), ".x."},  // refreshed
		{12 * sec, pk(3, 8), ".x."}, // host 2 is the oldest and goes
		{12 * sec, pk(2, 7), "..."}, {12 * sec, pk(1, 7), "..x"}, {12 * sec, pk(1, 7), "..."}, {12 * sec, pk(3, 7), "..x"},
	})
	runtime.KeepAlive(e)
}

func TestRecentTTL(t *testing.T) {
	b := newBench(t)
	_, run := b.chain(packet.IPv4, "-m recent --name t --rcheck --rttl", "-m recent --name t --rcheck", "-p tcp -m recent --name t --set")
	b.play(run, []event{
		{0, "tcp 10.0.0.2:1 > 9.9.9.9:2 S ttl=50", "..x"}, {0, "udp 10.0.0.2:1 > 9.9.9.9:2 ttl=50", "xx."}, {0, "udp 10.0.0.2:1 > 9.9.9.9:2 ttl=51", ".x."},
	})
	// Towards an interface, a forwarded packet counts with the TTL it had before.
	p := packettest.New(t, "udp 10.0.0.2:1 > 9.9.9.9:2 ttl=49")
	p.Now, p.Out = 1000*sec, packet.NewIface(3, "wan0", 1500)
	if got := run(p); got != "xx." {
		t.Error(got)
	}
	p.Flags |= packet.Local
	if got := run(p); got != ".x." {
		t.Error(got)
	}
}

// A list holds a hundred addresses; the one not seen for longest makes room.
func TestRecentBounds(t *testing.T) {
	b := newBench(t)
	_, run := b.chain(packet.IPv4, "-p udp -m recent --name b --set", "-p tcp -m recent --name b --rcheck")
	set := func(i int) string { return fmt.Sprintf("udp 10.0.%d.%d:1 > 9.9.9.9:2", i/200, i%200) }
	check := func(i int) string { return fmt.Sprintf("tcp 10.0.%d.%d:1 > 9.9.9.9:2 S", i/200, i%200) }
	for i := range 250 {
		b.play(run, []event{{int64(i), set(i), "x."}, {int64(i), set(0), "x."}})
	}
	for i := range 250 {
		want := ".."
		if i == 0 || i > 150 {
			want = ".x"
		}
		b.play(run, []event{{300, check(i), want}})
	}
}

// A list is one for both families, and lives while a rule names it.
func TestRecentIsShared(t *testing.T) {
	b := newBench(t)
	e, run := b.chain(packet.IPv4, "-p udp -m recent --name s --set", "-m recent --name s --rcheck")
	env6 := *b.env // a router has an Env for each family
	b6 := *b
	b6.env, b6.ctx.Env = &env6, &env6
	e6, run6 := b6.chain(packet.IPv6, "-m recent --name s --rcheck --mask ffff::", "-p udp -m recent --name s --set")
	b.play(run, []event{{0, "udp 10.0.0.2:1 > 9.9.9.9:2", "xx"}})
	b6.play(run6, []event{{0, "udp [a00:2::]:1 > [fd00::1]:2", ".x"}, {0, "udp [a00:2::]:1 > [fd00::1]:2", "xx"}})
	// A change that keeps a rule of the list keeps the list.
	err := e.Commit(func(rs *tables.Ruleset) error {
		tab := rs.Table(tables.Filter)
		if err := tab.Flush("FORWARD"); err != nil {
			return err
		}
		parsed, err := tables.ParseRule(Registry, packet.IPv4, tables.Filter, "FORWARD", packettest.Words("-m recent --name s --rcheck"))
		if err != nil {
			return err
		}
		return tab.Append("FORWARD", parsed[0])
	})
	if err != nil {
		t.Fatal(err)
	}
	b.play(run, []event{{0, "tcp 10.0.0.2:1 > 9.9.9.9:2 S", "x"}, {0, "tcp 10.0.0.3:1 > 9.9.9.9:2 S", "."}})
	if n := users(&recentLists, b.ct, "s"); n == 0 {
		t.Error("the list has no users")
	}
	runtime.KeepAlive(e6)
}

func users[T any](s *shared[T], router *conntrack.Table, name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k, it := range s.items {
		if k.router == weak.Make(router) && k.name == name {
			n += it.users
		}
	}
	return n
}

// The last rule takes the list with it, at once.
func TestSharedEndsWithTheLastRule(t *testing.T) {
	b := newBench(t)
	rules := []string{"-m recent --name end --set", "-m hashlimit --hashlimit-name end --hashlimit-upto 1/hour --hashlimit-burst 1"}
	e, run := b.chain(packet.IPv4, rules...)
	x := "udp 10.0.0.2:1 > 9.9.9.9:2"
	b.play(run, []event{{0, x, "xx"}, {0, x, "x."}})
	edit := func(f func(tab *tables.Table) error) {
		t.Helper()
		if err := e.Commit(func(rs *tables.Ruleset) error { return f(rs.Table(tables.Filter)) }); err != nil {
			t.Fatal(err)
		}
	}
	add := func(texts ...string) func(tab *tables.Table) error {
		return func(tab *tables.Table) error {
			for _, text := range texts {
				parsed, err := tables.ParseRule(Registry, packet.IPv4, tables.Filter, "FORWARD", packettest.Words(text))
				if err == nil {
					err = tab.Append("FORWARD", parsed[0])
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	both := func() [2]int { return [2]int{users(&recentLists, b.ct, "end"), users(&hashTables, b.ct, "end")} }
	// Refused and tried edits leave nothing behind.
	if e.Check(func(rs *tables.Ruleset) error { return add(rules...)(rs.Table(tables.Filter)) }) != nil || both() != [2]int{1, 1} {
		t.Error("after a check:", both())
	}
	if e.Commit(func(rs *tables.Ruleset) error {
		return add(rules[0], "-m hashlimit --hashlimit-name end --hashlimit-upto 1/day")(rs.Table(tables.Filter))
	}) == nil || both() != [2]int{1, 1} {
		t.Error("after a refusal:", both())
	}
	// The same rules anew, in one step: the state stays.
	edit(func(tab *tables.Table) error {
		if err := tab.Flush("FORWARD"); err != nil {
			return err
		}
		return add(rules...)(tab)
	})
	b.play(run, []event{{0, x, "x."}})
	edit(func(tab *tables.Table) error { return tab.Flush("FORWARD") })
	if both() != [2]int{} {
		t.Error("without rules:", both())
	}
	edit(add("-m recent --name end --rcheck", rules[1]))
	b.play(run, []event{{0, x, ".x"}, {0, x, ".."}})
}

// What no rule names any more is forgotten, whole engines included.
func TestSharedIsForgotten(t *testing.T) {
	b := newBench(t)
	b.chain(packet.IPv4, "-m recent --name gone --set", "-m hashlimit --hashlimit-name gone --hashlimit-upto 1/s")
	if users(&recentLists, b.ct, "gone") == 0 || users(&hashTables, b.ct, "gone") == 0 {
		t.Fatal("not there")
	}
	for end := time.Now().Add(10 * time.Second); users(&recentLists, b.ct, "gone")+users(&hashTables, b.ct, "gone") > 0; {
		if time.Now().After(end) {
			t.Fatal("still there")
		}
		runtime.GC()
		runtime.Gosched()
	}
}

func TestHashlimitRates(t *testing.T) {
	ms := int64(1e6)
	x, y := "udp 10.0.0.2:1 > 9.9.9.9:2", "udp 10.0.0.3:1 > 9.9.9.9:2"
	for _, c := range []struct {
		rule   string
		events []event
	}{
		{"--hashlimit-upto 10/s --hashlimit-burst 2 --hashlimit-mode srcip", []event{
			{0, x, "x"}, {0, x, "x"}, {0, x, "."}, {0, y, "x"}, {96 * ms, x, "."}, {100 * ms, x, "x"}, {100 * ms, x, "."}, {5000 * ms, x, "x"}, {5000 * ms, x, "x"}, {5000 * ms, x, "."},
		}},
		{"--hashlimit-above 10/s --hashlimit-burst 2 --hashlimit-mode srcip", []event{{0, x, "."}, {0, x, "."}, {0, x, "x"}, {0, y, "."}}},
		{"! --hashlimit-upto 10/s --hashlimit-burst 1", []event{{0, x, "."}, {0, y, "x"}}},
		{"--hashlimit-upto 1/hour --hashlimit-burst 1 --hashlimit-mode srcip --hashlimit-htable-expire 5000", []event{
			{0, x, "x"}, {4000 * ms, x, "."}, {8000 * ms, x, "."}, {13001 * ms, x, "x"}, // idle for longer than the expiry: forgotten
		}},
		{"--hashlimit-upto 1000b/s --hashlimit-mode srcip", []event{ // 62 chunks of 16 bytes, and what is begun counts
			{0, x + " len=868", "x"}, {0, x + " len=36", "x"}, {0, x, "."}, {500 * ms, x + " len=400", "x"}, {500 * ms, x + " len=200", "."},
			{2000 * ms, x + " len=1400", "x"}, {2000 * ms, x, "."}, // a packet never costs more than a second
		}},
		{"--hashlimit-upto 1000b/s --hashlimit-burst 2000b --hashlimit-mode srcip", []event{
			{0, x + " len=940", "x"}, {0, x + " len=940", "x"}, {0, x + " len=940", "x"}, {0, x + " len=940", "x"}, {0, x + " len=940", "."},
		}},
		{"--hashlimit-upto 3/s --hashlimit-burst 1 --hashlimit-rate-match --hashlimit-rate-interval 2 --hashlimit-htable-expire 10000", []event{
			{0, x, "x"}, {0, x, "x"}, {0, x, "x"}, {0, x, "x"}, {0, x, "."}, {1000 * ms, x, "."}, {1999 * ms, x, "."},
			{2000 * ms, x, "."},                      // the interval before was above the rate
			{4000 * ms, x, "x"}, {5999 * ms, x, "x"}, // and this one, with one packet, was not
		}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			b := newBench(t)
			_, run := b.chain(packet.IPv4, "-m hashlimit --hashlimit-name r "+c.rule)
			b.play(run, c.events)
		})
	}
}

func TestHashlimitKeys(t *testing.T) {
	for _, c := range []struct {
		rule string
		same []string // packets that share a bucket with the first
		not  []string
	}{
		{"--hashlimit-mode srcip", []string{"udp 10.0.0.2:1 > 9.9.9.9:2", "tcp 10.0.0.2:7 > 8.8.8.8:2 S"}, []string{"udp 10.0.0.3:1 > 9.9.9.9:2"}},
		{"--hashlimit-mode dstip --hashlimit-dstmask 8", []string{"udp 10.0.0.2:1 > 9.9.9.9:2", "udp 10.0.0.3:1 > 9.1.1.1:2"}, []string{"udp 10.0.0.2:1 > 8.9.9.9:2"}},
		{"--hashlimit-mode srcip --hashlimit-srcmask 31", []string{"udp 10.0.0.2:1 > 9.9.9.9:2", "udp 10.0.0.3:1 > 9.1.1.1:2"}, []string{"udp 10.0.0.4:1 > 9.9.9.9:2"}},
		{"--hashlimit-mode srcport", []string{"udp 10.0.0.2:1 > 9.9.9.9:2", "tcp 10.0.0.3:1 > 9.9.9.9:3 S", "sctp 10.0.0.3:1 > 9.9.9.9:3"}, []string{"udp 10.0.0.2:3 > 9.9.9.9:2"}},
		{"--hashlimit-mode dstport", []string{"udp 10.0.0.2:1 > 9.9.9.9:2", "udp 10.0.0.2:9 > 9.9.9.8:2"}, []string{"udp 10.0.0.2:1 > 9.9.9.9:3"}},
		{"--hashlimit-mode srcport,dstport", []string{"icmp 10.0.0.2 > 9.9.9.9 type=8 id=1", "icmp 10.0.0.2 > 9.9.9.9 type=8 id=2", "47 10.0.0.5 > 9.9.9.9 hex=01020304"}, []string{"esp 10.0.0.2 > 9.9.9.9 hex=01020304"}},
		{"", []string{"udp 10.0.0.2:1 > 9.9.9.9:2", "tcp 1.0.0.3:9 > 9.1.1.1:2 S"}, nil},
	} {
		t.Run(c.rule, func(t *testing.T) {
			b := newBench(t)
			_, run := b.chain(packet.IPv4, fmt.Sprintf("-m hashlimit --hashlimit-name k --hashlimit-upto 1/hour --hashlimit-burst %d %s", len(c.same), c.rule))
			for _, s := range c.same {
				b.play(run, []event{{0, s, "x"}})
			}
			b.play(run, []event{{0, c.same[0], "."}})
			for _, s := range c.not {
				b.play(run, []event{{0, s, "x"}})
			}
		})
	}
	// Ports that are not there, and a full table, cost the packet its life.
	b := newBench(t)
	_, run := b.chain(packet.IPv4, "-m hashlimit --hashlimit-name p --hashlimit-upto 1/s --hashlimit-mode srcport")
	b.play(run, []event{{0, "esp 10.0.0.2 > 9.9.9.9 hex=01", "!."}})
	_, run = b.chain(packet.IPv4, "-m hashlimit --hashlimit-name q --hashlimit-upto 1/s --hashlimit-mode srcip --hashlimit-htable-size 2 --hashlimit-htable-max 2 --hashlimit-htable-expire 1000")
	pk := func(i int) string { return fmt.Sprintf("udp 10.0.0.%d:1 > 9.9.9.9:2", i) }
	b.play(run, []event{{0, pk(1), "x"}, {0, pk(2), "x"}, {0, pk(3), "!."}, {0, pk(1), "x"}, {3 * sec, pk(3), "x"}, {3 * sec, pk(4), "x"}, {3 * sec, pk(5), "!."}})
}

// The rules that name a table share it; families have tables of their own.
func TestHashlimitIsShared(t *testing.T) {
	b := newBench(t)
	_, run := b.chain(packet.IPv4, "-p udp -m hashlimit --hashlimit-name s --hashlimit-upto 1/hour --hashlimit-burst 2", "-p tcp -m hashlimit --hashlimit-name s --hashlimit-above 1000/s --hashlimit-burst 9")
	_, run6 := b.chain(packet.IPv6, "-m hashlimit --hashlimit-name s --hashlimit-upto 1/hour --hashlimit-burst 1")
	b.play(run, []event{{0, "udp 10.0.0.2:1 > 9.9.9.9:2", "x."}, {0, "tcp 10.0.0.2:1 > 9.9.9.9:2 S", ".."}, {0, "udp 10.0.0.2:1 > 9.9.9.9:2", ".."}, {0, "tcp 10.0.0.2:1 > 9.9.9.9:2 S", ".x"}})
	b.play(run6, []event{{0, "udp [fd00::1]:1 > [fd00::2]:2", "x"}, {0, "udp [fd00::1]:1 > [fd00::2]:2", "."}})
}

func TestHashlimitRefusals(t *testing.T) {
	for rule, want := range map[string]error{
		"--hashlimit-upto 1/day":                                 syscall.ERANGE,
		"--hashlimit-upto 1/day --hashlimit-burst 2":             syscall.ERANGE,
		"--hashlimit-upto 10/day --hashlimit-burst 16":           syscall.ERANGE,
		"--hashlimit-upto 2000000000/day --hashlimit-rate-match": syscall.ERANGE,
		"--hashlimit-upto 1/day --hashlimit-burst 1":             nil,
		"--hashlimit-upto 1/day --hashlimit-htable-expire 0":     syscall.EINVAL,
	} {
		if err := errNumber(t, newBench(t).env, "-m hashlimit --hashlimit-name a "+rule); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", rule, err, want)
		}
	}
}

// flow sends a packet through conntrack and the rules.
func (b *bench) flow(run func(*packet.Packet) string, desc string, now int64) string {
	b.Helper()
	w := b.ctx.CT
	w.End()
	w.Begin(now)
	p := packettest.New(b, desc)
	p.Now = now
	if !w.Track(p, uint8(hooks.Prerouting)) {
		b.Fatal(desc, p.Reason)
	}
	s := run(p)
	if s[0] == '!' || !w.Confirm(p) {
		w.Release(p)
	}
	return s
}

func TestConnlimitCounts(t *testing.T) {
	b := newBench(t)
	_, run := b.chain(packet.IPv4, "-m connlimit --connlimit-above 2", "-m connlimit --connlimit-upto 2 --connlimit-daddr", "-m connlimit --connlimit-above 3 --connlimit-mask 24", "-p udp -m connlimit --connlimit-above 2 -j DROP")
	now := int64(100) * sec
	for i, c := range []struct {
		packet, want string
		wait         int64
	}{
		{"tcp 10.0.0.2:1 > 9.9.9.9:80 S seq=1", ".x..", 0},
		{"tcp 10.0.0.2:2 > 9.9.9.9:80 S seq=1", ".x..", 0},
		{"tcp 10.0.0.2:2 > 9.9.9.9:80 S seq=1", ".x..", 0}, // again: no other connection
		{"tcp 10.0.0.2:3 > 9.9.9.9:80 S seq=1", "x...", 0},
		{"tcp 10.0.0.9:3 > 9.9.9.8:80 S seq=1", ".xx.", 0},        // another address, the same group
		{"tcp 9.9.9.9:80 > 10.0.0.2:3 RA seq=0 ack=2", ".x..", 0}, // counts by its own source
		{"tcp 10.0.0.2:1 > 9.9.9.9:80 S seq=1", ".x..", 0},
		{"udp 10.0.0.2:7 > 9.9.9.7:53", "xxx.", 0},
		{"udp 10.0.0.3:7 > 9.9.9.7:53", ".xx.", 0},
		{"udp 10.0.0.3:8 > 9.9.9.7:53", "..x.", 0},
		{"udp 10.0.0.3:9 > 9.9.9.6:53", "!xxxx", 0},  // dropped: it never was
		{"udp 10.0.0.3:10 > 9.9.9.6:53", "!xxxx", 0}, // so this is the third again
		{"udp 10.0.0.3:11 > 9.9.9.6:53", ".xx.", 31}, // and the others have timed out
	} {
		now += c.wait*sec + 1
		got := b.flow(run, c.packet, now)
		if c.want[0] == '!' {
			c.want = "!" + c.want[1:]
		}
		if got != c.want {
			t.Errorf("packet %d, %s: %s, want %s", i, c.packet, got, c.want)
		}
	}
	// A packet that conntrack does not know counts for itself; one that it could not know is dropped.
	b.play(run, []event{{0, "udp 10.7.0.3:9 > 9.7.9.7:53", ".x.."}, {0, "udp 10.0.0.3 > 9.9.9.7 frag=8 len=8", "!...."}})
}

// The end of connections makes room, however many there are.
func TestConnlimitEnds(t *testing.T) {
	b := newBench(t)
	_, run := b.chain(packet.IPv4, "-m connlimit --connlimit-above 200")
	now := int64(100) * sec
	for i := range 300 {
		want := "."
		if i >= 200 {
			want = "x"
		}
		if got := b.flow(run, fmt.Sprintf("udp 10.0.0.2:%d > 9.9.9.9:53", 1000+i), now); got != want {
			t.Fatalf("connection %d: %s", i, got)
		}
	}
	b.ct.Flush()
	if got := b.flow(run, "udp 10.0.0.2:1 > 9.9.9.9:53", now); got != "." {
		t.Error("connections that are gone count")
	}
	for i := range 250 { // the indices of the old ones, in use again
		b.flow(run, fmt.Sprintf("udp 10.0.0.3:%d > 9.9.9.9:53", 1000+i), now)
	}
	if got := b.flow(run, "udp 10.0.0.2:2 > 9.9.9.9:53", now); got != "." {
		t.Error("other connections count")
	}
	if got := b.flow(run, "udp 10.0.0.3:2 > 9.9.9.9:53", now); got != "x" {
		t.Error("the new ones do not count")
	}
}

func TestSecmarks(t *testing.T) {
	b := newBench(t)
	e, run := b.chain(packet.IPv4)
	_ = run
	load := func(fam uint8, text string) func(*packet.Packet) string {
		return b.rule(fam, tables.Security, hooks.Forward, text)
	}
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	ct := b.track(p)
	load(packet.IPv4, "-j CONNSECMARK --save")(p)
	if b.ct.SecMark(ct) != 0 {
		t.Error("saved a label that is not there")
	}
	load(packet.IPv4, "-j CONNSECMARK --restore")(p)
	if p.SecMark != 0 {
		t.Error("restored a label that is not there")
	}
	load(packet.IPv4, "-j SECMARK --selctx system_u:object_r:dns_packet_t:s0")(p)
	if s := packet.SecLabelText(p.SecMark); s != "system_u:object_r:dns_packet_t:s0" {
		t.Fatalf("label %q", s)
	}
	dns := p.SecMark
	load(packet.IPv4, "-j CONNSECMARK --save")(p)
	if b.ct.SecMark(ct) != dns {
		t.Error("not saved")
	}
	load(packet.IPv4, "-j SECMARK --selctx other")(p)
	load(packet.IPv4, "-j CONNSECMARK --save")(p)
	load(packet.IPv4, "-j CONNSECMARK --restore")(p)
	if b.ct.SecMark(ct) != dns || packet.SecLabelText(p.SecMark) != "other" {
		t.Error("a label that was there has been replaced")
	}
	p.SecMark = 0
	load(packet.IPv4, "-j CONNSECMARK --restore")(p)
	if p.SecMark != dns {
		t.Error("not restored")
	}
	q := packettest.New(t, "udp [fd00::1]:5000 > [fd00::2]:53") // no connection
	load(packet.IPv6, "-j CONNSECMARK --restore")(q)
	load(packet.IPv6, "-j SECMARK --selctx six")(q)
	load(packet.IPv6, "-j CONNSECMARK --save")(q)
	if packet.SecLabelText(q.SecMark) != "six" {
		t.Error("IPv6")
	}
	runtime.KeepAlive(e)
}

var hotRules = map[string]string{
	"recent set":     "-m recent --name h --set",
	"recent update":  "-m recent --name h --update --seconds 60 --hitcount 20",
	"hashlimit":      "-m hashlimit --hashlimit-name h --hashlimit-upto 1000/s --hashlimit-mode srcip,dstip,srcport,dstport",
	"hashlimit b":    "-m hashlimit --hashlimit-name i --hashlimit-upto 1000kb/s --hashlimit-mode srcip",
	"hashlimit rate": "-m hashlimit --hashlimit-name j --hashlimit-upto 1000/s --hashlimit-rate-match --hashlimit-mode dstip",
	"connlimit":      "-m connlimit --connlimit-above 10",
	"connlimit 0":    "-m connlimit --connlimit-above 0",
	"SECMARK":        "-j SECMARK --selctx a",
	"CONNSECMARK":    "-j CONNSECMARK --save",
}

// hot is a tracked packet and a function that runs it through one rule.
func hot(t testing.TB, rule string) func() {
	b := newBench(t)
	table := tables.Security
	e := tables.NewEngine(packet.IPv4, b.env)
	parsed, err := tables.ParseRule(Registry, packet.IPv4, table, "FORWARD", packettest.Words(rule))
	if err == nil {
		err = e.Commit(func(rs *tables.Ruleset) error { return rs.Table(table).Append("FORWARD", parsed[0]) })
	}
	if err != nil {
		t.Fatal(rule, err)
	}
	p := packettest.New(t, "tcp 10.0.0.2:5000 > 9.9.9.9:80 S")
	b.track(p)
	if !b.ctx.CT.Confirm(p) {
		t.Fatal(p.Reason)
	}
	b.ctx.Prepare(e.Program())
	b.ctx.Hook = hooks.Forward
	p.Now = b.ct.Now()
	return func() {
		p.Now += 1000
		e.Program().Run(&b.ctx, table, p)
	}
}

func TestStatefulDoNotAllocate(t *testing.T) {
	for name, rule := range hotRules {
		if n := testing.AllocsPerRun(200, hot(t, rule)); n != 0 {
			t.Errorf("%s allocates %v times a packet", name, n)
		}
	}
}

func BenchmarkStateful(b *testing.B) {
	for name, rule := range hotRules {
		b.Run(name, func(b *testing.B) {
			f := hot(b, rule)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// Several workers at once: nothing is lost, nothing is counted twice.
func TestStatefulConcurrent(t *testing.T) {
	b := newBench(t)
	b.ctx.CT.End()
	t.Cleanup(func() { b.ctx.CT.Begin(b.ct.Now()) })
	const workers, rounds = 4, 300
	e := tables.NewEngine(packet.IPv4, b.env)
	err := e.Commit(func(rs *tables.Ruleset) error {
		for _, text := range []string{
			"-m hashlimit --hashlimit-name c --hashlimit-upto 10/hour --hashlimit-burst 100 --hashlimit-mode srcip",
			"-m connlimit --connlimit-above 150", "-m connlimit --connlimit-above 5 --connlimit-daddr",
			"-m recent --name c --set", "-m recent --name c --update --hitcount 30", "-m recent --name c --rcheck --reap --seconds 1", "-m recent --name c --remove --rdest",
			"-m hashlimit --hashlimit-name d --hashlimit-upto 100/s --hashlimit-mode srcport --hashlimit-htable-max 600 --hashlimit-htable-size 64 --hashlimit-htable-expire 1 --hashlimit-htable-gcinterval 1",
		} {
			parsed, err := tables.ParseRule(Registry, packet.IPv4, tables.Filter, "FORWARD", packettest.Words(text))
			if err != nil {
				return err
			}
			if err := rs.Table(tables.Filter).Append("FORWARD", parsed[0]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctxs := make([]tables.Context, workers)
	var dropped atomic.Int64
	var wg sync.WaitGroup
	for i := range workers {
		c := &ctxs[i]
		*c = tables.Context{Worker: i, CT: b.ct.NewWorker(), Env: b.env, Hook: hooks.Forward}
		c.Prepare(e.Program())
		wg.Go(func() {
			p := packet.New()
			for n := range rounds {
				frame, err := packettest.Frame(fmt.Sprintf("udp 10.0.0.%d:%d > 9.9.9.%d:53", 1+n%3, 1000+i*rounds+n, 1+n%2))
				if err != nil {
					t.Error(err)
					return
				}
				p.SetBytes(frame)
				if r := p.Parse(); r != 0 {
					t.Error(r)
					return
				}
				p.Now = b.ct.Now()
				c.CT.Begin(p.Now)
				if !c.CT.Track(p, uint8(hooks.Prerouting)) || e.Program().Run(c, tables.Filter, p) != hooks.Accept || !c.CT.Confirm(p) {
					dropped.Add(1)
				}
				c.CT.Release(p)
				c.CT.End()
			}
		})
	}
	wg.Wait()
	b.env.DoWorkers = func(f func(*tables.Context)) {
		for i := range ctxs {
			f(&ctxs[i])
		}
	}
	v := e.View(nil)
	rules := e.Ruleset().Table(tables.Filter).Chain("FORWARD").Rules()
	if n := v.Rule(rules[0]).Packets; n != 300 { // three addresses
		t.Errorf("hashlimit let %d packets pass, want 300", n)
	}
	total := uint64(workers*rounds) - uint64(dropped.Load())
	if dropped.Load() != 0 {
		t.Errorf("%d packets dropped", dropped.Load())
	}
	// A first packet that takes long may be taken for one that was dropped.
	if n := v.Rule(rules[1]).Packets; n > total-3*150 || n < total-3*150-3*workers {
		t.Errorf("connlimit matched %d packets, want %d", n, total-3*150)
	}
	if n := v.Rule(rules[3]).Packets; n != total {
		t.Errorf("recent --set matched %d of %d packets", n, total)
	}
}
