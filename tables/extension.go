package tables

import (
	"fmt"
	"iter"
	"slices"
	"syscall"

	"sluice/hooks"
	"sluice/packet"
)

// Pred is the compiled form of a match: does p match? It may set c.Hotdrop. It
// runs on any worker, so state it shares is atomic; it does not allocate, lock or panic.
type Pred func(c *Context, p *packet.Packet) bool

// Result is what a target says.
type Result uint8

const (
	Continue Result = iota // go on with the next rule
	Accept
	Drop // the walk sets p.Reason if the target left it 0
	Return
	Stolen // somebody else has the packet
)

// TargetFunc is the compiled form of a target.
type TargetFunc func(c *Context, p *packet.Packet) Result

// FamilyMask says which families an extension is for.
type FamilyMask uint8

const (
	V4 FamilyMask = 1 << iota
	V6
	V4V6 = V4 | V6
)

// Has reports whether packet.IPv4 or packet.IPv6 is in m.
func (m FamilyMask) Has(fam uint8) bool {
	if fam == packet.IPv4 {
		return m&V4 != 0
	}
	return m&V6 != 0
}

// TableMask is a set of tables; 0 in an extension means all.
type TableMask uint8

// In makes a TableMask.
func In(ts ...TableID) (m TableMask) {
	for _, t := range ts {
		m |= 1 << t
	}
	return m
}

// Has reports whether t is in m.
func (m TableMask) Has(t TableID) bool { return m == 0 || m>>t&1 != 0 }

// Depends names what an extension's answer depends on besides the rule and the
// fields of the flow's tuple. The zero value says nothing and means "not
// repeatable": a walk that met such a rule is never remembered.
type Depends uint32

const (
	DependsNothing  Depends = 1 << iota // on the tuple, the hook and the interfaces alone
	DependsLength                       // packet length
	DependsTOS                          // TOS or traffic class
	DependsTTL                          // TTL or hop limit
	DependsMark                         // packet mark
	DependsCtState                      // conntrack state and direction
	DependsCtStatus                     // conntrack status bits
	DependsCtMark                       // connection mark, labels, secmark
	DependsL4Header                     // transport header fields beyond the ports (options, ICMP types): not repeatable
	DependsRoutes                       // routes and addresses
	DependsSets                         // members of sets: Env.SetGeneration counts their changes
	DependsOwner                        // the local socket
	DependsTCP                          // what the Pred names with Context.LookFlags or NotRepeatable

	notRepeatable Depends = 1 << 31
)

// looked is d as a walk collects it: what is not declared is not repeatable.
func (d Depends) looked() Depends {
	if d == 0 || d&DependsL4Header != 0 {
		return d | notRepeatable
	}
	return d
}

// Match is a match extension. One value per name and family set; see the
// package documentation for how one is written.
type Match struct {
	Name     string
	Aliases  []string // other names -m knows it by
	Families FamilyMask
	Doc      string // manual text, one or more sentences
	Options  []Option

	Tables TableMask  // where it may be used; 0: anywhere
	Hooks  hooks.Mask // hooks its chain may be reached from; 0: any
	// Protos: the rule needs one of these with -p (not inverted); nil: none needed.
	Protos []uint8

	// First is called when the rule's text has been read, before Required,
	// Excludes and Also are checked, as iptables calls an extension's own check
	// before its table of options is gone through. Final comes when that is done
	// for all of the rule's extensions: it brings a into the form that Save, List
	// and Compile want, and refuses what iptables takes and we do not.
	First func(a *Args) error
	Final func(a *Args) error
	// Save prints what iptables-save prints after "-m name", leading space
	// included. nil: the options in the order of Options.
	Save func(a *Args) string
	// List prints what -L prints, leading space included.
	List func(a *Args, numeric bool) string
	// Check is the kernel's check at commit; its error is EINVAL, or the
	// syscall.Errno that it wraps (see Refuse), with its text as detail.
	Check   func(a *Args, at *Place) error
	Compile func(a *Args, env *Env) (Pred, error)
	// Depends is what the answer depends on. A Pred whose answer does not hold
	// for the flow's next packets for another reason says so with
	// Context.NotRepeatable; one that looks at TCP flags, with Context.LookFlags.
	Depends Depends

	// Ports gives a simpler equal form: see PortRange. It is used instead of the
	// Pred when ok.
	Ports func(a *Args) (src, dst PortRange, ok bool)

	// Hint says by which plain fields the rule can be found; see Hint.
	Hint func(a *Args) Hint
}

// PortRange is an inclusive range; the zero value means any.
type PortRange struct {
	Min, Max uint16
	Set      bool
	Not      bool
}

// Target is a target extension.
type Target struct {
	Name     string
	ListName string // what -L shows in the target column, if not Name
	Families FamilyMask
	Doc      string
	Options  []Option

	Tables TableMask
	Hooks  hooks.Mask
	Protos []uint8

	First   func(a *Args) error
	Final   func(a *Args) error
	Save    func(a *Args) string
	List    func(a *Args, numeric bool) string
	Check   func(a *Args, at *Place) error
	Compile func(a *Args, env *Env) (TargetFunc, error)
	// Depends is as a Match's; besides, a target may declare something only if
	// all it changes is the packet's mark, priority, TOS, TTL and labels and the
	// connection's mark and labels, and these in the same way each time.
	Depends Depends
}

// Place is where a rule is, as Check sees it.
type Place struct {
	Family   uint8
	Table    TableID
	Hooks    hooks.Mask // hooks the chain is reachable from (0: none yet)
	Builtin  bool       // the chain is a builtin one
	Proto    uint8      // -p; 0: any
	ProtoNot bool
}

// Refuse is an error for Check and Compile: an errno (0: EINVAL) and a sentence
// for people.
func Refuse(no syscall.Errno, format string, a ...any) error {
	if no == 0 {
		no = syscall.EINVAL
	}
	return &refusal{no, fmt.Sprintf(format, a...)}
}

type refusal struct {
	no   syscall.Errno
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.no }

// Has reports whether the rule is limited to one of protos.
func (at *Place) Has(protos ...uint8) bool {
	for _, x := range protos {
		if at.Proto == x && !at.ProtoNot {
			return true
		}
	}
	return false
}

// Option is one option of an extension.
type Option struct {
	Name    string   // as messages have it, without "--"
	Aliases []string // other names it is known by
	SaveAs  string   // as iptables-save prints it; "": Name
	Type    Type     // Flag for none
	Doc     string   // help line
	Arg     string   // help placeholder

	Required  bool
	Negatable bool
	Multi     bool     // may be given several times: Value.More has the later ones
	Shares    []string // others that count as this one where it may be given once
	Excludes  []string // cannot be used together with these, in the order in which iptables looks
	Also      []string // requires these

	// Texts that differ from the usual ones, for the extensions that iptables
	// words by hand. %s is the name the option was typed as.
	OnceText, NotText, TwoText string
}

// Type reads and prints an option's argument.
type Type interface {
	// Args is how many arguments follow the option (0, 1 or 2).
	Args() int
	// Parse fills v from the text. Errors are *Error in iptables' words; o names
	// the extension and the option.
	Parse(o *OptionContext, text []string, v *Value) error
	// Format prints v as iptables-save does.
	Format(v *Value) string
}

// OptionalArg is a Type with no argument of its own that takes the next word, if
// there is one that is no option; text is then that word, else "".
type OptionalArg interface {
	Type
	Takes(word string) bool
}

// OptionContext is what a Type may know while it reads.
type OptionContext struct {
	Ext      string // extension's name
	Name     string // option's name
	Typed    string // … as typed, an alias or cut short
	Family   uint8
	Proto    uint8 // of -p so far; 0: none
	ProtoNot bool
	Args     *Args
	Env      *Env                                    // nil: not known
	Resolve  func(fam uint8, name string) [][16]byte // nil: names of hosts are not found
	Warn     func(line string)                       // what iptables writes to stderr and goes on; never nil
}

// Value is an option's argument. Which fields are in use is its Type's affair.
type Value struct {
	Set  bool
	Not  bool     // "!" was before the option
	Lo   uint64   // number, low end of a range, value of value/mask
	Hi   uint64   // high end, mask
	A, B [16]byte // address and mask, or the ends of an address range; IPv4 in the first 4 bytes
	Str  string
	List []Range // lists of ports or numbers
	More []Value // Multi: second and later occurrences
}

// Range is an inclusive range of numbers.
type Range struct{ Lo, Hi uint64 }

// Args is what the options of one use of an extension were given.
type Args struct {
	Ext      string
	Family   uint8
	Proto    uint8 // the rule's -p; 0: any
	ProtoNot bool
	Rule     *Rule // the rule it belongs to; nil while parsing
	options  []Option
	vals     []given // of the options that were given
	// State is an extension's own, made by Final for Save, List and Compile.
	State any
	// Warn is, for First, what takes a line that iptables writes to
	// stderr and then goes on.
	Warn func(line string)
}

// given is the value of an option, by its place among the extension's.
type given struct {
	option int
	Value
}

func newArgs(ext string, fam uint8, opts []Option) *Args {
	return &Args{Ext: ext, Family: fam, options: opts}
}

// val is the value of option i; not to be changed.
func (a *Args) val(i int) *Value {
	for j := range a.vals {
		if a.vals[j].option == i {
			return &a.vals[j].Value
		}
	}
	return &notGiven
}

var notGiven Value

// set gives option i a value.
func (a *Args) set(i int, v Value) {
	for j := range a.vals {
		if a.vals[j].option == i {
			a.vals[j].Value = v
			return
		}
	}
	a.vals = append(a.vals, given{i, v})
}

func (a *Args) index(name string) int {
	for i := range a.options {
		if a.options[i].Name == name {
			return i
		}
	}
	panic("tables: extension " + a.Ext + " has no option --" + name)
}

// Options are the extension's options, in its order.
func (a *Args) Options() []Option { return a.options }

// Get is the value of the option called name, not to be changed; it panics on a
// name the extension does not have.
func (a *Args) Get(name string) *Value { return a.val(a.index(name)) }

// Has reports whether the option was given.
func (a *Args) Has(name string) bool { return a.Get(name).Set }

// Not reports whether the option was given with "!".
func (a *Args) Not(name string) bool { return a.Get(name).Not }

// Num is the option's number (0 if not given).
func (a *Args) Num(name string) uint64 { return a.Get(name).Lo }

// Range is the option's range, or value and mask.
func (a *Args) Range(name string) (lo, hi uint64) { v := a.Get(name); return v.Lo, v.Hi }

// Str is the option's text.
func (a *Args) Str(name string) string { return a.Get(name).Str }

// Set gives an option a value, for Final.
func (a *Args) Set(name string, v Value) { v.Set = true; a.set(a.index(name), v) }

// Clear takes an option back, for Final.
func (a *Args) Clear(name string) { a.set(a.index(name), Value{}) }

// InOrder are the options that were given and their values, in the order in
// which they were typed; of those given again, where they were first.
func (a *Args) InOrder() iter.Seq2[string, *Value] {
	return func(yield func(string, *Value) bool) {
		for i := range a.vals {
			if g := &a.vals[i]; g.Set && !yield(a.options[g.option].Name, &g.Value) {
				return
			}
		}
	}
}

// Last is which of some options was given last; "": none of them.
func (a *Args) Last(names ...string) (last string) {
	for name := range a.InOrder() {
		if slices.Contains(names, name) {
			last = name
		}
	}
	return last
}

// Count is how many different options were given.
func (a *Args) Count() (n int) {
	for i := range a.vals {
		if a.vals[i].Set {
			n++
		}
	}
	return n
}

// SaveOptions prints the options as iptables-save does, in the order of
// Options: " --name value", " ! --name value".
func (a *Args) SaveOptions() string { return string(a.appendOptions(nil)) }

func (a *Args) appendOptions(b []byte) []byte {
	for i := range a.options {
		v := a.val(i)
		if !v.Set {
			continue
		}
		b = a.appendOption(b, &a.options[i], v)
		for j := range v.More {
			b = a.appendOption(b, &a.options[i], &v.More[j])
		}
	}
	return b
}

func (a *Args) appendOption(b []byte, o *Option, v *Value) []byte {
	if v.Not {
		b = append(b, " !"...)
	}
	b = append(b, " --"...)
	if o.SaveAs != "" {
		b = append(b, o.SaveAs...)
	} else {
		b = append(b, o.Name...)
	}
	if o.Type.Args() > 0 {
		b = append(b, ' ')
		b = append(b, o.Type.Format(v)...)
	}
	return b
}

// ListOptions is the common form of -L: " name value", " name !value".
func (a *Args) ListOptions() string {
	var b []byte
	for i := range a.options {
		v := a.val(i)
		if !v.Set {
			continue
		}
		b = append(b, ' ')
		b = append(b, a.options[i].Name...)
		if a.options[i].Type.Args() == 0 {
			continue
		}
		b = append(b, ' ')
		if v.Not {
			b = append(b, '!')
		}
		b = append(b, a.options[i].Type.Format(v)...)
	}
	return string(b)
}

// Registry is a set of extensions by name.
type Registry struct {
	matches map[string][]*Match
	targets map[string][]*Target
}

// NewRegistry makes a registry; a name may come twice for different families.
func NewRegistry(ms []*Match, ts []*Target) *Registry {
	r := &Registry{map[string][]*Match{}, map[string][]*Target{}}
	for _, m := range ms {
		for _, name := range append([]string{m.Name}, m.Aliases...) {
			r.matches[name] = append(r.matches[name], m)
		}
	}
	for _, t := range ts {
		r.targets[t.Name] = append(r.targets[t.Name], t)
	}
	return r
}

// Match finds a match of a family; nil: there is none.
func (r *Registry) Match(fam uint8, name string) *Match {
	for _, m := range r.matches[name] {
		if m.Families.Has(fam) {
			return m
		}
	}
	return nil
}

// Target finds a target of a family; nil: there is none.
func (r *Registry) Target(fam uint8, name string) *Target {
	for _, t := range r.targets[name] {
		if t.Families.Has(fam) {
			return t
		}
	}
	return nil
}

// Matches lists all matches of a family by name.
func (r *Registry) Matches(fam uint8) []*Match {
	var out []*Match
	for name := range r.matches {
		if m := r.Match(fam, name); m != nil && m.Name == name {
			out = append(out, m)
		}
	}
	sortBy(out, func(m *Match) string { return m.Name })
	return out
}

// Targets lists all targets of a family by name.
func (r *Registry) Targets(fam uint8) []*Target {
	var out []*Target
	for name := range r.targets {
		if t := r.Target(fam, name); t != nil {
			out = append(out, t)
		}
	}
	sortBy(out, func(t *Target) string { return t.Name })
	return out
}
