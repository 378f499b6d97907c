package ext

import (
	"errors"
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

const maxBPF = 64 // instructions

// bytecode is a program as nfbpf_compile prints it: the number of instructions,
// then each as "code jt jf k", in Value.Str as it is printed.
type bytecode struct{}

func (bytecode) Args() int { return 1 }

func (bytecode) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	prog, err := parseBPF(text[0])
	if err == nil {
		v.Str = formatBPF(prog)
	}
	return err
}

func (bytecode) Format(v *tables.Value) string {
	return fmt.Sprintf(`"%d,%s"`, strings.Count(v.Str, ",")+1, v.Str)
}

func parseBPF(s string) ([]bpfOp, error) {
	n, rest, ok := tables.ScanUint(s)
	if !ok || !strings.HasPrefix(rest, ",") {
		return nil, tables.Usagef("bpf: error parsing program length")
	}
	length := int(uint16(n)) // as scanf's %hu leaves it
	switch {
	case length == 0:
		return nil, tables.Usagef("bpf: illegal zero length program")
	case length > maxBPF:
		return nil, tables.Usagef("bpf: number of instructions exceeds maximum")
	}
	var prog []bpfOp
	for len(rest) > 0 && rest[0] == ',' && len(rest) > 1 {
		if len(prog) == length {
			return nil, tables.Usagef("bpf: real program length exceeds the encoded length parameter")
		}
		rest = rest[1:]
		var f [4]uint64
		at := rest
		for i := range f {
			if f[i], at, ok = tables.ScanUint(at); !ok {
				return nil, tables.Usagef("bpf: error at instr %d", len(prog))
			}
		}
		prog = append(prog, bpfOp{uint16(f[0]), uint8(f[1]), uint8(f[2]), uint32(f[3])})
		if i := strings.IndexByte(rest, ','); i >= 0 {
			rest = rest[i:]
		} else {
			rest = ""
		}
	}
	if len(prog) < length {
		return nil, tables.Usagef("bpf: parsed program length is less than the encoded length parameter")
	}
	return prog, nil
}

func formatBPF(prog []bpfOp) string {
	var s []string
	for _, o := range prog {
		s = append(s, fmt.Sprintf("%d %d %d %d", o.code, o.jt, o.jf, o.k))
	}
	return strings.Join(s, ",")
}

// pinned is a path to a program of the kernel's, which nobody here can run.
type pinned struct{}

func (pinned) Args() int { return 1 }

func (pinned) Parse(*tables.OptionContext, []string, *tables.Value) error {
	return tables.Usagef("bpf: failed to get bpf object")
}

func (pinned) Format(v *tables.Value) string { return v.Str }

var matchBPF = &tables.Match{
	Name:     "bpf",
	Families: tables.V4V6,
	Doc:      "Matches packets for which a program of the classic BPF does not return 0. The packet begins with its IP header.",
	Options: []tables.Option{
		{Name: "bytecode", Type: bytecode{}, Arg: "program", Doc: "the program, as nfbpf_compile RAW prints it, up to 64 instructions"},
		{Name: "object-pinned", Type: pinned{}, Arg: "path", Doc: "eBPF programs belong to the kernel: refused"},
	},
	First: needOption("bpf: one of --bytecode or --pinned is required"),
	List:  func(a *tables.Args, _ bool) string { return "match bpf " + a.Str("bytecode") + " " },
	Check: func(a *tables.Args, _ *tables.Place) error {
		v := a.Get("bytecode")
		prog, err := parseBPF(strings.Trim(bytecode{}.Format(v), `"`))
		if err != nil {
			return errors.New("bpf: not a program")
		}
		return checkBPF(prog)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		prog, err := parseBPF(strings.Trim(bytecode{}.Format(a.Get("bytecode")), `"`))
		if err == nil {
			err = checkBPF(prog)
		}
		if err != nil {
			return nil, err
		}
		return func(c *tables.Context, p *packet.Packet) bool { return runBPF(prog, c, p) != 0 }, nil
	},
}
