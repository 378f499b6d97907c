package ext

import (
	"strings"

	"sluice/packet"
	"sluice/tables"
)

var pktTypes = []struct {
	name  string
	value packet.PktType
}{
	{"unicast", packet.PktHost}, {"broadcast", packet.PktBroadcast}, {"multicast", packet.PktMulticast}, {"otherhost", packet.PktOtherHost},
	{"host", packet.PktHost}, {"bcast", packet.PktBroadcast}, {"mcast", packet.PktMulticast},
}

// pktTypeName is a link-level destination class in Value.Lo.
type pktTypeName struct{}

func (pktTypeName) Args() int { return 1 }

func (pktTypeName) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	for _, t := range pktTypes {
		if strings.EqualFold(t.name, text[0]) {
			v.Lo = uint64(t.value)
			return nil
		}
	}
	return tables.Usagef("Bad packet type '%s'", text[0])
}

func (pktTypeName) Format(v *tables.Value) string { return pktTypes[v.Lo].name }

var matchPktType = &tables.Match{
	Name:     "pkttype",
	Families: tables.V4V6,
	Doc:      "Matches the link-level destination of a packet. All that comes from a TUN device is unicast.",
	Options: []tables.Option{
		{Name: "pkt-type", Type: pktTypeName{}, Required: true, Negatable: true, Arg: "unicast|broadcast|multicast", Doc: "the class"},
	},
	Depends: tables.DependsNothing,
	List: func(a *tables.Args, _ bool) string {
		op := " PKTTYPE = "
		if a.Not("pkt-type") {
			op = " PKTTYPE != "
		}
		return op + pktTypeName{}.Format(a.Get("pkt-type"))
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		want, not := packet.PktType(a.Num("pkt-type")), a.Not("pkt-type")
		return func(_ *tables.Context, p *packet.Packet) bool {
			is := p.PktType
			if p.Flags&packet.Loopback != 0 {
				// What comes in by lo is for this host; a group's copy is the group's.
				is = packet.PktHost
				if d := p.Dst(); p.Family == packet.IPv4 && d[0]&0xf0 == 0xe0 || p.Family == packet.IPv6 && d[0] == 0xff {
					is = packet.PktMulticast
				}
			}
			return (is == want) != not
		}, nil
	},
}
