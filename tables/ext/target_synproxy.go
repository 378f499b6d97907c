package ext

import (
	"fmt"
	"strconv"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/synproxy"
)

// cutUint is a number of which only the low bits are kept.
type cutUint struct{ bits int }

func (cutUint) Args() int { return 1 }

func (t cutUint) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	err := tables.U32.Parse(o, text, v)
	v.Lo &= 1<<t.bits - 1
	return err
}

func (cutUint) Format(v *tables.Value) string { return strconv.FormatUint(v.Lo, 10) }

var targetSYNPROXY = &tables.Target{
	Name:     "SYNPROXY",
	Families: tables.V4V6,
	Doc:      "Answers SYNs in the server's place, with SYN cookies, and opens the connection to the server when the client has acknowledged one. The SYNs must not be tracked (CT --notrack in table raw), and nf_conntrack_tcp_loose has to be 0, so that the client's ACK is INVALID and comes here.",
	Hooks:    hooks.At(hooks.Input, hooks.Forward),
	Options: []tables.Option{
		{Name: "sack-perm", Type: tables.Flag, Doc: "the server takes selective acknowledgements"},
		{Name: "timestamp", Type: tables.Flag, Doc: "the server takes timestamps; window scaling, selective acknowledgements and ECN need them"},
		{Name: "wscale", Type: cutUint{8}, Arg: "shift", Doc: "the server's window scaling"},
		{Name: "mss", Type: cutUint{16}, Arg: "bytes", Doc: "the server's maximum segment size"},
		{Name: "ecn", Type: tables.Flag, Doc: "the server takes ECN"},
	},
	List: func(a *tables.Args, _ bool) string {
		s := " SYNPROXY "
		for _, o := range []string{"sack-perm", "timestamp", "wscale", "mss", "ecn"} {
			switch {
			case !a.Has(o):
			case o == "wscale" || o == "mss":
				s += fmt.Sprintf("%s %d ", o, a.Num(o))
			default:
				s += o + " "
			}
		}
		return s
	},
	Check: func(_ *tables.Args, at *tables.Place) error {
		if !at.Has(packet.ProtoTCP) {
			return tables.Refuse(0, "SYNPROXY needs -p tcp")
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		rule := synproxy.Options{WScale: uint8(a.Num("wscale")), MSS: uint16(a.Num("mss"))}
		for o, bit := range map[string]uint8{
			"sack-perm": synproxy.SACKPerm, "timestamp": synproxy.Timestamp, "wscale": synproxy.WScale, "mss": synproxy.MSS, "ecn": synproxy.ECN,
		} {
			if a.Has(o) {
				rule.Has |= bit
			}
		}
		if env == nil || env.Synproxy == nil {
			return func(*tables.Context, *packet.Packet) tables.Result { return tables.Drop }, nil
		}
		env.Synproxy.Use()
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.Alloc == nil || c.Output == nil || c.CT == nil {
				return tables.Drop
			}
			switch env.Synproxy.Target(&synproxy.Out{CT: c.CT, Alloc: c.Alloc, Send: c.Output}, p, &rule) {
			case hooks.Accept:
				return tables.Continue
			case hooks.Stolen:
				return tables.Stolen
			}
			return tables.Drop
		}, nil
	},
}
