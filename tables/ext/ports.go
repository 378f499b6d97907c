package ext

import (
	"strconv"

	"sluice/packet"
	"sluice/tables"
)

// needProto refuses port options without the protocol, as iptables does at the
// end of the text; without options the kernel's check is enough.
func needProto(upper, lower string, proto uint8) func(*tables.Args) error {
	return func(a *tables.Args) error {
		if a.Count() > 0 && (a.Proto != proto || a.ProtoNot) {
			return tables.Usagef("%s match requires '-p %s'", upper, lower)
		}
		return nil
	}
}

// needOption refuses a use without any option.
func needOption(text string) func(*tables.Args) error {
	return func(a *tables.Args) error {
		if a.Count() == 0 {
			return tables.Usagef("%s", text)
		}
		return nil
	}
}

// allPorts reports whether an option says nothing.
func allPorts(v *tables.Value) bool { return !v.Set || v.Lo == 0 && v.Hi == 65535 && !v.Not }

// savePorts prints --sport and --dport. A range of all ports says nothing and is
// left out, unless all is set.
func savePorts(a *tables.Args, sport, dport string, all bool) string {
	var s string
	for i, name := range []string{sport, dport} {
		v := a.Get(name)
		if !v.Set || !all && allPorts(v) {
			continue
		}
		if v.Not {
			s += " !"
		}
		s += " --" + []string{"sport", "dport"}[i] + " " + tables.PortRangeType{}.Format(v)
	}
	return s
}

// listPorts prints " spt:80", " dpts:!1:5".
func listPorts(a *tables.Args, numeric bool, proto, sport, dport string) string {
	var s string
	for i, name := range []string{sport, dport} {
		v := a.Get(name)
		if allPorts(v) {
			continue
		}
		s += " " + []string{"spt", "dpt"}[i]
		if v.Lo == v.Hi {
			s += ":" + bang(v) + portName(v.Lo, proto, numeric)
		} else {
			s += "s:" + bang(v) + portName(v.Lo, proto, numeric) + ":" + portName(v.Hi, proto, numeric)
		}
	}
	return s
}

func portName(n uint64, proto string, numeric bool) string {
	if !numeric {
		if name := tables.ServiceName(uint16(n), proto); name != "" {
			return name
		}
	}
	return strconv.FormatUint(n, 10)
}

func portRange(v *tables.Value) tables.PortRange {
	return tables.PortRange{Min: uint16(v.Lo), Max: uint16(v.Hi), Set: v.Set, Not: v.Not}
}

func portsPred(sp, dp tables.PortRange) tables.Pred {
	return func(c *tables.Context, p *packet.Packet) bool {
		if p.Flags&packet.HasL4 == 0 {
			return c.NoPorts(p)
		}
		return sp.Has(p.SrcPort()) && dp.Has(p.DstPort())
	}
}

// bang is "!" for an inverted option.
func bang(v *tables.Value) string {
	if v.Not {
		return "!"
	}
	return ""
}

// notOf is " !" for an inverted option.
func notOf(v *tables.Value) string {
	if v.Not {
		return " !"
	}
	return ""
}

// portHint is a match's ports as a classifier takes them.
func portHint(sport, dport string) func(*tables.Args) tables.Hint {
	return func(a *tables.Args) (h tables.Hint) {
		if v := a.Get(sport); v.Set && !v.Not {
			h.SPorts = []tables.Range{{Lo: v.Lo, Hi: v.Hi}}
		}
		if v := a.Get(dport); v.Set && !v.Not {
			h.DPorts = []tables.Range{{Lo: v.Lo, Hi: v.Hi}}
		}
		return h
	}
}
