package ext

import (
	"fmt"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
)

// labelFile is where names are given to label bits, a number and a name a line.
// Tests have one of their own.
var labelFile = "/etc/xtables/connlabel.conf"

// labelBit is a label's bit by number or name, in Value.Lo.
type labelBit struct{}

func (labelBit) Args() int { return 1 }

func (labelBit) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	s := text[0]
	if s == "" {
		return tables.Usagef("Argument must have a minimum length of 1 characters\n")
	}
	names := readNames(labelFile)
	for _, x := range names {
		if x.name == s {
			v.Lo = x.n
			return nil
		}
	}
	n, rest, ok := tables.Strtoul(strings.TrimPrefix(s, "-"), 0, all32)
	if ok = ok && (n == 0 || s[0] != '-'); !ok || rest != "" || n > 1<<31-1 {
		e := tables.Usagef("label '%s' not found or invalid value", s)
		if names == nil {
			e.Before = "Warning: cannot open " + labelFile + ": No such file or directory"
		}
		return e
	}
	v.Lo = n & 0xffff
	return nil
}

func (labelBit) Format(v *tables.Value) string { return `"` + labelName(v) + `"` }

func labelName(v *tables.Value) string {
	for _, x := range readNames(labelFile) {
		if x.n == v.Lo {
			return x.name
		}
	}
	return fmt.Sprint(v.Lo)
}

var matchConnLabel = &tables.Match{
	Name:     "connlabel",
	Families: tables.V4V6,
	Doc:      "Matches connections that have a label, one of 128 bits, and can give it to them. Names of bits are in /etc/xtables/connlabel.conf.",
	Options: []tables.Option{
		{Name: "label", Type: labelBit{}, Required: true, Negatable: true, Arg: "bit|name", Doc: "the label"},
		{Name: "set", Type: tables.Flag, Doc: "give the connection the label, and match if that succeeds"},
	},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("label")
		s := " connlabel" + notOf(v) + " " + labelName(v)
		if a.Has("set") {
			s += " set"
		}
		return s
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		if a.Num("label") > 127 {
			return tables.Refuse(syscall.ERANGE, "connlabel: there are 128 labels")
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		v := a.Get("label")
		bit, not, set := uint8(v.Lo), v.Not, a.Has("set")
		if env == nil || env.CT == nil || v.Lo > 127 {
			return func(*tables.Context, *packet.Packet) bool { return not }, nil
		}
		ct := env.CT
		return func(c *tables.Context, p *packet.Packet) bool {
			e := c.Entry(p)
			if e == nil {
				return not
			}
			if ct.HasLabel(e, bit) || set && ct.SetLabel(e, bit) {
				return !not
			}
			return not
		}, nil
	},
}
