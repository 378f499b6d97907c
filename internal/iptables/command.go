package iptables

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// cmd is a set of commands, with libxtables' order: of several, the highest is
// the one that a conflict names.
type cmd uint16

const (
	cmdInsert cmd = 1 << iota
	cmdDelete
	cmdDeleteNum
	cmdReplace
	cmdAppend
	cmdList
	cmdFlush
	cmdZero
	cmdNew
	cmdDeleteChain
	cmdPolicy
	cmdRename
	cmdListRules
	cmdZeroNum
	cmdCheck

	ruleCmds = cmdInsert | cmdDelete | cmdReplace | cmdAppend | cmdCheck
)

const cmdLetters = "IDDRALFZNXPESZC"

func (c cmd) letter() byte {
	for i := len(cmdLetters) - 1; i >= 0; i-- {
		if c>>i&1 != 0 {
			return cmdLetters[i]
		}
	}
	return ' '
}

// Options by letter, in the order in which they are checked, and which of them
// each command may have (by bit of cmd).
const optionLetters = "nsdpjvxio0cf"

var allowed = [...]string{
	"sdpjviocf", "sdpjviof", "v", "sdpjviocf", "sdpjviocf",
	"nvx0", "v", "v", "v", "v", "vc", "v", "v", "v", "sdpjviof",
}

var allowedLetters = func() (out [len(allowed)]tables.Letters) {
	for i, set := range allowed {
		for j := range len(set) {
			out[i].Add(set[j])
		}
	}
	return out
}()

// maxChainName is the longest name of a chain that a rule can jump to, bytes.
const maxChainName = 28

// command is a command line, read.
type command struct {
	cmds     cmd
	table    tables.TableID
	chain    string
	hasChain bool
	num      int    // rule number, from 1
	name     string // -E: the new name
	policy   string
	counters *tables.Counter // -P -c
	rules    []*tables.Rule
	verbose  int
	numeric  bool
	exact    bool
	lines    bool
}

func (c *command) is(any cmd) bool { return c.cmds&any != 0 }

// The options that are the program's, not the rule's.
var commandOptions = []tables.CommandOption{
	{Long: "append", Short: 'A', Arg: tables.NeedArg, ID: 'A'},
	{Long: "delete", Short: 'D', Arg: tables.NeedArg, ID: 'D'},
	{Long: "check", Short: 'C', Arg: tables.NeedArg, ID: 'C'},
	{Long: "insert", Short: 'I', Arg: tables.NeedArg, ID: 'I'},
	{Long: "replace", Short: 'R', Arg: tables.NeedArg, ID: 'R'},
	{Long: "list", Short: 'L', Arg: tables.MayArg, ID: 'L'},
	{Long: "list-rules", Short: 'S', Arg: tables.MayArg, ID: 'S'},
	{Long: "flush", Short: 'F', Arg: tables.MayArg, ID: 'F'},
	{Long: "zero", Short: 'Z', Arg: tables.MayArg, ID: 'Z'},
	{Long: "new-chain", Short: 'N', Arg: tables.NeedArg, ID: 'N'},
	{Long: "delete-chain", Short: 'X', Arg: tables.MayArg, ID: 'X'},
	{Long: "rename-chain", Short: 'E', Arg: tables.NeedArg, ID: 'E'},
	{Long: "policy", Short: 'P', Arg: tables.NeedArg, ID: 'P'},
	{Long: "table", Short: 't', Arg: tables.NeedArg, ID: 't'},
	{Long: "numeric", Short: 'n', ID: 'n'},
	{Long: "verbose", Short: 'v', ID: 'v'},
	{Long: "wait", Short: 'w', Arg: tables.MayArg, ID: 'w'},
	{Long: "wait-interval", Short: 'W', Arg: tables.MayArg, ID: 'W'},
	{Long: "exact", Short: 'x', ID: 'x'},
	{Long: "version", Short: 'V', ID: 'V'},
	{Long: "help", Short: 'h', Arg: tables.MayArg, ID: 'h'},
	{Long: "line-numbers", ID: '0'},
	{Long: "modprobe", Short: 'M', Arg: tables.NeedArg, ID: 'M'},
	{Long: "ipv4", Short: '4', ID: '4'},
	{Long: "ipv6", Short: '6', ID: '6'},
}

var singleCmds = map[int]cmd{
	'A': cmdAppend, 'D': cmdDelete, 'C': cmdCheck, 'I': cmdInsert, 'R': cmdReplace, 'L': cmdList,
	'S': cmdListRules, 'F': cmdFlush, 'Z': cmdZero, 'N': cmdNew, 'X': cmdDeleteChain, 'E': cmdRename, 'P': cmdPolicy,
}

// parser reads one command line.
type parser struct {
	x         *tool
	ps        *tables.Parser
	c         *command
	table     string
	seen      tables.Letters // n v x 0
	wait      bool
	waitEvery bool
	ignore    bool // the line is for the other family
	probe     bool // only the options are of interest: print nothing
}

// newParser makes a parser of args; the one before it is done with, and used again.
func (x *tool) newParser(args []string) *parser {
	p := x.parser
	if p == nil {
		p = &parser{ps: tables.NewParser(x.Registry, x.fam, args, commandOptions)}
		x.parser = p
		if e := x.engine(x.fam); e != nil {
			p.ps.Env = e.Env()
		}
		p.ps.Resolve = x.resolve
		p.ps.Warn = x.warn
	}
	p.ps.Reset(args)
	*p = parser{x: x, ps: p.ps, c: &command{num: 1}, table: "filter"}
	if x.restore != "" {
		p.table = x.restore
	}
	return p
}

// warn prints what iptables says and goes on.
func (x *tool) warn(line string) {
	if x.parser == nil || !x.parser.probe {
		x.fail("%s\n", line)
	}
}

// parse reads a command line. A nil command has nothing to do.
func (x *tool) parse(args []string) (*command, error) {
	c, _, err := x.parsePlaced(args)
	return c, err
}

// parsePlaced is parse that also gives the index in args of the argument that an
// error is about, as far as it is known.
func (x *tool) parsePlaced(args []string) (c *command, at int, err error) {
	for i, a := range args[:max(len(args)-1, 0)] {
		if a != "--" {
			continue
		}
		probe := x.newParser(args[:i])
		probe.probe = true
		if probe.options() == nil && !probe.ignore {
			return nil, i + 1, tables.Usagef("unknown arguments found on commandline")
		}
	}
	p := x.newParser(args)
	if err := p.options(); err != nil {
		return nil, p.culprit(args, err, true), err
	}
	if p.ignore {
		return nil, 0, nil
	}
	if err := p.finish(); err != nil {
		return nil, p.culprit(args, err, false), err
	}
	return p.c, 0, nil
}

// culprit guesses which argument an error is about: one that the message
// quotes, else the one that was read last.
func (p *parser) culprit(args []string, err error, reading bool) int {
	read := len(args)
	for _, more := p.ps.Take(); more; _, more = p.ps.Take() {
		read--
	}
	if i := quotedIn(err.Error(), args[:min(read+1, len(args))]); i >= 0 {
		return i
	}
	if reading && read > 0 {
		return read - 1
	}
	return 0
}

// quotedIn is the index of the last argument that a message quotes, whole or a
// part of it; -1: none.
func quotedIn(msg string, args []string) int {
	for _, m := range quoted.FindAllStringSubmatch(msg, -1) {
		word := m[1] + m[2]
		for i := len(args) - 1; i >= 0; i-- {
			if args[i] == word {
				return i
			}
		}
		for i := len(args) - 1; i >= 0; i-- {
			if slices.Contains(strings.FieldsFunc(args[i], func(r rune) bool { return strings.ContainsRune(",/:=", r) }), word) {
				return i
			}
		}
	}
	return -1
}

var quoted = regexp.MustCompile("[`']([^`']+)'|\"([^\"]+)\"")

func (p *parser) options() error {
	for !p.ignore {
		g, more, err := p.ps.Next()
		if err != nil || !more {
			return err
		}
		if err := p.option(g); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) option(g tables.Given) error {
	if add, ok := singleCmds[g.ID]; ok {
		return p.command(g, add)
	}
	c, x := p.c, p.x
	switch g.ID {
	case 't':
		if g.Invert {
			return tables.Usagef("unexpected ! flag before --table")
		}
		if x.restore != "" {
			return tables.Usagef("The -t option cannot be used in %s.\n", x.prog)
		}
		p.table = g.Arg
	case 'n':
		c.numeric = true
		return p.once('n', g)
	case 'x':
		c.exact = true
		return p.once('x', g)
	case '0':
		c.lines = true
		return p.once('0', g)
	case 'v':
		c.verbose++
		if c.verbose == 1 {
			return p.once('v', g)
		}
	case 'w', 'W':
		return p.lock(g)
	case '4':
		if x.fam == packet.IPv4 {
			return nil
		}
		return p.otherFamily()
	case '6':
		if x.fam == packet.IPv6 {
			return nil
		}
		return p.otherFamily()
	case 'V':
		if !p.probe && g.Invert {
			x.printf("Not %s ;-)\n", strings.TrimPrefix(version, "v"))
		} else if !p.probe {
			x.printf("%s %s\n", x.prog, version)
		}
		return exit{}
	case 'h':
		if !p.probe {
			x.help(p.ps)
		}
		return exit{}
	}
	return nil
}

// otherFamily meets -4 in ip6tables or -6 in iptables: a restore passes over
// the line.
func (p *parser) otherFamily() error {
	if p.x.restore != "" {
		p.ignore = true
		return nil
	}
	return exit{code: tables.ExitParameter, help: true}
}

func (p *parser) once(letter byte, g tables.Given) error {
	if p.seen.Has(letter) {
		return tables.Usagef("multiple -%c flags not allowed", letter)
	}
	p.seen.Add(letter)
	if g.Invert {
		return tables.Usagef("cannot have ! before -%c", letter)
	}
	return nil
}

// lock reads -w and -W, which have no meaning where commits are atomic.
func (p *parser) lock(g tables.Given) error {
	if p.x.restore != "" {
		return tables.Usagef("You cannot use `-%c' from %s", g.ID, p.x.prog)
	}
	arg, has := g.Arg, g.HasArg
	if !has {
		arg, has = p.take()
	}
	if g.ID == 'w' {
		p.wait = true
		return waitSeconds(arg, has)
	}
	p.waitEvery = true
	err := waitInterval(arg, has)
	if err == nil && !p.probe {
		p.x.fail("Ignoring deprecated --wait-interval option.\n")
	}
	return err
}

func waitSeconds(arg string, has bool) error {
	if _, _, ok := tables.Strtoul(arg, 0, math.MaxUint32); has && !ok {
		return tables.Usagef("wait seconds not numeric")
	}
	return nil
}

// waitInterval checks the argument of -W, in microseconds.
func waitInterval(arg string, has bool) error {
	n, _, ok := tables.Strtoul(arg, 0, math.MaxUint32)
	switch {
	case !has:
		return tables.Usagef("wait interval value required")
	case !ok:
		return tables.Usagef("wait interval not numeric")
	case n > 999999:
		return tables.Usagef("too long usec wait %d > 999999 usec", n)
	}
	return nil
}

// take takes the next word unless it looks like an option.
func (p *parser) take() (string, bool) {
	if s, ok := p.ps.Peek(); !ok || strings.HasPrefix(s, "-") || strings.HasPrefix(s, "!") {
		return "", false
	}
	return p.ps.Take()
}

func (p *parser) command(g tables.Given, add cmd) error {
	c := p.c
	if g.Invert {
		return tables.Usagef("unexpected '!' flag")
	}
	var with cmd
	switch add {
	case cmdList, cmdListRules:
		with = cmdZero | cmdZeroNum
	case cmdZero:
		with = cmdList | cmdListRules
	}
	if other := c.cmds &^ with; other != 0 {
		return tables.Usagef("Cannot use -%c with -%c", add.letter(), other.letter())
	}
	c.cmds |= add
	word, has := g.Arg, g.HasArg
	if !has {
		word, has = p.take()
	}
	if has {
		c.chain, c.hasChain = word, true
	}
	number := func() (given bool, err error) {
		if !has {
			return false, nil
		}
		s, ok := p.take()
		if !ok {
			return false, nil
		}
		n, rest, ok := tables.Strtoul(s, 1, math.MaxInt32)
		if !ok || rest != "" {
			return true, tables.Usagef("Invalid rule number `%s'", s)
		}
		c.num = int(n)
		return true, nil
	}
	switch add {
	case cmdDelete, cmdZero:
		given, err := number()
		if given && add == cmdDelete {
			c.cmds = cmdDeleteNum
		} else if given {
			c.cmds = cmdZeroNum
		}
		return err
	case cmdInsert:
		_, err := number()
		return err
	case cmdReplace:
		if given, err := number(); given {
			return err
		}
		return tables.Usagef("-R requires a rule number")
	case cmdList, cmdListRules:
		given, err := number()
		if !given && !c.is(cmdZeroNum) {
			c.num = 0
		}
		return err
	case cmdNew:
		return p.x.checkName(c.chain)
	case cmdRename:
		if c.name, has = p.take(); !has {
			return tables.Usagef("-E requires old-chain-name and new-chain-name")
		}
	case cmdPolicy:
		if c.policy, has = p.take(); !has {
			return tables.Usagef("-P requires a chain and a policy")
		}
	}
	return nil
}

// checkName refuses names that a new chain may not have.
func (x *tool) checkName(name string) error {
	switch {
	case strings.HasPrefix(name, "-"), strings.HasPrefix(name, "!"):
		return tables.Usagef("chain name not allowed to start with `%c'", name[0])
	case name == "", isVerdict(name), name == "QUEUE", x.Registry.Target(x.fam, name) != nil:
		return tables.Usagef("chain name may not clash with target name")
	case len(name) > maxChainName:
		return longName(name)
	case strings.ContainsAny(name, " \t\n\v\f\r"):
		return tables.Usagef("Invalid chain name `%s'", name)
	}
	return nil
}

func longName(name string) error {
	return tables.Usagef("chain name `%s' too long (must be under %d chars)", name, maxChainName+1)
}

// finish makes the checks that need the whole line.
func (p *parser) finish() error {
	c, x := p.c, p.x
	id, known := tables.TableByName(p.table)
	if !known {
		id = tables.Filter
	}
	c.table = id
	if id == tables.NAT && c.policy == "DROP" {
		return tables.NATDrop
	}
	if p.waitEvery && !p.wait {
		return tables.Usagef("--wait-interval only makes sense with --wait\n")
	}
	if err := p.ps.Options(id); err != nil {
		return err
	}
	if c.cmds == 0 {
		return tables.Usagef("no command specified")
	}
	rules, err := p.ps.Rules(c.chain)
	switch {
	case err != nil:
		if no := p.legal(); no != nil && strings.HasPrefix(err.Error(), "Can't use -") {
			return no // options are checked before interfaces
		}
		return err
	case c.is(cmdReplace) && len(rules) != 1:
		return tables.Usagef("Replacement rule does not specify a unique address")
	}
	if err := p.legal(); err != nil {
		return err
	}
	if c.hasChain && len(c.chain) > maxChainName {
		return longName(c.chain)
	}
	if !known {
		why := "Table does not exist (do you need to insmod?)"
		if len(p.table) > 31 {
			why = "Module is wrong version"
		}
		base := "iptables"
		if x.fam == packet.IPv6 {
			base = "ip6tables"
		}
		return &tables.Error{Code: tables.ExitVersion, Msg: fmt.Sprintf("can't initialize %s table `%s': %s", base, p.table, why)}
	}
	if c.is(cmdPolicy) && p.ps.Seen.Has('c') {
		c.counters = &rules[0].Initial
	}
	if c.is(ruleCmds) {
		c.rules = rules
	}
	return nil
}

// legal refuses options that the command does not take.
func (p *parser) legal() error {
	given := tables.Letters{p.seen[0] | p.ps.Seen[0], p.seen[1] | p.ps.Seen[1]}
	may := tables.Letters{}
	for i := range allowedLetters {
		if l := &allowedLetters[i]; p.c.is(1 << i) {
			may[0], may[1] = may[0]|l[0], may[1]|l[1]
		}
	}
	for i := range len(optionLetters) {
		if o := optionLetters[i]; given.Has(o) && !may.Has(o) {
			return tables.Usagef("Illegal option `-%c' with this command", o)
		}
	}
	return nil
}
