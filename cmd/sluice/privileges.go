package main

import (
	"sluice/internal/host"
	"sluice/router"
)

// needs is the capabilities that a router with this configuration uses while it
// runs, a reload included.
func needs(cfg *router.Config) []host.Capability {
	var namespaces []string
	for i := range cfg.Interfaces {
		namespaces = append(namespaces, cfg.Interfaces[i].Host.NetNSPath())
	}
	caps := host.Needed(namespaces...)
	for i := range cfg.Interfaces {
		if cfg.Interfaces[i].Type == router.TypePacket {
			return append(caps, host.CapNetRaw)
		}
	}
	return caps
}
