package ext

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"sluice/tables"
)

// namedMark is value[/mask] in Value.Lo and Hi where the value may have a name
// in a file of iproute2's, a number and a name a line.
type namedMark struct{ file string }

func (namedMark) Args() int { return 1 }

func (t namedMark) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	n, rest, ok := tables.Strtoul(text[0], 0, all32)
	v.Lo, v.Hi = n, all32
	if !ok || rest != "" && rest[0] != '/' {
		for _, x := range readNames(t.file) {
			if x.name == text[0] {
				v.Lo = x.n
				return nil
			}
		}
		return tables.Usagef("%s: could not map name %s to an integer value for option \"--%s\".\n", o.Ext, text[0], o.Name)
	}
	if rest == "" {
		return nil
	}
	if v.Hi, rest, ok = tables.Strtoul(rest[1:], 0, all32); ok && rest != "" {
		return tables.Usagef("%s: trailing garbage after value for option \"--%s\".\n", o.Ext, o.Name)
	}
	if !ok {
		return tables.Usagef("%s: bad integer value for option \"--%s\", or out of range.\n", o.Ext, o.Name)
	}
	return nil
}

func (t namedMark) Format(v *tables.Value) string { return t.format(v, false) }

func (t namedMark) format(v *tables.Value, numeric bool) string {
	if v.Hi != all32 {
		return fmt.Sprintf("0x%x/0x%x", v.Lo, v.Hi)
	}
	if !numeric {
		for _, x := range readNames(t.file) {
			if x.n == v.Lo {
				return x.name
			}
		}
	}
	return fmt.Sprintf("0x%x", v.Lo)
}

type named struct {
	n    uint64
	name string
}

// readNames reads a file each time: it is small, and may change under us.
func readNames(path string) (out []named) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) < 2 || w[0][0] == '#' {
			continue
		}
		if n, rest, ok := tables.Strtoul(w[0], 0, all32); ok && rest == "" {
			out = append(out, named{n, w[1]})
		}
	}
	return out
}
