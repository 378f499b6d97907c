package iptables

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sluice/tables"
)

// restoreOptions is the command line of iptables-restore.
type restoreOptions struct {
	counters, verbose, noflush, test bool
	only                             string // -T
}

// runRestore is iptables-restore and ip6tables-restore.
func (x *tool) runRestore(argv []string, stdin io.Reader) int {
	g := newGetopt(argv, restoreShort, restoreLong)
	var o restoreOptions
	wait := map[int]bool{}
	x.line = 0
options:
	for {
		switch id := g.next(); id {
		case optEnd:
			break options
		case optWord:
			g.words++
		case 'c':
			o.counters = true
		case 'v':
			o.verbose = true
		case 't':
			o.test = true
		case 'n':
			o.noflush = true
		case 'T':
			o.only = g.arg
		case 'b': // what the real one says, and goes on
			x.fail("-b/--binary option is not implemented\n")
		case 'M':
		case 'w', 'W':
			wait[id] = true
			if err := x.restoreLock(g, id); err != nil {
				return x.report(err)
			}
		case 'V':
			x.printf("%s %s\n", x.prog, version)
			return 0
		case 'h':
			x.fail("%s", restoreHelp(x.prog))
			return 0
		default:
			x.fail("%s: %s\n", x.prog, g.complaint(id))
			x.fail("Try `%s -h' for more information.\n", x.prog)
			return tables.ExitOther
		}
	}
	g.words += len(argv) - g.ind
	if g.words > 1 {
		x.fail("Unknown arguments found on commandline\n")
		return tables.ExitOther
	}
	if wait['W'] && !wait['w'] {
		x.fail("Option --wait-interval requires option --wait\n")
		return tables.ExitOther
	}
	if g.words == 1 {
		x.fail("Can't open %s: Operation not permitted\n", argv[len(argv)-1])
		return tables.ExitOther
	}
	return x.report(x.restoreFrom(o, bufio.NewReaderSize(stdin, 1<<16)))
}

func (x *tool) restoreLock(g *getopt, id int) error {
	arg, has := g.arg, g.hasArg
	if !has {
		arg, has = g.take()
	}
	if id == 'w' {
		return waitSeconds(arg, has)
	}
	err := waitInterval(arg, has)
	if err == nil {
		x.fail("Ignoring deprecated --wait-interval option.\n")
	}
	return err
}

// numbered is a line of input with its number.
type numbered struct {
	n    int
	text string
}

// section is the part of a restore that one COMMIT ends.
type section struct {
	table tables.TableID
	lines []numbered
}

// restoreFrom reads tables up to the end. Each is committed whole, or not at
// all, when its COMMIT has been read; an error ends the run, and what earlier
// COMMITs did stays.
func (x *tool) restoreFrom(o restoreOptions, in *bufio.Reader) error {
	var s *section
	other := o.only != "" // not in the table that -T names, or before it
	for {
		text, rerr := readLine(in)
		if rerr != nil && rerr != io.EOF && rerr != errLongLine {
			return fmt.Errorf("reading line %d: %w", x.line+1, rerr)
		}
		if text == "" && rerr != errLongLine {
			break
		}
		x.line++
		if rerr == errLongLine {
			return tables.Usagef("%s: line %d has more than %d bytes", x.prog, x.line, maxLine)
		}
		if rerr == io.EOF {
			text += "\n"
		}
		switch {
		case text == "\n":
		case text[0] == '#':
			if o.verbose && s != nil {
				s.lines = append(s.lines, numbered{x.line, text})
			} else if o.verbose {
				x.out.WriteString(text)
			}
		case s != nil && text == "COMMIT\n":
			if err := x.commit(o, s, !o.test); err != nil {
				return err
			}
			s = nil
		case s != nil:
			s.lines = append(s.lines, numbered{x.line, text})
		case text[0] == '*':
			name, _ := word(text[1:])
			if name == "" {
				return tables.Usagef("%s: line %d table name invalid", x.prog, x.line)
			}
			if other = o.only != "" && o.only != name; other {
				continue
			}
			id, ok := tables.TableByName(name)
			if !ok {
				return tables.Usagef("%s: unable to initialize table '%s'", x.prog, name)
			}
			s = &section{table: id}
		case other:
		default:
			return &tables.EditError{}
		}
	}
	if s == nil {
		return nil
	}
	end := x.line + 1
	var refused *tables.EditError
	if err := x.commit(o, s, false); err != nil && !(errors.As(err, &refused) && refused.Op == tables.OpCommit) {
		return err // what only a commit would refuse, the real one does not get to
	}
	x.fail("%s: COMMIT expected at line %d\n", x.prog, end)
	return exit{code: tables.ExitOther}
}

// maxLine is the most bytes of a line: more than as many words as one can have
// need, each in quotes and with all its characters escaped.
const maxLine = 1 << 20

var errLongLine = errors.New("long line")

// readLine reads a line with its end.
func readLine(in *bufio.Reader) (string, error) {
	part, err := in.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return string(part), err
	}
	var b strings.Builder
	for ; err == bufio.ErrBufferFull; part, err = in.ReadSlice('\n') {
		if b.Write(part); b.Len() > maxLine {
			return "", errLongLine
		}
	}
	b.Write(part)
	return b.String(), err
}

// word takes the first word of s, as strtok does.
func word(s string) (w, rest string) {
	s = strings.TrimLeft(s, " \t\n")
	if i := strings.IndexAny(s, " \t\n"); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// commit carries out a section; with publish, its result comes into force.
func (x *tool) commit(o restoreOptions, s *section, publish bool) error {
	end := x.line
	x.restore = s.table.String()
	defer func() { x.restore = "" }()
	cmds, said, perr := x.parseSection(o, s)
	if slices.ContainsFunc(cmds, func(c *command) bool { return c != nil && c.is(cmdList|cmdListRules) }) {
		x.counters = snapshot(x.eng, o.noflush)
	}
	x.line = end
	err := x.engineCommit(publish, func(rs *tables.Ruleset) error { return x.playSection(o, s, cmds, said, perr, rs) })
	if err == nil && publish {
		x.markUsed(x.fam, s.table)
	}
	return err
}

// said is what the program prints while it reads a line: warnings, its version.
type said struct{ out, err string }

// parseSection reads the commands of a section as far as they can be read;
// cmds[i] is line i's. That is done before the engine is asked for a commit, so
// that nobody waits while host names are looked up. What is to be printed while
// line i is read, but after what the lines before it do, is words[i].
func (x *tool) parseSection(o restoreOptions, s *section) (cmds []*command, words map[int]said, err error) {
	cmds, words = make([]*command, 0, len(s.lines)), map[int]said{}
	out, errs := x.out, x.err
	x.out, x.err = &sink{hold: true}, &sink{hold: true}
	defer func() { x.out, x.err = out, errs }()
	for i, l := range s.lines {
		tables.Yield(i)
		var c *command
		if l.text[0] != '#' && l.text[0] != ':' {
			x.line = l.n
			c, err = x.parseLine(o, l.text)
			if len(x.out.buf)+len(x.err.buf) > 0 {
				words[i] = said{string(x.out.buf), string(x.err.buf)}
				x.out.buf, x.err.buf = nil, nil
			}
			if err != nil {
				return cmds, words, err
			}
		}
		cmds = append(cmds, c)
	}
	return cmds, words, nil
}

// playSection carries out a section; perr is why the line after the last of cmds
// could not be read.
func (x *tool) playSection(o restoreOptions, s *section, cmds []*command, words map[int]said, perr error, rs *tables.Ruleset) error {
	end := x.line
	t := rs.Table(s.table)
	if !o.noflush {
		all := &command{}
		if o.verbose {
			all.verbose = 1
		}
		if err := x.each(all, t, true, "Flushing", t.Flush); err != nil {
			return err
		}
		if err := x.each(all, t, false, "Deleting", t.DeleteChain); err != nil {
			return err
		}
		for _, ch := range t.Chains() {
			if err := t.SetPolicyCounters(ch.Name, tables.Counter{}); err != nil {
				return err
			}
		}
	}
	for i, l := range s.lines {
		tables.Yield(i)
		x.line = l.n
		if w, ok := words[i]; ok {
			x.out.WriteString(w.out)
			x.err.WriteString(w.err)
		}
		if i == len(cmds) {
			return perr
		}
		var err error
		switch c := cmds[i]; {
		case l.text[0] == '#':
			x.out.WriteString(l.text)
		case l.text[0] == ':':
			err = x.restoreChain(o, t, l.text[1:])
		case c != nil:
			if o.verbose && !o.noflush {
				c.verbose++
			}
			err = x.apply(c, rs)
		}
		if err != nil {
			return err
		}
	}
	x.line = end
	return nil
}

// restoreChain reads ":CHAIN POLICY [packets:bytes]".
func (x *tool) restoreChain(o restoreOptions, t *tables.Table, text string) error {
	name, text := word(text)
	switch {
	case name == "":
		return tables.Usagef("%s: line %d chain name invalid", x.prog, x.line)
	case len(name) > maxChainName:
		return tables.Usagef("Invalid chain name `%s' (%d chars max)", name, maxChainName)
	}
	ch := t.Chain(name)
	switch {
	case ch != nil && ch.Builtin:
	case ch != nil && o.noflush:
		if err := t.Flush(name); err != nil {
			return err
		}
	case ch != nil, isVerdict(name), name == "QUEUE":
		return tables.Usagef("error creating chain '%s':File exists", name)
	default:
		if err := t.NewChain(name); err != nil {
			return err
		}
	}
	policy, text := word(text)
	switch policy {
	case "":
		return tables.Usagef("%s: line %d policy invalid", x.prog, x.line)
	case "-":
		return nil
	}
	var n tables.Counter
	if o.counters {
		text, _ = word(text)
		if _, err := fmt.Sscanf(text, "[%d:%d", (*cNumber)(&n.Packets), (*cNumber)(&n.Bytes)); err != nil {
			return tables.Usagef("invalid policy counters for chain '%s'", name)
		}
	}
	err := setPolicy(t, name, policy, &n)
	var refused *tables.EditError
	if errors.As(err, &refused) {
		return &tables.Error{Code: tables.ExitOther, Msg: fmt.Sprintf("Can't set policy `%s' on `%s' line %d: %s", policy, name, x.line, sentence(refused))}
	}
	return err
}

// cNumber reads a number as C's scanf does with %llu: a sign is taken, what is
// too large is the largest.
type cNumber uint64

func (n *cNumber) Scan(s fmt.ScanState, _ rune) error {
	tok, err := s.Token(true, func(r rune) bool { return r == '-' || r == '+' || r >= '0' && r <= '9' })
	if err != nil {
		return err
	}
	v, ok := parseCounter(string(tok))
	if !ok {
		return errors.New("not a number")
	}
	*n = cNumber(v)
	return nil
}

// parseCounter reads a packet or byte counter; what is too large is the largest.
func parseCounter(s string) (uint64, bool) {
	neg := strings.HasPrefix(s, "-")
	digits := strings.TrimLeft(s, "+-")
	if digits == "" || len(s)-len(digits) > 1 {
		return 0, false
	}
	var v uint64
	for i := range len(digits) {
		d := digits[i] - '0'
		if d > 9 {
			return 0, false
		}
		if v > (1<<64-1-uint64(d))/10 {
			return 1<<64 - 1, true
		}
		v = v*10 + uint64(d)
	}
	if neg {
		v = -v
	}
	return v, true
}

// parseLine reads a line with a command, perhaps with counters before it.
func (x *tool) parseLine(o restoreOptions, text string) (*command, error) {
	packets, bytes, text, ok := cutCounters(text)
	if !ok {
		return nil, tables.Usagef("Bad line %d: need ]", x.line)
	}
	if err := x.words.split(text); err != nil {
		return nil, err
	}
	words := x.words.words
	if o.counters && packets != "" {
		words = append([]string{"--set-counters", packets, bytes}, words...)
	}
	return x.parse(words)
}

// cutCounters takes "[packets:bytes]" from the beginning of a line, if it is
// there. As strtok has it, an empty number is what comes behind the bracket.
func cutCounters(line string) (packets, bytes, rest string, ok bool) {
	if line[0] != '[' {
		return "", "", line, true
	}
	pair, rest, ok := strings.Cut(line[1:], "]")
	packets, _, colon := strings.Cut(strings.TrimLeft(pair, ":"), ":")
	if !ok || !colon || packets == "" {
		return "", "", "", false
	}
	_, bytes, _ = strings.Cut(strings.TrimLeft(line[1:], ":"), ":")
	bytes, _, _ = strings.Cut(strings.TrimLeft(bytes, "]"), "]")
	return packets, bytes, rest, true
}

// snap is counters that know only the rules of one moment: others have what they
// begin with.
type snap struct {
	view     *tables.View
	has      map[*tables.Rule]bool
	policies bool
}

func snapshot(e *tables.Engine, policies bool) *snap {
	s := &snap{e.View(nil), map[*tables.Rule]bool{}, policies}
	for id := range tables.NumTables {
		for _, ch := range s.view.Ruleset.Table(id).Chains() {
			for _, r := range ch.Rules() {
				s.has[r] = true
			}
		}
	}
	return s
}

func (s *snap) Rule(r *tables.Rule) tables.Counter {
	if s.has[r] {
		return s.view.Rule(r)
	}
	return r.Initial
}

func (s *snap) Policy(ch *tables.Chain) tables.Counter {
	if s.policies {
		return s.view.Policy(ch)
	}
	return tables.Counter{}
}
