package packet_test

import (
	"bytes"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/packet"
	"sluice/packet/packettest"
)

// TestDrops: what is refused, under which name. The kernel tests say that Linux
// refuses the same.
func TestDrops(t *testing.T) {
	f := packettest.MustFrame
	udp := f("udp 10.0.0.1:1 > 10.0.0.2:2 len=9")
	udp6 := f("udp [fd00::1]:1 > [fd00::2]:2 len=9")
	edit := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		if b[0]>>4 == 4 && at != 10 {
			fixHeader(b)
		}
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want packet.Reason
	}{
		{"whole", udp, 0},
		{"whole 6", udp6, 0},
		{"padded", append(bytes.Clone(udp), 0, 0, 0), 0},
		{"padded 6", append(bytes.Clone(udp6), 0, 0, 0), 0},
		{"empty", nil, packet.DropTruncated},
		{"19 bytes", udp[:19], packet.DropTruncated},
		{"short", udp[:len(udp)-1], packet.DropTruncated},
		{"version", edit(udp, 0, 0x55), packet.DropBadVersion},
		{"header of 16", edit(udp, 0, 0x44), packet.DropBadHeader},
		{"header beyond the frame", append([]byte{0x4f}, udp[1:]...), packet.DropTruncated},
		{"checksum", edit(udp, 10, udp[10]^1), packet.DropBadSum},
		{"length below header", edit(udp, 3, 19), packet.DropBadLength},
		{"39 bytes", udp6[:39], packet.Drop6Truncated},
		{"short 6", udp6[:len(udp6)-1], packet.Drop6Truncated},
		{"multicast source", f("udp ff02::1 > fd00::2"), packet.Drop6BadAddress},
		{"loopback source", f("udp ::1 > fd00::2"), packet.Drop6BadAddress},
		{"loopback destination", f("udp fd00::1 > ::1"), packet.Drop6BadAddress},
		{"multicast scope 0", f("udp fd00::1 > ff00::2"), packet.Drop6BadAddress},
		{"multicast scope 1", f("udp fd00::1 > ff01::2"), packet.Drop6BadAddress},
		{"multicast scope 2", f("udp fd00::1 > ff02::2"), 0},
		{"jumbo", f("0 fd00::1 > fd00::2 hex=3b00c20400000010"), packet.Drop6BadJumbo},
		{"unknown option", f("0 fd00::1 > fd00::2 hex=3b009e0400000000"), packet.Drop6UnknownOpt},
		{"bad option", f("0 fd00::1 > fd00::2 hex=3b00010500000000"), packet.Drop6BadOptions},
	} {
		p := packet.New()
		p.SetBytes(c.b)
		if got := p.Parse(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		} else if got == 0 && p.Len() != len(udp) && p.Len() != len(udp6) && c.name[0] == 'p' {
			t.Errorf("%s: padding stayed, %d bytes", c.name, p.Len())
		}
	}
	p := packet.New()
	p.SetBytes(udp)
	p.PktType = packet.PktOtherHost
	if p.Parse() != packet.DropOtherHost {
		t.Error("a frame for another host was taken")
	}
	p.SetBytes(f("udp ::1 > ::1"))
	p.Flags = packet.Loopback
	if p.Parse() != 0 || !p.Is(packet.Loopback) {
		t.Error("::1 must pass on the loopback")
	}
}

func TestOffloadHeader(t *testing.T) {
	tcp, udp6 := "tcp 10.0.0.1:1 > 10.0.0.2:2 A len=99", "udp [fd00::1]:1 > [fd00::2]:2 len=99"
	partial := packet.GSO{NeedsCsum: true, CsumStart: 20, CsumOffset: 16}
	with := func(g packet.GSO, typ uint8, size uint16) packet.GSO { g.Type, g.Size = typ, size; return g }
	for _, c := range []struct {
		desc string
		g    packet.GSO
		want packet.Reason
	}{
		{tcp, partial, 0},
		{tcp, with(partial, packet.GSOTCPv4, 10), 0},
		{tcp, with(partial, packet.GSOTCPv4|packet.GSOECN, 10), 0},
		{tcp, with(partial, packet.GSOTCPv4, 0), packet.DropBadOffload},
		{tcp, with(partial, packet.GSOTCPv6, 10), packet.DropBadOffload},
		{tcp, with(partial, packet.GSOUDPL4, 10), packet.DropBadOffload},
		{tcp, with(partial, 2, 10), packet.DropBadOffload},
		{tcp + " frag=0+", with(partial, packet.GSOTCPv4, 10), packet.DropBadOffload},
		{tcp, packet.GSO{NeedsCsum: true, CsumStart: 10, CsumOffset: 16}, packet.DropBadOffload},
		{tcp, packet.GSO{NeedsCsum: true, CsumStart: 20, CsumOffset: 120}, packet.DropBadOffload},
		{tcp, packet.GSO{NeedsCsum: true, CsumStart: 65535, CsumOffset: 65535}, packet.DropBadOffload},
		{udp6, packet.GSO{Type: packet.GSOUDPL4, Size: 10, NeedsCsum: true, CsumStart: 40, CsumOffset: 6}, 0},
		{udp6, packet.GSO{Type: packet.GSOTCPv6, Size: 10}, packet.DropBadOffload},
	} {
		p := packettest.Raw(t, c.desc)
		p.GSO = c.g
		if got := p.Parse(); got != c.want {
			t.Errorf("%s %+v: %v, want %v", c.desc, c.g, got, c.want)
		}
	}
	p := packettest.Raw(t, tcp)
	p.GSO = partial
	p.Transport()
	lie := p.Bytes()
	lie[32] = 0x40 // a TCP header of 16 bytes
	p.GSO = with(partial, packet.GSOTCPv4, 10)
	if p.Parse() != packet.DropBadOffload {
		t.Error("a super-packet whose TCP header is too short was taken")
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		desc  string
		flags packet.Flags
		proto uint8
		l4    uint16
		off   uint16
	}{
		{"udp 10.0.0.1:1 > 10.0.0.2:2 df", packet.DontFragment | packet.HasL4 | packet.HasPorts, 17, 20, 0},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 opts=01010101", packet.Options | packet.HasL4 | packet.HasPorts, 17, 24, 0},
		{"udp 10.0.0.1:1 > 10.0.0.2:2 frag=0+", packet.Fragment | packet.MoreFragments | packet.HasL4 | packet.HasPorts, 17, 20, 0},
		{"udp 10.0.0.1 > 10.0.0.2 frag=80+ len=80", packet.Fragment | packet.MoreFragments | packet.LaterFragment, 17, 20, 80},
		{"udp 10.0.0.1 > 10.0.0.2 frag=65528 len=7", packet.Fragment | packet.LaterFragment, 17, 20, 65528},
		{"icmp 10.0.0.1 > 10.0.0.2", packet.HasL4, 1, 20, 0},
		{"gre 10.0.0.1 > 10.0.0.2", packet.HasL4, 47, 20, 0},
		{"tcp [fd00::1]:1 > [fd00::2]:2 ext=hop,dest,route,ah", packet.HasL4 | packet.HasPorts, 6, 40 + 24 + 24, 0},
		{"tcp [fd00::1]:1 > [fd00::2]:2 ext=hop frag=0+", packet.Fragment | packet.MoreFragments | packet.HasL4 | packet.HasPorts, 6, 56, 0},
		{"tcp [fd00::1]:1 > [fd00::2]:2 ext=hop frag=8 len=8", packet.Fragment | packet.LaterFragment, 6, 56, 8},
		{"60 fd00::1 > fd00::2 frag=8 len=8", packet.Fragment | packet.LaterFragment | packet.BadHeaders, 60, 48, 8},
		{"59 fd00::1 > fd00::2 len=8", 0, 59, 40, 0},
		{"43 fd00::1 > fd00::2 hex=3b", packet.BadHeaders, 43, 40, 0},
		{"43 fd00::1 > fd00::2 hex=0601000000000000", packet.BadHeaders, 6, 48, 0},
		{"44 fd00::1 > fd00::2 hex=06000000", packet.BadHeaders | packet.Fragment, 44, 40, 0},
		{"51 fd00::1 > fd00::2 hex=06000000", packet.BadHeaders, 6, 44, 0},
	} {
		p := packettest.New(t, c.desc)
		check := func(what string) {
			t.Helper()
			if p.Flags != c.flags || p.Proto != c.proto || p.L4 != c.l4 || p.FragOff != c.off {
				t.Errorf("%s (%s): flags %#x proto %d at %d offset %d, want %#x %d %d %d",
					c.desc, what, p.Flags, p.Proto, p.L4, p.FragOff, c.flags, c.proto, c.l4, c.off)
			}
		}
		check("Parse")
		p.Flags, p.Proto, p.L4, p.FragOff = 0xffff&^(packet.Local|packet.L4ChecksumOK|packet.Untracked|packet.Loopback|packet.HasOwner|packet.Reassembled|1<<14|1<<15), 0, 0, 0
		p.ParseL4()
		check("ParseL4")
	}
	for desc, want := range map[string]bool{ // the fixed part must be there
		"6 10.0.0.1 > 10.0.0.2 frag=0+": true, "17 10.0.0.1 > 10.0.0.2": true,
	} {
		p := packettest.Raw(t, desc)
		if p.Parse(); p.Is(packet.HasPorts) != want {
			t.Errorf("%s: %#x", desc, p.Flags)
		}
		p.End--
		be.PutUint16(p.Bytes()[2:], uint16(p.Len()))
		fixHeader(p.Bytes())
		if p.Parse() != 0 || p.Is(packet.HasL4) || p.Is(packet.HasPorts) || p.SrcPort() != 0 {
			t.Errorf("%s a byte short: %#x", desc, p.Flags)
		}
	}
}

func fixHeader(b []byte) {
	n := int(b[0]&15) * 4
	b[10], b[11] = 0, 0
	be.PutUint16(b[10:], ^packet.Sum(b[:min(n, len(b))]))
}

// TestGopacket: gopacket builds, we read; we rewrite, gopacket computes the checksums anew.
func TestGopacket(t *testing.T) {
	payload := gopacket.Payload("a payload of odd size")
	ip4 := &layers.IPv4{Version: 4, IHL: 5, TTL: 17, TOS: 0x28, Id: 99, SrcIP: net.IP{10, 1, 2, 3}, DstIP: net.IP{10, 4, 5, 6}}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 17, TrafficClass: 0x28, FlowLabel: 0xabcde, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
	tcp := &layers.TCP{SrcPort: 1234, DstPort: 80, Seq: 7, Ack: 9, ACK: true, ECE: true, Window: 500,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}}
	udp := &layers.UDP{SrcPort: 1234, DstPort: 80}
	for _, v6 := range []bool{false, true} {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			var nl gopacket.NetworkLayer = ip4
			ip4.Protocol, ip6.NextHeader = proto, proto
			ls := []gopacket.SerializableLayer{ip4}
			if v6 {
				nl, ls[0] = ip6, ip6
			}
			if proto == layers.IPProtocolTCP {
				tcp.SetNetworkLayerForChecksum(nl)
				ls = append(ls, tcp)
			} else {
				udp.SetNetworkLayerForChecksum(nl)
				ls = append(ls, udp)
			}
			first := serialize(t, append(ls, payload)...)
			p := packet.New()
			p.SetBytes(first)
			if r := p.Parse(); r != 0 || !p.VerifyL4() {
				t.Fatalf("%v %v: %v", nl, proto, r)
			}
			if p.SrcPort() != 1234 || p.DstPort() != 80 || p.TTL() != 17 || p.TOS() != 0x28 || string(p.Payload()) != string(payload) {
				t.Errorf("read: %d %d ttl %d tos %#x %q", p.SrcPort(), p.DstPort(), p.TTL(), p.TOS(), p.Payload())
			}
			if proto == layers.IPProtocolTCP && (p.TCPSeq() != 7 || p.TCPAck() != 9 || p.TCPWindow() != 500 ||
				p.TCPFlags() != packet.TCPAckFlag|packet.TCPEce || !bytes.Equal(p.TCPOptions(), []byte{2, 4, 5, 0xb4})) {
				t.Errorf("TCP: %d %d %d %#x %x", p.TCPSeq(), p.TCPAck(), p.TCPWindow(), p.TCPFlags(), p.TCPOptions())
			}
			p.SetSrc(p.Dst())
			p.SetDst(ip(map[bool]string{false: "192.0.2.200", true: "2001:db8:ffff::9"}[v6]))
			p.SetSrcPort(65000)
			p.SetDstPort(3)
			p.SetTTL(1)
			want := recompute(t, p.Bytes())
			if !bytes.Equal(p.Bytes(), want) {
				t.Errorf("%v\n got %x\nwant %x", proto, p.Bytes(), want)
			}
		}
	}
}

func serialize(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// recompute takes a packet apart and has gopacket make it again.
func recompute(t *testing.T, b []byte) []byte {
	t.Helper()
	first := gopacket.LayerType(layers.LayerTypeIPv4)
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	pk := gopacket.NewPacket(b, first, gopacket.Default)
	var ls []gopacket.SerializableLayer
	for _, l := range pk.Layers() {
		switch l := l.(type) {
		case *layers.TCP:
			l.SetNetworkLayerForChecksum(pk.NetworkLayer())
		case *layers.UDP:
			l.SetNetworkLayerForChecksum(pk.NetworkLayer())
		}
		ls = append(ls, l.(gopacket.SerializableLayer))
	}
	return serialize(t, ls...)
}

// TestSum compares with the sum word by word, for every length and alignment.
func TestSum(t *testing.T) {
	b := make([]byte, 200)
	for i := range b {
		b[i] = byte(i*37) ^ 0xa5
	}
	b[60], b[61], b[62], b[63] = 0xff, 0xff, 0xff, 0xff
	for off := range 9 {
		for n := range len(b) - off {
			var s uint32
			for i, x := range b[off : off+n] {
				s += uint32(x) << (8 * (1 - i&1))
			}
			for s > 0xffff {
				s = s>>16 + s&0xffff
			}
			if got := packet.Sum(b[off : off+n]); got != uint16(s) {
				t.Fatalf("%d bytes at %d: %#x, want %#x", n, off, got, s)
			}
		}
	}
	ones := bytes.Repeat([]byte{0xff}, 65536)
	if got := packet.Sum(ones); got != 0xffff {
		t.Errorf("all ones: %#x", got)
	}
	if got := packet.PseudoSum([]byte{1, 2, 3, 4}, []byte{5, 6, 7, 8}, 17, 70000); got != packet.Sum([]byte{1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 17, 112, 0, 17}) {
		t.Errorf("PseudoSum: %#x", got)
	}
}
