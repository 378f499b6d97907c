package conntrack

import (
	"bytes"

	"sluice/packet"
)

// Classes of SIP's expectations.
const (
	sipSignalling = iota
	sipAudio
	sipVideo
	sipImage
)

var sipClasses = []ExpectPolicy{
	sipSignalling: {"signalling", 1, 180}, sipAudio: {"audio", 4, 180}, sipVideo: {"video", 4, 180}, sipImage: {"image", 2, 180},
}

// sipTimeout is how long a connection is kept from its last message on, seconds.
const sipTimeout = 3600

// sipState is what is kept of a SIP connection.
type sipState struct {
	registerSeq, inviteSeq uint32
	viaPort                uint16 // where answers are awaited, if that is not where requests come from
}

// sipCall is one message on its way through the helper. Linux's defaults are
// kept: media and calls are expected of the other end of the connection only.
type sipCall struct {
	*helpCall
	sipText
	ext     *extension
	at      int // of the message in the packet
	changed bool
}

// text reads the message, which has n bytes, as it stands now.
func (m *sipCall) text(n int) {
	m.sipText = sipText{b: m.p.Bytes()[m.at : m.at+n], family: m.e.orig.Family}
}

// put writes other text in the place of what was matched. The checksum is
// mended when all is done.
func (m *sipCall) put(x match, text []byte) bool {
	n := len(m.b) + len(text) - x.n
	if !m.p.Resize(m.at+x.at, x.n, len(text)) {
		return false
	}
	copy(m.p.Bytes()[m.at+x.at:], text)
	m.changed = true
	m.text(n)
	return true
}

// state reads what is kept of the connection; keep changes it.
func (m *sipCall) state() sipState {
	m.e.lock()
	defer m.e.unlock()
	return m.ext.sip
}

func (m *sipCall) keep(change func(*sipState)) {
	m.e.lock()
	change(&m.ext.sip)
	m.e.unlock()
}

// sipShortest is the length below which nothing is a message.
const sipShortest = len("SIP/2.0 200")

func newSIP(c *helpCall, at int) *sipCall {
	return &sipCall{helpCall: c, ext: c.w.t.extOf(c.e), at: at}
}

func (m *sipCall) done() {
	if m.changed {
		m.p.Mangled()
	}
}

func helpSIPUDP(c *helpCall) bool {
	data, at := udpPayload(c.p)
	m := newSIP(c, at)
	if data == nil || m.ext == nil {
		return true
	}
	c.refresh(sipTimeout)
	if len(data) < sipShortest {
		return true
	}
	defer m.done()
	m.text(len(data))
	return m.message()
}

// helpSIPTCP reads the messages of a segment one after the other. One that is
// not whole is left alone.
func helpSIPTCP(c *helpCall) bool {
	data, at, _ := tcpPayload(c.p)
	m := newSIP(c, at)
	if data == nil || m.ext == nil || !c.established() {
		return true
	}
	c.refresh(sipTimeout)
	defer m.done()
	left, grown := len(data), 0
	for left >= sipShortest {
		m.text(left)
		n := m.wholeLength()
		if n == 0 || n > left {
			break
		}
		m.text(n)
		if !m.message() {
			return false
		}
		grown += len(m.b) - n
		left -= n
		m.at += len(m.b)
	}
	return grown == 0 || !c.translated || c.shift(grown)
}

// wholeLength is the length of the message at the beginning of the text, with
// its body; 0 if that cannot be told.
func (m *sipCall) wholeLength() int {
	body, x, ok := m.value(&sipLength)
	if !ok || int64(body) > int64(len(m.b)) {
		return 0
	}
	end := bytes.Index(m.b[x.at+x.n:], []byte("\r\n\r\n"))
	if end < 0 {
		return 0
	}
	return x.at + x.n + end + 4 + int(body)
}

func (m *sipCall) message() bool {
	ok := false
	if foldPrefix(m.b, "sip/2.0 ") {
		ok = m.answer()
	} else {
		ok = m.question()
	}
	return ok && (!m.translated || m.translate())
}

// question acts on a request.
func (m *sipCall) question() bool {
	o := m.e.Tuple(m.dir)
	if _, a, port, ok := m.first(&sipViaUDP); ok && port != o.SrcPort && a == o.Src {
		m.keep(func(s *sipState) { s.viaPort = port })
	}
	for _, r := range sipRequests {
		n := len(r.method)
		if len(m.b) < n+2 || !foldPrefix(m.b, r.method) || m.b[n] != ' ' || !sipAlpha(m.b[n+1]) {
			continue
		}
		seq, _, ok := m.value(&sipCSeq)
		return ok && r.act(m, seq)
	}
	return true
}

var sipRequests = []struct {
	method string
	act    func(m *sipCall, seq uint32) bool
}{
	{"invite", (*sipCall).invite},
	{"update", (*sipCall).offer},
	{"ack", (*sipCall).offer},
	{"prack", (*sipCall).offer},
	{"bye", (*sipCall).bye},
	{"register", (*sipCall).register},
}

// answer acts on a response.
func (m *sipCall) answer() bool {
	if len(m.b) < sipShortest {
		return true
	}
	code, _ := m.number(len("SIP/2.0 "))
	seq, x, ok := m.value(&sipCSeq)
	if code == 0 || !ok {
		return false
	}
	at := x.at + x.n + 1
	if at > len(m.b) {
		return true
	}
	switch method := m.b[at:]; {
	case foldPrefix(method, "invite"), foldPrefix(method, "update"), foldPrefix(method, "prack"):
		if code >= 100 && code <= 299 {
			return m.session()
		}
		if m.state().inviteSeq == seq {
			m.hangUp()
		}
	case foldPrefix(method, "register"):
		return m.registered(seq, code)
	}
	return true
}

// hangUp: the streams of the call are expected no more.
func (m *sipCall) hangUp() {
	m.w.t.unexpectSome(m.w, m.idx, m.e.gen.Load(), func(x *Expectation) bool { return x.Class != sipSignalling })
}

func (m *sipCall) bye(uint32) bool {
	m.hangUp()
	return true
}

func (m *sipCall) offer(uint32) bool { return m.session() }

func (m *sipCall) invite(seq uint32) bool {
	m.hangUp()
	if !m.session() {
		return false
	}
	m.keep(func(s *sipState) { s.inviteSeq = seq })
	return true
}

// register expects calls at the address that is registered, once the registrar agrees.
func (m *sipCall) register(seq uint32) bool {
	if m.e.Has(Expected) {
		return true
	}
	expires := uint32(0)
	if x, found := m.header(&sipExpires, 0); found == sipFound {
		expires, _ = m.number(x.at)
	}
	x, a, port, ok := m.first(&sipContact)
	o, r := m.e.Tuple(m.dir), m.e.Tuple(m.dir.Other())
	end := x.at + x.n
	if !ok || a != o.Src || !m.transport(end, o.Proto) { // nobody registers another host
		return true
	}
	v, _, found := m.numberParam(end, "expires=")
	switch found {
	case sipBad:
		return false
	case sipFound:
		expires = v
	}
	if expires > 0 {
		e := m.expectation(o.Proto, &r.Src, a, port)
		e.Class, e.Flags = sipSignalling, ExpectPermanent|ExpectInactive
		e.Helper = m.w.t.helperOf(m.e.helper)
		if m.translated {
			ok = m.announceContact(x, e)
		} else {
			ok = m.expect(e)
		}
		if !ok {
			return false
		}
	}
	m.keep(func(s *sipState) { s.registerSeq = seq })
	return true
}

// registered: the registrar says which contacts it has and for how long.
func (m *sipCall) registered(seq, code uint32) bool {
	if m.state().registerSeq != seq || code >= 100 && code <= 199 {
		return true
	}
	if code >= 200 && code <= 299 {
		expires := uint32(0)
		if x, found := m.header(&sipExpires, 0); found == sipFound {
			expires, _ = m.number(x.at)
		}
		for w := (uris{h: &sipContact}); ; {
			x, a, port, ok := m.uri(&w)
			if !ok {
				break
			}
			o := m.e.Tuple(m.dir)
			if a != o.Dst || !m.transport(x.at+x.n, o.Proto) {
				continue
			}
			v, _, found := m.numberParam(x.at+x.n, "expires=")
			switch found {
			case sipBad:
				return false
			case sipAbsent:
				v = expires
			}
			if v == 0 {
				break
			}
			if m.w.t.renew(m.w, m.idx, m.e.gen.Load(), &Tuple{Dst: a, DstPort: port, Proto: o.Proto}, v) {
				return true
			}
		}
	}
	m.w.t.unexpectSome(m.w, m.idx, m.e.gen.Load(), func(x *Expectation) bool { return x.Class == sipSignalling })
	return true
}

// renew makes the signalling that a connection expects at u active, for a
// number of seconds; false if it expects none.
func (t *Table) renew(w *Worker, idx, gen uint32, u *Tuple, seconds uint32) bool {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for _, x := range xs.byMaster[masterKey{idx, gen}] {
		if x.Class == sipSignalling && x.Tuple.Dst == u.Dst && x.Tuple.DstPort == u.DstPort && x.Tuple.Proto == u.Proto {
			x.expires = w.now + int64(seconds)*second
			x.Flags &^= ExpectInactive
			return true
		}
	}
	return false
}

var sipMedia = []struct {
	name  string
	class uint8
}{{"audio ", sipAudio}, {"video ", sipVideo}, {"image ", sipImage}}

// session expects the streams of a session description, three at most.
func (m *sipCall) session() bool {
	start, found := m.sdp(&sdpVersion, nil, 0)
	if found != sipFound {
		return true
	}
	whole, hasWhole := m.sdpAddress(&sdpConnection, &sdpMedia, start.at)
	media, known := whole, hasWhole
	at := start.at
	for n := 0; n < len(sipMedia); {
		x, found := m.sdp(&sdpMedia, nil, at)
		if found != sipFound {
			break
		}
		class, name := uint8(0), ""
		for _, k := range sipMedia {
			if x.n >= len(k.name) && string(m.b[x.at:x.at+len(k.name)]) == k.name {
				class, name = k.class, k.name
			}
		}
		if name == "" {
			at = x.at + x.n
			continue
		}
		x.at += len(name)
		x.n -= len(name)
		at = x.at
		port, digits := m.number(at)
		if port == 0 || digits == 0 {
			continue // a stream that is off
		}
		if port < 1024 || port > 65535 {
			return false
		}
		own, hasOwn := m.sdpAddress(&sdpConnection, &sdpMedia, at)
		switch {
		case hasOwn:
			media = own
		case hasWhole:
			media = whole
		default:
			return false
		}
		known = true
		if !m.stream(class, x, &media, uint16(port)) {
			return false
		}
		if hasOwn && m.translated && !m.putSDPAddress(at, &media) {
			return false
		}
		n++
	}
	return !known || !m.translated || m.putSession(start.at, &media)
}

// stream expects RTP and RTCP at an address and port that was announced in x, if
// it is the sender's own. Translation changes addr.
func (m *sipCall) stream(class uint8, x match, addr *[16]byte, port uint16) bool {
	o, r := m.e.Tuple(m.dir), m.e.Tuple(m.dir.Other())
	if *addr != o.Src {
		return true
	}
	src := r.Src
	u := m.expectation(packet.ProtoUDP, &src, *addr, port).Tuple
	direct, known := m.w.t.sameCall(m.w, m.helpCall, class, addr, &u)
	base := u.DstPort &^ 1
	if direct && !m.putPort(x, base) {
		return false
	}
	if known {
		return true
	}
	pair := [2]*Expectation{}
	for i := range pair {
		pair[i] = m.expectation(packet.ProtoUDP, &src, *addr, base+uint16(i))
		pair[i].Class = class
	}
	if m.translated && !direct {
		return m.announceStream(x, pair, addr)
	}
	// Streams of different kinds, or the same call by another way, may name the same port.
	first := m.w.expect(m.e, m.idx, true, pair[0])
	if first != ExpectOK && first != ExpectAlready {
		return false
	}
	second := m.w.expect(m.e, m.idx, true, pair[1])
	if second != ExpectOK && second != ExpectAlready {
		if first == ExpectOK {
			m.w.unexpect(pair[0])
		}
		return false
	}
	return true
}

// sameCall looks whether the stream u is expected by another connection's
// announcement (known). If both are translated, the two ends may reach each
// other: then u and addr become where the stream really goes, and it is
// expected there directly.
func (t *Table) sameCall(w *Worker, c *helpCall, class uint8, addr *[16]byte, u *Tuple) (direct, known bool) {
	xs := &t.expects
	xs.mu.Lock()
	defer xs.mu.Unlock()
	for {
		x := xs.find(u, w.now)
		if x == nil || x.ofMaster(c.idx, c.e.gen.Load()) || x.index != c.e.helper || x.Class != class {
			return direct, false
		}
		if direct || !c.translated || x.SavedAddr == x.Tuple.Dst && x.SavedPort == x.Tuple.DstPort {
			return direct, true
		}
		*addr, u.Dst, u.DstPort = x.SavedAddr, x.SavedAddr, x.SavedPort
		direct = true
	}
}
