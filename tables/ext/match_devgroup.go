package ext

import (
	"errors"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var deviceGroup = namedMark{"/etc/iproute2/group"}

var matchDevGroup = &tables.Match{
	Name:     "devgroup",
	Families: tables.V4V6,
	Doc:      "Matches the group of the interface that the packet came in or leaves by. The router's interfaces are in group 0, \"default\".",
	Options: []tables.Option{
		{Name: "src-group", Type: deviceGroup, Negatable: true, Arg: "value[/mask]|name", Doc: "group of the incoming interface"},
		{Name: "dst-group", Type: deviceGroup, Negatable: true, Arg: "value[/mask]|name", Doc: "group of the outgoing interface"},
	},
	First: needOption("devgroup match: You must specify either '--src-group' or '--dst-group'"),
	List: func(a *tables.Args, numeric bool) string {
		var s string
		for _, o := range []string{"src-group", "dst-group"} {
			if v := a.Get(o); v.Set {
				s += notOf(v) + " " + o + " " + deviceGroup.format(v, numeric)
			}
		}
		return s
	},
	Check: func(a *tables.Args, at *tables.Place) error {
		if a.Has("src-group") && at.Hooks&^hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward) != 0 {
			return errors.New("devgroup --src-group: there is no incoming interface at OUTPUT and POSTROUTING")
		}
		if a.Has("dst-group") && at.Hooks&^hooks.At(hooks.Forward, hooks.Output, hooks.Postrouting) != 0 {
			return errors.New("devgroup --dst-group: there is no outgoing interface at PREROUTING and INPUT")
		}
		return nil
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		yes := true
		for _, o := range []string{"src-group", "dst-group"} {
			if v := a.Get(o); v.Set && (v.Lo&v.Hi == 0) == v.Not {
				yes = false
			}
		}
		return func(*tables.Context, *packet.Packet) bool { return yes }, nil
	},
}
