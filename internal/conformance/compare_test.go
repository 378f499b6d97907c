package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

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
				got := *s
				c := compare{s: &got}
				for _, v := range variants(offload) {
					c.add(newOurSide(t, s, v))
				}
				c.k = newKernelSide(t, s, c.ours[0].side.(*ourSide).r, offload)
				c.run()
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

	before func() // if set, called before each step
}

// contender is one of ours, with what has become of it so far.
type contender struct {
	side
	name  string
	outs  [][]sent
	ports map[string]string // ours to the kernel's, where both were chosen at random
	diffs []string
	lost  bool // the steps cannot go on
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

// run fills in the scenario's results with what the kernel did.
func (c *compare) run() {
	var kouts [][]sent
	var steps []*step
	for _, st := range c.s.steps {
		cp := *st
		cp.out = nil
		steps = append(steps, &cp)
		if c.before != nil {
			c.before()
		}
		kt, ok := expand(cp.text, kouts)
		var ko []sent
		var kf []sending
		if ok {
			ks := cp
			ks.text, ks.dev = kt, device(cp.dev, kouts)
			var err error
			if kf, err = cp.frames(kt); err != nil {
				c.ours[0].differ("%v", err)
				break
			}
			ko = c.k.do(&ks, kf, 0)
		}
		for _, o := range c.ours {
			if len(o.diffs) > 2 {
				o.lost = true // the rest follows from these
			}
			if o.lost {
				continue
			}
			ot, ok2 := expand(cp.text, o.outs)
			if ok != ok2 {
				o.differ("%s: only one of the two has what this refers to", cp.line)
				o.lost = true
				continue
			}
			var oo []sent
			if ok {
				os := cp
				os.text, os.dev = ot, device(cp.dev, o.outs)
				of, err := cp.frames(ot)
				if err != nil {
					o.differ("%v", err)
					o.lost = true
					continue
				}
				oo = o.do(&os, of, len(ko))
				cp.out = o.outputs(&cp, kf, ko, oo)
			}
			if cp.verb != "do" {
				o.outs = append(o.outs, oo)
			}
		}
		if cp.verb != "do" {
			kouts = append(kouts, ko)
		}
	}
	c.s.steps = steps
	c.dumps()
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
	if kp.VerifyL4() != op.VerifyL4() {
		return k, o
	}
	good := kp.VerifyL4()
	randomID := func(p *packet.Packet) bool {
		for _, f := range in {
			if q := reparse(f.b); q != nil && q.FragID == p.FragID {
				return false
			}
		}
		return p.FragID != 0
	}
	if randomID(kp) && randomID(op) {
		setID(kp)
		setID(op)
	}
	if good && kp.TCPFlags()&packet.TCPSyn != 0 && op.TCPFlags() == kp.TCPFlags() && kp.TCPSeq() != op.TCPSeq() {
		plainSYN(kp)
		plainSYN(op)
	}
	c.translate(op)
	if kp.Is(packet.HasPorts) && good {
		for _, x := range [][2]uint16{{kp.SrcPort(), op.SrcPort()}, {kp.DstPort(), op.DstPort()}} {
			a := fmt.Sprint(x[1])
			if x[0] != x[1] && portClass(x[0]) == portClass(x[1]) && !hasPort(in, x[0]) && !hasPort(in, x[1]) && c.ports[a] == "" {
				c.ports[a] = fmt.Sprint(x[0])
				c.translate(op)
			}
		}
	}
	return kp.Bytes(), op.Bytes()
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
		if q := reparse(f.b); q != nil && q.Is(packet.HasPorts) && (q.SrcPort() == port || q.DstPort() == port) {
			return true
		}
	}
	return false
}

func reparse(b []byte) *packet.Packet {
	p := packet.New()
	p.SetBytes(b)
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

var portWord = regexp.MustCompile(`(port=)(\d+)`)

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
	quick, exact := c.k.flows(true), ""
	for i, x := range c.ours {
		list := x.flows(false)
		d := x.connections(quick, list)
		if len(d) > 0 || i == 0 && c.s.name != "" {
			if exact == "" {
				exact = c.k.flows(false)
			}
			d = x.connections(exact, list)
		}
		x.diffs = append(x.diffs, d...)
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

// connections compares two lists of connections.
func (c *contender) connections(kernel, ours string) (diffs []string) {
	kf := flowsOf(kernel)
	of := flowsOf(portWord.ReplaceAllStringFunc(ours, func(w string) string {
		if x := c.ports[w[5:]]; x != "" {
			return "port=" + x
		}
		return w
	}))
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
		if d := kf[i].secs - of[i].secs; d < -3 || d > 3 {
			diffs = append(diffs, fmt.Sprintf("timeout of %s: %d in the kernel, %d here", kf[i].text, kf[i].secs, of[i].secs))
		}
	}
	return diffs
}

var replyPort = regexp.MustCompile(`^(.* dport=)(\d+)( .*)$`)

// pairPorts makes connections alike that differ in nothing but the port that
// NAT chose for the client, which no frame may have told yet.
func (c *contender) pairPorts(k, o []string) {
	for i, kl := range k {
		if slices.Contains(o, kl) {
			continue
		}
		km := replyPort.FindStringSubmatch(kl)
		for j, ol := range o {
			om := replyPort.FindStringSubmatch(ol)
			if km == nil || om == nil || km[1] != om[1] || km[3] != om[3] || slices.Contains(k, ol) {
				continue
			}
			var kp, op uint16
			fmt.Sscan(km[2], &kp)
			fmt.Sscan(om[2], &op)
			if portClass(kp) == portClass(op) && !strings.Contains(kl, "sport="+km[2]+" ") && !strings.Contains(ol, "sport="+om[2]+" ") {
				c.ports[om[2]] = km[2]
				o[j] = k[i]
				break
			}
		}
	}
	sort.Strings(o)
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
