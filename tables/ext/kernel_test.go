package ext

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"sluice/hooks"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

// rig runs the same rules in table mangle, chain FORWARD, of the kernel and of
// sluice, for packets from tun0 to tun1 and back.
type rig struct {
	*bench
	k     *packettest.Kernel
	fam   uint8
	tool  string
	eng   *tables.Engine
	rules []string
	ifs   [2]*packet.Iface
	log   []string
}

func newRig(t *testing.T, fam uint8, rules ...string) *rig {
	r := &rig{bench: newBench(t), k: packettest.NewKernel(t), fam: fam, rules: rules, tool: "iptables-legacy"}
	if fam == packet.IPv6 {
		r.tool = "ip6tables-legacy"
	}
	r.ifs = [2]*packet.Iface{packet.NewIface(2, "tun0", 1500), packet.NewIface(3, "tun1", 1500)}
	r.eng = tables.NewEngine(fam, r.env)
	r.env.DoWorkers = func(f func(*tables.Context)) { f(&r.ctx) }
	script := "*mangle\n:FORWARD ACCEPT [0:0]\n"
	err := r.eng.Commit(func(rs *tables.Ruleset) error {
		for i, spec := range rules {
			spec = fmt.Sprintf("-m comment --comment r%d %s", i, spec)
			script += "-A FORWARD " + spec + "\n"
			parsed, err := tables.ParseRule(Registry, fam, tables.Mangle, "FORWARD", packettest.Words(spec))
			if err != nil {
				return fmt.Errorf("%s: %w", spec, err)
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
	cmd := exec.Command(r.tool + "-restore")
	cmd.Stdin = strings.NewReader(script + "COMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.ctx.CT.End()
	t.Cleanup(func() { r.ctx.CT.Begin(r.ct.Now()) }) // as the bench expects it
	return r
}

// send takes a frame that comes in on device in through both. It returns what
// the other device gets from the kernel and from sluice; nil: nothing.
func (r *rig) send(in int, desc string) (theirs, ours []byte) {
	r.Helper()
	r.log = append(r.log, fmt.Sprintf("tun%d %s", in, desc))
	b, err := packettest.Frame(desc)
	if err != nil {
		r.Fatal(desc, err)
	}
	r.k.Drain(1 - in)
	r.k.Send(in, b)
	if out := r.k.Drain(1 - in); len(out) > 0 {
		theirs = out[0]
	}
	p := packettest.New(r, desc)
	w := r.ctx.CT
	now := r.ct.Now()
	w.Begin(now)
	defer w.End()
	p.Now, p.In = now, r.ifs[in]
	r.ctx.Prepare(r.eng.Program())
	if !w.Track(p, uint8(hooks.Prerouting)) {
		w.Release(p)
		return theirs, nil
	}
	p.SetTTL(p.TTL() - 1)
	p.Out = r.ifs[1-in]
	r.ctx.Hook = hooks.Forward
	if r.eng.Program().Run(&r.ctx, tables.Mangle, p) != hooks.Accept || !w.Confirm(p) {
		w.Release(p)
		return theirs, nil
	}
	ours = append([]byte(nil), p.Bytes()...)
	w.Release(p)
	return theirs, ours
}

// compare compares the counters of all rules.
func (r *rig) compare() {
	r.Helper()
	theirs := map[string]string{}
	counter := regexp.MustCompile(`^\[(\d+:\d+)\] -A .* --comment (r\d+)\b`)
	for _, l := range strings.Split(r.k.Run(r.tool+"-save -c -t mangle"), "\n") {
		if m := counter.FindStringSubmatch(l); m != nil {
			theirs[m[2]] = m[1]
		}
	}
	v := r.eng.View(nil)
	bad := false
	for i, x := range v.Ruleset.Table(tables.Mangle).Chain("FORWARD").Rules() {
		n := v.Rule(x)
		if got, want := fmt.Sprintf("%d:%d", n.Packets, n.Bytes), theirs[fmt.Sprint("r", i)]; got != want {
			r.Errorf("%s: counted %s, kernel %s", r.rules[i], got, want)
			bad = true
		}
	}
	if bad {
		r.Logf("%d packets:\n%s", len(r.log), strings.Join(r.log[:min(60, len(r.log))], "\n"))
	}
}

func bothFamilies(t *testing.T, f func(t *testing.T, fam uint8)) {
	for _, fam := range []uint8{packet.IPv4, packet.IPv6} {
		t.Run(fmt.Sprint("IPv", fam), func(t *testing.T) { f(t, fam) })
	}
}

func pick[T any](rnd *rand.Rand, s ...T) T { return s[rnd.IntN(len(s))] }

// someHost is an address behind tun0 or tun1.
func someHost(rnd *rand.Rand, fam uint8, dev, n int) string {
	if fam == packet.IPv4 {
		return fmt.Sprintf("10.%d.0.%d", dev+1, 2+rnd.IntN(n))
	}
	return fmt.Sprintf("fd0%d::%x", dev+1, 2+rnd.IntN(n))
}

func ends(fam uint8, src string, sport int, dst string, dport int) string {
	if fam == packet.IPv6 {
		return fmt.Sprintf("[%s]:%d > [%s]:%d", src, sport, dst, dport)
	}
	return fmt.Sprintf("%s:%d > %s:%d", src, sport, dst, dport)
}

func somePacket(rnd *rand.Rand, fam uint8, hosts int) string {
	src, dst := someHost(rnd, fam, 0, hosts), someHost(rnd, fam, 1, hosts)
	s := ""
	switch rnd.IntN(5) {
	case 0:
		s = "udp " + ends(fam, src, 1000+rnd.IntN(3), dst, 53+rnd.IntN(2))
	case 1:
		s = "udplite " + ends(fam, src, 1000+rnd.IntN(2), dst, 53)
	case 2:
		s = "tcp " + ends(fam, src, 1000+rnd.IntN(3), dst, 80) + " S" + pick(rnd, "", " mss=1460", " mss=500", " mss=536 tcpopts=0101", " tcpopts=0101020405b4")
	case 3:
		s = pick(rnd, "esp ", "47 ") + src + " > " + dst + " hex=" + pick(rnd, "00112233", "0011", "001122334455")
	case 4:
		if fam == packet.IPv4 {
			s = "icmp " + src + " > " + dst + " type=8 id=5 seq=1"
		} else {
			s = "icmp6 " + src + " > " + dst + " type=128 id=5 seq=1"
		}
	}
	return s + pick(rnd, "", " ttl=2", " ttl=5", " ttl=255") + pick(rnd, "", " tos=16", " tos=0xb8", " tos=3", " tos=0x48")
}

func TestMatchesAreTheKernels(t *testing.T) {
	rules := map[uint8][]string{0: {
		"-m tos --tos 16", "-m tos --tos 0x10/0x3f", "-m tos ! --tos Minimize-Delay", "-m tos --tos 0/0", "-m tos --tos 0xb8/0xf8",
		"-m dscp --dscp 0", "-m dscp --dscp-class EF", "-m dscp ! --dscp-class EF", "-m dscp --dscp 0x12",
		"-p tcp -m tcpmss --mss 1460", "-p tcp -m tcpmss --mss 500:600", "-p tcp -m tcpmss ! --mss 500:600", "-p tcp -m tcpmss --mss :499", "-p tcp -m tcpmss ! --mss 1",
		"-m pkttype --pkt-type unicast", "-m pkttype ! --pkt-type unicast", "-m pkttype --pkt-type multicast",
		"-m mac --mac-source 00:00:00:00:00:00", "-m mac ! --mac-source 00:00:00:00:00:00",
	}, packet.IPv4: {
		"-m ttl --ttl-eq 63", "-m ttl ! --ttl-eq 63", "-m ttl --ttl-lt 5", "-m ttl --ttl-gt 4", "-m ttl --ttl-lt 1", "-m ttl --ttl-gt 254", "-m ttl --ttl-lt 0", "-m ttl --ttl-gt 255",
		"-m iprange --src-range 10.1.0.3-10.1.0.4", "-m iprange ! --src-range 10.1.0.3-10.1.0.4 --dst-range 10.2.0.2", "-m iprange --dst-range 10.2.0.4-10.2.0.2",
		"-m iprange ! --dst-range 10.2.0.4-10.2.0.2", "-m iprange --src-range 0.0.0.0-255.255.255.255",
	}, packet.IPv6: {
		"-m hl --hl-eq 63", "-m hl ! --hl-eq 63", "-m hl --hl-lt 5", "-m hl --hl-gt 4", "-m hl --hl-lt 0", "-m hl --hl-gt 255",
		"-m iprange --src-range fd01::3-fd01::4", "-m iprange ! --src-range fd01::3-fd01::4 --dst-range fd02::2", "-m iprange --src-range ::-ffff::",
	}}
	bothFamilies(t, func(t *testing.T, fam uint8) {
		r := newRig(t, fam, append(rules[0], rules[fam]...)...)
		rnd := rand.New(rand.NewPCG(1, uint64(fam)))
		for range 300 {
			r.send(0, somePacket(rnd, fam, 4))
		}
		r.compare()
	})
}

func TestTargetsAreTheKernels(t *testing.T) {
	rules := map[uint8][]string{0: {
		"-j TOS --set-tos 0x10", "-j TOS --set-tos 0x8/0x1c", "-j TOS --set-tos Normal-Service", "-j TOS --and-tos 0x3c", "-j TOS --or-tos 5", "-j TOS --xor-tos 0xff", "-j TOS --set-tos 0xff/0",
		"-j DSCP --set-dscp 0", "-j DSCP --set-dscp 63", "-j DSCP --set-dscp-class AF21",
		"-p tcp --syn -j TCPMSS --set-mss 1000", "-p tcp --syn -j TCPMSS --set-mss 0", "-p tcp --syn -j TCPMSS --set-mss 65495", "-p tcp --syn -j TCPMSS --clamp-mss-to-pmtu",
		"-j CHECKSUM --checksum-fill",
	}, packet.IPv4: {
		"-j TTL --ttl-set 1", "-j TTL --ttl-set 0", "-j TTL --ttl-inc 5", "-j TTL --ttl-inc 255", "-j TTL --ttl-dec 3", "-j TTL --ttl-dec 255",
	}, packet.IPv6: {
		"-j HL --hl-set 1", "-j HL --hl-inc 5", "-j HL --hl-inc 255", "-j HL --hl-dec 3", "-j HL --hl-dec 255",
	}}
	bothFamilies(t, func(t *testing.T, fam uint8) {
		for _, rule := range append(rules[0], rules[fam]...) {
			t.Run(rule, func(t *testing.T) {
				r := newRig(t, fam, rule)
				r.k.Run("ip link set tun1 mtu 1400")
				r.env.Routes = pathMTU{fewRoutes{}, 1400, 1500}
				rnd := rand.New(rand.NewPCG(2, uint64(fam)))
				for range 60 {
					desc := somePacket(rnd, fam, 40)
					theirs, ours := r.send(0, desc)
					if string(theirs) != string(ours) {
						t.Fatalf("%s\nours   %x\nkernel %x", desc, ours, theirs)
					}
				}
				r.compare()
			})
		}
	})
}

type pathMTU struct {
	fewRoutes
	to, back int
}

func (m pathMTU) PathMTU(_ *packet.Packet, reverse bool) int {
	if reverse {
		return m.back
	}
	return m.to
}

func TestRecentIsTheKernels(t *testing.T) {
	bothFamilies(t, func(t *testing.T, fam uint8) {
		mask := map[uint8]string{packet.IPv4: "255.255.255.252", packet.IPv6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc"}[fam]
		r := newRig(t, fam,
			"-m recent --name a --rcheck", "-m recent --name a --rcheck --hitcount 3", "-p udp -m recent --name a --set",
			"-m recent --name a --rcheck --seconds 1000 --hitcount 5", "-m recent --name a ! --rcheck --hitcount 5", "-m recent --name a --rcheck --rttl",
			"-p tcp -m recent --name a --update --hitcount 2", "-p tcp -m recent --name a --update --seconds 500 --rttl", "-p esp -m recent --name a --remove", "-p esp -m recent --name a ! --remove",
			"-m recent --name b --rdest ! --set", "-m recent --name b --rdest --rcheck --hitcount 20", "-m recent --name b --rcheck --rsource",
			"-p udp -m recent --name c --set --mask "+mask, "-m recent --name c --rcheck", "-m recent --name c --update --hitcount 33", "-m recent --name c --rcheck --seconds 100 --reap --hitcount 40",
			"-m recent --name d --rcheck --rdest", "-p tcp -m recent --name d --set --rdest", "-m recent --name d ! --update --hitcount 4 --rdest",
		)
		rnd := rand.New(rand.NewPCG(3, uint64(fam)))
		for range 1500 {
			hosts := pick(rnd, 6, 6, 150) // more than a list holds
			r.send(0, somePacket(rnd, fam, hosts))
		}
		r.compare()
	})
}

func TestHashlimitIsTheKernels(t *testing.T) {
	bothFamilies(t, func(t *testing.T, fam uint8) {
		h := "-m hashlimit --hashlimit-htable-expire 100000 --hashlimit-name "
		mask := map[uint8]string{packet.IPv4: "30", packet.IPv6: "126"}[fam]
		r := newRig(t, fam,
			h+"a --hashlimit-upto 5/hour --hashlimit-mode srcip", h+"b --hashlimit-above 5/hour --hashlimit-burst 3 --hashlimit-mode srcip,dstip",
			h+"c --hashlimit-upto 10/hour --hashlimit-burst 10", h+"d --hashlimit-upto 10/hour --hashlimit-mode srcport,dstport --hashlimit-burst 7",
			h+"e --hashlimit-above 10/hour --hashlimit-mode srcip --hashlimit-srcmask "+mask+" --hashlimit-burst 20", h+"f --hashlimit-upto 10/hour --hashlimit-mode dstip --hashlimit-dstmask 0 --hashlimit-burst 20",
			h+"g --hashlimit-upto 1/hour --hashlimit-mode dstip --hashlimit-burst 9", "-p udp "+h+"g --hashlimit-above 100/hour --hashlimit-mode srcip --hashlimit-burst 1",
			h+"h --hashlimit-upto 16b/s --hashlimit-mode srcip", h+"i --hashlimit-above 16b/s --hashlimit-burst 48b --hashlimit-mode srcip,dstip",
			h+"j --hashlimit-upto 7/hour --hashlimit-rate-match --hashlimit-mode srcip", h+"k --hashlimit-above 7/sec --hashlimit-rate-match --hashlimit-rate-interval 3600 --hashlimit-mode srcip,dstip --hashlimit-burst 1",
			h+"l --hashlimit-upto 256b/s --hashlimit-rate-match --hashlimit-rate-interval 3600 --hashlimit-mode srcip", h+"m --hashlimit-upto 256b/s --hashlimit-burst 1kb --hashlimit-rate-match --hashlimit-rate-interval 3600 --hashlimit-mode srcip",
			h+"n --hashlimit-upto 10/day --hashlimit-burst 15", h+"o --hashlimit-upto 5/hour --hashlimit-mode srcip --hashlimit-htable-size 3 --hashlimit-htable-max 5",
			"-m comment --comment after",
		)
		rnd := rand.New(rand.NewPCG(4, uint64(fam)))
		for range 400 {
			r.send(0, somePacket(rnd, fam, pick(rnd, 3, 3, 8)))
		}
		r.compare()
	})
}

// Only first packets are compared: for others, and within a tick of its clock,
// the kernel also counts connections that are gone.
func TestConnlimitIsTheKernels(t *testing.T) {
	bothFamilies(t, func(t *testing.T, fam uint8) {
		mask := map[uint8]string{packet.IPv4: "30", packet.IPv6: "126"}[fam]
		c := "-m conntrack --ctstate NEW -m connlimit "
		r := newRig(t, fam,
			c+"--connlimit-above 0", c+"--connlimit-above 3", c+"--connlimit-upto 3", c+"--connlimit-above 5 --connlimit-daddr",
			c+"--connlimit-above 6 --connlimit-mask "+mask, c+"--connlimit-upto 20 --connlimit-mask 0", "-p tcp --syn "+c+"--connlimit-above 3 -j DROP",
			"-p udp "+c+"--connlimit-above 7 -j DROP", c+"! --connlimit-above 1",
		)
		rnd := rand.New(rand.NewPCG(5, uint64(fam)))
		tick := func() { time.Sleep(9 * time.Millisecond) }
		for sport := range 150 {
			src, dst := someHost(rnd, fam, 0, 4), someHost(rnd, fam, 1, 2)
			sport += 1000
			tick()
			if rnd.IntN(4) == 0 {
				r.send(0, "udp "+ends(fam, src, sport, dst, 53))
				continue
			}
			out, _ := r.send(0, "tcp "+ends(fam, src, sport, dst, 80)+" S seq=100")
			if out == nil {
				continue
			}
			tick()
			if rnd.IntN(3) > 0 {
				r.send(1, "tcp "+ends(fam, dst, 80, src, sport)+" RA seq=0 ack=101")
			} else {
				r.send(1, "tcp "+ends(fam, dst, 80, src, sport)+" SA seq=500 ack=101")
			}
		}
		r.compare()
	})
}

// errNumber is the errno with which an engine refuses a filter INPUT rule; 0: it does not.
func errNumber(t *testing.T, env *tables.Env, text string) error {
	t.Helper()
	rules, err := tables.ParseRule(Registry, packet.IPv4, tables.Filter, "INPUT", packettest.Words(text))
	if err != nil {
		t.Fatal(text, err)
	}
	err = tables.NewEngine(packet.IPv4, env).Commit(func(rs *tables.Ruleset) error { return rs.Table(tables.Filter).Append("INPUT", rules[0]) })
	var e *tables.EditError
	if errors.As(err, &e) {
		return e.Errno
	}
	return err
}
