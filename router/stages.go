package router

import (
	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/synproxy"
)

// The stages of order.go: each makes its code for one worker and one hook.

// table walks one table of rules.
func table(t tables.TableID) func(*worker, hooks.Hook) hooks.Func {
	return func(w *worker, h hooks.Hook) hooks.Func {
		return func(p *packet.Packet) hooks.Verdict {
			f := family(p)
			c := &w.ctx[f]
			c.Hook = h
			if w.rec != nil {
				return w.rec.walk(w.prog[f], c, t, p)
			}
			return w.prog[f].Run(c, t, p)
		}
	}
}

// family indexes what a worker has once per IP version.
func family(p *packet.Packet) int { return int(p.Family>>1) & 1 }

func verdict(ok bool) hooks.Verdict {
	if ok {
		return hooks.Accept
	}
	return hooks.Drop
}

// defrag collects fragments, so that conntrack and the rules see whole packets.
func (w *worker) defrag(h hooks.Hook) hooks.Func {
	return func(p *packet.Packet) hooks.Verdict {
		if !p.Is(packet.Fragment) || p.Is(packet.Untracked) {
			return hooks.Accept
		}
		return w.reassemble(h, p)
	}
}

func (w *worker) track(h hooks.Hook) hooks.Func {
	return func(p *packet.Packet) hooks.Verdict { return verdict(w.ct.Track(p, uint8(h))) }
}

func (w *worker) confirm(hooks.Hook) hooks.Func {
	return func(p *packet.Packet) hooks.Verdict { return verdict(w.ct.Confirm(p)) }
}

// synproxy sits between the halves of connections that SYNPROXY has opened.
func (w *worker) synproxy(hooks.Hook) hooks.Func {
	out := synproxy.Out{CT: w.ct, Alloc: w.alloc, Send: w.queueOutput}
	return func(p *packet.Packet) hooks.Verdict { return w.r.synproxy.Hook(&out, p) }
}

// synproxied says whether there ever was a SYNPROXY rule.
func (r *Router) synproxied() bool { return r.synproxy.Used() }

// helper lets a connection's helper read the payload.
func (w *worker) helper(hooks.Hook) hooks.Func {
	return func(p *packet.Packet) hooks.Verdict { return verdict(w.ct.Help(p)) }
}

// mangle walks the mangle table. At OUTPUT a change to what routing looks at
// (addresses, mark, TOS, with IPv6 the hop limit too) makes the packet be routed
// again (ip_route_me_harder, ip6_route_me_harder).
func (w *worker) mangle(h hooks.Hook) hooks.Func {
	walk := table(tables.Mangle)(w, h)
	if h != hooks.Output {
		return walk
	}
	return func(p *packet.Packet) hooks.Verdict {
		src, dst, mark, tos, ttl := p.Src(), p.Dst(), p.Mark, p.TOS(), p.TTL()
		v := walk(p)
		if v == hooks.Accept && (p.Mark != mark || p.TOS() != tos || p.Src() != src || p.Dst() != dst || p.TTL() != ttl && p.Family == packet.IPv6) {
			v = verdict(w.reroute(p))
		}
		return v
	}
}

// translate is the nat table and its rewriting: only the first packet of a
// connection walks the table, all are rewritten. At OUTPUT a packet whose
// destination changed is routed again.
func (w *worker) translate(h hooks.Hook) hooks.Func {
	rules := table(tables.NAT)(w, h)
	walk := func(p *packet.Packet) hooks.Verdict {
		v := rules(p)
		if w.past {
			w.past, v = false, nat.Past
		}
		return v
	}
	if h != hooks.Output {
		return func(p *packet.Packet) hooks.Verdict { return nat.Hook(w.r.nat, w.ct, p, uint8(h), walk) }
	}
	return func(p *packet.Packet) hooks.Verdict {
		dst := p.Dst()
		v := nat.Hook(w.r.nat, w.ct, p, uint8(h), walk)
		if v == hooks.Accept && p.Dst() != dst {
			v = verdict(w.reroute(p))
		}
		return v
	}
}
