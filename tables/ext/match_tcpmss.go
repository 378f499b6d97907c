package ext

import (
	"encoding/binary"

	"sluice/packet"
	"sluice/tables"
)

// mssRange is a range whose ends are in order.
type mssRange struct{ tables.UintRange }

func (t mssRange) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := t.UintRange.Parse(o, text, v); err != nil {
		return err
	}
	if v.Lo > v.Hi {
		return tables.Usagef("tcpmss: invalid range given")
	}
	return nil
}

var matchTCPMSS = &tables.Match{
	Name:     "tcpmss",
	Families: tables.V4V6,
	Doc:      "Matches the maximum segment size option of a TCP SYN.",
	Options: []tables.Option{
		{Name: "mss", Type: mssRange{tables.U16Range}, Required: true, Negatable: true, Arg: "value[:value]", Doc: "maximum segment size or range in bytes"},
	},
	Protos:  []uint8{packet.ProtoTCP},
	Depends: tables.DependsL4Header,
	List: func(a *tables.Args, _ bool) string {
		v, s := a.Get("mss"), " tcpmss match "
		if v.Not {
			s += "!"
		}
		return s + tables.U16Range.Format(v)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := *a.Get("mss")
		return func(c *tables.Context, p *packet.Packet) bool {
			if p.Flags&packet.LaterFragment != 0 {
				return v.Not
			}
			if p.TCPHeaderLen() == 0 {
				c.Hotdrop = true
				return false
			}
			if i := mssOption(p.TCPOptions()); i >= 0 {
				mss := uint64(binary.BigEndian.Uint16(p.TCPOptions()[i+2:]))
				return (mss >= v.Lo && mss <= v.Hi) != v.Not
			}
			return v.Not
		}, nil
	},
}

// mssOption is where the MSS option begins among TCP's options; -1: it is not there.
func mssOption(opts []byte) int {
	for i := 0; i < len(opts); {
		if opts[i] == 2 && len(opts)-i >= 4 && opts[i+1] == 4 {
			return i
		}
		if opts[i] < 2 || i+1 >= len(opts) || opts[i+1] == 0 {
			i++
		} else {
			i += int(opts[i+1])
		}
	}
	return -1
}
