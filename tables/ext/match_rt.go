package ext

import (
	"errors"
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// addrList is up to 16 IPv6 addresses, in Value.Str as they are printed.
type addrList struct{}

func (addrList) Args() int { return 1 }

func (addrList) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if t := o.Args.Get("rt-type"); !t.Set || t.Lo != 0 || t.Not {
		return tables.Usagef("`--rt-type 0' required before `--rt-0-addrs'")
	}
	var out []string
	for i, w := range strings.Split(text[0], ",") {
		if i == 16 {
			return tables.Usagef("too many addresses specified")
		}
		a, ok := tables.ParseAddr(packet.IPv6, w)
		if !ok {
			return tables.Usagef("bad address: %s", w)
		}
		out = append(out, tables.FormatAddr(packet.IPv6, a))
	}
	v.Str = strings.Join(out, ",")
	return nil
}

func (addrList) Format(v *tables.Value) string { return v.Str }

func (addrList) addrs(v *tables.Value) (out [][16]byte) {
	if !v.Set {
		return nil
	}
	for _, w := range strings.Split(v.Str, ",") {
		a, _ := tables.ParseAddr(packet.IPv6, w)
		out = append(out, a)
	}
	return out
}

// flagAfter is a flag that needs something to have been given before it.
type flagAfter struct{ check func(a *tables.Args) error }

func (flagAfter) Args() int { return 0 }

func (t flagAfter) Parse(o *tables.OptionContext, _ []string, _ *tables.Value) error {
	return t.check(o.Args)
}

func (flagAfter) Format(*tables.Value) string { return "" }

var matchRT = &tables.Match{
	Name:     "rt",
	Families: tables.V6,
	Doc:      "Matches packets with a routing header, by its fields.",
	Options: []tables.Option{
		{Name: "rt-type", Type: tables.U32, Negatable: true, Arg: "type", Doc: "the header's type"},
		{Name: "rt-segsleft", Type: tables.U32Range, Negatable: true, Arg: "num[:num]", Doc: "segments left, or a range"},
		{Name: "rt-len", Type: tables.U32, Negatable: true, Arg: "length", Doc: "the header's length, bytes"},
		{Name: "rt-0-res", Type: flagAfter{func(a *tables.Args) error {
			if t := a.Get("rt-type"); !t.Set || t.Lo != 0 || t.Not {
				return tables.Usagef("`--rt-type 0' required before `--rt-0-res'")
			}
			return nil
		}}, Doc: "type 0: the reserved field is zero"},
		{Name: "rt-0-addrs", Type: addrList{}, Arg: "addr[,addr]…", Doc: "type 0: the addresses are these, up to 16"},
		{Name: "rt-0-not-strict", Type: flagAfter{func(a *tables.Args) error {
			if !a.Has("rt-0-addrs") {
				return tables.Usagef("`--rt-0-addr ...' required before `--rt-0-not-strict'")
			}
			return nil
		}}, Doc: "type 0: the addresses are among them, in this order"},
	},
	Save: func(a *tables.Args) string {
		var s string
		if v := a.Get("rt-type"); v.Set {
			s += fmt.Sprintf("%s --rt-type %d", notOf(v), v.Lo)
		}
		s += saveRange(a, "rt-segsleft")
		if v := a.Get("rt-len"); v.Set {
			s += fmt.Sprintf("%s --rt-len %d", notOf(v), v.Lo)
		}
		if a.Has("rt-0-res") {
			s += " --rt-0-res"
		}
		if a.Has("rt-0-addrs") {
			s += " --rt-0-addrs " + a.Str("rt-0-addrs")
		}
		if a.Has("rt-0-not-strict") {
			s += " --rt-0-not-strict"
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		s := " rt"
		if v := a.Get("rt-type"); v.Set {
			s += fmt.Sprintf(" type:%s%d", bang(v), int32(v.Lo))
		}
		if r := listRange(a, "rt-segsleft", "segsleft"); r != "" {
			s += " " + r
		}
		if v := a.Get("rt-len"); v.Set {
			s += fmt.Sprintf(" length:%s%d", bang(v), v.Lo)
		}
		if a.Has("rt-0-res") {
			s += " reserved"
		}
		if a.Has("rt-0-addrs") {
			s += " 0-addrs " + a.Str("rt-0-addrs")
		}
		if a.Has("rt-0-not-strict") {
			s += " 0-not-strict"
		}
		return s
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		if t := a.Get("rt-type"); (a.Has("rt-0-res") || a.Has("rt-0-addrs")) && (!t.Set || t.Lo != 0 || t.Not) {
			return errors.New("rt: the options of type 0 need --rt-type 0")
		}
		return nil
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi, not := range32(a, "rt-segsleft")
		typ, length := *a.Get("rt-type"), *a.Get("rt-len")
		reserved, loose, addrs := a.Has("rt-0-res"), a.Has("rt-0-not-strict"), addrList{}.addrs(a.Get("rt-0-addrs"))
		return func(c *tables.Context, p *packet.Packet) bool {
			h := findHeader(c, p, headerRouting, 4)
			if h == nil {
				return false
			}
			n := (int(h[1]) + 1) * 8
			if len(h) < n {
				c.Hotdrop = true
				return false
			}
			left := uint32(h[3])
			if (left >= lo && left <= hi) == not ||
				length.Set && (length.Lo == uint64(n)) == length.Not ||
				typ.Set && (typ.Lo == uint64(h[2])) == typ.Not ||
				reserved && h[4]|h[5]|h[6]|h[7] != 0 {
				return false
			}
			return addrs == nil || routeAddrs(h[8:n], addrs, loose)
		}, nil
	},
}

// routeAddrs holds the addresses of a type 0 header against a list.
func routeAddrs(b []byte, want [][16]byte, loose bool) bool {
	if !loose && len(b)/16 != len(want) {
		return false
	}
	for ; len(b) >= 16 && len(want) > 0; b = b[16:] {
		switch {
		case [16]byte(b[:16]) == want[0]:
			want = want[1:]
		case !loose:
			return false
		}
	}
	return len(want) == 0
}
