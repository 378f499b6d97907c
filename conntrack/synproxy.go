package conntrack

import "sluice/packet"

// Synproxy is what a connection behind SYNPROXY keeps. The client had its
// SYN/ACK before the server was asked, so the server's sequence numbers and
// timestamps have to be moved to what was said there.
type Synproxy struct {
	ISN   uint32 // the cookie
	ITS   uint32 // the timestamp that went with it
	TSOff uint32 // how far the server's timestamps are ahead of that
	Shift int32  // of the server's sequence numbers, from its next segment on …
	Due   bool   // … which has not been yet
}

// Synproxied says whether e began with a packet of SYNPROXY's.
func (e *Entry) Synproxied() bool { return e.flags&entrySynproxy != 0 }

// Synproxy is e's state; the zero value if it has none.
func (t *Table) Synproxy(e *Entry) (s Synproxy) {
	if x := t.extOf(e); x != nil {
		e.lock()
		s = x.synproxy
		e.unlock()
	}
	return s
}

// SetSynproxy stores e's state.
func (t *Table) SetSynproxy(e *Entry, s Synproxy) {
	if x := t.extOf(e); x != nil {
		e.lock()
		x.synproxy = s
		e.unlock()
	}
}

// InitSeq moves all sequence numbers of direction d by off; 0 changes nothing.
func (t *Table) InitSeq(e *Entry, d Dir, off int32) {
	x := t.ensureExt(e)
	if off == 0 || x == nil {
		return
	}
	e.lock()
	x.seq[d].Before, x.seq[d].After = off, off
	e.unlock()
	e.SetStatus(SeqAdjust)
}

// TCPWindow is the largest window that a side has offered, in bytes.
func (e *Entry) TCPWindow(d Dir) uint32 {
	e.lock()
	defer e.unlock()
	return e.tcp.dir[d].maxWin
}

// MoveTimestamp moves the timestamp that is the server's: its own in the reply
// direction, the echoed one in the other.
func (w *Worker) MoveTimestamp(p *packet.Packet, off uint32) {
	if off == 0 {
		return
	}
	at, by := 6, off
	if p.CtInfo.Reply() {
		at, by = 2, -off
	}
	opts := p.TCPOptions()
	for o, rest := packet.NextTCPOption(opts); o != nil; o, rest = packet.NextTCPOption(rest) {
		if o[0] == 8 && len(o) == 10 {
			set32(p, 20+len(opts)-len(rest)-len(o)+at, be.Uint32(o[at:])+by)
			return
		}
	}
}
