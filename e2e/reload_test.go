package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/e2e/lab"
)

// held is a TCP connection through the router that answers what it is told.
type held struct {
	t *testing.T
	net.Conn
}

func hold(t *testing.T, b *bed, addr string) *held {
	t.Helper()
	ln := b.server.Listen(addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	h := &held{t, dial(t, b.client, "tcp", addr)}
	h.works("at first")
	return h
}

func (h *held) works(when string) {
	h.t.Helper()
	h.SetDeadline(time.Now().Add(deadline))
	if _, err := h.Write([]byte(when)); err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	buf := make([]byte, len(when))
	if _, err := io.ReadFull(h, buf); err != nil || string(buf) != when {
		h.t.Fatalf("%s: the connection gave %q, %v", when, buf, err)
	}
}

const reloadRules = `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment keep -j ACCEPT",
  "-A FORWARD -i lan0 -j ACCEPT",
]
`

// TestReload: by the tool and by SIGHUP; rules, routes, addresses and tunables
// change, connections and counters of rules that stay do not.
func TestReload(t *testing.T) {
	for name, reload := range map[string]func(*bed){
		"tool":   func(b *bed) { b.r.Must("reload") },
		"SIGHUP": func(b *bed) { b.r.Signal(syscall.SIGHUP) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, reloadRules)
			c := hold(t, b, "198.51.100.2:80")
			before := b.r.Counter("iptables-save", "keep")
			if before < 2 {
				t.Fatalf("the rule that stays counted %d packets", before)
			}
			reloads := func(n int) {
				t.Helper()
				reload(b)
				b.Eventually(deadline, fmt.Sprintf("reload %d", n), func() bool { return b.r.Status().Reloads == n })
				c.works(fmt.Sprintf("after reload %d", n))
			}
			reloads(1) // nothing changed
			if n := b.r.Counter("iptables-save", "keep"); n < before {
				t.Errorf("the counter of a rule that stays went from %d to %d", before, n)
			}
			b.r.Rewrite(strings.Replace(pair, `addresses = ["10.0.1.1/24", "fd00:1::1/64"]`, `addresses = ["10.0.1.1/24", "10.0.1.254/24", "fd00:1::1/64", "fd00:1::fe/64"]`, 1) +
				strings.Replace(reloadRules, `"-A FORWARD -i lan0 -j ACCEPT"`, `"-A FORWARD -p tcp --dport 81 -j REJECT", "-A FORWARD -i lan0 -j ACCEPT", "-A FORWARD -i wan0 -p icmp -j ACCEPT"`, 1) + `
[[route]]
to = "192.0.2.0/24"
type = "prohibit"
[[rule]]
to = "203.0.113.0/24"
type = "prohibit"
[sysctl]
"net.netfilter.nf_conntrack_max" = 1000
[[service]]
type = "echo"
listen = ["tcp://10.0.1.1:7"]
`)
			reloads(2)
			if n := b.r.Counter("iptables-save", "keep"); n < before+2 {
				t.Errorf("the counter of a rule that stays went from %d to %d", before, n)
			}
			if b.r.Counter("iptables-save", "--dport 81") != 0 || !strings.Contains(b.r.Must("sysctl", "net.netfilter.nf_conntrack_max"), "= 1000") {
				t.Errorf("after the reload:\n%s", b.r.Must("iptables-save"))
			}
			b.client.Must("ping", "-n", "-c", "1", "-W", "2", "10.0.1.254")
			b.client.Must("ping", "-n", "-c", "1", "-W", "2", "fd00:1::fe")
			for _, dst := range []string{"192.0.2.1", "203.0.113.1"} {
				if out := b.client.Fails("ping", "-n", "-c", "1", "-W", "2", dst); !strings.Contains(out, "Packet filtered") {
					t.Errorf("ping %s:\n%s", dst, out)
				}
			}
			if s, err := b.client.Dial("tcp", "10.0.1.1:7"); err != nil {
				t.Errorf("the new service: %v", err)
			} else {
				s.Close()
			}
			b.r.Rewrite(pair + reloadRules)
			reloads(3)
			b.client.Fails("ping", "-n", "-c", "1", "-W", "1", "10.0.1.254")
			if s, err := b.client.Dial("tcp", "10.0.1.1:7"); err == nil {
				s.Close()
				t.Error("a service that was removed still answers")
			}
			if strings.Contains(b.r.Must("iptables-save"), "--dport 81") || strings.Contains(b.r.Must("sysctl", "net.netfilter.nf_conntrack_max"), "= 1000") {
				t.Errorf("after the third reload:\n%s", b.r.Must("iptables-save"))
			}
		})
	}
}

// TestReloadInterfaces: one more interface, and one less.
func TestReloadInterfaces(t *testing.T) {
	b := newBed(t, reloadRules)
	third := b.NS("third")
	c := hold(t, b, "198.51.100.2:80")
	more := `
[[interface]]
name = "dmz0"
addresses = ["10.0.7.1/24", "fd00:7::1/64"]
  [interface.host]
  netns = "{ns:third}"
  addresses = ["10.0.7.2/24", "fd00:7::2/64"]
  routes = ["default via 10.0.7.1", "default via fd00:7::1"]
`
	for range 2 {
		b.r.Rewrite(pair + more + reloadRules)
		b.r.Must("reload")
		c.works("with one more interface")
		b.client.Must("ping", "-n", "-c", "1", "-W", "2", "10.0.7.2")
		b.client.Must("ping", "-n", "-c", "1", "-W", "2", "fd00:7::2")
		b.r.Rewrite(pair + reloadRules)
		b.r.Must("reload")
		c.works("with one less")
		if out := third.Must("ip", "-br", "link"); strings.Contains(out, "dmz0") {
			t.Errorf("the device is still there:\n%s", out)
		}
		if out := b.client.Fails("ping", "-n", "-c", "1", "-W", "2", "10.0.7.2"); !strings.Contains(out, "Net Unreachable") {
			t.Errorf("ping of a network that was removed:\n%s", out)
		}
	}
	// What cannot be had changes nothing: a namespace that is not there.
	b.r.Rewrite(pair + strings.ReplaceAll(more, "{ns:third}", "{ns:nowhere}") + reloadRules + "[ip6tables.filter]\nrules = [\"-A FORWARD -j DROP\"]\n")
	if _, errs, code := b.r.Tool("reload"); code != 1 || !regexp.MustCompile(`router\.toml:\d+`).MatchString(errs) || !strings.Contains(errs, "nowhere") {
		t.Errorf("a namespace that is not there: exit status %d, %q", code, errs)
	}
	c.works("after a reload that failed")
	if strings.Contains(b.r.Must("ip6tables-save"), "-j DROP") {
		t.Error("a failed reload changed rules")
	}
}

// TestReloadDevice: a reload changes an MTU and the kernel's end, and what the
// device carries goes on.
func TestReloadDevice(t *testing.T) {
	b := newBed(t, reloadRules)
	c := hold(t, b, "198.51.100.2:80")
	b.r.Rewrite(strings.NewReplacer(`name      = "wan0"`, "name = \"wan0\"\nmtu = 1300",
		`addresses = ["198.51.100.2/24", "fd00:2::2/64"]`, `addresses = ["198.51.100.2/24", "198.51.100.22/24", "fd00:2::2/64"]`).Replace(pair) + reloadRules)
	b.r.Must("reload")
	c.works("with another MTU")
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.22")
	b.r.Rewrite(strings.Replace(pair, `name      = "wan0"`, "name = \"wan0\"\nmtu = 1300", 1) + reloadRules)
	b.r.Must("reload")
	c.works("with one address less")
	if out := b.server.Must("ip", "addr", "show", "wan0"); strings.Contains(out, "198.51.100.22/") || !strings.Contains(out, "198.51.100.2/24") {
		t.Errorf("the kernel's end after its second address was taken out of the configuration:\n%s", out)
	}
	if out := b.server.Must("ip", "link", "show", "wan0"); !strings.Contains(out, "mtu 1300") {
		t.Errorf("the kernel's end:\n%s", out)
	}
	if out, _ := b.client.Run("ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", "1400", "198.51.100.2"); !strings.Contains(out, "mtu = 1300") {
		t.Errorf("no fragmentation needed:\n%s", out)
	}
	// What would need another device says so, and where.
	b.r.Rewrite(strings.Replace(pair, `name      = "wan0"`, "name = \"wan0\"\noffload = false", 1) + reloadRules)
	if _, errs, code := b.r.Tool("reload"); code != 1 || !regexp.MustCompile(`router\.toml:\d+:\d+: .*wan0`).MatchString(errs) {
		t.Errorf("offload changed: exit status %d, %q", code, errs)
	}
	c.works("after a reload that was refused")
}

// TestReloadNamespace: a namespace is deleted and made anew under the router; a
// reload makes the device in the new one.
func TestReloadNamespace(t *testing.T) {
	b := newBed(t, reloadRules)
	for range 2 {
		b.server.Replace()
		b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2") // the old one is still there
		b.r.Must("reload")
		b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2")
		b.server.Must("ip", "link", "show", "wan0")
	}
	b.server.Remove()
	if _, errs, code := b.r.Tool("reload"); code != 1 || !strings.Contains(errs, "ip netns add "+b.server.Name) {
		t.Errorf("without the namespace: exit status %d, %q", code, errs)
	}
}

// TestReloadError: a configuration with an error changes nothing, and the error says where it is.
func TestReloadError(t *testing.T) {
	b := newBed(t, reloadRules)
	c := hold(t, b, "198.51.100.2:80")
	rules := b.r.Must("iptables-save")
	good := b.Expand(pair + reloadRules + "[control]\nsocket = \"{dir}/sluice.sock\"\n")
	b.File("bad.rules", "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp --dport nonsense -j ACCEPT\nCOMMIT\n")
	for name, x := range map[string]struct{ text, at, want string }{
		"syntax":         {good + "[[interface\n", "[[interface\n", ""},
		"unknown key":    {strings.Replace(good, "[iptables.nat]", "[iptables.nat]\ncolour = \"red\"", 1), "colour", "colour"},
		"bad address":    {strings.Replace(good, "10.0.1.1/24", "10.0.1.1/99", 1), "10.0.1.1/99", "10.0.1.1/99"},
		"bad rule":       {strings.Replace(good, "-i lan0 -j ACCEPT", "-i lan0 --no-such-option -j ACCEPT", 1), "--no-such-option", "--no-such-option"},
		"no such chain":  {strings.Replace(good, "-i lan0 -j ACCEPT", "-i lan0 -j NOWHERE", 1), "-i lan0 -j NOWHERE", "NOWHERE"},
		"DROP in nat":    {strings.Replace(good, "-o wan0 -j MASQUERADE", "-o wan0 -j DROP", 1), "-o wan0 -j DROP", ""},
		"bad route":      {good + "[[route]]\nto = \"default\"\nvia = \"192.0.2.99\"\n", "[[route]]", ""},
		"unknown sysctl": {good + "[sysctl]\n\"net.ipv4.no_such\" = 1\n", "net.ipv4.no_such", "net.ipv4.no_such"},
		"taken socket":   {good + "[[service]]\ntype = \"echo\"\nlisten = [\"tcp://192.0.2.55:7\"]\n", "192.0.2.55", ""},
		"double name":    {good + "[[interface]]\nname = \"lan0\"\n", "[[interface]]\nname = \"lan0\"\n", "lan0"},
	} {
		if err := os.WriteFile(b.r.Config, []byte(x.text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, errs, code := b.r.Tool("reload")
		where := regexp.MustCompile(`router\.toml:(\d+):(\d+): `).FindStringSubmatch(errs)
		if code != 1 || out != "" || where == nil || !strings.Contains(errs, x.want) {
			t.Errorf("%s: exit status %d, %q, %q", name, code, out, errs)
			continue
		}
		if at := strings.LastIndex(x.text, x.at); at >= 0 && name != "syntax" {
			n := 0
			fmt.Sscan(where[1], &n)
			if want := strings.Count(x.text[:at], "\n") + 1; n < want || n > want+2 {
				t.Errorf("%s: reported in line %d, is in line %d: %s", name, n, want, errs)
			}
		}
	}
	// In a file of rules: its own name and line.
	os.WriteFile(b.r.Config, []byte(good+"[iptables]\nrestore = [\"bad.rules\"]\n"), 0o644)
	if _, errs, code := b.r.Tool("reload"); code != 1 || !regexp.MustCompile(`bad\.rules:3:\d+: .*nonsense`).MatchString(errs) {
		t.Errorf("a bad rule in a file: exit status %d, %q", code, errs)
	}
	// The same by signal: in the log.
	b.r.Signal(syscall.SIGHUP)
	b.r.Expect("bad.rules:3:", deadline)
	if out, errs, code := b.r.Tool("check", "-c", b.r.Config); code != 1 || !strings.Contains(out+errs, "bad.rules:3:") {
		t.Errorf("check: exit status %d, %q, %q", code, out, errs)
	}
	c.works("after all that")
	date := regexp.MustCompile(`(?m)^#.*$|\[\d+:\d+\]`)
	if now := b.r.Must("iptables-save"); date.ReplaceAllString(now, "") != date.ReplaceAllString(rules, "") {
		t.Errorf("the rules changed:\n%s\nto\n%s", rules, now)
	}
	if n := b.r.Status().Reloads; n != 0 {
		t.Errorf("%d reloads", n)
	}
	os.WriteFile(b.r.Config, []byte(good), 0o644)
	b.r.Must("reload")
	c.works("after a good reload")
}

// TestHotRemoval: a device is taken away under the router; the rest goes on, and
// a reload brings it back.
func TestHotRemoval(t *testing.T) {
	b := newBed(t, "")
	third := b.NS("third")
	b.r.Rewrite(pair + `
[[interface]]
name = "dmz0"
addresses = ["10.0.7.1/24"]
  [interface.host]
  netns = "{ns:third}"
  addresses = ["10.0.7.2/24"]
  routes = ["default via 10.0.7.1"]
`)
	b.r.Must("reload")
	c := hold(t, b, "198.51.100.2:80")
	for range 3 {
		flood := b.client.Start("ping", "-n", "-q", "-i", "0.002", "10.0.7.2")
		b.client.Must("ping", "-n", "-c", "1", "-W", "2", "10.0.7.2")
		third.Must("ip", "link", "del", "dmz0")
		b.Eventually(deadline, "the router to notice", func() bool {
			for _, i := range b.r.Status().Interfaces {
				if i.Name == "dmz0" {
					return i.State == "gone"
				}
			}
			return false
		})
		c.works("with a device gone")
		flood.Stop()
		b.client.Fails("ping", "-n", "-c", "1", "-W", "1", "10.0.7.2")
		b.r.AwaitDropped("ip.no_route", 1)
		b.r.Must("reload")
		b.client.Must("ping", "-n", "-c", "1", "-W", "2", "10.0.7.2")
		c.works("with the device back")
	}
}

// TestEnd: SIGTERM and SIGINT end the router with nothing left behind.
func TestEnd(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, services)
			c := hold(t, b, "198.51.100.2:80")
			b.client.Start("ping", "-n", "-q", "-i", "0.002", "198.51.100.2")
			if out := b.r.Must("ps"); !strings.Contains(out, b.r.Socket) {
				t.Errorf("ps:\n%s", out)
			}
			c.works("before the end")
			b.r.Signal(sig)
			if err := b.r.Wait(deadline); err != nil {
				t.Errorf("ended with %v:\n%s", err, b.r.Output())
			}
			nothingLeft(t, b)
			if _, err := os.Stat(b.r.Socket); !os.IsNotExist(err) {
				t.Errorf("the socket: %v", err)
			}
			if _, errs, code := b.r.Tool("status"); code != 1 || !strings.Contains(errs, b.r.Socket) {
				t.Errorf("status without a router: exit status %d, %q", code, errs)
			}
		})
	}
}

// TestKilled: after SIGKILL the kernel takes the devices away, and a new router starts in the same place.
func TestKilled(t *testing.T) {
	b := newBed(t, "")
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2")
	b.r.Signal(syscall.SIGKILL)
	b.r.Wait(deadline)
	nothingLeft(t, b)
	b.r = b.Sluice(pair)
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2")
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "fd00:2::2")
	// A second one there is refused, and does the first no harm.
	second := b.SluiceCommand(pair, nil)
	if err := second.Wait(deadline); err == nil || !strings.Contains(second.Output(), "already") {
		t.Errorf("a second router on the socket: %v\n%s", err, second.Output())
	}
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2")
}

func nothingLeft(t *testing.T, b *bed) {
	t.Helper()
	for _, ns := range []*lab.NS{b.client, b.server} {
		b.Eventually(deadline, "the devices to go", func() bool {
			out := ns.Must("ip", "-br", "link") + ns.Must("ip", "-br", "addr") + ns.Must("ip", "route") + ns.Must("ip", "-6", "route")
			return !strings.Contains(out, "lan0") && !strings.Contains(out, "wan0")
		})
	}
}
