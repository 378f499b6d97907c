package conntrack

import (
	"fmt"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

func TestTransitionsFromNothing(t *testing.T) {
	for seg, want := range map[uint8]TCPState{segSyn: TCPSynSent, segAck: TCPEstablished, segSynAck: tcpInvalid, segFin: tcpInvalid, segRst: tcpInvalid, segNone: tcpInvalid} {
		if got := tcpNext[Original][seg][TCPNone]; got != want {
			t.Errorf("segment %d: %d, want %d", seg, got, want)
		}
		if got := tcpNext[Reply][seg][TCPNone]; got != tcpInvalid {
			t.Errorf("a reply %d to nothing: %d", seg, got)
		}
	}
}

func TestInvertIsItsOwnInverse(t *testing.T) {
	for _, d := range []string{"tcp 1.2.3.4:5 > 6.7.8.9:10 S", "icmp 1.2.3.4 > 5.6.7.8 type=8 id=9", "icmp6 fd00::1 > fd00::2 type=128 id=3",
		"icmp 1.2.3.4 > 5.6.7.8 type=13 id=9", "50 1.2.3.4 > 5.6.7.8 len=8"} {
		b := newBox(t)
		var u Tuple
		if !b.tbl.tuple(&u, packettest.New(t, d), 3) {
			t.Fatal(d)
		}
		r, ok := u.Invert()
		rr, ok2 := r.Invert()
		if !ok || !ok2 || rr != u || r == u {
			t.Errorf("%s: %v, %v", d, r, rr)
		}
	}
}

func TestInnerTupleMatchesTheOuterOne(t *testing.T) {
	b := newBox(t)
	for _, d := range []string{"tcp 1.2.3.4:5 > 6.7.8.9:10 S", "udp [fd00::1]:5 > [fd00::2]:6 ext=hop,dest len=4", "icmp 1.2.3.4 > 5.6.7.8 type=8 id=9"} {
		p := packettest.New(t, d)
		var u Tuple
		b.tbl.tuple(&u, p, 0)
		in, l4, ok := b.tbl.InnerTuple(p.Bytes(), p.Family, 0)
		if !ok || in != u || l4 != int(p.L4) {
			t.Errorf("%s: %v %d %v, want %v %d", d, in, l4, ok, u, p.L4)
		}
		for n := range p.Bytes() { // no prefix may be read beyond its end
			b.tbl.InnerTuple(p.Bytes()[:n:n], p.Family, 0)
		}
	}
}

func TestTimeoutPolicyAndTunables(t *testing.T) {
	b := newBox(t)
	b.sysctl("tcp_timeout_syn_recv", 33)
	short := TimeoutPolicy{Name: "short", Proto: packet.ProtoTCP, Seconds: b.tbl.DefaultTimeouts(packet.ProtoTCP)}
	short.Seconds[0] = 7
	if err := b.tbl.AddTimeoutPolicy(short); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		tp   TimeoutPolicy
		want error
	}{{short, ErrInUse}, {TimeoutPolicy{Name: "x", Proto: 33}, ErrNoTimeout}, {TimeoutPolicy{Name: "x", Proto: packet.ProtoTCP}, ErrInvalid}} {
		if err := b.tbl.AddTimeoutPolicy(x.tp); err != x.want {
			t.Errorf("%+v: %v", x.tp, err)
		}
	}
	tp, release := b.tbl.HoldTimeoutPolicy("short")
	tm := b.tbl.Template(Template{Timeout: tp})
	if b.tbl.Template(Template{Timeout: tp}) != tm {
		t.Error("equal templates are not one")
	}
	p := packettest.New(t, "tcp 10.0.0.2:5000 > 9.9.9.9:80 S seq=100")
	b.w.SetTemplate(p, tm)
	b.passPacket(p)
	b.is("6 7 SYN_SENT UNREPLIED")
	b.want("tcp 9.9.9.9:80 > 10.0.0.2:5000 SA seq=500 ack=101", "ESTABLISHED")
	b.is("6 33 SYN_RECV")
	if err := b.tbl.DeleteTimeoutPolicy("short"); err != ErrInUse {
		t.Errorf("deleting what a rule names: %v", err)
	}
	release()
	if err := b.tbl.DeleteTimeoutPolicy("short"); err != nil || b.tbl.TimeoutPolicy("short") != nil {
		t.Errorf("deleting what nobody names: %v", err)
	}
	if err := b.tbl.DeleteTimeoutPolicy("short"); err != ErrNoPolicy {
		t.Errorf("deleting what is not there: %v", err)
	}
	other := TimeoutPolicy{Name: "other", Proto: packet.ProtoTCP, Seconds: make([]uint32, len(short.Seconds))}
	if err := b.tbl.AddTimeoutPolicy(other); err != nil { // in the same place
		t.Error(err)
	}
	b.want("tcp 10.0.0.2:5000 > 9.9.9.9:80 A seq=101 ack=501", "ESTABLISHED")
	b.is("6 432000 ESTABLISHED ASSURED")
	if v := b.set.Lookup("net.netfilter.nf_conntrack_count").Load(); v != 1 {
		t.Errorf("nf_conntrack_count = %d", v)
	}
}

func TestNATClash(t *testing.T) {
	// Two packets of one UDP flow were translated differently at once.
	b := newBox(t)
	p, q := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53"), packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	b.w.Begin(b.now)
	b.w.Track(p, hookPre)
	b.w.Track(q, hookPre)
	for i, x := range []*packet.Packet{p, q} {
		e := b.w.Entry(x)
		r := *e.Tuple(Reply)
		r.Src[3] = byte(100 + i)
		b.w.AlterReply(e, r)
		e.SetStatus(DstNAT | NATDoneMask)
	}
	destroyed := 0
	b.tbl.OnDestroy(func(*Worker, *Entry, uint32) { destroyed++ })
	if !b.w.Confirm(p) || !b.w.Confirm(q) {
		t.Fatal("dropped")
	}
	b.w.End()
	if p.Ct == q.Ct {
		t.Fatal("joined a connection with another translation")
	}
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	b.want("udp 9.9.9.100:53 > 10.0.0.2:5000", "ESTABLISHED")
	b.want("udp 9.9.9.101:53 > 10.0.0.2:5000", "ESTABLISHED")
	b.now += 2 * second
	b.tbl.Housekeep(b.now)
	if n := b.tbl.Count(); n != 1 || destroyed != 1 {
		t.Errorf("%d connections, %d destroyed; the second lives for a second only", n, destroyed)
	}
	b.tbl.Flush()
	if destroyed != 2 {
		t.Errorf("%d destroyed", destroyed)
	}
}

func TestTupleTaken(t *testing.T) {
	b := newBox(t)
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	p := packettest.New(t, "udp 10.0.0.3:5000 > 9.9.9.9:53")
	q := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53")
	b.w.Begin(b.now)
	b.w.Track(p, hookPre)
	e := b.w.Entry(p)
	var u Tuple
	b.tbl.tuple(&u, q, 0)
	r, _ := u.Invert()
	if !b.tbl.TupleTaken(b.w, &r, e) {
		t.Error("a reply tuple in use is free")
	}
	r.DstPort++
	if b.tbl.TupleTaken(b.w, &r, e) {
		t.Error("a free one is taken")
	}
	b.w.Release(p)
	b.w.End()
	if s := b.tbl.Stats()[0]; s.Found != 1 {
		t.Errorf("found = %d", s.Found)
	}
}

func TestPressureEndsClosingConnections(t *testing.T) {
	b := newBox(t)
	c, s := "tcp 10.0.0.2:5000 > 9.9.9.9:80 ", "tcp 9.9.9.9:80 > 10.0.0.2:5000 "
	for _, d := range []string{c + "S seq=100", s + "SA seq=500 ack=101", c + "A seq=101 ack=501", c + "FA seq=101 ack=501"} {
		b.pass(d)
	}
	b.is("6 120 FIN_WAIT ASSURED")
	b.tbl.Housekeep(b.now)
	if b.tbl.Count() != 1 {
		t.Fatal("gone without need")
	}
	for i := range 119 {
		b.pass(fmt.Sprintf("udp 10.0.0.2:%d > 9.9.9.9:53", 6000+i))
	}
	b.sysctl("max", 99) // less than a hundred: no such mark
	b.tbl.Housekeep(b.now)
	if n := b.tbl.Count(); n != 120 {
		t.Errorf("%d of 120 connections with a limit of 99", n)
	}
	b.sysctl("max", 100)
	b.tbl.Housekeep(b.now)
	if n := b.tbl.Count(); n != 94 {
		t.Errorf("%d connections are left, want 94: just below the mark of 95", n)
	}
}

func TestUpdateAndCreate(t *testing.T) {
	b := newBox(t)
	p := b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	var s Snapshot
	b.tbl.Each(func(x *Snapshot) bool { s = *x; return true })
	if err := b.tbl.Create(&s); err != ErrExists {
		t.Errorf("creating what is there: %v", err)
	}
	n := b.tbl.Update(func(*Snapshot) bool { return true }, func(*Snapshot) Change {
		return Change{SetMark: true, Mark: 9, SetTime: true, Timeout: 77, SetStatus: Assured, SetLabels: true, Labels: [16]byte{5}, LabelMask: [16]byte{0xff}}
	}, func(x *Snapshot) { s = *x })
	if n != 1 || s.Mark != 9 || s.Timeout != 77 || s.Status&Assured == 0 || s.Labels != [16]byte{5} {
		t.Errorf("%d updated: %+v", n, s)
	}
	if b.tbl.Labels(b.tbl.At(p.Ct)) != [16]byte{5} || !b.tbl.SetLabel(b.tbl.At(p.Ct), 127) || b.tbl.Labels(b.tbl.At(p.Ct))[15] != 0x80 || b.tbl.SetLabel(b.tbl.At(p.Ct), 128) {
		t.Error("labels")
	}
	s.Orig.SrcPort, s.Reply.DstPort = 6000, 6000
	if err := b.tbl.Create(&s); err != nil {
		t.Error(err)
	}
	b.want("udp 9.9.9.9:53 > 10.0.0.2:6000", "ESTABLISHED")
	b.sysctl("max", 1)
	s.Orig.SrcPort, s.Reply.DstPort = 6001, 6001
	if err := b.tbl.Create(&s); err != ErrFull {
		t.Errorf("creating in a full table: %v", err)
	}
	s.Orig.Family = 0
	if err := b.tbl.Create(&s); err != ErrInvalid {
		t.Errorf("creating nonsense: %v", err)
	}
	if n := b.tbl.Flush(); n != 2 || b.tbl.Count() != 0 {
		t.Errorf("flushed %d, %d left", n, b.tbl.Count())
	}
}

func TestDestroyIface(t *testing.T) {
	b := newBox(t)
	p := b.want("udp 10.0.0.2:5000 > 9.9.9.9:53", "NEW")
	b.want("udp 10.0.0.2:5001 > 9.9.9.9:53", "NEW")
	b.tbl.At(p.Ct).SetMasqIface(4)
	if n := b.tbl.DestroyIface(5); n != 0 {
		t.Errorf("%d of another interface", n)
	}
	if n := b.tbl.DestroyIface(4); n != 1 || b.tbl.Count() != 1 {
		t.Errorf("%d destroyed, %d left", n, b.tbl.Count())
	}
}

func TestEventsAreBoundedAndCounted(t *testing.T) {
	b := newBox(t)
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53 len=4")
	setFlow(p, 1, false)
	b.passPacket(p)
	s := b.tbl.Subscribe()
	const n = ringSize + 500
	for i := range uint32(n) {
		setFlow(p, i+10, false)
		b.passPacket(p)
	}
	got := 0
	for ev := (Event{}); s.Next(&ev); got++ {
		if ev.Type != EvNew || ev.Orig.Proto != packet.ProtoUDP {
			t.Fatalf("%+v", ev)
		}
	}
	if got != ringSize || s.Lost.Load() != 500 {
		t.Errorf("%d events, %d lost", got, s.Lost.Load())
	}
	s.Close()
	setFlow(p, 5000000, false)
	b.passPacket(p)
	if ev := (Event{}); s.Next(&ev) {
		t.Error("an event after Close")
	}
	// A template chooses the events of its connections.
	s = b.tbl.Subscribe()
	q := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:99")
	b.w.SetTemplate(q, b.tbl.Template(Template{Events: EventDestroy}))
	b.passPacket(q)
	b.tbl.Delete(func(x *Snapshot) bool { return x.Orig.DstPort == 99 })
	var ev Event
	if !s.Next(&ev) || ev.Type != EvDestroy || !ev.User || s.Next(&ev) {
		t.Errorf("only the end was wanted: %+v", ev)
	}
}

// ftpBox has an FTP control connection whose lines begin at the given numbers.
func ftpBox(t *testing.T) (*box, func(string)) {
	b := newBox(t)
	tm := b.tbl.Template(Template{Helper: b.tbl.Helper("ftp")})
	pass := func(d string) {
		p := packettest.New(t, d)
		b.w.SetTemplate(p, tm)
		b.passPacket(p)
	}
	c, s := "tcp 10.0.0.2:5000 > 9.9.9.9:21 ", "tcp 9.9.9.9:21 > 10.0.0.2:5000 "
	for _, d := range []string{c + "S seq=100", s + "SA seq=500 ack=101", c + "A seq=101 ack=501", c + "PA seq=101 ack=501 hex=0a"} {
		pass(d)
	}
	return b, pass
}

func TestFTPAnnouncements(t *testing.T) {
	for line, want := range map[string]string{
		"PORT 10,0,0,2,4,1\r\n": "10.0.0.2:1025", "port 10,0,0,2,0,80\r\n": "10.0.0.2:80",
		"EPRT |1|10.0.0.2|1027|\r\n": "10.0.0.2:1027", "EPRT !1!10.0.0.2!1027!\r\n": "10.0.0.2:1027",
		"PORT 10,0,0,3,4,1\r\n": "", "PORT10,0,0,2,4,1 10,0,0,2,4,1\r\n": "10.0.0.2:1025", "EPRT |2|::1|80|\r\n": "drop", "PORT 10,0,0,2,4\r\n": "drop",
		"PORT 10,0,0,2,4,1": "drop", "PO": "drop", "EPRT |1|10.0.0.2|0|\r\n": "drop", "EPRT 919": "drop", "QUIT\r\n": "", "XPORT 10,0,0,2,4,1\r\n": "",
	} {
		b, _ := ftpBox(t)
		p := packettest.New(t, fmt.Sprintf("tcp 10.0.0.2:5000 > 9.9.9.9:21 PA seq=102 ack=501 hex=%x", line))
		b.passPacket(p)
		got := ""
		if p.Reason == ReasonHelper {
			got = "drop"
		}
		for _, x := range b.tbl.Expectations() {
			got = fmt.Sprintf("%v:%d", x.Tuple.DstAddr(), x.Tuple.DstPort)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestExpectationLimits(t *testing.T) {
	b, _ := ftpBox(t)
	say := func(seq int, line string) *packet.Packet {
		return b.pass(fmt.Sprintf("tcp 10.0.0.2:5000 > 9.9.9.9:21 PA seq=%d ack=501 hex=%x", seq, line))
	}
	say(102, "PORT 10,0,0,2,4,1\r\n")
	say(121, "PORT 10,0,0,2,4,2\r\n")
	if x := b.tbl.Expectations(); len(x) != 1 || x[0].Tuple.DstPort != 1026 || x[0].Timeout != 300 {
		t.Fatalf("the newer replaces the older: %+v", x)
	}
	b.pass("tcp 9.9.9.9:21 > 10.0.0.2:5000 A seq=501 ack=140") // nothing unacknowledged: it lives for days
	b.now += 301 * second
	b.tbl.Housekeep(b.now)
	if n := b.tbl.ExpectCount(); n != 0 {
		t.Errorf("%d expectations after their time", n)
	}
	b.sysctl("expect_max", 0)
	if p := say(140, "PORT 10,0,0,2,4,3\r\n"); p.Reason != ReasonHelper {
		t.Error("an announcement that cannot be expected passes")
	}
	b.sysctl("expect_max", 10)
	say(140, "PORT 10,0,0,2,4,3\r\n")
	b.tbl.At(say(159, "NOOP\r\n").Ct).SetMark(42)
	p := b.want("tcp 9.9.9.9:20 > 10.0.0.2:1027 S seq=1", "RELATED")
	e := b.tbl.At(p.Ct)
	if e.Mark() != 42 || b.tbl.MasterHelper(e) != b.tbl.Helper("ftp") || b.tbl.HelperOf(e) != nil || b.tbl.ExpectCount() != 0 {
		t.Errorf("the expected connection: mark %d", e.Mark())
	}
	say(165, "PORT 10,0,0,2,4,4\r\n")
	b.tbl.Delete(func(s *Snapshot) bool { return s.Helper == "ftp" })
	if n := b.tbl.ExpectCount(); n != 0 {
		t.Errorf("%d expectations outlive their master", n)
	}
	s := b.tbl.Stats()[0]
	if s.ExpectNew != 1 || s.ExpectCreate != 4 || s.ExpectDelete != 4 {
		t.Errorf("%+v", s)
	}
}

func TestSeqAdjust(t *testing.T) {
	b, pass := ftpBox(t)
	var idx uint32
	b.tbl.Each(func(s *Snapshot) bool { idx = s.Index; return true })
	e := b.tbl.At(idx)
	b.w.Begin(b.now)
	b.w.ShiftSeq(e, Original, 102, 5) // the segment at 102 grew by 5 bytes
	b.w.End()
	out := func(d string) *packet.Packet {
		p := packettest.New(t, d)
		b.passPacket(p)
		if !p.VerifyL4() {
			t.Errorf("%s: wrong checksum", d)
		}
		return p
	}
	if p := out("tcp 10.0.0.2:5000 > 9.9.9.9:21 PA seq=102 ack=501 len=10"); p.TCPSeq() != 102 {
		t.Errorf("the changed segment itself: %d", p.TCPSeq())
	}
	if p := out("tcp 10.0.0.2:5000 > 9.9.9.9:21 PA seq=112 ack=501 len=10"); p.TCPSeq() != 117 {
		t.Errorf("a later one: %d", p.TCPSeq())
	}
	if p := out("tcp 9.9.9.9:21 > 10.0.0.2:5000 A seq=501 ack=127 tcpopts=0101050a0000007500000080"); p.TCPAck() != 122 || p.CtInfo != packet.CtEstablishedReply ||
		be.Uint32(p.Transport()[24:]) != 0x75-5 || be.Uint32(p.Transport()[28:]) != 0x80-5 {
		t.Errorf("what acknowledges it: %d %v % x", p.TCPAck(), infoNames[p.CtInfo], p.Transport()[20:])
	}
	if p := out("tcp 9.9.9.9:21 > 10.0.0.2:5000 A seq=501 ack=127 tcpopts=01050a0000007500000080"); be.Uint32(p.Transport()[23:]) != 0x75-5 {
		t.Errorf("SACK at an odd place: % x", p.Transport()[20:])
	}
	_ = pass
}

func TestLogInvalid(t *testing.T) {
	b := newBox(t)
	var log []string
	b.tbl.opt.Log = func(msg string, p *packet.Packet) { log = append(log, msg) }
	b.want("tcp 10.0.0.2:5000 > 9.9.9.9:80 SF seq=1", "INVALID")
	b.sysctl("log_invalid", int64(packet.ProtoTCP))
	b.want("tcp 10.0.0.2:5000 > 9.9.9.9:80 SF seq=1", "INVALID")
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:80 badcsum len=2", "INVALID")
	b.sysctl("log_invalid", 255)
	b.want("udp 10.0.0.2:5000 > 9.9.9.9:80 badcsum len=2", "INVALID")
	if got := strings.Join(log, ", "); got != "invalid tcp flag combination, bad checksum" {
		t.Errorf("%q", got)
	}
	if s := b.tbl.Stats()[0]; s.Invalid != 4 {
		t.Errorf("%d invalid", s.Invalid)
	}
}

func TestAttachedAnswerDoesNotOwnTheConnection(t *testing.T) {
	b := newBox(t)
	p, r := packettest.New(t, "tcp 10.0.0.2:5000 > 9.9.9.9:80 S"), packettest.New(t, "tcp 9.9.9.9:80 > 10.0.0.2:5000 RA")
	b.w.Begin(b.now)
	b.w.Track(p, hookPre)
	b.w.Attach(r, p)
	if r.CtInfo != packet.CtRelatedReply || !b.w.Track(r, hookOut) || !b.w.Confirm(r) {
		t.Error("the answer")
	}
	b.w.Release(r)
	if b.tbl.Count() != 1 || b.w.Entry(p).Has(Confirmed) {
		t.Error("the answer took the connection along")
	}
	b.w.Release(p)
	b.w.End()
	if b.tbl.Count() != 0 {
		t.Error("left over")
	}
}

// FuzzTrack feeds anything to Track: nothing may panic, and a packet that is
// tracked must be confirmable.
func FuzzTrack(f *testing.F) {
	for _, d := range []string{"tcp 10.0.0.2:5000 > 9.9.9.9:21 S seq=1 tcpopts=020405b40402030307", "udp 10.0.0.2:5000 > 9.9.9.9:69 hex=0001",
		"icmp 9.9.9.1 > 10.0.0.2 type=3/3 about udp 10.0.0.2:5000 > 9.9.9.9:53", "sctp 10.0.0.2:1 > 9.9.9.9:2 hex=0100001400000011000100000001000100000000",
		"gre 10.0.0.2 > 9.9.9.9 hex=3001880b00040007", "icmp6 fd00::1 > fd00::2 type=137 len=60", "udp [fd00::1]:1 > [fd00::2]:2 ext=hop,dest"} {
		b := packettest.MustFrame(d)
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, x, y []byte) {
		b := newBox(t)
		b.sysctl("checksum", 0)
		ftp, tftp := b.tbl.Template(Template{Helper: b.tbl.Helper("ftp")}), b.tbl.Template(Template{Helper: b.tbl.Helper("tftp")})
		for _, data := range [][]byte{x, y, x} {
			p := packet.New()
			if len(data) > packet.MaxLen {
				return
			}
			p.SetBytes(data)
			if p.Parse() != 0 {
				continue
			}
			b.w.SetTemplate(p, map[bool]*Template{true: ftp, false: tftp}[p.Proto == packet.ProtoTCP])
			b.passPacket(p)
			if p.Reason == ReasonDying || p.Reason == ReasonInsertFailed {
				t.Errorf("dropped: %v", p.Reason)
			}
		}
	})
}
