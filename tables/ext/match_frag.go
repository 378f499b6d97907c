package ext

import (
	"encoding/binary"
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var matchFrag = &tables.Match{
	Name:     "frag",
	Families: tables.V6,
	Doc:      "Matches packets with a fragment header, by its fields. Fragments have been put together before the rules, so few packets have one.",
	Options: []tables.Option{
		{Name: "fragid", Type: tables.U32Range, Negatable: true, Arg: "id[:id]", Doc: "identification, or a range"},
		{Name: "fraglen", Type: tables.U32, Negatable: true, Arg: "length", Doc: "accepted, without effect, as in Linux"},
		{Name: "fragres", Type: tables.Flag, Doc: "the reserved bits are zero"},
		{Name: "fragfirst", Type: tables.Flag, Doc: "the first fragment"},
		{Name: "fragmore", Type: tables.Flag, Excludes: []string{"fraglast"}, Doc: "more fragments follow"},
		{Name: "fraglast", Type: tables.Flag, Excludes: []string{"fragmore"}, Doc: "the last fragment"},
	},
	Save: func(a *tables.Args) string {
		s := saveRange(a, "fragid")
		if v := a.Get("fraglen"); v.Set {
			s += fmt.Sprintf("%s --fraglen %d", notOf(v), v.Lo)
		}
		for _, o := range []string{"fragres", "fragfirst", "fragmore", "fraglast"} {
			if a.Has(o) {
				s += " --" + o
			}
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		s := " frag " + listRange(a, "fragid", "id")
		if v := a.Get("fraglen"); v.Set {
			s += fmt.Sprintf(" length:%s%d", bang(v), v.Lo)
		}
		for i, o := range []string{"fragres", "fragfirst", "fragmore", "fraglast"} {
			if a.Has(o) {
				s += []string{" reserved", " first", " more", " last"}[i]
			}
		}
		return s
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi, not := range32(a, "fragid")
		reserved, first, more, last := a.Has("fragres"), a.Has("fragfirst"), a.Has("fragmore"), a.Has("fraglast")
		return func(c *tables.Context, p *packet.Packet) bool {
			h := findHeader(c, p, headerFragment, 8)
			if h == nil {
				return false
			}
			at, id := binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[4:])
			return (id >= lo && id <= hi) != not &&
				!(reserved && (h[1] != 0 || at&6 != 0)) &&
				!(first && at&^7 != 0) && !(more && at&1 == 0) && !(last && at&1 != 0)
		}, nil
	},
}
