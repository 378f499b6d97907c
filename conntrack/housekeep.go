package conntrack

import "sluice/packet"

// Housekeep's step: a step looks at this many entries at least and at most, so
// that a large table is gone through in some seconds and none is a long pause.
const (
	sweepMin = 1 << 14
	sweepMax = 1 << 18
)

// Housekeep does one step of expiry: it looks at the next part of the entries
// and removes those whose time is over. The router's housekeeping goroutine
// calls it about once a second; nothing depends on how often, for an expired
// connection is not found any more. now is the table's clock.
func (t *Table) Housekeep(now int64) {
	end := t.bump.Load()
	left := min(max(end/4, sweepMin), sweepMax)
	// Close to full, connections that are closing or unanswered go too, until the
	// table is no more. A limit below 100 has no such mark, as in Linux.
	mark := t.sys.max.Load() / 100 * 95
	for left > 0 {
		t.guestMu.Lock()
		w := t.guest
		w.Begin(now)
		n := min(left, 1024)
		for range n {
			t.sweep++
			if t.sweep >= end {
				t.sweep, left = 0, n
				break
			}
			s := t.slabs[t.sweep>>slabBits].Load()
			if s == nil {
				continue
			}
			e := &s[t.sweep&slabMask]
			st := Status(e.status.Load())
			if st&Confirmed == 0 || st&Dying != 0 {
				continue
			}
			if e.expiry.Load() <= now || mark > 0 && t.count.Load() >= mark && e.closing(st) {
				t.kill(w, e, t.sweep)
			}
		}
		w.End()
		t.guestMu.Unlock()
		left -= n
	}
	t.expects.expire(t, now)
	t.guestMu.Lock()
	t.guest.Begin(now)
	t.guest.End()
	t.guestMu.Unlock()
}

// closing says whether a connection may go early when the table is nearly full.
func (e *Entry) closing(st Status) bool {
	if st&Assured == 0 {
		return true
	}
	switch e.orig.Proto {
	case packet.ProtoTCP:
		return closingTCP(TCPState(e.stateNow()))
	case packet.ProtoSCTP:
		switch e.stateNow() {
		case uint8(SCTPShutdownRecd), uint8(SCTPShutdownSent), uint8(SCTPShutdownAckSent):
			return true
		}
	}
	return false
}

func (e *Entry) stateNow() uint8 {
	e.lock()
	defer e.unlock()
	return e.tcp.state
}
