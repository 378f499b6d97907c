package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var targetTRACE = &tables.Target{
	Name:     "TRACE",
	Families: tables.V4V6,
	Doc:      "Has the log say which rules the packet matches from here on, in every table and chain.",
	List:     func(*tables.Args, bool) string { return "" },
	Compile: func(*tables.Args, *tables.Env) (tables.TargetFunc, error) {
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			p.Traced = true
			return tables.Continue
		}, nil
	},
}
