package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var (
	targetTTL = hopTarget("ttl", "TTL", tables.V4, "Changes the time to live of the IPv4 header.")
	targetHL  = hopTarget("hl", "HL", tables.V6, "Changes the hop limit of the IPv6 header.")
)

// hopTarget is TTL and HL, which differ in their names only.
func hopTarget(prefix, name string, fam tables.FamilyMask, doc string) *tables.Target {
	set, inc, dec := prefix+"-set", prefix+"-inc", prefix+"-dec"
	change := tables.Uint{Min: 1, Max: 255}
	options := []tables.Option{
		{Name: set, Type: tables.U8, Excludes: []string{inc, dec}, Arg: "value", Doc: "set to value"},
		{Name: dec, Type: change, Excludes: []string{inc, set}, Arg: "value", Doc: "decrement by value, down to 0"},
		{Name: inc, Type: change, Excludes: []string{dec, set}, Arg: "value", Doc: "increment by value, up to 255"},
	}
	return &tables.Target{
		Name: name, Families: fam, Doc: doc, Options: options,
		Tables:  tables.In(tables.Mangle),
		Depends: tables.DependsTTL,
		First:   needOption(name + ": You must specify an action"),
		List: func(a *tables.Args, _ bool) string {
			switch {
			case a.Has(set):
				return fmt.Sprintf(" %s set to %d", name, a.Num(set))
			case a.Has(dec):
				return fmt.Sprintf(" %s decrement by %d", name, a.Num(dec))
			}
			return fmt.Sprintf(" %s increment by %d", name, a.Num(inc))
		},
		Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
			value, by := int(a.Num(set)), int(a.Num(inc))-int(a.Num(dec))
			fixed := a.Has(set)
			return func(_ *tables.Context, p *packet.Packet) tables.Result {
				n := value
				if !fixed {
					n = min(max(int(p.TTL())+by, 0), 255)
				}
				if n != int(p.TTL()) {
					p.SetTTL(uint8(n))
				}
				return tables.Continue
			}, nil
		},
	}
}
