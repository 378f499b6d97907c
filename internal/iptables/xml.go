package iptables

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"sluice/tables"
)

const xmlUsage = "Usage: iptables-xml [-c] [-v] [-h]\n          [--combine ]\n\t   [ --verbose ]\n\t   [ --help ]\n"

const xmlShort = "cvh"

var xmlLong = []longOpt{{"combine", noArg, 'c'}, {"verbose", noArg, 'v'}, {"help", noArg, 'h'}}

// XML is iptables-xml: it turns what iptables-save printed into XML. It needs no
// tables. A file that argv names is read in the place of stdin.
func XML(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	x := &xmlWriter{out: bufio.NewWriter(stdout), chains: map[string]*xmlChain{}}
	defer x.out.Flush()
	g := newGetopt(argv, xmlShort, xmlLong)
	var files []string
options:
	for {
		switch id := g.next(); id {
		case optEnd:
			break options
		case optWord:
			files = append(files, g.arg)
		case 'c':
			x.combine = true
		case 'v':
			if !x.verbose {
				fmt.Fprint(x.out, "xptables-xml\n")
			}
			x.verbose = true
		case 'h':
			fmt.Fprint(stderr, xmlUsage)
			return 1
		default:
			fmt.Fprintf(stderr, "iptables-xml: %s\n", g.complaint(id))
		}
	}
	files = append(files, argv[g.ind:]...)
	switch len(files) {
	case 0:
	case 1:
		f, err := os.Open(files[0])
		if err != nil {
			fmt.Fprint(stderr, strings.TrimSuffix((&ClientFiles{Input: files[0]}).OpenError(err), "\n"))
			return 1
		}
		defer f.Close()
		stdin = f
	default:
		fmt.Fprint(stderr, "Unknown arguments found on commandline")
		return 1
	}
	return x.read(bufio.NewReaderSize(stdin, 1<<16), stderr)
}

// xmlChain is a chain as it was declared.
type xmlChain struct {
	name, policy, counts string
	used                 bool
}

// xmlWriter writes chains as their first rules come.
type xmlWriter struct {
	out     *bufio.Writer
	combine bool
	verbose bool
	table   bool
	chains  map[string]*xmlChain // the last of each name
	order   []*xmlChain
	chain   string    // that is open
	rule    bool      // one is open, up to its actions
	last    []xmlWord // the rule before
}

// xmlWord is a word of a rule.
type xmlWord struct {
	text   string
	quoted bool
}

func (w *xmlWord) is(names ...string) bool { return !w.quoted && slices.Contains(names, w.text) }

// jumps reports whether what follows is a target. Some places do not ask for quotes.
func (w *xmlWord) jumps() bool { return isJump(w.text) && !w.quoted }

func isJump(s string) bool { return s == "-j" || s == "--jump" || isGoto(s) }
func isGoto(s string) bool { return s == "-g" || s == "--goto" }

func (x *xmlWriter) print(parts ...string) {
	for _, s := range parts {
		x.out.WriteString(s)
	}
}

// read turns the input into elements; the result is the exit status.
func (x *xmlWriter) read(in *bufio.Reader, stderr io.Writer) int {
	x.print("<iptables-rules version=\"1.0\">\n")
	for n := 1; ; n++ {
		text, err := readLine(in)
		var why error
		switch {
		case err == errLongLine:
			why = tables.Usagef("line %d has more than %d bytes", n, maxLine)
		case text != "":
			why = x.line(n, strings.TrimSuffix(text, "\n"))
		case x.table:
			why = fmt.Errorf("COMMIT expected at line %d", n)
		default:
			x.print("</iptables-rules>\n")
			return 0
		}
		var usage *tables.Error
		switch {
		case errors.As(why, &usage):
			x.out.Flush()
			fmt.Fprintf(stderr, "iptables-xml v1.8.9: %s\nError occurred at line: %d\nTry `iptables-xml -h' or 'iptables-xml --help' for more information.\n", usage.Msg, n)
			return usage.Code
		case why != nil:
			x.out.Flush()
			fmt.Fprintf(stderr, "iptables-xml: %v\n", why)
			return 1
		}
	}
}

func (x *xmlWriter) line(n int, line string) error {
	if line == "" {
		return nil
	}
	if line[0] == '#' {
		x.comment(line)
		return nil
	}
	if x.verbose {
		x.comment(fmt.Sprintf("line %d %s", n, line))
	}
	switch {
	case line == "COMMIT" && x.table:
		x.closeTable()
	case line[0] == '*':
		name, _ := word(line[1:])
		if name == "" {
			return tables.Usagef("iptables-xml: line %d table name invalid", n)
		}
		x.closeTable()
		x.print("  <table name=\"", xmlText(name), "\" >\n")
		x.table = true
	case line[0] == ':' && x.table:
		name, rest := word(line[1:])
		if name == "" {
			return tables.Usagef("iptables-xml: line %d chain name invalid", n)
		}
		policy, rest := word(rest)
		if policy == "" {
			return tables.Usagef("iptables-xml: line %d policy invalid", n)
		}
		var k tables.Counter
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "[%d:%d", (*cNumber)(&k.Packets), (*cNumber)(&k.Bytes)); err != nil {
			k = tables.Counter{}
		}
		c := &xmlChain{name: name, policy: policy, counts: fmt.Sprintf("packet-count=\"%d\" byte-count=\"%d\" ", int64(k.Packets), int64(k.Bytes))}
		x.chains[name] = c
		x.order = append(x.order, c)
	case x.table:
		return x.addRule(n, line)
	default:
		return fmt.Errorf("line %d failed", n)
	}
	return nil
}

// xmlText is a text without what XML does not allow in it. Bytes above ASCII
// become the characters of their numbers, as the real one has them.
func xmlText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0x7f:
			fmt.Fprintf(&b, "&#%d;", c)
		case c == '&':
			b.WriteString("&amp;")
		case c == '<':
			b.WriteString("&lt;")
		case c == '>':
			b.WriteString("&gt;")
		case c == '"':
			b.WriteString("&quot;")
		default:
			b.WriteByte(plain(c))
		}
	}
	return b.String()
}

// plain is c, or a question mark in the place of a control character.
func plain(c byte) byte {
	if c < ' ' && c != '\t' && c != '\n' && c != '\r' {
		return '?'
	}
	return c
}

// xmlName is the name of an element, with underscores in the place of what
// names do not have.
func xmlName(s string) string {
	b := []byte(s)
	for i, c := range b {
		switch letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_'; {
		case letter, i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '.'):
		default:
			b[i] = '_'
		}
	}
	return cmp.Or(string(b), "_")
}

// comment writes a comment, in which two dashes may not meet.
func (x *xmlWriter) comment(text string) {
	x.print("<!-- ")
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return rune(plain(byte(r)))
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	for i, part := range strings.Split(text, "-") {
		switch {
		case i == 0:
		case i%2 == 1:
			x.print("*-")
		default:
			x.print(" *-")
		}
		x.print(part)
	}
	x.print(" -->\n")
}

// openChain writes the start of a chain's element, less its end.
func (x *xmlWriter) openChain(c *xmlChain) {
	x.print("    <chain name=\"", xmlText(c.name), "\" ")
	if c.policy != "-" {
		x.print("policy=\"", xmlText(c.policy), "\" ")
	}
	x.print(c.counts)
}

func (x *xmlWriter) closeRule() {
	if x.rule {
		x.print("       </actions>\n\n      </rule>\n\n")
		x.rule = false
	}
}

func (x *xmlWriter) closeChain() {
	x.closeRule()
	if x.chain != "" {
		x.print("    </chain>\n")
		x.chain = ""
	}
}

func (x *xmlWriter) closeTable() {
	x.closeChain()
	for _, c := range x.order {
		if !c.used {
			x.openChain(c)
			x.print("/>\n")
		}
	}
	if x.table {
		x.print("  </table>\n")
	}
	x.table, x.order = false, nil
	clear(x.chains)
}

// addRule writes a rule.
func (x *xmlWriter) addRule(n int, line string) error {
	packets, bytes, line, ok := cutCounters(line + "\n")
	if !ok {
		return tables.Usagef("Bad line %d: need ]", n)
	}
	texts, cols, err := Split(line)
	if err != nil {
		return err
	}
	words := make([]xmlWord, len(texts))
	chain := ""
	for i, s := range texts {
		end := len(line)
		if i+1 < len(cols) {
			end = cols[i+1] - 1
		}
		words[i] = xmlWord{s, strings.Contains(line[cols[i]-1:end], `"`)}
		if i > 0 && texts[i-1] == "-A" {
			chain = s
		}
	}
	if x.chains[chain] == nil {
		return fmt.Errorf("line %d failed - no chain found", n)
	}
	if x.chain != chain {
		for _, c := range x.order {
			if c.name == chain {
				x.closeChain()
				x.openChain(c)
				x.print(">\n")
				x.chain, c.used = chain, true
			}
		}
	}
	to := 2
	for to < len(words) && !words[to].jumps() {
		to++
	}
	conds := len(words) > 2 && !isJump(words[2].text)
	if x.combine && conds && x.continues(words) {
		x.print("<!-- Combine action from next rule -->\n")
	} else {
		x.closeRule()
		x.print("      <rule ")
		if packets != "" {
			x.print("packet-count=\"", xmlText(packets), "\" byte-count=\"", xmlText(bytes), "\" ")
		}
		x.print(">\n")
		if conds {
			x.print("       <conditions>\n")
			x.part(words, 2, to)
			x.print("       </conditions>\n")
		}
		x.print("       <actions>\n")
		x.rule = true
	}
	x.part(words, to, len(words))
	x.last = words
	return nil
}

// continues reports whether a rule's conditions are those of the rule before,
// and that one's target does not end the walk.
func (x *xmlWriter) continues(words []xmlWord) bool {
	for i := range min(len(words), len(x.last)) {
		switch old := x.last[i].text; {
		case isJump(old) && isJump(words[i].text):
			ends := i+1 < len(x.last) && slices.Contains([]string{"ACCEPT", "DROP", "QUEUE", "RETURN"}, x.last[i+1].text)
			return x.rule && !isGoto(old) && !ends
		case old != words[i].text:
			return false
		}
	}
	return false
}

// xmlPart is the conditions or the actions of a rule while they are written.
type xmlPart struct {
	*xmlWriter
	group, option string // the elements that are open
	space         string // before the next value
}

func (p *xmlPart) closeOption() {
	if p.option != "" {
		p.print("</", p.option, ">\n")
	}
	p.option, p.space = "", ""
}

func (p *xmlPart) closeGroup() {
	p.closeOption()
	if p.group != "" {
		p.print("        </", p.group, ">\n")
	}
	p.group = ""
}

func (p *xmlPart) openGroup(name string) {
	p.closeGroup()
	p.group = xmlName(name)
	p.print("        <", p.group, " ")
}

// part writes the words from i up to end: options are elements, in those of
// their matches or targets.
func (x *xmlWriter) part(words []xmlWord, i, end int) {
	p := xmlPart{xmlWriter: x}
	module := func(i int) bool { return i < len(words) && (words[i].jumps() || words[i].is("-m", "--module")) }
	first := i
	if first < len(words) && words[first].text == "!" {
		first++
	}
	if first < len(words) && strings.HasPrefix(words[first].text, "-") && !isJump(words[first].text) && words[first].text != "-m" {
		p.openGroup("match")
		p.print(">\n")
	}
	invert := false
	for ; i < end; i++ {
		w := &words[i]
		switch {
		case w.is("!"):
			if i+1 < len(words) && strings.HasPrefix(words[i+1].text, "-") {
				invert = true
			} else {
				p.print(p.space, "!")
			}
			p.space = " "
		case module(i) && i+1 == len(words):
			// names nothing
		case module(i):
			i++
			invert = false
			name := words[i].text
			switch {
			case w.jumps() && (x.chain == name || x.chains[name] != nil):
				if isGoto(w.text) {
					p.openGroup("goto")
				} else {
					p.openGroup("call")
				}
				p.print(">\n          <", xmlName(name), " />\n")
			case i+1 == len(words) || module(i+1):
				p.openGroup(name)
				p.print(" />\n")
				p.group = ""
			default:
				p.openGroup(name)
				p.print(">\n")
			}
		case !w.quoted && strings.HasPrefix(w.text, "-"):
			p.closeOption()
			name := xmlName(strings.TrimLeft(w.text, "-"))
			p.print("          <", name, " ")
			if invert {
				p.print(` invert="1"`)
			}
			invert = false
			if i+1 == len(words) || strings.HasPrefix(words[i+1].text, "-") {
				p.print(" />\n")
			} else {
				p.print(">")
				p.option = name
			}
		default:
			p.print(p.space)
			text := xmlText(w.text)
			if w.quoted || strings.Contains(w.text, " ") {
				text = "&quot;" + text + "&quot;"
			}
			p.print(text)
			p.space = " "
		}
	}
	p.closeGroup()
}
