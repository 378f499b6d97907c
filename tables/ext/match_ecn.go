package ext

import (
	"errors"
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var matchECN = &tables.Match{
	Name:     "ecn",
	Families: tables.V4V6,
	Doc:      "Matches the bits of explicit congestion notification in the IP and the TCP header.",
	Options: []tables.Option{
		{Name: "ecn-tcp-ece", Type: tables.Flag, Negatable: true, Doc: "TCP's ECE bit is set"},
		{Name: "ecn-tcp-cwr", Type: tables.Flag, Negatable: true, Doc: "TCP's CWR bit is set"},
		{Name: "ecn-ip-ect", Type: tables.Uint{Max: 3}, Negatable: true, Arg: "0..3", Doc: "the IP header's ECN codepoint"},
	},
	First: needOption("ECN match: some option required"),
	Check: func(a *tables.Args, at *tables.Place) error {
		if (a.Has("ecn-tcp-ece") || a.Has("ecn-tcp-cwr")) && !at.Has(packet.ProtoTCP) {
			return errors.New("ecn: the TCP bits need -p tcp")
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		s := " ECN match"
		for i, o := range []string{"ecn-tcp-ece", "ecn-tcp-cwr"} {
			if v := a.Get(o); v.Set {
				s += " " + bang(v) + []string{"ECE", "CWR"}[i]
			}
		}
		if v := a.Get("ecn-ip-ect"); v.Set {
			s += fmt.Sprintf(" %sECT=%d", bang(v), v.Lo)
		}
		return s
	},
	Depends: tables.DependsTOS | tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		ece, cwr, ect := *a.Get("ecn-tcp-ece"), *a.Get("ecn-tcp-cwr"), *a.Get("ecn-ip-ect")
		return func(_ *tables.Context, p *packet.Packet) bool {
			if ect.Set && (uint64(p.TOS()&3) == ect.Lo) == ect.Not {
				return false
			}
			if !ece.Set && !cwr.Set {
				return true
			}
			// Linux reads a later fragment's payload as a header here, too.
			b := p.Transport()
			return len(b) >= 20 && (!ece.Set || (b[13]&packet.TCPEce != 0) != ece.Not) && (!cwr.Set || (b[13]&packet.TCPCwr != 0) != cwr.Not)
		}, nil
	},
}
