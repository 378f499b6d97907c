package e2e

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestReloadSets: reloads change what a set has while the client talks to what
// is in it before and after: nothing is lost, new elements count at once, those
// that are gone do not any more, and a set that stays as it is keeps what was
// added to it at run time.
func TestReloadSets(t *testing.T) {
	for name, x := range setFamilies {
		t.Run(name, func(t *testing.T) {
			config := func(servers ...string) string {
				return fmt.Sprintf(`
[[set]]
name    = "servers"
type    = "hash:ip"
family  = %[1]q
entries = ["%[2]s"]
[[set]]
name    = "clients"
type    = "hash:net"
family  = %[1]q
[[set]]
name    = "both"
type    = "list:set"
entries = ["servers"]
[%[3]s.filter]
rules = [
  "-A FORWARD -i lan0 -m set ! --match-set clients src -j DROP",
  "-A FORWARD -i lan0 -m set ! --match-set both dst -j DROP",
]
`, x.family, strings.Join(servers, `", "`), x.tool)
			}
			b := newBed(t, config(x.server))
			bits := map[string]string{"inet": "/24", "inet6": "/64"}[x.family]
			b.server.Must("ip", "addr", "add", x.other+bits, "dev", "wan0", "nodad")
			b.r.Must("ipset", "add", "clients", x.client)
			c := hold(t, b, net.JoinHostPort(x.server, "81"))
			f := flow(b, x.server)
			f.goesOn("before")
			rule := func(set string) int { return b.r.Counter(x.tool+"-save", "--match-set "+set) }
			reloads := func(servers ...string) {
				t.Helper()
				b.r.Rewrite(pair + config(servers...))
				b.r.Must("reload")
			}
			reaches := func(addr string, want bool, when string) {
				t.Helper()
				n := rule("both")
				if want {
					b.client.Must("ping", "-n", "-c", "1", "-W", "5", addr)
				} else {
					b.client.Fails("ping", "-n", "-c", "1", "-W", "0.3", addr)
					n++
				}
				if now := rule("both"); now != n {
					t.Errorf("%s: %s: %d packets dropped, not %d", when, addr, now, n)
				}
			}
			reaches(x.other, false, "before")
			for i := range 5 {
				reloads(x.server, x.other)
				reaches(x.other, true, "with one more")
				reloads(x.server)
				reaches(x.other, false, "with one less")
				f.goesOn(fmt.Sprintf("two reloads, %d", i))
				c.works("after reloads")
			}
			long := []string{x.server}
			for i := range 5000 {
				long = append(long, fmt.Sprintf(map[string]string{"inet": "203.0.%d.%d", "inet6": "fd00:99::%x:%x"}[x.family], i/250, i%250))
			}
			reloads(append(long, x.other)...)
			reaches(x.other, true, "with a long list")
			f.goesOn("a long list")
			c.works("with a long list")
			if n := rule("clients"); n != 0 {
				t.Errorf("the set that stays lost its element: %d packets dropped", n)
			}
			f.end()

			// Without the server the connection that is there stops, and goes on when it is back.
			n := rule("both")
			reloads(x.other)
			reaches(x.other, true, "without the server")
			if rule("both") != n {
				t.Errorf("%d packets dropped, not %d", rule("both"), n)
			}
			if _, err := c.Write([]byte("held up")); err != nil {
				t.Fatal(err)
			}
			b.Eventually(deadline, "the connection's packets to be dropped", func() bool { return rule("both") > n })
			reloads(x.server)
			got := make([]byte, len("held up"))
			c.SetDeadline(time.Now().Add(3 * deadline))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "held up" {
				t.Errorf("after the server is back: %q, %v", got, err)
			}
		})
	}
}

// TestReloadTimeouts: reloads change a timeout policy, and take it away, while
// the client talks: the policy of now is in force for connections that are new
// and for the one that goes on.
func TestReloadTimeouts(t *testing.T) {
	for name, x := range setFamilies {
		t.Run(name, func(t *testing.T) {
			// config has the policies with so many seconds, which are far from each other
			// and from the defaults: how long a test takes does not matter.
			config := func(udp, tcp int) string {
				return fmt.Sprintf(`
[[timeout]]
name     = "talk"
family   = %[1]q
protocol = "udp"
policy   = { unreplied = %[2]d, replied = %[2]d }
[[timeout]]
name     = "transfer"
family   = %[1]q
protocol = "tcp"
policy   = { established = %[3]d, unacknowledged = %[3]d }
[%[4]s.raw]
rules = [
  "-A PREROUTING -i lan0 -p udp -j CT --timeout talk",
  "-A PREROUTING -i lan0 -p tcp --dport 81 -j CT --timeout transfer",
]
`, x.family, udp, tcp, x.tool)
			}
			b := newBed(t, config(5000, 20000))
			c := hold(t, b, net.JoinHostPort(x.server, "81"))
			f := flow(b, x.server)
			f.goesOn("before")
			old := dial(t, b.client, "udp", net.JoinHostPort(x.server, "9000"))
			exchange(t, old, "before")
			// within waits until a connection's timeout is in a policy's bounds.
			within := func(when string, conn net.Conn, low, high int) {
				t.Helper()
				proto := conn.LocalAddr().Network()
				_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
				line := regexp.MustCompile(`(?m)^` + proto + ` +\d+ (\d+) .*$`)
				out, ok := "", false
				b.Eventually(deadline, fmt.Sprintf("%s: a timeout of %s port %s in (%d, %d]", when, proto, port, low, high), func() bool {
					out = b.r.Must("conntrack", "-L", "-f", map[string]string{"inet": "ipv4", "inet6": "ipv6"}[x.family], "-p", proto, "--orig-port-src", port)
					if m := line.FindStringSubmatch(out); m != nil {
						n, _ := strconv.Atoi(m[1])
						ok = low < n && n <= high
					}
					return ok
				})
			}
			fresh := func(when string, low, high int) {
				t.Helper()
				d := dial(t, b.client, "udp", net.JoinHostPort(x.server, "9000"))
				exchange(t, d, when)
				within(when, d, low, high)
			}
			reloads := func(when, text string) {
				t.Helper()
				b.r.Rewrite(pair + text)
				b.r.Must("reload")
				f.goesOn(when)
				c.works(when)
			}
			fresh("at first", 4000, 5000)
			within("at first", c, 19000, 20000)

			reloads("longer", config(9000, 40000))
			fresh("longer", 8000, 9000)
			exchange(t, old, "longer")
			within("longer", old, 8000, 9000)
			within("longer", c, 39000, 40000)

			reloads("shorter", config(2000, 7000))
			fresh("shorter", 1000, 2000)
			exchange(t, old, "shorter")
			within("shorter", old, 1000, 2000)
			within("shorter", c, 6000, 7000)

			// A reload that fails leaves the policies as they are.
			b.r.Rewrite(pair + strings.Replace(config(3000, 3000), "{ established", "{ dreaming", 1))
			if _, errs, code := b.r.Tool("reload"); code != 1 || !strings.Contains(errs, "dreaming") {
				t.Errorf("a state that there is not: exit status %d, %q", code, errs)
			}
			fresh("after an error", 1000, 2000)

			reloads("without policies", "")
			fresh("without policies", 0, 180)
			exchange(t, old, "without policies")
			within("without policies", old, 0, 180)
			within("without policies", c, 400000, 432000)
			if out := b.r.Must("nfct", "list", "timeout"); out != "" {
				t.Errorf("policies that the configuration does not have:\n%s", out)
			}
		})
	}
}
