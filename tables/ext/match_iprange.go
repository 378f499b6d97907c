package ext

import (
	"bytes"
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// addrRange is addr[-addr], in Value.A and B.
type addrRange struct{}

func (addrRange) Args() int { return 1 }

func (addrRange) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	from, to, has := strings.Cut(text[0], "-")
	if !has {
		to = from
	}
	for _, e := range []struct {
		s   string
		out *[16]byte
	}{{from, &v.A}, {to, &v.B}} {
		a, ok := tables.ParseAddr(o.Family, e.s)
		if !ok {
			return tables.Usagef("iprange: Bad value for \"--%s\" option: \"%s\"", o.Name, e.s)
		}
		*e.out = a
	}
	v.Lo = uint64(o.Family)
	if bytes.Compare(v.A[:], v.B[:]) > 0 {
		o.Warn("xt_iprange: range " + from + "-" + to + " is reversed and will never match")
	}
	return nil
}

func (addrRange) Format(v *tables.Value) string {
	return tables.FormatAddr(uint8(v.Lo), v.A) + "-" + tables.FormatAddr(uint8(v.Lo), v.B)
}

var matchIPRange = &tables.Match{
	Name:     "iprange",
	Families: tables.V4V6,
	Doc:      "Matches a range of addresses that need not be a prefix.",
	Options: []tables.Option{
		{Name: "src-range", Type: addrRange{}, Negatable: true, Arg: "from[-to]", Doc: "source address in the range"},
		{Name: "dst-range", Type: addrRange{}, Negatable: true, Arg: "from[-to]", Doc: "destination address in the range"},
	},
	Hint: func(a *tables.Args) (h tables.Hint) {
		if v := a.Get("src-range"); v.Set && !v.Not {
			h.Src = tables.Covering(packet.Addr(a.Family, v.A), packet.Addr(a.Family, v.B))
		}
		if v := a.Get("dst-range"); v.Set && !v.Not {
			h.Dst = tables.Covering(packet.Addr(a.Family, v.A), packet.Addr(a.Family, v.B))
		}
		return h
	},
	Depends: tables.DependsNothing,
	First:   needOption("iprange match: You must specify `--src-range' or `--dst-range'"),
	List: func(a *tables.Args, _ bool) string {
		var s string
		for _, o := range [][2]string{{"src-range", "source"}, {"dst-range", "destination"}} {
			v := a.Get(o[0])
			if !v.Set {
				continue
			}
			not := ""
			if v.Not {
				not = "! "
			}
			s += fmt.Sprintf(" %s IP range %s%s", o[1], not, addrRange{}.Format(v))
		}
		return s
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		src, dst := *a.Get("src-range"), *a.Get("dst-range")
		return func(_ *tables.Context, p *packet.Packet) bool {
			return (!src.Set || inRange(p.Src(), &src) != src.Not) && (!dst.Set || inRange(p.Dst(), &dst) != dst.Not)
		}, nil
	},
}

func inRange(a [16]byte, v *tables.Value) bool {
	return bytes.Compare(a[:], v.A[:]) >= 0 && bytes.Compare(a[:], v.B[:]) <= 0
}
