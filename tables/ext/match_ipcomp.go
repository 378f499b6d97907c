package ext

import (
	"encoding/binary"

	"sluice/packet"
	"sluice/tables"
)

const protoIPComp = 108

var matchIPComp = &tables.Match{
	Name:     "ipcomp",
	Families: tables.V4V6,
	Doc:      "Matches the compression parameter index of an IP payload compression header. Later fragments never match.",
	Protos:   []uint8{protoIPComp},
	Options: []tables.Option{
		{Name: "ipcompspi", Type: tables.U32Range, Negatable: true, Arg: "cpi[:cpi]", Doc: "compression parameter index, or a range of them; default 0"},
		{Name: "compres", Type: tables.Flag, Doc: "accepted, without effect"},
	},
	Final: func(a *tables.Args) error {
		if !a.Has("ipcompspi") {
			a.Set("ipcompspi", tables.Value{})
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		v := a.Get("ipcompspi") // also a range of all: without the option it would read back as 0
		s := notOf(v) + " --ipcompspi " + tables.U32Range.Format(v)
		if a.Has("compres") {
			s += " --compres"
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		s := " comp " + listRange(a, "ipcompspi", "spi")
		if a.Has("compres") {
			s += " reserved"
		}
		return s
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi, not := range32(a, "ipcompspi")
		return func(c *tables.Context, p *packet.Packet) bool {
			h := l4Header(c, p, 4)
			if h == nil {
				return false
			}
			cpi := uint32(binary.BigEndian.Uint16(h[2:]))
			return (cpi >= lo && cpi <= hi) != not
		}, nil
	},
}
