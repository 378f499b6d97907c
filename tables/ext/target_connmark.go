package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

const allOnes = 1<<32 - 1

func connmarkOptions() []tables.Option {
	os := markOpOptions("save-mark", "restore-mark")
	bits := tables.Uint{Max: allOnes, Hex: true}
	others := func(name string) []string { return markExcludes(name, markRank) }
	return append(os,
		tables.Option{Name: "save-mark", Type: tables.Flag, Excludes: others("save-mark"), Doc: "copy the packet's mark to the connection"},
		tables.Option{Name: "restore-mark", Type: tables.Flag, Excludes: others("restore-mark"), Doc: "copy the connection's mark to the packet"},
		tables.Option{Name: "left-shift-mark", Type: tables.Uint{Max: 32}, Arg: "bits", Doc: "shift the copied mark left"},
		tables.Option{Name: "right-shift-mark", Type: tables.Uint{Max: 32}, Arg: "bits", Doc: "shift the copied mark right"},
		tables.Option{Name: "ctmask", Type: bits, Excludes: []string{"mask"}, Arg: "mask", Doc: "bits of the connection's mark"},
		tables.Option{Name: "nfmask", Type: bits, Excludes: []string{"mask"}, Arg: "mask", Doc: "bits of the packet's mark"},
		tables.Option{Name: "mask", Type: bits, Excludes: []string{"ctmask", "nfmask"}, Arg: "mask", Doc: "both masks at once"},
	)
}

// connmarkOp is what the options come to.
type connmarkOp struct {
	value, ctmask, nfmask uint32
	shift                 int // bits to the left; negative: to the right
	kind                  uint8
}

const (
	connmarkNone uint8 = iota
	connmarkSet
	connmarkSave
	connmarkRestore
)

// connmarkOf takes the options in the order typed: they write to the same masks,
// and the last one stays.
func connmarkOf(a *tables.Args) (op connmarkOp) {
	op.ctmask, op.nfmask = allOnes, allOnes
	for name, v := range a.InOrder() {
		bits := uint32(v.Lo)
		switch name {
		case "save-mark":
			op.kind = connmarkSave
		case "restore-mark":
			op.kind = connmarkRestore
		case "ctmask":
			op.ctmask = bits
		case "nfmask":
			op.nfmask = bits
		case "mask":
			op.ctmask, op.nfmask = bits, bits
		case "left-shift-mark":
			op.shift = int(v.Lo)
		case "right-shift-mark":
			op.shift = -int(v.Lo)
		default:
			op.kind = connmarkSet
			op.value, op.ctmask, _ = markOp(name, v)
		}
	}
	return op
}

func (op *connmarkOp) shiftText(dashes string) string {
	switch {
	case op.shift > 0:
		return fmt.Sprintf(" %sleft-shift-mark %d", dashes, op.shift)
	case op.shift < 0:
		return fmt.Sprintf(" %sright-shift-mark %d", dashes, -op.shift)
	}
	return ""
}

// masks prints which bits are copied, the source's mask first.
func (op *connmarkOp) masks(from, to string, a, b uint32) string {
	switch {
	case a == allOnes && b == allOnes:
		return ""
	case a == b:
		return fmt.Sprintf(" mask 0x%x", a)
	}
	return fmt.Sprintf(" %s 0x%x %s ~0x%x", from, a, to, b)
}

func (op *connmarkOp) shifted(m uint32) uint32 {
	if op.shift >= 0 {
		return m << op.shift
	}
	return m >> -op.shift
}

var targetCONNMARK = &tables.Target{
	Name:     "CONNMARK",
	Families: tables.V4V6,
	Doc:      "Sets the connection's mark, saves the packet's mark in it or restores it from there, and goes on with the next rule.",
	Options:  connmarkOptions(),
	First: func(a *tables.Args) error {
		if connmarkOf(a).kind == connmarkNone {
			return tables.Usagef("CONNMARK target: No operation specified")
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		op := connmarkOf(a)
		switch op.kind {
		case connmarkSave:
			return fmt.Sprintf(" --save-mark --nfmask 0x%x --ctmask 0x%x", op.nfmask, op.ctmask) + op.shiftText("--")
		case connmarkRestore:
			return fmt.Sprintf(" --restore-mark --nfmask 0x%x --ctmask 0x%x", op.nfmask, op.ctmask) + op.shiftText("--")
		}
		return fmt.Sprintf(" --set-xmark 0x%x/0x%x", op.value, op.ctmask) + op.shiftText("--")
	},
	List: func(a *tables.Args, _ bool) string {
		op := connmarkOf(a)
		switch op.kind {
		case connmarkSave:
			return " CONNMARK save" + op.masks("nfmask", "ctmask", op.nfmask, op.ctmask) + op.shiftText("")
		case connmarkRestore:
			return " CONNMARK restore" + op.masks("ctmask", "nfmask", op.ctmask, op.nfmask) + op.shiftText("")
		}
		return " CONNMARK" + listMark(op.value, op.ctmask) + op.shiftText("")
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		if op := connmarkOf(a); op.shift >= 32 || op.shift <= -32 {
			return tables.Refuse(0, "CONNMARK cannot shift by more than 31 bits")
		}
		return nil
	},
	Depends: tables.DependsMark | tables.DependsCtMark,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		op := connmarkOf(a)
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			e := c.Entry(p)
			if e == nil && op.kind == connmarkRestore && hasTemplate(p) {
				e = template
			}
			if e == nil {
				return tables.Continue
			}
			switch op.kind {
			case connmarkSet:
				e.SetMark(op.shifted(e.Mark()&^op.ctmask ^ op.value))
			case connmarkSave:
				e.SetMark(e.Mark()&^op.ctmask ^ op.shifted(p.Mark&op.nfmask))
			case connmarkRestore:
				p.Mark = p.Mark&^op.nfmask ^ op.shifted(e.Mark()&op.ctmask)
			}
			return tables.Continue
		}, nil
	},
}
