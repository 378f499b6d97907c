package conntrack

import (
	"encoding/binary"
	"sync/atomic"
)

// extension holds what few connections have, in slabs of its own, so that an
// entry stays at three lines. It lives and dies with its entry; it is written
// before the entry is shared or under its claim, labels apart.
type extension struct {
	labels      [4]atomic.Uint32
	secmark     atomic.Uint32
	policy      atomic.Uint32 // 1-based index into the table's timeout policies
	wanted      Events        // those that are told
	start, stop int64         // wall clock, ns
	seq         [2]SeqAdj
	masterTuple Tuple
	hasMaster   bool
	announced   atomic.Bool // has been a master
	nlCount     [2]uint8    // ftp: how many of nl are set
	expecting   [4]uint8    // expectations by class
	nl          [2][2]uint32
	pptp        pptpState
	sip         sipState
	tunnels     [2]greTunnel // pptp: guarded by the table's greKeys
	synproxy    Synproxy
	next        uint32 // on the free stack
}

// SeqAdj is how far a helper has moved one direction's sequence numbers.
type SeqAdj struct {
	Pos           uint32 // sequence number from which After holds
	Before, After int32  // bytes
}

const extSlabSize = 1 << 10

type extSlabs struct {
	slabs [1 << 16]atomic.Pointer[[extSlabSize]extension]
	bump  atomic.Uint32
	freed atomic.Uint64 // tag<<32 | first; links through next
}

// extOf is e's extension, nil if it has none.
func (t *Table) extOf(e *Entry) *extension {
	i := e.ext.Load()
	if i == 0 {
		return nil
	}
	return t.exts.at(i)
}

func (x *extSlabs) at(i uint32) *extension { return &x.slabs[i/extSlabSize].Load()[i%extSlabSize] }

func (x *extSlabs) alloc() uint32 {
	for {
		top := x.freed.Load()
		i := uint32(top)
		if i == 0 {
			break
		}
		next := atomic.LoadUint32(&x.at(i).next)
		if x.freed.CompareAndSwap(top, (top>>32+1)<<32|uint64(next)) {
			e := x.at(i)
			for l := range e.labels {
				e.labels[l].Store(0)
			}
			e.announced.Store(false)
			e.secmark.Store(0)
			e.policy.Store(0)
			e.start, e.stop, e.seq, e.synproxy = 0, 0, [2]SeqAdj{}, Synproxy{}
			e.masterTuple, e.hasMaster, e.nlCount, e.expecting, e.nl = Tuple{}, false, [2]uint8{}, [4]uint8{}, [2][2]uint32{}
			e.pptp, e.sip, e.tunnels = pptpState{}, sipState{}, [2]greTunnel{}
			return i
		}
	}
	i := x.bump.Add(1) - 1
	if i >= uint32(len(x.slabs)*extSlabSize) {
		x.bump.Add(^uint32(0))
		return 0
	}
	if s := &x.slabs[i/extSlabSize]; s.Load() == nil {
		s.CompareAndSwap(nil, new([extSlabSize]extension))
	}
	return i
}

func (x *extSlabs) release(i uint32) {
	for {
		top := x.freed.Load()
		atomic.StoreUint32(&x.at(i).next, uint32(top))
		if x.freed.CompareAndSwap(top, (top>>32+1)<<32|uint64(i)) {
			return
		}
	}
}

// ensureExt gives e an extension; nil only when there is no memory for more.
func (t *Table) ensureExt(e *Entry) *extension {
	if x := t.extOf(e); x != nil {
		return x
	}
	i := t.exts.alloc()
	if i == 0 {
		return nil
	}
	if !e.ext.CompareAndSwap(0, i) { // somebody else was faster
		t.exts.release(i)
	}
	return t.extOf(e)
}

// terms notes what a CT rule wants of a new connection.
func (w *Worker) terms(e *Entry, set func(x *extension)) {
	x := w.t.ensureExt(e)
	if x == nil {
		return
	}
	if e.flags&entryTerms == 0 {
		e.flags |= entryTerms
		x.wanted = allEvents
	}
	set(x)
}

// policy is the 1-based index into the table's timeout policies, 0 for none.
func (t *Table) policy(e *Entry) uint32 {
	if e.flags&entryTerms == 0 {
		return 0
	}
	return t.extOf(e).policy.Load()
}

// wants reports whether any of the events is wanted.
func (t *Table) wants(e *Entry, bits Events) bool {
	return e.flags&entryTerms == 0 || t.extOf(e).wanted&bits != 0
}

// SecMark is the connection's security label (0: none).
func (t *Table) SecMark(e *Entry) uint32 {
	if x := t.extOf(e); x != nil {
		return x.secmark.Load()
	}
	return 0
}

// SetSecMark stores the security label; a changed one is an event.
func (t *Table) SetSecMark(e *Entry, m uint32) {
	if t.setSecMark(e, m) {
		e.Event(EventSecMark)
	}
}

func (t *Table) setSecMark(e *Entry, m uint32) (changed bool) {
	if t.SecMark(e) == m {
		return false
	}
	x := t.ensureExt(e)
	return x != nil && x.secmark.Swap(m) != m
}

func (x *extension) loadLabels() (l [16]byte) {
	for i := range x.labels {
		binary.LittleEndian.PutUint32(l[4*i:], x.labels[i].Load())
	}
	return l
}

// Labels are the connection's 128 label bits, bit n being byte n/8, 1<<(n%8).
func (t *Table) Labels(e *Entry) (l [16]byte) {
	if x := t.extOf(e); x != nil {
		return x.loadLabels()
	}
	return l
}

// HasLabel reports whether a label bit is set.
func (t *Table) HasLabel(e *Entry, bit uint8) bool {
	x := t.extOf(e)
	return x != nil && bit < 128 && x.labels[bit/32].Load()>>(bit%32)&1 != 0
}

// Master is the original tuple of the connection that expected e; ok is false
// if none did. It must not be written to.
func (t *Table) Master(e *Entry) (tuple *Tuple, ok bool) {
	if x := t.extOf(e); x != nil && x.hasMaster {
		return &x.masterTuple, true
	}
	return nil, false
}

// SetLabel sets one label bit (below 128); false if it cannot be stored.
func (t *Table) SetLabel(e *Entry, bit uint8) bool {
	x := t.ensureExt(e)
	if x == nil || bit > 127 {
		return false
	}
	if m := uint32(1) << (bit % 32); x.labels[bit/32].Or(m)&m == 0 {
		e.Event(EventLabel)
	}
	return true
}

// ReplaceLabels sets the label bits in mask to those of l.
func (t *Table) ReplaceLabels(e *Entry, l, mask [16]byte) bool {
	x := t.ensureExt(e)
	if x == nil {
		return false
	}
	changed := false
	for i := range x.labels {
		v, m := binary.LittleEndian.Uint32(l[4*i:]), binary.LittleEndian.Uint32(mask[4*i:])
		for {
			old := x.labels[i].Load()
			now := old&^m | v&m
			if now == old {
				break
			}
			if x.labels[i].CompareAndSwap(old, now) {
				changed = true
				break
			}
		}
	}
	if changed {
		e.Event(EventLabel)
	}
	return true
}
