package iptables

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"sluice/tables"
)

// tool is one call of a program.
type tool struct {
	Engines
	prog     string // as it calls itself in messages
	fam      uint8
	eng      *tables.Engine
	out, err *sink

	// Restoring: the line being read (from 1; 0 before the first), else -1; and
	// the table that -t may not change.
	line    int
	restore string
	// counters answers listings within a restore, where the engine cannot be asked.
	counters counters

	parser *parser  // of the line before, to be used again
	words  splitter // likewise

	names map[[16]byte]string // looked up so far
	mute  bool                // names take too long
}

func (x *tool) printf(format string, a ...any) { fmt.Fprintf(x.out, format, a...) }
func (x *tool) fail(format string, a ...any)   { fmt.Fprintf(x.err, format, a...) }

// sink is an output. What is written while hold is set stays in memory, so that
// a commit never waits for who reads the other end.
type sink struct {
	w    io.Writer
	buf  []byte
	hold bool
}

const sinkSize = 1 << 16

func (s *sink) Write(b []byte) (int, error) {
	s.buf = append(s.buf, b...)
	s.full()
	return len(b), nil
}

func (s *sink) WriteString(t string) {
	s.buf = append(s.buf, t...)
	s.full()
}

func (s *sink) WriteByte(b byte) error {
	s.buf = append(s.buf, b)
	return nil
}

func (s *sink) full() {
	if !s.hold && len(s.buf) >= sinkSize {
		s.Flush()
	}
}

// Flush passes on what there is. An error is the reader's loss: the program's
// work is the same.
func (s *sink) Flush() {
	if len(s.buf) > 0 {
		s.w.Write(s.buf)
		s.buf = s.buf[:0]
	}
}

// engineCommit is the engine's Commit, or Check, with the outputs held back.
func (x *tool) engineCommit(publish bool, edit func(*tables.Ruleset) error) error {
	do := x.eng.Check
	if publish {
		do = x.eng.Commit
	}
	x.out.hold, x.err.hold = true, true
	defer func() { x.out.hold, x.err.hold = false, false }()
	return do(edit)
}

// exit ends a program early: -V, -h.
type exit struct {
	code int
	help bool // with the "Try …" line
}

func (e exit) Error() string { return fmt.Sprintf("exit %d", e.code) }

// report prints an error as the program does and gives the exit status.
func (x *tool) report(err error) int {
	var usage *tables.Error
	var edit *tables.EditError
	var end exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &end):
		if end.help {
			x.tryHelp()
		}
		return end.code
	case errors.As(err, &usage):
		if usage.Before != "" {
			x.fail("%s\n", strings.TrimSuffix(usage.Before, "\n"))
		}
		if usage.Plain {
			x.fail("%s\n", usage.Msg)
		} else {
			x.fail("%s %s: %s\n", x.prog, version, usage.Msg)
		}
		switch usage.Code {
		case tables.ExitParameter:
			x.tryHelp()
		case tables.ExitVersion:
			x.fail("Perhaps %s or your kernel needs to be upgraded.\n", x.prog)
		}
		return usage.Code
	case errors.As(err, &edit):
		text, hint := sentence(edit), ""
		switch {
		case x.line >= 0 && (edit.Op == tables.OpCommit || edit.Op == tables.OpDeleteChain && edit.Errno != syscall.ENOENT):
			// The nf_tables variant speaks of its own objects here.
			x.fail("%s: line %d failed\n", x.prog, x.line)
			return tables.ExitOther
		case x.line >= 0:
			x.fail("%s: line %d failed: %s.\n", x.prog, x.line, text)
			return tables.ExitOther
		}
		if edit.Errno == syscall.EINVAL {
			hint = " Run `dmesg' for more information."
		}
		x.fail("%s: %s.%s\n", x.prog, text, hint)
		return tables.ExitOther
	}
	x.fail("%s: %v\n", x.prog, err)
	return tables.ExitOther
}

func (x *tool) tryHelp() {
	if x.line >= 0 {
		x.fail("Error occurred at line: %d\n", x.line)
	}
	x.fail("Try `%s -h' or '%s --help' for more information.\n", x.prog, x.prog)
}

// sentence is what iptables says of a refused edit, without the full stop.
func sentence(e *tables.EditError) string {
	switch e.Errno {
	case syscall.ENOENT:
		switch e.Op {
		case tables.OpDelete, tables.OpCheck:
			return "Bad rule (does a matching rule exist in that chain?)"
		case tables.OpPolicy:
			return "Bad built-in chain name"
		}
		return "No chain/target/match by that name"
	case syscall.E2BIG:
		switch e.Op {
		case tables.OpInsert:
			return "Index of insertion too big"
		case tables.OpReplace:
			return "Index of replacement too big"
		case tables.OpDeleteNum:
			return "Index of deletion too big"
		case tables.OpZero:
			return "Index of counter too big"
		}
	case syscall.EEXIST:
		if e.Op == tables.OpNewChain {
			return "Chain already exists"
		}
		return "File exists"
	case syscall.EINVAL:
		if e.Op == tables.OpPolicy {
			return "Bad policy name"
		}
		return "Invalid argument"
	case syscall.ENOTEMPTY:
		return "Directory not empty"
	case syscall.EMLINK:
		return "Too many links"
	case syscall.ELOOP:
		return "Too many levels of symbolic links"
	}
	return e.Text()
}

// runCommand is iptables and ip6tables.
func (x *tool) runCommand(args []string) int {
	c, err := x.parse(args)
	if err == nil {
		err = x.run(c)
	}
	return x.report(err)
}

// run carries out a command of its own, outside a restore.
func (x *tool) run(c *command) error {
	switch {
	case c == nil:
		return nil
	case c.is(cmdCheck):
		return x.apply(c, x.eng.Ruleset())
	case c.is(cmdList | cmdListRules):
		return x.list(c)
	}
	err := x.engineCommit(true, func(rs *tables.Ruleset) error { return x.apply(c, rs) })
	if err == nil {
		x.markUsed(x.fam, c.table)
	}
	return err
}

// apply makes the edit that a command asks for.
func (x *tool) apply(c *command, rs *tables.Ruleset) error {
	t := rs.Table(c.table)
	if c.is(ruleCmds) {
		for _, r := range c.rules {
			if r.Jump == "" || t.Chain(r.Jump) != nil {
				continue
			}
			if r.Jump == "standard" && !r.Goto && !c.is(cmdDelete|cmdCheck) {
				// The extension behind verdicts and jumps: known, but the kernel has no such target.
				return &tables.EditError{Op: tables.OpAppend, Errno: syscall.ENOENT, Table: c.table, Chain: c.chain}
			}
			if r.Goto {
				return tables.Usagef("goto '%s' is not a chain", r.Jump)
			}
			return tables.Usagef("Couldn't load target `%s':No such file or directory\n", r.Jump)
		}
		for _, r := range c.rules {
			if c.verbose > 0 {
				x.printRule(r)
			}
			if err := edit(c, t, r); err != nil {
				return err
			}
		}
		return nil
	}
	switch {
	case c.is(cmdDeleteNum):
		return t.Delete(c.chain, c.num)
	case c.is(cmdFlush):
		return x.each(c, t, true, "Flushing", t.Flush)
	case c.is(cmdList | cmdListRules):
		x.listTable(c, t, x.counters)
		if !c.is(cmdZero | cmdZeroNum) {
			return listable(c, t)
		}
		fallthrough
	case c.is(cmdZero | cmdZeroNum):
		if c.is(cmdZeroNum) {
			return t.SetRuleCounters(c.chain, c.num, tables.Counter{})
		}
		return x.each(c, t, true, "Zeroing", t.Zero)
	case c.is(cmdNew):
		return t.NewChain(c.chain)
	case c.is(cmdDeleteChain):
		return x.each(c, t, false, "Deleting", t.DeleteChain)
	case c.is(cmdRename):
		if t.Chain(c.name) != nil || isVerdict(c.name) || c.name == "QUEUE" {
			return &tables.EditError{Op: tables.OpRenameChain, Errno: syscall.EEXIST, Table: c.table, Chain: c.name}
		}
		if len(c.name) > maxChainName+1 && t.Chain(c.chain) != nil {
			return longName(c.name)
		}
		if ch := t.Chain(c.chain); ch != nil && ch.Builtin {
			return &tables.EditError{Op: tables.OpRenameChain, Errno: syscall.ENOENT, Table: c.table, Chain: c.chain}
		}
		return t.RenameChain(c.chain, c.name)
	case c.is(cmdPolicy):
		n := c.counters
		if n == nil {
			n = &tables.Counter{} // the policy starts anew, also where it stays the same
		}
		return setPolicy(t, c.chain, c.policy, n)
	}
	return nil
}

func isVerdict(name string) bool {
	_, ok := tables.VerdictByName(name)
	return ok
}

// setPolicy sets a policy and, unless n is nil, its counters.
func setPolicy(t *tables.Table, chain, policy string, n *tables.Counter) error {
	if ch := t.Chain(chain); ch == nil || !ch.Builtin {
		return &tables.EditError{Op: tables.OpPolicy, Errno: syscall.ENOENT, Table: t.ID, Chain: chain}
	}
	v, ok := tables.VerdictByName(policy)
	if !ok || v == tables.VerdictReturn {
		return &tables.EditError{Op: tables.OpPolicy, Errno: syscall.EINVAL, Table: t.ID, Chain: chain}
	}
	if err := t.SetPolicy(chain, v); err != nil || n == nil {
		return err
	}
	return t.SetPolicyCounters(chain, *n)
}

func edit(c *command, t *tables.Table, r *tables.Rule) (err error) {
	switch {
	case c.is(cmdAppend):
		err = t.Append(c.chain, r)
	case c.is(cmdInsert):
		err = t.Insert(c.chain, c.num, r)
	case c.is(cmdReplace):
		err = t.Replace(c.chain, c.num, r)
	case c.is(cmdDelete):
		err = t.DeleteRule(c.chain, r)
	case c.is(cmdCheck):
		_, err = t.Find(c.chain, r)
	}
	return err
}

// each does something to one chain, or to all of a table; with all, what fails
// does not stop it, and the last refusal is the result.
func (x *tool) each(c *command, t *tables.Table, builtin bool, doing string, f func(chain string) error) error {
	names := []string{c.chain}
	if !c.hasChain {
		names = names[:0]
		for _, ch := range t.Chains() {
			if builtin || !ch.Builtin {
				names = append(names, ch.Name)
			}
		}
	}
	var last error
	for _, name := range names {
		if c.verbose > 0 {
			x.printf("%s chain `%s'\n", doing, name)
		}
		if err := f(name); err != nil {
			last = err
		}
	}
	return last
}

// listable is the refusal to list a chain that is not there.
func listable(c *command, t *tables.Table) error {
	if c.hasChain && t.Chain(c.chain) == nil {
		return &tables.EditError{Op: tables.OpList, Errno: syscall.ENOENT, Table: t.ID, Chain: c.chain}
	}
	return nil
}
