package iptables

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
)

// counters reads the counters that a listing shows.
type counters interface {
	Rule(*tables.Rule) tables.Counter
	Policy(*tables.Chain) tables.Counter
}

// list is -L and -S, with -Z or without, outside a restore.
func (x *tool) list(c *command) error {
	rs := x.eng.Ruleset()
	if err := listable(c, rs.Table(c.table)); err != nil {
		return err
	}
	var n counters
	switch {
	case c.is(cmdZero | cmdZeroNum):
		v := x.eng.View(func(t *tables.Table, ch *tables.Chain, r *tables.Rule) bool {
			switch {
			case t.ID != c.table, c.hasChain && ch.Name != c.chain:
				return false
			case c.is(cmdZero):
				return true
			}
			return r != nil && c.num > 0 && c.num <= len(ch.Rules()) && r == ch.Rules()[c.num-1]
		})
		rs, n = v.Ruleset, v
	case c.verbose > 0:
		v := x.eng.View(nil)
		rs, n = v.Ruleset, v
	}
	t := rs.Table(c.table)
	x.listTable(c, t, n)
	switch {
	case c.is(cmdZero):
		return x.each(c, t, true, "Zeroing", func(string) error { return nil })
	case c.is(cmdZeroNum) && (c.num < 1 || c.num > len(t.Chain(c.chain).Rules())):
		return &tables.EditError{Op: tables.OpZero, Errno: syscall.E2BIG, Table: c.table, Chain: c.chain, Rule: c.num}
	}
	return nil
}

// listTable prints a table or one of its chains; n may be nil without -v.
func (x *tool) listTable(c *command, t *tables.Table, n counters) {
	chains := t.Chains()
	if c.hasChain {
		chains = nil
		if ch := t.Chain(c.chain); ch != nil {
			chains = append(chains, ch)
		}
	}
	if c.is(cmdListRules) {
		x.listRules(c, chains, n)
		return
	}
	for i, ch := range chains {
		if c.num == 0 {
			if i > 0 {
				x.out.WriteByte('\n')
			}
			x.chainHeader(c, t, ch, n)
		}
		for i, r := range ch.Rules() {
			if c.num != 0 && c.num != i+1 {
				continue
			}
			x.listRule(c, i+1, r, n)
		}
	}
}

// listRules is -S: what there is, then the rules.
func (x *tool) listRules(c *command, chains []*tables.Chain, n counters) {
	if c.num == 0 {
		for _, ch := range chains {
			switch {
			case !ch.Builtin:
				x.printf("-N %s", ch.Name)
			case c.verbose > 0:
				k := n.Policy(ch)
				x.printf("-P %s %s -c %d %d", ch.Name, ch.Policy, k.Packets, k.Bytes)
			default:
				x.printf("-P %s %s", ch.Name, ch.Policy)
			}
			x.out.WriteByte('\n')
		}
	}
	for _, ch := range chains {
		for i, r := range ch.Rules() {
			if c.num != 0 && c.num != i+1 {
				continue
			}
			x.out.WriteString("-A " + ch.Name)
			text := r.Save()
			if c.verbose > 0 {
				k := n.Rule(r)
				target := targetText(r)
				x.out.WriteString(strings.TrimSuffix(text, target))
				x.printf(" -c %d %d", k.Packets, k.Bytes)
				text = target
			}
			x.out.WriteString(text + "\n")
		}
	}
}

// targetText is the part of a rule's text that begins with -j or -g.
func targetText(r *tables.Rule) string {
	t := tables.Rule{Family: r.Family, Verdict: r.Verdict, Jump: r.Jump, Goto: r.Goto, Target: r.Target}
	return t.Save()
}

func (x *tool) chainHeader(c *command, t *tables.Table, ch *tables.Chain, n counters) {
	switch {
	case !ch.Builtin:
		x.printf("Chain %s (%d references)\n", ch.Name, t.References(ch.Name))
	case c.verbose > 0:
		k := n.Policy(ch)
		x.printf("Chain %s (policy %s %s packets, %s bytes)\n", ch.Name, ch.Policy, c.round(k.Packets), c.round(k.Bytes))
	default:
		x.printf("Chain %s (policy %s)\n", ch.Name, ch.Policy)
	}
	if c.lines {
		x.out.WriteString("num  ")
	}
	if c.verbose > 0 {
		if c.exact {
			x.printf("%8s %10s ", "pkts", "bytes")
		} else {
			x.printf("%5s %5s ", "pkts", "bytes")
		}
	}
	x.printf("%-9s  prot opt", "target")
	if c.verbose > 0 {
		x.printf(" %-6s %-6s ", "in", "out")
	}
	x.printf(" %-19s  %-19s \n", "source", "destination")
}

// round is a counter as -L shows it: from 100,000 on in thousands and so on,
// unless -x is given.
func (c *command) round(n uint64) string {
	if c.exact || n <= 99999 {
		return strconv.FormatUint(n, 10)
	}
	units := "KMGT"
	for i := range len(units) {
		n = (n + 500) / 1000
		if n <= 9999 || i == len(units)-1 {
			return strconv.FormatUint(n, 10) + units[i:i+1]
		}
	}
	return ""
}

func (x *tool) listRule(c *command, num int, r *tables.Rule, n counters) {
	if c.lines {
		x.printf("%-4d ", num)
	}
	if c.verbose > 0 {
		k := n.Rule(r)
		w := 5
		if c.exact {
			w = 8
		}
		x.printf("%*s %*s ", w, c.round(k.Packets), w, c.round(k.Bytes))
	}
	proto := protocolName(r.Proto)
	if c.numeric {
		proto = strconv.Itoa(int(r.Proto))
	}
	x.printf("%-9s %s%-4s %s ", r.TargetName(), not(r.ProtoNot, " "), proto, fragment(r))
	if c.verbose > 0 {
		any := "any"
		if c.numeric {
			any = "*"
		}
		x.printf(" %-6s %-6s ", iface(r.In, r.InNot, any), iface(r.Out, r.OutNot, any))
	}
	x.printf("%s%-19s %s%-19s ", not(r.Src.Not, " "), x.address(r.Src, c.numeric), not(r.Dst.Not, " "), x.address(r.Dst, c.numeric))
	if r.Goto {
		x.out.WriteString("[goto] ")
	}
	x.out.WriteString(r.ListExtras(c.numeric) + "\n")
}

// printRule is the line that -v prints for a rule that is being edited.
func (x *tool) printRule(r *tables.Rule) {
	x.printf("%s %s%s opt %s in %s out %s %s%s %s-> %s  ",
		r.TargetName(), not(r.ProtoNot, " "), coreName(r.Proto), fragment(r),
		iface(r.In, r.InNot, "*"), iface(r.Out, r.OutNot, "*"),
		not(r.Src.Not, " "), x.address(r.Src, true), not(r.Dst.Not, " "), x.address(r.Dst, true))
	if r.Goto {
		x.out.WriteString("[goto] ")
	}
	x.out.WriteString(r.ListExtras(true) + "\n")
}

func not(is bool, otherwise string) string {
	if is {
		return "!"
	}
	return otherwise
}

func protocolName(n uint8) string {
	if n == 0 {
		return "all"
	}
	if s := tables.ProtocolName(n); s != "" {
		return s
	}
	return strconv.Itoa(int(n))
}

// coreProtocols are the names that are printed where names are not looked up.
var coreProtocols = map[uint8]string{
	0: "all", 1: "icmp", 6: "tcp", 17: "udp", 50: "esp", 51: "ah", 58: "ipv6-icmp", 132: "sctp", 135: "mobility-header", 136: "udplite",
}

func coreName(n uint8) string {
	if s, ok := coreProtocols[n]; ok {
		return s
	}
	return strconv.Itoa(int(n))
}

func fragment(r *tables.Rule) string {
	switch {
	case r.Fragment || r.FragmentNot:
		return not(r.FragmentNot, "-") + "f"
	}
	return "--"
}

func iface(name string, inverted bool, any string) string {
	if name == "" {
		name = any
	}
	return not(inverted, "") + name
}

// address is an address as -L shows it: with its mask unless that is a host's.
func (x *tool) address(a tables.Addr, numeric bool) string {
	unset := a.Mask
	if x.fam == packet.IPv6 {
		unset = a.Addr
	}
	if unset == ([16]byte{}) && !numeric {
		return "anywhere"
	}
	s := ""
	if !numeric {
		s = x.name(x.fam, a.Addr)
	}
	if s == "" {
		s = tables.FormatAddr(x.fam, a.Addr)
	}
	n, ok := tables.MaskBits(a.Mask)
	switch {
	case !ok:
		return s + "/" + tables.FormatAddr(x.fam, a.Mask)
	case n == 32 && x.fam == packet.IPv4, n == 128:
		return s
	}
	return fmt.Sprintf("%s/%d", s, n)
}
