package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var targetTOS = &tables.Target{
	Name:     "TOS",
	Families: tables.V4V6,
	Doc:      "Changes the Type of Service field of IPv4 or the Traffic Class of IPv6: bits under the mask are cleared, then the value is XORed in.",
	Options: []tables.Option{
		{Name: "set-tos", Type: tosMask{}, Excludes: []string{"and-tos", "or-tos", "xor-tos"}, Arg: "value[/mask]|name", Doc: "value under a mask, or a name such as Minimize-Delay"},
		{Name: "and-tos", Type: tables.U8, Excludes: []string{"set-tos", "or-tos", "xor-tos"}, Arg: "bits", Doc: "binary AND"},
		{Name: "or-tos", Type: tables.U8, Excludes: []string{"set-tos", "and-tos", "xor-tos"}, Arg: "bits", Doc: "binary OR"},
		{Name: "xor-tos", Type: tables.U8, Excludes: []string{"set-tos", "and-tos", "or-tos"}, Arg: "bits", Doc: "binary XOR"},
	},
	Tables:  tables.In(tables.Mangle),
	Depends: tables.DependsTOS,
	First:   needOption("TOS: An action is required"),
	Final: func(a *tables.Args) error {
		switch {
		case a.Has("and-tos"):
			a.Set("set-tos", tables.Value{Hi: ^a.Num("and-tos") & 0xff})
		case a.Has("or-tos"):
			a.Set("set-tos", tables.Value{Lo: a.Num("or-tos"), Hi: a.Num("or-tos")})
		case a.Has("xor-tos"):
			a.Set("set-tos", tables.Value{Lo: a.Num("xor-tos")})
		}
		for _, o := range []string{"and-tos", "or-tos", "xor-tos"} {
			a.Clear(o)
		}
		return nil
	},
	List: func(a *tables.Args, numeric bool) string {
		v := a.Get("set-tos")
		if !numeric {
			if name, ok := tosName(v); ok {
				return "  TOS set" + name
			}
			switch {
			case v.Lo == 0:
				return fmt.Sprintf(" TOS and 0x%02x", ^v.Hi&0xff)
			case v.Lo == v.Hi:
				return fmt.Sprintf(" TOS or 0x%02x", v.Lo)
			case v.Hi == 0:
				return fmt.Sprintf(" TOS xor 0x%02x", v.Lo)
			}
		}
		return " TOS set " + tosMask{}.Format(v)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		v := a.Get("set-tos")
		val, keep := uint8(v.Lo), ^uint8(v.Hi)
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			if old := p.TOS(); old != old&keep^val {
				p.SetTOS(old&keep ^ val)
			}
			return tables.Continue
		}, nil
	},
}
