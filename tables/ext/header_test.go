package ext

import (
	"testing"

	"sluice/hooks"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

// askRoutes answers from a table and remembers what it was asked.
type askRoutes struct {
	fewRoutes
	types   map[[4]byte]uint8
	devs    []*packet.Iface
	reverse bool
	asked   [3]bool
	calls   int
	pathTo  int
	pathFro int
}

func (r *askRoutes) AddrType(_ uint8, a [16]byte, dev *packet.Iface) uint8 {
	r.devs = append(r.devs, dev)
	return r.types[[4]byte(a[:4])]
}

func (r *askRoutes) ReversePath(_ *packet.Packet, loose, validmark, acceptLocal bool) bool {
	r.calls++
	r.asked = [3]bool{loose, validmark, acceptLocal}
	return r.reverse
}

func (r *askRoutes) PathMTU(_ *packet.Packet, reverse bool) int {
	if reverse {
		return r.pathFro
	}
	return r.pathTo
}

func TestAddrType(t *testing.T) {
	b := newBench(t)
	routes := &askRoutes{types: map[[4]byte]uint8{{10, 0, 0, 2}: 1, {10, 0, 0, 1}: 2, {10, 0, 0, 255}: 3, {224, 0, 0, 1}: 5, {9, 9, 9, 9}: 7}}
	b.env.Routes = routes
	lan, wan := packet.NewIface(2, "lan0", 1500), packet.NewIface(3, "wan0", 1500)
	for _, c := range []struct {
		rule, dst string
		want      bool
		dev       *packet.Iface
	}{
		{"--dst-type LOCAL", "10.0.0.1", true, nil}, {"--dst-type LOCAL", "10.0.0.2", false, nil}, {"! --dst-type LOCAL", "10.0.0.2", true, nil}, {"! --dst-type LOCAL", "10.0.0.1", false, nil},
		{"--dst-type UNICAST,LOCAL", "10.0.0.2", true, nil}, {"--dst-type BROADCAST", "10.0.0.255", true, nil}, {"! --dst-type BROADCAST,MULTICAST", "224.0.0.1", false, nil},
		{"--dst-type UNREACHABLE", "9.9.9.9", true, nil}, {"--src-type UNICAST", "9.9.9.9", true, nil}, {"--src-type LOCAL", "10.0.0.1", false, nil},
		{"--src-type UNICAST --dst-type MULTICAST", "224.0.0.1", true, nil}, {"! --src-type UNICAST --dst-type MULTICAST", "224.0.0.1", false, nil}, {"--src-type UNICAST ! --dst-type LOCAL", "10.0.0.1", false, nil},
		{"--dst-type LOCAL --limit-iface-in", "10.0.0.1", true, lan}, {"--dst-type LOCAL --limit-iface-out", "10.0.0.1", true, wan},
	} {
		p := packettest.New(t, "udp 10.0.0.2:1 > "+c.dst+":2")
		p.In, p.Out = lan, wan
		routes.devs = nil
		if got := b.matches("-m addrtype "+c.rule, p); got != c.want {
			t.Errorf("%s, %s: %v", c.rule, c.dst, got)
		}
		for _, d := range routes.devs {
			if d != c.dev {
				t.Errorf("%s asks about %v", c.rule, d)
			}
		}
	}
}

func TestRPFilter(t *testing.T) {
	b := newBench(t)
	routes := &askRoutes{}
	b.env.Routes = routes
	match := func(rule string, p *packet.Packet) bool {
		b.ctx.Counters = nil
		return b.rule(p.Family, tables.Raw, hooks.Prerouting, "-m rpfilter "+rule)(p) == "match"
	}
	p := packettest.New(t, "udp 10.0.0.2:1 > 9.9.9.9:2")
	for _, ok := range []bool{true, false} {
		routes.reverse = ok
		if match("", p) != ok || match("--invert", p) == ok {
			t.Errorf("answer %v is not taken", ok)
		}
	}
	for rule, want := range map[string][3]bool{"--loose": {true, false, false}, "--validmark": {false, true, false}, "--accept-local --loose": {true, false, true}} {
		if match(rule, p); routes.asked != want {
			t.Errorf("%s asks for %v", rule, routes.asked)
		}
	}
	// What needs no route: loopback, and a host without an address on the local network.
	routes.reverse, routes.calls = false, 0
	p.Flags |= packet.Loopback
	if !match("", p) || routes.calls != 0 {
		t.Error("loopback")
	}
	if !match("", packettest.New(t, "udp 0.0.0.0:68 > 224.0.0.1:67")) || match("", packettest.New(t, "udp 0.0.0.0:68 > 239.0.0.1:67")) {
		t.Error("no source, multicast")
	}
	if !match("", packettest.New(t, "udp [::]:68 > [ff02::1]:67")) || routes.calls != 0 {
		t.Error("no source, IPv6")
	}
}

func TestOwner(t *testing.T) {
	b := newBench(t)
	match := func(rule string, p *packet.Packet) bool {
		b.ctx.Counters = nil
		return b.rule(packet.IPv4, tables.Filter, hooks.Output, "-m owner "+rule)(p) == "match"
	}
	p := packettest.New(t, "udp 10.0.0.1:1 > 9.9.9.9:2")
	p.Flags |= packet.Local | packet.HasOwner
	p.UID, p.GID = 1000, 100
	none := packettest.New(t, "udp 10.0.0.1:1 > 9.9.9.9:2")
	for _, c := range []struct {
		rule        string
		owned, none bool
	}{
		{"--uid-owner 1000", true, false}, {"--uid-owner 999-1001", true, false}, {"--uid-owner 0-999", false, false}, {"--uid-owner 1001-2000", false, false},
		{"! --uid-owner 1000", false, true}, {"! --uid-owner 1", true, true}, {"--gid-owner 100", true, false}, {"! --gid-owner 100", false, true}, {"--gid-owner 99", false, false},
		{"--uid-owner 1000 --gid-owner 100", true, false}, {"--uid-owner 1000 ! --gid-owner 100", false, false}, {"! --uid-owner 1 ! --gid-owner 1", true, true},
		{"--socket-exists", true, false}, {"! --socket-exists", false, true}, {"--socket-exists --uid-owner 1000", true, false}, {"! --socket-exists --uid-owner 1000", false, false},
		{"--gid-owner 100 --suppl-groups", true, false},
	} {
		if got := match(c.rule, p); got != c.owned {
			t.Errorf("%s: a socket's packet: %v", c.rule, got)
		}
		if got := match(c.rule, none); got != c.none {
			t.Errorf("%s: a packet without socket: %v", c.rule, got)
		}
	}
}

func TestPktType(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		kind packet.PktType
		name string
	}{{packet.PktHost, "unicast"}, {packet.PktBroadcast, "broadcast"}, {packet.PktMulticast, "multicast"}, {packet.PktOtherHost, "otherhost"}} {
		p := packettest.New(t, "udp 10.0.0.2:1 > 9.9.9.9:2")
		p.PktType = c.kind
		for _, name := range []string{"unicast", "broadcast", "multicast", "otherhost"} {
			if b.matches("-m pkttype --pkt-type "+name, p) != (name == c.name) || b.matches("-m pkttype ! --pkt-type "+name, p) == (name == c.name) {
				t.Errorf("%s is taken for %s", c.name, name)
			}
		}
	}
	p := packettest.New(t, "udp 10.0.0.2:1 > 224.0.0.1:2")
	p.Flags |= packet.Loopback
	if !b.matches("-m pkttype --pkt-type multicast", p) {
		t.Error("a looped multicast")
	}
}

// The fields of a fragment's transport header are not there to be matched.
func TestHeaderMatchesOnFragments(t *testing.T) {
	b := newBench(t)
	p := packettest.New(t, "tcp 10.0.0.2:1 > 9.9.9.9:2 frag=1480 len=40")
	for _, rule := range []string{"-p tcp -m tcpmss --mss 0:65535", "-p tcp --syn"} {
		if b.matches(rule, p) {
			t.Error(rule, "matches a later fragment")
		}
	}
	if !b.matches("-m ttl --ttl-eq 64", p) || !b.matches("-m dscp --dscp 0", p) {
		t.Error("what is in every fragment does not match")
	}
}

func TestTCPMSSTarget(t *testing.T) {
	set := func(desc, rule string, routes *askRoutes) (*packet.Packet, string) {
		t.Helper()
		b := newBench(t)
		if routes != nil {
			b.env.Routes = routes
		}
		p := packettest.New(t, desc)
		return p, b.rule(p.Family, tables.Mangle, hooks.Forward, "-p tcp -j TCPMSS "+rule)(p)
	}
	for _, c := range []struct {
		packet, rule, want string
		routes             *askRoutes
	}{
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=1460", "--set-mss 1000", "020403e8", nil},
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=900", "--set-mss 1000", "02040384", nil}, // never raised
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S tcpopts=01020405b4", "--set-mss 1000", "01020403e8000000", nil},
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S", "--set-mss 1000", "02040218", nil}, // added, but no more than RFC 9293 lets it mean
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S", "--set-mss 400", "02040190", nil},
		{"tcp [fd00::1]:1 > [fd00::2]:2 S", "--set-mss 4000", "020404c4", nil},
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S len=5", "--set-mss 400", "", nil}, // data in the SYN: not added
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S tcpopts=0101010101010101010101010101010101010101010101010101010101010101010101010101010f", "--set-mss 400", "0101010101010101010101010101010101010101010101010101010101010101010101010101010f", nil},
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=1460", "--clamp-mss-to-pmtu", "02040550", &askRoutes{pathTo: 1400, pathFro: 1500}},
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=1460", "--clamp-mss-to-pmtu", "02040550", &askRoutes{pathTo: 1500, pathFro: 1400}},
		{"tcp [fd00::1]:1 > [fd00::2]:2 S mss=1460", "--clamp-mss-to-pmtu", "0204053c", &askRoutes{pathTo: 1400, pathFro: 1500}},
		{"tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=1460", "--clamp-mss-to-pmtu", "020405b4", &askRoutes{pathTo: 9000, pathFro: 9000}},
	} {
		p, got := set(c.packet, c.rule, c.routes)
		if opts := hexOf(p.TCPOptions()); got != "match" || opts != c.want {
			t.Errorf("%s, %s: %s, options %s, want %s", c.packet, c.rule, got, opts, c.want)
		}
		if p.Flags &^= packet.L4ChecksumOK; !p.VerifyL4() {
			t.Errorf("%s, %s: wrong checksum", c.packet, c.rule)
		}
		if q := packet.New(); true {
			if q.SetBytes(p.Bytes()); q.Parse() != 0 {
				t.Errorf("%s, %s: not a packet any more", c.packet, c.rule)
			}
		}
	}
	if _, got := set("tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=1460", "--clamp-mss-to-pmtu", &askRoutes{pathTo: 40, pathFro: 1500}); got != "drop tcpmss.failed" {
		t.Error("no room:", got)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s []byte
	for _, c := range b {
		s = append(s, digits[c>>4], digits[c&15])
	}
	return string(s)
}

// CHECKSUM completes a partial checksum, and leaves a super-packet's to the device.
func TestChecksumTarget(t *testing.T) {
	b := newBench(t)
	want := packettest.New(t, "udp 10.0.0.2:1 > 9.9.9.9:2 len=11")
	p := packettest.New(t, "udp 10.0.0.2:1 > 9.9.9.9:2 len=11")
	partial := func(p *packet.Packet) {
		p.GSO.NeedsCsum, p.GSO.CsumStart, p.GSO.CsumOffset = true, 20, 6
		s := uint32(0) // the pseudo header's sum
		h := p.Bytes()
		for i := 12; i < 20; i += 2 {
			s += uint32(h[i])<<8 | uint32(h[i+1])
		}
		s += 17 + 19
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		h[26], h[27] = byte(s>>8), byte(s)
	}
	partial(p)
	run := b.rule(packet.IPv4, tables.Mangle, hooks.Forward, "-j CHECKSUM --checksum-fill")
	run(p)
	if string(p.Bytes()) != string(want.Bytes()) || p.GSO.NeedsCsum {
		t.Errorf("%x, want %x", p.Bytes(), want.Bytes())
	}
	super := packettest.New(t, "udp 10.0.0.2:1 > 9.9.9.9:2 len=11")
	partial(super)
	super.GSO.Type, super.GSO.Size = packet.GSOUDPL4, 5
	before := string(super.Bytes())
	run(super)
	if string(super.Bytes()) != before || !super.GSO.NeedsCsum {
		t.Error("a super-packet has been touched")
	}
}

// Rewriting a field with what it has already costs no checksum, and what is not there no panic.
func TestHeaderRulesDoNotAllocate(t *testing.T) {
	b := newBench(t)
	b.env.Routes = &askRoutes{pathTo: 1400, pathFro: 1500}
	for _, rule := range []string{
		"-m tos --tos 0", "-m dscp --dscp 1", "-m ttl --ttl-gt 3", "-m iprange --src-range 10.0.0.0-10.0.0.9", "-m addrtype --dst-type LOCAL", "-m pkttype --pkt-type unicast", "-p tcp -m tcpmss --mss 1:2",
		"-j TOS --set-tos 7", "-j DSCP --set-dscp 3", "-j TTL --ttl-inc 1", "-p tcp -j TCPMSS --set-mss 1000", "-p tcp -j TCPMSS --clamp-mss-to-pmtu", "-j CHECKSUM --checksum-fill",
	} {
		e := tables.NewEngine(packet.IPv4, b.env)
		rules, err := tables.ParseRule(Registry, packet.IPv4, tables.Mangle, "FORWARD", packettest.Words(rule))
		if err == nil {
			err = e.Commit(func(rs *tables.Ruleset) error { return rs.Table(tables.Mangle).Append("FORWARD", rules[0]) })
		}
		if err != nil {
			t.Fatal(rule, err)
		}
		b.ctx.Prepare(e.Program())
		b.ctx.Hook = hooks.Forward
		p := packettest.New(t, "tcp 10.0.0.2:1 > 9.9.9.9:2 S mss=1460")
		if n := testing.AllocsPerRun(100, func() { e.Program().Run(&b.ctx, tables.Mangle, p) }); n != 0 {
			t.Errorf("%s allocates %v times", rule, n)
		}
	}
}
