package config

import (
	"slices"
	"strings"

	"sluice/internal/sysctl"
	"sluice/netstack/services"
	"sluice/router"
)

func (c *checker) services() {
	taken := map[router.Listen]int{}
	for i := range c.cfg.Services {
		s := &c.cfg.Services[i]
		at := func(parts ...any) router.Position { return c.pos(append([]any{"service", i}, parts...)...) }
		switch types := services.Types(); {
		case !c.has("service", i, "type"):
			c.errorf(s.Pos, "this service has no type: one of %s", strings.Join(types, ", "))
		case !slices.Contains(types, s.Type):
			c.errorf(at("type"), "no service type %q: there are %s", s.Type, strings.Join(types, ", "))
		}
		if len(s.Listen) == 0 && !c.has("service", i, "listen") {
			c.errorf(s.Pos, "this service has no listen address")
		}
		for j, l := range s.Listen {
			if l.Network == "" {
				continue // reported already
			}
			if a := l.Addr.Addr(); !s.Transparent && !a.IsUnspecified() && !a.IsLoopback() && !c.owns(a) && !c.madeLocal(a) {
				c.errorf(at("listen", j), "%s is not an address of the router", a)
			}
			if s.Type == services.HTTP && l.Network != "tcp" {
				c.errorf(at("listen", j), "%s: the http service is for tcp", l)
			}
			if line, dup := taken[l]; dup {
				c.errorf(at("listen", j), "%s is already listened on by the service at line %d", l, line)
			}
			taken[l] = s.Pos.Line
		}
		for _, id := range []struct {
			key string
			n   uint32
		}{{"uid", s.UID}, {"gid", s.GID}} {
			if id.n == 1<<32-1 {
				c.errorf(at(id.key), "%s: 4294967295 is no id, it means \"none\"", id.key)
			}
		}
	}
}

// sysctls checks [sysctl] against the tunables of a router made for the purpose.
func (c *checker) sysctls() {
	set := c.tunables()
	seen := map[string]int{}
	for i := range c.cfg.Sysctl {
		s := &c.cfg.Sysctl[i]
		s.Name = strings.ReplaceAll(s.Name, "/", ".")
		if line, dup := seen[s.Name]; dup {
			c.errorf(s.Pos, "%s is already set at line %d", s.Name, line)
		}
		seen[s.Name] = s.Pos.Line
		v := set.Lookup(s.Name)
		dev, linux := sysctl.Linux(s.Name)
		switch {
		case v != nil && v.Inert:
			c.warnf(s.Pos, "%s means nothing in sluice; it is kept and has no effect", s.Name)
		case v != nil:
			// a scratch tunable, so setting it is the check
			if err := v.Set(s.Value); err != nil {
				c.errorf(s.Pos, "%v", err)
			}
		case linux && dev != "" && dev != "all" && dev != "default" && dev != "lo" && c.cfg.Interface(dev) == nil:
			c.errorf(s.Pos, "%s: no interface %q%s", s.Name, dev, suggest(dev, c.names()))
		case linux:
			c.warnf(s.Pos, "%s means nothing in sluice; it has no effect", s.Name)
		default:
			var names []string
			for _, v := range set.All() {
				names = append(names, v.Name)
			}
			c.errorf(s.Pos, "unknown tunable %q%s", s.Name, suggest(s.Name, names))
		}
	}
}

// tunables is what a router with this configuration's interfaces has.
func (c *checker) tunables() *sysctl.Set { return router.Tunables(c.cfg.Interfaces) }
