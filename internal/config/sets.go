package config

import (
	"errors"

	"sluice/conntrack"
	ipsetcmd "sluice/internal/ipset"
	"sluice/tables/ipset"
)

// timeouts checks [[timeout]].
func (c *checker) timeouts() {
	ct := conntrack.New(c.tunables(), conntrack.Options{})
	for i := range c.cfg.Timeouts {
		x := &c.cfg.Timeouts[i]
		if err := x.Check(ct); err == conntrack.ErrInUse {
			c.errorf(c.pos("timeout", i, "name"), "timeout policy %q is already defined", x.Name)
		} else if err != nil {
			c.errorf(x.Pos, "timeout policy %q: %v", x.Name, err)
		}
	}
}

// sets checks [[set]] by making the sets, for the rules that name them.
func (c *checker) sets() {
	c.ipsets = ipset.New(nil)
	seen := map[string]int{}
	made := make([]*ipset.Set, len(c.cfg.Sets))
	tell := func(i int, err error) {
		at := c.cfg.Sets[i].Pos
		var de *ipsetcmd.DefinitionError
		if errors.As(err, &de) && de.Entry >= 0 {
			at = c.pos("set", i, "entries", de.Entry)
		}
		c.errorf(at, "set %q: %v", c.cfg.Sets[i].Name, err)
	}
	for i := range c.cfg.Sets {
		d := c.cfg.Sets[i].Definition()
		if first, dup := seen[d.Name]; dup && d.Name != "" {
			c.errorf(c.pos("set", i, "name"), "set %q is already defined at line %d", d.Name, c.cfg.Sets[first].Pos.Line)
			continue
		}
		seen[d.Name] = i
		set, err := d.Make(c.ipsets)
		if err != nil {
			tell(i, err)
			continue
		}
		if _, err := c.ipsets.Put(d.Name, set); err != nil {
			tell(i, err)
			continue
		}
		made[i] = set
	}
	for i, set := range made { // lists name others
		if set == nil {
			continue
		}
		d := c.cfg.Sets[i].Definition()
		if err := d.Fill(set); err != nil {
			tell(i, err)
		}
	}
}
