package tables

import (
	"fmt"
	"strings"
	"syscall"
)

// Exit statuses of iptables, as Error.Code carries them.
const (
	ExitOther     = 1
	ExitParameter = 2 // bad usage; the program adds "Try `iptables -h' …"
	ExitVersion   = 3
	ExitResource  = 4
)

// Error is a refusal in the words of iptables. Msg is what follows
// "iptables v1.8.9 (…): " exactly, inner and trailing newlines included (the
// program adds one more newline after it).
type Error struct {
	Code   int // exit status
	Msg    string
	Plain  bool   // printed without the "iptables v…: " in front
	Before string // a line printed before all that, as it is; "" for none
}

func (e *Error) Error() string { return e.Msg }

// Usagef makes a parameter problem (exit status 2).
func Usagef(format string, a ...any) *Error {
	return &Error{Code: ExitParameter, Msg: fmt.Sprintf(format, a...)}
}

// Op says what an edit or a commit was doing when it was refused, for programs
// whose text depends on it (iptc_strerror).
type Op uint8

const (
	OpCommit Op = iota
	OpAppend
	OpInsert
	OpReplace
	OpDelete    // by rule
	OpDeleteNum // by number
	OpCheck     // -C
	OpNewChain
	OpDeleteChain
	OpRenameChain
	OpFlush
	OpZero
	OpPolicy
	OpList
)

// EditError is a refused edit or commit: the kernel's (or libiptc's) errno and
// what it was about.
type EditError struct {
	Op     Op
	Errno  syscall.Errno
	Table  TableID
	Chain  string // the chain edited, or the one that holds the bad rule
	Target string // the chain or target that is missing, if that is the matter
	Rule   int    // number of the rule from 1; 0: none
	Source Source // where the rule was written, if known
	Detail string // one sentence for people; the kernel says such things in dmesg
}

func (e *EditError) Error() string {
	s := e.Text()
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	if e.Source.File != "" {
		s = fmt.Sprintf("%s: %s", e.Source, s)
	}
	return s
}

func (e *EditError) Unwrap() error { return e.Errno }

// Text is the sentence iptables prints for it after "iptables: ", without the
// final full stop.
func (e *EditError) Text() string {
	type k struct {
		op Op
		no syscall.Errno
	}
	if s, ok := map[k]string{
		{OpDeleteChain, syscall.ENOTEMPTY}: "Directory not empty",
		{OpDeleteChain, syscall.EMLINK}:    "Too many links",
		{OpNewChain, syscall.EEXIST}:       "Chain already exists",
		{OpRenameChain, syscall.EEXIST}:    "File exists",
		{OpRenameChain, syscall.E2BIG}:     "Too many renames and other edits at once",
		{OpInsert, syscall.E2BIG}:          "Index of insertion too big",
		{OpReplace, syscall.E2BIG}:         "Index of replacement too big",
		{OpDeleteNum, syscall.E2BIG}:       "Index of deletion too big",
		{OpDelete, syscall.ENOENT}:         "Bad rule (does a matching rule exist in that chain?)",
		{OpCheck, syscall.ENOENT}:          "Bad rule (does a matching rule exist in that chain?)",
		{OpPolicy, syscall.ENOENT}:         "Bad built-in chain name",
		{OpPolicy, syscall.EINVAL}:         "Bad policy name. Run `dmesg' for more information",
		{OpZero, syscall.E2BIG}:            "Index of counter too big",
	}[k{e.Op, e.Errno}]; ok {
		return s
	}
	switch e.Errno {
	case syscall.ENOENT:
		return "No chain/target/match by that name"
	case syscall.EINVAL:
		return "Invalid argument. Run `dmesg' for more information"
	case syscall.ELOOP:
		return "Too many levels of symbolic links"
	}
	text := e.Errno.Error() // Go's begin with a small letter, C's with a capital
	return strings.ToUpper(text[:1]) + text[1:]
}

// Source is where a rule was written.
type Source struct {
	File string
	Line int
}

func (s Source) String() string {
	if s.Line == 0 {
		return s.File
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}
