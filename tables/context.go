package tables

import (
	"sync/atomic"
	"time"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/internal/sysctl"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables/ipset"
	"sluice/tables/synproxy"
)

// Counter is a rule's or a policy's packets and bytes.
type Counter = hooks.Counter

// Context is a worker's side of a walk: one per worker, used by that worker
// alone (or inside Env.DoWorkers).
type Context struct {
	Worker   int
	Hook     hooks.Hook
	Table    TableID
	CT       *conntrack.Worker
	NAT      *nat.NAT
	Env      *Env
	Counters []Counter // by counter id; grown by Prepare
	Hotdrop  bool      // a match sets it: the packet is malformed, drop it now

	// Output sends a packet that the router makes (REJECT and the like): it
	// passes OUTPUT and POSTROUTING. It takes ownership of p.
	Output func(p *packet.Packet)
	// Alloc is a free packet from the worker's pool, Reset; nil when there is none.
	Alloc func() *packet.Packet
	// Free takes back what Alloc gave and Output did not get; may be nil.
	Free func(p *packet.Packet)
	// ICMPError answers p with an ICMP or ICMPv6 error: source address, rate limits
	// and the relation to p's connection are the router's affair. nil: none are sent.
	ICMPError func(p *packet.Packet, typ, code uint8, rest uint32)
	// Log takes what LOG wants to say: prefix, syslog level (0 to 7), Log… flags.
	// The packet is valid during the call only.
	Log func(prefix string, level, flags uint8, p *packet.Packet)

	// Trail, if set, is told what walks do.
	Trail *Trail
	// What the preds and targets of this packet's walks looked at; whoever
	// records resets it.
	Looked Looked
	// LogLine takes another line for the log, with its syslog level.
	LogLine func(level uint8, line string)
	// NFLog takes a packet for those who listen to a group: the rule's prefix, and
	// how many bytes of it are wanted (negative: all). The packet is valid during
	// the call only.
	NFLog func(group uint16, prefix string, size int, p *packet.Packet)
	// Queue lets p wait for a program's decision: Stolen, or Accept or Drop where
	// it cannot wait.
	Queue func(num uint16, bypass bool, p *packet.Packet) Result
	// Tee sends a copy of p to a gateway, through the interface dev if it is not "".
	Tee func(gateway [16]byte, dev string, p *packet.Packet)

	stack []frame
	found candidates
}

// Trail collects the counters that a packet's walks moved, in order. One that
// got longer than its Counters can hold is Long and of no use.
type Trail struct {
	Counters []uint32
	Long     bool
}

// Add is called with each counter that moves.
func (t *Trail) Add(counter uint32) {
	if n := len(t.Counters); n < cap(t.Counters) {
		t.Counters = t.Counters[:n+1]
		t.Counters[n] = counter
	} else {
		t.Long = true
	}
}

// Looked is what a packet's walks have looked at besides the flow's tuple, the
// hook and the interfaces.
type Looked struct {
	Depends  Depends
	TCPFlags uint8  // bits of the TCP flags
	MinLen   uint32 // with DependsLength: lengths in this range, in bytes, get the same answers
	MaxLen   uint32
}

// Begin makes l what a walk has looked at that has not begun.
func (l *Looked) Begin() { *l = Looked{MaxLen: 1<<32 - 1} }

// Repeatable reports whether a packet of the same flow for which all that was
// looked at is the same would go the same way.
func (l *Looked) Repeatable() bool { return l.Depends&notRepeatable == 0 }

// NotRepeatable says that the walk at hand must not be remembered.
func (c *Context) NotRepeatable() { c.Looked.Depends |= notRepeatable }

// LookFlags says that the answer depends on these TCP flags.
func (c *Context) LookFlags(mask uint8) { c.Looked.TCPFlags |= mask }

// LookLength says that the answer is the same for all lengths from lo to hi as
// for n, or as outside of that range if n is not in it.
func (c *Context) LookLength(n, lo, hi uint32) {
	l := &c.Looked
	switch {
	case n < lo:
		l.MaxLen = min(l.MaxLen, lo-1)
	case n > hi:
		l.MinLen = max(l.MinLen, hi+1)
	default:
		l.MinLen, l.MaxLen = max(l.MinLen, lo), min(l.MaxLen, hi)
	}
}

// Flags of LOG, with the kernel's values (linux/netfilter/nf_log.h).
const (
	LogTCPSeq     uint8 = 0x01
	LogTCPOptions uint8 = 0x02
	LogIPOptions  uint8 = 0x04
	LogUID        uint8 = 0x08
	LogMACDecode  uint8 = 0x20
)

// Env is what rules need from outside: one per router.
type Env struct {
	CT     *conntrack.Table // nil: rules that need it are refused
	NAT    *nat.NAT
	Sysctl *sysctl.Set
	Routes Routes
	// Synproxy is behind SYNPROXY; nil: such rules drop.
	Synproxy *synproxy.Proxy
	// Sockets are the router's own; nil: there are none.
	Sockets Sockets
	// Wall is the time of day when the packets' clock (ns) shows now; nil: time.Now.
	Wall func(now int64) time.Time
	Sets *ipset.Sets // nil: rules that name a set are refused
	// DoWorkers runs f once for each worker, between two batches of that
	// worker, and returns when all have run: the only way to read or zero
	// counters. nil: there are no workers.
	DoWorkers func(f func(c *Context))
	// SetGeneration counts the changes of all sets' members that answers of
	// DependsSets rest on; nil: there are no sets.
	SetGeneration *atomic.Uint64
}

// Routes is what rules ask of routing and addresses. Its methods are called on
// the packet path: they take no lock and do not allocate.
type Routes interface {
	// AddrType is the route type (RTN_UNICAST 1, RTN_LOCAL 2, …) of addr; dev
	// limits the question to one interface if not nil.
	AddrType(fam uint8, addr [16]byte, dev *packet.Iface) uint8
	// ReversePath answers rpfilter.
	ReversePath(p *packet.Packet, loose, validmark, acceptLocal bool) bool
	// SourceFor is the address that dev would send from towards nexthop.
	SourceFor(fam uint8, dev *packet.Iface, nexthop [16]byte) ([16]byte, bool)
	// FirstAddr is the first (primary) address of dev, for REDIRECT.
	FirstAddr(fam uint8, dev *packet.Iface) ([16]byte, bool)
	Ifaces() []*packet.Iface
	// PathMTU is the MTU in bytes towards p's destination, or with reverse its source.
	PathMTU(p *packet.Packet, reverse bool) int
}

// Entry is p's connection; nil: it has none.
func (c *Context) Entry(p *packet.Packet) *conntrack.Entry {
	if p.Ct == 0 || c.CT == nil {
		return nil
	}
	return c.CT.Entry(p)
}

// Prepare makes c ready to Run pr; call it when the program may have changed,
// once a batch.
func (c *Context) Prepare(pr *Program) {
	if n := pr.counters; len(c.Counters) < n {
		c.Counters = append(c.Counters, make([]Counter, n-len(c.Counters)+n/4)...)
	}
	if len(c.stack) < pr.depth {
		c.stack = make([]frame, pr.depth)
	}
}
