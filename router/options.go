package router

import (
	"time"

	"sluice/netstack"
	"sluice/packet"
)

// receiveOptions looks at a packet's IPv4 options once it is routed
// (ip_rcv_options): malformed ones are answered, source routes refused where
// accept_source_route is off, as it is unless configured, and followed otherwise.
func (w *worker) receiveOptions(p *packet.Packet, rt *netstack.Route) bool {
	if p.Reason = p.CompileOptions(&w.options); p.Reason != 0 {
		w.parameterProblem(p)
		return false
	}
	if w.options.SourceRoute == 0 {
		return true
	}
	if w.fib.Conf(p.In).V4(netstack.AcceptSourceRoute) == 0 {
		return drop(p, packet.DropSourceRt)
	}
	if p.Reason = p.FollowSourceRoute(&w.options, w.addrType4); p.Reason != 0 {
		w.parameterProblem(p)
		return false
	}
	if w.options.Hit {
		*rt, _ = w.fib.Lookup(&netstack.Query{Family: p.Family, TOS: p.TOS(), Src: p.Src(), Dst: w.options.NextHop, Mark: p.Mark, In: p.In})
	}
	return true
}

// forwardOptions writes what a router owes to the options of a packet in transit (ip_forward_options).
func (w *worker) forwardOptions(p *packet.Packet) {
	src, _ := w.fib.SourceFor(p.Family, p.Out, p.Route.NextHop)
	now := time.Now().UTC()
	ms := uint32(now.Sub(now.Truncate(24*time.Hour)) / time.Millisecond)
	p.ForwardOptions(&w.options, src, ms, func(a [16]byte) bool { return w.addrType4(a) != uint8(netstack.RouteUnicast) })
}

func (w *worker) addrType4(a [16]byte) uint8 { return uint8(w.fib.AddrType(packet.IPv4, a, nil)) }

// parameterProblem answers a malformed packet where Linux does; p.Reason says what is wrong with it.
func (w *worker) parameterProblem(p *packet.Packet) {
	if typ, code, rest, ok := p.Problem(p.Reason); ok {
		w.icmpError(p, typ, code, rest)
	}
}

// martian drops what Input refused, and says so where log_martians is on.
func (w *worker) martian(p *packet.Packet, reason packet.Reason) bool {
	if p.Family == packet.IPv4 && w.fib.Conf(p.In).V4(netstack.LogMartians) != 0 {
		switch reason {
		case netstack.ReasonMartianSource, netstack.ReasonRPFilter:
			w.r.logs.add(4, "martian source "+p.DstAddr().String()+" from "+p.SrcAddr().String()+", on dev "+p.In.Name)
		case netstack.ReasonMartianDestination:
			w.r.logs.add(4, "martian destination "+p.DstAddr().String()+" from "+p.SrcAddr().String()+", dev "+p.In.Name)
		}
	}
	return drop(p, reason)
}
