package ext

import (
	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
)

var snatRange = natRange{}

var targetSNAT = func() *tables.Target {
	t := natTarget("SNAT", "Gives the connection another source address, port or both.",
		"to-source", " to:", snatRange, true, hooks.At(hooks.Input, hooks.Postrouting), "random", "random-fully", "persistent")
	t.Compile = func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		r := snatRange.rangeOf(a, "to-source")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			return bound(c.NAT == nil || c.NAT.Setup(c.CT, p, &r, nat.Src))
		}, nil
	}
	return t
}()
