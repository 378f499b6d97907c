package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var targetDSCP = &tables.Target{
	Name:     "DSCP",
	Families: tables.V4V6,
	Doc:      "Sets the 6-bit DSCP field within the TOS byte or traffic class; the ECN bits stay.",
	Options: []tables.Option{
		{Name: "set-dscp", Type: dscpValue{tables.Uint{Max: 63}}, Excludes: []string{"set-dscp-class"}, Arg: "value", Doc: "code point, 0 to 63"},
		{Name: "set-dscp-class", Type: dscpClass{}, Arg: "name", Doc: "class: BE, EF, AFxx or CSx"},
	},
	Tables:  tables.In(tables.Mangle),
	Depends: tables.DependsTOS,
	First:   needOption("DSCP target: Parameter --set-dscp is required"),
	Final:   dscpFinal("set-dscp", "set-dscp-class"),
	List:    func(a *tables.Args, _ bool) string { return fmt.Sprintf(" DSCP set 0x%02x", a.Num("set-dscp")) },
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		val := uint8(a.Num("set-dscp")) << 2
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			if old := p.TOS(); old&0xfc != val {
				p.SetTOS(old&3 | val)
			}
			return tables.Continue
		}, nil
	},
}
