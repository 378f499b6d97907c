package router

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"sluice/packet"
	"sluice/packet/packettest"
)

// TestKernel takes the running kernel and a Router through the same scenarios:
// the same frames have to leave, the same rules to count, the same connections
// to be known. Without root, the Router is held against what was recorded.
func TestKernel(t *testing.T) {
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
			ours := newOurSide(t, s)
			if os.Getuid() != 0 {
				d := s.replay(ours)
				for _, l := range d {
					t.Error(l)
				}
				return
			}
			kernel := newKernelSide(t, s, ours.r)
			got := *s
			c := compare{s: &got, k: kernel, o: ours}
			c.run()
			for _, l := range c.diffs {
				t.Error(l)
			}
			if recorded := string(got.format(true)); *update && recorded != string(text) {
				if err := os.WriteFile(file, []byte(recorded), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// compare takes two sides through a scenario.
type compare struct {
	s     *scenario
	k, o  side
	ports map[string]string // ours to the kernel's, where both were chosen at random
	diffs []string
}

func (c *compare) differ(format string, args ...any) {
	c.diffs = append(c.diffs, fmt.Sprintf(format, args...))
}

// run fills in the scenario's results with what the kernel did.
func (c *compare) run() {
	c.ports = map[string]string{}
	var kouts, oouts [][]sent
	steps := make([]*step, len(c.s.steps))
	for i, st := range c.s.steps {
		cp := *st
		cp.out = nil
		steps[i] = &cp
		if len(c.diffs) > 2 {
			break // the rest follows from these
		}
		kt, ok := expand(cp.text, kouts)
		ot, ok2 := expand(cp.text, oouts)
		if !ok || !ok2 {
			if !ok && cp.verb != "do" {
				kouts, oouts = append(kouts, nil), append(oouts, nil)
			}
			if ok != ok2 {
				c.differ("%s: only one of the two has what this refers to", cp.line)
				break
			}
			continue
		}
		var kf, of []sending
		if cp.verb == "in" {
			var err error
			if kf, err = frames(kt); err == nil {
				of, err = frames(ot)
			}
			if err != nil {
				c.differ("%v", err)
				break
			}
		}
		ks, os := cp, cp
		ks.text, os.text = kt, ot
		ks.dev, os.dev = device(cp.dev, kouts), device(cp.dev, oouts)
		ko := c.k.do(&ks, kf, 0)
		oo := c.o.do(&os, of, len(ko))
		if cp.verb != "do" {
			kouts, oouts = append(kouts, ko), append(oouts, oo)
		}
		cp.out = c.outputs(&cp, kf, ko, oo)
	}
	c.s.steps = slices.DeleteFunc(steps, func(st *step) bool { return st == nil })
	c.dumps()
}

// outputs compares what left after one step, and describes what left the kernel.
func (c *compare) outputs(st *step, in []sending, ko, oo []sent) (desc []string) {
	ok := len(ko) == len(oo)
	var kd, od []string
	why := ""
	for i := range max(len(ko), len(oo)) {
		if i < len(ko) && i < len(oo) {
			k, o := c.normal(in, ko[i].b, oo[i].b)
			if ko[i].dev != oo[i].dev || string(k) != string(o) {
				if ok {
					why = fmt.Sprintf("\n  kernel %x\n  ours   %x", k, o)
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
func (c *compare) anyPort(before, s string) string {
	for _, k := range c.ports {
		s = regexp.MustCompile(regexp.QuoteMeta(before+k)+`\b`).ReplaceAllLiteralString(s, before+"rnd")
	}
	return s
}

// normal makes alike what Linux chooses at random in frames of its own making:
// identifications, and what a TCP socket says when it opens a connection.
func (c *compare) normal(in []sending, k, o []byte) ([]byte, []byte) {
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
func (c *compare) translate(p *packet.Packet) {
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

func (c *compare) dumps() {
	var want [2]string
	for _, fam := range families {
		k, o := counters(c.k.tables(fam), true), counters(c.o.tables(fam), true)
		if c.s.edited() {
			// iptables-legacy forgets the policies' counters with every edit, the nf_tables one does not.
			k, o = slices.DeleteFunc(k, isPolicy), slices.DeleteFunc(o, isPolicy)
		}
		if d := diffLines(k, o); d != "" {
			c.differ("IPv%d counters differ (- kernel, + ours):\n%s", fam, d)
		}
		if lines := counters(c.k.tables(fam), false); len(lines) > 0 {
			if c.s.edited() {
				lines = slices.DeleteFunc(lines, isPolicy)
			}
			want[0] += fmt.Sprintf("# IPv%d\n%s", fam, joinLines(lines))
		}
	}
	kf := flowsOf(c.k.flows())
	of := flowsOf(portWord.ReplaceAllStringFunc(c.o.flows(), func(w string) string {
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
		c.differ("connections differ (- kernel, + ours):\n%s", d)
	} else {
		for i := range kf {
			if d := kf[i].secs - of[i].secs; d < -3 || d > 3 {
				c.differ("timeout of %s: %d in the kernel, %d here", kf[i].text, kf[i].secs, of[i].secs)
			}
		}
	}
	want[1] = c.anyPort("port=", joinLines(kl))
	c.s.want = want
}

var replyPort = regexp.MustCompile(`^(.* dport=)(\d+)( .*)$`)

// pairPorts makes connections alike that differ in nothing but the port that
// NAT chose for the client, which no frame may have told yet.
func (c *compare) pairPorts(k, o []string) {
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

// TestKernelRandom is TestKernel with scenarios made at random. Each failing
// one is told with its seed, cut down to what it takes to fail.
func TestKernelRandom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: the kernel is asked in a network namespace")
	}
	for i, net := range networks {
		t.Run(fmt.Sprint("network", i), func(t *testing.T) {
			net = append([]string{"sysctl net.ipv4.conf.all.send_redirects=0"}, net...) // they come at a rate
			for i := range 3 {
				net = append(net, fmt.Sprintf("sysctl net.ipv4.conf.tun%d.send_redirects=0", i))
			}
			base := &scenario{net: net}
			kernel := newKernelSide(t, base, newOurSide(t, base).r)
			for n, failed := 0, 0; n < *cases && failed < 4; n++ {
				seed := *firstSeed + uint64(n*len(networks)+i)
				s := newGenerator(seed).scenario(net)
				diffs := try(t, kernel, s)
				if len(diffs) == 0 {
					continue
				}
				failed++
				s, diffs = shrink(t, kernel, s, diffs)
				t.Errorf("seed %d\n%s\n%s", seed, s.format(false), strings.Join(diffs, "\n"))
			}
		})
	}
}

var (
	cases     = flag.Int("kernelcases", 60, "random scenarios per network")
	firstSeed = flag.Uint64("kernelseed", 1, "the first one's seed")
)

// scope is a part of a test that cleans up when it ends. (A subtest would be
// another goroutine, on a thread that is not in the kernel's namespace.)
type scope struct {
	testing.TB
	undo []func()
}

func (s *scope) Cleanup(f func()) { s.undo = append(s.undo, f) }

func (s *scope) end() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
}

// try takes both sides through s and tells how they differ.
func try(t *testing.T, kernel *kernelSide, s *scenario) []string {
	sc := &scope{TB: t}
	defer sc.end()
	ours, err := tryOurSide(sc, s)
	why := kernel.load(s)
	if (err != nil) != (why != "") {
		return []string{fmt.Sprintf("rules: the kernel says %q, we %v", why, err)}
	}
	if err != nil || why != "" {
		return nil
	}
	got := *s
	c := compare{s: &got, k: kernel, o: ours}
	c.run()
	return c.diffs
}

// shrink leaves rules and frames out as long as there is a difference.
func shrink(t *testing.T, kernel *kernelSide, s *scenario, diffs []string) (*scenario, []string) {
	end := time.Now().Add(8 * time.Second)
	for smaller := true; smaller; {
		smaller = false
		for i := range s.pieces() {
			if time.Now().After(end) {
				return s, diffs
			}
			x := s.without(i)
			if x == nil {
				continue
			}
			if d := try(t, kernel, x); len(d) > 0 {
				s, diffs, smaller = x, d, true
				break
			}
		}
	}
	return s, diffs
}
