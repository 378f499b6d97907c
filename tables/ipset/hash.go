package ipset

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"sluice/packet"
)

// hashSet is a set of method hash.
type hashSet struct {
	set    *Set
	family uint8
	host   uint8
	mask   [2]uint64 // netmask or bitmask, for addresses that are no networks
	store  store
	bytes  int // of memory for an element, about

	// Networks: how many elements have a prefix length, and which lengths there
	// are, longest first.
	nets     int // parts of an element that are networks
	count    [2][129]int
	lengths  [2]atomic.Pointer[[]uint8]
	beside   *table[key] // the networks of elements with interfaces; nil: there are none
	besides  map[key]int // … and how many elements each has
	wild     [17]int     // wildcard elements by the length of the name
	anyWild  atomic.Uint32
	trie     atomic.Pointer[trie] // nil: there is none, or it is being made
	planned  bool
	lastEdit time.Time
	took     time.Duration // to build the trie
	edits    int
}

var noLengths []uint8

func newHashSet(s *Set) *hashSet {
	h := &hashSet{set: s, family: s.opt.Family, host: host(s.opt.Family), mask: [2]uint64{^uint64(0), ^uint64(0)}}
	if s.opt.Netmask != 0 {
		h.mask = masked(h.mask, s.opt.Netmask)
	} else if s.opt.HasBitmask {
		h.mask = words(s.opt.Bitmask)
	}
	for _, d := range s.typ.dims {
		if d == dimNet {
			h.nets++
		}
	}
	for i := range h.lengths {
		h.lengths[i].Store(&noLengths)
	}
	// who fills a set from outside must not be able to choose what collides
	seed := rand.Uint64()
	switch s.typ.Name {
	case "hash:ip", "hash:net", "hash:ip,port", "hash:net,port":
		if h.family == packet.IPv4 {
			h.store = newTable(seed,
				func(k key) small { return small(k.addr[0] | k.info&0xffffffff) },
				func(s small) key { return key{addr: [2]uint64{uint64(s) &^ 0xffffffff}, info: uint64(s) & 0xffffffff} })
		}
	case "hash:ip,mark":
		if h.family == packet.IPv4 {
			bits := uint64(h.host)
			h.store = newTable(seed,
				func(k key) small { return small(k.addr[0] | k.info>>32) },
				func(s small) key { return key{addr: [2]uint64{uint64(s) &^ 0xffffffff}, info: uint64(s)<<32 | bits} })
		}
	case "hash:mac":
		bits := uint64(h.host)
		h.store = newTable(seed,
			func(k key) small { return small(k.more) },
			func(s small) key { return key{more: uint64(s), info: bits} })
	}
	if s.typ.Name == "hash:net,iface" {
		h.beside = newTable(seed, func(k key) key { return k }, func(k key) key { return k })
		h.besides = map[key]int{}
	}
	h.bytes = 24 + 24
	if h.store == nil {
		h.bytes = 80 + 24
		h.store = newTable(seed, func(k key) key { return k }, func(k key) key { return k })
	}
	return h
}

// key is an element's key, with Linux's checks.
func (h *hashSet) key(e *Elem) (k key, err error) {
	k.setBits(h.host)
	second := false
	for i, d := range h.set.typ.dims {
		switch d {
		case dimIP, dimNet:
			a, bits := words(e.Addr), e.Bits
			if second {
				a, bits = words(e.Addr2), e.Bits2
			}
			if d == dimIP {
				bits = h.host
				if !second {
					a[0], a[1] = a[0]&h.mask[0], a[1]&h.mask[1]
				}
				if a == [2]uint64{} && !second && h.zeroless() {
					if h.set.typ.Name == "hash:ip" {
						return k, ErrHashElem
					}
					return k, ErrInvalid
				}
			} else {
				if bits > h.host || bits == 0 && !h.zeroNet() {
					return k, ErrInvalidCIDR
				}
				a = masked(a, bits)
				if h.nets == 2 || h.set.opt.HasBitmask || h.set.opt.Netmask != 0 {
					a[0], a[1] = a[0]&h.mask[0], a[1]&h.mask[1]
				}
			}
			if second {
				k.addr2 = a
				k.setBits2(bits)
			} else {
				k.addr = a
				k.setBits(bits)
			}
			second = true
		case dimPort:
			if e.Proto == 0 {
				return k, ErrProto
			}
			port := e.Port
			if !hasPort(e.Proto) {
				port = 0
			}
			k.setPort(e.Proto, port)
		case dimMark:
			k.setMark(e.Mark & h.set.opt.MarkMask)
		case dimMAC:
			if i == 0 || h.set.typ.Name == "hash:ip,mac" {
				if e.MAC == [6]byte{} {
					return k, ErrHashElem
				}
			}
			k.more |= macWord(e.MAC) << 16
		case dimIface:
			k.iface, _ = packet.NameWords(e.Iface)
			if e.Physdev {
				k.more |= keyPhysdev
			}
			if e.Wildcard {
				k.more |= keyWildcard
			}
		}
	}
	return k, nil
}

// zeroNet reports whether networks of prefix length 0 can be elements.
func (h *hashSet) zeroNet() bool {
	switch h.set.typ.Name {
	case "hash:net,iface", "hash:net,net", "hash:net,port,net":
		return true
	}
	return false
}

func hasPort(proto uint8) bool {
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoUDPLite, packet.ProtoICMP, packet.ProtoICMPv6:
		return true
	}
	return false
}

func (h *hashSet) elem(k key, v value) Elem {
	e := Elem{
		Addr: unwords(k.addr), Addr2: unwords(k.addr2), Bits: k.bits(), Bits2: k.bits2(),
		Proto: uint8(k.info >> 8), Port: uint16(k.info >> 16), Mark: uint32(k.info >> 32),
		NoMatch: v.flags&valNoMatch != 0,
	}
	for _, d := range h.set.typ.dims {
		switch d {
		case dimIface:
			e.Iface, e.Physdev, e.Wildcard = ifaceName(k.iface), k.more&keyPhysdev != 0, k.more&keyWildcard != 0
		case dimMAC:
			e.MAC, e.HasMAC = wordMAC(k.more>>16), true
		}
	}
	return e
}

// find looks for exactly this element; of an interface, also for a wildcard that
// covers its name, and for a wildcard also for the name. k becomes the key that
// is there.
func (h *hashSet) find(k *key) (value, bool) {
	w := *k
	w.more &^= keyWildcard
	v, ok := h.store.find(w)
	if ok {
		*k = w
		return v, ok
	}
	if wild := h.anyWild.Load(); wild != 0 {
		n := k.more | keyWildcard
		name := ifaceLen(k.iface)
		for l := name; l >= 0; l-- {
			if wild>>l&1 == 0 {
				continue
			}
			w.more, w.iface = n, cut(k.iface, l)
			if v, ok = h.store.find(w); ok {
				*k = w
				return v, ok
			}
		}
	}
	return v, ok
}

func ifaceLen(w [2]uint64) int {
	n := 0
	for n < 8 && w[0]>>(8*n)&0xff != 0 {
		n++
	}
	if n == 8 {
		for n < 16 && w[1]>>(8*(n-8))&0xff != 0 {
			n++
		}
	}
	return n
}

// test is what `ipset test` asks: an address is looked for in all networks.
func (h *hashSet) test(k key, now int64) (value, bool) {
	single := h.nets > 0
	if h.firstNet() && k.bits() != h.host || h.lastNet() && k.bits2() != h.host {
		single = false
	}
	if single {
		return h.search(k, now, nil)
	}
	v, ok := h.find(&k)
	return v, ok && !v.x.over(now)
}

// firstNet and lastNet say which of the element's addresses are networks.
func (h *hashSet) firstNet() bool { return h.set.typ.dims[0] == dimNet }
func (h *hashSet) lastNet() bool {
	d := h.set.typ.dims
	return len(d) > 1 && d[len(d)-1] == dimNet
}

// search looks for the networks that hold k's addresses, the most specific
// first; of two, the first one's length counts more. hit says whether an element
// will do (nil: all whose time is not over).
func (h *hashSet) search(k key, now int64, hit func(x *extra) bool) (value, bool) {
	ok := func(v value) bool {
		if hit != nil {
			return hit(v.x)
		}
		return !v.x.over(now)
	}
	if t := h.trie.Load(); t != nil {
		v, bits, found := t.lookup(h.family, k.addr)
		if !found || ok(v) {
			return v, found
		}
		// that one is not it: the rest one by one
		for _, n := range *h.lengths[0].Load() {
			if n < bits {
				w := k
				w.addr = masked(k.addr, n)
				w.setBits(n)
				if v, found := h.store.find(w); found && ok(v) {
					return v, true
				}
			}
		}
		return value{}, false
	}
	first, last := h.firstNet(), h.lastNet()
	one := []uint8{h.host}
	if first {
		one = *h.lengths[0].Load()
	}
	for _, n := range one {
		w := k
		if first {
			w.addr = masked(k.addr, n)
			w.setBits(n)
		}
		if !last {
			at := w
			if v, found := h.find(&w); found {
				if ok(v) {
					return v, true
				}
			} else if h.beside != nil {
				// As in Linux, a network that is there with other interfaces alone hides
				// the larger ones around it.
				if _, there := h.beside.find(at.network()); there {
					return value{}, false
				}
			}
			continue
		}
		for _, n2 := range *h.lengths[1].Load() {
			w2 := w
			w2.addr2 = masked(k.addr2, n2)
			w2.setBits2(n2)
			if v, found := h.store.find(w2); found && ok(v) {
				return v, true
			}
		}
	}
	return value{}, false
}

// add adds an element. v.x is made of x; it is nil when the call comes.
func (h *hashSet) add(k key, v value, x *Ext, exist bool, now int64) error {
	s := h.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := k; true {
		if old, ok := h.find(&at); ok && !old.x.over(now) {
			if !exist {
				return ErrExist
			}
			if old.x != nil || old.flags != v.flags {
				v.x = s.renewed(old.x, x, now)
				h.put(at, v)
			}
			return nil
		} else if ok {
			h.remove(at)
		}
	}
	if uint32(h.store.len()) >= s.opt.MaxElem {
		if s.opt.HasTimeout && s.moved.Load() {
			h.expire(now)
		}
		if uint32(h.store.len()) >= s.opt.MaxElem {
			if !s.opt.ForceAdd {
				return ErrHashFull
			}
			h.evict()
		}
	}
	v.x = s.newExtra(x, now)
	h.put(k, v)
	return nil
}

// evict deletes some element.
func (h *hashSet) evict() {
	h.store.each(func(k key, _ value) bool {
		h.remove(k)
		return false
	})
}

func (h *hashSet) del(k key, now int64) error {
	h.set.mu.Lock()
	defer h.set.mu.Unlock()
	v, ok := h.find(&k)
	if !ok {
		return ErrExist
	}
	h.remove(k)
	if v.x.over(now) {
		return ErrExist
	}
	return nil
}

// put inserts or replaces; under the lock.
func (h *hashSet) put(k key, v value) {
	n := h.store.len()
	h.store.put(k, v)
	if h.store.len() > n {
		h.lengthsOf(k, 1)
	}
	h.set.changed()
	h.edited(k, v, true)
}

func (h *hashSet) remove(k key) {
	if !h.store.del(k) {
		return
	}
	h.set.changed()
	h.edited(k, value{}, false)
	h.lengthsOf(k, -1)
}

// lengthsOf counts an element in or out.
func (h *hashSet) lengthsOf(k key, by int) {
	if h.firstNet() {
		h.length(0, k.bits(), by)
	}
	if h.lastNet() {
		h.length(1, k.bits2(), by)
	}
	if h.beside != nil {
		n := k.network()
		switch h.besides[n] += by; {
		case h.besides[n] == 0:
			delete(h.besides, n)
			h.beside.del(n)
		case h.besides[n] == by:
			h.beside.put(n, value{})
		}
	}
	if k.more&keyWildcard != 0 {
		n := ifaceLen(k.iface)
		h.wild[n] += by
		var m uint32
		for i, c := range h.wild {
			if c > 0 {
				m |= 1 << i
			}
		}
		h.anyWild.Store(m)
	}
}

func (h *hashSet) length(part int, bits uint8, by int) {
	c := &h.count[part]
	c[bits] += by
	if c[bits] != 0 && c[bits] != by {
		return
	}
	var all []uint8
	for n := int(h.host); n >= 0; n-- {
		if c[n] > 0 {
			all = append(all, uint8(n))
		}
	}
	h.lengths[part].Store(&all)
}

// longest is the prefix length that a rule's addition to the set has: the most
// specific one there is.
func (h *hashSet) longest(part int) uint8 {
	if l := *h.lengths[part].Load(); len(l) > 0 {
		return l[0]
	}
	return h.host
}

func (h *hashSet) flush() {
	h.trie.Store(nil)
	h.store.clear()
	h.count = [2][129]int{}
	for i := range h.lengths {
		h.lengths[i].Store(&noLengths)
	}
	h.wild = [17]int{}
	if h.beside != nil {
		h.beside.clear()
		clear(h.besides)
	}
	h.anyWild.Store(0)
}

func (h *hashSet) expire(now int64) int {
	var gone []key
	later := false
	h.store.each(func(k key, v value) bool {
		if v.x.over(now) {
			gone = append(gone, k)
		} else if v.x.expires.Load() != 0 {
			later = true
		}
		return true
	})
	for _, k := range gone {
		h.remove(k)
	}
	h.set.moved.Store(later)
	return len(gone)
}
