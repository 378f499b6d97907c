package ipset

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sluice/packet"
)

// Set is one set. Its methods may be called from any goroutine.
type Set struct {
	typ   *Type
	opt   Options
	sets  *Sets
	gen   atomic.Uint64
	mu    sync.Mutex // held by whatever changes the set
	hash  *hashSet   // one of these three
	bits  *bitmap
	list  *list
	moved atomic.Bool // elements may have timeouts that are over
}

// extra is what elements of a set with extensions carry. Comments do not change;
// an element gets a new extra for that.
type extra struct {
	expires        atomic.Int64 // on the set's clock, ns; 0: never
	packets, bytes atomic.Uint64
	info           atomic.Pointer[Info]
	comment        string
}

// newSet makes an empty set. opt is completed as Linux does.
func newSet(sets *Sets, t *Type, opt Options) (*Set, error) {
	s := &Set{typ: t, sets: sets}
	if opt.Family == 0 || t.v4only {
		opt.Family = packet.IPv4
	}
	width := host(opt.Family)
	if opt.Netmask != 0 && opt.HasBitmask {
		return nil, ErrBitmaskNetmask
	}
	if opt.Netmask > width {
		return nil, ErrInvalidNetmask
	}
	switch t.method {
	case methodHash:
		opt.HashSize = roundHash(opt.HashSize)
		if opt.MaxElem == 0 && !opt.HasMaxElem {
			opt.MaxElem = 65536
		}
		opt.HasMaxElem = true
		if opt.BucketSize == 0 {
			opt.BucketSize = maxBucket
		}
		opt.BucketSize = min(max(opt.BucketSize, 1), maxBucket)
		opt.BucketSize += opt.BucketSize & 1
		for opt.InitVal == 0 {
			opt.InitVal = rand.Uint32()
		}
		if opt.MarkMask == 0 {
			opt.MarkMask = ^uint32(0)
		}
		s.opt = opt
		s.hash = newHashSet(s)
	case methodBitmap:
		s.opt = opt
		b, err := newBitmap(s)
		if err != nil {
			return nil, err
		}
		s.bits = b
	default:
		if opt.Size == 0 {
			opt.Size = 8
		}
		opt.Size = max(opt.Size, 4)
		s.opt = opt
		s.list = &list{set: s}
		s.list.live.Store(&[]*member{})
	}
	return s, nil
}

const maxBucket = 12

func roundHash(n uint32) uint32 {
	if n == 0 {
		n = 1024
	}
	size := uint32(64)
	for size < n && size < 1<<31 {
		size *= 2
	}
	return size
}

// Type is what kind of set it is.
func (s *Set) Type() *Type { return s.typ }

// Options are what it was made with, completed.
func (s *Set) Options() Options {
	o := s.opt
	if s.hash != nil {
		for n := uint32(s.Len()); n > o.HashSize*uint32(o.BucketSize)/3 && o.HashSize < 1<<31; {
			o.HashSize *= 2
		}
	}
	return o
}

// changed is called after every change of the set's elements.
func (s *Set) changed() {
	s.gen.Add(1)
	s.sets.gen.Add(1)
}

// Steady reports whether the answer for p holds, for p's connection and
// direction, until Sets.Generation changes, and has no effect: a set with
// timeouts or counters has to be asked every time, and so have those that look at
// what is not the same in all packets of a connection.
func (s *Set) Steady(p *packet.Packet) bool {
	if s.list != nil || s.opt.HasTimeout || s.opt.Counters || s.typ.features&featMark != 0 {
		return false
	}
	return s.typ.features&featPort == 0 || p.Flags&packet.HasPorts != 0
}

// extended reports whether elements carry anything.
func (s *Set) extended() bool {
	return s.opt.HasTimeout || s.opt.Counters || s.opt.Comment || s.opt.SKBInfo
}

// check refuses extensions that the set does not have.
func (s *Set) check(x *Ext) error {
	switch {
	case x == nil:
	case x.HasTimeout && !s.opt.HasTimeout:
		return ErrTimeout
	case x.HasCounters && !s.opt.Counters:
		return ErrCounter
	case x.HasComment && !s.opt.Comment:
		return ErrComment
	case x.HasInfo && !s.opt.SKBInfo:
		return ErrSKBInfo
	}
	return nil
}

// renewed is the extra of an element that is added again: counters live on where
// x gives none.
func (s *Set) renewed(old *extra, x *Ext, now int64) *extra {
	e := s.newExtra(x, now)
	if e != nil && old != nil && (x == nil || !x.HasCounters) {
		e.packets.Store(old.packets.Load())
		e.bytes.Store(old.bytes.Load())
	}
	return e
}

// fill gives e what x says, as for a new element.
func (s *Set) fill(e *extra, x *Ext, now int64) {
	if x == nil {
		x = &Ext{}
	}
	if s.opt.HasTimeout {
		secs := s.opt.Timeout
		if x.HasTimeout {
			secs = min(x.Timeout, MaxTimeout)
		}
		var at int64
		if secs != 0 {
			at = now + int64(secs)*int64(time.Second)
			s.moved.Store(true)
		}
		e.expires.Store(at)
	}
	if s.opt.Counters {
		e.packets.Store(x.Packets)
		e.bytes.Store(x.Bytes)
	}
	if s.opt.SKBInfo {
		info := x.Info
		e.info.Store(&info)
	}
	if s.opt.Comment {
		e.comment = x.Comment
	}
}

func (s *Set) newExtra(x *Ext, now int64) *extra {
	if !s.extended() {
		return nil
	}
	e := &extra{}
	s.fill(e, x, now)
	return e
}

// ext is what e says, with the seconds left.
func (s *Set) ext(e *extra, now int64) (x Ext) {
	if e == nil {
		return x
	}
	x.HasTimeout, x.HasCounters = s.opt.HasTimeout, s.opt.Counters
	if at := e.expires.Load(); at > 0 {
		// as Linux, which rounds half a second down and never shows 0
		x.Timeout = max(1, uint32((at-now)/int64(time.Second)))
	}
	x.Packets, x.Bytes = e.packets.Load(), e.bytes.Load()
	x.Comment, x.HasComment = e.comment, e.comment != ""
	if i := e.info.Load(); i != nil {
		x.Info, x.HasInfo = *i, true
	}
	return x
}

// over reports whether the element's time is over.
func (e *extra) over(now int64) bool {
	if e == nil {
		return false
	}
	at := e.expires.Load()
	return at > 0 && now >= at
}

// Add adds an element. exist: one that is there is no error, and takes over x.
func (s *Set) Add(e *Elem, x *Ext, exist bool) error {
	if err := s.check(x); err != nil {
		return err
	}
	now := s.sets.now()
	if s.list != nil {
		return s.list.add(e, x, exist, now)
	}
	if s.bits != nil {
		return s.bits.add(e, x, exist, now)
	}
	k, err := s.hash.key(e)
	if err != nil {
		return err
	}
	v := value{}
	if e.NoMatch {
		v.flags = valNoMatch
	}
	return s.hash.add(k, v, x, exist, now)
}

// Del deletes an element; exist: that it is not there is no error.
func (s *Set) Del(e *Elem, exist bool) error {
	now := s.sets.now()
	var err error
	switch {
	case s.list != nil:
		err = s.list.del(e, now)
	case s.bits != nil:
		err = s.bits.del(e, now)
	default:
		var k key
		if k, err = s.hash.key(e); err == nil {
			err = s.hash.del(k, now)
		}
	}
	if err == ErrExist && exist {
		return nil
	}
	return err
}

// Test looks an element up. In a set of networks an address is looked for in all
// networks; with e.NoMatch it is an exception that is looked for.
func (s *Set) Test(e *Elem) (bool, error) {
	now := s.sets.now()
	switch {
	case s.list != nil:
		return s.list.test(e, now)
	case s.bits != nil:
		return s.bits.test(e, now)
	}
	k, err := s.hash.key(e)
	if err != nil {
		return false, err
	}
	v, ok := s.hash.test(k, now)
	return ok && (v.flags&valNoMatch != 0) == (e.NoMatch && s.typ.NoMatch()), nil
}

// Each calls f for the elements whose time is not over, in the order in which
// ipset lists them, until f returns false.
func (s *Set) Each(f func(e Elem, x Ext) bool) {
	now := s.sets.now()
	switch {
	case s.list != nil:
		s.list.each(now, f)
	case s.bits != nil:
		s.bits.each(now, f)
	default:
		s.hash.store.each(func(k key, v value) bool {
			return v.x.over(now) || f(s.hash.elem(k, v), s.ext(v.x, now))
		})
	}
}

// Len is how many elements there are, those whose time is over left out.
func (s *Set) Len() int {
	if s.hash != nil && !s.opt.HasTimeout {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.hash.store.len()
	}
	n := 0
	s.Each(func(Elem, Ext) bool { n++; return true })
	return n
}

// Memory is how many bytes the set's elements take, about.
func (s *Set) Memory() int {
	per := 0
	if s.extended() {
		per = 64
	}
	switch {
	case s.list != nil:
		return 80 + len(*s.list.live.Load())*(48+per)
	case s.bits != nil:
		n := len(s.bits.slots)
		return 80 + n*8 + s.Len()*(16+per)
	}
	n := s.Len()
	return 216 + n*(s.hash.bytes+per)
}

// Flush deletes all elements.
func (s *Set) Flush() {
	s.sets.mu.Lock() // a list lets go of its sets
	defer s.sets.mu.Unlock()
	s.flushLocked()
}

// Discard is for a set that Put has replaced, or that got no name: a list lets go of its sets.
func (s *Set) Discard() {
	if s.list != nil {
		s.Flush()
	}
}

func (s *Set) flushLocked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.list != nil:
		s.list.flush()
	case s.bits != nil:
		s.bits.flush()
	default:
		s.hash.flush()
	}
	s.changed()
}

// expire deletes the elements whose time is over.
func (s *Set) expire(now int64) {
	if !s.opt.HasTimeout || !s.moved.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := 0
	switch {
	case s.list != nil:
		gone = s.list.expire(now)
	case s.bits != nil:
		gone = s.bits.expire(now)
	default:
		gone = s.hash.expire(now)
	}
	if gone > 0 {
		s.changed()
	}
}

// AddPrefix adds an address or network to a set of type hash:ip or hash:net for
// a time (0: the set's default timeout), which begins anew if it is there.
func (s *Set) AddPrefix(p netip.Prefix, timeout time.Duration) error {
	e, err := s.plain(p)
	if err != nil {
		return err
	}
	var x Ext
	if timeout > 0 {
		x = Ext{HasTimeout: true, Timeout: seconds(timeout)}
	}
	return s.Add(&e, &x, true)
}

// DelPrefix deletes what AddPrefix added; one that is not there is no error.
func (s *Set) DelPrefix(p netip.Prefix) error {
	e, err := s.plain(p)
	if err != nil {
		return err
	}
	return s.Del(&e, true)
}

// Contains looks up an address in a set of type hash:ip or hash:net.
func (s *Set) Contains(a netip.Addr) bool {
	e, err := s.plain(netip.PrefixFrom(a, a.BitLen()))
	if err != nil {
		return false
	}
	ok, err := s.Test(&e)
	return ok && err == nil
}

// AddPort is AddPrefix for a set of type hash:ip,port or hash:net,port: with a
// protocol and a port of it.
func (s *Set) AddPort(p netip.Prefix, proto uint8, port uint16, timeout time.Duration) error {
	if len(s.typ.dims) != 2 || s.typ.dims[0] > dimNet || s.typ.dims[1] != dimPort {
		return ErrTypeMismatch
	}
	if p.Addr().Unmap().Is4() != (s.opt.Family == packet.IPv4) {
		return ErrInvalidFamily
	}
	e := elemOf(p)
	e.Proto, e.Port = proto, port
	var x Ext
	if timeout > 0 {
		x = Ext{HasTimeout: true, Timeout: seconds(timeout)}
	}
	return s.Add(&e, &x, true)
}

// seconds rounds a time up.
func seconds(d time.Duration) uint32 {
	return uint32(min((d+time.Second-1)/time.Second, MaxTimeout))
}

func (s *Set) plain(p netip.Prefix) (Elem, error) {
	e := elemOf(p)
	if s.hash == nil || len(s.typ.dims) != 1 || s.typ.dims[0] > dimNet {
		return e, ErrTypeMismatch
	}
	if v4 := p.Addr().Unmap().Is4(); v4 != (s.opt.Family == packet.IPv4) {
		if v4 {
			return e, ErrIPv6
		}
		return e, ErrIPv4
	}
	return e, nil
}

// Family is that of the set's addresses; 0: it has none, or holds other sets.
func (s *Set) Family() uint8 {
	if s.typ.anyFam {
		return 0
	}
	return s.opt.Family
}
