package conntrack

import (
	"net/netip"

	"sluice/packet"
)

// What is found in SIP messages (RFC 3261) and session descriptions (RFC 8866),
// with Linux's tolerance: lines end with CR, LF or both, headers may be
// continued, addresses are numeric.

// sipText is one message as it stands in the packet.
type sipText struct {
	b      []byte
	family uint8
	// The next '@' or line end from userFrom on is at userEnd: a line with many
	// URIs and no '@' is not read over and over.
	userFrom, userEnd int
}

// sipHeader is a header to look for: its names in lower case, what the value is
// sought behind, and what reads it.
type sipHeader struct {
	name, short, search string
	length              func(t *sipText, at int) (start, n int)
}

var (
	sipCSeq    = sipHeader{"cseq", "", "", (*sipText).digits}
	sipFrom    = sipHeader{"from", "f", "sip:", (*sipText).userEndpoint}
	sipTo      = sipHeader{"to", "t", "sip:", (*sipText).userEndpoint}
	sipContact = sipHeader{"contact", "m", "sip:", (*sipText).userEndpoint}
	sipViaUDP  = sipHeader{"via", "v", "udp ", (*sipText).endpoint}
	sipViaTCP  = sipHeader{"via", "v", "tcp ", (*sipText).endpoint}
	sipExpires = sipHeader{"expires", "", "", (*sipText).digits}
	sipLength  = sipHeader{"content-length", "l", "", (*sipText).digits}
)

// match says where something stands in a text.
type match struct{ at, n int }

// Outcomes of a search.
const (
	sipBad    = -1 // it is there and cannot be read
	sipAbsent = 0
	sipFound  = 1
)

func sipAlpha(c byte) bool { // in Latin 1, as the kernel's isalpha
	return c|32 >= 'a' && c|32 <= 'z' && c < 0x80 || c >= 0xc0 && c != 0xd7 && c != 0xf7
}

// foldPrefix is whether b begins with s, which is in lower case.
func foldPrefix(b []byte, s string) bool {
	if len(b) < len(s) {
		return false
	}
	for i := range len(s) {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c |= 32
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

func (t *sipText) digits(at int) (int, int) {
	n := 0
	for at+n < len(t.b) && digit(t.b[at+n]) {
		n++
	}
	return at, n
}

func (t *sipText) letters(at int) (n int) {
	for at+n < len(t.b) && sipAlpha(t.b[at+n]) {
		n++
	}
	return n
}

// number reads digits; n is 0 where there are none or the value has more than 32 bits.
func (t *sipText) number(at int) (v uint32, n int) {
	x := uint64(0)
	for at+n < len(t.b) && digit(t.b[at+n]) {
		if x = x*10 + uint64(t.b[at+n]-'0'); x > 1<<32-1 || n > 10 {
			return 0, 0
		}
		n++
	}
	return uint32(x), n
}

// addr reads an address; bracketed: IPv6 is in [].
func (t *sipText) addr(at int, bracketed bool) (a [16]byte, end int, ok bool) {
	if t.family == packet.IPv4 {
		return t.addr4(at)
	}
	open := at < len(t.b) && t.b[at] == '['
	if open {
		at++
	} else if bracketed {
		return a, at, false
	}
	if a, end, ok = t.addr6(at); !ok {
		return a, end, false
	}
	if end < len(t.b) && t.b[end] == ']' {
		return a, end + 1, true
	}
	return a, end, !bracketed
}

func (t *sipText) addr4(at int) (a [16]byte, end int, ok bool) {
	i := at
	for part := range 4 {
		v, n := 0, 0
		for i < len(t.b) && digit(t.b[i]) && v <= 255 {
			v = v*10 + int(t.b[i]-'0')
			i++
			n++
		}
		if n == 0 || v > 255 {
			return a, i, false
		}
		a[part] = byte(v)
		if part < 3 {
			if i >= len(t.b) || t.b[i] != '.' {
				return a, i, false
			}
			i++
		}
	}
	// What follows is no part of an address.
	if i < len(t.b) && (t.b[i] == '.' || hexLetter(t.b[i])) {
		return a, i, false
	}
	return a, i, true
}

func hexLetter(c byte) bool { return c|32 >= 'a' && c|32 <= 'f' }

func (t *sipText) addr6(at int) (a [16]byte, end int, ok bool) {
	const longest = 46
	end = at
	for end < len(t.b) && end-at < longest && (digit(t.b[end]) || hexLetter(t.b[end]) || t.b[end] == ':' || t.b[end] == '.') {
		end++
	}
	ip, err := netip.ParseAddr(string(t.b[at:end]))
	if err != nil || !ip.Is6() {
		return a, end, false
	}
	return ip.As16(), end, true
}

// port reads the port behind an address; without one it is SIP's. A message
// does not end there, and a privileged port is none.
func (t *sipText) port(at int) (port uint16, end int, ok bool) {
	if at >= len(t.b) {
		return 0, at, false
	}
	if t.b[at] != ':' {
		return 5060, at, true
	}
	v, n := t.number(at + 1)
	end = at + 1 + n
	if n == 0 || n > 5 || end >= len(t.b) || v < 1024 || v > 65535 {
		return 0, at, false
	}
	return uint16(v), end, true
}

// endpoint is the length of an address with its port; 0: there is none.
func (t *sipText) endpoint(at int) (int, int) {
	_, end, ok := t.addr(at, true)
	if ok {
		_, end, ok = t.port(end)
	}
	if !ok {
		return at, 0
	}
	return at, end - at
}

// userEndpoint is endpoint behind a user's name and '@', if the line has one.
func (t *sipText) userEndpoint(at int) (int, int) {
	if at < t.userFrom || at > t.userEnd {
		t.userFrom, t.userEnd = at, at
		for t.userEnd < len(t.b) && t.b[t.userEnd] != '@' && t.b[t.userEnd] != '\r' && t.b[t.userEnd] != '\n' {
			t.userEnd++
		}
	}
	if t.userEnd < len(t.b) && t.b[t.userEnd] == '@' {
		return t.endpoint(t.userEnd + 1)
	}
	return t.endpoint(at)
}

// request finds the address in a request line.
func (t *sipText) request() (m match, a [16]byte, port uint16, found int) {
	at := t.letters(0)
	if at == 0 || at+1 >= len(t.b) {
		return m, a, 0, sipAbsent
	}
	for at++; at < len(t.b)-len("sip:"); at++ {
		if t.b[at] == '\r' || t.b[at] == '\n' {
			return m, a, 0, sipBad
		}
		if foldPrefix(t.b[at:], "sip:") {
			at += len("sip:")
			break
		}
	}
	start, n := t.userEndpoint(at)
	if n == 0 {
		return m, a, 0, sipAbsent
	}
	a, end, _ := t.addr(start, true)
	port, _, _ = t.port(end)
	return match{start, n}, a, port, sipFound
}

// followed goes on in the next line, if it continues this one, which ends at at.
func (t *sipText) followed(at, limit int) (int, bool) {
	if at++; at >= limit {
		return at, false
	}
	if t.b[at-1] == '\r' && t.b[at] == '\n' {
		if at++; at >= limit {
			return at, false
		}
	}
	if t.b[at] != ' ' && t.b[at] != '\t' {
		return at, false
	}
	for at < limit && (t.b[at] == ' ' || t.b[at] == '\t') {
		at++
	}
	return at, true
}

func (t *sipText) skipSpace(at int) (int, bool) {
	for at < len(t.b) && (t.b[at] == ' ' || t.b[at] == '\t') {
		at++
	}
	ok := true
	if at < len(t.b) && (t.b[at] == '\r' || t.b[at] == '\n') {
		at, ok = t.followed(at, len(t.b))
	}
	return at, ok && at < len(t.b)
}

// search looks for s (in lower case) in the header's value from at on, before limit; below 0: not there.
func (t *sipText) search(at, limit int, s string) int {
	for at < limit-len(s) {
		if t.b[at] == '\r' || t.b[at] == '\n' {
			next, ok := t.followed(at, limit-len(s))
			if !ok {
				return -1
			}
			at = next + 1
			continue
		}
		if foldPrefix(t.b[at:limit], s) {
			return at
		}
		at++
	}
	return -1
}

// lineAfter is where the next line begins, from at on; below 0: nowhere.
func (t *sipText) lineAfter(at int) int {
	for ; at < len(t.b); at++ {
		if t.b[at] != '\r' && t.b[at] != '\n' {
			continue
		}
		if at+1 < len(t.b) && t.b[at] == '\r' && t.b[at+1] == '\n' {
			at++
		}
		if at+1 >= len(t.b) {
			return -1
		}
		return at + 1
	}
	return -1
}

// header finds the next header of a kind, after the line that at is in. Where
// it is bad, m.at is where its value begins.
func (t *sipText) header(h *sipHeader, at int) (m match, found int) {
	for at = t.lineAfter(at); at >= 0; at = t.lineAfter(at + 1) {
		b := t.b[at:]
		switch {
		case b[0] == ' ' || b[0] == '\t':
			continue
		case foldPrefix(b, h.name):
			at += len(h.name)
		case h.short != "" && len(b) > len(h.short) && foldPrefix(b, h.short) && !sipAlpha(b[len(h.short)]):
			at += len(h.short)
		default:
			continue
		}
		at, ok := t.skipSpace(at)
		if !ok || t.b[at] != ':' {
			return m, sipAbsent
		}
		if at, ok = t.skipSpace(at + 1); !ok {
			return m, sipAbsent
		}
		m.at = at
		if h.search != "" {
			if at = t.search(at, len(t.b), h.search); at < 0 {
				return m, sipBad
			}
			at += len(h.search)
		}
		start, n := h.length(t, at)
		if n == 0 {
			return m, sipBad
		}
		return match{start, n}, sipFound
	}
	return m, sipAbsent
}

// next finds the next of several values in one header.
func (t *sipText) next(h *sipHeader, at int) (m match, found int) {
	if at = t.search(at, len(t.b), ","); at < 0 {
		return m, sipAbsent
	}
	if at = t.search(at, len(t.b), h.search); at < 0 {
		return m, sipAbsent
	}
	m.at = at + len(h.search)
	start, n := h.length(t, m.at)
	if n == 0 {
		return m, sipBad
	}
	return match{start, n}, sipFound
}

// uris walks the addresses in the headers of a kind, those that cannot be read left out.
type uris struct {
	h    *sipHeader
	at   int
	more bool // in a header that may have more
}

func (t *sipText) uri(w *uris) (m match, a [16]byte, port uint16, ok bool) {
	found := sipAbsent
	at := w.at
	for w.more && found != sipFound {
		if m, found = t.next(w.h, at); found == sipAbsent {
			w.more = false
		} else {
			at = m.at
		}
	}
	for found != sipFound {
		if m, found = t.header(w.h, at); found == sipAbsent {
			return m, a, 0, false
		}
		at = m.at
	}
	w.more = true
	a, end, _ := t.addr(m.at, true)
	port, w.at, _ = t.port(end)
	return m, a, port, true
}

// first is the first address in a header of a kind.
func (t *sipText) first(h *sipHeader) (m match, a [16]byte, port uint16, ok bool) {
	return t.uri(&uris{h: h})
}

// value is the number in a header.
func (t *sipText) value(h *sipHeader) (v uint32, m match, ok bool) {
	m, found := t.header(h, 0)
	if found != sipFound {
		return 0, m, false
	}
	v, n := t.number(m.at)
	return v, m, n > 0
}

// param finds what follows name (in lower case, with its '=') before the next value of the header.
func (t *sipText) param(at int, name string) (start, limit int, ok bool) {
	if limit = t.search(at, len(t.b), ","); limit < 0 {
		limit = len(t.b)
	}
	if start = t.search(at, limit, name); start < 0 {
		return 0, limit, false
	}
	return start + len(name), limit, true
}

func (t *sipText) numberParam(at int, name string) (v uint32, m match, found int) {
	start, limit, ok := t.param(at, name)
	if !ok {
		return 0, m, sipAbsent
	}
	v, n := (&sipText{b: t.b[:limit]}).number(start)
	if n == 0 {
		return 0, m, sipBad
	}
	return v, match{start, n}, sipFound
}

func (t *sipText) addrParam(at int, name string, bracketed bool) (a [16]byte, m match, ok bool) {
	start, limit, ok := t.param(at, name)
	if !ok {
		return a, m, false
	}
	a, end, ok := (&sipText{b: t.b[:limit], family: t.family}).addr(start, bracketed)
	return a, match{start, end - start}, ok
}

// transport is the protocol that a contact asks for; false: another one than proto.
func (t *sipText) transport(at int, proto uint8) bool {
	start, _, ok := t.param(at, "transport=")
	switch {
	case !ok:
		return true
	case foldPrefix(t.b[start:], "tcp"):
		return proto == packet.ProtoTCP
	case foldPrefix(t.b[start:], "udp"):
		return proto == packet.ProtoUDP
	}
	return false
}

// Lines of a session description.
var (
	sdpVersion    = sdpLine{"v=", "", (*sipText).digits}
	sdpOwner      = sdpLine{"o=", "IN IP", (*sipText).sdpAddr}
	sdpConnection = sdpLine{"c=", "IN IP", (*sipText).sdpAddr}
	sdpMedia      = sdpLine{"m=", "", (*sipText).media}
)

type sdpLine struct {
	name, search string
	length       func(t *sipText, at int) (start, n int)
}

func (t *sipText) sdpAddr(at int) (int, int) {
	var end int
	var ok bool
	if t.family == packet.IPv4 {
		_, end, ok = t.addr4(at)
	} else {
		_, end, ok = t.addr6(at)
	}
	if !ok {
		return at, 0
	}
	return at, end - at
}

// media is a stream's kind and its port.
func (t *sipText) media(at int) (int, int) {
	n := t.letters(at)
	if at+n >= len(t.b) || t.b[at+n] != ' ' {
		return at, 0
	}
	_, d := t.digits(at + n + 1)
	return at, n + 1 + d
}

// sdp finds the next line of a kind after the one that at is in, before one of
// the kind term, if that is not nil.
func (t *sipText) sdp(l, term *sdpLine, at int) (m match, found int) {
	for at = t.lineAfter(at); at >= 0; at = t.lineAfter(at + 1) {
		if term != nil && foldPrefix(t.b[at:], term.name) {
			break
		}
		if !foldPrefix(t.b[at:], l.name) {
			continue
		}
		m.at = at + len(l.name)
		at = m.at
		if l.search != "" {
			want := l.search + "4 "
			if t.family == packet.IPv6 {
				want = l.search + "6 "
			}
			for at < len(t.b)-len(want) && t.b[at] != '\r' && t.b[at] != '\n' && string(t.b[at:at+len(want)]) != want {
				at++
			}
			if at >= len(t.b)-len(want) || t.b[at] != want[0] {
				return m, sipBad
			}
			at += len(want)
		}
		start, n := l.length(t, at)
		if n == 0 {
			return m, sipBad
		}
		return match{start, n}, sipFound
	}
	return m, sipAbsent
}

// sdpAddress is the address in a line of a session description.
func (t *sipText) sdpAddress(l, term *sdpLine, at int) (a [16]byte, ok bool) {
	m, found := t.sdp(l, term, at)
	if found != sipFound {
		return a, false
	}
	if t.family == packet.IPv4 {
		a, _, _ = t.addr4(m.at)
	} else {
		a, _, _ = t.addr6(m.at)
	}
	return a, true
}
