package ext

import (
	"strconv"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// portList is up to 15 ports and ranges of the rule's protocol, in Value.List; a
// range counts for two.
type portList struct{}

const maxMultiPorts = 15

func multiportProto(proto uint8, not bool) (string, error) {
	if not {
		return "", tables.Usagef("multiport only works with TCP, UDP, UDPLITE, SCTP and DCCP")
	}
	switch proto {
	case packet.ProtoTCP:
		return "tcp", nil
	case packet.ProtoUDP:
		return "udp", nil
	case packet.ProtoUDPLite:
		return "udplite", nil
	case packet.ProtoSCTP:
		return "sctp", nil
	case packet.ProtoDCCP:
		return "dccp", nil
	case 0:
		return "", tables.Usagef("multiport needs `-p tcp', `-p udp', `-p udplite', `-p sctp' or `-p dccp'")
	}
	return "", tables.Usagef("multiport only works with TCP, UDP, UDPLITE, SCTP and DCCP")
}

func (portList) Args() int { return 1 }

func (portList) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	proto, err := multiportProto(o.Proto, o.ProtoNot)
	if err != nil {
		return err
	}
	words := strings.Split(text[0], ",")
	n := 0
	for i, w := range words {
		lo, hi, isRange := strings.Cut(w, ":")
		n++
		if isRange {
			n++
		}
		if n > maxMultiPorts {
			return tables.Usagef("too many ports specified")
		}
		a, err := tables.ParsePort(lo, proto)
		if err != nil {
			return err
		}
		b := a
		if isRange {
			if b, err = tables.ParsePort(hi, proto); err != nil {
				return err
			}
			if a >= b {
				return tables.Usagef("invalid portrange specified")
			}
		}
		v.List = append(v.List, tables.Range{Lo: uint64(a), Hi: uint64(b)})
		if n == maxMultiPorts && i < len(words)-1 {
			return tables.Usagef("too many ports specified")
		}
	}
	return nil
}

func (portList) Format(v *tables.Value) string {
	return portListText(v, func(n uint64) string { return strconv.FormatUint(n, 10) })
}

func portListText(v *tables.Value, port func(uint64) string) string {
	var s []string
	for _, r := range v.List {
		if r.Lo == r.Hi {
			s = append(s, port(r.Lo))
		} else {
			s = append(s, port(r.Lo)+":"+port(r.Hi))
		}
	}
	return strings.Join(s, ",")
}

var multiportKinds = []string{"source-ports", "destination-ports", "ports"}

var matchMultiport = &tables.Match{
	Name:     "multiport",
	Families: tables.V4V6,
	Doc:      "Matches lists of up to 15 ports; a range counts for two. Later fragments never match.",
	Protos:   []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP},
	Options: []tables.Option{
		{Name: "source-ports", Aliases: []string{"sports"}, SaveAs: "sports", Type: portList{}, Negatable: true,
			Excludes: []string{"destination-ports", "ports"}, Arg: "port[,port:port]…", Doc: "source ports"},
		{Name: "destination-ports", Aliases: []string{"dports"}, SaveAs: "dports", Type: portList{}, Negatable: true,
			Excludes: []string{"source-ports", "ports"}, Arg: "port[,port:port]…", Doc: "destination ports"},
		{Name: "ports", Type: portList{}, Negatable: true,
			Excludes: []string{"source-ports", "destination-ports"}, Arg: "port[,port:port]…", Doc: "source or destination ports"},
	},
	First: needOption("multiport expection an option"),
	List: func(a *tables.Args, numeric bool) string {
		proto, err := multiportProto(a.Proto, a.ProtoNot)
		if err != nil {
			numeric = true
		}
		for i, name := range multiportKinds {
			v := a.Get(name)
			if !v.Set {
				continue
			}
			s := " multiport " + []string{"sports ", "dports ", "ports "}[i]
			if v.Not {
				s += " !"
			}
			return s + portListText(v, func(n uint64) string { return portName(n, proto, numeric) })
		}
		return " multiport"
	},
	Hint: func(a *tables.Args) (h tables.Hint) {
		if v := a.Get("source-ports"); v.Set && !v.Not {
			h.SPorts = v.List
		}
		if v := a.Get("destination-ports"); v.Set && !v.Not {
			h.DPorts = v.List
		}
		return h
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		for i, name := range multiportKinds {
			if v := a.Get(name); v.Set {
				return multiportPred(v, i != 1, i != 0), nil
			}
		}
		return func(*tables.Context, *packet.Packet) bool { return false }, nil
	},
}

func multiportPred(v *tables.Value, src, dst bool) tables.Pred {
	inverted := v.Not
	ranges := make([]tables.PortRange, len(v.List))
	for i, r := range v.List {
		ranges[i] = tables.PortRange{Min: uint16(r.Lo), Max: uint16(r.Hi), Set: true}
	}
	return func(c *tables.Context, p *packet.Packet) bool {
		if p.Flags&packet.LaterFragment != 0 {
			return false
		}
		if b := p.Transport(); len(b) < 4 {
			c.Hotdrop = true
			return false
		} else {
			s, d := uint16(b[0])<<8|uint16(b[1]), uint16(b[2])<<8|uint16(b[3])
			for i := range ranges {
				if src && ranges[i].Has(s) || dst && ranges[i].Has(d) {
					return !inverted
				}
			}
		}
		return inverted
	}
}
