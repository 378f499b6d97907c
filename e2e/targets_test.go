package e2e

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// TestTEE: who asks gets the answer, and the gateway gets a copy of what was
// asked: tcpdump sees it there, and a socket there reads it.
func TestTEE(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.Need("tcpdump")
	client, server, watch := l.NS("client"), l.NS("server"), l.NS("watch")
	r := l.Sluice(pair + `
[[interface]]
name = "tap0"
addresses = ["10.9.0.1/24", "fd00:9::1/64"]
  [interface.host]
  netns = "{ns:watch}"
  addresses = ["10.9.0.2/24", "fd00:9::2/64"]
[iptables.mangle]
rules = [
  "-A PREROUTING -i lan0 -p udp -j TEE --gateway 10.9.0.2",
  "-A FORWARD -i lan0 -p tcp -j TEE --gateway 10.9.0.2 --oif tap0",
]
[ip6tables.mangle]
rules = ["-A PREROUTING -i lan0 -p udp -j TEE --gateway fd00:9::2"]
`)
	// The copies have the server's address; here is somebody who has it, too.
	watch.Must("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.tap0.rp_filter=0")
	watch.Must("ip", "addr", "add", "198.51.100.2/32", "dev", "lo")
	watch.Must("ip", "addr", "add", "fd00:2::2/128", "dev", "lo")
	dump := watch.Start("tcpdump", "-n", "-l", "-v", "-i", "tap0", "udp", "port", "9000")
	dump.Expect("listening on tap0", deadline)
	for addr, seen := range map[string]string{
		"198.51.100.2:9000": `ttl 63, .*flags \[DF\], proto UDP.*\n\s+10\.0\.1\.2\.\d+ > 198\.51\.100\.2\.9000`,
		"[fd00:2::2]:9000":  `hlim 63, .*UDP.* fd00:1::2\.\d+ > fd00:2::2\.9000`,
	} {
		echo(server, addr)
		copies := watch.ListenPacket(addr)
		exchange(t, dial(t, client, "udp", addr), "to be copied")
		copies.SetDeadline(time.Now().Add(deadline))
		buf := make([]byte, 100)
		if n, from, err := copies.ReadFrom(buf); err != nil || string(buf[:n]) != "to be copied" {
			t.Errorf("the copy to %s: %q from %v, %v", addr, buf[:n], from, err)
		}
		line := regexp.MustCompile(seen)
		l.Eventually(deadline, "tcpdump to print "+seen, func() bool { return line.MatchString(dump.Output()) })
	}

	// Of a transfer each byte is there twice, super-packets and all.
	raw := watch.Raw("tap0")
	ln := server.Listen("198.51.100.2:80")
	go func() {
		if c, err := ln.Accept(); err == nil {
			io.Copy(c, c)
		}
	}()
	c := dial(t, client, "tcp", "198.51.100.2:80")
	c.SetDeadline(time.Now().Add(2 * deadline))
	text, back := strings.Repeat("0123456789abcdef", 500), make([]byte, 8000)
	const pieces = 10
	for range pieces { // one at a time: the raw socket holds few large ones
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, back); err != nil || string(back) != text {
			t.Fatalf("the original: %v", err)
		}
	}
	l.Eventually(deadline, "copies of the whole transfer", func() bool {
		have, first, large := make([]byte, pieces*len(text)), uint32(0), false
		for _, p := range raw.Frames() {
			s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
			if !ok || s.DstPort != 80 {
				continue
			}
			if s.SYN {
				first = s.Seq + 1
			} else if at := int(int32(s.Seq - first)); at >= 0 && at < len(have) {
				copy(have[at:], s.Payload)
			}
			large = large || len(s.Payload) > 1500
		}
		return large && string(have) == strings.Repeat(text, pieces)
	})
	if out := r.Must("conntrack", "-L"); strings.Contains(out, "[UNREPLIED]") {
		t.Errorf("copies are tracked:\n%s", out)
	}
}

// TestAudit: a record for each packet, which goes on.
func TestAudit(t *testing.T) {
	b := newBed(t, `
[iptables.filter]
rules = ["-A FORWARD -i lan0 -p udp -m mark --mark 7 -j AUDIT --type accept"]
[iptables.mangle]
rules = ["-A PREROUTING -i lan0 -j MARK --set-mark 7"]
[ip6tables.filter]
rules = ["-A FORWARD -i lan0 -p udp -j AUDIT --type drop"]
`)
	for addr, want := range map[string]string{
		"198.51.100.2:9000": "mark=0x7 saddr=10.0.1.2 daddr=198.51.100.2 proto=17",
		"[fd00:2::2]:9000":  "saddr=fd00:1::2 daddr=fd00:2::2 proto=17",
	} {
		echo(b.server, addr)
		exchange(t, dial(t, b.client, "udp", addr), "looked at, and let through")
		b.r.Expect(want, deadline)
	}
	if n := strings.Count(b.r.Output(), "audit: type="); n != 2 {
		t.Errorf("%d records, not 2", n)
	}
}

// TestIdleTimer: the timer runs from the rule on, and anew from each packet of it.
func TestIdleTimer(t *testing.T) {
	b := newBed(t, `
[iptables.filter]
rules = [
  "-A FORWARD -i lan0 -p udp --dport 9000 -j IDLETIMER --timeout 1000 --label lan",
  "-A FORWARD -i lan0 -p udp --dport 9001 -j IDLETIMER --timeout 1 --label short",
]
`)
	left := func(label string) int64 {
		for _, x := range b.r.Status().IdleTimers {
			if x.Label == label {
				return x.Seconds
			}
		}
		t.Fatalf("no timer %q: %+v", label, b.r.Status().IdleTimers)
		return 0
	}
	b.Eventually(deadline, "the timer to run", func() bool { n := left("lan"); return n > 900 && n < 998 })
	before := left("lan")
	echo(b.server, "198.51.100.2:9000")
	exchange(t, dial(t, b.client, "udp", "198.51.100.2:9000"), "awake")
	b.Eventually(deadline, "the packet to start it anew", func() bool { return left("lan") > before })
	b.Eventually(deadline, "the short one to run out", func() bool { return left("short") == 0 })
	if out := b.r.Must("status"); !regexp.MustCompile(`(?m)^IDLE TIMER +SECONDS LEFT\nlan +\d+\nshort +0$`).MatchString(out) {
		t.Errorf("sluice status:\n%s", out)
	}
	b.r.Must("iptables", "-D", "FORWARD", "1")
	b.Eventually(deadline, "the timer to go with its rule", func() bool { return len(b.r.Status().IdleTimers) == 1 })
}

// TestRateest: a flood is noticed, and its end.
func TestRateest(t *testing.T) {
	b := newBed(t, `
[iptables.mangle]
rules = ["-A PREROUTING -i lan0 -j RATEEST --rateest-name lan --rateest-interval 250ms --rateest-ewmalog 500ms"]
[iptables.filter]
rules = [
  "-A FORWARD -i lan0 -p udp --dport 9000 -m rateest --rateest lan --rateest-gt --rateest-pps 100 -j DROP",
  "-A FORWARD -i lan0 -p udp --dport 9000 -m rateest --rateest lan ! --rateest-gt --rateest-pps 100 -m comment --comment calm",
]
`)
	echo(b.server, "198.51.100.2:9000")
	c := dial(t, b.client, "udp", "198.51.100.2:9000")
	exchange(t, c, "a quiet moment")
	if n := b.r.Counter("iptables-save", "-j DROP"); n != 0 {
		t.Errorf("%d packets dropped without a flood", n)
	}
	var flooding atomic.Bool
	flooding.Store(true)
	ended := make(chan struct{})
	flood := dial(t, b.client, "udp", "198.51.100.2:9")
	go func() {
		defer close(ended)
		for flooding.Load() {
			flood.Write([]byte("and on"))
			time.Sleep(time.Millisecond)
		}
	}()
	b.Eventually(deadline, "the flood to be noticed", func() bool {
		c.Write([]byte("x"))
		return b.r.Counter("iptables-save", "-j DROP") > 0
	})
	flooding.Store(false)
	<-ended
	calm := b.r.Counter("iptables-save", "calm")
	b.Eventually(deadline, "the rate to fall", func() bool {
		c.Write([]byte("x"))
		return b.r.Counter("iptables-save", "calm") > calm
	})
	if calm < 1 {
		t.Errorf("the inverted rule counted %d packets before", calm)
	}
}

// TestConnlabel: the answers of connections with the label come back, no others.
func TestConnlabel(t *testing.T) {
	rules := `
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -i lan0 -p udp --dport 9000 -m connlabel --label 100 --set -j ACCEPT",
  "-A FORWARD -i lan0 -j ACCEPT",
  "-A FORWARD -i wan0 -m connlabel --label 100 -j ACCEPT",
  "-A FORWARD -i wan0 -m connlabel ! --label 100 -m comment --comment without",
]
`
	b := newBed(t, "[iptables.filter]"+rules+"[ip6tables.filter]"+rules)
	for save, server := range map[string]string{"iptables-save": "198.51.100.2", "ip6tables-save": "fd00:2::2"} {
		echo(b.server, net.JoinHostPort(server, "9000"))
		echo(b.server, net.JoinHostPort(server, "9001"))
		c := dial(t, b.client, "udp", net.JoinHostPort(server, "9000"))
		exchange(t, c, "labelled")
		exchange(t, c, "again")
		dial(t, b.client, "udp", net.JoinHostPort(server, "9001")).Write([]byte("not labelled"))
		b.Eventually(deadline, "the answer without a label to be held up", func() bool { return b.r.Counter(save, "without") == 1 })
		if n := b.r.Counter(save, "-i wan0 -m connlabel --label"); n != 2 {
			t.Errorf("%s: %d answers had the label, not 2", save, n)
		}
	}
}

// TestCTEvents: of a connection only those events are told that its CT rule names.
func TestCTEvents(t *testing.T) {
	b := newBed(t, `
[iptables.raw]
rules = [
  "-A PREROUTING -p udp --dport 9001 -j CT --ctevents new",
  "-A PREROUTING -p udp --dport 9002 -j CT --ctevents destroy",
  "-A PREROUTING -p udp --dport 9003 -j CT --ctevents mark",
]
[iptables.mangle]
rules = ["-A POSTROUTING -p udp --dport 9000:9003 -m length --length 32 -j CONNMARK --set-mark 5"]
`)
	events := b.StartCommand(b.r.Command("conntrack", "-E", "-p", "udp"))
	echo(b.server, "198.51.100.2:9000")
	b.Eventually(deadline, "conntrack -E to listen", func() bool {
		exchange(t, dial(t, b.client, "udp", "198.51.100.2:9000"), "are you there?")
		return strings.Contains(events.Output(), "[NEW]")
	})
	ports := []int{9001, 9002, 9003, 9004} // the last one tells everything
	for _, port := range ports {
		addr := fmt.Sprintf("198.51.100.2:%d", port)
		echo(b.server, addr)
		c := dial(t, b.client, "udp", addr)
		exchange(t, c, "first packet")
		if port != 9004 {
			exchange(t, c, "mark") // 32 bytes long
		}
	}
	events.Expect("dport=9004", deadline)
	for _, port := range ports {
		b.r.Must("conntrack", "-D", "-p", "udp", "--dport", fmt.Sprint(port))
	}
	told := func(event string, port int) bool {
		return regexp.MustCompile(fmt.Sprintf(`(?m)^ *\[%s\] .*src=10\.0\.1\.2 .*dport=%d `, event, port)).MatchString(events.Output())
	}
	b.Eventually(deadline, "the last event", func() bool { return told("DESTROY", 9004) })
	for _, x := range []struct {
		port                 int
		fresh, update, ended bool
	}{{9001, true, false, false}, {9002, false, false, true}, {9003, false, true, false}, {9004, true, true, true}} {
		if a, u, z := told("NEW", x.port), told("UPDATE", x.port), told("DESTROY", x.port); a != x.fresh || u != x.update || z != x.ended {
			t.Errorf("port %d: NEW %v, UPDATE %v, DESTROY %v\n%s", x.port, a, u, z, events.Output())
		}
	}
}
