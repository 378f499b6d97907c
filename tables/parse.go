package tables

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"unique"

	"sluice/packet"
)

// ArgKind says whether an option has an argument, as getopt_long does.
type ArgKind uint8

const (
	NoArg ArgKind = iota
	NeedArg
	MayArg // only in the same word: -L5, --list=5; else the caller may Take the next word
)

// CommandOption is an option that belongs to the program that parses rules, not
// to the rule (-A, -t, -v …). Next hands it back.
type CommandOption struct {
	Long  string // "" : none
	Short byte   // 0: none
	Arg   ArgKind
	ID    int
}

// Given is a command option as it was met.
type Given struct {
	ID     int
	Name   string // as typed: "-A", "--append"
	Arg    string
	HasArg bool
	Invert bool // "!" stood before it
}

// Parser reads a command line that holds a rule among the options of a program:
// one getopt_long loop over all of them, as iptables has it, so that
// abbreviations, "--name=value", "-n5" and "!" mean the same.
type Parser struct {
	Registry *Registry
	Family   uint8
	Args     []string
	// Warn takes what iptables writes to stderr and then goes on; may be nil.
	Warn func(line string)
	// Resolve finds the addresses of a host name; nil: names are not found.
	Resolve func(fam uint8, name string) [][16]byte
	// Env is where the rules will be, for options that are checked against it
	// (the sets there are); nil: it is not known.
	Env *Env
	// Source is put into the rules.
	Source Source

	// What was given, for checks of the program (generic_opt_check).
	Seen Letters // p s d i o f j m c

	pos     int
	cluster string
	groups  []optGroup // in the order in which they are looked through
	command []CommandOption
	invert  bool

	rule      Rule
	src, dst  string
	proto     string      // -p as typed, lower case
	protoUsed bool        // the match of that name has been tried
	target    Use[Target] // Ext nil: none
	uses      []Use[Match]

	// The option being read; here, so that it is not allocated for each.
	val      Value
	words    [2]string
	option   OptionContext
	warnings func(line string)
}

// Letters is a set of ASCII letters.
type Letters [2]uint64

// Has reports whether c is in the set.
func (l *Letters) Has(c byte) bool { return l[c>>6&1]>>(c&63)&1 != 0 }

// Add puts c into the set.
func (l *Letters) Add(c byte) { l[c>>6&1] |= 1 << (c & 63) }

// longOpt is an option by its long name, and whose it is.
type longOpt struct {
	*longName
	kind optKind
	use  int // match: index into uses
}

// longName is one name of an option.
type longName struct {
	name string
	arg  ArgKind
	id   int // command: the caller's; rule: a letter
	opt  int // match, target: index into the extension's options
}

// optGroup is the options that the command line, the rule or an extension has.
type optGroup struct {
	names []longName // shared by all parsers
	kind  optKind
	use   int
}

type optKind uint8

const (
	optCommand optKind = iota
	optRule
	optMatch
	optTarget
)

var ruleOpts = []CommandOption{
	{"protocol", 'p', NeedArg, 'p'}, {"source", 's', NeedArg, 's'}, {"src", 0, NeedArg, 's'},
	{"destination", 'd', NeedArg, 'd'}, {"dst", 0, NeedArg, 'd'},
	{"in-interface", 'i', NeedArg, 'i'}, {"out-interface", 'o', NeedArg, 'o'},
	{"jump", 'j', NeedArg, 'j'}, {"match", 'm', NeedArg, 'm'}, {"goto", 'g', NeedArg, 'g'},
	{"set-counters", 'c', NeedArg, 'c'},
}

var fragmentOpts = []CommandOption{{"fragments", 'f', NoArg, 'f'}, {"fragment", 0, NoArg, 'f'}}

// grammar is what parsers of one program and family share.
type grammar struct {
	command    []CommandOption // the program's, then the rule's
	own, rules []longName
}

type grammarKey struct {
	command *CommandOption
	family  uint8
}

// grammars and extensionNames are made once and then only read.
var grammars, extensionNames sync.Map

func grammarOf(command []CommandOption, fam uint8) *grammar {
	var key grammarKey
	if key.family = fam; len(command) > 0 {
		key.command = &command[0]
	}
	if g, ok := grammars.Load(key); ok {
		return g.(*grammar)
	}
	rule := append(ruleOpts[:len(ruleOpts):len(ruleOpts)], fragmentOpts...)
	if fam == packet.IPv6 {
		rule[len(ruleOpts)].Long, rule = "", rule[:len(ruleOpts)+1]
	}
	g := &grammar{command: append(command[:len(command):len(command)], rule...)}
	g.own, g.rules = commandNames(command), commandNames(rule)
	grammars.Store(key, g)
	return g
}

func commandNames(opts []CommandOption) (out []longName) {
	for _, o := range opts {
		if o.Long != "" {
			out = append(out, longName{name: o.Long, arg: o.Arg, id: o.ID})
		}
	}
	return out
}

func namesOf(options []Option) []longName {
	if len(options) == 0 {
		return nil
	}
	if names, ok := extensionNames.Load(&options[0]); ok {
		return names.([]longName)
	}
	var names []longName
	for i := range options {
		o := &options[i]
		arg := NoArg
		if o.Type.Args() > 0 {
			arg = NeedArg
		}
		for _, name := range append([]string{o.Name}, o.Aliases...) {
			names = append(names, longName{name: name, arg: arg, opt: i})
		}
	}
	extensionNames.Store(&options[0], names)
	return names
}

// NewParser makes a parser of args (without the program's name). command is the
// program's and always the same.
func NewParser(reg *Registry, fam uint8, args []string, command []CommandOption) *Parser {
	g := grammarOf(command, fam)
	ps := &Parser{Registry: reg, Family: fam, command: g.command}
	ps.groups = append(make([]optGroup, 0, 5), optGroup{names: g.own, kind: optCommand}, optGroup{names: g.rules, kind: optRule})
	ps.warnings = ps.warn
	ps.Reset(args)
	return ps
}

// Reset makes ps as it was made, for other args.
func (ps *Parser) Reset(args []string) {
	ps.Args, ps.Seen = args, Letters{}
	ps.pos, ps.cluster, ps.invert = 0, "", false
	ps.groups = ps.groups[:2]
	ps.rule = Rule{Family: ps.Family}
	ps.src, ps.dst, ps.proto, ps.protoUsed = "", "", "", false
	ps.target, ps.uses = Use[Target]{}, nil
}

// Peek is the next word, if there is one that Next has not read yet.
func (ps *Parser) Peek() (string, bool) {
	if ps.cluster != "" || ps.pos >= len(ps.Args) {
		return "", false
	}
	return ps.Args[ps.pos], true
}

// Take is Peek, and goes past the word.
func (ps *Parser) Take() (string, bool) {
	s, ok := ps.Peek()
	if ok {
		ps.pos++
	}
	return s, ok
}

// Next reads options of the rule until it meets one of the program's. more is
// false at the end of the line.
func (ps *Parser) Next() (g Given, more bool, err error) {
	for {
		if ps.cluster == "" {
			if ps.pos >= len(ps.Args) {
				return g, false, nil
			}
			w := ps.Args[ps.pos]
			switch {
			case w == "--":
				ps.pos = len(ps.Args) // getopt stops; what follows is not looked at
				return g, false, nil
			case w == "!":
				if ps.invert {
					return g, false, Usagef("multiple consecutive ! not allowed")
				}
				ps.invert = true
				ps.pos++
				continue
			case len(w) < 2 || w[0] != '-':
				return g, false, &Error{Code: ExitParameter, Msg: fmt.Sprintf("Bad argument `%s'", w), Plain: true}
			case strings.HasPrefix(w, "--"):
				g, handled, err := ps.long(w)
				if err != nil || !handled {
					return g, err == nil, err
				}
				continue
			}
			ps.cluster = w[1:]
			ps.pos++
		}
		g, handled, err := ps.short()
		if err != nil || !handled {
			return g, err == nil, err
		}
	}
}

// short reads one letter of a word like -vnL.
func (ps *Parser) short() (g Given, handled bool, err error) {
	c := ps.cluster[0]
	ps.cluster = ps.cluster[1:]
	for i, o := range ps.command {
		if o.Short != c {
			continue
		}
		name := "-" + string(c)
		arg, has := "", false
		switch {
		case o.Arg == NoArg:
		case ps.cluster != "":
			arg, has, ps.cluster = ps.cluster, true, ""
		case o.Arg == NeedArg:
			if ps.pos >= len(ps.Args) {
				return g, false, Usagef("option \"%s\" requires an argument", ps.Args[ps.pos-1])
			}
			arg, has = ps.Args[ps.pos], true
			ps.pos++
		}
		if i < len(ps.command)-ps.ruleCount() {
			return ps.give(o.ID, name, arg, has), false, nil
		}
		return g, true, ps.ruleOption(byte(o.ID), arg)
	}
	return g, false, Usagef("unknown option \"%s\"", ps.Args[ps.pos-1])
}

func (ps *Parser) ruleCount() int {
	if ps.Family == packet.IPv4 {
		return len(ruleOpts) + len(fragmentOpts)
	}
	return len(ruleOpts) + 1
}

func (ps *Parser) give(id int, name, arg string, has bool) Given {
	g := Given{ID: id, Name: name, Arg: arg, HasArg: has, Invert: ps.invert}
	ps.invert = false
	return g
}

// long reads a word like --name or --name=value.
func (ps *Parser) long(w string) (g Given, handled bool, err error) {
	name, val, has := strings.Cut(w[2:], "=")
	o, known := ps.find(name)
	missing := known && o.arg == NeedArg && !has && ps.pos+1 >= len(ps.Args)
	if !known || missing || o.arg == NoArg && has {
		if ps.loadProto() {
			return g, true, nil // once more, with the protocol's options
		}
		if missing {
			return g, false, Usagef("option \"%s\" requires an argument", w)
		}
		return g, false, Usagef("unknown option \"%s\"", w)
	}
	ps.pos++
	if o.arg == NeedArg && !has {
		val, has = ps.Args[ps.pos], true
		ps.pos++
	}
	switch o.kind {
	case optCommand:
		return ps.give(o.id, w, val, has), false, nil
	case optRule:
		return g, true, ps.ruleOption(byte(o.id), val)
	case optTarget:
		err = ps.extOption(ps.target.Args, o.opt, o.name, val)
	case optMatch:
		err = ps.extOption(ps.uses[o.use].Args, o.opt, o.name, val)
	}
	ps.invert = false
	return g, true, err
}

// find looks an option up as getopt_long does: an exact name, or a beginning
// that only one option has.
func (ps *Parser) find(name string) (hit longOpt, ok bool) {
	for i := range ps.groups {
		g := &ps.groups[i]
		for j := range g.names {
			if o := &g.names[j]; o.name == name {
				return longOpt{o, g.kind, g.use}, true
			}
		}
	}
	for i := range ps.groups {
		g := &ps.groups[i]
		for j := range g.names {
			o := &g.names[j]
			if !strings.HasPrefix(o.name, name) {
				continue
			}
			if ok && (hit.arg != o.arg || hit.kind != g.kind || hit.id != o.id || hit.use != g.use || hit.opt != o.opt) {
				return longOpt{}, false
			}
			if !ok {
				hit, ok = longOpt{o, g.kind, g.use}, true
			}
		}
	}
	return hit, ok
}

// extend puts an extension's options before those of the extensions so far.
func (ps *Parser) extend(kind optKind, use int, options []Option) {
	ps.groups = slices.Insert(ps.groups, 2, optGroup{namesOf(options), kind, use})
}

// loadMatch begins a use of m. Where m has been loaded before, its options keep
// their place before or after other extensions' of the same name: after
// "-m connmark -m mark -m connmark", --mark is mark's.
func (ps *Parser) loadMatch(m *Match) {
	ps.uses = append(ps.uses, Use[Match]{m, newArgs(m.Name, ps.Family, m.Options)})
	for i := range ps.groups {
		if g := &ps.groups[i]; g.kind == optMatch && ps.uses[g.use].Ext == m {
			g.use = len(ps.uses) - 1
			return
		}
	}
	ps.extend(optMatch, len(ps.uses)-1, m.Options)
}

// loadProto loads the match that is named like the protocol, once, when an
// option is met that nobody knows.
func (ps *Parser) loadProto() bool {
	if ps.proto == "" || ps.protoUsed {
		return false
	}
	ps.protoUsed = true
	name := ps.proto
	if n, rest, ok := Strtoul(name, 0, 255); ok && rest == "" {
		name = ProtocolName(uint8(n))
	}
	m := ps.Registry.Match(ps.Family, protoMatch(name))
	if m == nil {
		return false
	}
	ps.loadMatch(m)
	return true
}

// Extensions are the target and the matches of the rule as far as it has been
// read, and where there are none of these, the match that is named like the
// protocol (not one that a number or an IPv6 header is for).
func (ps *Parser) Extensions() (*Target, []*Match) {
	var matches []*Match
	for i := range ps.uses {
		matches = append(matches, ps.uses[i].Ext)
	}
	if len(matches) == 0 && ps.proto != "" {
		if m := ps.Registry.Match(ps.Family, protoMatch(ps.proto)); m != nil {
			matches = append(matches, m)
		}
	}
	return ps.target.Ext, matches
}

// protoMatch is the match that goes with a protocol's name.
func protoMatch(name string) string {
	if name == "ipv6-icmp" || name == "icmpv6" {
		return "icmp6"
	}
	return name
}

// maxMatches is how many matches a rule may have: where they are as small as can
// be, the kernel's 64 KB for a rule hold no more.
const maxMatches = 2048

// once is iptables' set_option.
func (ps *Parser) once(letter byte, invertible bool) error {
	if ps.Seen.Has(letter) {
		return Usagef("multiple -%c flags not allowed", letter)
	}
	ps.Seen.Add(letter)
	if ps.invert && !invertible {
		return Usagef("cannot have ! before -%c", letter)
	}
	return nil
}

func (ps *Parser) ruleOption(letter byte, arg string) error {
	not := ps.invert
	r := &ps.rule
	var err error
	switch letter {
	case 'p':
		if err = ps.once('p', true); err != nil {
			break
		}
		ps.proto = strings.ToLower(arg)
		n, ok := ProtocolByName(ps.proto)
		if !ok {
			return Usagef("unknown protocol \"%s\" specified", ps.proto)
		}
		if n == 0 && not {
			return Usagef("rule would never match protocol")
		}
		if ps.Family == packet.IPv6 && !not && isExtHeader(n) {
			ps.warn(fmt.Sprintf("Warning: never matched protocol: %s. use extension match instead.", ps.proto))
		}
		r.Proto, r.ProtoNot = n, not
	case 's':
		if err = ps.once('s', true); err == nil {
			ps.src, r.Src.Not = arg, not
		}
	case 'd':
		if err = ps.once('d', true); err == nil {
			ps.dst, r.Dst.Not = arg, not
		}
	case 'i':
		if err = ps.once('i', true); err == nil {
			r.In, r.InNot = intern(arg), not
			err = ps.iface(arg)
		}
	case 'o':
		if err = ps.once('o', true); err == nil {
			r.Out, r.OutNot = intern(arg), not
			err = ps.iface(arg)
		}
	case 'f':
		if ps.Family == packet.IPv6 {
			return Usagef("`-f' is not supported in IPv6, use -m frag instead")
		}
		if err = ps.once('f', true); err == nil {
			r.Fragment, r.FragmentNot = !not, not
		}
	case 'c':
		err = ps.counters(arg)
	case 'm':
		if not {
			return Usagef("unexpected ! flag before --match")
		}
		m := ps.Registry.Match(ps.Family, arg)
		if m == nil {
			if arg = protoMatch(arg); len(arg) > 28 {
				return Usagef("Invalid match name \"%s\" (28 chars max)", arg)
			}
			return Usagef("Couldn't load match `%s':No such file or directory\n", arg)
		}
		if len(ps.uses) == maxMatches {
			return Usagef("a rule has at most %d matches", maxMatches)
		}
		ps.Seen.Add('m')
		ps.loadMatch(m)
	case 'j', 'g':
		err = ps.jump(letter == 'g', arg)
	}
	ps.invert = false
	return err
}

func (ps *Parser) jump(isGoto bool, name string) error {
	if err := ps.once('j', false); err != nil {
		return err
	}
	switch {
	case name == "":
		return Usagef("Invalid target name (too short)")
	case len(name) > 28:
		return Usagef("Invalid target name `%s' (28 chars max)", name)
	case strings.ContainsAny(name, " \t\n\v\f\r"):
		return Usagef("Invalid target name `%s'", name)
	}
	r := &ps.rule
	if isGoto {
		r.Jump, r.Goto = intern(name), true
		return nil
	}
	if v, ok := VerdictByName(name); ok {
		r.Verdict = v
		return nil
	}
	if t := ps.Registry.Target(ps.Family, name); t != nil {
		ps.target = Use[Target]{t, newArgs(t.Name, ps.Family, t.Options)}
		ps.extend(optTarget, 0, t.Options)
		return nil
	}
	r.Jump = intern(name)
	return nil
}

// intern gives a name that many rules have, without the line that it was read from.
func intern(name string) string { return unique.Make(name).Value() }

// counters reads -c PKTS BYTES and -c PKTS,BYTES.
func (ps *Parser) counters(arg string) error {
	if err := ps.once('c', false); err != nil {
		return err
	}
	first := min(len(arg), 1) // a comma there parts nothing
	pk, by, ok := strings.Cut(arg[first:], ",")
	pk = arg[:first] + pk
	if !ok {
		if by, ok = ps.Peek(); !ok || strings.HasPrefix(by, "-") || strings.HasPrefix(by, "!") {
			return Usagef("-c requires packet and byte counter")
		}
		ps.pos++
	}
	if ps.rule.Initial.Packets, _, ok = ScanUint(pk); !ok {
		return Usagef("-c packet counter not numeric")
	}
	if ps.rule.Initial.Bytes, _, ok = ScanUint(by); !ok {
		return Usagef("-c byte counter not numeric")
	}
	return nil
}

func (ps *Parser) warn(line string) {
	if ps.Warn != nil {
		ps.Warn(line)
	}
}

func (ps *Parser) iface(name string) error {
	if name == "" {
		return Usagef("Empty interface is likely to be undesired")
	}
	if len(name) > 15 {
		return Usagef("interface name `%s' must be shorter than IFNAMSIZ (15)", name)
	}
	if strings.ContainsAny(name, "/ ") {
		ps.warn(fmt.Sprintf("Warning: weird character in interface `%s' ('/' and ' ' are not allowed by the kernel).", name))
	}
	return nil
}

// extOption reads one option of an extension.
func (ps *Parser) extOption(a *Args, i int, name, text string) error {
	o := &a.options[i]
	v := a.val(i)
	a.Proto, a.ProtoNot = ps.rule.Proto, ps.rule.ProtoNot
	if ps.invert && !o.Negatable && o.NotText != "" {
		return Usagef("%s", strings.ReplaceAll(o.NotText, "%s", name))
	}
	if !o.Multi && (v.Set || slices.ContainsFunc(o.Shares, a.Has)) {
		if o.OnceText != "" {
			return Usagef("%s", strings.ReplaceAll(o.OnceText, "%s", name))
		}
		return Usagef("%s: option \"--%s\" can only be used once.\n", a.Ext, o.Name)
	}
	if ps.invert && !o.Negatable {
		return Usagef("%s: option \"--%s\" cannot be inverted.\n", a.Ext, o.Name)
	}
	val := &ps.val
	*val = Value{Set: true, Not: ps.invert}
	ps.words[0] = text
	words := ps.words[:1]
	for n := o.Type.Args(); len(words) < n; {
		w, ok := ps.Peek()
		if !ok || strings.HasPrefix(w, "-") || strings.HasPrefix(w, "!") {
			if o.TwoText != "" {
				return Usagef("%s", o.TwoText)
			}
			return Usagef("--%s requires two args.", name)
		}
		ps.pos++
		words = append(words, w)
	}
	oc := &ps.option
	*oc = OptionContext{Ext: a.Ext, Name: o.Name, Typed: name, Env: ps.Env, Resolve: ps.Resolve, Family: a.Family, Proto: a.Proto, ProtoNot: a.ProtoNot, Args: a, Warn: ps.warnings}
	if t, ok := o.Type.(OptionalArg); ok {
		if w, ok := ps.Peek(); ok && t.Takes(w) && !strings.HasPrefix(w, "-") && !strings.HasPrefix(w, "!") {
			ps.pos++
			words[0] = w
		}
	}
	if err := o.Type.Parse(oc, words, val); err != nil {
		return err
	}
	val.Str = strings.Clone(val.Str) // it must not keep the whole line
	if v := a.val(i); v.Set {        // reading may have set others
		v.More = append(v.More, *val)
		return nil
	}
	a.set(i, *val)
	return nil
}

// check makes the checks of an extension's options once all are read.
func (a *Args) check(ps *Parser, first func(*Args) error) error {
	a.Proto, a.ProtoNot, a.Warn = ps.rule.Proto, ps.rule.ProtoNot, ps.warnings
	defer func() { a.Warn = nil }()
	if first != nil {
		if err := first(a); err != nil {
			return err
		}
	}
	for i := range a.options {
		o := &a.options[i]
		if !a.val(i).Set {
			if o.Required {
				return Usagef("%s: option \"--%s\" must be specified\n", a.Ext, o.Name)
			}
			continue
		}
		for _, other := range o.Excludes {
			if a.Has(other) {
				return Usagef("%s: option \"--%s\" cannot be used together with \"--%s\".\n", a.Ext, o.Name, other)
			}
		}
		for _, other := range o.Also {
			if !a.Has(other) {
				return Usagef("%s: option \"--%s\" also requires \"--%s\".\n", a.Ext, o.Name, other)
			}
		}
	}
	return nil
}

// Options ends the reading: it makes the checks of extensions that need all their
// options.
func (ps *Parser) Options(table TableID) error {
	if table == NAT && ps.rule.Verdict == VerdictDrop {
		return NATDrop
	}
	for _, u := range ps.uses {
		if err := u.Args.check(ps, u.Ext.First); err != nil {
			return err
		}
	}
	t := ps.target
	if t.Ext != nil {
		if err := t.Args.check(ps, t.Ext.First); err != nil {
			return err
		}
	}
	// What only we refuse comes when iptables has nothing to say any more.
	for _, u := range ps.uses {
		if u.Ext.Final != nil {
			if err := u.Ext.Final(u.Args); err != nil {
				return err
			}
		}
	}
	if t.Ext != nil && t.Ext.Final != nil {
		return t.Ext.Final(t.Args)
	}
	return nil
}

// Rules gives, after Options, the rules for a chain: several where -s or -d name
// several addresses.
func (ps *Parser) Rules(chain string) ([]*Rule, error) {
	r := &ps.rule
	if ps.invert {
		return nil, Usagef("nothing appropriate following !")
	}
	var room [2]Addr // enough for most rules
	srcs, err := ps.addrs(room[:0:1], ps.src, ps.Seen.Has('s'))
	if err != nil {
		return nil, err
	}
	dsts, err := ps.addrs(room[1:1], ps.dst, ps.Seen.Has('d'))
	if err != nil {
		return nil, err
	}
	if (len(srcs) > 1 || len(dsts) > 1) && (r.Src.Not || r.Dst.Not) {
		return nil, Usagef("! not allowed with multiple source or destination IP addresses")
	}
	switch chain {
	case "PREROUTING", "INPUT":
		if r.Out != "" {
			return nil, Usagef("Can't use -o with %s\n", chain)
		}
	case "POSTROUTING", "OUTPUT":
		if r.In != "" {
			return nil, Usagef("Can't use -i with %s\n", chain)
		}
	}
	if len(srcs)*len(dsts) > maxRules {
		return nil, Usagef("%d source and destination addresses make more than %d rules", len(srcs)+len(dsts), maxRules)
	}
	out := make([]*Rule, 0, len(srcs)*len(dsts))
	for _, s := range srcs {
		for _, d := range dsts {
			n := *r
			n.Source = ps.Source
			n.Src.Addr, n.Src.Mask = s.Addr, s.Mask
			n.Dst.Addr, n.Dst.Mask = d.Addr, d.Mask
			n.Matches = ps.uses
			if ps.target.Ext != nil {
				n.Target = &Use[Target]{ps.target.Ext, ps.target.Args}
			}
			if len(out) > 0 { // each rule has arguments of its own
				n.Matches = slices.Clone(ps.uses)
				for i := range n.Matches {
					n.Matches[i].Args = n.Matches[i].Args.clone()
				}
				if n.Target != nil {
					n.Target.Args = n.Target.Args.clone()
				}
			}
			n.text = n.Save()
			out = append(out, &n)
		}
	}
	return out, nil
}

// maxRules is how many rules one line may make, which is one for each pair of
// addresses.
const maxRules = 1 << 16

func (a *Args) clone() *Args { c := *a; return &c }

// NATDrop is the refusal of DROP, as a target or a policy, in table nat.
var NATDrop error = &Error{Code: ExitParameter, Msg: "\nThe \"nat\" table is not intended for filtering, the use of DROP is therefore inhibited.\n\n"}

// ParseRule reads the text of one rule, without a command: "-p tcp --dport 80 -j ACCEPT".
func ParseRule(reg *Registry, fam uint8, table TableID, chain string, args []string) ([]*Rule, error) {
	ps := NewParser(reg, fam, args, nil)
	if _, _, err := ps.Next(); err != nil {
		return nil, err
	}
	if err := ps.Options(table); err != nil {
		return nil, err
	}
	return ps.Rules(chain)
}

func isExtHeader(proto uint8) bool {
	switch proto {
	case 43, 44, 51, 60:
		return true
	}
	return false
}
