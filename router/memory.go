package router

import (
	"slices"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/nat"
	"sluice/packet"
	"sluice/tables"
)

// A worker's memory: what whole walks have decided. After a packet of a
// confirmed connection has gone the whole way, its direction's word in the flow
// table names the decision; the flow's next packets that are alike in all that
// the walk looked at get the same, without a walk. Decisions are shared by
// flows; the counters that a decision moves are kept with it as one, and spread
// over the rules' when somebody reads those.
type memory struct {
	tag, epoch uint32
	decisions  []remembered
	index      []uint32 // open addressing by hash: decision + 1
	trails     []uint32 // what decisions' trails refer to

	tries    uint32
	recalled uint64 // packets that needed no walk
}

const (
	maxDecisions = 1 << 15
	maxTrails    = 1 << 20
	maxTrail     = 1 << 10 // counters of one packet

	wordDecision = 1 << 31 // a word's low half: a decision, otherwise a flowRoute …
	wordNoRoute  = 1<<30 - 1
	wordTrying   = 1 << 30 // … of a flow whose walk could not be remembered
)

// decision is what a walk looked at and what it decided. It is compared as a whole.
type decision struct {
	// What has to be the same. minLen and maxLen are the packet's length in bytes.
	in             *packet.Iface
	minLen, maxLen uint32
	mark           uint32
	setGen         uint64
	status         conntrack.Status
	ctmark         uint32
	secmark        uint32
	labels         [16]byte
	checks         uint8
	family         uint8
	info           packet.CtInfo
	pktType        packet.PktType
	tos, ttl       uint8
	tcpMask, tcp   uint8

	// What is done.
	out            *packet.Iface
	mtu            uint32 // the largest packet, or segment, in bytes
	ref            packet.RouteRef
	onLink         bool
	newTOS, newTTL uint8
	reason         packet.Reason // not 0: dropped in FORWARD
	route          uint32        // its flowRoute, or wordNoRoute
}

// Bits of decision.checks.
const (
	checkTTL    uint8 = 1 << iota // the TTL itself; otherwise it only has to be above 1
	checkTOS                      // all of the TOS byte; otherwise what routing looks at
	checkStatus                   // conntrack status bits
	checkMarks                    // the connection's mark, label and labels
	checkSets
)

// tosRouting are the bits of the TOS byte that routing looks at; the others are ECN's.
const tosRouting = 0xfc

type remembered struct {
	decision
	packets, bytes uint64
	from, to       uint32 // in trails
}

// routeWord is a direction's word for a flowRoute.
func (m *memory) routeWord(i uint32) uint64 { return uint64(m.tag)<<32 | uint64(i) }

// routeOf is the flowRoute that a word names.
func (m *memory) routeOf(word uint64) (uint32, bool) {
	if uint32(word>>32) != m.tag {
		return 0, false
	}
	i := uint32(word)
	if i&wordDecision != 0 {
		i = m.decisions[i&^wordDecision].route
	}
	i &^= wordTrying
	return i, i != wordNoRoute
}

// forget makes everything void that the worker remembers.
func (w *worker) forget() {
	w.spread()
	m := &w.mem
	clear(m.index)
	m.decisions, m.trails = m.decisions[:0], m.trails[:0]
	w.flowRoutes = w.flowRoutes[:0]
	// Tags differ between workers, whose lists differ, and are never 0, which an empty word has.
	m.epoch = m.epoch%(1<<24-1) + 1
	m.tag = m.epoch<<8 | uint32(w.id&0xff)
}

// spread gives the rules' counters what decisions have counted for them.
func (w *worker) spread() {
	m := &w.mem
	for i := range m.decisions {
		d := &m.decisions[i]
		if d.packets == 0 {
			continue
		}
		k := w.ctx[d.family>>1&1].Counters
		for _, id := range m.trails[d.from:d.to] {
			k[id].Packets += d.packets
			k[id].Bytes += d.bytes
		}
		d.packets, d.bytes = 0, 0
	}
}

// lesson is what is noted of a packet on its way, to be remembered at the end.
type lesson struct {
	on      bool
	dir     conntrack.Dir
	info    packet.CtInfo
	tos     uint8
	ttl     uint8
	entry   *conntrack.Entry
	marks   marks
	status  conntrack.Status
	mark    uint32
	setGen  uint64
	outq    int
	trail   tables.Trail
	head    [128]byte // the packet's first bytes as it came
	scratch *packet.Packet
}

// marks are what a connection carries for rules.
type marks struct {
	mark, secmark uint32
	labels        [16]byte
}

func (w *worker) marksOf(e *conntrack.Entry) marks {
	return marks{e.Mark(), w.r.ct.SecMark(e), w.r.ct.Labels(e)}
}

// mayRemember are the packets that are looked up ahead: whole TCP and UDP
// packets from outside, without IPv4 options.
func mayRemember(p *packet.Packet) bool {
	const not = packet.Fragment | packet.Options | packet.BadHeaders | packet.Local | packet.Loopback | packet.Untracked | packet.Reassembled
	return p.Flags&(not|packet.HasPorts) == packet.HasPorts && (p.Proto == packet.ProtoUDP || p.Proto == packet.ProtoTCP)
}

// recall takes p to its end if its connection remembers how. Otherwise p has
// the whole way before it, and what happens there is noted.
func (w *worker) recall(p *packet.Packet, pr *conntrack.Probe) (done bool) {
	e, dir := w.ct.Hit(pr)
	if e == nil {
		return false
	}
	word := e.Cache[dir].Load()
	if uint32(word>>32) != w.mem.tag || uint32(word)&wordDecision == 0 {
		w.note(p, e, dir, word)
		return false
	}
	d := &w.mem.decisions[uint32(word)&^wordDecision]
	n := uint32(p.Len())
	tos, ttl, info := p.TOS(), p.TTL(), e.Info(dir)
	seg := n
	if p.GSO.Type != packet.GSONone {
		seg = uint32(p.SegmentLen())
	}
	if d.in != p.In || d.info != info || (d.tos^tos)&tosRouting != 0 || d.mark != p.Mark || d.pktType != p.PktType ||
		n < d.minLen || n > d.maxLen || seg > d.mtu || ttl <= 1 && d.checks&checkTTL == 0 ||
		d.tcpMask != 0 && p.TCPFlags()&d.tcpMask != d.tcp ||
		d.checks != 0 && !w.same(d, e, tos, ttl) {
		w.note(p, e, dir, word)
		return false
	}
	if !w.ct.TrackHit(p, pr, info) {
		return false
	}
	if d.checks&checkStatus != 0 && d.status != e.Status() {
		w.ct.TrackLater(p)
		w.note(p, e, dir, word)
		return false
	}
	d.packets++
	d.bytes += uint64(n)
	w.mem.recalled++
	if d.reason != 0 {
		p.Ct, p.CtInfo = 0, packet.CtNone
		drop(p, d.reason)
		w.countDrop(p)
		return true
	}
	d.carryOut(p, e, dir)
	if e.Pending() {
		w.ct.Confirm(p)
	}
	p.Ct, p.CtInfo, p.Home = 0, packet.CtNone, e.Home+1
	p.Flags |= packet.Unmarked
	w.forwarded++
	if !w.transmit(p) {
		w.countDrop(p)
	}
	return true
}

// same compares what few walks look at.
func (w *worker) same(d *remembered, e *conntrack.Entry, tos, ttl uint8) bool {
	return (d.checks&checkTTL == 0 || d.ttl == ttl) &&
		(d.checks&checkTOS == 0 || d.tos == tos) &&
		(d.checks&checkMarks == 0 || w.marksOf(e) == marks{d.ctmark, d.secmark, d.labels}) &&
		(d.checks&checkSets == 0 || w.setGen() == d.setGen)
}

// setGen counts what changed in sets.
func (w *worker) setGen() uint64 {
	if g := w.r.envs[0].SetGeneration; g != nil {
		return g.Load()
	}
	return 0
}

// note begins to watch what happens to p.
func (w *worker) note(p *packet.Packet, e *conntrack.Entry, dir conntrack.Dir, word uint64) {
	// A walk that could not be remembered is tried again now and then: it may
	// have been for this packet alone.
	if uint32(word>>32) == w.mem.tag && uint32(word)&(wordDecision|wordTrying) == wordTrying {
		if w.mem.tries++; w.mem.tries&31 != 0 {
			return
		}
	}
	l := &w.learn
	info := e.Info(dir)
	if info == packet.CtRelated || info == packet.CtNew && e.Status()&conntrack.NATDoneMask != conntrack.NATDoneMask || e.Assisted() {
		return
	}
	l.on, l.dir, l.info, l.entry = true, dir, info, e
	l.tos, l.ttl, l.mark = p.TOS(), p.TTL(), p.Mark
	l.marks, l.setGen, l.outq = w.marksOf(e), w.setGen(), len(w.outq)
	copy(l.head[:], p.Bytes())
	c := &w.ctx[family(p)]
	l.trail.Counters, l.trail.Long = l.trail.Counters[:0], false
	c.Trail = &l.trail
	c.Looked.Begin()
}

// giveUp ends the watching of a packet that went nowhere that could be remembered.
func (w *worker) giveUp(p *packet.Packet) {
	l := &w.learn
	w.unlearn()
	if w.ct.Entry(p) == l.entry {
		word := &l.entry.Cache[l.dir]
		route, ok := w.mem.routeOf(word.Load())
		if !ok {
			route = wordNoRoute
		}
		word.Store(w.mem.routeWord(route | wordTrying))
	}
}

// unlearn ends the watching without a result.
func (w *worker) unlearn() {
	w.learn.on = false
	w.ctx[0].Trail, w.ctx[1].Trail = nil, nil
}

// runNoted is a hook's stages for a packet that is watched: the tables that are
// only counted belong to its trail.
func (w *worker) runNoted(h hooks.Hook, p *packet.Packet) hooks.Verdict {
	f := family(p)
	for i := range w.stages[f][h] {
		for _, id := range w.passedIDs[f][h][i] {
			w.learn.trail.Add(id)
		}
		s := w.stages[f][h][i : i+1]
		if v := hooks.Run(s, p); v != hooks.Accept {
			return v
		}
		if s[0].Name == "conntrack" {
			w.learn.status = w.learn.entry.Status() // what rules see from here on
		}
	}
	return hooks.Accept
}

// learned ends the watching: p is about to leave, or, with a reason, was dropped
// by FORWARD's rules.
func (w *worker) learned(p *packet.Packet, reason packet.Reason) {
	l := &w.learn
	f := family(p)
	c := &w.ctx[f]
	w.unlearn()
	e := l.entry
	if w.ct.Entry(p) != e || p.CtInfo != l.info {
		return
	}
	word := &e.Cache[l.dir]
	route, ok := w.mem.routeOf(word.Load())
	if !ok {
		route = wordNoRoute
	}
	looked := c.Looked
	if !looked.Repeatable() || l.trail.Long || len(w.outq) != l.outq || p.In == p.Out || c.Hotdrop {
		word.Store(w.mem.routeWord(route | wordTrying))
		return
	}
	d := decision{
		in: p.In, minLen: looked.MinLen, maxLen: looked.MaxLen, mark: l.mark, family: p.Family, info: l.info, pktType: p.PktType,
		tos: l.tos & tosRouting, tcpMask: looked.TCPFlags, reason: reason, route: route,
	}
	if looked.TCPFlags != 0 {
		if p.Proto != packet.ProtoTCP {
			d.tcpMask = 0
		} else {
			d.tcp = p.TCPFlags() & d.tcpMask
		}
	}
	if looked.Depends&tables.DependsTTL != 0 {
		d.checks |= checkTTL
		d.ttl, d.newTTL = l.ttl, p.TTL()
	}
	if looked.Depends&tables.DependsTOS != 0 {
		d.checks |= checkTOS
		d.tos, d.newTOS = l.tos, p.TOS()
	}
	if looked.Depends&tables.DependsCtStatus != 0 {
		if e.Status() != l.status {
			return
		}
		d.checks |= checkStatus
		d.status = l.status
	}
	if looked.Depends&tables.DependsCtMark != 0 {
		if w.marksOf(e) != l.marks {
			return
		}
		d.checks |= checkMarks
		d.ctmark, d.secmark, d.labels = l.marks.mark, l.marks.secmark, l.marks.labels
	}
	if looked.Depends&tables.DependsSets != 0 {
		if w.setGen() != l.setGen {
			return
		}
		d.checks |= checkSets
		d.setGen = l.setGen
	}
	d.mtu = uint32(mtuOf(p))
	if reason == 0 {
		d.out, d.ref = p.Out, p.Route
		if d.onLink = route != wordNoRoute && w.flowRoutes[route].onLink; d.onLink {
			d.ref.NextHop = [16]byte{}
		}
		if !w.rehearse(p, e, &d) {
			word.Store(w.mem.routeWord(route | wordTrying))
			return
		}
	}
	if i, ok := w.intern(&d); ok {
		word.Store(uint64(w.mem.tag)<<32 | wordDecision | uint64(i))
	}
}

// rehearse does to the packet as it came what d says: it must become what it is.
func (w *worker) rehearse(p *packet.Packet, e *conntrack.Entry, d *decision) bool {
	l := &w.learn
	s := l.scratch
	n := min(p.Len(), len(l.head))
	s.SetBytes(l.head[:n])
	s.Family, s.Proto, s.Flags, s.L4, s.GSO, s.In, s.Mark = p.Family, p.Proto, p.Flags, p.L4, p.GSO, p.In, l.mark
	d.carryOut(s, e, l.dir)
	return slices.Equal(s.Bytes(), p.Bytes()[:n]) && s.Route == p.Route
}

// carryOut does what d says to a packet.
func (d *decision) carryOut(p *packet.Packet, e *conntrack.Entry, dir conntrack.Dir) {
	p.Out, p.Route = d.out, d.ref
	if d.family == packet.IPv4 && d.checks&(checkTTL|checkTOS) == 0 && !p.GSO.NeedsCsum {
		nat.Forward(p, e, dir)
	} else {
		d.stepByStep(p, e, dir)
	}
	if d.onLink {
		p.Route.NextHop = p.Dst()
	}
}

// stepByStep changes the packet in the order of the whole way.
func (d *decision) stepByStep(p *packet.Packet, e *conntrack.Entry, dir conntrack.Dir) {
	nat.Translate(p, e, nat.Dst, dir)
	if d.checks&checkTOS != 0 && d.newTOS != d.tos {
		p.SetTOS(d.newTOS)
	}
	if d.checks&checkTTL != 0 {
		p.SetTTL(d.newTTL)
	} else {
		p.SetTTL(p.TTL() - 1)
	}
	nat.Translate(p, e, nat.Src, dir)
}

// intern finds d among the decisions, or adds it.
func (w *worker) intern(d *decision) (uint32, bool) {
	m := &w.mem
	trail := w.learn.trail.Counters
	h := d.hash(trail)
	if len(m.decisions)*2 >= len(m.index) {
		w.widen()
	}
	for at := h; ; at++ {
		i := m.index[at&uint64(len(m.index)-1)]
		if i == 0 {
			break
		}
		if x := &m.decisions[i-1]; x.decision == *d && slices.Equal(m.trails[x.from:x.to], trail) {
			return i - 1, true
		}
	}
	if len(m.decisions) == maxDecisions || len(m.trails)+len(trail) > maxTrails {
		w.forget() // and p's flow learns with its next packet
		return 0, false
	}
	from := uint32(len(m.trails))
	m.trails = append(m.trails, trail...)
	m.decisions = append(m.decisions, remembered{decision: *d, from: from, to: uint32(len(m.trails))})
	m.place(h, uint32(len(m.decisions)))
	return uint32(len(m.decisions) - 1), true
}

func (m *memory) place(h uint64, i uint32) {
	for at := h; ; at++ {
		if p := &m.index[at&uint64(len(m.index)-1)]; *p == 0 {
			*p = i
			return
		}
	}
}

// widen makes room in the index.
func (w *worker) widen() {
	m := &w.mem
	m.index = make([]uint32, max(256, 4*len(m.index)))
	for i := range m.decisions {
		d := &m.decisions[i]
		m.place(d.hash(m.trails[d.from:d.to]), uint32(i+1))
	}
}

func (d *decision) hash(trail []uint32) uint64 {
	const k = 0x9e3779b97f4a7c15
	h := uint64(d.minLen)<<32 | uint64(d.maxLen)
	for _, x := range [...]uint64{
		uint64(d.mark)<<32 | uint64(d.ctmark), uint64(d.status)<<32 | uint64(d.secmark), d.setGen,
		uint64(d.checks)<<56 | uint64(d.family)<<48 | uint64(d.info)<<40 | uint64(d.tos)<<32 | uint64(d.ttl)<<24 | uint64(d.tcpMask)<<16 | uint64(d.tcp)<<8 | uint64(d.newTTL),
		uint64(d.reason)<<48 | uint64(d.mtu)<<8 | uint64(d.newTOS), uint64(len(trail)), uint64(index(d.in))<<32 | uint64(index(d.out)),
	} {
		h = (h ^ x) * k
		h ^= h >> 29
	}
	for _, id := range trail {
		h = (h ^ uint64(id)) * k
		h ^= h >> 29
	}
	return h
}

func index(i *packet.Iface) int {
	if i == nil {
		return 0
	}
	return i.Index
}
