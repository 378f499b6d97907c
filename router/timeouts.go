package router

import (
	"fmt"
	"reflect"
	"slices"

	"sluice/conntrack"
)

// TimeoutConfig is one [[timeout]]: a timeout policy, as `nfct add timeout`
// makes it.
type TimeoutConfig struct {
	Pos      Position          `toml:"-"`
	Name     string            `toml:"name"`
	Family   string            `toml:"family"`   // inet (the default) or inet6
	Protocol string            `toml:"protocol"` // tcp, udp, …, generic
	Policy   map[string]uint32 `toml:"policy"`   // seconds by state; those that are not named are as the tunables have them
}

// policy is the timeout policy on t, which has the tunables.
func (c *TimeoutConfig) policy(t *conntrack.Table) (conntrack.TimeoutPolicy, error) {
	p := conntrack.TimeoutPolicy{Name: c.Name}
	if c.Name == "" || len(c.Name) > 31 {
		return p, fmt.Errorf("a timeout policy's name has 1 to 31 bytes")
	}
	var ok bool
	if p.Family, ok = conntrack.TimeoutFamily(c.Family); !ok && c.Family != "" {
		return p, fmt.Errorf("%q is no family: inet or inet6", c.Family)
	}
	if p.Proto, ok = conntrack.TimeoutProtocol(c.Protocol); !ok || conntrack.TimeoutStates(p.Proto) == nil {
		return p, fmt.Errorf("%q is no protocol with timeouts", c.Protocol)
	}
	if len(c.Policy) == 0 {
		return p, fmt.Errorf("a timeout policy names states and their seconds")
	}
	states := conntrack.TimeoutStates(p.Proto)
	p.Seconds = t.DefaultTimeouts(p.Proto)
	for name, v := range c.Policy {
		i := slices.Index(states, name)
		switch {
		case i < 0:
			return p, fmt.Errorf("%q is no state of %s: %q", name, c.Protocol, states)
		case v > conntrack.MaxTimeout:
			return p, fmt.Errorf("%s = %d: at most %d seconds", name, v, conntrack.MaxTimeout)
		}
		p.Seconds[i] = v
	}
	return p, nil
}

// Check says what is wrong with it.
func (c *TimeoutConfig) Check(t *conntrack.Table) error {
	p, err := c.policy(t)
	if err == nil {
		err = t.AddTimeoutPolicy(p)
	}
	return err
}

// putTimeouts brings the timeout policies to what cfg says; undo takes it back.
// again is for when the tunables are as cfg has them, which states follow that
// a policy does not name.
func (r *Router) putTimeouts(cfg *Config) (undo, again func(), err error) {
	var done []func()
	var fresh []*TimeoutConfig
	undo = func() {
		for _, f := range slices.Backward(done) {
			f()
		}
	}
	for i := range cfg.Timeouts {
		c := &cfg.Timeouts[i]
		if old := r.cfg.timeout(c.Name); old != nil && sameTimeout(old, c) && r.ct.TimeoutPolicy(c.Name) != nil {
			continue
		}
		p, err := c.policy(r.ct)
		was := r.ct.TimeoutPolicy(p.Name)
		if err == nil {
			err = r.ct.PutTimeoutPolicy(p)
		}
		if err != nil {
			undo()
			return nil, nil, fmt.Errorf("%s: timeout policy %q: %w", c.Pos, c.Name, err)
		}
		fresh = append(fresh, c)
		done = append(done, func() {
			if was != nil {
				r.ct.PutTimeoutPolicy(*was)
			} else {
				r.ct.DeleteTimeoutPolicy(p.Name)
			}
		})
	}
	again = func() {
		for _, c := range fresh {
			if p, err := c.policy(r.ct); err == nil {
				r.ct.PutTimeoutPolicy(p)
			}
		}
	}
	return undo, again, nil
}

// dropTimeouts deletes the policies that the configuration no longer has.
func (r *Router) dropTimeouts(cfg *Config) {
	for _, c := range r.cfg.Timeouts {
		if cfg.timeout(c.Name) == nil && r.ct.DeleteTimeoutPolicy(c.Name) == conntrack.ErrInUse {
			r.log.Warn("the configuration no longer has this timeout policy, and a rule still names it", "timeout", c.Name)
		}
	}
}

func (c *Config) timeout(name string) *TimeoutConfig {
	for i := range c.Timeouts {
		if c.Timeouts[i].Name == name {
			return &c.Timeouts[i]
		}
	}
	return nil
}

func sameTimeout(a, b *TimeoutConfig) bool {
	x, y := *a, *b
	x.Pos, y.Pos = Position{}, Position{}
	return reflect.DeepEqual(x, y)
}
