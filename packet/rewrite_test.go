package packet_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

var be = binary.BigEndian

func ip(s string) [16]byte { return packet.AddrBytes(netip.MustParseAddr(s)) }

// rewriteKinds are the protocols and shapes a rewrite has to get right; %s are the two ends.
var rewriteKinds = []string{
	"tcp %s S seq=1 mss=1460 ttl=9 tos=4", "tcp %s PA seq=1 ack=2 len=1001", "udp %s len=33", "udp %s len=33 nocsum",
	"udplite %s len=21", "dccp %s len=21", "sctp %s len=20", "udp %s frag=0+ len=99",
}

// TestRewrite compares every rewrite with the frame made anew.
func TestRewrite(t *testing.T) {
	for _, v := range []struct{ src, dst, src2, dst2 string }{
		{"10.0.0.1:1000", "10.0.0.2:2000", "203.0.113.77:1", "255.254.0.1:65535"},
		{"[2001:db8::1]:1000", "[2001:db8::2]:2000", "[fe80::ffff:1]:1", "[ffff:ffff::1]:65535"},
	} {
		for _, kind := range rewriteKinds {
			before := fmt.Sprintf(kind, v.src+" > "+v.dst)
			after := fmt.Sprintf(kind, v.src2+" > "+v.dst2)
			if strings.Contains(kind, "sctp") && strings.Contains(kind, "frag") {
				continue
			}
			p := packettest.New(t, before)
			a, b := netip.MustParseAddrPort(v.src2), netip.MustParseAddrPort(v.dst2)
			p.SetSrc(packet.AddrBytes(a.Addr()))
			p.SetDst(packet.AddrBytes(b.Addr()))
			p.SetSrcPort(a.Port())
			p.SetDstPort(b.Port())
			want := packettest.MustFrame(after)
			if !bytes.Equal(p.Bytes(), want) {
				t.Errorf("%s\n got %x\nwant %x", after, p.Bytes(), want)
			}
			if p.SrcPort() != a.Port() || p.DstPort() != b.Port() || p.SrcAddr() != a.Addr() || p.DstAddr() != b.Addr() {
				t.Errorf("%s: accessors say %v %d %v %d", after, p.SrcAddr(), p.SrcPort(), p.DstAddr(), p.DstPort())
			}
		}
	}
	for _, c := range [][2]string{ // without ports
		{"icmp 10.0.0.1 > 10.0.0.2 id=4 len=9", "icmp 1.2.3.4 > 5.6.7.8 id=4 len=9"},
		{"icmp6 fd00::1 > fd00::2 id=4 len=9", "icmp6 fe80::3 > 2001:db8::7:8 id=4 len=9"},
		{"esp 10.0.0.1 > 10.0.0.2 len=9", "esp 1.2.3.4 > 5.6.7.8 len=9"},
		{"tcp fd00::1 > fd00::2 S ext=hop,dest,route", "tcp fe80::3 > 2001:db8::7:8 S ext=hop,dest,route"},
		{"tcp fd00::1 > fd00::2 S frag=0+ len=9", "tcp fe80::3 > 2001:db8::7:8 S frag=0+ len=9"},
		{"udp 10.0.0.1 > 10.0.0.2 frag=800 len=80", "udp 1.2.3.4 > 5.6.7.8 frag=800 len=80"},
		{"udp 10.0.0.1 > 10.0.0.2 opts=94040000 len=80", "udp 1.2.3.4 > 5.6.7.8 opts=94040000 len=80"},
	} {
		p, q := packettest.New(t, c[0]), packettest.New(t, c[1])
		p.SetSrc(q.Src())
		p.SetDst(q.Dst())
		if p.Is(packet.LaterFragment) {
			p.SetSrcPort(99) // must do nothing
		}
		if !bytes.Equal(p.Bytes(), q.Bytes()) {
			t.Errorf("%s\n got %x\nwant %x", c[1], p.Bytes(), q.Bytes())
		}
	}
}

// TestRewritePartial: a partial checksum holds the pseudo header's sum; completed
// after a rewrite it is the whole one.
func TestRewritePartial(t *testing.T) {
	for _, v := range [][2]string{
		{"10.0.0.1:1000 > 10.0.0.2:2000", "203.0.113.77:1 > 255.254.0.1:65535"},
		{"[2001:db8::1]:1000 > [2001:db8::2]:2000", "[fe80::ffff:1]:1 > [ffff:ffff::1]:65535"},
	} {
		for _, proto := range []string{"tcp %s S seq=5 len=101", "udp %s len=44"} {
			p, q := packettest.New(t, fmt.Sprintf(proto, v[0])), packettest.New(t, fmt.Sprintf(proto, v[1]))
			off := uint16(16)
			if p.Proto == packet.ProtoUDP {
				off = 6
			}
			p.GSO = packet.GSO{NeedsCsum: true, CsumStart: p.L4, CsumOffset: off}
			p.FixChecksums()
			if !p.VerifyL4() {
				t.Error("a partial checksum counts as good")
			}
			p.SetSrc(q.Src())
			p.SetDst(q.Dst())
			p.SetSrcPort(q.SrcPort())
			p.SetDstPort(q.DstPort())
			p.CompleteChecksum()
			if p.GSO.NeedsCsum || !bytes.Equal(p.Bytes(), q.Bytes()) {
				t.Errorf("%s\n got %x\nwant %x", v[1], p.Bytes(), q.Bytes())
			}
		}
	}
}

// TestRewriteUDPZero walks a UDP packet through every port: where the sum is
// zero the field must say 0xffff, for zero means none.
func TestRewriteUDPZero(t *testing.T) {
	for _, ends := range []string{"10.0.0.1:1 > 10.0.0.2:53", "[fd00::1]:1 > [fd00::2]:53"} {
		p := packettest.New(t, "udp "+ends+" len=5")
		saw := false
		for port := range 65536 {
			p.SetSrcPort(uint16(port))
			sum := be.Uint16(p.Transport()[6:])
			saw = saw || sum == 0xffff
			p.Flags &^= packet.L4ChecksumOK
			if sum == 0 || !p.VerifyL4() {
				t.Fatalf("%s: port %d: checksum %#x", ends, port, sum)
			}
		}
		if !saw {
			t.Fatal("no port made the sum zero")
		}
	}
}

func TestTTLAndTOS(t *testing.T) {
	for _, ends := range []string{"10.0.0.1:1 > 10.0.0.2:53 ipid=7", "[fd00::1]:1 > [fd00::2]:53 flow=12345"} {
		for v := range 256 {
			p := packettest.New(t, "udp "+ends+" len=5 tos=77")
			p.SetTTL(uint8(v))
			p.SetTOS(uint8(255 - v))
			want := packettest.MustFrame(fmt.Sprintf("udp %s len=5 ttl=%d tos=%d", ends, v, 255-v))
			if !bytes.Equal(p.Bytes(), want) || p.TTL() != uint8(v) || p.TOS() != uint8(255-v) {
				t.Fatalf("%s %d\n got %x\nwant %x", ends, v, p.Bytes(), want)
			}
		}
	}
	p := packettest.New(t, "udp 10.0.0.1:1 > 10.0.0.2:53 ipid=7")
	p.SetID(0xfffe)
	if !bytes.Equal(p.Bytes(), packettest.MustFrame("udp 10.0.0.1:1 > 10.0.0.2:53 ipid=65534")) {
		t.Error("SetID")
	}
	if packettest.New(t, "udp fd00::1 > fd00::2 flow=12345 tos=255").FlowLabel() != 12345 {
		t.Error("FlowLabel")
	}
}

func TestVerifyL4(t *testing.T) {
	for _, c := range []struct {
		desc     string
		ok, mark bool // mark: L4ChecksumOK afterwards
	}{
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 S", true, true},
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 S badcsum", false, false},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=3", true, true},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 nocsum", true, false},
		{"udp [fd00::1]:1 > [fd00::2]:2 badcsum", false, false},
		{"udplite 10.0.0.1:1 > 10.0.0.2:2 len=9 nocsum", false, false},
		{"udplite 10.0.0.1:1 > 10.0.0.2:2 len=9 l4len=7", false, false},
		{"udplite 10.0.0.1:1 > 10.0.0.2:2 len=9 l4len=18", false, false},
		{"dccp 10.0.0.1:1 > 10.0.0.2:2 len=9", true, true},
		{"sctp 10.0.0.1:1 > 10.0.0.2:2 len=9", true, true},
		{"icmp 10.0.0.1 > 10.0.0.2 len=9", true, true},
		{"icmp 10.0.0.1 > 10.0.0.2 len=9 badcsum", false, false},
		{"icmp6 fd00::1 > fd00::2 len=9", true, true},
		{"icmp6 fd00::1 > fd00::2 len=9 badcsum", false, false},
		{"esp 10.0.0.1 > 10.0.0.2 len=9", true, true},
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 S frag=0+ badcsum", true, false},
		{"tcp 10.0.0.1 > 10.0.0.2 frag=80 len=40", true, false},
	} {
		p := packettest.New(t, c.desc)
		if ok := p.VerifyL4(); ok != c.ok || p.Is(packet.L4ChecksumOK) != c.mark {
			t.Errorf("%s: %v, marked %v", c.desc, ok, p.Is(packet.L4ChecksumOK))
		}
	}
	p := packettest.New(t, "sctp 10.0.0.1:1 > 10.0.0.2:2 len=9")
	p.Transport()[14] ^= 1
	if p.VerifyL4() {
		t.Error("SCTP: a changed payload passed")
	}
}

// TestUDPLiteCoverage: only what is covered is summed.
func TestUDPLiteCoverage(t *testing.T) {
	p := packettest.New(t, "udplite 10.0.0.1:1 > 10.0.0.2:2 len=40")
	be.PutUint16(p.Transport()[4:], 12)
	p.FixChecksums()
	p.Flags &^= packet.L4ChecksumOK
	p.Transport()[12] ^= 0xff // not covered
	if !p.VerifyL4() {
		t.Error("a change outside the coverage failed the checksum")
	}
	p.Flags &^= packet.L4ChecksumOK
	p.SetL4Word(20, 0x1234)
	p.SetDstPort(7777)
	if !p.VerifyL4() {
		t.Error("rewriting with partial coverage broke the checksum")
	}
	p.Flags &^= packet.L4ChecksumOK
	p.Transport()[11] ^= 0xff
	if p.VerifyL4() {
		t.Error("a change inside the coverage passed")
	}
}

func TestResize(t *testing.T) {
	for _, c := range []struct {
		before, after string
		old, new      string
	}{
		{`tcp 10.0.0.1:1 > 10.0.0.2:21 A data="PORT 1,2 x"`, `tcp 10.0.0.1:1 > 10.0.0.2:21 A data="PORT 11,22,33 x"`, "1,2", "11,22,33"},
		{`tcp [fd00::1]:1 > [fd00::2]:21 A data="EPRT 123456 x"`, `tcp [fd00::1]:1 > [fd00::2]:21 A data="EPRT 1 x"`, "123456", "1"},
		{`udp 10.0.0.1:1 > 10.0.0.2:69 data="abc"`, `udp 10.0.0.1:1 > 10.0.0.2:69 data="abcdef"`, "bc", "bcdef"},
		{`udp 10.0.0.1:1 > 10.0.0.2:69 data="abc" nocsum`, `udp 10.0.0.1:1 > 10.0.0.2:69 data="a" nocsum`, "bc", ""},
	} {
		p := packettest.New(t, c.before)
		at := bytes.Index(p.Bytes(), []byte(c.old))
		if !p.Resize(at, len(c.old), len(c.new)) {
			t.Fatalf("%s: refused", c.before)
		}
		copy(p.Bytes()[at:], c.new)
		p.Mangled()
		if !bytes.Equal(p.Bytes(), packettest.MustFrame(c.after)) {
			t.Errorf("%s\n got %x\nwant %x", c.after, p.Bytes(), packettest.MustFrame(c.after))
		}
	}
	p := packettest.New(t, "udp 10.0.0.1:1 > 10.0.0.2:2 len=60000")
	before := bytes.Clone(p.Bytes())
	for _, c := range [][3]int{{100, 1, 60000}, {0, 1, 1}, {len(before), 1, 1}, {30, -1, 1}, {30, 1, -1}} {
		if p.Resize(c[0], c[1], c[2]) || !bytes.Equal(p.Bytes(), before) {
			t.Errorf("Resize%v was done", c)
		}
	}
}

func TestCopy(t *testing.T) {
	p := packettest.New(t, "udp 10.0.0.1:1 > 10.0.0.2:2 len=60")
	p.Ct, p.CtInfo, p.Mark = 7, packet.CtNew, 9
	q := packet.New()
	q.Copy(p)
	q.SetSrc(ip("9.9.9.9"))
	if p.SrcAddr().String() != "10.0.0.1" || q.Mark != 9 || q.Ct != 0 || q.CtInfo != packet.CtNone || q.SrcPort() != 1 {
		t.Errorf("copy: %+v", q.Mark)
	}
}

func TestAllocations(t *testing.T) {
	frame := packettest.MustFrame("tcp 10.0.0.1:1000 > 10.0.0.2:2000 A seq=1 len=100")
	frame6 := packettest.MustFrame("tcp [fd00::1]:1000 > [fd00::2]:2000 A seq=1 len=100 ext=hop,dest")
	opts := packettest.MustFrame("tcp 10.0.0.1:1000 > 10.0.0.2:2000 A seq=1 len=100 opts=070704000000009404000000")
	p, q := packet.New(), packet.New()
	emit := func(*packet.Packet) {}
	a, b := ip("1.2.3.4"), ip("2001:db8::1")
	for name, f := range map[string]func(){
		"IPv4": func() { p.SetBytes(frame); p.Parse(); rewriteAll(p, a) },
		"IPv6": func() { p.SetBytes(frame6); p.Parse(); rewriteAll(p, b) },
		"options": func() {
			p.SetBytes(opts)
			p.Parse()
			var o packet.IPOptions
			p.CompileOptions(&o)
			p.ForwardOptions(&o, a, 1, nil)
		},
		"ICMP error": func() { p.SetBytes(frame); p.Parse(); packet.BuildICMPError(q, p, 11, 0, 0, a) },
		"TCP reset":  func() { p.SetBytes(frame6); p.Parse(); packet.BuildTCPReset(q, p) },
		"fragment":   func() { p.SetBytes(frame); p.Parse(); packet.FragmentTo(p, 68, emit) },
		"segments": func() {
			p.SetBytes(frame)
			p.GSO = packet.GSO{Type: packet.GSOTCPv4, Size: 10, NeedsCsum: true, CsumStart: 20, CsumOffset: 16}
			p.Parse()
			packet.Segments(p, emit)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func rewriteAll(p *packet.Packet, a [16]byte) {
	p.VerifyL4()
	p.SetSrc(a)
	p.SetDst(a)
	p.SetSrcPort(5)
	p.SetDstPort(6)
	p.SetTTL(p.TTL() - 1)
	p.SetTOS(8)
}

func BenchmarkParse(b *testing.B) {
	for name, desc := range map[string]string{
		"IPv4": "udp 10.0.0.1:1000 > 10.0.0.2:2000 len=22", "IPv6": "udp [fd00::1]:1000 > [fd00::2]:2000 len=22",
	} {
		p := packet.New()
		p.SetBytes(packettest.MustFrame(desc))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if p.Parse() != 0 {
					b.Fatal("refused")
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, n := range []int{22, 1400} {
		p := packettest.New(b, fmt.Sprintf("udp 10.0.0.1:1000 > 10.0.0.2:2000 len=%d", n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Flags &^= packet.L4ChecksumOK
				if !p.VerifyL4() {
					b.Fatal("wrong")
				}
			}
		})
	}
}

// BenchmarkRewrite is what source NAT and forwarding do to a packet.
func BenchmarkRewrite(b *testing.B) {
	for name, desc := range map[string]string{
		"IPv4": "udp 10.0.0.1:1000 > 10.0.0.2:2000 len=22", "IPv6": "udp [fd00::1]:1000 > [fd00::2]:2000 len=22",
	} {
		p := packettest.New(b, desc)
		addrs := [2][16]byte{p.Src(), p.Dst()}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				p.SetSrc(addrs[i&1])
				p.SetSrcPort(uint16(i))
				p.SetTTL(uint8(i))
			}
		})
	}
}

func BenchmarkSegments(b *testing.B) {
	desc := "tcp 10.0.0.1:1000 > 10.0.0.2:2000 A seq=1 len=64000"
	frame := packettest.MustFrame(desc)
	p := packet.New()
	emit := func(*packet.Packet) {}
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		p.SetBytes(frame)
		p.GSO = packet.GSO{Type: packet.GSOTCPv4, Size: 1448, NeedsCsum: true, CsumStart: 20, CsumOffset: 16}
		p.Parse()
		packet.Segments(p, emit)
	}
}
