// Package ipset is the command line of ipset(8), acting on a router's sets. The
// reference is ipset 7.17.
package ipset

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strings"

	"sluice/tables/ipset"
)

const banner = "ipset v7.17"

//go:embed help.txt
var helpText string

// cmd is a command.
type cmd uint8

const (
	cmdNone cmd = iota
	cmdCreate
	cmdAdd
	cmdDel
	cmdTest
	cmdDestroy
	cmdList
	cmdSave
	cmdRestore
	cmdFlush
	cmdRename
	cmdSwap
	cmdHelp
	cmdVersion
	cmdQuit
)

type argCount uint8

const (
	argNone argCount = iota
	argMay
	argOne
	argTwo
)

// commands are in the order in which a cut-off name is looked for.
var commands = []struct {
	cmd   cmd
	names []string
	args  argCount
}{
	{cmdCreate, []string{"create", "n", "-N", "--create"}, argTwo},
	{cmdAdd, []string{"add", "-A", "--add"}, argTwo},
	{cmdDel, []string{"del", "-D", "--del"}, argTwo},
	{cmdTest, []string{"test", "-T", "--test"}, argTwo},
	{cmdDestroy, []string{"destroy", "x", "-X", "--destroy"}, argMay},
	{cmdList, []string{"list", "-L", "--list"}, argMay},
	{cmdSave, []string{"save", "-S", "--save"}, argMay},
	{cmdRestore, []string{"restore", "-R", "--restore"}, argNone},
	{cmdFlush, []string{"flush", "-F", "--flush"}, argMay},
	{cmdRename, []string{"rename", "e", "-E", "--rename"}, argTwo},
	{cmdSwap, []string{"swap", "w", "-W", "--swap"}, argTwo},
	{cmdHelp, []string{"help", "-h", "--help", "-H"}, argMay},
	{cmdVersion, []string{"version", "-v", "--version", "-V"}, argNone},
	{cmdQuit, []string{"quit"}, argNone},
}

// mode is how sets are printed.
type mode uint8

const (
	modePlain mode = iota
	modeSave
	modeXML
)

// options may stand anywhere on a command line.
type options struct {
	exist, quiet, resolve, sorted, names, terse bool
	mode                                        mode
	hasMode                                     bool
	hasFile                                     bool
	file                                        *string // nil: what is listed goes to standard output
}

var optionNames = []struct {
	short, long string
	arg         bool
}{
	{"-o", "output", true}, {"-s", "sorted", false}, {"-q", "quiet", false}, {"-r", "resolve", false},
	{"-!", "exist", false}, {"-n", "name", false}, {"-t", "terse", false}, {"-f", "file", true},
}

// usageError is bad usage (exit status 2, with a hint); failure is status 1.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(f string, a ...any) error { return usageError{fmt.Sprintf(f, a...)} }

// syntaxError is what is wrong with an argument, a line each.
type syntaxError struct{ text string }

func (e syntaxError) Error() string { return e.text }

func syntaxf(f string, a ...any) error { return syntaxError{"Syntax error: " + fmt.Sprintf(f, a...)} }

// errSilent is a failure that has been told.
var errSilent = errors.New("told already")

// runner carries out command lines.
type runner struct {
	sets        *ipset.Sets
	in          io.Reader
	out         *bufio.Writer
	err         io.Writer
	files       func(name string) (io.WriteCloser, error)
	stop        <-chan struct{}
	line        int // of a restore, from 1
	restoring   bool
	interactive bool
	opt         options // given so far; those of one line of many hold for the next ones, too
	batch       batch
}

// batch is lines of a restore that add to one set, or delete from one. They are
// carried out together: a line that cannot be read takes those before it along.
type batch struct {
	cmd   cmd
	set   string
	lines []pending
}

type pending struct {
	line int
	do   func() error
}

// batchLines is about as many elements as ipset puts into one message.
const batchLines = 128

// flush carries out what is pending.
func (r *runner) flush() error {
	b := r.batch
	r.batch = batch{}
	at := r.line
	for _, p := range b.lines {
		r.line = p.line
		if err := p.do(); err != nil {
			return err
		}
	}
	r.line = at
	return nil
}

// later puts off an addition or deletion until its batch is whole.
func (r *runner) later(c cmd, set string, do func() error) error {
	if !r.restoring {
		return do()
	}
	if b := &r.batch; b.cmd != c || b.set != set || len(b.lines) >= batchLines {
		if err := r.flush(); err != nil {
			return err
		}
	}
	r.batch.cmd, r.batch.set = c, set
	r.batch.lines = append(r.batch.lines, pending{r.line, do})
	return nil
}

// Run is one call: argv[0] is the program's name. It returns the exit status.
// create makes the files that list and save write to; nil: none. The file that restore reads
// is the caller's to open: see InputFile. stop ends a command that takes long;
// nil: never.
func Run(sets *ipset.Sets, argv []string, stdin io.Reader, stdout, stderr io.Writer, create func(name string) (io.WriteCloser, error), stop <-chan struct{}) int {
	r := &runner{sets: sets, in: stdin, out: bufio.NewWriterSize(stdout, 1<<16), err: stderr, files: create, stop: stop}
	defer r.out.Flush()
	return r.report(r.do(argv[1:]))
}

// report prints an error as ipset does and gives the exit status.
func (r *runner) report(err error) int {
	if err == nil {
		return 0
	}
	r.out.Flush()
	var usage usageError
	var quiet quietly
	switch {
	case errors.As(err, &quiet):
		return quiet.status
	case errors.Is(err, errSilent):
		return 1
	case errors.As(err, &usage):
		fmt.Fprintf(r.err, "%s: %s\nTry `ipset help' for more information.\n", banner, usage.text)
		return 2
	}
	at := ""
	if r.line > 0 {
		at = fmt.Sprintf("Error in line %d: ", r.line)
	}
	fmt.Fprintf(r.err, "%s: %s%s\n", banner, at, err)
	return 1
}

// quietly is an error that -q keeps to itself.
type quietly struct{ status int }

func (quietly) Error() string { return "quiet" }

func (r *runner) hush(o *options, err error) error {
	if err == nil || err == io.EOF || !o.quiet {
		return err
	}
	var usage usageError
	var told quietly
	switch {
	case errors.As(err, &told): // by a line of a restore
		return told
	case errors.As(err, &usage):
		return quietly{2}
	}
	return quietly{1}
}

// do carries out one command line.
func (r *runner) do(args []string) error {
	args, err := r.opt.take(args)
	if err == nil {
		o := r.opt
		err = r.command(&o, args)
	}
	if r.interactive { // there -q silences test alone
		return err
	}
	return r.hush(&r.opt, err)
}

// take removes the options from a command line.
func (o *options) take(args []string) ([]string, error) {
	args = append([]string(nil), args...)
	for _, x := range optionNames {
		for i := 0; i < len(args); {
			if a := args[i]; a != x.short && a != "-"+x.long && a != "--"+x.long {
				i++
				continue
			}
			args = append(args[:i], args[i+1:]...)
			val := ""
			if x.arg {
				if i >= len(args) {
					return nil, usagef("Missing mandatory argument to option %s", x.short)
				}
				val = args[i]
				args = append(args[:i], args[i+1:]...)
			}
			if err := o.set(x.long, val); err != nil {
				return nil, err
			}
		}
	}
	return args, nil
}

func (o *options) set(name, val string) error {
	switch name {
	case "output":
		switch val {
		case "plain":
			o.mode = modePlain
		case "save":
			o.mode = modeSave
		case "xml":
			o.mode = modeXML
		default:
			return syntaxf("unknown output mode '%s'", val)
		}
		o.hasMode = true
	case "sorted":
		o.sorted = true
	case "quiet":
		o.quiet = true
	case "resolve":
		o.resolve = true
	case "exist":
		o.exist = true
	case "name":
		o.names = true
	case "terse":
		o.terse = true
	case "file":
		if o.hasFile {
			return usagef("-file option cannot be used when full io is activated")
		}
		o.hasFile, o.file = true, &val
	}
	return nil
}

// find looks a command up: a beginning of its name, or another name.
func find(word string) (c cmd, args argCount, name string) {
	for _, x := range commands {
		ok := word != "" && strings.HasPrefix(x.names[0], word)
		for _, n := range x.names[1:] {
			ok = ok || n == word
		}
		if ok {
			return x.cmd, x.args, x.names[0]
		}
	}
	return cmdNone, argNone, ""
}

func (r *runner) command(o *options, args []string) error {
	c, count, name := cmdNone, argNone, ""
	if len(args) > 0 {
		c, count, name = find(args[0])
	}
	switch {
	case c != cmdNone:
	case r.interactive:
		fmt.Fprintln(r.out, "No command specified")
		return nil
	case len(args) == 0:
		return usagef("No command specified.")
	case args[0] == "-" && !r.restoring:
		return r.interact()
	default:
		return usagef("No command specified: unknown argument %s", args[0])
	}
	switch {
	case r.restoring && (c == cmdRestore || c == cmdHelp || c == cmdVersion):
		return usagef("Command `%s' is invalid in restore mode.", name)
	case r.interactive && c == cmdRestore:
		fmt.Fprintln(r.out, "Restore command is not supported in interactive mode")
		return nil
	}
	args = args[1:]
	var arg [2]string
	n := 0
	take := func() {
		arg[n] = args[0]
		args = args[1:]
		n++
	}
	switch count {
	case argOne, argTwo:
		if len(args) == 0 {
			return usagef("Missing mandatory argument to command %s", name)
		}
		take()
		if count == argTwo {
			if len(args) == 0 {
				return usagef("Missing second mandatory argument to command %s", name)
			}
			take()
		}
	case argMay:
		if len(args) > 0 {
			take()
		}
	}
	if o.file != nil && (c == cmdList || c == cmdSave) { // before anything else can fail
		end, err := r.into(*o.file)
		if err != nil {
			return err
		}
		defer end()
	}
	if c != cmdAdd && c != cmdDel {
		if err := r.flush(); err != nil {
			return err
		}
	}
	switch c {
	case cmdHelp:
		return r.help(arg[0])
	case cmdVersion:
		fmt.Fprintf(r.out, "%s, protocol version: 7\n", banner)
		return nil
	case cmdQuit:
		if !r.restoring && !r.interactive { // nothing to leave
			return nil
		}
		return io.EOF
	case cmdCreate:
		return r.create(o, arg[0], arg[1], args)
	case cmdAdd, cmdDel, cmdTest:
		return r.element(o, c, name, arg[0], arg[1], args)
	}
	if len(args) > 0 {
		return usagef("Unknown argument %s", args[0])
	}
	for _, s := range arg[:n] {
		if err := checkName(s); err != nil {
			return err
		}
	}
	switch c {
	case cmdRestore:
		return r.restore()
	case cmdList, cmdSave:
		return r.list(o, c, n > 0, arg[0])
	case cmdDestroy:
		if n == 0 {
			return kernel(c, r.sets.DestroyAll())
		}
		return kernel(c, r.sets.Destroy(arg[0]))
	case cmdFlush:
		if n == 0 {
			r.sets.FlushAll()
			return nil
		}
		return kernel(c, r.sets.Flush(arg[0]))
	case cmdRename:
		return kernel(c, r.sets.Rename(arg[0], arg[1]))
	}
	return kernel(c, r.sets.Swap(arg[0], arg[1]))
}

func checkName(s string) error {
	if len(s) > ipset.MaxName {
		return syntaxf("setname '%s' is longer than %d characters", s, ipset.MaxName)
	}
	return nil
}

// restore reads command lines up to the end.
func (r *runner) restore() error {
	r.restoring = true
	r.opt.file = nil // the caller of Run reads it
	defer func() { r.restoring = false }()
	in := bufio.NewReaderSize(r.in, 1<<16)
	for {
		text, rerr := in.ReadString('\n')
		if text == "" && rerr != nil {
			break
		}
		r.line++
		line := strings.TrimRight(text, "\r\n")
		if blank(line) {
			continue
		}
		if line == "COMMIT" {
			if err := r.flush(); err != nil {
				return err
			}
			continue
		}
		switch err := r.do(split(line)); {
		case err == io.EOF:
			r.line = 0
			return nil
		case err != nil:
			return err
		}
	}
	if err := r.flush(); err != nil {
		return err
	}
	r.line = 0
	return nil
}

// interact reads commands with a prompt; what goes wrong ends nothing.
func (r *runner) interact() error {
	r.interactive = true
	in := bufio.NewReader(r.in)
	for {
		fmt.Fprint(r.out, "ipset> ")
		r.out.Flush()
		text, rerr := in.ReadString('\n')
		if text == "" && rerr != nil {
			return nil
		}
		line := strings.TrimRight(text, "\r\n")
		if blank(line) {
			fmt.Fprint(r.out, "ipset> ") // the real one asks twice
			continue
		}
		err := r.do(split(line))
		if err == io.EOF {
			return nil
		}
		r.report(err)
	}
}

// blank reports whether a line says nothing.
func blank(line string) bool {
	line = strings.TrimLeft(line, " \t")
	return line == "" || line[0] == '#'
}

// split takes a line apart: words between blanks, quotes around what is one
// word. As in ipset, empty words are none, nor is one whose quotes do not close.
func split(line string) (out []string) {
	var b strings.Builder
	quoted := false
	for i := range len(line) {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
		case (c == ' ' || c == '\t') && !quoted:
			if b.Len() > 0 {
				out = append(out, b.String())
				b.Reset()
			}
		default:
			b.WriteByte(c)
		}
	}
	if b.Len() > 0 && !quoted {
		out = append(out, b.String())
	}
	return out
}

func (r *runner) help(typ string) error {
	t := ipset.TypeNamed(typ)
	if typ != "" && t == nil {
		fmt.Fprintf(r.err, "%s: Unknown settype: `%s'\nTry `ipset help' for more information.\n", banner, typ)
	}
	fmt.Fprint(r.out, helpText)
	switch {
	case t != nil:
		fmt.Fprintf(r.out, "\n%s", typeHelp(t))
	case typ != "":
		return quietly{2}
	default:
		fmt.Fprint(r.out, "\nSupported set types:\n")
		for _, t := range ipset.Types() {
			fmt.Fprintf(r.out, "    %-20s%d\n", t.Name, t.Revision)
		}
	}
	return nil
}

// kernel gives a refusal the words that ipset has for it with a command.
func kernel(c cmd, err error) error {
	if err == nil {
		return nil
	}
	var e ipset.Error
	if !errors.As(err, &e) {
		return err
	}
	if s, ok := commandText[c][e]; ok {
		return errors.New(s)
	}
	if s, ok := errorText[e]; ok {
		return errors.New(s)
	}
	return fmt.Errorf("Kernel error received: %s", e.Error())
}

var commandText = map[cmd]map[ipset.Error]string{
	cmdCreate: {
		ipset.ErrExistName:       "Set cannot be created: set with the same name already exists",
		ipset.ErrInvalidNetmask:  "The value of the netmask parameter is invalid",
		ipset.ErrInvalidMarkmask: "The value of the markmask parameter is invalid",
		ipset.ErrInvalidFamily:   "Protocol family not supported by the set type",
	},
	cmdDestroy: {ipset.ErrBusy: "Set cannot be destroyed: it is in use by a kernel component"},
	cmdRename: {
		ipset.ErrExistSetname2: "Set cannot be renamed: a set with the new name already exists",
		ipset.ErrReferenced:    "Set cannot be renamed: it is in use by another system",
	},
	cmdSwap: {
		ipset.ErrExistSetname2: "Sets cannot be swapped: the second set does not exist",
		ipset.ErrTypeMismatch:  "The sets cannot be swapped: their type does not match",
	},
	cmdAdd: {
		ipset.ErrExist:   "Element cannot be added to the set: it's already added",
		ipset.ErrInvalid: "Kernel error received: Invalid argument",
	},
	cmdDel: {
		ipset.ErrExist:   "Element cannot be deleted from the set: it's not added",
		ipset.ErrInvalid: "Kernel error received: Invalid argument",
	},
	cmdTest: {},
}

var errorText = map[ipset.Error]string{
	ipset.ErrNoEntry:        "The set with the given name does not exist",
	ipset.ErrRange:          "The specified range is too large, split it up into smaller ranges",
	ipset.ErrFindType:       "Kernel error received: set type not supported",
	ipset.ErrMaxSets:        "Kernel error received: maximal number of sets reached, cannot create more.",
	ipset.ErrInvalid:        "Kernel error received: ipset protocol error",
	ipset.ErrInvalidCIDR:    "The value of the CIDR parameter of the IP address is invalid",
	ipset.ErrTimeout:        "Timeout cannot be used: set was created without timeout support",
	ipset.ErrIPv4:           "An IPv4 address is expected, but not received",
	ipset.ErrIPv6:           "An IPv6 address is expected, but not received",
	ipset.ErrCounter:        "Packet/byte counters cannot be used: set was created without counter support",
	ipset.ErrComment:        "Comment cannot be used: set was created without comment support",
	ipset.ErrSKBInfo:        "Skbinfo mapping cannot be used: set was created without skbinfo support",
	ipset.ErrBitmaskNetmask: "netmask and bitmask options are mutually exclusive, provide only one",
	ipset.ErrHashFull:       "Hash is full, cannot add more elements",
	ipset.ErrHashElem:       "Null-valued element, cannot be stored in a hash type of set",
	ipset.ErrProto:          "Invalid protocol specified",
	ipset.ErrMissing:        "Protocol missing, but must be specified",
	ipset.ErrBitmapRange:    "Element is out of the range of the set",
	ipset.ErrBitmapSize:     "The range you specified exceeds the size limit of the set type",
	ipset.ErrListName:       "Set to be added/deleted/tested as element does not exist.",
	ipset.ErrListLoop:       "Sets with list:set type cannot be added to the set.",
	ipset.ErrListNameRef:    "The set to which you referred with 'before' or 'after' does not exist.",
	ipset.ErrListFull:       "The set is full, more elements cannot be added.",
	ipset.ErrListRef:        "The set to which you referred with 'before' or 'after' is not added to the set.",
}

// InputFile is the file that a command line restores from, which the caller of
// Run opens and gives it as stdin; false: there is none.
func InputFile(argv []string) (name string, ok bool) {
	var o options
	rest, err := o.take(argv[1:])
	if err != nil || o.file == nil || len(rest) == 0 {
		return "", false
	}
	c, _, _ := find(rest[0])
	return *o.file, c == cmdRestore
}
