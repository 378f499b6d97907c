package conntrack

import "sluice/packet"

// Snapshot is a plain copy of a connection, or what one is to be made of.
type Snapshot struct {
	Index, Gen uint32 // name the connection while it lives
	ID         uint32 // as `conntrack -o id` prints it
	Orig       Tuple
	Reply      Tuple
	Status     Status
	Mark       uint32
	SecMark    uint32
	Zone       uint16
	ZoneDir    ZoneDir
	Timeout    uint32 // seconds left
	TCP        TCPInfo
	SCTP       SCTPState
	SCTPVTag   [2]uint32
	Counted    bool // Packets and Bytes mean something
	Packets    [2]uint64
	Bytes      [2]uint64
	Stamped    bool  // Start means something
	Start      int64 // wall clock, ns since 1970
	Stop       int64 // 0 while it lives
	Labels     [16]byte
	HasLabels  bool
	Helper     string
	HasMaster  bool
	Master     Tuple // the master's original tuple
	SeqAdj     [2]SeqAdj
	MasqIface  int
}

// TCPInfo is what a dump tells of a TCP connection.
type TCPInfo struct {
	State TCPState
	Scale [2]uint8
	Flags [2]uint8
}

// Name gives the state word that `conntrack -L` prints for the protocol, "" if
// the protocol has none.
func (s *Snapshot) Name() string {
	switch s.Orig.Proto {
	case packet.ProtoTCP:
		return s.TCP.State.String()
	case packet.ProtoSCTP:
		return s.SCTP.String()
	}
	return ""
}

// fill copies e; the claim is held meanwhile.
func (t *Table) fill(s *Snapshot, e *Entry, idx uint32, now int64) {
	s.Index, s.Gen = idx, e.gen.Load()
	s.ID = t.publicID(idx, s.Gen)
	e.lock()
	s.Orig, s.Reply = e.orig, e.reply
	s.Status = e.Status()
	s.Mark, s.SecMark = e.Mark(), t.SecMark(e)
	s.Zone, s.ZoneDir = e.Zone()
	s.Timeout = uint32(e.Timeout(now) / second)
	switch e.orig.Proto {
	case packet.ProtoTCP:
		s.TCP.State = TCPState(e.tcp.state)
		for d := range 2 {
			s.TCP.Scale[d], s.TCP.Flags[d] = e.tcp.opt[d].scale, e.tcp.opt[d].flags
		}
	case packet.ProtoSCTP:
		s.SCTP, s.SCTPVTag = SCTPState(e.tcp.state), [2]uint32{e.tcp.lastSeq, e.tcp.lastAck}
	}
	s.Counted = e.flags&entryAcct != 0
	for d := range 2 {
		s.Packets[d], s.Bytes[d] = t.Counters(idx, Dir(d))
	}
	s.MasqIface = e.MasqIface()
	if h := t.helperOf(e.helper); h != nil {
		s.Helper = h.Name
	}
	if x := t.extOf(e); x != nil {
		s.Labels = x.loadLabels()
		s.HasLabels = s.Labels != [16]byte{}
		s.Stamped, s.Start, s.Stop = x.start != 0, x.start, x.stop
		s.SeqAdj = x.seq
		s.HasMaster, s.Master = x.hasMaster, x.masterTuple
	}
	e.unlock()
}
