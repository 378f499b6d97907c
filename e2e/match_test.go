package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
	"sluice/packet/packettest"
)

// matchRules has every match and every target that does not end a walk, by
// family: "4", "6" or both.
var matchRules = []struct{ family, table, rule string }{
	{"46", "filter", "-A FORWARD -p udp"},
	{"46", "filter", "-A FORWARD ! -p udp"},
	{"4", "filter", "-A FORWARD -s 10.1.0.0/24 ! -d 10.2.0.3"},
	{"6", "filter", "-A FORWARD -s fd01::/64 ! -d fd02::3"},
	{"46", "filter", "-A FORWARD -i tun0 -o tun1"},
	{"46", "filter", "-A FORWARD -i tun+ ! -o tun0"},
	{"4", "filter", "-A FORWARD -f"},
	{"4", "filter", "-A FORWARD ! -f"},
	{"46", "filter", "-A FORWARD -p tcp --dport 80"},
	{"46", "filter", "-A FORWARD -p tcp --sport 1000:2000 ! --dport 80"},
	{"46", "filter", "-A FORWARD -p tcp --syn"},
	{"46", "filter", "-A FORWARD -p tcp --tcp-flags ALL FIN,PSH,URG"},
	{"46", "filter", "-A FORWARD -p tcp --tcp-option 2"},
	{"46", "filter", "-A FORWARD -p tcp ! --tcp-option 5"},
	{"46", "filter", "-A FORWARD -p udp --dport 53"},
	{"46", "filter", "-A FORWARD -p udp ! --sport 1000"},
	{"46", "filter", "-A FORWARD -p sctp --dport 7 --chunk-types any INIT"},
	{"46", "filter", "-A FORWARD -p sctp --sport 1:100"},
	{"4", "filter", "-A FORWARD -p icmp --icmp-type echo-request"},
	{"4", "filter", "-A FORWARD -p icmp --icmp-type 3/4"},
	{"4", "filter", "-A FORWARD -p icmp ! --icmp-type 8"},
	{"6", "filter", "-A FORWARD -p ipv6-icmp --icmpv6-type echo-request"},
	{"6", "filter", "-A FORWARD -p ipv6-icmp --icmpv6-type destination-unreachable"},
	{"46", "filter", "-A FORWARD -p tcp -m multiport --dports 22,80,1000:3000"},
	{"46", "filter", "-A FORWARD -p udp -m multiport --ports 53,1000"},
	{"46", "filter", "-A FORWARD -p udp -m multiport ! --sports 1000,1001"},
	{"46", "filter", "-A FORWARD -m conntrack --ctstate NEW"},
	{"46", "filter", "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED"},
	{"46", "filter", "-A FORWARD -m conntrack --ctstate INVALID"},
	{"46", "filter", "-A FORWARD -m conntrack --ctproto udp --ctdir ORIGINAL"},
	{"46", "filter", "-A FORWARD -m conntrack --ctstatus SEEN_REPLY"},
	{"4", "filter", "-A FORWARD -m conntrack --ctorigsrc 10.1.0.2 --ctorigdstport 53"},
	{"46", "filter", "-A FORWARD -m state --state NEW"},
	{"46", "mangle", "-A PREROUTING -p udp --dport 53 -j MARK --set-xmark 0x5/0xff"},
	{"46", "mangle", "-A PREROUTING -p udp --dport 53 -j CONNMARK --save-mark"},
	{"46", "mangle", "-A PREROUTING -p udp --sport 53 -j CONNMARK --restore-mark"},
	{"46", "filter", "-A FORWARD -m mark --mark 0x5/0xf"},
	{"46", "filter", "-A FORWARD -m mark ! --mark 0"},
	{"46", "filter", "-A FORWARD -m connmark --mark 5"},
	{"46", "filter", "-A FORWARD -m comment --comment something"},
	{"46", "filter", "-A FORWARD -m limit --limit 1/hour --limit-burst 3"},
	{"4", "filter", "-A FORWARD -m iprange --src-range 10.1.0.2-10.1.0.4 ! --dst-range 10.2.0.3-10.2.0.9"},
	{"6", "filter", "-A FORWARD -m iprange --dst-range fd02::2-fd02::4"},
	{"4", "filter", "-A FORWARD -m addrtype --src-type UNICAST --dst-type UNICAST"},
	{"4", "filter", "-A INPUT -m addrtype --dst-type LOCAL"},
	{"4", "filter", "-A INPUT -m addrtype --dst-type BROADCAST"},
	{"6", "filter", "-A INPUT -m addrtype --dst-type LOCAL"},
	{"46", "filter", "-A FORWARD -m tos --tos 0x10/0x3f"},
	{"46", "filter", "-A FORWARD -m dscp --dscp 10"},
	{"46", "filter", "-A FORWARD -m dscp ! --dscp-class CS0"},
	{"4", "filter", "-A FORWARD -m ttl --ttl-lt 10"},
	{"4", "filter", "-A FORWARD -m ttl --ttl-eq 63"},
	{"6", "filter", "-A FORWARD -m hl --hl-gt 62"},
	{"46", "filter", "-A FORWARD -m length --length 60:100"},
	{"46", "filter", "-A FORWARD -m length ! --length 0:60"},
	{"46", "filter", "-A FORWARD -m mac --mac-source 02:00:00:00:00:01"},
	{"46", "filter", "-A FORWARD -p tcp --syn -m tcpmss --mss 1000:1400"},
	{"46", "filter", "-A FORWARD -p tcp --syn -m tcpmss ! --mss 536"},
	{"46", "filter", "-A FORWARD -m recent --name seen --set"},
	{"46", "filter", "-A FORWARD -m recent --name seen --rcheck --hitcount 5"},
	{"46", "filter", "-A FORWARD -m recent --name other --update --seconds 100"},
	{"46", "filter", "-A FORWARD -m pkttype --pkt-type unicast"},
	{"4", "filter", "-A INPUT -m pkttype ! --pkt-type unicast"},
	{"46", "filter", "-A FORWARD -m hashlimit --hashlimit-upto 1/hour --hashlimit-burst 2 --hashlimit-mode srcip,dstport --hashlimit-name h1"},
	{"46", "filter", "-A FORWARD -m hashlimit --hashlimit-above 1/hour --hashlimit-burst 4 --hashlimit-mode dstip --hashlimit-name h2"},
	{"46", "filter", "-A FORWARD -p tcp --syn -m connlimit --connlimit-above 2"},
	{"46", "filter", "-A FORWARD -p tcp --syn -m connlimit --connlimit-upto 1 --connlimit-daddr"},
	{"46", "raw", "-A PREROUTING -m rpfilter"},
	{"46", "raw", "-A PREROUTING -m rpfilter --invert"},
	{"46", "raw", "-A PREROUTING -m rpfilter --loose"},
	{"46", "raw", "-A PREROUTING -p udp --dport 9009 -j NOTRACK"},
	{"46", "filter", "-A FORWARD -m conntrack --ctstate UNTRACKED"},
	{"46", "mangle", "-A FORWARD -p udp --dport 54 -j TOS --set-tos 0x08/0xff"},
	{"46", "mangle", "-A FORWARD -p udp --dport 55 -j DSCP --set-dscp 20"},
	{"4", "mangle", "-A FORWARD -p udp --dport 56 -j TTL --ttl-set 7"},
	{"4", "mangle", "-A FORWARD -p udp --dport 57 -j TTL --ttl-dec 2"},
	{"6", "mangle", "-A FORWARD -p udp --dport 56 -j HL --hl-set 7"},
	{"6", "mangle", "-A FORWARD -p udp --dport 57 -j HL --hl-inc 2"},
	{"46", "mangle", "-A FORWARD -p tcp --syn -j TCPMSS --set-mss 1111"},
	{"46", "mangle", "-A POSTROUTING -p udp --dport 58 -j CHECKSUM --checksum-fill"},
	{"46", "mangle", "-A POSTROUTING -m tos --tos 0x08/0xff"},
	{"46", "mangle", "-A POSTROUTING -m dscp --dscp 20"},
	{"4", "mangle", "-A POSTROUTING -m ttl --ttl-eq 7"},
	{"4", "security", "-A FORWARD -p udp"},
	{"46", "nat", "-A POSTROUTING -o tun1 -p tcp"},
}

// TestMatches sends the same frames through the same rules in the kernel and in
// the router: every rule counts the same packets and bytes, and the frames that
// leave are the same.
func TestMatches(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.Need("iptables-legacy-save")
	one, two := l.NS("one"), l.NS("two")
	r := l.Sluice(`
[router]
workers = 1
[[interface]]
name = "tun0"
addresses = ["10.1.0.1/24", "fd01::1/64"]
  [interface.host]
  netns = "{ns:one}"
[[interface]]
name = "tun1"
addresses = ["10.2.0.1/24", "fd02::1/64"]
  [interface.host]
  netns = "{ns:two}"
`)
	in, out := one.Raw("tun0"), two.Raw("tun1")
	k := packettest.NewKernel(t)
	tool := map[byte]string{'4': "iptables", '6': "ip6tables"}
	for _, name := range tool { // what the kernel's side brought along
		k.Run(name + "-legacy -F INPUT")
	}
	refused := 0
	script := map[byte]string{}
	for _, x := range matchRules {
		for _, f := range []byte(x.family) {
			args := append([]string{"-t", x.table}, strings.Fields(x.rule)...)
			if text, err := exec.Command(tool[f]+"-legacy", args...).CombinedOutput(); err != nil {
				t.Logf("the kernel here has no %s: %s", x.rule, text)
				refused++
				continue
			}
			script[f] += "*" + x.table + "\n" + x.rule + "\nCOMMIT\n"
		}
	}
	for f, name := range tool {
		r.MustInput(script[f], name+"-restore", "--noflush")
	}
	if refused > len(matchRules)/3 {
		t.Errorf("%d rules were refused by the kernel", refused)
	}

	type frame struct {
		dev  int
		data []byte
	}
	var frames []frame
	for _, a := range [][3]string{{"10.1.0.2", "10.2.0.2", "10.1.0.1"}, {"10.1.0.5", "10.2.0.3", "10.1.0.255"}, {"fd01::2", "fd02::2", "fd01::1"}, {"fd01::5", "fd02::3", "fd01::1"}} {
		src, dst, own := a[0], a[1], a[2]
		v4 := !strings.Contains(src, ":")
		send := func(data []byte) { frames = append(frames, frame{0, data}) }
		network := func(proto layers.IPProtocol, tos, ttl uint8) gopacket.SerializableLayer {
			if v4 {
				ip := lab.IP4(src, dst, proto)
				ip.TOS, ip.TTL = tos, ttl
				return ip
			}
			ip := lab.IP6(src, dst, proto)
			ip.TrafficClass, ip.HopLimit = tos, ttl
			return ip
		}
		for _, port := range []int{53, 54, 55, 56, 57, 58, 1000, 9009} {
			send(lab.UDP(src, dst, 1000, port, "question"))
			send(lab.Build(network(17, 0x10, 5), &layers.UDP{SrcPort: 1001, DstPort: layers.UDPPort(port)}, gopacket.Payload(strings.Repeat("x", min(port, 1000)))))
			frames = append(frames, frame{1, lab.UDP(dst, src, port, 1000, "answer")})
		}
		for i, mss := range []uint16{536, 1200, 1460} {
			syn := &layers.TCP{SrcPort: layers.TCPPort(1500 + i), DstPort: 80, Seq: 1, SYN: true, Window: 1000,
				Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{byte(mss >> 8), byte(mss)}}}}
			send(lab.Build(network(6, 0x28, 64), syn))
		}
		frames = append(frames, frame{1, lab.TCP(dst, src, 80, 1500, "SA", 100, 2)})
		send(lab.TCP(src, dst, 1500, 80, "A", 2, 101))
		send(lab.TCP(src, dst, 1500, 80, "PA", 2, 101))
		send(lab.TCP(src, dst, 1700, 22, "FP", 1, 0))
		send(lab.TCP(src, dst, 1800, 8080, "R", 1, 0))
		send(lab.Echo(src, dst, 7, 1))
		send(lab.Echo(src, own, 7, 2))
		send(lab.Build(network(132, 0, 64), gopacket.Payload("\x00\x07\x00\x07\x00\x00\x00\x00\x3f\xe4\x25\x81\x01\x00\x00\x14\x00\x00\x00\x01\x00\x00\x10\x00\x00\x01\x00\x01\x00\x00\x00\x01")))
		send(lab.Build(network(47, 0, 64), gopacket.Payload("\x00\x00\x08\x00")))
		send(lab.UDP("192.0.2.1", "10.2.0.2", 1, 2, "no way back"))
		inner := lab.UDP(dst, src, 53, 1000, "answer")
		if v4 {
			frames = append(frames, frame{0, lab.Build(lab.IP4(src, dst, 1), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1300}, gopacket.Payload(inner))})
			send(lab.UDP(src, own, 1000, 53, "to the router or to all"))
		} else {
			frames = append(frames, frame{0, lab.Build(lab.IP6(src, dst, 58), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 4)}, gopacket.Payload(append(make([]byte, 4), inner...)))})
		}
	}

	save := func(text string) map[string]string {
		rules := map[string]string{}
		table := ""
		for _, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, "*") {
				table = line
			}
			if count, rule, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(line, "[") {
				rules[table+" "+rule] = count + "]"
			}
		}
		return rules
	}
	// One worker takes a device's frames in order; from one device to the other
	// the router is waited for.
	raws := []*lab.Raw{in, out}
	for i, f := range frames {
		if i > 0 && f.dev != frames[i-1].dev {
			l.Eventually(deadline, "the router to be done", func() bool {
				n := uint64(0)
				for _, x := range r.Status().Interfaces {
					n += x.RxPackets
				}
				return n >= uint64(i)
			})
		}
		k.Send(f.dev, f.data)
		raws[f.dev].Send(f.data)
	}
	wantOut := k.Drain(1)
	var differ []string
	for _, f := range []byte("46") {
		want := save(k.Run(tool[f] + "-legacy-save -c"))
		if len(want) < 50 {
			t.Errorf("the kernel has only %d rules", len(want))
		}
		end := time.Now().Add(3 * time.Second)
		l.Eventually(deadline, "the counters to settle", func() bool {
			differ = nil
			got := save(r.Must(tool[f]+"-save", "-c"))
			for rule, n := range want {
				if got[rule] != n {
					differ = append(differ, fmt.Sprintf("%s %s: kernel %s, sluice %q", tool[f], rule, n, got[rule]))
				}
			}
			return len(differ) == 0 || time.Now().After(end)
		})
		for _, d := range differ {
			t.Error(d)
		}
	}
	// And what left is the same, byte for byte.
	left := out.Frames()
	if len(left) != len(wantOut) {
		t.Errorf("%d frames left by tun1, the kernel sent %d", len(left), len(wantOut))
	}
	for i := range min(len(left), len(wantOut)) {
		if !bytes.Equal(left[i].Data(), wantOut[i]) {
			t.Errorf("frame %d that left:\nkernel %x\nsluice %x", i, wantOut[i], left[i].Data())
		}
	}
}
