package conntrack

import "sluice/packet"

// tcpState is the claimed part of a TCP connection; SCTP, UDP and GRE use some
// of its words.
type tcpState struct {
	dir       [2]tcpDir
	opt       [2]tcpOpt
	lastSeq   uint32
	lastAck   uint32
	lastEnd   uint32
	state     uint8
	lastDir   uint8
	retrans   uint8
	lastIndex uint8
	lastWin   uint16
	lastScale uint8
	lastFlags uint8
}

// tcpDir is what one side has sent and offered (van Rooij, "Real stateful TCP
// packet filtering in IP Filter"): the highest sequence number seen, the
// highest it may send, the largest window it offered, the highest ACK.
type tcpDir struct {
	end, maxEnd, maxWin, maxAck uint32
}

// tcpOpt is what one side has said in its SYN's options, and what is noted of it.
type tcpOpt struct{ scale, flags uint8 }

// Flags of one direction, with the kernel's values.
const (
	tcpWindowScale uint8 = 0x01
	tcpSackPerm    uint8 = 0x02
	tcpCloseInit   uint8 = 0x04
	tcpLiberal     uint8 = 0x08
	tcpUnacked     uint8 = 0x10
	tcpMaxAckSet   uint8 = 0x20
	// In lastFlags only.
	tcpChallenge uint8 = 0x40
	tcpSimOpen   uint8 = 0x80
)

// What a segment is to the state machine.
const (
	segSyn uint8 = iota
	segSynAck
	segFin
	segAck
	segRst
	segNone
	numSegs
)

const (
	thFin = 0x01
	thSyn = 0x02
	thRst = 0x04
	thPsh = 0x08
	thAck = 0x10
	thUrg = 0x20
)

func segKind(flags uint8) uint8 {
	switch {
	case flags&thRst != 0:
		return segRst
	case flags&(thSyn|thAck) == thSyn|thAck:
		return segSynAck
	case flags&thSyn != 0:
		return segSyn
	case flags&thFin != 0:
		return segFin
	case flags&thAck != 0:
		return segAck
	}
	return segNone
}

// Results beside states.
const (
	tcpInvalid = numTCP     // no connection has this
	tcpIgnore  = numTCP + 1 // we may be out of step with the ends: let it pass, change nothing
)

// tcpNext is the transition table: [direction][segment][state].
var tcpNext = buildTCP()

// buildTCP writes down the machine of RFC 793 as somebody between the ends sees
// it, by what each segment means.
func buildTCP() (t [2][numSegs][numTCP]TCPState) {
	for d := range t {
		for s := range t[d] {
			for i := range t[d][s] {
				t[d][s][i] = tcpInvalid
			}
		}
	}
	set := func(d Dir, seg uint8, to TCPState, from ...TCPState) {
		for _, f := range from {
			t[d][seg][f] = to
		}
	}
	for _, d := range []Dir{Original, Reply} {
		// A FIN closes the sender's half: the first, then the second.
		set(d, segFin, TCPFinWait, TCPSynRecv, TCPEstablished)
		set(d, segFin, TCPLastAck, TCPFinWait, TCPCloseWait, TCPLastAck)
		set(d, segFin, TCPTimeWait, TCPTimeWait)
		set(d, segFin, TCPClose, TCPClose)
		// An ACK acknowledges the handshake or one of the FINs.
		set(d, segAck, TCPEstablished, TCPEstablished)
		set(d, segAck, TCPCloseWait, TCPFinWait, TCPCloseWait)
		set(d, segAck, TCPTimeWait, TCPLastAck, TCPTimeWait)
		set(d, segAck, TCPClose, TCPClose)
		// A RST ends everything that began.
		for s := TCPSynSent; s < numTCP; s++ {
			set(d, segRst, TCPClose, s)
		}
	}
	// The client's side.
	set(Original, segSyn, TCPSynSent, TCPNone, TCPSynSent, TCPTimeWait, TCPClose)
	set(Original, segSyn, TCPSynSent2, TCPSynSent2) // retransmitted in a simultaneous open
	set(Original, segSyn, tcpIgnore, TCPSynRecv, TCPEstablished, TCPFinWait, TCPCloseWait, TCPLastAck)
	set(Original, segSynAck, TCPSynRecv, TCPSynRecv, TCPSynSent2) // simultaneous open
	set(Original, segAck, TCPEstablished, TCPNone, TCPSynRecv)    // from nothing: picked up in the middle
	// The server's side.
	set(Reply, segSyn, TCPSynSent2, TCPSynSent, TCPSynSent2)
	set(Reply, segSyn, TCPSynSent, TCPTimeWait) // the server opens it again
	set(Reply, segSynAck, TCPSynRecv, TCPSynSent, TCPSynSent2)
	set(Reply, segSynAck, tcpIgnore, TCPSynRecv, TCPEstablished, TCPFinWait, TCPCloseWait, TCPLastAck, TCPTimeWait, TCPClose)
	set(Reply, segAck, TCPSynRecv, TCPSynRecv)
	set(Reply, segAck, tcpIgnore, TCPSynSent, TCPSynSent2) // may answer a SYN of an older connection
	return t
}

// after compares sequence numbers: a is later than b.
func after(a, b uint32) bool  { return int32(b-a) < 0 }
func before(a, b uint32) bool { return int32(a-b) < 0 }

// segment is what tracking needs of a TCP header.
type segment struct {
	seq, ack, end uint32
	win           uint16
	flags         uint8
	kind          uint8
	opts          []byte
}

// parseSegment reads a header whose length has been checked.
func parseSegment(th []byte) (s segment) {
	s.seq, s.ack, s.win, s.flags = be.Uint32(th[4:]), be.Uint32(th[8:]), be.Uint16(th[14:]), th[13]
	off := int(th[12]>>4) * 4
	s.opts = th[20:off]
	s.end = s.seq + uint32(len(th)-off)
	if s.flags&thSyn != 0 {
		s.end++
	}
	if s.flags&thFin != 0 {
		s.end++
	}
	s.kind = segKind(s.flags)
	return s
}

// tcpValid says whether a combination of flags can be; PSH, ECE and CWR go with any.
func tcpValid(flags uint8) bool {
	switch flags & (thFin | thSyn | thRst | thAck | thUrg) {
	case thSyn, thSyn | thUrg, thSyn | thAck, thRst, thRst | thAck,
		thFin | thAck, thFin | thAck | thUrg, thAck, thAck | thUrg:
		return true
	}
	return false
}

// options reads what a SYN says about scaling and SACK.
func (o *tcpOpt) options(opts []byte) {
	o.scale = 0
	o.flags &= tcpLiberal
	for b, rest := packet.NextTCPOption(opts); b != nil; b, rest = packet.NextTCPOption(rest) {
		switch {
		case b[0] == 4 && len(b) == 2:
			o.flags |= tcpSackPerm
		case b[0] == 3 && len(b) == 3:
			o.scale = min(b[2], 14)
			o.flags |= tcpWindowScale
		}
	}
}

// sack gives the highest sequence number that the SACK blocks acknowledge, from ack on.
func sack(opts []byte, ack uint32) uint32 {
	for o, rest := packet.NextTCPOption(opts); o != nil; o, rest = packet.NextTCPOption(rest) {
		if o[0] != 5 || len(o) < 10 || (len(o)-2)%8 != 0 {
			continue
		}
		for b := o[2:]; len(b) >= 8; b = b[8:] {
			if r := be.Uint32(b[4:]); after(r, ack) {
				ack = r
			}
		}
		break
	}
	return ack
}

// initSender takes a SYN's or SYN/ACK's word for what its sender may do.
func (c *tcpState) initSender(s *segment, dir Dir) {
	d, o, peer := &c.dir[dir], &c.opt[dir], &c.opt[dir^1]
	d.end, d.maxEnd = s.end, s.end
	d.maxWin = max(uint32(s.win), 1)
	o.options(s.opts)
	// RFC 7323: both sides must send the option to enable scaling in either.
	if dir == Reply && o.flags&peer.flags&tcpWindowScale == 0 {
		o.scale, peer.scale = 0, 0
	}
}

// newTCP starts the state of a connection from its first segment.
func (t *Table) newTCP(e *Entry, s *segment) bool {
	to := tcpNext[Original][s.kind][TCPNone]
	if to >= numTCP {
		return false
	}
	e.tcp = tcpState{lastIndex: segNone}
	d := &e.tcp.dir[Original]
	d.end, d.maxEnd = s.end, s.end
	d.maxWin = max(uint32(s.win), 1)
	if to == TCPSynSent {
		e.tcp.opt[Original].options(s.opts)
		return true
	}
	if t.sys.loose.Load() == 0 {
		return false
	}
	// In the middle of a connection: its scaling is unknown, so be liberal.
	d.maxEnd = d.end + d.maxWin
	for i := range e.tcp.opt {
		e.tcp.opt[i].flags = tcpSackPerm | tcpLiberal
	}
	return true
}

type windowResult uint8

const (
	windowOK windowResult = iota
	windowIgnore
	windowInvalid
)

// inWindow checks a segment against what both sides have said and learns from it.
func (t *Table) inWindow(e *Entry, dir Dir, s *segment) windowResult {
	c := &e.tcp
	from, to := &c.dir[dir], &c.dir[dir^1]
	said, heard := &c.opt[dir], &c.opt[dir^1]
	seq, end, ack := s.seq, s.end, s.ack
	win := uint32(s.win)
	sk := ack
	if heard.flags&tcpSackPerm != 0 {
		sk = sack(s.opts, ack)
	}
	if e.Status()&SeqAdjust != 0 {
		if off := t.seqOffset(e, dir^1, ack-1); off != 0 {
			ack -= uint32(off)
			sk -= uint32(off)
		}
	}
	state := TCPState(c.state)
	if from.maxWin == 0 {
		if s.flags&thSyn != 0 {
			c.initSender(s, dir)
			if s.flags&thAck == 0 { // simultaneous open
				return windowOK
			}
		} else {
			// In the middle of a connection whose beginning was not seen.
			from.end = end
			from.maxWin = max(win<<said.scale, 1)
			from.maxEnd = end + from.maxWin
			if to.maxWin == 0 {
				to.end, to.maxEnd = sk, sk
			} else if sk == to.end+1 { // answers a keepalive
				to.end++
			}
		}
	} else if s.flags&thSyn != 0 && after(end, from.end) && (state == TCPSynSent || state == TCPSynRecv) {
		// RFC 793: a TCP that starts anew need only use larger sequence numbers.
		c.initSender(s, dir)
		if dir == Reply && s.flags&thAck == 0 {
			return windowOK
		}
	}
	if s.flags&thAck == 0 || s.flags&thRst != 0 && ack == 0 {
		ack, sk = to.end, to.end
	}
	if s.flags&thRst != 0 && seq == 0 && state == TCPSynSent {
		seq, end = from.end, from.end // a RST that answers a SYN
	}

	res := windowOK
	ackWindow := max(from.maxWin, 66000)
	ackRecent := after(sk, to.end-ackWindow-1)
	inRecv := after(end, from.end-to.maxWin-1)
	switch {
	case !before(seq, from.maxEnd+1): // beyond what the receiver offered
		res = windowInvalid
		over := end - from.maxEnd + 1
		if to.maxWin != 0 && inRecv && ackRecent && over <= to.maxWin && before(sk, to.end+1) {
			// A sender that overdoes it a little: its data may be acknowledged all the same.
			from.end = end
			said.flags |= tcpUnacked
			res = windowIgnore
		}
	case !before(sk, to.end+1): // acknowledges what was not sent
		res = windowInvalid
	case to.maxWin != 0 && !inRecv: // retransmits what is acknowledged
		res = windowIgnore
	case !ackRecent: // an ACK from long ago
		res = windowIgnore
	}
	if res != windowOK {
		if t.liberal(said) {
			return windowOK
		}
		return res
	}

	if s.flags&thSyn == 0 {
		win <<= said.scale
	}
	from.maxWin = max(from.maxWin, win+(sk-ack))
	if after(end, from.end) {
		from.end = end
		said.flags |= tcpUnacked
	}
	if s.flags&thAck != 0 {
		if said.flags&tcpMaxAckSet == 0 {
			from.maxAck = ack
			said.flags |= tcpMaxAckSet
		} else if after(ack, from.maxAck) {
			from.maxAck = ack
		}
	}
	if to.maxWin != 0 && after(end, from.maxEnd) {
		to.maxWin += end - from.maxEnd
	}
	if after(sk+win, to.maxEnd-1) {
		to.maxEnd = sk + win
		if win == 0 {
			to.maxEnd++
		}
	}
	if ack == to.end {
		heard.flags &^= tcpUnacked
	}
	if s.kind == segAck {
		if Dir(c.lastDir) == dir && c.lastSeq == seq && c.lastAck == ack && c.lastEnd == end && c.lastWin == s.win {
			if c.retrans < 255 {
				c.retrans++
			}
		} else {
			c.lastDir, c.lastSeq, c.lastAck, c.lastEnd, c.lastWin, c.retrans = uint8(dir), seq, ack, end, s.win, 0
		}
	}
	return windowOK
}

func (t *Table) liberal(o *tcpOpt) bool {
	return o.flags&tcpLiberal != 0 || t.sys.liberal.Load() != 0
}

// trackTCP takes one segment through the state machine.
func (w *Worker) trackTCP(p *packet.Packet, e *Entry, idx uint32, hook uint8) result {
	t := w.t
	th := p.Transport()
	switch {
	case len(th) < 20:
		return w.invalid("short packet")
	case th[12]>>4 < 5 || int(th[12]>>4)*4 > len(th):
		return w.invalid("truncated packet")
	case !w.checksumOK(p, hook):
		return w.invalid("bad checksum")
	case !tcpValid(th[13]):
		return w.invalid("invalid tcp flag combination")
	}
	s := parseSegment(th)
	dir := PacketDir(p)
	status := e.Status()
	if status&Confirmed == 0 {
		if !t.newTCP(e, &s) {
			return w.invalid("no connection begins with this")
		}
	}
	e.lock()
	c := &e.tcp
	old := TCPState(c.state)
	next := tcpNext[dir][s.kind][old]
	checked := false
	switch next {
	case TCPSynSent:
		if old < TCPTimeWait {
			break
		}
		// A closed or aborted connection is opened again: start from nothing.
		if (c.opt[0].flags|c.opt[1].flags)&tcpCloseInit != 0 || Dir(c.lastDir) == dir && c.lastIndex == segRst {
			e.unlock()
			if t.kill(w, e, idx) {
				return resRepeat
			}
			return resDrop
		}
		if res, done := w.ignoredTCP(e, dir, &s, &old, &next); done {
			return res
		}
	case tcpIgnore:
		if res, done := w.ignoredTCP(e, dir, &s, &old, &next); done {
			return res
		}
	case tcpInvalid:
		if e.Synproxied() && old == TCPSynSent && s.kind == segAck && dir == Original && Dir(c.lastDir) == Original && c.dir[dir].end-1 == s.seq {
			// The client of SYNPROXY probes a window of 0: the server was not heard.
			e.unlock()
			return resAccept
		}
		e.unlock()
		return w.invalid("packet does not fit the state")
	case TCPTimeWait:
		// RFC 5961: the ACK after a spurious SYN is no ACK of the last FIN.
		if old == TCPLastAck && s.kind == segAck && Dir(c.lastDir) != dir && c.lastIndex == segSyn && c.lastFlags&tcpChallenge != 0 {
			c.lastFlags &^= tcpChallenge
			e.unlock()
			return resAccept
		}
	case TCPSynSent2:
		c.lastFlags |= tcpSimOpen
	case TCPSynRecv:
		if dir == Reply && s.kind == segAck && c.lastFlags&tcpSimOpen != 0 {
			next = TCPEstablished
		}
	case TCPClose:
		if s.kind != segRst {
			break
		}
		if closingTCP(old) {
			checked = true // the tuple may be in use again: what was noted is of no worth
			break
		}
		// After a SYN that was let through, maxAck may be the old connection's.
		if peer := &c.dir[dir^1]; c.opt[dir^1].flags&tcpMaxAckSet != 0 && c.lastIndex != segSyn {
			established := old == TCPEstablished && status&Assured != 0
			if s.seq == 0 && !established {
				break // answers a SYN that was let through
			}
			if before(s.seq, peer.maxAck) && t.sys.ignoreRST.Load() == 0 {
				e.unlock()
				return w.invalid("invalid rst")
			}
			if !established || s.seq == peer.maxAck ||
				c.lastIndex == segAck && Dir(c.lastDir) == dir && s.seq == c.lastEnd {
				break
			}
			next = old // RFC 5961: not exact, so the receiver may challenge it
		}
		if Dir(c.lastDir) != dir && s.ack == c.lastEnd && (status&SeenReply != 0 && c.lastIndex == segSyn || status&Assured == 0 && c.lastIndex == segAck) {
			checked = true // answers something that was let through unseen
		} else if old == TCPSynSent && c.lastIndex == segAck && Dir(c.lastDir) == Reply && s.seq == c.lastAck {
			checked = true // answers a challenge ACK that was let through
		}
	}
	if !checked {
		switch t.inWindow(e, dir, &s) {
		case windowIgnore:
			e.unlock()
			return resAccept
		case windowInvalid:
			w.invalidClose(e, dir, &s)
			e.unlock()
			return w.invalid("out of window")
		}
	}
	c.lastIndex, c.lastDir, c.state = s.kind, uint8(dir), uint8(next)
	if old != next && next == TCPFinWait {
		c.opt[dir].flags |= tcpCloseInit
	}
	timeout := t.tcpTimeout(e, next)
	switch retrans, unacked := t.tcpTimeout2(e, tcpRetrans), t.tcpTimeout2(e, tcpUnack); {
	case int64(c.retrans) >= t.sys.maxRetrans.Load() && timeout > retrans:
		timeout = retrans
	case s.kind == segRst:
		timeout = t.tcpTimeout(e, TCPClose)
	case (c.opt[0].flags|c.opt[1].flags)&tcpUnacked != 0 && timeout > unacked:
		timeout = unacked
	case c.lastWin == 0 && timeout > retrans:
		timeout = retrans
	}
	e.unlock()
	if old != next {
		e.Event(EventProtoInfo)
	}
	if status&SeenReply == 0 {
		if s.kind == segRst {
			// Nothing but a RST came back: there is no connection to keep.
			if status&Confirmed != 0 {
				w.account(p, e, dir)
				t.kill(w, e, idx)
			}
			return resAccept
		}
		if s.kind == segSyn && old == TCPSynSent {
			return resAccept // a retransmitted SYN keeps nothing alive
		}
		if next == TCPEstablished {
			timeout = min(timeout, t.tcpTimeout2(e, tcpUnack))
		}
	} else if status&Assured == 0 && (old == TCPSynRecv || old == TCPEstablished) && next == TCPEstablished {
		e.SetStatus(Assured)
		e.Event(EventAssured)
	}
	w.refresh(p, e, dir, timeout)
	return resAccept
}

// SetClosing makes p's connection a closed one, because one of its ends is being
// sent a reset that conntrack does not look at (REJECT, nf_ct_set_closing).
func (w *Worker) SetClosing(p *packet.Packet) {
	e := w.Entry(p)
	if e == nil || e.orig.Proto != packet.ProtoTCP || e.Status()&Confirmed == 0 {
		return
	}
	e.lock()
	e.tcp.state = uint8(TCPClose)
	timeout := w.t.tcpTimeout(e, TCPClose)
	e.unlock()
	if e.Status()&FixedTimeout == 0 {
		e.expiry.Store(w.now + timeout)
	}
	e.Event(EventProtoInfo)
}

// closingTCP: the connection is on its way out.
func closingTCP(s TCPState) bool {
	switch s {
	case TCPFinWait, TCPCloseWait, TCPLastAck, TCPTimeWait, TCPClose:
		return true
	}
	return false
}

// ignoredTCP handles a segment that hints that the ends are in step with each
// other and we are not. done: the claim is given back and the packet is through.
func (w *Worker) ignoredTCP(e *Entry, dir Dir, s *segment, old, next *TCPState) (res result, done bool) {
	c := &e.tcp
	if s.kind == segSynAck && c.lastIndex == segSyn && Dir(c.lastDir) != dir && s.ack == c.lastEnd {
		// It acknowledges a SYN that was let through: go on from what that said.
		*old, *next = TCPSynSent, TCPSynRecv
		d := &c.dir[c.lastDir]
		d.end, d.maxEnd = c.lastEnd, c.lastEnd
		d.maxWin = max(uint32(c.lastWin), 1)
		c.lastFlags &^= tcpChallenge
		c.opt[c.lastDir] = tcpOpt{c.lastScale, c.lastFlags}
		c.dir[dir], c.opt[dir] = tcpDir{}, tcpOpt{flags: c.opt[dir].flags & tcpLiberal}
		return 0, false
	}
	c.lastIndex, c.lastDir = s.kind, uint8(dir)
	c.lastSeq, c.lastEnd, c.lastWin = s.seq, s.end, s.win
	if s.kind == segSyn && dir == Original {
		var seen tcpOpt
		seen.options(s.opts)
		c.lastFlags = seen.flags & (tcpWindowScale | tcpSackPerm)
		c.lastScale = seen.scale
		if *old == TCPLastAck {
			c.lastFlags |= tcpChallenge
		}
	}
	if *old == TCPSynSent && s.kind == segAck && dir == Reply { // perhaps a challenge ACK
		c.lastAck = s.ack
	}
	e.unlock()
	return resAccept, true
}

// invalidClose shortens the life of a connection both of whose sides close it
// in ways that do not fit what was seen: it is out of step, not alive.
func (w *Worker) invalidClose(e *Entry, dir Dir, s *segment) {
	if st := e.Status(); st&Assured == 0 || st&FixedTimeout != 0 || s.kind != segRst && s.kind != segFin {
		return
	}
	c := &e.tcp
	if Dir(c.lastDir) != dir && (c.lastIndex == segFin || c.lastIndex == segRst) {
		left := e.Timeout(w.now)
		if unack := w.t.tcpTimeout2(e, tcpUnack); left >= 120*second && left > unack {
			e.expiry.Store(w.now + unack)
		}
		return
	}
	c.lastIndex, c.lastDir = s.kind, uint8(dir)
}

func (t *Table) tcpTimeout(e *Entry, s TCPState) int64 { return t.tcpTimeout2(e, int(s)) }

func (t *Table) tcpTimeout2(e *Entry, row int) int64 {
	return t.timeout(e, row, secondsOf(t.sys.tcp[row]))
}
