package ipset

import (
	"sluice/packet"
)

// Query is how a rule looks at a packet.
type Query struct {
	P     *packet.Packet
	Dims  int   // how many src or dst flags the rule has
	Src   uint8 // bit i: part i of the element is about the source
	Cmp   bool  // the element's counters are looked at
	Count [2]Compare
	// NoUpdate leaves the element's counters alone; NoSubUpdate those of elements
	// in a list's sets.
	NoUpdate, NoSubUpdate bool
	ReturnNoMatch         bool // an exception is what matches
}

// Compare is a condition on a counter.
type Compare struct {
	Op    CompareOp
	Value uint64
}

// CompareOp is a comparison with a counter.
type CompareOp uint8

const (
	Any CompareOp = iota
	Equal
	NotEqual
	Less
	Greater
)

func (c Compare) holds(n uint64) bool {
	switch c.Op {
	case Equal:
		return n == c.Value
	case NotEqual:
		return n != c.Value
	case Less:
		return n < c.Value
	case Greater:
		return n > c.Value
	}
	return true
}

// Match looks a packet up. The extra's skbinfo is that of the element found, if
// the set has any.
func (s *Set) Match(q *Query) (bool, Info) {
	r, x := s.match(q)
	if q.ReturnNoMatch && s.typ.NoMatch() {
		r = -r
	}
	if r <= 0 {
		return false, Info{}
	}
	if x != nil {
		if i := x.info.Load(); i != nil {
			return true, *i
		}
	}
	return true, Info{}
}

// match is 1 for an element, -1 for an exception, 0 for neither.
func (s *Set) match(q *Query) (int, *extra) {
	if s.list != nil {
		return s.list.match(q)
	}
	if !s.applies(q) {
		return 0, nil
	}
	if s.bits != nil {
		i, ok := s.bits.packet(q)
		if !ok {
			return 0, nil
		}
		b := s.bits.slots[i].Load()
		if b == nil || !s.hit(b.x, q) {
			return 0, nil
		}
		return 1, b.x
	}
	h := s.hash
	k, ok := h.packet(q, false)
	if !ok {
		return 0, nil
	}
	var v value
	if h.nets > 0 {
		v, ok = h.search(k, 0, func(x *extra) bool { return s.hit(x, q) })
	} else if v, ok = h.store.find(k); ok {
		ok = s.hit(v.x, q)
	}
	switch {
	case !ok:
		return 0, nil
	case v.flags&valNoMatch != 0:
		return -1, v.x
	}
	return 1, v.x
}

// applies reports whether the set can be asked about such a packet at all.
func (s *Set) applies(q *Query) bool {
	return q.Dims >= len(s.typ.dims) && (s.typ.anyFam || s.opt.Family == q.P.Family)
}

// hit counts a packet for an element and says whether the element will do.
func (s *Set) hit(x *extra, q *Query) bool {
	if x == nil {
		return true
	}
	if x.over(q.P.Now) {
		return false
	}
	if !s.opt.Counters {
		return true
	}
	if !q.NoUpdate {
		x.bytes.Add(uint64(q.P.Len()))
		x.packets.Add(1)
	}
	return !q.Cmp || q.Count[0].holds(x.packets.Load()) && q.Count[1].holds(x.bytes.Load())
}

func (l *list) match(q *Query) (int, *extra) {
	if q.Dims < 1 {
		return 0, nil
	}
	sub := *q
	sub.Cmp = false
	if q.NoSubUpdate {
		sub.NoUpdate = true
	}
	for _, m := range *l.live.Load() {
		s := m.ref.Set()
		r, x := s.match(&sub)
		if q.ReturnNoMatch && s.typ.NoMatch() {
			r = -r
		}
		if r > 0 && l.set.hit(m.x, q) {
			if m.x != nil && l.set.opt.SKBInfo {
				x = m.x
			}
			return 1, x
		}
	}
	return 0, nil
}

// packet makes the key of a packet. add: with the prefix lengths that an
// addition has; else with those of hosts.
func (h *hashSet) packet(q *Query, add bool) (k key, ok bool) {
	p := q.P
	k.setBits(h.host)
	second := false
	for i, d := range h.set.typ.dims {
		src := q.Src>>i&1 != 0
		switch d {
		case dimIP, dimNet:
			a, bits := words(p.Dst()), h.host
			if src {
				a = words(p.Src())
			}
			if d == dimNet {
				if add {
					part := 0
					if i > 0 {
						part = 1
					}
					if bits = h.longest(part); bits == 0 && !h.zeroNet() {
						return k, false
					}
					a = masked(a, bits)
				}
				if h.nets == 2 {
					a[0], a[1] = a[0]&h.mask[0], a[1]&h.mask[1]
				}
			} else if !second {
				if a[0], a[1] = a[0]&h.mask[0], a[1]&h.mask[1]; a == [2]uint64{} && h.zeroless() {
					return k, false
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
			proto, port, ok := portOf(p, src)
			if !ok {
				return k, false
			}
			k.setPort(proto, port)
		case dimMark:
			k.setMark(p.Mark & h.set.opt.MarkMask)
		case dimIface:
			dev := p.Out
			if src {
				dev = p.In
			}
			if dev == nil {
				return k, false
			}
			k.iface = dev.Words
		case dimMAC:
			return k, false // there is no link-level header
		}
	}
	return k, true
}

// zeroless reports whether an address of all zeros matches nothing.
func (h *hashSet) zeroless() bool {
	n := h.set.typ.Name
	return n == "hash:ip" || n == "hash:ip,port"
}

// portOf is a packet's protocol and port; of ICMP, type and code.
func portOf(p *packet.Packet, src bool) (proto uint8, port uint16, ok bool) {
	later := p.Flags&packet.LaterFragment != 0
	switch p.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoUDPLite:
		if later || p.Flags&packet.HasPorts == 0 {
			return 0, 0, false
		}
		if src {
			return p.Proto, p.SrcPort(), true
		}
		return p.Proto, p.DstPort(), true
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if (p.Proto == packet.ProtoICMP) != (p.Family == packet.IPv4) {
			break
		}
		typ, code, ok := p.ICMPType()
		if later || !ok {
			return 0, 0, false
		}
		return p.Proto, uint16(typ)<<8 | uint16(code), true
	}
	if p.Family == packet.IPv6 && (later || p.Flags&packet.BadHeaders != 0) {
		return 0, 0, false
	}
	return p.Proto, 0, true
}

func (b *bitmap) packet(q *Query) (int, bool) {
	p, src := q.P, q.Src&1 != 0
	if b.withMAC() {
		return 0, false // there is no link-level header
	}
	if b.set.typ.dims[0] == dimPort {
		if p.Proto != packet.ProtoTCP && p.Proto != packet.ProtoUDP {
			return 0, false
		}
		_, port, ok := portOf(p, src)
		if !ok {
			return 0, false
		}
		return b.at(uint32(port))
	}
	if src {
		return b.at(p.Src4())
	}
	return b.at(p.Dst4())
}

// AddPacket is `SET --add-set`. x may have a timeout.
func (s *Set) AddPacket(q *Query, x Ext, exist bool) error {
	if s.list != nil {
		return s.list.each1(q.Dims, func(m *Set) error { return m.AddPacket(q, x, exist) })
	}
	if !s.applies(q) {
		return ErrTypeMismatch
	}
	x.HasTimeout = x.HasTimeout && s.opt.HasTimeout
	x.HasCounters, x.Packets, x.Bytes = s.opt.Counters, 1, uint64(q.P.Len())
	now := q.P.Now
	if s.bits != nil {
		i, ok := s.bits.packet(q)
		if !ok {
			return ErrBitmapRange
		}
		if old := s.bits.slots[i].Load(); old != nil && !old.x.over(now) {
			return s.again(old.x, &x, exist, now)
		}
		n := s.bits.first + uint32(i)*s.bits.hosts
		e := Elem{Port: uint16(n)}
		if s.typ.dims[0] == dimIP {
			e.Addr = unwords([2]uint64{uint64(n) << 32})
		}
		return s.bits.add(&e, &x, exist, now)
	}
	k, ok := s.hash.packet(q, true)
	if !ok {
		return ErrInvalid
	}
	at := k
	if v, ok := s.hash.find(&at); ok && !v.x.over(now) && v.flags == 0 && (v.x == nil || v.x.comment == "") {
		return s.again(v.x, &x, exist, now)
	}
	return s.hash.add(k, value{}, &x, exist, now)
}

// again is an addition of what is there: no lock, nothing allocated.
func (s *Set) again(old *extra, x *Ext, exist bool, now int64) error {
	if !exist {
		return ErrExist
	}
	if old == nil {
		return nil
	}
	if s.opt.HasTimeout {
		secs := s.opt.Timeout
		if x.HasTimeout {
			secs = min(x.Timeout, MaxTimeout)
		}
		var at int64
		if secs != 0 {
			at = now + int64(secs)*1e9
			if !s.moved.Load() {
				s.moved.Store(true)
			}
		}
		old.expires.Store(at)
	}
	if s.opt.Counters {
		old.packets.Store(x.Packets)
		old.bytes.Store(x.Bytes)
	}
	if s.opt.SKBInfo && old.info.Load() != &noInfo {
		old.info.Store(&noInfo)
	}
	return nil
}

var noInfo Info

// DelPacket is `SET --del-set`.
func (s *Set) DelPacket(q *Query) error {
	if s.list != nil {
		return s.list.each1(q.Dims, func(m *Set) error { return m.DelPacket(q) })
	}
	if !s.applies(q) {
		return ErrTypeMismatch
	}
	now := q.P.Now
	if s.bits != nil {
		i, ok := s.bits.packet(q)
		if !ok {
			return ErrBitmapRange
		}
		if s.bits.slots[i].Load() == nil {
			return ErrExist
		}
		n := s.bits.first + uint32(i)*s.bits.hosts
		e := Elem{Port: uint16(n)}
		if s.typ.dims[0] == dimIP {
			e.Addr = unwords([2]uint64{uint64(n) << 32})
		}
		return s.bits.del(&e, now)
	}
	k, ok := s.hash.packet(q, true)
	if !ok {
		return ErrInvalid
	}
	at := k
	if _, ok := s.hash.find(&at); !ok {
		return ErrExist
	}
	return s.hash.del(k, now)
}

// each1 asks the sets of a list until one of them does it.
func (l *list) each1(dims int, do func(*Set) error) error {
	err := error(ErrInvalid)
	now := l.set.sets.now()
	for _, m := range *l.live.Load() {
		if m.x.over(now) {
			continue
		}
		if err = do(m.ref.Set()); err == nil {
			return nil
		}
	}
	return err
}
