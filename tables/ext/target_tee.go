package ext

import (
	"errors"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// gateway is one address, as getaddrinfo reads it.
type gateway struct{}

func (gateway) Args() int { return 1 }

func (gateway) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if strings.Contains(text[0], "/") {
		return tables.Usagef("getaddrinfo: Name or service not known\n")
	}
	return tables.HostMask.Parse(o, text, v)
}

func (gateway) Format(v *tables.Value) string { return tables.FormatAddr(uint8(v.Lo), v.A) }

var targetTEE = &tables.Target{
	Name:     "TEE",
	Families: tables.V4V6,
	Doc:      "Sends a copy of the packet to a gateway and goes on with the next rule.",
	Options: []tables.Option{
		{Name: "gateway", Type: gateway{}, Required: true, Arg: "address", Doc: "where the copy goes"},
		{Name: "oif", Type: tables.String{Trim: 15}, Arg: "name", Doc: "the interface it leaves by"},
	},
	Save: func(a *tables.Args) string {
		s := " --gateway " + gateway{}.Format(a.Get("gateway"))
		if dev := a.Str("oif"); dev != "" {
			s += " --oif " + quoteWord(dev)
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		s := " TEE gw:" + gateway{}.Format(a.Get("gateway"))
		if dev := a.Str("oif"); dev != "" {
			s += " oif=" + dev
		}
		return s
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		if a.Get("gateway").A == [16]byte{} {
			return errors.New("TEE: the gateway is the unspecified address")
		}
		return nil
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		gw, dev := a.Get("gateway").A, a.Str("oif")
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.Tee != nil {
				c.Tee(gw, dev, p)
			}
			return tables.Continue
		}, nil
	},
}
