package ipset

import (
	"sync/atomic"
	"time"
)

// bitmap is a set of method bitmap: a slot for each address or port of its range.
type bitmap struct {
	set         *Set
	first, last uint32 // addresses in host order, or ports
	hosts       uint32 // addresses for a slot
	slots       []atomic.Pointer[bit]
}

// bit is an element that is there. It does not change but for its extra.
type bit struct {
	mac    uint64
	hasMAC bool
	x      *extra
}

var plainBit = &bit{}

func newBitmap(s *Set) (*bitmap, error) {
	b := &bitmap{set: s, first: s.opt.From, last: s.opt.To, hosts: 1}
	if b.first > b.last {
		b.first, b.last = b.last, b.first
	}
	n := uint64(b.last) - uint64(b.first) + 1
	if bits := s.opt.Netmask; bits != 0 && bits < 32 {
		mask := ^uint32(0) << (32 - bits)
		b.first &= mask
		b.last |= ^mask
		whole := 31 // as Linux finds the prefix length of the range
		wide := ^uint32(1)
		for ; whole > 0 && wide != 0 && b.last&wide != b.first; whole-- {
			wide <<= 1
		}
		if wide == 0 && (b.first != 0 || b.last != ^uint32(0)) || int(bits) <= whole {
			return nil, ErrBitmapRange
		}
		b.hosts = 1 << (32 - bits)
		n = 1 << (int(bits) - whole)
	}
	if n > 65536 {
		return nil, ErrBitmapSize
	}
	s.opt.From, s.opt.To = b.first, b.last
	b.slots = make([]atomic.Pointer[bit], n)
	return b, nil
}

// at is an element's number.
func (b *bitmap) at(n uint32) (int, bool) {
	if n < b.first || n > b.last {
		return 0, false
	}
	return int((n - b.first) / b.hosts), true
}

func (b *bitmap) number(e *Elem) (int, error) {
	n := uint32(e.Port)
	if b.set.typ.dims[0] == dimIP {
		n = uint32(words(e.Addr)[0] >> 32)
	}
	i, ok := b.at(n)
	if !ok {
		return 0, ErrBitmapRange
	}
	return i, nil
}

func (b *bitmap) withMAC() bool { return len(b.set.typ.dims) == 2 }

// start lets the time of an element run, which stood still while its MAC address
// was not known.
func (x *extra) start(now int64) {
	if x == nil {
		return
	}
	if at := x.expires.Load(); at < 0 {
		x.expires.Store(now - at)
	}
}

// stop is the reverse: expires is then the time left, negated.
func (x *extra) stop(now int64) {
	if x == nil {
		return
	}
	if at := x.expires.Load(); at > 0 {
		x.expires.Store(now - at)
	}
}

func (b *bitmap) add(e *Elem, x *Ext, exist bool, now int64) error {
	i, err := b.number(e)
	if err != nil {
		return err
	}
	s := b.set
	s.mu.Lock()
	defer s.mu.Unlock()
	n := plainBit
	if s.extended() || e.HasMAC {
		n = &bit{mac: macWord(e.MAC), hasMAC: e.HasMAC, x: s.newExtra(x, now)}
	}
	if b.withMAC() && !e.HasMAC {
		n.x.stop(now)
	}
	old := b.slots[i].Load()
	if old != nil && !old.x.over(now) {
		if n.x != nil {
			n.x = s.renewed(old.x, x, now)
			if b.withMAC() && !e.HasMAC {
				n.x.stop(now)
			}
		}
		fill := b.withMAC() && e.HasMAC && !old.hasMAC
		switch {
		case fill: // the MAC address was missing: now the time begins
			if !exist && old.x != nil {
				n.x.expires.Store(old.x.expires.Load())
				n.x.start(now)
			}
		case !exist:
			return ErrExist
		case b.withMAC() && !e.HasMAC && old.hasMAC:
			n = &bit{mac: old.mac, hasMAC: true, x: n.x}
			n.x.start(now)
		}
	}
	b.slots[i].Store(n)
	s.changed()
	return nil
}

func (b *bitmap) del(e *Elem, now int64) error {
	i, err := b.number(e)
	if err != nil {
		return err
	}
	b.set.mu.Lock()
	defer b.set.mu.Unlock()
	old := b.slots[i].Load()
	if old == nil {
		return ErrExist
	}
	b.slots[i].Store(nil)
	b.set.changed()
	if old.x.over(now) {
		return ErrExist
	}
	return nil
}

func (b *bitmap) test(e *Elem, now int64) (bool, error) {
	i, err := b.number(e)
	if err != nil {
		return false, err
	}
	old := b.slots[i].Load()
	if old == nil || old.x.over(now) {
		return false, nil
	}
	return !e.HasMAC || !old.hasMAC || old.mac == macWord(e.MAC), nil
}

func (b *bitmap) each(now int64, f func(Elem, Ext) bool) {
	for i := range b.slots {
		v := b.slots[i].Load()
		if v == nil || v.x.over(now) {
			continue
		}
		n := b.first + uint32(i)*b.hosts
		e := Elem{Port: uint16(n), Bits: 32, MAC: wordMAC(v.mac), HasMAC: v.hasMAC}
		if b.set.typ.dims[0] == dimIP {
			e = Elem{Addr: unwords([2]uint64{uint64(n) << 32}), Bits: 32, MAC: wordMAC(v.mac), HasMAC: v.hasMAC}
		}
		x := b.set.ext(v.x, now)
		if v.x != nil {
			if at := v.x.expires.Load(); at < 0 {
				x.Timeout = uint32(-at / int64(time.Second))
			}
		}
		if !f(e, x) {
			return
		}
	}
}

func (b *bitmap) flush() {
	for i := range b.slots {
		b.slots[i].Store(nil)
	}
}

func (b *bitmap) expire(now int64) (gone int) {
	later := false
	for i := range b.slots {
		v := b.slots[i].Load()
		switch {
		case v == nil || v.x == nil:
		case v.x.over(now):
			b.slots[i].Store(nil)
			gone++
		case v.x.expires.Load() != 0:
			later = true
		}
	}
	b.set.moved.Store(later)
	return gone
}
