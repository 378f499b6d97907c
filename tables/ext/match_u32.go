package ext

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// u32Max bounds tests, steps of a location and ranges of values.
const u32Max = 10

// Operators of a location.
const (
	u32And = iota
	u32Left
	u32Right
	u32At
)

var u32Ops = [...]string{"&", "<<", ">>", "@"}

// u32Test is "location = values": a word of the packet, what is done to it, and
// the ranges that the result must be in.
type u32Test struct {
	at     uint32 // where the first word is
	steps  []u32Step
	values []tables.Range
}

type u32Step struct {
	op uint8
	n  uint32
}

// u32Tests are tests in Value.Str, as they are printed.
type u32Tests struct{}

func (u32Tests) Args() int { return 1 }

func (u32Tests) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	ts, err := parseU32(text[0])
	if err == nil {
		v.Str = formatU32(ts)
	}
	return err
}

func (u32Tests) Format(v *tables.Value) string { return `"` + v.Str + `"` }

// u32Reader reads the tests; at is the character it is at.
type u32Reader struct {
	s  string
	at int
}

func (r *u32Reader) space() {
	for r.at < len(r.s) && strings.IndexByte(" \t\n\v\f\r", r.s[r.at]) >= 0 {
		r.at++
	}
}

func (r *u32Reader) next(c byte) bool {
	if r.at < len(r.s) && r.s[r.at] == c {
		r.at++
		return true
	}
	return false
}

func (r *u32Reader) fail(format string, a ...any) error {
	return tables.Usagef("u32: at char %d: %s", r.at, fmt.Sprintf(format, a...))
}

func (r *u32Reader) number() (uint32, error) {
	n, rest, ok := tables.Strtoul(r.s[r.at:], 0, all32)
	if !ok {
		return 0, r.fail("not a number or out of range")
	}
	r.at = len(r.s) - len(rest)
	return uint32(n), nil
}

func parseU32(s string) (tests []u32Test, err error) {
	r := &u32Reader{s: s}
	for {
		var t u32Test
		if err = r.location(&t); err != nil {
			return nil, err
		}
		more, err := r.values(&t)
		if err != nil {
			return nil, err
		}
		if tests = append(tests, t); len(tests) > u32Max {
			return nil, r.fail("too many \"&&\"s")
		}
		if !more {
			return tests, nil
		}
	}
}

// location reads up to the "=".
func (r *u32Reader) location(t *u32Test) (err error) {
	for n := 0; ; {
		r.space()
		switch {
		case r.at == len(r.s):
			return tables.Usagef("u32: abrupt end of input after location specifier")
		case r.s[r.at] == '=':
			if n == 0 {
				return r.fail("location spec missing")
			}
			r.at++
			return nil
		}
		var step u32Step
		if n > 0 {
			switch {
			case r.next('&'):
				step.op = u32And
			case r.next('@'):
				step.op = u32At
			case r.next('<'):
				if !r.next('<') {
					return r.fail("a second '<' was expected")
				}
				step.op = u32Left
			case r.next('>'):
				if !r.next('>') {
					return r.fail("a second '>' was expected")
				}
				step.op = u32Right
			default:
				return r.fail("operator expected")
			}
		}
		if step.n, err = r.number(); err != nil {
			return err
		}
		if n == 0 {
			t.at = step.n
		} else {
			t.steps = append(t.steps, step)
		}
		if n++; n > u32Max {
			return r.fail("too many operators")
		}
	}
}

// values reads what is behind the "="; more: another test follows.
func (r *u32Reader) values(t *u32Test) (more bool, err error) {
	for {
		start := r.at
		r.space()
		if r.at == len(r.s) && len(t.values) > 0 {
			r.at = start
		}
		if r.at == len(r.s) && len(t.values) == 0 {
			return false, tables.Usagef("u32: test ended with no value specified")
		}
		if r.next('&') {
			if r.at == len(r.s) || r.s[r.at] != '&' {
				return false, r.fail("a second '&' was expected")
			}
			return false, r.fail("value spec missing")
		}
		lo, err := r.number()
		if err != nil {
			return false, err
		}
		hi := lo
		r.space()
		if r.next(':') {
			if hi, err = r.number(); err != nil {
				return false, err
			}
		}
		if t.values = append(t.values, tables.Range{Lo: uint64(lo), Hi: uint64(hi)}); len(t.values) > u32Max {
			return false, r.fail("too many \",\"s")
		}
		r.space()
		switch {
		case r.at == len(r.s):
			return false, nil
		case r.next('&'):
			if !r.next('&') {
				return false, r.fail("a second '&' was expected")
			}
			return true, nil
		case !r.next(','):
			return false, r.fail("expected \",\" or \"&&\"")
		}
	}
}

func formatU32(ts []u32Test) string {
	var b strings.Builder
	for i, t := range ts {
		if i > 0 {
			b.WriteString("&&")
		}
		fmt.Fprintf(&b, "0x%x", t.at)
		for _, s := range t.steps {
			fmt.Fprintf(&b, "%s0x%x", u32Ops[s.op], s.n)
		}
		for j, v := range t.values {
			b.WriteByte("=,"[min(j, 1)])
			fmt.Fprintf(&b, "0x%x", v.Lo)
			if v.Lo != v.Hi {
				fmt.Fprintf(&b, ":0x%x", v.Hi)
			}
		}
	}
	return b.String()
}

var matchU32 = &tables.Match{
	Name:     "u32",
	Families: tables.V4V6,
	Doc:      "Matches by any bits of the packet: words of four bytes, masked and shifted, within ranges.",
	Options: []tables.Option{{
		Name: "u32", Type: u32Tests{}, Required: true, Negatable: true, Arg: "tests",
		Doc: "location=value[:value],… [&& …]; a location is an offset followed by &mask, <<bits, >>bits or @offset",
	}},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("u32")
		return " u32" + notOf(v) + " " + u32Tests{}.Format(v)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		tests, err := parseU32(a.Str("u32"))
		if err != nil {
			return nil, err
		}
		for i := range tests {
			for _, s := range tests[i].steps {
				if (s.op == u32Left || s.op == u32Right) && s.n > 31 {
					return nil, errors.New("u32: a word is shifted by more than 31 bits")
				}
			}
		}
		not := a.Not("u32")
		return func(_ *tables.Context, p *packet.Packet) bool {
			b := p.Bytes()
			for i := range tests {
				if !tests[i].match(b) {
					return not
				}
			}
			return !not
		}, nil
	},
}

func (t *u32Test) match(b []byte) bool {
	n := uint32(len(b))
	if n < 4 || t.at > n-4 {
		return false
	}
	v, at := binary.BigEndian.Uint32(b[t.at:]), uint32(0)
	for _, s := range t.steps {
		switch s.op {
		case u32And:
			v &= s.n
		case u32Left:
			v <<= s.n
		case u32Right:
			v >>= s.n
		case u32At:
			if at+v < at {
				return false
			}
			if at += v; at > n-4 || s.n > n-4-at {
				return false
			}
			v = binary.BigEndian.Uint32(b[at+s.n:])
		}
	}
	for _, r := range t.values {
		if uint64(v) >= r.Lo && uint64(v) <= r.Hi {
			return true
		}
	}
	return false
}
