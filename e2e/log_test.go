package e2e

import (
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"sluice/e2e/lab"
	"sluice/packet/packettest"
)

// TestLogLines: for the same packet and the same rule the line in the router's
// log is the one that the kernel writes to its own.
func TestLogLines(t *testing.T) {
	t.Parallel()
	const allNetNS = "/proc/sys/net/netfilter/nf_log_all_netns"
	if v, err := os.ReadFile(allNetNS); err != nil || strings.TrimSpace(string(v)) != "1" {
		if err := os.WriteFile(allNetNS, []byte("1"), 0); err != nil {
			t.Skipf("the kernel's LOG is not to be had here: %v", err)
		}
		defer os.WriteFile(allNetNS, v, 0)
	}
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("the kernel's log is not to be had here: %v", err)
	}
	defer kmsg.Close()
	unix.Seek(int(kmsg.Fd()), 0, 2)
	unix.SetNonblock(int(kmsg.Fd()), true)

	l := lab.New(t)
	tag := fmt.Sprintf("e2e%x", os.Getpid())
	rules := func(v6 string) []string {
		return []string{
			"-A PREROUTING -p udp -j LOG --log-prefix " + tag + ":pre" + v6 + ":",
			"-A FORWARD -p tcp -j LOG --log-level debug --log-tcp-sequence --log-tcp-options --log-ip-options --log-prefix " + tag + ":fwd" + v6 + ":",
			"-A POSTROUTING ! -p tcp -j LOG --log-ip-options --log-uid --log-macdecode --log-prefix " + tag + ":post" + v6 + ":",
			"-A INPUT -j LOG --log-level 3 --log-prefix " + tag + ":in" + v6 + ":",
		}
	}
	one := l.NS("one")
	l.NS("two")
	r := l.SluiceCommand(fmt.Sprintf(`
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
[iptables.mangle]
rules = [%s]
[ip6tables.mangle]
rules = [%s]
`, quoted(rules("")), quoted(rules("6"))), nil, "--log-level", "debug")
	r.Expect("sluice: ready", 6*deadline)
	raw := one.Raw("tun0")
	k := packettest.NewKernel(t)
	for cmd, v6 := range map[string]string{"iptables-legacy": "", "ip6tables-legacy": "6"} {
		for _, rule := range rules(v6) {
			k.Run(cmd + " -t mangle " + rule)
		}
	}

	options := lab.IP4("10.1.0.2", "10.2.0.2", layers.IPProtocolUDP)
	options.TOS, options.Id, options.Flags = 0x48, 4711, layers.IPv4DontFragment
	options.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
	syn := &layers.TCP{SrcPort: 4000, DstPort: 80, Seq: 12345, SYN: true, ECE: true, CWR: true, Window: 64240, Options: []layers.TCPOption{
		{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}, {OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2}, {OptionType: 1}, {OptionType: 1}}}
	urgent := &layers.TCP{SrcPort: 4001, DstPort: 80, Seq: 1, Ack: 2, ACK: true, PSH: true, URG: true, FIN: true, RST: false, Window: 1, Urgent: 7}
	short := lab.IP4("10.1.0.2", "10.2.0.2", layers.IPProtocolUDP)
	short.TTL = 1
	var frames [][]byte
	for _, dst := range []string{"10.2.0.2", "10.1.0.1"} {
		src := "10.1.0.2"
		frames = append(frames,
			lab.UDP(src, dst, 1000, 2000, "payload"),
			lab.Build(lab.IP4(src, dst, layers.IPProtocolTCP), syn),
			lab.Echo(src, dst, 77, 3),
			lab.Build(lab.IP4(src, dst, 50), gopacket.Payload("\x00\x00\x10\x01\x00\x00\x00\x01 and what is encrypted")),
			lab.Build(lab.IP4(src, dst, 51), gopacket.Payload("\x11\x04\x00\x00\x00\x00\x10\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
			lab.Build(lab.IP4(src, dst, 47), gopacket.Payload("\x00\x00\x08\x00gre")),
			lab.Build(lab.IP4(src, dst, 136), gopacket.Payload("\x03\xe8\x07\xd0\x00\x08\x00\x00")),
			lab.Build(lab.IP4(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(14, 0), Id: 5, Seq: 6}, gopacket.Payload("0123456789ab")),
			lab.Build(lab.IP4(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1400}, gopacket.Payload(lab.UDP(dst, src, 9, 10, "quoted"))),
			lab.Build(lab.IP4(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(5, 1), Id: 0x0a01, Seq: 5}, gopacket.Payload(lab.TCP(dst, src, 9, 10, "A", 1, 2))),
			lab.Build(lab.IP4(src, dst, 89), gopacket.Payload("ospf")),
		)
	}
	frames = append(frames, lab.Build(options, &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload("x")),
		lab.Build(lab.IP4("10.1.0.2", "10.2.0.2", layers.IPProtocolTCP), urgent), // no connection: INVALID, and logged all the same
		lab.Build(short, gopacket.Payload(lab.UDP("10.1.0.2", "10.2.0.2", 3, 4, "ttl")[20:])))
	for _, dst := range []string{"fd02::2", "fd01::1"} {
		src := "fd01::2"
		class := lab.IP6(src, dst, layers.IPProtocolUDP)
		class.TrafficClass, class.FlowLabel = 0x48, 0xbeef
		frames = append(frames,
			lab.UDP(src, dst, 1000, 2000, "payload"),
			lab.Build(class, &layers.UDP{SrcPort: 5, DstPort: 6}),
			lab.Build(lab.IP6(src, dst, layers.IPProtocolTCP), syn),
			lab.Echo(src, dst, 77, 3),
			lab.Build(lab.IP6(src, dst, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 4)}, gopacket.Payload(append(make([]byte, 4), lab.UDP(dst, src, 9, 10, "quoted")...))),
			lab.Build(lab.IP6(src, dst, 50), gopacket.Payload("\x00\x00\x10\x01\x00\x00\x00\x01 and what is encrypted")),
			lab.Build(lab.IP6(src, dst, 60), gopacket.Payload("\x11\x00\x01\x04\x00\x00\x00\x00"), gopacket.Payload(lab.UDP(src, dst, 7, 8, "behind options")[40:])),
			lab.Build(lab.IP6(src, dst, 59)),
			lab.Build(lab.IP6(src, dst, 200), gopacket.Payload("something")),
		)
	}

	// Identifiers and flow labels of what kernel and router make themselves differ by right.
	own := regexp.MustCompile(` (ID|FLOWLBL)=\d+ `)
	strip := func(line string) string {
		line = line[strings.Index(line, tag):]
		if strings.Contains(line, ":post") && strings.Contains(line, "IN= ") {
			line = own.ReplaceAllString(line, " $1=… ")
		}
		return line
	}
	buf := make([]byte, 8192)
	fromKernel := func() (out []string) {
		for {
			n, err := unix.Read(int(kmsg.Fd()), buf)
			if err == unix.EPIPE {
				continue // the log went round
			}
			if err != nil {
				return out
			}
			text, _, _ := strings.Cut(string(buf[:n]), "\n")
			if _, msg, ok := strings.Cut(text, ";"); ok && strings.Contains(msg, tag+":") && !strings.Contains(msg, " DST=ff02:") {
				out = append(out, strip(unescape(msg))) // what IPv6 says by itself to its neighbours is not asked for
			}
		}
	}
	seen := 0
	fromSluice := func() (out []string) {
		for _, line := range strings.Split(r.Output(), "\n") {
			_, msg, ok := strings.Cut(line, " msg=")
			if !ok || !strings.Contains(msg, tag+":") {
				continue
			}
			if u, err := strconv.Unquote(msg); err == nil {
				msg = u
			}
			out = append(out, strip(msg))
		}
		return out
	}
	lines := 0
	for _, f := range frames {
		fromKernel()
		k.Send(0, f)
		want := fromKernel()
		raw.Send(f)
		var got []string
		l.Eventually(deadline, fmt.Sprintf("%d lines about %x:\n%s", len(want), f, strings.Join(want, "\n")), func() bool {
			got = fromSluice()
			return len(got) >= seen+len(want)
		})
		got = got[seen:]
		seen += len(got)
		lines += len(want)
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("frame %s\nkernel:\n%s\nsluice:\n%s", hex.EncodeToString(f), strings.Join(want, "\n"), strings.Join(got, "\n"))
		}
	}
	if lines < len(frames) {
		t.Errorf("the kernel wrote %d lines about %d frames", lines, len(frames))
	}
	for prefix, level := range map[string]string{":pre:": "WARN", ":fwd:": "DEBUG", ":in:": "ERROR"} {
		if !regexp.MustCompile(`level=` + level + ` msg="` + tag + prefix).MatchString(r.Output()) {
			t.Errorf("no line with %s at level %s", prefix, level)
		}
	}
}

// unescape undoes /dev/kmsg's \xNN.
func unescape(s string) string {
	return regexp.MustCompile(`\\x[0-9a-f]{2}`).ReplaceAllStringFunc(s, func(x string) string {
		b, _ := hex.DecodeString(x[2:])
		return string(b)
	})
}
