package conntrack

import (
	"sync/atomic"

	"sluice/packet"
)

// counters are what a connection counts that began while
// net.netfilter.nf_conntrack_acct was 1. They lie beside the entries, by the same
// index, in memory that is there once one of a slab's connections counts.
type counters struct {
	packets, bytes [2]atomic.Uint64
}

type (
	counterSlab  [slabSize]counters
	counterSlabs [maxSlabs]atomic.Pointer[counterSlab]
)

// countersOf are the counters of an index; nil if nothing near it ever counted.
func (t *Table) countersOf(idx uint32) *counters {
	if all := t.counts.Load(); all != nil {
		if s := all[idx>>slabBits].Load(); s != nil {
			return &s[idx&slabMask]
		}
	}
	return nil
}

// startCounters sets the counters of a new connection to 0.
func (t *Table) startCounters(idx uint32) {
	if c := t.countersOf(idx); c != nil {
		for d := range 2 {
			c.packets[d].Store(0)
			c.bytes[d].Store(0)
		}
		return
	}
	if t.counts.Load() == nil {
		t.counts.CompareAndSwap(nil, new(counterSlabs))
	}
	t.counts.Load()[idx>>slabBits].CompareAndSwap(nil, new(counterSlab))
}

// addCounters counts p, whose connection counts.
func (t *Table) addCounters(p *packet.Packet, dir Dir) {
	c := t.countersOf(p.Ct)
	c.packets[dir].Add(1)
	c.bytes[dir].Add(uint64(p.Len()))
}

// Counters gives packets and bytes (network packet length) of one direction of
// the connection of an index; they count only if it is Counted.
func (t *Table) Counters(idx uint32, d Dir) (packets, bytes uint64) {
	if c := t.countersOf(idx); c != nil && t.at(idx).Counted() {
		return c.packets[d&1].Load(), c.bytes[d&1].Load()
	}
	return 0, 0
}
