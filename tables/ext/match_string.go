package ext

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
)

const maxPattern = 128

// pattern is a text to look for, in Value.Str; Type hex reads |0d 0a| within it.
type pattern struct{ hex bool }

func (pattern) Args() int { return 1 }

func (t pattern) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	s := text[0]
	if t.hex {
		var err error
		if s, err = unhex(s); err != nil {
			return err
		}
	}
	if len(s) > maxPattern {
		return tables.Usagef("STRING too long \"%s\"", text[0])
	}
	v.Str = s
	return nil
}

func (pattern) Format(v *tables.Value) string { return patternText(v.Str) }

// unhex reads text with blocks of hex digits between bars, |0d 0a|. A backslash
// outside them quotes the byte after it.
func unhex(s string) (string, error) {
	if s == "" {
		return "", tables.Usagef("STRING must contain at least one char")
	}
	var out []byte
	in := false
	for i := 0; i < len(s); {
		if s[i] == '\\' && in {
			return "", tables.Usagef("Cannot include literals in hex data")
		}
		if s[i] == '|' {
			in = !in
			for i++; in && i < len(s) && s[i] == ' '; i++ {
			}
			if i >= len(s) {
				break
			}
		}
		switch {
		case in:
			if i+1 >= len(s) {
				return "", tables.Usagef("Odd number of hex digits")
			}
			if i+2 >= len(s) {
				return "", tables.Usagef("Invalid hex block")
			}
			n := 0
			for _, c := range []byte(s[i : i+2]) {
				d := strings.IndexByte("0123456789abcdef", c)
				if c >= 'A' && c <= 'F' {
					d = int(c-'A') + 10
				}
				if d < 0 {
					return "", tables.Usagef("Invalid hex char '%c'", c)
				}
				n = n<<4 | d
			}
			out = append(out, byte(n))
			if i += 2; s[i] == ' ' {
				i++
			}
		case s[i] == '\\':
			if i+1 >= len(s) {
				return "", tables.Usagef("Bad literal placement at end of string")
			}
			out = append(out, s[i+1])
			i += 2
		default:
			out = append(out, s[i])
			i++
		}
	}
	return string(out), nil
}

// printsAsHex: a text with control characters, high bytes, or a backslash at its
// end is printed in hex.
func printsAsHex(s string) bool {
	for i := range len(s) {
		if s[i] < 32 || s[i] > 126 {
			return true
		}
	}
	return strings.HasSuffix(s, `\`)
}

func patternText(s string) string {
	if printsAsHex(s) {
		return fmt.Sprintf(`"|%x|"`, s)
	}
	return patternQuote(s)
}

func patternQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

var searchAlgo = tables.String{Trim: 15}

var matchString = &tables.Match{
	Name:     "string",
	Families: tables.V4V6,
	Doc:      "Matches packets that contain a text.",
	Options: []tables.Option{
		{Name: "algo", Type: searchAlgo, Required: true, Arg: "bm|kmp", Doc: "accepted: the result is the same"},
		{Name: "string", Type: pattern{}, Negatable: true, Excludes: []string{"hex-string"}, Arg: "text", Doc: "the text, up to 128 bytes"},
		{Name: "hex-string", Type: pattern{hex: true}, Negatable: true, Excludes: []string{"string"}, Arg: "text", Doc: "the text, with bytes in hex between bars: GET|20|"},
		{Name: "from", Type: tables.U16, Arg: "offset", Doc: "where the search begins, bytes from the IP header's first"},
		{Name: "to", Type: tables.U16, Arg: "offset", Doc: "where it ends; default 65535"},
		{Name: "icase", Type: tables.Flag, Doc: "upper and lower case are the same"},
	},
	First: func(a *tables.Args) error {
		if !a.Has("string") && !a.Has("hex-string") {
			return tables.Usagef("STRING match: You must specify `--string' or `--hex-string'")
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		v := textOf(a)
		s := notOf(v) + " --string "
		if printsAsHex(v.Str) {
			s = notOf(v) + " --hex-string "
		}
		s += patternText(v.Str) + " --algo " + a.Str("algo")
		if n := a.Num("from"); n != 0 {
			s += fmt.Sprintf(" --from %d", n)
		}
		if n := searchEnd(a); n != 65535 {
			s += fmt.Sprintf(" --to %d", n)
		}
		if a.Has("icase") {
			s += " --icase"
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		v := textOf(a)
		s := " STRING match " + bang(v) + " " + patternText(v.Str) + " ALGO name " + a.Str("algo")
		if n := a.Num("from"); n != 0 {
			s += fmt.Sprintf(" FROM %d", n)
		}
		if n := searchEnd(a); n != 65535 {
			s += fmt.Sprintf(" TO %d", n)
		}
		if a.Has("icase") {
			s += " ICASE"
		}
		return s
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		switch algo := a.Str("algo"); {
		case algo == "fsm":
			return errors.New("string: algorithm fsm takes no text")
		case algo != "bm" && algo != "kmp":
			return tables.Refuse(syscall.ENOENT, "string: there is no algorithm %q", algo)
		case textOf(a).Str == "":
			return errors.New("string: the text is empty")
		case a.Num("from") > searchEnd(a):
			return errors.New("string: --from is behind --to")
		}
		return nil
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		v := textOf(a)
		from, to, not := int(a.Num("from")), int(searchEnd(a)), v.Not
		text := []byte(v.Str)
		if a.Has("icase") {
			f := newFolded(text)
			return func(_ *tables.Context, p *packet.Packet) bool { return f.in(window(p.Bytes(), from, to)) != not }, nil
		}
		return func(_ *tables.Context, p *packet.Packet) bool {
			return bytes.Contains(window(p.Bytes(), from, to), text) != not
		}, nil
	},
}

func textOf(a *tables.Args) *tables.Value {
	if v := a.Get("hex-string"); v.Set {
		return v
	}
	return a.Get("string")
}

func searchEnd(a *tables.Args) uint64 {
	if v := a.Get("to"); v.Set {
		return v.Lo
	}
	return 65535
}

func window(b []byte, from, to int) []byte {
	b = b[:min(to, len(b))]
	return b[min(from, len(b)):]
}

// folded looks for a text without regard to case: Horspool's algorithm over
// folded bytes.
type folded struct {
	text []byte
	skip [256]uint8
}

// upper folds Latin-1, as the kernel's toupper does.
var upper = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
		if i >= 'a' && i <= 'z' || i >= 0xe0 && i != 0xf7 {
			t[i] -= 32
		}
	}
	return t
}()

func newFolded(text []byte) *folded {
	f := &folded{text: bytes.Clone(text)}
	n := len(text)
	for i := range f.skip {
		f.skip[i] = uint8(n)
	}
	for i, c := range text {
		f.text[i] = upper[c]
		if i < n-1 {
			f.skip[upper[c]] = uint8(n - 1 - i)
		}
	}
	return f
}

func (f *folded) in(b []byte) bool {
	n := len(f.text)
	if n == 0 {
		return false
	}
	for len(b) >= n {
		i := n - 1
		for i >= 0 && upper[b[i]] == f.text[i] {
			i--
		}
		if i < 0 {
			return true
		}
		b = b[f.skip[upper[b[n-1]]]:]
	}
	return false
}
