package tables

import (
	"strconv"
	"strings"

	"sluice/packet"
)

// Save prints the rule as iptables-save does after "-A CHAIN", leading space
// included; "" for a rule that says nothing.
func (r *Rule) Save() string {
	if r.text != "" {
		return r.text
	}
	var b strings.Builder
	not := func(n bool) {
		if n {
			b.WriteString(" !")
		}
	}
	addr := func(flag string, a Addr) {
		if a.Mask == [16]byte{} && !a.Not {
			return
		}
		not(a.Not)
		b.WriteString(flag + formatMasked(r.Family, a))
	}
	addr(" -s ", r.Src)
	addr(" -d ", r.Dst)
	if r.In != "" && (r.In != "+" || r.InNot) {
		not(r.InNot)
		b.WriteString(" -i " + r.In)
	}
	if r.Out != "" && (r.Out != "+" || r.OutNot) {
		not(r.OutNot)
		b.WriteString(" -o " + r.Out)
	}
	if r.Proto != 0 {
		not(r.ProtoNot)
		name := ProtocolName(r.Proto)
		if name == "" {
			name = strconv.Itoa(int(r.Proto))
		}
		b.WriteString(" -p " + name)
	}
	if r.Family == packet.IPv4 && (r.Fragment || r.FragmentNot) {
		not(r.FragmentNot)
		b.WriteString(" -f")
	}
	for _, m := range r.Matches {
		b.WriteString(" -m " + m.Ext.Name)
		if m.Ext.Save != nil {
			b.WriteString(m.Ext.Save(m.Args))
		} else {
			b.WriteString(m.Args.SaveOptions())
		}
	}
	switch {
	case r.Target != nil:
		b.WriteString(" -j " + r.Target.Ext.Name)
		if r.Target.Ext.Save != nil {
			b.WriteString(r.Target.Ext.Save(r.Target.Args))
		} else {
			b.WriteString(r.Target.Args.SaveOptions())
		}
	case r.Goto:
		b.WriteString(" -g " + r.Jump)
	case r.Jump != "":
		b.WriteString(" -j " + r.Jump)
	case r.Verdict != VerdictNone:
		b.WriteString(" -j " + r.Verdict.String())
	}
	return b.String()
}

// ListExtras prints what -L has after the addresses: the matches, then the
// target's own text. Each part has its leading space.
func (r *Rule) ListExtras(numeric bool) string {
	var b strings.Builder
	for _, m := range r.Matches {
		if m.Ext.List != nil {
			b.WriteString(m.Ext.List(m.Args, numeric))
		} else {
			b.WriteString(m.Args.ListOptions())
		}
	}
	if u := r.Target; u != nil {
		if u.Ext.List != nil {
			b.WriteString(u.Ext.List(u.Args, numeric))
		} else {
			b.WriteString(u.Args.ListOptions())
		}
	}
	return b.String()
}
