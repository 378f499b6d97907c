package iptables

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"

	"sluice/packet"
)

var randomRules = flag.Int("random", 150, "rules that TestReferenceRandom tries with each program")

// pieces of command lines, good and bad, in groups: one of a group at a time.
var pieces = [][]string{
	{"-p tcp", "-p udp", "-p icmp", "-p 47", "-p all", "! -p tcp", "-p nosuch", "-p sctp", "--protocol TCP", "-p 6"},
	{"-s 1.2.3.4", "-s 10.0.0.0/8", "! -s 1.2.3.4/24", "-s 1.2.3.4/255.0.255.0", "-s 1.2.3.4,5.6.7.8", "--src 9.9.9.9", "-s 0/0", "-s 1.2.3.4/40", "-s localhost"},
	{"-d 1.2.3.4", "! -d 10.0.0.0/7", "--dst 8.8.8.0/24,9.9.9.0/24", "-d 255.255.255.255", "-d 0.0.0.0", "! -d 1.1.1.1,2.2.2.2"},
	{"-i eth0", "! -i eth+", "-i +", "-i averyveryverylongname", "--in-interface lo"},
	{"-o eth0", "! -o eth1", "--out-int ppp+"},
	{"-f", "! -f", "--fragments"},
	{"-m tcp", "-m udp", "-m comment", "-m nosuch", "-m state", "-m conntrack"},
	{"--dport 80", "--dport 1:1024", "! --dport ssh", "--dport :5", "--dport x", "--dport 99999", "--dp 3", "--dport"},
	{"--sport 80", "--sport 1024:", "! --sport 7:9", "--sports 5"},
	{"--syn", "! --syn", "--tcp-flags SYN,ACK SYN", "--tcp-flags ALL NONE", "--tcp-flags SYN", "--tcp-option 3", "! --tcp-option 7"},
	{"--icmp-type echo-request", "--icmp-type 3/1", "! --icmp-type 8", "--icmp-type any", "--icmp-type nosuch"},
	{"-m comment --comment x", "-m comment --comment 'two words'", "-m comment --comment \"it's\"", "-m comment ! --comment x"},
	{"-m state --state NEW", "-m state --state NEW,ESTABLISHED", "-m state ! --state INVALID", "-m conntrack --ctstate DNAT,NEW", "-m conntrack --ctproto tcp --ctorigsrc 1.2.3.0/24", "-m state --state X"},
	{"-m mark --mark 1", "-m mark ! --mark 0xff/0xf0", "-m mark", "-m connmark --mark 5/7", "-m mark --mark x"},
	{"-m limit --limit 5/min", "-m limit --limit-burst 7", "-m limit --limit 3/x", "-m limit"},
	{"-m multiport --dports 1,2,3:4", "-m multiport ! --sports ssh,http", "-m multiport --ports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"},
	{"-m length --length 5:10", "-m length ! --length 7", "-m tos --tos 0x10", "-m dscp --dscp 10", "-m dscp --dscp-class EF", "-m ttl --ttl-lt 5", "-m ttl --ttl-eq 300"},
	{"-m mac --mac-source 00:11:22:33:44:55", "-m mac ! --mac-source 00:11:22:33:44:5f", "-m mac --mac-source x", "-m pkttype --pkt-type broadcast", "-m addrtype --dst-type LOCAL", "-m addrtype ! --src-type BROADCAST,MULTICAST", "-m iprange --src-range 1.1.1.1-2.2.2.2", "-m iprange ! --dst-range 1.1.1.1"},
	{"-m recent --set --name x", "-m recent --update --seconds 60 --hitcount 3 --rsource", "-m recent --rcheck --rdest --rttl", "-m recent ! --remove", "-m recent", "-m recent --set --update",
		"-m hashlimit --hashlimit-above 5/sec --hashlimit-mode srcip --hashlimit-name h", "-m hashlimit --hashlimit-upto 3/min --hashlimit-burst 9 --hashlimit-name g", "-m hashlimit --hashlimit 5/sec",
		"-m connlimit --connlimit-above 3", "-m connlimit --connlimit-upto 2 --connlimit-mask 24 --connlimit-daddr", "-m connlimit"},
	{"-m owner --uid-owner 0", "-m owner ! --gid-owner 5-7", "-m owner --socket-exists", "-m tcpmss --mss 5:6", "-m rpfilter --loose --invert", "-m rpfilter", "-m owner"},
	{"-p tcp --syn -j TCPMSS --clamp-mss-to-pmtu", "-p tcp --syn -j TCPMSS --set-mss 1400", "-j CT --notrack", "-j CT --zone 5", "-j NOTRACK", "-j SNAT --to 1.2.3.4", "-j SNAT --to-source 1.2.3.4:5-6 --random", "-j DNAT --to-destination 1.2.3.4:80", "-j DNAT",
		"-j MASQUERADE --random", "-j MASQUERADE --to-ports 5-6", "-j REDIRECT --to-ports 8080", "-j REDIRECT", "-j CHECKSUM --checksum-fill", "-j SECMARK", "-j CONNSECMARK", "-j CONNMARK --set-xmark 5/6", "-j CONNMARK --restore-mark --nfmask 5 --ctmask 7"},
	{"-j ACCEPT", "-j DROP", "-j RETURN", "-j user", "-g user", "-j nosuch", "! -j ACCEPT", "-j ACCEPT", "-j user", "-j REJECT", "-j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-host-prohibited",
		"-j LOG", "-j LOG --log-prefix 'a b' --log-level info", "-j LOG --log-level 9", "-j LOG --log-uid --log-tcp-sequence", "-j MARK --set-mark 3", "-j MARK --set-xmark 0x1/0xf", "-j MARK", "-j CONNMARK --save-mark", "-j TOS --set-tos 8", "-j DSCP --set-dscp 5", "-j TTL --ttl-set 5"},
	{"-c 5 6", "-c 7,8", "-c 9", "--set-counters 1 2"},
	{"-v", "-n", "-x", "-w", "--line-numbers", "extra", "-y", "!", "-4", "-6", "-t mangle", "-t nat", "-t raw"},
}

func randomLine(r *rand.Rand, chains []string) string {
	cmd := []string{"-A", "-A", "-A", "-I", "-D", "-C"}[r.IntN(6)] + " " + chains[r.IntN(len(chains))]
	if r.IntN(4) == 0 {
		cmd = "-t " + []string{"nat", "mangle", "raw", "security"}[r.IntN(4)] + " " + cmd
	}
	words := []string{cmd}
	for range 1 + r.IntN(4) {
		g := pieces[r.IntN(len(pieces))]
		words = append(words, g[r.IntN(len(g))])
	}
	if r.IntN(3) > 0 {
		g := pieces[len(pieces)-3-r.IntN(4)/3]
		words = append(words, g[r.IntN(len(g))])
	}
	if r.IntN(6) == 0 { // any order
		r.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
	}
	return "iptables " + strings.Join(words, " ")
}

// TestReferenceRandom gives the same random commands to the real program and
// to the one under test.
func TestReferenceRandom(t *testing.T) {
	needReference(t)
	for _, prog := range []string{"iptables", "ip6tables"} {
		t.Run(prog, func(t *testing.T) { randomCommands(t, prog) })
	}
}

// v6 makes a command line for ip6tables of one for iptables.
var v6 = strings.NewReplacer("iptables ", "ip6tables ", "1.2.3.4/255.0.255.0", "2001:db8::1/ffff::ffff", "1.2.3.4/24", "2001:db8::1/64", "1.2.3.0/24", "2001:db8::/64",
	"10.0.0.0/", "2001:db8::/", "1.2.3.4", "2001:db8::5", "5.6.7.8", "fe80::1", "9.9.9.9", "::9", "8.8.8.0", "ff00::", "9.9.9.0", "fec0::", "255.255.255.255", "ffff::", "0.0.0.0", "::",
	"1.1.1.1", "::1", "2.2.2.2", "::2", "0/0", "::/0", "icmp-host-prohibited", "icmp6-adm-prohibited", "--icmp-type 3/1", "--icmpv6-type 1/2", "--icmp-type", "--icmpv6-type", "-p icmp", "-p ipv6-icmp",
	"--fragments", "-f", "-m ttl --ttl-", "-m hl --hl-", "-j TTL --ttl-set", "-j HL --hl-set", "BROADCAST,MULTICAST", "ANYCAST,MULTICAST")

func randomCommands(t *testing.T, prog string) {
	r := rand.New(rand.NewPCG(1, uint64(*randomRules)))
	bad := 0
	inNamespace(t, func() {
		en := newEngines()
		en.Resolver = etcNames{}
		run := ours(en)
		both := func(line string) {
			if prog == "ip6tables" {
				line = v6.Replace(line)
			}
			argv, err := shellWords(line)
			if err != nil {
				t.Error(err)
				return
			}
			var want, got step
			want.line, got.line = line, line
			want.code, want.stdout, want.err = reference(argv, "")
			got.code, got.stdout, got.err = run(argv, "")
			if want.String() == got.String() || tolerated(&want, &got) {
				return
			}
			if bad++; bad <= 40 {
				t.Errorf("the real program:\n%sthis one:\n%s", want.String(), got.String())
			}
		}
		both("iptables -N user")
		both("iptables -t mangle -N user")
		both("iptables -t nat -N user")
		both("iptables -t raw -N user")
		for i := range *randomRules {
			both(randomLine(r, []string{"INPUT", "FORWARD", "OUTPUT", "user", "PREROUTING", "POSTROUTING"}))
			if i%10 == 9 {
				for _, table := range []string{"filter", "mangle", "nat", "raw", "security"} {
					both("iptables -t " + table + " -S -v")
					both("iptables -t " + table + " -L -nv")
					both("iptables -t " + table + " -L --line-numbers")
					both("iptables -t " + table + " -F")
				}
			}
		}
	})
}

// etcNames is fixedNames with the names of Debian's /etc/networks and /etc/hosts.
type etcNames struct{ fixedNames }

func (etcNames) Name(fam uint8, addr [16]byte) string {
	switch a := [4]byte(addr[:4]); {
	case fam == packet.IPv6:
	case a == [4]byte{127, 0, 0, 1}:
		return "localhost"
	case a == [4]byte{}:
		return "default"
	}
	return ""
}

// tolerated are the differences that there are on purpose: where the nf_tables
// variant's answer was taken, it is not the legacy one's.
func tolerated(want, got *step) bool {
	if want.code == got.code && want.stdout == got.stdout {
		const one, other = "No chain/target/match by that name.", "Bad rule (does a matching rule exist in that chain?)."
		if strings.Contains(want.err, one) && strings.Contains(got.err, other) {
			return true // -D and -C of a rule that is not there
		}
	}
	return strings.Contains(got.err, " match requires '-p ") || // the nf_tables variant's refusal
		strings.Contains(got.err, `Port "99999" does not resolve`) // the real one takes it for 34463
}
