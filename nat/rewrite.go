package nat

import (
	"sluice/conntrack"
	"sluice/packet"
)

// Rewrite translates p at a hook as its connection's bindings say: an ICMP
// error with the packet it quotes, any other packet in its header. False means
// drop; p.Reason says why.
func (n *NAT) Rewrite(w *conntrack.Worker, p *packet.Packet, hook uint8) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	return n.rewrite(p, e, ManipOf(hook))
}

func (n *NAT) rewrite(p *packet.Packet, e *conntrack.Entry, m Manip) bool {
	dir := dirOf(p)
	if isICMPError(p) {
		return n.rewriteError(p, e, m, dir)
	}
	if e.Status()&statusBit(m, dir) == 0 {
		return true
	}
	// p is to look like the inverse of what the other direction looks like.
	want := e.Tuple(dir.Other())
	proto := want.Proto
	if m == Src {
		p.SetSrc(want.Dst)
	} else {
		p.SetDst(want.Src)
	}
	if !p.Is(packet.HasL4) {
		return true
	}
	switch {
	case hasPorts(proto):
		if m == Src {
			p.SetSrcPort(want.DstPort)
		} else {
			p.SetDstPort(want.SrcPort)
		}
	case isICMP(proto):
		setICMPID(p, want.SrcPort)
	case proto == packet.ProtoGRE:
		if !rewriteGRE(p.Transport(), want.SrcPort, m) {
			p.Reason = ReasonBadHeader
			return false
		}
	}
	return true
}

// setICMPID changes the identifier of a query or its answer; other messages have none.
func setICMPID(p *packet.Packet, id uint16) {
	b := p.Transport()
	if len(b) < icmpHeaderLen {
		return
	}
	if p.Proto == packet.ProtoICMP {
		if !isICMPQuery(b[0]) {
			return
		}
	} else if b[0] != icmpv6EchoReq && b[0] != icmpv6EchoReply {
		return
	}
	p.SetL4Word(4, id)
}
