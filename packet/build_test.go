package packet_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

// describe is a built packet in words, its identification taken out.
func describe(t *testing.T, p *packet.Packet) string {
	t.Helper()
	wellFormed(t, p)
	return packettest.Describe(p.Bytes())
}

func TestICMPErrors(t *testing.T) {
	const none = "" // no error may be sent
	for _, c := range []struct {
		about     string
		typ, code uint8
		rest      uint32
		want      string
	}{
		{"udp 10.0.0.1:1 > 10.9.0.2:2 tos=255 len=9", 3, 4, 1400, "icmp 10.0.0.9 > 10.0.0.1 type=3/4 rest=1400 tos=0xde about udp 10.0.0.1:1 > 10.9.0.2:2"},
		{"tcp 10.0.0.1:1 > 10.9.0.2:2 frag=0+ S", 11, 0, 0, "icmp 10.0.0.9 > 10.0.0.1 type=11/0 rest=0 tos=0xc0 about tcp 10.0.0.1:1 > 10.9.0.2:2"},
		{"icmp 10.0.0.1 > 10.9.0.2 type=8", 3, 1, 0, "icmp 10.0.0.9 > 10.0.0.1 type=3/1 rest=0 tos=0xc0 about icmp 10.0.0.1 > 10.9.0.2"},
		{"icmp 10.0.0.1 > 10.9.0.2 type=0", 3, 1, 0, "icmp 10.0.0.9 > 10.0.0.1 type=3/1 rest=0 tos=0xc0 about icmp 10.0.0.1 > 10.9.0.2"},
		{"icmp 10.0.0.1 > 10.9.0.2 type=3", 3, 1, 0, none},
		{"icmp 10.0.0.1 > 10.9.0.2 type=5", 3, 1, 0, none},
		{"icmp 10.0.0.1 > 10.9.0.2 type=11", 3, 1, 0, none},
		{"icmp 10.0.0.1 > 10.9.0.2 type=99", 3, 1, 0, none},
		{"udp 10.0.0.1 > 10.9.0.2 frag=8 len=8", 3, 1, 0, none},
		{"udp 10.0.0.1:1 > 224.0.0.1:2", 3, 1, 0, none},
		{"udp 10.0.0.1:1 > 255.255.255.255:2", 3, 1, 0, none},
		{"udp 0.0.0.0:1 > 10.9.0.2:2", 3, 1, 0, none},
		{"udp 224.0.0.1:1 > 10.9.0.2:2", 3, 1, 0, none},
		{"udp [fd00::1]:1 > [fd09::2]:2 tos=255 len=9", 1, 4, 0, "icmp6 fd00::9 > fd00::1 type=1/4 rest=0 about udp [fd00::1]:1 > [fd09::2]:2"},
		{"udp [fd00::1]:1 > [fd09::2]:2 len=1500", 2, 0, 1280, "icmp6 fd00::9 > fd00::1 type=2/0 rest=1280 about udp [fd00::1]:1 > [fd09::2]:2"},
		{"icmp6 fd00::1 > fd09::2 type=128", 3, 0, 0, "icmp6 fd00::9 > fd00::1 type=3/0 rest=0 about icmp6 fd00::1 > fd09::2"},
		{"icmp6 fd00::1 > fd09::2 type=1", 3, 0, 0, none},
		{"icmp6 fd00::1 > fd09::2 type=127 ext=dest", 3, 0, 0, none},
		{"udp [fd00::1]:1 > [ff0e::2]:2", 3, 0, 0, none},
		{"udp [fd00::1]:1 > [ff0e::2]:2", 2, 0, 1280, "icmp6 fd00::9 > fd00::1 type=2/0 rest=1280 about udp [fd00::1]:1 > [ff0e::2]:2"},
		{"udp [fd00::1]:1 > [ff0e::2]:2", 4, 2, 40, "icmp6 fd00::9 > fd00::1 type=4/2 rest=40 about udp [fd00::1]:1 > [ff0e::2]:2"},
		{"udp [fd00::1]:1 > [ff0e::2]:2", 4, 0, 40, none},
		{"udp [::]:1 > [fd09::2]:2", 3, 0, 0, none},
	} {
		p, e := packettest.New(t, c.about), packet.New()
		src := ip("10.0.0.9")
		if p.Family == packet.IPv6 {
			src = ip("fd00::9")
		}
		got := ""
		if packet.BuildICMPError(e, p, c.typ, c.code, c.rest, src) {
			got = describe(t, e)
			if !e.Is(packet.Local) {
				t.Errorf("%s: the error is not marked as our own", c.about)
			}
		}
		if got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.about, got, c.want)
		}
	}
	p, e := packettest.New(t, "udp 10.0.0.1:1 > 10.9.0.2:2"), packet.New()
	p.PktType = packet.PktBroadcast
	if packet.BuildICMPError(e, p, 3, 1, 0, ip("10.0.0.9")) {
		t.Error("an error about a link-level broadcast")
	}
}

func TestICMPErrorLength(t *testing.T) {
	e := packet.New()
	for desc, want := range map[string]int{
		"udp 10.0.0.1:1 > 10.9.0.2:2 len=520": 576, "udp 10.0.0.1:1 > 10.9.0.2:2 len=521": 576, "udp 10.0.0.1:1 > 10.9.0.2:2 len=519": 575,
		"udp 10.0.0.1:1 > 10.9.0.2:2 len=60000": 576, "udp [fd00::1]:1 > [fd00::2]:2 len=60000": 1280, "udp [fd00::1]:1 > [fd00::2]:2 len=1184": 1280,
		"udp [fd00::1]:1 > [fd00::2]:2 len=1183": 1279,
	} {
		p := packettest.New(t, desc)
		if !packet.BuildICMPError(e, p, 3, 1, 0, p.Dst()) || e.Len() != want {
			t.Errorf("%s: %d bytes, want %d", desc, e.Len(), want)
		}
		head := e.Len() - len(e.Payload())
		if !bytes.Equal(e.Payload(), p.Bytes()[:want-head]) {
			t.Errorf("%s: the quote is not the packet", desc)
		}
	}
}

func TestResets(t *testing.T) {
	for _, c := range []struct{ to, want string }{
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 S seq=1000 tos=16 ttl=3", "tcp 10.0.0.2:2 > 10.0.0.1:1 RA seq=0 ack=1001 win=0 df"},
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 SF seq=4294967295 len=7", "tcp 10.0.0.2:2 > 10.0.0.1:1 RA seq=0 ack=8 win=0 df"},
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 A seq=5 ack=77 len=7", "tcp 10.0.0.2:2 > 10.0.0.1:1 R seq=77 win=0 df"},
		{"tcp [fd00::1]:1 > [fd00::2]:2 SA seq=5 ack=77", "tcp [fd00::2]:2 > [fd00::1]:1 R seq=77 win=0"},
		{"tcp [fd00::1]:1 > [fd00::2]:2 P seq=5 len=10 ext=hop,dest", "tcp [fd00::2]:2 > [fd00::1]:1 RA seq=0 ack=15 win=0"},
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 RA seq=5", ""},
		{"tcp 10.0.0.1:1 > 10.0.0.2:2 S badcsum", ""},
		{"tcp 10.0.0.1 > 10.0.0.2 frag=8 len=40", ""},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=40", ""},
		{"tcp [fd00::1]:1 > [ff0e::2]:2 S", ""},
		{"tcp [::]:1 > [fd00::2]:2 S", ""},
	} {
		p, r := packettest.New(t, c.to), packet.New()
		got := ""
		if packet.BuildTCPReset(r, p) {
			got = describe(t, r)
		}
		if got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.to, got, c.want)
		}
	}
}

func TestBuildEcho(t *testing.T) {
	p := packet.New()
	packet.BuildEcho(p, packet.IPv4, ip("10.0.0.1"), ip("10.0.0.2"), true, 7, 9, 5)
	if got := describe(t, p); got != "icmp 10.0.0.1 > 10.0.0.2 type=0/0 id=7 seq=9 len=5" {
		t.Error(got)
	}
	packet.BuildEcho(p, packet.IPv6, ip("fd00::1"), ip("fd00::2"), false, 7, 9, 0)
	if got := describe(t, p); got != "icmp6 fd00::1 > fd00::2 type=128/0 id=7 seq=9" {
		t.Error(got)
	}
}

// pieces are what emit got, in words.
func pieces(out *[]string) func(*packet.Packet) {
	return func(s *packet.Packet) { *out = append(*out, packettest.Describe(s.Bytes())) }
}

func TestSegments(t *testing.T) {
	var got []string
	b, g := super(t, "tcp 10.0.0.1:1 > 10.0.0.2:2 FPAC seq=4294967290 ack=5 ipid=65535 len=25 df", packet.GSOTCPv4, 10)
	p := packet.New()
	p.SetBytes(b)
	p.GSO = g
	p.Parse()
	if p.SegmentCount() != 3 || p.SegmentLen() != 50 {
		t.Errorf("%d segments of %d", p.SegmentCount(), p.SegmentLen())
	}
	var ids []uint16
	packet.Segments(p, func(s *packet.Packet) { ids = append(ids, s.ID()); pieces(&got)(s) })
	want := "tcp 10.0.0.1:1 > 10.0.0.2:2 AC seq=4294967290 ack=5 df len=10\n" +
		"tcp 10.0.0.1:1 > 10.0.0.2:2 A seq=4 ack=5 df len=10\n" +
		"tcp 10.0.0.1:1 > 10.0.0.2:2 FPA seq=14 ack=5 df len=5"
	if strings.Join(got, "\n") != want || fmt.Sprint(ids) != "[65535 0 1]" {
		t.Errorf("%v\n%s", ids, strings.Join(got, "\n"))
	}
	if p.Len() != 0 {
		t.Error("something is left of the super-packet")
	}

	got = nil
	b, g = super(t, "udp [fd00::1]:1 > [fd00::2]:2 len=25", packet.GSOUDPL4, 12)
	p.SetBytes(b)
	p.GSO = g
	p.Parse()
	packet.Segments(p, pieces(&got))
	if fmt.Sprint(got) != "[udp [fd00::1]:1 > [fd00::2]:2 len=12 udp [fd00::1]:1 > [fd00::2]:2 len=12 udp [fd00::1]:1 > [fd00::2]:2 len=1]" {
		t.Error(got)
	}

	got = nil
	b, g = super(t, "udp 10.0.0.1:1 > 10.0.0.2:2 len=25", 0, 0)
	p.SetBytes(b)
	p.GSO = g
	p.Parse()
	packet.Segments(p, pieces(&got))
	if fmt.Sprint(got) != "[udp 10.0.0.1:1 > 10.0.0.2:2 len=25]" {
		t.Error(got)
	}
}

// super is a super-packet of a description: its checksum partial, as a sender's stack leaves it.
func super(t testing.TB, desc string, typ uint8, size int) ([]byte, packet.GSO) {
	t.Helper()
	p := packettest.New(t, desc)
	at := 16
	if p.Proto == packet.ProtoUDP {
		at = 6
	}
	hdr := p.Len() - len(p.Payload())
	p.GSO = packet.GSO{NeedsCsum: true, CsumStart: p.L4, CsumOffset: uint16(at)}
	if size != 0 {
		p.GSO.Type, p.GSO.Size, p.GSO.HdrLen = typ, uint16(size), uint16(hdr)
	}
	p.FixChecksums()
	if r := p.Parse(); r != 0 {
		t.Fatalf("%s: %v", desc, r)
	}
	return bytes.Clone(p.Bytes()), p.GSO
}

func TestFragmentTo(t *testing.T) {
	for _, c := range []struct {
		desc string
		mtu  int
		edit func(*packet.Packet)
		want string
	}{
		{"udp 10.0.0.1:1 > 10.0.0.2:2 ipid=7 len=40", 44, nil,
			"udp 10.0.0.1:1 > 10.0.0.2:2 frag=0+ ipid=7 len=16, udp 10.0.0.1 > 10.0.0.2 frag=24 ipid=7 len=24"},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 ipid=7 len=41", 51, nil,
			"udp 10.0.0.1:1 > 10.0.0.2:2 frag=0+ ipid=7 len=16, udp 10.0.0.1 > 10.0.0.2 frag=24 ipid=7 len=25"},
		{"udp 10.0.0.1 > 10.0.0.2 ipid=7 frag=80+ len=40", 44, nil, // a fragment's fragments
			"udp 10.0.0.1 > 10.0.0.2 frag=80+ ipid=7 len=24, udp 10.0.0.1 > 10.0.0.2 frag=104+ ipid=7 len=16"},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 ipid=7 len=24 df", 1500, func(p *packet.Packet) { p.FragMax = 40; p.Flags |= packet.Reassembled },
			"udp 10.0.0.1:1 > 10.0.0.2:2 df frag=0+ ipid=7 len=8, udp 10.0.0.1 > 10.0.0.2 df frag=16 ipid=7 len=16"},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 ipid=7 len=24 df", 1500, func(p *packet.Packet) {
			p.FragMax, p.Pieces = 44, []uint16{8, 24}
			p.Flags |= packet.Reassembled
		}, "udp 10.0.0.1:1 > 10.0.0.2:2 frag=0+ ipid=7, udp 10.0.0.1 > 10.0.0.2 frag=8 ipid=7 len=24"},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 ipid=7 len=24", 1500, func(p *packet.Packet) { p.FragMax, p.Pieces = 44, []uint16{9, 24} },
			"udp 10.0.0.1:1 > 10.0.0.2:2 frag=0+ ipid=7, udp 10.0.0.1 > 10.0.0.2 frag=8 ipid=7 len=24"},
	} {
		p := packettest.New(t, c.desc)
		if c.edit != nil {
			c.edit(p)
		}
		var got []string
		if !packet.FragmentTo(p, c.mtu, pieces(&got)) {
			t.Fatalf("%s: refused", c.desc)
		}
		want := strings.Split(c.want, ", ")
		if len(got) < len(want) || strings.Join(got[:len(want)], ", ") != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.desc, strings.Join(got, ", "), c.want)
		}
	}
	p := packettest.New(t, "udp 10.0.0.1:1 > 10.0.0.2:2 len=40")
	if packet.FragmentTo(p, 27, nil) {
		t.Error("an MTU of 27 has no room")
	}
	p = packettest.New(t, "udp [fd00::1]:1 > [fd00::2]:2 len=2000 frag=0")
	if packet.FragmentTo(p, 1280, nil) {
		t.Error("an IPv6 fragment was fragmented")
	}
	var got []string
	p = packettest.New(t, "udp [fd00::1]:1 > [fd00::2]:2 len=2000 ext=hop,dest,route,dest")
	packet.FragmentTo(p, 100, func(s *packet.Packet) { // 1280 is the least
		// The last destination options belong to the fragmentable part.
		got = append(got, fmt.Sprintf("%d bytes at %d, header of %d", s.Len(), s.FragOff, s.L4))
	})
	if fmt.Sprint(got) != "[1280 bytes at 0, header of 80 880 bytes at 1208, header of 72]" {
		t.Error(got)
	}
}

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		desc            string
		fragMax, mtu    uint16
		exceeds, pieces bool
	}{
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=72", 0, 100, false, false},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=73", 0, 100, false, true},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=73 df", 0, 100, true, true},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=73 df", 100, 100, false, true},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=73 df", 101, 100, true, true},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=73", 101, 100, false, true},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 len=7", 20, 100, false, true},
		{"udp [fd00::1]:1 > [fd00::2]:2 len=1453", 0, 1500, true, true},
		{"udp [fd00::1]:1 > [fd00::2]:2 len=1452", 0, 1500, false, false},
		{"udp [fd00::1]:1 > [fd00::2]:2 len=1453", 1500, 1500, false, true},
		{"udp [fd00::1]:1 > [fd00::2]:2 len=1453", 1501, 1500, true, true},
		{"udp [fd00::1]:1 > [fd00::2]:2 len=1000", 1280, 1500, false, false},
	} {
		p := packettest.New(t, c.desc)
		p.FragMax = c.fragMax
		if p.ExceedsMTU(int(c.mtu)) != c.exceeds || p.NeedsFragmenting(int(c.mtu)) != c.pieces {
			t.Errorf("%+v: %v %v", c, p.ExceedsMTU(int(c.mtu)), p.NeedsFragmenting(int(c.mtu)))
		}
	}
}

// TestSourceRoute follows loose and strict routes; 10.0.0.x is ours.
func TestSourceRoute(t *testing.T) {
	typeOf := func(a [16]byte) uint8 {
		switch {
		case a[0] == 10 && a[1] == 0:
			return 2
		case a[0] == 224:
			return 5
		}
		return 1
	}
	for _, c := range []struct {
		desc string
		want packet.Reason
		ptr  uint32
		dst  string // afterwards, after ForwardOptions
		opt  string
	}{
		{"udp 1.1.1.1:1 > 10.0.0.1:2 opts=830704c0a80001", 0, 0, "192.168.0.1", "8307080a000009"},
		{"udp 1.1.1.1:1 > 10.0.0.1:2 opts=890b040a000002c0a80001", 0, 0, "192.168.0.1", "890b0c0a0000020a000009"},
		{"udp 1.1.1.1:1 > 9.9.9.9:2 opts=830704c0a80001", 0, 0, "9.9.9.9", "830704c0a80001"},
		{"udp 1.1.1.1:1 > 9.9.9.9:2 opts=890704c0a80001", packet.DropSourceRt, 16 << 24, "", ""},
		{"udp 1.1.1.1:1 > 10.0.0.1:2 opts=830704e0000001", packet.DropSourceRt, 0, "", ""},
		{"udp 1.1.1.1:1 > 10.0.0.1:2 opts=830706c0a80001", packet.DropSourceRt, 22 << 24, "", ""},
		{"udp 1.1.1.1:1 > 10.0.0.1:2 opts=830708c0a80001", 0, 0, "10.0.0.1", "830708c0a80001"},
	} {
		p := packettest.New(t, c.desc)
		var o packet.IPOptions
		if r := p.CompileOptions(&o); r != 0 {
			t.Fatalf("%s: %v", c.desc, r)
		}
		r := p.FollowSourceRoute(&o, typeOf)
		_, _, rest, tell := p.Problem(r)
		if r != c.want || tell != (c.ptr != 0) || tell && rest != c.ptr {
			t.Errorf("%s: %v, pointer %#x", c.desc, r, rest)
		}
		if r != 0 {
			continue
		}
		p.ForwardOptions(&o, ip("10.0.0.9"), 0, nil)
		if r := p.Parse(); r != 0 { // the transport checksum is made for the route's end
			t.Errorf("%s: %v", c.desc, r)
		}
		if opt := fmt.Sprintf("%x", p.Bytes()[20:20+len(c.opt)/2]); p.DstAddr().String() != c.dst || opt != c.opt {
			t.Errorf("%s: to %v, options %s, want %s %s", c.desc, p.DstAddr(), opt, c.dst, c.opt)
		}
	}
}

func TestForwardOptions(t *testing.T) {
	for in, want := range map[string]string{
		"07070400000000": "0707080a000009", "070b080102030400000000": "070b0c010203040a000009", "07070801020304": "07070801020304",
		"44080500" + "00000000": "44080900" + "00bc614e", "440c0501" + "0000000000000000": "440c0d01" + "0a000009" + "00bc614e",
		"440c0503" + "0a00000100000000": "440c0d03" + "0a000001" + "00bc614e", "440c0503" + "0b00000100000000": "440c0503" + "0b00000100000000",
		"44080900" + "01020304": "44080910" + "01020304", "94040000": "94040000", "00ffffff": "00000000",
	} {
		p := packettest.New(t, "udp 1.1.1.1:1 > 2.2.2.2:2 opts="+in)
		var o packet.IPOptions
		if r := p.CompileOptions(&o); r != 0 {
			t.Fatalf("%s: %v", in, r)
		}
		p.ForwardOptions(&o, ip("10.0.0.9"), 12345678, func(a [16]byte) bool { return a[0] == 10 })
		wellFormed(t, p)
		if got := fmt.Sprintf("%x", p.Bytes()[20:20+len(want)/2]); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
