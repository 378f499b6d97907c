package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var (
	matchTTL = hopMatch("ttl", "TTL", tables.V4, "TTL match: You must specify one of `--ttl-eq', `--ttl-lt', `--ttl-gt", "Matches the time to live of the IPv4 header.")
	matchHL  = hopMatch("hl", "HL", tables.V6, "HL match: You must specify one of `--hl-eq', `--hl-lt', `--hl-gt'", "Matches the hop limit of the IPv6 header.")
)

// hopMatch is ttl and hl, which differ in their names only.
func hopMatch(name, title string, fam tables.FamilyMask, missing, doc string) *tables.Match {
	eq, lt, gt := name+"-eq", name+"-lt", name+"-gt"
	options := []tables.Option{
		{Name: lt, Type: tables.U8, Excludes: []string{eq, gt}, Arg: "value", Doc: "less than value"},
		{Name: gt, Type: tables.U8, Excludes: []string{eq, lt}, Arg: "value", Doc: "greater than value"},
		{Name: eq, Aliases: []string{name}, Type: tables.U8, Negatable: true, Excludes: []string{lt, gt}, Arg: "value", Doc: "equal to value"},
	}
	return &tables.Match{
		Name: name, Families: fam, Doc: doc, Options: options,
		Depends: tables.DependsTTL,
		First:   needOption(missing),
		List: func(a *tables.Args, _ bool) string {
			s := " " + title + " match " + title
			switch {
			case a.Has(lt):
				return fmt.Sprintf("%s < %d", s, a.Num(lt))
			case a.Has(gt):
				return fmt.Sprintf("%s > %d", s, a.Num(gt))
			case a.Not(eq):
				return fmt.Sprintf("%s != %d", s, a.Num(eq))
			}
			return fmt.Sprintf("%s == %d", s, a.Num(eq))
		},
		Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
			lo, hi, not := 0, 255, false
			switch {
			case a.Has(lt):
				hi = int(a.Num(lt)) - 1
			case a.Has(gt):
				lo = int(a.Num(gt)) + 1
			default:
				lo, hi, not = int(a.Num(eq)), int(a.Num(eq)), a.Not(eq)
			}
			return func(_ *tables.Context, p *packet.Packet) bool {
				n := int(p.TTL())
				return (n >= lo && n <= hi) != not
			}, nil
		},
	}
}
