package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// TestSNATRange: addresses and ports stay in the range, and each connection has its own.
func TestSNATRange(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = [
  "-A POSTROUTING -o wan0 -p tcp --dport 80 -j SNAT --to-source 198.51.100.10-198.51.100.13:3000-3015",
  "-A POSTROUTING -o wan0 -p tcp --dport 81 -j SNAT --to-source 198.51.100.20-198.51.100.23 --persistent",
]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -p tcp --dport 80 -j SNAT --to-source [fd00:2::10-fd00:2::11]:4000-4001"]
`)
	for _, addr := range []string{"198.51.100.2:80", "198.51.100.2:81", "[fd00:2::2]:80"} {
		serve(b.server, addr)
	}
	seen := map[netip.AddrPort]bool{}
	for range 8 {
		got, err := hear(b.client, "198.51.100.2:80")
		if err != nil {
			t.Fatal(err)
		}
		ap := netip.MustParseAddrPort(got)
		a := ap.Addr().As4()
		if a[3] < 10 || a[3] > 13 || ap.Port() < 3000 || ap.Port() > 3015 {
			t.Errorf("%s is outside the range", ap)
		}
		if seen[ap] {
			t.Errorf("%s was given twice while the first connection is in TIME_WAIT", ap)
		}
		seen[ap] = true
	}
	first, err := hear(b.client, "198.51.100.2:81")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if again, err := hear(b.client, "198.51.100.2:81"); err != nil || netip.MustParseAddrPort(again).Addr() != netip.MustParseAddrPort(first).Addr() {
			t.Errorf("--persistent: %s, then %s (%v)", first, again, err)
		}
	}
	got, err := hear(b.client, "[fd00:2::2]:80")
	if err != nil || !regexp.MustCompile(`^\[fd00:2::1[01]\]:400[01]$`).MatchString(got) {
		t.Errorf("IPv6: %s, %v", got, err)
	}
}

// TestPortsExhausted: a range without a free port is a drop with a name, never a wrong mapping.
func TestPortsExhausted(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -p udp -j SNAT --to-source 198.51.100.1:5000-5001"]
`)
	echo(b.server, "198.51.100.2:9000")
	var conns []net.Conn
	for i := range 3 {
		c, err := b.client.Dial("udp", "198.51.100.2:9000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		fmt.Fprintf(c, "%d", i)
		if i < 2 {
			buf := make([]byte, 10)
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != fmt.Sprint(i) {
				t.Fatalf("socket %d heard %q, %v", i, buf[:n], err)
			}
		}
	}
	b.r.AwaitDropped("nat.exhausted", 1)
	for i, c := range conns[:2] { // the others go on
		fmt.Fprintf(c, "again %d", i)
		buf := make([]byte, 10)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != fmt.Sprintf("again %d", i) {
			t.Errorf("socket %d heard %q, %v", i, buf[:n], err)
		}
	}
}

// TestDNATToRouter: DNAT and REDIRECT to the router's own sockets.
func TestDNATToRouter(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = [
  "-A PREROUTING -i lan0 -p tcp -d 192.0.2.7 --dport 70 -j DNAT --to-destination 10.0.1.1:7",
  "-A PREROUTING -i lan0 -p tcp --dport 71 -j REDIRECT --to-ports 7",
  "-A PREROUTING -i lan0 -p udp --dport 71 -j REDIRECT --to-ports 7",
]
[ip6tables.nat]
rules = [
  "-A PREROUTING -i lan0 -p tcp -d fd00:7::7 --dport 70 -j DNAT --to-destination [fd00:1::1]:7",
  "-A PREROUTING -i lan0 -p tcp --dport 71 -j REDIRECT --to-ports 7",
]
[[service]]
type = "echo"
listen = ["tcp://10.0.1.1:7", "udp://10.0.1.1:7", "tcp://[fd00:1::1]:7"]
`)
	for _, x := range []struct{ network, addr string }{
		{"tcp", "192.0.2.7:70"}, {"tcp", "198.51.100.2:71"}, {"udp", "198.51.100.2:71"}, {"tcp", "[fd00:7::7]:70"}, {"tcp", "[fd00:2::2]:71"},
	} {
		c, err := b.client.Dial(x.network, x.addr)
		if err != nil {
			t.Errorf("%v: %v", x, err)
			continue
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprint(c, "is anybody there?")
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "is anybody there?" {
			t.Errorf("%v: %q, %v", x, buf[:n], err)
		}
		c.Close()
	}
}

// TestNATLocalOutput: what the router's own sockets send meets nat as well: the
// answers of a service leave as the address that was asked.
func TestNATLocalOutput(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A PREROUTING -i wan0 -p udp --dport 77 -j DNAT --to-destination 10.0.1.1:7"]
[[service]]
type = "echo"
listen = ["udp://10.0.1.1:7"]
`)
	raw := b.server.Raw("wan0")
	raw.Send(lab.UDP("198.51.100.2", "198.51.100.1", 5555, 77, "hello"))
	p := raw.Await("the answer", func(p gopacket.Packet) bool {
		u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		return ok && u.DstPort == 5555
	})
	if ip := p.NetworkLayer().(*layers.IPv4); ip.SrcIP.String() != "198.51.100.1" || p.Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort != 77 {
		t.Errorf("the answer came from %s", p)
	}
}

// TestErrorThroughDNAT: an error about a DNATed packet from a host behind the
// router is translated back: its sender is the address that was asked, and the
// packet it quotes is the one that was sent.
func TestErrorThroughDNAT(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A PREROUTING -i wan0 -p udp --dport 5300 -j DNAT --to-destination 10.0.1.2:53"]
[ip6tables.nat]
rules = ["-A PREROUTING -i wan0 -p udp --dport 5300 -j DNAT --to-destination [fd00:1::2]:53"]
`)
	raw := b.server.Raw("wan0")
	for _, x := range []struct {
		src, dst  string
		typ, code uint8
	}{{"198.51.100.2", "198.51.100.1", 3, 3}, {"fd00:2::2", "fd00:2::1", 1, 4}} {
		raw.Send(lab.UDP(x.src, x.dst, 4444, 5300, "closed"))
		p := raw.Await("the port unreachable", lab.ICMPError(x.typ, x.code))
		if from := p.NetworkLayer().NetworkFlow().Src().String(); from != x.dst {
			t.Errorf("the error comes from %s, not %s", from, x.dst)
		}
		quoted := p.Data()[len(p.NetworkLayer().LayerContents())+8:]
		inner := lab.Decode(quoted)
		u, ok := inner.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok || inner.NetworkLayer().NetworkFlow().Dst().String() != x.dst || u.DstPort != 5300 {
			t.Errorf("the error quotes %s", inner)
		}
		if ip, ok := inner.NetworkLayer().(*layers.IPv4); ok && !goodIPv4Sum(ip.Contents) {
			t.Errorf("the quoted header has a bad checksum: %x", ip.Contents)
		}
	}
}

// TestPMTUThroughNAT: a fragmentation needed from behind the router, about a
// masqueraded connection, reaches the client's kernel, which remembers it.
func TestPMTUThroughNAT(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	wire := b.server.Raw("wan0")
	for _, dst := range []string{"198.51.100.2", "fd00:2::2"} {
		h := hold(t, b, net.JoinHostPort(dst, "80"))
		seen := wire.Await("a segment of the connection", func(p gopacket.Packet) bool {
			s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
			return ok && s.PSH && p.NetworkLayer().NetworkFlow().Dst().String() == dst
		})
		src := seen.NetworkLayer().NetworkFlow().Src().String()
		// The client believes it of what it has not seen acknowledged: of the next byte.
		segment := seen.Layer(layers.LayerTypeTCP).(*layers.TCP)
		binary.BigEndian.PutUint32(seen.Data()[len(seen.NetworkLayer().LayerContents())+4:], segment.Seq+uint32(len(segment.Payload)))
		if strings.Contains(dst, ":") {
			wire.Send(lab.Build(lab.IP6("fd00:2::99", src, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(2, 0)},
				gopacket.Payload(append([]byte{0, 0, 1300 >> 8, 1300 & 0xff}, seen.Data()...))))
		} else {
			wire.Send(lab.Build(lab.IP4("198.51.100.99", src, layers.IPProtocolICMPv4),
				&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1300}, gopacket.Payload(seen.Data())))
		}
		b.Eventually(deadline, "the client to know of "+dst, func() bool {
			return strings.Contains(b.client.Must("ip", "route", "get", dst), "mtu 1300")
		})
		h.works("with a smaller MTU")
	}
}

// goodIPv4Sum checks an IPv4 header's own checksum.
func goodIPv4Sum(h []byte) bool {
	sum := uint32(0)
	for i := 0; i+1 < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	return sum>>16+sum&0xffff == 0xffff
}

// TestFragmentsDNAT: fragments of a datagram from outside are put together for
// DNAT, and those of the answer for its translation back.
func TestFragmentsDNAT(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A PREROUTING -i wan0 -p udp --dport 9001 -j DNAT --to-destination 10.0.1.2:9000"]
[ip6tables.nat]
rules = ["-A PREROUTING -i wan0 -p udp --dport 9001 -j DNAT --to-destination [fd00:1::2]:9000"]
`)
	for dst, listen := range map[string]string{"198.51.100.1:9001": "10.0.1.2:9000", "[fd00:2::1]:9001": "[fd00:1::2]:9000"} {
		echo(b.client, listen)
		c, err := b.server.Dial("udp", dst)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{1473, 5000, 60000} {
			want := strings.Repeat("f", size)
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write([]byte(want)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 65536)
			if n, err := c.Read(got); err != nil || string(got[:n]) != want {
				t.Errorf("%s: %d bytes came back as %d, %v", dst, size, n, err)
			}
		}
	}
	// No frame towards the client was larger than its link.
	for _, i := range b.r.Status().Interfaces {
		if i.TxErrors != 0 {
			t.Errorf("%s: %d frames were refused", i.Name, i.TxErrors)
		}
	}
}

// TestFragmentsAnyOrder: fragments that come last first, each over the NAT once,
// and the same address on all that leave.
func TestFragmentsAnyOrder(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	in, out := b.client.Raw("lan0"), b.server.Raw("wan0")
	whole := lab.UDP("10.0.1.77", "198.51.100.99", 6000, 6001, strings.Repeat("0123456789abcdef", 200))
	var frags [][]byte
	for at := 0; at < len(whole)-20; at += 1480 {
		ip := lab.IP4("10.0.1.77", "198.51.100.99", layers.IPProtocolUDP)
		ip.Id, ip.FragOffset = 4711, uint16(at/8)
		end := min(at+1480, len(whole)-20)
		if end < len(whole)-20 {
			ip.Flags = layers.IPv4MoreFragments
		}
		frags = append(frags, lab.Build(ip, gopacket.Payload(whole[20+at:20+end])))
	}
	for i := range frags {
		in.Send(frags[len(frags)-1-i])
	}
	isOurs := func(p gopacket.Packet) bool {
		ip, ok := p.NetworkLayer().(*layers.IPv4)
		return ok && ip.DstIP.String() == "198.51.100.99"
	}
	b.Eventually(5*time.Second, "three fragments", func() bool {
		n := 0
		for _, p := range out.Frames() {
			if isOurs(p) {
				n++
			}
		}
		return n == len(frags)
	})
	for _, p := range out.Frames() {
		if !isOurs(p) {
			continue
		}
		ip := p.NetworkLayer().(*layers.IPv4)
		if ip.SrcIP.String() != "198.51.100.1" || ip.Id != 4711 || len(ip.Contents)+len(ip.Payload) > 1500 || ip.TTL != 63 {
			t.Errorf("a fragment left as %v", ip)
		}
	}
}

// TestNATPing: ping through MASQUERADE keeps sockets apart that use the same identifier.
func TestNATPing(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	in, out := b.client.Raw("lan0"), b.server.Raw("wan0")
	// One after the other: where two workers choose the same identifier at the
	// same time, the later packet is dropped, here as in Linux.
	for i, src := range []string{"10.0.1.50", "10.0.1.51", "10.0.1.52"} {
		in.Send(lab.Echo(src, "198.51.100.2", 77, uint16(i)))
		p := in.Await("the reply to "+src, func(p gopacket.Packet) bool {
			ip, ok := p.NetworkLayer().(*layers.IPv4)
			return ok && ip.DstIP.String() == src
		})
		if e, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); !ok || e.Id != 77 {
			t.Errorf("reply to %s: %v", src, p)
		}
	}
	b.Eventually(deadline, "three identifiers outside", func() bool {
		ids := map[uint16]bool{}
		for _, p := range out.Frames() {
			if e, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
				ids[e.Id] = true
			}
		}
		return len(ids) == 3
	})
	b.client.Must("ping", "-6", "-n", "-c", "1", "-W", "2", "fd00:2::2")
}

// TestTCPMSS: a SYN leaves with what the way out can carry.
func TestTCPMSS(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	b := &bed{Lab: l, client: l.NS("client"), server: l.NS("server")}
	b.r = l.Sluice(strings.Replace(pair, `name      = "wan0"`, "name      = \"wan0\"\nmtu = 1400", 1) + `
[iptables.mangle]
rules = [
  "-A FORWARD -o wan0 -p tcp --tcp-flags SYN,RST SYN --dport 80 -j TCPMSS --clamp-mss-to-pmtu",
  "-A FORWARD -o wan0 -p tcp --tcp-flags SYN,RST SYN --dport 81 -j TCPMSS --set-mss 1000",
]
[ip6tables.mangle]
rules = ["-A FORWARD -o wan0 -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"]
`)
	out := b.server.Raw("wan0")
	for addr, want := range map[string]uint16{"198.51.100.2:80": 1360, "198.51.100.2:81": 1000, "198.51.100.2:82": 1460, "[fd00:2::2]:80": 1340} {
		host, port, _ := net.SplitHostPort(addr)
		serve(b.server, addr)
		if _, err := hear(b.client, addr); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		p := out.Await("the SYN to "+addr, func(p gopacket.Packet) bool {
			s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
			return ok && s.SYN && !s.ACK && fmt.Sprint(int(s.DstPort)) == port && p.NetworkLayer().NetworkFlow().Dst().String() == host
		})
		got := uint16(0)
		for _, o := range p.Layer(layers.LayerTypeTCP).(*layers.TCP).Options {
			if o.OptionType == layers.TCPOptionKindMSS {
				got = uint16(o.OptionData[0])<<8 | uint16(o.OptionData[1])
			}
		}
		if got != want {
			t.Errorf("%s: MSS %d, not %d", addr, got, want)
		}
	}
}
