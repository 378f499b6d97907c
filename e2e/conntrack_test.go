package e2e

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// exchange sends text over a UDP connection and waits for it to come back.
func exchange(t *testing.T, c net.Conn, text string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(deadline))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != text {
		t.Fatalf("sent %q, got %q, %v", text, buf[:n], err)
	}
}

// dial is ns.Dial for what has to work.
func dial(t *testing.T, ns *lab.NS, network, addr string) net.Conn {
	t.Helper()
	c, err := ns.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestStates: each state has its packets, by rule counters.
func TestStates(t *testing.T) {
	states := func(chain string) string {
		return fmt.Sprintf(`"-A %[1]s -m conntrack --ctstate NEW", "-A %[1]s -m conntrack --ctstate ESTABLISHED", "-A %[1]s -m conntrack --ctstate RELATED",
"-A %[1]s -m conntrack --ctstate INVALID", "-A %[1]s -m conntrack --ctstate UNTRACKED"`, chain)
	}
	b := newBed(t, `
[iptables.raw]
rules = ["-A PREROUTING -p udp --dport 9009 -j NOTRACK", "-A PREROUTING -p udp --sport 9009 -j CT --notrack"]
[iptables.filter]
rules = [`+states("FORWARD")+`]
[ip6tables.filter]
rules = [`+states("FORWARD")+`]
[sysctl]
"net.netfilter.nf_conntrack_tcp_loose" = 0
`)
	expect := func(save, state string, want int) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Logf("%s", b.r.Must(save, "-c"))
			}
		}()
		b.Eventually(deadline, fmt.Sprintf("%s: %s to be %d", save, state, want), func() bool {
			return b.r.Counter(save, "--ctstate "+state) == want
		})
	}
	for save, server := range map[string]string{"iptables-save": "198.51.100.2", "ip6tables-save": "fd00:2::2"} {
		echo(b.server, net.JoinHostPort(server, "9000"))
		c := dial(t, b.client, "udp", net.JoinHostPort(server, "9000"))
		exchange(t, c, "one")
		expect(save, "NEW", 1)
		expect(save, "ESTABLISHED", 1)
		exchange(t, c, "two")
		expect(save, "NEW", 1)
		expect(save, "ESTABLISHED", 3)
		// A closed port: the error is RELATED.
		closed := dial(t, b.client, "udp", net.JoinHostPort(server, "9001"))
		closed.Write([]byte("?"))
		closed.SetDeadline(time.Now().Add(deadline))
		closed.Read(make([]byte, 1))
		expect(save, "NEW", 2)
		expect(save, "RELATED", 1)
	}
	raw := b.client.Raw("lan0")
	raw.Send(lab.TCP("10.0.1.77", "198.51.100.77", 1, 2, "A", 1, 1)) // from the middle of nothing
	expect("iptables-save", "INVALID", 1)
	bad := lab.UDP("10.0.1.77", "198.51.100.2", 1, 9000, "bad checksum")
	bad[27] ^= 0xff
	raw.Send(bad)
	expect("iptables-save", "INVALID", 2)
	echo(b.server, "198.51.100.2:9009")
	exchange(t, dial(t, b.client, "udp", "198.51.100.2:9009"), "untracked")
	expect("iptables-save", "UNTRACKED", 2)
	if out := b.r.Must("conntrack", "-L"); strings.Contains(out, "9009") {
		t.Errorf("what is not tracked is in the table:\n%s", out)
	}
}

// TestConntrackTool: -L, -C, -G, -D, -E and -F, as people type them.
func TestConntrackTool(t *testing.T) {
	b := newBed(t, `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`)
	events := b.StartCommand(b.r.Command("conntrack", "-E"))
	echo(b.server, "198.51.100.2:9000")
	echo(b.server, "[fd00:2::2]:9000")
	// Until the subscription is there an event may pass by.
	var port string
	b.Eventually(deadline, "an event", func() bool {
		c := dial(t, b.client, "udp", "198.51.100.2:9000")
		exchange(t, c, "hello")
		_, port, _ = net.SplitHostPort(c.LocalAddr().String())
		return strings.Contains(events.Output(), "sport="+port+" ")
	})
	events.Expect("    [NEW] udp      17 30 src=10.0.1.2 dst=198.51.100.2 sport="+port+" dport=9000 [UNREPLIED] src=198.51.100.2 dst=198.51.100.1 sport=9000 dport="+port, deadline)
	out := b.r.Must("conntrack", "-L", "-p", "udp", "--orig-port-src", port)
	line := regexp.MustCompile(`(?m)^udp      17 (29|28|2\d|30) src=10\.0\.1\.2 dst=198\.51\.100\.2 sport=` + port + ` dport=9000 src=198\.51\.100\.2 dst=198\.51\.100\.1 sport=9000 dport=` + port + ` mark=0 (secctx=\S+ )?use=1$`)
	if !line.MatchString(out) {
		t.Errorf("-L:\n%s", out)
	}
	if out := b.r.Must("conntrack", "-L", "-p", "udp", "-n"); !strings.Contains(out, "sport="+port+" ") {
		t.Errorf("-L -n (source NAT):\n%s", out)
	}
	if out := b.r.Must("conntrack", "-L", "-j"); strings.Contains(out, "sport="+port+" ") && !strings.Contains(out, "10.0.1.2") {
		t.Errorf("-L -j:\n%s", out)
	}
	c6 := dial(t, b.client, "udp", "[fd00:2::2]:9000")
	exchange(t, c6, "six")
	if out := b.r.Must("conntrack", "-L", "-f", "ipv6"); !strings.Contains(out, "src=fd00:1::2 dst=fd00:2::2 ") || strings.Contains(out, "10.0.1.2") {
		t.Errorf("-L -f ipv6:\n%s", out)
	}
	if out := b.r.Must("conntrack", "-D", "-p", "udp", "--orig-port-src", port); !strings.Contains(out, "sport="+port+" ") {
		t.Errorf("-D:\n%s", out)
	}
	b.Eventually(deadline, "the DESTROY event", func() bool {
		return regexp.MustCompile(`\[DESTROY\] udp      17 (\d+ )?src=10.0.1.2 dst=198.51.100.2 sport=` + port + " ").MatchString(events.Output())
	})
	if out, errs, code := b.r.Tool("conntrack", "-D", "-p", "udp", "--orig-port-src", port); code != 1 || !strings.Contains(errs, "0 flow entries have been deleted") {
		t.Errorf("-D of nothing: %d %q %q", code, out, errs)
	}
	if n := strings.TrimSpace(b.r.Must("conntrack", "-C")); n == "0" {
		t.Errorf("-C: %s", n)
	}
	b.r.Must("conntrack", "-F")
	if n := strings.TrimSpace(b.r.Must("conntrack", "-C")); n != "0" {
		t.Errorf("-C after -F: %s", n)
	}
	// Anybody's connection goes on after the flush: it is picked up anew.
	exchange(t, c6, "again")
}

// TestConntrackTCP: a connection's states from SYN to TIME_WAIT, and its mark.
func TestConntrackTCP(t *testing.T) {
	b := newBed(t, `
[iptables.mangle]
rules = [
  "-A PREROUTING -j CONNMARK --restore-mark",
  "-A PREROUTING -m mark ! --mark 0 -m comment --comment restored",
  "-A PREROUTING -i lan0 -p tcp --dport 80 -m mark --mark 0 -j MARK --set-mark 0x2a",
  "-A POSTROUTING -j CONNMARK --save-mark",
]
`)
	ln := b.server.Listen("198.51.100.2:80")
	c := dial(t, b.client, "tcp", "198.51.100.2:80")
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	state := func(want string) {
		t.Helper()
		b.Eventually(deadline, want, func() bool {
			return strings.Contains(b.r.Must("conntrack", "-L", "-p", "tcp"), " "+want+" ")
		})
	}
	state("ESTABLISHED")
	if out := b.r.Must("conntrack", "-L", "-m", "42"); !strings.Contains(out, "mark=42 ") || !strings.Contains(out, "[ASSURED]") {
		t.Errorf("-L -m 42:\n%s", out)
	}
	if n := b.r.Counter("iptables-save", "restored"); n < 2 {
		t.Errorf("--restore-mark gave %d packets their mark", n)
	}
	c.(*net.TCPConn).CloseWrite()
	state("CLOSE_WAIT")
	peer.Close()
	state("TIME_WAIT")
	raw := b.client.Raw("lan0")
	raw.Send(lab.TCP("10.0.1.77", "198.51.100.77", 5, 80, "S", 1, 0))
	state("SYN_SENT")
	raw.Send(lab.TCP("10.0.1.77", "198.51.100.77", 5, 80, "R", 2, 0))
	b.Eventually(deadline, "CLOSE", func() bool {
		out := b.r.Must("conntrack", "-L", "-p", "tcp", "-s", "10.0.1.77")
		return !strings.Contains(out, "SYN_SENT")
	})
}

// TestZones: the same addresses twice, in two zones, are two connections.
func TestZones(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	client, server, twin := l.NS("client"), l.NS("server"), l.NS("twin")
	r := l.Sluice(pair + `
[[interface]]
name = "lan1"
addresses = ["10.0.9.1/24"]
  [interface.host]
  netns = "{ns:twin}"
  addresses = ["10.0.1.2/24"]
  routes = ["default"]
[iptables.raw]
rules = [
  "-A PREROUTING -i lan0 -j CT --zone 1",
  "-A PREROUTING -i lan1 -j CT --zone 2",
]
`)
	echo(server, "198.51.100.2:9000")
	exchange(t, dial(t, client, "udp", "198.51.100.2:9000"), "one")
	client.Raw("lan0").Send(lab.UDP("10.0.1.2", "198.51.100.77", 777, 778, "x"))
	twin.Raw("lan1").Send(lab.UDP("10.0.1.2", "198.51.100.77", 777, 778, "x"))
	for _, zone := range []string{"1", "2"} {
		l.Eventually(deadline, "a connection in zone "+zone, func() bool {
			out := r.Must("conntrack", "-L", "-w", zone, "-p", "udp", "--orig-port-src", "777")
			return strings.Count(out, "sport=777 ") == 1 && strings.Contains(out, " zone="+zone+" ")
		})
	}
}

// TestLogInvalid: what is invalid is logged as Linux logs it, when it is asked for.
func TestLogInvalid(t *testing.T) {
	b := newBed(t, "[sysctl]\n\"net.netfilter.nf_conntrack_log_invalid\" = 6\n")
	b.client.Raw("lan0").Send(lab.TCP("10.0.1.77", "198.51.100.77", 5000, 80, "SF", 1, 0))
	b.r.Expect("nf_ct_proto_6: invalid tcp flag combination IN=lan0 OUT= MAC= SRC=10.0.1.77 DST=198.51.100.77 ", deadline)
}

// TestTableFull: with the table full of half-open connections a new one finds
// its place all the same; full of established ones it is dropped by name.
func TestTableFull(t *testing.T) {
	const limit = 200
	b := newBed(t, fmt.Sprintf(`
[sysctl]
"net.netfilter.nf_conntrack_max" = %d
`, limit))
	raw := b.client.Raw("lan0")
	for i := range 3 * limit {
		raw.Send(lab.TCP("10.0.1.77", "198.51.100.77", 1000+i, 80, "S", 1, 0))
	}
	count := func() int {
		n := 0
		fmt.Sscan(b.r.Must("conntrack", "-C"), &n)
		return n
	}
	b.r.AwaitDropped("conntrack.table_full", 1)
	b.r.Expect("nf_conntrack: nf_conntrack: table full, dropping packet", deadline)
	if n := count(); n > limit+2 { // each worker may be in the middle of one
		t.Errorf("%d connections in a table of %d", n, limit)
	}
	serve(b.server, "198.51.100.2:80")
	if _, err := hear(b.client, "198.51.100.2:80"); err != nil {
		t.Errorf("a new connection did not find a place: %v", err)
	}
	// Established connections are not pushed out: the newcomer is dropped.
	b.r.Must("conntrack", "-F")
	ln := b.server.Listen("198.51.100.2:81")
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.Write([]byte("x"))
		}
	}()
	for range limit {
		c := dial(t, b.client, "tcp", "198.51.100.2:81")
		c.SetDeadline(time.Now().Add(deadline))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	full := b.r.Dropped("conntrack.table_full")
	raw.Send(lab.UDP("10.0.1.77", "198.51.100.77", 7, 7, "no room"))
	b.r.AwaitDropped("conntrack.table_full", full+1)
}

// TestInvalid: a segment outside of the window does not pass where INVALID is dropped.
func TestInvalid(t *testing.T) {
	b := newBed(t, `
[iptables.filter]
rules = ["-A FORWARD -m conntrack --ctstate INVALID -j DROP"]
`)
	ln := b.server.Listen("198.51.100.2:80")
	c := dial(t, b.client, "tcp", "198.51.100.2:80")
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	var sport int
	fmt.Sscan(port, &sport)
	out := b.server.Raw("wan0")
	raw := b.client.Raw("lan0")
	// Nobody can reset the connection who does not know where it is.
	raw.Send(lab.TCP("10.0.1.2", "198.51.100.2", sport, 80, "R", 1, 0))
	b.r.AwaitDropped("filter.FORWARD.rule", 1)
	if p := out.Find(func(p gopacket.Packet) bool {
		s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		return ok && s.RST
	}); p != nil {
		t.Errorf("forwarded: %v", p)
	}
	fmt.Fprint(c, "still there")
	peer.SetDeadline(time.Now().Add(deadline))
	buf := make([]byte, 20)
	if n, err := peer.Read(buf); err != nil || string(buf[:n]) != "still there" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestSysctl: tunables are read and set while the router runs.
func TestSysctl(t *testing.T) {
	b := newBed(t, `
[sysctl]
"net.netfilter.nf_conntrack_udp_timeout" = 17
`)
	if out := b.r.Must("sysctl", "net.netfilter.nf_conntrack_udp_timeout"); strings.TrimSpace(out) != "net.netfilter.nf_conntrack_udp_timeout = 17" {
		t.Errorf("%q", out)
	}
	echo(b.server, "198.51.100.2:9000")
	exchange(t, dial(t, b.client, "udp", "198.51.100.2:9000"), "x")
	if out := b.r.Must("conntrack", "-L"); !regexp.MustCompile(`udp      17 1[0-7] `).MatchString(out) {
		t.Errorf("the timeout was not used:\n%s", out)
	}
	b.r.Must("sysctl", "net.netfilter.nf_conntrack_udp_timeout=1")
	exchange(t, dial(t, b.client, "udp", "198.51.100.2:9000"), "y")
	b.r.Must("conntrack", "-L")
	b.Eventually(deadline, "a connection to expire", func() bool {
		return strings.Count(b.r.Must("conntrack", "-L"), "dport=9000 ") == 1
	})
	if _, errs, code := b.r.Tool("sysctl", "net.netfilter.no_such=1"); code == 0 || !strings.Contains(errs, "no_such") {
		t.Errorf("an unknown name: %d %q", code, errs)
	}
	if _, errs, code := b.r.Tool("sysctl", "net.netfilter.nf_conntrack_max=many"); code == 0 || errs == "" {
		t.Errorf("a bad value: %d %q", code, errs)
	}
}
