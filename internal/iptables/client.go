package iptables

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
)

// ClientFiles is what the side that was called by the user does for a program
// that runs elsewhere.
type ClientFiles struct {
	Args       []string // what to give to Run
	Input      string   // file to give as standard input; "": the caller's own
	Output     string   // file to create for standard output; "": the caller's own
	NeedsStdin bool     // the program reads standard input
}

// ClientArgs finds the files that a command line names.
func ClientArgs(argv []string) ClientFiles {
	out := ClientFiles{Args: argv}
	if len(argv) == 0 {
		return out
	}
	switch prog := filepath.Base(argv[0]); {
	case strings.HasSuffix(prog, "-restore"):
		out.restore(argv)
	case strings.HasSuffix(prog, "-save"):
		out.save(argv)
	}
	return out
}

func (f *ClientFiles) restore(argv []string) {
	g := newGetopt(argv, restoreShort, restoreLong)
	var files []int
	for {
		switch o := g.next(); o {
		case optEnd:
			for i := g.ind; i < len(argv); i++ {
				files = append(files, i)
			}
			f.NeedsStdin = len(files) <= 1
			if len(files) == 1 {
				i := files[0]
				f.Input = argv[i]
				f.Args = append(argv[:i:i], argv[i+1:]...)
			}
			return
		case optWord:
			files = append(files, g.ind-1)
		case 'w', 'W':
			if !g.hasArg {
				g.take()
			}
		case 'V', 'h', optUnknown, optMissing:
			return // it ends before it reads anything
		}
	}
}

func (f *ClientFiles) save(argv []string) {
	g := newGetopt(argv, saveShort, saveLong)
	args := argv[:1:1]
	for start := g.ind; ; start = g.ind {
		o := g.next()
		switch o {
		case optUnknown, optMissing, 'V':
			f.Output = ""
			return // it ends before it writes anything
		case 'f':
			f.Output = g.arg
		}
		switch {
		case o == optEnd:
			f.Args = append(args, argv[start:]...)
			return
		case o == optWord:
			args = append(args, g.arg)
		case o == 'f', g.rest != "":
		case o == 't', o == 'M':
			args = append(args, "-"+string(rune(o)), g.arg)
		}
		if o == 'b' || o == 'c' || o == 'd' {
			args = append(args, "-"+string(rune(o)))
		}
	}
}

// OpenError is what the program prints where a file cannot be opened; it exits
// with 1.
func (f *ClientFiles) OpenError(err error) string {
	why := err.Error()
	var no syscall.Errno
	if errors.As(err, &no) {
		why = errnoText(no)
	}
	if f.Output != "" {
		return fmt.Sprintf("Failed to open file, error: %s\n", why)
	}
	return fmt.Sprintf("Can't open %s: %s\n", f.Input, why)
}

// errnoText is strerror's sentence, which begins with a capital letter.
func errnoText(no syscall.Errno) string {
	s := no.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}
