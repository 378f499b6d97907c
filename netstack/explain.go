package netstack

import (
	"net/netip"

	"sluice/packet"
)

// Explanation is why a packet is routed as it is: the policy rule that decided
// and the prefix in its table.
type Explanation struct {
	Route
	OK     bool         // Route leads somewhere
	Rule   Rule         // the rule that decided; the zero Rule: none did
	Prefix netip.Prefix // the longest match in the rule's table; invalid: the rule itself decided
}

// Explain is Lookup, with its reasons.
func (s *Snapshot) Explain(q *Query) Explanation {
	var x Explanation
	x.OK = s.find(q, &x.Route)
	fam := 0
	if q.Family == packet.IPv6 {
		fam = 1
	}
	dst := Addr(q.Family, q.Dst)
	for i := range s.rules[fam] {
		ru := &s.rules[fam][i]
		if !ru.match(q, dst) {
			continue
		}
		if ru.table == nil {
			if ru.Action != RouteNone {
				x.Rule = ru.Rule
			}
			return x
		}
		p, w, ok := ru.table.LookupPrefixLPM(netip.PrefixFrom(dst, dst.BitLen()))
		for ok && w.first.typ != RouteThrow {
			if q.Out != nil && w.through(int32(q.Out.Index), dst.Is4()) == nil {
				if p.Bits() == 0 {
					break
				}
				p, w, ok = ru.table.LookupPrefixLPM(netip.PrefixFrom(dst, p.Bits()-1))
				continue
			}
			x.Rule, x.Prefix = ru.Rule, p
			return x
		}
	}
	return x
}

// ExplainPacket explains the decision of Input or, with own, Output.
func (s *Snapshot) ExplainPacket(p *packet.Packet, own bool) Explanation {
	q := Query{Family: p.Family, TOS: tosOf(p), Mark: p.Mark, Src: p.Src(), Dst: p.Dst()}
	if !own {
		q.In = p.In
		if q.In == nil {
			q.In = s.lo
		}
	}
	return s.Explain(&q)
}
