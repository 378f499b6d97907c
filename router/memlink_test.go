package router

import (
	"net/netip"
	"testing"

	"sluice/netstack"
	"sluice/packet"
)

// memLink is an interface in memory: a test puts frames in and finds what was sent.
type memLink struct {
	iface *packet.Iface
	in    [][]byte
	out   [][]byte
	gso   []packet.GSO
	keep  bool // keep what is sent
	split bool // a device without offload: super-packets are cut for it
}

func (l *memLink) Iface() *packet.Iface     { return l.iface }
func (l *memLink) Queues() int              { return 1 }
func (l *memLink) Queue(int) netstack.Queue { return l }
func (l *memLink) SetMTU(int) error         { return nil }
func (l *memLink) Close() error             { return nil }
func (l *memLink) FD() int                  { return -1 }
func (l *memLink) Flush() error             { return nil }

func (l *memLink) Read(p *packet.Packet) error {
	if len(l.in) == 0 {
		return netstack.ErrAgain
	}
	p.SetBytes(l.in[0])
	l.in = l.in[1:]
	return nil
}

func (l *memLink) Write(p *packet.Packet) error {
	if l.split && (p.GSO.Type != packet.GSONone || p.GSO.NeedsCsum) {
		q := packet.New()
		q.Copy(p)
		packet.Segments(q, func(s *packet.Packet) { l.out = append(l.out, append([]byte(nil), s.Bytes()...)) })
		return nil
	}
	if l.keep {
		l.out = append(l.out, append([]byte(nil), p.Bytes()...))
		l.gso = append(l.gso, p.GSO)
	}
	return nil
}

// bed is a router with interfaces in memory.
type bed struct {
	t     testing.TB
	r     *Router
	w     *worker
	links map[string]*memLink
}

func newBed(t testing.TB, cfg *Config) *bed { return newBeds(t, cfg, 1) }

func newBeds(t testing.TB, cfg *Config, workers int) *bed {
	t.Helper()
	b, err := openBed(t, cfg, workers)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openBed(t testing.TB, cfg *Config, workers int) (*bed, error) {
	b := &bed{t: t, links: map[string]*memLink{}}
	cfg.Router.Workers = workers
	r, err := New(cfg, Options{Open: func(c *InterfaceConfig, index int) (netstack.Link, error) {
		mtu := c.MTU
		if mtu == 0 {
			mtu = DefaultMTU
		}
		l := &memLink{iface: packet.NewIface(index, c.Name, mtu), keep: true}
		b.links[c.Name] = l
		return l, nil
	}})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { r.Close() })
	b.r, b.w = r, r.workers[0]
	return b, nil
}

// edge is a configuration with lan0 (10.0.1.1/24, fd00:1::1/64) and wan0
// (198.51.100.1/24, fd00:2::1/64), default routes over wan0, and IPv4 rules by table.
func edge(rules map[string][]string) *Config {
	c := &Config{
		Interfaces: []InterfaceConfig{
			{Name: "lan0", Addresses: prefixes("10.0.1.1/24", "fd00:1::1/64")},
			{Name: "wan0", Addresses: prefixes("198.51.100.1/24", "fd00:2::1/64")},
		},
		Routes: []RouteConfig{
			{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("198.51.100.2"), Dev: "wan0"},
			{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:2::2"), Dev: "wan0"},
		},
	}
	for _, t := range c.IPTables.Tables() {
		for _, text := range rules[t.Name] {
			t.Rules = append(t.Rules, RuleLine{Text: text})
		}
	}
	return c
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

// send takes frames through the router as one burst and gives what left, by interface.
func (b *bed) send(in string, frames ...[]byte) map[string][][]byte {
	b.t.Helper()
	for _, l := range b.links {
		l.out, l.gso = nil, nil
	}
	b.w.do(func(w *worker) {
		w.begin(b.r.clock())
		d := w.port(b.links[in].iface)
		for _, f := range frames {
			w.batch[0].Reset()
			w.batch[0].SetBytes(f)
			w.burst(d, w.batch[:1])
		}
		w.end()
	})
	out := map[string][][]byte{}
	for name, l := range b.links {
		if len(l.out) > 0 {
			out[name] = l.out
		}
	}
	return out
}

// reasons is what was dropped so far, by reason.
func (b *bed) reasons() map[string]uint64 {
	out := map[string]uint64{}
	for _, d := range b.r.Status().Drops {
		out[d.Reason] = d.Packets
	}
	return out
}
