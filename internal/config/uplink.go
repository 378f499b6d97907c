package config

import "sluice/router"

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
