package tables_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"sluice/hooks"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

// TestWalk takes packets through the FORWARD chain of table filter.
func TestWalk(t *testing.T) {
	for _, c := range []struct {
		name, rules, packet string
		want                string // verdict, or the reason of a drop
		counts              string // FORWARD's rules / policy
	}{
		{"policy", "", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "/1"},
		{"policy drop", "-P FORWARD DROP", "udp 10.0.0.1:1 > 10.0.0.2:2", "filter.FORWARD.policy", "/1"},
		{"rule", "-A FORWARD -j DROP", "udp 10.0.0.1:1 > 10.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"first match ends", "-A FORWARD -j ACCEPT;-A FORWARD -j DROP", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1 0/0"},
		{"no target counts", "-A FORWARD;-A FORWARD -p udp;-A FORWARD -p tcp", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1 1 0/1"},
		{"return is policy", "-P FORWARD DROP;-A FORWARD -j RETURN;-A FORWARD -j ACCEPT", "udp 10.0.0.1:1 > 10.0.0.2:2", "filter.FORWARD.policy", "1 0/1"},
		{"jump", "-N a;-A a -p udp -j DROP;-A FORWARD -j a", "udp 10.0.0.1:1 > 10.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"jump comes back", "-N a;-A a -p tcp -j DROP;-A FORWARD -j a;-A FORWARD -j ACCEPT", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1 1/0"},
		{"empty chain", "-N a;-A FORWARD -j a", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1/1"},
		{"return from a chain", "-N a;-A a -j RETURN;-A a -j DROP;-A FORWARD -j a", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1/1"},
		{"goto does not come back", "-P FORWARD DROP;-N a;-A FORWARD -g a;-A FORWARD -j ACCEPT", "udp 10.0.0.1:1 > 10.0.0.2:2", "filter.FORWARD.policy", "1 0/1"},
		{"goto from a chain returns to its caller", "-N a;-N b;-A b -p tcp;-A a -g b;-A a -j DROP;-A FORWARD -j a;-A FORWARD -j ACCEPT", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1 1/0"},
		{"three deep", "-N a;-N b;-N c;-A c -j RETURN;-A b -j c;-A b -p udp -j ACCEPT;-A a -j b;-A FORWARD -j a", "udp 10.0.0.1:1 > 10.0.0.2:2", "accept", "1/0"},
		{"source", "-A FORWARD -s 10.0.0.0/8 -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"not source", "-A FORWARD ! -s 10.0.0.0/8 -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "accept", "0/1"},
		{"mask with holes", "-A FORWARD -d 1.0.3.0/255.0.255.0 -j DROP", "udp 10.0.0.1:1 > 1.7.3.9:2", "filter.FORWARD.rule", "1/0"},
		{"not everything", "-A FORWARD ! -s 0/0 -j DROP", "udp 10.0.0.1:1 > 1.7.3.9:2", "accept", "0/1"},
		{"in", "-A FORWARD -i lan0 -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"in prefix is no wildcard", "-A FORWARD -i lan -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "accept", "0/1"},
		{"wildcard", "-A FORWARD -i l+ -o wan+ -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"not out", "-A FORWARD ! -o wan0 -j DROP;-A FORWARD ! -o lan0 -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "0 1/0"},
		{"not protocol", "-A FORWARD ! -p tcp -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"dport", "-A FORWARD -p udp --dport 1:3 -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"not dport", "-A FORWARD -p udp ! --dport 2 -j DROP;-A FORWARD -p udp ! --sport 2 -j DROP", "udp 10.0.0.1:1 > 1.0.0.2:2", "filter.FORWARD.rule", "0 1/0"},
		{"syn", "-A FORWARD -p tcp --syn -j DROP", "tcp 10.0.0.1:1 > 1.0.0.2:2 S", "filter.FORWARD.rule", "1/0"},
		{"not syn", "-A FORWARD -p tcp --syn -j DROP;-A FORWARD -p tcp ! --syn -j DROP", "tcp 10.0.0.1:1 > 1.0.0.2:2 SA", "filter.FORWARD.rule", "0 1/0"},
		{"tcp option", "-A FORWARD -p tcp --tcp-option 2 -j DROP", "tcp 10.0.0.1:1 > 1.0.0.2:2 S mss=1460", "filter.FORWARD.rule", "1/0"},
		{"no tcp option", "-A FORWARD -p tcp --tcp-option 2 -j DROP;-A FORWARD -p tcp ! --tcp-option 2 -j DROP", "tcp 10.0.0.1:1 > 1.0.0.2:2 S", "filter.FORWARD.rule", "0 1/0"},
		{"later fragment has no ports", "-A FORWARD -p udp --dport 0:65535 -j DROP;-A FORWARD -f -j DROP", "udp 10.0.0.1 > 1.0.0.2 frag=1480 len=8", "filter.FORWARD.rule", "0 1/0"},
		{"later fragment, not dport", "-A FORWARD -p udp ! --dport 7 -j DROP;-A FORWARD ! -f -j DROP", "udp 10.0.0.1 > 1.0.0.2 frag=1480 len=8", "accept", "0 0/1"},
		{"fragment that overwrites flags", "-A FORWARD -p tcp --dport 7 -j ACCEPT", "tcp 10.0.0.1 > 1.0.0.2 frag=8 len=8", "tables.hotdrop", "0/0"},
		{"header cut short", "-A FORWARD -p 6 -m tcp --dport 7 -j ACCEPT", "6 10.0.0.1:1 > 1.0.0.2:2", "accept", "0/1"},
		{"icmp", "-A FORWARD -p icmp --icmp-type echo-request -j DROP", "icmp 10.0.0.1 > 1.0.0.2 type=8 id=1", "filter.FORWARD.rule", "1/0"},
		{"icmp code", "-A FORWARD -p icmp --icmp-type 3/1 -j DROP;-A FORWARD -p icmp ! --icmp-type 3/1 -j DROP", "icmp 10.0.0.1 > 1.0.0.2 type=3/4 len=30", "filter.FORWARD.rule", "0 1/0"},
		{"icmp any", "-A FORWARD -p icmp --icmp-type any -j DROP", "icmp 10.0.0.1 > 1.0.0.2 type=13", "filter.FORWARD.rule", "1/0"},
		{"multiport", "-A FORWARD -p udp -m multiport --dports 5,1:3 -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"multiport not", "-A FORWARD -p udp -m multiport ! --ports 9 -j DROP;-A FORWARD -p udp -m multiport --sports 2 -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "accept", "0 0/1"},
		{"length", "-A FORWARD -m length --length 28 -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"mark", "-A FORWARD -m mark --mark 0x1/0xf -j DROP;-A FORWARD -m mark ! --mark 1 -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "filter.FORWARD.rule", "0 1/0"},
		{"state without a connection", "-A FORWARD -m state --state NEW,ESTABLISHED -j DROP;-A FORWARD -m conntrack --ctstate INVALID -j ACCEPT", "udp 10.0.0.1:9 > 1.0.0.2:2", "accept", "0 1/0"},
		{"connmark without a connection", "-A FORWARD -m connmark ! --mark 1 -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "accept", "0/1"},
		{"udp does not match tcp's ports", "-A FORWARD -p tcp --dport 2 -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "accept", "0/1"},
		{"sctp chunk", "-A FORWARD -p sctp --chunk-types any INIT -j DROP;-A FORWARD -p sctp --chunk-types only DATA:E -j DROP", "sctp 10.0.0.1:9 > 1.0.0.2:2 hex=0001000400010004", "filter.FORWARD.rule", "0 1/0"},
		{"sctp all", "-A FORWARD -p sctp --chunk-types all DATA,INIT -j DROP", "sctp 10.0.0.1:9 > 1.0.0.2:2 hex=0001000401000004", "filter.FORWARD.rule", "1/0"},
		{"sctp broken", "-A FORWARD -p sctp --chunk-types any DATA -j ACCEPT", "sctp 10.0.0.1:9 > 1.0.0.2:2 hex=01000000", "tables.hotdrop", "0/0"},
		{"reject", "-A FORWARD -j REJECT", "udp 10.0.0.1:9 > 1.0.0.2:2", "filter.FORWARD.rule", "1/0"},
		{"log goes on", "-A FORWARD -j LOG;-A FORWARD -j DROP", "udp 10.0.0.1:9 > 1.0.0.2:2", "filter.FORWARD.rule", "1 1/0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, packet.IPv4)
			for _, l := range strings.Split(c.rules, ";") {
				if l != "" {
					r.must("filter " + l)
				}
			}
			p := forwarded(t, c.packet)
			got := "accept"
			if r.run(tables.Filter, hooks.Forward, p) == hooks.Drop {
				got = p.Reason.String()
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if n := r.counts(tables.Filter, "FORWARD"); n != c.counts {
				t.Errorf("counters %s, want %s", n, c.counts)
			}
		})
	}
}

func TestWalk6(t *testing.T) {
	r := newRig(t, packet.IPv6)
	r.must("filter -A FORWARD -s 2001:db8::/32 ! -d 2001:db8::/32 -p udp --dport 53 -j ACCEPT",
		"filter -A FORWARD -p icmpv6 --icmpv6-type packet-too-big -j DROP", "filter -A FORWARD ! -p tcp -j RETURN", "filter -P FORWARD DROP")
	for _, c := range []struct{ packet, want string }{
		{"udp [2001:db8::1]:5 > [2001:db9::1]:53", "accept"},
		{"udp [2001:db8::1]:5 > [2001:db8::2]:53", "filter.FORWARD.policy"},
		{"icmp6 2001:db8::1 > 2001:db9::2 type=2/0 rest=1280 about udp [2001:db9::2]:1 > [2001:db8::3]:2", "filter.FORWARD.rule"},
		{"udp [2001:db8::1]:5 > [2001:db9::1]:53 ext=hop,dest", "accept"},
		{"tcp [2001:db8::1]:5 > [2001:db9::1]:53 S", "filter.FORWARD.policy"},
	} {
		p := forwarded(t, c.packet)
		got := "accept"
		if r.run(tables.Filter, hooks.Forward, p) == hooks.Drop {
			got = p.Reason.String()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.packet, got, c.want)
		}
	}
	if n := r.counts(tables.Filter, "FORWARD"); n != "2 1 1/2" {
		t.Error(n)
	}
	// A rule that asks for the protocol drops a packet whose headers cannot be
	// followed to it; one that does not lets it be.
	p := forwarded(t, "udp [2001:db8::1]:5 > [2001:db9::1]:53 ext=dest")
	p.Flags = p.Flags&^(packet.HasL4|packet.HasPorts) | packet.BadHeaders
	if v := r.run(tables.Filter, hooks.Forward, p); v != hooks.Drop || p.Reason.String() != "tables.hotdrop" {
		t.Error("lost headers: ", v, p.Reason)
	}
}

// slow is the walk written again, from the rules themselves and as plainly as
// it can be: the clever one is held against it.
type slow struct {
	table  *tables.Table
	counts map[*tables.Rule]int
	policy int
}

func (s *slow) chain(c *tables.Chain, p *packet.Packet) tables.Verdict {
	for _, r := range c.Rules() {
		if !s.match(r, p) {
			continue
		}
		s.counts[r]++
		switch {
		case r.Jump != "":
			v := s.chain(s.table.Chain(r.Jump), p)
			if v != tables.VerdictReturn || r.Goto {
				return v
			}
		case r.Verdict != tables.VerdictNone:
			return r.Verdict
		}
	}
	return tables.VerdictReturn
}

func (s *slow) base(c *tables.Chain, p *packet.Packet) tables.Verdict {
	if v := s.chain(c, p); v != tables.VerdictReturn {
		return v
	}
	s.policy++
	return c.Policy
}

func (s *slow) match(r *tables.Rule, p *packet.Packet) bool {
	addr := func(a tables.Addr, x netip.Addr) bool {
		same := true
		for i, b := range x.AsSlice() {
			same = same && b&a.Mask[i] == a.Addr[i]
		}
		return same != a.Not
	}
	iface := func(pattern string, not bool, i *packet.Iface) bool {
		if pattern == "" {
			return true
		}
		same := i.Name == pattern
		if pre, ok := strings.CutSuffix(pattern, "+"); ok {
			same = strings.HasPrefix(i.Name, pre)
		}
		return same != not
	}
	ok := addr(r.Src, p.SrcAddr()) && addr(r.Dst, p.DstAddr()) && iface(r.In, r.InNot, p.In) && iface(r.Out, r.OutNot, p.Out)
	if r.Proto != 0 {
		ok = ok && (p.Proto == r.Proto) != r.ProtoNot
	}
	for _, m := range r.Matches {
		sport, dport := "source-port", "destination-port"
		if m.Ext.Name == "tcp" {
			sport, dport = "sport", "dport"
		}
		for name, port := range map[string]uint16{sport: p.SrcPort(), dport: p.DstPort()} {
			if v := m.Args.Get(name); v.Set {
				ok = ok && (uint64(port) >= v.Lo && uint64(port) <= v.Hi) != v.Not
			}
		}
	}
	return ok
}

// TestWalkIsTheSlowWalk holds verdicts and counters of random rules, jumps and
// edits against the plain walk.
func TestWalkIsTheSlowWalk(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t, packet.IPv4)
		// Chains jump to later ones only, so that there are no loops.
		chains := []string{"FORWARD", "a", "b", "c", "d"}
		lines := []string{"filter -N a", "filter -N b", "filter -N c", "filter -N d"}
		pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
		for range 60 {
			at := rnd.IntN(len(chains))
			l := "filter -A " + chains[at]
			if rnd.IntN(4) == 0 && len(lines) > 20 {
				l = "filter -I " + chains[at] + " 1"
			}
			l += pick("", "", " -s 10.0.0.0/30", " ! -s 10.0.0.0/31", " -s 10.0.0.2", " -s 0.0.0.1/0.0.0.1")
			l += pick("", "", " -d 10.0.0.0/30", " ! -d 10.0.0.1")
			l += pick("", "", "", " -i lan0", " ! -i lan0", " -o wan+", " -i wan0")
			l += pick("", " -p udp", " ! -p udp", " -p tcp", " -p udp --dport 1:2", " -p tcp ! --sport 2", " -p udp --sport 3 ! --dport 2:3")
			switch to := at + 1 + rnd.IntN(4); {
			case to < len(chains):
				l += pick(" -j ", " -j ", " -g ") + chains[to]
			default:
				l += pick("", " -j ACCEPT", " -j DROP", " -j RETURN", " -j RETURN")
			}
			lines = append(lines, l)
		}
		r.must(lines...)
		r.must("filter -P FORWARD " + pick("ACCEPT", "DROP"))
		for range 20 {
			_ = r.edit(fmt.Sprintf("filter -D# %s %d", pick(chains...), 1+rnd.IntN(12)))
		}
		tab := r.Ruleset().Table(tables.Filter)
		s := &slow{table: tab, counts: map[*tables.Rule]int{}}
		for range 200 {
			p := forwarded(t, fmt.Sprintf("%s 10.0.0.%d:%d > 10.0.0.%d:%d", pick("tcp", "udp"), rnd.IntN(5), 1+rnd.IntN(3), rnd.IntN(5), 1+rnd.IntN(3)))
			got, want := r.run(tables.Filter, hooks.Forward, p), s.base(tab.Chain("FORWARD"), p)
			if (got == hooks.Accept) != (want == tables.VerdictAccept) {
				t.Fatalf("seed %d: %s: %v, plain walk %v\n%s", seed, packettest.Describe(p.Bytes()), got, want, r.save(tables.Filter))
			}
		}
		v := r.View(nil)
		if n := v.Policy(tab.Chain("FORWARD")).Packets; n != uint64(s.policy) {
			t.Fatalf("seed %d: policy counted %d, plain walk %d", seed, n, s.policy)
		}
		for _, name := range chains {
			for i, x := range tab.Chain(name).Rules() {
				if n := v.Rule(x).Packets; n != uint64(s.counts[x]) {
					t.Fatalf("seed %d: %s rule %d counted %d, plain walk %d\n%s", seed, name, i+1, n, s.counts[x], r.save(tables.Filter))
				}
			}
		}
	}
}
