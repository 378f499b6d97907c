package e2e

import (
	"net"
	"regexp"
	"strings"
	"testing"
)

// setFamilies are what the tests of sets do in both families.
var setFamilies = map[string]struct{ family, tool, server, other, client string }{
	"IPv4": {"inet", "iptables", "198.51.100.2", "198.51.100.3", "10.0.1.2"},
	"IPv6": {"inet6", "ip6tables", "fd00:2::2", "fd00:2::3", "fd00:1::2"},
}

// TestSets: a rule follows its set while clients talk: members that come, go,
// time out and are swapped, for new connections and for the one that is there;
// and packets put what they hold into sets and take it out.
func TestSets(t *testing.T) {
	for name, x := range setFamilies {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, "")
			b.Need("curl")
			set := func(args ...string) { t.Helper(); b.r.Must(append([]string{"ipset"}, args...)...) }
			set("create", "open", "hash:ip", "family", x.family, "timeout", "0", "counters")
			set("create", "web", "hash:ip,port", "family", x.family)
			b.r.Must(x.tool, "-A", "FORWARD", "-i", "lan0", "-p", "tcp", "-m", "set", "!", "--match-set", "web", "dst,dst", "-j", "REJECT", "--reject-with", "tcp-reset")
			b.r.Must(x.tool, "-A", "FORWARD", "-i", "lan0", "!", "-p", "tcp", "-m", "set", "!", "--match-set", "open", "dst", "-j", "DROP")
			website(b.server, net.JoinHostPort(x.server, "80"), "the page")
			echo(b.server, net.JoinHostPort(x.server, "9000"))
			flow := dial(t, b.client, "udp", net.JoinHostPort(x.server, "9000"))
			url := "http://" + net.JoinHostPort(x.server, "80") + "/"

			// drops waits until the flow's packets and a ping find their way no more.
			drops := func(when string) {
				t.Helper()
				n := b.r.Counter(x.tool+"-save", "-j DROP")
				flow.Write([]byte("lost"))
				b.Eventually(deadline, when+": a packet to be dropped", func() bool { return b.r.Counter(x.tool+"-save", "-j DROP") == n+1 })
				b.client.Fails("ping", "-n", "-c", "1", "-W", "0.3", x.server)
			}
			passes := func(text string) {
				t.Helper()
				exchange(t, flow, text)
				b.client.Must("ping", "-n", "-c", "1", "-W", "5", x.server)
			}
			drops("an empty set")
			b.client.Fails("curl", "-sS", "-g", "--max-time", "5", url)
			set("add", "open", x.server)
			passes("added")
			passes("and remembered")
			set("del", "open", x.server)
			drops("deleted")
			set("add", "open", x.server, "timeout", "600")
			passes("added with a timeout")
			set("-exist", "add", "open", x.server, "timeout", "1")
			b.Eventually(deadline, "the member to time out", func() bool {
				_, _, code := b.r.Tool("ipset", "test", "open", x.server)
				return code == 1
			})
			drops("timed out")
			set("create", "next", "hash:net", "family", x.family) // of another type: swap refuses it
			if _, text, code := b.r.Tool("ipset", "swap", "open", "next"); code != 1 || !strings.Contains(text, "type does not match") {
				t.Errorf("a swap with another type: %d %q", code, text)
			}
			set("destroy", "next")
			set("create", "next", "hash:ip", "family", x.family, "timeout", "0", "counters")
			set("add", "next", x.server, "packets", "0", "bytes", "0")
			set("swap", "open", "next")
			passes("swapped")
			if out := b.r.Must("ipset", "list", "open"); !strings.Contains(out, x.server+" timeout 0 packets 2 ") {
				t.Errorf("the member's counters:\n%s", out)
			}
			set("flush", "open")
			drops("flushed")

			set("add", "web", x.server+",tcp:80")
			if out := b.client.Must("curl", "-sS", "-g", "--max-time", "10", url); out != "the page" {
				t.Errorf("%q", out)
			}
			if _, text, code := b.r.Tool("ipset", "destroy", "web"); code != 1 || !strings.Contains(text, "in use") {
				t.Errorf("a set that a rule names: %d %q", code, text)
			}

			// Port knocking: one packet lets its sender in, another one out.
			set("create", "knocked", "hash:ip", "family", x.family, "timeout", "5")
			for _, rule := range []string{
				"-A INPUT -p udp --dport 1001 -j SET --add-set knocked src --exist --timeout 500",
				"-A INPUT -p udp --dport 1002 -j SET --del-set knocked src",
			} {
				b.r.Must(append([]string{x.tool}, strings.Fields(rule)...)...)
			}
			b.r.Must(x.tool, "-I", "FORWARD", "-m", "set", "--match-set", "knocked", "src", "-j", "ACCEPT")
			router := map[string]string{"inet": "10.0.1.1", "inet6": "fd00:1::1"}[x.family]
			dial(t, b.client, "udp", net.JoinHostPort(router, "1001")).Write([]byte("knock"))
			b.Eventually(deadline, "the knock to be heard", func() bool {
				_, _, code := b.r.Tool("ipset", "test", "knocked", x.client)
				return code == 0
			})
			if out := b.r.Must("ipset", "save", "knocked"); !regexp.MustCompile(` timeout (500|4\d\d)\b`).MatchString(out) {
				t.Errorf("--timeout:\n%s", out)
			}
			passes("knocked")
			dial(t, b.client, "udp", net.JoinHostPort(router, "1002")).Write([]byte("leave"))
			b.Eventually(deadline, "the second knock", func() bool {
				_, _, code := b.r.Tool("ipset", "test", "knocked", x.client)
				return code == 1
			})
			drops("after the second knock")
		})
	}
}
