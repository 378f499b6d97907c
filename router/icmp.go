package router

import (
	"encoding/binary"

	"sluice/netstack"
	"sluice/packet"
)

// icmpError answers p with an ICMP or ICMPv6 error (icmp_send, icmp6_send): not
// about broadcasts, later fragments or other errors, and within Linux's rate limits.
func (w *worker) icmpError(p *packet.Packet, typ, code uint8, rest uint32) {
	if p.Flags&(packet.Local|packet.HasOwner) == packet.Local && (p.Proto == packet.ProtoICMP || p.Proto == packet.ProtoICMPv6) {
		// Linux makes its own ICMP messages one at a time: none about one that
		// is just being sent (icmp_xmit_lock).
		return
	}
	dst := w.fib.AddrType(p.Family, p.Dst(), nil)
	if dst == netstack.RouteBroadcast || dst == netstack.RouteMulticast && !(p.Family == packet.IPv6 && typ == 2) {
		return
	}
	from, plen, ok := w.errorSource(p, (dst == netstack.RouteLocal || dst == netstack.RouteAnycast && p.Family == packet.IPv6) && !w.teeing)
	if !ok {
		return
	}
	if !w.r.limit.allow(p.Family, typ, code, p.Src(), plen, w.now) {
		w.icmpLimited++
		return
	}
	e := w.alloc()
	if e == nil {
		return
	}
	if !packet.BuildICMPError(e, p, typ, code, rest, from) {
		w.free(e)
		return
	}
	if p.Family == packet.IPv4 {
		e.SetTTL(uint8(w.r.knobs.ttl4.Load()))
	} else {
		e.SetTTL(uint8(w.r.knobs.ttl6.Load()))
	}
	e.Flags |= packet.SystemSocket
	// The error belongs to the connection of the packet that caused it (nf_conntrack_attach).
	w.ct.Attach(e, p)
	w.icmpSent++
	w.queueOutput(e)
}

// errorSource picks an error's source: the address that was asked, where it is
// the router's own, else the one that an answer to the sender would get, on IPv6
// if it left where the packet came in.
// plen is the length of that route's prefix.
func (w *worker) errorSource(p *packet.Packet, own bool) (from [16]byte, plen int, ok bool) {
	var back netstack.Route
	if !w.fib.Back(p, &back) {
		return from, 0, false
	}
	plen = int(back.PrefixLen)
	if own {
		return p.Dst(), plen, true
	}
	if p.Family == packet.IPv4 && p.In != nil && w.r.knobs.errorsUseInbound.Load() != 0 {
		if from, ok = w.fib.SourceFor(p.Family, p.In, p.Src()); ok {
			return from, plen, true
		}
	}
	if back.PrefSrc != [16]byte{} {
		return back.PrefSrc, plen, true
	}
	if p.Family == packet.IPv6 && p.In != nil {
		// Where it came in says more to traceroute than where the answer leaves.
		if from, ok = w.fib.SourceFor(p.Family, p.In, p.Src()); ok {
			return from, plen, true
		}
	}
	to := back.NextHop
	if p.Family == packet.IPv6 {
		to = p.Src()
	}
	from, ok = w.fib.SourceFor(p.Family, back.Dev, to)
	return from, plen, ok
}

// redirect tells a host that the next hop is on its own link (ip_rt_send_redirect).
func (w *worker) redirect(p *packet.Packet) {
	if !w.r.redirects.allow(p.Src(), w.now) {
		return
	}
	// It goes before the packet does, whose connection NAT has not decided on
	// if it is new.
	n := len(w.outq)
	w.icmpError(p, 5, 1, binary.BigEndian.Uint32(p.Route.NextHop[:4]))
	if len(w.outq) > n {
		e := w.outq[n]
		w.outq = w.outq[:n]
		w.sendOwn(e)
	}
}

// scope6 refuses what ip6_forward refuses by address.
func (w *worker) scope6(p *packet.Packet) packet.Reason {
	src := p.Src()
	switch {
	case src == [16]byte{}, src[0] == 0xff, src == [16]byte{15: 1}:
		return reasonScope
	case src[0] == 0xfe && src[1]&0xc0 == 0x80:
		w.icmpError(p, 1, 2, 0) // beyond scope of source address
		return reasonScope
	}
	return 0
}
