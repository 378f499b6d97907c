package wire

import (
	"fmt"
	"strings"
)

// Ruleset is a filter table in iptables-save's format, with MASQUERADE. The
// first form lets connections through at the second rule; the other sends each
// packet through all n rules, none of which it fits, before the one that
// accepts. Their shapes are mixed: prefixes, ranges, ports, interfaces,
// negations.
func Ruleset(n int, shortcut bool) string {
	var b strings.Builder
	b.WriteString("*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n")
	b.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n")
	left := n - 1
	if shortcut {
		b.WriteString("-A FORWARD -m conntrack --ctstate INVALID -j DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n")
		left -= 2
	}
	for i := range left {
		a, c := 16+i>>8&15, i&255
		switch i % 5 {
		case 0:
			fmt.Fprintf(&b, "-A FORWARD -s 172.%d.%d.0/24 -p tcp -m tcp --dport %d -j DROP\n", a, c, 1000+i%50000)
		case 1:
			fmt.Fprintf(&b, "-A FORWARD -d 172.%d.%d.0/25 -j DROP\n", a, c)
		case 2:
			fmt.Fprintf(&b, "-A FORWARD -i dmz%d -p udp -m udp --sport %d:%d -j DROP\n", i%7, 100+i%800, 900+i%80)
		case 3:
			fmt.Fprintf(&b, "-A FORWARD -s 172.%d.%d.%d/32 ! -p icmp -j DROP\n", a, c, i%254)
		default:
			fmt.Fprintf(&b, "-A FORWARD -m iprange --src-range 192.168.%d.0-192.168.%d.99 -j DROP\n", c, c)
		}
	}
	b.WriteString("-A FORWARD -j ACCEPT\nCOMMIT\n")
	return b.String()
}
