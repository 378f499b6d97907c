package router

import (
	"net/netip"
	"slices"

	"sluice/netstack"
	"sluice/netstack/services"
)

// statusSource is what the status page shows.
type statusSource struct{ r *Router }

func (s statusSource) Status() any { return s.r.Status() }

func serviceSpecs(cfg *Config) []services.Config {
	var out []services.Config
	for i := range cfg.Services {
		c := &cfg.Services[i]
		s := services.Config{Type: c.Type, UID: c.UID, GID: c.GID, SockOpts: netstack.SockOpts{Transparent: c.Transparent, Mark: c.Mark}}
		for _, l := range c.Listen {
			s.Listen = append(s.Listen, services.Listen{Network: l.Network, Addr: l.Addr})
		}
		out = append(out, s)
	}
	return out
}

// dropLostAddresses ends the connections that were masqueraded behind
// addresses which an interface does not have any more.
func (r *Router) dropLostAddresses(old, cfg *Config) {
	for i := range old.Interfaces {
		was := &old.Interfaces[i]
		is := cfg.Interface(was.Name)
		for _, l := range r.links {
			if is == nil || l.cfg.Name != was.Name {
				continue
			}
			for _, a := range was.Addresses {
				if !slices.ContainsFunc(is.Addresses, func(p netip.Prefix) bool { return p.Addr() == a.Addr() }) {
					r.nat.AddressGone(l.iface.Index, addr16(a.Addr()))
				}
			}
		}
	}
}
