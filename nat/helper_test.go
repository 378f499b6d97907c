package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
)

// turn answers, as the receiver of what left in step n, with a TCP segment.
func turn(n int, flags uint8, text string, opts ...byte) func([][]byte) []byte {
	return func(seen [][]byte) []byte {
		got := seen[n]
		if got == nil {
			return nil
		}
		src, dst := endpoints(got)
		_, _, l4 := split(got)
		be := binary.BigEndian
		next := be.Uint32(l4[4:]) + uint32(len(l4)-int(l4[12]>>4)*4)
		if l4[13]&(syn|fin) != 0 {
			next++
		}
		seq := be.Uint32(l4[8:])
		if l4[13]&ack == 0 {
			seq = 900000
		}
		return flowSpec{src: dst.Addr().String(), dst: src.Addr().String(), proto: packet.ProtoTCP, sport: dst.Port(), dport: src.Port(),
			flags: flags | ack, seq: seq, ack: next, opts: opts, payload: []byte(text)}.build()
	}
}

// turnf is turn with a text made of what left before.
func turnf(n int, text func(seen [][]byte) string) func([][]byte) []byte {
	return func(seen [][]byte) []byte { return turn(n, psh, text(seen))(seen) }
}

var (
	commas   = regexp.MustCompile(`(\d+),(\d+),(\d+),(\d+),(\d+),(\d+)`)
	extended = regexp.MustCompile(`\|([12]?)\|([0-9a-f.:]*)\|(\d+)\|`)
)

// announced reads the address in an FTP message; EPSV's is the sender's.
func announced(b []byte) netip.AddrPort {
	_, _, l4 := split(b)
	text := string(l4[int(l4[12]>>4)*4:])
	if m := commas.FindStringSubmatch(text); m != nil {
		hi, _ := strconv.Atoi(m[5])
		lo, _ := strconv.Atoi(m[6])
		return netip.AddrPortFrom(netip.MustParseAddr(strings.Join(m[1:5], ".")), uint16(hi<<8|lo))
	}
	if m := extended.FindStringSubmatch(text); m != nil {
		port, _ := strconv.Atoi(m[3])
		src, _ := endpoints(b)
		if m[2] != "" {
			src = netip.AddrPortFrom(netip.MustParseAddr(m[2]), 0)
		}
		return netip.AddrPortFrom(src.Addr(), uint16(port))
	}
	return netip.AddrPort{}
}

// connect opens a connection to what step n announced.
func connect(n int, from string, port uint16) func([][]byte) []byte {
	return func(seen [][]byte) []byte {
		to := announced(seen[n])
		if !to.IsValid() {
			panic(fmt.Sprintf("nothing is announced in %q", seen[n]))
		}
		return flowSpec{src: from, dst: to.Addr().String(), proto: packet.ProtoTCP, sport: port, dport: to.Port(), flags: syn, seq: 5000}.build()
	}
}

// words writes 32-bit values, for SACK blocks.
func words(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return b
}

// login is a control connection up to the point where announcements are looked
// for: steps 0 to 6, the last from the server.
func login(client, server string) []step {
	return []step{
		{"c0", say(flowSpec{src: client, dst: server, proto: packet.ProtoTCP, sport: 5000, dport: 21, flags: syn, seq: 1000, opts: []byte{1, 1, 4, 2}}.build()), "s0"},
		{"s0", turn(0, syn, "", 1, 1, 4, 2), "c0"},
		{"c0", turn(1, 0, ""), "s0"},
		{"s0", turn(2, psh, "220 hello\r\n"), "c0"},
		{"c0", turn(3, psh, "USER me\r\n"), "s0"},
		{"s0", turn(4, psh, "331 password?\r\n"), "c0"},
		{"c0", turn(5, psh, "PASS x\r\n"), "s0"},
		{"s0", turn(6, psh, "230 welcome\r\n"), "c0"},
	}
}

// active has the client announce in the given words; the server connects.
func active(client, server, words1 string) []step {
	s := login(client, server)
	return append(s,
		step{"c0", turn(7, psh, words1), "s0"},                                // 8
		step{"s0", turn(8, psh, "200 fine\r\n"), "c0"},                        // 9
		step{"s0", connect(8, server, 20), "c0"},                              // 10
		step{"c0", turn(10, syn, ""), "s0"},                                   // 11
		step{"s0", turn(11, 0, "the file"), "c0"},                             // 12
		step{"c0", turn(9, psh, "RETR file\r\n"), "s0"},                       // 13
		step{"s0", turn(13, psh, "150 here\r\n"), "c0"},                       // 14
		step{"c0", turn(14, psh, strings.Replace(words1, "P", "p", 1)), "s0"}, // 15, again
		step{"s0", turn(15, psh, "200 fine\r\n"), "c0"},                       // 16
		step{"c0", turn(16, psh, "NOOP\r\n"), "s0"},                           // 17
		step{"s0", func(seen [][]byte) []byte { // an acknowledgment with SACK blocks on both sides of the changes
			_, _, l4 := split(seen[17])
			seq := binary.BigEndian.Uint32(l4[4:])
			opts := append([]byte{1, 1, 5, 18}, words(seq-30, seq-28, seq, seq+6)...)
			return turn(17, 0, "", opts...)(seen)
		}, "c0"}, // 18
		step{"c0", turn(18, psh, "QUIT\r\n"), "s0"},
	)
}

// passive has the server announce; the client connects.
func passive(client, server, words1 string, addr func(dst netip.AddrPort) string) []step {
	s := login(client, server)
	return append(s,
		step{"c0", turn(7, psh, words1), "s0"}, // 8
		step{"s0", turnf(8, func(seen [][]byte) string {
			_, dst := endpoints(seen[8])
			return addr(dst)
		}), "c0"}, // 9
		step{"c0", connect(9, client, 5555), "s0"},      // 10
		step{"s0", turn(10, syn, ""), "c0"},             // 11
		step{"c0", turn(11, 0, "data"), "s0"},           // 12
		step{"c0", turn(9, psh, "STOR file\r\n"), "s0"}, // 13
		step{"s0", turn(13, psh, "226 done\r\n"), "c0"}, // 14
		step{"c0", turn(14, psh, "QUIT\r\n"), "s0"},
	)
}

func pasv(dst netip.AddrPort) string {
	a := dst.Addr().As4()
	return fmt.Sprintf("227 Entering Passive Mode (%d,%d,%d,%d,4,210).\r\n", a[0], a[1], a[2], a[3])
}

func epsv(netip.AddrPort) string { return "229 Entering Extended Passive Mode (|||1234|)\r\n" }

func helperArrangements() []arrangement {
	masq := func(alias string) func(b *box) {
		return func(b *box) { b.rule(hookPostrouting, snat(alias, 0, 0, 0), out(b, b.s)) }
	}
	dnat := func(to string) func(b *box) {
		return func(b *box) {
			b.rule(hookPrerouting, snat(to, 0, 0, 0), func(p *packet.Packet) bool { return p.In == b.c })
		}
	}
	const (
		c4, s4, a4, w4 = "10.0.1.2", "9.9.9.9", "198.51.100.7", "192.0.2.129"
		c6, s6, a6     = "fd00:1::2", "2001:db8::9", "2001:db8:7::7"
	)
	snat4 := []string{"-A POSTROUTING -o s0 -j SNAT --to-source " + a4}
	snatLong := []string{"-A POSTROUTING -o s0 -j SNAT --to-source " + w4}
	snat6 := []string{"-A POSTROUTING -o s0 -j SNAT --to-source " + a6}
	dnat4 := []string{"-A PREROUTING -i c0 -j DNAT --to-destination 10.0.2.2"}
	dnat6 := []string{"-A PREROUTING -i c0 -j DNAT --to-destination fd00:2::2"}
	rrq := "\x00\x01file\x00octet\x00"
	tftp := func(client, server string) []step {
		return []step{
			{"c0", say(udp(client, 5000, server, 69, rrq)), "s0"},
			{"s0", func(seen [][]byte) []byte {
				src, dst := endpoints(seen[0])
				return udp(dst.Addr().String(), 3000, src.Addr().String(), src.Port(), "\x00\x03\x00\x01data")
			}, "c0"},
			{"c0", answer(1), "s0"},
			{"s0", answer(2), "c0"},
		}
	}
	return []arrangement{
		{name: "PORT", v4: snat4, rules: masq(a4), steps: active(c4, s4, "PORT 10,0,1,2,19,137\r\n")},
		{name: "PORT longer", v4: snatLong, rules: masq(w4), steps: active(c4, s4, "PORT 10,0,1,2,19,137\r\n")},
		{name: "EPRT", v4: snat4, rules: masq(a4), steps: active(c4, s4, "EPRT |1|10.0.1.2|5001|\r\n")},
		{name: "EPRT v6", v6: snat6, rules: masq(a6), steps: active(c6, s6, "EPRT |2|fd00:1::2|5001|\r\n")},
		{name: "PASV", v4: snat4, rules: masq(a4), steps: passive(c4, s4, "PASV\r\n", pasv)},
		{name: "PASV dnat", v4: dnat4, rules: dnat("10.0.2.2"), steps: passive(c4, "198.51.100.200", "PASV\r\n", pasv)},
		{name: "EPSV", v4: snat4, rules: masq(a4), steps: passive(c4, s4, "EPSV\r\n", epsv)},
		{name: "EPSV dnat", v4: dnat4, rules: dnat("10.0.2.2"), steps: passive(c4, "198.51.100.200", "EPSV\r\n", epsv)},
		{name: "EPSV v6", v6: snat6, rules: masq(a6), steps: passive(c6, s6, "EPSV\r\n", epsv)},
		{name: "EPSV dnat v6", v6: dnat6, rules: dnat("fd00:2::2"), steps: passive(c6, "2001:db8::5", "EPSV\r\n", epsv)},
		{name: "PORT dnat", v4: dnat4, rules: dnat("10.0.2.2"), steps: active2(c4, "198.51.100.200", "10.0.2.2", "PORT 10,0,1,2,19,137\r\n")},
		{name: "TFTP", v4: snat4, rules: masq(a4), steps: tftp(c4, s4)},
		{name: "TFTP v6", v6: snat6, rules: masq(a6), steps: tftp(c6, s6)},
		{name: "TFTP dnat", v4: dnat4, rules: dnat("10.0.2.2"), steps: tftp(c4, "198.51.100.200")},
	}
}

// active2 is active where the server is not who the client calls.
func active2(client, called, server, words1 string) []step {
	s := active(client, called, words1)
	s[10].make = connect(8, server, 20)
	return s
}

// withHelpers makes b attach the helpers as a CT rule does.
func withHelpers(b *box) {
	ftp := b.table.Template(conntrack.Template{Helper: b.table.Helper("ftp")})
	tftp := b.table.Template(conntrack.Template{Helper: b.table.Helper("tftp")})
	b.raw = func(p *packet.Packet) {
		switch {
		case p.Proto == packet.ProtoTCP && p.DstPort() == 21:
			b.w.SetTemplate(p, ftp)
		case p.Proto == packet.ProtoUDP && p.DstPort() == 69:
			b.w.SetTemplate(p, tftp)
		}
	}
}

func TestHelpersAsLinux(t *testing.T) {
	k := newKernel(t)
	k.raw("-A PREROUTING -p tcp --dport 21 -j CT --helper ftp", "-A PREROUTING -p udp --dport 69 -j CT --helper tftp")
	for _, a := range helperArrangements() {
		k.rules(a.v4, a.v6)
		k.flush()
		b := newBox(t)
		a.rules(b)
		withHelpers(b)
		want, got := k.run(a.steps), b.run(a.steps)
		for i := range want {
			if !bytes.Equal(want[i], got[i]) {
				t.Fatalf("%s, step %d:\nin     %q\nkernel %q\nsluice %q (%s)", a.name, i, a.steps[i].make(got), want[i], got[i], b.dropped)
			}
		}
	}
}

// TestHelpers holds that data connections arrive and that both sides see
// an unbroken stream, whatever was rewritten in it.
func TestHelpers(t *testing.T) {
	for _, a := range helperArrangements() {
		t.Run(a.name, func(t *testing.T) {
			b := newBox(t)
			a.rules(b)
			withHelpers(b)
			var seen [][]byte
			type end struct {
				to   netip.AddrPort
				from netip.AddrPort
			}
			next := map[end]uint32{}
			for i, s := range a.steps {
				in := s.make(seen)
				got := b.pass(b.iface(s.in), in)
				if got == nil {
					t.Fatalf("step %d is dropped (%s): %q", i, b.dropped, in)
				}
				verify(t, got)
				seen = append(seen, got)
				if proto, _, l4 := split(got); proto == packet.ProtoTCP {
					src, dst := endpoints(got)
					seq := binary.BigEndian.Uint32(l4[4:])
					if want, ok := next[end{dst, src}]; ok && want != seq {
						t.Fatalf("step %d: sequence number %d, expected was %d", i, seq, want)
					}
					n := uint32(len(l4) - int(l4[12]>>4)*4)
					if l4[13]&(syn|fin) != 0 {
						n++
					}
					next[end{dst, src}] = seq + n
				}
			}
			expected := 0
			b.table.Each(func(s *conntrack.Snapshot) bool {
				if s.Status&conntrack.Expected != 0 {
					expected++
					if s.Status&conntrack.NATDoneMask != conntrack.NATDoneMask {
						t.Errorf("%v is not settled: %x", s.Orig, s.Status)
					}
				}
				return true
			})
			if expected != 1 {
				t.Errorf("%d connections were expected, want 1", expected)
			}
		})
	}
}

// TestExpectPort: an announced port that somebody else is expected at is moved.
func TestExpectPort(t *testing.T) {
	b := newBox(t)
	b.rule(hookPostrouting, snat("198.51.100.7", 0, 0, 0), out(b, b.s))
	withHelpers(b)
	run := func(client string) uint16 {
		var seen [][]byte
		for i, s := range active(client, "9.9.9.9", "PORT "+strings.ReplaceAll(client, ".", ",")+",19,137\r\n")[:9] {
			got := b.pass(b.iface(s.in), s.make(seen))
			if got == nil {
				t.Fatalf("step %d is dropped (%s)", i, b.dropped)
			}
			seen = append(seen, got)
		}
		return announced(seen[8]).Port()
	}
	if p := run("10.0.1.2"); p != 5001 {
		t.Fatalf("the first is announced at %d", p)
	}
	if p := run("10.0.1.3"); p <= 5001 {
		t.Fatalf("the second is announced at %d", p)
	}
}

// TestBroadcast: what answers a broadcast of the router's own is related, from
// every host of the network and from that port only.
func TestBroadcast(t *testing.T) {
	b := newBox(t)
	tm := b.table.Template(conntrack.Template{Helper: b.table.Helper("netbios-ns")})
	b.table.OnBroadcast(func(p *packet.Packet) (mask [16]byte, ok bool) {
		copy(mask[:], "\xff\xff\xff\x00")
		return mask, p.Dst() == ip("10.0.1.255")
	})
	question := packet.New()
	question.SetBytes(udp("10.0.1.1", 137, "10.0.1.255", 137, "who is there?"))
	question.Parse()
	question.Flags |= packet.Local
	b.w.Begin(b.now)
	b.w.SetTemplate(question, tm)
	if !b.w.Track(question, hookOutput) || !b.w.Help(question) || !b.w.Confirm(question) {
		t.Fatal(question.Reason)
	}
	b.w.End()
	for _, from := range []struct {
		host string
		port uint16
		want bool
	}{{"10.0.1.77", 137, true}, {"10.0.1.78", 137, true}, {"10.0.2.77", 137, false}, {"10.0.1.79", 138, false}} {
		if b.pass(b.c, udp(from.host, from.port, "10.0.1.1", 137, "me")) == nil {
			t.Fatal(b.dropped)
		}
		u := tuple(from.host, from.port, "10.0.1.1", 137, packet.ProtoUDP)
		s, _, ok := b.table.Get(&u)
		if got := s.Status&conntrack.Expected != 0; !ok || got != from.want {
			t.Errorf("%v: expected %v", from, got)
		}
	}
	if x := b.table.Expectations(); len(x) != 1 || x[0].Flags != conntrack.ExpectPermanent {
		t.Errorf("%+v", x)
	}
}
