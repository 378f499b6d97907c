package router

import (
	"sluice/netstack"
	"sluice/packet"
)

// receiveOptions looks at a packet's IPv4 options once it is routed
// (ip_rcv_options): malformed ones are answered, source routes refused where
// accept_source_route is off, as it is unless configured.
func (w *worker) receiveOptions(p *packet.Packet) bool {
	if r := p.CompileOptions(&w.options); r != 0 {
		p.Reason = r
		w.parameterProblem(p)
		return false
	}
	if w.options.SourceRoute != 0 && w.fib.Conf(p.In).V4(netstack.AcceptSourceRoute) == 0 {
		return drop(p, packet.DropSourceRt)
	}
	return true
}

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
