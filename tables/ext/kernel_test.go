package ext

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
)

// TestConntrackIsTheKernels sends random conversations through the kernel and
// through sluice's conntrack, and compares the counters of rules that look at
// connections, and of marks that travel between packets and connections.
func TestConntrackIsTheKernels(t *testing.T) {
	k := packettest.NewKernel(t)
	for seed := range uint64(5) {
		conntrackRound(t, k, rand.New(rand.NewPCG(seed, 9)), int(seed))
	}
}

func conntrackRound(t *testing.T, k *packettest.Kernel, rnd *rand.Rand, round int) {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	var rules []string
	for i := range 120 {
		spec := " -m comment --comment r" + fmt.Sprint(i) + pick("", "", " -p tcp", " -p udp", " -p icmp", " ! -p tcp")
		switch rnd.IntN(6) {
		case 0:
			spec += " -m state" + pick("", " !") + " --state " + pick("NEW", "ESTABLISHED", "INVALID", "RELATED", "NEW,ESTABLISHED", "UNTRACKED,INVALID")
		case 1:
			spec += " -m connmark" + pick("", " !") + " --mark " + pick("0", "1", "1/1", "0/6", "4/0xc")
		case 2:
			spec += " -m mark" + pick("", " !") + " --mark " + pick("0", "1", "2/2")
		default:
			spec += " -m conntrack"
			for range 1 + rnd.IntN(2) {
				if o := pick(" --ctstate NEW", " --ctstate ESTABLISHED,RELATED", " ! --ctstate INVALID", " --ctstatus CONFIRMED", " ! --ctstatus ASSURED",
					" --ctstatus SEEN_REPLY", " --ctstatus NONE", " --ctdir REPLY", " --ctdir ORIGINAL", " --ctproto tcp", " ! --ctproto udp",
					" --ctorigsrc 10.1.0.0/30", " ! --ctorigdst 10.2.0.2", " --ctreplsrc 10.2.0.2", " ! --ctrepldst 10.1.0.2", " --ctorigsrcport 1:2",
					" ! --ctorigdstport 2", " --ctreplsrcport 1", " --ctrepldstport 2:9", " --ctstate SNAT,DNAT", " ! --ctstate NEW,SNAT"); !strings.Contains(spec, strings.Fields(strings.TrimPrefix(o, " !"))[0]+" ") {
					spec += o
				}
			}
		}
		spec += pick("", "", "", "", "", " -j CONNMARK --set-mark 1", " -j CONNMARK --set-xmark 4/6", " -j CONNMARK --save-mark --mask 3", " -j CONNMARK --restore-mark",
			" -j MARK --set-mark 2/3", " -j MARK --xor-mark 1")
		rules = append(rules, spec)
	}
	script := "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
	for _, r := range rules {
		script += "-A FORWARD" + r + "\n"
	}
	cmd := exec.Command("iptables-legacy-restore", "-c")
	cmd.Stdin = strings.NewReader(script + "COMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b := newBench(t)
	b.env.DoWorkers = func(f func(*tables.Context)) { f(&b.ctx) }
	e := tables.NewEngine(packet.IPv4, b.env)
	err := e.Commit(func(rs *tables.Ruleset) error {
		for _, r := range rules {
			parsed, err := tables.ParseRule(Registry, packet.IPv4, tables.Mangle, "FORWARD", strings.Fields(r))
			if err != nil {
				return fmt.Errorf("%s: %w", r, err)
			}
			if err := rs.Table(tables.Mangle).Append("FORWARD", parsed[0]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pr := e.Program()
	b.ctx.Prepare(pr)
	b.ctx.Hook = hooks.Forward
	var log []string
	for range 300 {
		a, z := fmt.Sprintf("10.1.0.%d", 2+rnd.IntN(2)+10*round), fmt.Sprintf("10.2.0.%d", 2+rnd.IntN(2))
		sp, dp := 1+rnd.IntN(3), 1+rnd.IntN(3)
		dev := rnd.IntN(2)
		if dev == 1 {
			a, z, sp, dp = z, a, dp, sp
		}
		ports := fmt.Sprintf("%s:%d > %s:%d", a, sp, z, dp)
		desc := pick("udp "+ports, "udp "+ports+" len=5", "tcp "+ports+pick(" S", " SA", " A", " FA", " R", " FSR")+fmt.Sprintf(" seq=%d ack=%d", 100+rnd.IntN(3), 100+rnd.IntN(3)),
			fmt.Sprintf("icmp %s > %s type=%s id=%d", a, z, pick("8", "0"), sp), fmt.Sprintf("icmp %s > %s type=3/1 about udp %s:%d > %s:%d", a, z, z, dp, a, sp),
			"253 "+a+" > "+z+" len=4", "udp "+ports+" badcsum")
		log = append(log, desc)
		frame := packettest.MustFrame(desc)
		k.Send(dev, frame)
		p := packet.New()
		p.SetBytes(frame)
		if r := p.Parse(); r != 0 {
			t.Fatal(desc, r)
		}
		p.In, p.Out = packet.NewIface(2+dev, fmt.Sprint("tun", dev), 1500), packet.NewIface(3-dev, fmt.Sprint("tun", 1-dev), 1500)
		if !b.ctx.CT.Track(p, uint8(hooks.Prerouting)) {
			t.Fatal(desc, p.Reason)
		}
		pr.Run(&b.ctx, tables.Mangle, p)
		b.ctx.CT.Confirm(p)
		b.ctx.CT.Release(p)
	}
	k.Drain(0)
	k.Drain(1)
	theirs := map[string]string{}
	counter := regexp.MustCompile(`^\[(\d+):\d+\] -A .* --comment (r\d+)\b`)
	for _, l := range strings.Split(k.Run("iptables-legacy-save -c -t mangle"), "\n") {
		if m := counter.FindStringSubmatch(l); m != nil {
			theirs[m[2]] = m[1]
		}
	}
	v := e.View(nil)
	bad, counted := 0, 0
	for _, x := range v.Ruleset.Table(tables.Mangle).Chain("FORWARD").Rules() {
		var name string
		for _, m := range x.Matches {
			if m.Ext == matchComment {
				name = m.Args.Str("comment")
			}
		}
		if v.Rule(x).Packets > 0 {
			counted++
		}
		if got := fmt.Sprint(v.Rule(x).Packets); got != theirs[name] && bad < 8 {
			bad++
			t.Errorf("round %d:%s: counted %s, kernel %s", round, x.Save(), got, theirs[name])
		}
	}
	if counted < 20 {
		t.Errorf("only %d of %d rules saw packets", counted, len(rules))
	}
	if bad > 0 {
		t.Logf("%s", strings.Join(log[:20], "\n"))
	}
}
