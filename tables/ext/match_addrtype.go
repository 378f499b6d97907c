package ext

import (
	"errors"
	"net/netip"
	"strings"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// addrTypes are the route types by number (RTN_*).
var addrTypes = []string{"UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT", "THROW", "NAT", "XRESOLVE"}

const (
	addrTypeUnspec = iota
	addrTypeUnicast
	addrTypeLocal
	addrTypeBroadcast
	addrTypeAnycast
	addrTypeMulticast
	addrTypeBlackhole
	addrTypeUnreachable
	addrTypeProhibit
)

// addrTypeSet is a comma-separated list of types, as bits in Value.Lo.
type addrTypeSet struct{}

func (addrTypeSet) Args() int { return 1 }

func (addrTypeSet) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	for rest := text[0]; ; {
		w, more, comma := strings.Cut(rest, ",")
		bit, ok := addrTypeBit(w)
		switch {
		case !ok && comma:
			return tables.Usagef("addrtype: bad type `%s'", rest)
		case !ok:
			return tables.Usagef("addrtype: bad type \"%s\"", rest)
		}
		v.Lo |= bit
		if !comma {
			return nil
		}
		rest = more
	}
}

// addrTypeBit finds the first type that begins with w.
func addrTypeBit(w string) (uint64, bool) {
	for i, name := range addrTypes {
		if w != "" && len(w) <= len(name) && strings.EqualFold(name[:len(w)], w) {
			return 1 << i, true
		}
	}
	return 0, false
}

func (addrTypeSet) Format(v *tables.Value) string {
	var names []string
	for i, name := range addrTypes {
		if v.Lo>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

var matchAddrType = &tables.Match{
	Name:     "addrtype",
	Families: tables.V4V6,
	Doc:      "Matches what routing thinks an address is: LOCAL, UNICAST, BROADCAST, MULTICAST and so on.",
	Options: []tables.Option{
		{Name: "src-type", Type: addrTypeSet{}, Negatable: true, Arg: "type[,…]", Doc: "source address is of one of the types"},
		{Name: "dst-type", Type: addrTypeSet{}, Negatable: true, Arg: "type[,…]", Doc: "destination address is of one of the types"},
		{Name: "limit-iface-in", Type: tables.Flag, Excludes: []string{"limit-iface-out"}, Doc: "look at the incoming interface alone"},
		{Name: "limit-iface-out", Type: tables.Flag, Excludes: []string{"limit-iface-in"}, Doc: "look at the outgoing interface alone"},
	},
	Depends: tables.DependsRoutes,
	First: func(a *tables.Args) error {
		if !a.Has("src-type") && !a.Has("dst-type") {
			return tables.Usagef("addrtype: you must specify --src-type or --dst-type")
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		s := " ADDRTYPE match"
		for _, o := range []string{"src-type", "dst-type"} {
			if v := a.Get(o); v.Set {
				s += " " + o + " "
				if v.Not {
					s += "!"
				}
				s += addrTypeSet{}.Format(v)
			}
		}
		if a.Has("limit-iface-in") {
			s += " limit-in"
		}
		if a.Has("limit-iface-out") {
			s += " limit-out"
		}
		return s
	},
	Check: func(a *tables.Args, at *tables.Place) error {
		if a.Has("limit-iface-out") && at.Hooks&hooks.At(hooks.Prerouting, hooks.Input) != 0 {
			return errors.New("there is no outgoing interface in PREROUTING and INPUT")
		}
		if a.Has("limit-iface-in") && at.Hooks&hooks.At(hooks.Postrouting, hooks.Output) != 0 {
			return errors.New("there is no incoming interface in POSTROUTING and OUTPUT")
		}
		if types := a.Num("src-type") | a.Num("dst-type"); at.Family == packet.IPv6 {
			if types >= 1<<addrTypeProhibit {
				return errors.New("IPv6 has no PROHIBIT, THROW, NAT and XRESOLVE addresses")
			}
			if types>>addrTypeBlackhole&1 != 0 {
				return errors.New("IPv6 has no BLACKHOLE addresses")
			}
			if types>>addrTypeBroadcast&1 != 0 {
				return errors.New("IPv6 has no BROADCAST addresses")
			}
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		src, dst := *a.Get("src-type"), *a.Get("dst-type")
		limitIn, limitOut := a.Has("limit-iface-in"), a.Has("limit-iface-out")
		return func(c *tables.Context, p *packet.Packet) bool {
			var dev *packet.Iface
			if limitIn {
				dev = p.In
			} else if limitOut {
				dev = p.Out
			}
			is := func(addr [16]byte, v *tables.Value) bool {
				if p.Family == packet.IPv6 {
					return isType6(c.Env.Routes, addr, dev, v.Lo) != v.Not
				}
				return (v.Lo>>c.Env.Routes.AddrType(p.Family, addr, dev)&1 != 0) != v.Not
			}
			return (!src.Set || is(p.Src(), &src)) && (!dst.Set || is(p.Dst(), &dst))
		}, nil
	},
}

// isType6 is what several types at once mean for IPv6: the address is of each
// kind that its bits tell, and of one of those that only routing knows.
func isType6(r tables.Routes, addr [16]byte, dev *packet.Iface, types uint64) bool {
	a := netip.AddrFrom16(addr)
	has := func(t uint8) bool { return types>>t&1 != 0 }
	switch {
	case has(addrTypeMulticast) && !a.IsMulticast(),
		has(addrTypeUnicast) && (a.IsMulticast() || a.IsUnspecified() || a.Is4In6()),
		has(addrTypeUnspec) && !a.IsUnspecified():
		return false
	}
	if !has(addrTypeLocal) && !has(addrTypeAnycast) && !has(addrTypeUnreachable) {
		return true
	}
	t := r.AddrType(packet.IPv6, addr, dev)
	if t == addrTypeBlackhole || t == addrTypeProhibit {
		t = addrTypeUnreachable
	}
	return (t == addrTypeLocal || t == addrTypeAnycast || t == addrTypeUnreachable) && has(t)
}
