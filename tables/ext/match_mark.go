package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var markOptions = []tables.Option{{
	Name: "mark", Type: tables.MarkMask, Required: true, Negatable: true,
	Arg: "value[/mask]", Doc: "the mark, looked at under the mask, is value",
}}

var matchMark = &tables.Match{
	Name:     "mark",
	Families: tables.V4V6,
	Doc:      "Matches the packet's mark, as target MARK sets it.",
	Options:  markOptions,
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("mark")
		return " mark match" + notOf(v) + " " + tables.MarkMask.Format(v)
	},
	Depends: tables.DependsMark,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := a.Get("mark")
		value, mask, inverted := uint32(v.Lo), uint32(v.Hi), v.Not
		return func(_ *tables.Context, p *packet.Packet) bool {
			return (p.Mark&mask == value) != inverted
		}, nil
	},
}
