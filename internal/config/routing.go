package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/router"
)

func (c *checker) routes() {
	type id struct {
		to     netip.Prefix
		table  uint32
		metric uint32
	}
	seen := map[id]int{}
	for i := range c.cfg.Routes {
		r := &c.cfg.Routes[i]
		at := func(k string) router.Position { return c.pos("route", i, k) }
		before := len(c.errs)
		if !c.has("route", i, "to") {
			c.errorf(r.Pos, "this route has no to: write a prefix, or \"default\"")
		}
		c.routeTarget(i, r)
		if !c.sameFamily(r.To, r.Via) {
			c.errorf(at("via"), "via %s is of another family than %s", r.Via, r.To)
		}
		if !c.sameFamily(r.To, r.Src) {
			c.errorf(at("src"), "src %s is of another family than %s", r.Src, r.To)
		} else if r.Src.IsValid() && !c.owns(r.Src) {
			c.errorf(at("src"), "src %s is not an address of the router", r.Src)
		}
		if c.has("route", i, "table") && r.Table == 0 {
			c.errorf(at("table"), "table 0 does not exist; leave table out for the main one, %d", router.TableMain)
		}
		switch r.Type {
		case router.RouteUnicast:
			c.unicast(i, r)
		case router.RouteLocal:
			c.localRoute(i, r)
		case router.RouteBlackhole, router.RouteUnreachable, router.RouteProhibit:
			for _, k := range []string{"via", "dev", "src"} {
				if c.has("route", i, k) {
					c.errorf(c.keyPos("route", i, k), "a route of type %q goes nowhere: leave %s out", r.Type, k)
				}
			}
		default:
			c.errorf(at("type"), "no route type %q: \"unicast\", \"local\", \"blackhole\", \"unreachable\" or \"prohibit\"", r.Type)
		}
		if r.Type == router.RouteUnicast && !r.Via.IsValid() && r.Dev != "" && r.To.Bits() > 0 {
			c.links.add(r.To.Masked(), r.Dev)
		}
		if len(c.errs) > before {
			continue
		}
		k := id{r.To, r.Table, r.Metric}
		if line, dup := seen[k]; dup {
			c.errorf(r.Pos, "there is a route to %s with metric %d in table %d already, at line %d", r.To, r.Metric, r.Table, line)
		}
		seen[k] = r.Pos.Line
	}
}

// localRoute checks a route that makes addresses the router's own. As `ip route`
// has it, it goes to table local if it names none.
func (c *checker) localRoute(i int, r *router.RouteConfig) {
	if c.has("route", i, "via") {
		c.errorf(c.keyPos("route", i, "via"), "a route of type %q ends here: leave via out", r.Type)
		return
	}
	if r.Dev == "" {
		r.Dev = "lo"
	}
	if r.Dev != "lo" && c.cfg.Interface(r.Dev) == nil {
		c.errorf(c.pos("route", i, "dev"), "dev: no interface %q%s", r.Dev, suggest(r.Dev, append(c.names(), "lo")))
	}
	if !c.has("route", i, "table") {
		r.Table = router.TableLocal
	}
}

// madeLocal says whether a route in table local makes a the router's own.
func (c *checker) madeLocal(a netip.Addr) bool {
	for _, r := range c.cfg.Routes {
		if r.Type == router.RouteLocal && r.Table == router.TableLocal && r.To.IsValid() && r.To.Contains(a) {
			return true
		}
	}
	return false
}

// links are the networks that routes without via put behind interfaces.
type links struct {
	devs map[netip.Prefix][]string
	lens []int // the lengths of those prefixes, longest first
}

func (l *links) add(to netip.Prefix, dev string) {
	if l.devs == nil {
		l.devs = map[netip.Prefix][]string{}
	}
	if !slices.Contains(l.devs[to], dev) {
		l.devs[to] = append(l.devs[to], dev)
	}
	if i, ok := slices.BinarySearchFunc(l.lens, to.Bits(), func(a, b int) int { return b - a }); !ok {
		l.lens = slices.Insert(l.lens, i, to.Bits())
	}
}

// find gives the length of the longest network around a behind dev, or behind any device if dev is "".
func (l *links) find(a netip.Addr, dev string) (bits int, name string) {
	for _, n := range l.lens {
		p, err := a.Prefix(n)
		if err != nil {
			continue // longer than an address of this family
		}
		switch devs := l.devs[p]; {
		case dev != "" && slices.Contains(devs, dev):
			return n, dev
		case dev == "" && len(devs) > 0:
			return n, devs[0]
		}
	}
	return -1, ""
}

// routeTarget makes "default" a prefix and refuses host bits.
func (c *checker) routeTarget(i int, r *router.RouteConfig) {
	if r.To.IsValid() {
		if m := r.To.Masked(); m != r.To {
			c.errorf(c.pos("route", i, "to"), "to: %s has host bits set: write %s", r.To, m)
			r.To = m
		}
		return
	}
	zero := netip.IPv4Unspecified()
	if r.Via.Is6() || !r.Via.IsValid() && r.Src.Is6() {
		zero = netip.IPv6Unspecified()
	}
	r.To = netip.PrefixFrom(zero, 0)
}

func (c *checker) sameFamily(to netip.Prefix, a netip.Addr) bool {
	return !to.IsValid() || !a.IsValid() || to.Addr().Is4() == a.Is4()
}

// unicast checks that the next hop can be reached, and finds the device where the file leaves it out.
func (c *checker) unicast(i int, r *router.RouteConfig) {
	at := func(k string) router.Position { return c.pos("route", i, k) }
	if c.has("route", i, "dev") && c.cfg.Interface(r.Dev) == nil {
		c.errorf(at("dev"), "dev: no interface %q%s", r.Dev, suggest(r.Dev, c.names()))
		return
	}
	if !r.Via.IsValid() {
		if r.Dev == "" && !c.has("route", i, "via") {
			c.errorf(r.Pos, "this route has neither via nor dev")
		}
		return
	}
	switch {
	case r.Via.IsUnspecified() || r.Via.IsMulticast() || r.Via.IsLoopback():
		c.errorf(at("via"), "via %s cannot be a gateway", r.Via)
		return
	case c.owns(r.Via):
		c.errorf(at("via"), "via %s is the router's own address", r.Via)
		return
	case r.Via.IsLinkLocalUnicast() && r.Dev == "":
		c.errorf(at("via"), "via %s is a link-local address: name the interface in dev", r.Via)
		return
	case r.Via.IsLinkLocalUnicast():
		return
	}
	dev, ok := c.onLink(r.Via, r.Dev)
	if !ok {
		where := "no interface has a network around it"
		if r.Dev != "" {
			where = fmt.Sprintf("%s has no network around it", r.Dev)
		}
		c.errorf(at("via"), "via %s cannot be reached: %s", r.Via, where)
		return
	}
	r.Dev = dev
}

// onLink finds the interface (dev, if it is not "") that a lies behind: by the
// longest of the interfaces' networks and of the routes without via so far.
func (c *checker) onLink(a netip.Addr, dev string) (string, bool) {
	best, name := -1, ""
	try := func(p netip.Prefix, d string) {
		if (dev == "" || d == dev) && p.IsValid() && p.Contains(a) && p.Bits() > best {
			best, name = p.Bits(), d
		}
	}
	for _, f := range c.cfg.Interfaces {
		for _, p := range f.Addresses {
			try(p, f.Name)
		}
	}
	if bits, d := c.links.find(a, dev); bits > best {
		best, name = bits, d
	}
	return name, best >= 0
}

// owns reports whether a is an address of the router.
func (c *checker) owns(a netip.Addr) bool {
	for _, f := range c.cfg.Interfaces {
		for _, p := range f.Addresses {
			if p.Addr() == a {
				return true
			}
		}
	}
	return false
}

func (c *checker) names() []string {
	var out []string
	for _, f := range c.cfg.Interfaces {
		out = append(out, f.Name)
	}
	return out
}

// rules checks [[rule]], and gives those without a priority one as `ip rule add` does.
func (c *checker) rules() {
	lowest := uint32(router.RulePriorities)
	for i := range c.cfg.Rules {
		r := &c.cfg.Rules[i]
		at := func(k string) router.Position { return c.pos("rule", i, k) }
		if !c.has("rule", i, "priority") {
			r.Priority = max(lowest, 1) - 1
		}
		if r.Priority > 0 {
			lowest = min(lowest, r.Priority)
		}
		for _, k := range []struct {
			name string
			p    *netip.Prefix
		}{{"from", &r.From}, {"to", &r.To}} {
			if !k.p.IsValid() { // "default": any
				continue
			}
			if m := k.p.Masked(); m != *k.p {
				c.errorf(at(k.name), "%s: %s has host bits set: write %s", k.name, *k.p, m)
			}
			fam := uint8(6)
			if k.p.Addr().Is4() {
				fam = 4
			}
			if r.Family != 0 && r.Family != fam {
				c.errorf(at(k.name), "%s: %s is not of family %d", k.name, *k.p, r.Family)
				continue
			}
			r.Family = fam
		}
		if c.has("rule", i, "family") && r.Family != 4 && r.Family != 6 {
			c.errorf(at("family"), "family: %d is neither 4 nor 6", r.Family)
		}
		if r.IIF != "" && r.IIF != "lo" && c.cfg.Interface(r.IIF) == nil {
			c.errorf(at("iif"), "iif: no interface %q%s", r.IIF, suggest(r.IIF, c.names()))
		}
		c.ruleAction(i, r)
	}
}

func (c *checker) ruleAction(i int, r *router.RuleConfig) {
	switch r.Type {
	case router.RouteUnicast:
		if r.Table == 0 {
			c.errorf(r.Pos, "this rule has no table to look in")
			return
		}
		for _, t := range c.cfg.Routes {
			if t.Table == r.Table {
				return
			}
		}
		if r.Table < router.TableDefault || r.Table > router.TableLocal {
			c.warnf(c.pos("rule", i, "table"), "no [[route]] is in table %d, so this rule decides nothing", r.Table)
		}
	case router.RouteBlackhole, router.RouteUnreachable, router.RouteProhibit:
		if r.Table != 0 {
			c.errorf(c.keyPos("rule", i, "table"), "a rule of type %q looks in no table: leave table out", r.Type)
		}
	default:
		c.errorf(c.pos("rule", i, "type"), "no rule type %q: \"blackhole\", \"unreachable\" or \"prohibit\"; without type it looks in table", r.Type)
	}
}

// routing lets the router's own routing tables have the last word.
func (c *checker) routing() {
	err := router.CheckRouting(c.cfg)
	if err == nil {
		return
	}
	var places []router.Position
	for _, f := range c.cfg.Interfaces {
		places = append(places, f.Pos)
	}
	for _, r := range c.cfg.Routes {
		places = append(places, r.Pos)
	}
	for _, r := range c.cfg.Rules {
		places = append(places, r.Pos)
	}
	for _, at := range places {
		if text, ok := strings.CutPrefix(err.Error(), at.String()+": "); ok {
			c.errorf(at, "%s", text)
			return
		}
	}
	c.errorf(router.Position{File: c.ix.file}, "%v", err)
}
