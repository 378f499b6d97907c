package ext

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var reasonECN = packet.NewReason("ecn.failed", "ECN could not read the TCP header")

var targetECN = &tables.Target{
	Name:     "ECN",
	Families: tables.V4,
	Doc:      "Changes the bits of explicit congestion notification in the TCP header, or in the IP header.",
	Tables:   tables.In(tables.Mangle),
	Options: []tables.Option{
		{Name: "ecn-tcp-remove", Type: tables.Flag, Excludes: []string{"ecn-tcp-cwr", "ecn-tcp-ece"}, Doc: "clear ECE and CWR"},
		{Name: "ecn-tcp-ece", Type: tables.Uint{Max: 1}, Arg: "0|1", Doc: "set or clear ECE"},
		{Name: "ecn-tcp-cwr", Type: tables.Uint{Max: 1}, Arg: "0|1", Doc: "set or clear CWR"},
		{Name: "ecn-ip-ect", Type: tables.Uint{Max: 3}, Arg: "0..3", Doc: "set the IP header's codepoint"},
	},
	First: needOption("ECN target: An operation is required"),
	Final: func(a *tables.Args) error {
		if a.Last("ecn-ip-ect", "ecn-tcp-remove") == "ecn-tcp-remove" {
			a.Clear("ecn-ip-ect") // it takes back what was asked before it
		}
		if e, c := a.Get("ecn-tcp-ece"), a.Get("ecn-tcp-cwr"); e.Set && c.Set && e.Lo|c.Lo == 0 {
			a.Clear("ecn-tcp-ece")
			a.Clear("ecn-tcp-cwr")
			a.Set("ecn-tcp-remove", tables.Value{})
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		s := " ECN"
		if a.Has("ecn-tcp-remove") {
			s += " TCP remove"
		}
		for i, o := range []string{"ecn-tcp-ece", "ecn-tcp-cwr", "ecn-ip-ect"} {
			if v := a.Get(o); v.Set {
				s += fmt.Sprintf(" %s=%d", []string{"ECE", "CWR", "ECT codepoint"}[i], v.Lo)
			}
		}
		return s
	},
	Check: func(a *tables.Args, at *tables.Place) error {
		if (a.Has("ecn-tcp-remove") || a.Has("ecn-tcp-ece") || a.Has("ecn-tcp-cwr")) && !at.Has(packet.ProtoTCP) {
			return errors.New("ECN: the TCP bits need -p tcp")
		}
		return nil
	},
	Depends: tables.DependsTOS | tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		ect := *a.Get("ecn-ip-ect")
		var keep, set uint8 = 0xff, 0
		for i, o := range []string{"ecn-tcp-ece", "ecn-tcp-cwr"} {
			bit := packet.TCPEce << i
			if v := a.Get(o); v.Set || a.Has("ecn-tcp-remove") {
				keep &^= bit
				set |= uint8(v.Lo) * bit
			}
		}
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			if ect.Set && uint64(p.TOS()&3) != ect.Lo {
				p.SetTOS(p.TOS()&^3 | uint8(ect.Lo))
			}
			if keep == 0xff || p.Proto != packet.ProtoTCP {
				return tables.Continue
			}
			t := p.Transport()
			if len(t) < 20 {
				p.Reason = reasonECN
				return tables.Drop
			}
			if flags := t[13]&keep | set; flags != t[13] {
				p.SetL4Word(12, binary.BigEndian.Uint16(t[12:])&0xff00|uint16(flags))
			}
			return tables.Continue
		}, nil
	},
}
