package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"sluice/internal/sysctl"
	"sluice/packet"
)

// FIB is the router's routing state: interfaces and their addresses, tables
// and policy rules. Readers load one immutable Snapshot; writers take turns.
type FIB struct {
	live atomic.Pointer[Snapshot]
	lo   *packet.Iface
	conf *confSet

	mu     sync.Mutex // serialises writers; no packet ever takes it
	shared map[hop]*ways
}

// Snapshot is the routing state at one moment. It never changes, so a worker
// may keep it for a batch. Tunables are the exception: those are live.
type Snapshot struct {
	Gen    uint64 // another one with each change
	devs   []*dev // by interface index; nil where there is none
	tables map[uint32]*bart.Table[*ways]
	local  *bart.Table[*ways] // tables[TableLocal], or nil
	specs  []Rule             // as added, by family and priority
	rules  [2][]rule          // compiled: IPv4, IPv6
	custom [2]bool            // rules other than the default ones
	lo     *packet.Iface
	conf   *confSet
}

// dev is an interface within a Snapshot; replaced, never changed.
type dev struct {
	iface *packet.Iface
	addrs []IfaceAddr // in the order in which they were added
	conf  *Conf
}

// hop is one way to a prefix. It holds an index in place of the interface,
// so that a new MTU does not touch a million routes.
type hop struct {
	dev     int32
	typ     RouteType
	scope   Scope
	nhScope Scope // of the gateway: ScopeNowhere where there is none, as Linux has it
	gateway bool  // via is set
	direct  bool  // and is the router's own address: Linux then sends to the destination itself
	onlink  bool
	proto   uint8
	table   uint32
	metric  uint32
	mtu     uint32
	via     [16]byte
	src     [16]byte
}

// ways are the hops of one prefix in one table, best first. Prefixes with the
// same single hop share one.
type ways struct {
	first hop
	rest  []hop
}

const maxIfaces = 1 << 16

// NewFIB makes a FIB with the interface lo (index 1) and Linux's default
// rules, and registers the tunables net.ipv4.conf.*, net.ipv6.conf.* and
// net.ipv4.ip_forward in s.
func NewFIB(s *sysctl.Set) *FIB {
	f := &FIB{lo: packet.NewIface(1, "lo", 65536), conf: newConfSet(s), shared: map[hop]*ways{}}
	f.live.Store(&Snapshot{tables: map[uint32]*bart.Table[*ways]{}, lo: f.lo, conf: f.conf})
	if err := f.Update(func(tx *Tx) error { tx.Reset(); return nil }); err != nil {
		panic(err) // an empty FIB has nothing to refuse
	}
	return f
}

// Load is the present Snapshot.
func (f *FIB) Load() *Snapshot { return f.live.Load() }

// Loopback is the interface lo.
func (f *FIB) Loopback() *packet.Iface { return f.lo }

// Update applies edit to a copy of the routing state and publishes it as a
// whole, or, when edit fails, changes nothing.
func (f *FIB) Update(edit func(*Tx) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	tx := f.begin()
	if err := edit(tx); err != nil {
		tx.rollback()
		return err
	}
	f.live.Store(tx.finish())
	return nil
}

// Lookup finds the route of a packet: policy rules by priority, in each table
// the longest prefix, then the least metric. ok means that the packet can go
// somewhere (unicast, local, broadcast, anycast, multicast); otherwise Type
// says why not: RouteNone, RouteBlackhole, RouteUnreachable or RouteProhibit.
func (s *Snapshot) Lookup(q *Query) (r Route, ok bool) {
	ok = s.find(q, &r)
	return r, ok
}

// ConfGen counts the changes of the interfaces' tunables. What Input answers
// holds as long as both the Snapshot and ConfGen stay the same.
func (s *Snapshot) ConfGen() uint64 { return s.conf.gen.Load() }

// find is Lookup into a Route that is there already.
func (s *Snapshot) find(q *Query, r *Route) bool {
	*r = Route{}
	fam := 0
	if q.Family == packet.IPv6 {
		fam = 1
	}
	dst := Addr(q.Family, q.Dst)
	// Only a packet bound to an interface needs a choice among equals.
	want, strict := int32(0), false
	if q.Out != nil {
		want, strict = int32(q.Out.Index), true
	} else if fam == 1 && q.In != nil {
		want, strict = int32(q.In.Index), linkScope6(&q.Dst)
	}
	rules := s.rules[fam]
	for i := range rules {
		ru := &rules[i]
		if !ru.all && !ru.match(q, dst) {
			continue
		}
		if ru.table == nil {
			if ru.Action != RouteUnreachable { // a rule's unreachable is the network's, a route's the host's
				r.Type = ru.Action
			}
			return false
		}
		w, found := ru.table.Lookup(dst)
		if !found {
			continue
		}
		h := &w.first
		if want != 0 && (strict || w.rest != nil) {
			if h = pick(ru.table, dst, w, want, strict); h == nil {
				continue
			}
		}
		if h.typ == RouteThrow {
			continue
		}
		return s.result(h, &q.Dst, r)
	}
	return false
}

func (s *Snapshot) result(h *hop, dst *[16]byte, r *Route) bool {
	r.Type, r.Scope, r.Gateway = h.typ, h.scope, h.gateway && !h.direct
	r.Table, r.Metric, r.MTU, r.PrefSrc = h.table, h.metric, h.mtu, h.src
	if h.typ >= RouteBlackhole {
		return false
	}
	d := s.devs[h.dev]
	r.Dev = d.iface
	if r.MTU == 0 {
		r.MTU = uint32(d.iface.MTU)
	}
	if r.Gateway {
		r.NextHop = h.via
	} else {
		r.NextHop = *dst
		if h.direct && r.PrefSrc == [16]byte{} {
			r.PrefSrc, _ = s.source4(d.iface, h.via, h.scope)
		}
	}
	return true
}

// pick chooses among the hops of the longest prefix, and under strict among
// those of the shorter ones as well, the one through the interface want.
// Without strict (IPv6 only) the interface merely breaks ties of the metric.
func pick(t *bart.Table[*ways], dst netip.Addr, w *ways, want int32, strict bool) *hop {
	if !strict {
		for i := range w.rest {
			if w.first.dev == want || w.rest[i].metric != w.first.metric {
				break
			}
			if w.rest[i].dev == want {
				return &w.rest[i]
			}
		}
		return &w.first
	}
	if h := w.through(want, dst.Is4()); h != nil {
		return h
	}
	p, _, ok := t.LookupPrefixLPM(netip.PrefixFrom(dst, dst.BitLen()))
	for ok && p.Bits() > 0 {
		if p, w, ok = t.LookupPrefixLPM(netip.PrefixFrom(dst, p.Bits()-1)); ok {
			if h := w.through(want, dst.Is4()); h != nil {
				return h
			}
		}
	}
	return nil
}

// through finds the hop through an interface. Error routes have none: IPv4's
// stop a bound socket as well, IPv6's (Linux has them on lo) do not.
func (w *ways) through(dev int32, v4 bool) *hop {
	for i := -1; i < len(w.rest); i++ {
		if h := w.at(i); h.dev == dev || v4 && h.typ >= RouteBlackhole {
			return h
		}
	}
	return nil
}

// linkScope6: link-local and multicast destinations mean something on one link only.
func linkScope6(a *[16]byte) bool {
	return a[0] == 0xff || a[0] == 0xfe && a[1]&0xc0 == 0x80
}

// Iface finds an interface by its index; nil if there is none.
func (s *Snapshot) Iface(index int) *packet.Iface {
	if d := s.dev(index); d != nil {
		return d.iface
	}
	return nil
}

// IfaceByName finds an interface by its name; nil if there is none.
func (s *Snapshot) IfaceByName(name string) *packet.Iface {
	if d := s.devNamed(name); d != nil {
		return d.iface
	}
	return nil
}

// Ifaces lists the interfaces by index, lo included.
func (s *Snapshot) Ifaces() []*packet.Iface {
	var out []*packet.Iface
	for _, d := range s.devs {
		if d != nil {
			out = append(out, d.iface)
		}
	}
	return out
}

// Addrs lists an interface's addresses in the order in which they were added; not to be changed.
func (s *Snapshot) Addrs(index int) []IfaceAddr {
	if d := s.dev(index); d != nil {
		return d.addrs
	}
	return nil
}

// Conf holds the tunables of an interface; those of "default" if the index is unknown.
func (s *Snapshot) Conf(i *packet.Iface) *Conf {
	if i != nil {
		if d := s.dev(i.Index); d != nil {
			return d.conf
		}
	}
	return s.conf.def
}

func (s *Snapshot) dev(index int) *dev {
	if index < 0 || index >= len(s.devs) {
		return nil
	}
	return s.devs[index]
}

func (s *Snapshot) devNamed(name string) *dev {
	for _, d := range s.devs {
		if d != nil && d.iface.Name == name {
			return d
		}
	}
	return nil
}

// Rules lists the policy rules of a family by priority.
func (s *Snapshot) Rules(family uint8) []Rule {
	var out []Rule
	for i := range s.specs {
		if s.specs[i].Family == family {
			out = append(out, s.specs[i])
		}
	}
	return out
}

// Entry is a route as Routes lists it.
type Entry struct {
	To netip.Prefix
	Route
	Proto uint8
}

// Routes calls f for each route of a table and family, prefix by prefix in
// address order, until it returns false.
func (s *Snapshot) Routes(table uint32, family uint8, f func(Entry) bool) {
	t := s.tables[table]
	if t == nil {
		return
	}
	seq := t.AllSorted4()
	if family == packet.IPv6 {
		seq = t.AllSorted6()
	}
	for p, w := range seq {
		for i := -1; i < len(w.rest); i++ {
			h := &w.first
			if i >= 0 {
				h = &w.rest[i]
			}
			e := Entry{To: p, Proto: h.proto}
			s.result(h, &[16]byte{}, &e.Route)
			e.PrefixLen = uint8(p.Bits())
			if !f(e) {
				return
			}
		}
	}
}

// Tables lists the numbers of the tables that have routes, unordered.
func (s *Snapshot) Tables() []uint32 {
	var out []uint32
	for id, t := range s.tables {
		if t.Size() > 0 {
			out = append(out, id)
		}
	}
	return out
}
