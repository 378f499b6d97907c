package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// synproxyRules is how iptables-extensions(8) has SYNPROXY used, here for a
// server behind the router and for the router itself.
const synproxyRules = `
  "-A INPUT -p tcp --dport 80 -m state --state INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460",
  "-A INPUT -m state --state INVALID -j DROP",
  "-A FORWARD -p tcp --dport 80 -m state --state INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460",
  "-A FORWARD -m state --state INVALID -j DROP",
`

// TestSYNPROXY: real clients reach real servers through SYNPROXY, and a flood of
// SYNs leaves no connections behind.
func TestSYNPROXY(t *testing.T) {
	b := newBed(t, `
[[service]]
type   = "http"
listen = ["tcp://[::]:80"]

[iptables.raw]
rules = [ "-A PREROUTING -p tcp --dport 80 --syn -j CT --notrack" ]
[iptables.filter]
rules = [`+synproxyRules+`]
[ip6tables.raw]
rules = [ "-A PREROUTING -p tcp --dport 80 --syn -j CT --notrack" ]
[ip6tables.filter]
rules = [`+synproxyRules+`]

[sysctl]
"net.netfilter.nf_conntrack_tcp_loose" = 0
`)
	b.Need("curl")
	const size = 4 << 20
	body := strings.Repeat("0123456789abcdef", size/16)
	for _, addr := range []string{"198.51.100.2:80", "[fd00:2::2]:80"} {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { fmt.Fprint(w, body) })}
		go srv.Serve(b.server.Listen(addr))
		t.Cleanup(func() { srv.Close() })
	}
	fetch := func(when string) {
		t.Helper()
		for _, url := range []string{"http://198.51.100.2/", "http://[fd00:2::2]/"} {
			if out := b.client.Must("curl", "-sS", "--max-time", "60", "-g", url); out != body {
				t.Errorf("%s: %s gave %d bytes, not what the server has", when, url, len(out))
			}
		}
		for _, url := range []string{"http://10.0.1.1/status.json", "http://[fd00:1::1]/status.json"} {
			if out := b.client.Must("curl", "-sS", "--max-time", "60", "-g", url); !strings.Contains(out, "interfaces") {
				t.Errorf("%s: %s gave %q", when, url, out)
			}
		}
	}
	fetch("before the flood")
	st := b.r.Status().Synproxy
	if st == nil || st.SYNReceived < 4 || st.CookieValid < 4 {
		t.Fatalf("the proxy has seen %+v", st)
	}
	// Nobody answers the SYN/ACKs: the sources do not exist.
	before := b.r.Status()
	raw := b.client.Raw("lan0")
	const flood = 3000
	n := 0
	b.Eventually(60*time.Second, "the flood to be answered", func() bool {
		for range 200 { // the device's queue loses some
			src := fmt.Sprintf("203.%d.%d.%d", n>>16&255, n>>8&255, n&255)
			raw.Send(lab.TCP(src, "198.51.100.2", 1024+n%60000, 80, "S", uint32(n), 0))
			n++
		}
		return b.r.Status().Synproxy.SYNReceived >= before.Synproxy.SYNReceived+flood
	})
	after := b.r.Status()
	if after.Conntrack.Count > before.Conntrack.Count {
		t.Errorf("%d connections after the flood, %d before", after.Conntrack.Count, before.Conntrack.Count)
	}
	if after.Synproxy.CookieValid != before.Synproxy.CookieValid {
		t.Errorf("cookies were acknowledged in the flood: %+v, then %+v", before.Synproxy, after.Synproxy)
	}
	// A forged ACK opens nothing.
	raw.Send(lab.TCP("203.0.113.9", "198.51.100.2", 1024, 80, "A", 1, 12345))
	b.r.AwaitDropped("synproxy.cookie_invalid", 1)
	if p := raw.Find(func(p gopacket.Packet) bool {
		tcp, ok := p.TransportLayer().(*layers.TCP)
		return ok && tcp.SYN && tcp.ACK && tcp.Window != 0
	}); p != nil {
		t.Errorf("a SYN/ACK with a window: %v", p)
	}
	fetch("after the flood")
}
