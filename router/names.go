package router

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"sluice/conntrack"
	"sluice/internal/proxy"
	"sluice/internal/resolver"
	"sluice/netstack"
	"sluice/netstack/uplink"
	"sluice/packet"
)

// What [dns] outside says of names that are not on the list.
const (
	OutsideRefuse = "refuse" // they are refused
	OutsidePass   = "pass"   // they are answered, and their addresses not pinned
)

// Allow is an entry of an allow list; see ParseAllow.
type Allow = resolver.Allow

// ParseAllow reads "example.org", "*.example.org:443" or an address, network or ADDRESS:PORT.
func ParseAllow(s string) (Allow, error) { return resolver.ParseAllow(s) }

// Summary is what programs behind the router reached and what they were denied,
// where there is an allow list.
type Summary = resolver.Summary

// Use is a destination in a Summary.
type Use = resolver.Use

// DeniedPrefix is the prefix of LOG rules whose packets are denied connections:
// with an allow list they are counted for Summary, and logged once for each
// destination, with the name that was asked for.
const DeniedPrefix = "denied: "

// names is the router's resolver, with what it listens on.
type names struct {
	res     *resolver.Resolver
	servers map[netip.AddrPort]*resolver.Server
	stop    context.CancelFunc // ends the report's goroutine
}

// denial is a packet that a LOG rule with DeniedPrefix met.
type denial struct {
	proto uint8
	to    netip.AddrPort
}

// applyDNS makes the resolver what cfg says. With an error nothing has changed.
func (r *Router) applyDNS(cfg *Config) error {
	d := cfg.DNS
	if d == nil {
		for _, s := range r.names.servers {
			s.Close()
		}
		r.names.servers = nil
		r.names.watch(r, false)
		r.strict.Store(nil)
		r.resolver.Store(nil)
		return nil
	}
	c := resolver.Config{Allow: d.Allow, Pass: d.Outside == OutsidePass, Grace: d.Grace, ResolvConf: r.opt.ResolvConf, Log: r.log}
	for _, s := range d.Servers {
		c.Servers = append(c.Servers, s.AddrPort)
	}
	res := r.names.res
	if res == nil {
		var err error
		if res, err = resolver.New(c, pins{r}); err != nil {
			return err
		}
		r.names.res = res
	}
	next := map[netip.AddrPort]*resolver.Server{}
	var fresh []*resolver.Server
	for _, at := range d.Listen {
		if s := r.names.servers[at]; s != nil {
			next[at] = s
			continue
		}
		s, err := res.Serve(r.local, at)
		if err != nil {
			for _, s := range fresh {
				s.Close()
			}
			return err
		}
		fresh = append(fresh, s)
		next[at] = s
	}
	if err := res.Configure(c); err != nil {
		for _, s := range fresh {
			s.Close()
		}
		return err
	}
	for at, s := range r.names.servers {
		if next[at] == nil {
			s.Close()
		}
	}
	r.names.servers = next
	r.resolver.Store(res)
	if d.Strict {
		r.strict.Store(res)
	} else {
		r.strict.Store(nil)
	}
	r.names.watch(r, len(d.Allow) > 0 || d.Learn)
	return nil
}

// watch begins or ends to count connections for the Summary.
func (n *names) watch(r *Router, on bool) {
	switch {
	case on && n.stop == nil:
		ctx, cancel := context.WithCancel(context.Background())
		n.stop = cancel
		sub := r.ct.Subscribe()
		c := &counting{denied: make(chan denial, logQueue), sync: make(chan chan struct{}), done: ctx.Done()}
		r.denials.Store(c)
		go r.report(n.res.Report, sub, c)
	case !on && n.stop != nil:
		n.stop()
		n.stop = nil
		r.denials.Store(nil)
	}
}

// counting is how connections reach the Summary.
type counting struct {
	denied chan denial
	sync   chan chan struct{} // what is sent here is closed when all that came before is counted
	done   <-chan struct{}
}

// report counts connections as they come.
func (r *Router) report(rep *resolver.Report, sub *conntrack.Subscription, c *counting) {
	defer sub.Close()
	allowed := func() {
		var ev conntrack.Event
		for sub.Next(&ev) {
			if ev.Type != conntrack.EvNew || ev.Expect != nil {
				continue
			}
			o := &ev.Orig
			if r.leavesByUplink(o.Family, o.Dst) {
				rep.Count(true, o.Proto, netip.AddrPortFrom(packet.Addr(o.Family, o.Dst), o.DstPort))
			}
		}
	}
	denied := func(d denial) {
		if name, first := rep.Count(false, d.proto, d.to); first {
			r.log.Warn("connection denied", "protocol", protoName(d.proto), "to", d.to.String(), "name", name)
		}
	}
	for {
		allowed()
		select {
		case <-c.done:
			return
		case <-sub.C():
		case d := <-c.denied:
			denied(d)
		case ask := <-c.sync:
			allowed()
			for len(c.denied) > 0 {
				denied(<-c.denied)
			}
			close(ask)
		}
	}
}

func protoName(p uint8) string {
	switch p {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return "icmp"
	}
	return "other"
}

// leavesByUplink says whether packets to an address leave by an uplink.
func (r *Router) leavesByUplink(family uint8, dst [16]byte) bool {
	rt, ok := r.fib.Lookup(&netstack.Query{Family: family, Dst: dst})
	if !ok || rt.Dev == nil {
		return false
	}
	l := r.uplinkNames.Load()
	return l != nil && slices.Contains(*l, rt.Dev.Name)
}

// denied notes a packet of a LOG rule with DeniedPrefix; false: nobody counts them.
func (w *worker) denied(p *packet.Packet) bool {
	c := w.r.denials.Load()
	if c == nil {
		return false
	}
	select {
	case c.denied <- denial{p.Proto, netip.AddrPortFrom(p.DstAddr(), p.DstPort())}:
	default:
		w.r.logs.lost.Add(1)
	}
	return true
}

// Summary is what was allowed and denied so far; false without [dns] allow.
func (r *Router) Summary() (Summary, bool) {
	res, c := r.resolver.Load(), r.denials.Load()
	if res == nil || c == nil {
		return Summary{}, false
	}
	ask := make(chan struct{})
	select {
	case c.sync <- ask:
		<-ask
	case <-c.done:
	}
	return res.Report.Summary(), true
}

// Resolve resolves a name as a program behind the router would, and pins what
// comes, where there is [dns]; else as the host does.
func (r *Router) Resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	if res := r.resolver.Load(); res != nil {
		return res.Lookup(ctx, name)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// SearchDomains is the search list and ndots of the host's resolv.conf, for the
// resolv.conf of who is behind the router; nil and 1 without [dns].
func (r *Router) SearchDomains() (domains []string, ndots int) {
	if res := r.resolver.Load(); res != nil {
		return res.Search()
	}
	return nil, 1
}

// strictCheck is uplinks' look at server names, while [dns] strict is on.
type strictCheck struct{ r *Router }

func (s strictCheck) Wants(in, out netip.AddrPort) bool {
	res := s.r.strict.Load()
	return res != nil && resolver.Strict{Resolver: res}.Wants(in, out)
}

func (s strictCheck) Unseen(in, out netip.AddrPort) {
	if res := s.r.strict.Load(); res != nil {
		resolver.Strict{Resolver: res}.Unseen(in, out)
	}
}

func (s strictCheck) Judge(in, out netip.AddrPort, first []byte) uplink.Verdict {
	res := s.r.strict.Load()
	if res == nil {
		return uplink.Pass
	}
	return resolver.Strict{Resolver: res}.Judge(in, out, first)
}

// applyProxies makes the proxies what cfg says. With an error nothing has changed.
func (r *Router) applyProxies(cfg *Config) error {
	var want []proxy.Config
	for i := range cfg.Proxies {
		c := &cfg.Proxies[i]
		p := proxy.Config{Type: c.Type, Network: c.Listen.Network, Address: c.Listen.Path}
		if p.Network != "unix" {
			p.Address = c.Listen.Addr.String()
		}
		want = append(want, p)
	}
	if r.proxies == nil {
		if len(want) == 0 {
			return nil
		}
		r.proxies = proxy.NewManager(proxy.Outside{
			Dial: func(ctx context.Context, to netip.AddrPort, owner netstack.Owner) (net.Conn, error) {
				return r.local.DialContext(ctx, "tcp", netip.AddrPort{}, to, owner)
			},
			Lookup: r.Resolve, Log: r.log,
		})
	}
	return r.proxies.Apply(want)
}

// DNSConfig is [dns]: the router's resolver, on sockets of its own.
type DNSConfig struct {
	Pos     Position         `toml:"-"`
	Listen  []netip.AddrPort `toml:"listen"`
	Servers []NameServer     `toml:"servers"` // empty: those of the host's resolv.conf
	Allow   []Allow          `toml:"allow"`   // names whose addresses go into the sets; empty: no list
	Outside string           `toml:"outside"` // other names: OutsideRefuse (the default) or OutsidePass
	Grace   time.Duration    `toml:"grace"`   // how long an address stays in the sets after its TTL; default DefaultGrace
	Strict  bool             `toml:"strict"`  // uplinks check the names that clients say on ports 443 and 80
	Learn   bool             `toml:"learn"`   // connections are counted for the Summary, without a list too
}

// DefaultGrace is [dns] grace where nothing is said: programs keep addresses a
// little longer than the answer says.
const DefaultGrace = time.Minute

// SetDefaults fills in what [dns] has before its keys are read.
func (c *DNSConfig) SetDefaults() { c.Outside, c.Grace = OutsideRefuse, DefaultGrace }

// NameServer is a resolver's address, written with or without the port.
type NameServer struct{ netip.AddrPort }

// ProxyConfig is one [[proxy]]: host programs reach out through OUTPUT.
type ProxyConfig struct {
	Pos    Position   `toml:"-"`
	Listen HostListen `toml:"listen"`
	Type   string     `toml:"type"` // one of proxy.Types
}
