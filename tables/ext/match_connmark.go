package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var matchConnmark = &tables.Match{
	Name:     "connmark",
	Families: tables.V4V6,
	Doc:      "Matches the mark of the packet's connection; never without a connection.",
	Options:  markOptions,
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("mark")
		s := " connmark match "
		if v.Not {
			s += "!"
		}
		return s + " " + tables.MarkMask.Format(v)
	},
	Depends: tables.DependsCtMark,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := a.Get("mark")
		value, mask, inverted := uint32(v.Lo), uint32(v.Hi), v.Not
		return func(c *tables.Context, p *packet.Packet) bool {
			e := connection(c, p)
			return e != nil && (e.Mark()&mask == value) != inverted
		}, nil
	},
}
