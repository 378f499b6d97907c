package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// headerKinds are the headers that ipv6header knows, from bit 7 down.
var headerKinds = []struct {
	short, long string
	number      uint8
}{
	{"hop", "hop-by-hop", headerHopByHop}, {"dst", "ipv6-opts", headerDestOpts}, {"route", "ipv6-route", headerRouting},
	{"frag", "ipv6-frag", headerFragment}, {"auth", "ah", packet.ProtoAH}, {"esp", "esp", packet.ProtoESP},
	{"none", "ipv6-nonxt", headerNone}, {"prot", "protocol", 255},
}

// Bits of headerKinds that end a packet's headers.
const (
	hasESP      = 1 << 2
	hasNone     = 1 << 1
	hasProtocol = 1 << 0
)

// headerList is a list of headers by name or number as bits in Value.Lo.
type headerList struct{}

func (headerList) Args() int { return 1 }

func (headerList) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if strings.Trim(text[0], ",") == "" {
		return tables.Usagef("ip6t_ipv6header: cannot parse header names")
	}
next:
	for _, w := range strings.Split(text[0], ",") {
		if w == "" {
			continue
		}
		if n, ok := tables.ProtocolByName(w); ok && w != "all" && w[0] >= 'A' {
			w = fmt.Sprint(n)
		}
		for i, k := range headerKinds {
			if w == k.short || w == k.long || w == fmt.Sprint(k.number) {
				v.Lo |= 0x80 >> i
				continue next
			}
		}
		return tables.Usagef("unknown header `%s' specified", w)
	}
	return nil
}

func (headerList) Format(v *tables.Value) string {
	var s []string
	for i, k := range headerKinds {
		if v.Lo&(0x80>>i) != 0 {
			s = append(s, k.long)
		}
	}
	return strings.Join(s, ",")
}

var matchIPv6Header = &tables.Match{
	Name:     "ipv6header",
	Families: tables.V6,
	Doc:      "Matches packets by which headers they have.",
	Options: []tables.Option{
		{Name: "header", Type: headerList{}, Required: true, Negatable: true, Arg: "header[,header]…", Doc: "hop, dst, route, frag, auth, esp, none, prot: exactly these"},
		{Name: "soft", Type: tables.Flag, Doc: "at least these"},
	},
	List: func(a *tables.Args, numeric bool) string {
		v := a.Get("header")
		s := " ipv6header flags:" + bang(v)
		if numeric {
			s += fmt.Sprintf("0x%02X", v.Lo)
		} else {
			s += headerList{}.Format(v)
		}
		if a.Has("soft") {
			s += " soft"
		}
		return s
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v, soft := *a.Get("header"), a.Has("soft")
		want := uint8(v.Lo)
		return func(_ *tables.Context, p *packet.Packet) bool {
			has, ok := headersOf(p.Bytes())
			switch {
			case !ok:
				return false
			case soft && v.Not:
				return has&want == 0
			case soft:
				return has&want == want
			}
			return (has == want) != v.Not
		}, nil
	},
}

// headersOf is what a packet has of headerKinds; ok is false where they cannot be followed.
func headersOf(b []byte) (has uint8, ok bool) {
	at, next := 40, b[6]
	for packet.Extension(next) || next == packet.ProtoESP {
		if len(b) < at+2 {
			return 0, false
		}
		if next == packet.ProtoESP {
			return has | hasESP, true
		}
		for i, k := range headerKinds {
			if k.number == next {
				has |= 0x80 >> i
			}
		}
		size := (int(b[at+1]) + 1) * 8
		switch next {
		case headerFragment:
			size = 8
		case packet.ProtoAH:
			size = (int(b[at+1]) + 2) * 4
		}
		next = b[at]
		if at += size; at > len(b) {
			break
		}
	}
	switch next {
	case headerNone:
		if at > len(b) {
			return has, true
		}
		return has | hasNone, true
	case packet.ProtoESP:
		return has, true
	}
	return has | hasProtocol, true
}
