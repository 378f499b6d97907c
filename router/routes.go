package router

import (
	"encoding/binary"
	"net/netip"

	"sluice/netstack"
	"sluice/packet"
	"sluice/tables"
)

// routes answers what rules ask of routing (tables.Routes) by the present routing state.
type routes struct{ r *Router }

func (x routes) AddrType(fam uint8, addr [16]byte, dev *packet.Iface) uint8 {
	return uint8(x.r.fib.Load().AddrType(fam, addr, dev))
}

func (x routes) ReversePath(p *packet.Packet, loose, validmark, acceptLocal bool) bool {
	return x.r.fib.ReversePath(p, loose, validmark, acceptLocal)
}

func (x routes) SourceFor(fam uint8, dev *packet.Iface, nexthop [16]byte) ([16]byte, bool) {
	return x.r.fib.Load().SourceFor(fam, dev, nexthop)
}

// FirstAddr goes by the order of the kernel's lists: for IPv4 as they were
// added, for IPv6 wider scopes first and in each the newest first.
func (x routes) FirstAddr(fam uint8, dev *packet.Iface) (first [16]byte, ok bool) {
	if dev == nil {
		return first, false
	}
	wide := false
	for _, a := range x.r.fib.Load().Addrs(dev.Index) {
		switch ip := a.Prefix.Addr(); {
		case familyOf(ip) != fam:
		case fam == packet.IPv4 && !a.Secondary:
			return addr16(ip), true
		case fam == packet.IPv6 && (!wide || !ip.IsLinkLocalUnicast()):
			first, ok, wide = addr16(ip), true, !ip.IsLinkLocalUnicast()
		}
	}
	return first, ok
}

func (x routes) Ifaces() []*packet.Iface { return x.r.fib.Load().Ifaces() }

// PathMTU: where the routing decision was made already, the forward way is known.
func (x routes) PathMTU(p *packet.Packet, reverse bool) int {
	if !reverse && p.Out != nil {
		return mtuOf(p)
	}
	q := netstack.Query{Family: p.Family, TOS: p.TOS(), Dst: p.Dst(), Mark: p.Mark}
	if reverse {
		q.Dst = p.Src()
	}
	rt, ok := x.r.fib.Load().Lookup(&q)
	if !ok {
		return 0
	}
	return int(rt.MTU)
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return packet.IPv4
	}
	return packet.IPv6
}

func addr16(a netip.Addr) (b [16]byte) {
	if a.Is4() {
		v4 := a.As4()
		copy(b[:], v4[:])
	} else if a.IsValid() {
		b = a.As16()
	}
	return b
}

// sockets answers what rules ask of the router's own sockets (tables.Sockets).
type sockets struct{ r *Router }

func (x sockets) Find(k *tables.SocketKey) (tables.Socket, bool) {
	s, ok := x.r.local.FindSocket(&netstack.SockKey{
		Proto: k.Proto, Listener: k.Listener,
		Local:  netip.AddrPortFrom(packet.Addr(k.Family, k.Local), k.LocalPort),
		Remote: netip.AddrPortFrom(packet.Addr(k.Family, k.Remote), k.RemotePort),
	})
	return ruleSocket(&s), ok
}

func (x sockets) Assigned(id uint32) (tables.Socket, bool) {
	if id == 0 {
		return tables.Socket{}, false
	}
	s, ok := x.r.local.SocketByID(id)
	return ruleSocket(&s), ok
}

func ruleSocket(s *netstack.SockInfo) tables.Socket {
	return tables.Socket{
		ID: s.ID, Connected: s.Connected, TimeWait: s.TimeWait, Wildcard: s.Wildcard,
		Transparent: s.Transparent, Marked: s.Known, Mark: s.Mark,
	}
}

// localOptions is what the local stack asks of the router.
func (r *Router) localOptions(workers int) netstack.LocalOptions {
	return netstack.LocalOptions{
		Workers: workers,
		Output:  r.rings,
		Source: func(dst netip.Addr) (netip.Addr, bool) {
			fam := familyOf(dst)
			rt, ok := r.fib.Lookup(&netstack.Query{Family: fam, Dst: addr16(dst)})
			if !ok {
				return netip.Addr{}, false
			}
			if rt.PrefSrc != [16]byte{} {
				return netstack.Addr(fam, rt.PrefSrc), true
			}
			to := rt.NextHop
			if fam == packet.IPv6 {
				to = addr16(dst)
			}
			a, ok := r.fib.Load().SourceFor(fam, rt.Dev, to)
			return netstack.Addr(fam, a), ok
		},
		PathMTU: func(dst netip.Addr) int {
			rt, ok := r.fib.Lookup(&netstack.Query{Family: familyOf(dst), Dst: addr16(dst)})
			if !ok {
				return 0
			}
			return int(rt.MTU)
		},
		IsLocal: func(dst netip.Addr) bool { return r.fib.Load().IsLocal(familyOf(dst), addr16(dst)) },
		AllowICMP: func(family, typ, code uint8, dst netip.Addr) bool {
			plen := 128
			if family == packet.IPv6 {
				plen = 64 // as for a neighbour: a route of its own is not looked up
			}
			return r.limit.allow(family, typ, code, addr16(dst), plen, r.clock())
		},
	}
}

// setLocalAddresses gives the local stack the addresses that routing has.
func (r *Router) setLocalAddresses() {
	s := r.fib.Load()
	var all []netip.Prefix
	for _, i := range s.Ifaces() {
		if i == r.lo {
			continue
		}
		at := len(all)
		for _, a := range s.Addrs(i.Index) {
			all = append(all, a.Prefix)
		}
		r.tellNeighbours(i, all[at:])
	}
	if err := r.local.SetAddresses(all); err != nil {
		r.log.Error("addresses of the local stack", "err", err)
	}
}

// tellNeighbours lets an interface with a link layer answer for its addresses.
func (r *Router) tellNeighbours(i *packet.Iface, addrs []netip.Prefix) {
	for _, l := range r.links {
		if e, ok := l.link.(interface{ SetAddresses([]netip.Prefix) }); ok && l.iface.Index == i.Index {
			e.SetAddresses(addrs)
		}
	}
}

// broadcastMask is the mask of the network that a packet is broadcast to, by
// the addresses of the interface it leaves by.
func (r *Router) broadcastMask(p *packet.Packet) (mask [16]byte, ok bool) {
	if p.Out == nil || p.Family != packet.IPv4 {
		return mask, false
	}
	for _, a := range r.fib.Load().Addrs(p.Out.Index) {
		bits := a.Prefix.Bits()
		if !a.Prefix.Addr().Is4() || bits > 30 {
			continue
		}
		net, m := a.Prefix.Addr().As4(), ^uint32(0)<<(32-bits)
		if dst := p.Dst(); binary.BigEndian.Uint32(dst[:]) == binary.BigEndian.Uint32(net[:])|^m {
			binary.BigEndian.PutUint32(mask[:], m)
			return mask, true
		}
	}
	return mask, false
}
