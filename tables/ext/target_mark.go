package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

// markOps are the options that say how a mark changes; only one may be given.
var markOps = []string{"set-xmark", "set-mark", "and-mark", "or-mark", "xor-mark"}

func markOpOptions(others ...string) []tables.Option {
	all := append(markOps[:len(markOps):len(markOps)], others...)
	docs := []string{
		"clear the bits in mask, xor value in", "clear the bits in mask, or value in",
		"and with bits", "or with bits", "xor with bits",
	}
	var out []tables.Option
	for i, name := range markOps {
		o := tables.Option{Name: name, Type: tables.MarkMask, Arg: "value[/mask]", Doc: docs[i]}
		if i >= 2 {
			o.Type, o.Arg = tables.Uint{Max: 1<<32 - 1, Hex: true}, "bits"
		}
		for _, x := range all {
			if x != name {
				o.Excludes = append(o.Excludes, x)
			}
		}
		out = append(out, o)
	}
	return out
}

// markOp reduces the options to one form: mark = mark &^ mask ^ value.
func markOp(a *tables.Args) (value, mask uint32, ok bool) {
	for i, name := range markOps {
		v := a.Get(name)
		if !v.Set {
			continue
		}
		lo, hi := uint32(v.Lo), uint32(v.Hi)
		switch i {
		case 0:
			return lo, hi, true
		case 1:
			return lo, hi | lo, true
		case 2:
			return 0, ^lo, true
		case 3:
			return lo, lo, true
		case 4:
			return lo, 0, true
		}
	}
	return 0, 0, false
}

// listMark is -L's word for a change of a mark.
func listMark(value, mask uint32) string {
	switch {
	case value == 0:
		return fmt.Sprintf(" and 0x%x", ^mask)
	case value == mask:
		return fmt.Sprintf(" or 0x%x", value)
	case mask == 0:
		return fmt.Sprintf(" xor 0x%x", value)
	case mask == 1<<32-1:
		return fmt.Sprintf(" set 0x%x", value)
	}
	return fmt.Sprintf(" xset 0x%x/0x%x", value, mask)
}

var targetMARK = &tables.Target{
	Name:     "MARK",
	Families: tables.V4V6,
	Doc:      "Sets the packet's mark, for policy routing and the mark match, and goes on with the next rule.",
	Options:  markOpOptions(),
	Final: func(a *tables.Args) error {
		if _, _, ok := markOp(a); !ok {
			return tables.Usagef("MARK: One of the --set-xmark, --{and,or,xor,set}-mark options is required")
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		value, mask, _ := markOp(a)
		return fmt.Sprintf(" --set-xmark 0x%x/0x%x", value, mask)
	},
	List: func(a *tables.Args, _ bool) string {
		value, mask, _ := markOp(a)
		return " MARK" + listMark(value, mask)
	},
	Depends: tables.DependsMark,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		value, mask, _ := markOp(a)
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			p.Mark = p.Mark&^mask ^ value
			return tables.Continue
		}, nil
	},
}
