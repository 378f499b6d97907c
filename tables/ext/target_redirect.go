package ext

import (
	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
)

var redirRange = natRange{portsOnly: true, noShift: true}

var targetREDIRECT = func() *tables.Target {
	t := natTarget("REDIRECT", "Sends the connection to the router itself: to the first address of the interface it came in by, or to loopback at OUTPUT.",
		"to-ports", " redir ports ", redirRange, false, hooks.At(hooks.Prerouting, hooks.Output), "random")
	t.First = func(a *tables.Args) error {
		if a.Num("to-ports")&uint64(nat.ProtoOffset) != 0 {
			return tables.Usagef("Shifted portmap ranges not supported with this kernel")
		}
		return nil
	}
	t.Compile = func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		r := redirRange.rangeOf(a, "to-ports")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.NAT == nil {
				return tables.Accept
			}
			var dst [16]byte // zero, where there is no address: NAT drops and says so
			switch {
			case c.Hook == hooks.Output && p.Family == packet.IPv4:
				dst = [16]byte{127, 0, 0, 1}
			case c.Hook == hooks.Output:
				dst[15] = 1
			case p.In != nil && env.Routes != nil:
				dst, _ = env.Routes.FirstAddr(p.Family, p.In)
			}
			return bound(c.NAT.Redirect(c.CT, p, &r, dst))
		}, nil
	}
	return t
}()
