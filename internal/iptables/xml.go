package iptables

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

const xmlUsage = "Usage: iptables-xml [-c] [-v] [-h]\n          [--combine ]\n\t   [ --verbose ]\n\t   [ --help ]\n"

// XML is iptables-xml: it turns what iptables-save printed into XML. It needs no
// tables. A file that argv names has been opened by the caller as stdin and
// taken out of argv.
func XML(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	x := &xmlWriter{out: bufio.NewWriter(stdout), chains: map[string]*xmlChain{}}
	defer x.out.Flush()
	words := 0
	for _, a := range argv[1:] {
		switch {
		case a == "-c" || a == "--combine":
			x.combine = true
		case a == "-v" || a == "--verbose":
		case a == "-cv" || a == "-vc":
			x.combine = true
		case a == "-h" || a == "--help":
			fmt.Fprint(stderr, xmlUsage)
			return 1
		case strings.HasPrefix(a, "-") && a != "-":
			if strings.HasPrefix(a, "--") {
				fmt.Fprintf(stderr, "iptables-xml: unrecognized option '%s'\n", a)
			} else {
				fmt.Fprintf(stderr, "iptables-xml: invalid option -- '%c'\n", a[1])
			}
		default:
			words++
		}
	}
	if words > 0 {
		fmt.Fprint(stderr, "Unknown arguments found on commandline\n")
		return 1
	}
	return x.read(bufio.NewReaderSize(stdin, 1<<16), stderr)
}

// xmlChain is a chain as it was declared.
type xmlChain struct {
	name, policy, packets, bytes string
	used                         bool
}

// xmlWriter writes chains as their first rules come.
type xmlWriter struct {
	out     *bufio.Writer
	combine bool
	table   bool
	chains  map[string]*xmlChain
	order   []*xmlChain
	chain   string // that is open
	rule    bool   // one is open, up to its actions
	conds   string // of that rule
	ends    bool   // its target ends the walk
}

var xmlEscape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

func (x *xmlWriter) read(in *bufio.Reader, stderr io.Writer) int {
	fmt.Fprint(x.out, "<iptables-rules version=\"1.0\">\n")
	for n := 1; ; n++ {
		text, err := in.ReadString('\n')
		if text == "" && err != nil {
			if x.table {
				x.out.Flush()
				fmt.Fprintf(stderr, "iptables-xml: COMMIT expected at line %d\n", n)
				return 1
			}
			fmt.Fprint(x.out, "</iptables-rules>\n")
			return 0
		}
		line := strings.TrimSuffix(text, "\n")
		fail := func(format string, a ...any) int {
			x.out.Flush()
			fmt.Fprintf(stderr, format, a...)
			return 1
		}
		switch {
		case line == "":
		case line[0] == '#':
			fmt.Fprintf(x.out, "<!-- %s -->\n", strings.ReplaceAll(line, "-", "*-"))
		case line == "COMMIT" && x.table:
			x.commit()
		case line[0] == '*' && !x.table:
			name, _ := word(line[1:])
			if name == "" {
				return fail("iptables-xml v1.8.9: iptables-xml: line %d table name invalid\nError occurred at line: %d\nTry `iptables-xml -h' or 'iptables-xml --help' for more information.\n", n, n) + 1
			}
			fmt.Fprintf(x.out, "  <table name=\"%s\" >\n", xmlEscape.Replace(name))
			x.table = true
		case line[0] == ':' && x.table:
			name, rest := word(line[1:])
			policy, rest := word(rest)
			if name == "" || policy == "" {
				what := "policy"
				if name == "" {
					what = "chain name"
				}
				return fail("iptables-xml v1.8.9: iptables-xml: line %d %s invalid\nError occurred at line: %d\nTry `iptables-xml -h' or 'iptables-xml --help' for more information.\n", n, what, n) + 1
			}
			c := &xmlChain{name: name, policy: policy}
			c.packets, c.bytes = xmlCounters(strings.TrimSpace(rest))
			if c.packets == "" {
				c.packets, c.bytes = "0", "0"
			}
			x.chains[name] = c
			x.order = append(x.order, c)
		case x.table:
			if why := x.addRule(line); why != "" {
				return fail("iptables-xml: line %d failed%s\n", n, why)
			}
		default:
			return fail("iptables-xml: line %d failed\n", n)
		}
	}
}

// xmlCounters reads "[packets:bytes]".
func xmlCounters(s string) (packets, bytes string) {
	s, ok := strings.CutPrefix(s, "[")
	s, ok2 := strings.CutSuffix(s, "]")
	packets, bytes, ok3 := strings.Cut(s, ":")
	if !ok || !ok2 || !ok3 {
		return "", ""
	}
	return packets, bytes
}

func (x *xmlWriter) head(c *xmlChain) string {
	s := fmt.Sprintf("    <chain name=\"%s\" ", xmlEscape.Replace(c.name))
	if c.policy != "-" {
		s += fmt.Sprintf("policy=\"%s\" ", xmlEscape.Replace(c.policy))
	}
	return s + fmt.Sprintf("packet-count=\"%s\" byte-count=\"%s\" ", xmlEscape.Replace(c.packets), xmlEscape.Replace(c.bytes))
}

func (x *xmlWriter) closeRule() {
	if x.rule {
		fmt.Fprint(x.out, "       </actions>\n\n      </rule>\n\n")
		x.rule = false
	}
}

func (x *xmlWriter) closeChain() {
	x.closeRule()
	if x.chain != "" {
		fmt.Fprint(x.out, "    </chain>\n")
		x.chain = ""
	}
}

func (x *xmlWriter) commit() {
	x.closeChain()
	for _, c := range x.order {
		if !c.used {
			fmt.Fprintf(x.out, "%s/>\n", x.head(c))
		}
	}
	fmt.Fprint(x.out, "  </table>\n")
	x.table, x.order = false, nil
	clear(x.chains)
}

// xmlWord is a word of a rule; quoted ones keep their quotes.
func xmlWords(s string) (out []string) {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quoted && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == '"':
			quoted = !quoted
			b.WriteByte(c)
		case (c == ' ' || c == '\t') && !quoted:
			if b.Len() > 0 {
				out = append(out, b.String())
				b.Reset()
			}
		default:
			b.WriteByte(c)
		}
	}
	if b.Len() > 0 {
		out = append(out, b.String())
	}
	return out
}

// xmlOption is an option of a rule with its values.
type xmlOption struct {
	name   string
	vals   []string
	invert bool
}

func (o *xmlOption) text() string {
	inv := ""
	if o.invert {
		inv = ` invert="1"`
	}
	if len(o.vals) == 0 {
		if o.invert {
			inv += " "
		}
		return fmt.Sprintf("          <%s %s/>\n", o.name, inv+map[bool]string{true: "", false: " "}[o.invert])
	}
	return fmt.Sprintf("          <%s %s>%s</%s>\n", o.name, inv, xmlEscape.Replace(strings.Join(o.vals, " ")), o.name)
}

// addRule writes a rule; why says what is wrong with it.
func (x *xmlWriter) addRule(line string) (why string) {
	packets, bytes := "", ""
	if strings.HasPrefix(line, "[") {
		end := strings.IndexByte(line, ']')
		if end < 0 {
			return ""
		}
		packets, bytes = xmlCounters(line[:end+1])
		line = line[end+1:]
	}
	words := xmlWords(line)
	if len(words) < 2 || words[0] != "-A" && words[0] != "--append" {
		return " - no chain found"
	}
	chain := words[1]
	var opts []xmlOption
	invert := false
	for _, w := range words[2:] {
		switch {
		case w == "!":
			invert = true
		case strings.HasPrefix(w, "-") && len(w) > 1:
			opts = append(opts, xmlOption{name: strings.TrimLeft(w, "-"), invert: invert})
			invert = false
		case len(opts) > 0:
			o := &opts[len(opts)-1]
			o.vals = append(o.vals, w)
		}
	}
	conds, target, kind, params := x.parts(opts)
	if x.chain != chain {
		x.closeChain()
		c := x.chains[chain]
		if c == nil {
			return " - no chain found"
		}
		c.used, x.chain = true, chain
		fmt.Fprintf(x.out, "%s>\n", x.head(c))
	} else if x.combine && x.rule && !x.ends && conds == x.conds {
		fmt.Fprint(x.out, "<!-- Combine action from next rule -->\n")
		x.action(target, kind, params)
		return ""
	}
	x.closeRule()
	if packets != "" {
		fmt.Fprintf(x.out, "      <rule packet-count=\"%s\" byte-count=\"%s\" >\n", xmlEscape.Replace(packets), xmlEscape.Replace(bytes))
	} else {
		fmt.Fprint(x.out, "      <rule >\n")
	}
	if conds != "" {
		fmt.Fprintf(x.out, "       <conditions>\n%s       </conditions>\n", conds)
	}
	fmt.Fprint(x.out, "       <actions>\n")
	x.rule, x.conds = true, conds
	x.action(target, kind, params)
	return ""
}

// parts divides a rule's options: the conditions as text, and the target (kind
// is j or g) with its own options.
func (x *xmlWriter) parts(opts []xmlOption) (conds, target, kind string, params []xmlOption) {
	var b strings.Builder
	open := ""
	end := func() {
		if open != "" {
			fmt.Fprintf(&b, "        </%s>\n", open)
		}
		open = ""
	}
	begin := func(name string) {
		if open != name {
			end()
			open = name
			fmt.Fprintf(&b, "        <%s >\n", name)
		}
	}
	for _, o := range opts {
		switch {
		case o.name == "m" || o.name == "match":
			end()
			if len(o.vals) > 0 {
				begin(o.vals[0])
			}
		case o.name == "j" || o.name == "g" || o.name == "jump" || o.name == "goto":
			end()
			kind = o.name[:1]
			if len(o.vals) > 0 {
				target = o.vals[0]
			}
		case target != "":
			params = append(params, o)
		default:
			if open == "" {
				begin("match")
			}
			b.WriteString(o.text())
		}
	}
	end()
	return b.String(), target, kind, params
}

func (x *xmlWriter) action(target, kind string, params []xmlOption) {
	if target == "" {
		x.ends = true // nothing to add to
		return
	}
	x.ends = target == "ACCEPT" || target == "DROP" || target == "QUEUE"
	switch {
	case x.chains[target] != nil:
		tag := map[string]string{"j": "call", "g": "goto"}[kind]
		fmt.Fprintf(x.out, "        <%s >\n          <%s />\n        </%s>\n", tag, target, tag)
	case len(params) == 0:
		fmt.Fprintf(x.out, "        <%s  />\n", target)
	default:
		fmt.Fprintf(x.out, "        <%s >\n", target)
		for i := range params {
			x.out.WriteString(params[i].text())
		}
		fmt.Fprintf(x.out, "        </%s>\n", target)
	}
}
