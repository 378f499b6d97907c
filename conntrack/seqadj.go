package conntrack

import "sluice/packet"

// offset is how far sequence number seq of the side with this adjustment has moved.
func (s *SeqAdj) offset(seq uint32) int32 {
	if after(seq, s.Pos) {
		return s.After
	}
	return s.Before
}

// ShiftSeq notes that delta bytes were added (or taken, if negative) to the
// payload of the segment that begins at seq: later segments of that direction,
// and what acknowledges them, are put right by Help.
func (w *Worker) ShiftSeq(e *Entry, d Dir, seq uint32, delta int32) bool {
	if delta == 0 {
		return true
	}
	x := w.t.ensureExt(e)
	if x == nil {
		return false
	}
	e.lock()
	s := &x.seq[d]
	if s.Before == s.After || before(s.Pos, seq) {
		s.Pos, s.Before = seq, s.After
		s.After += delta
	}
	e.unlock()
	e.SetStatus(SeqAdjust)
	e.Event(EventSeqAdj)
	return true
}

// seqOffset is the shift of seq in direction d; the claim is held.
func (t *Table) seqOffset(e *Entry, d Dir, seq uint32) int32 {
	if x := t.extOf(e); x != nil {
		return x.seq[d].offset(seq)
	}
	return 0
}

// SeqOffset is the shift of seq in direction d (what NAT adds to the sequence
// number of a quoted segment).
func (t *Table) SeqOffset(e *Entry, d Dir, seq uint32) int32 {
	e.lock()
	defer e.unlock()
	return t.seqOffset(e, d, seq)
}

// adjustSeq rewrites sequence number, acknowledgment and SACK blocks.
func (w *Worker) adjustSeq(p *packet.Packet, e *Entry) {
	th := p.Transport()
	x := w.t.extOf(e)
	if x == nil || len(th) < 20 {
		return
	}
	d := PacketDir(p)
	e.lock()
	mine, other := x.seq[d], x.seq[d^1]
	e.unlock()
	seq := be.Uint32(th[4:])
	set32(p, 4, seq+uint32(mine.offset(seq)))
	if th[13]&thAck == 0 {
		return
	}
	back := func(ack uint32) uint32 {
		if after(ack-uint32(other.Before), other.Pos) {
			return ack - uint32(other.After)
		}
		return ack - uint32(other.Before)
	}
	set32(p, 8, back(be.Uint32(th[8:])))
	if other.Before == 0 && other.After == 0 {
		return
	}
	opts := p.TCPOptions()
	for o, rest := packet.NextTCPOption(opts); o != nil; o, rest = packet.NextTCPOption(rest) {
		if o[0] != 5 || len(o) < 10 || (len(o)-2)%8 != 0 {
			continue
		}
		at := 20 + len(opts) - len(rest) - len(o)
		for j := 2; j < len(o); j += 4 {
			set32(p, at+j, back(be.Uint32(o[j:])))
		}
	}
}

// set32 writes four bytes of the transport header at any offset, with the checksum.
func set32(p *packet.Packet, at int, v uint32) {
	th := p.Transport()
	if at&1 == 0 {
		p.SetL4Word(at, uint16(v>>16))
		p.SetL4Word(at+2, uint16(v))
		return
	}
	if at+5 > len(th) {
		return
	}
	p.SetL4Word(at-1, uint16(th[at-1])<<8|uint16(v>>24))
	p.SetL4Word(at+1, uint16(v>>8))
	p.SetL4Word(at+3, uint16(v)<<8|uint16(th[at+4]))
}
