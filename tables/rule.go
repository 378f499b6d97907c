package tables

import (
	"net/netip"
)

// Verdict is a standard target.
type Verdict uint8

const (
	VerdictNone   Verdict = iota // no target: count and go on
	VerdictAccept                // ACCEPT
	VerdictDrop                  // DROP
	VerdictReturn                // RETURN
)

var verdictNames = [...]string{"", "ACCEPT", "DROP", "RETURN"}

func (v Verdict) String() string { return verdictNames[v] }

// VerdictByName knows ACCEPT, DROP and RETURN.
func VerdictByName(name string) (Verdict, bool) {
	for v := VerdictAccept; v <= VerdictReturn; v++ {
		if verdictNames[v] == name {
			return v, true
		}
	}
	return VerdictNone, false
}

// Addr is -s or -d: an address and a mask that need not be contiguous, in
// network order, IPv4 in the first four bytes. A zero mask matches anything.
type Addr struct {
	Addr, Mask [16]byte // Addr has no bits outside Mask
	Not        bool
}

// Base is the part of a rule that every rule has.
type Base struct {
	Src, Dst      Addr
	In, Out       string // interface name or pattern ending in '+'; "": any
	InNot, OutNot bool
	Proto         uint8 // 0: any
	ProtoNot      bool
	Fragment      bool // -f: second and further fragments (IPv4)
	FragmentNot   bool
}

// Use is one use of an extension in a rule.
type Use[E any] struct {
	Ext  *E
	Args *Args
}

// Rule is one rule. Once it is in a ruleset it never changes.
type Rule struct {
	Base
	Family  uint8
	Matches []Use[Match]
	// One of: Verdict (standard target), Jump (user chain; with Goto, -g),
	// Target (extension); or none of them.
	Verdict Verdict
	Jump    string
	Goto    bool
	Target  *Use[Target]

	Initial Counter // counters it starts with
	Source  Source

	placed bool
	state  *ruleState // shared by all copies that are "the same rule"
	text   string     // cached save text
}

// ruleState is what outlives edits: the counter and the compiled extensions
// (limit, recent … keep their state in those closures).
type ruleState struct {
	id          uint32 // counter id; 0: not yet committed
	preds       []Pred
	looks       []Depends
	target      TargetFunc
	targetLooks Depends
	checks      uint32 // inline checks that matches became
	ports       ports
	leave       []func() // what Rule.OnRemove was given
	compiled    bool
}

// end is called once the rule is in no ruleset any more.
func (st *ruleState) end() {
	for _, f := range st.leave {
		f()
	}
	st.leave = nil
}

// OnRemove is for an extension's Compile: f is called when the rule that is
// being compiled has left the ruleset, or never got into it. Workers may still
// run what was compiled for the rest of their batch.
func (r *Rule) OnRemove(f func()) { r.state.leave = append(r.state.leave, f) }

// copy makes an equal rule with counters and state of its own.
func (r *Rule) copy() *Rule {
	n := *r
	n.placed, n.state = false, nil
	return &n
}

// Equal reports whether two rules say the same, as -D and -C compare.
func (r *Rule) Equal(o *Rule) bool { return r.Family == o.Family && r.Save() == o.Save() }

// Prefix gives an Addr for a netip.Prefix.
func Prefix(p netip.Prefix) Addr {
	var a Addr
	copy(a.Addr[:], p.Masked().Addr().AsSlice())
	for i := range p.Bits() {
		a.Mask[i/8] |= 0x80 >> (i % 8)
	}
	return a
}

// TargetName is what -L shows in the target column.
func (r *Rule) TargetName() string {
	switch {
	case r.Target != nil:
		if r.Target.Ext.ListName != "" {
			return r.Target.Ext.ListName
		}
		return r.Target.Ext.Name
	case r.Jump != "":
		return r.Jump
	}
	return r.Verdict.String()
}
