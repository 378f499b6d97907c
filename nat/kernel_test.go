package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"sluice/packet"
)

// step is one packet of a script: make gets what left in the steps before
// (nil: nothing), so that answers answer what really was sent.
type step struct {
	in   string
	make func(seen [][]byte) []byte
	out  string // where it is to leave; "": nowhere
}

func say(b []byte) func([][]byte) []byte { return func([][]byte) []byte { return b } }

// answer replies to what left in step n.
func answer(n int) func([][]byte) []byte {
	return func(seen [][]byte) []byte { return reply(seen[n]) }
}

// fault is an ICMP error about what left in step n, of which keep bytes are quoted.
func fault(router string, typ, code uint8, rest uint32, n, keep int) func([][]byte) []byte {
	return func(seen [][]byte) []byte { return icmpError(router, typ, code, rest, seen[n], keep) }
}

// reply makes the answer of a packet's receiver.
func reply(b []byte) []byte {
	b = bytes.Clone(b)
	proto, _, l4 := split(b)
	n := 4
	at := 12
	if b[0]>>4 == 6 {
		n, at = 16, 8
	}
	src := bytes.Clone(b[at : at+n])
	copy(b[at:], b[at+n:at+2*n])
	copy(b[at+n:], src)
	switch proto {
	case packet.ProtoICMP:
		l4[0] = 0
	case packet.ProtoICMPv6:
		l4[0] = 129
	case packet.ProtoTCP:
		be := binary.BigEndian
		seq := be.Uint32(l4[4:])
		be.PutUint32(l4[4:], be.Uint32(l4[8:]))
		if l4[13]&(syn|fin) != 0 {
			seq++
		}
		be.PutUint32(l4[8:], seq+uint32(len(l4)-int(l4[12]>>4)*4))
		if l4[13]&ack == 0 {
			be.PutUint32(l4[4:], 7000)
		}
		l4[13] |= ack
		fallthrough
	default:
		l4[0], l4[1], l4[2], l4[3] = l4[2], l4[3], l4[0], l4[1]
	}
	seal(b, proto == packet.ProtoUDP && l4[6]|l4[7] == 0)
	return b
}

// arrangement is a nat table twice: as iptables loads it, and as sluice's tables
// package will call this one.
type arrangement struct {
	name   string
	v4, v6 []string
	rules  func(b *box)
	steps  []step
	random bool // ports are drawn: only the shape can be compared
	made   bool // the router's own packets: their ID or flow label is drawn
}

func (b *box) iface(name string) *packet.Iface {
	if name == "c0" {
		return b.c
	}
	return b.s
}

func unreachable(fam string) uint8 {
	if fam == "v6" {
		return 1
	}
	return 3
}

func out(b *box, i *packet.Iface) func(*packet.Packet) bool {
	return func(p *packet.Packet) bool { return p.Out == i }
}

func snat(a string, lo, hi uint16, f RangeFlags) Range {
	return ranged(a, a, lo, hi, f)
}

func ranged(a, z string, lo, hi uint16, f RangeFlags) Range {
	r := Range{Min: ip(a), Max: ip(z), MinPort: lo, MaxPort: hi, Flags: f | MapIPs}
	if lo != 0 || hi != 0 {
		r.Flags |= ProtoSpecified
	}
	return r
}

// conversation is what both families' arrangements go through: every protocol,
// there and back, and every error about it.
func conversation(client, server, router string) []step {
	v6 := len(client) > 0 && bytes.ContainsRune([]byte(client), ':')
	echoProto, unreach, exceeded, big := packet.ProtoICMP, [2]uint8{3, 3}, [2]uint8{11, 0}, [2]uint8{3, 4}
	typ := uint8(8)
	if v6 {
		echoProto, typ, unreach, exceeded, big = packet.ProtoICMPv6, 128, [2]uint8{1, 4}, [2]uint8{3, 0}, [2]uint8{2, 0}
	}
	header := 20
	if v6 {
		header = 40
	}
	var steps []step
	first := func(f flowSpec) int {
		f.src, f.dst = client, server
		steps = append(steps, step{"c0", say(f.build()), "s0"})
		return len(steps) - 1
	}
	add := func(s step) int { steps = append(steps, s); return len(steps) - 1 }
	flows := []flowSpec{
		{proto: packet.ProtoUDP, sport: 5000, dport: 53, payload: []byte("a question")},
		{proto: packet.ProtoTCP, sport: 5001, dport: 80, flags: syn, seq: 1000, opts: []byte{2, 4, 5, 180, 1, 1, 4, 2}},
		{proto: echoProto, sport: 77, typ: typ, payload: []byte("are you there?")},
		{proto: packet.ProtoUDPLite, sport: 5002, dport: 99, payload: []byte("lite")},
		{proto: packet.ProtoGRE, payload: []byte("\x00\x00\x08\x00plain GRE here")},
		{proto: packet.ProtoESP, payload: []byte("\x00\x00\x01\x02encrypted bytes")},
		{proto: packet.ProtoSCTP, sport: 5003, dport: 98, payload: []byte{1, 0, 0, 20, 0, 0, 0, 7, 0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 9}},
	}
	if !v6 {
		flows = append(flows, flowSpec{proto: packet.ProtoUDP, sport: 5004, dport: 54, payload: []byte("no checksum"), noCsum: true})
	}
	for _, f := range flows {
		n := first(f)
		for _, e := range [][2]uint8{unreach, exceeded, big} {
			add(step{"s0", fault(server, e[0], e[1], 1400, n, 1000), "c0"})
			add(step{"s0", fault(router, e[0], e[1], 1400, n, header+8), "c0"})
			add(step{"s0", fault(router, e[0], e[1], 1400, n, header+13), "c0"})
		}
		if f.proto == packet.ProtoSCTP {
			continue
		}
		a := add(step{"s0", answer(n), "c0"})
		add(step{"c0", fault(client, unreach[0], unreach[1], 0, a, 1000), "s0"})
		add(step{"c0", fault(client, unreach[0], unreach[1], 0, a, header+8), "s0"})
	}
	return steps
}

func arrangements() []arrangement {
	const c4, c6 = "10.0.1.2", "fd00:1::2"
	const far4, far6 = "9.9.9.9", "2001:db8::9"
	const hop4, hop6 = "10.0.2.2", "fd00:2::2"
	var all []arrangement
	add := func(a arrangement) { all = append(all, a) }
	for _, v := range []struct {
		fam                               string
		client, far, hop, wan, alias, alt string
	}{
		{"v4", c4, far4, hop4, "10.0.2.1", "198.51.100.7", "198.51.100.8"},
		{"v6", c6, far6, hop6, "fd00:2::1", "2001:db8:7::7", "2001:db8:7::8"},
	} {
		at := func(port string) string {
			if v.fam == "v6" {
				return "[" + v.alias + "]" + port
			}
			return v.alias + port
		}
		rules := func(lines ...string) (v4, v6 []string) {
			if v.fam == "v4" {
				return lines, nil
			}
			return nil, lines
		}
		r4, r6 := rules("-A POSTROUTING -o s0 -j MASQUERADE")
		add(arrangement{name: "masquerade " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rules[hookPostrouting] = func(p *packet.Packet) bool {
					return p.Out != b.s || b.nat.Masquerade(b.w, p, &Range{}, ip(v.wan))
				}
			},
			steps: conversation(v.client, v.far, v.hop)})
		r4, r6 = rules("-A POSTROUTING -o s0 -j SNAT --to-source " + v.alias)
		add(arrangement{name: "snat " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) { b.rule(hookPostrouting, snat(v.alias, 0, 0, 0), out(b, b.s)) },
			steps: conversation(v.client, v.far, v.hop)})
		r4, r6 = rules("-A PREROUTING -i c0 -j DNAT --to-destination " + v.alias)
		add(arrangement{name: "dnat " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rule(hookPrerouting, snat(v.alias, 0, 0, 0), func(p *packet.Packet) bool { return p.In == b.c })
			},
			steps: conversation(v.client, v.far, v.hop)})
		r4, r6 = rules("-A PREROUTING -i c0 -j DNAT --to-destination "+v.alias, "-A POSTROUTING -o s0 -j SNAT --to-source "+v.alt)
		add(arrangement{name: "both " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rule(hookPrerouting, snat(v.alias, 0, 0, 0), func(p *packet.Packet) bool { return p.In == b.c })
				b.rule(hookPostrouting, snat(v.alt, 0, 0, 0), out(b, b.s))
			},
			steps: conversation(v.client, v.far, v.hop)})
		r4, r6 = rules("-A PREROUTING -i c0 -p udp --dport 53 -j DNAT --to-destination "+at(":8053"), "-A PREROUTING -i c0 -p tcp -j DNAT --to-destination "+at(":8080"),
			"-A POSTROUTING -o s0 -p udp -j SNAT --to-source :7000", "-A POSTROUTING -o s0 -p tcp -j SNAT --to-source :7001")
		add(arrangement{name: "ports " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rules[hookPrerouting] = func(p *packet.Packet) bool {
					r := snat(v.alias, 8053, 8053, 0)
					if p.Proto == packet.ProtoTCP {
						r = snat(v.alias, 8080, 8080, 0)
					} else if p.Proto != packet.ProtoUDP || p.DstPort() != 53 {
						return true
					}
					return p.In != b.c || b.nat.Setup(b.w, p, &r, Dst)
				}
				b.rules[hookPostrouting] = func(p *packet.Packet) bool {
					r := Range{MinPort: 7000, MaxPort: 7000, Flags: ProtoSpecified}
					if p.Proto == packet.ProtoTCP {
						r.MinPort, r.MaxPort = 7001, 7001
					} else if p.Proto != packet.ProtoUDP {
						return true
					}
					return p.Out != b.s || b.nat.Setup(b.w, p, &r, Src)
				}
			},
			steps: conversation(v.client, v.far, v.hop)})
		// The router's own errors about translated packets.
		var dying []step
		for i, proto := range []uint8{packet.ProtoUDP, packet.ProtoTCP} {
			f := flowSpec{src: v.client, dst: v.far, proto: proto, sport: uint16(4000 + i), dport: 80, flags: syn, ttl: 1, payload: []byte("short-lived")}
			dying = append(dying, step{"c0", say(f.build()), "c0"})
		}
		add(arrangement{name: "expired ports " + v.fam, v4: r4, v6: r6, rules: all[len(all)-1].rules, steps: dying, made: true})
		net := "192.0.2.0/24"
		r := ranged("192.0.2.0", "192.0.2.255", 0, 0, Netmap)
		if v.fam == "v6" {
			net, r = "2001:db8:55::/64", ranged("2001:db8:55::", "2001:db8:55:0:ffff:ffff:ffff:ffff", 0, 0, Netmap)
		}
		r4, r6 = rules("-A POSTROUTING -o s0 -j NETMAP --to " + net)
		add(arrangement{name: "netmap " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) { b.rule(hookPostrouting, r, out(b, b.s)) },
			steps: conversation(v.client, v.far, v.hop)})
		// A client reaches its neighbour by the address that the neighbour has outside.
		other, inside := "10.0.1.3", "10.0.1.1"
		if v.fam == "v6" {
			other, inside = "fd00:1::3", "fd00:1::1"
		}
		r4, r6 = rules("-A PREROUTING -d "+v.alias+" -p udp --dport 53 -j DNAT --to-destination "+other,
			"-A POSTROUTING -s "+v.client+" -d "+other+" -j MASQUERADE")
		add(arrangement{name: "hairpin " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rule(hookPrerouting, snat(other, 0, 0, 0), func(p *packet.Packet) bool { return p.Dst() == ip(v.alias) })
				b.rules[hookPostrouting] = func(p *packet.Packet) bool {
					return p.Src() != ip(v.client) || p.Dst() != ip(other) || b.nat.Masquerade(b.w, p, &Range{}, ip(inside))
				}
			},
			steps: []step{
				{"c0", say(udp(v.client, 4000, v.alias, 53, "neighbour?")), "c0"},
				{"c0", answer(0), "c0"},
				{"c0", fault(other, unreachable(v.fam), 4, 0, 0, 1000), "c0"},
			}})
		r4, r6 = rules("-A PREROUTING -i c0 -p udp -j DNAT --to-destination " + at(":6000-6003"))
		ports := arrangement{name: "dnat port range " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rules[hookPrerouting] = func(p *packet.Packet) bool {
					r := snat(v.alias, 6000, 6003, 0)
					return p.In != b.c || b.nat.Setup(b.w, p, &r, Dst)
				}
			},
			steps: []step{
				{"c0", say(udp(v.client, 4000, v.far, 53, "1")), "s0"},
				{"c0", say(udp(v.client, 4000, v.far, 54, "2")), "s0"},
				{"c0", say(udp(v.client, 4001, v.far, 53, "3")), "s0"},
				{"c0", say(udp(v.client, 4000, v.far, 6001, "4")), "s0"},
				{"c0", say(udp(v.client, 4000, v.far, 6002, "5")), "s0"},
				{"s0", answer(1), "c0"},
				{"s0", answer(4), "c0"},
			}}
		add(ports)
		// Once the range is full the destination is shared and the source port moves.
		ports.name, ports.random = "dnat port range full "+v.fam, true
		ports.steps = append(ports.steps[:5:5],
			step{"c0", say(udp(v.client, 4000, v.far, 57, "6")), "s0"},
			step{"s0", answer(5), "c0"})
		add(ports)
		r4, r6 = rules("-A PREROUTING -i c0 -p udp -m udp --dport 6000:6009 -j DNAT --to-destination " + at(":7000-7009/6000"))
		add(arrangement{name: "dnat port shift " + v.fam, v4: r4, v6: r6,
			rules: func(b *box) {
				b.rules[hookPrerouting] = func(p *packet.Packet) bool {
					r := snat(v.alias, 7000, 7009, ProtoOffset)
					r.BasePort = 6000
					return p.In != b.c || p.DstPort() < 6000 || p.DstPort() > 6009 || b.nat.Setup(b.w, p, &r, Dst)
				}
			},
			steps: []step{
				{"c0", say(udp(v.client, 4000, v.far, 6000, "0")), "s0"},
				{"c0", say(udp(v.client, 4000, v.far, 6007, "7")), "s0"},
				{"s0", answer(1), "c0"},
				{"c0", say(udp(v.client, 4000, v.far, 6010, "out")), "s0"},
			}})
		// Two clients with one port towards one server: the second's port is moved
		// within its class; the same source then keeps its mapping.
		r4, r6 = rules("-A POSTROUTING -o s0 -j SNAT --to-source " + v.alias)
		add(arrangement{name: "clash " + v.fam, v4: r4, v6: r6, random: true,
			rules: func(b *box) { b.rule(hookPostrouting, snat(v.alias, 0, 0, 0), out(b, b.s)) },
			steps: []step{
				{"c0", say(udp(v.client, 5000, v.far, 53, "1")), "s0"},
				{"c0", say(udp(other, 5000, v.far, 53, "2")), "s0"},
				{"c0", say(udp(v.client, 500, v.far, 53, "3")), "s0"},
				{"c0", say(udp(other, 500, v.far, 53, "4")), "s0"},
				{"c0", say(udp(v.client, 600, v.far, 53, "5")), "s0"},
				{"c0", say(udp(other, 600, v.far, 53, "6")), "s0"},
				{"c0", say(udp(v.client, 520, v.far, 53, "7")), "s0"},
				{"c0", say(udp(other, 520, v.far, 53, "8")), "s0"},
				{"s0", answer(1), "c0"},
				{"s0", answer(3), "c0"},
				{"s0", answer(5), "c0"},
				{"s0", answer(7), "c0"},
				{"c0", say(echo(v.client, v.far, 9)), "s0"},
				{"c0", say(echo(other, v.far, 9)), "s0"},
				{"s0", answer(13), "c0"},
			}})
		// A range of two ports: the third connection to one server has none, one to
		// another server has.
		r4, r6 = rules("-A POSTROUTING -o s0 -p udp -j SNAT --to-source " + at(":2000-2001"))
		add(arrangement{name: "exhaustion " + v.fam, v4: r4, v6: r6, random: true,
			rules: func(b *box) { b.rule(hookPostrouting, snat(v.alias, 2000, 2001, 0), out(b, b.s)) },
			steps: []step{
				{"c0", say(udp(v.client, 5000, v.far, 53, "1")), "s0"},
				{"c0", say(udp(v.client, 5001, v.far, 53, "2")), "s0"},
				{"c0", say(udp(v.client, 5002, v.far, 53, "3")), ""},
				{"c0", say(udp(v.client, 5002, v.hop, 53, "4")), "s0"},
				{"s0", answer(0), "c0"},
				{"s0", answer(1), "c0"},
				{"s0", answer(3), "c0"},
			}})
		// One source port with two destinations has one mapping.
		add(arrangement{name: "same source " + v.fam, v4: r4, v6: r6, random: true,
			rules: func(b *box) { b.rule(hookPostrouting, snat(v.alias, 2000, 2001, 0), out(b, b.s)) },
			steps: []step{
				{"c0", say(udp(v.client, 5000, v.far, 53, "1")), "s0"},
				{"c0", say(udp(v.client, 5000, v.hop, 53, "same as 0")), "s0"},
				{"c0", say(udp(v.client, 5000, v.far, 54, "same as 0")), "s0"},
			}})
	}
	return all
}

// run gives what leaves at each step. more says whether the step's packet is awaited.
func (b *box) run(steps []step) [][]byte {
	var seen [][]byte
	for _, s := range steps {
		got := b.pass(b.iface(s.in), s.make(seen))
		if got != nil && s.out != "" && b.p.Out != b.iface(s.out) {
			got = nil
		}
		seen = append(seen, got)
	}
	return seen
}

func (k *kernel) run(steps []step) [][]byte {
	var seen [][]byte
	for i, s := range steps {
		k.send(s.in, s.make(seen))
		var got []byte
		if s.out != "" {
			if got = k.recv(s.out); got == nil {
				k.t.Fatalf("step %d: the kernel sends nothing\n%s", i, k.list())
			}
		}
		seen = append(seen, got)
	}
	return seen
}

// TestAsLinux takes every arrangement through the kernel and through sluice and
// compares what leaves, byte for byte.
func TestAsLinux(t *testing.T) {
	k := newKernel(t)
	// Linux verifies UDP-Lite with UDP's number in the pseudo header and so takes
	// every right checksum for a wrong one; without its check the translation shows.
	k.sysctl("net/netfilter/nf_conntrack_checksum", "0")
	for _, a := range arrangements() {
		k.rules(a.v4, a.v6)
		k.flush()
		b := newBox(t)
		b.sys.Lookup("net.netfilter.nf_conntrack_checksum").Store(0)
		a.rules(b)
		want, got := k.run(a.steps), b.run(a.steps)
		for i := range want {
			if want[i] == nil || got[i] == nil {
				if (want[i] == nil) != (got[i] == nil) {
					t.Fatalf("%s, step %d: kernel %x, sluice %x (%s)", a.name, i, want[i], got[i], b.dropped)
				}
				continue
			}
			same := bytes.Equal(want[i], got[i])
			if a.made {
				same = bytes.Equal(withoutID(want[i]), withoutID(got[i]))
			}
			if a.random {
				same = shape(want[i]) == shape(got[i])
			}
			if !same {
				t.Fatalf("%s, step %d:\nin     %x\nkernel %x\nsluice %x", a.name, i, a.steps[i].make(got), want[i], got[i])
			}
		}
	}
}

// withoutID takes the identification or the flow label out.
func withoutID(b []byte) []byte {
	b = bytes.Clone(b)
	if b[0]>>4 == 4 {
		copy(b[4:6], "\x00\x00")
		seal(b[:20:20], false)
	} else {
		b[1], b[2], b[3] = b[1]&0xf0, 0, 0
	}
	return b
}

// shape is a packet with its source port, or identifier, replaced by its class.
func shape(b []byte) string {
	src, dst := endpoints(b)
	proto, _, l4 := split(b)
	port := src.Port()
	if isICMP(proto) {
		return fmt.Sprint(proto, src.Addr(), dst.Addr(), l4[0], len(b))
	}
	class := "high"
	switch {
	case port < 512:
		class = "low"
	case port < 600:
		class = fmt.Sprint("512 to 599: ", port)
	case port < 1024:
		class = "600 to 1023"
	case port == 2000 || port == 2001:
		class = "given"
	}
	return fmt.Sprint(proto, src.Addr(), class, dst, len(b))
}

// TestArrangements holds, without asking the kernel, that whatever is sent
// through an arrangement leaves with valid checksums, that answers come
// back to who asked, and that errors quote what was sent.
func TestArrangements(t *testing.T) {
	for _, a := range arrangements() {
		t.Run(a.name, func(t *testing.T) {
			b := newBox(t)
			a.rules(b)
			var seen [][]byte
			var sent [][]byte
			for i, s := range a.steps {
				in := s.make(seen)
				got := b.pass(b.iface(s.in), bytes.Clone(in))
				if (got == nil) != (s.out == "") {
					t.Fatalf("step %d: %x becomes %x (%s)", i, in, got, b.dropped)
				}
				if got == nil {
					if b.dropped != ReasonExhausted {
						t.Errorf("step %d: dropped for %s", i, b.dropped)
					}
				} else {
					verify(t, got)
					if a.made {
						sent, seen = append(sent, in), append(seen, got)
						continue
					}
					checkBack(t, i, in, got, sent, seen)
				}
				sent, seen = append(sent, in), append(seen, got)
			}
		})
	}
}

// checkBack finds what in, an answer or an error, is about, and compares its
// translation with what was sent then.
func checkBack(t *testing.T, step int, in, got []byte, sent, seen [][]byte) {
	t.Helper()
	proto, _, l4 := split(in)
	gotProto, _, gotL4 := split(got)
	if proto != gotProto {
		t.Fatalf("step %d: protocol %d becomes %d", step, proto, gotProto)
	}
	if isICMP(proto) && l4[0] != 0 && l4[0] != 8 && l4[0] != 128 && l4[0] != 129 {
		for i := len(seen) - 1; i >= 0; i-- {
			if n := len(l4) - 8; seen[i] != nil && n <= len(seen[i]) && bytes.Equal(l4[8:], seen[i][:n]) {
				want := bytes.Clone(sent[i][:n])
				back := bytes.Clone(gotL4[8:])
				if want[0]>>4 == 4 { // the TTL went down on the way
					want[8], want[10], want[11], back[10], back[11] = back[8], 0, 0, 0, 0
				} else {
					want[7] = back[7]
				}
				quotedProto := want[9]
				h := 20
				if want[0]>>4 == 6 {
					quotedProto, h = want[6], 40
				}
				if quotedProto == packet.ProtoSCTP && n >= h+12 && n < len(sent[i]) {
					copy(want[h+8:h+12], back[h+8:h+12]) // made for what is quoted, as Linux does
				}
				if !bytes.Equal(want, back) {
					t.Fatalf("step %d: the error quotes %x, sent was %x", step, back, want)
				}
				return
			}
		}
		t.Fatalf("step %d: an error about nothing", step)
	}
	inSrc, inDst := endpoints(in)
	for i := len(seen) - 1; i >= 0; i-- {
		if seen[i] == nil || isICMP(proto) {
			continue
		}
		src, dst := endpoints(seen[i])
		if src == inDst && dst == inSrc {
			src, dst = endpoints(sent[i])
			gotSrc, gotDst := endpoints(got)
			if gotSrc != dst || gotDst != src {
				t.Fatalf("step %d: the answer goes from %v to %v, asked was %v by %v", step, gotSrc, gotDst, dst, src)
			}
			return
		}
	}
}
