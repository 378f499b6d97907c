package ext

import (
	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var masqRange = natRange{portsOnly: true}

var targetMASQUERADE = func() *tables.Target {
	t := natTarget("MASQUERADE", "Gives the connection the address of the interface it leaves by as its source.",
		"to-ports", " masq ports: ", masqRange, false, hooks.At(hooks.Postrouting), "random", "random-fully")
	t.Compile = func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		r := masqRange.rangeOf(a, "to-ports")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.NAT == nil {
				return tables.Accept
			}
			var src [16]byte // zero, where there is no address: NAT drops and says so
			if p.Out != nil && env.Routes != nil {
				hop := p.Route.NextHop
				if p.Family == packet.IPv6 || hop == [16]byte{} {
					hop = p.Dst()
				}
				src, _ = env.Routes.SourceFor(p.Family, p.Out, hop)
			}
			return bound(c.NAT.Masquerade(c.CT, p, &r, src))
		}, nil
	}
	return t
}()
