package netstack

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
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
		if r.Src.Is4() != is4 || !tx.s.isLocal(r.Src) {
			return h, errPrefSrc
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
	g := tx.lookupScoped(r.Table, r.Via, h.dev, ScopeLink)
	if g == nil || g.typ != RouteUnicast && g.typ != RouteLocal {
		return errGateway
	}
	if h.dev == 0 {
		h.dev = g.dev
	}
	h.nhScope = g.scope
	return nil
}

// checkGateway6 is ip6_validate_gw.
func (tx *Tx) checkGateway6(r *RouteSpec, h *hop) error {
	if r.To.Addr().Is4() {
		return nil
	}
	gw := r.Via
	if tx.s.isLocal(gw) {
		return errLocalGW
	}
	switch {
	case gw.IsLinkLocalUnicast():
	case gw.IsMulticast() || gw.IsLoopback() || gw.Is4In6():
		return errInvalidGW
	case r.Onlink:
		if h.dev == 0 {
			return errOnlinkDev
		}
		return nil
	default:
		g := tx.lookupScoped(r.Table, gw, h.dev, 0)
		if g == nil || g.gateway || g.typ >= RouteBlackhole {
			return unix.EHOSTUNREACH
		}
		if h.dev == 0 {
			h.dev = g.dev
		}
	}
	if h.dev == 0 {
		return errEgress
	}
	return nil
}

// lookupScoped looks an address up in one table and then in Linux's usual
// ones, taking only hops through dev (0: any) of a scope at least min.
func (tx *Tx) lookupScoped(table uint32, a netip.Addr, dev int32, min Scope) *hop {
	order := []uint32{table, TableLocal, TableMain, TableDefault}
	if table == TableMain {
		order = order[1:]
	}
	for _, id := range order {
		t := tx.s.tables[id]
		if t == nil {
			continue
		}
		p, w, ok := t.LookupPrefixLPM(netip.PrefixFrom(a, a.BitLen()))
		for ok {
			for i := -1; i < len(w.rest); i++ {
				h := &w.first
				if i >= 0 {
					h = &w.rest[i]
				}
				if h.scope >= min && (dev == 0 || h.dev == dev) && h.typ != RouteThrow {
					return h
				}
			}
			if p.Bits() == 0 {
				break
			}
			p, w, ok = t.LookupPrefixLPM(netip.PrefixFrom(a, p.Bits()-1))
		}
	}
	return nil
}
