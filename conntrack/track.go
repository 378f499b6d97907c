package conntrack

import (
	"sync/atomic"

	"sluice/packet"
)

// Track finds or makes the connection of p and sets p.Ct and p.CtInfo. It runs
// at PREROUTING and OUTPUT (hook is the kernel's number). false: drop, p.Reason
// is set. A packet that has a connection already (it comes back through lo) is
// left alone.
func (w *Worker) Track(p *packet.Packet, hook uint8) bool {
	switch {
	case p.CtInfo == packet.CtUntracked:
		return true
	case p.Flags&packet.Untracked != 0:
		p.Ct, p.CtInfo = 0, packet.CtUntracked
		return true
	case p.CtInfo != packet.CtNone && p.CtInfo != packet.CtInvalid:
		return true
	}
	if w.early.set {
		return w.takeEarly(p)
	}
	tmpl := w.template(p)
	p.Ct, p.CtInfo = 0, packet.CtInvalid
	if p.Flags&packet.LaterFragment != 0 || p.Family == packet.IPv6 && (p.Proto == packet.ProtoNone || p.Flags&packet.BadHeaders != 0 && packet.Extension(p.Proto)) {
		w.stat(statInvalid)
		return true
	}
	if isICMP(p.Family, p.Proto) {
		if done := w.trackError(p, hook, tmpl); done {
			return true
		}
	}
	for range 3 {
		e, idx, ok := w.resolve(p, tmpl)
		if !ok {
			w.stat(statDrop)
			if (p.Reason == ReasonTableFull || p.Reason == ReasonFlooded) && w.t.opt.Full != nil {
				w.t.opt.Full(w.now)
			}
			return false
		}
		if e == nil {
			w.stat(statInvalid)
			return true
		}
		switch w.protocol(p, e, idx, hook) {
		case resAccept:
		case resInvalid:
			w.forget(p, e, idx)
			w.logInvalid(p)
			return true
		case resDrop:
			p.Ct, p.CtInfo = 0, packet.CtInvalid
			w.stat(statInvalid)
			w.stat(statDrop)
			p.Reason = ReasonReopen
			return false
		case resRepeat:
			p.Ct, p.CtInfo = 0, packet.CtInvalid
			continue
		}
		w.replied(p, e)
		return true
	}
	w.stat(statInvalid)
	return true
}

// takeEarly ends what TrackHit began.
func (w *Worker) takeEarly(p *packet.Packet) bool {
	x := w.early
	w.early.set = false
	p.Ct, p.CtInfo = x.ct, x.info
	if !x.pass {
		p.Reason = x.reason
	}
	return x.pass
}

// resolve finds the connection or makes an unconfirmed one. ok false: drop.
func (w *Worker) resolve(p *packet.Packet, tmpl *Template) (*Entry, uint32, bool) {
	t := w.t
	oz, rz := tmpl.zones()
	if pr := w.missed; pr != nil {
		w.missed = nil
		if oz == 0 && rz == 0 {
			return w.begun(p, &pr.tuple, pr.hash, tmpl, 0)
		}
	}
	var u Tuple
	if !t.tuple(&u, p, oz) {
		return nil, 0, true
	}
	h := t.hashTuple(&u)
	e, idx, d := t.lookup(&u, h, w.now)
	if rz != oz {
		e, idx, d = t.lookupOther(&u, rz, w.now, e, idx, d)
	}
	if e == nil {
		return w.begun(p, &u, h, tmpl, rz)
	}
	p.Ct, p.CtInfo = idx, e.Info(d)
	return e, idx, true
}

// begun is resolve for a packet that has no connection.
func (w *Worker) begun(p *packet.Packet, u *Tuple, h uint64, tmpl *Template, replyZone uint16) (*Entry, uint32, bool) {
	e, idx := w.create(p, u, h, tmpl, replyZone)
	if e == nil {
		return nil, 0, p.Reason == 0
	}
	p.Ct, p.CtInfo = idx, e.Info(Original)
	return e, idx, true
}

// lookupOther goes on where a template has a zone for one direction alone: of
// what was found in the zone of the original direction only that direction
// counts, and in rz, the other one's, only the other.
func (t *Table) lookupOther(u *Tuple, rz uint16, now int64, e *Entry, idx uint32, d Dir) (*Entry, uint32, Dir) {
	if e != nil && d == Original {
		return e, idx, d
	}
	v := *u
	v.Zone = rz
	if e, idx, d = t.lookup(&v, t.hashTuple(&v), now); e == nil || d == Original {
		return nil, 0, d
	}
	return e, idx, d
}

// create makes the unconfirmed connection of a first packet; nil with
// p.Reason 0: the packet cannot start one.
func (w *Worker) create(p *packet.Packet, u *Tuple, h uint64, tmpl *Template, replyZone uint16) (*Entry, uint32) {
	t := w.t
	if isICMP(u.Family, u.Proto) {
		if _, ok := u.Invert(); !ok {
			return nil, 0
		}
	}
	if t.full() {
		if p.Reason = w.makeRoom(h); p.Reason != 0 {
			return nil, 0
		}
	}
	e, idx := w.alloc()
	if e == nil {
		p.Reason = ReasonTableFull
		return nil, 0
	}
	rep, _ := u.Invert()
	rep.Zone = replyZone
	p.Ct = idx
	w.init(e, idx, u, &rep)
	if tmpl != nil {
		if tp := tmpl.Timeout; tp != nil && tp.Fits(u.Family, u.Proto) {
			w.terms(e, func(x *extension) { x.policy.Store(uint32(tp.index)) })
		}
		w.wantEvents(e, tmpl)
		if tmpl.Synproxy && t.ensureExt(e) != nil {
			e.flags |= entrySynproxy
		}
	}
	x := w.expected(e, u)
	if x == nil && tmpl != nil && tmpl.Helper != nil && tmpl.Helper.fits(u.Family, u.Proto) {
		w.setHelper(e, tmpl.Helper)
		e.SetStatus(HelperSet)
	}
	if x != nil && x.Follow != FollowNone {
		w.follow(p, e, x)
	}
	return e, idx
}

// wantEvents takes the events that a CT rule asks for: where it names some, the
// others are none, and nf_conntrack_events is not asked.
func (w *Worker) wantEvents(e *Entry, tm *Template) {
	if tm.Events == 0 && tm.ExpEvents == 0 {
		return
	}
	w.terms(e, func(x *extension) { x.wanted = tm.Events })
	e.flags &^= entryNoEvents
	if tm.ExpEvents == 0 {
		e.flags |= entryNoExpEvents
	}
}

// follow does what the expectation says of its connection e.
func (w *Worker) follow(p *packet.Packet, e *Entry, x *Expectation) {
	t := w.t
	m := t.at(x.Master)
	if m.gen.Load() != x.MasterGen {
		return
	}
	if x.Follow == FollowCall {
		w.otherTunnel(m, x)
	}
	if n := t.nat(); n != nil && (x.Follow != FollowCall || m.Status()&NATMask != 0) {
		n.Expected(w, p, e, x)
	}
}

// init makes e, of index idx, a fresh unconfirmed connection. Nobody else reads
// more than an entry's status, generation and first cached word before it is
// shared: the rest is written plainly.
func (w *Worker) init(e *Entry, idx uint32, orig, reply *Tuple) {
	t := w.t
	e.gen.Store(e.gen.Load() + 1)
	e.status.Store(0)
	e.events = atomic.Uint32{}
	e.expiry = atomic.Int64{}
	for i := range e.Cache {
		if e.Cache[i].Load() != 0 {
			e.Cache[i].Store(0)
		}
	}
	e.mark = atomic.Uint32{}
	e.NAT = [2]uint32{}
	e.helper, e.mhelper, e.flags, e.Home = 0, 0, 0, uint8(w.id)
	e.orig, e.reply = *orig, *reply
	e.tcp = tcpState{}
	if t.sys.acct.Load() != 0 {
		e.flags |= entryAcct
		t.startCounters(idx)
	}
	if t.sys.events.Load() == 0 {
		e.flags |= entryNoEvents
	}
	t.count.Add(1)
}

func (w *Worker) protocol(p *packet.Packet, e *Entry, idx uint32, hook uint8) result {
	switch p.Proto {
	case packet.ProtoTCP:
		return w.trackTCP(p, e, idx, hook)
	case packet.ProtoUDP, packet.ProtoUDPLite:
		return w.trackUDP(p, e, hook)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if isICMP(p.Family, p.Proto) {
			return w.trackICMP(p, e)
		}
		return w.invalid("ICMP of the other family")
	case packet.ProtoSCTP:
		return w.trackSCTP(p, e, hook)
	case packet.ProtoGRE:
		return w.trackGRE(p, e)
	}
	return w.trackGeneric(p, e)
}

// forget takes the connection off an invalid packet; a connection that this
// packet would have started is gone.
func (w *Worker) forget(p *packet.Packet, e *Entry, idx uint32) {
	if e.Status()&Confirmed == 0 && !p.CtInfo.Reply() {
		w.drop(e, idx)
	}
	p.Ct, p.CtInfo = 0, packet.CtInvalid
}

// Confirm is the last stage of INPUT and POSTROUTING: sequence numbers that a
// helper or SYNPROXY moved are put right, a new connection enters the table.
// false: drop, p.Reason is set.
func (w *Worker) Confirm(p *packet.Packet) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	if e.Status()&SeqAdjust != 0 && p.Proto == packet.ProtoTCP && p.Flags&packet.Loopback == 0 {
		w.adjustSeq(p, e)
	}
	idx := p.Ct
	if e.Status()&Confirmed == 0 {
		if p.CtInfo.Reply() {
			return true // a router's answer to a packet that is still on its way
		}
		if !w.confirm(p, e, idx) {
			return false
		}
		e, idx = w.t.at(p.Ct), p.Ct
	}
	if e.Pending() {
		w.deliver(e, idx)
	}
	return true
}

func (w *Worker) confirm(p *packet.Packet, e *Entry, idx uint32) bool {
	t := w.t
	if e.Status()&Dying != 0 {
		w.stat(statInsertFailed)
		p.Reason = ReasonDying
		return false
	}
	wait := e.expiry.Load()
	e.expiry.Store(w.now + wait)
	if t.sys.timestamp.Load() != 0 {
		if x := t.ensureExt(e); x != nil {
			x.start = t.opt.Wall().UnixNano()
		}
	}
	if e.Status()&Expected != 0 {
		e.Event(EventRelated)
	} else {
		e.Event(EventNew)
	}
	res, x, xi, xd := t.insert(w, e, idx)
	switch res {
	case insertOK:
		if w.moved = e.reply.Dst != e.orig.Src; w.moved {
			w.mapped = e.reply.Dst
		}
		return true
	case insertTooLong:
		w.stat(statChainTooLong)
	case insertClash:
		if w.resolveClash(p, e, idx, x, xi, xd) {
			return true
		}
	}
	e.expiry.Store(wait)
	w.stat(statInsertFailed)
	w.stat(statDrop)
	p.Reason = ReasonInsertFailed
	return false
}

// resolveClash: another packet of the same flow was faster, or one direction's
// tuple is taken. Protocols without a handshake may join what is there.
func (w *Worker) resolveClash(p *packet.Packet, e *Entry, idx uint32, x *Entry, xi uint32, xd Dir) bool {
	switch e.orig.Proto {
	case packet.ProtoTCP, packet.ProtoSCTP, packet.ProtoICMP, packet.ProtoICMPv6:
		return false
	}
	same := x.orig == e.orig && x.reply == e.reply || x.orig == e.reply && x.reply == e.orig
	if same || x.Status()&NATDoneMask == 0 {
		if e.flags&x.flags&entryAcct != 0 {
			from, to := w.t.countersOf(idx), w.t.countersOf(xi)
			for d := range 2 {
				to.packets[d].Add(from.packets[d].Load())
				to.bytes[d].Add(from.bytes[d].Load())
			}
		}
		w.drop(e, idx)
		p.Ct = xi
		p.CtInfo = x.Info(xd)
		w.stat(statClashResolve)
		return true
	}
	return w.insertReplyOnly(e, idx)
}

// insertReplyOnly enters a connection whose original tuple is taken by a
// connection with another translation (two resolvers asked at once): only its
// reply can be found, and only for a second.
func (w *Worker) insertReplyOnly(e *Entry, idx uint32) bool {
	t := w.t
	h := t.hashTuple(&e.reply)
	st, b, b2 := t.lockPair(h, h)
	defer unlockPair(b, b2)
	if x, _, _ := t.find(st, b, &e.reply, h, bothDirs); x != nil {
		return false
	}
	pl := st.free(b, st.keep())
	if pl == nil {
		return false
	}
	e.flags |= entryNoOrig
	e.expiry.Store(w.now + second)
	e.SetStatus(Confirmed | FixedTimeout | NATClash)
	pl.Store(place(h, Reply, idx))
	w.stat(statClashResolve)
	return true
}

// Release ends p's hold on its connection: an unconfirmed one that p owns is
// gone. Call it when a packet is dropped or delivered.
func (w *Worker) Release(p *packet.Packet) {
	if e := w.Entry(p); e != nil && e.Status()&Confirmed == 0 && !p.CtInfo.Reply() {
		w.drop(e, p.Ct)
	}
	p.Ct, p.CtInfo = 0, packet.CtNone
}

// Attach gives a packet that answers old (a RST, an ICMP error) old's
// connection, as related in the other direction.
//
// An answer to an untracked packet has no connection, but counts as seen: raw's
// NOTRACK leaves it alone, and conntrack looks at it.
func (w *Worker) Attach(p, old *packet.Packet) {
	if old.CtInfo == packet.CtUntracked {
		p.Ct, p.CtInfo = 0, packet.CtInvalid
		return
	}
	if w.Entry(old) == nil {
		return
	}
	p.Ct = old.Ct
	if p.CtInfo = packet.CtRelatedReply; old.CtInfo.Reply() {
		p.CtInfo = packet.CtRelated
	}
}

// AlterReply gives an unconfirmed connection another reply tuple (NAT).
func (w *Worker) AlterReply(e *Entry, u Tuple) {
	u.Zone = e.reply.Zone
	e.reply = u
}

// drop frees an unconfirmed connection.
func (w *Worker) drop(e *Entry, idx uint32) {
	t := w.t
	e.SetStatus(Dying)
	shared := w.bury(e, idx)
	t.count.Add(-1)
	if shared {
		w.retire(idx)
	} else {
		w.put(idx)
	}
}

// destroyed finishes a connection that has left the table.
func (w *Worker) destroyed(e *Entry, idx uint32) {
	if x := w.t.extOf(e); x != nil && x.start != 0 {
		e.lock()
		x.stop = w.t.opt.Wall().UnixNano()
		e.unlock()
	}
	if w.t.listening() {
		w.emit(EvDestroy, EventDestroy, e, idx)
	}
	w.bury(e, idx)
	w.t.count.Add(-1)
	w.retire(idx)
}

// bury gives back what belongs to e; shared: others may hold its index still.
func (w *Worker) bury(e *Entry, idx uint32) (shared bool) {
	t := w.t
	if x := t.extOf(e); x != nil && x.announced.Load() {
		if h := t.helperOf(e.helper); h != nil && h.gone != nil {
			h.gone(w, e, x)
		}
		t.unexpectAll(w, idx, e.gen.Load())
		shared = true
	}
	if e.Status()&NATDoneMask != 0 {
		if f := t.destroy.Load(); f != nil {
			(*f)(w, e, idx)
		}
		shared = true
	}
	return shared
}

// full says that there may be no more connections.
func (t *Table) full() bool {
	limit := t.sys.max.Load()
	return limit != 0 && t.count.Load() >= limit
}

// In a full table each new connection needs another one's place, and looking for
// that costs as much as ten packets of a known connection. So a worker spends a
// tenth of its time on it at most, and what it would have slept: a flood of
// new flows leaves the rest to the others.
const (
	earlyDropCost = 1500 // ns, about, with the new connection in its place
	spareShare    = 10
	maxSpare      = 512 * earlyDropCost
)

// Rested tells of time, in ns, that the worker had nothing to do.
func (w *Worker) Rested(ns int64) { w.spare = min(w.spare+ns, maxSpare) }

// makeRoom is early drop within what the worker may spend; 0: there is room.
func (w *Worker) makeRoom(h uint64) packet.Reason {
	if w.spare < 0 {
		return ReasonFlooded
	}
	n := w.earlyDrop(h)
	w.spare -= int64(max(n, 1)) * earlyDropCost
	if n == 0 {
		return ReasonTableFull
	}
	return 0
}

// earlyDrop makes room for a new connection near hash h: the unassured flows of
// the first of eight chains that has any. It says how many there were.
func (w *Worker) earlyDrop(h uint64) (dropped int) {
	t := w.t
	st := t.state.Load()
	for i := uint64(0); i < earlyDropRange && dropped == 0; i++ {
		b := &st.buckets[(h+i)&st.mask]
		if old := st.old.Load(); old != nil && old.buckets[(h+i)&old.mask].head.Load()&headMoved == 0 {
			dropped += w.dropChain(old, &old.buckets[(h+i)&old.mask])
		}
		dropped += w.dropChain(st, b)
	}
	return dropped
}

const earlyDropRange = 8

func (w *Worker) dropChain(st *hashState, b *bucket) (dropped int) {
	t := w.t
	for {
		for i := range b.place {
			idx := uint32(b.place[i].Load())
			if idx == 0 {
				continue
			}
			e := t.at(idx)
			if e.expiry.Load() <= w.now {
				if t.kill(w, e, idx) {
					dropped++
				}
				continue
			}
			if e.Status()&Assured == 0 && t.kill(w, e, idx) {
				w.stat(statEarlyDrop)
				dropped++
			}
		}
		next := uint32(b.head.Load() & headNext)
		if next == 0 {
			return dropped
		}
		b = &st.overflow[next-1]
	}
}
