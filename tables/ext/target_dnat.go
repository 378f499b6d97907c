package ext

import (
	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
)

var dnatRange = natRange{shift: true}

var targetDNAT = func() *tables.Target {
	t := natTarget("DNAT", "Gives the connection another destination address, port or both.",
		"to-destination", " to:", dnatRange, true, hooks.At(hooks.Prerouting, hooks.Output), "random", "persistent")
	t.Compile = func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		r := dnatRange.rangeOf(a, "to-destination")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			return bound(c.NAT == nil || c.NAT.Setup(c.CT, p, &r, nat.Dst))
		}, nil
	}
	return t
}()
