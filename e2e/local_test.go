package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

const services = `
[[service]]
type = "echo"
listen = ["tcp://10.0.1.1:7", "udp://10.0.1.1:7", "tcp://[fd00:1::1]:7", "udp://[fd00:1::1]:7"]
uid = 1000
gid = 100

[[service]]
type = "discard"
listen = ["tcp://10.0.1.1:9", "udp://10.0.1.1:9"]
uid = 1001
gid = 101

[[service]]
type = "http"
listen = ["tcp://10.0.1.1:80", "tcp://[fd00:1::1]:80"]
uid = 1002
gid = 102
`

// TestServices: the router's own sockets, with the programs that people use for that.
func TestServices(t *testing.T) {
	b := newBed(t, services)
	for _, dst := range []string{"10.0.1.1", "fd00:1::1"} {
		if out := b.client.Must("sh", "-c", "echo a line | timeout 10 nc -q 1 -w 5 "+dst+" 7"); out != "a line\n" {
			t.Errorf("echo over TCP at %s: %q", dst, out)
		}
		c, err := b.client.Dial("udp", fmt.Sprintf("[%s]:7", dst))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(deadline))
		fmt.Fprint(c, "a datagram")
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "a datagram" {
			t.Errorf("echo over UDP at %s: %q, %v", dst, buf[:n], err)
		}
	}
	if out := b.client.Must("sh", "-c", "head -c 1000000 /dev/zero | timeout 20 nc -N -w 5 10.0.1.1 9"); out != "" {
		t.Errorf("discard said %q", out)
	}
	for _, url := range []string{"http://10.0.1.1/", "http://[fd00:1::1]/"} {
		out := b.client.Must("curl", "-sS", "-g", "--max-time", "10", "-i", url)
		for _, want := range []string{"200 OK", "lan0", "wan0", "PREROUTING", "POSTROUTING", "filter", "mangle"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not show %q:\n%s", url, want, out)
			}
		}
	}
	// From the far side of the router, to an address on the near one.
	b.server.Must("curl", "-sS", "--max-time", "10", "-o", "/dev/null", "http://10.0.1.1/")
}

// TestClosedPorts: the router answers for what is not there, as a host does.
func TestClosedPorts(t *testing.T) {
	b := newBed(t, "")
	for _, addr := range []string{"10.0.1.1:4444", "[fd00:1::1]:4444", "198.51.100.1:4444"} {
		if c, err := b.client.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Errorf("TCP %s: %v", addr, err)
		}
		c, err := b.client.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(deadline))
		fmt.Fprint(c, "?")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP %s: %v", addr, err)
		}
		c.Close()
	}
	raw := b.client.Raw("lan0")
	raw.Send(lab.Build(lab.IP4("10.0.1.77", "10.0.1.1", 222), gopacket.Payload("protocol 222")))
	raw.Await("protocol unreachable", lab.ICMPError(3, 2))
}

// TestOwner: rules see whose socket a packet is from, and stop it where they say so.
func TestOwner(t *testing.T) {
	b := newBed(t, services+`
[iptables.filter]
rules = [
  "-A OUTPUT -m owner --uid-owner 1000 -m comment --comment echo-uid",
  "-A OUTPUT -m owner --gid-owner 100 -m comment --comment echo-gid",
  "-A OUTPUT -m owner --uid-owner 1002 -p tcp -j REJECT --reject-with tcp-reset",
  "-A OUTPUT -m owner ! --uid-owner 1000 -m comment --comment not-echo",
]
[ip6tables.filter]
rules = ["-A OUTPUT -m owner --uid-owner 1000 -m comment --comment echo-uid6", "-A OUTPUT -m owner --uid-owner 1002 -j DROP"]
`)
	count := func(what string) int { return b.r.Counter("iptables-save", what) }
	c, err := b.client.Dial("udp", "10.0.1.1:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(deadline))
	for range 5 {
		fmt.Fprint(c, "x")
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := count("echo-uid"); n != 5 {
		t.Errorf("--uid-owner 1000 counted %d of 5 packets", n)
	}
	if n := count("echo-gid"); n != 5 {
		t.Errorf("--gid-owner 100 counted %d of 5 packets", n)
	}
	if n := count("not-echo"); n != 0 {
		t.Errorf("! --uid-owner 1000 counted %d packets of uid 1000", n)
	}
	// The page's socket may not speak: what it sends is reset on its way out.
	out, err := b.client.Run("curl", "-sS", "--max-time", "2", "http://10.0.1.1/")
	if err == nil {
		t.Errorf("the page came through:\n%s", out)
	}
	if n := count("--uid-owner 1002"); n < 1 {
		t.Errorf("the rule for uid 1002 counted %d packets", n)
	}
	if n := b.r.Counter("ip6tables-save", "--uid-owner 1002"); n != 0 {
		t.Errorf("the IPv6 rule counted %d packets of IPv4", n)
	}
	refused(t, b.client, "[fd00:1::1]:80", nil)
	b.r.AwaitDropped("filter.OUTPUT.rule", 1)
}

// TestOwnPackets: what the router sends passes OUTPUT and POSTROUTING: echo
// replies, errors, resets.
func TestOwnPackets(t *testing.T) {
	b := newBed(t, `
[iptables.filter]
rules = [
  "-A OUTPUT -p icmp --icmp-type echo-reply",
  "-A OUTPUT -p icmp --icmp-type time-exceeded",
  "-A OUTPUT -p icmp --icmp-type port-unreachable -j DROP",
  "-A OUTPUT -p tcp --tcp-flags RST RST",
]
[iptables.mangle]
rules = [
  "-A OUTPUT -p icmp --icmp-type echo-reply -j TOS --set-tos 0x10/0xff",
  "-A POSTROUTING -p icmp --icmp-type time-exceeded -j TTL --ttl-set 99",
]
`)
	raw := b.client.Raw("lan0")
	raw.Send(lab.Echo("10.0.1.77", "10.0.1.1", 1, 1))
	p := raw.Await("the reply", lab.ICMPError(0, 0))
	if ip := p.NetworkLayer().(*layers.IPv4); ip.TOS != 0x10 {
		t.Errorf("mangle OUTPUT did not set the TOS: %v", ip)
	}
	frame := lab.UDP("10.0.1.77", "198.51.100.2", 1, 2, "x")
	frame = lab.Build(func() *layers.IPv4 { ip := lab.IP4("10.0.1.77", "198.51.100.2", 17); ip.TTL = 1; return ip }(), gopacket.Payload(frame[20:]))
	raw.Send(frame)
	p = raw.Await("time exceeded", lab.ICMPError(11, 0))
	if ip := p.NetworkLayer().(*layers.IPv4); ip.TTL != 99 {
		t.Errorf("mangle POSTROUTING did not set the TTL: %v", ip)
	}
	raw.Send(lab.UDP("10.0.1.77", "10.0.1.1", 1, 4444, "closed"))
	b.r.AwaitDropped("filter.OUTPUT.rule", 1)
	raw.Send(lab.TCP("10.0.1.77", "10.0.1.1", 1, 4444, "S", 1, 0))
	raw.Await("a reset", func(p gopacket.Packet) bool {
		s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		return ok && s.RST
	})
	for _, rule := range []string{"--icmp-type 0 ", "--icmp-type 11", "--icmp-type 3/3", "--tcp-flags RST RST"} {
		if n := b.r.Counter("iptables-save", "-A OUTPUT -p "); n < 1 {
			t.Errorf("%s: %d", rule, n)
		}
		save := b.r.Must("iptables-save", "-c", "-t", "filter")
		for _, line := range strings.Split(save, "\n") {
			if strings.Contains(line+" ", rule) && !strings.HasPrefix(line, "[1:") {
				t.Errorf("%s", line)
			}
		}
	}
}
