package config

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"sluice/router"
)

// index knows where each key and value of a TOML document is. The TOML library
// keeps the place of a key, but not of an element of an array, and a rule is
// one; so this small scanner walks the text beside it. It only ever sees
// documents that the library has accepted, and so checks nothing: it has to
// find where things begin and end. A fuzz target holds it to the library's
// result: every value that the library decodes has a place here.
type index struct {
	file  string
	text  []byte
	lines []int // offset of each line's first byte

	keys map[string]int // path → offset of the key, or of the header's bracket
	vals map[string]int // path → offset of the value
	aot  map[string]int // path → tables so far in an array of tables

	at int
}

// join makes a path; elements of arrays are numbers.
func join(path, part string) string {
	if path == "" {
		return part
	}
	return path + "\x1f" + part
}

func newIndex(file string, text []byte) *index {
	ix := &index{file: file, text: text, lines: []int{0}, keys: map[string]int{}, vals: map[string]int{}, aot: map[string]int{}}
	for i, c := range text {
		if c == '\n' {
			ix.lines = append(ix.lines, i+1)
		}
	}
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		ix.at = 3
	}
	ix.document()
	return ix
}

// position turns an offset into line and column.
func (ix *index) position(off int) router.Position {
	lo, hi := 0, len(ix.lines)
	for hi-lo > 1 {
		if m := (lo + hi) / 2; ix.lines[m] <= off {
			lo = m
		} else {
			hi = m
		}
	}
	return router.Position{File: ix.file, Line: lo + 1, Column: off - ix.lines[lo] + 1}
}

func (ix *index) document() {
	table := ""
	for ix.skip(true); ix.at < len(ix.text); ix.skip(true) {
		start := ix.at
		switch {
		case ix.eat("[["):
			parts, _ := ix.key()
			ix.skip(false)
			ix.eat("]]")
			table = ix.resolve(parts[:len(parts)-1], start)
			table = join(table, parts[len(parts)-1])
			n := ix.aot[table]
			ix.aot[table] = n + 1
			ix.set(table, start)
			table = join(table, strconv.Itoa(n))
			ix.set(table, start)
		case ix.eat("["):
			parts, _ := ix.key()
			ix.skip(false)
			ix.eat("]")
			table = ix.resolve(parts, start)
			ix.keys[table], ix.vals[table] = start, start // a header counts more than a table that only follows from another
		default:
			ix.pair(table)
		}
		if ix.at == start { // not TOML: the library would have refused it
			return
		}
	}
}

func (ix *index) set(path string, off int) {
	if _, ok := ix.keys[path]; !ok {
		ix.keys[path] = off
	}
	if _, ok := ix.vals[path]; !ok {
		ix.vals[path] = off
	}
}

// resolve makes a path of a header's parts: a name that is an array of tables means its last one.
func (ix *index) resolve(parts []string, at int) string {
	path := ""
	for _, p := range parts {
		path = join(path, p)
		if n := ix.aot[path]; n > 0 {
			path = join(path, strconv.Itoa(n-1))
		}
		ix.set(path, at)
	}
	return path
}

// pair reads key = value, the key perhaps dotted.
func (ix *index) pair(table string) {
	parts, offs := ix.key()
	path := table
	for i, p := range parts {
		path = join(path, p)
		if i < len(parts)-1 {
			ix.set(path, offs[i])
		} else {
			ix.keys[path] = offs[i]
		}
	}
	ix.skip(false)
	ix.eat("=")
	ix.skip(false)
	ix.value(path)
}

// key reads a dotted key.
func (ix *index) key() (parts []string, offs []int) {
	for {
		ix.skip(false)
		offs = append(offs, ix.at)
		if c := ix.peek(); c == '"' || c == '\'' {
			text, _ := ix.str()
			parts = append(parts, text)
		} else {
			start := ix.at
			for ix.at < len(ix.text) && !strings.ContainsRune(" \t.=]\r\n", rune(ix.text[ix.at])) {
				ix.at++
			}
			parts = append(parts, string(ix.text[start:ix.at]))
		}
		ix.skip(false)
		if !ix.eat(".") {
			return parts, offs
		}
	}
}

func (ix *index) value(path string) {
	ix.vals[path] = ix.at
	if _, ok := ix.keys[path]; !ok {
		ix.keys[path] = ix.at
	}
	switch c := ix.peek(); c {
	case '"', '\'':
		ix.str()
	case '[', '{':
		end := c + 2 // ']' and '}' are two after '[' and '{'
		ix.at++
		for n := 0; ; n++ {
			ix.skip(true)
			start := ix.at
			if ix.at >= len(ix.text) || ix.eat(string(end)) {
				return
			}
			if c == '[' {
				ix.value(join(path, strconv.Itoa(n)))
			} else {
				ix.pair(path)
			}
			ix.skip(true)
			ix.eat(",")
			if ix.at == start {
				return
			}
		}
	default:
		for ix.at < len(ix.text) && !strings.ContainsRune(",]}#\r\n", rune(ix.text[ix.at])) {
			ix.at++
		}
	}
}

// str reads a string of any of the four kinds. offs has the offset in the text
// of each byte of the result, and one more for its end.
func (ix *index) str() (text string, offs []int) {
	q := string(ix.peek())
	long := strings.Repeat(q, 3)
	var out []byte
	add := func(b []byte, at int) {
		for range b {
			offs = append(offs, at)
		}
		out = append(out, b...)
	}
	if ix.eat(long) {
		q = long
		if !ix.eat("\n") {
			ix.eat("\r\n")
		}
	} else {
		ix.at++
	}
	for ix.at < len(ix.text) {
		at := ix.at
		if ix.hasPrefix(q) {
			ix.at += len(q)
			for len(q) == 3 && ix.peek() == q[0] { // quotes at the end of a long string belong to it
				add([]byte{q[0]}, at)
				ix.at++
				at++
			}
			offs = append(offs, at)
			return string(out), offs
		}
		if ix.text[at] == '\\' && q[0] == '"' && at+1 < len(ix.text) {
			add(ix.escape(), at)
			continue
		}
		add(ix.text[at:at+1], at)
		ix.at++
	}
	return string(out), append(offs, ix.at)
}

// escape reads a backslash sequence of a basic string.
func (ix *index) escape() []byte {
	c := ix.text[ix.at+1]
	ix.at += 2
	hex := 0
	switch c {
	case 'b':
		return []byte{'\b'}
	case 't':
		return []byte{'\t'}
	case 'n':
		return []byte{'\n'}
	case 'f':
		return []byte{'\f'}
	case 'r':
		return []byte{'\r'}
	case 'e':
		return []byte{0x1b}
	case 'x':
		hex = 2
	case 'u':
		hex = 4
	case 'U':
		hex = 8
	case ' ', '\t', '\r', '\n': // a line's end in a long string, and all the blank after it
		for ix.at < len(ix.text) && strings.ContainsRune(" \t\r\n", rune(ix.text[ix.at])) {
			ix.at++
		}
		return nil
	default:
		return []byte{c}
	}
	end := min(ix.at+hex, len(ix.text))
	n, _ := strconv.ParseUint(string(ix.text[ix.at:end]), 16, 32)
	ix.at = end
	return utf8.AppendRune(nil, rune(n))
}

// within is the place of byte off of the string value at path.
func (ix *index) within(path string, off int) router.Position {
	at, ok := ix.vals[path]
	if !ok {
		return router.Position{File: ix.file}
	}
	twin := index{text: ix.text, at: at}
	if c := twin.peek(); c != '"' && c != '\'' {
		return ix.position(at)
	}
	_, offs := twin.str()
	return ix.position(offs[min(max(off, 0), len(offs)-1)])
}

// skip passes blanks, and with lines also line ends and comments.
func (ix *index) skip(lines bool) {
	for ix.at < len(ix.text) {
		switch c := ix.text[ix.at]; {
		case c == ' ' || c == '\t':
			ix.at++
		case lines && (c == '\n' || c == '\r'):
			ix.at++
		case lines && c == '#':
			for ix.at < len(ix.text) && ix.text[ix.at] != '\n' {
				ix.at++
			}
		default:
			return
		}
	}
}

func (ix *index) peek() byte {
	if ix.at < len(ix.text) {
		return ix.text[ix.at]
	}
	return 0
}

func (ix *index) hasPrefix(s string) bool {
	return bytes.HasPrefix(ix.text[ix.at:], []byte(s))
}

func (ix *index) eat(s string) bool {
	if !ix.hasPrefix(s) {
		return false
	}
	ix.at += len(s)
	return true
}
