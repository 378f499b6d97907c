package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// mobilityTypes are the messages of RFC 6275 6.1.
var mobilityTypes = []struct{ long, short string }{
	{"binding-refresh-request", "brr"}, {"home-test-init", "hoti"}, {"careof-test-init", "coti"}, {"home-test", "hot"},
	{"careof-test", "cot"}, {"binding-update", "bu"}, {"binding-acknowledgement", "ba"}, {"binding-error", "be"},
}

// mobilityType is a type or a range by numbers or names, which may be cut
// short, in Value.Lo and Hi.
type mobilityType struct{}

func (mobilityType) Args() int { return 1 }

func (mobilityType) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	lo, hi, isRange := strings.Cut(text[0], ":")
	var err error
	if !isRange {
		v.Lo, err = mobilityNumber(lo)
		v.Hi = v.Lo
		return err
	}
	v.Hi = 255
	if lo != "" {
		if v.Lo, err = mobilityNumber(lo); err != nil {
			return err
		}
	}
	if hi != "" {
		if v.Hi, err = mobilityNumber(hi); err != nil {
			return err
		}
	}
	if v.Lo > v.Hi {
		return tables.Usagef("Invalid MH type range (min > max)")
	}
	return nil
}

func mobilityNumber(s string) (uint64, error) {
	for i, t := range mobilityTypes {
		if strings.EqualFold(t.long, s) || strings.EqualFold(t.short, s) {
			return uint64(i), nil
		}
	}
	for i, t := range mobilityTypes {
		if hasPrefixFold(t.long, s) || hasPrefixFold(t.short, s) {
			return uint64(i), nil
		}
	}
	n, rest, ok := tables.Strtoul(s, 0, 255)
	if !ok || rest != "" {
		return 0, tables.Usagef("Invalid MH type `%s'", s)
	}
	return n, nil
}

func (t mobilityType) Format(v *tables.Value) string { return t.text(v, true) }

func (mobilityType) text(v *tables.Value, numeric bool) string {
	name := func(n uint64) string {
		if !numeric && n < uint64(len(mobilityTypes)) {
			return mobilityTypes[n].long
		}
		return fmt.Sprint(n)
	}
	if v.Lo == v.Hi {
		return name(v.Lo)
	}
	return name(v.Lo) + ":" + name(v.Hi)
}

var matchMH = &tables.Match{
	Name:     "mh",
	Families: tables.V6,
	Doc:      "Matches messages of Mobile IPv6 by their type. Later fragments never match.",
	Protos:   []uint8{protoMobility},
	Options: []tables.Option{{
		Name: "mh-type", Type: mobilityType{}, Negatable: true, Arg: "type[:type]", Doc: "the type by number or name, or a range",
	}},
	Save: func(a *tables.Args) string {
		v := a.Get("mh-type")
		if !v.Set || v.Lo == 0 && v.Hi == 255 {
			return ""
		}
		return notOf(v) + " --mh-type " + mobilityType{}.Format(v)
	},
	List: func(a *tables.Args, numeric bool) string {
		v := a.Get("mh-type")
		if !v.Set || v.Lo == 0 && v.Hi == 255 && !v.Not {
			return " mh"
		}
		return " mh " + bang(v) + mobilityType{}.text(v, numeric)
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := *a.Get("mh-type")
		if !v.Set {
			v.Hi = 255
		}
		return func(c *tables.Context, p *packet.Packet) bool {
			h := l4Header(c, p, 6)
			if h == nil {
				return false
			}
			if h[0] != headerNone { // RFC 6275 6.1.1: nothing follows it
				c.Hotdrop = true
				return false
			}
			return (uint64(h[2]) >= v.Lo && uint64(h[2]) <= v.Hi) != v.Not
		}, nil
	},
}
