package tables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"syscall"

	"sluice/hooks"
	"sluice/packet"
)

// Checks of an op, in the order the walk makes them.
const (
	ckSrc uint32 = 1 << iota
	ckSrcNot
	ckDst
	ckDstNot
	ckIn
	ckInNot
	ckOut
	ckOutNot
	ckProto
	ckProtoNot
	ckFrag
	ckFragNot
	ckPorts
	ckSportNot
	ckDportNot
	ckPreds
)

// Kinds of op: what happens when the rule matches.
const (
	opContinue uint8 = iota
	opAccept
	opDrop
	opReturn
	opJump
	opGoto
	opTarget
)

// op is a compiled rule. What most rules need is inline; the rest is behind x.
// Addresses (IPv4) and protocol that are not inverted are plain masked compares,
// with the mask 0 where there is nothing to compare; checks has the others.
type op struct {
	checks       uint32
	counter      uint32
	jump         uint32 // slot of the chain
	proto        uint8
	protoMask    uint8
	kind         uint8
	src, srcMask uint32 // IPv4
	dst, dstMask uint32
	ports        ports
	x            *opx
}

type ports struct {
	smin, smax, dmin, dmax uint16
}

// opx is the part of a rule that many rules do not have.
type opx struct {
	src, srcMask, dst, dstMask [2]uint64 // IPv6
	in, inMask, out, outMask   [2]uint64
	preds                      []Pred
	looks                      []Depends // of preds, one by one
	target                     TargetFunc
	targetLooks                Depends
}

// code is a chain's compiled form, with what linking has to know of its rules.
type code struct {
	name    string // the chain's
	builtin bool
	ops     []op
	class   *classifier // nil: it is walked rule by rule
	edges   []edge
	upto    int // rules that checkChain has passed …
	hooks   int // … for this set of hooks; -1: none
}

// edge is a jump or goto to another chain; rule is the first one that makes it.
type edge struct {
	to   string
	jump bool
	rule int
}

func (x edge) equal(y edge) bool { return x.to == y.to && x.jump == y.jump }

// edgeSet knows the edges of a code that rules are added to.
type edgeSet map[edge]bool // rule is 0; nil: they are looked through

// edgeSet gives one for n rules.
func (k *code) edgeSet(n int) edgeSet {
	if n < 16 {
		return nil
	}
	s := make(edgeSet, len(k.edges))
	for _, x := range k.edges {
		s[edge{x.to, x.jump, 0}] = true
	}
	return s
}

func (s edgeSet) add(k *code, x edge) {
	key := edge{x.to, x.jump, 0}
	if s == nil && slices.ContainsFunc(k.edges, x.equal) || s[key] {
		return
	}
	if s != nil {
		s[key] = true
	}
	k.edges = append(k.edges, x)
}

// fork gives a code that can be extended apart from k. The array of ops is
// shared: programs made of k do not look past their own length of it.
func (k *code) fork() *code {
	if k == nil {
		return nil
	}
	c := *k
	c.edges = slices.Clip(c.edges)
	return &c
}

// Program is a compiled Ruleset. It never changes once published.
type Program struct {
	Ruleset  *Ruleset
	Family   uint8
	bases    [NumTables][hooks.NumHooks]base
	chains   []*code // by slot
	counters int     // ids in use are below this
	depth    int     // deepest nesting of jumps
}

type base struct {
	code    *code // nil: the table has no chain here
	policy  Verdict
	counter uint32 // the policy's
	entered uint32
}

// frame is where a jump returns to.
type frame struct {
	code *code
	next int
}

// compileRule makes the rule's compiled extensions, once for its lifetime.
func (e *Engine) compileRule(r *Rule) (err error) {
	if r.state == nil {
		r.state = &ruleState{}
	}
	st := r.state
	defer func() {
		if err != nil {
			st.end()
			r.state = nil
		}
	}()
	inlined := true // only what nothing stateful precedes may be moved to the front
	for _, m := range r.Matches {
		m.Args.Rule = r
		if inlined && m.Ext.Ports != nil {
			if s, d, ok := m.Ext.Ports(m.Args); ok && st.checks&ckPorts == 0 {
				st.checks |= ckPorts
				st.ports = ports{0, 65535, 0, 65535}
				if s.Set {
					st.ports.smin, st.ports.smax = s.Min, s.Max
					if s.Not {
						st.checks |= ckSportNot
					}
				}
				if d.Set {
					st.ports.dmin, st.ports.dmax = d.Min, d.Max
					if d.Not {
						st.checks |= ckDportNot
					}
				}
				continue
			}
		}
		if m.Ext.Compile == nil {
			continue // matches always, as comment does
		}
		inlined = false
		f, err := m.Ext.Compile(m.Args, e.env)
		if err != nil {
			return err
		}
		st.preds = append(st.preds, f)
		st.looks = append(st.looks, m.Ext.Depends.looked())
	}
	if r.Target != nil {
		r.Target.Args.Rule = r
		f, err := r.Target.Ext.Compile(r.Target.Args, e.env)
		if err != nil {
			return err
		}
		st.target, st.targetLooks = f, r.Target.Ext.Depends.looked()
	}
	st.compiled = true
	return nil
}

// emit makes the op of a rule whose extensions are compiled.
func (t *Table) emit(r *Rule) op {
	st := r.state
	o := op{counter: st.id, checks: st.checks, ports: st.ports}
	x := opx{preds: st.preds, looks: st.looks, target: st.target, targetLooks: st.targetLooks}
	need := len(st.preds) > 0 || st.target != nil
	if len(st.preds) > 0 {
		o.checks |= ckPreds
	}
	flag := func(set bool, bit uint32) {
		if set {
			o.checks |= bit
		}
	}
	if r.Family == packet.IPv4 {
		o.src, o.srcMask = word(r.Src.Addr), word(r.Src.Mask)
		o.dst, o.dstMask = word(r.Dst.Addr), word(r.Dst.Mask)
	} else {
		x.src, x.srcMask = words(r.Src.Addr), words(r.Src.Mask)
		x.dst, x.dstMask = words(r.Dst.Addr), words(r.Dst.Mask)
	}
	// An inverted address with an empty mask never matches: keep that check.
	src, dst := r.Src.Mask != [16]byte{} || r.Src.Not, r.Dst.Mask != [16]byte{} || r.Dst.Not
	flag(src, ckSrc)
	flag(r.Src.Not, ckSrcNot)
	flag(dst, ckDst)
	flag(r.Dst.Not, ckDstNot)
	if r.Family == packet.IPv6 && (src || dst) {
		need = true
	}
	if r.Family == packet.IPv4 {
		if r.Src.Not {
			o.srcMask = 0
			x.src[0], x.srcMask[0] = uint64(word(r.Src.Addr)), uint64(word(r.Src.Mask))
			need = true
		} else {
			o.checks &^= ckSrc
		}
		if r.Dst.Not {
			o.dstMask = 0
			x.dst[0], x.dstMask[0] = uint64(word(r.Dst.Addr)), uint64(word(r.Dst.Mask))
			need = true
		} else {
			o.checks &^= ckDst
		}
	}
	if r.In != "" {
		x.in, x.inMask = packet.NameWords(r.In)
		flag(true, ckIn)
		flag(r.InNot, ckInNot)
		need = true
	}
	if r.Out != "" {
		x.out, x.outMask = packet.NameWords(r.Out)
		flag(true, ckOut)
		flag(r.OutNot, ckOutNot)
		need = true
	}
	o.proto = r.Proto
	if r.Proto != 0 && !r.ProtoNot {
		o.protoMask = 0xff
	}
	// IPv6 checks again, in order, for packets whose protocol cannot be found.
	flag(r.Proto != 0 && (r.ProtoNot || r.Family == packet.IPv6), ckProto)
	flag(r.ProtoNot, ckProtoNot)
	flag(r.Fragment, ckFrag)
	flag(r.FragmentNot, ckFragNot)
	switch {
	case r.Target != nil:
		o.kind = opTarget
	case r.Jump != "":
		o.kind = opJump
		if r.Goto {
			o.kind = opGoto
		}
		o.jump = t.get(r.Jump).slot
	default:
		o.kind = [...]uint8{opContinue, opAccept, opDrop, opReturn}[r.Verdict]
	}
	if need {
		o.x = new(opx)
		*o.x = x
	}
	return o
}

func word(a [16]byte) uint32 { return binary.NativeEndian.Uint32(a[:4]) }

func words(a [16]byte) [2]uint64 {
	return [2]uint64{binary.NativeEndian.Uint64(a[:8]), binary.NativeEndian.Uint64(a[8:])}
}

// compileChain brings c.code up to date with c.rules.
func (e *Engine) compileChain(t *Table, c *Chain) error {
	if c.code == nil {
		c.code = &code{hooks: -1}
	}
	k := c.code
	k.name, k.builtin = c.Name, c.Builtin
	k.ops = slices.Grow(k.ops, len(c.rules)-len(k.ops))
	edges := k.edgeSet(len(c.rules) - len(k.ops))
	for i := len(k.ops); i < len(c.rules); i++ {
		Yield(i)
		r := c.rules[i]
		fail := func(no syscall.Errno, target, detail string) error {
			return &EditError{Op: OpCommit, Errno: no, Table: t.ID, Chain: c.Name, Target: target, Rule: i + 1, Source: r.Source, Detail: detail}
		}
		if r.Jump != "" {
			to := t.get(r.Jump)
			if to == nil {
				return fail(syscall.ENOENT, r.Jump, fmt.Sprintf("chain %s: there is no chain %q in table %s", c.Name, r.Jump, t.ID))
			}
			if to.Builtin {
				return fail(syscall.EINVAL, r.Jump, fmt.Sprintf("chain %s: a rule cannot jump to the builtin chain %s", c.Name, r.Jump))
			}
			edges.add(k, edge{r.Jump, !r.Goto, i})
		}
		if r.state == nil || !r.state.compiled {
			if name, detail := r.outOfPlace(t.ID); detail != "" { // before what else an extension says
				return fail(syscall.EINVAL, name, detail)
			}
			if err := e.compileRule(r); err != nil {
				no := syscall.EINVAL
				errors.As(err, &no)
				return fail(no, r.TargetName(), err.Error())
			}
			r.state.id = e.counters.alloc()
			e.fresh = append(e.fresh, r)
		}
		k.ops = append(k.ops, t.emit(r))
	}
	k.index(c.rules)
	return nil
}

// outOfPlace is the rule's first extension that is not for the table, and why.
func (r *Rule) outOfPlace(id TableID) (name, detail string) {
	const refusal = "%s %s cannot be used in table %s"
	for _, m := range r.Matches {
		if !m.Ext.Tables.Has(id) {
			return m.Ext.Name, fmt.Sprintf(refusal, "match", m.Ext.Name, id)
		}
	}
	if u := r.Target; u != nil && !u.Ext.Tables.Has(id) {
		return u.Ext.Name, fmt.Sprintf(refusal, "target", u.Ext.Name, id)
	}
	return "", ""
}

// checkChain makes the kernel's checks of a chain's rules that depend on the hooks
// that it is reachable from, and the extensions' own.
func checkChain(t *Table, c *Chain, reach hooks.Mask) error {
	k := c.code
	if k.hooks != int(reach) {
		k.upto, k.hooks = 0, int(reach)
	}
	for i := k.upto; i < len(c.rules); i++ {
		r := c.rules[i]
		at := Place{Family: r.Family, Table: t.ID, Hooks: reach, Builtin: c.Builtin, Proto: r.Proto, ProtoNot: r.ProtoNot}
		refuse := func(name string, err error) error {
			no := syscall.EINVAL
			errors.As(err, &no)
			return &EditError{Op: OpCommit, Errno: no, Table: t.ID, Chain: c.Name, Target: name, Rule: i + 1, Source: r.Source, Detail: err.Error()}
		}
		fail := func(name, detail string) error { return refuse(name, errors.New(detail)) }
		for _, m := range r.Matches {
			if s := at.allowed("match", m.Ext.Name, m.Ext.Hooks, m.Ext.Protos); s != "" {
				return fail(m.Ext.Name, s)
			}
			if m.Ext.Check != nil {
				if err := m.Ext.Check(m.Args, &at); err != nil {
					return refuse(m.Ext.Name, err)
				}
			}
		}
		if u := r.Target; u != nil {
			if s := at.allowed("target", u.Ext.Name, u.Ext.Hooks, u.Ext.Protos); s != "" {
				return fail(u.Ext.Name, s)
			}
			if u.Ext.Check != nil {
				if err := u.Ext.Check(u.Args, &at); err != nil {
					return refuse(u.Ext.Name, err)
				}
			}
		}
		k.upto = i + 1
	}
	return nil
}

func (at *Place) allowed(what, name string, hs hooks.Mask, protos []uint8) string {
	switch {
	case hs != 0 && at.Hooks&^hs != 0:
		return fmt.Sprintf("%s %s cannot be used in a chain that is reached from %s", what, name, hooks.Hook(bits.TrailingZeros8(uint8(at.Hooks&^hs))))
	case len(protos) > 0 && !at.Has(protos...):
		return fmt.Sprintf("%s %s needs its protocol given with -p", what, name)
	}
	return ""
}

// link checks a table's chain graph and its rules, and gives the depth of jumps.
func link(t *Table) (depth int, err error) {
	const (
		unseen = iota
		open
		done
	)
	type node struct {
		state, depth int
		reach        hooks.Mask
	}
	nodes := make(map[string]*node, t.n)
	order := make([]*Chain, 0, t.n) // callees first
	var visit func(c *Chain) (*node, error)
	visit = func(c *Chain) (*node, error) {
		n := nodes[c.Name]
		if n == nil {
			n = &node{}
			nodes[c.Name] = n
		}
		if n.state == done {
			return n, nil
		}
		n.state = open
		for _, x := range c.code.edges {
			to := t.get(x.to)
			if m := nodes[to.Name]; m != nil && m.state == open {
				return nil, &EditError{Op: OpCommit, Errno: syscall.ELOOP, Table: t.ID, Chain: c.Name, Target: to.Name, Rule: x.rule + 1,
					Source: c.rules[x.rule].Source, Detail: fmt.Sprintf("rules of chains %s and %s lead back to each other", c.Name, to.Name)}
			}
			m, err := visit(to)
			if err != nil {
				return nil, err
			}
			d := m.depth
			if x.jump {
				d++
			}
			n.depth = max(n.depth, d)
		}
		n.state = done
		order = append(order, c)
		return n, nil
	}
	// As in Linux, only chains that a builtin one leads to are looked at: a loop
	// among others does no harm.
	for c := range t.all {
		if !c.Builtin {
			continue
		}
		n, err := visit(c)
		if err != nil {
			return 0, err
		}
		n.reach |= hooks.At(c.Hook)
		depth = max(depth, n.depth)
	}
	for _, c := range slices.Backward(order) {
		for _, x := range c.code.edges {
			nodes[x.to].reach |= nodes[c.Name].reach
		}
	}
	var first *Chain // of those refused, in the order of Chains
	for c := range t.all {
		reach := hooks.Mask(0)
		if n := nodes[c.Name]; n != nil {
			reach = n.reach
		}
		if e := checkChain(t, c, reach); e != nil && (first == nil || c.order(first) < 0) {
			first, err = c, e
		}
	}
	return depth, err
}
