package router

import (
	"encoding/binary"

	"sluice/netstack"
	"sluice/packet"
)

// icmpError answers p with an ICMP or ICMPv6 error (icmp_send, icmp6_send): not
// about broadcasts, later fragments or other errors, and within Linux's rate limits.
func (w *worker) icmpError(p *packet.Packet, typ, code uint8, rest uint32) {
	src := p.Src()
	dstType := w.r.fib.AddrType(p.Family, p.Dst(), nil)
	if dstType == netstack.RouteBroadcast || dstType == netstack.RouteMulticast && !(p.Family == packet.IPv6 && typ == 2) {
		return
	}
	var back netstack.Route
	from, ok := w.errorSource(p, dstType, &back)
	if !ok {
		return
	}
	if !w.r.limit.allow(p.Family, typ, code, src, int(back.PrefixLen), w.now) {
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
	// The error belongs to the connection of the packet that caused it (nf_conntrack_attach).
	attach(e, p)
	w.icmpSent++
	w.queueOutput(e)
}

// errorSource picks an error's source: the address that was asked, where it is
// the router's own, else the one that a packet back to the sender would get.
func (w *worker) errorSource(p *packet.Packet, dstType netstack.RouteType, back *netstack.Route) ([16]byte, bool) {
	fib := w.r.fib
	if !fib.Back(p, back) {
		return [16]byte{}, false
	}
	if dstType == netstack.RouteLocal {
		return p.Dst(), true
	}
	if p.Family == packet.IPv4 && p.In != nil && w.r.knobs.errorsUseInbound.Load() != 0 {
		if a, ok := fib.SourceFor(p.Family, p.In, p.Src()); ok {
			return a, true
		}
	}
	if back.PrefSrc != [16]byte{} {
		return back.PrefSrc, true
	}
	return fib.SourceFor(p.Family, back.Dev, back.NextHop)
}

func attach(e, p *packet.Packet) {
	if p.Ct == 0 {
		return
	}
	e.Ct = p.Ct
	e.CtInfo = packet.CtRelatedReply
	if p.CtInfo.Reply() {
		e.CtInfo = packet.CtRelated
	}
}

// redirect tells a host that the next hop is on its own link (ip_rt_send_redirect).
func (w *worker) redirect(p *packet.Packet) {
	if !w.r.fib.SendRedirects(p) || !w.r.redirects.allow(p.Src(), w.now) {
		return
	}
	w.icmpError(p, 5, 1, binary.BigEndian.Uint32(p.Route.NextHop[:4]))
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
