package netstack

import (
	"net/netip"

	"sluice/packet"
)

// AddrType is the RTN_* type of an address as `-m addrtype` asks for it: for
// IPv4 by table local alone (inet_addr_type, or with dev
// inet_addr_type_dev_table), for IPv6 by the route.
func (s *Snapshot) AddrType(family uint8, a [16]byte, dev *packet.Iface) RouteType {
	if family == packet.IPv4 {
		return s.addrType4(a, dev)
	}
	ip := netip.AddrFrom16(a)
	if ip.IsMulticast() {
		return RouteMulticast
	}
	if t := s.local; t != nil {
		if w, ok := t.Lookup(ip); ok {
			for i := -1; i < len(w.rest); i++ {
				if h := w.at(i); dev == nil || int(h.dev) == dev.Index {
					return h.typ
				}
			}
		}
	}
	q := Query{Family: family, Dst: a, Out: dev}
	r, ok := s.Lookup(&q)
	if !ok {
		return RouteUnreachable
	}
	if r.Type == RouteLocal {
		return RouteUnicast // another interface's
	}
	return r.Type
}

func (s *Snapshot) addrType4(a [16]byte, dev *packet.Iface) RouteType {
	ip := netip.AddrFrom4([4]byte(a[:4]))
	switch {
	case ip.IsUnspecified() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return RouteBroadcast
	case ip.IsMulticast():
		return RouteMulticast
	}
	if t := s.local; t != nil {
		if w, ok := t.Lookup(ip); ok {
			for i := -1; i < len(w.rest); i++ {
				if h := w.at(i); dev == nil || int(h.dev) == dev.Index {
					return h.typ
				}
			}
		}
	}
	return RouteUnicast
}

// at counts from -1, the first hop.
func (w *ways) at(i int) *hop {
	if i < 0 {
		return &w.first
	}
	return &w.rest[i]
}

// IsLocal reports whether a is one of the router's own addresses, the rest of 127.0.0.0/8 included.
func (s *Snapshot) IsLocal(family uint8, a [16]byte) bool { return s.isLocal(Addr(family, a)) }

func (s *Snapshot) isLocal(a netip.Addr) bool {
	t := s.local
	if t == nil {
		return false
	}
	w, ok := t.Lookup(a)
	return ok && w.first.typ == RouteLocal
}

// IsBroadcast reports whether an IPv4 address is a broadcast address: the limited one, or a network's.
func (s *Snapshot) IsBroadcast(a [16]byte) bool {
	return s.addrType4(a, nil) == RouteBroadcast
}

// SourceFor is the address from which the router speaks through dev to
// nexthop: for IPv4 inet_select_addr, for IPv6 the choice of RFC 6724. dev
// may be nil, nexthop zero. It is what MASQUERADE and ICMP errors ask.
func (s *Snapshot) SourceFor(family uint8, dev *packet.Iface, nexthop [16]byte) ([16]byte, bool) {
	if family == packet.IPv4 {
		return s.source4(dev, nexthop, ScopeUniverse)
	}
	return s.source6(dev, nexthop)
}

// SourceScope is SourceFor for IPv4 with a scope (ScopeLink: link-scope addresses do as well).
func (s *Snapshot) SourceScope(dev *packet.Iface, nexthop [16]byte, scope Scope) ([16]byte, bool) {
	return s.source4(dev, nexthop, scope)
}

func (s *Snapshot) source4(dev *packet.Iface, nexthop [16]byte, scope Scope) (out [16]byte, ok bool) {
	to := netip.AddrFrom4([4]byte(nexthop[:4]))
	if dev != nil {
		if d := s.dev(dev.Index); d != nil {
			local := ScopeHost
			if d.conf.V4(RouteLocalnet) != 0 {
				local = ScopeLink
			}
			for i := range d.addrs {
				a := &d.addrs[i]
				if a.Secondary || !a.Prefix.Addr().Is4() || min(a.Scope, local) > scope {
					continue
				}
				if to.IsUnspecified() || a.Prefix.Contains(to) {
					return addr16(a.Prefix.Addr()), true
				}
				if !ok {
					out, ok = addr16(a.Prefix.Addr()), true
				}
			}
			if ok {
				return out, true
			}
		}
	}
	for _, d := range s.devs {
		if d == nil {
			continue
		}
		for i := range d.addrs {
			a := &d.addrs[i]
			if !a.Secondary && a.Prefix.Addr().Is4() && a.Scope != ScopeLink && a.Scope <= scope {
				return addr16(a.Prefix.Addr()), true
			}
		}
	}
	return out, false
}

// source6 goes by the rules of RFC 6724 section 5 that apply to a router's
// static addresses: same address, scope, outgoing interface, label, and the
// longest matching prefix.
func (s *Snapshot) source6(dev *packet.Iface, dst [16]byte) (out [16]byte, ok bool) {
	var best score6
	for _, d := range s.devs {
		if d == nil {
			continue
		}
		onDev := dev != nil && d.iface.Index == dev.Index
		if dev != nil && !onDev && linkScope6(&dst) {
			continue // a link-local destination has its source on its own link
		}
		for i := len(d.addrs) - 1; i >= 0; i-- { // among equals the newest is Linux's choice
			a := &d.addrs[i]
			if !a.Prefix.Addr().Is6() {
				continue
			}
			b := a.Prefix.Addr().As16()
			sc := rate6(&b, &dst, a.Prefix.Bits(), onDev)
			if !ok || sc.better(&best) {
				best, out, ok = sc, b, true
			}
		}
	}
	return out, ok
}

type score6 struct {
	same  bool
	scope int // larger is better
	onDev bool
	label bool
	match int
}

func (a *score6) better(b *score6) bool {
	switch {
	case a.same != b.same:
		return a.same
	case a.scope != b.scope:
		return a.scope > b.scope
	case a.onDev != b.onDev:
		return a.onDev
	case a.label != b.label:
		return a.label
	}
	return a.match > b.match
}

func rate6(src, dst *[16]byte, plen int, onDev bool) score6 {
	sc := score6{same: *src == *dst, onDev: onDev, label: label6(src) == label6(dst)}
	// Rule 2: a scope as small as possible, but not below the destination's.
	if a, d := scope6(src), scope6(dst); a >= d {
		sc.scope = 32 - a
	} else {
		sc.scope = a - 32
	}
	for sc.match < plen && (src[sc.match/8]^dst[sc.match/8])&(0x80>>(sc.match%8)) == 0 {
		sc.match++
	}
	return sc
}

// scope6 is an address's scope as multicast numbers it: 1 interface, 2 link, 5 site, 14 global.
func scope6(a *[16]byte) int {
	switch {
	case a[0] == 0xff:
		return int(a[1] & 15)
	case a[0] == 0xfe && a[1]&0xc0 == 0x80:
		return 2
	case a[0] == 0xfe && a[1]&0xc0 == 0xc0:
		return 5
	case netip.AddrFrom16(*a).IsLoopback():
		return 2 // RFC 6724 3.4
	}
	return 14
}

var labels6 = []struct {
	p     netip.Prefix
	label int
}{
	{netip.MustParsePrefix("::1/128"), 0},
	{netip.MustParsePrefix("::ffff:0:0/96"), 4},
	{netip.MustParsePrefix("::/96"), 3},
	{netip.MustParsePrefix("2001::/32"), 6},
	{netip.MustParsePrefix("2001:10::/28"), 7},
	{netip.MustParsePrefix("2002::/16"), 2},
	{netip.MustParsePrefix("fc00::/7"), 5},
}

// label6 is from the kernel's default policy table (ip addrlabel).
func label6(a *[16]byte) int {
	ip := netip.AddrFrom16(*a)
	for i := range labels6 {
		if labels6[i].p.Contains(ip) {
			return labels6[i].label
		}
	}
	return 1
}
