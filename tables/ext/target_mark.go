package ext

import (
	"fmt"
	"slices"

	"sluice/packet"
	"sluice/tables"
)

// markOps are the options that say how a mark changes, as they are checked; only
// one may be given. markRank is the order in which each looks for the others.
var markOps = []string{"set-xmark", "set-mark", "and-mark", "or-mark", "xor-mark"}

var markRank = []string{"set-mark", "save-mark", "restore-mark", "and-mark", "or-mark", "xor-mark", "set-xmark"}

// markExcludes are the other options of those that name is one of.
func markExcludes(name string, all []string) (out []string) {
	for _, x := range markRank {
		if x != name && slices.Contains(all, x) {
			out = append(out, x)
		}
	}
	return out
}

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
		o.Excludes = markExcludes(name, all)
		out = append(out, o)
	}
	return out
}

// markOp reduces one of the options to a form that all have: mark = mark &^ mask ^ value.
func markOp(name string, v *tables.Value) (value, mask uint32, ok bool) {
	lo, hi := uint32(v.Lo), uint32(v.Hi)
	switch name {
	case "set-xmark":
		return lo, hi, true
	case "set-mark":
		return lo, hi | lo, true
	case "and-mark":
		return 0, ^lo, true
	case "or-mark":
		return lo, lo, true
	case "xor-mark":
		return lo, 0, true
	}
	return 0, 0, false
}

// markOf is what MARK's options come to.
func markOf(a *tables.Args) (value, mask uint32) {
	for name, v := range a.InOrder() {
		value, mask, _ = markOp(name, v)
	}
	return value, mask
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
	First:    needOption("MARK: One of the --set-xmark, --{and,or,xor,set}-mark options is required"),
	Save: func(a *tables.Args) string {
		value, mask := markOf(a)
		return fmt.Sprintf(" --set-xmark 0x%x/0x%x", value, mask)
	},
	List: func(a *tables.Args, _ bool) string {
		value, mask := markOf(a)
		return " MARK" + listMark(value, mask)
	},
	Depends: tables.DependsMark,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		value, mask := markOf(a)
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			p.Mark = p.Mark&^mask ^ value
			return tables.Continue
		}, nil
	},
}
