package router

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"regexp"
	"sluice/internal/ipset"
	"sluice/internal/iptables"
	"sluice/netstack"
	"sluice/packet"
	"strings"
)

// Sim is a router that no packet reaches but those it is given: its interfaces
// are in memory, its clock stands still unless it is moved, and every packet is
// traced. It needs no privilege and sends nothing: what has sockets of the host
// (published ports, proxies, the resolver) is left out.
type Sim struct {
	r     *Router
	w     *worker
	links map[string]*simLink
	got   []*Trace
	seq   uint64
}

// simLink is an interface of a Sim: what is sent is written down by the recorder.
type simLink struct{ iface *packet.Iface }

func (l *simLink) Iface() *packet.Iface       { return l.iface }
func (l *simLink) Queues() int                { return 1 }
func (l *simLink) Queue(int) netstack.Queue   { return l }
func (l *simLink) Close() error               { return nil }
func (l *simLink) FD() int                    { return -1 }
func (l *simLink) Flush() error               { return nil }
func (l *simLink) Read(*packet.Packet) error  { return netstack.ErrAgain }
func (l *simLink) Write(*packet.Packet) error { return nil }
func (l *simLink) SetMTU(mtu int) error {
	l.iface = packet.NewIface(l.iface.Index, l.iface.Name, mtu)
	return nil
}

// NewSim makes a Sim of a configuration. log: Step.Log is wanted.
func NewSim(cfg *Config, log bool) (*Sim, error) {
	s := &Sim{links: map[string]*simLink{}}
	c := *cfg
	c.Router.Workers = 1
	c.Publish, c.Proxies, c.DNS = nil, nil, nil // they have sockets of the host
	r, err := New(&c, Options{Open: func(ic *InterfaceConfig, index int) (netstack.Link, error) {
		mtu := ic.MTU
		if mtu == 0 {
			mtu = DefaultMTU
		}
		l := &simLink{packet.NewIface(index, ic.Name, mtu)}
		s.links[ic.Name] = l
		return l, nil
	}})
	if err != nil {
		return nil, err
	}
	r.replaying.Store(true)
	r.replayed.Store(int64(time.Minute)) // buckets of tokens have filled
	unlimited(r, cfg)
	r.recorded.Store(r.started.Add(-time.Minute).UnixNano())
	s.r, s.w = r, r.workers[0]
	r.watches.Store(&[]*Watch{})
	s.w.do(func(w *worker) {
		w.traceLog = log
		w.traced = func(t *Trace) { s.got = append(s.got, t) }
	})
	return s, nil
}

// unlimited takes the limits on ICMP errors away where the configuration does
// not name them: the packets of a Sim come all at once.
func unlimited(r *Router, cfg *Config) {
	for name, v := range map[string]string{"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0", "net.ipv4.icmp_msgs_per_sec": "1000000", "net.ipv4.icmp_msgs_burst": "1000000"} {
		named := slices.ContainsFunc(cfg.Sysctl, func(s SysctlConfig) bool { return s.Name == name })
		if x := r.sysctl.Lookup(name); x != nil && !named {
			if err := x.Set(v); err != nil {
				r.log.Error("limits on ICMP errors", "name", name, "err", err)
			}
		}
	}
}

// Router is the router that packets go through, for its rules and counters.
func (s *Sim) Router() *Router { return s.r }

// Interfaces are the names of the interfaces, in the configuration's order.
func (s *Sim) Interfaces() (out []string) {
	for i := range s.r.cfg.Interfaces {
		out = append(out, s.r.cfg.Interfaces[i].Name)
	}
	return out
}

// Send brings a frame in through an interface and gives the traces of all that
// comes of it: the packet's own first, then those of the router's answers.
func (s *Sim) Send(iface string, frame []byte) ([]*Trace, error) {
	l := s.links[iface]
	if l == nil {
		return nil, fmt.Errorf("there is no interface %q", iface)
	}
	return s.do(func(w *worker) {
		p := w.batch[0]
		p.Reset()
		p.SetBytes(frame)
		w.burst(w.port(l.iface), w.batch[:1])
	}), nil
}

// SendOwn sends a frame of the router's own, as a socket of uid and gid would.
func (s *Sim) SendOwn(frame []byte, uid, gid uint32) []*Trace {
	return s.do(func(w *worker) {
		p := w.alloc()
		p.Reset()
		p.SetBytes(frame)
		p.Flags |= packet.Local | packet.HasOwner
		p.UID, p.GID = uid, gid
		w.sendOwn(p)
		w.settle()
	})
}

func (s *Sim) do(f func(w *worker)) []*Trace {
	s.got = nil
	s.w.do(func(w *worker) {
		w.begin(s.r.clock())
		f(w)
		w.end()
	})
	s.r.settleLocal(s.w)
	out := s.got
	s.got = nil
	// A redirect goes before the packet that it is about.
	slices.SortFunc(out, func(a, b *Trace) int { return cmp.Compare(a.begun, b.begun) })
	for _, t := range out {
		s.seq++
		t.Seq = s.seq
		t.text()
	}
	return out
}

// Advance moves the clock.
func (s *Sim) Advance(d time.Duration) []*Trace {
	s.r.replayed.Add(int64(d))
	now := s.r.clock()
	return s.do(func(*worker) {
		s.r.ct.Housekeep(now)
	})
}

// Close ends the Sim.
func (s *Sim) Close() error { return s.r.Close() }

var stamps = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// Sim makes a Sim of the router as it is now: its configuration, and the rules
// that it has by now. Connections begin anew.
func (r *Router) Sim() (*Sim, error) {
	r.mu.Lock()
	cfg := r.cfg
	r.mu.Unlock()
	s, err := NewSim(cfg, false)
	if err != nil {
		return nil, err
	}
	var sets, errs strings.Builder
	ipset.Run(r.sets, []string{"ipset", "save"}, strings.NewReader(""), &sets, &errs, nil, nil)
	ipset.Run(s.r.sets, []string{"ipset", "flush"}, strings.NewReader(""), &errs, &errs, nil, nil)
	if ipset.Run(s.r.sets, []string{"ipset", "restore", "-exist"}, strings.NewReader(sets.String()), &errs, &errs, nil, nil) != 0 {
		s.Close()
		return nil, fmt.Errorf("copying the sets: %s", errs.String())
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		var now, fresh, errs strings.Builder
		iptables.Run(r.iptables, []string{tool + "-save"}, strings.NewReader(""), &now, &errs)
		iptables.Run(s.r.iptables, []string{tool + "-save"}, strings.NewReader(""), &fresh, &errs)
		if stamps.ReplaceAllString(now.String(), "") == stamps.ReplaceAllString(fresh.String(), "") {
			continue // and the rules know their file and line
		}
		if iptables.Run(s.r.iptables, []string{tool + "-restore"}, strings.NewReader(now.String()), &errs, &errs) != 0 {
			s.Close()
			return nil, fmt.Errorf("copying the rules: %s", errs.String())
		}
	}
	return s, nil
}
