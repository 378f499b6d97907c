package config

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// FuzzConfig: whatever the text is, it is read or refused with a place in the
// file, and the index has a place for every value that the TOML library found.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(full))
	for _, c := range refusals {
		f.Add([]byte(c.text))
	}
	for _, s := range []string{
		"a = 1\r\n[b]\r\nc.d = '''\r\nx'''\r\n", "\xef\xbb\xbfa=1", `"a\"b" . 'c' = {x = 1, "y".z = [1, [2, {q = 3}]]}`,
		"[[a]]\nb=1\n[[a.c]]\nd=2\n[a.c.e]\nf=3\n[[a.c]]\n[[a]]\n[[a.c]]\n", `s = """a\
   b\u00e9\U0001F600\x41\e""" # comment`, `s = """"quoted""""`, "s = ''''quoted''''", "d = 1979-05-27 07:32:00\nt = 07:32:00\nf = 1e3\ni = 0x_f",
		"a = [ # c\n 1, # d\n\n 2 ]\n", "a = {\n b = 1, # c\n c = 2,\n}", "[a.b]\n[a]\nc=1", "[ a . \"b.c\" ]\nx=1", "=1", "[[a]\n", "a.b=1\na.c=2",
	} {
		f.Add([]byte(s))
	}
	more, _ := filepath.Glob("../../configs/*.toml")
	for _, name := range more {
		if text, err := os.ReadFile(name); err == nil {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, _, err := parse("fuzz.toml", text, nameless{})
		var problems Problems
		if (err == nil) == (cfg == nil) {
			t.Fatalf("configuration %v and error %v", cfg, err)
		}
		if err != nil && (!errors.As(err, &problems) || len(problems) == 0) {
			t.Fatalf("an error without problems: %v", err)
		}
		for _, p := range problems {
			if p.Pos.File == "fuzz.toml" && (p.Pos.Line < 1 || p.Pos.Column < 1) {
				t.Errorf("no place: %v", p)
			}
		}
		if doc, bad := document("fuzz.toml", text); bad == nil {
			placed(t, newIndex("fuzz.toml", text), doc, "")
		}
	})
}

// nameless knows no names, so that the fuzzer asks no name server.
type nameless struct{}

func (nameless) Addrs(uint8, string) [][16]byte { return nil }
func (nameless) Name(uint8, [16]byte) string    { return "" }

// placed checks that ix knows where v and all within it are.
func placed(t *testing.T, ix *index, v any, path string) {
	if path != "" {
		off, ok := ix.vals[path]
		if !ok {
			t.Fatalf("no place for the value at %q", path)
		}
		if _, ok := ix.keys[path]; !ok {
			t.Fatalf("no place for the key %q", path)
		}
		if s, isString := v.(string); isString {
			twin := index{text: ix.text, at: off}
			got, offs := twin.str()
			if got != s || len(offs) != len(s)+1 {
				t.Fatalf("the string at %q is %q with %d offsets, and the scanner reads %q", path, s, len(offs), got)
			}
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			placed(t, ix, e, join(path, k))
		}
	case []any:
		for i, e := range v {
			placed(t, ix, e, join(path, strconv.Itoa(i)))
		}
	case []map[string]any:
		for i, e := range v {
			placed(t, ix, e, join(path, strconv.Itoa(i)))
		}
	}
}
