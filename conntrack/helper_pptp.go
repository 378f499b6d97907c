package conntrack

import "sluice/packet"

// PPTP control messages (RFC 2637 2).
const (
	pptpStartRequest = 1 + iota
	pptpStartReply
	pptpStopRequest
	pptpStopReply
	pptpEchoRequest
	pptpEchoReply
	pptpOutRequest
	pptpOutReply
	pptpInRequest
	pptpInReply
	pptpInConnected
	pptpClearRequest
	pptpDisconnect
	pptpWANError
	pptpLinkInfo
	numPPTP

	pptpHeader  = 12 // length, type, cookie, message type, reserved
	pptpControl = 1
	pptpCookie  = 0x1a2b3c4d
)

// pptpSizes are the messages' sizes after the header: a shorter one is not looked at.
var pptpSizes = [numPPTP]int{
	pptpStartRequest: 144, pptpStartReply: 144, pptpStopRequest: 4, pptpStopReply: 4,
	pptpOutRequest: 156, pptpOutReply: 20, pptpInRequest: 208, pptpInReply: 12, pptpInConnected: 16,
	pptpClearRequest: 4, pptpDisconnect: 136, pptpWANError: 28, pptpLinkInfo: 12,
}

// States of the session and of its call.
const (
	sessionNone uint8 = iota
	sessionError
	sessionStopping
	sessionRequested
	sessionConfirmed
)

const (
	callNone uint8 = iota
	callOutRequested
	callOutConfirmed
	callInRequested
	callInReplied
	callInConfirmed
	callClearing
)

// pptpState is what is known of a control connection: one call, as in Linux. pns
// is the client's call id, pac the server's; ours are those that the other side
// sees, theirs what each side said itself where they were changed.
type pptpState struct {
	session, call    uint8
	pns, pac         uint16
	realPNS, realPAC uint16
}

// helpPPTP follows the control connection, which the client (PNS) has opened,
// and expects the tunnel of its call, in both directions.
func helpPPTP(c *helpCall) bool {
	data, _, _ := tcpPayload(c.p)
	ext := c.w.t.extOf(c.e)
	if ext == nil || !c.established() || len(data) < pptpHeader ||
		be.Uint16(data[2:]) != pptpControl || be.Uint32(data[4:]) != pptpCookie {
		return true
	}
	typ, body := be.Uint16(data[8:]), data[pptpHeader:]
	if typ == 0 || typ >= numPPTP || len(body) < pptpSizes[typ] {
		return true
	}
	c.e.lock()
	s := ext.pptp
	valid, tunnel := false, false
	if c.dir == Original {
		valid = s.outbound(typ, body)
		if valid && c.translated && typ == pptpOutRequest {
			// The connection's port is a call id that nobody else behind its address has.
			s.realPNS, s.pns = s.pns, c.e.reply.DstPort
		}
	} else if valid, tunnel = s.inbound(typ, body); tunnel && c.translated {
		s.realPAC = s.pac
	}
	ext.pptp = s
	c.e.unlock()
	if !valid {
		return true
	}
	switch {
	case tunnel:
		c.expectTunnel(ext, s)
	case typ == pptpDisconnect && c.dir == Reply:
		callsGone(c.w, c.e, ext)
	}
	if !c.translated {
		return true
	}
	at, id := callIDPlace(c.dir, typ), s.pns
	if c.dir == Reply {
		id = s.realPNS
	}
	if at < 0 {
		return true
	}
	return c.mangle(pptpHeader+at, 2, be.AppendUint16(nil, id))
}

// callIDPlace is where in a message's body the client's call id is, which
// translation changes; below 0: nowhere.
func callIDPlace(dir Dir, typ uint16) int {
	if dir == Original {
		switch typ {
		case pptpOutRequest, pptpInReply, pptpClearRequest:
			return 0
		}
		return -1
	}
	switch typ {
	case pptpOutReply:
		return 2
	case pptpInConnected, pptpWANError, pptpDisconnect, pptpLinkInfo:
		return 0
	}
	return -1
}

// outbound follows a message of the client's; false: it does not fit.
func (s *pptpState) outbound(typ uint16, b []byte) bool {
	switch typ {
	case pptpStartRequest:
		if s.session != sessionNone {
			return false
		}
		s.session = sessionRequested
	case pptpStopRequest:
		s.session = sessionStopping
	case pptpOutRequest:
		if s.session != sessionConfirmed {
			return false
		}
		s.call, s.pns = callOutRequested, be.Uint16(b)
	case pptpInReply:
		if s.call != callInRequested && s.call != callInReplied || be.Uint16(b[2:]) != s.pac {
			return false
		}
		if s.call = callNone; b[4] == 1 { // accepted
			s.call, s.pns = callInReplied, be.Uint16(b)
		}
	case pptpClearRequest:
		if s.session != sessionConfirmed {
			return false
		}
		s.call = callClearing
	case pptpLinkInfo, pptpEchoRequest, pptpEchoReply:
	default:
		return false
	}
	return true
}

// inbound follows a message of the server's; false: it does not fit. tunnel:
// the call's tunnel is to be expected.
func (s *pptpState) inbound(typ uint16, b []byte) (valid, tunnel bool) {
	switch typ {
	case pptpStartReply:
		if s.session < sessionRequested {
			return false, false
		}
		if s.session = sessionError; b[2] == 1 {
			s.session = sessionConfirmed
		}
	case pptpStopReply:
		if s.session > sessionStopping {
			return false, false
		}
		if s.session = sessionError; b[0] == 1 {
			s.session = sessionNone
		}
	case pptpOutReply:
		if s.session != sessionConfirmed || s.call != callOutRequested && s.call != callOutConfirmed || be.Uint16(b[2:]) != s.pns {
			return false, false
		}
		if s.call = callNone; b[4] == 1 { // connected
			s.call, s.pac = callOutConfirmed, be.Uint16(b)
			return true, true
		}
	case pptpInRequest:
		if s.session != sessionConfirmed {
			return false, false
		}
		s.call, s.pac = callInRequested, be.Uint16(b)
	case pptpInConnected:
		if s.session != sessionConfirmed || s.call != callInReplied && s.call != callInConfirmed || be.Uint16(b) != s.pns {
			return false, false
		}
		s.call = callInConfirmed
		return true, true
	case pptpDisconnect:
		s.call = callNone
	case pptpWANError, pptpLinkInfo, pptpEchoRequest, pptpEchoReply:
	default:
		return false, false
	}
	return true, false
}

// expectTunnel expects GRE from either side and lets its packets have the
// call ids of both.
func (c *helpCall) expectTunnel(ext *extension, s pptpState) {
	o, r := &c.e.orig, &c.e.reply
	a := c.expectation(packet.ProtoGRE, &o.Src, o.Dst, s.pac) // client to server
	b := c.expectation(packet.ProtoGRE, &r.Src, r.Dst, s.pns)
	a.Tuple.Zone, b.Tuple.Zone = o.Zone, r.Zone
	a.Tuple.SrcPort, b.Tuple.SrcPort = s.pns, s.pac
	a.Mask.SrcPort, b.Mask.SrcPort = 0xffff, 0xffff
	a.Follow, a.NATDir = FollowCall, Reply
	b.Follow, b.NATDir = FollowCall, Original
	if c.translated {
		a.Tuple.SrcPort, a.SavedPort = s.realPNS, s.pns
		b.Tuple.SrcPort, b.SavedPort = s.realPAC, s.realPNS
	}
	if !c.expect(a) {
		return
	}
	if !c.expect(b) {
		c.w.unexpect(a)
		return
	}
	g := &c.w.t.gre
	if !g.announce(ext, Original, &a.Tuple) { // one call at a time
		c.w.unexpect(a, b)
	} else if !g.announce(ext, Reply, &b.Tuple) {
		g.forget(ext)
		c.w.unexpect(a, b)
	}
}

// otherTunnel: one of a call's two expectations, x, has been fulfilled; the
// other one will not be, as its packets are replies. Where the server's tunnel
// of a translated call comes first, Linux does not find the other one, and it stays.
func (w *Worker) otherTunnel(m *Entry, x *Expectation) {
	u, _ := x.Tuple.Invert()
	if ext := w.t.extOf(m); ext != nil && m.Status()&NATMask != 0 {
		if x.NATDir == Original {
			return
		}
		m.lock()
		u.SrcPort, u.DstPort = ext.pptp.pac, ext.pptp.pns
		m.unlock()
		u.Src, u.Dst, u.Zone = m.reply.Src, m.reply.Dst, m.reply.Zone
	}
	w.t.unexpectTuple(w, &u)
}

// callsGone ends the tunnel of a control connection's call: the call is over or
// the connection is.
func callsGone(w *Worker, e *Entry, ext *extension) {
	t := w.t
	e.lock()
	s := ext.pptp
	e.unlock()
	t.gre.forget(ext)
	for _, d := range []Dir{Original, Reply} {
		u := *e.Tuple(d)
		u.Proto, u.SrcPort, u.DstPort = packet.ProtoGRE, s.pns, s.pac
		if d == Reply {
			u.SrcPort, u.DstPort = s.pac, s.pns
		}
		if x, idx, _ := t.lookup(&u, t.hashTuple(&u), w.now); x != nil {
			t.kill(w, x, idx)
		} else {
			t.unexpectTuple(w, &u)
		}
	}
}
