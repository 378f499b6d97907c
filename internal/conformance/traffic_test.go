package conformance

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// send has one of the router's own sockets speak.
func (g *generator) send() {
	port := 20000 + g.IntN(20000)
	for g.bound[port] { // no socket of ours shares a port with one that is open
		port++
	}
	g.bound[port] = true
	f := &genFlow{dev: "tun0", proto: "udp", src: pickOne(g, g.f("10.1.0.1", "fd01::1"), g.f("10.2.0.1", "fd02::1")), sport: port, dport: pickOne(g, 53, 80, 9)}
	f.dst = pickOne(g, g.f("9.9.9.9", "2001:db8::9"), g.f("10.1.0.2", "fd01::2"), g.f("10.2.0.1", "fd02::1"), g.f("10.51.0.1", "fd40::1"))
	f.sent = append(f.sent, g.add("send "+f.forward()+pickOne(g, " len=5", " len=1000")))
	if len(g.flows) < 8 && g.chance(70) {
		g.flows = append(g.flows, f)
		g.server(f)
	}
}

// genFlow is who talks to whom.
type genFlow struct {
	dev, proto   string
	src, dst     string
	sport, dport int
	cseq, sseq   uint32
	sent         []int // numbers of its client's frames
	back         []int // and of its server's
}

func (g *generator) flow() *genFlow {
	f := &genFlow{cseq: g.Uint32(), sseq: g.Uint32()}
	f.proto = pickOne(g, "udp", "udp", "udp", "tcp", "tcp", "tcp", "tcp", g.f("icmp", "icmp6"), g.f("icmp", "icmp6"), "47", "200", "sctp", "udplite")
	if g.chance(12) {
		f.proto = pickOne(g, "dccp", "sctp", "50", "108", g.f("51", "135"))
	}
	type host struct{ dev, v4, v6 string }
	src := pickOne(g, host{"tun0", "10.1.0.2", "fd01::2"}, host{"tun0", "10.1.0.2", "fd01::2"}, host{"tun0", "10.1.0.3", "fd01::3"},
		host{"tun1", "9.9.9.9", "2001:db8::9"}, host{"tun1", "10.2.0.2", "fd02::2"}, host{"tun2", "10.3.0.2", "fd03::2"}, host{"tun2", "8.8.8.8", "2001:db8::8"})
	dst := pickOne(g, host{"", "9.9.9.9", "2001:db8::9"}, host{"", "9.9.9.9", "2001:db8::9"}, host{"", "8.8.8.8", "2001:db8::8"}, host{"", "10.2.0.2", "fd02::2"}, host{"", "10.1.0.2", "fd01::2"},
		host{"", "10.1.0.1", "fd01::1"}, host{"", "10.2.0.1", "fd02::1"}, host{"", "10.3.0.2", "fd03::2"}, host{"", "10.50.0.1", "fd50::1"}, host{"", "10.51.0.1", "fd40::1"},
		host{"", "10.1.0.255", "fd01::ff"}, host{"", "10.2.0.7", "fd02::7"})
	f.dev, f.src, f.dst = src.dev, g.f(src.v4, src.v6), g.f(dst.v4, dst.v6)
	if g.transit && slices.Contains([]string{"10.1.0.1", "fd01::1", "10.2.0.1", "fd02::1", "10.2.0.7", "fd02::7", "fd01::ff"}, f.dst) {
		return g.flow()
	}
	f.sport, f.dport = pickOne(g, 5000, 5001, 500, 40000), pickOne(g, 53, 80, 9, 5000)
	if len(g.hosts) > 0 && g.chance(60) {
		f.src = pickOne(g, g.hosts...)
	}
	if len(g.hosts) > 0 && g.chance(60) {
		f.dst = pickOne(g, g.hosts...)
	}
	if len(g.ports) > 0 && g.chance(80) {
		f.dport = pickOne(g, g.ports...)
		f.sport = 1024 + g.IntN(40000)
	}
	return f
}

// inside is an address in a prefix that a packet can have.
func inside(prefix string, r *rand.Rand) (string, bool) {
	p, err := netip.ParsePrefix(prefix)
	if err != nil || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Bits() < 8 {
		return "", false
	}
	b := p.Addr().AsSlice()
	if left := len(b)*8 - p.Bits(); left >= 8 {
		b[len(b)-1] = byte(1 + r.IntN(250))
	}
	a, _ := netip.AddrFromSlice(b)
	return a.String(), !a.IsLinkLocalUnicast()
}

func (f *genFlow) ported() bool { return f.proto != "icmp" && f.proto != "icmp6" && f.proto[0] > '9' }

func endText(addr string, port int) string {
	if strings.Contains(addr, ":") {
		return fmt.Sprintf("[%s]:%d", addr, port)
	}
	return fmt.Sprintf("%s:%d", addr, port)
}

func (f *genFlow) forward() string {
	if f.ported() {
		return fmt.Sprintf("%s %s > %s", f.proto, endText(f.src, f.sport), endText(f.dst, f.dport))
	}
	return fmt.Sprintf("%s %s > %s", f.proto, f.src, f.dst)
}

func (g *generator) add(line string) int {
	g.n++
	if strings.Contains(line, "gso=") {
		line = strings.Replace(line, " ext=ah", "", 1) // no device makes segments of that
	}
	g.lines = append(g.lines, line)
	return g.n
}

// header is what a packet may have of its own.
func (g *generator) header() string {
	var b strings.Builder
	if g.chance(15) {
		fmt.Fprintf(&b, " ttl=%d", pickOne(g, 0, 1, 2, 3, 65, 255))
	}
	if g.chance(12) {
		fmt.Fprintf(&b, " tos=%d", pickOne(g, 0x10, 0x28, 0x02, 0xb8))
	}
	if !g.v6 && g.chance(25) {
		b.WriteString(" df")
	}
	if g.chance(2) {
		b.WriteString(" badcsum")
	}
	if !g.v6 && g.chance(1) {
		b.WriteString(" badip")
	}
	if !g.v6 && g.chance(3) {
		b.WriteString(" opts=" + pickOne(g, "94040000", "01010101", "82ff"))
	}
	if g.v6 && g.chance(3) {
		ext := pickOne(g, "hop", "dest", "dest,route", "hop,dest", "route", "ah")
		if ext == "ah" && !g.transit {
			ext = "dest" // what is for the router itself is answered otherwise, see docs/differences.md
		}
		b.WriteString(" ext=" + ext)
	}
	if !g.v6 && g.chance(60) {
		fmt.Fprintf(&b, " ipid=%d", g.IntN(60000)+1)
	}
	return b.String()
}

// payloads are what packets of some protocols hold.
var payloads = map[string][]string{
	"47":  {"0000080045"},
	"50":  {"0000000500000001aabbccdd", "0000000900000001aabbccdd", "0000"},
	"51":  {"110400000000000500000001000000000000000000000000", "110400000000000900000001000000000000000000000000", "1104"},
	"108": {"11000005aabb", "11000009aabb", "11"},
	"135": {"3b00050000000000", "3b00000000000000", "0600050000000000", "3b00"},
	"sctp": { // INIT, DATA, SACK, ABORT, HEARTBEAT, COOKIE ECHO with DATA, the end, and what is none
		"010000140000000700000fff0001000100000009", "0003001400000001000000000000000061626364", "03000010000000010000ffff00000000", "06000004", "0400000800010004",
		"0a000008010203040003001400000001000000000000000061626364", "0700000800000001", "08000004", "0e000004", "0000", "00030002",
	},
}

// content is what a packet of the flow's protocol holds, for those that are neither TCP nor ICMP.
func (g *generator) content(proto string) string {
	p := payloads[proto]
	switch {
	case proto == "dccp":
		return fmt.Sprintf(" type=%d", pickOne(g, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12)) + g.size()
	case len(p) > 0 && (proto != "sctp" || g.chance(80)):
		return " hex=" + pickOne(g, p...)
	}
	return g.size()
}

func (g *generator) size() string {
	return pickOne(g, "", " len=1", " len=20", " len=56", " len=56", " len=100", " len=1000", " len=1380", " len=1452")
}

func (g *generator) event() {
	if len(g.edits) > 0 && g.chance(5) {
		g.lines = append(g.lines, "do "+pickOne(g, g.edits...))
		return
	}
	f := pickOne(g, g.flows...)
	switch {
	case g.chance(2):
		update := "-U -s " + g.f("10.1.0.2", "fd01::2") + " -m 1"
		if g.zones {
			update = "-D -s " + g.f("10.1.0.2", "fd01::2") // see docs/differences.md
		}
		g.lines = append(g.lines, "do conntrack "+pickOne(g, "-F", "-D -p udp", "-D -p tcp -f "+g.f("ipv4", "ipv6"), update))
	case g.chance(6) && !g.transit:
		g.send()
	case len(f.sent) == 0 || g.chance(35) && f.sport < 20000 || f.sport == 40000:
		g.client(f)
	case g.chance(70):
		g.server(f)
	default:
		g.fault(f)
	}
}

// damaged is an in line with a frame that is not what it says, as raw bytes.
func (g *generator) damaged(line string) string {
	w := strings.SplitN(line, " ", 3)
	fs, err := frames(w[2])
	if err != nil {
		panic(err)
	}
	b := fs[0].b
	switch g.IntN(6) {
	case 0:
		b = b[:g.IntN(len(b))+1]
	case 1:
		b = append(b, make([]byte, 1+g.IntN(20))...)
	case 2: // the length
		at := g.f("2", "4")[0] - '0'
		b[at], b[at+1] = 0, byte(g.IntN(256))
	case 3:
		b[0] = byte(g.IntN(256))
	default:
		i := g.IntN(min(len(b), 60))
		b[i] ^= 1 << g.IntN(8)
	}
	return fmt.Sprintf("in %s raw %s", w[1], hex.EncodeToString(b))
}

var optionWord, extWord = regexp.MustCompile(` opts=\w+`), regexp.MustCompile(` ext=[a-z,]+`)

func (g *generator) client(f *genFlow) {
	text := fmt.Sprintf("in %s %s", f.dev, f.forward())
	switch f.proto {
	case "tcp":
		text += g.segment(f, &f.cseq, f.sseq, len(f.sent) == 0, false)
	case "icmp", "icmp6":
		text += fmt.Sprintf(" id=%d seq=%d", f.sport, len(f.sent)) + g.size()
		if g.chance(5) {
			text += g.f(" type=0", " type=129")
		} else if g.transit && g.chance(15) {
			text += " type=" + g.f(pickOne(g, "13", "14", "17", "18", "10", "9", "5/1", "42"), pickOne(g, "130", "143", "200", "127/1", "2"))
		}
	default:
		text += g.content(f.proto)
	}
	h := g.header()
	if f.proto == "icmp" {
		h = optionWord.ReplaceAllString(h, "") // echoed, see docs/differences.md
	}
	if f.proto == "udp" && g.chance(2) {
		h += pickOne(g, " nocsum", fmt.Sprintf(" l4len=%d", g.IntN(100)))
	}
	text += h
	switch {
	case strings.Contains(text, "gso="), g.tees:
	case f.proto == "tcp" && g.chance(3):
		text = extWord.ReplaceAllString(strings.Replace(text, " badcsum", "", 1), "") + fmt.Sprintf(" cut=%d ipid=%d", pickOne(g, g.tcpCut, 24, 64), g.IntN(60000)+1)
	case f.proto != "tcp" && payloads[f.proto] == nil && g.chance(8):
		text = extWord.ReplaceAllString(strings.Replace(text, " badcsum", "", 1), "")
		text += fmt.Sprintf(" len=%d cut=%s ipid=%d", 1600+g.IntN(1000), pickOne(g, "8", "600", "1200", "600,600"), g.IntN(60000)+1)
	case g.chance(1):
		text += fmt.Sprintf(" frag=%s ipid=%d", pickOne(g, "1480", "600+", "64000", g.f("1480", "0")), g.IntN(60000)+1)
	case g.chance(2):
		text = g.damaged(text)
	}
	f.sent = append(f.sent, g.add(text))
	for len(f.sent) > 1 && g.chance(10) { // once more
		f.sent = append(f.sent, g.add(text))
	}
}

// segment is flags and numbers of the next segment, mostly a sensible one.
func (g *generator) segment(f *genFlow, seq *uint32, ack uint32, first, server bool) string {
	s := *seq
	switch {
	case first && g.chance(90):
		*seq++
		if server {
			return fmt.Sprintf(" SA seq=%d ack=%d mss=1460", s, ack)
		}
		return fmt.Sprintf(" S seq=%d mss=1460", s)
	case g.chance(10):
		*seq++
		return fmt.Sprintf(" FA seq=%d ack=%d", s, ack)
	case g.chance(8):
		return fmt.Sprintf(" %s seq=%d ack=%d", pickOne(g, "R", "RA"), s, ack)
	case g.chance(6):
		return fmt.Sprintf(" %s seq=%d ack=%d", pickOne(g, "S", "SA", "A", "FPU", ".", "PA", "SF"), g.Uint32(), g.Uint32())
	case g.chance(50):
		n := 1 + g.IntN(200)
		*seq += uint32(n)
		if g.chance(20) {
			*seq += 3000
			return fmt.Sprintf(" PA seq=%d ack=%d len=%d gso=%d", s, ack, n+3000, pickOne(g, 1000, 1360, 1400))
		}
		return fmt.Sprintf(" PA seq=%d ack=%d len=%d win=%d", s, ack, n, pickOne(g, 65535, 500, 0))
	}
	return fmt.Sprintf(" A seq=%d ack=%d", s, ack)
}

func (g *generator) server(f *genFlow) {
	n := pickOne(g, f.sent...)
	if g.transit && g.v6 && (g.rejects || !plain(g.numbered(n))) {
		return // it would go to the router, if that answered
	}
	dev := fmt.Sprintf("@%d", n)
	if g.chance(4) {
		dev = pickOne(g, "tun0", "tun1", "tun2")
	}
	text := fmt.Sprintf("in %s %s @%d.dst > @%d.src", dev, f.proto, n, n)
	switch f.proto {
	case "tcp":
		text += g.segment(f, &f.sseq, f.cseq, len(f.back) == 0, true)
	case "icmp", "icmp6":
		text = fmt.Sprintf("in %s %s @%d.daddr > @%d.saddr type=%s id=@%d.id seq=0", dev, f.proto, n, n, g.f("0", "129"), n) + g.size()
	default:
		text += g.content(f.proto)
	}
	f.back = append(f.back, g.add(text+g.header()))
}

// numbered is the in or send line with a number.
func (g *generator) numbered(n int) string {
	for _, l := range g.lines {
		if !strings.HasPrefix(l, "do ") {
			if n--; n == 0 {
				return l
			}
		}
	}
	return ""
}

// plain: the router has no reason to answer a packet itself.
func plain(line string) bool { return !answeredWord.MatchString(line) }

var answeredWord = regexp.MustCompile(`ttl=|opts=|ext=|frag=|cut=|gso=|raw |len=1[34]`)

// fault is an ICMP error about a frame that was forwarded, from a router on its way.
func (g *generator) fault(f *genFlow) {
	about := f.sent
	if len(f.back) > 0 && g.chance(40) {
		about = f.back
	}
	n := pickOne(g, about...)
	from := g.f(pickOne(g, "10.2.0.2", "7.7.7.7", "10.1.0.2"), pickOne(g, "fd02::2", "2001:db8:7::7", "fd01::2"))
	if g.chance(30) {
		from = fmt.Sprintf("@%d.daddr", n)
	}
	kind := g.f(pickOne(g, "3/3", "3/1", "3/2", "3/13", "11/0", "11/1", "12/0", "4/0"), pickOne(g, "1/4", "1/0", "1/3", "3/0", "3/1", "4/1"))
	if g.transit && g.chance(20) && !g.rejects && plain(g.numbered(n)) {
		// One that tells an MTU. About a packet of the router's own it would be kept
		// for all that go the same way, see docs/differences.md.
		kind = g.f("3/4 rest=", "2 rest=") + pickOne(g, "1300", "1400", "576", "0")
	}
	quote := pickOne(g, "quote", "quote", "quote"+g.f("28", "48"), "quote"+g.f("40", "60"))
	if g.chance(8) { // about a packet that never was
		other := *f
		other.sport += 7
		g.add(fmt.Sprintf("in @%d %s %s > @%d.saddr type=%s about %s", n, g.f("icmp", "icmp6"), f.dst, n, kind, other.forward()))
		return
	}
	g.add(fmt.Sprintf("in @%d %s @%d.placeholder type=%s @%d.%s", n, g.f("icmp", "icmp6"), n, kind, n, quote) + g.header())
	last := &g.lines[len(g.lines)-1]
	*last = strings.Replace(*last, fmt.Sprintf("@%d.placeholder", n), fmt.Sprintf("%s > @%d.saddr", from, n), 1)
}
