package router

import (
	"sluice/hooks"
	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/frag"
)

// reassemble keeps a fragment until its datagram is whole; p is the whole
// datagram then, and goes on.
func (w *worker) reassemble(h hooks.Hook, p *packet.Packet) hooks.Verdict {
	user := frag.UserConntrackIn
	if h == hooks.Output {
		user = frag.UserConntrackOut
	}
	v, reason := w.r.frags.Add(p, user)
	switch v {
	case frag.Queued:
		return hooks.Stolen
	case frag.Dropped:
		p.Reason = reason
		return hooks.Drop
	}
	return hooks.Accept
}

// localFragment answers a fragment for the router that was let through as it
// came, because it cannot be part of a datagram (RFC 8200, 4.5; ipv6_frag_rcv).
func (w *worker) localFragment(p *packet.Packet) bool {
	if p.FragOff == 0 && frag.HeadersCut(p) {
		w.icmpError(p, packet.ICMPv6ParamProblem, 3, 0) // first fragment with an incomplete header chain
	} else {
		w.icmpError(p, packet.ICMPv6ParamProblem, 0, 4) // the payload length is not a multiple of 8
	}
	return drop(p, netstack.ReasonLocalFragment)
}

// expireFragments gives up what was not completed in time. The sender is told;
// on IPv4 only if the datagram was for the router itself, because otherwise the
// host that waits for it does that (ip_expire, ip6frag_expire_frag_queue).
func (r *Router) expireFragments(now int64) {
	if !r.frags.Due(now) {
		return
	}
	var firsts []*packet.Packet
	given := 0
	r.frags.Expire(now, func(first *packet.Packet, user uint32) {
		given++
		if first != nil && user>>16 == frag.UserConntrackIn>>16 && len(firsts) < outputQueue {
			p := packet.New()
			p.Copy(first)
			firsts = append(firsts, p)
		}
	})
	r.workers[0].do(func(w *worker) {
		w.begin(r.clock())
		defer w.end()
		w.drops[frag.DropTimeout] += uint64(given)
		for _, p := range firsts {
			p.Now = w.now
			if p.In == nil {
				continue
			}
			if p.Family == packet.IPv6 {
				w.icmpError(p, 3, 1, 0)
			} else {
				var rt netstack.Route
				if reason := w.fib.Input(p, &rt); reason != 0 || rt.Type != netstack.RouteLocal {
					continue
				}
				w.icmpError(p, 11, 1, 0)
			}
			w.settle()
		}
		w.flush()
	})
}
