package router

import (
	"slices"

	"sluice/conntrack"
	"sluice/netstack"
	"sluice/packet"
)

// flowRoute is a routing decision that connections remember. Everything that
// the decision depended on besides the flow's addresses is in it, or in the
// worker's tag (memory).
type flowRoute struct {
	in     *packet.Iface
	mark   uint32
	tos    uint8
	onLink bool // the next hop is the destination itself
	out    *packet.Iface
	ref    packet.RouteRef
}

// maxFlowRoutes bounds a worker's list, which is searched linearly when a flow
// remembers. A router has few ways out.
const maxFlowRoutes = 64

// ofFlow: p has its connection's own addresses, as an ICMP error about it has not.
func ofFlow(p *packet.Packet) bool {
	switch p.CtInfo {
	case packet.CtNew, packet.CtEstablished, packet.CtEstablishedReply:
		return true
	}
	return false
}

// recallRoute takes the routing decision from p's connection.
func (w *worker) recallRoute(p *packet.Packet) bool {
	if !ofFlow(p) || p.Flags&packet.Options != 0 {
		return false
	}
	e := w.ct.Entry(p)
	if e == nil {
		return false
	}
	i, ok := w.mem.routeOf(e.Cache[conntrack.PacketDir(p)].Load())
	if !ok {
		return false
	}
	r := &w.flowRoutes[i]
	if r.in != p.In || r.mark != p.Mark || r.tos != p.TOS() {
		return false
	}
	p.Out, p.Route = r.out, r.ref
	if r.onLink {
		p.Route.NextHop = p.Dst()
	}
	return true
}

// rememberRoute leaves a unicast decision with p's connection.
func (w *worker) rememberRoute(p *packet.Packet, rt *netstack.Route) {
	if !ofFlow(p) {
		return
	}
	e := w.ct.Entry(p)
	if e == nil {
		return
	}
	r := flowRoute{in: p.In, mark: p.Mark, tos: p.TOS(), onLink: !rt.Gateway, out: p.Out, ref: p.Route}
	if r.onLink {
		r.ref.NextHop = [16]byte{}
	}
	i := slices.Index(w.flowRoutes, r)
	if i < 0 {
		if len(w.flowRoutes) == maxFlowRoutes {
			return
		}
		i = len(w.flowRoutes)
		w.flowRoutes = append(w.flowRoutes, r)
	}
	e.Cache[conntrack.PacketDir(p)].Store(w.mem.routeWord(uint32(i)))
}

// loadRoutes takes the routing state of a burst; when it is another one, what
// flows remember is void.
func (w *worker) loadRoutes() {
	s := w.r.fib.Load()
	gen := s.ConfGen()
	if s == w.fib && gen == w.confGen {
		return
	}
	w.fib, w.confGen = s, gen
	w.forget()
}
