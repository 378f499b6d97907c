package conntrack

import "sync/atomic"

// Events is a set of event bits, with the kernel's values (1 << enum ip_conntrack_events).
type Events uint32

const (
	EventNew Events = 1 << iota
	EventRelated
	EventDestroy
	EventReply
	EventAssured
	EventProtoInfo
	EventHelper
	EventMark
	EventSeqAdj
	EventSecMark
	EventLabel
	EventSynproxy

	allEvents  = 1<<masqShift - 1
	allUpdates = EventReply | EventAssured | EventHelper | EventProtoInfo | EventMark | EventSeqAdj | EventLabel
)

// EventType is what an event says of its connection.
type EventType uint8

const (
	EvNew EventType = iota
	EvUpdate
	EvDestroy
)

// Event is one change of a connection.
type Event struct {
	Type EventType
	Bits Events
	Snapshot
	Expect *Expectation // an expectation's event: a copy; Snapshot means nothing then
	User   bool         // somebody asked for it, it was no packet's or timeout's doing
}

// ring size of a subscription, events; a power of two.
const ringSize = 1 << 12

// Subscription is one listener's bounded ring. What does not fit is counted
// and lost, as on a netlink socket.
type Subscription struct {
	Lost atomic.Uint64 // events that found the ring full

	t     *Table
	cells []cell
	head  atomic.Uint64 // next to write
	tail  uint64        // next to read; the reader's
	wake  chan struct{}
	idle  atomic.Bool
}

type cell struct {
	seq atomic.Uint64
	ev  Event
}

// Subscribe starts listening. Events are made only while somebody does.
func (t *Table) Subscribe() *Subscription {
	s := &Subscription{t: t, cells: make([]cell, ringSize), wake: make(chan struct{}, 1)}
	for i := range s.cells {
		s.cells[i].seq.Store(uint64(i))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	all := append(append([]*Subscription{}, *t.subs.Load()...), s)
	t.subs.Store(&all)
	return s
}

// Close ends listening.
func (s *Subscription) Close() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	var all []*Subscription
	for _, o := range *s.t.subs.Load() {
		if o != s {
			all = append(all, o)
		}
	}
	s.t.subs.Store(&all)
}

// C is readable when there may be events to Next.
func (s *Subscription) C() <-chan struct{} { return s.wake }

// Next gives the next event; false: none now, wait on C. One goroutine reads.
func (s *Subscription) Next(ev *Event) bool {
	for range 2 {
		c := &s.cells[s.tail&(ringSize-1)]
		if c.seq.Load() == s.tail+1 {
			*ev = c.ev
			c.seq.Store(s.tail + ringSize)
			s.tail++
			return true
		}
		s.idle.Store(true) // then look once more: a writer that came before saw no idler
	}
	return false
}

// push copies ev into the ring; several goroutines may.
func (s *Subscription) push(ev *Event) {
	for {
		h := s.head.Load()
		c := &s.cells[h&(ringSize-1)]
		switch seq := c.seq.Load(); {
		case seq == h:
			if !s.head.CompareAndSwap(h, h+1) {
				continue
			}
			c.ev = *ev
			c.seq.Store(h + 1)
			if s.idle.Load() && s.idle.CompareAndSwap(true, false) {
				select {
				case s.wake <- struct{}{}:
				default:
				}
			}
			return
		case seq < h:
			s.Lost.Add(1)
			return
		}
	}
}

// listening reports whether anybody would get an event.
func (t *Table) listening() bool { return len(*t.subs.Load()) != 0 }

// emit sends e's state to all listeners.
func (w *Worker) emit(typ EventType, bits Events, e *Entry, idx uint32) {
	if e.flags&entryNoEvents != 0 || !w.t.wants(e, bits) {
		return
	}
	ev := Event{Type: typ, Bits: bits, User: w.user}
	w.t.fill(&ev.Snapshot, e, idx, w.now)
	for _, s := range *w.t.subs.Load() {
		s.push(&ev)
	}
}

// deliver sends what has gathered on e since its last packet.
func (w *Worker) deliver(e *Entry, idx uint32) {
	bits := Events(e.events.And(^uint32(allEvents)) & allEvents)
	if bits == 0 || !w.t.listening() || e.Status()&Dying != 0 {
		return
	}
	typ := EvUpdate
	if bits&(EventNew|EventRelated) != 0 {
		typ = EvNew
	}
	w.emit(typ, bits, e, idx)
}

// emitExpect tells the listeners of an expectation. It is called under the
// expectations' lock, off the packet path.
func (t *Table) emitExpect(typ EventType, x *Expectation, now int64) {
	if x.silent || !t.listening() {
		return
	}
	c := x.copy(now)
	ev := Event{Type: typ, Expect: &c}
	for _, s := range *t.subs.Load() {
		s.push(&ev)
	}
}

// Listeners is the number of subscriptions.
func (t *Table) Listeners() int { return len(*t.subs.Load()) }
