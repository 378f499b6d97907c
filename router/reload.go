package router

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"sluice/internal/host"
	"sluice/internal/sysctl"
	"sluice/netstack"
	"sluice/packet"
)

// Reload makes cfg the router's configuration. What is the same in both stays
// as it is: devices, connections, rules with their counters, listeners. When
// something in cfg cannot be had, everything stays as it was.
func (r *Router) Reload(cfg *Config) error {
	defer r.Work()()
	cfg = cfg.Complete()
	if err := r.reloadable(cfg); err != nil {
		return err
	}
	if err := r.apply(cfg); err != nil {
		return err
	}
	r.mu.Lock()
	r.reloads++
	r.mu.Unlock()
	return nil
}

// reloadable names what only a restart changes.
func (r *Router) reloadable(cfg *Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case cfg.Router != r.cfg.Router:
		return errors.New("[router] has changed: workers, busy_poll and forgetful are set when sluice starts; restart it")
	case cfg.Control != r.cfg.Control:
		return errors.New("[control] has changed: the socket is made when sluice starts; restart it")
	}
	return nil
}

// apply brings the router from r.cfg to cfg, in an order in which every step
// that can fail comes before those that cannot be taken back.
func (r *Router) apply(cfg *Config) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()

	unset, setsDone, err := r.putSets(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unset()
		}
	}()
	untime, timeAgain, err := r.putTimeouts(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			untime()
		}
	}()
	rules, err := r.checkRules(cfg)
	if err != nil {
		return err
	}
	keep, made, err := r.openLinks(cfg)
	if err != nil {
		return err
	}
	closeMade := func() {
		for _, l := range made {
			l.link.Close()
		}
	}
	untune, err := r.retune(cfg, keep)
	if err != nil {
		closeMade()
		return err
	}
	undo := func() {
		untune()
		closeMade()
	}
	next := append(append([]*link{}, keep...), made...)
	sortLinks(next, cfg)

	// "default" before the interfaces that begin with it, what names one after it is there.
	early, err := r.setSysctls(cfg, true)
	if err != nil {
		undo()
		return err
	}
	oldFIB := r.fibEdit(r.cfg, r.links)
	if err := r.fib.Update(r.fibEdit(cfg, next)); err != nil {
		early()
		undo()
		return err
	}
	back := func() {
		early()
		undo()
		if e := r.fib.Update(oldFIB); e != nil {
			r.log.Error("going back to the former routes", "err", e)
		}
	}
	r.acceptLocal(made)
	late, err := r.setSysctls(cfg, false)
	if err != nil {
		back()
		return err
	}
	oldLinks := r.links
	r.links = next
	r.setLocalAddresses()
	if err := r.applySockets(cfg, keep, next); err != nil {
		r.links = oldLinks
		late()
		back()
		r.setLocalAddresses()
		return err
	}

	// From here on nothing fails.
	for _, l := range made {
		r.attach(l)
	}
	if err := rules.commit(); err != nil {
		r.log.Error("rules that were found good are refused", "err", err)
	}
	for _, l := range oldLinks {
		if !slices.Contains(next, l) && !l.gone {
			r.detach(l)
			r.nat.InterfaceGone(l.iface.Index)
			l.link.Close()
		}
	}
	for i, l := range next {
		l.cfg = cfg.Interfaces[i]
	}
	r.dropLostAddresses(r.cfg, cfg)
	setsDone()
	r.dropSets(cfg)
	timeAgain()
	r.dropTimeouts(cfg)
	r.cfg = cfg
	return nil
}

// applySockets brings what listens from r.cfg to cfg. With an error it is what it was.
func (r *Router) applySockets(cfg *Config, keep, next []*link) error {
	parts := []struct {
		name  string
		apply func(*Config, []*link) error
	}{
		{"published ports", r.publish},
		{"services", func(c *Config, _ []*link) error { return r.services.Apply(serviceSpecs(c)) }},
		{"resolver", func(c *Config, _ []*link) error { return r.applyDNS(c) }},
		{"proxies", func(c *Config, _ []*link) error { return r.applyProxies(c) }},
	}
	for i, p := range parts {
		err := p.apply(cfg, next)
		if err == nil {
			continue
		}
		for _, done := range parts[:i] {
			if e := done.apply(r.cfg, keep); e != nil {
				r.log.Error("going back to the former "+done.name, "err", e)
			}
		}
		return err
	}
	var up []string
	for i := range cfg.Interfaces {
		if cfg.Interfaces[i].Type == TypeUplink {
			up = append(up, cfg.Interfaces[i].Name)
		}
	}
	r.uplinkNames.Store(&up)
	return nil
}

// sortLinks brings links into the configuration's order.
func sortLinks(ls []*link, cfg *Config) {
	at := map[string]int{}
	for i := range cfg.Interfaces {
		at[cfg.Interfaces[i].Name] = i
	}
	out := make([]*link, len(ls))
	for _, l := range ls {
		out[at[l.cfg.Name]] = l
	}
	copy(ls, out)
}

// sameDevice: the interface can live on through a reload; retune sees to what may differ.
func sameDevice(a, b *InterfaceConfig) bool {
	x, y := *a, *b
	for _, c := range []*InterfaceConfig{&x, &y} {
		c.Pos, c.Addresses, c.MTU = Position{}, nil, 0
		ns := c.Host.NetNSPath()
		c.Host = nil
		if ns != "" {
			c.Host = &HostConfig{NetNS: ns}
		}
	}
	return reflect.DeepEqual(x, y)
}

// retune brings the MTUs and the kernel's ends of interfaces that live on to
// what cfg says; undo takes it back.
func (r *Router) retune(cfg *Config, keep []*link) (undo func(), err error) {
	var done []*link
	undo = func() {
		for _, l := range done {
			if err := r.tune(l, cfg.Interface(l.cfg.Name), &l.cfg); err != nil {
				r.log.Error("going back to the former device settings", "interface", l.cfg.Name, "err", err)
			}
		}
	}
	for _, l := range keep {
		done = append(done, l)
		if err := r.tune(l, &l.cfg, cfg.Interface(l.cfg.Name)); err != nil {
			undo()
			return nil, fmt.Errorf("%s: interface %s: %w", cfg.Interface(l.cfg.Name).Pos, l.cfg.Name, err)
		}
	}
	return undo, nil
}

// tune brings a device from one configuration to another.
func (r *Router) tune(l *link, from, c *InterfaceConfig) error {
	if c.MTU != 0 && c.MTU != l.iface.MTU {
		if err := l.link.SetMTU(c.MTU); err != nil {
			return err
		}
		l.iface = l.link.Iface()
		r.eachWorker(func(w *worker) {
			if d := w.port(l.iface); d != nil {
				d.iface = l.iface
			}
		})
	}
	end, was := HostEnd(c), HostEnd(from)
	h, ok := l.link.(interface {
		SetHost(end, was *host.End) error
	})
	if !ok || reflect.DeepEqual(end, was) {
		return nil
	}
	if end == nil {
		end = &host.End{}
	}
	return h.SetHost(end, was)
}

// misplaced: the interface's namespace is another one now.
func misplaced(l *link) bool {
	m, ok := l.link.(interface{ Misplaced() bool })
	return ok && m.Misplaced()
}

// openLinks finds the interfaces that stay and opens those that are new. The
// error names every one that cannot be had.
func (r *Router) openLinks(cfg *Config) (keep, made []*link, err error) {
	old := map[string]*link{}
	for _, l := range r.links {
		old[l.cfg.Name] = l
	}
	var errs []error
	for i := range cfg.Interfaces {
		c := &cfg.Interfaces[i]
		if l := old[c.Name]; l != nil && !l.gone && !misplaced(l) {
			if sameDevice(&l.cfg, c) {
				keep = append(keep, l)
				continue
			}
			errs = append(errs, fmt.Errorf("%s: interface %s: type, queues, offload, owner, files and namespace of a running interface stay as they are: give it another name, or restart sluice", c.Pos, c.Name))
			continue
		}
		index := r.nextIndex
		nl, err := r.openLink(c, index)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: interface %s: %w", c.Pos, c.Name, err))
			continue
		}
		r.nextIndex++
		made = append(made, &link{cfg: *c, link: nl, iface: nl.Iface()})
	}
	if len(errs) > 0 {
		for _, m := range made {
			m.link.Close()
		}
		return nil, nil, errors.Join(errs...)
	}
	return keep, made, nil
}

// fibEdit builds a configuration's routing state.
func (r *Router) fibEdit(cfg *Config, links []*link) func(*netstack.Tx) error {
	byName := map[string]*link{}
	for _, l := range links {
		byName[l.cfg.Name] = l
	}
	return func(tx *netstack.Tx) error {
		tx.Reset()
		for i := range cfg.Interfaces {
			c := &cfg.Interfaces[i]
			l := byName[c.Name]
			if l == nil || l.gone {
				continue
			}
			if err := tx.AddIface(l.iface); err != nil {
				return fmt.Errorf("%s: interface %s: %w", c.Pos, c.Name, err)
			}
			for _, a := range c.Addresses {
				if err := tx.AddAddr(l.iface.Index, a); err != nil {
					return fmt.Errorf("%s: interface %s: address %s: %w", c.Pos, c.Name, a, err)
				}
			}
		}
		for i := range cfg.Routes {
			c := &cfg.Routes[i]
			typ, err := netstack.ParseRouteType(c.Type)
			dev := c.Dev
			if typ == netstack.RouteLocal && dev == "" {
				dev = "lo"
			}
			if err == nil {
				err = tx.AddRoute(netstack.RouteSpec{To: c.To, Via: c.Via, Dev: dev, Table: c.Table, Metric: c.Metric, Type: typ, Src: c.Src})
			}
			if err != nil {
				return fmt.Errorf("%s: route %s: %w", c.Pos, c.To, err)
			}
		}
		for i := range cfg.Rules {
			c := &cfg.Rules[i]
			for _, fam := range ruleFamilies(c) {
				spec := netstack.Rule{
					Family: fam, Priority: c.Priority, Auto: c.Priority == 0, From: c.From, To: c.To, IIF: c.IIF,
					Mark: c.FWMark.Value, Mask: c.FWMark.Mask, Table: c.Table,
				}
				var err error
				if spec.Action, err = netstack.ParseRouteType(c.Type); err == nil {
					err = tx.AddRule(spec)
				}
				if err != nil {
					return fmt.Errorf("%s: rule: %w", c.Pos, err)
				}
			}
		}
		return nil
	}
}

func ruleFamilies(c *RuleConfig) []uint8 {
	switch {
	case c.From.IsValid():
		return []uint8{familyOf(c.From.Addr())}
	case c.To.IsValid():
		return []uint8{familyOf(c.To.Addr())}
	case c.Family != 0:
		return []uint8{c.Family}
	}
	return []uint8{packet.IPv4, packet.IPv6}
}

// setSysctls sets what cfg names; what only the former configuration named goes
// back to its default. restore undoes all of it. With early, only what there is
// before the new interfaces are is set; else the rest.
func (r *Router) setSysctls(cfg *Config, early bool) (restore func(), err error) {
	type saved struct {
		name  string
		value int64
	}
	var old []saved
	restore = func() {
		for i := len(old) - 1; i >= 0; i-- {
			if v := r.sysctl.Lookup(old[i].name); v != nil {
				v.Store(old[i].value)
			}
		}
	}
	set := func(v *sysctl.Var) { old = append(old, saved{v.Name, v.Load()}) }
	if early {
		named := map[string]bool{}
		for i := range cfg.Sysctl {
			named[cfg.Sysctl[i].Name] = true
		}
		clear(r.early)
		for i := range r.cfg.Sysctl {
			if v := r.sysctl.Lookup(r.cfg.Sysctl[i].Name); v != nil && !v.ReadOnly && !named[v.Name] {
				set(v)
				v.Store(v.Default)
			}
		}
	}
	for i := range cfg.Sysctl {
		c := &cfg.Sysctl[i]
		v := r.sysctl.Lookup(c.Name)
		switch {
		case early && v == nil || !early && r.early[c.Name]:
			continue
		case v == nil:
			if _, ok := sysctl.Linux(c.Name); ok {
				r.log.Warn("this tunable means nothing to sluice", "at", c.Pos.String(), "name", c.Name)
				continue
			}
			restore()
			return nil, fmt.Errorf("%s: cannot stat %s: no such tunable", c.Pos, c.Name)
		}
		if early {
			r.early[c.Name] = true
		}
		set(v)
		if err := v.Set(c.Value); err != nil {
			restore()
			return nil, fmt.Errorf("%s: %w", c.Pos, err)
		}
	}
	return restore, nil
}

// attach gives a link's queues to the workers: queue i to worker i, and so
// round. A worker beyond the last queue has none to read and shares one to write to.
func (r *Router) attach(l *link) { r.eachWorker(func(w *worker) { w.plug(l) }) }

// detach takes a link's queues from the workers.
func (r *Router) detach(l *link) { r.eachWorker(func(w *worker) { w.unplug(l) }) }
