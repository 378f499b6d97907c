package conntrack

import (
	"math/bits"
	"sync/atomic"

	"sluice/packet"
)

// Probe is a packet's connection, looked up ahead of Track. The router fills a
// batch of them step by step, so that the cache misses of its packets overlap:
// Aim at all, Seek all, then Hit one by one. They overlap only while few
// instructions lie between them: so what is computed and what is touched are
// steps of their own.
type Probe struct {
	tuple Tuple
	hash  uint64
	first *bucket
	entry *Entry
	idx   uint32
	dir   Dir
}

// Aim reads the tuple of p, which has ports, in zone 0, and notes its bucket.
// false: p has no tuple.
func (w *Worker) Aim(pr *Probe, p *packet.Packet) bool {
	t := w.t
	if littleEndian && p.Family == packet.IPv4 && p.L4 == 20 {
		// The addresses and ports lie side by side.
		b := p.Bytes()
		if len(b) < 24 {
			return false
		}
		h := (*[24]byte)(b)
		addrs, ports := le.Uint64(h[12:]), bits.RotateLeft32(bits.ReverseBytes32(le.Uint32(h[20:])), 16)
		*pr.tuple.words() = [5]uint64{addrs & (1<<32 - 1), 0, addrs >> 32, 0, uint64(ports) | uint64(p.Proto)<<48 | uint64(packet.IPv4)<<56}
	} else if !t.tuple(&pr.tuple, p, 0) {
		return false
	}
	pr.hash = t.hashTuple(&pr.tuple)
	st := t.state.Load()
	pr.first = &st.buckets[pr.hash&st.mask]
	pr.entry = nil
	return true
}

// Touch waits for nothing: it makes the processor fetch the bucket.
func (pr *Probe) Touch() uint64 { return pr.first.head.Load() }

// Seek notes which entry it may be, by its fingerprint, and brings that near.
func (w *Worker) Seek(pr *Probe) {
	for i := range pr.first.place {
		x := pr.first.place[i].Load()
		if (x^pr.hash)&fingerprint == 0 && uint32(x) != 0 {
			pr.entry, pr.idx, pr.dir = w.t.at(uint32(x)), uint32(x), placeDir(x)
			return
		}
	}
}

// TouchEntry is Touch for what Seek found.
func (pr *Probe) TouchEntry() uint32 {
	if pr.entry == nil {
		return 0
	}
	return pr.entry.touch()
}

// Tuple is the packet's tuple; it must not be written to.
func (pr *Probe) Tuple() *Tuple { return &pr.tuple }

// Strange says that Seek found nothing: the packet will begin a connection.
func (pr *Probe) Strange() bool { return pr.entry == nil }

// MayBegin reports whether there is room for new connections.
func (w *Worker) MayBegin() bool { return !w.t.full() }

// ReplyBucket is the head of the bucket where the reply of the packet's new
// connection will be, if its source is changed as the last one's was.
func (w *Worker) ReplyBucket(pr *Probe) *atomic.Uint64 {
	u, ok := pr.tuple.Invert()
	if ok && w.moved {
		u.Dst = w.mapped
	}
	st := w.t.state.Load()
	return &st.buckets[w.t.hashTuple(&u)&st.mask].head
}

// TouchFree makes the processor fetch the entries of the next n connections.
func (w *Worker) TouchFree(n int) (x uint64) {
	for _, idx := range w.free[max(0, len(w.free)-n):] {
		x ^= uint64(w.t.at(idx).touch())
	}
	return x
}

// touch reads of each of the entry's cache lines.
func (e *Entry) touch() uint32 {
	return e.status.Load() ^ uint32(e.reply.Src[0]) ^ uint32(e.tcp.lastDir)
}

// Hit is the confirmed connection that the probe's packet belongs to now, after
// what earlier packets of the batch did; nil if there is none, which Track need
// not find out again.
func (w *Worker) Hit(pr *Probe) (*Entry, Dir) {
	if e := pr.entry; e != nil && e.Tuple(pr.dir).equal(&pr.tuple) && Status(e.status.Load())&(Confirmed|Dying) == Confirmed && e.expiry.Load() > w.now {
		return e, pr.dir
	}
	if pr.entry, pr.idx, pr.dir = w.t.lookup(&pr.tuple, pr.hash, w.now); pr.entry == nil {
		w.missed = pr
	}
	return pr.entry, pr.dir
}

// Info is what p.CtInfo will be for a packet of e in direction d.
func (e *Entry) Info(d Dir) packet.CtInfo {
	switch st := e.Status(); {
	case d == Reply:
		return packet.CtEstablishedReply
	case st&SeenReply != 0:
		return packet.CtEstablished
	case st&Expected != 0:
		return packet.CtRelated
	}
	return packet.CtNew
}

// early is what TrackHit found of a packet that has to go the whole way; the
// packet's Track takes it from here.
type early struct {
	set    bool
	pass   bool
	ct     uint32
	info   packet.CtInfo
	reason packet.Reason
}

// TrackHit is Track at PREROUTING for a TCP or UDP packet whose connection Hit
// has just found, and Info said info of. false: p is as it was, and must go the whole way now, in which Track
// does not do again what has been done.
func (w *Worker) TrackHit(p *packet.Packet, pr *Probe, info packet.CtInfo) bool {
	e := pr.entry
	p.Ct, p.CtInfo = pr.idx, info
	var res result
	if p.Proto == packet.ProtoUDP {
		res = w.trackUDP(p, e, hookPrerouting)
	} else {
		res = w.trackTCP(p, e, pr.idx, hookPrerouting)
	}
	switch res {
	case resAccept:
		w.replied(p, e)
		return true
	case resInvalid:
		w.forget(p, e, pr.idx)
		w.logInvalid(p)
		w.early = early{set: true, pass: true, info: packet.CtInvalid}
	case resDrop:
		w.stat(statInvalid)
		w.stat(statDrop)
		w.early = early{set: true, info: packet.CtInvalid, reason: ReasonReopen}
	}
	p.Ct, p.CtInfo = 0, packet.CtNone
	return false
}

// TrackLater undoes a TrackHit that was true, for a packet that has to go the
// whole way after all.
func (w *Worker) TrackLater(p *packet.Packet) {
	w.early = early{set: true, pass: true, ct: p.Ct, info: p.CtInfo}
	p.Ct, p.CtInfo = 0, packet.CtNone
}

// EndEarly drops what a packet did not take that ended before its Track.
func (w *Worker) EndEarly() { w.early.set, w.missed = false, nil }

// replied notes a connection's first answer.
func (w *Worker) replied(p *packet.Packet, e *Entry) {
	if p.CtInfo == packet.CtEstablishedReply && e.Status()&SeenReply == 0 && e.SetStatus(SeenReply)&SeenReply == 0 {
		e.Event(EventReply)
	}
}

// Pending reports whether events of e wait for Confirm.
func (e *Entry) Pending() bool { return e.events.Load()&allEvents != 0 }

// Assisted reports whether a helper or SYNPROXY has something to do with e's packets.
func (e *Entry) Assisted() bool {
	return e.helper != 0 || e.Synproxied() || e.Status()&SeqAdjust != 0
}
