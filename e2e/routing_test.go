package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// TestPolicyRouting: two ways to one address, chosen by mark, source, destination and interface.
func TestPolicyRouting(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	client, server, guest, second := l.NS("client"), l.NS("server"), l.NS("guest"), l.NS("second")
	r := l.Sluice(pair + `
[[interface]]
name = "lan1"
addresses = ["10.0.3.1/24", "fd00:3::1/64"]
  [interface.host]
  netns = "{ns:guest}"
  addresses = ["10.0.3.2/24", "fd00:3::2/64"]
  routes = ["default via 10.0.3.1", "default via fd00:3::1"]

[[interface]]
name = "wan1"
addresses = ["203.0.113.1/24", "fd00:4::1/64"]
  [interface.host]
  netns = "{ns:second}"
  addresses = ["203.0.113.2/24", "fd00:4::2/64"]
  routes = ["default via 203.0.113.1", "default via fd00:4::1"]

[[route]]
to = "192.0.2.0/24"
via = "198.51.100.2"
[[route]]
to = "fd00:9::/64"
via = "fd00:2::2"

[[route]]
to = "default"
via = "203.0.113.2"
table = 100
[[route]]
to = "default"
via = "fd00:4::2"
table = 100

[[rule]]
fwmark = "0x1/0xff"
table = 100
[[rule]]
from = "10.0.1.3/32"
table = 100
[[rule]]
to = "192.0.2.9/32"
table = 100
[[rule]]
iif = "lan1"
table = 100

[iptables.mangle]
rules = ["-A PREROUTING -p tcp --dport 7001 -j MARK --set-mark 0x101"]
[ip6tables.mangle]
rules = ["-A PREROUTING -p tcp --dport 7001 -j MARK --set-mark 1"]
`)
	client.Must("ip", "addr", "add", "10.0.1.3/24", "dev", "lan0")
	server.Must("ip", "route", "add", "default", "via", "198.51.100.1")
	server.Must("ip", "-6", "route", "add", "default", "via", "fd00:2::1")
	for way, ns := range map[string]*lab.NS{"main": server, "other": second} {
		ns.Must("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
		ns.Must("ip", "addr", "add", "192.0.2.9/32", "dev", "lo")
		ns.Must("ip", "addr", "add", "fd00:9::1/128", "dev", "lo", "nodad")
		for _, addr := range []string{"192.0.2.1:7000", "192.0.2.1:7001", "192.0.2.9:7000", "[fd00:9::1]:7000", "[fd00:9::1]:7001"} {
			say(ns, addr, way)
		}
	}
	for _, x := range []struct {
		from      *lab.NS
		src, addr string
		way       string
	}{
		{client, "", "192.0.2.1:7000", "main"},
		{client, "", "192.0.2.1:7001", "other"},
		{client, "10.0.1.3", "192.0.2.1:7000", "other"},
		{client, "", "192.0.2.9:7000", "other"},
		{guest, "", "192.0.2.1:7000", "other"},
		{client, "", "[fd00:9::1]:7000", "main"},
		{client, "", "[fd00:9::1]:7001", "other"},
		{guest, "", "[fd00:9::1]:7000", "other"},
	} {
		var got string
		var err error
		if x.src == "" {
			got, err = hear(x.from, x.addr)
		} else {
			got, err = x.from.Run("nc", "-d", "-w", "5", "-s", x.src, strings.Split(x.addr, ":")[0], "7000")
			got = strings.TrimSpace(got)
		}
		if got != x.way {
			t.Errorf("%s from %q in %s went the way %q (%v), not %q", x.addr, x.src, x.from.Name, got, err, x.way)
		}
	}
	if d := r.Status().Drops; len(d) != 0 {
		t.Errorf("dropped: %+v", d)
	}
}

// TestRouteTypes: routes that are errors, as clients see them.
func TestRouteTypes(t *testing.T) {
	b := newBed(t, `
[[route]]
to = "192.0.2.0/28"
type = "blackhole"
[[route]]
to = "192.0.2.16/28"
type = "unreachable"
[[route]]
to = "192.0.2.32/28"
type = "prohibit"
[[route]]
to = "fd00:b::/64"
type = "blackhole"
[[route]]
to = "fd00:c::/64"
type = "unreachable"
[[route]]
to = "fd00:d::/64"
type = "prohibit"
[sysctl]
"net.ipv4.icmp_ratelimit" = 0
"net.ipv6.icmp.ratelimit" = 0
`)
	for addr, want := range map[string]error{
		"192.0.2.17:80":  syscall.EHOSTUNREACH,
		"192.0.2.33:80":  syscall.EHOSTUNREACH,
		"192.0.2.200:80": syscall.ENETUNREACH, // no route
		"[fd00:c::1]:80": syscall.ENETUNREACH,
		"[fd00:d::1]:80": syscall.EACCES,
		"[fd00:e::1]:80": syscall.ENETUNREACH,
	} {
		c, err := b.client.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", addr, err, want)
		}
	}
	raw := b.client.Raw("lan0")
	raw.Send(lab.UDP("10.0.1.77", "192.0.2.1", 1, 2, "x"))
	raw.Send(lab.UDP("fd00:1::77", "fd00:b::1", 1, 2, "x"))
	b.r.AwaitDropped("ip.blackhole", 2)
	for reason, n := range map[string]uint64{"ip.unreachable": 2, "ip.prohibit": 2, "ip.no_route": 2} {
		if got := b.r.Dropped(reason); got < n {
			t.Errorf("%s: %d, not %d", reason, got, n)
		}
	}
	if p := raw.Find(func(p gopacket.Packet) bool {
		d := p.NetworkLayer().NetworkFlow().Dst().String()
		return d == "10.0.1.77" || d == "fd00:1::77"
	}); p != nil {
		t.Errorf("a blackhole answered %v", p)
	}
	out := b.client.Fails("ping", "-n", "-c", "1", "-W", "2", "192.0.2.33")
	if !strings.Contains(out, "From 10.0.1.1") || !strings.Contains(out, "Packet filtered") {
		t.Errorf("ping to a prohibit route:\n%s", out)
	}
}

// TestMartians: addresses that cannot be are dropped by name and never forwarded.
func TestMartians(t *testing.T) {
	b := newBed(t, "")
	in, out := b.client.Raw("lan0"), b.server.Raw("wan0")
	sent := map[string]uint64{}
	for _, x := range []struct{ src, dst, reason string }{
		{"127.0.0.1", "198.51.100.2", "ip.martian_source"},
		{"224.0.0.1", "198.51.100.2", "ip.martian_source"},
		{"255.255.255.255", "198.51.100.2", "ip.martian_source"},
		{"0.0.0.0", "198.51.100.2", "ip.martian_source"},
		{"10.0.1.1", "198.51.100.2", "ip.martian_source"},     // the router's own
		{"198.51.100.1", "198.51.100.2", "ip.martian_source"}, // also its own
		{"10.0.1.77", "127.0.0.1", "ip.martian_destination"},
		{"10.0.1.77", "0.0.0.0", "ip.martian_destination"},
		{"10.0.1.77", "239.1.2.3", "ip.multicast"},
		{"::1", "fd00:2::2", ""},
		{"ff02::1", "fd00:2::2", ""},
		{"fd00:1::77", "::1", ""},
		{"fd00:1::77", "ff0e::77", ""},
		{"::", "fd00:2::2", ""},
	} {
		before := total(b)
		in.Send(lab.UDP(x.src, x.dst, 1000, 2000, "martian"))
		b.Eventually(deadline, "a drop of "+x.src+" > "+x.dst, func() bool { return total(b) == before+1 })
		if x.reason == "" {
			continue
		}
		sent[x.reason]++
		if n := b.r.Dropped(x.reason); n != sent[x.reason] {
			t.Errorf("%s > %s is not among %s: %+v", x.src, x.dst, x.reason, b.r.Status().Drops)
		}
	}
	if p := out.Find(isUDP(2000)); p != nil {
		t.Errorf("forwarded: %v", p)
	}
	// Beyond the scope of its source: refused, and told so.
	in.Send(lab.UDP("fe80::77", "fd00:2::2", 1000, 2000, "link-local"))
	b.r.AwaitDropped("ip.scope", 1)
	in.Await("beyond scope of source", lab.ICMPError(1, 2))
}

// TestBroadcast: a broadcast to a network that the router is on reaches the
// router itself, and goes no further.
func TestBroadcast(t *testing.T) {
	b := newBed(t, `
[iptables.filter]
rules = ["-A INPUT -p udp --dport 2000", "-A FORWARD -p udp --dport 2000"]
`)
	in, out := b.client.Raw("lan0"), b.server.Raw("wan0")
	for i, dst := range []string{"198.51.100.255", "10.0.1.255", "255.255.255.255"} {
		in.Send(lab.UDP("10.0.1.77", dst, 1000, 2000, "to all"))
		b.Eventually(deadline, "a broadcast to "+dst, func() bool { return b.r.Counter("iptables-save", "-A INPUT") == i+1 })
	}
	if n := b.r.Counter("iptables-save", "-A FORWARD"); n != 0 {
		t.Errorf("%d broadcasts met FORWARD", n)
	}
	if p := out.Find(isUDP(2000)); p != nil {
		t.Errorf("forwarded: %v", p)
	}
	// Nothing answers a broadcast: no port unreachable.
	if p := in.Find(lab.ICMPError(3, 3)); p != nil {
		t.Errorf("a broadcast was answered: %v", p)
	}
}

// TestRPFilter: strict, loose and off, as the running router is told.
func TestRPFilter(t *testing.T) {
	b := newBed(t, `
[sysctl]
"net.ipv4.conf.all.rp_filter" = 1
`)
	in, out := b.client.Raw("lan0"), b.server.Raw("wan0")
	arrives := func(sport int) {
		t.Helper()
		out.Await(fmt.Sprintf("the packet from port %d", sport), func(p gopacket.Packet) bool {
			u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
			return ok && int(u.SrcPort) == sport
		})
	}
	in.Send(lab.UDP("10.0.1.77", "198.51.100.2", 1, 2000, "honest"))
	arrives(1)
	in.Send(lab.UDP("198.51.100.77", "198.51.100.2", 2, 2000, "the way back leads out of wan0"))
	b.r.AwaitDropped("ip.rp_filter", 1)
	in.Send(lab.UDP("192.0.2.77", "198.51.100.2", 3, 2000, "no way back"))
	b.r.AwaitDropped("ip.rp_filter", 2)

	b.r.Must("sysctl", "net.ipv4.conf.all.rp_filter=2")
	in.Send(lab.UDP("198.51.100.77", "198.51.100.2", 4, 2000, "some way back is enough"))
	arrives(4)
	in.Send(lab.UDP("192.0.2.77", "198.51.100.2", 5, 2000, "no way back"))
	b.r.AwaitDropped("ip.rp_filter", 3)

	b.r.Must("sysctl", "net.ipv4.conf.all.rp_filter=0")
	in.Send(lab.UDP("192.0.2.77", "198.51.100.2", 6, 2000, "nobody asks"))
	arrives(6)
	for _, p := range out.Frames() {
		if u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && (u.SrcPort == 2 || u.SrcPort == 3 || u.SrcPort == 5) {
			t.Errorf("forwarded: %v", p)
		}
	}
}

// TestForwardingOff: ip_forward=0 is a host that delivers to itself alone.
func TestForwardingOff(t *testing.T) {
	b := newBed(t, `
[sysctl]
"net.ipv4.ip_forward" = 0
`)
	b.client.Fails("ping", "-n", "-c", "1", "-W", "1", "198.51.100.2")
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "10.0.1.1")
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "fd00:2::2")
	if b.r.Dropped("ip.forwarding_off") == 0 {
		t.Errorf("drops: %+v", b.r.Status().Drops)
	}
	b.r.Must("sysctl", "net.ipv4.ip_forward=1")
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2")
}

// TestOptions: IP options are filled in on the way, and what the router may not follow is refused.
func TestOptions(t *testing.T) {
	b := newBed(t, "")
	out := b.client.Must("ping", "-n", "-R", "-c", "1", "-W", "2", "198.51.100.2")
	want := []string{"10.0.1.2", "198.51.100.1", "198.51.100.2", "198.51.100.2", "10.0.1.1", "10.0.1.2"}
	at := 0
	for _, w := range strings.Fields(out[strings.Index(out, "RR:"):]) {
		if at < len(want) && w == want[at] {
			at++
		}
	}
	if at < 4 {
		t.Errorf("record route:\n%s", out)
	}
	if out := b.client.Must("ping", "-n", "-T", "tsandaddr", "-c", "1", "-W", "2", "198.51.100.2"); !strings.Contains(out, "198.51.100.1") {
		t.Errorf("timestamps:\n%s", out)
	}
	raw := b.client.Raw("lan0")
	ip := lab.IP4("10.0.1.77", "10.0.1.1", layers.IPProtocolUDP)
	ip.Options = []layers.IPv4Option{{OptionType: 131, OptionLength: 7, OptionData: []byte{4, 198, 51, 100, 2}}, {OptionType: 0}}
	raw.Send(lab.Build(ip, &layers.UDP{SrcPort: 1, DstPort: 2}))
	b.r.AwaitDropped("ip.source_route", 1)
}

// TestTTL: what runs out is told by the router, also to a ping; hop limits the same.
func TestTTL(t *testing.T) {
	b := newBed(t, "")
	if out := b.client.Fails("ping", "-n", "-c", "1", "-W", "2", "-t", "1", "198.51.100.2"); !strings.Contains(out, "From 10.0.1.1 icmp_seq=1 Time to live exceeded") {
		t.Errorf("IPv4:\n%s", out)
	}
	if out := b.client.Fails("ping", "-n", "-c", "1", "-W", "2", "-t", "1", "fd00:2::2"); !strings.Contains(out, "From fd00:1::1 icmp_seq=1 Time exceeded: Hop limit") {
		t.Errorf("IPv6:\n%s", out)
	}
	if n := b.r.Dropped("ip.ttl_expired"); n != 2 {
		t.Errorf("%d packets dropped as ip.ttl_expired, not 2", n)
	}
}

// total is the packets that were dropped for any reason.
func total(b *bed) (n uint64) {
	for _, d := range b.r.Status().Drops {
		n += d.Packets
	}
	return n
}

func isUDP(dport int) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		return ok && int(u.DstPort) == dport
	}
}
