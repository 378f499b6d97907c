package e2e

import (
	"bufio"
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestPing(t *testing.T) {
	b := newBed(t, "")
	for _, dst := range []string{"198.51.100.2", "fd00:2::2", "10.0.1.1", "fd00:1::1", "198.51.100.1", "fd00:2::1"} {
		out := b.client.Must("ping", "-n", "-c", "3", "-i", "0.05", "-W", "2", dst)
		if !strings.Contains(out, "3 received") {
			t.Errorf("ping %s:\n%s", dst, out)
		}
	}
	// One hop through the router, none to it.
	if out := b.client.Must("ping", "-n", "-c", "1", "198.51.100.2"); !strings.Contains(out, "ttl=63") {
		t.Errorf("through the router:\n%s", out)
	}
	if out := b.client.Must("ping", "-n", "-c", "1", "10.0.1.1"); !strings.Contains(out, "ttl=64") {
		t.Errorf("to the router:\n%s", out)
	}
}

func TestTraceroute(t *testing.T) {
	b := newBed(t, "")
	b.Need("traceroute")
	out := b.client.Must("traceroute", "-n", "-q", "1", "-N", "1", "-w", "5", "198.51.100.2")
	if hops := strings.Split(strings.TrimSpace(out), "\n"); len(hops) != 3 || !strings.Contains(hops[1], "10.0.1.1") || !strings.Contains(hops[2], "198.51.100.2") {
		t.Errorf("IPv4:\n%s", out)
	}
	out = b.client.Must("traceroute", "-6", "-n", "-q", "1", "-N", "1", "-w", "5", "fd00:2::2")
	if hops := strings.Split(strings.TrimSpace(out), "\n"); len(hops) != 3 || !strings.Contains(hops[1], "fd00:1::1") || !strings.Contains(hops[2], "fd00:2::2") {
		t.Errorf("IPv6:\n%s", out)
	}
}

func TestMasquerade(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	serve(b.server, "198.51.100.2:80")
	serve(b.server, "[fd00:2::2]:80")
	for addr, want := range map[string]string{"198.51.100.2:80": "198.51.100.1", "[fd00:2::2]:80": "fd00:2::1"} {
		got, err := hear(b.client, addr)
		if err != nil {
			t.Fatal(err)
		}
		if ap, err := netip.ParseAddrPort(got); err != nil || ap.Addr().String() != want {
			t.Errorf("%s sees %q, not %s", addr, got, want)
		}
	}
	b.server.Start("iperf3", "-s")
	b.Eventually(5*time.Second, "iperf3 to listen", func() bool {
		_, err := b.client.Run("nc", "-z", "-w", "1", "198.51.100.2", "5201")
		return err == nil
	})
	out := b.client.Must("iperf3", "-c", "198.51.100.2", "-t", "1")
	if !strings.Contains(out, "receiver") {
		t.Errorf("iperf3:\n%s", out)
	}
	if n := b.r.Counter("iptables-save", "MASQUERADE"); n < 1 || n > 10 {
		t.Errorf("the MASQUERADE rule counted %d packets: it is for first packets only", n)
	}
}

func TestDNAT(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = [
  "-A PREROUTING -i wan0 -p tcp --dport 8080 -j DNAT --to-destination 10.0.1.2:80",
  "-A PREROUTING -i lan0 -p tcp -d 198.51.100.1 --dport 8080 -j DNAT --to-destination 10.0.1.2:80",
  "-A POSTROUTING -o lan0 -s 10.0.1.0/24 -j MASQUERADE",
]
[ip6tables.nat]
rules = [
  "-A PREROUTING -d fd00:2::1 -p tcp --dport 8080 -j DNAT --to-destination [fd00:1::2]:80",
  "-A POSTROUTING -o lan0 -s fd00:1::/64 -j MASQUERADE",
]
`)
	serve(b.client, "10.0.1.2:80")
	serve(b.client, "[fd00:1::2]:80")
	if got, err := hear(b.server, "198.51.100.1:8080"); err != nil || !strings.HasPrefix(got, "198.51.100.2:") {
		t.Errorf("from outside: %q, %v", got, err)
	}
	if got, err := hear(b.server, "[fd00:2::1]:8080"); err != nil || !strings.HasPrefix(got, "[fd00:2::2]:") {
		t.Errorf("from outside over IPv6: %q, %v", got, err)
	}
	// Hairpin: the client reaches itself by the outside address.
	if got, err := hear(b.client, "198.51.100.1:8080"); err != nil || !strings.HasPrefix(got, "10.0.1.1:") {
		t.Errorf("hairpin: %q, %v", got, err)
	}
	if got, err := hear(b.client, "[fd00:2::1]:8080"); err != nil || !strings.HasPrefix(got, "[fd00:1::1]:") {
		t.Errorf("hairpin over IPv6: %q, %v", got, err)
	}
}

// TestUDPBothWays: many sizes, so that some are fragmented by the sender and all
// of them put together for conntrack and taken apart again.
func TestUDPBothWays(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	for _, addr := range []string{"198.51.100.2:9000", "[fd00:2::2]:9000"} {
		echo(b.server, addr)
		c, err := b.client.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{1, 100, 1400, 1472, 1473, 3000, 9000, 40000, 65000} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write(want); err != nil {
				t.Fatalf("%s: %d bytes: %v", addr, size, err)
			}
			got := make([]byte, 65536)
			n, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:n], want) {
				t.Fatalf("%s: %d bytes: got %d, %v", addr, size, n, err)
			}
		}
	}
}

// TestErrorTranslated: a port unreachable about a masqueraded packet reaches the
// client's own socket.
func TestErrorTranslated(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	for _, addr := range []string{"198.51.100.2:9", "[fd00:2::2]:9"} {
		c, err := b.client.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte("anybody there?"))
		if _, err = c.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v, not refused", addr, err)
		}
		c.Close()
	}
}

// TestFragmentationNeeded: a smaller MTU behind the router is found by path MTU discovery.
func TestFragmentationNeeded(t *testing.T) {
	b := newBed(t, "")
	b.r.Stop()
	b.r = b.Sluice(strings.Replace(pair, `name      = "wan0"`, "name      = \"wan0\"\nmtu = 1300", 1))
	out, _ := b.client.Run("ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", "1400", "198.51.100.2")
	if !strings.Contains(out, "From 10.0.1.1") || !strings.Contains(out, "mtu = 1300") {
		t.Errorf("IPv4:\n%s", out)
	}
	out, _ = b.client.Run("ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", "1400", "fd00:2::2")
	if !strings.Contains(out, "mtu = 1300") && !strings.Contains(out, "mtu=1300") {
		t.Errorf("IPv6:\n%s", out)
	}
	// Without DF the router takes it apart itself.
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "-M", "dont", "-s", "1400", "198.51.100.2")
	// And TCP comes through whole.
	want := bytes.Repeat([]byte("sluice"), 100000)
	ln := b.server.Listen("198.51.100.2:80")
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Write(want)
			c.Close()
		}
	}()
	c, err := b.client.Dial("tcp", "198.51.100.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(bufio.NewReader(c))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d of %d bytes, %v", len(got), len(want), err)
	}
}
