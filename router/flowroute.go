package router

import (
	"sluice/conntrack"
	"sluice/netstack"
	"sluice/packet"
)

// flowRoute is a routing decision that connections remember. Everything that
// the decision depended on besides the flow's addresses is in it, or in the
// worker's routeTag.
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

// recallRoute takes the routing decision from p's connection: a direction's
// word in the flow table holds the worker's routeTag and an index in its list.
func (w *worker) recallRoute(p *packet.Packet) bool {
	if !ofFlow(p) || p.Flags&packet.Options != 0 {
		return false
	}
	e := w.ct.Entry(p)
	if e == nil {
		return false
	}
	word := e.Cache[conntrack.PacketDir(p)].Load()
	if uint32(word>>32) != w.routeTag {
		return false
	}
	r := &w.flowRoutes[uint32(word)]
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
	for i := range w.flowRoutes {
		if w.flowRoutes[i] == r {
			e.Cache[conntrack.PacketDir(p)].Store(uint64(w.routeTag)<<32 | uint64(i))
			return
		}
	}
	if len(w.flowRoutes) < maxFlowRoutes {
		e.Cache[conntrack.PacketDir(p)].Store(uint64(w.routeTag)<<32 | uint64(len(w.flowRoutes)))
		w.flowRoutes = append(w.flowRoutes, r)
	}
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
	w.flowRoutes = w.flowRoutes[:0]
	// Tags differ between workers, whose lists differ, and are never 0, which an empty word has.
	w.routeEpoch = w.routeEpoch%(1<<24-1) + 1
	w.routeTag = w.routeEpoch<<8 | uint32(w.id&0xff)
}
