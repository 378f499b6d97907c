package netstack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"sluice/packet"
)

// What Linux answers to routes that cannot be; the texts are `ip route`'s.
var (
	errGateway    = errors.New("Nexthop has invalid gateway.")
	errPrefix     = errors.New("Invalid prefix for given prefix length.")
	errLocalGW    = errors.New("Gateway can not be a local address.")
	errInvalidGW  = errors.New("Invalid gateway address.")
	errEgress     = errors.New("Egress device not specified.")
	errOnlinkDev  = errors.New("Nexthop device required for onlink.")
	errErrorRoute = errors.New("Gateway, device and multipath can not be specified for this route type.")
	errEgressLo   = errors.New("Egress device can not be loopback device for this route")
	errOnlinkGW   = errors.New("Nexthop has invalid gateway or device mismatch")
	errSource6    = errors.New("Invalid source address.")
	errPrefSrc    = errors.New("Invalid prefsrc address.")
)

// check makes a hop of a spec, or says why Linux would not take it.
func (tx *Tx) check(r *RouteSpec) (hop, error) {
	var h hop
	if !r.To.IsValid() || r.To.Addr().Is4In6() || r.To.Masked() != r.To {
		return h, errPrefix
	}
	is4 := r.To.Addr().Is4()
	if r.Table == 0 {
		r.Table = TableMain
	}
	if r.Type == RouteNone {
		r.Type = RouteUnicast
	}
	if r.Proto == 0 {
		r.Proto = protoStatic
	}
	if r.Metric == 0 && !is4 {
		r.Metric = 1024
	}
	h = hop{typ: r.Type, proto: r.Proto, table: r.Table, metric: r.Metric, mtu: r.MTU, scope: r.Scope, nhScope: ScopeNowhere, onlink: r.Onlink}
	if r.MTU != 0 && (is4 && r.MTU < 68 || !is4 && r.MTU < 1280 || r.MTU > 65535) {
		return h, fmt.Errorf("route MTU %d is out of range", r.MTU)
	}
	if r.Type >= RouteBlackhole {
		if r.Type > RouteThrow {
			return h, fmt.Errorf("unknown route type %d", r.Type)
		}
		if r.Via.IsValid() || r.Dev != "" {
			return h, errErrorRoute
		}
		return h, nil
	}
	if r.Dev != "" {
		d := tx.s.devNamed(r.Dev)
		if d == nil {
			return h, fmt.Errorf("Cannot find device %q", r.Dev)
		}
		h.dev = int32(d.iface.Index)
	}
	if r.Via.IsValid() && !r.Via.IsUnspecified() {
		if r.Via.Is4() != is4 {
			return h, fmt.Errorf("gateway %s is not of the family of %s", r.Via, r.To)
		}
		h.gateway, h.via = true, addr16(r.Via)
		err := tx.checkGateway4(r, &h)
		if !is4 {
			err = tx.checkGateway6(r, &h)
		}
		if err != nil {
			return h, err
		}
	} else {
		if h.dev == 0 {
			return h, unix.ENODEV
		}
		if is4 && h.scope == ScopeUniverse && r.Type == RouteUnicast {
			h.scope = ScopeLink // `ip` says so for a route without a gateway
		}
		if is4 && r.Type == RouteLocal {
			h.scope = ScopeHost
		}
	}
	if r.Src.IsValid() {
		switch {
		case r.Src.Is4() != is4:
			return h, fmt.Errorf("source %s is not of the family of %s", r.Src, r.To)
		case is4 && !tx.s.isLocal(r.Src):
			return h, errPrefSrc
		case !is4 && !tx.own6(r.Src, h.dev):
			return h, errSource6
		}
		h.src = addr16(r.Src)
	}
	return h, nil
}

// checkGateway4 is fib_check_nh: the gateway is a neighbour on a connected network.
func (tx *Tx) checkGateway4(r *RouteSpec, h *hop) error {
	if !r.To.Addr().Is4() {
		return nil
	}
	if r.Onlink {
		if h.dev == 0 {
			return errOnlinkDev
		}
		if tx.s.addrType4(h.via, nil) != RouteUnicast {
			return errGateway
		}
		h.nhScope = ScopeLink
		return nil
	}
	g := tx.neighbour(r.Table, r.Via, h.dev, ScopeLink, func(g *hop) bool { return g.typ < RouteBlackhole })
	if g == nil || g.typ != RouteUnicast && g.typ != RouteLocal {
		return errGateway
	}
	if h.dev == 0 {
		h.dev = g.dev
	}
	h.nhScope, h.direct = g.scope, g.scope != ScopeLink
	return nil
}

// checkGateway6 is ip6_validate_gw.
func (tx *Tx) checkGateway6(r *RouteSpec, h *hop) error {
	if r.To.Addr().Is4() {
		return nil
	}
	gw := r.Via
	named := h.dev != 0
	if named && tx.own6(gw, h.dev) {
		return errLocalGW
	}
	switch {
	case gw.IsLinkLocalUnicast():
	case gw.IsMulticast():
		return errInvalidGW
	case r.Onlink:
		if !named {
			return errOnlinkDev
		}
		if t := tx.s.tables[TableMain]; t != nil {
			p, w, ok := t.LookupPrefixLPM(netip.PrefixFrom(gw, 128))
			if ok && !p.Addr().IsUnspecified() {
				if g := pick(t, gw, w, h.dev, false); g.typ < RouteBlackhole && (g.typ != RouteUnicast || g.dev != h.dev) {
					return errOnlinkGW
				}
			}
		}
	default:
		good := func(g *hop) bool { return !g.gateway && g.typ < RouteBlackhole }
		g := tx.neighbour(r.Table, gw, h.dev, 0, good)
		if g == nil || !good(g) {
			return unix.EHOSTUNREACH
		}
		if !named {
			h.dev = g.dev
		}
	}
	switch {
	case h.dev == 0:
		return errEgress
	case h.dev == 1:
		return errEgressLo
	case !named && tx.own6(gw, h.dev):
		return errLocalGW
	}
	return nil
}

// own6: a is an address of the router's; a link-local one, of dev.
func (tx *Tx) own6(a netip.Addr, dev int32) bool {
	if !a.IsLinkLocalUnicast() {
		return tx.s.isLocal(a)
	}
	if d := tx.s.dev(int(dev)); d != nil {
		for _, o := range d.addrs {
			if o.Prefix.Addr() == a {
				return true
			}
		}
	}
	return false
}

// neighbour looks a gateway up as the kernel does when it checks a route: in
// the route's own table, and where good does not like what is there, by the
// rules. Only hops through dev (0: any) of a scope of at least min count.
func (tx *Tx) neighbour(table uint32, a netip.Addr, dev int32, min Scope, good func(*hop) bool) *hop {
	// As long as there are no IPv4 rules but the default ones, Linux has tables local and main in one.
	if merged := a.Is4() && table == TableMain && !tx.hasRules4(); !merged {
		if g := scoped(tx.s.tables[table], a, dev, min); g != nil && good(g) {
			return g
		}
	}
	q := Query{Family: familyOf(a), Dst: addr16(a)}
	for i := range tx.s.specs {
		if tx.s.specs[i].Family != q.Family {
			continue
		}
		r := rule{Rule: tx.s.specs[i]}
		if r.iif, r.oif = tx.s.indexOf(r.IIF), tx.s.indexOf(r.OIF); !r.match(&q, a) {
			continue
		}
		if r.Action > RouteUnicast {
			return nil
		}
		if g := scoped(tx.s.tables[r.Table], a, dev, min); g != nil && g.typ != RouteThrow {
			return g
		}
	}
	return nil
}

func (tx *Tx) hasRules4() bool {
	for i := range tx.s.specs {
		if r := &tx.s.specs[i]; r.Family == packet.IPv4 && !isDefaultRule(r) {
			return true
		}
	}
	return false
}

// scoped finds the best hop of a table under neighbour's conditions.
func scoped(t *bart.Table[*ways], a netip.Addr, dev int32, min Scope) *hop {
	if t == nil {
		return nil
	}
	p, w, ok := t.LookupPrefixLPM(netip.PrefixFrom(a, a.BitLen()))
	for ok {
		for i := -1; i < len(w.rest); i++ {
			if h := w.at(i); h.scope >= min && (dev == 0 || h.dev == dev) {
				return h
			}
		}
		if p.Bits() == 0 {
			break
		}
		p, w, ok = t.LookupPrefixLPM(netip.PrefixFrom(a, p.Bits()-1))
	}
	return nil
}
