// Package nat gives connections their bindings, as Linux's nf_nat does, and
// translates packets by them: addresses, ports, checksums, and the packets that
// ICMP errors quote. A binding is chosen once, from the connection's first
// packet; from then on the two tuples of the connection say everything.
package nat

import (
	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet"
)

// Drop reasons.
var (
	ReasonExhausted  = packet.NewReason("nat.exhausted", "No address and port in the rule's range was free for a new connection.")
	ReasonNoAddress  = packet.NewReason("nat.no_address", "MASQUERADE or REDIRECT found no address on the interface.")
	ReasonOifChanged = packet.NewReason("nat.oif_changed", "A masqueraded connection was routed out of another interface; it was dropped to be made anew.")
	ReasonBadError   = packet.NewReason("nat.bad_icmp_error", "An ICMP error about a translated connection had a bad checksum or too short a quote.")
	ReasonRedirect   = packet.NewReason("nat.redirect", "An ICMP redirect concerned a translated connection.")
	ReasonBadHeader  = packet.NewReason("nat.bad_header", "The transport header could not be translated.")
)

// NAT holds what binding needs beside the flow table. All methods may be called
// by all workers at once.
type NAT struct {
	table   *conntrack.Table
	sources *bySource
}

// New makes the NAT of a flow table.
func New(t *conntrack.Table, s *sysctl.Set) *NAT {
	n := &NAT{table: t, sources: newBySource(t)}
	t.OnDestroy(n.forget)
	t.SetNATHelper(helpers{n})
	return n
}

// statusBit is the status bit under which a packet of direction dir needs manip
// m: a reply has its source put back where the destination was changed.
func statusBit(m Manip, dir conntrack.Dir) conntrack.Status {
	if (m == Src) == (dir == conntrack.Original) {
		return conntrack.SrcNAT
	}
	return conntrack.DstNAT
}

func doneBit(m Manip) conntrack.Status {
	if m == Src {
		return conntrack.SrcNATDone
	}
	return conntrack.DstNATDone
}

func dirOf(p *packet.Packet) conntrack.Dir {
	if p.CtInfo.Reply() {
		return conntrack.Reply
	}
	return conntrack.Original
}

// Initialized reports whether the connection's binding for m is settled.
func (n *NAT) Initialized(e *conntrack.Entry, m Manip) bool { return e.Has(doneBit(m)) }

// Setup gives p's new connection a binding in r. False means that there is
// none, and p is to be dropped: p.Reason says why. A connection that is
// confirmed or bound already stays as it is.
func (n *NAT) Setup(w *conntrack.Worker, p *packet.Packet, r *Range, m Manip) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	if n.bind(w, e, p.Ct, r, m) {
		return true
	}
	p.Reason = ReasonExhausted
	return false
}

// SetupNull settles m for a connection that no rule of the nat table changes:
// its address stays, but a source port that would clash is moved.
func (n *NAT) SetupNull(w *conntrack.Worker, p *packet.Packet, m Manip) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	if m == Dst && !isICMP(e.Tuple(conntrack.Original).Proto) && e.Tuple(conntrack.Original).Proto != packet.ProtoGRE {
		// It stays as it is, whoever has it: nothing to search for.
		if e.Status()&conntrack.Confirmed == 0 {
			e.SetStatus(conntrack.DstNATDone)
		}
		return true
	}
	r := Range{Flags: MapIPs}
	if m == Src {
		r.Min = e.Tuple(conntrack.Reply).Dst
	} else {
		r.Min = e.Tuple(conntrack.Reply).Src
	}
	r.Max = r.Min
	if n.bind(w, e, p.Ct, &r, m) {
		return true
	}
	p.Reason = ReasonExhausted
	return false
}

// Masquerade binds the source to src, the address that the router has on p.Out
// towards the next hop; r brings ports and flags. The zero address means that the
// interface has none. When the interface or the address goes, the connection goes (see InterfaceGone).
func (n *NAT) Masquerade(w *conntrack.Worker, p *packet.Packet, r *Range, src [16]byte) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	// A packet without a source (DHCP) is not meant to be masqueraded.
	if p.Family == packet.IPv4 && e.Tuple(conntrack.Original).Src == ([16]byte{}) {
		return true
	}
	if src == ([16]byte{}) {
		p.Reason = ReasonNoAddress
		return false
	}
	if p.Out != nil {
		e.SetMasqIface(p.Out.Index)
	}
	use := *r
	use.Min, use.Max = src, src
	use.Flags |= MapIPs
	return n.Setup(w, p, &use, Src)
}

// Redirect binds the destination to dst, an address of the router that the
// caller chose (OUTPUT: loopback; PREROUTING: the first of the interface p came
// in by); r brings ports and flags. The zero address means that there is none.
func (n *NAT) Redirect(w *conntrack.Worker, p *packet.Packet, r *Range, dst [16]byte) bool {
	if dst == ([16]byte{}) {
		p.Reason = ReasonNoAddress
		return false
	}
	use := *r
	use.Min, use.Max = dst, dst
	use.Flags |= MapIPs
	return n.Setup(w, p, &use, Dst)
}

// bind chooses and records a binding. False: a source for which every tuple is taken.
func (n *NAT) bind(w *conntrack.Worker, e *conntrack.Entry, idx uint32, r *Range, m Manip) bool {
	if e.Status()&(conntrack.Confirmed|doneBit(m)) != 0 {
		return true
	}
	cur := forward(e.Tuple(conntrack.Reply))
	if r.Flags&Netmap != 0 {
		at := cur.Src
		if m == Dst {
			at = cur.Dst
		}
		mapped := r.netmapped(at)
		r = &mapped
	}
	t, free := n.choose(w, e, &cur, r, m)
	// A destination that clashes may still become unique: the source is bound
	// later. Nothing comes after the source.
	if !free && m == Src {
		return false
	}
	n.assign(w, e, idx, &cur, &t, m)
	return true
}

// settle is bind for a connection that cannot be refused here.
func (n *NAT) settle(w *conntrack.Worker, e *conntrack.Entry, idx uint32, r *Range, m Manip) {
	cur := forward(e.Tuple(conntrack.Reply))
	t, _ := n.choose(w, e, &cur, r, m)
	n.assign(w, e, idx, &cur, &t, m)
}

// assign makes t the binding of e, of index idx, whose packets look like cur so far.
func (n *NAT) assign(w *conntrack.Worker, e *conntrack.Entry, idx uint32, cur, t *conntrack.Tuple, m Manip) {
	set := doneBit(m)
	if *t != *cur {
		reply := backward(t, e.Tuple(conntrack.Reply))
		if e.Linked() {
			n.sources.change(e, func() { w.AlterReply(e, reply) })
		} else {
			w.AlterReply(e, reply)
		}
		if m == Src && !e.Linked() {
			n.sources.add(e, idx)
			e.SetLinked()
		}
		set |= statusBit(m, conntrack.Original)
	}
	e.SetStatus(set)
}

// SourceHead is the head of the chain that a new connection of u's source will be
// looked for in: what is to be near by then.
func (n *NAT) SourceHead(u *conntrack.Tuple) *SourceHead {
	h := n.sources.hash(u)
	return n.sources.shard(h).head(h)
}

// forget is called once for a connection with bindings when it goes.
func (n *NAT) forget(_ *conntrack.Worker, e *conntrack.Entry, _ uint32) {
	if e.Linked() {
		n.sources.remove(e)
	}
}
