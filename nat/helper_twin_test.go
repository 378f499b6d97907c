package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/conntrack"
	"sluice/internal/conntrackcmd"
	"sluice/packet"
)

// talk is a conversation that a helper watches, the same one through the kernel
// and through sluice. What leaves is compared packet by packet, what is
// expected and tracked at the end.
type talk struct {
	t   *testing.T
	k   *kernel
	b   *box
	r   *rand.Rand
	log []string

	client, server end
}

// end is one side of the conversation: dev is the router's interface to it, addr
// and port its own, peer the other one's as it is seen from here.
type end struct {
	dev            string
	addr, peer     string
	port, peerPort uint16
	seq, ack       uint32
	proto          uint8
}

// place is a way of translation: the rules of both and whom the client calls.
type place struct {
	name   string
	v4, v6 []string
	rules  func(b *box)
	called [2]string // IPv4, IPv6
}

func places() []place {
	to := func(b *box, i *packet.Iface) func(*packet.Packet) bool {
		return func(p *packet.Packet) bool { return p.In == i }
	}
	snat2 := func(b *box, v4, v6 string) {
		b.rules[hookPostrouting] = func(p *packet.Packet) bool {
			if p.Out != b.s {
				return true
			}
			a := v4
			if p.Family == packet.IPv6 {
				a = v6
			}
			r := snat(a, 0, 0, 0)
			return b.nat.Setup(b.w, p, &r, Src)
		}
	}
	dnat2 := func(b *box) {
		in := to(b, b.c)
		b.rules[hookPrerouting] = func(p *packet.Packet) bool {
			if !in(p) {
				return true
			}
			a := "10.0.2.2"
			if p.Family == packet.IPv6 {
				a = "fd00:2::2"
			}
			r := snat(a, 0, 0, 0)
			return b.nat.Setup(b.w, p, &r, Dst)
		}
	}
	const s4, s6 = "-A POSTROUTING -o s0 -j SNAT --to-source ", "-A POSTROUTING -o s0 -j SNAT --to-source "
	d4, d6 := "-A PREROUTING -i c0 -j DNAT --to-destination 10.0.2.2", "-A PREROUTING -i c0 -j DNAT --to-destination fd00:2::2"
	plain := [2]string{"10.0.2.2", "fd00:2::2"}
	called := [2]string{"198.51.100.200", "2001:db8::5"}
	return []place{
		{"no translation", nil, nil, func(*box) {}, plain},
		{"source", []string{s4 + "198.51.100.7"}, []string{s6 + "2001:db8:7::7"}, func(b *box) { snat2(b, "198.51.100.7", "2001:db8:7::7") }, plain},
		{"shorter source", []string{s4 + "1.2.3.4"}, []string{s6 + "2001::7"}, func(b *box) { snat2(b, "1.2.3.4", "2001::7") }, plain},
		{"destination", []string{d4}, []string{d6}, dnat2, called},
		{"both", []string{s4 + "198.51.100.7", d4}, []string{s6 + "2001:db8:7::7", d6}, func(b *box) { snat2(b, "198.51.100.7", "2001:db8:7::7"); dnat2(b) }, called},
	}
}

// newTalk begins one in a place, with a helper for what goes to port.
func newTalk(t *testing.T, k *kernel, seed uint64, pl *place, v6 bool, proto uint8, port uint16, helper string) *talk {
	k.rules(pl.v4, pl.v6)
	name := map[uint8]string{packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp"}[proto]
	rule := fmt.Sprintf("-A PREROUTING -p %s --dport %d -j CT --helper %s", name, port, helper)
	family, f := packet.IPv4, 0
	cmd := "iptables-legacy-restore"
	if v6 {
		family, f, cmd = packet.IPv6, 1, "ip6tables-legacy-restore"
	}
	c := exec.Command(cmd)
	c.Stdin = strings.NewReader("*raw\n" + rule + "\nCOMMIT\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	k.flush()
	x := &talk{t: t, k: k, b: newBox(t), r: rand.New(rand.NewPCG(seed, 1))}
	pl.rules(x.b)
	tm := x.b.table.Template(conntrack.Template{Helper: x.b.table.HelperFor(helper, family, proto)})
	x.b.raw = func(p *packet.Packet) {
		if p.Proto == proto && p.Family == family && p.DstPort() == port {
			x.b.w.SetTemplate(p, tm)
		}
	}
	me := [2]string{"10.0.1.2", "fd00:1::2"}[f]
	x.client = end{dev: "c0", addr: me, port: 5000, peer: pl.called[f], peerPort: port, seq: 1000, proto: proto}
	x.server = end{dev: "s0", addr: [2]string{"10.0.2.2", "fd00:2::2"}[f], port: port, seq: 5000, proto: proto}
	x.log = append(x.log, fmt.Sprintf("%s, %s, seed %d", pl.name, helper, seed))
	return x
}

// pass sends a packet both ways and compares what leaves.
func (x *talk) pass(dev string, b []byte) []byte {
	x.t.Helper()
	got := x.b.pass(x.b.iface(dev), bytes.Clone(b))
	x.k.send(dev, b)
	wait := 2 * time.Second
	if got == nil {
		wait = 20 * time.Millisecond // what leaves has left when it is sent
	}
	want := x.k.recvFor(opposite(dev), wait)
	x.log = append(x.log, fmt.Sprintf("%s %q\n\tkernel %q\n\tsluice %q (%s)", dev, b[20:], want, got, x.b.dropped))
	if !bytes.Equal(want, got) {
		x.t.Fatal(x.story())
	}
	return got
}

func opposite(dev string) string {
	if dev == "s0" {
		return "c0"
	}
	return "s0"
}

// story is what happened last.
func (x *talk) story() string {
	return zeros.ReplaceAllString(strings.Join(append(x.log[:1:1], x.log[max(1, len(x.log)-12):]...), "\n"), "…")
}

// say sends text from one end to the other.
func (x *talk) say(from *end, flags uint8, text string) []byte {
	x.t.Helper()
	to := &x.server
	if from == to {
		to = &x.client
	}
	f := flowSpec{src: from.addr, dst: from.peer, proto: from.proto, sport: from.port, dport: from.peerPort,
		flags: flags, seq: from.seq, ack: from.ack, payload: []byte(text)}
	got := x.pass(from.dev, f.build())
	if got == nil {
		return nil
	}
	from.seq += uint32(len(text))
	src, _ := endpoints(got)
	to.peer, to.peerPort = src.Addr().String(), src.Port()
	if from.proto == packet.ProtoTCP {
		_, _, l4 := split(got)
		to.ack = binary.BigEndian.Uint32(l4[4:]) + uint32(len(l4)-int(l4[12]>>4)*4)
		if flags&(syn|fin) != 0 {
			from.seq++
			to.ack++
		}
	}
	return got
}

// connect makes the connection that TCP helpers look into.
func (x *talk) connect() {
	x.say(&x.client, syn, "")
	x.say(&x.server, syn|ack, "")
	x.say(&x.client, ack, "")
}

// fulfil opens some of the connections that are expected, from the side that
// does not announce them, and answers.
func (x *talk) fulfil(port uint16) {
	for _, e := range x.b.table.Expectations() {
		if x.r.IntN(3) == 0 {
			continue
		}
		u := e.Tuple
		f := flowSpec{src: u.SrcAddr().String(), dst: u.DstAddr().String(), proto: u.Proto, sport: port, dport: u.DstPort, flags: syn, seq: 7, payload: []byte("hello")}
		if e.Mask.Src == ([16]byte{}) {
			f.src = x.server.addr
		}
		if u.Proto == packet.ProtoTCP {
			f.payload = nil
		}
		dev := "s0"
		if strings.HasPrefix(f.src, "10.0.1.") || strings.HasPrefix(f.src, "fd00:1:") {
			dev = "c0"
		}
		if u.Proto == packet.ProtoGRE {
			f.payload = pptpGRE(u.DstPort)
		}
		got := x.pass(dev, f.build())
		if got == nil {
			continue
		}
		back := opposite(dev)
		if u.Proto == packet.ProtoGRE {
			src, dst := endpoints(got)
			x.pass(back, flowSpec{src: dst.Addr().String(), dst: src.Addr().String(), proto: u.Proto, payload: pptpGRE(u.SrcPort)}.build())
			continue
		}
		x.pass(back, reply(got))
	}
}

func pptpGRE(call uint16) []byte {
	return append([]byte{0x30, 0x81, 0x88, 0x0b, 0, 4, byte(call >> 8), byte(call), 0, 0, 0, 1, 0, 0, 0, 0}, "ppp!"...)
}

var (
	zeros    = regexp.MustCompile(`(\\x00){8,}`)
	uses     = regexp.MustCompile(` use=\d+| mark=0| secctx=\S+`)
	lifetime = regexp.MustCompile(`^(\w+ +\d+ )(\d+)( .*)$|^()(\d+)( proto=.*)$`)
)

// same compares what is expected and tracked.
func (x *talk) same() {
	x.t.Helper()
	for _, table := range []string{"expect", "conntrack"} {
		for _, fam := range []string{"ipv4", "ipv6"} {
			out, _ := exec.Command("conntrack", "-L", table, "-f", fam).Output()
			var ours bytes.Buffer
			conntrackcmd.Run(x.b.table, []string{"-L", table, "-f", fam}, nil, &ours, &bytes.Buffer{}, nil)
			a, b := lines(string(out)), lines(ours.String())
			ok := len(a) == len(b)
			for i := 0; ok && i < len(a); i++ {
				ok = a[i].text == b[i].text && max(a[i].secs-b[i].secs, b[i].secs-a[i].secs) <= 3
			}
			if !ok {
				x.t.Fatalf("%s\n%s\nkernel:\n%s\nsluice:\n%s", x.story(), table, out, ours.String())
			}
		}
	}
}

type listed struct {
	text string
	secs int
}

// lines are those of a list without what depends on time, sorted.
func lines(s string) (out []listed) {
	for _, l := range strings.Split(strings.TrimSpace(s), "\n") {
		l = uses.ReplaceAllString(l, "")
		var e listed
		if m := lifetime.FindStringSubmatch(l); m != nil {
			fmt.Sscan(m[2]+m[5], &e.secs)
			l = m[1] + m[3] + m[4] + m[6]
		}
		e.text = l
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b listed) int { return strings.Compare(a.text, b.text) })
	return out
}

// pick is one of several at random.
func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// spoil changes a few bytes of a message, now and then.
func spoil(r *rand.Rand, s string) string {
	if r.IntN(3) > 0 {
		return s
	}
	b := []byte(s)
	for range 1 + r.IntN(3) {
		if len(b) == 0 {
			break
		}
		i := r.IntN(len(b))
		switch r.IntN(4) {
		case 0:
			b = slices.Delete(b, i, min(len(b), i+1+r.IntN(3)))
		case 1:
			b = slices.Insert(b, i, pick(r, []byte(" "), []byte("\r\n"), []byte("\n"), []byte("9"), []byte(":"), []byte("\t"))...)
		case 2:
			b[i] = pick(r, []byte(" \r\n0123456789:;,.@<>=[]aZ\x00\xff")...)
		case 3:
			b = b[:i]
		}
	}
	return string(b)
}

// twin runs random conversations in all places.
func twin(t *testing.T, families []bool, proto uint8, port uint16, helper string, run func(x *talk)) {
	k := newKernel(t)
	n := 20
	if testing.Short() {
		n = 5
	}
	for i, pl := range places() {
		for _, v6 := range families {
			for j := range n {
				x := newTalk(t, k, uint64(1000*i+j), &pl, v6, proto, port, helper)
				run(x)
				if i%4 == 0 {
					x.same()
				}
			}
		}
	}
}

var v4only, both = []bool{false}, []bool{false, true}

func TestIRCAsLinux(t *testing.T) {
	twin(t, v4only, packet.ProtoTCP, 6667, "irc", func(x *talk) {
		x.connect()
		x.say(&x.server, psh|ack, ":irc.example NOTICE * :hello\r\n")
		port := 5000 + x.r.IntN(100)
		for range 1 + x.r.IntN(6) {
			addr := pick(x.r, "167837954", "167837954", "167837954", "3325256711", "16909060", "1", "4462805250", "")
			msg := pick(x.r, "", "", " ", "\r\n ") + pick(x.r, "PRIVMSG", "PRIVMSG", "privmsg", "NOTICE") + " bob :" + pick(x.r, "", "", "", ":", "x :") + "\x01DCC " +
				pick(x.r, "SEND", "CHAT", "MOVE", "TSEND", "SCHAT", "RESUME") + " " + pick(x.r, "file", "a", "a file") + " " + addr + pick(x.r, " ", "  ", "   ") +
				fmt.Sprint(port) + pick(x.r, "", " 12345") + "\x01" + pick(x.r, "\r\n", "\n", "")
			port += 3
			from := &x.client
			if x.r.IntN(8) == 0 {
				from = &x.server
			}
			if x.say(from, psh|ack, spoil(x.r, msg)) == nil {
				return
			}
			if x.r.IntN(2) == 0 {
				x.fulfil(uint16(2000 + port))
			}
			x.say(&x.server, psh|ack, "PING :x\r\n")
		}
	})
}

func TestAmandaAsLinux(t *testing.T) {
	twin(t, both, packet.ProtoUDP, 10080, "amanda", func(x *talk) {
		x.say(&x.client, 0, "Amanda 2.6 REQ HANDLE 000-1 SEQ 1\nSERVICE sendbackup\n")
		port := 5000 + x.r.IntN(100)
		for range 1 + x.r.IntN(4) {
			msg := fmt.Sprintf("Amanda 2.6 REP HANDLE 000-1 SEQ 1\nCONNECT %s %d MESG %d %s %d%s\nOPTIONS features=x;\n",
				pick(x.r, "DATA", "DATA", "STATE"), port, port+1, pick(x.r, "INDEX", "INDEX", "FOO"), port+2, pick(x.r, "", "9", " DATA 70000", " STATE 0"))
			port += 3
			if x.say(&x.server, 0, spoil(x.r, msg)) == nil {
				return
			}
			x.fulfilFrom(&x.client)
			x.say(&x.client, 0, "Amanda 2.6 ACK HANDLE 000-1 SEQ 1\n")
		}
	})
}

// fulfilFrom opens what is expected of one end, which goes to whom it talks to.
func (x *talk) fulfilFrom(e *end) {
	for _, w := range x.b.table.Expectations() {
		if x.r.IntN(2) == 0 {
			continue
		}
		f := flowSpec{src: e.addr, dst: e.peer, proto: w.Tuple.Proto, sport: uint16(3000 + x.r.IntN(1000)), dport: w.Tuple.DstPort, flags: syn, seq: 7}
		if got := x.pass(e.dev, f.build()); got != nil {
			x.pass(opposite(e.dev), reply(got))
		}
	}
}

func TestPPTPAsLinux(t *testing.T) {
	message := func(typ uint16, body ...uint16) string {
		b := binary.BigEndian.AppendUint16(nil, 0)
		b = binary.BigEndian.AppendUint16(b, 1)
		b = binary.BigEndian.AppendUint32(b, 0x1a2b3c4d)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = binary.BigEndian.AppendUint16(b, 0)
		for _, v := range body {
			b = binary.BigEndian.AppendUint16(b, v)
		}
		size := []int{0, 156, 156, 16, 16, 16, 20, 168, 32, 220, 24, 28, 16, 148, 40, 24}[min(typ, 15)]
		b = append(b, make([]byte, max(0, size-len(b)))...)
		binary.BigEndian.PutUint16(b, uint16(len(b)))
		return string(b)
	}
	twin(t, v4only, packet.ProtoTCP, 1723, "pptp", func(x *talk) {
		x.connect()
		pns, pac := uint16(100+x.r.IntN(3)), uint16(200+x.r.IntN(3))
		steps := []func() []byte{
			func() []byte { return x.say(&x.client, psh|ack, message(1, 0x100)) },
			func() []byte {
				return x.say(&x.server, psh|ack, message(2, 0x100, pick(x.r, uint16(0x100), 0x100, 0x100, 0x200)))
			},
			func() []byte { return x.say(&x.client, psh|ack, message(7, pns)) },
			func() []byte {
				peer := pns
				if x.client.peer != "10.0.2.2" || x.server.peer != x.client.addr {
					peer = x.server.peerPort
				}
				return x.say(&x.server, psh|ack, message(8, pac, peer, pick(x.r, uint16(0x100), 0x100, 0x100, 0x200)))
			},
			func() []byte { x.tunnel(); return []byte{} },
			func() []byte { return x.say(&x.server, psh|ack, message(9, pac)) },
			func() []byte { return x.say(&x.client, psh|ack, message(10, pns, pac, 0x100)) },
			func() []byte { return x.say(&x.server, psh|ack, message(11, pns)) },
			func() []byte { return x.say(&x.client, psh|ack, message(15, pac)) },
			func() []byte { return x.say(&x.server, psh|ack, message(15, pick(x.r, pns, x.server.peerPort))) },
			func() []byte { return x.say(&x.server, psh|ack, message(14, pick(x.r, pns, x.server.peerPort))) },
			func() []byte { return x.say(&x.client, psh|ack, message(5)) },
			func() []byte { x.tunnel(); return []byte{} },
			func() []byte { return x.say(&x.client, psh|ack, message(12, pns)) },
			func() []byte { return x.say(&x.server, psh|ack, message(13, pick(x.r, pac, pns))) },
			func() []byte { return x.say(&x.client, psh|ack, message(3, 0x100)) },
			func() []byte { return x.say(&x.server, psh|ack, message(4, 0x100)) },
			func() []byte { return x.say(&x.server, psh|ack, spoil(x.r, message(8, pac, pns, 0x100))) },
		}
		for i := 0; i < len(steps); i++ {
			if i >= 5 && x.r.IntN(3) == 0 || x.r.IntN(12) == 0 {
				continue
			}
			if steps[i]() == nil {
				return
			}
			if i%4 == 0 {
				x.same()
			}
			if x.r.IntN(10) == 0 {
				i = max(0, i-1-x.r.IntN(4))
			}
		}
	})
}

// tunnel sends packets of the expected tunnel from both ends, in either order.
func (x *talk) tunnel() {
	all := x.b.table.Expectations()
	if x.r.IntN(2) == 0 {
		slices.Reverse(all)
	}
	for _, e := range all {
		u := e.Tuple
		dev, src, dst := "c0", u.SrcAddr().String(), u.DstAddr().String()
		if u.SrcAddr().String() == x.server.addr || src == "10.0.2.2" {
			dev = "s0"
		}
		got := x.pass(dev, flowSpec{src: src, dst: dst, proto: packet.ProtoGRE, payload: pptpGRE(u.DstPort)}.build())
		if got != nil && dev == "c0" && x.r.IntN(3) == 0 {
			x.pass(dev, flowSpec{src: src, dst: dst, proto: packet.ProtoGRE, payload: pptpGRE(u.DstPort + 1)}.build())
		}
	}
}

func TestSNMPAsLinux(t *testing.T) {
	twin(t, v4only, packet.ProtoUDP, 161, "snmp", func(x *talk) {
		ber := func(tag byte, parts ...[]byte) []byte {
			body := slices.Concat(parts...)
			n := len(body)
			switch {
			case n < 128 && x.r.IntN(8) > 0:
				return append([]byte{tag, byte(n)}, body...)
			case n < 256 && x.r.IntN(8) > 0:
				return append([]byte{tag, 0x81, byte(n)}, body...)
			case x.r.IntN(12) > 0:
				return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, body...)
			}
			return append(append([]byte{tag, 0x80}, body...), 0, 0)
		}
		num := func(v byte) []byte { return ber(2, []byte{v}) }
		message := func() string {
			var vars [][]byte
			for range x.r.IntN(5) {
				name := ber(6, []byte{0x2b, 6, 1, 2, 1, 4, 20, byte(x.r.IntN(100))}[:7+x.r.IntN(2)])
				ip := pick(x.r, []byte{10, 0, 1, 2}, []byte{10, 0, 2, 2}, []byte{198, 51, 100, 7}, []byte{10, 0, 1})
				value := pick(x.r, ber(0x40, ip), ber(0x40, ip), ber(4, []byte("text")), num(7), ber(5), ber(0x41, []byte{1}), ber(0x43, []byte{1, 2}),
					ber(0x80), ber(0x82), ber(0x44, []byte{9}), ber(0x46, []byte{1}), ber(0x45, []byte{1}), []byte{})
				if x.r.IntN(4) > 0 && len(value) == 0 {
					value = ber(5)
				}
				vars = append(vars, ber(pick(x.r, byte(0x30), 0x30, 0x30, 0x30, 0x30, 0x30, 0x10, 0x31), name, value))
			}
			pdu := ber(pick(x.r, byte(0xa2), 0xa2, 0xa2, 0xa0, 0xa1, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0x82), num(1), num(0), num(0), ber(0x30, vars...))
			if x.r.IntN(10) == 0 {
				pdu = nil
			}
			return string(ber(0x30, num(pick(x.r, byte(0), 1, 1, 1, 1, 3)), ber(4, []byte("public")), pdu)) + pick(x.r, "", "", "", "x")
		}
		for range 8 {
			from := pick(x.r, &x.client, &x.server)
			if from.peer == "" {
				from = &x.client
			}
			x.say(from, 0, spoil(x.r, message()))
		}
	})
}
