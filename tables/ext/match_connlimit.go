package ext

import (
	"fmt"
	"hash/maphash"
	"sync/atomic"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

var matchConnlimit = &tables.Match{
	Name:     "connlimit",
	Families: tables.V4V6,
	Doc:      "Matches by the number of connections that an address, or a group of addresses, has through this rule. Connections are those of conntrack; one that is closed does not count.",
	Options: []tables.Option{
		{Name: "connlimit-upto", Type: tables.U32, Negatable: true, Excludes: []string{"connlimit-above"}, Arg: "n", Doc: "match while there are no more than n connections"},
		{Name: "connlimit-above", Type: tables.U32, Negatable: true, Excludes: []string{"connlimit-upto"}, Arg: "n", Doc: "match where there are more than n connections"},
		{Name: "connlimit-mask", Type: plen{}, Arg: "prefix", Doc: "prefix length by which addresses are grouped"},
		{Name: "connlimit-saddr", Type: tables.Flag, Excludes: []string{"connlimit-daddr"}, Doc: "count by source address (the default)"},
		{Name: "connlimit-daddr", Type: tables.Flag, Excludes: []string{"connlimit-saddr"}, Doc: "count by destination address"},
	},
	First: func(a *tables.Args) error {
		if !a.Has("connlimit-above") && !a.Has("connlimit-upto") {
			return tables.Usagef("You must specify \"--connlimit-above\" or \"--connlimit-upto\".")
		}
		return nil
	},
	Final: func(a *tables.Args) error {
		width := familyBits(a.Family)
		if m := a.Get("connlimit-mask"); !m.Set || m.Lo > width {
			a.Set("connlimit-mask", tables.Value{Lo: width})
		}
		if !a.Has("connlimit-daddr") {
			a.Set("connlimit-saddr", tables.Value{})
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		n, above := connLimit(a)
		s := " --connlimit-upto"
		if above {
			s = " --connlimit-above"
		}
		s += fmt.Sprintf(" %d --connlimit-mask %d", n, a.Num("connlimit-mask"))
		if a.Has("connlimit-daddr") {
			return s + " --connlimit-daddr"
		}
		return s + " --connlimit-saddr"
	},
	List: func(a *tables.Args, _ bool) string {
		n, above := connLimit(a)
		side, op := "src", "<="
		if a.Has("connlimit-daddr") {
			side = "dst"
		}
		if above {
			op = ">"
		}
		return fmt.Sprintf(" #conn %s/%d %s %d", side, a.Num("connlimit-mask"), op, n)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		n, above := connLimit(a)
		k := &connCount{limit: n, dst: a.Has("connlimit-daddr"), seed: maphash.MakeSeed()}
		for i := range k.mask {
			k.mask[i] = ^byte(0xff >> min(max(int(a.Num("connlimit-mask"))-8*i, 0), 8))
		}
		return func(c *tables.Context, p *packet.Packet) bool {
			more, ok := k.above(c, p)
			if !ok {
				c.Hotdrop = true
				return false
			}
			return more == above
		}, nil
	},
}

// connLimit is the limit and whether the rule matches above it.
func connLimit(a *tables.Args) (n uint64, above bool) {
	if v := a.Get("connlimit-above"); v.Set {
		return v.Lo, !v.Not
	}
	v := a.Get("connlimit-upto")
	return v.Lo, v.Not
}

const (
	connBuckets  = 1 << 12
	connNodes    = 1 << 12 // a slab's
	connKeys     = 256     // a slab's
	connLook     = 16      // connections looked at while the lock is held
	connSettling = 8e6     // ns that an unconfirmed connection counts
)

// connCount counts the connections that met a rule, by address. A connection is
// a node at its index in the connection table, once for each of its directions
// (their packets may differ in the address that counts), so what a rule may hold is
// bounded by that table. Nodes of the same address are linked. Ended
// connections are sorted out when their count matters: when it is above the limit.
type connCount struct {
	limit uint64
	dst   bool
	mask  [16]byte
	seed  maphash.Seed

	lock    spin // guards what the arrays hold
	buckets [connBuckets]uint32
	freeKey uint32
	usedKey uint32
	nodes   [1 << 7]atomic.Pointer[[1 << 8]atomic.Pointer[[connNodes]connNode]]
	keys    [1 << 10]atomic.Pointer[[1 << 8]atomic.Pointer[[connKeys]connKey]]
}

type connNode struct {
	since      int64  // ns: when it was counted
	gen        uint32 // the entry's generation
	key        uint32 // 0: not counted
	next, prev uint32 // nodes of the key
	proto      uint8
}

type connKey struct {
	addr  [16]byte
	next  uint32 // in the bucket, or on the free list
	count uint32
	first uint32 // node
	hand  uint32 // node to look at next; 0: first
	zone  uint16
}

// above reports whether there are more connections than the limit, p's own
// included; ok is false where p has no connection and could never have one.
func (k *connCount) above(c *tables.Context, p *packet.Packet) (more, ok bool) {
	addr := p.Src()
	if k.dst {
		addr = p.Dst()
	}
	for i := range addr {
		addr[i] &= k.mask[i]
	}
	e := c.Entry(p)
	if e == nil && p.Flags&(packet.LaterFragment|packet.BadHeaders) != 0 {
		return false, false
	}
	var zone uint16
	var self uint32
	if e != nil {
		zone, _ = e.Zone()
		self = p.Ct << 1
		if p.CtInfo.Reply() {
			self |= 1
		}
		k.grow(self)
	}
	bucket := &k.buckets[maphash.Bytes(k.seed, addr[:])%connBuckets]
	k.lock.lock()
	i := k.find(bucket, &addr, zone)
	if e != nil {
		for i == 0 {
			if i = k.newKey(bucket, &addr, zone); i == 0 {
				k.lock.unlock()
				k.growKeys()
				k.lock.lock()
				i = k.find(bucket, &addr, zone)
			}
		}
		k.count(self, i, e, p.Now)
	}
	extra := uint64(0)
	if e == nil {
		extra = 1
	}
	for looked := uint32(0); ; {
		if i == 0 {
			more = extra > k.limit
			break
		}
		x := k.key(i)
		if more = uint64(x.count)+extra > k.limit; !more || looked >= x.count {
			break
		}
		looked += connLook
		k.prune(bucket, i, self, c.CT, p.Now)
		k.lock.unlock() // others' turn
		k.lock.lock()
		i = k.find(bucket, &addr, zone)
	}
	k.lock.unlock()
	return more, true
}

func (k *connCount) node(n uint32) *connNode {
	i := n / connNodes
	return &k.nodes[i>>8&0x7f].Load()[i&0xff].Load()[n%connNodes]
}

// grow makes room for the node, without the lock.
func (k *connCount) grow(n uint32) {
	i := n / connNodes
	top := &k.nodes[i>>8&0x7f]
	if top.Load() == nil {
		top.CompareAndSwap(nil, new([1 << 8]atomic.Pointer[[connNodes]connNode]))
	}
	if s := &top.Load()[i&0xff]; s.Load() == nil {
		s.CompareAndSwap(nil, new([connNodes]connNode))
	}
}

func (k *connCount) key(i uint32) *connKey {
	s := i / connKeys
	return &k.keys[s>>8].Load()[s&0xff].Load()[i%connKeys]
}

// growKeys makes room for the next key never used, without the lock.
func (k *connCount) growKeys() {
	k.lock.lock()
	s := (k.usedKey + 1) / connKeys
	k.lock.unlock()
	top := &k.keys[s>>8]
	if top.Load() == nil {
		top.CompareAndSwap(nil, new([1 << 8]atomic.Pointer[[connKeys]connKey]))
	}
	top.Load()[s&0xff].CompareAndSwap(nil, new([connKeys]connKey))
}

func (k *connCount) find(bucket *uint32, addr *[16]byte, zone uint16) uint32 {
	i := *bucket
	for i != 0 {
		x := k.key(i)
		if x.addr == *addr && x.zone == zone {
			break
		}
		i = x.next
	}
	return i
}

// newKey makes a key; 0: growKeys first.
func (k *connCount) newKey(bucket *uint32, addr *[16]byte, zone uint16) uint32 {
	i := k.freeKey
	if i != 0 {
		k.freeKey = k.key(i).next
	} else {
		i = k.usedKey + 1
		s := i / connKeys
		if top := k.keys[s>>8].Load(); top == nil || top[s&0xff].Load() == nil {
			return 0
		}
		k.usedKey = i
	}
	*k.key(i) = connKey{addr: *addr, zone: zone, next: *bucket}
	*bucket = i
	return i
}

// count puts the node among those of the key, if it is not there yet.
func (k *connCount) count(n, key uint32, e *conntrack.Entry, now int64) {
	x, gen := k.node(n), e.Generation()
	if x.key == key && x.gen == gen {
		return
	}
	if o := k.node(n ^ 1); o.key == key && o.gen == gen {
		return // the other direction's address is of the same group
	}
	if x.key == key { // the same address, another connection
		x.gen, x.since, x.proto = gen, now, e.Tuple(conntrack.Original).Proto
		return
	}
	if x.key != 0 {
		old := k.key(x.key)
		k.remove(&k.buckets[maphash.Bytes(k.seed, old.addr[:])%connBuckets], n)
	}
	to := k.key(key)
	*x = connNode{since: now, gen: gen, key: key, next: to.first, proto: e.Tuple(conntrack.Original).Proto}
	if to.first != 0 {
		k.node(to.first).prev = n
	}
	to.first = n
	to.count++
}

// remove takes a node off its key, and the key away if it was the last.
func (k *connCount) remove(bucket *uint32, n uint32) {
	x := k.node(n)
	i := x.key
	of := k.key(i)
	if x.prev != 0 {
		k.node(x.prev).next = x.next
	} else {
		of.first = x.next
	}
	if x.next != 0 {
		k.node(x.next).prev = x.prev
	}
	if of.hand == n {
		of.hand = x.next
	}
	x.key = 0
	if of.count--; of.count > 0 {
		return
	}
	for *bucket != i {
		bucket = &k.key(*bucket).next
	}
	*bucket = of.next
	of.next = k.freeKey
	k.freeKey = i
}

// prune looks at a few of the key's connections and takes those off that have ended.
func (k *connCount) prune(bucket *uint32, key, self uint32, w *conntrack.Worker, now int64) {
	x := k.key(key)
	for range connLook {
		n := x.hand
		if n == 0 {
			n = x.first
		}
		node := k.node(n)
		x.hand = node.next
		if n>>1 != self>>1 && !alive(w.Table(), n>>1, node, now) {
			last := x.count == 1
			k.remove(bucket, n)
			if last {
				return
			}
		}
	}
}

// alive reports whether a connection still counts: it is in the table, and not
// a TCP connection that has closed.
func alive(t *conntrack.Table, idx uint32, n *connNode, now int64) bool {
	e := t.At(idx)
	st := e.Status()
	if e.Generation() != n.gen || st&conntrack.Dying != 0 {
		return false
	}
	if st&conntrack.Confirmed == 0 { // its first packet may still be on its way
		return now-n.since < connSettling
	}
	if e.Timeout(now) == 0 {
		return false
	}
	if n.proto != packet.ProtoTCP {
		return true
	}
	s := e.TCPState()
	return s != conntrack.TCPTimeWait && s != conntrack.TCPClose
}
