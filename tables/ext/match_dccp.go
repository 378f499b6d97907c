package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// dccpTypes are the packet types of RFC 4340 5.1, with all that are not
// assigned as the last.
var dccpTypes = []string{"REQUEST", "RESPONSE", "DATA", "ACK", "DATAACK", "CLOSEREQ", "CLOSE", "RESET", "SYNC", "SYNCACK", "INVALID"}

const dccpInvalid = 0xfc00

// dccpTypeList is a list of types as bits in Value.Lo.
type dccpTypeList struct{}

func (dccpTypeList) Args() int { return 1 }

func (dccpTypeList) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
next:
	for _, w := range strings.Split(text[0], ",") {
		if w == "" {
			continue
		}
		for i, name := range dccpTypes {
			if strings.EqualFold(name, w) {
				if v.Lo |= 1 << i; i == len(dccpTypes)-1 {
					v.Lo |= dccpInvalid
				}
				continue next
			}
		}
		return tables.Usagef("Unknown DCCP type `%s'", w)
	}
	return nil
}

func (t dccpTypeList) Format(v *tables.Value) string { return t.text(v, false) }

func (dccpTypeList) text(v *tables.Value, numeric bool) string {
	var s []string
	for i := range 16 {
		switch {
		case v.Lo>>i&1 == 0:
		case numeric:
			s = append(s, fmt.Sprint(i))
		case i < len(dccpTypes):
			s = append(s, dccpTypes[i])
		}
	}
	return strings.Join(s, ",")
}

var matchDCCP = &tables.Match{
	Name:     "dccp",
	Families: tables.V4V6,
	Doc:      "Matches DCCP ports, packet types and options. Later fragments never match.",
	Protos:   []uint8{packet.ProtoDCCP},
	Options: []tables.Option{
		{Name: "source-port", Aliases: []string{"sport"}, SaveAs: "sport", Type: tables.ServiceRange, Negatable: true, Arg: "port[:port]", Doc: "source port or range"},
		{Name: "destination-port", Aliases: []string{"dport"}, SaveAs: "dport", Type: tables.ServiceRange, Negatable: true, Arg: "port[:port]", Doc: "destination port or range"},
		{Name: "dccp-types", Type: dccpTypeList{}, Negatable: true, Arg: "type[,type]…", Doc: strings.Join(dccpTypes, ", ")},
		{Name: "dccp-option", Type: tables.Uint{Min: 1, Max: 255}, Negatable: true, Arg: "number", Doc: "an option of this number is there"},
	},
	Final: func(a *tables.Args) error {
		if v := a.Get("dccp-types"); v.Set && v.Lo == 0 {
			return tables.Usagef("dccp: \"--dccp-types\" names no type")
		}
		return nil
	},
	List: func(a *tables.Args, numeric bool) string {
		s := " dccp" + listPorts(a, numeric, "dccp", "source-port", "destination-port")
		if v := a.Get("dccp-types"); v.Set {
			s += notOf(v) + " " + dccpTypeList{}.text(v, numeric)
		}
		if v := a.Get("dccp-option"); v.Set {
			s += fmt.Sprintf(" option=%s%d", bang(v), v.Lo)
		}
		return s
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		sp, dp := portRange(a.Get("source-port")), portRange(a.Get("destination-port"))
		types, option := *a.Get("dccp-types"), *a.Get("dccp-option")
		return func(c *tables.Context, p *packet.Packet) bool {
			if l4Header(c, p, 12) == nil || !sp.Has(p.SrcPort()) || !dp.Has(p.DstPort()) {
				return false
			}
			t := p.Transport()
			if types.Set && (types.Lo>>(t[8]>>1&15)&1 != 0) == types.Not {
				return false
			}
			return !option.Set || hasDCCPOption(c, t, uint8(option.Lo)) != option.Not
		}, nil
	},
}

// dccpHeader is how long each type's header is after the generic one (RFC 4340 5.2 to 5.8).
var dccpHeader = [16]int{4, 12, 0, 8, 8, 8, 8, 12, 8, 8, 12, 12, 12, 12, 12, 12}

// hasDCCPOption looks for an option; a header that is cut short drops the packet.
func hasDCCPOption(c *tables.Context, t []byte, option uint8) bool {
	start := 12 + dccpHeader[t[8]>>1&15]
	if t[8]&1 != 0 {
		start += 4 // long sequence numbers
	}
	end := int(t[4]) * 4
	if end < start || end > len(t) {
		c.Hotdrop = true
		return false
	}
	for o := t[start:end]; len(o) > 0; {
		if o[0] == option {
			return true
		}
		n := 1
		if o[0] > 1 && len(o) > 1 && o[1] > 0 {
			n = int(o[1])
		}
		if n > len(o) {
			return false
		}
		o = o[n:]
	}
	return false
}
