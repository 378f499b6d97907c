package tables

import (
	"encoding/binary"
	"fmt"

	"sluice/hooks"
	"sluice/packet"
)

var (
	ruleReasons, policyReasons [NumTables][hooks.NumHooks]packet.Reason
	reasonHotdrop              = packet.NewReason("tables.hotdrop", "a match found the packet malformed")
	_                          = registerReasons()
)

func registerReasons() (none struct{}) {
	for t := range NumTables {
		for h := range hooks.NumHooks {
			if TableHooks[t].Has(h) {
				at := t.String() + "." + h.String()
				ruleReasons[t][h] = packet.NewReason(at+".rule", "dropped by a rule of table "+t.String()+" reached from "+h.String())
				policyReasons[t][h] = packet.NewReason(at+".policy", "dropped by the policy of "+h.String()+" in table "+t.String())
			}
		}
	}
	return
}

// key is what the walk compares rules with. No target changes these fields
// without ending the walk.
type key struct {
	src, dst     uint32    // IPv4
	src6, dst6   [2]uint64 // IPv6, and IPv4 in the first word
	in, out      [2]uint64
	sport, dport uint16
	proto        uint8
	later        bool // a later fragment
	ports        bool // sport and dport are there
	lost         bool // IPv6: the transport protocol cannot be found
}

func (k *key) fill(p *packet.Packet) {
	b := p.Bytes()
	if p.Family == packet.IPv4 {
		k.src = binary.NativeEndian.Uint32(b[12:16])
		k.dst = binary.NativeEndian.Uint32(b[16:20])
		k.src6[0], k.dst6[0] = uint64(k.src), uint64(k.dst)
	} else {
		k.src6 = [2]uint64{binary.NativeEndian.Uint64(b[8:16]), binary.NativeEndian.Uint64(b[16:24])}
		k.dst6 = [2]uint64{binary.NativeEndian.Uint64(b[24:32]), binary.NativeEndian.Uint64(b[32:40])}
	}
	if p.In != nil {
		k.in = p.In.Words
	}
	if p.Out != nil {
		k.out = p.Out.Words
	}
	k.proto = p.Proto
	k.later = p.Flags&packet.LaterFragment != 0
	k.lost = p.Flags&packet.BadHeaders != 0 && packet.Extension(p.Proto) // else the last header named one
	if l4 := int(p.L4); p.Flags&packet.HasPorts != 0 && len(b) >= l4+4 {
		k.ports = true
		k.sport = binary.BigEndian.Uint16(b[l4:])
		k.dport = binary.BigEndian.Uint16(b[l4+2:])
	}
}

// match makes the checks of a rule that are more than a masked compare, in
// Linux's order.
func (o *op) match(k *key, c *Context, p *packet.Packet) bool {
	ck := o.checks
	if ck&ckSrc != 0 && eq(&k.src6, &o.x.src, &o.x.srcMask) == (ck&ckSrcNot != 0) {
		return false
	}
	if ck&ckDst != 0 && eq(&k.dst6, &o.x.dst, &o.x.dstMask) == (ck&ckDstNot != 0) {
		return false
	}
	if ck&ckIn != 0 && eq(&k.in, &o.x.in, &o.x.inMask) == (ck&ckInNot != 0) {
		return false
	}
	if ck&ckOut != 0 && eq(&k.out, &o.x.out, &o.x.outMask) == (ck&ckOutNot != 0) {
		return false
	}
	if ck&ckProto != 0 {
		if k.lost {
			c.Hotdrop = true // asked for its protocol, Linux gives the packet up
			return false
		}
		if (k.proto == o.proto) == (ck&ckProtoNot != 0) {
			return false
		}
	}
	if ck&(ckFrag|ckFragNot) != 0 && k.later != (ck&ckFrag != 0) {
		return false
	}
	if ck&ckPorts != 0 {
		if !k.ports {
			return c.NoPorts(p)
		}
		if (k.sport >= o.ports.smin && k.sport <= o.ports.smax) == (ck&ckSportNot != 0) ||
			(k.dport >= o.ports.dmin && k.dport <= o.ports.dmax) == (ck&ckDportNot != 0) {
			return false
		}
	}
	if ck&ckPreds != 0 {
		for i, f := range o.x.preds {
			c.Looked.Depends |= o.x.looks[i]
			if !f(c, p) {
				return false
			}
		}
	}
	return true
}

func eq(a, b, mask *[2]uint64) bool { return (a[0]^b[0])&mask[0]|(a[1]^b[1])&mask[1] == 0 }

// Run takes p through table t at c.Hook. Accept: the table lets it pass. Drop:
// p.Reason is set. c must have been Prepared for pr.
func (pr *Program) Run(c *Context, t TableID, p *packet.Packet) hooks.Verdict {
	return pr.run(c, t, p, true)
}

// RunLinear is Run rule by rule: what Run is held against.
func (pr *Program) RunLinear(c *Context, t TableID, p *packet.Packet) hooks.Verdict {
	return pr.run(c, t, p, false)
}

// scan is what the walk of one chain has left: the candidates that its
// classifier gave, then all rules from tail on.
func (c *Context) scan(cur *code, k *key, p *packet.Packet, classify bool) (tail int) {
	if x := cur.class; x != nil && classify && x.gather(&c.found, k, p) {
		return x.upto
	}
	c.found.n = 0
	return 0
}

func (pr *Program) run(c *Context, t TableID, p *packet.Packet, classify bool) hooks.Verdict {
	b := &pr.bases[t][c.Hook]
	if b.code == nil {
		return hooks.Accept
	}
	size := uint64(p.Len())
	cur := b.code
	if len(cur.ops) == 0 {
		return b.end(c, t, p, size)
	}
	c.Table = t
	c.Hotdrop = false
	c.count(b.entered, size)
	var k key
	k.fill(p)
	sel := uint8(0xff)
	if k.lost {
		sel = 0 // a rule that asks for the protocol must get as far as to drop the packet
	}
	next, sp := 0, 0
	classify = classify && k.classifiable()
	c.found.known = false
	tail := c.scan(cur, &k, p, classify)
	for {
		if next < tail {
			if next = c.found.next(next); next < 0 {
				next = tail
			}
		}
		if next >= len(cur.ops) {
			if p.Traced && next == len(cur.ops) && !cur.builtin {
				c.traceLine(t, cur, "return", next+1, p)
			}
			if sp == 0 {
				return b.end(c, t, p, size)
			}
			sp--
			cur, next = c.stack[sp].code, c.stack[sp].next
			tail = c.scan(cur, &k, p, classify)
			continue
		}
		o := &cur.ops[next]
		next++
		if (k.src^o.src)&o.srcMask|(k.dst^o.dst)&o.dstMask|uint32(k.proto^o.proto)&uint32(o.protoMask&sel) != 0 {
			continue
		}
		if o.checks != 0 && !o.match(&k, c, p) {
			if c.Hotdrop {
				p.Reason = reasonHotdrop
				return hooks.Drop
			}
			continue
		}
		c.count(o.counter, size)
		if p.Traced {
			c.traceLine(t, cur, o.traceName(cur), next, p)
		}
		if c.Hotdrop { // an inverted match that found the packet malformed
			if o.kind == opTarget {
				o.x.target(c, p)
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
			tail = c.scan(cur, &k, p, classify)
			continue
		case opGoto:
			cur, next = pr.chains[o.jump], 0
			tail = c.scan(cur, &k, p, classify)
			continue
		case opTarget:
			c.Looked.Depends |= o.x.targetLooks
			res = o.x.target(c, p)
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
			size = uint64(p.Len()) // TCPMSS may have added to it
			if c.Hotdrop {
				p.Reason = reasonHotdrop
				return hooks.Drop
			}
		case Accept:
			return hooks.Accept
		case Return:
			next, tail = len(cur.ops)+1, 0
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

// count counts a packet of size bytes.
func (c *Context) count(id uint32, size uint64) {
	n := &c.Counters[id]
	n.Packets++
	n.Bytes += size
	if c.Trail != nil {
		c.Trail.Add(id)
	}
}

// end applies the policy.
func (b *base) end(c *Context, t TableID, p *packet.Packet, size uint64) hooks.Verdict {
	c.count(b.counter, size)
	if p.Traced {
		c.traceLine(t, b.code, "policy", len(b.code.ops)+1, p)
	}
	if b.policy == VerdictAccept {
		return hooks.Accept
	}
	p.Reason = policyReasons[t][c.Hook]
	return hooks.Drop
}

// Passes reports whether table t lets every packet of hook h through without
// looking at it: no rule, policy ACCEPT. counter is the policy's.
func (pr *Program) Passes(t TableID, h hooks.Hook) (counter uint32, ok bool) {
	b := &pr.bases[t][h]
	return b.counter, b.code != nil && len(b.code.ops) == 0 && b.policy == VerdictAccept
}

// traceLine logs a step of a packet that TRACE chose, as Linux does.
func (c *Context) traceLine(t TableID, k *code, what string, n int, p *packet.Packet) {
	c.NotRepeatable()
	if c.Log != nil {
		c.Log(fmt.Sprintf("TRACE: %s:%s:%s:%d ", t, k.name, what, n), 4, LogTCPSeq|LogTCPOptions|LogIPOptions|LogUID, p)
	}
}

// traceName is what Linux calls a rule in a trace. It takes one that ends the
// chain for every packet for the chain's end.
func (o *op) traceName(k *code) string {
	if o.kind != opAccept && o.kind != opDrop && o.kind != opReturn || o.checks != 0 || o.srcMask|o.dstMask|uint32(o.protoMask) != 0 {
		return "rule"
	}
	if k.builtin {
		return "policy"
	}
	return "return"
}
