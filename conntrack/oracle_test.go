package conntrack_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/internal/conntrackcmd"
	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/packettest"
)

// pair feeds the same packets to the running kernel and to a table, and
// compares what each packet is to conntrack and what is in the tables then.
type pair struct {
	t   *testing.T
	k   *packettest.Kernel
	set *sysctl.Set
	tbl *conntrack.Table
	w   *conntrack.Worker
	log []string
}

// states are told apart on the kernel's side by the TOS that rules give.
var states = []string{"", "NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"}

func newPair(t *testing.T) *pair {
	k := packettest.NewKernel(t)
	for _, cmd := range []string{"iptables-legacy", "ip6tables-legacy"} {
		for i, s := range states[1:] {
			k.Run(fmt.Sprintf("%s -t mangle -A PREROUTING -m conntrack --ctstate %s -j TOS --set-tos %#x", cmd, s, (i+1)<<2))
		}
		k.Run(cmd + " -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp")
		k.Run(cmd + " -t raw -A PREROUTING -p udp --dport 69 -j CT --helper tftp")
	}
	k.Sysctl("net/netfilter/nf_conntrack_acct=1")
	p := &pair{t: t, k: k}
	p.reset()
	return p
}

func (p *pair) reset() {
	p.k.Run("conntrack -F")
	p.k.Drain(0)
	p.k.Drain(1)
	p.set = sysctl.NewSet()
	p.tbl = conntrack.New(p.set, conntrack.Options{})
	p.w = p.tbl.NewWorker()
	p.sysctl("acct", 1)
	p.log = nil
}

// sysctl sets a tunable on both sides.
func (p *pair) sysctl(name string, v int) {
	p.k.Sysctl(fmt.Sprintf("net/netfilter/nf_conntrack_%s=%d", name, v))
	p.set.Lookup("net.netfilter.nf_conntrack_" + name).Store(int64(v))
}

var helperPorts = map[uint16]string{21: "ftp", 69: "tftp"}

// ours is what the packet is to our table.
func (p *pair) ours(b []byte) string {
	x := packet.New()
	x.SetBytes(b)
	if r := x.Parse(); r != 0 {
		p.t.Fatalf("%v: %v", p.log, r)
	}
	p.w.Begin(p.tbl.Now())
	defer p.w.End()
	x.Now = p.w.Now()
	if h := helperPorts[x.DstPort()]; h != "" && x.Proto == p.tbl.Helper(h).Proto {
		p.w.SetTemplate(x, p.tbl.Template(conntrack.Template{Helper: p.tbl.Helper(h)}))
	}
	if !p.w.Track(x, 0) {
		return "DROP"
	}
	s := map[packet.CtInfo]string{packet.CtEstablished: "ESTABLISHED", packet.CtRelated: "RELATED", packet.CtNew: "NEW",
		packet.CtEstablishedReply: "ESTABLISHED", packet.CtRelatedReply: "RELATED", packet.CtInvalid: "INVALID",
		packet.CtUntracked: "UNTRACKED"}[x.CtInfo]
	if !p.w.Help(x) || !p.w.Confirm(x) {
		p.w.Release(x)
		return "DROP"
	}
	return s
}

// theirs is what the packet is to the kernel: it is forwarded from dev to the other.
func (p *pair) theirs(dev int, b []byte) string {
	p.k.Send(dev, b)
	out := p.k.Drain(1 - dev)
	if len(out) == 0 {
		return "DROP"
	}
	tos := out[0][1]
	if out[0][0]>>4 == 6 {
		tos = out[0][0]<<4 | out[0][1]>>4
	}
	return states[tos>>2]
}

var timeoutField = regexp.MustCompile(`^(.{8} \d+ )(\d+)( .*)$`)

// A kernel's connection counts who refers to it, its expected ones among them.
var useField = regexp.MustCompile(` use=\d+`)

// list gives the lines of conntrack -L, sorted, and the seconds of each.
func list(s string) (lines []string, secs []int) {
	all := strings.Split(strings.TrimSpace(s), "\n")
	for i, l := range all {
		all[i] = useField.ReplaceAllString(l, "")
	}
	sort.Slice(all, func(i, j int) bool {
		return timeoutField.ReplaceAllString(all[i], "$1$3") < timeoutField.ReplaceAllString(all[j], "$1$3")
	})
	for _, l := range all {
		if l == "" {
			continue
		}
		n := 0
		if m := timeoutField.FindStringSubmatch(l); m != nil {
			n, _ = strconv.Atoi(m[2])
			l = m[1] + m[3]
		}
		lines, secs = append(lines, l), append(secs, n)
	}
	return lines, secs
}

// step sends one packet to both and compares; false: they differ.
func (p *pair) step(dev int, desc string) bool {
	p.t.Helper()
	b, err := packettest.Frame(desc)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.stepBytes(dev, desc, b)
}

func (p *pair) stepBytes(dev int, desc string, b []byte) bool {
	p.t.Helper()
	p.log = append(p.log, fmt.Sprint(dev, " ", desc))
	want := p.theirs(dev, b)
	got := p.ours(b)
	if want != got {
		p.t.Errorf("%s\nkernel: %s, ours: %s", strings.Join(p.log, "\n"), want, got)
		return false
	}
	return p.compare("-L") && p.compare("-L", "expect")
}

func (p *pair) compare(args ...string) bool {
	p.t.Helper()
	kout, err := exec.Command("conntrack", args...).Output()
	if err != nil {
		p.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	conntrackcmd.Run(p.tbl, args, nil, &out, &errs, nil)
	kl, ks := list(string(kout))
	ol, os := list(out.String())
	same := strings.Join(kl, "\n") == strings.Join(ol, "\n")
	for i := range ks {
		if same && (ks[i] > os[i]+2 || ks[i] < os[i]-3) {
			same = false
		}
	}
	if !same {
		p.t.Errorf("%s\nkernel:\n%sours:\n%s", strings.Join(p.log, "\n"), kout, out.String())
	}
	return same
}

// scenarios: lines beginning with 0 come from 10.1.0.2, with 1 from 10.2.0.2;
// C and S stand for the ends of a TCP connection. "name=value" sets a tunable.
var scenarios = map[string]string{
	"tcp life": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
0 C PA seq=101 ack=501 len=10
1 S A seq=501 ack=111
0 C FA seq=111 ack=501
1 S A seq=501 ack=112
1 S FA seq=501 ack=112
0 C A seq=112 ack=502
0 C S seq=90000
1 S SA seq=5 ack=90001`,
	"refused": `
0 C S seq=100
1 S RA seq=0 ack=101`,
	"syn retransmitted": `
0 C S seq=100
0 C S seq=100
1 S SA seq=500 ack=101
1 S SA seq=500 ack=101
0 C A seq=101 ack=501`,
	"simultaneous open": `
0 C S seq=100
1 S S seq=500
0 C SA seq=100 ack=501
1 S SA seq=500 ack=101
0 C A seq=101 ack=501`,
	"picked up": `
0 C A seq=1000 ack=5000 len=10
0 C A seq=1010 ack=5000 len=10
1 S A seq=5000 ack=1020 len=10
0 C A seq=1020 ack=5010`,
	"not picked up": `
tcp_loose=0
0 C A seq=1000 ack=5000 len=10
0 C FA seq=1000 ack=5000
0 C S seq=7
tcp_loose=1`,
	"beginnings that are none": `
0 C SA seq=1 ack=1
0 C R seq=1
0 C FA seq=1 ack=1
0 C . seq=1
0 C SF seq=1
0 C SR seq=1
0 C FSRPAU seq=1
0 C F seq=1
0 C SU seq=1
0 C S seq=1 badcsum
0 C S seq=2 len=20`,
	"window": `
0 C S seq=100 win=1000 tcpopts=020405b40402030307
1 S SA seq=500 ack=101 win=1000 tcpopts=020405b40402030307
0 C A seq=101 ack=501 win=10
0 C A seq=101 ack=501 win=10 len=1000
0 C A seq=1101 ack=501 win=10 len=1000
1 S A seq=501 ack=2101 win=10
0 C A seq=900000 ack=501 len=10
1 S A seq=501 ack=900000 len=10
0 C A seq=2101 ack=501 win=10 len=1400
0 C A seq=3501 ack=501 win=10 len=1400
1 S A seq=501 ack=2101 win=0
1 S A seq=501 ack=2101 win=0
1 S A seq=501 ack=2101 win=0
1 S A seq=501 ack=2101 win=0
1 S A seq=501 ack=2101 win=0
0 C A seq=1 ack=501 len=10
1 S A seq=501 ack=4901 win=10`,
	"liberal": `
tcp_be_liberal=1
0 C S seq=100 win=1000
1 S SA seq=500 ack=101 win=1000
0 C A seq=101 ack=501 win=10
0 C A seq=900000 ack=501 len=10
1 S A seq=501 ack=900000 len=10
tcp_be_liberal=0`,
	"resets": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
1 S A seq=501 ack=101 len=100
0 C A seq=101 ack=601
1 S R seq=500
1 S R seq=700
1 S A seq=601 ack=101 len=10
1 S R seq=601
1 S R seq=601
0 C S seq=5000`,
	"resets are ignored": `
tcp_ignore_invalid_rst=1
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
1 S A seq=501 ack=101 len=100
0 C A seq=101 ack=601
1 S R seq=500
tcp_ignore_invalid_rst=0`,
	"exact reset": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
1 S R seq=501`,
	"out of step": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
0 C S seq=70000 tcpopts=0303020000000000
1 S SA seq=90000 ack=70001
0 C A seq=70001 ack=90001
0 C PA seq=70001 ack=90001 len=5`,
	"challenged": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
0 C FA seq=101 ack=501
1 S FA seq=501 ack=102
0 C S seq=70000
1 S A seq=502 ack=102
0 C R seq=102`,
	"closed both ways at once": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
0 C FA seq=101 ack=501
1 S FA seq=501 ack=101
0 C A seq=102 ack=502
1 S A seq=502 ack=102`,
	"invalid ends": `
0 C S seq=100
1 S SA seq=500 ack=101
0 C A seq=101 ack=501
0 C FA seq=9000000 ack=501
1 S FA seq=9000000 ack=101
0 C FA seq=9000000 ack=501`,
	"keepalive": `
0 C A seq=100 ack=500
1 S A seq=500 ack=101
0 C A seq=99 ack=500
1 S A seq=500 ack=101`,
	"udp": `
0 udp 10.1.0.2:5000 > 10.2.0.2:53 len=5
0 udp 10.1.0.2:5000 > 10.2.0.2:53 len=5
1 udp 10.2.0.2:53 > 10.1.0.2:5000 len=5
0 udp 10.1.0.2:5000 > 10.2.0.2:53 len=5
0 udp 10.1.0.2:5001 > 10.2.0.2:53 len=5 badcsum
0 udp 10.1.0.2:5002 > 10.2.0.2:53 len=5 nocsum
0 udplite 10.1.0.2:5002 > 10.2.0.2:53 len=5
0 LITE udplite 10.1.0.2:5002 > 10.2.0.2:53 len=5
1 LITE udplite 10.2.0.2:53 > 10.1.0.2:5002 len=5
0 udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 udp [fd02::2]:53 > [fd01::2]:5000 len=5`,
	"icmp": `
0 icmp 10.1.0.2 > 10.2.0.2 type=8 id=7 seq=1
1 icmp 10.2.0.2 > 10.1.0.2 type=0 id=7 seq=1
0 icmp 10.1.0.2 > 10.2.0.2 type=8 id=7 seq=2
1 icmp 10.2.0.2 > 10.1.0.2 type=0 id=9 seq=1
0 icmp 10.1.0.2 > 10.2.0.2 type=13 id=7
1 icmp 10.2.0.2 > 10.1.0.2 type=14 id=7
0 icmp 10.1.0.2 > 10.2.0.2 type=15 id=7
0 icmp 10.1.0.2 > 10.2.0.2 type=17 id=7
0 icmp 10.1.0.2 > 10.2.0.2 type=18 id=8
0 icmp 10.1.0.2 > 10.2.0.2 type=9
0 icmp 10.1.0.2 > 10.2.0.2 type=10
0 icmp 10.1.0.2 > 10.2.0.2 type=19
0 icmp 10.1.0.2 > 10.2.0.2 type=40
0 icmp 10.1.0.2 > 10.2.0.2 type=1
0 icmp 10.1.0.2 > 10.2.0.2 type=8/3 id=1
1 icmp 10.2.0.2 > 10.1.0.2 type=0/3 id=1
1 icmp 10.2.0.2 > 10.1.0.2 type=0 id=1
0 icmp 10.1.0.2 > 10.2.0.2 type=8 id=77 badcsum`,
	"icmp errors": `
0 udp 10.1.0.2:5000 > 10.2.0.2:53 len=5
1 icmp 10.2.0.9 > 10.1.0.2 type=3/3 about udp 10.1.0.2:5000 > 10.2.0.2:53 len=5
1 icmp 10.2.0.9 > 10.1.0.2 type=11 about udp 10.1.0.2:5000 > 10.2.0.2:53
1 icmp 10.2.0.9 > 10.1.0.2 type=4 about udp 10.1.0.2:5000 > 10.2.0.2:53
1 icmp 10.2.0.9 > 10.1.0.2 type=5 about udp 10.1.0.2:5000 > 10.2.0.2:53
1 icmp 10.2.0.9 > 10.1.0.2 type=12 about udp 10.1.0.2:5000 > 10.2.0.2:53
1 icmp 10.2.0.9 > 10.1.0.3 type=3/3 about udp 10.1.0.2:5000 > 10.2.0.2:53
1 icmp 10.2.0.9 > 10.1.0.2 type=3/3 about udp 10.1.0.2:5001 > 10.2.0.2:53
0 icmp 10.1.0.2 > 10.2.0.2 type=3/3 about udp 10.2.0.2:53 > 10.1.0.2:5000
1 icmp 10.2.0.9 > 10.1.0.2 type=3/3 badcsum about udp 10.1.0.2:5000 > 10.2.0.2:53
1 icmp 10.2.0.9 > 10.1.0.2 type=3/3 about udp 10.1.0.2:5000 > 10.2.0.2:53 frag=1480+
0 icmp 10.1.0.2 > 10.2.0.2 type=8 id=7 seq=1
1 icmp 10.2.0.9 > 10.1.0.2 type=11 about icmp 10.1.0.2 > 10.2.0.2 type=8 id=7 seq=1
1 icmp 10.2.0.9 > 10.1.0.2 type=11 about icmp 10.1.0.2 > 10.2.0.2 type=8 id=8 seq=1
1 icmp 10.2.0.9 > 10.1.0.2 type=11 about icmp 10.1.0.2 > 10.2.0.2 type=3 about udp 10.1.0.2:5000 > 10.2.0.2:53
0 C S seq=1
1 icmp 10.2.0.9 > 10.1.0.2 type=3/4 rest=1400 about C S seq=1`,
	"icmpv6": `
0 icmp6 fd01::2 > fd02::2 type=128 id=7 seq=1
1 icmp6 fd02::2 > fd01::2 type=129 id=7 seq=1
1 icmp6 fd02::2 > fd01::2 type=129 id=8 seq=1
0 icmp6 fd01::2 > fd02::2 type=139 id=7
1 icmp6 fd02::2 > fd01::2 type=140 id=7
0 icmp6 fd01::2 > fd02::2 type=130 ttl=64
0 icmp6 fd01::2 > fd02::2 type=131
0 icmp6 fd01::2 > fd02::2 type=132
0 icmp6 fd01::2 > fd02::2 type=133
0 icmp6 fd01::2 > fd02::2 type=134
0 icmp6 fd01::2 > fd02::2 type=135
0 icmp6 fd01::2 > fd02::2 type=136
0 icmp6 fd01::2 > fd02::2 type=138
0 icmp6 fd01::2 > fd02::2 type=141
0 icmp6 fd01::2 > fd02::2 type=142
0 icmp6 fd01::2 > fd02::2 type=143
0 icmp6 fd01::2 > fd02::2 type=144
0 icmp6 fd01::2 > fd02::2 type=200
0 udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=1/4 about udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=2 rest=1280 about udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=3 about udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=4 about udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=100 about udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::3 type=1/4 about udp [fd01::2]:5000 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=1/4 about udp [fd01::2]:5009 > [fd02::2]:53 len=5
1 icmp6 fd02::9 > fd01::2 type=1/4 about udp [fd01::2]:5000 > [fd02::2]:53 ext=dest len=5
0 icmp6 fd01::2 > fd02::2 type=128 id=9 badcsum`,
	"others": `
0 50 10.1.0.2 > 10.2.0.2 len=20
1 50 10.2.0.2 > 10.1.0.2 len=20
0 50 10.1.0.2 > 10.2.0.2 len=20
0 gre 10.1.0.2 > 10.2.0.2 hex=0000080045000000
1 gre 10.2.0.2 > 10.1.0.2 hex=0000080045000000
0 gre 10.1.0.2 > 10.2.0.2 hex=3001880b00040007
0 gre 10.1.0.2 > 10.2.0.2 hex=3001080000040007
1 gre 10.2.0.2 > 10.1.0.2 hex=3001880b00040009
0 dccp 10.1.0.2:1 > 10.2.0.2:2 len=4
0 132 10.1.0.2 > 10.2.0.2 len=3
0 47 10.1.0.2 > 10.2.0.2
0 1 10.1.0.2 > 10.2.0.2 hex=0800
0 58 10.1.0.2 > 10.2.0.2 len=8
0 icmp fd01::2 > fd02::2 type=8 id=5`,
	"sctp": `
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=0 01000014:00000011:000100000001000100000000
1 sctp 10.2.0.2:2000 > 10.1.0.2:1000 SCTP vtag=17 02000014:00000022:000100000001000100000000
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=34 0a000004
1 sctp 10.2.0.2:2000 > 10.1.0.2:1000 SCTP vtag=17 0b000004
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=34 00030010:000000010000000000000000
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=35 00030010:000000010000000000000000
1 sctp 10.2.0.2:2000 > 10.1.0.2:1000 SCTP vtag=17 04000008:00010004
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=34 05000008:00010004
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=34 07000008:00000000
1 sctp 10.2.0.2:2000 > 10.1.0.2:1000 SCTP vtag=17 08000004
0 sctp 10.1.0.2:1000 > 10.2.0.2:2000 SCTP vtag=34 0e000004
0 sctp 10.1.0.2:1001 > 10.2.0.2:2000 SCTP vtag=5 04000008:00010004
1 sctp 10.2.0.2:2000 > 10.1.0.2:1001 SCTP vtag=6 05000008:00010004
0 sctp 10.1.0.2:1002 > 10.2.0.2:2000 SCTP vtag=5 00030010:000000010000000000000000
0 sctp 10.1.0.2:1002 > 10.2.0.2:2000 SCTP vtag=5 06000004
0 sctp 10.1.0.2:1002 > 10.2.0.2:2000 SCTP vtag=5 08000004
0 sctp 10.1.0.2:1003 > 10.2.0.2:2000 SCTP vtag=0 01000014:00000011:000100000001000100000000
0 sctp 10.1.0.2:1003 > 10.2.0.2:2000 SCTP vtag=0 01000014:00000011:000100000001000100000000
1 sctp 10.2.0.2:2000 > 10.1.0.2:1003 SCTP vtag=17 06000004
0 sctp 10.1.0.2:1004 > 10.2.0.2:2000 SCTP vtag=9 01000014:00000011:000100000001000100000000`,
	"ftp": `
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 S seq=100
1 tcp 10.2.0.2:21 > 10.1.0.2:5000 SA seq=500 ack=101
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 A seq=101 ack=501
1 tcp 10.2.0.2:21 > 10.1.0.2:5000 PA seq=501 ack=101 data="220\_hi\r\n"
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=101 ack=509 data="USER\_x\r\n"
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=109 ack=509 data="PORT\_10,1,0,2,4,1\r\n"
1 tcp 10.2.0.2:20 > 10.1.0.2:1025 S seq=1
0 tcp 10.1.0.2:1025 > 10.2.0.2:20 SA seq=1 ack=2
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=129 ack=509 data="port\_10,1,0,2,4,2\r\n"
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=149 ack=509 data="EPRT\_|1|10.1.0.2|1027|\r\n"
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=174 ack=509 data="PORT\_10,1,0,3,4,3\r\n"
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=194 ack=509 data="PORT\_10,1,0"
0 tcp 10.1.0.2:5000 > 10.2.0.2:21 PA seq=194 ack=509 data="PASV\r\n"
1 tcp 10.2.0.2:21 > 10.1.0.2:5000 PA seq=509 ack=200 data="227\_Entering\_(10,2,0,2,8,1).\r\n"
0 tcp 10.1.0.2:6000 > 10.2.0.2:2049 S seq=1
1 tcp 10.2.0.2:21 > 10.1.0.2:5000 PA seq=539 ack=200 data="229\_Extended\_(|||2050|)\r\n"
0 tcp 10.1.0.2:6001 > 10.2.0.2:2050 S seq=1`,
	"tftp": `
0 udp 10.1.0.2:5000 > 10.2.0.2:69 hex=0001666f6f006f6374657400
1 udp 10.2.0.2:3333 > 10.1.0.2:5000 hex=0003000141
0 udp 10.1.0.2:5000 > 10.2.0.2:3333 hex=00040001`,
}

// frame reads a scenario's packet: the words of packettest, C and S for the
// ends of a connection, SCTP chunks after "SCTP vtag=N".
func frame(t *testing.T, desc string) []byte {
	t.Helper()
	desc = ends.ReplaceAllStringFunc(desc, func(m string) string {
		if strings.HasSuffix(m, "C ") {
			return strings.TrimSuffix(m, "C ") + "tcp 10.1.0.2:5000 > 10.2.0.2:80 "
		}
		return strings.TrimSuffix(m, "S ") + "tcp 10.2.0.2:80 > 10.1.0.2:5000 "
	})
	if head, chunks, ok := strings.Cut(desc, " SCTP vtag="); ok {
		tag, body, _ := strings.Cut(chunks, " ")
		n, _ := strconv.ParseUint(tag, 10, 32)
		b := packettest.MustFrame(head + " hex=" + strings.ReplaceAll(body, ":", ""))
		b[24], b[25], b[26], b[27] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
		p := packet.New()
		p.SetBytes(b)
		p.Parse()
		p.FixChecksums()
		return bytes.Clone(p.Bytes())
	}
	if d, ok := strings.CutPrefix(desc, "LITE "); ok { // summed with UDP's number
		b := packettest.MustFrame(d)
		sum := uint32(b[26])<<8 + uint32(b[27]) + 136 - 17
		sum = sum>>16 + sum&0xffff
		b[26], b[27] = byte(sum>>8), byte(sum)
		return b
	}
	if i := strings.Index(desc, `data="`); i >= 0 {
		text := desc[i+6 : len(desc)-1]
		text = strings.NewReplacer(`\_`, " ", `\r`, "\r", `\n`, "\n").Replace(text)
		desc = desc[:i] + fmt.Sprintf("hex=%x", text)
	}
	b, err := packettest.Frame(desc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var ends = regexp.MustCompile(`(^|about )([CS]) `)

func TestAgainstTheKernel(t *testing.T) {
	p := newPair(t)
	var names []string
	for n := range scenarios {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names { // no subtests: their goroutines would be outside the namespace
		p.reset()
		for _, l := range strings.Split(strings.TrimSpace(scenarios[n]), "\n") {
			if name, v, ok := strings.Cut(l, "="); ok && !strings.Contains(name, " ") {
				x, _ := strconv.Atoi(v)
				p.sysctl(name, x)
				continue
			}
			if !p.stepBytes(int(l[0]-'0'), l[2:], frame(t, l[2:])) {
				t.Errorf("above: %s", n)
				break
			}
		}
	}
}

// TestRandomTCPAgainstTheKernel plays connections that go wrong in random ways.
// SLUICE_ORACLE=N plays N of them.
func TestRandomTCPAgainstTheKernel(t *testing.T) {
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("SLUICE_ORACLE")); err == nil {
		rounds = n
	} else if testing.Short() {
		rounds = 3
	}
	seed := uint64(1) // the same each time: a change is judged by what it changes
	if n, err := strconv.ParseUint(os.Getenv("SLUICE_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("SLUICE_SEED=%d", seed)
	p := newPair(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	for range rounds {
		p.reset()
		next := [2]uint32{rng.Uint32(), rng.Uint32()} // what each side would send next
		acked := [2]uint32{}
		name := [2]string{"tcp 10.1.0.2:5000 > 10.2.0.2:80 ", "tcp 10.2.0.2:80 > 10.1.0.2:5000 "}
		opts := []string{"", "", " tcpopts=0402030300", " tcpopts=030302", " tcpopts=04020303070101"}
		say := func(d int, flags string, n int) bool {
			seq, ack := next[d], next[1-d]
			switch rng.IntN(14) {
			case 0:
				seq += uint32(rng.IntN(200)) - 100
			case 1:
				seq += rng.Uint32() >> uint(8+rng.IntN(16))
			case 2:
				ack -= uint32(rng.IntN(3000))
			case 3:
				ack += uint32(rng.IntN(200)) - 50
			case 4:
				seq = acked[1-d]
			case 5:
				if strings.Contains(flags, "R") {
					seq = 0
				}
			}
			x := name[d] + flags + fmt.Sprintf(" seq=%d", seq)
			if strings.Contains(flags, "A") {
				x += fmt.Sprintf(" ack=%d", ack)
				acked[d] = ack
			}
			x += " win=" + pick("65535", "1000", "8", "0", "300")
			if strings.Contains(flags, "S") {
				x += pick(opts...)
			} else if n > 0 {
				x += fmt.Sprintf(" len=%d", n)
			}
			end := seq + uint32(n)
			if strings.ContainsAny(flags, "SF") {
				end++
				if strings.Contains(flags, "S") {
					end -= uint32(n)
				}
			}
			if int32(end-next[d]) > 0 && int32(end-next[d]) < 100000 {
				next[d] = end
			}
			return p.step(d, x)
		}
		ok := true
		if rng.IntN(4) > 0 {
			ok = say(0, "S", 0)
			if ok && rng.IntN(4) > 0 {
				ok = say(1, "SA", 0)
			}
			if ok && rng.IntN(4) > 0 {
				ok = say(0, "A", 0)
			}
		}
		for range 14 {
			if !ok {
				t.Fatalf("SLUICE_SEED=%d", seed)
			}
			ok = say(rng.IntN(2), pick("A", "A", "A", "PA", "PA", "FA", "FA", "R", "RA", "S", "SA", "A", "F", "PAU"), pickInt(rng, 0, 0, 1, 100, 1400))
		}
		if !ok {
			t.Fatalf("SLUICE_SEED=%d", seed)
		}
	}
}

func pickInt(rng *rand.Rand, n ...int) int { return n[rng.IntN(len(n))] }
