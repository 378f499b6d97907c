package ext

import (
	"fmt"
	"net/netip"
	"strings"

	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
)

// natRange is the argument of the targets of table nat: addresses in Value.A and
// B, ports in List[0], the base of a shifted range in Hi, and in Lo which of
// them there are (nat.RangeFlags).
type natRange struct {
	portsOnly bool // MASQUERADE, REDIRECT
	shift     bool // DNAT: "/base" means something
	noShift   bool // REDIRECT: "/base" is refused in the end
}

func (natRange) Args() int { return 1 }

func (t natRange) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if t.portsOnly {
		return t.ports(o, text[0], v)
	}
	s := text[0]
	addrs, ports, hasPorts := s, "", false
	colon := strings.IndexByte(s, ':')
	if o.Family == packet.IPv6 {
		if i := strings.IndexByte(s, '['); i >= 0 {
			end := strings.IndexByte(s[i:], ']')
			if end < 0 {
				return tables.Usagef("Invalid address format")
			}
			addrs = s[i+1 : i+end]
			_, ports, hasPorts = strings.Cut(s[i+end+1:], ":")
			colon = -1
		}
	} else if i := strings.IndexByte(s, '['); i >= 0 {
		return tables.Usagef("Invalid address format")
	}
	if colon >= 0 && strings.IndexByte(s[colon+1:], ':') >= 0 {
		colon = -1 // more than one colon: an address
	}
	if colon >= 0 {
		addrs, ports, hasPorts = s[:colon], s[colon+1:], true
	}
	if hasPorts {
		if err := t.ports(o, ports, v); err != nil {
			return err
		}
		if addrs == "" {
			return nil
		}
	}
	from, to, isRange := strings.Cut(addrs, "-")
	var ok bool
	if v.A, ok = strictAddr(o.Family, from); !ok {
		return tables.Usagef("Bad IP address \"%s\"", from)
	}
	v.B = v.A
	if isRange {
		if v.B, ok = strictAddr(o.Family, to); !ok {
			return tables.Usagef("Bad IP address \"%s\"", to)
		}
	}
	v.Lo |= uint64(nat.MapIPs)
	return nil
}

// strictAddr is inet_pton: four decimal numbers in IPv4.
func strictAddr(fam uint8, s string) (out [16]byte, ok bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4() != (fam == packet.IPv4) || a.Zone() != "" {
		return out, false
	}
	copy(out[:], a.AsSlice())
	return out, true
}

// ports reads "port", "port-port" or "port-port/base".
func (t natRange) ports(o *tables.OptionContext, s string, v *tables.Value) error {
	switch o.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoDCCP, packet.ProtoICMP:
	default:
		return tables.Usagef("Need TCP, UDP, SCTP or DCCP with port specification")
	}
	v.Lo |= uint64(nat.ProtoSpecified)
	lo, rest, ok := tables.Strtoul(s, 0, 65535)
	if !ok {
		n, found := tables.ServicePort(s, "")
		if !found {
			return tables.Usagef("Port `%s' not valid", s)
		}
		lo, rest = uint64(n), ""
	}
	v.List = []tables.Range{{Lo: lo, Hi: lo}}
	switch {
	case rest == "":
		return nil
	case rest[0] == ':':
		return tables.Usagef("Invalid port:port syntax - use dash")
	case rest[0] != '-':
		return tables.Usagef("Garbage after port value: `%s'", rest)
	}
	s = rest[1:]
	hi, rest, ok := tables.Strtoul(s, 0, 65535)
	if !ok {
		return tables.Usagef("Port `%s' not valid", s)
	}
	if hi < lo {
		return tables.Usagef("Port range `%s' funky", s)
	}
	v.List[0].Hi = hi
	switch {
	case rest == "":
		return nil
	case rest[0] != '/':
		return tables.Usagef("Garbage after port range: `%s'", rest)
	}
	s = rest[1:]
	base, _, ok := tables.Strtoul(s, 1, 65535)
	if !ok {
		n, found := tables.ServicePort(s, "")
		if !found && !(s == "0" && !t.shift && !t.noShift) {
			return tables.Usagef("Port `%s' not valid", s)
		}
		base = uint64(n)
	}
	v.Lo |= uint64(nat.ProtoOffset)
	if t.shift {
		v.Hi = base
	}
	return nil
}

func (t natRange) Format(v *tables.Value) string { return t.format(v, 0) }

func (t natRange) format(v *tables.Value, fam uint8) string {
	var s string
	if v.Lo&uint64(nat.MapIPs) != 0 {
		s = tables.FormatAddr(fam, v.A)
		if v.A != v.B {
			s += "-" + tables.FormatAddr(fam, v.B)
		}
		if fam == packet.IPv6 && v.Lo&uint64(nat.ProtoSpecified) != 0 {
			s = "[" + s + "]"
		}
	}
	if v.Lo&uint64(nat.ProtoSpecified) == 0 {
		return s
	}
	if !t.portsOnly {
		s += ":"
	}
	s += fmt.Sprintf("%d", v.List[0].Lo)
	if v.List[0].Lo != v.List[0].Hi {
		s += fmt.Sprintf("-%d", v.List[0].Hi)
		if v.Lo&uint64(nat.ProtoOffset) != 0 {
			s += fmt.Sprintf("/%d", v.Hi)
		}
	}
	return s
}

var natFlagBits = map[string]nat.RangeFlags{
	"random": nat.ProtoRandom, "random-fully": nat.ProtoRandomFully, "persistent": nat.Persistent,
}

// rangeOf is what a target hands to NAT.
func (t natRange) rangeOf(a *tables.Args, option string) nat.Range {
	v := a.Get(option)
	r := nat.Range{Min: v.A, Max: v.B, Flags: nat.RangeFlags(v.Lo), BasePort: uint16(v.Hi)}
	if !t.shift {
		r.Flags &^= nat.ProtoOffset
	}
	if len(v.List) > 0 {
		r.MinPort, r.MaxPort = uint16(v.List[0].Lo), uint16(v.List[0].Hi)
	}
	for _, o := range a.Options() {
		if a.Has(o.Name) {
			r.Flags |= natFlagBits[o.Name]
		}
	}
	return r
}

func natOptions(first tables.Option, flags ...string) []tables.Option {
	docs := map[string]string{
		"random":       "choose ports at random, starting from a hash of the connection",
		"random-fully": "choose ports fully at random",
		"persistent":   "give a client the same address each time",
	}
	os := []tables.Option{first}
	for _, f := range flags {
		os = append(os, tables.Option{Name: f, Type: tables.Flag, Doc: docs[f]})
	}
	return os
}

// natFlags prints the flags, each after sep ("" or "--").
func natFlags(a *tables.Args, sep string) string {
	var s string
	for _, o := range a.Options()[1:] {
		if a.Has(o.Name) {
			s += " " + sep + o.Name
		}
	}
	return s
}

// natTarget is the frame of the four targets.
func natTarget(name, doc, option, label string, t natRange, required bool, at hooks.Mask, flags ...string) *tables.Target {
	o := tables.Option{Name: option, Type: t, Required: required, Arg: "[address[-address]][:port[-port]]", Doc: "the range to choose from"}
	if t.portsOnly {
		o.Arg, o.Doc = "port[-port]", "the ports to choose from"
	}
	text := func(a *tables.Args, before string) string {
		if !a.Has(option) {
			return ""
		}
		return before + t.format(a.Get(option), a.Family)
	}
	return &tables.Target{
		Name:     name,
		Families: tables.V4V6,
		Doc:      doc,
		Tables:   tables.In(tables.NAT),
		Hooks:    at,
		Options:  natOptions(o, flags...),
		Save:     func(a *tables.Args) string { return text(a, " --"+option+" ") + natFlags(a, "--") },
		List:     func(a *tables.Args, _ bool) string { return text(a, label) + natFlags(a, "") },
	}
}

// bound turns NAT's answer into a verdict.
func bound(ok bool) tables.Result {
	if ok {
		return tables.Accept
	}
	return tables.Drop
}
