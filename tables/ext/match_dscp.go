package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// dscpClasses are the per-hop behaviours of RFC 2474, 2597 and 3246.
var dscpClasses = []struct {
	name  string
	value uint64
}{
	{"CS0", 0x00}, {"CS1", 0x08}, {"CS2", 0x10}, {"CS3", 0x18}, {"CS4", 0x20}, {"CS5", 0x28}, {"CS6", 0x30}, {"CS7", 0x38}, {"BE", 0x00},
	{"AF11", 0x0a}, {"AF12", 0x0c}, {"AF13", 0x0e}, {"AF21", 0x12}, {"AF22", 0x14}, {"AF23", 0x16},
	{"AF31", 0x1a}, {"AF32", 0x1c}, {"AF33", 0x1e}, {"AF41", 0x22}, {"AF42", 0x24}, {"AF43", 0x26}, {"EF", 0x2e},
}

// dscpValue is a code point in Value.Lo, printed in hex.
type dscpValue struct{ tables.Uint }

func (dscpValue) Format(v *tables.Value) string { return fmt.Sprintf("0x%02x", v.Lo) }

// dscpClass is a code point by the name of its class.
type dscpClass struct{}

func (dscpClass) Args() int { return 1 }

func (dscpClass) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	for _, c := range dscpClasses {
		if len(text[0]) >= len(c.name) && strings.EqualFold(text[0][:len(c.name)], c.name) { // what follows is not looked at
			v.Lo = c.value
			return nil
		}
	}
	return tables.Usagef("Invalid DSCP value `%s'", text[0])
}

func (dscpClass) Format(v *tables.Value) string { return fmt.Sprintf("0x%02x", v.Lo) }

// dscpFinal takes a class for its code point; missing is the text for neither.
func dscpFinal(value, class string) func(*tables.Args) error {
	return func(a *tables.Args) error {
		if a.Has(class) {
			a.Set(value, *a.Get(class))
			a.Clear(class)
		}
		return nil
	}
}

var matchDSCP = &tables.Match{
	Name:     "dscp",
	Families: tables.V4V6,
	Doc:      "Matches the 6-bit DSCP field within the TOS byte or traffic class (RFC 2474).",
	Options: []tables.Option{
		{Name: "dscp", Type: dscpValue{tables.Uint{Max: 63}}, Negatable: true, Excludes: []string{"dscp-class"}, Arg: "value", Doc: "code point, 0 to 63"},
		{Name: "dscp-class", Type: dscpClass{}, Negatable: true, Arg: "name", Doc: "class: BE, EF, AFxx or CSx"},
	},
	Depends: tables.DependsTOS,
	First:   needOption("DSCP match: Parameter --dscp is required"),
	Final:   dscpFinal("dscp", "dscp-class"),
	List: func(a *tables.Args, _ bool) string {
		v, not := a.Get("dscp"), ""
		if v.Not {
			not = "!"
		}
		return fmt.Sprintf(" DSCP match %s0x%02x", not, v.Lo)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		val, not := uint8(a.Num("dscp")), a.Not("dscp")
		return func(_ *tables.Context, p *packet.Packet) bool {
			return (p.TOS()>>2 == val) != not
		}, nil
	},
}
