package router

import (
	"fmt"
	"net/netip"

	"sluice/conntrack"
	"sluice/netstack"
	"sluice/netstack/uplink"
	"sluice/packet"
)

// openUplink opens an interface whose far side is the host's sockets.
func (r *Router) openUplink(c *InterfaceConfig, index int) (netstack.Link, error) {
	u := uplink.Config{
		Name: c.Name, Index: index, MTU: c.MTU, Queues: len(r.workers), MaxFlows: c.MaxFlows, Log: r.log,
		Router: r.ownAddress, Check: strictCheck{r},
		IsLocal: func(family uint8, a [16]byte) bool {
			return r.fib.IsLocal(family, a)
		},
	}
	for _, a := range c.HostLoopback {
		if a.Is4() {
			u.Loopback4 = a
		} else {
			u.Loopback6 = a
		}
	}
	for _, a := range c.Source {
		if a.Is4() {
			u.Source4 = a
		} else {
			u.Source6 = a
		}
	}
	return uplink.Open(u)
}

// ownAddress is the router's own address on the way to another.
func (r *Router) ownAddress(family uint8, to [16]byte) ([16]byte, bool) {
	a, ok := r.local.Source(packet.Addr(family, to))
	if !ok || a.IsLoopback() {
		return [16]byte{}, false
	}
	return packet.AddrBytes(a), true
}

// acceptLocal has uplinks take packets from the router's own addresses: those
// of published connections whose peer's address cannot arrive. A configuration
// that says otherwise is heeded afterwards.
func (r *Router) acceptLocal(made []*link) {
	for _, l := range made {
		if v := r.sysctl.Lookup("net.ipv4.conf." + l.cfg.Name + ".accept_local"); v != nil && l.cfg.Type == TypeUplink {
			v.Store(1)
		}
	}
}

// publish makes the uplinks' published ports those of cfg. With an error nothing has changed.
func (r *Router) publish(cfg *Config, links []*link) error {
	var done []*link
	for _, l := range links {
		u, ok := l.link.(*uplink.Link)
		if !ok || l.gone {
			continue
		}
		if err := u.SetPublish(published(cfg, l.cfg.Name)); err != nil {
			for _, d := range done {
				if e := d.link.(*uplink.Link).SetPublish(published(r.cfg, d.cfg.Name)); e != nil {
					r.log.Error("going back to the former published ports", "interface", d.cfg.Name, "err", e)
				}
			}
			return fmt.Errorf("interface %s: %w", l.cfg.Name, err)
		}
		done = append(done, l)
	}
	return nil
}

// published is what a configuration publishes through an uplink.
func published(cfg *Config, name string) []uplink.Publish {
	var out []uplink.Publish
	for i := range cfg.Publish {
		p := &cfg.Publish[i]
		via := p.Interface
		if via == "" {
			via = cfg.firstUplink()
		}
		if via == name {
			out = append(out, uplink.Publish{Network: p.Listen.Network, Listen: p.Listen.Addr, To: p.To})
		}
	}
	return out
}

// firstUplink is the name of the first uplink, "" without one.
func (c *Config) firstUplink() string {
	for i := range c.Interfaces {
		if c.Interfaces[i].Type == TypeUplink {
			return c.Interfaces[i].Name
		}
	}
	return ""
}

// Peer is who really connected to a published port, where packets come from
// `from` to `to`; false: the connection was not published, or there is none.
func (r *Router) Peer(proto uint8, from, to netip.AddrPort) (netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.links {
		if u, ok := l.link.(*uplink.Link); ok && !l.gone {
			if a, ok := u.Peer(proto, to, from); ok {
				return a, true
			}
		}
	}
	return netip.AddrPort{}, false
}

// uplinkTakes gives a packet for the router itself to the uplink whose flow it
// belongs to: one whose peer appears as the router. taken: it has ended.
func (w *worker) uplinkTakes(p *packet.Packet) (taken, ok bool) {
	for _, d := range w.uplinks {
		if u := d.link.(*uplink.Link); !d.gone && u.Takes(p) {
			return true, d.send(w, p)
		}
	}
	return false, false
}

// truePeer is who really sent a packet that came in by an uplink, where that
// appears as the router; false: the packet's source says it.
func (w *worker) truePeer(p *packet.Packet) (netip.AddrPort, bool) {
	if p.In == nil || p.Flags&packet.HasPorts == 0 {
		return netip.AddrPort{}, false
	}
	for _, d := range w.uplinks {
		if d.iface.Index != p.In.Index {
			continue
		}
		from, to := netip.AddrPortFrom(p.SrcAddr(), p.SrcPort()), netip.AddrPortFrom(p.DstAddr(), p.DstPort())
		if e := w.ct.Entry(p); e != nil && !p.CtInfo.Reply() { // as it came, whatever NAT made of it
			t := e.Tuple(conntrack.Original)
			from, to = netip.AddrPortFrom(packet.Addr(t.Family, t.Src), t.SrcPort), netip.AddrPortFrom(packet.Addr(t.Family, t.Dst), t.DstPort)
		}
		peer, ok := d.link.(*uplink.Link).Peer(p.Proto, to, from)
		return peer, ok && peer != from
	}
	return netip.AddrPort{}, false
}
