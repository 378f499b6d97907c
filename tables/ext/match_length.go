package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var matchLength = &tables.Match{
	Name:     "length",
	Families: tables.V4V6,
	Doc:      "Matches the length of the layer-3 packet, in bytes.",
	Options: []tables.Option{{
		Name: "length", Type: tables.U16Range, Required: true, Negatable: true,
		Arg: "length[:length]", Doc: "length or range of lengths, in bytes",
	}},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("length")
		if v.Not {
			return " length !" + tables.U16Range.Format(v)
		}
		return " length " + tables.U16Range.Format(v)
	},
	Depends: tables.DependsLength,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi := a.Range("length")
		not := a.Not("length")
		return func(c *tables.Context, p *packet.Packet) bool {
			n := uint64(p.Len())
			c.LookLength(uint32(n), uint32(lo), uint32(hi))
			return (n >= lo && n <= hi) != not
		}, nil
	},
}
