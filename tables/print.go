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
	var room [256]byte
	return string(r.appendSave(room[:0]))
}

func (r *Rule) appendSave(b []byte) []byte {
	not := func(n bool) {
		if n {
			b = append(b, " !"...)
		}
	}
	word := func(flag, w string) {
		b = append(b, flag...)
		b = append(b, w...)
	}
	addr := func(flag string, a *Addr) {
		if a.Mask != [16]byte{} || a.Not {
			not(a.Not)
			b = append(b, flag...)
			b = appendMasked(b, r.Family, a)
		}
	}
	addr(" -s ", &r.Src)
	addr(" -d ", &r.Dst)
	if r.In != "" && (r.In != "+" || r.InNot) {
		not(r.InNot)
		word(" -i ", r.In)
	}
	if r.Out != "" && (r.Out != "+" || r.OutNot) {
		not(r.OutNot)
		word(" -o ", r.Out)
	}
	if r.Proto != 0 {
		not(r.ProtoNot)
		name := ProtocolName(r.Proto)
		if name == "" {
			name = strconv.Itoa(int(r.Proto))
		}
		word(" -p ", name)
	}
	if r.Family == packet.IPv4 && (r.Fragment || r.FragmentNot) {
		not(r.FragmentNot)
		b = append(b, " -f"...)
	}
	for i := range r.Matches {
		m := &r.Matches[i]
		word(" -m ", m.Ext.Name)
		if m.Ext.Save != nil {
			b = append(b, m.Ext.Save(m.Args)...)
		} else {
			b = m.Args.appendOptions(b)
		}
	}
	switch {
	case r.Target != nil:
		word(" -j ", r.Target.Ext.Name)
		if r.Target.Ext.Save != nil {
			b = append(b, r.Target.Ext.Save(r.Target.Args)...)
		} else {
			b = r.Target.Args.appendOptions(b)
		}
	case r.Goto:
		word(" -g ", r.Jump)
	case r.Jump != "":
		word(" -j ", r.Jump)
	case r.Verdict != VerdictNone:
		word(" -j ", r.Verdict.String())
	}
	return b
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
