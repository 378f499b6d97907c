package conntrack

import (
	"sync/atomic"

	"sluice/packet"
)

const (
	chunk    = 64 // free indices move between a worker and the table in chunks
	maxLocal = 4 * chunk
)

// Worker is one packet goroutine's access to the table. Only its goroutine may
// call its methods, and all but NewWorker's caller only between Begin and End.
type Worker struct {
	t      *Table
	id     int
	now    int64
	ms     uint32        // now in milliseconds
	spare  int64         // ns that it may still spend on early drops
	online atomic.Uint64 // the epoch at Begin; 0: not in a batch
	free   []uint32
	limbo  []limbo // unlinked entries that others may still look at; oldest first
	stats  [numStats]atomic.Uint64
	why    string   // what was wrong with the last invalid packet
	user   bool     // a user's request is being carried out
	marked Template // a template whose zone is a packet's mark
	early  early    // of the packet at hand
	missed *Probe   // of the packet at hand: it has no connection yet
	mapped [16]byte // the source that the last new connection was given
	moved  bool     // … which was not its own
	_      [64]byte
}

type limbo struct {
	idx   uint32
	epoch uint64
}

// NewWorker adds a worker.
func (t *Table) NewWorker() *Worker {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := *t.workers.Load()
	w := &Worker{t: t, id: len(old) - 1, free: make([]uint32, 0, maxLocal), spare: maxSpare}
	all := append(append([]*Worker{}, old...), w)
	t.workers.Store(&all)
	return w
}

// Table is the table that w works on.
func (w *Worker) Table() *Table { return w.t }

// Begin opens a batch at now (the table's clock). Entries looked up from here
// on stay as they are, whoever deletes them, until End.
func (w *Worker) Begin(now int64) {
	w.spare = min(w.spare+max(now-w.now, 0)/spareShare, maxSpare)
	w.now, w.ms = now, uint32(now/1e6)
	w.online.Store(w.t.epoch.Load())
	if len(w.limbo) > 0 {
		w.reclaim()
	}
}

// End closes the batch: w holds no entry any more but the unconfirmed ones that
// its packets own.
func (w *Worker) End() {
	w.online.Store(0)
	if len(w.limbo) > 0 && w.limbo[len(w.limbo)-1].epoch == w.t.epoch.Load() {
		w.t.epoch.Add(1)
	}
}

// reclaim frees what was unlinked before every running batch began.
func (w *Worker) reclaim() {
	low := w.t.epoch.Load()
	for _, o := range *w.t.workers.Load() {
		if x := o.online.Load(); x != 0 && x < low {
			low = x
		}
	}
	n := 0
	for n < len(w.limbo) && w.limbo[n].epoch < low {
		w.put(w.limbo[n].idx)
		n++
	}
	if n > 0 {
		w.limbo = w.limbo[:copy(w.limbo, w.limbo[n:])]
	}
}

// retire hands an unlinked entry's index to reclaim.
func (w *Worker) retire(idx uint32) {
	w.limbo = append(w.limbo, limbo{idx, w.t.epoch.Load()})
}

// put returns an index that nobody knows any more.
func (w *Worker) put(idx uint32) {
	if e := w.t.at(idx); e.ext.Load() != 0 {
		w.t.exts.release(e.ext.Swap(0))
	}
	if len(w.free) == maxLocal {
		w.t.pushChunk(w.free[maxLocal-chunk:])
		w.free = w.free[:maxLocal-chunk]
	}
	w.free = append(w.free, idx)
}

// pushChunk links the indices through their entries (expiry: next in the chunk;
// Cache[0]: next chunk, then unused) and puts them on the table's stack.
func (t *Table) pushChunk(ids []uint32) {
	for i, id := range ids {
		next := uint32(0)
		if i+1 < len(ids) {
			next = ids[i+1]
		}
		t.at(id).expiry.Store(int64(next))
	}
	for {
		top := t.freed.Load()
		t.at(ids[0]).Cache[0].Store(top & (1<<32 - 1))
		if t.freed.CompareAndSwap(top, (top>>32+1)<<32|uint64(ids[0])) {
			return
		}
	}
}

func (w *Worker) refill() bool {
	t := w.t
	for {
		top := t.freed.Load()
		id := uint32(top)
		if id == 0 {
			break
		}
		// A stale read of a popped entry is harmless: the tag has changed then.
		next := t.at(id).Cache[0].Load() & (1<<32 - 1)
		if t.freed.CompareAndSwap(top, (top>>32+1)<<32|next) {
			for id != 0 {
				w.free = append(w.free, id)
				id = uint32(t.at(id).expiry.Load())
			}
			return true
		}
	}
	first := t.bump.Add(chunk) - chunk
	if first+chunk > maxSlabs*slabSize-chunk {
		t.bump.Add(^uint32(chunk - 1))
		return false
	}
	for i := uint32(chunk); i > 0; i-- {
		id := first + i - 1
		if t.slabs[id>>slabBits].Load() == nil {
			t.addSlab(id)
		}
		w.free = append(w.free, id)
	}
	return true
}

// alloc takes an entry; its words are what its last use left.
func (w *Worker) alloc() (*Entry, uint32) {
	if len(w.free) == 0 && !w.refill() {
		return nil, 0
	}
	idx := w.free[len(w.free)-1]
	w.free = w.free[:len(w.free)-1]
	return w.t.at(idx), idx
}

// Entry is the connection that p belongs to; nil if none.
func (w *Worker) Entry(p *packet.Packet) *Entry {
	switch p.CtInfo {
	case packet.CtNone, packet.CtInvalid, packet.CtUntracked:
		return nil
	}
	return w.t.at(p.Ct)
}

// At is the entry of an index, as p.Ct or OnDestroy give it.
func (t *Table) At(idx uint32) *Entry { return t.at(idx) }

// Now is the current batch's clock, in ns.
func (w *Worker) Now() int64 { return w.now }

// PacketDir is the direction of its connection that p runs in.
func PacketDir(p *packet.Packet) Dir {
	if p.CtInfo.Reply() {
		return Reply
	}
	return Original
}

// invalid notes why a packet is invalid; for code that returns its result.
func (w *Worker) invalid(why string) result {
	w.why = why
	return resInvalid
}

// logInvalid counts an invalid packet and, if that is wanted, logs it.
func (w *Worker) logInvalid(p *packet.Packet) {
	w.stat(statInvalid)
	if v := w.t.sys.logInvalid.Load(); v != 0 && (v == 255 || v == int64(p.Proto)) && w.t.opt.Log != nil {
		w.t.opt.Log(w.why, p)
	}
	w.why = ""
}

// Find is the connection that has u as one of its tuples, in direction d; nil
// if there is none. Call it between Begin and End.
func (w *Worker) Find(u *Tuple) (e *Entry, idx uint32, d Dir) {
	return w.t.lookup(u, w.t.hashTuple(u), w.now)
}
