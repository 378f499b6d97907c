package ext

import (
	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var matchEUI64 = &tables.Match{
	Name:     "eui64",
	Families: tables.V6,
	Doc:      "Matches packets whose source address was made of the sender's Ethernet address. There are none on the router's interfaces: nothing matches.",
	Hooks:    hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward),
	List:     func(*tables.Args, bool) string { return "" },
	Depends:  tables.DependsNothing,
	Compile: func(*tables.Args, *tables.Env) (tables.Pred, error) {
		return func(*tables.Context, *packet.Packet) bool { return false }, nil
	},
}
