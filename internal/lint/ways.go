package lint

import (
	"encoding/binary"
	"fmt"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// lets says whether any packet of start may get through a builtin chain of table
// filter. false is certain.
func (l *linter) lets(chain string, start box) bool {
	ch := l.t.Chain(chain)
	if ch == nil {
		return true
	}
	first := l.start(ch.Hook).and(&start)
	accepted, rest := l.through(ch, first)
	return accepted || len(rest) > 0 && ch.Policy == tables.VerdictAccept
}

// through takes packets through a chain: accepted, some may be accepted; rest
// may come back, by its end or RETURN.
func (l *linter) through(ch *tables.Chain, now region) (accepted bool, rest region) {
	for _, r := range ch.Rules() {
		k := l.known[r]
		hit := now.and(&k.box)
		if len(hit) == 0 {
			continue
		}
		if len(hit) > 256 {
			return true, now // too much to say
		}
		switch does(r) {
		case goesOn:
			if r.Target != nil && r.Target.Ext.Name == "SYNPROXY" {
				return true, nil // it answers in the server's place, and then lets through
			}
			continue
		case ends:
			if r.Verdict == tables.VerdictAccept || r.Target != nil && r.Target.Ext.Name != "REJECT" {
				return true, nil
			}
		case returns:
			rest = append(rest, hit...)
		case jumps, gotos:
			ok, back := l.through(l.t.Chain(r.Jump), hit)
			if ok {
				return true, nil
			}
			if r.Goto {
				rest = append(rest, back...)
			} else if len(k.rest) == 0 {
				now = now.minus(&k.box, mostBoxes)
				now = append(now, back...)
				continue
			} else {
				continue
			}
		}
		if len(k.rest) == 0 {
			now = now.minus(&k.box, mostBoxes)
		}
	}
	return false, append(rest, now...)
}

// ways looks for connections that are let begin and then cut off.
func (l *linter) ways(rs *tables.Ruleset) {
	only := func(d int, lo, hi uint64, b box) box {
		b[d] = small(lo, hi)
		return b
	}
	old := only(dimState, stateEstablished, stateEstablished, l.all)
	fresh := only(dimState, stateNew, stateNew, l.all)
	tcp := func(b box) box {
		b = only(dimProto, uint64(packet.ProtoTCP), uint64(packet.ProtoTCP), b)
		return only(dimFlags, 0, 63, only(dimSport, 0, 65535, only(dimDport, 0, 65535, b)))
	}
	dns := func(port int, b box) box {
		b = only(dimProto, uint64(packet.ProtoUDP), uint64(packet.ProtoUDP), b)
		return only(port, 53, 53, b)
	}
	for _, name := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		ch := l.t.Chain(name)
		begins := name
		if name == "INPUT" {
			begins = "OUTPUT" // answers to the router's own connections
		}
		ephemeral := only(dimDport, 32768, 60999, only(dimSport, 1, 1023, tcp(old)))
		if l.lets(begins, tcp(fresh)) && !l.lets(name, ephemeral) {
			why := "packets of established connections get through no rule of it: what is begun gets no answer (-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT lets them)"
			l.add(NoAnswers, ch, 0, why)
		}
	}
	switch {
	case !l.lets("OUTPUT", fresh):
		// The router begins nothing in this family, and means it.
	case !l.lets("OUTPUT", dns(dimDport, fresh)):
		l.add(NoDNS, l.t.Chain("OUTPUT"), 0, "the router's own DNS queries (UDP port 53) get through no rule of it")
	case !l.lets("INPUT", only(dimDport, 1024, 65535, dns(dimSport, old))):
		l.add(NoDNS, l.t.Chain("INPUT"), 0, "the answers to the router's own DNS queries (UDP from port 53, ESTABLISHED) get through no rule of it")
	}
	l.dnat(rs, fresh)
}

// dnat looks for translated connections that FORWARD drops, wherever the target
// is; one that goes to the router itself is INPUT's.
func (l *linter) dnat(rs *tables.Ruleset, fresh box) {
	nat := newLinter(rs, tables.NAT)
	for _, ch := range nat.t.Chains() {
		for i, r := range ch.Rules() {
			if r.Target == nil || r.Target.Ext.Name != "DNAT" || !leadsFrom(nat, ch, hooks.Prerouting) {
				continue
			}
			v := r.Target.Args.Get("to-destination")
			k := nat.known[r]
			b := fresh
			if v.A == [16]byte{} || isLoopback(l.family, v.A) {
				continue // a new port only, or the router itself
			}
			b[dimDst] = set{{l.num(v.A), l.num(v.B)}}
			if l.num(v.B).less(l.num(v.A)) {
				b[dimDst] = set{{l.num(v.A), l.num(v.A)}}
			}
			b[dimSrc], b[dimProto] = k.box[dimSrc], k.box[dimProto]
			b[dimDport] = k.box[dimDport]
			if len(v.List) > 0 && v.List[0].Lo > 0 {
				b[dimDport] = small(v.List[0].Lo, max(v.List[0].Hi, v.List[0].Lo))
			}
			b[dimIn] = l.iface(r.In, r.InNot)
			if r.In == "" {
				b[dimIn] = l.all[dimIn]
			}
			if len(b[dimIn]) == 0 { // an interface that no rule of table filter names
				b[dimIn] = small(1, 1)
			}
			if !l.lets("FORWARD", b) && !l.lets("INPUT", b) {
				l.out = append(l.out, Finding{
					Kind: DNATBlocked, Family: []string{"ipv4", "ipv6"}[l.family>>1&1], Table: "nat", Chain: ch.Name, Rule: i + 1, rule: r,
					Source: r.Source, Text: "-A " + ch.Name + r.Save(),
					Why: fmt.Sprintf("chain FORWARD of table filter lets no new connection to %s through", tables.FormatAddr(l.family, v.A)),
				})
			}
		}
	}
}

func isLoopback(family uint8, a [16]byte) bool {
	if family == packet.IPv4 {
		return a[0] == 127
	}
	return binary.BigEndian.Uint64(a[:]) == 0 && binary.BigEndian.Uint64(a[8:]) == 1
}

func leadsFrom(l *linter, ch *tables.Chain, h hooks.Hook) bool {
	seen := map[string]bool{}
	var walk func(c *tables.Chain) bool
	walk = func(c *tables.Chain) bool {
		if c == nil || seen[c.Name] {
			return false
		}
		seen[c.Name] = true
		if c == ch {
			return true
		}
		for _, r := range c.Rules() {
			if r.Jump != "" && walk(l.t.Chain(r.Jump)) {
				return true
			}
		}
		return false
	}
	return walk(l.t.Chain(h.String()))
}
