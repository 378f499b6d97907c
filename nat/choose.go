package nat

import (
	"math/rand/v2"

	"sluice/conntrack"
	"sluice/packet"
)

// A search tries this many ports from a random one, then half as many from
// another, down to the last round of fewer than minAttempts. With fewer than
// harderAttempts left, a port held by a closed TCP connection will do.
const (
	maxAttempts    = 128
	minAttempts    = 16
	harderAttempts = 32
)

// choose finds the tuple that the connection e is to have, where cur is the one
// it has now, so that r is met and the answer is recognised. Whether nobody else has the
// tuple is the second result: without that, a later manip may still
// mend it, or the connection cannot be.
func (n *NAT) choose(w *conntrack.Worker, e *conntrack.Entry, cur *conntrack.Tuple, r *Range, m Manip) (conntrack.Tuple, bool) {
	t := *cur
	random := r.Flags&randomAll != 0
	// A source keeps its port if it may, else the mapping it has already.
	if m == Src && !random {
		if r.holdsSrc(cur) {
			if !n.used(w, cur, e) {
				return t, true
			}
		} else if n.sources.find(e.Tuple(conntrack.Original), &t, r) {
			if !n.used(w, &t, e) {
				return t, true
			}
			t = *cur
		}
	}
	zone, _ := e.Zone()
	r.pickAddress(&t, m, zone)
	if !random {
		if r.Flags&ProtoSpecified == 0 {
			if !n.used(w, &t, e) {
				return t, true
			}
		} else if r.Flags&ProtoOffset == 0 && r.protoIn(&t, m) {
			free := !n.used(w, &t, e)
			if free || r.MinPort == r.MaxPort {
				return t, free
			}
		}
	}
	free := n.choosePort(w, e, &t, r, m)
	return t, free
}

// choosePort moves the port, identifier or key of t until nobody has the tuple.
// It reports whether it found one; if not, t holds the last that was tried.
func (n *NAT) choosePort(w *conntrack.Worker, e *conntrack.Entry, t *conntrack.Tuple, r *Range, m Manip) bool {
	key := &t.SrcPort
	lo, hi := uint32(r.MinPort), uint32(r.MaxPort)
	given := r.Flags&ProtoSpecified != 0
	switch {
	case isICMP(t.Proto):
		if !given {
			lo, hi = 0, 65535
		}
	case t.Proto == packet.ProtoGRE:
		// Only the tunnels of a tracked control connection have keys to change.
		if !e.Has(conntrack.Expected) {
			return !n.used(w, t, e)
		}
		if !given {
			lo, hi = 1, 65535
		}
		if m == Dst {
			key = &t.DstPort
		}
	case hasPorts(t.Proto):
		if m == Dst {
			key = &t.DstPort
		}
		if given {
			break
		}
		if m == Dst {
			return !n.used(w, t, e) // a destination port is changed only on request
		}
		// A port stays in its class: below 512 it is a credential.
		switch {
		case *key < 512:
			lo, hi = 1, 511
		case *key < 1024:
			lo, hi = 600, 1023
		default:
			lo, hi = 1024, 65535
		}
	default:
		return !n.used(w, t, e)
	}
	if hi < lo {
		lo, hi = hi, lo
	}
	size := hi - lo + 1
	var off uint32 // wide enough not to wrap, so that a small range is searched whole
	switch {
	case r.Flags&ProtoOffset != 0:
		off = uint32(*key - r.BasePort)
	case r.Flags&randomAll != 0 || m == Src:
		off = rand.Uint32() >> 16
	}
	for attempts := min(size, maxAttempts); ; attempts /= 2 {
		for i := uint32(0); i < attempts; i++ {
			*key = uint16(lo + off%size)
			off++
			if !n.used(w, t, e) {
				return true
			}
		}
		if attempts >= size || attempts < minAttempts {
			return false
		}
		off = rand.Uint32() >> 16
	}
}

// used reports whether another connection would recognise t's replies as its own.
func (n *NAT) used(w *conntrack.Worker, t *conntrack.Tuple, e *conntrack.Entry) bool {
	reply := backward(t, e.Tuple(conntrack.Reply))
	return n.table.TupleTaken(w, &reply, e)
}
