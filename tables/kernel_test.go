package tables_test

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"sluice/hooks"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
	"sluice/tables/ext"
)

// TestCountersAreTheKernels loads the same random rules into table raw of the
// kernel and of sluice, sends both the same packets, and compares every counter.
func TestCountersAreTheKernels(t *testing.T) {
	for _, fam := range []uint8{packet.IPv4, packet.IPv6} {
		t.Run(fmt.Sprint("IPv", fam), func(t *testing.T) {
			k := packettest.NewKernel(t)
			k.Run("iptables-legacy -F") // no conntrack, so fragments are seen as they are
			k.Run("ip6tables-legacy -F")
			for seed := range uint64(4) {
				kernelRound(t, k, fam, rand.New(rand.NewPCG(seed, uint64(fam))))
			}
		})
	}
}

func kernelRound(t *testing.T, k *packettest.Kernel, fam uint8, rnd *rand.Rand) {
	tool := map[uint8]string{packet.IPv4: "iptables-legacy", packet.IPv6: "ip6tables-legacy"}[fam]
	chains := []string{"PREROUTING", "a", "b", "c"}
	script := "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:a - [0:0]\n:b - [0:0]\n:c - [0:0]\n"
	// What the kernel says to itself through lo is not compared.
	rules := []string{"PREROUTING -m comment --comment own ! -i tun0 -j ACCEPT"}
	for i := range 150 {
		at := rnd.IntN(len(chains))
		spec := randomSpec(fam, rnd)
		switch to := at + 1 + rnd.IntN(9); {
		case to < len(chains):
			spec += []string{" -j ", " -g "}[rnd.IntN(2)] + chains[to]
		case rnd.IntN(12) == 0:
			spec += " -j RETURN"
		case rnd.IntN(40) == 0:
			spec += " -j ACCEPT"
		case rnd.IntN(40) == 0:
			spec += " -j DROP"
		}
		rules = append(rules, chains[at]+" -m comment --comment r"+fmt.Sprint(i)+spec)
	}
	for _, r := range rules {
		script += "-A " + r + "\n"
	}
	cmd := exec.Command(tool+"-restore", "-c")
	cmd.Stdin = strings.NewReader(script + "COMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := newRig(t, fam)
	r.must("raw -N a", "raw -N b", "raw -N c")
	err := r.Commit(func(rs *tables.Ruleset) error {
		for _, l := range rules {
			w := strings.Fields(l)
			parsed, err := tables.ParseRule(ext.Registry, fam, tables.Raw, w[0], w[1:])
			if err != nil {
				return fmt.Errorf("%s: %w", l, err)
			}
			if err := rs.Table(tables.Raw).Append(w[0], parsed[0]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tun := packet.NewIface(2, "tun0", 1500)
	var sent []string
	for range 400 {
		desc := randomPacket(fam, rnd)
		b, err := packettest.Frame(desc)
		if err != nil {
			t.Fatal(desc, err)
		}
		p := packet.New()
		p.SetBytes(b)
		if p.Parse() != 0 {
			continue // not one that reaches the hooks
		}
		sent = append(sent, desc)
		k.Send(0, b)
		p.In = tun
		r.run(tables.Raw, hooks.Prerouting, p)
	}
	k.Drain(0)
	k.Drain(1)
	theirs := map[string]string{}
	counter := regexp.MustCompile(`^\[(\d+:\d+)\] -A .* --comment (r\d+)\b`)
	for _, l := range strings.Split(k.Run(tool+"-save -c -t raw"), "\n") {
		if m := counter.FindStringSubmatch(l); m != nil {
			theirs[m[2]] = m[1]
		} else if n, ok := strings.CutPrefix(l, ":PREROUTING ACCEPT "); ok {
			theirs["policy"] = strings.Trim(n, "[]")
		}
	}
	v := r.View(nil)
	bad := 0
	check := func(name, rule string, n tables.Counter) {
		if name == "own" {
			return
		}
		if got := fmt.Sprintf("%d:%d", n.Packets, n.Bytes); got != theirs[name] && bad < 10 {
			bad++
			t.Errorf("%s: counted %s, kernel %s", rule, got, theirs[name])
		}
	}
	tab := v.Ruleset.Table(tables.Raw)
	for _, c := range chains {
		for _, x := range tab.Chain(c).Rules() {
			check(x.Matches[0].Args.Str("comment"), c+x.Save(), v.Rule(x))
		}
	}
	check("policy", "policy", v.Policy(tab.Chain("PREROUTING")))
	if bad > 0 {
		t.Logf("%d packets:\n%s", len(sent), strings.Join(sent[:min(40, len(sent))], "\n"))
	}
}

// pickFrom chooses one; %d in it becomes a small number.
func pickFrom(rnd *rand.Rand, s ...string) string {
	x := s[rnd.IntN(len(s))]
	for strings.Contains(x, "%d") {
		x = strings.Replace(x, "%d", fmt.Sprint(rnd.IntN(5)), 1)
	}
	return x
}

func randomSpec(fam uint8, rnd *rand.Rand) string {
	pick := func(s ...string) string { return pickFrom(rnd, s...) }
	s := ""
	icmp := " -p icmp"
	if fam == packet.IPv4 {
		s += pick("", "", "", " -s 10.1.0.%d", " ! -s 10.1.0.%d/31", " -s 10.1.0.1/255.255.0.3")
		s += pick("", "", "", " -d 10.2.0.%d", " ! -d 10.2.0.%d", " -d 10.0.0.0/8")
		s += pick("", "", "", "", " -f", " ! -f")
	} else {
		icmp = " -p icmpv6"
		s += pick("", "", "", " -s fd01::%d", " ! -s fd01::%d/127", " -s ::1/::3")
		s += pick("", "", "", " -d fd02::%d", " ! -d fd02::%d", " -d fd00::/8")
	}
	s += pick("", "", "", "", " -i tun0", " ! -i tun0", " -i tu+", " -i tun", " ! -i lo")
	switch rnd.IntN(9) {
	case 0:
		s += " -p tcp" + pick("", " --dport %d", " ! --dport %d", " --sport %d:", " --dport :%d", " ! --sport %d") +
			pick("", "", " --syn", " ! --syn", " --tcp-flags ALL SYN,ACK", " ! --tcp-flags SYN,RST,FIN SYN", " --tcp-flags ALL NONE") +
			pick("", "", " --tcp-option 2", " ! --tcp-option 2", " --tcp-option 8")
	case 1:
		s += " -p udp" + pick("", " --dport %d", " ! --dport %d", " --sport %d:", " --dport :%d", " ! --sport %d --dport %d")
	case 2:
		s += icmp
		if fam == packet.IPv4 {
			s += pick("", " --icmp-type any", " --icmp-type 8", " ! --icmp-type 8", " --icmp-type 3/%d", " ! --icmp-type 3/%d", " --icmp-type 11")
		} else {
			s += pick("", " --icmpv6-type 128", " ! --icmpv6-type 128", " --icmpv6-type 1/%d", " ! --icmpv6-type 1/%d", " --icmpv6-type 3")
		}
	case 3:
		s += pick(" -p tcp", " -p udp") + " -m multiport" + pick("", " !") + pick(" --dports %d,4", " --sports %d", " --ports 0,3:1%d", " --dports 1:2,%d")
	case 4:
		s += " -p sctp" + pick("", " --dport %d", " --chunk-types any INIT", " --chunk-types all DATA,INIT", " --chunk-types only DATA,SACK",
			" ! --chunk-types any DATA", " --chunk-types any DATA:BE", " --chunk-types only DATA:u", " --chunk-types all NONE")
	case 5:
		s += pick(" -p %d", " ! -p tcp", " -p esp", " -p 253", " ! -p udp", " -p udplite")
		if strings.HasSuffix(s, "-p 0") {
			s += "1"
		}
	case 6:
		s += pick(" -m length --length %d0:100", " -m length ! --length 40", " -m length --length 60:")
	case 7:
		s += pick(" -m mark --mark 0", " -m mark ! --mark 0/%d")
	}
	if fam == packet.IPv6 {
		s = strings.ReplaceAll(s, " -p esp", " -p 254") // an extension header there
	}
	return s
}

func randomPacket(fam uint8, rnd *rand.Rand) string {
	pick := func(s ...string) string { return pickFrom(rnd, s...) }
	src, dst := pick("10.1.0.%d"), pick("10.2.0.%d", "10.2.0.%d", "10.3.0.%d")
	if fam == packet.IPv6 {
		src, dst = pick("fd01::%d"), pick("fd02::%d", "fd02::%d", "fd03::%d")
	}
	src, dst = strings.Replace(src, "01::0", "01::9", 1), strings.Replace(dst, "::0", "::9", 1)
	ends := src + " > " + dst
	ports := func() string {
		f := "%s:%d > %s:%d"
		if fam == packet.IPv6 {
			f = "[%s]:%d > [%s]:%d"
		}
		return fmt.Sprintf(f, src, rnd.IntN(6), dst, rnd.IntN(6))
	}
	size := pick("", " len=%d", " len=%d0", " len=%d00")
	switch rnd.IntN(12) {
	case 0, 1, 2:
		return "tcp " + ports() + pick("", " S", " SA", " A", " R", " FA", " FSRPAU") + pick("", "", " mss=1460", " tcpopts=01010402", " tcpopts=080a0000000100000002") + size
	case 3, 4:
		return "udp " + ports() + size
	case 5, 6:
		if fam == packet.IPv4 {
			return "icmp " + ends + pick(" type=8 id=%d", " type=0", " type=3/%d len=30", " type=11/0 len=30", " type=13 len=12", " type=5/1 len=30") + pick("", " opts=01010101")
		}
		return "icmp6 " + ends + pick(" type=128 id=%d", " type=129", " type=1/%d len=50", " type=3/0 len=50") + pick("", " ext=dest")
	case 7:
		return "sctp " + ports() + pick(" hex=00030004", " hex=0001000401000004", " hex=00000004030000080000000001000004", " hex=0103000403000004", " hex=00000000", "", " hex=01")
	case 8:
		if fam == packet.IPv4 {
			return pick("tcp ", "udp ", "icmp ", "sctp ") + ends + pick(" frag=8 len=16", " frag=1480 len=%d4", " frag=16+ len=8")
		}
		return pick("tcp ", "udp ", "icmp6 ", "sctp ") + ends + pick(" frag=8 len=16", " frag=1448 len=%d4", " frag=16+ len=8")
	case 9:
		return "udp " + ports() + " frag=0+ len=8"
	case 10:
		return pick("253 ", "gre ", "254 ") + ends + " len=20"
	}
	if fam == packet.IPv6 {
		return pick("udp ", "tcp ") + ports() + pick(" ext=hop,dest", " ext=dest", " ext=route") + size
	}
	return pick("udp ", "tcp ") + ports() + " opts=94040000" + size
}
