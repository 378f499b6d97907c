package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var targetCONNSECMARK = &tables.Target{
	Name:     "CONNSECMARK",
	Families: tables.V4V6,
	Doc:      "Copies the security label from the packet to its connection or back, where the other side has none yet.",
	Options: []tables.Option{
		{Name: "save", Type: tables.Flag, Excludes: []string{"restore"}, Doc: "copy the packet's label to a connection without one"},
		{Name: "restore", Type: tables.Flag, Excludes: []string{"save"}, Doc: "copy the connection's label to a packet without one"},
	},
	Tables:  tables.In(tables.Mangle, tables.Security),
	Depends: tables.DependsCtMark,
	First:   needOption("CONNSECMARK target: parameter required"),
	List: func(a *tables.Args, _ bool) string {
		if a.Has("save") {
			return " CONNSECMARK save"
		}
		return " CONNSECMARK restore"
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		save := a.Has("save")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			e := c.Entry(p)
			switch {
			case e == nil:
			case save && p.SecMark != 0 && c.CT.Table().SecMark(e) == 0:
				c.CT.Table().SetSecMark(e, p.SecMark)
			case !save && p.SecMark == 0:
				p.SecMark = c.CT.Table().SecMark(e)
			}
			return tables.Continue
		}, nil
	},
}
