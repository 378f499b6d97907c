package conformance

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/tools/txtar"

	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/router"
	"sluice/tables"
)

// A scenario is what happens to a router, as text (testdata/kernel/*.txtar). It
// has tun0 (10.1.0.1/24, fd01::1/64), tun1 (10.2.0.1/24, fd02::1/64) and tun2
// (10.3.0.1/24, fd03::1/64), default routes via 10.2.0.2 and fd02::2, and all
// five tables, empty.
//
//	-- net --                          what differs, a line each
//	bare                               no default routes
//	addr tun0 10.1.9.1/24
//	mtu tun1 1400
//	route blackhole 10.9.0.0/16        as for `ip route add`
//	rule fwmark 1 table 100            as for `ip rule add`
//	sysctl net.ipv4.conf.all.rp_filter=1
//	listen tcp://10.1.0.1:80
//	listen tcp://0.0.0.0:3129 transparent
//	-- sets --                         as for `ipset restore`
//	-- rules --                        of IPv4, as typed to iptables: -t TABLE -A …
//	-- rules6 --                       of IPv6
//	-- frames --
//	in tun0 udp 10.1.0.2:5000 > 10.2.0.2:53        as package packettest reads it
//	out tun1 udp 10.1.0.2:5000 > 10.2.0.2:53 …     what left, as it describes it
//	in tun1 udp @1.dst > @1.src                    the ends of what the first frame became
//	in tun1 icmp 10.2.0.2 > @1.saddr type=3/1 @1.quote
//	in tun0 tcp 10.1.0.2:5000 > 10.2.0.2:80 A tcpopts=0101080a00000064@1.ts
//	in tun0 udp 10.1.0.2:5000 > 10.2.0.2:53 len=2000 cut=1480     in fragments
//	in tun0 tcp 10.1.0.2:5000 > 10.2.0.2:80 A len=9000 gso=1400     a super-packet
//	send udp 10.2.0.1:7000 > 10.2.0.2:53 len=5     by a socket of the router's own
//	do iptables -t nat -A POSTROUTING -j MASQUERADE
//	ask conntrack -L expect                        what a command prints ("! ": on stderr) is compared
//	watch conntrack -E -o id                       a listener, until
//	hear                                           which ends the oldest and has what it printed
//	-- counters --                     iptables-save -c, without what is zero
//	-- conntrack --                    conntrack -L, without what depends on time
//
// The out lines and the last two sections are what the kernel did, recorded
// with -update.
type scenario struct {
	name  string
	head  string
	net   []string
	sets  []string
	rules [2][]string // IPv4, IPv6
	steps []*step
	want  [2]string // counters, conntrack

	only uint8 // the family of all rules and packets; 0: of both
}

// uses: packets of the family (0: IPv4) are in it.
func (s *scenario) uses(f int) bool { return s.only == 0 || s.only == families[f] }

// lists: its rules keep named lists, which outlive the rules.
func (s *scenario) lists() bool {
	all := strings.Join(slices.Concat(s.rules[0], s.rules[1]), " ")
	return strings.Contains(all, "hashlimit") || strings.Contains(all, "recent") || len(s.sets) > 0
}

// tellsMTU: an ICMP error in it says how large packets may be.
func (s *scenario) tellsMTU() bool {
	return slices.ContainsFunc(s.steps, func(st *step) bool {
		return strings.Contains(st.text, "type=3/4 ") || strings.Contains(st.text, "type=2 ")
	})
}

var families = [2]uint8{packet.IPv4, packet.IPv6}

// step is one line of -- frames --, with the lines that came of it.
type step struct {
	comment []string
	line    string
	verb    string // in, send, do, ask, watch, hear
	dev     string
	text    string
	n       int // of this in or send line, from 1; what @n means
	out     []string
}

func parseScenario(name string, text []byte) (*scenario, error) {
	a := txtar.Parse(text)
	s := &scenario{name: name, head: string(a.Comment)}
	for _, f := range a.Files {
		lines := strings.Split(strings.TrimRight(string(f.Data), "\n"), "\n")
		switch f.Name {
		case "net":
			s.net = lines
		case "sets":
			s.sets = lines
		case "rules":
			s.rules[0] = lines
		case "rules6":
			s.rules[1] = lines
		case "frames":
			if err := s.parseFrames(lines); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		case "counters":
			s.want[0] = string(f.Data)
		case "conntrack":
			s.want[1] = string(f.Data)
		default:
			return nil, fmt.Errorf("%s: unknown section %s", name, f.Name)
		}
	}
	return s, nil
}

func (s *scenario) parseFrames(lines []string) error {
	var comment []string
	n := 0
	for _, l := range lines {
		if l = strings.TrimSpace(l); l == "" || l[0] == '#' {
			comment = append(comment, l)
			continue
		}
		verb, rest, _ := strings.Cut(l, " ")
		if verb == "out" {
			if len(s.steps) == 0 {
				return fmt.Errorf("%q comes first", l)
			}
			at := s.steps[len(s.steps)-1]
			at.out = append(at.out, rest)
			continue
		}
		st := &step{comment: comment, line: l, verb: verb, text: rest}
		comment = nil
		switch verb {
		case "in":
			n++
			st.n = n
			st.dev, st.text, _ = strings.Cut(rest, " ")
		case "send":
			n++
			st.n = n
		case "do", "ask", "watch", "hear":
		default:
			return fmt.Errorf("unknown line %q", l)
		}
		s.steps = append(s.steps, st)
	}
	return nil
}

// format is the scenario as text again; results: with what came of it.
func (s *scenario) format(results bool) []byte {
	a := &txtar.Archive{Comment: []byte(s.head)}
	add := func(name string, lines []string) {
		if len(lines) > 0 {
			a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(strings.Join(lines, "\n") + "\n")})
		}
	}
	add("net", s.net)
	add("sets", s.sets)
	add("rules", s.rules[0])
	add("rules6", s.rules[1])
	var frames []string
	for _, st := range s.steps {
		frames = append(append(frames, st.comment...), st.line)
		if results {
			for _, o := range st.out {
				frames = append(frames, "out "+o)
			}
		}
	}
	add("frames", frames)
	if results {
		for i, name := range []string{"counters", "conntrack"} {
			if s.want[i] != "" {
				a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(s.want[i])})
			}
		}
	}
	return txtar.Format(a)
}

// members is a save of sets without what has no fixed value.
func members(save string) string {
	save = setRandom.ReplaceAllString(save, "")
	save = setTime.ReplaceAllString(save, "${1}timeout T")
	lines := strings.Split(strings.TrimSpace(save), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

var (
	setRandom = regexp.MustCompile(` (hashsize|initval) \S+`)
	setTime   = regexp.MustCompile(`(add \S+ \S+ )timeout [1-9]\d*`)
)

var hooksOf = map[string][]string{
	"raw": {"PREROUTING", "OUTPUT"}, "mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}, "filter": {"INPUT", "FORWARD", "OUTPUT"}, "security": {"INPUT", "FORWARD", "OUTPUT"},
}

// restore is a family's rules as iptables-restore reads them; all tables are named.
func restore(rules []string) string {
	var b strings.Builder
	for t := range tables.NumTables {
		var decl, body []string
		policy := map[string]string{}
		for _, l := range rules {
			table := "filter"
			if rest, ok := strings.CutPrefix(l, "-t "); ok {
				table, l, _ = strings.Cut(rest, " ")
			}
			if l == "" || l[0] == '#' || table != t.String() {
				continue
			}
			switch w := strings.Fields(l); w[0] {
			case "-P":
				policy[w[1]] = w[2]
			case "-N":
				decl = append(decl, ":"+w[1]+" - [0:0]")
			default:
				body = append(body, l)
			}
		}
		fmt.Fprintf(&b, "*%s\n", t)
		for _, c := range hooksOf[t.String()] {
			p := policy[c]
			if p == "" {
				p = "ACCEPT"
			}
			fmt.Fprintf(&b, ":%s %s [0:0]\n", c, p)
		}
		fmt.Fprintf(&b, "%sCOMMIT\n", joinLines(append(decl, body...)))
	}
	return b.String()
}

func joinLines(l []string) string {
	if len(l) == 0 {
		return ""
	}
	return strings.Join(l, "\n") + "\n"
}

// config is the scenario's router.
func (s *scenario) config() (*router.Config, error) {
	c := &router.Config{}
	for i := range 3 {
		n := fmt.Sprint(i + 1)
		c.Interfaces = append(c.Interfaces, router.InterfaceConfig{
			Name: fmt.Sprint("tun", i), MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("10." + n + ".0.1/24"), netip.MustParsePrefix("fd0" + n + "::1/64")},
		})
	}
	for _, l := range base {
		if err := s.configure(c, l); err != nil {
			return nil, err
		}
	}
	for _, l := range s.network() {
		if err := s.configure(c, l); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", s.name, l, err)
		}
	}
	for f, r := range []*router.RulesetConfig{&c.IPTables, &c.IP6Tables} {
		if len(s.sets) > 0 {
			break // they come after the sets
		}
		r.Restore = []router.RestoreFile{{Path: s.name, Text: []byte(restore(s.rules[f]))}}
	}
	return c, nil
}

// network is -- net -- with the default routes.
func (s *scenario) network() []string {
	if slices.Contains(s.net, "bare") {
		return s.net
	}
	return append([]string{"route default via 10.2.0.2 dev tun1", "route default via fd02::2 dev tun1"}, s.net...)
}

// routing is the part of it that `ip` reads.
func (s *scenario) routing() (out []string) {
	for _, l := range s.network() {
		switch w, rest, _ := strings.Cut(l, " "); w {
		case "route", "rule":
			out = append(out, w+" add "+rest)
		}
	}
	return out
}

// base is how both sides differ from the kernel's defaults: so that nothing
// depends on time or chance.
var base = []string{
	"sysctl net.ipv4.icmp_ratelimit=0", "sysctl net.ipv4.icmp_msgs_per_sec=1000000", "sysctl net.ipv4.icmp_msgs_burst=1000000",
	"sysctl net.ipv6.icmp.ratelimit=0", "sysctl net.netfilter.nf_conntrack_acct=1",
}

func (s *scenario) configure(c *router.Config, l string) (err error) {
	w := strings.Fields(l)
	if len(w) == 0 || w[0] == "bare" || w[0][0] == '#' {
		return nil
	}
	switch w[0] {
	case "addr":
		p, err := netip.ParsePrefix(w[2])
		i := c.Interface(w[1])
		i.Addresses = append(i.Addresses, p)
		return err
	case "mtu":
		c.Interface(w[1]).MTU, err = strconv.Atoi(w[2])
		return err
	case "sysctl":
		name, value, _ := strings.Cut(w[1], "=")
		c.Sysctl = append(c.Sysctl, router.SysctlConfig{Name: name, Value: value})
		return nil
	case "listen":
		network, addr, _ := strings.Cut(w[1], "://")
		ap, err := netip.ParseAddrPort(addr)
		c.Services = append(c.Services, router.ServiceConfig{Type: "discard", Listen: []router.Listen{{Network: network, Addr: ap}}, Transparent: slices.Contains(w, "transparent")})
		return err
	case "route":
		return s.route(c, w[1:])
	case "rule":
		return s.rule(c, w[1:])
	}
	return fmt.Errorf("unknown line")
}

func (s *scenario) route(c *router.Config, w []string) (err error) {
	var r router.RouteConfig
	r.SetDefaults()
	switch w[0] {
	case router.RouteBlackhole, router.RouteUnreachable, router.RouteProhibit, router.RouteLocal:
		r.Type, w = w[0], w[1:]
	}
	if r.Type == router.RouteLocal {
		r.Table = router.TableLocal
	}
	to := w[0]
	for i := 1; i+1 < len(w) && err == nil; i += 2 {
		var n uint64
		switch w[i] {
		case "via":
			r.Via, err = netip.ParseAddr(w[i+1])
		case "dev":
			r.Dev = w[i+1]
		case "src":
			r.Src, err = netip.ParseAddr(w[i+1])
		case "table":
			n, err = strconv.ParseUint(w[i+1], 0, 32)
			r.Table = uint32(n)
		case "metric":
			n, err = strconv.ParseUint(w[i+1], 0, 32)
			r.Metric = uint32(n)
		default:
			err = fmt.Errorf("unknown word %s", w[i])
		}
	}
	if err == nil && to == "default" {
		to = "0.0.0.0/0"
		if r.Via.Is6() {
			to = "::/0"
		}
	}
	if err == nil {
		r.To, err = netip.ParsePrefix(to)
	}
	c.Routes = append(c.Routes, r)
	return err
}

func (s *scenario) rule(c *router.Config, w []string) (err error) {
	var r router.RuleConfig
	r.SetDefaults()
	for i := 0; i+1 < len(w) && err == nil; i += 2 {
		var n uint64
		switch w[i] {
		case "from":
			r.From, err = netip.ParsePrefix(w[i+1])
		case "to":
			r.To, err = netip.ParsePrefix(w[i+1])
		case "iif":
			r.IIF = w[i+1]
		case "fwmark":
			v, m, has := strings.Cut(w[i+1], "/")
			n, err = strconv.ParseUint(v, 0, 32)
			r.FWMark = router.MarkMatch{Value: uint32(n), Mask: 1<<32 - 1}
			if has && err == nil {
				n, err = strconv.ParseUint(m, 0, 32)
				r.FWMark.Mask = uint32(n)
			}
		case "table":
			n, err = strconv.ParseUint(w[i+1], 0, 32)
			r.Table = uint32(n)
		case "priority":
			n, err = strconv.ParseUint(w[i+1], 0, 32)
			r.Priority = uint32(n)
		case "type":
			r.Type = w[i+1]
		default:
			err = fmt.Errorf("unknown word %s", w[i])
		}
	}
	c.Rules = append(c.Rules, r)
	return err
}

// sent is a frame, its checksum complete, and the device that it left by; gso
// is 0 unless it is a super-packet.
type sent struct {
	dev string
	b   []byte
	gso uint32
}

var reference = regexp.MustCompile(`@(\d+)\.([a-z]+)(\d*)((?:[+-]\d+)?)`)

// expand puts in what @n means; ok is false where frame n left nothing behind.
func expand(text string, outs [][]sent) (_ string, ok bool) {
	ok = true
	text = reference.ReplaceAllStringFunc(text, func(ref string) string {
		m := reference.FindStringSubmatch(ref)
		n, _ := strconv.Atoi(m[1])
		if n < 1 || n > len(outs) || len(outs[n-1]) == 0 {
			ok = false
			return ref
		}
		p := packet.Of(outs[n-1][0].b)
		if p.Parse() != 0 {
			ok = false
			return ref
		}
		num := func(v uint32) string {
			d, _ := strconv.Atoi(m[4])
			return fmt.Sprint(v + uint32(d))
		}
		end := func(a netip.Addr, port uint16) string {
			if p.Is(packet.HasPorts) {
				return netip.AddrPortFrom(a, port).String()
			}
			return a.String()
		}
		switch m[2] {
		case "src":
			return end(p.SrcAddr(), p.SrcPort())
		case "dst":
			return end(p.DstAddr(), p.DstPort())
		case "saddr":
			return p.SrcAddr().String()
		case "daddr":
			return p.DstAddr().String()
		case "seq":
			return num(p.TCPSeq())
		case "ack":
			return num(p.TCPAck())
		case "xseq": // the sequence number, as tcpopts= has it
			d, _ := strconv.Atoi(m[4])
			return fmt.Sprintf("%08x", p.TCPSeq()+uint32(d))
		case "ts": // the timestamp, as tcpopts= has it
			if at := timestampAt(p.Transport()); at > 0 {
				return hex.EncodeToString(p.Transport()[at : at+4])
			}
			ok = false
			return ref
		case "id":
			return num(uint32(be16(p.Transport()[4:])))
		case "quote":
			setID(p) // where it is the router's own packet it is random
			b := p.Bytes()
			if k, err := strconv.Atoi(m[3]); err == nil {
				b = b[:min(k, len(b))]
			}
			return "hex=" + hex.EncodeToString(b)
		}
		ok = false
		return ref
	})
	return text, ok
}

// device is a step's interface; @n is the one that frame n left by.
func device(dev string, outs [][]sent) string {
	n, has := strings.CutPrefix(dev, "@")
	if !has {
		return dev
	}
	i, _ := strconv.Atoi(n)
	return outs[i-1][0].dev
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

var cutWord = regexp.MustCompile(` cut=([\d,]+)`)

var gsoWord = regexp.MustCompile(` gso=(\d+)`)

// sending is a frame for a device, perhaps a super-packet.
type sending struct {
	b   []byte
	gso packet.GSO
}

// frames makes the frames of an in line's description.
func frames(desc string) (out []sending, err error) {
	if h, ok := strings.CutPrefix(desc, "raw "); ok {
		b, err := hex.DecodeString(strings.ReplaceAll(h, " ", ""))
		return []sending{{b: b}}, err
	}
	if m := cutWord.FindStringSubmatch(desc); m != nil {
		var sizes []int
		for _, x := range strings.Split(m[1], ",") {
			n, err := strconv.Atoi(x)
			if err != nil {
				return nil, err
			}
			sizes = append(sizes, n)
		}
		pieces, err := packettest.Fragments(strings.Replace(desc, m[0], "", 1), sizes...)
		for _, b := range pieces {
			out = append(out, sending{b: b})
		}
		return out, err
	}
	size := 0
	if m := gsoWord.FindStringSubmatch(desc); m != nil {
		desc = strings.Replace(desc, m[0], "", 1)
		size, _ = strconv.Atoi(m[1])
	}
	b, err := packettest.Frame(desc)
	if err != nil {
		return nil, err
	}
	x := sending{b: b}
	if size > 0 {
		x.superPacket(size)
	}
	return []sending{x}, nil
}

// superPacket makes of a frame what a device with offload takes: a partial
// checksum, to be cut into segments of size bytes.
func (x *sending) superPacket(size int) {
	p := reparse(x.b)
	if p == nil {
		return // its header is wrong
	}
	t := p.Transport()
	at, n := 6, 8
	x.gso.Type = packet.GSOUDPL4
	if p.Proto == packet.ProtoTCP {
		at, n, x.gso.Type = 16, p.TCPHeaderLen(), packet.GSOTCPv4
		if p.Family == packet.IPv6 {
			x.gso.Type = packet.GSOTCPv6
		}
	}
	sum := packet.PseudoSum(p.SrcAddr().AsSlice(), p.DstAddr().AsSlice(), p.Proto, len(t))
	t[at], t[at+1] = byte(sum>>8), byte(sum)
	x.b = p.Bytes()
	x.gso.NeedsCsum, x.gso.CsumStart, x.gso.CsumOffset = true, p.L4, uint16(at)
	x.gso.HdrLen, x.gso.Size = p.L4+uint16(n), uint16(size)
}

// edited: rules change in it.
func (s *scenario) edited() bool {
	return slices.ContainsFunc(s.steps, func(st *step) bool { return st.verb == "do" && strings.Contains(st.text, "tables") })
}

func isPolicy(line string) bool { return strings.Fields(line)[1] != "-A" }

// replay holds a side against what was recorded of the kernel.
func (s *scenario) replay(o side) (diffs []string) {
	var outs [][]sent
	var secret cookies
	for _, st := range s.steps {
		text, ok := expand(st.text, outs)
		if !ok {
			outs = append(outs, nil)
			continue
		}
		if st.asks() {
			if got := o.ask(st); !sameLines(st.out, got) {
				diffs = append(diffs, fmt.Sprintf("%s\nthe kernel's said:\n%s\nours says:\n%s", st.line, strings.Join(st.out, "\n"), strings.Join(got, "\n")))
			}
			continue
		}
		var fs []sending
		if st.verb == "in" {
			var err error
			if fs, err = frames(text); err != nil {
				return []string{err.Error()}
			}
		}
		now := *st
		now.text, now.dev = text, device(st.dev, outs)
		out := o.do(&now, fs, len(st.out))
		if st.sends() {
			outs = append(outs, out)
		}
		var got []string
		for _, x := range secret.all(out) {
			got = append(got, x.dev+" "+packettest.Describe(x.b))
		}
		if !sameLines(st.out, got) {
			diffs = append(diffs, fmt.Sprintf("%s\nthe kernel sent:\n%s\nwe send:\n%s", st.line, strings.Join(st.out, "\n"), strings.Join(got, "\n")))
		}
	}
	var got string
	for _, fam := range families {
		if lines := counters(o.tables(fam), false); len(lines) > 0 {
			if s.edited() {
				lines = slices.DeleteFunc(lines, isPolicy)
			}
			got += fmt.Sprintf("# IPv%d\n%s", fam, joinLines(lines))
		}
	}
	var flows []string
	for _, f := range flowsOf(o.flows(false)) {
		flows = append(flows, f.text)
	}
	for i, g := range []string{got, joinLines(flows)} {
		if !sameLines(strings.Split(s.want[i], "\n"), strings.Split(g, "\n")) {
			diffs = append(diffs, fmt.Sprintf("the kernel had:\n%s\nwe have:\n%s", s.want[i], g))
		}
	}
	return diffs
}

// chance is what a recording cannot know: numbers that are random where the
// frame is a router's own, and ports recorded as "rnd".
var chance = regexp.MustCompile(`seq=\d+|ipid=\d+|win=\d+|port=rnd|:rnd`)

// sameLines holds lines against recorded ones, each of which has to have one of
// its own, in any order.
func sameLines(recorded, got []string) bool {
	if len(recorded) != len(got) {
		return false
	}
	got = slices.Clone(got)
	for _, l := range recorded {
		var re strings.Builder
		at := 0
		for _, m := range chance.FindAllStringIndex(l, -1) {
			re.WriteString(regexp.QuoteMeta(l[at:m[0]]))
			word := strings.TrimRight(strings.TrimSuffix(l[m[0]:m[1]], "rnd"), "0123456789")
			re.WriteString(word + `\d+`)
			at = m[1]
		}
		re.WriteString(regexp.QuoteMeta(l[at:]))
		x := regexp.MustCompile("^" + re.String() + "$")
		i := slices.IndexFunc(got, x.MatchString)
		if i < 0 {
			return false
		}
		got = slices.Delete(got, i, i+1)
	}
	return true
}

// pieces is how many things without can leave out.
func (s *scenario) pieces() int { return len(s.steps) + len(s.rules[0]) + len(s.rules[1]) }

// without is the scenario with n pieces left out from the i-th on: steps, and
// those that refer to them, or rules. nil: it cannot be.
func (s *scenario) without(i, n int) *scenario {
	x := *s
	x.steps = nil
	gone := func(piece int) bool { return piece >= i && piece < i+n }
	// Numbers of the steps that stay; 0: gone.
	number := map[int]int{}
	k := 0
	for j, st := range s.steps {
		out := gone(j)
		line := refNumber.ReplaceAllStringFunc(st.line, func(w string) string {
			at, _ := strconv.Atoi(w[1:])
			if number[at] == 0 {
				out = true
			}
			return fmt.Sprint("@", number[at])
		})
		if out {
			continue
		}
		if st.n > 0 {
			k++
			number[st.n] = k
		}
		var y scenario
		if err := y.parseFrames([]string{line}); err != nil {
			return nil
		}
		y.steps[0].n = k
		x.steps = append(x.steps, y.steps[0])
	}
	at := len(s.steps)
	for f := range s.rules {
		x.rules[f] = nil
		for _, l := range s.rules[f] {
			if !gone(at) {
				x.rules[f] = append(x.rules[f], l)
			}
			at++
		}
	}
	return &x
}

var refNumber = regexp.MustCompile(`@\d+`)
