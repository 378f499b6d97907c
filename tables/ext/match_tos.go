package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// tosNames are the names of RFC 1349, under the mask 0x3f that they are given.
var tosNames = []struct {
	name  string
	value uint64
}{
	{"Minimize-Delay", 0x10}, {"Maximize-Throughput", 0x08}, {"Maximize-Reliability", 0x04},
	{"Minimize-Cost", 0x02}, {"Normal-Service", 0x00},
}

const tosNamedMask = 0x3f

// tosMask is value[/mask] or a name: the value in Value.Lo, the mask in Hi.
type tosMask struct{}

func (tosMask) Args() int { return 1 }

func (tosMask) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	n, rest, ok := tables.Strtoul(text[0], 0, 255)
	if !ok || rest != "" && rest[0] != '/' {
		for _, t := range tosNames {
			if strings.EqualFold(t.name, text[0]) {
				v.Lo, v.Hi = t.value, tosNamedMask
				return nil
			}
		}
		if ok {
			return tables.Usagef("Illegal value: \"%s\"", text[0])
		}
		return tables.Usagef("Symbolic name \"%s\" is unknown", text[0])
	}
	v.Lo, v.Hi = n, 0xff
	if rest != "" {
		m, more, ok := tables.Strtoul(rest[1:], 0, 255)
		if !ok || more != "" {
			return tables.Usagef("Illegal value: \"%s\"", text[0])
		}
		v.Hi = m
	}
	return nil
}

func (tosMask) Format(v *tables.Value) string { return fmt.Sprintf("0x%02x/0x%02x", v.Lo, v.Hi) }

// tosName prints a value by name where it has one.
func tosName(v *tables.Value) (string, bool) {
	if v.Hi == tosNamedMask {
		for _, t := range tosNames {
			if t.value == v.Lo {
				return t.name, true
			}
		}
	}
	return "", false
}

var matchTOS = &tables.Match{
	Name:     "tos",
	Families: tables.V4V6,
	Doc:      "Matches the 8-bit Type of Service field of IPv4 or the Traffic Class of IPv6, precedence included.",
	Options: []tables.Option{
		{Name: "tos", Type: tosMask{}, Required: true, Negatable: true, Arg: "value[/mask]|name", Doc: "value under a mask, or a name such as Minimize-Delay"},
	},
	Depends: tables.DependsTOS,
	List: func(a *tables.Args, numeric bool) string {
		v, s := a.Get("tos"), " tos match"
		if v.Not {
			s += "!"
		}
		if name, ok := tosName(v); ok && !numeric {
			return s + " " + name
		}
		return s + tosMask{}.Format(v)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := a.Get("tos")
		val, mask, not := uint8(v.Lo), uint8(v.Hi), v.Not
		return func(_ *tables.Context, p *packet.Packet) bool {
			return (p.TOS()&mask == val) != not
		}, nil
	},
}
