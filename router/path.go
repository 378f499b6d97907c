package router

import (
	"sync/atomic"

	"sluice/hooks"
	"sluice/nat"
	"sluice/netstack"
	"sluice/packet"
)

// This file is a packet's way, from top to bottom: receive, PREROUTING, the
// routing decision, INPUT or FORWARD, POSTROUTING, out; and OUTPUT for packets
// of the router's own. Order and conditions are Linux's ip_rcv, ip_forward and
// ip_output. Every function ends the packet: sent, delivered, or dropped with
// p.Reason set and false returned.

// receive takes a frame that came in through an interface (or looped back
// through lo) to its end, then sends what the router made on the way.
func (w *worker) receive(p *packet.Packet) {
	if !w.prerouting(p) {
		w.countDrop(p)
	}
	if w.learn.on {
		w.giveUp(p)
	}
	w.ct.EndEarly()
	// What the router made because of p (an ICMP error, a reset) may hold p's
	// unconfirmed connection: it goes out before that is released.
	w.settle()
	w.ct.Release(p)
}

// receiveAll is receive for a batch. What packets of known connections need is
// looked up ahead, step by step for all of them: so the memory accesses of one
// packet do not wait for those of another.
func (w *worker) receiveAll(ps []*packet.Packet) {
	var aimed [batchSize]bool
	if w.remember {
		for i, p := range ps {
			p.Reason = p.Parse()
			p.Flags |= packet.Parsed
			aimed[i] = p.Reason == 0 && mayRemember(p) && w.ct.Aim(&w.probes[i], p)
		}
		if len(ps) > 1 {
			w.touch(aimed[:len(ps)])
		}
	}
	for i, p := range ps {
		if !aimed[i] || !w.recall(p, &w.probes[i]) {
			w.receive(p)
		}
	}
}

// touch brings near what the packets of a batch will look at: buckets, then
// entries; or, where a connection begins, what that will write to.
func (w *worker) touch(aimed []bool) {
	x := uint64(0)
	for i, ok := range aimed {
		if ok {
			x ^= w.probes[i].Touch()
		}
	}
	for i, ok := range aimed {
		if ok {
			w.ct.Seek(&w.probes[i])
		}
	}
	for i, ok := range aimed {
		if ok {
			x ^= uint64(w.probes[i].TouchEntry())
		}
	}
	if w.ct.MayBegin() {
		x ^= w.touchNew(aimed)
	}
	w.sink = x
}

// touchNew is touch for the packets that begin connections.
func (w *worker) touchNew(aimed []bool) (x uint64) {
	n := 0
	var heads [batchSize]*nat.SourceHead
	var buckets [batchSize]*atomic.Uint64
	for i, ok := range aimed {
		if pr := &w.probes[i]; ok && pr.Strange() {
			heads[n], buckets[n] = w.r.nat.SourceHead(pr.Tuple()), w.ct.ReplyBucket(pr)
			n++
		}
	}
	for i := range n {
		x ^= uint64(heads[i].First()) ^ buckets[i].Load()
	}
	for _, h := range heads[:n] {
		if first := h.First(); first != 0 {
			x ^= uint64(w.r.ct.At(first).Status())
		}
	}
	return x ^ w.ct.TouchFree(n)
}

func (w *worker) prerouting(p *packet.Packet) bool {
	if p.Flags&packet.Loopback == 0 {
		if p.Flags&packet.Parsed == 0 {
			p.Reason = p.Parse()
		}
		if p.Reason != 0 {
			w.parameterProblem(p)
			return false
		}
	}
	if done, ok := w.run(hooks.Prerouting, p); done {
		return ok
	}
	return w.routeIn(p)
}

// run takes p through a hook. done: it went no further than the hook.
func (w *worker) run(h hooks.Hook, p *packet.Packet) (done, ok bool) {
	if w.rec != nil {
		return w.runRecorded(h, p)
	}
	var v hooks.Verdict
	if w.learn.on {
		v = w.runNoted(h, p)
	} else {
		v = hooks.Run(w.stages[family(p)][h], p)
	}
	switch v {
	case hooks.Accept:
		return false, true
	case hooks.Stolen:
		return true, true
	}
	if w.learn.on && h == hooks.Forward {
		w.learned(p, p.Reason)
	}
	return true, false
}

// routeIn is the routing decision for a packet from outside.
func (w *worker) routeIn(p *packet.Packet) bool {
	if w.rec == nil && w.recallRoute(p) {
		return w.forward(p)
	}
	var rt netstack.Route
	reason := w.fib.Input(p, &rt)
	if w.rec != nil {
		w.rec.route(&rt, false, reason)
	}
	if reason != 0 {
		return w.martian(p, reason)
	}
	if p.Family == packet.IPv4 && p.Is(packet.Options) && !w.receiveOptions(p, &rt) {
		return false
	}
	switch rt.Type {
	case netstack.RouteLocal, netstack.RouteBroadcast, netstack.RouteAnycast:
		p.Route.Type = uint8(rt.Type)
		return w.input(p)
	case netstack.RouteMulticast:
		if !w.fib.MulticastMember(p) {
			return drop(p, reasonMulticast)
		}
		p.Route.Type = uint8(rt.Type)
		return w.input(p)
	case netstack.RouteUnicast:
		setRoute(p, &rt)
		w.rememberRoute(p, &rt)
		return w.forward(p)
	}
	return w.noRoute(p, &rt)
}

// noRoute answers a packet whose route is an error (ip_error, ip6_pkt_drop).
func (w *worker) noRoute(p *packet.Packet, rt *netstack.Route) bool {
	v4 := p.Family == packet.IPv4
	code, reason := uint8(0), reasonNoRoute
	switch rt.Type {
	case netstack.RouteBlackhole:
		return drop(p, reasonBlackhole)
	case netstack.RouteProhibit:
		code, reason = pick(v4, 13, 1), reasonProhibit
	case netstack.RouteUnreachable:
		code, reason = pick(v4, 1, 0), reasonUnreachable
	}
	if !v4 || w.r.limit.routeError(p.Src(), w.now/1e6) {
		w.icmpError(p, pick(v4, 3, 1), code, 0)
	} else {
		w.icmpLimited++
	}
	return drop(p, reason)
}

// input delivers to the router's own sockets.
func (w *worker) input(p *packet.Packet) bool {
	if done, ok := w.run(hooks.Input, p); done {
		return ok
	}
	return w.inputDone(p)
}

// inputDone is input behind the hook.
func (w *worker) inputDone(p *packet.Packet) bool {
	if typ, _, ok := p.ICMPType(); ok && (typ == 8 && p.Family == packet.IPv4 || typ == 128 && p.Family == packet.IPv6) && w.r.knobs.echoIgnore[family(p)].Load() != 0 {
		return drop(p, reasonEchoIgnored)
	}
	if len(w.uplinks) > 0 {
		if taken, ok := w.uplinkTakes(p); taken {
			return ok
		}
	}
	if p.Family == packet.IPv6 && p.Is(packet.Fragment) {
		return w.localFragment(p)
	}
	if !w.localProtocol(p) {
		return false
	}
	if !w.r.local.Deliver(p) {
		return false
	}
	w.delivered++
	if w.rec != nil {
		w.rec.delivered()
	}
	return true
}

// localProtocol answers for the protocols that no local socket speaks
// (ip_protocol_deliver_rcu, ip6_protocol_deliver_rcu). true: the packet goes to
// the local stack.
func (w *worker) localProtocol(p *packet.Packet) bool {
	v4 := p.Family == packet.IPv4
	if !v4 {
		if at, ok := authHeaderAt(p); ok {
			w.icmpError(p, 4, 1, at)
			return drop(p, reasonProtocol)
		}
	}
	switch proto := p.Proto; {
	case proto == packet.ProtoTCP, proto == packet.ProtoUDP, v4 && proto == packet.ProtoICMP, !v4 && proto == packet.ProtoICMPv6,
		v4 && proto == protoIGMP, p.Flags&packet.BadHeaders != 0:
		return true
	case !v4 && proto == packet.ProtoNone:
		return drop(p, reasonProtocol)
	case proto == packet.ProtoUDPLite:
		// As for UDP, the error about a closed port knows of no connection.
		if p.Flags&packet.HasL4 != 0 && p.VerifyL4() {
			w.ct.Release(p)
			w.icmpError(p, pick(v4, 3, 1), pick(v4, 3, 4), 0)
		}
	case v4:
		w.icmpError(p, 3, 2, 0)
	default:
		w.icmpError(p, 4, 1, uint32(p.NextHeaderAt()))
	}
	return drop(p, reasonProtocol)
}

// authHeaderAt is where an IPv6 packet says that an authentication header
// follows, which the router, without IPsec, does not know; false: nowhere.
func authHeaderAt(p *packet.Packet) (uint32, bool) {
	b := p.Bytes()
	for at, next := 40, 6; ; {
		switch b[next] {
		case packet.ProtoAH:
			return uint32(next), true
		case 0, 43, 60: // hop-by-hop, routing, destination options
		default:
			return 0, false
		}
		if next, at = at, at+8; at > len(b) {
			return 0, false
		}
		at += int(b[next+1]) * 8
		if at > len(b) {
			return 0, false
		}
	}
}

const protoIGMP = 2

// forward passes a packet on: TTL, MTU, FORWARD, then out.
func (w *worker) forward(p *packet.Packet) bool {
	v4 := p.Family == packet.IPv4
	if p.Socket != 0 {
		return drop(p, reasonNotLocal)
	}
	if !w.fib.Forwarding(p.In, p.Family) {
		return drop(p, netstack.ReasonForwardingOff)
	}
	if p.TTL() <= 1 {
		w.icmpError(p, pick(v4, 11, 3), 0, 0)
		return drop(p, reasonTTL)
	}
	if !v4 && p.In != p.Out {
		if r := w.scope6(p); r != 0 {
			return drop(p, r)
		}
	}
	if p.ExceedsMTU(mtuOf(p)) {
		w.icmpError(p, pick(v4, 3, 2), pick(v4, 4, 0), uint32(mtuOf(p)))
		return drop(p, reasonTooBig)
	}
	if v4 && p.In == p.Out && w.fib.SendRedirects(p) {
		w.redirect(p)
	}
	p.SetTTL(p.TTL() - 1)
	if done, ok := w.run(hooks.Forward, p); done {
		return ok
	}
	return w.forwardDone(p)
}

// forwardDone is forward behind the hook.
func (w *worker) forwardDone(p *packet.Packet) bool {
	if p.Family == packet.IPv4 && p.Is(packet.Options) {
		w.forwardOptions(p)
	}
	w.forwarded++
	return w.postrouting(p)
}

// output sends a packet of the router's own: its sockets', or an answer that
// the router made. p is not parsed yet unless it is a reset or an ICMP error.
func (w *worker) output(p *packet.Packet) bool {
	p.Flags |= packet.Local
	p.In = nil
	if !w.routeOut(p) {
		return false
	}
	w.outDev = nil
	if done, ok := w.run(hooks.Output, p); done {
		return ok
	}
	return w.outputDone(p)
}

// outputDone is output behind the hook.
func (w *worker) outputDone(p *packet.Packet) bool {
	if w.outDev != nil {
		p.Out = w.outDev
	}
	return w.postrouting(p)
}

// reroute is the routing decision again, after a change in OUTPUT. The rules of
// that hook go on seeing the interface of the first one.
func (w *worker) reroute(p *packet.Packet) bool {
	first := p.Out
	if !w.routeOut(p) {
		return false
	}
	w.outDev, p.Out = p.Out, first
	return true
}

// routeOut is the routing decision for a packet of the router's own.
func (w *worker) routeOut(p *packet.Packet) bool {
	p.Out = nil
	var rt netstack.Route
	w.fib.Output(p, &rt)
	if w.rec != nil {
		w.rec.route(&rt, true, 0)
	}
	if p.Family == packet.IPv4 && rt.Dev != nil && rt.Dev != w.r.lo && p.Src4()>>24 == 127 && w.fib.Conf(rt.Dev).V4(netstack.RouteLocalnet) == 0 {
		return drop(p, netstack.ReasonMartianSource)
	}
	if rt.Dev != nil {
		setRoute(p, &rt)
		return true
	}
	switch rt.Type {
	case netstack.RouteBlackhole:
		return drop(p, reasonBlackhole)
	case netstack.RouteProhibit:
		return drop(p, reasonProhibit)
	case netstack.RouteUnreachable:
		return drop(p, reasonUnreachable)
	}
	return drop(p, reasonNoRoute)
}

// postrouting is the last hook, then fragmentation and the device.
func (w *worker) postrouting(p *packet.Packet) bool {
	if done, ok := w.run(hooks.Postrouting, p); done {
		return ok
	}
	return w.postroutingDone(p)
}

// postroutingDone is postrouting behind the hook.
func (w *worker) postroutingDone(p *packet.Packet) bool {
	if p.Out == w.r.lo {
		return w.loopback(p)
	}
	mtu := mtuOf(p)
	if p.GSO.Type != packet.GSONone {
		if p.SegmentLen() <= mtu {
			if w.learn.on {
				w.learned(p, 0)
			}
			return w.transmit(p)
		}
		return w.segment(p, mtu)
	}
	if p.NeedsFragmenting(mtu) {
		return w.fragment(p, mtu)
	}
	if w.learn.on {
		w.learned(p, 0)
	}
	return w.transmit(p)
}

// loopback brings a packet to one of the router's own addresses back in through lo.
func (w *worker) loopback(p *packet.Packet) bool {
	if p.Is(packet.Loopback) {
		return drop(p, reasonLoop)
	}
	p.CompleteChecksum()
	p.Flags = p.Flags&^(packet.Local|packet.HasOwner|packet.SystemSocket) | packet.Loopback | packet.L4ChecksumOK
	p.In, p.Out = w.r.lo, nil
	return w.prerouting(p)
}

// fragment splits a packet to the MTU (ip_fragment, ip6_fragment). A packet that
// came in fragments leaves in fragments no larger than the largest of those. With
// IPv6 only sockets' packets are split; what else is too large is a copy by TEE.
func (w *worker) fragment(p *packet.Packet, mtu int) bool {
	v4 := p.Family == packet.IPv4
	if (v4 || p.Flags&(packet.HasOwner|packet.SystemSocket) == 0) && p.ExceedsMTU(mtu) {
		w.icmpError(p, pick(v4, 3, 2), pick(v4, 4, 0), uint32(mtu))
		return drop(p, reasonTooBig)
	}
	ok := true
	if !packet.FragmentTo(p, mtu, func(f *packet.Packet) { ok = w.write(f) && ok }) {
		return drop(p, reasonFragment)
	}
	if !ok {
		return drop(p, reasonLinkWrite)
	}
	return true
}

// segment splits a super-packet in software, for a next hop whose MTU is smaller than a segment.
func (w *worker) segment(p *packet.Packet, mtu int) bool {
	ok := true
	packet.Segments(p, func(s *packet.Packet) {
		if s.Len() > mtu {
			ok = w.fragment(s, mtu) && ok
		} else {
			ok = w.write(s) && ok
		}
	})
	if !ok && p.Reason == 0 {
		p.Reason = reasonLinkWrite
	}
	return ok
}

// transmit hands a whole packet to its device, which may keep it until the
// burst is flushed.
func (w *worker) transmit(p *packet.Packet) bool {
	d := w.port(p.Out)
	if d == nil || len(d.hold) == 0 || !w.kept(p) {
		return w.write(p)
	}
	if w.rec != nil {
		w.rec.sent(d.iface, p)
	}
	d.txPackets++
	d.txBytes += uint64(p.Len())
	d.hold[w.way(d, p)].Hold(p)
	return true
}

// write hands a frame to its device, which is done with it on return.
func (w *worker) write(p *packet.Packet) bool {
	d := w.port(p.Out)
	if d == nil {
		return drop(p, reasonLinkGone)
	}
	if w.rec != nil {
		w.rec.sent(d.iface, p)
	}
	return d.send(w, p)
}

func drop(p *packet.Packet, r packet.Reason) bool {
	p.Reason = r
	return false
}

func pick(v4 bool, four, six uint8) uint8 {
	if v4 {
		return four
	}
	return six
}

func setRoute(p *packet.Packet, rt *netstack.Route) {
	p.Out = rt.Dev
	p.Route = packet.RouteRef{Type: uint8(rt.Type), MTU: rt.MTU, NextHop: rt.NextHop}
}

// mtuOf is the MTU of p's route in bytes.
func mtuOf(p *packet.Packet) int {
	if p.Route.MTU != 0 {
		return int(p.Route.MTU)
	}
	return p.Out.MTU
}
