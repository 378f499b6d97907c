package ext

import (
	"sluice/packet"
	"sluice/tables"
)

// targetQUEUE is iptables' verdict of that name: NFQUEUE's queue 0.
var targetQUEUE = &tables.Target{
	Name:     "QUEUE",
	Families: tables.V4V6,
	Doc:      "Hands the packet to the program that listens at queue 0; without one it is dropped.",
	Compile: func(*tables.Args, *tables.Env) (tables.TargetFunc, error) {
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.Queue == nil {
				return tables.Drop
			}
			return c.Queue(0, false, p)
		}, nil
	},
}
