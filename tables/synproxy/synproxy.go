// Package synproxy answers SYNs in a server's place, without keeping anything of
// them, and opens the connection to the server once the client has proved that
// it is there: the target SYNPROXY, and the stage that sits between the two
// halves of such a connection. The way is that of Linux's nf_synproxy_core.
package synproxy

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/internal/sysctl"
	"sluice/packet"
)

// Why a packet was dropped.
var (
	ReasonCookie    = packet.NewReason("synproxy.cookie_invalid", "a client's ACK that acknowledges no cookie of SYNPROXY's, or too old a one")
	ReasonMalformed = packet.NewReason("synproxy.malformed", "a segment for SYNPROXY with a wrong checksum or header")
	ReasonNoPacket  = packet.NewReason("synproxy.no_buffer", "no room for what SYNPROXY has to send")
)

// Stats are the counters of /proc/net/stat/synproxy, under its names.
type Stats struct {
	SYNReceived   uint64 `json:"syn_received"`
	CookieInvalid uint64 `json:"cookie_invalid"`
	CookieValid   uint64 `json:"cookie_valid"`
	CookieRetrans uint64 `json:"cookie_retrans"`
	ConnReopened  uint64 `json:"conn_reopened"`
}

// counters are one worker's; the padding keeps them off the others' cache lines.
type counters struct {
	syn, invalid, valid, retrans, reopened atomic.Uint64
	_                                      [24]byte
}

// Proxy is a router's. Its methods may be called by all workers at once.
type Proxy struct {
	key      [2]uint64
	clock    uint32 // ms: what the timestamps are ahead of the router's clock
	ct       *conntrack.Table
	template *conntrack.Template
	ttl      [2]*sysctl.Var
	counters []counters
	used     atomic.Bool
}

// New makes a Proxy for so many workers, with a secret of its own.
func New(ct *conntrack.Table, s *sysctl.Set, workers int) *Proxy {
	var b [20]byte
	rand.Read(b[:]) // never fails
	le := binary.LittleEndian
	return &Proxy{
		key: [2]uint64{le.Uint64(b[:]), le.Uint64(b[8:])}, clock: le.Uint32(b[16:]),
		ct: ct, template: ct.Template(conntrack.Template{Synproxy: true}),
		ttl:      [2]*sysctl.Var{s.Lookup("net.ipv4.ip_default_ttl"), s.Lookup("net.ipv6.conf.all.hop_limit")},
		counters: make([]counters, workers),
	}
}

// Use says that there is a rule; Used, whether there ever was one.
func (x *Proxy) Use() { x.used.Store(true) }

// Used reports whether connections may have been opened through the proxy.
func (x *Proxy) Used() bool { return x.used.Load() }

// Stats reads the counters.
func (x *Proxy) Stats() (s Stats) {
	for i := range x.counters {
		c := &x.counters[i]
		s.SYNReceived += c.syn.Load()
		s.CookieInvalid += c.invalid.Load()
		s.CookieValid += c.valid.Load()
		s.CookieRetrans += c.retrans.Load()
		s.ConnReopened += c.reopened.Load()
	}
	return s
}

// Out is the worker that has the packet at hand.
type Out struct {
	CT    *conntrack.Worker
	Alloc func() *packet.Packet  // nil: there is none
	Send  func(p *packet.Packet) // through OUTPUT, once the packet at hand has ended
}

// Target is the target SYNPROXY; Accept: the next rule.
func (x *Proxy) Target(o *Out, p *packet.Packet, rule *Options) hooks.Verdict {
	var opts Options
	if p.Proto != packet.ProtoTCP || p.Flags&packet.HasL4 == 0 || !p.VerifyL4() || !opts.parse(p.Transport()) {
		return drop(p, ReasonMalformed)
	}
	const handshake = packet.TCPSyn | packet.TCPAckFlag | packet.TCPFin | packet.TCPRst
	switch p.TCPFlags() & handshake {
	case packet.TCPSyn:
		return x.answerSYN(o, p, &opts, rule)
	case packet.TCPAckFlag:
		return x.clientACK(o, p, &opts, p.TCPSeq())
	}
	return hooks.Accept
}

// answerSYN sends the SYN/ACK that a client's SYN asks for. Its window is 0, so
// that the client sends nothing before the server is there.
func (x *Proxy) answerSYN(o *Out, p *packet.Packet, opts, rule *Options) hooks.Verdict {
	x.counters[p.Worker].syn.Add(1)
	if f := p.TCPFlags(); f&packet.TCPEce != 0 && f&packet.TCPCwr != 0 {
		opts.Has |= ECN
	}
	opts.Has &= rule.Has
	mss := opts.MSS
	opts.MSS = rule.MSS
	if opts.Has&Timestamp != 0 {
		opts.keep(rule, x.clock+uint32(p.Now/1e6))
	} else {
		opts.Has &^= WScale | SACKPerm | ECN
	}
	s := segment{back: true, seq: x.cookie(p, mss), ack: p.TCPSeq() + 1, flags: packet.TCPSyn | packet.TCPAckFlag}
	if opts.Has&ECN != 0 {
		s.flags |= packet.TCPEce
	}
	n := x.build(o, p, &s, opts)
	if n == nil {
		return drop(p, ReasonNoPacket)
	}
	answers(o, n, p)
	o.Send(n)
	return hooks.Stolen
}

// clientACK opens the connection to the server for a client that acknowledges
// a cookie; seq is that of its first byte.
func (x *Proxy) clientACK(o *Out, p *packet.Packet, opts *Options, seq uint32) hooks.Verdict {
	c := &x.counters[p.Worker]
	mss := x.check(p)
	if mss == 0 {
		c.invalid.Add(1)
		return drop(p, ReasonCookie)
	}
	c.valid.Add(1)
	opts.MSS = mss
	opts.Has |= MSS
	if opts.Has&Timestamp != 0 {
		opts.recover()
	}
	// Acknowledgement and echoed timestamp tell Hook what the client was told.
	s := segment{seq: seq - 1, ack: p.TCPAck() - 1, flags: packet.TCPSyn, window: p.TCPWindow()}
	if opts.Has&ECN != 0 {
		s.flags |= packet.TCPEce | packet.TCPCwr
	}
	n := x.build(o, p, &s, opts)
	if n == nil {
		return drop(p, ReasonNoPacket)
	}
	o.CT.SetTemplate(n, x.template)
	o.Send(n)
	return hooks.Stolen
}

// Hook is the stage before confirm at INPUT and POSTROUTING.
func (x *Proxy) Hook(o *Out, p *packet.Packet) hooks.Verdict {
	e := o.CT.Entry(p)
	if e == nil || !e.Synproxied() || p.Proto != packet.ProtoTCP || p.Flags&packet.Loopback != 0 {
		return hooks.Accept
	}
	if p.Flags&packet.HasL4 == 0 {
		return drop(p, ReasonMalformed)
	}
	const handshake = packet.TCPSyn | packet.TCPAckFlag
	dir, flags := conntrack.PacketDir(p), p.TCPFlags()
	st := x.ct.Synproxy(e)
	var opts Options
	switch e.TCPState() {
	case conntrack.TCPClose:
		if flags&packet.TCPRst != 0 && dir == conntrack.Reply {
			x.ct.InitSeq(e, dir, int32(st.ISN-p.TCPSeq()+1))
			break
		}
		if flags&handshake != packet.TCPSyn || dir == conntrack.Reply {
			break
		}
		// It is opened again: what was said before does not hold.
		st.TSOff = 0
		x.counters[p.Worker].reopened.Add(1)
		return x.serverSYN(o, p, e, st)
	case conntrack.TCPSynSent:
		if flags&handshake == packet.TCPAckFlag && dir == conntrack.Original {
			// The client probes: the server has not answered yet.
			if !opts.parse(p.Transport()) {
				return drop(p, ReasonMalformed)
			}
			v := x.clientACK(o, p, &opts, p.TCPSeq()+1)
			if v == hooks.Stolen {
				x.counters[p.Worker].retrans.Add(1)
			}
			return v
		}
		return x.serverSYN(o, p, e, st)
	case conntrack.TCPSynRecv:
		if flags&handshake == handshake {
			return x.serverAnswer(o, p, e, st)
		}
	}
	if st.Due && dir == conntrack.Reply {
		// Only from here on: the ACK to the server, sent before, has its own numbers.
		x.ct.InitSeq(e, dir, st.Shift)
		st.Due = false
		x.ct.SetSynproxy(e, st)
		e.Event(conntrack.EventSeqAdj)
	}
	o.CT.MoveTimestamp(p, st.TSOff)
	return hooks.Accept
}

// serverSYN notes what the SYN to the server says of the first half.
func (x *Proxy) serverSYN(o *Out, p *packet.Packet, e *conntrack.Entry, st conntrack.Synproxy) hooks.Verdict {
	var opts Options
	if !opts.parse(p.Transport()) {
		return drop(p, ReasonMalformed)
	}
	st.ISN = p.TCPAck()
	if opts.Has&Timestamp != 0 {
		st.ITS = opts.tsEcr
	}
	x.ct.SetSynproxy(e, st)
	o.CT.MoveTimestamp(p, st.TSOff)
	return hooks.Accept
}

// serverAnswer takes the server's SYN/ACK: the server gets its ACK, the client
// learns the window.
func (x *Proxy) serverAnswer(o *Out, p *packet.Packet, e *conntrack.Entry, st conntrack.Synproxy) hooks.Verdict {
	var opts Options
	if !opts.parse(p.Transport()) {
		return drop(p, ReasonMalformed)
	}
	if opts.Has&Timestamp != 0 {
		st.TSOff = opts.tsVal - st.ITS
	}
	opts.Has &= Timestamp
	swapped := opts
	swapped.tsVal, swapped.tsEcr = opts.tsEcr, opts.tsVal
	toServer := segment{back: true, seq: p.TCPAck(), ack: p.TCPSeq() + 1, flags: packet.TCPAckFlag, window: uint16(e.TCPWindow(conntrack.Original))}
	if n := x.build(o, p, &toServer, &swapped); n != nil {
		o.Send(n)
	}
	st.Shift, st.Due = int32(st.ISN-p.TCPSeq()), true
	x.ct.SetSynproxy(e, st)
	toClient := segment{seq: p.TCPSeq() + 1, ack: p.TCPAck(), flags: packet.TCPAckFlag, window: p.TCPWindow() >> opts.WScale}
	if n := x.build(o, p, &toClient, &opts); n != nil {
		answers(o, n, p)
		o.Send(n)
	}
	return hooks.Stolen
}

// segment is what the proxy sends because of a packet.
type segment struct {
	back     bool // to who sent that, else in its place
	seq, ack uint32
	flags    uint8
	window   uint16
}

// build makes a segment; nil: there is no packet to make it of.
func (x *Proxy) build(o *Out, p *packet.Packet, s *segment, opts *Options) *packet.Packet {
	n := o.Alloc()
	if n == nil {
		return nil
	}
	var room [40]byte
	h := packet.TCPSegment{
		Src: p.Src(), Dst: p.Dst(), SrcPort: p.SrcPort(), DstPort: p.DstPort(),
		Seq: s.seq, Ack: s.ack, Flags: s.flags, Window: s.window, Options: opts.append(room[:0]),
	}
	if s.back {
		h.Src, h.Dst, h.SrcPort, h.DstPort = h.Dst, h.Src, h.DstPort, h.SrcPort
	}
	packet.BuildTCP(n, p, &h)
	if v := x.ttl[p.Family>>1&1]; v != nil {
		n.SetTTL(uint8(v.Load()))
	}
	return n
}

// answers makes n a reply of p's connection, if p has one.
func answers(o *Out, n, p *packet.Packet) {
	if o.CT.Entry(p) != nil {
		n.Ct, n.CtInfo = p.Ct, packet.CtEstablishedReply
	}
}

func drop(p *packet.Packet, r packet.Reason) hooks.Verdict {
	p.Reason = r
	return hooks.Drop
}
