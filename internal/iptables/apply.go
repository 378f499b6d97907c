package iptables

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Apply is a call of iptables-apply or ip6tables-apply: new rules come into
// force, and unless the user says within a time that all is well, the old ones
// come back.
type Apply struct {
	Argv           []string // Argv[0] is the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Call runs another program of this package on the router.
	Call func(argv []string, stdin io.Reader, stdout, stderr io.Writer) (status int)
	// Env is the environment in which -c's command finds the same router, and
	// what to do when the command has ended.
	Env func() (env []string, done func(), err error)
	// Stop has signals that end the program; what was changed is undone first.
	Stop <-chan os.Signal

	prog, family string // family: "iptables" or "ip6tables"
	timeout      time.Duration
	saveFile     string

	before    map[string]string // each table as it was, as iptables-save prints it
	wasInSave map[string]bool   // tables that a save had then
}

// Exit statuses of iptables-apply.
const (
	applyUsage      = 1
	applyNoRules    = 2
	applyNoTables   = 3
	applyNotSaved   = 4
	applyRefused    = 5
	applyNotRunable = 6
	applyFailed     = 7
	applyNoSaveFile = 8
	applyNotWritten = 9
	applyNoCommand  = 127
	applyReverted   = 255
)

const applyTimeout = 10 // seconds

var applyLong = []longOpt{
	{"timeout", needArg, 't'}, {"write", needArg, 'w'}, {"command", noArg, 'c'}, {"help", noArg, 'h'}, {"version", noArg, 'V'},
}

func (a *Apply) say(format string, v ...any)  { fmt.Fprintf(a.Stdout, format, v...) }
func (a *Apply) fail(format string, v ...any) { fmt.Fprintf(a.Stderr, format, v...) }

// Run does it all and gives the exit status.
func (a *Apply) Run() int {
	a.prog = a.Argv[0]
	a.family = strings.TrimSuffix(a.prog, "-apply")
	seconds, runs, what := strconv.Itoa(applyTimeout), false, ""
	for g := newGetopt(a.Argv, "t:w:chV", applyLong); ; {
		switch o := g.next(); o {
		case 't':
			seconds = g.arg
			continue
		case 'w':
			if a.saveFile = g.arg; a.saveFile == "" {
				a.saveFile = a.defaultFile("rules")
			}
			continue
		case 'c':
			runs = true
			continue
		case optWord:
			if what == "" {
				what = g.arg
			}
			continue
		case 'h':
			a.fail("%s", applyHelp(a.prog, a.defaultFile("rules"), a.defaultFile("run")))
			return 0
		case 'V':
			a.fail("%s 1.1 -- new rules, or the old ones back after a time\n", a.prog)
			return 0
		case optUnknown, optMissing:
			a.fail("%s: %s\n", a.prog, g.complaint(o))
			return applyUsage
		case optEnd:
			if what == "" && g.ind < len(a.Argv) {
				what = a.Argv[g.ind]
			}
		}
		break
	}
	var ok bool
	if a.timeout, ok = applySeconds(seconds); !ok {
		a.fail("Error: timeout must be a positive number\n")
		return applyUsage
	}
	if a.saveFile != "" && exists(a.saveFile) && unix.Access(a.saveFile, unix.W_OK) != nil {
		a.fail("Error: savefile not writable: %s\n", a.saveFile)
		return applyNoSaveFile
	}
	if runs {
		return a.command(orElse(what, a.defaultFile("run")))
	}
	return a.rules(orElse(what, a.defaultFile("rules")))
}

// defaultFile is where Debian keeps rules, or the script that makes them.
func (a *Apply) defaultFile(kind string) string {
	return "/etc/network/" + a.family + ".up." + kind
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

var applyNumber = regexp.MustCompile(`^\+?\d+$`)

// applySeconds reads a time limit as a shell's arithmetic does: digits behind a
// zero are octal.
func applySeconds(s string) (time.Duration, bool) {
	base := 10
	if len(s) > 1 && s[0] == '0' {
		base = 8
	}
	n, err := strconv.ParseInt(s, base, 64)
	if err != nil || !applyNumber.MatchString(s) {
		return 0, false
	}
	return time.Duration(min(n, int64(1<<63-1)/int64(time.Second))) * time.Second, true
}

// rules applies a file in iptables-save format.
func (a *Apply) rules(name string) int {
	if unix.Access(name, unix.R_OK) != nil {
		a.fail("Error: rulesfile not readable: %s\n", name)
		return applyNoRules
	}
	return a.try(func() bool { return a.restoreFile(name) }, fmt.Sprintf("Applying new iptables rules from '%s'", name),
		"applying new iptables rules: "+name, applyRefused)
}

// try changes the rules; they stay if that works and somebody confirms them.
func (a *Apply) try(change func() bool, doing, failed string, status int) int {
	if status := a.remember(); status != 0 {
		return status
	}
	a.say("%s... ", doing)
	if !change() {
		a.say("failed.\n")
		a.fail("Error: unknown error %s\n", failed)
		return a.revert(status)
	}
	a.say("done.\n")
	return a.confirm()
}

func (a *Apply) restoreFile(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		a.fail("%s: %v\n", a.prog, err)
		return false
	}
	defer f.Close()
	return a.Call([]string{a.family + "-restore"}, f, a.Stdout, a.Stderr) == 0
}

// command runs a program that changes the rules.
func (a *Apply) command(name string) int {
	if unix.Access(name, unix.X_OK) != nil {
		a.fail("Error: runcmd not executable: %s\n", name)
		return applyNotRunable
	}
	if _, err := exec.LookPath(name); err != nil {
		a.fail("Error: needed command not found: %s\n", name)
		return applyNoCommand
	}
	return a.try(func() bool { return a.runCommand(name) == nil }, fmt.Sprintf("Running command '%s'", name),
		"running command: "+name, applyFailed)
}

// runCommand gives the command the time limit, too.
func (a *Apply) runCommand(name string) error {
	env, done, err := a.Env()
	if err != nil {
		return err
	}
	defer done()
	c := exec.Command(name)
	c.Env, c.Stdout, c.Stderr = env, a.Stdout, a.Stderr
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	limit := time.NewTimer(a.timeout)
	defer limit.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-limit.C:
		case <-a.Stop:
		}
		c.Process.Signal(syscall.SIGTERM) // it may be over already
	}
}

// remember keeps the rules that there are.
func (a *Apply) remember() int {
	a.before, a.wasInSave = map[string]string{}, map[string]bool{}
	save, status := a.save("")
	if status != 0 {
		return applyNoTables
	}
	for _, t := range saveOrder {
		name := t.String()
		a.wasInSave[name] = hasTable(save, name)
		if a.before[name], status = a.save(name); status != 0 {
			a.fail("Error: unknown error saving old iptables rules\n")
			return applyNotSaved
		}
	}
	return 0
}

// save is what iptables-save prints, of one table or of those in use.
func (a *Apply) save(table string) (string, int) {
	argv := []string{a.family + "-save"}
	if table != "" {
		argv = append(argv, "-t", table)
	}
	var out bytes.Buffer
	status := a.Call(argv, nil, &out, a.Stderr)
	return out.String(), status
}

func hasTable(save, name string) bool {
	return strings.HasPrefix(save, "*"+name+"\n") || strings.Contains(save, "\n*"+name+"\n")
}

// revert brings the old rules back, also in tables that came into use since.
// Counters begin anew.
func (a *Apply) revert(status int) int {
	a.say("Reverting to old iptables rules... ")
	now, failed := a.save("")
	if failed != 0 {
		return failed
	}
	var text strings.Builder
	for _, t := range saveOrder {
		if name := t.String(); a.wasInSave[name] || hasTable(now, name) {
			text.WriteString(a.before[name])
		}
	}
	if failed := a.Call([]string{a.family + "-restore"}, strings.NewReader(text.String()), a.Stdout, a.Stderr); failed != 0 {
		return failed
	}
	a.say("done.\n")
	return status
}

// confirm asks whether the new rules are good.
func (a *Apply) confirm() int {
	a.say("Can you establish NEW connections to the machine? (y/N) ")
	key, interrupted := a.key()
	a.say("\n")
	switch {
	case key == 'y', key == 'Y':
		return a.keep()
	case interrupted:
		a.say("Interrupted! Better play it safe...\n")
	case key == 0:
		a.say("Timeout! Something happened (or did not). Better play it safe...\n")
	default:
		a.say("No affirmative response! Better play it safe...\n")
	}
	return a.revert(applyReverted)
}

// keep ends with the new rules in force.
func (a *Apply) keep() int {
	if a.saveFile != "" {
		a.say("Writing successfully applied rules to '%s'...\n", a.saveFile)
		text, status := a.save("")
		if status == 0 {
			if err := os.WriteFile(a.saveFile, []byte(text), 0o666); err != nil {
				a.fail("%s: %v\n", a.prog, err)
				status = applyNotWritten
			}
		}
		if status != 0 {
			a.fail("Error: unknown error writing successfully applied rules: %s\n", a.saveFile)
			return applyNotWritten
		}
	}
	a.say("... then my job is done. See you next time.\n")
	return 0
}

// key waits for one byte; 0: none came in time, or a blank. A terminal gives it
// without a line's end. (The shell's read, which the real program uses, takes
// backslashes as quotes and blanks for nothing.)
func (a *Apply) key() (key byte, interrupted bool) {
	if a.timeout == 0 {
		return 0, false
	}
	if f, ok := a.Stdin.(*os.File); ok {
		defer byteWise(int(f.Fd()))()
	}
	typed := make(chan byte, 1)
	go func() { // it may wait for ever, until the program ends
		var b [1]byte
		for {
			n, err := a.Stdin.Read(b[:])
			switch {
			case n == 1 && b[0] != '\\' && b[0] != 0:
				typed <- b[0]
				return
			case err != nil && !errors.Is(err, syscall.EINTR):
				typed <- '\n'
				return
			}
		}
	}()
	limit := time.NewTimer(a.timeout)
	defer limit.Stop()
	select {
	case key = <-typed:
	case <-limit.C:
	case <-a.Stop:
		return 0, true
	}
	if strings.IndexByte(" \t\n", key) >= 0 {
		key = 0
	}
	return key, false
}

// byteWise has a terminal give each byte at once; what it returns undoes that.
func byteWise(fd int) (undo func()) {
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {} // it is none
	}
	now := *was
	now.Lflag &^= unix.ICANON
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(fd, unix.TCSETS, &now) != nil {
		return func() {}
	}
	return func() { unix.IoctlSetTermios(fd, unix.TCSETS, was) }
}

func applyHelp(prog, rules, run string) string {
	return fmt.Sprintf(`Usage: %[1]s [-t SECONDS] [-w FILE] [RULES]
       %[1]s [-t SECONDS] [-w FILE] -c [COMMAND]

RULES (%[2]s unless named), a file of iptables-save, comes into
force; or COMMAND (%[3]s) changes the rules. If "y" is not typed
in time, as when the new rules have cut the connection, the old ones come back.

  -t, --timeout SECONDS  how long to wait (default %[4]d)
  -w, --write FILE       save the rules there once they are found good ("": %[2]s)
  -c, --command          run a command, which finds this router's tools first in its PATH
  -h, --help; -V, --version
`, prog, rules, run, applyTimeout)
}
