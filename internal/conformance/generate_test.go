package conformance

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"

	"sluice/packet"
)

// generator makes scenarios of random rules and packets, the same ones for the
// same seed.
type generator struct {
	*rand.Rand
	v6       bool
	flows    []*genFlow
	lines    []string
	n        int      // in lines so far
	edits    []string // commands to give between packets, if any
	transit  bool     // nothing is sent to or by the router's own sockets
	withSets bool
	dims     [4]int // flags that the sets take
	wild     bool   // the set being made has wildcards for interfaces, and no names: see docs/differences.md
	narrow   bool   // only rules whose outcome a connection can remember, most of them
	zones    bool   // rules give connections a zone
	rejects  bool   // rules have the router answer
	tees     bool   // packets are copied: then none comes in fragments, see docs/differences.md
	tcpCut   int    // where TCP is cut into fragments now and then

	bound map[int]bool // ports of the router's own sockets

	hosts []string // addresses and ports that the rules speak of, if any
	ports []int
}

func newGenerator(seed uint64) *generator {
	return &generator{bound: map[int]bool{}, tcpCut: 24, Rand: rand.New(rand.NewPCG(seed, 0x5141ce)), withSets: seed%4 == 3}
}

func pickOne[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

// four or six, by the scenario's family.
func (g *generator) f(v4, v6 string) string {
	if g.v6 {
		return v6
	}
	return v4
}

func (g *generator) scenario(net []string) *scenario {
	g.v6 = g.chance(35)
	g.transit = g.transit || g.chance(25)
	s := &scenario{net: net, only: packet.IPv4}
	f := 0
	if g.v6 {
		f, s.only = 1, packet.IPv6
	}
	if g.withSets { // a quarter of the cases
		s.sets = g.sets()
	}
	s.rules[f] = g.rules()
	g.zones = strings.Contains(strings.Join(s.rules[f], " "), "--zone")
	if g.tcpCut = 16; strings.Contains(strings.Join(s.rules[f], " "), "-t nat") {
		g.tcpCut = 24 // or the first fragment has a port drawn at random and the second the checksum
	}
	g.rejects = strings.Contains(strings.Join(s.rules[f], " "), "-j REJECT")
	g.tees = strings.Contains(strings.Join(s.rules[f], " "), "-j TEE")
	for range 1 + g.IntN(4) {
		g.flows = append(g.flows, g.flow())
	}
	events := 3 + g.IntN(20)
	if len(g.edits) > 0 {
		events *= 3
	}
	for range events {
		g.event()
	}
	if err := s.parseFrames(g.lines); err != nil {
		panic(err)
	}
	return s
}

func (g *generator) rules() (out []string) {
	for _, table := range []string{"raw", "mangle", "nat", "filter", "security"} {
		if g.chance(40) && table != "nat" || table == "security" && g.chance(70) {
			continue
		}
		t := "-t " + table + " "
		chains := hooksOf[table]
		users := []string{"one", "two"}[:g.IntN(3)]
		if table != "nat" && g.chance(12) {
			out = append(out, t+"-P "+pickOne(g, chains...)+" DROP")
		}
		for _, u := range users {
			out = append(out, t+"-N "+u)
		}
		for range g.IntN(5) {
			hook := pickOne(g, chains...)
			out = append(out, t+"-A "+hook+g.rule(table, hook, users))
		}
		for i, u := range users {
			// What a user chain holds must be valid wherever it is called from.
			hook := chains[0]
			if i == 0 && g.chance(70) {
				out = append(out, t+"-A "+hook+g.matches(table, hook)+pickOne(g, " -j ", " -g ")+u)
			}
			for range g.IntN(4) {
				out = append(out, t+"-A "+u+g.rule(table, "user", users[i+1:]))
			}
		}
	}
	return out
}

// rule is matches and a target that go together.
func (g *generator) rule(table, hook string, users []string) string {
	for {
		r := g.matches(table, hook)
		t := ""
		if !g.narrow && g.chance(35) {
			t = g.fromTemplate(targetTemplates, " -j ", table, hook, protoOf(r))
		}
		if t == "" {
			t = g.target(table, hook, users)
		}
		if m := prefixWord.FindStringSubmatch(t); m != nil {
			// Of other addresses than these the translation breaks the checksum.
			if flag := map[string]string{"S": " -s ", "D": " -d "}[m[1]]; !strings.Contains(r, flag) {
				r += flag + m[2]
			} else {
				continue
			}
		}
		r += t
		if strings.Count(r, " -p ") < 2 && !g.toRouter(t) && !g.spoilsSum(hook, t) {
			return r
		}
	}
}

// toRouter: the target would have the router's sockets get packets, and they are
// to be left out.
func (g *generator) toRouter(target string) bool {
	return g.transit && (strings.Contains(target, "REDIRECT") || strings.Contains(target, "TPROXY") || strings.Contains(target, g.f("10.1.0.1", "fd01::1")))
}

// spoilsSum: a target changes IPv6's header before packets for the router are
// taken in; see docs/differences.md.
func (g *generator) spoilsSum(hook, target string) bool {
	return g.v6 && (hook == "PREROUTING" || hook == "INPUT" || hook == "user") && headerWord.MatchString(target)
}

var prefixWord = regexp.MustCompile(`-j ([SD])NPT --src-pfx (\S+)`)

var headerWord = regexp.MustCompile(`-j (HL|TOS|DSCP) `)

func (g *generator) not() string {
	if g.chance(15) {
		return " !"
	}
	return ""
}

func (g *generator) port() string { return pickOne(g, "53", "80", "1:1000", "5000", "1024:", ":100") }

func (g *generator) net() string {
	if g.v6 {
		return pickOne(g, "fd01::2/128", "fd01::/64", "fd02::/64", "2001:db8::/32", "fd01::1/128", "2001:db8::9/128")
	}
	return pickOne(g, "10.1.0.2/32", "10.1.0.0/24", "10.2.0.0/24", "9.9.9.0/24", "10.1.0.1/32", "9.9.9.9/32")
}

func (g *generator) matches(table, hook string) string {
	var b strings.Builder
	proto := ""
	if g.chance(45) {
		proto = pickOne(g, "udp", "tcp", g.f("icmp", "ipv6-icmp"))
		not := ""
		if g.chance(8) {
			not = " !"
		}
		b.WriteString(not + " -p " + proto)
		if not != "" {
			proto = ""
		}
	}
	if g.chance(25) {
		b.WriteString(g.not() + " -s " + g.net())
	}
	if g.chance(20) {
		b.WriteString(g.not() + " -d " + g.net())
	}
	if hook != "OUTPUT" && hook != "POSTROUTING" && hook != "user" && g.chance(20) {
		b.WriteString(g.not() + " -i " + pickOne(g, "tun0", "tun1", "tun+", "lo"))
	}
	if hook != "PREROUTING" && hook != "INPUT" && hook != "user" && g.chance(20) {
		b.WriteString(g.not() + " -o " + pickOne(g, "tun0", "tun1", "tun+", "lo"))
	}
	if !g.v6 && g.chance(3) {
		b.WriteString(g.not() + " -f")
	}
	switch {
	case proto == "udp" && g.chance(60):
		b.WriteString(" -m udp" + g.not() + pickOne(g, " --dport ", " --sport ") + g.port())
	case proto == "tcp" && g.chance(60):
		b.WriteString(" -m tcp" + pickOne(g, g.not()+" --dport "+g.port(), g.not()+" --sport "+g.port(), g.not()+" --tcp-flags SYN,RST,ACK SYN", g.not()+" --tcp-flags ALL NONE", g.not()+" --tcp-option 2"))
	case proto == "icmp" && g.chance(50):
		b.WriteString(" -m icmp" + g.not() + " --icmp-type " + pickOne(g, "8", "0", "3", "3/3", "11", "any"))
	case proto == "ipv6-icmp" && g.chance(50):
		b.WriteString(" -m icmp6" + g.not() + " --icmpv6-type " + pickOne(g, "128", "129", "1", "1/4", "3", "2"))
	case (proto == "tcp" || proto == "udp") && g.chance(30):
		b.WriteString(" -m multiport" + g.not() + pickOne(g, " --dports ", " --sports ", " --ports ") + "53,80,5000:5002")
	}
	for range 2 {
		if g.chance(30) {
			b.WriteString(g.extension(table, hook))
		}
	}
	if !g.narrow && g.chance(35) {
		b.WriteString(g.fromTemplate(matchTemplates, " -m ", table, hook, protoOf(b.String())))
	}
	return b.String()
}

// unique is a number that no other scenario of this run is likely to have.
func (g *generator) unique() string { return fmt.Sprint(g.IntN(1e6)) }

func (g *generator) extension(table, hook string) string {
	not := g.not()
	if g.withSets && g.chance(60) {
		return " -m set" + not + " --match-set " + g.setAndFlags() +
			pickOne(g, "", "", " --return-nomatch", " ! --update-counters", " ! --update-subcounters", " --packets-gt 2", " --bytes-lt 300", " ! --packets-eq 3")
	}
	switch g.IntN(16) {
	case 12:
		return " -m limit --limit 1/hour --limit-burst " + pickOne(g, "1", "3")
	case 13:
		return " -m recent --name " + pickOne(g, "a", "b") + pickOne(g, " --set", " --set", " --rcheck", " --update", " --rcheck --hitcount 2", " --remove") + pickOne(g, "", " --rdest")
	case 14:
		return " -m hashlimit --hashlimit-" + pickOne(g, "upto", "above") + " 1/hour --hashlimit-burst 2 --hashlimit-name h" + fmt.Sprint(g.IntN(1000)) + pickOne(g, "", " --hashlimit-mode srcip", " --hashlimit-mode dstip,dstport")
	case 0, 1, 2:
		return " -m conntrack" + not + " --ctstate " + pickOne(g, "NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "RELATED,ESTABLISHED", "NEW,INVALID", "DNAT", "SNAT", "SNAT,DNAT")
	case 3:
		return " -m conntrack" + pickOne(g, " --ctdir ORIGINAL", " --ctdir REPLY", not+" --ctstatus SEEN_REPLY", not+" --ctstatus ASSURED", not+" --ctstatus CONFIRMED",
			not+" --ctstatus NONE", not+" --ctorigsrc "+g.net(), not+" --ctorigdst "+g.net(), not+" --ctreplsrc "+g.net(), not+" --ctrepldst "+g.net(),
			not+" --ctproto 17", not+" --ctorigdstport 53", not+" --ctorigsrcport 5000:6000", " --ctstatus CONFIRMED"+not+" --ctexpire 1:100")
	case 4:
		return " -m mark" + not + " --mark " + pickOne(g, "0x1", "0x0", "0x1/0x1", "0x6/0xe")
	case 5:
		return " -m connmark" + not + " --mark " + pickOne(g, "0x1", "0x0", "0x1/0x1")
	case 6:
		return " -m length" + not + " --length " + pickOne(g, "0:100", "60", "100:", "1000:1500")
	case 7:
		return g.f(" -m ttl"+pickOne(g, not+" --ttl-eq 63", " --ttl-lt 64", " --ttl-gt 63"), " -m hl"+pickOne(g, not+" --hl-eq 63", " --hl-lt 64", " --hl-gt 63"))
	case 8:
		return pickOne(g, " -m tos"+not+" --tos 0x10", " -m dscp"+not+" --dscp 0x0a", " -m tos"+not+" --tos 0x0/0xfc")
	case 9:
		limit := ""
		if g.chance(15) && (hook == "PREROUTING" || hook == "INPUT") {
			limit = " --limit-iface-in"
		}
		return " -m addrtype" + not + pickOne(g, " --dst-type ", " --src-type ") + pickOne(g, "LOCAL", "UNICAST", g.f("BROADCAST", "ANYCAST"), "MULTICAST", "UNREACHABLE", "LOCAL,UNICAST") + limit
	case 10:
		return " -m state" + not + " --state " + pickOne(g, "NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
	case 11:
		return " -m iprange" + not + " --src-range " + g.f("10.1.0.2-10.1.0.9", "fd01::2-fd01::9")
	}
	if (table == "raw" || table == "mangle") && hook == "PREROUTING" {
		return " -m rpfilter" + pickOne(g, "", " --loose", " --invert", " --validmark", " --accept-local")
	}
	return " -m comment --comment x"
}

// setTypes are those that this kernel is usually built with, and how many flags
// they take.
var setTypes = []struct {
	name string
	dims int
}{{"hash:ip", 1}, {"hash:net", 1}, {"hash:ip,port", 2}, {"hash:net,port", 2}, {"hash:ip,port,ip", 3}, {"hash:ip,port,net", 3}, {"hash:net,iface", 2}, {"bitmap:ip", 1}, {"bitmap:port", 1}}

// sets makes s0 to s3, and l, which is a list of some of them.
func (g *generator) sets() (out []string) {
	member := func(i int) string { return fmt.Sprintf("s%d", i) }
	for i := range 4 {
		t := setTypes[g.IntN(len(setTypes))]
		if g.v6 && t.name == "bitmap:ip" {
			t = setTypes[0]
		}
		opt := " family " + g.f("inet", "inet6")
		switch t.name {
		case "bitmap:ip":
			opt = " range 10.1.0.0/24"
		case "bitmap:port":
			opt = " range 1-6000"
		case "hash:ip":
			opt += pickOne(g, "", "", " netmask "+g.f("24", "64"))
		}
		counted := g.chance(40)
		g.wild = g.chance(40)
		line := "create " + member(i) + " " + t.name + opt + pickOne(g, "", " timeout 500", " timeout 0")
		if counted {
			line += " counters"
		}
		info := g.chance(30)
		if info {
			line += " skbinfo"
		}
		out = append(out, line)
		for range g.IntN(6) {
			e := "-exist add " + member(i) + " " + g.member(t.name)
			if strings.Contains(t.name, "net") && g.chance(20) {
				e += " nomatch"
			}
			if info && g.chance(50) {
				e += " skbmark 0x1/0x3 skbprio 1:2"
			}
			if counted && g.chance(30) {
				e += " packets 3 bytes 200"
			}
			out = append(out, e)
		}
		g.dims[i] = t.dims
	}
	out = append(out, "create l list:set")
	for i := range 4 {
		if g.chance(60) {
			out = append(out, "add l "+member(i))
		}
	}
	return out
}

// member is an element of a set.
func (g *generator) member(typ string) string {
	host := func() string {
		return pickOne(g, g.f("10.1.0.2", "fd01::2"), g.f("9.9.9.9", "2001:db8::9"), g.f("10.2.0.2", "fd02::2"), g.f("10.1.0.1", "fd01::1"))
	}
	port := func() string {
		return pickOne(g, "53", "80", "udp:53", "udp:5000", g.f("icmp:echo-request", "ipv6-icmp:echo-request"), "udp:80")
	}
	switch typ {
	case "hash:ip":
		return host()
	case "hash:net":
		return g.net()
	case "hash:ip,port":
		return host() + "," + port()
	case "hash:net,port":
		return g.net() + "," + port()
	case "hash:ip,port,ip":
		return host() + "," + port() + "," + host()
	case "hash:ip,port,net":
		return host() + "," + port() + "," + g.net()
	case "hash:net,iface":
		return g.net() + "," + g.iface()
	case "bitmap:ip":
		return pickOne(g, "10.1.0.2", "10.1.0.1", "10.1.0.0/28")
	}
	return pickOne(g, "53", "80", "5000-5010")
}

func (g *generator) iface() string {
	if g.wild {
		return "tun wildcard"
	}
	return pickOne(g, "tun0", "tun1")
}

// setAndFlags names a set, with as many flags as it needs or, now and then, not.
func (g *generator) setAndFlags() string {
	i := g.IntN(5)
	n, name := 1+g.IntN(3), "l"
	if i < 4 {
		name = fmt.Sprintf("s%d", i)
		if n = g.dims[i]; g.chance(10) {
			n = 1 + g.IntN(3)
		}
	}
	flags := make([]string, n)
	for i := range flags {
		flags[i] = pickOne(g, "src", "dst")
	}
	return name + " " + strings.Join(flags, ",")
}

func (g *generator) target(table, hook string, users []string) string {
	if len(users) > 0 && g.chance(25) {
		return pickOne(g, " -j ", " -g ") + users[0]
	}
	if g.withSets && g.chance(30) {
		if table == "mangle" && g.chance(40) {
			return " -j SET --map-set " + g.setAndFlags() + " --map-mark"
		}
		return " -j SET" + pickOne(g, " --add-set ", " --add-set ", " --del-set ") + g.setAndFlags()
	}
	if g.chance(10) {
		return pickOne(g, "", " -j LOG", " -j RETURN", " -j ACCEPT")
	}
	reject := " -j REJECT --reject-with " + g.f(
		pickOne(g, "icmp-port-unreachable", "icmp-net-unreachable", "icmp-host-prohibited", "icmp-proto-unreachable", "icmp-admin-prohibited"),
		pickOne(g, "icmp6-port-unreachable", "icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-policy-fail"))
	connmark := " -j CONNMARK" + pickOne(g, " --set-xmark 0x1/0xffffffff", " --save-mark", " --restore-mark", " --set-xmark 0x3/0x1", " --restore-mark --nfmask 0x1 --ctmask 0xff")
	mark := " -j MARK" + pickOne(g, " --set-xmark 0x1/0xffffffff", " --set-xmark 0x6/0xe", " --set-xmark 0x0/0x1", " --set-xmark 0x1/0x0")
	switch table {
	case "raw":
		return pickOne(g, " -j CT --notrack", " -j NOTRACK", " -j CT --zone 3", " -j DROP", " -j ACCEPT", mark)
	case "mangle":
		hl := g.f("TTL --ttl", "HL --hl")
		if g.chance(10) {
			clamp := " --set-mss 1200"
			if hook != "user" && hook != "PREROUTING" && hook != "INPUT" && g.chance(50) {
				clamp = " --clamp-mss-to-pmtu"
			}
			return " -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS" + clamp
		}
		return pickOne(g, mark, mark, mark, connmark, connmark, " -j TOS --set-tos 0x10/0xff", " -j DSCP --set-dscp 0x0a",
			" -j "+hl+pickOne(g, "-set 64", "-dec 1", "-inc 5", "-dec 63", "-set 1"), " -j DROP", " -j ACCEPT")
	case "nat":
		return g.nat(hook)
	case "filter":
		if hook == "OUTPUT" && g.chance(20) {
			return " -m owner" + g.not() + pickOne(g, " --uid-owner 0", " --gid-owner 0", " --socket-exists") + " -j ACCEPT"
		}
	case "security":
		return pickOne(g, " -j ACCEPT", " -j DROP", connmark, " -j LOG")
	}
	return pickOne(g, " -j ACCEPT", " -j ACCEPT", " -j DROP", reject, reject, connmark, mark)
}

func (g *generator) nat(hook string) string {
	to := func(v4, v6 string) string { return g.f(v4, v6) }
	switch hook {
	case "PREROUTING", "OUTPUT":
		return pickOne(g,
			" -j DNAT --to-destination "+to("10.2.0.2", "fd02::2"), " -j DNAT --to-destination "+to("9.9.9.9", "2001:db8::9"),
			" -j DNAT --to-destination "+to("10.1.0.3", "fd01::3"), " -j DNAT --to-destination "+to("10.1.0.1", "fd01::1"),
			" -j DNAT --to-destination "+to("10.2.0.20-10.2.0.29", "fd02::20-fd02::29"),
			" -p udp -j DNAT --to-destination "+to("10.2.0.2:8053", "[fd02::2]:8053"), " -p tcp -j DNAT --to-destination "+to("10.2.0.2:8080-8080", "[fd02::2]:8080-8080"),
			" -j REDIRECT", " -p tcp -j REDIRECT --to-ports 80", " -p udp -j REDIRECT --to-ports 53", " -j ACCEPT")
	case "POSTROUTING":
		return pickOne(g, " -j MASQUERADE", " -j MASQUERADE",
			" -j SNAT --to-source "+to("10.2.0.1", "fd02::1"), " -j SNAT --to-source "+to("10.2.0.77", "fd02::77"),
			" -j SNAT --to-source "+to("10.2.0.20-10.2.0.29", "fd02::20-fd02::29"), " -j SNAT --to-source "+to("10.2.0.20-10.2.0.29", "fd02::20-fd02::29")+" --persistent",
			" -p udp -j SNAT --to-source "+to("10.2.0.77:7000", "[fd02::77]:7000"), " -p tcp -j MASQUERADE --to-ports 7000", " -j ACCEPT")
	case "INPUT":
		return pickOne(g, " -j SNAT --to-source "+to("10.1.0.50", "fd01::50"), " -j ACCEPT", " -j RETURN")
	}
	return pickOne(g, " -j ACCEPT", " -j RETURN", " -j LOG")
}
