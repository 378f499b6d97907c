package ext

import (
	"encoding/binary"
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var matchAH = &tables.Match{
	Name:     "ah",
	Families: tables.V4,
	Doc:      "Matches the SPI of an IPsec Authentication Header. Later fragments never match.",
	Protos:   []uint8{packet.ProtoAH},
	Options:  []tables.Option{spiOption("ahspi")},
	Save:     func(a *tables.Args) string { return saveRange(a, "ahspi") },
	List:     func(a *tables.Args, _ bool) string { return " ah " + listRange(a, "ahspi", "spi") },
	Depends:  tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi, not := range32(a, "ahspi")
		return func(c *tables.Context, p *packet.Packet) bool {
			h := l4Header(c, p, 12)
			if h == nil {
				return false
			}
			spi := binary.BigEndian.Uint32(h[4:])
			return (spi >= lo && spi <= hi) != not
		}, nil
	},
}

var matchAH6 = &tables.Match{
	Name:     "ah",
	Families: tables.V6,
	Doc:      "Matches packets with an IPsec Authentication Header, by its fields.",
	Options: []tables.Option{
		spiOption("ahspi"),
		{Name: "ahlen", Type: tables.U32, Negatable: true, Arg: "length", Doc: "the header's length, bytes"},
		{Name: "ahres", Type: tables.Flag, Doc: "the reserved field is zero"},
	},
	Save: func(a *tables.Args) string {
		s := saveRange(a, "ahspi")
		if v := a.Get("ahlen"); v.Set && (v.Lo != 0 || v.Not) {
			s += fmt.Sprintf("%s --ahlen %d", notOf(v), v.Lo)
		}
		if a.Has("ahres") {
			s += " --ahres"
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		s := " ah " + listRange(a, "ahspi", "spi")
		if v := a.Get("ahlen"); v.Set && (v.Lo != 0 || v.Not) {
			s += fmt.Sprintf("length:%s%d", bang(v), v.Lo)
		}
		if a.Has("ahres") {
			s += " reserved"
		}
		return s
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi, not := range32(a, "ahspi")
		length, reserved := *a.Get("ahlen"), a.Has("ahres")
		return func(c *tables.Context, p *packet.Packet) bool {
			h := findHeader(c, p, packet.ProtoAH, 12)
			if h == nil {
				return false
			}
			n := (uint64(h[1]) + 2) * 4
			spi := binary.BigEndian.Uint32(h[4:])
			return (spi >= lo && spi <= hi) != not &&
				(length.Lo == 0 || (n == length.Lo) != length.Not) &&
				(!reserved || h[2]|h[3] == 0)
		}, nil
	},
}
