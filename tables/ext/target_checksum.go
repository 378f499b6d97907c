package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var targetCHECKSUM = &tables.Target{
	Name:     "CHECKSUM",
	Families: tables.V4V6,
	Doc:      "Computes a checksum that was left to the device (offload), for receivers that cannot do without.",
	Options: []tables.Option{
		{Name: "checksum-fill", Type: tables.Flag, Required: true, Doc: "compute and fill in the checksum"},
	},
	Tables: tables.In(tables.Mangle),
	// Depends is zero: it changes what is no header field.
	List: func(*tables.Args, bool) string { return " CHECKSUM fill" },
	Compile: func(*tables.Args, *tables.Env) (tables.TargetFunc, error) {
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			if p.GSO.Type == packet.GSONone && p.GSO.NeedsCsum {
				p.CompleteChecksum()
			}
			return tables.Continue
		}, nil
	},
}
