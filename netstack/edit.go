package netstack

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"sluice/packet"
)

// Tx edits a private copy of the routing state; see FIB.Update. It is good
// for the time of that call only.
type Tx struct {
	f     *FIB
	s     *Snapshot
	owned map[uint32]int // edits of a table so far; copiedAt and more: it is this Tx's own
	added []*dev         // whose tunables go again if the Tx fails
	gone  []*dev         // whose tunables go if it succeeds
}

// A table's first edits share its unchanged nodes with the readers' one; after
// so many of them one whole copy is cheaper than a path of nodes for each.
const copiedAt = 64

func (f *FIB) begin() *Tx {
	old := f.live.Load()
	s := *old
	s.Gen++
	s.devs = slices.Clone(old.devs)
	s.tables = maps.Clone(old.tables)
	s.specs = slices.Clone(old.specs)
	return &Tx{f: f, s: &s, owned: map[uint32]int{}}
}

func (tx *Tx) finish() *Snapshot {
	for _, d := range tx.gone {
		if tx.s.devNamed(d.iface.Name) == nil {
			tx.f.conf.drop(d.conf)
		}
	}
	tx.s.compileRules()
	return tx.s
}

func (tx *Tx) rollback() {
	for _, d := range tx.added {
		tx.f.conf.drop(d.conf)
	}
}

// Snapshot is the state as edited so far, for looking things up.
func (tx *Tx) Snapshot() *Snapshot {
	tx.s.compileRules()
	return tx.s
}

// Reset takes everything out but lo and the default rules: a reload builds
// the routing state anew. Interfaces that come back keep their tunables.
func (tx *Tx) Reset() {
	for _, d := range tx.s.devs {
		if d != nil && d.iface.Index != 1 {
			tx.gone = append(tx.gone, d)
		}
	}
	tx.s.devs = nil
	tx.s.tables, tx.s.local = map[uint32]*bart.Table[*ways]{}, nil
	tx.s.specs = slices.Clone(defaultRules)
	tx.owned = map[uint32]int{}
	// lo's addresses cannot be refused: the tables are empty.
	tx.addDev(tx.f.lo)
	_ = tx.AddAddr(1, netip.MustParsePrefix("127.0.0.1/8"))
	_ = tx.AddAddr(1, netip.MustParsePrefix("::1/128"))
}

// AddIface adds an interface that is up. Index 1 is lo's. Where IPv6 is not
// disabled, it gets a link-local address, made from its name.
func (tx *Tx) AddIface(i *packet.Iface) error {
	switch {
	case i.Index < 1 || i.Index >= maxIfaces:
		return fmt.Errorf("interface %s: index %d is out of range", i.Name, i.Index)
	case tx.s.dev(i.Index) != nil:
		return fmt.Errorf("interface %s: index %d is %s's", i.Name, i.Index, tx.s.dev(i.Index).iface.Name)
	case tx.s.devNamed(i.Name) != nil:
		return fmt.Errorf("interface %s is there already", i.Name)
	}
	d := tx.addDev(i)
	if d.conf.V6(V6DisableIPv6) != 0 {
		return nil
	}
	return tx.addAddr(d.iface.Index, IfaceAddr{Prefix: netip.PrefixFrom(linkLocal(i.Name), 64), Auto: true})
}

func (tx *Tx) addDev(i *packet.Iface) *dev {
	d := &dev{iface: i}
	var fresh bool
	if d.conf, fresh = tx.f.conf.of(i.Name); fresh && i.Index != 1 {
		tx.added = append(tx.added, d)
	}
	for len(tx.s.devs) <= i.Index {
		tx.s.devs = append(tx.s.devs, nil)
	}
	tx.s.devs[i.Index] = d
	if i.Index != 1 && d.conf.V6(V6DisableIPv6) == 0 {
		k := multicast6(i.Index)
		_ = tx.insert(k.to, k.hop, true)
	}
	return d
}

// SetIface replaces an interface by one of the same index and name, with another MTU say.
func (tx *Tx) SetIface(i *packet.Iface) error {
	d := tx.s.dev(i.Index)
	if d == nil || d.iface.Name != i.Name {
		return fmt.Errorf("interface %s: %w", i.Name, unix.ENODEV)
	}
	c := *d
	c.iface = i
	tx.s.devs[i.Index] = &c
	return nil
}

// RemoveIface takes an interface out, with its addresses, its tunables and every route through it.
func (tx *Tx) RemoveIface(index int) error {
	d := tx.s.dev(index)
	if d == nil || index == 1 {
		return unix.ENODEV
	}
	tx.removeHops(func(_ netip.Prefix, h *hop) bool { return h.dev == int32(index) })
	tx.s.devs[index] = nil
	tx.gone = append(tx.gone, d)
	return nil
}

func (tx *Tx) removeHops(match func(netip.Prefix, *hop) bool) {
	for id, t := range tx.s.tables {
		var hit []netip.Prefix
		for p, w := range t.All() {
			if w.any(func(h *hop) bool { return match(p, h) }) {
				hit = append(hit, p)
			}
		}
		for _, p := range hit {
			tx.removeAt(id, p, func(h *hop) bool { return match(p, h) })
		}
	}
}

// AddAddr gives an interface an address, with the routes that Linux makes for
// it: the connected one, and in table local the address and its broadcast.
func (tx *Tx) AddAddr(index int, p netip.Prefix) error {
	return tx.addAddr(index, IfaceAddr{Prefix: p})
}

func (tx *Tx) addAddr(index int, a IfaceAddr) error {
	d := tx.s.dev(index)
	if d == nil {
		return unix.ENODEV
	}
	if !a.Prefix.IsValid() || a.Prefix.Addr().Is4In6() || a.Prefix.Addr().Zone() != "" {
		return fmt.Errorf("invalid address %s", a.Prefix)
	}
	ip := a.Prefix.Addr()
	if ip.IsMulticast() || ip.IsUnspecified() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("%s cannot be an interface's address", ip)
	}
	c := *d
	c.addrs = slices.Clone(d.addrs)
	switch {
	case ip.IsLoopback():
		a.Scope = ScopeHost
	case ip.Is6() && ip.IsLinkLocalUnicast():
		a.Scope = ScopeLink
	}
	for _, o := range c.addrs {
		if o.Prefix.Addr() == ip && (ip.Is6() || o.Prefix.Bits() == a.Prefix.Bits()) {
			return unix.EEXIST
		}
		if ip.Is4() && !o.Secondary && o.Prefix.Bits() == a.Prefix.Bits() && o.Prefix.Masked() == a.Prefix.Masked() {
			a.Secondary = true
		}
	}
	c.addrs = append(c.addrs, a)
	tx.s.devs[index] = &c
	if ip.Is4() {
		tx.f.conf.hasAddress(c.conf)
	}
	for _, k := range routesOf(&c, a) {
		_ = tx.insert(k.to, k.hop, true) // appending is never refused
	}
	return nil
}

// DelAddr takes an address from an interface. With a primary IPv4 address go
// its secondaries; with an address go the routes that prefer it as source.
func (tx *Tx) DelAddr(index int, p netip.Prefix) error {
	d := tx.s.dev(index)
	if d == nil {
		return unix.ENODEV
	}
	at := slices.IndexFunc(d.addrs, func(a IfaceAddr) bool { return a.Prefix == p })
	if at < 0 {
		return unix.EADDRNOTAVAIL
	}
	dead := d.addrs[at]
	c := *d
	c.addrs = slices.DeleteFunc(slices.Clone(d.addrs), func(a IfaceAddr) bool {
		return a == dead || p.Addr().Is4() && !dead.Secondary && a.Secondary && a.Prefix.Masked() == p.Masked()
	})
	// The kernel's own routes of this interface and family are made anew.
	is4 := p.Addr().Is4()
	var drop []netip.Addr
	for _, a := range d.addrs {
		if !slices.Contains(c.addrs, a) {
			drop = append(drop, a.Prefix.Addr())
		}
	}
	last := is4 && !slices.ContainsFunc(c.addrs, func(a IfaceAddr) bool { return a.Prefix.Addr().Is4() })
	var keep []kernelRoute
	for _, a := range c.addrs {
		if a.Prefix.Addr().Is4() == is4 {
			keep = append(keep, routesOf(&c, a)...)
		}
	}
	if !is4 && index != 1 {
		keep = append(keep, multicast6(index))
	}
	tx.removeHops(func(q netip.Prefix, h *hop) bool {
		if q.Addr().Is4() != is4 || slices.Contains(keep, kernelRoute{q, *h}) {
			return false
		}
		return h.dev == int32(index) && (h.proto == protoKernel || last) ||
			is4 && h.table == TableMain && h.src != [16]byte{} && slices.Contains(drop, Addr(packet.IPv4, h.src))
	})
	if !is4 {
		tx.forgetSources(drop)
	}
	tx.s.devs[index] = &c
	for _, k := range keep {
		_ = tx.insert(k.to, k.hop, true)
	}
	return nil
}

// forgetSources takes dead IPv6 addresses out of the routes that prefer them; the routes stay.
func (tx *Tx) forgetSources(dead []netip.Addr) {
	hit := func(h *hop) bool {
		return h.src != [16]byte{} && slices.Contains(dead, netip.AddrFrom16(h.src))
	}
	for id, t := range tx.s.tables {
		var at []netip.Prefix
		for p, w := range t.All6() {
			if w.any(hit) {
				at = append(at, p)
			}
		}
		for _, p := range at {
			w, _ := tx.s.tables[id].Get(p)
			c := &ways{first: w.first, rest: slices.Clone(w.rest)}
			for i := -1; i < len(c.rest); i++ {
				if h := c.at(i); hit(h) {
					h.src = [16]byte{}
				}
			}
			tx.put(id, p, c)
		}
	}
}

func (w *ways) any(f func(*hop) bool) bool {
	for i := -1; i < len(w.rest); i++ {
		if f(w.at(i)) {
			return true
		}
	}
	return false
}

const (
	protoKernel = 2
	protoStatic = 4
)

// kernelRoute is a route that comes with an address or an interface.
type kernelRoute struct {
	to  netip.Prefix
	hop hop
}

func multicast6(index int) kernelRoute {
	return kernelRoute{netip.MustParsePrefix("ff00::/8"),
		hop{dev: int32(index), typ: RouteMulticast, metric: 256, proto: protoKernel, table: TableLocal}}
}

// routesOf is what comes with address a of d: fib_add_ifaddr, and what addrconf adds on a router.
func routesOf(d *dev, a IfaceAddr) (out []kernelRoute) {
	dev := int32(d.iface.Index)
	add := func(table uint32, p netip.Prefix, h hop) {
		h.dev, h.proto, h.table = dev, protoKernel, table
		out = append(out, kernelRoute{p, h})
	}
	ip, net := a.Prefix.Addr(), a.Prefix.Masked()
	if ip.Is6() {
		add(TableLocal, netip.PrefixFrom(ip, 128), hop{typ: RouteLocal})
		if dev == 1 {
			return out
		}
		add(TableMain, net, hop{typ: RouteUnicast, metric: 256})
		if net.Bits() < 127 && d.conf.V6(V6Forwarding) != 0 {
			add(TableLocal, netip.PrefixFrom(net.Addr(), 128), hop{typ: RouteAnycast}) // the subnet-router anycast address
		}
		return out
	}
	src := ip // a secondary address' route prefers the primary one
	for _, o := range d.addrs {
		if a.Secondary && !o.Secondary && o.Prefix.Masked() == net {
			src = o.Prefix.Addr()
		}
	}
	h := hop{typ: RouteLocal, scope: ScopeHost, nhScope: ScopeNowhere, src: addr16(src)}
	add(TableLocal, netip.PrefixFrom(ip, 32), h)
	if a.Secondary || net.Bits() == 32 {
		return out
	}
	if dev == 1 {
		add(TableLocal, net, h)
	}
	h.scope = ScopeLink
	if dev != 1 {
		h.typ = RouteUnicast
		add(TableMain, net, h)
	}
	if net.Bits() < 31 {
		h.typ = RouteBroadcast
		add(TableLocal, netip.PrefixFrom(lastAddr4(a.Prefix), 32), h)
	}
	return out
}

func lastAddr4(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// linkLocal makes the interface identifier from the name, so that it is the
// same after a restart (64-bit FNV-1a).
func linkLocal(name string) netip.Addr {
	x := uint64(14695981039346656037)
	for i := 0; i < len(name); i++ {
		x = (x ^ uint64(name[i])) * 1099511628211
	}
	b := [16]byte{0xfe, 0x80}
	for i := range 8 {
		b[8+i] = byte(x >> (56 - 8*i))
	}
	b[8] &^= 2 // not a globally unique identifier (RFC 4291 2.5.1)
	return netip.AddrFrom16(b)
}

// AddRoute adds a route. It is refused where Linux refuses it.
func (tx *Tx) AddRoute(r RouteSpec) error {
	h, err := tx.check(&r)
	if err != nil {
		return err
	}
	return tx.insert(r.To, h, false)
}

// ReplaceRoute adds a route, in place of the one with the same prefix, table and metric if there is one.
func (tx *Tx) ReplaceRoute(r RouteSpec) error {
	h, err := tx.check(&r)
	if err != nil {
		return err
	}
	done := false
	tx.removeAt(h.table, r.To, func(o *hop) bool {
		hit := !done && o.metric == h.metric
		done = done || hit
		return hit
	})
	return tx.insert(r.To, h, true)
}

// DelRoute removes the first route that r describes; fields that r leaves empty do not count.
func (tx *Tx) DelRoute(r RouteSpec) error {
	if !r.To.IsValid() || r.To.Masked() != r.To {
		return errors.New("Invalid prefix for given prefix length.")
	}
	if r.Table == 0 {
		r.Table = TableMain
	}
	dev := int32(0)
	if r.Dev != "" {
		d := tx.s.devNamed(r.Dev)
		if d == nil {
			return fmt.Errorf("cannot find device %q", r.Dev)
		}
		dev = int32(d.iface.Index)
	}
	done := false
	tx.removeAt(r.Table, r.To, func(h *hop) bool {
		if done || dev != 0 && h.dev != dev || r.Metric != 0 && h.metric != r.Metric || r.Type != 0 && h.typ != r.Type ||
			r.Via.IsValid() && (!h.gateway || h.via != addr16(r.Via)) || r.Src.IsValid() && h.src != addr16(r.Src) {
			return false
		}
		done = true
		return true
	})
	if !done {
		return unix.ESRCH
	}
	return nil
}

// insert puts h behind the hops with the same metric.
func (tx *Tx) insert(p netip.Prefix, h hop, appending bool) error {
	t := tx.s.tables[h.table]
	var old *ways
	if t != nil {
		old, _ = t.Get(p)
	}
	if old == nil {
		tx.put(h.table, p, tx.f.share(h))
		return nil
	}
	all := append([]hop{old.first}, old.rest...)
	at := len(all)
	for i := range all {
		if all[i] == h {
			return unix.EEXIST
		}
		if all[i].metric == h.metric && !appending {
			return unix.EEXIST
		}
		if all[i].metric > h.metric && at == len(all) {
			at = i
		}
	}
	all = slices.Insert(all, at, h)
	tx.put(h.table, p, &ways{first: all[0], rest: all[1:]})
	return nil
}

func (tx *Tx) removeAt(table uint32, p netip.Prefix, match func(*hop) bool) {
	t := tx.s.tables[table]
	if t == nil {
		return
	}
	old, ok := t.Get(p)
	if !ok {
		return
	}
	var left []hop
	for _, h := range append([]hop{old.first}, old.rest...) {
		if !match(&h) {
			left = append(left, h)
		}
	}
	switch {
	case len(left) == 0:
		tx.put(table, p, nil)
	case len(left) == 1:
		tx.put(table, p, tx.f.share(left[0]))
	case len(left) <= len(old.rest):
		tx.put(table, p, &ways{first: left[0], rest: left[1:]})
	}
}

// put writes one entry (nil: deletes it) without touching what readers see.
func (tx *Tx) put(id uint32, p netip.Prefix, w *ways) {
	t := tx.s.tables[id]
	n := tx.owned[id]
	switch {
	case t == nil:
		t, n = new(bart.Table[*ways]), copiedAt
	case n == copiedAt-1:
		t, n = t.Clone(), copiedAt
	case n < copiedAt:
		n++
	}
	switch {
	case n == copiedAt && w == nil:
		t.Delete(p)
	case n == copiedAt:
		t.Insert(p, w)
	case w == nil:
		t = t.DeletePersist(p)
	default:
		t = t.InsertPersist(p, w)
	}
	tx.owned[id], tx.s.tables[id] = n, t
	if id == TableLocal {
		tx.s.local = t
	}
}

// share finds or makes the ways of a single hop. Called by writers only.
func (f *FIB) share(h hop) *ways {
	if w := f.shared[h]; w != nil {
		return w
	}
	if len(f.shared) >= 4096 { // old ones live on where they are in use
		clear(f.shared)
	}
	w := &ways{first: h}
	f.shared[h] = w
	return w
}
