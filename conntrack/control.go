package conntrack

import (
	"errors"

	"sluice/packet"
)

// publicID makes the number that `conntrack -o id` prints: the same for a
// connection as long as it lives, and not a counter that tells how many there were.
func (t *Table) publicID(idx, gen uint32) uint32 {
	x := (uint64(idx)<<32 | uint64(gen)) ^ t.seed[0]
	x *= 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= t.seed[1]
	return uint32(x >> 32)
}

// eachEntry calls f for every confirmed connection, in batches so that
// reclaiming does not wait for the whole walk. f must not call back into t but
// for kill.
func (t *Table) eachEntry(f func(w *Worker, e *Entry, idx uint32) bool) { t.walk(false, f) }

// eachUser is eachEntry for a user's changes: events say so.
func (t *Table) eachUser(f func(w *Worker, e *Entry, idx uint32) bool) { t.walk(true, f) }

func (t *Table) walk(user bool, f func(w *Worker, e *Entry, idx uint32) bool) {
	const batch = 1024
	for at, end := uint32(1), t.bump.Load(); at < end; at += batch {
		stop := false
		t.withGuest(func(w *Worker) {
			w.user = user
			defer func() { w.user = false }()
			for i := at; i < min(at+batch, end) && !stop; i++ {
				s := t.slabs[i>>slabBits].Load()
				if s == nil {
					continue
				}
				e := &s[i&slabMask]
				if st := Status(e.status.Load()); st&Confirmed == 0 || st&Dying != 0 || e.expiry.Load() <= w.now {
					continue
				}
				stop = !f(w, e, i)
			}
		})
		if stop {
			return
		}
	}
}

// Each calls f with a copy of every confirmed connection until f returns false.
// It may be called from any goroutine; connections that come or go meanwhile
// may be missed. f may not call into the table.
func (t *Table) Each(f func(*Snapshot) bool) {
	var s Snapshot
	t.eachEntry(func(w *Worker, e *Entry, idx uint32) bool {
		s = Snapshot{}
		t.fill(&s, e, idx, w.now)
		return f(&s)
	})
}

// EachZero is Each, and the counters start again at 0.
func (t *Table) EachZero(f func(*Snapshot) bool) {
	var s Snapshot
	t.eachEntry(func(w *Worker, e *Entry, idx uint32) bool {
		s = Snapshot{}
		t.fill(&s, e, idx, w.now)
		if c := t.countersOf(idx); c != nil && e.Counted() {
			for d := range 2 {
				s.Packets[d], s.Bytes[d] = c.packets[d].Swap(0), c.bytes[d].Swap(0)
			}
		}
		return f(&s)
	})
}

// Delete removes the connections that match says yes to, and returns how many.
func (t *Table) Delete(match func(*Snapshot) bool) int {
	n := 0
	var s Snapshot
	t.eachUser(func(w *Worker, e *Entry, idx uint32) bool {
		s = Snapshot{}
		t.fill(&s, e, idx, w.now)
		if match(&s) && t.kill(w, e, idx) {
			n++
		}
		return true
	})
	return n
}

// Flush removes every connection and returns how many there were.
func (t *Table) Flush() int {
	n := 0
	t.eachUser(func(w *Worker, e *Entry, idx uint32) bool {
		if t.kill(w, e, idx) {
			n++
		}
		return true
	})
	return n
}

// DestroyIface removes the connections that MASQUERADE bound to an interface's
// address, when the interface goes down or loses that address.
func (t *Table) DestroyIface(ifindex int) int {
	return t.DestroyMasq(func(i int, _ *Entry) bool { return i == ifindex })
}

// DestroyMasq removes the masqueraded connections that match says yes to.
func (t *Table) DestroyMasq(match func(ifindex int, e *Entry) bool) int {
	n := 0
	t.eachEntry(func(w *Worker, e *Entry, idx uint32) bool {
		if i := e.MasqIface(); i != 0 && match(i, e) && t.kill(w, e, idx) {
			n++
		}
		return true
	})
	return n
}

// Get finds the connection that has u as one of its tuples.
func (t *Table) Get(u *Tuple) (s Snapshot, d Dir, ok bool) {
	t.withGuest(func(w *Worker) {
		e, idx, dir := t.lookup(u, t.hashTuple(u), w.now)
		if ok = e != nil; ok {
			d = dir
			t.fill(&s, e, idx, w.now)
		}
	})
	return s, d, ok
}

// Kill removes the connection that has u as one of its tuples.
func (t *Table) Kill(u *Tuple) (ok bool) {
	t.withGuest(func(w *Worker) {
		if e, idx, _ := t.lookup(u, t.hashTuple(u), w.now); e != nil {
			ok = t.kill(w, e, idx)
		}
	})
	return ok
}

// Change is what Update does to a connection.
type Change struct {
	SetMark   bool
	Mark      uint32
	SetTime   bool
	Timeout   uint32 // seconds
	SetStatus Status // bits to set; only Assured, SeenReply and FixedTimeout can be
	SetState  bool
	State     TCPState
	SetLabels bool
	Labels    [16]byte
	LabelMask [16]byte
}

// Errors of Update and Create.
var (
	ErrExists      = errors.New("File exists")
	ErrInvalid     = errors.New("Invalid argument")
	ErrFull        = errors.New("Cannot allocate memory")
	ErrHelper      = errors.New("No such file or directory")
	ErrMaster      = errors.New("master conntrack not found")
	ErrUnsupported = errors.New("Operation not supported")
	ErrBusy        = errors.New("Device or resource busy")
	ErrTooMany     = errors.New("Too many open files")
)

// Update changes the connections that match says yes to. It calls done with
// each one's new state and returns how many there were.
func (t *Table) Update(match func(*Snapshot) bool, c func(*Snapshot) Change, done func(*Snapshot)) int {
	n := 0
	var s Snapshot
	t.eachUser(func(w *Worker, e *Entry, idx uint32) bool {
		s = Snapshot{}
		t.fill(&s, e, idx, w.now)
		if !match(&s) {
			return true
		}
		ch := c(&s)
		t.change(w, e, &ch)
		e.Event(allUpdates)
		w.deliver(e, idx)
		n++
		if done != nil {
			t.fill(&s, e, idx, w.now)
			done(&s)
		}
		return true
	})
	return n
}

func (t *Table) change(w *Worker, e *Entry, c *Change) {
	if c.SetTime {
		e.expiry.Store(w.now + int64(c.Timeout)*second)
	}
	if c.SetStatus&(Assured|SeenReply|FixedTimeout) != 0 {
		e.SetStatus(c.SetStatus & (Assured | SeenReply | FixedTimeout))
	}
	if c.SetState && e.orig.Proto == packet.ProtoTCP && c.State < numTCP {
		e.lock()
		e.tcp.state = uint8(c.State)
		e.unlock()
		e.Event(EventProtoInfo)
	}
	if c.SetLabels {
		t.ReplaceLabels(e, c.Labels, c.LabelMask)
	}
	if c.SetMark {
		e.SetMark(c.Mark)
	}
}

// Create enters a connection as conntrack -I does: Orig, Reply, Timeout,
// Status, Mark, labels, protocol state, helper.
func (t *Table) Create(s *Snapshot) error {
	var err error
	t.withGuest(func(w *Worker) {
		w.user = true
		err = t.create(w, s)
		w.user = false
	})
	return err
}

func (t *Table) create(w *Worker, s *Snapshot) error {
	if s.Orig.Family != s.Reply.Family || s.Orig.Proto != s.Reply.Proto || s.Orig.Family == 0 {
		return ErrInvalid
	}
	if limit := t.sys.max.Load(); limit != 0 && t.count.Load() >= limit {
		return ErrFull
	}
	e, idx := w.alloc()
	if e == nil {
		return ErrFull
	}
	w.init(e, idx, &s.Orig, &s.Reply)
	if s.Helper != "" {
		h := t.HelperFor(s.Helper, s.Orig.Family, s.Orig.Proto)
		if h == nil {
			w.drop(e, idx)
			return ErrHelper
		}
		w.setHelper(e, h)
	}
	const allowed = Expected | SeenReply | Assured | NATMask | NATDoneMask | FixedTimeout
	e.SetStatus(s.Status & allowed)
	e.mark.Store(s.Mark)
	t.setSecMark(e, s.SecMark)
	e.expiry.Store(w.now + int64(s.Timeout)*second)
	switch s.Orig.Proto {
	case packet.ProtoTCP:
		e.tcp.state, e.tcp.lastIndex = uint8(s.TCP.State), segNone
		for d := range 2 {
			// What the ends have said is not known here.
			e.tcp.opt[d] = tcpOpt{s.TCP.Scale[d], s.TCP.Flags[d] | tcpLiberal | tcpSackPerm}
		}
	case packet.ProtoSCTP:
		e.tcp.state = uint8(s.SCTP)
		*e.tcp.vtag(Original), *e.tcp.vtag(Reply) = s.SCTPVTag[0], s.SCTPVTag[1]
	}
	if s.HasLabels {
		t.ReplaceLabels(e, s.Labels, s.Labels)
	}
	if t.sys.timestamp.Load() != 0 {
		if x := t.ensureExt(e); x != nil {
			x.start = t.opt.Wall().UnixNano()
		}
	}
	e.Event(EventNew | allUpdates)
	if res, _, _, _ := t.insert(w, e, idx); res != insertOK {
		w.drop(e, idx)
		if res == insertClash {
			return ErrExists
		}
		return ErrFull
	}
	w.stat(statInsert)
	w.deliver(e, idx)
	return nil
}
