package conformance

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/packet"
	"sluice/packet/packettest"
)

// TestScenarios takes the running kernel and sluice through the scenarios of
// testdata/kernel: the same frames have to leave, the same rules to count, the
// same connections to be known. Without root, sluice is held against what was
// recorded.
func TestScenarios(t *testing.T) {
	layer(t, "packets")
	if *cases == 1 {
		t.Skip("one random case is to be seen again")
	}
	for _, file := range scenarioFiles(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s, err := parseScenario(name, text)
			if err != nil {
				t.Fatal(err)
			}
			if os.Getuid() != 0 {
				for _, l := range s.replay(newOurSide(t, s, variants(false)[0])) {
					t.Error(l)
				}
				return
			}
			for _, offload := range []bool{false, true} {
				if offload && !*long {
					continue
				}
				run := func() (*scenario, *compare) {
					got, w := *s, newWatch()
					c := &compare{s: &got, before: w.look}
					for _, v := range variants(offload) {
						v.clock = w.now.Load
						c.add(newOurSide(t, s, v))
					}
					c.k = newKernelSide(t, s, c.ours[0].side.(*ourSide).r, offload)
					c.run()
					return &got, c
				}
				got, c := run()
				if d := c.diffs(); len(d) > 0 {
					t.Logf("once more, as a port drawn by chance may be another's:\n%s", strings.Join(d, "\n"))
					got, c = run()
				}
				results.count("packets", 1, len(s.steps)*len(c.ours), len(c.diffs()))
				for _, l := range c.diffs() {
					t.Error(l)
				}
				if recorded := string(got.format(true)); *update && recorded != string(text) && !offload {
					if err := os.WriteFile(file, []byte(recorded), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// compare takes the kernel and some of ours through a scenario.
type compare struct {
	s    *scenario
	k    side
	ours []*contender

	before func() // if set, called before each step and before connections are looked at
	ticked time.Time
	slow   time.Duration // by so much the kernel's time may be another
}

// watch is a clock that stands still between looks at it: all of ours have the
// time at which the kernel came to a step, however busy the machine is.
type watch struct {
	start time.Time
	now   atomic.Int64
}

func newWatch() *watch { return &watch{start: time.Now()} }

func (w *watch) look() { w.now.Store(int64(time.Since(w.start))) }

// contender is one of ours, with what has become of it so far.
type contender struct {
	side
	name        string
	outs        [][]sent
	ports       map[string]string // ours to the kernel's, where both were chosen at random
	kernel, own cookies
	diffs       []string
	asked       int  // diffs of what commands say, from which nothing follows
	lost        bool // the steps cannot go on
}

func (c *compare) add(o *ourSide) {
	c.ours = append(c.ours, &contender{side: o, name: o.v.String(), ports: map[string]string{}})
}

func (c *contender) differ(format string, args ...any) {
	c.diffs = append(c.diffs, fmt.Sprintf(format, args...))
}

// diffs are all differences; those that all of ours share are told once.
func (c *compare) diffs() (out []string) {
	var who []string
	for _, o := range c.ours {
		if len(o.diffs) == 0 {
			continue
		}
		who = append(who, o.name)
		if len(out) == 0 {
			out = o.diffs
		}
	}
	if len(who) > 0 && len(who) < len(c.ours) {
		out = append([]string{"only with: " + strings.Join(who, "; ")}, out...)
	}
	return out
}

func (c *compare) tick() {
	c.ticked = time.Now()
	if c.before != nil {
		c.before()
	}
}

// done notes how long the kernel took since the clock stands still.
func (c *compare) done() { c.slow = max(c.slow, time.Since(c.ticked)) }

// run fills in the scenario's results with what the kernel did.
func (c *compare) run() {
	var kouts [][]sent
	var steps []*step
	for _, st := range c.s.steps {
		cp := *st
		cp.out = nil
		steps = append(steps, &cp)
		c.tick()
		if cp.asks() {
			c.ask(&cp)
			continue
		}
		kt, ok := expand(cp.text, kouts)
		var ko []sent
		var kf []sending
		if ok {
			ks := cp
			ks.text, ks.dev = kt, device(cp.dev, kouts)
			var err error
			if kf, err = cp.frames(kt); err == nil {
				ko = c.k.do(&ks, kf, 0)
				c.order(ko)
			} else if ok = false; c.s.name != "" {
				c.ours[0].differ("%v", err)
				break
			} // else by chance: about a frame of the other family
			c.done()
		}
		for _, o := range c.ours {
			if len(o.diffs)-o.asked > 2 {
				o.lost = true // the rest follows from these
			}
			if o.lost {
				continue
			}
			ot, ok2 := expand(cp.text, o.outs)
			of, err := cp.frames(ot)
			if ok2 = ok2 && err == nil; ok != ok2 {
				o.differ("%s: only one of the two has what this refers to", cp.line)
				o.lost = true
				continue
			}
			var oo []sent
			if ok {
				os := cp
				os.text, os.dev = ot, device(cp.dev, o.outs)
				oo = o.do(&os, of, len(ko))
				c.order(oo)
				cp.out = o.outputs(&cp, kf, ko, oo)
			}
			if cp.sends() {
				o.outs = append(o.outs, oo)
			}
		}
		if cp.sends() {
			kouts = append(kouts, ko)
		}
	}
	c.s.steps = steps
	c.dumps()
}

// ask has all sides carry out a command, and compares what they say.
func (c *compare) ask(st *step) {
	st.out = c.k.ask(st)
	for _, o := range c.ours {
		got := o.ask(st)
		same := sameLines(st.out, got)
		if st.verb == "hear" { // events have an order
			same = slices.Equal(st.out, got)
		}
		if !same {
			o.asked++
			o.differ("%s (- kernel, + ours):\n%s", st.line, diffLines(st.out, got))
		}
	}
}

// order makes the order of frames that left plain where TEE made some of them:
// the kernel sends a copy first, we the packet, see docs/differences.md.
func (c *compare) order(out []sent) {
	if !strings.Contains(strings.Join(slices.Concat(c.s.rules[0], c.s.rules[1]), " "), "-j TEE") {
		return
	}
	key := func(b []byte) []byte {
		if b = bytes.Clone(b); len(b) >= 20 && b[0]>>4 == 4 {
			clear(b[4:6]) // may be random
			clear(b[10:12])
		}
		return b
	}
	slices.SortStableFunc(out, func(a, b sent) int {
		return cmp.Or(strings.Compare(a.dev, b.dev), bytes.Compare(key(a.b), key(b.b)))
	})
}

func (st *step) frames(text string) ([]sending, error) {
	if st.verb != "in" {
		return nil, nil
	}
	return frames(text)
}

// outputs compares what left after one step, and describes what left the kernel.
func (c *contender) outputs(st *step, in []sending, ko, oo []sent) (desc []string) {
	ok := len(ko) == len(oo)
	var kd, od []string
	why := ""
	ko, oo = c.kernel.all(ko), c.own.all(oo)
	for i := range max(len(ko), len(oo)) {
		if i < len(ko) && i < len(oo) {
			k, o := c.normal(in, ko[i].b, oo[i].b)
			if ko[i].dev != oo[i].dev || ko[i].gso != oo[i].gso || string(k) != string(o) {
				if ok {
					why = fmt.Sprintf("\n  kernel %x gso=%x\n  ours   %x gso=%x", k, ko[i].gso, o, oo[i].gso)
				}
				ok = false
			}
			kd = append(kd, ko[i].dev+" "+packettest.Describe(k))
			od = append(od, oo[i].dev+" "+packettest.Describe(o))
		} else if i < len(ko) {
			kd = append(kd, ko[i].dev+" "+packettest.Describe(ko[i].b))
		} else {
			od = append(od, oo[i].dev+" "+packettest.Describe(oo[i].b))
		}
	}
	if !ok {
		c.differ("%s\nkernel sends:\n  %s\nwe send:\n  %s%s", st.line, strings.Join(kd, "\n  "), strings.Join(od, "\n  "), why)
	}
	for i := range kd {
		kd[i] = c.anyPort(":", kd[i])
	}
	return kd
}

// anyPort writes "rnd" for ports that the kernel chose at random.
func (c *contender) anyPort(before, s string) string {
	for _, k := range c.ports {
		s = regexp.MustCompile(regexp.QuoteMeta(before+k)+`\b`).ReplaceAllLiteralString(s, before+"rnd")
	}
	return s
}

// normal makes alike what Linux chooses at random in frames of its own making:
// identifications, and what a TCP socket says when it opens a connection.
func (c *contender) normal(in []sending, k, o []byte) ([]byte, []byte) {
	kp, op := reparse(k), reparse(o)
	if kp == nil || op == nil || kp.Family != op.Family || kp.Proto != op.Proto {
		return k, o
	}
	if kt, ot := kp.Transport(), op.Transport(); kp.Proto == packet.ProtoDCCP && min(len(kt), len(ot)) >= 8 && !kp.Is(packet.LaterFragment) {
		clear(kt[6:8]) // the sum that a kernel without DCCP leaves behind, see docs/differences.md
		clear(ot[6:8])
	}
	if kp.VerifyL4() != op.VerifyL4() {
		return k, o
	}
	good := kp.VerifyL4()
	if kp.FragID != 0 && op.FragID != 0 && !hasID(in, kp.FragID) {
		setID(kp)
		setID(op)
	}
	if good && kp.TCPFlags()&packet.TCPSyn != 0 && op.TCPFlags() == kp.TCPFlags() && kp.TCPSeq() != op.TCPSeq() {
		plainSYN(kp)
		plainSYN(op)
	}
	c.headers(in, kp, op)
	c.translate(op)
	if !good && len(c.ports) > 0 && kp.Is(packet.HasPorts) {
		// A sum that is wrong by other ports is wrong in another way.
		for _, p := range []*packet.Packet{kp, op} {
			at := 6
			if p.Proto == packet.ProtoTCP {
				at = 16
			}
			clear(p.Transport()[at : at+2])
		}
	}
	if kp.Is(packet.HasPorts) && good {
		for _, x := range [][2]uint16{{kp.SrcPort(), op.SrcPort()}, {kp.DstPort(), op.DstPort()}} {
			a := fmt.Sprint(x[1])
			if x[0] != x[1] && portClass(x[0]) == portClass(x[1]) && !hasPort(in, x[0]) && !hasPort(in, x[1]) && c.ports[a] == "" {
				c.ports[a] = fmt.Sprint(x[0])
				c.translate(op)
			}
		}
	}
	c.quotes(in, kp, op)
	return kp.Bytes(), op.Bytes()
}

// headers is quotes for an echo's identifier and for the ports of a first
// fragment that ends within the transport header.
func (c *contender) headers(in []sending, kp, op *packet.Packet) {
	kt, ot := kp.Transport(), op.Transport()
	if len(kt) != len(ot) || len(kt) < 8 || kp.Is(packet.LaterFragment) {
		return
	}
	typ, _, echo := kp.ICMPType()
	switch {
	case echo && (kp.Proto == packet.ProtoICMP && (typ == 0 || typ == 8) || kp.Proto == packet.ProtoICMPv6 && (typ == 128 || typ == 129)):
		c.port(in, kt[4:6], ot[4:6], true, func(delta uint16) { addSum(ot, 2, delta) })
	case !echo && !kp.Is(packet.HasPorts) && kp.Proto == packet.ProtoTCP:
		for at := 0; at < 4; at += 2 {
			c.port(in, kt[at:at+2], ot[at:at+2], false, func(delta uint16) { addSum(ot, 16, delta) })
		}
	}
}

// port makes one port, or identifier, alike; changed is told what that adds to a sum.
func (c *contender) port(in []sending, kb, ob []byte, id bool, changed func(delta uint16)) {
	k, o := be16(kb), be16(ob)
	name := fmt.Sprint(o)
	if k != o && c.ports[name] == "" && (id || portClass(k) == portClass(o)) && !hasPort(in, k) && !hasPort(in, o) {
		c.ports[name] = fmt.Sprint(k)
	}
	var n uint16
	if fmt.Sscan(c.ports[name], &n); n == 0 || n == o {
		return
	}
	ob[0], ob[1] = byte(n>>8), byte(n)
	changed(packet.Delta16(o, n))
}

// addSum changes the checksum at a place of a transport header, if there is one.
func addSum(t []byte, at int, delta uint16) {
	if at+2 <= len(t) && be16(t[at:]) != 0 {
		v := packet.ApplyDelta(be16(t[at:]), delta)
		t[at], t[at+1] = byte(v>>8), byte(v)
	}
}

// quotes makes alike the ports that NAT chose at random in what two ICMP errors
// quote, and the sums that change with them.
func (c *contender) quotes(in []sending, kp, op *packet.Packet) {
	proto, kq := quoted(kp)
	other, oq := quoted(op)
	if kq, oq := reparse(kp.Payload()), reparse(op.Payload()); proto == other && kq != nil && oq != nil && !kq.VerifyL4() && oq.VerifyL4() {
		// The kernel leaves the checksums of its own packets to the device.
		at := map[uint8]int{packet.ProtoTCP: 16, packet.ProtoUDP: 6}[proto]
		if kt, ot := kq.Transport(), oq.Transport(); at > 0 && len(kt) > at+2 && len(ot) > at+2 {
			clear(kp.Payload()[len(kp.Payload())-len(kt)+at:][:2])
			clear(op.Payload()[len(op.Payload())-len(ot)+at:][:2])
			kp.FixChecksums()
			op.FixChecksums()
		}
	}
	if kb, ob := kp.Payload(), op.Payload(); kp.Family == packet.IPv4 && proto == packet.ProtoUDP && other == proto && len(kq) >= 8 && len(oq) >= 8 &&
		string(kb[4:6]) != string(ob[4:6]) && ownAddress(kb[12:16]) && ownAddress(ob[12:16]) {
		// The router's own datagrams have random identifications, and the kernel
		// leaves their checksums to the device.
		for _, x := range []struct {
			p    *packet.Packet
			b, t []byte
		}{{kp, kb, kq}, {op, ob, oq}} {
			good := x.p.VerifyL4()
			clear(x.b[4:6])
			clear(x.b[10:12])
			clear(x.t[6:8])
			if good {
				x.p.FixChecksums()
			}
		}
	}
	if proto != other || len(kq) != len(oq) || len(kq) < 8 {
		return
	}
	if proto == packet.ProtoICMP || proto == packet.ProtoICMPv6 {
		if kq[0] == oq[0] && (proto == packet.ProtoICMP && (kq[0] == 0 || kq[0] == 8) || kq[0] == 128 || kq[0] == 129) {
			good, changed := kp.VerifyL4() && op.VerifyL4(), false
			c.port(in, kq[4:6], oq[4:6], true, func(delta uint16) {
				changed = true
				addSum(oq, 2, delta)
			})
			if good && changed {
				op.FixChecksums()
			}
			return
		}
		inner := append(append([]byte{}, kq...), make([]byte, 24)...)
		dccp := inner[8]>>4 == 4 && inner[8+9] == packet.ProtoDCCP || inner[8]>>4 == 6 && inner[8+6] == packet.ProtoDCCP
		if len(c.ports) > 0 || dccp { // what an error quotes that is quoted itself may have them
			good := kp.VerifyL4() && op.VerifyL4()
			clear(kq[2:4])
			clear(oq[2:4])
			clear(kq[8:])
			clear(oq[8:])
			if good {
				kp.FixChecksums()
				op.FixChecksums()
			}
		}
		return
	}
	changed, good := false, op.VerifyL4() && kp.VerifyL4()
	if proto == packet.ProtoDCCP {
		clear(kq[6:8])
		clear(oq[6:8])
		if changed = true; kp.Is(packet.Fragment) && op.Is(packet.Fragment) {
			clear(kp.Transport()[2:4])
			clear(op.Transport()[2:4])
		}
	}
	sum := 6
	if proto == packet.ProtoTCP {
		sum = 16
	}
	for at := 0; at < 4; at += 2 {
		c.port(in, kq[at:at+2], oq[at:at+2], false, func(delta uint16) {
			if changed = true; proto != packet.ProtoSCTP {
				addSum(oq, sum, delta)
			}
		})
	}
	if changed && proto == packet.ProtoSCTP && len(kq) >= 12 {
		clear(kq[8:12])
		clear(oq[8:12])
	}
	if changed && good {
		kp.FixChecksums()
		op.FixChecksums()
	}
}

// quoted is the protocol and the transport header, or what there is of it, of
// the packet with ports that an ICMP error quotes; nil: it is none.
func quoted(p *packet.Packet) (proto uint8, t []byte) {
	typ, _, ok := p.ICMPType()
	b := p.Payload()
	switch {
	case !ok:
		return 0, nil
	case p.Proto == packet.ProtoICMP && slices.Contains([]uint8{3, 4, 5, 11, 12}, typ) && len(b) >= 20:
		proto, t = b[9], b[min(len(b), int(b[0]&15)*4):]
	case p.Proto == packet.ProtoICMPv6 && typ < 128 && len(b) >= 40:
		proto, t = b[6], b[40:]
	}
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoDCCP, packet.ProtoSCTP:
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if len(t) < 8 {
			return 0, nil
		}
	default:
		return 0, nil
	}
	return proto, t
}

// portClass is the range that NAT keeps a port in when it has to choose another.
func portClass(p uint16) int {
	switch {
	case p < 512:
		return 0
	case p < 1024:
		return 1
	}
	return 2
}

// translate names a port that was chosen at random as the kernel's choice.
func (c *contender) translate(p *packet.Packet) {
	if len(c.ports) == 0 || !p.Is(packet.HasPorts) {
		return
	}
	var n uint16
	if x := c.ports[fmt.Sprint(p.SrcPort())]; x != "" {
		fmt.Sscan(x, &n)
		p.SetSrcPort(n)
	}
	if x := c.ports[fmt.Sprint(p.DstPort())]; x != "" {
		fmt.Sscan(x, &n)
		p.SetDstPort(n)
	}
}

func hasPort(in []sending, port uint16) bool {
	for _, f := range in {
		q := reparse(f.b)
		if q == nil {
			continue
		}
		if q.Is(packet.HasPorts) && (q.SrcPort() == port || q.DstPort() == port) {
			return true
		}
		if _, _, ok := q.ICMPType(); ok && be16(q.Transport()[4:]) == port {
			return true
		}
	}
	return false
}

// ownAddress: it is one of the router's IPv4 addresses.
func ownAddress(a []byte) bool {
	return a[0] == 10 && a[2] == 0 && (a[3] == 1 || a[3] == 7)
}

// hasID: one of the frames that came has this identification.
func hasID[T uint16 | uint32](in []sending, id T) bool {
	for _, f := range in {
		if q := reparse(f.b); q != nil && q.FragID == uint32(id) {
			return true
		}
	}
	return false
}

func reparse(b []byte) *packet.Packet {
	p := packet.Of(b)
	if p.Parse() != 0 {
		return nil
	}
	return p
}

// setID zeroes the identification of a packet or fragment.
func setID(p *packet.Packet) {
	b := p.Bytes()
	if p.Family == packet.IPv4 {
		b[4], b[5] = 0, 0
		b[10], b[11] = 0, 0
		s := ^packet.Sum(b[:int(b[0]&15)*4])
		b[10], b[11] = byte(s>>8), byte(s)
	} else if p.Is(packet.Fragment) {
		for at, next := 40, b[6]; at+8 <= len(b); next, at = b[at], at+int(b[at+1])*8+8 {
			if next == 44 {
				clear(b[at+4 : at+8])
				break
			}
		}
	}
}

// plainSYN takes out what a socket says of itself in a SYN.
func plainSYN(p *packet.Packet) {
	t := p.Transport()
	clear(t[4:8])
	clear(t[14:16])
	t[12] = 5 << 4
	p.End = p.Off + int(p.L4) + 20
	b := p.Bytes()
	if p.Family == packet.IPv4 {
		b[2], b[3] = byte(len(b)>>8), byte(len(b))
		setID(p)
	} else {
		b[4], b[5] = byte((len(b)-40)>>8), byte(len(b)-40)
	}
	p.ParseL4()
	p.FixChecksums()
}

var portWord = regexp.MustCompile(`(port|id)=(\d+)`)

// dumps compares counters and connections.
func (c *compare) dumps() {
	var want [2]string
	for f, fam := range families {
		if !c.s.uses(f) {
			continue
		}
		save := c.k.tables(fam)
		k := counters(save, true)
		if c.s.edited() {
			// iptables-legacy forgets the policies' counters with every edit, the nf_tables one does not.
			k = slices.DeleteFunc(k, isPolicy)
		}
		for _, x := range c.ours {
			o := counters(x.tables(fam), true)
			if c.s.edited() {
				o = slices.DeleteFunc(o, isPolicy)
			}
			if d := diffLines(k, o); d != "" {
				x.differ("IPv%d counters differ (- kernel, + ours):\n%s", fam, d)
			}
		}
		if lines := counters(save, false); len(lines) > 0 {
			if c.s.edited() {
				lines = slices.DeleteFunc(lines, isPolicy)
			}
			want[0] += fmt.Sprintf("# IPv%d\n%s", fam, joinLines(lines))
		}
	}
	if len(c.s.sets) > 0 {
		k := strings.Split(c.k.members(), "\n")
		for _, x := range c.ours {
			if d := diffLines(k, strings.Split(x.members(), "\n")); d != "" {
				x.differ("sets differ (- kernel, + ours):\n%s", d)
			}
		}
	}
	c.tick()
	quick, exact := c.k.flows(true), ""
	c.done()
	for i, x := range c.ours {
		d := x.connections(quick, x.flows(false), c.slow)
		if len(d) > 0 || i == 0 && c.s.name != "" {
			if exact == "" {
				c.tick()
				exact = c.k.flows(false)
				c.done()
			}
			d = x.connections(exact, x.flows(false), c.slow)
		}
		x.diffs = append(x.diffs, d...)
	}
	for f, fam := range families {
		if !c.s.uses(f) {
			continue
		}
		c.tick()
		k := c.k.details(fam)
		for _, x := range c.ours {
			o := strings.Split(x.kernelsPorts(strings.Join(x.details(fam), "\n")), "\n")
			sort.Strings(o)
			if d := diffLines(k, slices.DeleteFunc(o, isEmpty)); d != "" {
				x.differ("IPv%d connections' details differ (- kernel, + ours):\n%s", fam, d)
			}
		}
	}
	if exact != "" {
		var lines []string
		for _, f := range flowsOf(exact) {
			lines = append(lines, f.text)
		}
		want[1] = c.ours[0].anyPort("port=", joinLines(lines))
	}
	c.s.want = want
}

// connections compares two lists of connections; slow is how far apart they may
// have been made.
func (c *contender) connections(kernel, ours string, slow time.Duration) (diffs []string) {
	kf := flowsOf(kernel)
	of := flowsOf(c.kernelsPorts(ours))
	var kl, ol []string
	for _, f := range kf {
		kl = append(kl, f.text)
	}
	for _, f := range of {
		ol = append(ol, f.text)
	}
	c.pairPorts(kl, ol)
	if d := diffLines(kl, ol); d != "" {
		return []string{"connections differ (- kernel, + ours):\n" + d}
	}
	for i := range kf {
		if d, most := kf[i].secs-of[i].secs, 3+int(slow.Seconds()); d < -most || d > most {
			diffs = append(diffs, fmt.Sprintf("timeout of %s: %d in the kernel, %d here", kf[i].text, kf[i].secs, of[i].secs))
		}
	}
	return diffs
}

// kernelsPorts names ports that were chosen at random as the kernel's choice.
func (c *contender) kernelsPorts(list string) string {
	return portWord.ReplaceAllStringFunc(list, func(w string) string {
		name, n, _ := strings.Cut(w, "=")
		if x := c.ports[n]; x != "" {
			return name + "=" + x
		}
		return w
	})
}

func isEmpty(s string) bool { return s == "" }

// pairPorts makes connections alike that differ in nothing but the port, or the
// identifier, that NAT chose, which no frame may have told yet.
func (c *contender) pairPorts(k, o []string) {
	for i, kl := range k {
		if slices.Contains(o, kl) {
			continue
		}
		for j, ol := range o {
			if slices.Contains(k, ol) {
				continue
			}
			if name, kp, op, ok := otherPort(kl, ol); ok && (name == "id" || portClass(kp) == portClass(op)) {
				c.ports[fmt.Sprint(op)] = fmt.Sprint(kp)
				o[j] = k[i]
				break
			}
		}
	}
	sort.Strings(o)
}

// otherPort finds the only port in which two connections differ: in the reply
// tuple, and it is in neither's original one.
func otherPort(k, o string) (name string, kp, op uint16, ok bool) {
	kw, ow := strings.Fields(k), strings.Fields(o)
	if len(kw) != len(ow) {
		return "", 0, 0, false
	}
	at := -1
	for i := range kw {
		if kw[i] != ow[i] {
			if at >= 0 {
				return "", 0, 0, false
			}
			at = i
		}
	}
	if at < 0 {
		return "", 0, 0, false
	}
	name, kv, _ := strings.Cut(kw[at], "=")
	oname, ov, _ := strings.Cut(ow[at], "=")
	if name != oname || name != "sport" && name != "dport" && name != "id" || strings.Count(strings.Join(kw[:at], " "), "src=") < 2 {
		return "", 0, 0, false
	}
	fmt.Sscan(kv, &kp)
	fmt.Sscan(ov, &op)
	seen := regexp.MustCompile(`(port|id)=(` + kv + `|` + ov + `)\b`).MatchString(strings.Join(kw[:at], " "))
	return name, kp, op, !seen
}

// diffLines tells the lines that only one has, "" if none; order counts among equal ones.
func diffLines(k, o []string) string {
	var out []string
	count := map[string]int{}
	for _, l := range o {
		count[l]++
	}
	for _, l := range k {
		if count[l] == 0 {
			out = append(out, "- "+l)
		} else {
			count[l]--
		}
	}
	for _, l := range o {
		if count[l] > 0 {
			count[l]--
			out = append(out, "+ "+l)
		}
	}
	if len(out) == 0 && strings.Join(k, "\n") != strings.Join(o, "\n") {
		return "the same, in another order"
	}
	return strings.Join(out, "\n")
}
