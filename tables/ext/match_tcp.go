package ext

import (
	"fmt"
	"strconv"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// Option texts that the port matches word by hand.
func portOptions(proto string) []tables.Option {
	return []tables.Option{
		{Name: "sport", Aliases: []string{"source-port"}, Type: tables.PortRangeType{Proto: proto}, Negatable: true,
			OnceText: "Only one `--source-port' allowed", Arg: "port[:port]", Doc: "source port or range"},
		{Name: "dport", Aliases: []string{"destination-port"}, Type: tables.PortRangeType{Proto: proto}, Negatable: true,
			OnceText: "Only one `--destination-port' allowed", Arg: "port[:port]", Doc: "destination port or range"},
	}
}

var tcpFlagNames = []struct {
	name string
	bit  uint64
}{{"FIN", 1}, {"SYN", 2}, {"RST", 4}, {"PSH", 8}, {"ACK", 16}, {"URG", 32}, {"ALL", 63}, {"NONE", 0}}

// tcpFlags is "mask comp": the mask in Value.Hi, the flags to be set in Lo.
type tcpFlags struct{}

func (tcpFlags) Args() int { return 2 }

func (tcpFlags) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	read := func(list string) (bits uint64, err error) {
		for _, w := range strings.Split(list, ",") {
			if w == "" {
				continue
			}
			known := false
			for _, f := range tcpFlagNames {
				if strings.EqualFold(f.name, w) {
					bits, known = bits|f.bit, true
				}
			}
			if !known {
				return 0, tables.Usagef("Unknown TCP flag `%s'", w)
			}
		}
		return bits, nil
	}
	var err error
	if v.Hi, err = read(text[0]); err == nil {
		v.Lo, err = read(text[1])
	}
	return err
}

func (tcpFlags) Format(v *tables.Value) string { return tcpFlagList(v.Hi) + " " + tcpFlagList(v.Lo) }

func tcpFlagList(bits uint64) string {
	if bits == 0 {
		return "NONE"
	}
	var s []string
	for _, f := range tcpFlagNames[:6] {
		if bits&f.bit != 0 {
			s = append(s, f.name)
		}
	}
	return strings.Join(s, ",")
}

type tcpOption struct{}

func (tcpOption) Args() int { return 1 }

func (tcpOption) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	n, rest, ok := tables.Strtoul(text[0], 1, 255)
	if !ok || rest != "" {
		return tables.Usagef("Bad TCP option \"%s\"", text[0])
	}
	v.Lo = n
	return nil
}

func (tcpOption) Format(v *tables.Value) string { return strconv.FormatUint(v.Lo, 10) }

const onlyOneFlags = "Only one of `--syn' or `--tcp-flags'  allowed"

var matchTCP = &tables.Match{
	Name:     "tcp",
	Families: tables.V4V6,
	Doc:      "Matches TCP ports, flags and options. Later fragments never match.",
	Protos:   []uint8{packet.ProtoTCP},
	Options: append(portOptions("tcp"),
		tables.Option{Name: "tcp-option", Type: tcpOption{}, Negatable: true, OnceText: "Only one `--tcp-option' allowed", Arg: "number", Doc: "a TCP option of this kind is there"},
		tables.Option{Name: "tcp-flags", Type: tcpFlags{}, Negatable: true, Shares: []string{"syn"}, OnceText: onlyOneFlags, Arg: "mask comp", Doc: "of the flags in mask, exactly those in comp are set"},
		tables.Option{Name: "syn", Type: tables.Flag, Negatable: true, Shares: []string{"tcp-flags"}, OnceText: onlyOneFlags, Doc: "same as --tcp-flags FIN,SYN,RST,ACK SYN"},
	),
	First: needProto("TCP", "tcp", packet.ProtoTCP),
	Final: func(a *tables.Args) error {
		if a.Has("syn") {
			not := a.Not("syn")
			a.Clear("syn")
			a.Set("tcp-flags", tables.Value{Not: not, Lo: 2, Hi: 0x17})
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		s := savePorts(a, "sport", "dport", false)
		if v := a.Get("tcp-option"); v.Set {
			if v.Not {
				s += " !"
			}
			s += " --tcp-option " + tcpOption{}.Format(v)
		}
		if v := a.Get("tcp-flags"); v.Set {
			if v.Not {
				s += " !"
			}
			s += " --tcp-flags " + tcpFlags{}.Format(v)
		}
		return s
	},
	List: func(a *tables.Args, numeric bool) string {
		s := " tcp" + listPorts(a, numeric, "tcp", "sport", "dport")
		if v := a.Get("tcp-option"); v.Set {
			s += " option=" + bang(v) + tcpOption{}.Format(v)
		}
		if v := a.Get("tcp-flags"); v.Set {
			s += " flags:" + bang(v)
			if numeric {
				s += fmt.Sprintf("0x%02X/0x%02X", v.Hi, v.Lo)
			} else {
				s += tcpFlagList(v.Hi) + "/" + tcpFlagList(v.Lo)
			}
		}
		return s
	},
	Ports: func(a *tables.Args) (s, d tables.PortRange, ok bool) {
		return portRange(a.Get("sport")), portRange(a.Get("dport")), !a.Has("tcp-option") && !a.Has("tcp-flags")
	},
	Hint:    portHint("sport", "dport"),
	Depends: tables.DependsTCP,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		sp, dp := portRange(a.Get("sport")), portRange(a.Get("dport"))
		flags, option := *a.Get("tcp-flags"), *a.Get("tcp-option")
		mask, comp := uint8(flags.Hi), uint8(flags.Lo)
		return func(c *tables.Context, p *packet.Packet) bool {
			if p.Flags&packet.HasL4 == 0 {
				return c.NoPorts(p)
			}
			if !sp.Has(p.SrcPort()) || !dp.Has(p.DstPort()) {
				return false
			}
			if flags.Set {
				c.LookFlags(mask)
				if (p.TCPFlags()&mask == comp) == flags.Not {
					return false
				}
			}
			if !option.Set {
				return true
			}
			c.NotRepeatable()
			has := hasTCPOption(c, p, uint8(option.Lo))
			return has != option.Not && !c.Hotdrop
		}, nil
	},
}

// hasTCPOption looks for an option; a header that is cut short drops the packet.
func hasTCPOption(c *tables.Context, p *packet.Packet, kind uint8) bool {
	t := p.Transport()
	n := int(t[12]>>4) * 4
	if n < 20 || n > len(t) {
		c.Hotdrop = true
		return false
	}
	for o := t[20:n]; len(o) > 0; {
		if o[0] == kind {
			return true
		}
		step := 1
		if o[0] > 1 && len(o) > 1 && o[1] > 0 {
			step = int(o[1])
		}
		if step > len(o) {
			break
		}
		o = o[step:]
	}
	return false
}
