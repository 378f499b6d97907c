package conntrack

import (
	"sync/atomic"
	"unsafe"
)

// Entry is one connection. It has no pointers and a fixed size, lives in a slab
// of its Table and is named by its index there (0: none). An entry that is not
// Confirmed belongs to the packet that made it; a confirmed one is shared, its
// tuples no longer change, its words are atomic and its protocol state is
// guarded by the claim word.
//
// A worker's *Entry is good until the Worker's next End.
type Entry struct {
	// First line: what every packet of the flow reads or writes.
	status  atomic.Uint32    // and the claim
	events  atomic.Uint32    // cached event bits, delivered at Confirm; above masqShift the outgoing interface of a masqueraded flow
	expiry  atomic.Int64     // ns on the table's clock; before confirm a duration; on free lists the stamp
	Cache   [2]atomic.Uint64 // what the router remembers of each direction
	mark    atomic.Uint32
	ext     atomic.Uint32 // index in the extension slab
	gen     atomic.Uint32 // counts the uses of this index
	NAT     [2]uint32     // package nat's: the neighbours in its index
	flags   uint8         // entry* below
	Home    uint8         // the worker that saw the first packet
	helper  uint8         // 1-based index into the table's helpers
	mhelper uint8         // the master's helper, which outlives the master

	orig, reply Tuple

	// The protocol's state.
	tcp tcpState
}

var _ = [1]byte{}[unsafe.Sizeof(Entry{})-192]

const (
	claimed   = 1 << 31 // in status: somebody changes what is not atomic
	masqShift = 12      // in events
)

// Entry flags, written only before an entry is shared.
const (
	entryNoOrig      uint8 = 1 << iota // only its reply tuple is in the table (clash)
	entryAcct                          // counts packets and bytes
	entryNoEvents                      // made while nf_conntrack_events was 0
	entryNoExpEvents                   // its expectations make none
	entrySynproxy                      // see Synproxy
	entryTerms                         // a CT rule gave it a timeout policy or chose its events
	entryLinked                        // see Linked
)

// lock claims the entry: a few instructions, no calls that block.
func (e *Entry) lock() {
	for n := 0; ; n++ {
		if s := e.status.Load(); s&claimed == 0 && e.status.CompareAndSwap(s, s|claimed) {
			return
		}
		if n > 64 {
			spin()
		}
	}
}

func (e *Entry) unlock() { e.status.And(^uint32(claimed)) }

// Tuple is the tuple of one direction; it must not be written to.
func (e *Entry) Tuple(d Dir) *Tuple {
	if d == Reply {
		return &e.reply
	}
	return &e.orig
}

// Status is the set of status bits now.
func (e *Entry) Status() Status { return Status(e.status.Load() &^ claimed) }

// Has reports whether all of s are set.
func (e *Entry) Has(s Status) bool { return Status(e.status.Load())&s == s }

// SetStatus sets bits and returns those that were set before.
func (e *Entry) SetStatus(s Status) Status { return Status(e.status.Or(uint32(s)) &^ claimed) }

// ClearStatus clears bits.
func (e *Entry) ClearStatus(s Status) { e.status.And(^uint32(s)) }

// Mark is the connection mark.
func (e *Entry) Mark() uint32 { return e.mark.Load() }

// SetMark stores the connection mark; a changed one is an event.
func (e *Entry) SetMark(m uint32) {
	if e.mark.Load() != m {
		e.mark.Store(m)
		e.Event(EventMark)
	}
}

// zoned: the directions are in different zones. Then a tuple is the same as that
// of another connection only if it is of the same direction (nf_ct_key_equal).
func (e *Entry) zoned() bool { return e.orig.Zone != e.reply.Zone }

// Zone is the connection's zone and the directions it holds for.
func (e *Entry) Zone() (id uint16, dir ZoneDir) {
	switch o, r := e.orig.Zone, e.reply.Zone; {
	case o == r:
		return o, ZoneBoth
	case o != 0:
		return o, ZoneOrig
	default:
		return r, ZoneReply
	}
}

// Counted says whether the connection counts packets and bytes: it does if it
// began while net.netfilter.nf_conntrack_acct was 1.
func (e *Entry) Counted() bool { return e.flags&entryAcct != 0 }

// TCPState is the state of a TCP connection, with the kernel's numbers.
func (e *Entry) TCPState() TCPState { return TCPState(e.stateNow()) }

// Timeout is the time left in ns at now (the table's clock); never negative.
func (e *Entry) Timeout(now int64) int64 {
	x := e.expiry.Load()
	if e.Status()&Confirmed != 0 {
		x -= now
	}
	return max(x, 0)
}

// MasqIface and SetMasqIface keep the interface index that MASQUERADE chose.
func (e *Entry) MasqIface() int { return int(e.events.Load() >> masqShift) }

// SetMasqIface stores the interface index that MASQUERADE chose, below 1<<20.
func (e *Entry) SetMasqIface(i int) {
	for {
		old := e.events.Load()
		if e.events.CompareAndSwap(old, old&allEvents|uint32(i)<<masqShift) {
			return
		}
	}
}

// Linked and SetLinked keep whether the entry is in NAT's index. Only the worker
// of an unconfirmed connection may set it.
func (e *Entry) Linked() bool { return e.flags&entryLinked != 0 }

// SetLinked notes that the entry is in NAT's index.
func (e *Entry) SetLinked() { e.flags |= entryLinked }

// Event notes that something changed; it is delivered when a packet of the
// connection passes Confirm, if anybody listens.
func (e *Entry) Event(bits Events) {
	if e.events.Load()&uint32(bits) != uint32(bits) {
		e.events.Or(uint32(bits))
	}
}

// Generation counts how often the entry's index has been used: with the index
// it names a connection for good.
func (e *Entry) Generation() uint32 { return e.gen.Load() }
