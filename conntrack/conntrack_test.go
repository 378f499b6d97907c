package conntrack

import (
	"fmt"
	"testing"

	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/packettest"
)

// Hooks, with the kernel's numbers.
const (
	hookPre  = 0
	hookOut  = 3
	hookPost = 4
)

// box is a table with one worker and a clock that the test moves.
type box struct {
	t   testing.TB
	tbl *Table
	w   *Worker
	set *sysctl.Set
	now int64
}

func newBox(t testing.TB) *box {
	b := &box{t: t, set: sysctl.NewSet(), now: 1000 * second}
	b.tbl = New(b.set, Options{Clock: func() int64 { return b.now }})
	b.w = b.tbl.NewWorker()
	return b
}

func (b *box) sysctl(name string, v int64) {
	b.t.Helper()
	x := b.set.Lookup("net.netfilter.nf_conntrack_" + name)
	if x == nil {
		b.t.Fatalf("no tunable %s", name)
	}
	x.Store(v)
}

// pass takes a frame from PREROUTING to POSTROUTING, in a batch of its own.
func (b *box) pass(desc string) *packet.Packet {
	b.t.Helper()
	p := packettest.New(b.t, desc)
	b.passPacket(p)
	return p
}

func (b *box) passPacket(p *packet.Packet) {
	b.w.Begin(b.now)
	p.Now = b.now
	if !b.w.Track(p, hookPre) || !b.w.Help(p) || !b.w.Confirm(p) {
		b.w.Release(p)
	}
	b.w.End()
}

var infoNames = map[packet.CtInfo]string{packet.CtNone: "NONE", packet.CtEstablished: "ESTABLISHED", packet.CtRelated: "RELATED",
	packet.CtNew: "NEW", packet.CtEstablishedReply: "ESTABLISHED", packet.CtRelatedReply: "RELATED",
	packet.CtInvalid: "INVALID", packet.CtUntracked: "UNTRACKED"}

// want sends a frame and checks what it is to conntrack.
func (b *box) want(desc, state string) *packet.Packet {
	b.t.Helper()
	p := b.pass(desc)
	if got := infoNames[p.CtInfo]; got != state {
		b.t.Errorf("%s: %s, want %s", desc, got, state)
	}
	return p
}

// dump lists the connections in a short form.
func (b *box) dump() (out []string) {
	b.tbl.Each(func(s *Snapshot) bool {
		f := ""
		if s.Status&SeenReply == 0 {
			f += " UNREPLIED"
		}
		if s.Status&Assured != 0 {
			f += " ASSURED"
		}
		if n := s.Name(); n != "" {
			f = " " + n + f
		}
		out = append(out, fmt.Sprintf("%d %d%s", s.Orig.Proto, s.Timeout, f))
		return true
	})
	return out
}

// is checks the only connection's short form.
func (b *box) is(want string) {
	b.t.Helper()
	if got := b.dump(); len(got) != 1 || got[0] != want {
		b.t.Errorf("table: %q, want %q", got, want)
	}
}

func TestUDPBecomesAStreamAfterTwoSeconds(t *testing.T) {
	b := newBox(t)
	out, back := "udp 10.0.0.2:5000 > 9.9.9.9:53", "udp 9.9.9.9:53 > 10.0.0.2:5000"
	b.want(out, "NEW")
	b.is("17 30 UNREPLIED")
	b.want(out, "NEW")
	b.want(back, "ESTABLISHED")
	b.is("17 30")
	b.want(out, "ESTABLISHED")
	b.is("17 30")
	b.now += 2*second + 1e6
	b.want(back, "ESTABLISHED")
	b.is("17 120 ASSURED")
	b.now += 119 * second
	b.is("17 1 ASSURED")
	b.now += second
	if d := b.dump(); len(d) != 0 {
		t.Errorf("expired connection is listed: %q", d)
	}
	b.want(back, "NEW")
}

func TestExpiryMovesAtMostOnceASecond(t *testing.T) {
	b := newBox(t)
	p := b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	e := b.tbl.At(p.Ct)
	at := e.expiry.Load()
	b.now += second - 1
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	if e.expiry.Load() != at {
		t.Error("expiry moved within a second")
	}
	b.now++
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	if e.expiry.Load() != at+second {
		t.Error("expiry did not move after a second")
	}
}

func TestTCPLife(t *testing.T) {
	b := newBox(t)
	c, s := "tcp 10.0.0.2:5000 > 9.9.9.9:80 ", "tcp 9.9.9.9:80 > 10.0.0.2:5000 "
	b.want(c+"S seq=100", "NEW")
	b.is("6 120 SYN_SENT UNREPLIED")
	b.want(s+"SA seq=500 ack=101", "ESTABLISHED")
	b.is("6 60 SYN_RECV")
	b.want(c+"A seq=101 ack=501", "ESTABLISHED")
	b.is("6 432000 ESTABLISHED ASSURED")
	b.want(c+"PA seq=101 ack=501 len=10", "ESTABLISHED")
	b.is("6 300 ESTABLISHED ASSURED")
	b.want(s+"A seq=501 ack=111", "ESTABLISHED")
	b.is("6 432000 ESTABLISHED ASSURED")
	b.want(c+"FA seq=111 ack=501", "ESTABLISHED")
	b.is("6 120 FIN_WAIT ASSURED")
	b.want(s+"A seq=501 ack=112", "ESTABLISHED")
	b.is("6 60 CLOSE_WAIT ASSURED")
	b.want(s+"FA seq=501 ack=112", "ESTABLISHED")
	b.is("6 30 LAST_ACK ASSURED")
	b.want(c+"A seq=112 ack=502", "ESTABLISHED")
	b.is("6 120 TIME_WAIT ASSURED")
	b.want(c+"S seq=90000", "NEW")
	b.is("6 120 SYN_SENT UNREPLIED")
}

func TestICMP(t *testing.T) {
	b := newBox(t)
	b.want("icmp 10.0.0.2 > 9.9.9.9 type=0 id=7 seq=1", "INVALID")
	b.want("icmp 10.0.0.2 > 9.9.9.9 type=8 id=7 seq=1", "NEW")
	b.is("1 30 UNREPLIED")
	b.want("icmp 9.9.9.9 > 10.0.0.2 type=0 id=7 seq=1", "ESTABLISHED")
	b.want("icmp 9.9.9.9 > 10.0.0.2 type=8 id=7 seq=1", "NEW")
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	p := b.want("icmp 9.9.9.1 > 10.0.0.2 type=3/3 about udp 10.0.0.2:5000 > 9.9.9.9:53", "RELATED")
	if !p.CtInfo.Reply() {
		t.Error("an error that goes back is no reply")
	}
	b.want("icmp 9.9.9.1 > 10.0.0.3 type=3/3 about udp 10.0.0.2:5000 > 9.9.9.9:53", "INVALID")
	b.want("icmp 9.9.9.1 > 10.0.0.2 type=3/3 about udp 10.0.0.2:5001 > 9.9.9.9:53", "INVALID")
	b.want("icmp 10.0.0.2 > 9.9.9.9 type=30 id=7 seq=1", "INVALID")
	b.want("icmp6 fe80::1 > ff02::1 type=135", "UNTRACKED")
	b.want("icmp6 fd00::1 > fd00::2 type=128 id=4", "NEW")
	b.want("icmp6 fd00::2 > fd00::1 type=129 id=4", "ESTABLISHED")
	b.want("icmp6 fd00::9 > fd00::1 type=1/4 about icmp6 fd00::1 > fd00::2 type=128 id=4", "RELATED")
}

func TestBadChecksumIsInvalidAtPreroutingOnly(t *testing.T) {
	for _, desc := range []string{"udp 10.0.0.2:5000 > 9.9.9.9:53 len=4 badcsum", "tcp 10.0.0.2:5000 > 9.9.9.9:53 S badcsum",
		"icmp 10.0.0.2 > 9.9.9.9 type=8 badcsum", "icmp6 fd00::1 > fd00::2 type=128 badcsum"} {
		b := newBox(t)
		b.want(desc, "INVALID")
		p := packettest.New(t, desc)
		b.w.Begin(b.now)
		b.w.Track(p, hookOut)
		if p.CtInfo != packet.CtNew {
			t.Errorf("%s at OUTPUT: %v", desc, infoNames[p.CtInfo])
		}
		b.w.Release(p)
		b.w.End()
		b.sysctl("checksum", 0)
		b.want(desc, "NEW")
	}
}

func TestTableFullDropsUnassuredFirst(t *testing.T) {
	b := newBox(t)
	b.sysctl("max", 64)
	for i := range 64 {
		b.want(fmt.Sprintf("udp 10.0.0.2:%d > 9.9.9.9:53", 5000+i), "NEW")
	}
	// A bucket range rarely holds one of 64 flows: most new ones are dropped, some evict.
	dropped, early := 0, 0
	for i := range 20000 {
		b.w.Rested(maxSpare)
		p := b.pass(fmt.Sprintf("udp 10.0.1.%d:%d > 9.9.9.9:53", i/10000, 5000+i%10000))
		if p.Reason == ReasonTableFull {
			dropped++
		} else if p.CtInfo != packet.CtNone || p.Reason != 0 {
			if p.Reason != 0 {
				t.Fatalf("dropped as %v", p.Reason)
			}
			early++
		}
		if b.tbl.Count() > 64 {
			t.Fatalf("%d connections, limit 64", b.tbl.Count())
		}
	}
	s := b.tbl.Stats()[0]
	if dropped == 0 || early == 0 || s.Drop != uint64(dropped) || s.EarlyDrop < uint64(early) {
		t.Errorf("dropped %d (counted %d), evicted %d (counted %d)", dropped, s.Drop, early, s.EarlyDrop)
	}
}

// TestFloodTakesItsShare: in a full table a worker that is never idle drops early
// for a share of its time; one that rests, whenever it is to.
func TestFloodTakesItsShare(t *testing.T) {
	b := newBox(t)
	b.sysctl("max", 1<<16)
	full := 0
	b.tbl.opt.Full = func(int64) { full++ }
	n := 0
	fresh := func() *packet.Packet {
		n++
		return b.pass(fmt.Sprintf("udp 10.%d.%d.%d:5000 > 9.9.9.9:53", n>>16, n>>8&255, n&255))
	}
	for range 1 << 16 {
		fresh()
	}
	if s := b.tbl.Stats()[0]; s.EarlyDrop != 0 || s.Drop != 0 {
		t.Fatalf("before the table is full: %d dropped early, %d dropped", s.EarlyDrop, s.Drop)
	}
	flood := func() (made int) {
		for range 20000 {
			switch p := fresh(); p.Reason {
			case 0:
				made++
			case ReasonFlooded:
			default:
				t.Fatalf("dropped as %v", p.Reason)
			}
			b.now += 500
		}
		return made
	}
	flood() // what was saved is spent
	const share = 20000 * 500 / spareShare / earlyDropCost
	if got := flood(); got < share/2 || got > share*3/2 {
		t.Errorf("a busy worker made %d connections in the place of others, not about %d", got, share)
	}
	if full == 0 {
		t.Error("nobody was told that the table is full")
	}
	for range 1000 {
		b.w.Rested(100 * earlyDropCost)
		if p := fresh(); p.Reason != 0 {
			t.Fatalf("with an idle worker: dropped as %v", p.Reason)
		}
	}
}

// TestMissed: what a probe found out is not asked again, and is not taken for
// another packet's, or where a template has the connection in a zone.
func TestMissed(t *testing.T) {
	b := newBox(t)
	ask := func(desc string) *packet.Packet {
		p := packettest.New(t, desc)
		var pr Probe
		if !b.w.Aim(&pr, p) {
			t.Fatalf("%s has no tuple", desc)
		}
		b.w.Seek(&pr)
		if e, _ := b.w.Hit(&pr); e != nil {
			t.Fatalf("%s has a connection", desc)
		}
		return p
	}
	b.w.Begin(b.now)
	defer b.w.End()
	p := ask("udp 10.0.0.2:5000 > 9.9.9.9:53")
	if !b.w.Track(p, hookPre) || b.w.missed != nil || b.w.Entry(p) == nil || !b.w.Confirm(p) {
		t.Fatal("the first packet began no connection")
	}
	// This one ends before its Track (a rule of the raw table drops it).
	ask("udp 10.0.0.3:5000 > 9.9.9.9:53")
	b.w.EndEarly()
	q := packettest.New(t, "udp 9.9.9.9:53 > 10.0.0.2:5000")
	if !b.w.Track(q, hookPre) || b.w.Entry(q) != b.w.Entry(p) || !q.CtInfo.Reply() {
		t.Error("the answer met another connection")
	}
	z := ask("udp 10.0.0.4:5000 > 9.9.9.9:53")
	b.w.SetTemplate(z, b.tbl.Template(Template{Zone: 7}))
	if !b.w.Track(z, hookPre) || b.w.Entry(z).orig.Zone != 7 {
		t.Error("the connection is not in its zone")
	}
	b.w.Release(z)
}

func TestReleaseFreesWhatWasNotConfirmed(t *testing.T) {
	b := newBox(t)
	for range 1000 {
		p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
		b.w.Begin(b.now)
		b.w.Track(p, hookPre)
		b.w.Release(p)
		b.w.End()
	}
	if n := b.tbl.Count(); n != 0 {
		t.Errorf("%d connections left", n)
	}
	if n := b.tbl.bump.Load(); n > 2*chunk {
		t.Errorf("%d entries used for one at a time", n)
	}
}

func TestZones(t *testing.T) {
	b := newBox(t)
	one := b.tbl.Template(Template{Zone: 1})
	send := func(desc string, tm *Template) *packet.Packet {
		p := packettest.New(t, desc)
		b.w.Begin(b.now)
		defer b.w.End()
		if tm != nil {
			b.w.SetTemplate(p, tm)
		}
		b.w.Track(p, hookPre)
		b.w.Confirm(p)
		return p
	}
	out, back := "udp 10.0.0.2:5000 > 9.9.9.9:53", "udp 9.9.9.9:53 > 10.0.0.2:5000"
	if p := send(out, one); p.CtInfo != packet.CtNew {
		t.Error("first in zone 1")
	}
	if p := send(back, nil); p.CtInfo != packet.CtNew {
		t.Error("a reply outside the zone is no reply")
	}
	if p := send(back, one); p.CtInfo != packet.CtEstablishedReply {
		t.Error("a reply in the zone")
	}
	orig := b.tbl.Template(Template{Zone: 2, ZoneDir: ZoneOrig})
	out, back = "udp 10.0.0.3:5000 > 9.9.9.9:53", "udp 9.9.9.9:53 > 10.0.0.3:5000"
	p := send(out, orig)
	if z, d := b.tbl.At(p.Ct).Zone(); z != 2 || d != ZoneOrig {
		t.Errorf("zone %d, direction %d", z, d)
	}
	if p := send(back, nil); p.CtInfo != packet.CtEstablishedReply {
		t.Error("a reply to a zone that holds for the original direction")
	}
}

func TestAccounting(t *testing.T) {
	b := newBox(t)
	b.sysctl("acct", 1)
	p := b.want("udp 10.0.0.2:5000 > 9.9.9.9:53 len=100", "NEW")
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:53 len=100", "NEW")
	b.want("udp 9.9.9.9:53 > 10.0.0.2:5000 len=10", "ESTABLISHED")
	if n, by := b.tbl.Counters(p.Ct, Original); n != 2 || by != 256 {
		t.Errorf("original: %d packets, %d bytes", n, by)
	}
	if n, by := b.tbl.Counters(p.Ct, Reply); n != 1 || by != 38 {
		t.Errorf("reply: %d packets, %d bytes", n, by)
	}
	// The same memory, used by a connection that does not count and by one that does.
	for _, acct := range []int64{0, 1} {
		b.tbl.Flush()
		b.sysctl("acct", acct)
		p := b.want("udp 10.0.0.3:5000 > 9.9.9.9:53 len=100", "NEW")
		if n, by := b.tbl.Counters(p.Ct, Original); n != uint64(acct) || by != 128*uint64(acct) {
			t.Errorf("acct %d: %d packets, %d bytes", acct, n, by)
		}
	}
}
