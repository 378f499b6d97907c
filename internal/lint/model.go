package lint

import (
	"encoding/binary"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// universe is all that packets can be, as far as a table's rules tell it apart.
type universe struct {
	family uint8
	ifaces []string // one name of every kind that the rules tell apart; [0] is "no interface"
	all    box
	// changes is what the table's own rules may change between two others;
	// moves: addresses too.
	changes tables.Depends
	moves   bool
}

// changesOf is what a target changes of what matches look at; a target that is not
// here changes nothing, or no rule comes after it.
var changesOf = map[string]tables.Depends{
	"CONNMARK": tables.DependsMark | tables.DependsCtMark, "CONNSECMARK": tables.DependsCtMark, "SECMARK": tables.DependsCtMark,
	"MARK": tables.DependsMark, "HMARK": tables.DependsMark, "TOS": tables.DependsTOS, "DSCP": tables.DependsTOS, "ECN": tables.DependsTOS | tables.DependsL4Header,
	"TTL": tables.DependsTTL, "HL": tables.DependsTTL, "TCPMSS": tables.DependsLength | tables.DependsL4Header, "TCPOPTSTRIP": tables.DependsL4Header,
	"CHECKSUM": tables.DependsL4Header, "SET": tables.DependsSets, "CT": tables.DependsCtState | tables.DependsCtStatus,
	"NOTRACK": tables.DependsCtState | tables.DependsCtStatus, "DNPT": tables.DependsRoutes, "SNPT": tables.DependsRoutes, "LOG": 0, "NFLOG": 0, "AUDIT": 0, "CLASSIFY": 0, "IDLETIMER": 0, "LED": 0, "RATEEST": 0, "TEE": 0, "TRACE": 0,
	"REJECT": 0, "DNAT": 0, "SNAT": 0, "MASQUERADE": 0, "REDIRECT": 0, "NETMAP": 0, "NFQUEUE": 0, "SYNPROXY": 0, "TPROXY": 0,
}

// changes is what a rule may change: by its target, or by a match that does more than look.
func changes(r *tables.Rule) (d tables.Depends) {
	for _, m := range r.Matches {
		switch {
		case m.Ext.Name == "connlabel" && m.Args.Has("set"):
			d |= tables.DependsCtMark
		case m.Ext.Name == "socket" && m.Args.Has("restore-skmark"):
			d |= tables.DependsMark
		}
	}
	if r.Target == nil {
		return d
	}
	x, known := changesOf[r.Target.Ext.Name]
	if !known {
		return ^tables.Depends(0)
	}
	return d | x
}

// States by their number in dimState.
var states = []string{"INVALID", "ESTABLISHED", "RELATED", "NEW", "UNTRACKED"}

const (
	stateEstablished = 1
	stateNew         = 3
)

// Bits of the state and conntrack matches' values, and those beyond the states.
const stateBits = 1<<5 - 1

func newUniverse(family uint8, t *tables.Table) *universe {
	u := &universe{family: family, ifaces: []string{""}}
	seen := map[string]bool{"": true}
	add := func(n string) {
		if !seen[n] {
			seen[n] = true
			u.ifaces = append(u.ifaces, n)
		}
	}
	add("\x01") // an interface that no rule names
	for _, ch := range t.Chains() {
		for _, r := range ch.Rules() {
			u.changes |= changes(r)
			u.moves = u.moves || r.Target != nil && (r.Target.Ext.Name == "SNPT" || r.Target.Ext.Name == "DNPT")
			for _, n := range []string{r.In, r.Out} {
				if p, ok := strings.CutSuffix(n, "+"); ok {
					add(p + "\x01") // one that begins so and that no other rule names
				} else if n != "" {
					add(n)
				}
			}
		}
	}
	top := num{0, 1<<32 - 1}
	if family == packet.IPv6 {
		top = num{^uint64(0), ^uint64(0)}
	}
	u.all = box{
		dimSrc: set{{num{}, top}}, dimDst: set{{num{}, top}}, dimIn: small(0, uint64(len(u.ifaces)-1)), dimOut: small(0, uint64(len(u.ifaces)-1)),
		dimProto: small(0, 255), dimSport: small(0, unreadable), dimDport: small(0, unreadable), dimState: small(0, uint64(len(states)-1)),
		dimFlags: small(0, 64), dimICMP: small(0, unreadable),
	}
	return u
}

func (u *universe) not(d int, s set) set { return u.all[d].minus(s) }

func (u *universe) iface(pattern string, not bool) set {
	var out set
	for i, n := range u.ifaces {
		ok := n == pattern
		if p, plus := strings.CutSuffix(pattern, "+"); plus {
			ok = strings.HasPrefix(n, p)
		}
		if ok != not {
			out = out.or(small(uint64(i), uint64(i)))
		}
	}
	return out
}

func (u *universe) num(a [16]byte) num {
	if u.family == packet.IPv4 {
		return num{0, uint64(binary.BigEndian.Uint32(a[:4]))}
	}
	return num{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

// masked is an address under a mask as a range; false: the mask has holes.
func (u *universe) masked(a, mask [16]byte) (set, bool) {
	n := 16
	if u.family == packet.IPv4 {
		n = 4
	}
	hi := a
	ended := false
	for i := range n {
		m := mask[i]
		if ended && m != 0 || !ended && m != 0xff && (^m)&((^m)+1) != 0 {
			return nil, false
		}
		ended = ended || m != 0xff
		hi[i] = a[i] | ^m
	}
	return set{{u.num(a), u.num(hi)}}, true
}

// known is what lint knows of a rule's matches: all packets that match are in
// box, and, as far as rest is empty, all in box match.
type known struct {
	box  box
	rest []string // matches that the box does not say, as they are saved; "": one that may change between two rules
}

// know reads a rule.
func (u *universe) know(t tables.TableID, r *tables.Rule) known {
	k := known{box: u.all}
	limit := func(d int, s set) { k.box[d] = k.box[d].and(s) }
	addr := func(d int, a tables.Addr, text string) {
		if a.Mask == [16]byte{} && !a.Not {
			return
		}
		s, ok := u.masked(a.Addr, a.Mask)
		switch {
		case u.moves:
			k.rest = append(k.rest, "")
		case !ok:
			k.rest = append(k.rest, text+tables.FormatAddr(u.family, a.Addr)+"/"+tables.FormatAddr(u.family, a.Mask))
		case a.Not:
			limit(d, u.not(d, s))
		default:
			limit(d, s)
		}
	}
	addr(dimSrc, r.Src, "src ")
	addr(dimDst, r.Dst, "dst ")
	if r.In != "" {
		limit(dimIn, u.iface(r.In, r.InNot))
	}
	if r.Out != "" {
		limit(dimOut, u.iface(r.Out, r.OutNot))
	}
	if r.Proto != 0 {
		s := small(uint64(r.Proto), uint64(r.Proto))
		if r.ProtoNot {
			s = u.not(dimProto, s)
		}
		limit(dimProto, s)
	}
	if r.Fragment || r.FragmentNot {
		k.rest = append(k.rest, "fragment")
	}
	for _, m := range r.Matches {
		u.match(&k, t, m.Ext, m.Args)
	}
	return k
}

func (u *universe) match(k *known, t tables.TableID, m *tables.Match, a *tables.Args) {
	limit := func(d int, s set) { k.box[d] = k.box[d].and(s) }
	ports := func(d int, v *tables.Value) {
		s := small(0, 65535)
		if v.Set {
			in := small(v.Lo, v.Hi)
			if v.Lo > v.Hi {
				in = nil
			}
			if v.Not {
				s = s.minus(in)
			} else {
				s = in
			}
		}
		limit(d, s)
	}
	switch m.Name {
	case "comment":
		return
	case "tcp":
		ports(dimSport, a.Get("sport"))
		ports(dimDport, a.Get("dport"))
		if v := a.Get("tcp-flags"); v.Set {
			var s set
			for f := range uint64(64) {
				if (f&v.Hi == v.Lo) != v.Not {
					s = s.or(small(f, f))
				}
			}
			limit(dimFlags, s)
		} else {
			limit(dimFlags, small(0, 63))
		}
		if !a.Has("tcp-option") {
			return
		}
	case "udp":
		ports(dimSport, a.Get("source-port"))
		ports(dimDport, a.Get("destination-port"))
		return
	case "multiport":
		// Where one port can be read the other can, and TCP's flags.
		limit(dimSport, small(0, 65535))
		limit(dimDport, small(0, 65535))
		if k.box[dimProto].equal(small(uint64(packet.ProtoTCP), uint64(packet.ProtoTCP))) {
			limit(dimFlags, small(0, 63))
		}
		for _, x := range []struct {
			name string
			d    int
		}{{"source-ports", dimSport}, {"destination-ports", dimDport}} {
			if v := a.Get(x.name); v.Set {
				var s set
				for _, r := range v.List {
					s = s.or(small(r.Lo, r.Hi))
				}
				if v.Not {
					s = small(0, 65535).minus(s)
				}
				limit(x.d, s)
			}
		}
		if !a.Has("ports") {
			return
		}
	case "state", "conntrack":
		name := "state"
		if m.Name == "conntrack" {
			name = "ctstate"
		}
		v := a.Get(name)
		others := a.Count()
		if v.Set && t != tables.Raw {
			others--
			var s set
			for i := range states {
				if (v.Lo>>i&1 != 0) != v.Not {
					s = s.or(small(uint64(i), uint64(i)))
				}
			}
			if v.Lo&^stateBits == 0 {
				limit(dimState, s)
			} else if others++; v.Not { // without SNAT and DNAT: at least none of the others
				limit(dimState, s)
			}
		}
		if others == 0 {
			return
		}
	case "iprange":
		if u.moves {
			k.rest = append(k.rest, "")
			return
		}
		for _, x := range []struct {
			name string
			d    int
		}{{"src-range", dimSrc}, {"dst-range", dimDst}} {
			if v := a.Get(x.name); v.Set {
				lo, hi := u.num(v.A), u.num(v.B)
				var s set
				if !hi.less(lo) {
					s = set{{lo, hi}}
				}
				if v.Not {
					s = u.not(x.d, s)
				}
				limit(x.d, s)
			}
		}
		return
	case "icmp", "icmp6":
		name := "icmp-type"
		if m.Name == "icmp6" {
			name = "icmpv6-type"
		}
		v := a.Get(name)
		s := small(v.Lo<<8|v.Hi>>8, v.Lo<<8|v.Hi&0xff)
		if m.Name == "icmp" && v.Lo == 0xff {
			s = small(0, 65535)
		}
		if v.Not {
			s = small(0, 65535).minus(s)
		}
		limit(dimICMP, s)
		return
	}
	text := m.Name
	if m.Save != nil {
		text += m.Save(a)
	} else {
		text += a.SaveOptions()
	}
	// Sets change from outside at any time.
	if m.Depends == 0 || m.Depends&(u.changes|tables.DependsSets) != 0 {
		text = ""
	}
	k.rest = append(k.rest, text)
}

// within: everything that k leaves unsaid, o says as well, and it does not
// change between the two.
func (k *known) within(o *known) bool {
	for _, x := range k.rest {
		if x == "" {
			return false
		}
		found := false
		for _, y := range o.rest {
			found = found || x == y
		}
		if !found {
			return false
		}
	}
	return true
}
