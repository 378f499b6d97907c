package ext

import (
	"encoding/binary"

	"sluice/packet"
	"sluice/tables"
)

var matchESP = &tables.Match{
	Name:     "esp",
	Families: tables.V4V6,
	Doc:      "Matches the SPI of an IPsec Encapsulating Security Payload. Later fragments never match.",
	Protos:   []uint8{packet.ProtoESP},
	Options:  []tables.Option{spiOption("espspi")},
	Save:     func(a *tables.Args) string { return saveRange(a, "espspi") },
	List: func(a *tables.Args, _ bool) string {
		if s := listRange(a, "espspi", "spi"); s != "" {
			return " esp " + s
		}
		return " esp"
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		lo, hi, not := range32(a, "espspi")
		return func(c *tables.Context, p *packet.Packet) bool {
			h := l4Header(c, p, 8)
			if h == nil {
				return false
			}
			spi := binary.BigEndian.Uint32(h)
			return (spi >= lo && spi <= hi) != not
		}, nil
	},
}
