package conformance

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

// template is a match or target that the generator can put into a rule.
type template struct {
	text   string // {a|b} is one of them; {!} is now and then a "!", %u a number, %p a "|"
	fam    uint8  // 0: both
	proto  string // what -p has to be; "": anything
	tables string // "": all
	hooks  string // "": all, and chains of the rules' own
}

const (
	v4only = packet.IPv4
	v6only = packet.IPv6
)

// matchTemplates are matches whose answer does not depend on time or chance.
var matchTemplates = []template{
	{text: "addrtype{!} --{src|dst}-type {UNSPEC|BLACKHOLE|UNREACHABLE|PROHIBIT|MULTICAST|LOCAL|UNICAST,LOCAL}"},
	{text: "addrtype --dst-type {LOCAL|UNICAST} --limit-iface-out", hooks: "FORWARD OUTPUT POSTROUTING"},
	{text: "addrtype{!} --src-type LOCAL{!} --dst-type UNICAST"},
	{text: "ah{!} --ahspi {5|4:6}", proto: "ah", fam: v4only},
	{text: "ah{!} --ahspi {0|4:6}", fam: v6only},
	{text: "ah --ahlen {0|24} --ahres", fam: v6only},
	{text: "bpf --bytecode \"{4,48 0 0 9,21 0 1 17,6 0 0 1,6 0 0 0|4,128 0 0 0,37 0 1 100,6 0 0 0,6 0 0 1|5,48 0 0 9,21 0 2 17,177 0 0 0,72 0 0 2,22 0 0 0|4,32 0 0 4294963220,21 0 1 1,6 0 0 1,6 0 0 0|2,32 0 0 60,6 0 0 1}\""},
	{text: "cgroup{!} --cgroup {0|5}", hooks: "INPUT OUTPUT POSTROUTING"},
	{text: "cluster --cluster-total-nodes {2|3} {!} --cluster-local-node {1|2} --cluster-hash-seed 0x{deadbeef|1}"},
	{text: "cluster --cluster-total-nodes 4 --cluster-local-nodemask 0x5 --cluster-hash-seed 7"},
	{text: "comment --comment \"{a b|it's|x}\""},
	{text: "connbytes{!} --connbytes {2:|1:3|100:|0:500} --connbytes-mode {packets|bytes|avgpkt} --connbytes-dir {original|reply|both}"},
	{text: "connlabel{!} --label {3|5}"},
	{text: "connlabel --label {3|5|127} --set"},
	{text: "connmark{!} --mark {0x1|0x0|0x3|0x8/0x8|0x0/0x2}"},
	{text: "conntrack{!} --ctstatus {EXPECTED|SEEN_REPLY|ASSURED|CONFIRMED|SEEN_REPLY,CONFIRMED}"},
	{text: "conntrack{!} --ctstate {NEW,RELATED|NEW,ESTABLISHED,UNTRACKED|SNAT,NEW|DNAT,INVALID}"},
	{text: "conntrack{!} --ctrepl{src|dst}port {53|5000:6000|7000:7010}"},
	{text: "conntrack{!} --ctproto {tcp|udp|1|58|132}"},
	{text: "conntrack --ctstate {NEW|ESTABLISHED} --ctdir {ORIGINAL|REPLY}{!} --ctorigdstport {53|80}"},
	{text: "dccp{!} --{s|d}port {5000|50:100}", proto: "dccp"},
	{text: "dccp{!} --dccp-types {REQUEST|DATA,ACK|RESPONSE,CLOSE|INVALID}", proto: "dccp"},
	{text: "devgroup{!} --{src|dst}-group {0|1|0/0x1}", hooks: "FORWARD"},
	{text: "devgroup{!} --src-group {0|0x3/0x1}", hooks: "PREROUTING INPUT FORWARD"},
	{text: "devgroup{!} --dst-group {0|7}", hooks: "FORWARD OUTPUT POSTROUTING"},
	{text: "dscp{!} --dscp {0x0a|0x00|0x04}"},
	{text: "dscp{!} --dscp-class {AF11|CS0|EF|BE}"},
	{text: "dst{!} --dst-len {8|16}", fam: v6only},
	{text: "dst --dst-opts {1|1:4|1:3|5}", fam: v6only},
	{text: "ecn {!} --ecn-tcp-{cwr|ece}", proto: "tcp"},
	{text: "ecn {!} --ecn-ip-ect {0|1|2|3}"},
	{text: "esp{!} --espspi {5|4:6|7:}", proto: "esp"},
	{text: "eui64", fam: v6only, hooks: "PREROUTING INPUT FORWARD"},
	{text: "frag {--fragfirst|--fragmore|--fraglast|--fragres|--fragid 1:60000|! --fragid 7|--fraglen 8}", fam: v6only},
	{text: "hashlimit --hashlimit-{upto|above} {1/hour|2/day} --hashlimit-burst {1|3} --hashlimit-mode {srcip|srcip,dstip|dstport|srcip,srcport,dstip,dstport} --hashlimit-name t%u"},
	{text: "hashlimit --hashlimit-upto 1/hour --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-srcmask {24|8} --hashlimit-name t%u"},
	{text: "hbh{!} --hbh-len {8|16}", fam: v6only},
	{text: "hbh --hbh-opts {1|1:4|5:2}", fam: v6only},
	{text: "helper{!} --helper {ftp|tftp}"},
	{text: "hl {--hl-eq|! --hl-eq|--hl-lt|--hl-gt} {63|64|254}", fam: v6only},
	{text: "ttl {--ttl-eq|! --ttl-eq|--ttl-lt|--ttl-gt} {63|64|254}", fam: v4only},
	{text: "icmp{!} --icmp-type {echo-request|time-exceeded|3/1|3/13|11/0|5|timestamp-request|parameter-problem}", proto: "icmp", fam: v4only},
	{text: "icmp6{!} --icmpv6-type {echo-reply|packet-too-big|1/0|3/0|4/1|time-exceeded}", proto: "ipv6-icmp", fam: v6only},
	{text: "ipcomp{!} --ipcompspi {5|4:6}", proto: "ipcomp"},
	{text: "iprange{!} --src-range 10.1.0.0-10.1.0.2{!} --dst-range 8.0.0.0-9.9.9.9", fam: v4only},
	{text: "iprange{!} --dst-range {fd02::-fd02::9|2001:db8::-2001:db8::8}", fam: v6only},
	{text: "ipv6header{!} --header {hop|dst|dst,route|prot|frag|auth|none|hop,prot}{| --soft}", fam: v6only},
	{text: "length{!} --length {28|48|40:60|84|1000:|0:59|1500:65535}"},
	{text: "limit --limit {1/hour|2/day} --limit-burst {1|2|5}"},
	{text: "mac{!} --mac-source 02:00:00:00:00:01", hooks: "PREROUTING INPUT FORWARD"},
	{text: "mark{!} --mark {0x2|0x3|0x8/0x8|0x10000/0xffff0000|0x0/0x1}"},
	{text: "mh{!} --mh-type {5|0:4|brr}", proto: "mobility-header", fam: v6only},
	{text: "multiport{!} --{dports|sports|ports} {53,80|1:1024,40000|5000}", proto: "{tcp|udp|sctp|dccp|udplite}"},
	{text: "osf{!} --genre Linux", proto: "tcp", hooks: "PREROUTING INPUT FORWARD"},
	{text: "owner{!} --{uid-owner 0|gid-owner 0|uid-owner 1000-2000|socket-exists}", hooks: "OUTPUT POSTROUTING"},
	{text: "physdev{!} --physdev-in {tun0|lo|tun+}", hooks: "PREROUTING INPUT FORWARD"},
	{text: "physdev{!} --physdev-is-{in|bridged}", hooks: "FORWARD"},
	{text: "pkttype{!} --pkt-type {unicast|broadcast|multicast}"},
	{text: "policy --dir in --pol {none|ipsec}", hooks: "PREROUTING INPUT FORWARD"},
	{text: "policy --dir out --pol {none|ipsec}", hooks: "FORWARD OUTPUT POSTROUTING"},
	{text: "policy --dir in --pol ipsec --strict{!} --reqid 1 --proto esp --mode tunnel{!} --tunnel-src 10.1.0.2", fam: v4only, hooks: "INPUT"},
	{text: "quota{!} --quota {0|50|200|2000}"},
	{text: "realm{!} --realm {0|1|0/0xffff}", fam: v4only, hooks: "INPUT FORWARD OUTPUT POSTROUTING"},
	{text: "recent{!} --{set|rcheck|update|remove} --name {t%u|shared}{| --rdest}{| --mask 255.255.0.0}", fam: v4only},
	{text: "recent --name t%u {--set|--rcheck|--update --hitcount 2|--rcheck --rttl}{| --rdest}"},
	{text: "rpfilter{| --loose}{| --invert}{| --accept-local}{| --validmark}", hooks: "PREROUTING", tables: "raw mangle"},
	{text: "rt{!} --rt-{type 253|type 0|segsleft 0|segsleft 1:2|len 8}", fam: v6only},
	{text: "sctp{!} --{s|d}port {5000|50:100}", proto: "sctp"},
	{text: "socket{| --transparent| --nowildcard| --transparent --nowildcard| --restore-skmark}", proto: "{tcp|udp}", tables: "raw mangle", hooks: "PREROUTING"},
	{text: "socket{| --transparent| --nowildcard}", proto: "{tcp|udp}", hooks: "INPUT"},
	{text: "sctp{!} --chunk-types {any|all|only} {INIT|DATA,SACK|DATA|ABORT|COOKIE_ECHO,DATA|DATA:BE|HEARTBEAT}", proto: "sctp"},
	{text: "srh{!} --srh-segs-left-eq 0", fam: v6only},
	{text: "state{!} --state {NEW,ESTABLISHED|INVALID,UNTRACKED}"},
	{text: "statistic --mode nth{!} --every {2|3|5} --packet {0|1}"},
	{text: "statistic --mode random{!} --probability {0|1}"},
	{text: "string --algo {bm|kmp}{!} --{hex-string %p0102%p|hex-string \"%p00 01 02%p\"|string abc}{| --from 30| --to 60| --icase}"},
	{text: "tcp{!} --tcp-flags {FIN,SYN,RST,PSH,ACK,URG NONE|SYN,FIN SYN,FIN|ACK,FIN FIN|ALL FIN,PSH,URG|RST RST}", proto: "tcp"},
	{text: "tcp{!} --{syn|tcp-option 2|tcp-option 8|tcp-option 254}", proto: "tcp"},
	{text: "tcpmss{!} --mss {1460|536:1400|0:65535}", proto: "tcp"},
	{text: "time --{datestart 2030-01-01|datestop 2035-01-01|weekdays 1,2,3,4,5,6,7|monthdays 1,2}{| --kerneltz}"},
	{text: "tos{!} --tos {0x10|0x0/0x03|Minimize-Delay|0xb8/0xfc}"},
	{text: "u32{!} --u32 \"{6&0xFF=17|6&0xFF=17 && 0>>22&0x3C@0&0xFFFF=53:60|2&0xffff=0:60,100:200|60=0:0x10203|8&0xff000000=0x3f000000}\""},
	{text: "udp{!} --{s|d}port {5000|50:100|:9}", proto: "udp"},
}

// targetTemplates are targets, likewise.
var targetTemplates = []template{
	{text: "AUDIT --type {accept|drop|reject}"},
	{text: "CHECKSUM --checksum-fill", tables: "mangle"},
	{text: "CLASSIFY --set-class {1:2|ffff:0}", tables: "mangle", hooks: "FORWARD OUTPUT POSTROUTING"},
	{text: "CONNMARK --{set-mark 0x5|set-xmark 0x3/0x6|and-mark 0x2|or-mark 0x8|xor-mark 0x1|save-mark --nfmask 0x3 --ctmask 0xff|restore-mark --nfmask 0xff --ctmask 0x3|save-mark --mask 0x1|restore-mark --mask 0xf}"},
	{text: "CONNMARK --{save-mark|restore-mark|set-xmark 0x2} {--left-shift-mark 4|--right-shift-mark 1}"},
	{text: "CONNSECMARK --{save|restore}", tables: "mangle security"},
	{text: "CT --{zone 3|zone mark|notrack|ctevents new,destroy}", tables: "raw", hooks: "PREROUTING OUTPUT"},
	{text: "CT --helper ftp", tables: "raw", hooks: "PREROUTING OUTPUT", proto: "tcp"},
	{text: "CT --helper tftp", tables: "raw", hooks: "PREROUTING OUTPUT", proto: "udp"},
	{text: "DSCP --set-dscp{ 0x0a| 0x00|-class EF|-class AF21}", tables: "mangle"},
	{text: "ECN --ecn-tcp-remove", tables: "mangle", fam: v4only, proto: "tcp"},
	{text: "TPROXY --on-port {53|80|9}{| --tproxy-mark 0x{1/0x1|2/0xf}}", tables: "mangle", hooks: "PREROUTING", proto: "{tcp|udp}"},
	{text: "HMARK --hmark-tuple {src|src,dst|src,dst,sport,dport,proto|ct,src,dport} --hmark-mod {4|100} --hmark-offset {0|1} --hmark-rnd 0x{1|feed}", tables: "mangle raw"},
	{text: "IDLETIMER --timeout 600 --label conformance"},
	{text: "LOG{| --log-prefix \"x: \"}{| --log-tcp-options --log-ip-options}{| --log-uid}"},
	{text: "MARK --{set-mark 0x2|or-mark 0x8|and-mark 0x3|xor-mark 0x1|set-xmark 0x10000/0xffff0000|set-mark 0x1}"},
	{text: "NFLOG --nflog-group {0|5}{| --nflog-prefix x}{| --nflog-size 20}"},
	{text: "NFQUEUE --queue-num {0|7} --queue-bypass"},
	{text: "NFQUEUE --queue-{num 3|balance 3:5}"},
	{text: "NFQUEUE --queue-balance 3:5 --queue-bypass{| --queue-cpu-fanout}"},
	{text: "RATEEST --rateest-name r%u --rateest-interval 250ms --rateest-ewmalog 500ms"},
	{text: "REJECT{| --reject-with icmp-{net|host|port|proto}-unreachable| --reject-with icmp-{net|host|admin}-prohibited}", tables: "filter", fam: v4only, hooks: "INPUT FORWARD OUTPUT"},
	{text: "REJECT{| --reject-with icmp6-{no-route|adm-prohibited|addr-unreachable|port-unreachable|policy-fail|reject-route}}", tables: "filter", fam: v6only, hooks: "INPUT FORWARD OUTPUT"},
	{text: "REJECT --reject-with tcp-reset", proto: "tcp", tables: "filter", hooks: "INPUT FORWARD OUTPUT"},
	{text: "TCPMSS --set-mss {1000|1300|1500}", proto: "tcp -m tcp --tcp-flags SYN,RST SYN", tables: "mangle"},
	{text: "TCPOPTSTRIP --strip-options {mss|wscale,timestamp|sack-permitted,2|254}", proto: "tcp", tables: "mangle"},
	{text: "TEE --gateway {10.3.0.9|10.2.0.2|10.1.0.9}", tables: "mangle", fam: v4only},
	{text: "TEE --gateway {fd03::9|fd02::2|fd01::9}{| --oif tun2}", tables: "mangle", fam: v6only},
	{text: "TEE --gateway 10.3.0.9 --oif tun{1|2}", tables: "mangle", fam: v4only},
	{text: "TOS --{set-tos 0x10/0x3f|and-tos 0xf0|or-tos 0x04|xor-tos 0x10|set-tos Minimize-Delay}", tables: "mangle"},
	{text: "TRACE", tables: "raw", hooks: "PREROUTING OUTPUT"},
	{text: "TTL --ttl-{set 64|set 255|dec 1|dec 62|inc 1|inc 200|set 1|set 2}", tables: "mangle", fam: v4only},
	{text: "HL --hl-{set 64|set 255|dec 1|dec 62|inc 1|inc 200|set 1|set 2}", tables: "mangle", fam: v6only},
	{text: "SNPT --src-pfx {fd01::/64|fd01::/48} --dst-pfx {fd03:0:0:5::/64|2001:db8:5::/48}", tables: "mangle", fam: v6only, hooks: "INPUT POSTROUTING"},
	{text: "DNPT --src-pfx {2001:db8::/64|fd02::/64} --dst-pfx {fd02::/64|fd03:0:0:700::/56}", tables: "mangle", fam: v6only, hooks: "PREROUTING OUTPUT"},

	{text: "NETMAP --to {10.2.0.0/24|9.9.9.0/28}", tables: "nat", fam: v4only, hooks: "PREROUTING OUTPUT POSTROUTING INPUT"},
	{text: "NETMAP --to {fd02::/120|2001:db8::/64}", tables: "nat", fam: v6only, hooks: "PREROUTING OUTPUT POSTROUTING INPUT"},
	{text: "DNAT --to-destination {10.2.0.20-10.2.0.29|10.2.0.2} {--persistent|--random|--random --persistent}", tables: "nat", fam: v4only, hooks: "PREROUTING OUTPUT"},
	{text: "DNAT --to-destination {fd02::20-fd02::29|fd02::2} {--persistent|--random|--random --persistent}", tables: "nat", fam: v6only, hooks: "PREROUTING OUTPUT"},
	{text: "DNAT --to-destination {10.2.0.2:8000-8010|10.2.0.2-10.2.0.4:8080|:8081}", tables: "nat", fam: v4only, hooks: "PREROUTING OUTPUT", proto: "{tcp|udp}"},
	{text: "DNAT --to-destination {[fd02::2]:8000-8010|[fd02::2-fd02::4]:8080}", tables: "nat", fam: v6only, hooks: "PREROUTING OUTPUT", proto: "{tcp|udp}"},
	{text: "DNAT --to-destination {10.2.0.2:8000-8999/50|10.2.0.2:8000-8010/53}", tables: "nat", fam: v4only, hooks: "PREROUTING OUTPUT", proto: "{tcp|udp}"},
	// Where ports are drawn there are many of them: a flow that draws the same
	// one twice on one side alone looks like a difference.
	{text: "MASQUERADE --to-ports {7000-7010|2000-2999|600-700}", tables: "nat", hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "MASQUERADE --to-ports {20000-49999|2000-9999} --random{|-fully}", tables: "nat", hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "MASQUERADE --random{|-fully}", tables: "nat", hooks: "POSTROUTING"},
	{text: "REDIRECT --to-ports {53|80|8000-8010}{| --random}", tables: "nat", hooks: "PREROUTING OUTPUT", proto: "{tcp|udp}"},
	{text: "SNAT --to-source {10.2.0.77:7000-7002|10.2.0.77:1000-1010|10.2.0.20-10.2.0.22:7000-7010}{| --persistent}", tables: "nat", fam: v4only, hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "SNAT --to-source {[fd02::77]:7000-7002|[fd02::20-fd02::22]:7000-7010}{| --persistent}", tables: "nat", fam: v6only, hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "SNAT --to-source {[fd02::77]:20000-49999|[fd02::20-fd02::22]:2000-9999} --random{|-fully}", tables: "nat", fam: v6only, hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "SNAT --to-source {10.2.0.77:20000-49999|10.2.0.20-10.2.0.22:2000-9999} --random{|-fully}", tables: "nat", fam: v4only, hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "SNAT --to-source {10.2.0.77:7000-7010|10.2.0.77|10.2.0.77:20000-49999 --random|10.2.0.77 --random}", tables: "nat", fam: v4only, hooks: "POSTROUTING", proto: "{tcp|udp}"},
	{text: "SNAT --to-source {10.2.0.77|10.1.0.50-10.1.0.59}{| --persistent| --random-fully}", tables: "nat", fam: v4only, hooks: "POSTROUTING INPUT"},
}

// fits: the template can be in a rule of table and hook ("user": in a chain of
// the rules' own, which may be called from any hook) with -p proto, "" none.
func (x *template) fits(v6 bool, table, hook, proto string) bool {
	if x.fam != 0 && (x.fam == packet.IPv6) != v6 {
		return false
	}
	if x.tables != "" && !slices.Contains(strings.Fields(x.tables), table) {
		return false
	}
	if x.hooks != "" && !slices.Contains(strings.Fields(x.hooks), hook) {
		return false
	}
	return x.proto == "" || proto == "" || slices.Contains(strings.Split(strings.Trim(x.proto, "{}"), "|"), proto)
}

// fill gives one of a template's texts.
func (g *generator) fill(text string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{")
		b.WriteString(before)
		if !found {
			return strings.ReplaceAll(strings.ReplaceAll(b.String(), "%u", g.unique()), "%p", "|")
		}
		choices, at, depth, end := []string{}, 0, 0, 0
		for ; end < len(rest) && (depth > 0 || rest[end] != '}'); end++ {
			switch c := rest[end]; {
			case c == '{':
				depth++
			case c == '}':
				depth--
			case c == '|' && depth == 0:
				choices, at = append(choices, rest[at:end]), end+1
			}
		}
		choices = append(choices, rest[at:end])
		if len(choices) == 1 {
			b.WriteString(g.not())
		} else {
			b.WriteString(g.fill(pickOne(g, choices...)))
		}
		text = rest[end+1:]
	}
}

// fromTemplate is a template's text for a rule that has -p proto already, or
// none; with -p where the template wants it. "" if there is none that fits.
func (g *generator) fromTemplate(list []template, flag, table, hook, proto string) string {
	var fit []*template
	for i := range list {
		if list[i].fits(g.v6, table, hook, proto) {
			fit = append(fit, &list[i])
		}
	}
	if len(fit) == 0 {
		return ""
	}
	x := pickOne(g, fit...)
	if proto == "" && x.proto != "" {
		proto = g.fill(x.proto)
		flag = " -p " + proto + flag
	}
	name, _, _ := strings.Cut(x.text, " ")
	name, _, _ = strings.Cut(name, "{")
	text := g.fill(x.text)
	if missing[strings.TrimSpace(flag[len(flag)-3:])+" "+name] {
		return ""
	}
	return flag + text
}

// missing are the extensions that the kernel here has not, as -m NAME and -j NAME.
var missing = map[string]bool{}

// probe fills in missing, and says why.
func probe(t *testing.T) {
	t.Helper()
	done := make(chan bool)
	go func() { // on a thread of its own, which stays in the kernel's namespace
		defer close(done)
		packettest.NewKernel(t)
		for _, v6 := range []bool{false, true} {
			g := newGenerator(0)
			g.v6 = v6
			seen := map[string]bool{}
			for i, list := range [][]template{matchTemplates, targetTemplates} {
				for _, x := range list {
					table, hook := "filter", "FORWARD"
					if x.tables != "" {
						table, _, _ = strings.Cut(x.tables, " ")
						hook = hooksOf[table][0]
					}
					if x.hooks != "" {
						hook, _, _ = strings.Cut(x.hooks, " ")
						for t := range hooksOf {
							if slices.Contains(hooksOf[t], hook) && x.fits(v6, t, hook, "") {
								table = t
							}
						}
					}
					flag := [...]string{"-m", "-j"}[i]
					name, _, _ := strings.Cut(x.text, " ")
					name, _, _ = strings.Cut(name, "{")
					if seen[flag+name] || !x.fits(v6, table, hook, "") {
						continue
					}
					seen[flag+name] = true
					rule := g.fill(x.text)
					if x.proto != "" {
						flag = "-p " + g.fill(x.proto) + " " + flag
					}
					args := packettest.Words(fmt.Sprintf("-t %s -A %s %s %s", table, hook, flag, rule))
					out, err := exec.Command(g.f("iptables-legacy", "ip6tables-legacy"), args...).CombinedOutput()
					if err != nil {
						if !regexp.MustCompile("No chain/target/match by that name|Couldn't load").Match(out) {
							t.Errorf("%s %s: %s", flag, rule, out)
						}
						t.Logf("left out, as this kernel or its iptables has it not: %s %s: %s", flag, rule, strings.TrimSpace(string(out)))
						missing[flag[len(flag)-2:]+" "+name] = true
					}
				}
			}
		}
	}()
	<-done
}

var protoWord = regexp.MustCompile(`(! )?-p (\S+)`)

// protoOf is what a rule's -p asks for; "!" where it is negated.
func protoOf(rule string) string {
	m := protoWord.FindStringSubmatch(rule)
	switch {
	case m == nil:
		return ""
	case m[1] != "":
		return "!"
	}
	return m[2]
}
