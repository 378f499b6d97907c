// Package configs has the ready configurations; its test drives each of them.
package configs

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sluice/e2e/lab"
)

func TestMain(m *testing.M) {
	status := m.Run()
	lab.RemoveBinary()
	os.Exit(status)
}

// network is a configuration with its neighbours.
type network struct {
	*lab.Lab
	ns map[string]*lab.NS
	r  *lab.Sluice
}

var netnsLine = regexp.MustCompile(`(?m)^(\s*netns\s*=\s*)"([^"]+)"`)

// drive makes the namespaces that a configuration names, under names of the
// test's own, and starts the router.
func drive(t *testing.T, name string) *network {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	n := &network{Lab: lab.New(t), ns: map[string]*lab.NS{}}
	for _, m := range netnsLine.FindAllStringSubmatch(string(text), -1) {
		if n.ns[m[2]] == nil {
			n.ns[m[2]] = n.NS(m[2])
		}
	}
	rules, _ := filepath.Glob("*.rules")
	for _, file := range rules {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n.File(file, string(text))
	}
	n.r = n.Sluice(netnsLine.ReplaceAllString(string(text), `${1}"{ns:$2}"`))
	return n
}

// serve answers TCP connections in a namespace with its name and where they come from.
func (n *network) serve(ns, addr string) {
	n.T.Helper()
	ln := n.ns[ns].Listen(addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s to %s", ns, host)
			c.Close()
		}
	}()
}

// ask connects and gives what the server says, or "error: …".
func (n *network) ask(from, addr string) string {
	n.T.Helper()
	c, err := n.ns[from].Dial("tcp", addr)
	if err != nil {
		return "error: " + err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	text, err := io.ReadAll(c)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(text)
}

// expect is ask for a certain answer.
func (n *network) expect(from, addr, want string) {
	n.T.Helper()
	if got := n.ask(from, addr); got != want {
		n.T.Errorf("%s asks %s: %q, want %q", from, addr, got, want)
	}
}

// fails is ask for an error with this text.
func (n *network) fails(from, addr, want string) {
	n.T.Helper()
	if got := n.ask(from, addr); !strings.HasPrefix(got, "error: ") || !strings.Contains(got, want) {
		n.T.Errorf("%s asks %s: %q, want an error with %q", from, addr, got, want)
	}
}

// silent: a datagram is dropped for this reason.
func (n *network) silent(from, addr, reason string) {
	n.T.Helper()
	before := n.drops(reason)
	n.datagram(from, addr)
	n.Eventually(10*time.Second, "a drop for "+reason, func() bool { return n.drops(reason) > before })
}

func (n *network) drops(reason string) int {
	var s struct {
		Drops []struct {
			Reason  string
			Packets int
		}
	}
	if err := json.Unmarshal([]byte(n.r.Must("status", "--json")), &s); err != nil {
		n.T.Fatal(err)
	}
	for _, d := range s.Drops {
		if d.Reason == reason {
			return d.Packets
		}
	}
	return 0
}

func (n *network) datagram(from, addr string) {
	n.ns[from].Do(func() {
		c, err := net.Dial("udp", addr)
		if err == nil {
			c.Write([]byte("x"))
			c.Close()
		}
	})
}

// dropped: a datagram meets this rule.
func (n *network) dropped(from, addr, rule string) {
	n.T.Helper()
	before := n.r.Counter("iptables-save", rule)
	if before < 0 {
		n.T.Fatalf("no rule %q", rule)
	}
	n.datagram(from, addr)
	n.Eventually(10*time.Second, "the rule "+rule+" to count a packet", func() bool { return n.r.Counter("iptables-save", rule) > before })
}

func (n *network) ping(from string, addrs ...string) {
	n.T.Helper()
	for _, a := range addrs {
		if out, err := n.ns[from].Run("ping", "-n", "-c", "1", "-W", "10", a); err != nil {
			n.T.Errorf("ping %s from %s: %v\n%s", a, from, err, out)
		}
	}
}

// status asks the status page.
func (n *network) status(from, url string) {
	n.T.Helper()
	out, err := n.ns[from].Run("curl", "-sS", "--noproxy", "*", "-g", "-m", "20", url)
	if err != nil || !strings.Contains(out, "lan0") && !strings.Contains(out, "eth0") {
		n.T.Errorf("%s from %s: %v\n%s", url, from, err, out)
	}
}

func TestHome(t *testing.T) {
	n := drive(t, "home.toml")
	n.Need("ping", "curl")
	n.serve("isp", "203.0.113.1:80")
	n.serve("isp", "[2001:db8:0:1::1]:80")
	n.serve("lan", "192.168.1.10:8443")
	n.serve("lan", "[fd00:1::10]:443")

	n.ping("lan", "192.168.1.1", "203.0.113.1", "fd00:1::1", "2001:db8:0:1::1")
	n.ping("isp", "203.0.113.2")
	n.expect("lan", "203.0.113.1:80", "isp to 203.0.113.2")           // behind the router's address
	n.expect("lan", "[2001:db8:0:1::1]:80", "isp to 2001:db8:0:1::2") // IPv6 likewise
	n.expect("isp", "203.0.113.2:443", "lan to 203.0.113.1")          // the port forward
	n.expect("lan", "203.0.113.2:443", "lan to 192.168.1.1")          // and back to where it came from
	n.fails("lan", "192.168.1.1:22", "refused")                       // REJECT inside
	n.silent("isp", "203.0.113.2:22", "filter.INPUT.policy")          // silence outside
	n.status("lan", "http://192.168.1.1/")
}

func TestEdge(t *testing.T) {
	n := drive(t, "edge.toml")
	n.Need("ping", "curl")
	n.serve("internet", "198.51.100.1:80")
	n.serve("internet", "[2001:db8:f::1]:80")
	n.serve("internet", "198.51.100.1:25")
	n.serve("dmz", "10.0.2.2:80")
	n.serve("dmz", "10.0.2.2:22")
	n.serve("dmz", "[fd00:2::2]:80")
	n.serve("client", "10.0.1.2:80")

	n.ping("client", "10.0.1.1", "198.51.100.1", "10.0.2.2", "fd00:1::1", "2001:db8:f::1")
	n.expect("client", "198.51.100.1:80", "internet to 198.51.100.2")
	n.expect("client", "[2001:db8:f::1]:80", "internet to fd00:1::2")
	n.fails("client", "198.51.100.1:25", "refused")
	n.expect("internet", "198.51.100.80:80", "dmz to 198.51.100.1")
	n.expect("client", "198.51.100.80:80", "dmz to 10.0.1.2")
	n.expect("client", "10.0.2.2:22", "dmz to 10.0.1.2")
	n.expect("dmz", "198.51.100.1:80", "internet to 198.51.100.80")
	n.expect("client", "[fd00:2::2]:80", "dmz to fd00:1::2")
	n.dropped("dmz", "10.0.1.2:53", "a broken server stays in the DMZ")
	for range 3 {
		n.expect("internet", "198.51.100.80:2222", "dmz to 198.51.100.1")
	}
	out := n.ns["client"].Must("curl", "-sS", "--noproxy", "*", "http://10.0.1.1/")
	if !strings.Contains(out, "dmz0") {
		t.Errorf("the status page:\n%s", out)
	}
	n.status("client", "http://[fd00:1::1]/")
	if out, err := n.ns["client"].Run("ping", "-n", "-c", "1", "-W", "10", "10.9.9.9"); err == nil || !strings.Contains(out, "From 10.0.1.1 icmp_seq=1 Destination Host Unreachable") {
		t.Errorf("a private network that is not ours:\n%s", out)
	}
}

func TestDocker(t *testing.T) {
	n := drive(t, "docker.toml")
	n.Need("ping", "curl")
	n.serve("web", "172.17.0.2:80")
	n.serve("app", "172.18.0.2:5432")
	n.serve("app", "172.18.0.2:80")
	n.serve("world", "192.0.2.1:80")

	n.expect("web", "192.0.2.1:80", "world to 192.0.2.2")   // MASQUERADE
	n.expect("world", "192.0.2.2:8080", "web to 192.0.2.1") // a published port
	n.fails("app", "192.0.2.2:8080", "refused")             // from a container network it is the host's own port
	n.expect("world", "192.0.2.2:5432", "app to 192.0.2.1")
	n.dropped("web", "172.18.0.2:80", "-A DOCKER-ISOLATION-STAGE-2 -o br-app -j DROP")
	n.status("world", "http://192.0.2.2/")
	n.status("web", "http://172.17.0.1/")
	if out := n.r.Must("iptables", "-S", "DOCKER-USER"); !strings.HasPrefix(out, "-N DOCKER-USER\n-A DOCKER-USER -s 192.0.2.66/32 -i eth0 ") {
		t.Errorf("the administrator's rule is not first:\n%s", out)
	}
}

func TestPolicyRouting(t *testing.T) {
	n := drive(t, "policy-routing.toml")
	n.serve("isp-fast", "203.0.113.1:80")
	n.serve("isp-cheap", "203.0.113.1:80")
	n.serve("isp-fast", "203.0.113.1:873")
	n.serve("isp-cheap", "203.0.113.1:873")
	n.serve("office", "10.1.0.2:443")
	n.serve("guest", "10.2.0.2:80")

	n.expect("office", "203.0.113.1:80", "isp-fast to 192.0.2.2")
	n.expect("guest", "203.0.113.1:80", "isp-cheap to 198.51.100.2")    // by source
	n.expect("office", "203.0.113.1:873", "isp-cheap to 198.51.100.2")  // by mark
	n.expect("office", "10.2.0.2:80", "guest to 10.1.0.2")              // between our own networks
	n.fails("guest", "10.1.0.2:443", "no route to host")                // admin-prohibited
	n.expect("isp-fast", "192.0.2.2:443", "office to 192.0.2.1")        // in over either provider,
	n.expect("isp-cheap", "198.51.100.2:443", "office to 198.51.100.1") // and out again there
}

func TestIPv6Only(t *testing.T) {
	n := drive(t, "ipv6-only.toml")
	n.Need("ping", "curl")
	n.serve("isp6", "[2001:db8:ffff::1]:80")
	n.serve("hosts", "[2001:db8:1::2]:443")
	n.serve("hosts", "[2001:db8:1::2]:80")

	n.ping("hosts", "2001:db8:1::1", "2001:db8:ffff::1")
	n.ping("isp6", "2001:db8:1::2")
	n.expect("hosts", "[2001:db8:ffff::1]:80", "isp6 to 2001:db8:1::2")
	n.expect("isp6", "[2001:db8:1::2]:443", "hosts to 2001:db8:ffff::1")
	n.fails("isp6", "[2001:db8:1::2]:80", "permission denied") // adm-prohibited
	n.status("hosts", "http://[2001:db8:1::1]/")
	if out, err := n.ns["isp6"].Run("ping", "-n", "-c", "1", "-W", "10", "2001:db8:1:9::1"); err == nil || !strings.Contains(out, "From 2001:db8:ffff::2") {
		t.Errorf("the rest of our prefix:\n%s", out)
	}
}

// TestAllAreDriven: a new configuration needs a test.
func TestAllAreDriven(t *testing.T) {
	driven := map[string]bool{
		"home.toml": true, "edge.toml": true, "docker.toml": true, "policy-routing.toml": true, "ipv6-only.toml": true,
		"offline-pcap.toml": true, // by TestOffline in cmd/sluice, as an ordinary user
	}
	files, err := filepath.Glob("*.toml")
	if err != nil || len(files) != len(driven) {
		t.Errorf("%d configurations, and %d are driven: %v", len(files), len(driven), err)
	}
	for _, f := range files {
		if !driven[f] {
			t.Errorf("no test drives %s", f)
		}
	}
}
