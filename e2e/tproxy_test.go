package e2e

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// tproxyRules is the usual way to use TPROXY: connections that are known go
// where they went before, and the first packet of others to who listens.
const tproxyRules = `
  "-N DIVERT",
  "-A DIVERT -j MARK --set-mark 1",
  "-A DIVERT -j ACCEPT",
  "-A PREROUTING -p tcp -m socket --transparent -j DIVERT",
  "-A PREROUTING -p tcp --dport 80 -j TPROXY --on-port 3128 --tproxy-mark 0x1/0x1",
  "-A PREROUTING -p tcp --dport 7000 -j TPROXY --on-port 7777 --tproxy-mark 0x1/0x1",
  "-A PREROUTING -p udp --dport 7000 -j TPROXY --on-port 7777 --tproxy-mark 0x1/0x1",
`

// TestTPROXY: real clients' connections to others end at transparent services,
// which answer under the addresses that the clients meant.
func TestTPROXY(t *testing.T) {
	b := newBed(t, `
[[route]]
to    = "0.0.0.0/0"
type  = "local"
table = 100
[[route]]
to    = "::/0"
type  = "local"
table = 100
[[rule]]
fwmark = 1
table  = 100

[[service]]
type        = "http"
listen      = ["tcp://[::]:3128"]
transparent = true
[[service]]
type        = "echo"
listen      = ["tcp://[::]:7777", "udp://[::]:7777"]
transparent = true
mark        = 0x20

[iptables.mangle]
rules = [`+tproxyRules+`  "-A OUTPUT -p tcp --sport 7000 -m mark --mark 0x20" ]
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [ "-A INPUT -p tcp -m socket --transparent", "-A OUTPUT -s 192.0.2.80/32 -p tcp --sport 80" ]
[ip6tables.mangle]
rules = [`+tproxyRules+`]
[ip6tables.filter]
policy = { FORWARD = "DROP" }
`)
	b.Need("curl")
	for _, url := range []string{"http://192.0.2.80/status.json", "http://[2001:db8::80]/status.json"} {
		if out := b.client.Must("curl", "-sS", "--max-time", "20", "-g", url); !strings.Contains(out, "interfaces") {
			t.Errorf("%s gave %q", url, out)
		}
	}
	// The services' ends are the addresses that the client meant.
	for _, to := range []string{"192.0.2.81:7000", "[2001:db8::81]:7000"} {
		for _, network := range []string{"tcp", "udp"} {
			c, err := b.client.Dial(network, to)
			if err != nil {
				t.Errorf("%s %s: %v", network, to, err)
				continue
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			msg := strings.Repeat("over here ", 100)
			io.WriteString(c, msg)
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != msg {
				t.Errorf("%s %s echoes %q, %v", network, to, got, err)
			}
			c.Close()
		}
	}
	for _, rule := range []string{"--dport 80 -j TPROXY", "-j DIVERT", "-m socket --transparent", "--sport 80", "--mark 0x20"} {
		if b.r.Counter("iptables-save", rule) == 0 {
			t.Errorf("nothing met the rule with %q", rule)
		}
	}
	if n := b.r.Status().Forwarded; n != 0 {
		t.Errorf("%d packets were forwarded", n)
	}
	// A port that no transparent socket is at: dropped, not forwarded.
	b.r.Must("iptables", "-t", "mangle", "-I", "PREROUTING", "-p", "tcp", "--dport", "81", "-j", "TPROXY", "--on-port", "9", "--tproxy-mark", "1")
	if c, err := b.client.DialTimeout("tcp", "192.0.2.80:81", 2*time.Second); err == nil {
		c.Close()
		t.Error("somebody answers at port 81")
	} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		t.Errorf("port 81: %v", err)
	}
	b.r.AwaitDropped("mangle.PREROUTING.rule", 1)
}
