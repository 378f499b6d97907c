package router

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sluice/packet"
	"sluice/tables/ipset"
)

// Sets that [dns] allow puts addresses into, by family. With a port in the list's
// entry it is one of the latter, which rules ask with "dst,dst".
const (
	SetAllowed      = "allowed"       // hash:net
	SetAllowedPort  = "allowed-port"  // hash:net,port
	SetAllowed6     = "allowed6"      // hash:net, family inet6
	SetAllowedPort6 = "allowed-port6" // hash:net,port, family inet6
)

// allowSets are those sets as [[set]] would have them: without a timeout of
// their own, an element has the one that it is added with.
func allowSets() []SetConfig {
	return []SetConfig{
		{Name: SetAllowed, Type: "hash:net", Family: "inet", Timeout: new(uint32)},
		{Name: SetAllowedPort, Type: "hash:net,port", Family: "inet", Timeout: new(uint32)},
		{Name: SetAllowed6, Type: "hash:net", Family: "inet6", Timeout: new(uint32)},
		{Name: SetAllowedPort6, Type: "hash:net,port", Family: "inet6", Timeout: new(uint32)},
	}
}

// AllowRules are the rules of an allow list for what leaves by an interface:
// what is established goes on, what the sets hold may begin, and the rest is
// noted for the Summary and rejected.
func AllowRules(family uint8, out string) []string {
	all, port := SetAllowed, SetAllowedPort
	if family == packet.IPv6 {
		all, port = SetAllowed6, SetAllowedPort6
	}
	to := "-A FORWARD -o " + out
	return []string{
		"-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
		to + " -m set --match-set " + all + " dst -j ACCEPT",
		to + " -m set --match-set " + port + " dst,dst -j ACCEPT",
		to + ` -j LOG --log-prefix "` + DeniedPrefix + `"`,
		to + " -j REJECT",
	}
}

// Complete is the configuration with what others of its entries imply: the sets
// of [dns] allow, where [[set]] has none of that name.
func (c *Config) Complete() *Config {
	if c.DNS == nil || len(c.DNS.Allow) == 0 {
		return c
	}
	out := *c
	out.Sets = slices.Clone(c.Sets)
	for _, s := range allowSets() {
		if c.set(s.Name) == nil {
			s.Pos = c.DNS.Pos
			out.Sets = append(out.Sets, s)
		}
	}
	return &out
}

// pins puts addresses of allowed names into the sets.
type pins struct{ r *Router }

// Pin implements resolver.Pins.
func (s pins) Pin(p netip.Prefix, port uint16, ttl time.Duration) error {
	names := [2]string{SetAllowed, SetAllowedPort}
	family := packet.IPv4
	if p.Addr().Is6() {
		names, family = [2]string{SetAllowed6, SetAllowedPort6}, packet.IPv6
	}
	e := ipset.Elem{Addr: packet.AddrBytes(p.Addr()), Bits: uint8(p.Bits())}
	x := ipset.Ext{HasTimeout: true, Timeout: uint32(min(ttl/time.Second, ipset.MaxTimeout))}
	if port == 0 {
		return s.add(names[0], family, &e, &x)
	}
	e.Port = port
	var errs []error
	for _, e.Proto = range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
		errs = append(errs, s.add(names[1], family, &e, &x))
	}
	return errors.Join(errs...)
}

func (s pins) add(name string, family uint8, e *ipset.Elem, x *ipset.Ext) error {
	set := s.r.sets.Get(name)
	if set == nil {
		return fmt.Errorf("set %s is not there", name)
	}
	if set.Family() != family {
		return fmt.Errorf("set %s is of the other family", name)
	}
	if e.Bits == 0 { // networks in sets have a length: everything is two halves
		for half := range 2 {
			h := *e
			h.Bits = 1
			h.Addr[0] = byte(half) << 7
			if err := set.Add(&h, x, true); err != nil {
				return fmt.Errorf("set %s: %w", name, err)
			}
		}
		return nil
	}
	if err := set.Add(e, x, true); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}
