package ext

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var reasonTCPMSS = packet.NewReason("tcpmss.failed", "TCPMSS could not read the TCP header, or the path's MTU leaves no room for a segment")

// mssValue is a segment size: what headers without options leave of 65535 bytes.
type mssValue struct{}

func (mssValue) Args() int { return 1 }

func (mssValue) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if o.Family == packet.IPv6 {
		return tables.Uint{Max: 65495}.Parse(o, text, v)
	}
	return tables.Uint{Max: 65515}.Parse(o, text, v)
}

func (mssValue) Format(v *tables.Value) string { return tables.U16.Format(v) }

var targetTCPMSS = &tables.Target{
	Name:     "TCPMSS",
	Families: tables.V4V6,
	Doc:      "Lowers the maximum segment size option of TCP SYNs, and adds it where it is missing; it is never raised.",
	Options: []tables.Option{
		{Name: "set-mss", Type: mssValue{}, Arg: "value", Doc: "the most it may be, in bytes"},
		{Name: "clamp-mss-to-pmtu", Type: tables.Flag, Doc: "what the path's MTU leaves (40 bytes less on IPv4, 60 on IPv6)"},
	},
	Protos:  []uint8{packet.ProtoTCP},
	Depends: tables.DependsL4Header | tables.DependsRoutes,
	First:   needOption("TCPMSS target: At least one parameter is required"),
	Final: func(a *tables.Args) error { // the last one counts
		if a.Last("set-mss", "clamp-mss-to-pmtu") == "set-mss" {
			a.Clear("clamp-mss-to-pmtu")
		} else {
			a.Clear("set-mss")
		}
		return nil
	},
	Check: func(a *tables.Args, at *tables.Place) error {
		if a.Has("clamp-mss-to-pmtu") && at.Hooks&^hooks.At(hooks.Forward, hooks.Output, hooks.Postrouting) != 0 {
			return errors.New("path-MTU clamping works in the FORWARD, OUTPUT and POSTROUTING hooks only")
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		if a.Has("clamp-mss-to-pmtu") {
			return " TCPMSS clamp to PMTU"
		}
		return fmt.Sprintf(" TCPMSS set %d", a.Num("set-mss"))
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		clamp, mss := a.Has("clamp-mss-to-pmtu"), int(a.Num("set-mss"))
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if p.Flags&packet.LaterFragment != 0 {
				return tables.Continue
			}
			limit := mss
			if clamp {
				headers := 40
				if p.Family == packet.IPv6 {
					headers = 60
				}
				mtu := c.Env.Routes.PathMTU(p, false)
				if back := c.Env.Routes.PathMTU(p, true); back > 0 {
					mtu = min(mtu, back)
				}
				if limit = mtu - headers; limit <= 0 {
					p.Reason = reasonTCPMSS
					return tables.Drop
				}
			}
			if !lowerMSS(p, limit) {
				p.Reason = reasonTCPMSS
				return tables.Drop
			}
			return tables.Continue
		}, nil
	},
}

// lowerMSS is false where the header cannot be read.
func lowerMSS(p *packet.Packet, limit int) bool {
	n := p.TCPHeaderLen()
	if n == 0 {
		return false
	}
	if i := mssOption(p.TCPOptions()); i >= 0 {
		if int(binary.BigEndian.Uint16(p.TCPOptions()[i+2:])) > limit {
			if i%2 == 0 {
				p.SetL4Word(20+i+2, uint16(limit))
			} else { // a checksum adds up words, and this one straddles two
				binary.BigEndian.PutUint16(p.TCPOptions()[i+2:], uint16(limit))
				p.Mangled()
			}
		}
		return true
	}
	// The option is added only where no data follows: moving data could make the packet too large.
	if len(p.Transport()) > n || n >= 60 {
		return true
	}
	// RFC 9293 3.7.1: what a missing option means is the most that may be said.
	most := 536
	if p.Family == packet.IPv6 {
		most = 1220
	}
	good, before := p.VerifyL4(), packet.Sum(p.Transport())
	at := int(p.L4) + 20
	if !p.Resize(at, 0, 4) {
		return true
	}
	t := p.Transport()
	copy(t[20:], []byte{2, 4, byte(min(limit, most) >> 8), byte(min(limit, most))})
	t[12] += 0x10
	if good {
		p.FixChecksums()
		return true
	}
	// A wrong checksum stays as wrong as it was.
	p.FixHeader()
	d := packet.AddSum(packet.AddSum(^before, packet.Sum(t)), packet.Delta16(uint16(len(t)-4), uint16(len(t))))
	binary.BigEndian.PutUint16(t[16:], packet.ApplyDelta(binary.BigEndian.Uint16(t[16:]), d))
	return true
}
