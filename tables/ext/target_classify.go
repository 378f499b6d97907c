package ext

import (
	"fmt"
	"strconv"
	"strings"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// classID is MAJOR:MINOR in hex, of 16 bits each, in Value.Lo as one number.
type classID struct{}

func (classID) Args() int { return 1 }

func (classID) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	bad := tables.Usagef("Bad class value \"%s\"", text[0])
	hi, rest, ok := scanHex(text[0])
	if !ok || !strings.HasPrefix(rest, ":") {
		return bad
	}
	lo, _, ok := scanHex(rest[1:])
	if !ok {
		return bad
	}
	v.Lo = hi&0xffff<<16 | lo&0xffff
	return nil
}

// scanHex reads a number as scanf's %x does: blanks and a sign before it, and
// "0x" alone, are taken.
func scanHex(s string) (n uint64, rest string, ok bool) {
	s = strings.TrimLeft(s, blanks)
	neg := strings.HasPrefix(s, "-")
	if neg || strings.HasPrefix(s, "+") {
		s = s[1:]
	}
	n, rest, ok = hexNumber(s)
	if !ok && len(s) > len(rest) { // "0x", or too large
		n, ok = 0, true
		if len(s)-len(rest) > 2 {
			n = all32
		}
	}
	if neg {
		n = -n
	}
	return n, rest, ok
}

// hexNumber reads hex digits, with or without 0x, as scanf's %x does.
func hexNumber(s string) (n uint64, rest string, ok bool) {
	d := s
	if len(d) > 1 && d[0] == '0' && d[1]|0x20 == 'x' {
		d = d[2:]
	}
	i := 0
	for i < len(d) && strings.IndexByte("0123456789abcdefABCDEF", d[i]) >= 0 {
		i++
	}
	n, err := strconv.ParseUint(d[:i], 16, 64)
	return n, d[i:], err == nil
}

func (classID) Format(v *tables.Value) string { return fmt.Sprintf("%04x:%04x", v.Lo>>16, v.Lo&0xffff) }

var targetCLASSIFY = &tables.Target{
	Name:     "CLASSIFY",
	Families: tables.V4V6,
	Doc:      "Sets the packet's priority, the class that queueing disciplines sort by. The router has none of these.",
	Hooks:    hooks.At(hooks.Forward, hooks.Output, hooks.Postrouting),
	Options: []tables.Option{{
		Name: "set-class", Type: classID{}, Required: true, Arg: "major:minor", Doc: "the class, two numbers in hex",
	}},
	List: func(a *tables.Args, _ bool) string {
		n := a.Num("set-class")
		return fmt.Sprintf(" CLASSIFY set %x:%x", n>>16, n&0xffff)
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		n := uint32(a.Num("set-class"))
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			p.Priority = n
			return tables.Continue
		}, nil
	},
}
