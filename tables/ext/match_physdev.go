package ext

import (
	"errors"
	"fmt"
	"strings"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// bridgePort is a bridge port's name, or a pattern ending in '+'.
type bridgePort struct{}

func (bridgePort) Args() int { return 1 }

func (bridgePort) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if len(text[0]) > 15 {
		return tables.Usagef("interface name `%s' must be shorter than IFNAMSIZ (15)", text[0])
	}
	if strings.ContainsAny(text[0], "/ ") {
		o.Warn(fmt.Sprintf("Warning: weird character in interface `%s' ('/' and ' ' are not allowed by the kernel).", text[0]))
	}
	v.Str = text[0]
	return nil
}

func (bridgePort) Format(v *tables.Value) string { return v.Str }

var matchPhysdev = &tables.Match{
	Name:     "physdev",
	Families: tables.V4V6,
	Doc:      "Matches the bridge port that a packet came through. The router has no bridges: a rule matches only if all that it asks for is negated.",
	Options: []tables.Option{
		{Name: "physdev-is-in", Type: tables.Flag, Negatable: true, Doc: "it came in through a bridge"},
		{Name: "physdev-in", Type: bridgePort{}, Negatable: true, Arg: "name[+]", Doc: "the port it came in by"},
		{Name: "physdev-is-out", Type: tables.Flag, Negatable: true, Doc: "it leaves through a bridge"},
		{Name: "physdev-out", Type: bridgePort{}, Negatable: true, Arg: "name[+]", Doc: "the port it leaves by"},
		{Name: "physdev-is-bridged", Type: tables.Flag, Negatable: true, Doc: "it is bridged, not routed"},
	},
	First: needOption("PHYSDEV: no physdev option specified"),
	Final: func(a *tables.Args) error {
		for _, o := range []string{"physdev-in", "physdev-out"} {
			if a.Has(o) && a.Str(o) == "" {
				return tables.Usagef("physdev: \"--%s\" names no interface", o)
			}
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string { return " PHYSDEV match" + a.SaveOptions() },
	Check: func(a *tables.Args, at *tables.Place) error {
		b := a.Get("physdev-is-bridged")
		if (a.Has("physdev-out") || a.Has("physdev-is-out")) && (!b.Set || b.Not) && at.Hooks.Has(hooks.Output) {
			return errors.New("physdev: at OUTPUT the outgoing port is not known of packets that are not bridged")
		}
		return nil
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		yes := true
		for _, o := range a.Options() {
			if v := a.Get(o.Name); v.Set && !v.Not {
				yes = false
			}
		}
		return func(*tables.Context, *packet.Packet) bool { return yes }, nil
	},
}
