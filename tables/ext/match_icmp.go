package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// icmpName is a name for a type and a range of codes.
type icmpName struct {
	name       string
	typ        uint8
	codeLo, hi uint8
}

var icmpNames4 = []icmpName{
	{"any", 0xff, 0, 0xff},
	{"echo-reply", 0, 0, 0xff}, {"pong", 0, 0, 0xff},
	{"destination-unreachable", 3, 0, 0xff},
	{"network-unreachable", 3, 0, 0}, {"host-unreachable", 3, 1, 1}, {"protocol-unreachable", 3, 2, 2},
	{"port-unreachable", 3, 3, 3}, {"fragmentation-needed", 3, 4, 4}, {"source-route-failed", 3, 5, 5},
	{"network-unknown", 3, 6, 6}, {"host-unknown", 3, 7, 7}, {"network-prohibited", 3, 9, 9},
	{"host-prohibited", 3, 10, 10}, {"TOS-network-unreachable", 3, 11, 11}, {"TOS-host-unreachable", 3, 12, 12},
	{"communication-prohibited", 3, 13, 13}, {"host-precedence-violation", 3, 14, 14}, {"precedence-cutoff", 3, 15, 15},
	{"source-quench", 4, 0, 0xff},
	{"redirect", 5, 0, 0xff},
	{"network-redirect", 5, 0, 0}, {"host-redirect", 5, 1, 1}, {"TOS-network-redirect", 5, 2, 2}, {"TOS-host-redirect", 5, 3, 3},
	{"echo-request", 8, 0, 0xff}, {"ping", 8, 0, 0xff},
	{"router-advertisement", 9, 0, 0xff}, {"router-solicitation", 10, 0, 0xff},
	{"time-exceeded", 11, 0, 0xff}, {"ttl-exceeded", 11, 0, 0xff},
	{"ttl-zero-during-transit", 11, 0, 0}, {"ttl-zero-during-reassembly", 11, 1, 1},
	{"parameter-problem", 12, 0, 0xff}, {"ip-header-bad", 12, 0, 0}, {"required-option-missing", 12, 1, 1},
	{"timestamp-request", 13, 0, 0xff}, {"timestamp-reply", 14, 0, 0xff},
	{"address-mask-request", 17, 0, 0xff}, {"address-mask-reply", 18, 0, 0xff},
}

var icmpNames6 = []icmpName{
	{"destination-unreachable", 1, 0, 0xff},
	{"no-route", 1, 0, 0}, {"communication-prohibited", 1, 1, 1}, {"beyond-scope", 1, 2, 2},
	{"address-unreachable", 1, 3, 3}, {"port-unreachable", 1, 4, 4}, {"failed-policy", 1, 5, 5}, {"reject-route", 1, 6, 6},
	{"packet-too-big", 2, 0, 0xff},
	{"time-exceeded", 3, 0, 0xff}, {"ttl-exceeded", 3, 0, 0xff},
	{"ttl-zero-during-transit", 3, 0, 0}, {"ttl-zero-during-reassembly", 3, 1, 1},
	{"parameter-problem", 4, 0, 0xff}, {"bad-header", 4, 0, 0}, {"unknown-header-type", 4, 1, 1}, {"unknown-option", 4, 2, 2},
	{"echo-request", 128, 0, 0xff}, {"ping", 128, 0, 0xff}, {"echo-reply", 129, 0, 0xff}, {"pong", 129, 0, 0xff},
	{"router-solicitation", 133, 0, 0xff}, {"router-advertisement", 134, 0, 0xff},
	{"neighbour-solicitation", 135, 0, 0xff}, {"neighbor-solicitation", 135, 0, 0xff},
	{"neighbour-advertisement", 136, 0, 0xff}, {"neighbor-advertisement", 136, 0, 0xff},
	{"redirect", 137, 0, 0xff},
}

// icmpType is "type", "type/code" or a name that may be cut short: the type in
// Value.Lo, codes in Hi as lo<<8|hi.
type icmpType struct {
	proto string
	names []icmpName
}

func (icmpType) Args() int { return 1 }

func (t icmpType) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	s := text[0]
	hit := -1
	for i, n := range t.names {
		if len(s) > len(n.name) || !strings.EqualFold(s, n.name[:len(s)]) {
			continue
		}
		if hit >= 0 {
			return tables.Usagef("Ambiguous %s type `%s': `%s' or `%s'?", t.proto, s, t.names[hit].name, n.name)
		}
		hit = i
	}
	if hit >= 0 {
		n := t.names[hit]
		v.Lo, v.Hi = uint64(n.typ), uint64(n.codeLo)<<8|uint64(n.hi)
		return nil
	}
	lo, hi, rest, ok := icmpRange(s)
	if !ok {
		return tables.Usagef("Unknown %s type `%s'", t.proto, s)
	}
	v.Lo, v.Hi = lo, 0xff
	if strings.HasPrefix(rest, "/") {
		from, to, more, ok := icmpRange(rest[1:])
		if !ok {
			return tables.Usagef("Unknown %s code `%s'", t.proto, s)
		}
		v.Hi, rest = from<<8|to, more
	}
	if rest != "" {
		return tables.Usagef("unknown character %c", rest[0])
	}
	if lo != hi {
		return tables.Usagef("%s type range not supported", t.proto)
	}
	return nil
}

// icmpRange reads "n" or "n:m" at the beginning of s.
func icmpRange(s string) (lo, hi uint64, rest string, ok bool) {
	if lo, rest, ok = tables.Strtoul(s, 0, 255); ok && strings.HasPrefix(rest, ":") {
		hi, rest, ok = tables.Strtoul(rest[1:], 0, 255)
		return lo, hi, rest, ok
	}
	return lo, lo, rest, ok
}

func (t icmpType) Format(v *tables.Value) string {
	lo, hi := v.Hi>>8, v.Hi&0xff
	switch {
	case t.proto == "ICMP" && v.Lo == 0xff:
		return "any"
	case lo == 0 && hi == 0xff:
		return fmt.Sprintf("%d", v.Lo)
	}
	return fmt.Sprintf("%d/%d", v.Lo, lo)
}

func (t icmpType) list(v *tables.Value, numeric bool) string {
	lo, hi := v.Hi>>8, v.Hi&0xff
	if !numeric {
		for _, n := range t.names {
			if uint64(n.typ) == v.Lo && uint64(n.codeLo) == lo && uint64(n.hi) == hi {
				return " " + bang(v) + n.name
			}
		}
	}
	s := notOf(v) + fmt.Sprintf("type %d", v.Lo)
	switch {
	case lo == hi:
		s += fmt.Sprintf(" code %d", lo)
	case lo != 0 || hi != 0xff:
		s += fmt.Sprintf(" codes %d-%d", lo, hi)
	}
	return s
}

// icmpPred matches type and code; any takes every type.
func icmpPred(v tables.Value, any bool) tables.Pred {
	typ, lo, hi := uint8(v.Lo), uint8(v.Hi>>8), uint8(v.Hi)
	return func(c *tables.Context, p *packet.Packet) bool {
		if p.Flags&packet.LaterFragment != 0 {
			return false
		}
		// Linux wants the header's eight bytes, and drops what has fewer.
		b := p.Transport()
		if len(b) < 8 {
			c.Hotdrop = true
			return false
		}
		ok := any || b[0] == typ && b[1] >= lo && b[1] <= hi
		return ok != v.Not
	}
}

func icmpMatch(name, option, label string, fam tables.FamilyMask, proto uint8, t icmpType) *tables.Match {
	return &tables.Match{
		Name:     name,
		Families: fam,
		Doc:      "Matches the type and code of " + t.proto + " messages.",
		Protos:   []uint8{proto},
		Options: []tables.Option{{
			Name: option, Type: t, Required: true, Negatable: true,
			Arg: "type[/code]|name", Doc: "the message's type, by number or name",
		}},
		Save: func(a *tables.Args) string {
			return notOf(a.Get(option)) + " --" + option + " " + t.Format(a.Get(option))
		},
		List: func(a *tables.Args, numeric bool) string {
			return " " + label + t.list(a.Get(option), numeric)
		},
		Depends: tables.DependsL4Header,
		Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
			v := *a.Get(option)
			return icmpPred(v, t.proto == "ICMP" && v.Lo == 0xff), nil
		},
	}
}

var matchICMP = icmpMatch("icmp", "icmp-type", "icmp", tables.V4, packet.ProtoICMP, icmpType{"ICMP", icmpNames4})
