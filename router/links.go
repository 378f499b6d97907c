package router

import (
	"sluice/internal/host"
	"sluice/netstack"
)

// openLink opens an interface's device or files.
func (r *Router) openLink(c *InterfaceConfig, index int) (netstack.Link, error) {
	if r.opt.Open != nil {
		if l, err := r.opt.Open(c, index); l != nil || err != nil {
			return l, err
		}
	}
	queues := c.Queues
	if queues == 0 {
		queues = len(r.workers)
	}
	switch c.Type {
	case TypePacket:
		p := netstack.PacketConfig{Name: c.Name, Index: index, MTU: c.MTU, Queues: queues, Addresses: c.Addresses}
		if c.Host != nil {
			p.NetNS = c.Host.NetNS
		}
		return netstack.OpenPacket(p)
	case TypeUplink:
		return r.openUplink(c, index)
	case TypePcap:
		return netstack.OpenPcap(netstack.PcapConfig{Name: c.Name, Index: index, MTU: c.MTU, Read: c.Read, Write: c.Write, Wall: r.wall})
	}
	t := netstack.TUNConfig{Name: c.Name, Index: index, MTU: c.MTU, Queues: queues, Offload: c.Offload, Host: HostEnd(c)}
	if c.Owner.Name != "" {
		t.Owner = &c.Owner.UID
	}
	return netstack.OpenTUN(t)
}

// HostEnd is what a configuration says of the kernel's end of a TUN device; nil if nothing.
func HostEnd(c *InterfaceConfig) *host.End {
	if c.Host == nil {
		return nil
	}
	e := &host.End{NetNS: c.Host.NetNS, MTU: c.Host.MTU, Addresses: c.Host.Addresses}
	for _, rt := range c.Host.Routes {
		e.Routes = append(e.Routes, host.Route{To: rt.To, Via: rt.Via, Src: rt.Src, Metric: rt.Metric})
	}
	return e
}
