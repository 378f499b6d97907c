package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// TestReject: every --reject-with, as a program's connect sees it and as it is on the wire.
func TestReject(t *testing.T) {
	kinds := []struct {
		with      string
		v6        bool
		typ, code uint8
		err       error
	}{
		{"icmp-net-unreachable", false, 3, 0, syscall.ENETUNREACH},
		{"icmp-host-unreachable", false, 3, 1, syscall.EHOSTUNREACH},
		{"icmp-proto-unreachable", false, 3, 2, syscall.ENOPROTOOPT},
		{"icmp-port-unreachable", false, 3, 3, syscall.ECONNREFUSED},
		{"icmp-net-prohibited", false, 3, 9, syscall.ENETUNREACH},
		{"icmp-host-prohibited", false, 3, 10, syscall.EHOSTUNREACH},
		{"icmp-admin-prohibited", false, 3, 13, syscall.EHOSTUNREACH},
		{"icmp6-no-route", true, 1, 0, syscall.ENETUNREACH},
		{"icmp6-adm-prohibited", true, 1, 1, syscall.EACCES},
		{"icmp6-addr-unreachable", true, 1, 3, syscall.EHOSTUNREACH},
		{"icmp6-port-unreachable", true, 1, 4, syscall.ECONNREFUSED},
		{"icmp6-policy-fail", true, 1, 5, syscall.EACCES},
		{"icmp6-reject-route", true, 1, 6, syscall.EACCES},
	}
	var rules [2][]string
	for i, k := range kinds {
		f := 0
		if k.v6 {
			f = 1
		}
		rules[f] = append(rules[f],
			fmt.Sprintf("-A FORWARD -p tcp --dport %d -j REJECT --reject-with %s", 100+i, k.with),
			fmt.Sprintf("-A FORWARD -p udp --dport %d -j REJECT --reject-with %s", 100+i, k.with))
	}
	for f := range rules {
		rules[f] = append(rules[f],
			"-A FORWARD -p tcp --dport 25 -j REJECT --reject-with tcp-reset",
			"-A FORWARD -p tcp --dport 26 -j REJECT",
			"-A FORWARD -p tcp --dport 28 -j DROP",
			"-A INPUT -p udp --dport 29 -j REJECT")
	}
	b := newBed(t, fmt.Sprintf("[iptables.filter]\nrules = [%s]\n[ip6tables.filter]\nrules = [%s]\n[sysctl]\n\"net.ipv4.icmp_ratelimit\" = 0\n\"net.ipv6.icmp.ratelimit\" = 0\n", quoted(rules[0]), quoted(rules[1])))
	raw := b.client.Raw("lan0")
	for i, k := range kinds {
		dst, src, other := "198.51.100.2", "10.0.1.77", "198.51.100.77"
		if k.v6 {
			dst, src, other = "fd00:2::2", "fd00:1::77", "fd00:2::77"
		}
		addr := fmt.Sprintf("%s:%d", dst, 100+i)
		if k.v6 {
			addr = fmt.Sprintf("[%s]:%d", dst, 100+i)
		}
		c, err := b.client.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, k.err) {
			t.Errorf("%s: connect says %v, not %v", k.with, err, k.err)
		}
		// The wire: the whole of a small packet is quoted, the router is the sender.
		raw.Send(lab.UDP(src, other, 9000, 100+i, k.with))
		p := raw.Await(k.with, func(p gopacket.Packet) bool {
			return lab.ICMPError(k.typ, k.code)(p) && p.NetworkLayer().NetworkFlow().Dst().String() == src && strings.HasSuffix(string(p.Data()), k.with)
		})
		if from := p.NetworkLayer().NetworkFlow().Src().String(); from != "10.0.1.1" && from != "fd00:1::1" {
			t.Errorf("%s comes from %s", k.with, from)
		}
	}
	for addr, want := range map[string]error{
		"198.51.100.2:25": syscall.ECONNREFUSED, "198.51.100.2:26": syscall.ECONNREFUSED,
		"[fd00:2::2]:25": syscall.ECONNREFUSED, "[fd00:2::2]:26": syscall.ECONNREFUSED,
	} {
		c, err := b.client.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", addr, err, want)
		}
	}
	// A reset speaks for the server: its address, its port, and acknowledging the SYN.
	raw.Send(lab.TCP("10.0.1.77", "198.51.100.2", 4000, 25, "S", 1000, 0))
	p := raw.Await("a reset", func(p gopacket.Packet) bool {
		s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		return ok && s.RST && s.DstPort == 4000
	})
	if s := p.Layer(layers.LayerTypeTCP).(*layers.TCP); !s.ACK || s.Ack != 1001 || s.Seq != 0 || s.SrcPort != 25 || p.NetworkLayer().NetworkFlow().Src().String() != "198.51.100.2" {
		t.Errorf("the reset is %v", p)
	}
	// DROP says nothing; the counter is how one knows.
	raw.Send(lab.TCP("10.0.1.77", "198.51.100.2", 4001, 28, "S", 1000, 0))
	b.r.AwaitDropped("filter.FORWARD.rule", 1)
	if p := raw.Find(func(p gopacket.Packet) bool {
		s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		return ok && s.DstPort == 4001
	}); p != nil {
		t.Errorf("DROP answered %v", p)
	}
	// At INPUT the same.
	for _, x := range [][2]string{{"10.0.1.77", "10.0.1.1"}, {"fd00:1::77", "fd00:1::1"}} {
		raw.Send(lab.UDP(x[0], x[1], 9000, 29, "to the router"))
		raw.Await("REJECT at INPUT", func(p gopacket.Packet) bool {
			return (lab.ICMPError(3, 3)(p) || lab.ICMPError(1, 4)(p)) && strings.HasSuffix(string(p.Data()), "to the router") &&
				p.NetworkLayer().NetworkFlow().Dst().String() == x[0]
		})
	}
}

// quoted writes strings as the elements of a TOML array.
func quoted(list []string) string {
	var s strings.Builder
	for _, x := range list {
		fmt.Fprintf(&s, "%q, ", x)
	}
	return s.String()
}
