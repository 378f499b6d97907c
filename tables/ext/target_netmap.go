package ext

import (
	"fmt"

	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
)

// network is address/mask, as HostMask, without host bits.
type network struct{}

func (network) Args() int { return 1 }

func (network) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := tables.HostMask.Parse(o, text, v); err != nil {
		return err
	}
	for i := range v.A {
		v.A[i] &= v.B[i]
	}
	return nil
}

func (network) Format(v *tables.Value) string {
	return fmt.Sprintf("%s/%d", tables.FormatAddr(uint8(v.Lo), v.A), v.Hi)
}

var targetNETMAP = &tables.Target{
	Name:     "NETMAP",
	Families: tables.V4V6,
	Doc:      "Gives a network's addresses those of another, one to one: the destination before routing, the source behind it.",
	Tables:   tables.In(tables.NAT),
	Hooks:    hooks.At(hooks.Prerouting, hooks.Input, hooks.Output, hooks.Postrouting),
	Options: []tables.Option{{
		Name: "to", Type: network{}, Required: true, Arg: "address[/mask]", Doc: "the other network",
	}},
	List: func(a *tables.Args, _ bool) string { return " to:" + network{}.Format(a.Get("to")) },
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		to, mask := a.Get("to").A, a.Get("to").B
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.NAT == nil {
				return tables.Accept
			}
			old, manip := p.Src(), nat.Src
			if c.Hook == hooks.Prerouting || c.Hook == hooks.Output {
				old, manip = p.Dst(), nat.Dst
			}
			for i := range old {
				old[i] = old[i]&^mask[i] | to[i]
			}
			if p.Family == packet.IPv4 {
				clear(old[4:])
			}
			r := nat.Range{Min: old, Max: old, Flags: nat.MapIPs}
			return bound(c.NAT.Setup(c.CT, p, &r, manip))
		}, nil
	},
}
