package iptables

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"sluice/tables"
)

// Word is an argument of a rule and where it stands.
type Word struct {
	Text         string
	Line, Column int // from 1; columns count bytes
}

// Line is one line of a script in iptables-save format.
type Line struct {
	File         string
	Line, Column int
	Text         string
	Words        []Word // the text taken apart; nil: by iptables-restore's rules
}

// ScriptError is a refusal of a script: where, and what is wrong.
type ScriptError struct {
	File         string
	Line, Column int
	Index        int    // of the Line in the script
	Text         string // the line
	Err          error  // *tables.Error or *tables.EditError
}

func (e *ScriptError) Error() string {
	at := e.File
	if at == "" {
		at = "rules"
	}
	return fmt.Sprintf("%s:%d:%d: %s", at, e.Line, e.Column, message(e.Err))
}

func (e *ScriptError) Unwrap() error { return e.Err }

// message is an error as one line for people.
func message(err error) string {
	var edit *tables.EditError
	if errors.As(err, &edit) {
		s := sentence(edit)
		if edit.Detail != "" {
			s += " (" + edit.Detail + ")"
		}
		return s
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// Load makes a family's whole ruleset what a script says: the lines are read as
// one iptables-restore --noflush into empty tables. Chains and rules that are
// there already and say the same stay, with their counters and state; an error,
// which is a *ScriptError, changes nothing. Counters in the script are not used.
func (en Engines) Load(family uint8, script []Line) error {
	return en.load(family, script, true)
}

// Check is Load without its effect.
func (en Engines) Check(family uint8, script []Line) error {
	return en.load(family, script, false)
}

func (en Engines) load(family uint8, script []Line, publish bool) error {
	e := en.engine(family)
	want, used, err := en.build(family, e.Env(), script)
	if err != nil {
		return err
	}
	do := e.Check
	if publish {
		do = e.Commit
	}
	err = do(func(rs *tables.Ruleset) error {
		for id := range tables.NumTables {
			if err := becomeTable(rs.Table(id), want.rules.Table(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return want.place(err, script)
	}
	for id := range tables.NumTables {
		if publish && used[id] {
			en.markUsed(family, id)
		}
	}
	return nil
}

// built is a ruleset that was made beside the one in force.
type built struct {
	rules *tables.Ruleset
	from  map[*tables.Rule]int // index of a rule's line
	ends  [tables.NumTables]int
}

// errBuilt ends an edit whose result is only looked at.
var errBuilt = errors.New("built")

func (en Engines) build(family uint8, env *tables.Env, script []Line) (*built, [tables.NumTables]bool, error) {
	b := &built{from: map[*tables.Rule]int{}}
	p := newPlayer(en, family, script, b.from)
	var apart tables.Env
	if env != nil {
		apart = *env
	}
	apart.DoWorkers = nil
	err := tables.NewEngine(family, &apart).Commit(func(rs *tables.Ruleset) error {
		b.rules = rs
		if err := p.play(rs, false); err != nil {
			return err
		}
		return errBuilt
	})
	b.ends = p.ends
	if err == errBuilt {
		err = nil
	}
	return b, p.used, err
}

// place finds the line that a refusal at commit is about.
func (b *built) place(err error, script []Line) error {
	var edit *tables.EditError
	if !errors.As(err, &edit) {
		return err
	}
	i := b.ends[edit.Table]
	if edit.Chain != "" && edit.Rule > 0 {
		if ch := b.rules.Table(edit.Table).Chain(edit.Chain); ch != nil && edit.Rule <= len(ch.Rules()) {
			if n, ok := b.from[ch.Rules()[edit.Rule-1]]; ok {
				i = n
			}
		}
	}
	return scriptError(script, i, -1, nil, err)
}

func scriptError(script []Line, i, word int, words []Word, err error) error {
	if i < 0 || i >= len(script) {
		return err
	}
	l := &script[i]
	e := &ScriptError{File: l.File, Line: l.Line, Column: max(l.Column, 1), Index: i, Text: l.Text, Err: err}
	if word >= 0 && word < len(words) {
		e.Line, e.Column = words[word].Line, words[word].Column
	}
	return e
}

// ParseRules adds rules to a table, each an iptables command line without the
// program's name and without -t ("-N web", "-A FORWARD -j web"): all of them or,
// with an error, which is a *ScriptError, none.
func ParseRules(engines Engines, family uint8, table tables.TableID, rules []Line) error {
	script := append([]Line{{Text: "*" + table.String()}}, rules...)
	script = append(script, Line{Text: "COMMIT"})
	err := engines.add(family, script, false)
	var at *ScriptError
	if errors.As(err, &at) {
		at.Index = min(max(at.Index-1, 0), max(len(rules)-1, 0))
		if at.File == "" && len(rules) > 0 {
			l := &rules[at.Index]
			at.File, at.Line, at.Column, at.Text = l.File, max(at.Line, l.Line), max(at.Column, l.Column), l.Text
		}
	}
	return err
}

// LoadRestore reads a file in iptables-save format and does what iptables-restore
// does with it, but for all its tables as one change; errors are *ScriptErrors
// with name as the file.
func LoadRestore(engines Engines, family uint8, file io.Reader, name string, noflush bool) error {
	script, err := ReadScript(file, name)
	if err != nil {
		return err
	}
	return engines.add(family, script, !noflush)
}

// ReadScript reads a file in iptables-save format.
func ReadScript(file io.Reader, name string) ([]Line, error) {
	in := bufio.NewReader(file)
	var script []Line
	for n := 1; ; n++ {
		text, err := in.ReadString('\n')
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if text != "" {
			script = append(script, Line{File: name, Line: n, Column: 1, Text: strings.TrimSuffix(text, "\n")})
		}
		if err == io.EOF {
			return script, nil
		}
	}
}

func (en Engines) add(family uint8, script []Line, flush bool) error {
	p := newPlayer(en, family, script, map[*tables.Rule]int{})
	var now *tables.Ruleset
	err := en.engine(family).Commit(func(rs *tables.Ruleset) error {
		now = rs
		return p.play(rs, flush)
	})
	var at *ScriptError
	if err != nil && !errors.As(err, &at) {
		return (&built{rules: now, from: p.from, ends: p.ends}).place(err, script)
	}
	for id, used := range p.used {
		if err == nil && used {
			en.markUsed(family, tables.TableID(id))
		}
	}
	return err
}

// player reads a script line by line into a ruleset.
type player struct {
	x      *tool
	script []Line
	from   map[*tables.Rule]int
	ends   [tables.NumTables]int // index of the line that ends a table
	used   [tables.NumTables]bool
}

func newPlayer(en Engines, family uint8, script []Line, from map[*tables.Rule]int) *player {
	null := &sink{w: io.Discard}
	return &player{
		x:      &tool{Engines: en, prog: "iptables-restore", fam: family, line: 0, out: null, err: null, counters: noCounters{}},
		script: script, from: from,
	}
}

// noCounters is for listings in a script, which nobody reads.
type noCounters struct{}

func (noCounters) Rule(*tables.Rule) tables.Counter    { return tables.Counter{} }
func (noCounters) Policy(*tables.Chain) tables.Counter { return tables.Counter{} }

func (p *player) play(rs *tables.Ruleset, flush bool) error {
	open := -1 // index of the line that began the table
	var t *tables.Table
	for i := range p.script {
		l := &p.script[i]
		p.x.line = l.Line
		words, err := l.words()
		if err != nil {
			return scriptError(p.script, i, -1, nil, err)
		}
		refuse := func(word int, format string, a ...any) error {
			return scriptError(p.script, i, word, words, tables.Usagef(format, a...))
		}
		switch {
		case len(words) == 0, l.Words == nil && strings.HasPrefix(l.Text, "#"):
		case t != nil && len(words) == 1 && words[0].Text == "COMMIT":
			p.ends[t.ID] = i
			t, open = nil, -1
		case t == nil && strings.HasPrefix(words[0].Text, "*"):
			id, ok := tables.TableByName(words[0].Text[1:])
			if !ok {
				return refuse(0, "there is no table %q", words[0].Text[1:])
			}
			t, open = rs.Table(id), i
			p.used[id] = true
			p.x.restore = id.String()
			if flush {
				if err := t.Clear(false); err != nil {
					return err
				}
			}
		case t == nil:
			return refuse(0, "rules belong to a table: a line like *filter has to come first")
		case strings.HasPrefix(words[0].Text, ":"):
			if err := p.x.restoreChain(restoreOptions{noflush: true}, t, strings.TrimSpace(l.Text)[1:]); err != nil {
				return scriptError(p.script, i, 0, words, err)
			}
		default:
			if at, err := p.rule(i, t, rs, words); err != nil {
				return scriptError(p.script, i, at, words, err)
			}
		}
	}
	if t != nil {
		return scriptError(p.script, open, -1, nil, tables.Usagef("this table has no COMMIT"))
	}
	return nil
}

// words takes a line apart, counters before a rule left out.
func (l *Line) words() ([]Word, error) {
	if l.Words != nil {
		return l.Words, nil
	}
	text, off := l.Text, 0
	if strings.HasPrefix(text, "#") {
		return nil, nil
	}
	if strings.HasPrefix(text, "[") {
		end := strings.IndexByte(text, ']')
		if end < 0 {
			return nil, tables.Usagef("counters before a rule end with ]")
		}
		text, off = text[end+1:], end+1
	}
	texts, cols, err := Split(strings.TrimSuffix(text, "\r"))
	out := make([]Word, len(texts))
	for i := range texts {
		out[i] = Word{texts[i], l.Line, max(l.Column, 1) - 1 + off + cols[i]}
	}
	return out, err
}

// rule carries out a line with a command; at is the index of the word that an
// error is about.
func (p *player) rule(i int, t *tables.Table, rs *tables.Ruleset, words []Word) (at int, err error) {
	args := make([]string, len(words))
	for k := range words {
		args[k] = words[k].Text
	}
	c, at, err := p.x.parsePlaced(args)
	var end exit
	switch {
	case errors.As(err, &end):
		return at, tables.Usagef("not in a script")
	case err != nil || c == nil:
		return at, err
	case c.is(cmdList | cmdListRules):
		return 0, tables.Usagef("-%c shows something: not in a script", c.cmds.letter())
	}
	l := &p.script[i]
	for _, r := range c.rules {
		r.Source = tables.Source{File: l.File, Line: l.Line}
		p.from[r] = i
	}
	if err := p.x.apply(c, rs); err != nil {
		return blame(args, err), err
	}
	return 0, nil
}

// blame finds the word that a refused edit is about.
func blame(args []string, err error) int {
	if i := quotedIn(err.Error(), args); i >= 0 {
		return i
	}
	var edit *tables.EditError
	if errors.As(err, &edit) {
		for i, a := range args {
			if i > 0 && a == edit.Chain {
				return i
			}
		}
	}
	return 0
}
