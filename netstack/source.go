package netstack

import (
	"net/netip"

	"sluice/packet"
)

// Why the routing decision dropped a packet.
var (
	ReasonMartianSource      = packet.NewReason("ip.martian_source", "the IPv4 source address cannot be one: multicast, broadcast, loopback, zero, or the router's own")
	ReasonMartianDestination = packet.NewReason("ip.martian_destination", "the IPv4 destination address cannot be reached from outside: loopback, zero, or a broadcast of another interface")
	ReasonRPFilter           = packet.NewReason("ip.rp_filter", "the way back to the IPv4 source leads elsewhere (net.ipv4.conf.*.rp_filter)")
	ReasonForwardingOff      = packet.NewReason("ip.forwarding_off", "the incoming interface does not forward")
	ReasonMartianSource6     = packet.NewReason("ipv6.martian_source", "the IPv6 source address cannot be one: multicast, or loopback")
	ReasonDisabled6          = packet.NewReason("ipv6.disabled", "IPv6 is off on the incoming interface (net.ipv6.conf.*.disable_ipv6)")
	ReasonMartianDst6        = packet.NewReason("ipv6.martian_destination", "the IPv6 destination address cannot be reached from outside: loopback, or a multicast scope below the link")
)

// Input is the routing decision for a packet that came in on p.In, with the
// checks that go with it (ip_route_input, ip6_route_input). A reason other
// than zero drops the packet. Otherwise r.Type says where it goes: local,
// broadcast, anycast, multicast (if MulticastMember): to INPUT; unicast: to
// FORWARD; the rest are errors to answer (or, RouteBlackhole, not). A packet
// without p.In, or one that comes back through lo, is the router's own.
func (s *Snapshot) Input(p *packet.Packet, r *Route) packet.Reason {
	q := Query{Family: p.Family, TOS: tosOf(p), Mark: p.Mark, In: p.In}
	if q.In == nil {
		q.In = s.lo
	}
	b := p.Bytes()
	if p.Family == packet.IPv6 {
		q.Src, q.Dst = [16]byte(b[8:24]), [16]byte(b[24:40])
		return s.input6(&q, r)
	}
	copy(q.Src[:4], b[12:16])
	copy(q.Dst[:4], b[16:20])
	return s.input4(&q, r)
}

// Output is the routing decision for a packet of the router's own; r.Type says
// what comes of it.
func (s *Snapshot) Output(p *packet.Packet, r *Route) { s.OutputVia(p, nil, r) }

// OutputVia is Output for a socket that is bound to an interface (nil: it is not).
func (s *Snapshot) OutputVia(p *packet.Packet, via *packet.Iface, r *Route) {
	q := Query{Family: p.Family, TOS: tosOf(p), Mark: p.Mark, Out: via, Src: p.Src(), Dst: p.Dst()}
	if p.Family == packet.IPv4 && [4]byte(q.Dst[:4]) == lbcast && via != nil {
		*r = Route{Type: RouteBroadcast, Dev: via, NextHop: q.Dst, MTU: uint32(via.MTU)}
		return
	}
	var ok bool
	if ok = s.find(&q, r); !ok && p.Family == packet.IPv4 && via != nil {
		// Linux trusts the socket more than its tables: the destination is on the link.
		*r = Route{Type: RouteUnicast, Scope: ScopeLink, Dev: via, NextHop: q.Dst, MTU: uint32(via.MTU)}
	}
	s.viaLoopback(r)
}

// viaLoopback: what goes to the router itself goes through lo, whichever interface has the address.
func (s *Snapshot) viaLoopback(r *Route) {
	if r.Type == RouteLocal || r.Type == RouteAnycast {
		if r.Type == RouteAnycast && r.PrefSrc == [16]byte{} {
			r.PrefSrc, _ = s.source6(r.Dev, r.NextHop) // from the interface it is on
		}
		r.Dev, r.MTU = s.lo, uint32(s.lo.MTU)
	}
}

// Back is the route of a packet of the router's own to p's source, as for an
// ICMP error about p, with PrefixLen. false: there is no way back.
func (s *Snapshot) Back(p *packet.Packet, r *Route) bool {
	q := Query{Family: p.Family, TOS: tosOf(p), Dst: p.Src()}
	if p.Family == packet.IPv6 && linkScope6(&q.Dst) {
		q.Out = p.In
	}
	var ok bool
	if ok = s.find(&q, r); !ok {
		return false
	}
	ip := Addr(p.Family, q.Dst)
	if t := s.tables[r.Table]; t != nil {
		if at, _, found := t.LookupPrefixLPM(netip.PrefixFrom(ip, ip.BitLen())); found {
			r.PrefixLen = uint8(at.Bits())
		}
	}
	s.viaLoopback(r)
	return true
}

// Source is the address that the router itself speaks from on route r of p,
// where the sender left it open: the route's preferred one, or one of the
// outgoing interface.
func (s *Snapshot) Source(p *packet.Packet, r *Route) ([16]byte, bool) {
	if r.PrefSrc != [16]byte{} {
		return r.PrefSrc, true
	}
	if p.Family == packet.IPv6 {
		return s.source6(r.Dev, p.Dst())
	}
	var gw [16]byte
	if r.Gateway {
		gw = r.NextHop
	}
	return s.source4(r.Dev, gw, r.Scope)
}

// ReversePath is what `-m rpfilter` asks: does the way back to p's source lead
// out where p came in (loose: anywhere)? A source of the router's own passes
// with acceptLocal only.
func (s *Snapshot) ReversePath(p *packet.Packet, loose, validMark, acceptLocal bool) bool {
	q := Query{Family: p.Family, TOS: tosOf(p), Dst: p.Src(), Src: p.Dst()}
	if validMark {
		q.Mark = p.Mark
	}
	if p.Family == packet.IPv6 {
		return s.reversePath6(p, &q, loose, acceptLocal)
	}
	q.TOS &= 0x1c // the match looks at IPTOS_RT_MASK alone
	typ, h := s.lookupHop4(&q, 0)
	if h == nil || typ != RouteUnicast && (typ != RouteLocal || !acceptLocal) {
		return false
	}
	return loose || p.In != nil && (int(h.dev) == p.In.Index || typ == RouteLocal && p.In == s.lo)
}

func (s *Snapshot) reversePath6(p *packet.Packet, q *Query, loose, acceptLocal bool) bool {
	if q.Dst == [16]byte{} || q.Dst[0] == 0xff {
		return false
	}
	strict := linkScope6(&q.Dst)
	if strict || !loose {
		q.In = p.In
	}
	if strict {
		q.Out, q.In = p.In, nil
	}
	r, ok := s.Lookup(q)
	if !ok {
		return false
	}
	if r.Type == RouteLocal || r.Type == RouteAnycast {
		return r.Type == RouteLocal && acceptLocal
	}
	return loose || r.Dev == p.In
}

// Forwarding reports whether packets that come in on this interface are
// forwarded: IPv4 by the interface, IPv6 for all or by force_forwarding.
func (s *Snapshot) Forwarding(in *packet.Iface, family uint8) bool {
	if family == packet.IPv4 {
		return s.Conf(in).V4(Forwarding) != 0
	}
	return s.conf.all.V6(V6Forwarding) != 0 || s.Conf(in).V6(V6ForceForwarding) != 0
}

// SendRedirects reports whether the sender of p, which leaves where it came in,
// is to be told of the next hop: the interface sends redirects, the sender is
// on its link, and so is the next hop.
func (s *Snapshot) SendRedirects(p *packet.Packet) bool {
	if p.In == nil || p.In != p.Out {
		return false
	}
	if p.Family == packet.IPv6 {
		return true
	}
	conf := s.Conf(p.In)
	if conf.V4(SendRedirects) == 0 {
		return false
	}
	q := Query{Family: p.Family, TOS: tosOf(p), Mark: p.Mark, In: p.In, Src: p.Src(), Dst: p.Dst()}
	direct, reason := s.validateSource(&q, conf, int32(p.Out.Index))
	if !direct || reason != 0 {
		return false
	}
	return conf.V4(SharedMedia) != 0 || s.sameNet4(p.Out.Index, q.Src, p.Route.NextHop)
}

// MulticastMember reports whether the router has joined the group that p is for
// on p.In: all hosts for IPv4; all nodes and all routers for IPv6 (solicited-node groups
// are joined where addresses are resolved, which is not so on a TUN device).
func (s *Snapshot) MulticastMember(p *packet.Packet) bool {
	if p.In == nil || p.In == s.lo {
		return true
	}
	if p.Family == packet.IPv4 {
		return [4]byte(p.Bytes()[16:20]) == [4]byte{224, 0, 0, 1}
	}
	return joined6(p.Dst())
}

// tosOf: IPv4's TOS, IPv6's traffic class.
func tosOf(p *packet.Packet) uint8 {
	b := p.Bytes()
	if p.Family == packet.IPv6 {
		return b[0]<<4 | b[1]>>4
	}
	return b[1]
}

var lbcast = [4]byte{255, 255, 255, 255}

func (s *Snapshot) input4(q *Query, r *Route) packet.Reason {
	src, dst := [4]byte(q.Src[:4]), [4]byte(q.Dst[:4])
	conf := s.Conf(q.In)
	if dst[0]&0xf0 == 0xe0 {
		return s.multicast4(q, conf, r)
	}
	if reason := badSource4(src); reason != 0 {
		return reason
	}
	if dst == lbcast || src == [4]byte{} && dst == [4]byte{} {
		return s.broadcast4(q, conf, r)
	}
	if src == [4]byte{} {
		return ReasonMartianSource
	}
	if dst == [4]byte{} {
		return ReasonMartianDestination
	}
	if q.In != s.lo && (src[0] == 127 || dst[0] == 127) && conf.V4(RouteLocalnet) == 0 {
		if dst[0] == 127 {
			return ReasonMartianDestination
		}
		return ReasonMartianSource
	}
	ok := s.find(q, r)
	switch {
	case !ok:
		if conf.V4(Forwarding) == 0 {
			return ReasonForwardingOff
		}
		return 0
	case r.Type == RouteBroadcast:
		if conf.V4(BCForwarding) != 0 && conf.V4(Forwarding) != 0 {
			r.Type = RouteUnicast
			return 0
		}
		return s.broadcast4(q, conf, r)
	case r.Type == RouteLocal:
		_, reason := s.validateSource(q, conf, 0)
		return reason
	case conf.V4(Forwarding) == 0:
		return ReasonForwardingOff
	case r.Type != RouteUnicast:
		return ReasonMartianDestination
	}
	_, reason := s.validateSource(q, conf, int32(r.Dev.Index))
	return reason
}

func badSource4(src [4]byte) packet.Reason {
	if src[0]&0xf0 == 0xe0 || src == lbcast {
		return ReasonMartianSource
	}
	return 0
}

// broadcast4 takes a broadcast to INPUT: its source may be zero (DHCP), else it has to be valid.
func (s *Snapshot) broadcast4(q *Query, conf *Conf, r *Route) packet.Reason {
	*r = Route{Type: RouteBroadcast, Scope: ScopeHost, Dev: q.In, NextHop: q.Dst, MTU: uint32(q.In.MTU)}
	return s.validateAnyDst(q, conf)
}

func (s *Snapshot) multicast4(q *Query, conf *Conf, r *Route) packet.Reason {
	src := [4]byte(q.Src[:4])
	if reason := badSource4(src); reason != 0 {
		return reason
	}
	if src[0] == 127 && q.In != s.lo && conf.V4(RouteLocalnet) == 0 {
		return ReasonMartianSource
	}
	*r = Route{Type: RouteMulticast, Scope: ScopeHost, Dev: q.In, NextHop: q.Dst, MTU: uint32(q.In.MTU)}
	if src == [4]byte{} && [3]byte(q.Dst[:3]) != [3]byte{224, 0, 0} {
		return ReasonMartianSource // who has no address yet may ask link-local groups alone
	}
	return s.validateAnyDst(q, conf)
}

func (s *Snapshot) validateAnyDst(q *Query, conf *Conf) packet.Reason {
	if q.Src == [16]byte{} {
		return 0
	}
	v := *q
	v.Dst = [16]byte{}
	_, reason := s.validateSource(&v, conf, 0)
	return reason
}

// sameNet4: both addresses are on one of the interface's networks (inet_addr_onlink).
func (s *Snapshot) sameNet4(index int, a, b [16]byte) bool {
	x, y := netip.AddrFrom4([4]byte(a[:4])), netip.AddrFrom4([4]byte(b[:4]))
	for _, p := range s.Addrs(index) {
		if !p.Secondary && p.Prefix.Contains(x) && p.Prefix.Contains(y) {
			return true
		}
	}
	return false
}

// ValidateSource is the check of p's source address alone, as Input makes it
// for a packet to the router itself: martians and rp_filter for IPv4, the
// addresses that IPv6 rules out.
func (s *Snapshot) ValidateSource(p *packet.Packet, in *packet.Iface) packet.Reason {
	b := p.Bytes()
	q := Query{Family: p.Family, TOS: tosOf(p), Mark: p.Mark, In: in}
	if p.Family == packet.IPv6 {
		q.Src, q.Dst = [16]byte(b[8:24]), [16]byte(b[24:40])
		return s.check6(&q)
	}
	copy(q.Src[:4], b[12:16])
	copy(q.Dst[:4], b[16:20])
	src := [4]byte(q.Src[:4])
	conf := s.Conf(in)
	if src[0]&0xf0 == 0xe0 || src == lbcast || src == [4]byte{} || src[0] == 127 && in != s.lo && conf.V4(RouteLocalnet) == 0 {
		return ReasonMartianSource
	}
	_, reason := s.validateSource(&q, conf, 0)
	return reason
}

// validateSource is fib_validate_source. out is the interface that the packet
// leaves through, 0 for none. direct: the source is a neighbour on q.In.
func (s *Snapshot) validateSource(q *Query, conf *Conf, out int32) (direct bool, reason packet.Reason) {
	if q.In == s.lo {
		return false, 0 // the router's own; Linux keeps the route that it was sent with
	}
	rpf := conf.V4(RPFilter)
	in := int32(q.In.Index)
	if rpf == 0 && (in != out || conf.V4(SendRedirects) == 0) {
		if conf.V4(AcceptLocal) != 0 {
			return false, 0
		}
		if !s.custom[0] {
			if s.hasAddr4(q.Src) {
				return false, ReasonMartianSource
			}
			return false, 0
		}
	}
	back := Query{Family: packet.IPv4, TOS: q.TOS, Dst: q.Src, Src: q.Dst}
	if out != 0 {
		back.In = s.Iface(int(out))
	}
	if conf.V4(SrcValidMark) != 0 {
		back.Mark = q.Mark
	}
	r, h := s.lookupHop4(&back, 0)
	if h == nil {
		if rpf != 0 {
			return false, ReasonRPFilter
		}
		return false, 0
	}
	if r != RouteUnicast && (r != RouteLocal || conf.V4(AcceptLocal) == 0) {
		return false, ReasonMartianSource
	}
	if h.dev == in || r == RouteLocal && q.In == s.lo {
		return h.nhScope >= ScopeHost, 0
	}
	if !s.hasAny4(q.In.Index) {
		if rpf != 0 {
			return false, ReasonRPFilter
		}
		return false, 0
	}
	if rpf == 1 {
		return false, ReasonRPFilter
	}
	if r, h = s.lookupHop4(&back, in); h != nil && r == RouteUnicast {
		return h.nhScope >= ScopeHost, 0
	}
	return false, 0
}

// lookupHop4 is Lookup for the way back; nil if there is none, or an error route.
func (s *Snapshot) lookupHop4(q *Query, out int32) (RouteType, *hop) {
	if out != 0 {
		q.Out = s.Iface(int(out))
	}
	dst := netip.AddrFrom4([4]byte(q.Dst[:4]))
	rules := s.rules[0]
	for i := range rules {
		ru := &rules[i]
		if !ru.all && !ru.match(q, dst) {
			continue
		}
		if ru.table == nil {
			return ru.Action, nil // an error
		}
		w, ok := ru.table.Lookup(dst)
		if !ok {
			continue
		}
		h := &w.first
		if out != 0 {
			if h = pick(ru.table, dst, w, out, true); h == nil {
				continue
			}
		}
		switch {
		case h.typ == RouteThrow:
		case h.typ >= RouteBlackhole:
			return h.typ, nil
		default:
			return h.typ, h
		}
	}
	return RouteNone, nil
}

// hasAddr4: the address itself is an interface's (inet_lookup_ifaddr_rcu).
func (s *Snapshot) hasAddr4(a [16]byte) bool {
	t := s.local
	if t == nil {
		return false
	}
	ip := netip.AddrFrom4([4]byte(a[:4]))
	w, ok := t.Lookup(ip)
	if !ok || w.first.typ != RouteLocal {
		return false
	}
	_, exact := t.Get(netip.PrefixFrom(ip, 32))
	return exact
}

func (s *Snapshot) hasAny4(index int) bool {
	for i, addrs := 0, s.Addrs(index); i < len(addrs); i++ {
		if addrs[i].Prefix.Addr().Is4() {
			return true
		}
	}
	return false
}

// check6 is what ipv6_rcv says of addresses.
func (s *Snapshot) check6(q *Query) packet.Reason {
	src, dst := netip.AddrFrom16(q.Src), netip.AddrFrom16(q.Dst)
	switch {
	case src.IsMulticast():
		return ReasonMartianSource6
	case q.In == s.lo:
		return 0
	case src.IsLoopback():
		return ReasonMartianSource6
	case dst.IsLoopback():
		return ReasonMartianDst6
	case q.Dst[0] == 0xff && q.Dst[1]&15 <= 1:
		return ReasonMartianDst6
	}
	return 0
}

func (s *Snapshot) input6(q *Query, r *Route) packet.Reason {
	if s.Conf(q.In).V6(V6DisableIPv6) != 0 {
		return ReasonDisabled6
	}
	if reason := s.check6(q); reason != 0 {
		return reason
	}
	if q.Dst[0] == 0xff {
		*r = Route{Type: RouteMulticast, Dev: q.In, NextHop: q.Dst, MTU: uint32(q.In.MTU)}
		return 0
	}
	s.find(q, r)
	return 0
}

func joined6(g [16]byte) bool {
	all := [16]byte{0xff, g[1]}
	switch all[15] = g[15]; {
	case g == all && g[15] == 1 && g[1] <= 2, g == all && g[15] == 2 && (g[1] <= 2 || g[1] == 5):
		return true
	}
	return false
}
