package ext

import (
	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var routeRealm = namedMark{"/etc/iproute2/rt_realms"}

var matchRealm = &tables.Match{
	Name:     "realm",
	Families: tables.V4,
	Doc:      "Matches the realm of the packet's route. The router's routes are in realm 0, \"cosmos\".",
	Options: []tables.Option{{
		Name: "realm", Type: routeRealm, Required: true, Negatable: true, Arg: "value[/mask]|name", Doc: "the realm",
	}},
	Hooks: hooks.At(hooks.Input, hooks.Forward, hooks.Output, hooks.Postrouting),
	List: func(a *tables.Args, numeric bool) string {
		v := a.Get("realm")
		return notOf(v) + " realm " + routeRealm.format(v, numeric)
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := a.Get("realm")
		yes := (v.Lo == 0) != v.Not
		return func(*tables.Context, *packet.Packet) bool { return yes }, nil
	},
}
