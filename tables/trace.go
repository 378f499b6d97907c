package tables

import (
	"fmt"

	"sluice/hooks"
	"sluice/packet"
)

// Tracer is told of a traced walk, step by step, by the worker that walks. ch is
// nil only where a chain left the ruleset during the burst.
type Tracer interface {
	// Looked: rule n (from 1) of ch was compared with the packet.
	Looked(ch *Chain, n int, r *Rule, matched bool)
	// Ran: the target of the rule looked at last has run.
	Ran(res Result)
	// Returned: the walk left the user chain ch, by its end (n: one more than its
	// rules) or by its rule n.
	Returned(ch *Chain, n int)
	// Policy: the walk ended with the policy of the builtin chain ch.
	Policy(ch *Chain, v Verdict)
}

// Chains names the chains of a program's code: what Trace needs to say where it is.
type Chains struct {
	of *Program
	by map[*code]*Chain
}

// load makes n the names of pr's chains.
func (n *Chains) load(pr *Program) {
	if n.of == pr {
		return
	}
	n.of, n.by = pr, map[*code]*Chain{}
	for _, t := range pr.Ruleset.tables {
		for c := range t.all {
			n.by[c.code] = c
		}
	}
}

// Trace is Run, rule by rule in the order of the text, telling tr of each step.
// Verdict, counters and changes are Run's.
func (pr *Program) Trace(c *Context, t TableID, p *packet.Packet, names *Chains, tr Tracer) hooks.Verdict {
	b := &pr.bases[t][c.Hook]
	if b.code == nil {
		return hooks.Accept
	}
	names.load(pr)
	size := uint64(p.Len())
	cur := b.code
	end := func() hooks.Verdict {
		tr.Policy(names.by[b.code], b.policy)
		return b.end(c, t, p, size)
	}
	c.Table = t
	c.Hotdrop = false
	if len(cur.ops) > 0 {
		c.count(b.entered, size)
	}
	var k key
	k.fill(p)
	sel := uint8(0xff)
	if k.lost {
		sel = 0
	}
	next, sp := 0, 0
	back := func(at int) { // from cur to whoever called it
		tr.Returned(names.by[cur], at)
		sp--
		cur, next = c.stack[sp].code, c.stack[sp].next
	}
	for {
		if next >= len(cur.ops) {
			if sp == 0 {
				if cur != b.code { // come to by goto: back where the builtin chain ends
					tr.Returned(names.by[cur], next+1)
				}
				return end()
			}
			back(next + 1)
			continue
		}
		o := &cur.ops[next]
		next++
		ch := names.by[cur]
		matched := (k.src^o.src)&o.srcMask|(k.dst^o.dst)&o.dstMask|uint32(k.proto^o.proto)&uint32(o.protoMask&sel) == 0 &&
			(o.checks == 0 || o.match(&k, c, p))
		if ch != nil && next <= len(ch.rules) {
			tr.Looked(ch, next, ch.rules[next-1], matched)
		}
		if !matched {
			if c.Hotdrop {
				p.Reason = reasonHotdrop
				return hooks.Drop
			}
			continue
		}
		n := &c.Counters[o.counter]
		n.Packets++
		n.Bytes += size
		if c.Hotdrop {
			if o.kind == opTarget {
				tr.Ran(o.x.target(c, p))
			}
			p.Reason = reasonHotdrop
			return hooks.Drop
		}
		var res Result
		switch o.kind {
		case opJump:
			c.stack[sp] = frame{cur, next}
			sp++
			cur, next = pr.chains[o.jump], 0
			continue
		case opGoto:
			cur, next = pr.chains[o.jump], 0
			continue
		case opTarget:
			res = o.x.target(c, p)
			tr.Ran(res)
		case opContinue:
			continue
		case opAccept:
			return hooks.Accept
		case opDrop:
			p.Reason = ruleReasons[t][c.Hook]
			return hooks.Drop
		case opReturn:
			res = Return
		}
		switch res {
		case Continue:
			size = uint64(p.Len())
			if c.Hotdrop {
				p.Reason = reasonHotdrop
				return hooks.Drop
			}
		case Accept:
			return hooks.Accept
		case Return:
			if sp == 0 {
				return end()
			}
			back(next)
		case Stolen:
			return hooks.Stolen
		default:
			if p.Reason == 0 {
				p.Reason = ruleReasons[t][c.Hook]
			}
			return hooks.Drop
		}
	}
}

// Selector is the matching part of a rule, apart from any ruleset: which packets
// somebody wants to look at. Its state (limit, recent …) is its own. Early looks
// at what a packet brings with it; Late at what the router finds out about it:
// where it leaves, its connection, its mark.
type Selector struct {
	early, late op
	rule        *Rule
}

// What a packet brings with it.
const dependsOnArrival = DependsNothing | DependsTCP | DependsLength | DependsTOS | DependsTTL | DependsL4Header

// NewSelector compiles r, a rule without a target.
func NewSelector(r *Rule, env *Env) (*Selector, error) {
	if r.Target != nil || r.Jump != "" || r.Verdict != VerdictNone {
		return nil, fmt.Errorf("a filter has matches and no target")
	}
	var apart Env
	if env != nil {
		apart = *env
	}
	apart.DoWorkers = nil
	e := NewEngine(r.Family, &apart)
	early, late := r.copy(), r.copy()
	early.Matches, late.Matches = nil, nil
	out, not := r.Out, r.OutNot
	early.Out, early.OutNot = "", false
	late.Base = Base{Out: out, OutNot: not}
	for _, m := range r.Matches {
		if d := m.Ext.Depends; m.Ext.Compile == nil || d != 0 && d&^dependsOnArrival == 0 {
			early.Matches = append(early.Matches, m)
		} else {
			late.Matches = append(late.Matches, m)
		}
	}
	f := &Selector{rule: r}
	for rule, to := range map[*Rule]*op{early: &f.early, late: &f.late} {
		// A chain that nothing leads to may hold any rule that the table allows.
		var chain *Chain
		err := e.Commit(func(rs *Ruleset) error {
			t := rs.Table(Mangle)
			const name = "filter"
			if t.Chain(name) == nil {
				if err := t.NewChain(name); err != nil {
					return err
				}
			}
			return t.Append(name, rule)
		})
		if err != nil {
			return nil, err
		}
		chain = e.Ruleset().Table(Mangle).Chain("filter")
		*to = chain.code.ops[len(chain.code.ops)-1]
	}
	return f, nil
}

// Early reports whether p may match, by what it brought along.
func (f *Selector) Early(c *Context, p *packet.Packet) bool {
	return p.Family == f.rule.Family && f.early.matches(c, p)
}

// NeedsLate: Early does not decide alone.
func (f *Selector) NeedsLate() bool { return f.late.checks != 0 }

// NeedsOut: the outgoing interface is asked for.
func (f *Selector) NeedsOut() bool { return f.rule.Out != "" }

// Late is the rest of the decision.
func (f *Selector) Late(c *Context, p *packet.Packet) bool { return f.late.matches(c, p) }

func (o *op) matches(c *Context, p *packet.Packet) bool {
	var k key
	k.fill(p)
	hot := c.Hotdrop
	c.Hotdrop = false
	ok := (k.src^o.src)&o.srcMask|(k.dst^o.dst)&o.dstMask|uint32(k.proto^o.proto)&uint32(o.protoMask) == 0 &&
		(o.checks == 0 || o.match(&k, c, p)) && !c.Hotdrop
	c.Hotdrop = hot
	return ok
}

// DropOfRules reports whether x is the drop of a rule or a policy.
func DropOfRules(x packet.Reason) bool {
	for t := range NumTables {
		for h := range hooks.NumHooks {
			if x != 0 && (x == ruleReasons[t][h] || x == policyReasons[t][h]) {
				return true
			}
		}
	}
	return false
}
