package config

import (
	"slices"
	"strings"

	"sluice/internal/proxy"
	"sluice/router"
)

// publish checks [[publish]].
func (c *checker) publish() {
	taken := map[router.HostListen]int{}
	for i := range c.cfg.Publish {
		p := &c.cfg.Publish[i]
		at := func(k string) router.Position { return c.pos("publish", i, k) }
		switch {
		case !c.has("publish", i, "listen"):
			c.errorf(p.Pos, "this publish has no listen address")
		case p.Listen.Network == "unix":
			c.errorf(at("listen"), "%s: what is published is a TCP or UDP port", p.Listen)
		case p.Listen.Network != "":
			if line, dup := taken[p.Listen]; dup {
				c.errorf(at("listen"), "%s is already published at line %d", p.Listen, line)
			}
			taken[p.Listen] = p.Pos.Line
		}
		if a := p.To.Addr(); !c.has("publish", i, "to") {
			c.errorf(p.Pos, "this publish does not say where to")
		} else if a.IsValid() && (a.IsUnspecified() || a.IsMulticast() || a.IsLoopback()) {
			c.errorf(at("to"), "to: %s cannot be reached by packets", a)
		}
		switch f := c.cfg.Interface(p.Interface); {
		case p.Interface != "" && f == nil:
			c.errorf(at("interface"), "interface: no interface %q%s", p.Interface, suggest(p.Interface, c.names()))
		case p.Interface != "" && f.Type != router.TypeUplink:
			c.errorf(at("interface"), "interface: %s is not of type \"uplink\"", p.Interface)
		case p.Interface == "" && !c.hasUplink():
			c.errorf(p.Pos, "what is published arrives on an uplink, and there is none: add an [[interface]] with type = \"uplink\"")
		}
	}
}

func (c *checker) hasUplink() bool {
	for i := range c.cfg.Interfaces {
		if c.cfg.Interfaces[i].Type == router.TypeUplink {
			return true
		}
	}
	return false
}

// dns checks [dns].
func (c *checker) dns() {
	d := c.cfg.DNS
	if d == nil {
		return
	}
	for j, l := range d.Listen {
		if a := l.Addr(); l.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !c.owns(a) {
			c.errorf(c.pos("dns", "listen", j), "%s is not an address of the router", a)
		}
		for i := range c.cfg.Services {
			for _, o := range c.cfg.Services[i].Listen {
				if o.Addr == l {
					c.errorf(c.pos("dns", "listen", j), "%s is already listened on by the service at line %d", l, c.cfg.Services[i].Pos.Line)
				}
			}
		}
	}
	if d.Outside != router.OutsideRefuse && d.Outside != router.OutsidePass {
		c.errorf(c.pos("dns", "outside"), "outside: %q is neither \"refuse\" nor \"pass\"", d.Outside)
	}
	if d.Strict && len(d.Allow) == 0 {
		c.errorf(c.pos("dns", "strict"), "strict: there is no allow list that names could be checked against")
	}
	if d.Strict && !c.hasUplink() {
		c.errorf(c.pos("dns", "strict"), "strict: names are checked on an uplink, and there is none: add an [[interface]] with type = \"uplink\"")
	}
}

// proxies checks [[proxy]].
func (c *checker) proxies() {
	taken := map[router.HostListen]int{}
	for i := range c.cfg.Proxies {
		p := &c.cfg.Proxies[i]
		at := func(k string) router.Position { return c.pos("proxy", i, k) }
		switch {
		case !c.has("proxy", i, "listen"):
			c.errorf(p.Pos, "this proxy has no listen address")
		case p.Listen.Network == "udp":
			c.errorf(at("listen"), "%s: a proxy listens on a TCP port or a Unix socket", p.Listen)
		case p.Listen.Network == "unix" && len(p.Listen.Path) > 107:
			c.errorf(at("listen"), "%q has %d bytes, and the path of a socket has room for 107", p.Listen.Path, len(p.Listen.Path))
		case p.Listen.Network != "":
			if line, dup := taken[p.Listen]; dup {
				c.errorf(at("listen"), "%s is already listened on by the proxy at line %d", p.Listen, line)
			}
			taken[p.Listen] = p.Pos.Line
		}
		if types := proxy.Types(); !c.has("proxy", i, "type") {
			c.errorf(p.Pos, "this proxy has no type: one of %s", strings.Join(types, ", "))
		} else if !slices.Contains(types, p.Type) {
			c.errorf(at("type"), "no proxy type %q: there are %s", p.Type, strings.Join(types, ", "))
		}
	}
}
