package conntrack

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/sysctl"
	"sluice/packet"
)

// Drop reasons of this package.
var (
	ReasonTableFull    = packet.NewReason("conntrack.table_full", "the flow table is full and holds no unassured flow to drop early")
	ReasonFlooded      = packet.NewReason("conntrack.table_flooded", "the flow table is full, and the packet's worker has spent its time for dropping unassured flows early")
	ReasonInsertFailed = packet.NewReason("conntrack.insert_failed", "another packet took the connection's tuples first, or the hash chain is too long")
	ReasonDying        = packet.NewReason("conntrack.dying", "the connection was deleted while its packet was under way")
	ReasonReopen       = packet.NewReason("conntrack.reopen", "a SYN met a closed connection that is being deleted")
	ReasonHelper       = packet.NewReason("conntrack.helper", "a helper could not expect or rewrite what the payload announces")
)

const (
	slabBits = 12
	slabSize = 1 << slabBits
	slabMask = slabSize - 1
	maxSlabs = 1 << 14 // 67 million entries
)

type slab [slabSize]Entry

// Options of New; the zero value is fine.
type Options struct {
	Clock func() int64     // monotonic ns; default: since New
	Wall  func() time.Time // default: time.Now
	// Log, if set, is told of invalid packets while net.netfilter.nf_conntrack_log_invalid
	// is 255 or the packet's protocol. It runs on the packet's worker.
	Log func(msg string, p *packet.Packet)
	// Full, if set, is told of each packet that is dropped because the table is
	// full, with the batch's clock. It runs on the packet's worker.
	Full func(now int64)
}

// Table is the flow table with all that belongs to it. Its methods may be
// called from any goroutine; packets go through a Worker.
type Table struct {
	opt  Options
	sys  tunables
	seed [6]uint64

	state   atomic.Pointer[hashState]
	growing atomic.Bool
	slabs   [maxSlabs]atomic.Pointer[slab]
	counts  atomic.Pointer[counterSlabs]
	bump    atomic.Uint32 // next index never used
	freed   atomic.Uint64 // stack of chunks of free indices: tag<<32 | first
	count   atomic.Int64
	epoch   atomic.Uint64

	exts extSlabs

	mu      sync.Mutex // guards what follows; no packet of a tracked flow takes it
	workers atomic.Pointer[[]*Worker]
	guest   *Worker // for goroutines that are no workers; used under guestMu
	guestMu sync.Mutex
	sweep   uint32 // Housekeep's next index

	expects   expectations
	gre       greKeys
	helpers   atomic.Pointer[[]*Helper]
	policies  atomic.Pointer[timeoutPolicies]
	tmpls     atomic.Pointer[[]*Template]
	broadcast atomic.Pointer[func(*packet.Packet) ([16]byte, bool)]
	natHelp   atomic.Pointer[NATHelper]
	destroy   atomic.Pointer[func(*Worker, *Entry, uint32)]
	subs      atomic.Pointer[[]*Subscription]
}

// New makes an empty table whose tunables are in s under the kernel's names.
func New(s *sysctl.Set, opt Options) *Table {
	t := &Table{opt: opt}
	if t.opt.Clock == nil {
		start := time.Now()
		t.opt.Clock = func() int64 { return int64(time.Since(start)) }
	}
	if t.opt.Wall == nil {
		t.opt.Wall = time.Now
	}
	var b [48]byte
	rand.Read(b[:])
	for i := range t.seed {
		t.seed[i] = binary.LittleEndian.Uint64(b[8*i:]) | 1
	}
	t.bump.Store(1)
	t.epoch.Store(1)
	t.exts.bump.Store(1)
	t.workers.Store(&[]*Worker{})
	t.subs.Store(&[]*Subscription{})
	t.policies.Store(&timeoutPolicies{})
	t.tmpls.Store(&[]*Template{})
	t.state.Store(newHashState(4096))
	t.expects.init()
	t.gre.seed = t.seed[0]
	t.helpers.Store(builtinHelpers())
	t.guest = t.NewWorker()
	t.sys.init(t, s)
	return t
}

// at is the entry of an index that has been handed out.
func (t *Table) at(idx uint32) *Entry {
	return &t.slabs[idx>>slabBits].Load()[idx&slabMask]
}

// Now is the table's clock, in ns.
func (t *Table) Now() int64 { return t.opt.Clock() }

// Count is the number of connections, those included that are not confirmed yet.
func (t *Table) Count() int { return int(t.count.Load()) }

// OnDestroy registers f, called once for each connection that had a NAT binding
// (SrcNATDone or DstNATDone) when it goes, while its fields are still there.
// f runs on the goroutine that deletes and must not block.
func (t *Table) OnDestroy(f func(w *Worker, e *Entry, idx uint32)) { t.destroy.Store(&f) }

// OnBroadcast gives the helpers of protocols that broadcast a way to ask for
// the mask of the network that a packet of the router's own is broadcast to;
// false if it is no broadcast.
func (t *Table) OnBroadcast(f func(p *packet.Packet) (mask [16]byte, ok bool)) { t.broadcast.Store(&f) }

// SetNATHelper gives the helpers their NAT part.
func (t *Table) SetNATHelper(h NATHelper) { t.natHelp.Store(&h) }

// withGuest runs f as a worker would, for goroutines that are none.
func (t *Table) withGuest(f func(w *Worker)) {
	t.guestMu.Lock()
	defer t.guestMu.Unlock()
	t.guest.Begin(t.Now())
	f(t.guest)
	t.guest.End()
}

// TupleTaken reports whether another connection than ignore has u as one of its
// tuples, so that NAT must choose another (nf_conntrack_tuple_taken). A
// connection with ignore's original tuple is the same flow met twice and does
// not count: Confirm sorts that out. Call it between Begin and End.
func (t *Table) TupleTaken(w *Worker, u *Tuple, ignore *Entry) bool {
	e, _, d := t.lookup(u, t.hashTuple(u), w.now)
	if e == nil || e == ignore || ignore != nil && (e.orig == ignore.orig || d == Original && ignore.zoned()) {
		return false
	}
	w.stat(statFound)
	return true
}

// insertResult says what became of an insertion.
type insertResult uint8

const (
	insertOK insertResult = iota
	insertClash
	insertTooLong
)

// insert puts both tuples of e into the table; on a clash it returns the entry
// that is in the way and the direction of the tuple it has there.
func (t *Table) insert(w *Worker, e *Entry, idx uint32) (insertResult, *Entry, uint32, Dir) {
	h1, h2 := t.hashTuple(&e.orig), t.hashTuple(&e.reply)
	d1, d2 := bothDirs, bothDirs
	if e.zoned() {
		d1, d2 = 1<<Original, 1<<Reply
	}
	for {
		st, b1, b2 := t.lockPair(h1, h2)
		x, xi, xd := t.find(st, b1, &e.orig, h1, d1)
		if x == nil {
			x, xi, xd = t.find(st, b2, &e.reply, h2, d2)
		}
		if x != nil {
			unlockPair(b1, b2)
			if Status(x.status.Load())&Dying != 0 {
				spin() // its deleter is about to unlink it
				continue
			}
			if x.expiry.Load() <= w.now {
				t.kill(w, x, xi)
				continue
			}
			return insertClash, x, xi, xd
		}
		p1 := st.free(b1, st.keep())
		if p1 != nil {
			o, r := Original, Reply
			if e.orig == e.reply {
				o, r = r, o // what is its own reply is found as one, as in Linux
			}
			p1.Store(place(h1, o, idx)) // may be the same chain: take the place before looking for the next
			if p2 := st.free(b2, st.keep()); p2 != nil {
				e.SetStatus(Confirmed)
				p2.Store(place(h2, r, idx))
				unlockPair(b1, b2)
				t.checkLoad(st)
				return insertOK, nil, 0, 0
			}
			p1.Store(0)
		}
		unlockPair(b1, b2)
		if !t.outgrow(st) {
			return insertTooLong, nil, 0, 0
		}
	}
}

// checkLoad starts growing when four of five places are taken, or most overflow
// buckets: a chain keeps those that it once had.
func (t *Table) checkLoad(st *hashState) {
	taken, places := t.count.Load()*2, int64(len(st.buckets))*bucketPlaces
	spilt := int(st.used.Load())*8 > len(st.overflow)*7 && taken*8 > places
	if (spilt || taken*5 > places*4) && st.old.Load() == nil {
		t.growTo(len(st.buckets) * 2)
	}
}

// kill deletes a confirmed connection; false if somebody else does.
func (t *Table) kill(w *Worker, e *Entry, idx uint32) bool {
	if Status(e.status.Load())&Dying != 0 || e.SetStatus(Dying)&Dying != 0 {
		return false
	}
	h1, h2 := t.hashTuple(&e.orig), t.hashTuple(&e.reply)
	st, b1, b2 := t.lockPair(h1, h2)
	if e.flags&entryNoOrig == 0 {
		st.remove(b1, h1, Original, idx)
	}
	st.remove(b2, h2, Reply, idx)
	unlockPair(b1, b2)
	w.destroyed(e, idx)
	return true
}
