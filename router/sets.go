package router

import (
	"fmt"
	"reflect"

	"sluice/tables/ipset"
)

// putSets brings the sets to what cfg says. A set whose text is the same stays
// as it is, with what packets and tools have done to it; one whose text has
// changed is replaced at once. undo takes it back, finish lets go of what was.
func (r *Router) putSets(cfg *Config) (undo, finish func(), err error) {
	type change struct {
		name string
		was  *ipset.Set // nil: there was none
	}
	var done []change
	undo = func() {
		for i := len(done) - 1; i >= 0; i-- {
			c := done[i]
			var err error
			if c.was != nil {
				var set *ipset.Set
				if set, err = r.sets.Put(c.name, c.was); set != nil {
					set.Discard()
				}
			} else {
				err = r.sets.Destroy(c.name)
			}
			if err != nil {
				r.log.Error("going back to the former sets", "set", c.name, "err", err)
			}
		}
	}
	// A set is filled before packets see it. Lists come last: they name others.
	for _, lists := range []bool{false, true} {
		for i := range cfg.Sets {
			c := &cfg.Sets[i]
			old := r.cfg.set(c.Name)
			if (c.Type == "list:set") != lists || old != nil && sameSet(old, c) && r.sets.Get(c.Name) != nil {
				continue
			}
			d := c.Definition()
			var was *ipset.Set
			set, err := d.Make(r.sets)
			if err == nil {
				if err = d.Fill(set); err == nil {
					was, err = r.sets.Put(c.Name, set)
				}
				if err != nil {
					set.Discard()
				}
			}
			if err != nil {
				undo()
				return nil, nil, fmt.Errorf("%s: set %s: %w", c.Pos, c.Name, err)
			}
			done = append(done, change{c.Name, was})
		}
	}
	finish = func() {
		for _, c := range done {
			if c.was != nil {
				c.was.Discard()
			}
		}
	}
	return undo, finish, nil
}

// dropSets destroys the sets that the configuration no longer has. One that a
// rule made at run time refers to stays.
func (r *Router) dropSets(cfg *Config) {
	for _, lists := range []bool{true, false} {
		for i := range r.cfg.Sets {
			c := &r.cfg.Sets[i]
			if cfg.set(c.Name) != nil || (c.Type == "list:set") != lists {
				continue
			}
			if err := r.sets.Destroy(c.Name); err != nil && err != ipset.ErrNoEntry {
				r.log.Warn("the configuration no longer has this set, and something still refers to it", "set", c.Name)
			}
		}
	}
}

// set finds a set by name, nil if there is none.
func (c *Config) set(name string) *SetConfig {
	for i := range c.Sets {
		if c.Sets[i].Name == name {
			return &c.Sets[i]
		}
	}
	return nil
}

func sameSet(a, b *SetConfig) bool {
	x, y := *a, *b
	x.Pos, y.Pos = Position{}, Position{}
	return reflect.DeepEqual(x, y)
}
