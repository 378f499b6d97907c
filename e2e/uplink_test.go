package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sluice/e2e/lab"
)

// hostBed is a client behind a router that runs in a namespace called "host",
// and reaches its sockets. The host's addresses stand for the internet.
func hostBed(t *testing.T, config string) (l *lab.Lab, host, client *lab.NS, r *lab.Sluice) {
	t.Helper()
	l = lab.New(t)
	l.Need("setpriv")
	host, client = l.NS("host"), l.NS("client")
	for _, a := range []string{"203.0.113.1/32", "2001:db8:1::1/128"} {
		host.Must("ip", "addr", "add", a, "dev", "lo")
	}
	r = l.SluiceCommand(config, []string{"ip", "netns", "exec", host.Name})
	r.Expect("sluice: ready", 20*time.Second)
	return l, host, client, r
}

const uplinkConfig = `
[[interface]]
name      = "exec0"
addresses = ["10.0.2.1/24", "fd00:2::1/64"]
mtu       = 65520
  [interface.host]
  netns     = "{ns:client}"
  addresses = ["10.0.2.2/24", "fd00:2::2/64"]
  routes    = ["default via 10.0.2.1", "default via fd00:2::1"]
[[interface]]
name = "uplink0"
type = "uplink"
[[route]]
to  = "0.0.0.0/0"
dev = "uplink0"
[[route]]
to  = "::/0"
dev = "uplink0"
`

// TestUplink: real programs reach the host's network through its sockets.
func TestUplink(t *testing.T) {
	t.Parallel()
	l, host, client, r := hostBed(t, uplinkConfig+`
[iptables.filter]
rules = ["-A FORWARD -i exec0 -o uplink0 -p tcp -m conntrack --ctstate NEW", "-A FORWARD -i uplink0 -o exec0 -p tcp -m conntrack --ctstate ESTABLISHED"]
`)
	l.Need("curl", "ping", "iperf3", "nc")
	for _, at := range []string{"203.0.113.1", "[2001:db8:1::1]"} {
		site(t, host, at+":80", "hello\n")
		echo(host, at+":7")
		if out := client.Must("curl", "-sS", "-g", "--max-time", "10", "http://"+at+"/"); out != "hello\n" {
			t.Errorf("curl http://%s/: %q", at, out)
		}
		refused(t, client, at+":81", syscall.ECONNREFUSED)
		client.Must("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", strings.Trim(at, "[]"))
		client.Must("ping", "-n", "-c", "1", "-s", "20000", "-W", "5", strings.Trim(at, "[]"))
		c, err := client.Dial("udp", at+":7")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(deadline))
		buf := make([]byte, 65536)
		for _, n := range []int{0, 100, 30000} {
			c.Write(buf[:n])
			if k, err := c.Read(buf); err != nil || k != n {
				t.Errorf("%d bytes over UDP to %s: %d, %v", n, at, k, err)
			}
		}
		// A closed UDP port says so.
		u, err := client.Dial("udp", at+":9")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.SetDeadline(time.Now().Add(deadline))
		u.Write([]byte("x"))
		if _, err := u.Read(buf); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a closed UDP port: %v", err)
		}
	}
	// Where the host has no route, it is the network that says so.
	refused(t, client, "198.18.0.1:80", syscall.ENETUNREACH)
	if out := client.Fails("ping", "-n", "-c", "1", "-W", "5", "198.18.0.1"); !strings.Contains(out, "Net Unreachable") {
		t.Errorf("ping without a route:\n%s", out)
	}
	// The host's loopback is not there, in no disguise.
	say(host, "127.0.0.1:82", "secret")
	say(host, "[::1]:82", "secret")
	for _, at := range []string{"[::ffff:127.0.0.1]:82", "0.0.0.0:82", "10.0.2.1:82", "10.0.2.254:82", "[fd00:2::1]:82"} {
		if got, err := hear(client, at); err == nil {
			t.Errorf("%s says %q", at, got)
		}
	}
	// Half-close: the far end still answers.
	go func() {
		ln := host.Listen("203.0.113.1:83")
		c, err := ln.Accept()
		if err != nil {
			return
		}
		in, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes", len(in))
		c.Close()
	}()
	l.Eventually(deadline, "an answer after the end", func() bool {
		out, err := client.Run("sh", "-c", "head -c 3000000 /dev/zero | timeout 20 nc -N -w 10 203.0.113.1 83")
		return err == nil && out == "3000000 bytes"
	})
	host.Start("iperf3", "-s", "-1", "-p", "5201")
	l.Eventually(deadline, "iperf3 to send", func() bool {
		_, err := client.Run("iperf3", "-c", "203.0.113.1", "-n", "200M", "-P", "2")
		return err == nil
	})
	host.Start("iperf3", "-s", "-1", "-p", "5202")
	l.Eventually(deadline, "iperf3 to receive", func() bool {
		_, err := client.Run("iperf3", "-c", "2001:db8:1::1", "-p", "5202", "-n", "200M", "-P", "2", "-R")
		return err == nil
	})
	if n := r.Counter("iptables-save", "--ctstate NEW"); n < 3 {
		t.Errorf("FORWARD has seen %d new connections to the uplink", n)
	}
	if n := r.Counter("iptables-save", "--ctstate ESTABLISHED"); n < 3 {
		t.Errorf("FORWARD has seen %d packets of them come back", n)
	}
}

// TestPublish: connections to host ports arrive as packets, from their peers.
func TestPublish(t *testing.T) {
	t.Parallel()
	l, host, client, r := hostBed(t, uplinkConfig+`
[[publish]]
listen = "0.0.0.0:8080"
to     = "10.0.2.2:80"
[[publish]]
listen = "udp://0.0.0.0:8080"
to     = "10.0.2.2:80"
[iptables.mangle]
rules = ["-A PREROUTING -i uplink0 -s 203.0.113.1 -p tcp --dport 80 --syn", '-A FORWARD -i uplink0 -s 10.0.2.1 -p tcp --syn -j LOG --log-prefix "in: "']
[iptables.filter]
rules = ["-A FORWARD -i uplink0 -o exec0 -p tcp --dport 81 -j DROP"]
`)
	serve(client, "10.0.2.2:80")
	echo(client, "10.0.2.2:80")
	l.Need("curl")
	for _, c := range []struct{ to, from string }{{"203.0.113.1:8080", "203.0.113.1"}, {"127.0.0.1:8080", "10.0.2.1"}} {
		got, err := hear(host, c.to)
		if at, _, e := net.SplitHostPort(got); err != nil || e != nil || at != c.from {
			t.Errorf("who connects to %s comes from %q (%v), not %s", c.to, got, err, c.from)
		}
		u, err := host.Dial("udp", c.to)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.SetDeadline(time.Now().Add(deadline))
		fmt.Fprint(u, "there and back")
		buf := make([]byte, 100)
		if n, err := u.Read(buf); err != nil || string(buf[:n]) != "there and back" {
			t.Errorf("UDP to %s: %q, %v", c.to, buf[:n], err)
		}
	}
	r.Expect(" PEER=127.0.0.1:", deadline) // who appears as the router
	if n := r.Counter("iptables-save", "--tcp-flags"); n != 1 {
		t.Errorf("PREROUTING saw %d SYNs from 203.0.113.1, not 1", n)
	}
	// A reload takes a port back, and one in use changes nothing.
	r.Rewrite(uplinkConfig + "[[publish]]\nlisten = \"0.0.0.0:8081\"\nto = \"10.0.2.2:80\"\n")
	r.Must("reload")
	refused(t, host, "203.0.113.1:8080", syscall.ECONNREFUSED)
	if _, err := hear(host, "203.0.113.1:8081"); err != nil {
		t.Error(err)
	}
	host.Listen("0.0.0.0:8082")
	r.Rewrite(uplinkConfig + "[[publish]]\nlisten = \"0.0.0.0:8082\"\nto = \"10.0.2.2:80\"\n")
	if _, errs, code := r.Tool("reload"); code == 0 || !strings.Contains(errs, "address already in use") {
		t.Errorf("a port in use: %d, %s", code, errs)
	}
	if _, err := hear(host, "203.0.113.1:8081"); err != nil {
		t.Error(err)
	}
}

// site is a web server with one text.
func site(t *testing.T, ns *lab.NS, addr, text string) {
	t.Helper()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })}
	go s.Serve(ns.Listen(addr))
	t.Cleanup(func() { s.Close() })
}

// zone serves records over UDP and TCP in a namespace.
func zone(t *testing.T, ns *lab.NS, addr string, records ...string) {
	t.Helper()
	mux := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		a.Rcode = dns.RcodeNameError
		for _, s := range records {
			rr, err := dns.NewRR(s)
			if err == nil && strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				a.Rcode = dns.RcodeSuccess
				if rr.Header().Rrtype == q.Question[0].Qtype {
					a.Answer = append(a.Answer, rr)
				}
			}
		}
		w.WriteMsg(a)
	})
	for _, s := range []*dns.Server{{PacketConn: ns.ListenPacket(addr), Handler: mux}, {Listener: ns.Listen(addr), Handler: mux}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
}

// TestUplinkConfig runs configs/uplink.toml: resolver, published port, proxy, host loopback.
func TestUplinkConfig(t *testing.T) {
	t.Parallel()
	l0 := lab.New(t)
	config := example(t, l0, "uplink.toml")
	config = strings.Replace(config, "[dns]\n", "[dns]\nservers = [\"203.0.113.1\"]\n", 1)
	l, host, client, _ := hostBed(t, config)
	l.Need("curl", "dig", "nc")
	zone(t, host, "203.0.113.1:53", "www.example.test. 60 IN A 203.0.113.1", "www.example.test. 60 IN AAAA 2001:db8:1::1")
	for _, c := range [][2]string{{"@10.0.2.1", "A"}, {"@fd00:2::1", "AAAA"}} {
		for _, how := range []string{"+notcp", "+tcp", "+noedns"} {
			out := client.Must("dig", c[0], how, "+short", "+time=5", "www.example.test", c[1])
			if want := map[string]string{"A": "203.0.113.1\n", "AAAA": "2001:db8:1::1\n"}[c[1]]; out != want {
				t.Errorf("dig %s %s: %q, not %q", c[0], how, out, want)
			}
		}
	}
	if out := client.Must("dig", "@10.0.2.1", "nothing.example.test"); !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("an unknown name:\n%s", out)
	}
	for _, at := range []string{"203.0.113.1:80", "[2001:db8:1::1]:80", "203.0.113.1:25"} {
		site(t, host, at, "hello\n")
	}
	for _, url := range []string{"http://203.0.113.1/", "http://[2001:db8:1::1]/"} {
		if out := client.Must("curl", "-sS", "-g", "--max-time", "10", url); out != "hello\n" {
			t.Errorf("%s: %q", url, out)
		}
	}
	refused(t, client, "203.0.113.1:25", syscall.EHOSTUNREACH)
	say(host, "127.0.0.1:8000", "opened")
	say(host, "127.0.0.1:8001", "not opened")
	if got, err := hear(client, "10.0.2.254:8000"); err != nil || got != "opened" {
		t.Errorf("the host's loopback: %q, %v", got, err)
	}
	refused(t, client, "10.0.2.254:8001", syscall.ECONNREFUSED)
	serve(client, "10.0.2.2:80")
	if _, err := hear(host, "203.0.113.1:8080"); err != nil {
		t.Error(err)
	}
	// The proxy's connections are the router's, and belong to who asked.
	if out := host.Must("curl", "-sS", "--max-time", "10", "-x", "socks5h://127.0.0.1:1080", "http://www.example.test/"); out != "hello\n" {
		t.Errorf("through the proxy: %q", out)
	}
	if out, err := host.Run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "--max-time", "10", "-x", "socks5h://127.0.0.1:1080", "http://203.0.113.1/"); err == nil || !strings.Contains(out, "refused") && !strings.Contains(out, "SOCKS5") {
		t.Errorf("uid 65534 through the proxy: %v\n%s", err, out)
	}
}

// TestProxyOwner: rules tell the users of a proxy on a Unix socket apart.
func TestProxyOwner(t *testing.T) {
	t.Parallel()
	l, host, _, r := hostBed(t, uplinkConfig+`
[[proxy]]
listen = "unix://{dir}/socks.sock"
type   = "socks5"
[[proxy]]
listen = "unix://{dir}/http.sock"
type   = "http"
[[proxy]]
listen = "203.0.113.1:3128"
type   = "http"
[iptables.filter]
rules = ["-A OUTPUT -o uplink0 -m owner --uid-owner 65534 --gid-owner 65533 -j ACCEPT", "-A OUTPUT -o uplink0 -p tcp -j REJECT --reject-with tcp-reset"]
`)
	l.Need("curl", "setpriv")
	site(t, host, "203.0.113.1:80", "hello\n")
	for _, s := range []string{"socks.sock", "http.sock"} {
		if err := os.Chmod(l.Dir+"/"+s, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	as := func(uid, gid string, args ...string) (string, error) {
		return host.Run(append([]string{"setpriv", "--reuid=" + uid, "--regid=" + gid, "--clear-groups", "curl", "-sS", "-f", "--max-time", "10"}, args...)...)
	}
	socks := []string{"-x", "socks5://localhost" + l.Dir + "/socks.sock", "http://203.0.113.1/"}
	if out, err := as("65534", "65533", socks...); err != nil || out != "hello\n" {
		t.Errorf("the user who may: %v, %q", err, out)
	}
	if out, err := as("65533", "65533", socks...); err == nil {
		t.Errorf("another user: %q", out)
	}
	// A peer that is no local socket, or only a TCP one without a gid, does not match.
	if out, err := as("65534", "65533", "-x", "http://203.0.113.1:3128", "http://203.0.113.1/"); err == nil {
		t.Errorf("over TCP: %q", out)
	}
	if n := r.Counter("iptables-save", "tcp-reset"); n < 2 {
		t.Errorf("the rule has met %d packets", n)
	}
}

// TestAllowList: what names on the list resolve to can be reached, as long as
// the answer holds, and nothing else.
func TestAllowList(t *testing.T) {
	t.Parallel()
	l, host, client, r := hostBed(t, uplinkConfig+`
[dns]
listen  = ["10.0.2.1:53"]
servers = ["203.0.113.1"]
allow   = ["good.test:80", "*.wild.test", "203.0.113.5:22"]
grace   = "2s"
strict  = true
[iptables.filter]
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
  "-A FORWARD -o uplink0 -m set --match-set allowed dst -j ACCEPT",
  "-A FORWARD -o uplink0 -m set --match-set allowed-port dst,dst -j ACCEPT",
  '-A FORWARD -o uplink0 -j LOG --log-prefix "denied: "',
  "-A FORWARD -o uplink0 -j REJECT",
]
`)
	l.Need("curl", "dig")
	for _, a := range []string{"203.0.113.2/32", "203.0.113.3/32", "203.0.113.4/32", "203.0.113.5/32"} {
		host.Must("ip", "addr", "add", a, "dev", "lo")
	}
	zone(t, host, "203.0.113.1:53", "good.test. 1 IN A 203.0.113.2", "a.wild.test. 300 IN A 203.0.113.3", "bad.test. 300 IN A 203.0.113.4")
	for _, at := range []string{"203.0.113.2:80", "203.0.113.2:81", "203.0.113.3:80", "203.0.113.3:81", "203.0.113.4:80", "203.0.113.5:22"} {
		site(t, host, at, "hello\n")
	}
	refused(t, client, "203.0.113.2:80", syscall.ECONNREFUSED) // nobody has asked yet
	lookup := func(name, want string) {
		t.Helper()
		if out := client.Must("dig", "@10.0.2.1", "+time=5", name); !strings.Contains(out, want) {
			t.Errorf("%s is not %s:\n%s", name, want, out)
		}
	}
	lookup("bad.test", "REFUSED")
	lookup("good.test", "203.0.113.2")
	lookup("a.wild.test", "203.0.113.3")
	get := func(addr, name string) (string, error) {
		return client.Run("curl", "-sS", "--max-time", "10", "-H", "Host: "+name, "http://"+addr+"/")
	}
	for _, c := range [][2]string{{"203.0.113.2:80", "good.test"}, {"203.0.113.3:80", "a.wild.test"}, {"203.0.113.3:81", "anything"}, {"203.0.113.5:22", "x"}} {
		if c[0] == "203.0.113.2:80" {
			lookup("good.test", "203.0.113.2")
		}
		if out, err := get(c[0], c[1]); err != nil || out != "hello\n" {
			t.Errorf("%s at %s: %v, %q", c[1], c[0], err, out)
		}
	}
	// An allowed address with a name that is not: the connection ends.
	if out, err := get("203.0.113.3:80", "bad.test"); err == nil {
		t.Errorf("a denied name at an allowed address says %q", out)
	}
	refused(t, client, "203.0.113.2:81", syscall.ECONNREFUSED)
	refused(t, client, "203.0.113.4:80", syscall.ECONNREFUSED)
	refused(t, client, "203.0.113.5:80", syscall.ECONNREFUSED)
	r.Expect("name refused", deadline)
	r.Expect("connection denied", deadline)
	// A connection that is there outlives its name.
	lookup("good.test", "203.0.113.2")
	c, err := client.Dial("tcp", "203.0.113.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * deadline))
	l.Eventually(deadline, "the address to be forgotten", func() bool {
		return !strings.Contains(r.Must("ipset", "list", "allowed-port"), "203.0.113.2")
	})
	refused(t, client, "203.0.113.2:80", syscall.ECONNREFUSED)
	io.WriteString(c, "GET / HTTP/1.0\r\nHost: good.test\r\n\r\n")
	if got, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(got), "hello\n") {
		t.Errorf("the connection that was there: %q, %v", got, err)
	}
}
