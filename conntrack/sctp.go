package conntrack

import "sluice/packet"

// SCTP chunk types (RFC 9260) that mean something here.
const (
	chunkData             = 0
	chunkInit             = 1
	chunkInitAck          = 2
	chunkHeartbeat        = 4
	chunkHeartbeatAck     = 5
	chunkAbort            = 6
	chunkShutdown         = 7
	chunkShutdownAck      = 8
	chunkError            = 9
	chunkCookieEcho       = 10
	chunkCookieAck        = 11
	chunkShutdownComplete = 14
	numChunks             = 15
)

const sctpInvalid = numSCTP

// sctpNext is the transition table: [direction][chunk][state].
var sctpNext = buildSCTP()

// buildSCTP starts from "nothing changes" and writes down what each chunk does.
func buildSCTP() (t [2][numChunks][numSCTP]SCTPState) {
	const (
		no = SCTPNone
		cl = SCTPClosed
		cw = SCTPCookieWait
		ce = SCTPCookieEchoed
		es = SCTPEstablished
		ss = SCTPShutdownSent
		sr = SCTPShutdownRecd
		sa = SCTPShutdownAckSent
		hs = SCTPHeartbeatSent
	)
	for d := range t {
		for c := range t[d] {
			for s := range t[d][c] {
				t[d][c][s] = SCTPState(s)
			}
		}
	}
	set := func(d Dir, chunk int, to SCTPState, from ...SCTPState) {
		for _, f := range from {
			t[d][chunk][f] = to
		}
	}
	control := []int{chunkInit, chunkInitAck, chunkHeartbeat, chunkHeartbeatAck, chunkAbort, chunkShutdown,
		chunkShutdownAck, chunkError, chunkCookieEcho, chunkCookieAck, chunkShutdownComplete}
	for _, c := range control {
		// A control chunk that nothing preceded leaves a closed association, in
		// reply to nothing it is invalid; only heartbeats may follow a heartbeat.
		set(Original, c, cl, no, hs)
		set(Reply, c, sctpInvalid, no, hs)
	}
	for _, d := range []Dir{Original, Reply} {
		set(d, chunkAbort, cl, cw, ce, es, ss, sr, sa)
		set(d, chunkShutdownAck, sa, ss, sr)
		set(d, chunkShutdownComplete, cl, sa)
		set(d, chunkCookieEcho, ce, cw)
		set(d, chunkCookieAck, es, ce)
		set(d, chunkHeartbeat, hs, hs)
	}
	set(Original, chunkInit, cl, ss, sr) // the client starts anew
	set(Original, chunkInit, cw, hs)
	set(Original, chunkShutdown, ss, es)
	set(Original, chunkShutdownAck, sa, no, hs)
	set(Original, chunkHeartbeat, hs, no)
	set(Original, chunkHeartbeatAck, hs, hs)

	set(Reply, chunkInitAck, cw, cl)
	set(Reply, chunkShutdown, sr, es)
	set(Reply, chunkError, cl, ce) // stale cookie
	set(Reply, chunkHeartbeatAck, es, hs)
	return t
}

func sctpState(d Dir, chunk uint8, from SCTPState) SCTPState {
	if int(chunk) < numChunks {
		return sctpNext[d][chunk][from]
	}
	return from
}

// sctpTagFailed in tcpState.lastFlags: a heartbeat came with a new tag.
const sctpTagFailed = 1

// vtag is the verification tag of one direction; sctpInit whether an INIT has
// run in it. They live in words that SCTP has no other use for.
func (s *tcpState) vtag(d Dir) *uint32 {
	if d == Reply {
		return &s.lastAck
	}
	return &s.lastSeq
}

func (s *tcpState) sctpInit(d Dir) *uint32 { return &s.dir[d].end }

type chunkSet [4]uint64

func (c *chunkSet) add(t uint8)      { c[t>>6] |= 1 << (t & 63) }
func (c *chunkSet) has(t uint8) bool { return c[t>>6]>>(t&63)&1 != 0 }

// chunks lists the chunk types of a packet; false if it is malformed: no chunk,
// one without a length, or one that must be first or alone and is not.
func (c *chunkSet) scan(b []byte) bool {
	count, alone := 0, false
	for len(b) >= 4 {
		typ, size := b[0], int(be.Uint16(b[2:]))
		if typ == chunkInit || typ == chunkInitAck || typ == chunkShutdownComplete {
			alone = true
		}
		if size == 0 || count > 0 && (alone || typ == chunkCookieAck || typ == chunkCookieEcho) {
			return false
		}
		c.add(typ)
		count++
		if size = (size + 3) &^ 3; size >= len(b) {
			break
		}
		b = b[size:]
	}
	return count > 0
}

// newSCTP starts an association; each chunk of its first packet must be one
// that can.
func newSCTP(e *Entry, vtag uint32, b []byte) bool {
	e.tcp = tcpState{}
	for len(b) >= 4 {
		typ := b[0]
		if to := sctpState(Original, typ, SCTPNone); to == SCTPNone || to == sctpInvalid {
			return false
		}
		switch typ {
		case chunkInit:
			if vtag != 0 || len(b) < 8 {
				return false
			}
			*e.tcp.vtag(Reply) = be.Uint32(b[4:])
		case chunkHeartbeat:
			*e.tcp.vtag(Original) = vtag
		case chunkShutdownAck: // out of the blue: the answer carries the same tag (RFC 9260 8.4)
			*e.tcp.vtag(Reply) = vtag
		}
		size := (int(be.Uint16(b[2:])) + 3) &^ 3
		if size >= len(b) {
			break
		}
		b = b[size:]
	}
	return true
}

// trackSCTP takes the chunks of a packet through the state machine and checks
// the verification tags (RFC 9260 8.5).
func (w *Worker) trackSCTP(p *packet.Packet, e *Entry, hook uint8) result {
	t := w.t
	b := p.Transport()
	var seen chunkSet
	switch {
	case len(b) < 12:
		return w.invalid("short packet")
	case !w.checksumOK(p, hook):
		return w.invalid("bad checksum")
	case !seen.scan(b[12:]):
		return w.invalid("malformed chunks")
	}
	vtag, chunks := be.Uint32(b[4:]), b[12:]
	dir := PacketDir(p)
	status := e.Status()
	if status&Confirmed == 0 {
		if seen.has(chunkAbort) || seen.has(chunkShutdownComplete) || seen.has(chunkCookieAck) || !newSCTP(e, vtag, chunks) {
			return w.invalid("no association begins with this")
		}
	}
	e.lock()
	c := &e.tcp
	special := seen.has(chunkInit) || seen.has(chunkShutdownComplete) || seen.has(chunkCookieEcho) || seen.has(chunkAbort) ||
		seen.has(chunkShutdownAck) || seen.has(chunkHeartbeat) || seen.has(chunkHeartbeatAck)
	if !special && vtag != *c.vtag(dir) {
		e.unlock()
		return w.invalid("wrong verification tag")
	}
	ignore, changed := false, false
	state := SCTPState(c.state)
	for len(chunks) >= 4 {
		next, verdict := c.sctpChunk(dir, vtag, chunks, state, &seen, &ignore, status&Confirmed != 0)
		if verdict == chunkBad {
			e.unlock()
			return w.invalid("chunk does not fit the state")
		}
		if verdict == chunkOK {
			if next != state {
				changed = true
				if next == SCTPEstablished {
					w.assure(e)
				}
			}
			state = next
			c.state = uint8(state)
		}
		size := (int(be.Uint16(chunks[2:])) + 3) &^ 3
		if size >= len(chunks) {
			break
		}
		chunks = chunks[size:]
	}
	e.unlock()
	if changed {
		e.Event(EventProtoInfo)
	}
	if ignore {
		return resAccept
	}
	w.refresh(p, e, dir, t.timeout(e, int(state), secondsOf(t.sys.sctp[state])))
	return resAccept
}

type chunkVerdict uint8

const (
	chunkOK chunkVerdict = iota
	chunkSkip
	chunkBad
)

func (c *tcpState) sctpChunk(dir Dir, vtag uint32, b []byte, state SCTPState, seen *chunkSet, ignore *bool, confirmed bool) (SCTPState, chunkVerdict) {
	typ, flagT := b[0], b[1]&1 != 0
	mine, peers := c.vtag(dir), c.vtag(dir^1)
	switch typ {
	case chunkInit:
		if vtag != 0 {
			return 0, chunkBad
		}
	case chunkAbort, chunkShutdownComplete: // the T flag reflects the sender's own tag
		if !flagT && vtag != *mine || flagT && vtag != *peers {
			return 0, chunkBad
		}
	case chunkCookieEcho:
		if vtag != *mine {
			return 0, chunkBad
		}
	case chunkCookieAck: // both sides agree: no INIT is open
		*c.sctpInit(dir), *c.sctpInit(dir ^ 1) = 0, 0
	case chunkHeartbeat:
		switch {
		case *mine == 0:
			*mine = vtag
		case vtag != *mine:
			if seen.has(chunkData) || *ignore {
				return 0, chunkBad
			}
			c.lastFlags |= sctpTagFailed
			c.lastDir = uint8(dir)
			*ignore = true
			return 0, chunkSkip
		default:
			c.lastFlags &^= sctpTagFailed
		}
	case chunkHeartbeatAck:
		switch {
		case *mine == 0:
			*mine = vtag
		case vtag != *mine:
			if seen.has(chunkData) || *ignore || c.lastFlags&sctpTagFailed == 0 || Dir(c.lastDir) == dir {
				return 0, chunkBad
			}
			c.lastFlags &^= sctpTagFailed
			*mine, *peers = vtag, 0
		default:
			c.lastFlags &^= sctpTagFailed
		}
	}
	next := sctpState(dir, typ, state)
	if next == sctpInvalid {
		return 0, chunkBad
	}
	switch typ {
	case chunkInit:
		if len(b) < 8 {
			return 0, chunkBad
		}
		if confirmed && next == SCTPClosed && state == SCTPClosed {
			*ignore = true // a retransmitted INIT keeps nothing alive
		}
		tag := be.Uint32(b[4:])
		if confirmed && tag == *peers {
			break // and one whose tag is known opens nothing anew
		}
		*peers = tag
		if *c.sctpInit(dir) != 0 && *c.sctpInit(dir ^ 1) != 0 {
			*c.sctpInit(dir ^ 1) = 0
		}
		*c.sctpInit(dir) = 1
	case chunkInitAck:
		if len(b) < 8 {
			return 0, chunkBad
		}
		tag := be.Uint32(b[4:])
		collides := *c.sctpInit(dir) != 0 && *c.sctpInit(dir ^ 1) != 0
		if *peers != tag && (collides || *c.sctpInit(dir ^ 1) == 0 && *peers != 0) {
			return 0, chunkBad
		}
		*peers = tag
	}
	return next, chunkOK
}
