package ext

import (
	"fmt"
	"testing"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/internal/sysctl"
	"sluice/nat"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

// bench is what a rule needs around it: conntrack, NAT, a little routing, and
// lists of what the rule sent or logged.
type bench struct {
	testing.TB
	ct     *conntrack.Table
	ctx    tables.Context
	env    *tables.Env
	sent   []*packet.Packet
	errors []string
	logs   []string
}

type fewRoutes struct{ tables.Routes }

func (fewRoutes) SourceFor(fam uint8, dev *packet.Iface, _ [16]byte) ([16]byte, bool) {
	if dev.Name != "wan0" {
		return [16]byte{}, false
	}
	if fam == packet.IPv6 {
		return [16]byte{0xfd, 3, 15: 1}, true
	}
	return [16]byte{203, 0, 113, 1}, true
}

func (fewRoutes) FirstAddr(fam uint8, dev *packet.Iface) ([16]byte, bool) {
	if dev.Name != "lan0" {
		return [16]byte{}, false
	}
	if fam == packet.IPv6 {
		return [16]byte{0xfd, 1, 15: 1}, true
	}
	return [16]byte{10, 0, 0, 1}, true
}

func newBench(t testing.TB) *bench {
	s := sysctl.NewSet()
	s.New("net.ipv4.ip_default_ttl", 77, 1, 255)
	b := &bench{TB: t, ct: conntrack.New(s, conntrack.Options{})}
	n := nat.New(b.ct, s)
	b.env = &tables.Env{CT: b.ct, NAT: n, Sysctl: s, Routes: fewRoutes{}}
	w := b.ct.NewWorker()
	w.Begin(1)
	t.Cleanup(w.End)
	b.ctx = tables.Context{
		CT: w, NAT: n, Env: b.env,
		Alloc:  packet.New,
		Output: func(p *packet.Packet) { b.sent = append(b.sent, p) },
		ICMPError: func(_ *packet.Packet, typ, code uint8, _ uint32) {
			b.errors = append(b.errors, fmt.Sprint(typ, "/", code))
		},
		Log: func(prefix string, level, flags uint8, _ *packet.Packet) {
			b.logs = append(b.logs, fmt.Sprintf("%s %d %#x", prefix, level, flags))
		},
	}
	return b
}

// rule compiles one rule in a chain and gives a function that runs packets through it.
func (b *bench) rule(fam uint8, table tables.TableID, h hooks.Hook, text string) func(p *packet.Packet) string {
	b.Helper()
	e := tables.NewEngine(fam, b.env)
	rules, err := tables.ParseRule(Registry, fam, table, h.String(), packettest.Words(text))
	if err == nil {
		err = e.Commit(func(rs *tables.Ruleset) error { return rs.Table(table).Append(h.String(), rules[0]) })
	}
	if err != nil {
		b.Fatal(text, ": ", err)
	}
	before := uint64(0)
	return func(p *packet.Packet) string {
		pr := e.Program()
		b.ctx.Prepare(pr)
		b.ctx.Hook = h
		v := pr.Run(&b.ctx, table, p)
		var matched uint64
		e.Env().DoWorkers = func(f func(*tables.Context)) { f(&b.ctx) }
		matched = e.View(nil).Rule(e.Ruleset().Table(table).Chain(h.String()).Rules()[0]).Packets
		hit := matched != before
		before = matched
		switch {
		case v == hooks.Drop:
			return "drop " + p.Reason.String()
		case hit:
			return "match"
		}
		return "pass"
	}
}

// matches says whether a filter FORWARD rule of the packet's family matches p.
func (b *bench) matches(text string, p *packet.Packet) bool {
	b.Helper()
	b.ctx.Counters = nil
	return b.rule(p.Family, tables.Filter, hooks.Forward, text)(p) == "match"
}

func (b *bench) track(p *packet.Packet) *conntrack.Entry {
	b.Helper()
	if !b.ctx.CT.Track(p, uint8(hooks.Prerouting)) {
		b.Fatal("not tracked: ", p.Reason)
	}
	return b.ctx.CT.Entry(p)
}

func TestConntrackMatch(t *testing.T) {
	b := newBench(t)
	out := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	e := b.track(out)
	check := func(p *packet.Packet, yes bool, rules ...string) {
		t.Helper()
		for _, r := range rules {
			if b.matches(r, p) != yes {
				t.Errorf("%s: want %v", r, yes)
			}
		}
	}
	check(out, true, "-m conntrack --ctstate NEW", "-m state --state NEW,INVALID", "-m conntrack ! --ctstate ESTABLISHED",
		"-m conntrack --ctproto udp", "-m conntrack --ctdir ORIGINAL", "-m conntrack --ctorigsrc 10.0.0.0/8 --ctorigdst 9.9.9.9",
		"-m conntrack --ctreplsrc 9.9.9.9 --ctrepldst 10.0.0.2", "-m conntrack --ctorigsrcport 5000 --ctorigdstport 50:60",
		"-m conntrack --ctreplsrcport 53 --ctrepldstport 5000", "-m conntrack ! --ctorigsrc 11.0.0.0/8", "-m conntrack ! --ctorigdstport 54")
	check(out, false, "-m conntrack --ctstate ESTABLISHED,RELATED", "-m conntrack --ctproto tcp", "-m conntrack ! --ctproto udp", "-m conntrack --ctdir REPLY",
		"-m conntrack ! --ctorigsrc 10.0.0.0/8", "-m conntrack --ctorigdstport 54", "-m conntrack --ctstatus NONE",
		"-m conntrack --ctstatus CONFIRMED", "-m conntrack --ctstate SNAT,DNAT", "-m conntrack --ctstate NEW --ctdir REPLY")
	if !b.ctx.CT.Confirm(out) {
		t.Fatal("not confirmed")
	}
	back := packettest.New(t, "udp 9.9.9.9:53 > 10.0.0.2:5000")
	b.track(back)
	back.Now = out.Now
	check(back, true, "-m conntrack --ctstate ESTABLISHED", "-m state --state ESTABLISHED", "-m conntrack --ctdir REPLY", "-m conntrack --ctstatus CONFIRMED,EXPECTED",
		"-m conntrack --ctstatus SEEN_REPLY", "-m conntrack ! --ctstatus EXPECTED", "-m conntrack --ctexpire 1:200", "-m conntrack ! --ctexpire 1000:")
	check(back, false, "-m conntrack --ctstate NEW", "-m conntrack --ctstatus EXPECTED", "-m conntrack --ctexpire 1000:")
	e.SetStatus(conntrack.SrcNAT)
	check(back, true, "-m conntrack --ctstate SNAT", "-m conntrack ! --ctstate DNAT")
	check(back, false, "-m conntrack ! --ctstate SNAT,DNAT")
	// Without a connection the state decides alone.
	none := packettest.New(t, "udp 10.0.0.3:5000 > 9.9.9.9:53")
	check(none, true, "-m conntrack --ctstate INVALID --ctproto tcp", "-m state --state INVALID")
	check(none, false, "-m conntrack --ctproto udp", "-m conntrack ! --ctproto tcp", "-m conntrack --ctstate UNTRACKED")
	none.CtInfo = packet.CtUntracked
	check(none, true, "-m conntrack --ctstate UNTRACKED", "-m state --state UNTRACKED")
	check(none, false, "-m conntrack --ctstate INVALID")
}

func TestMarks(t *testing.T) {
	for _, c := range []struct {
		rule             string
		mark, ctmark     uint32
		wantMark, wantCt uint32
	}{
		{"-j MARK --set-mark 5", 0xff, 0, 5, 0},
		{"-j MARK --set-mark 0x10/0xf0", 0xff, 0, 0x1f, 0},
		{"-j MARK --set-xmark 0xf/0xf0", 0xff, 0, 0, 0},
		{"-j MARK --and-mark 0x3c", 0xff, 0, 0x3c, 0},
		{"-j MARK --or-mark 0x100", 0xff, 0, 0x1ff, 0},
		{"-j MARK --xor-mark 0x11", 0xff, 0, 0xee, 0},
		{"-j CONNMARK --set-mark 5", 1, 0xff, 1, 5},
		{"-j CONNMARK --set-xmark 1/3", 1, 0xff, 1, 0xfd},
		{"-j CONNMARK --set-mark 1 --left-shift-mark 4", 1, 0xff, 1, 0x10},
		{"-j CONNMARK --save-mark", 7, 0xff, 7, 7},
		{"-j CONNMARK --save-mark --nfmask 0x5 --ctmask 0xf0", 7, 0xff, 7, 0x0f ^ 5},
		{"-j CONNMARK --save-mark --left-shift-mark 8 --mask 0xff", 7, 0, 7, 0x700},
		{"-j CONNMARK --restore-mark", 7, 0x99, 0x99, 0x99},
		{"-j CONNMARK --restore-mark --nfmask 0xf --ctmask 0x90", 0xff, 0x99, 0xf0 ^ 0x90, 0x99},
		{"-j CONNMARK --restore-mark --right-shift-mark 4", 0, 0x120, 0x12, 0x120},
	} {
		b := newBench(t)
		p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
		e := b.track(p)
		p.Mark = c.mark
		e.SetMark(c.ctmark)
		b.rule(packet.IPv4, tables.Mangle, hooks.Forward, c.rule)(p)
		if p.Mark != c.wantMark || e.Mark() != c.wantCt {
			t.Errorf("%s: mark %#x, connection %#x; want %#x, %#x", c.rule, p.Mark, e.Mark(), c.wantMark, c.wantCt)
		}
		if !b.matches(fmt.Sprintf("-m connmark --mark %d", c.wantCt), p) || b.matches(fmt.Sprintf("-m connmark ! --mark %d/0xffffffff", c.wantCt), p) {
			t.Errorf("%s: connmark does not see it", c.rule)
		}
	}
}

func TestCTTarget(t *testing.T) {
	for _, rule := range []string{"-j NOTRACK", "-j CT --notrack"} {
		b := newBench(t)
		p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
		b.rule(packet.IPv4, tables.Raw, hooks.Prerouting, rule)(p)
		if e := b.track(p); e != nil || p.CtInfo != packet.CtUntracked {
			t.Errorf("%s: tracked, %v", rule, p.CtInfo)
		}
	}
	for rule, want := range map[string]string{
		"-j CT --zone 5": "5 0", "-j CT --zone-orig 6": "6 1", "-j CT --zone-reply 7": "7 2", "-j CT --zone-reply 8 --zone-orig 9": "9 0", "-j CT --zone mark": "34 0",
	} {
		b := newBench(t)
		p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
		p.Mark = 34
		b.rule(packet.IPv4, tables.Raw, hooks.Prerouting, rule)(p)
		zone, dir := b.track(p).Zone()
		if got := fmt.Sprint(zone, dir); got != want {
			t.Errorf("%s: zone %s, want %s", rule, got, want)
		}
	}
	b := newBench(t)
	p := packettest.New(t, "tcp 10.0.0.2:5000 > 9.9.9.9:2121 S")
	b.rule(packet.IPv4, tables.Raw, hooks.Prerouting, "-p tcp --dport 2121 -j CT --helper ftp")(p)
	if h := b.ct.HelperOf(b.track(p)); h == nil || h.Name != "ftp" {
		t.Error("no helper")
	}
}

func TestNATTargets(t *testing.T) {
	lan, wan := packet.NewIface(2, "lan0", 1500), packet.NewIface(3, "wan0", 1500)
	for _, c := range []struct {
		rule, packet string
		hook         hooks.Hook
		want         string // reply tuple, or a drop
	}{
		{"-j SNAT --to-source 203.0.113.7", "udp 10.0.0.2:5000 > 9.9.9.9:53", hooks.Postrouting, "9.9.9.9:53 > 203.0.113.7:5000"},
		{"-p udp -j SNAT --to-source :777", "udp 10.0.0.2:5000 > 9.9.9.9:53", hooks.Postrouting, "9.9.9.9:53 > 10.0.0.2:777"},
		{"-p udp -j SNAT --to-source 203.0.113.7:777", "udp 10.0.0.2:5000 > 9.9.9.9:53", hooks.Input, "9.9.9.9:53 > 203.0.113.7:777"},
		{"-j DNAT --to-destination 10.0.0.9", "tcp 9.9.9.9:5000 > 203.0.113.1:80 S", hooks.Prerouting, "10.0.0.9:80 > 9.9.9.9:5000"},
		{"-p tcp -j DNAT --to-destination 10.0.0.9:8080", "tcp 9.9.9.9:5000 > 203.0.113.1:80 S", hooks.Output, "10.0.0.9:8080 > 9.9.9.9:5000"},
		{"-p tcp -j DNAT --to-destination 10.0.0.9:8000-8100/80", "tcp 9.9.9.9:5000 > 203.0.113.1:85 S", hooks.Prerouting, "10.0.0.9:8005 > 9.9.9.9:5000"},
		{"-o wan0 -j MASQUERADE", "udp 10.0.0.2:5000 > 9.9.9.9:53", hooks.Postrouting, "9.9.9.9:53 > 203.0.113.1:5000"},
		{"-p udp -j MASQUERADE --to-ports 70-70", "udp 10.0.0.2:5000 > 9.9.9.9:53", hooks.Postrouting, "9.9.9.9:53 > 203.0.113.1:70"},
		{"-p tcp -j REDIRECT --to-ports 3128", "tcp 10.0.0.2:5000 > 9.9.9.9:80 S", hooks.Prerouting, "10.0.0.1:3128 > 10.0.0.2:5000"},
		{"-j REDIRECT", "tcp 10.0.0.2:5000 > 9.9.9.9:80 S", hooks.Output, "127.0.0.1:80 > 10.0.0.2:5000"},
		{"-j MASQUERADE", "udp [fd01::2]:5000 > [fd09::9]:53", hooks.Postrouting, "fd09::9:53 > fd03::1:5000"},
		{"-j REDIRECT", "udp [fd01::2]:5000 > [fd09::9]:53", hooks.Output, "fd09::9:53 > fd01::2:5000"},
	} {
		b := newBench(t)
		p := packettest.New(t, c.packet)
		e := b.track(p)
		p.In, p.Out = lan, wan
		v := b.rule(p.Family, tables.NAT, c.hook, c.rule)(p)
		r := e.Tuple(conntrack.Reply)
		got := fmt.Sprintf("%s:%d > %s:%d", tables.FormatAddr(r.Family, r.Src), r.SrcPort, tables.FormatAddr(r.Family, r.Dst), r.DstPort)
		if p.Family == packet.IPv6 && c.hook == hooks.Output {
			c.want = "::1:53 > fd01::2:5000"
		}
		if v != "match" || got != c.want {
			t.Errorf("%s: %s, %s; want %s", c.rule, v, got, c.want)
		}
	}
	// No address to take: the packet goes, never out with a wrong one.
	b := newBench(t)
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	b.track(p)
	p.In, p.Out = wan, lan
	if v := b.rule(packet.IPv4, tables.NAT, hooks.Postrouting, "-j MASQUERADE")(p); v != "drop nat.no_address" {
		t.Error(v)
	}
	if v := b.rule(packet.IPv4, tables.NAT, hooks.Prerouting, "-j REDIRECT")(p); v != "drop nat.no_address" {
		t.Error(v)
	}
}

func TestReject(t *testing.T) {
	for _, c := range []struct{ rule, packet, errors, reset string }{
		{"-j REJECT", "udp 10.0.0.2:5000 > 9.9.9.9:53", "[3/3]", ""},
		{"-j REJECT --reject-with icmp-admin-prohibited", "udp 10.0.0.2:5000 > 9.9.9.9:53", "[3/13]", ""},
		{"-j REJECT", "udp 10.0.0.2:5000 > 9.9.9.9:53 nocsum", "[3/3]", ""},
		{"-j REJECT", "udp 10.0.0.2:5000 > 9.9.9.9:53 badcsum", "[]", ""},
		{"-j REJECT", "tcp 10.0.0.2:5000 > 9.9.9.9:53 S badcsum", "[]", ""},
		{"-j REJECT", "udp 10.0.0.2 > 9.9.9.9 frag=1480 len=8", "[]", ""},
		{"-j REJECT", "icmp 10.0.0.2 > 9.9.9.9 type=8 id=1", "[3/3]", ""},
		{"-j REJECT", "icmp 10.0.0.2 > 9.9.9.9 type=8 id=1 badcsum", "[]", ""},
		{"-j REJECT", "253 10.0.0.2 > 9.9.9.9 hex=0001", "[]", ""},
		{"-j REJECT", "253 10.0.0.2 > 9.9.9.9 hex=0001fffe", "[3/3]", ""},
		{"-j REJECT", "esp 10.0.0.2 > 9.9.9.9 hex=0001", "[3/3]", ""},
		{"-j REJECT", "sctp 10.0.0.2:1 > 9.9.9.9:2 badcsum", "[3/3]", ""},
		{"-p tcp -j REJECT --reject-with tcp-reset", "tcp 10.0.0.2:5000 > 9.9.9.9:53 S seq=7", "[]", "tcp 9.9.9.9:53 > 10.0.0.2:5000 RA seq=0 ack=8 win=0 ttl=77 df"},
		{"-p tcp -j REJECT --reject-with tcp-reset", "tcp 10.0.0.2:5000 > 9.9.9.9:53 A seq=7 ack=9 len=3", "[]", "tcp 9.9.9.9:53 > 10.0.0.2:5000 R seq=9 win=0 ttl=77 df"},
		{"-p tcp -j REJECT --reject-with tcp-reset", "tcp 10.0.0.2:5000 > 9.9.9.9:53 R", "[]", ""},
		{"-p tcp -j REJECT --reject-with tcp-reset", "tcp 10.0.0.2:5000 > 9.9.9.9:53 S badcsum", "[]", ""},
		{"-j REJECT", "udp [fd01::2]:5000 > [fd09::9]:53", "[1/4]", ""},
		{"-j REJECT --reject-with no-route", "tcp [fd01::2]:5000 > [fd09::9]:53 S", "[1/0]", ""},
		{"-j REJECT", "udp [fd01::2]:5000 > [fd09::9]:53 badcsum", "[]", ""},
		{"-p tcp -j REJECT --reject-with tcp-reset", "tcp [fd01::2]:5000 > [fd09::9]:53 S seq=7", "[]", "tcp [fd09::9]:53 > [fd01::2]:5000 RA seq=0 ack=8 win=0"},
	} {
		b := newBench(t)
		p := packettest.New(t, c.packet)
		if v := b.rule(p.Family, tables.Filter, hooks.Forward, c.rule)(p); v != "drop filter.FORWARD.rule" {
			t.Errorf("%s: %s", c.packet, v)
		}
		if got := fmt.Sprint(b.errors); got != c.errors {
			t.Errorf("%s: errors %s, want %s", c.packet, got, c.errors)
		}
		got := ""
		if len(b.sent) == 1 {
			got = packettest.Describe(b.sent[0].Bytes())
		}
		if got != c.reset {
			t.Errorf("%s: sent %q, want %q", c.packet, got, c.reset)
		}
	}
}

// The reset belongs to the connection of what it answers.
func TestRejectAttaches(t *testing.T) {
	b := newBench(t)
	p := packettest.New(t, "tcp 10.0.0.2:5000 > 9.9.9.9:53 S")
	b.track(p)
	b.rule(packet.IPv4, tables.Filter, hooks.Forward, "-p tcp -j REJECT --reject-with tcp-reset")(p)
	if len(b.sent) != 1 || b.sent[0].Ct != p.Ct || b.sent[0].CtInfo != packet.CtRelatedReply {
		t.Errorf("%+v", b.sent)
	}
}

func TestLimit(t *testing.T) {
	b := newBench(t)
	f := b.rule(packet.IPv4, tables.Filter, hooks.Forward, "-m limit --limit 10/s --limit-burst 3")
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	const ms = 1e6
	for i, c := range []struct {
		at   int64
		want string
	}{
		{0, "match"}, {0, "match"}, {1 * ms, "match"}, {1 * ms, "pass"}, {99 * ms, "pass"}, {100 * ms, "match"}, {150 * ms, "pass"},
		{200 * ms, "match"}, {1000 * ms, "match"}, {1000 * ms, "match"}, {1000 * ms, "match"}, {1001 * ms, "pass"}, {1100 * ms, "match"},
	} {
		p.Now = 5e9 + c.at
		if got := f(p); got != c.want {
			t.Errorf("packet %d at %d ms: %s, want %s", i, c.at/ms, got, c.want)
		}
	}
}

func TestLogTarget(t *testing.T) {
	b := newBench(t)
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	b.rule(packet.IPv4, tables.Filter, hooks.Forward, `-j LOG --log-prefix "a b" --log-level info --log-uid --log-tcp-options`)(p)
	b.rule(packet.IPv4, tables.Filter, hooks.Forward, "-j LOG")(p)
	if got := fmt.Sprint(b.logs); got != "[a b 6 0xa  4 0x0]" {
		t.Error(got)
	}
}
