package conntrack

import (
	"strconv"

	"sluice/packet"
)

// What translation changes in SIP messages.

// appendAddr writes an address; bracketed: IPv6 in [].
func (m *sipCall) appendAddr(b []byte, a *[16]byte, bracketed bool) []byte {
	ip := addr(m.family, a)
	if bracketed && m.family == packet.IPv6 {
		return append(ip.AppendTo(append(b, '[')), ']')
	}
	return ip.AppendTo(b)
}

// putEndpoint writes an address with its port.
func (m *sipCall) putEndpoint(x match, a *[16]byte, port uint16) bool {
	var text [64]byte
	b := append(m.appendAddr(text[:0], a, true), ':')
	return m.put(x, strconv.AppendUint(b, uint64(port), 10))
}

// mapEndpoint translates what was matched, if it is an end of the connection.
func (m *sipCall) mapEndpoint(x match, a [16]byte, port uint16) bool {
	o, r := m.e.Tuple(m.dir), m.e.Tuple(m.dir.Other())
	to, toPort := a, port
	switch {
	case a == o.Src && port == o.SrcPort:
		to, toPort = r.Dst, r.DstPort
	case a == o.Dst && port == o.DstPort:
		to, toPort = r.Src, r.SrcPort
		if v := m.state().viaPort; v != 0 {
			toPort = v
		}
	}
	return to == a && toPort == port || m.putEndpoint(x, &to, toPort)
}

func (m *sipCall) mapFirst(h *sipHeader) bool {
	x, a, port, ok := m.first(h)
	return !ok || m.mapEndpoint(x, a, port)
}

// translate changes the addresses of the connection in a message's headers.
func (m *sipCall) translate() bool {
	question := !foldPrefix(m.b, "sip/2.0")
	if question {
		if x, a, port, found := m.request(); found == sipFound && !m.mapEndpoint(x, a, port) {
			return false
		}
	}
	if !m.mapVia(question) {
		return false
	}
	for w := (uris{h: &sipContact}); ; {
		x, a, port, ok := m.uri(&w)
		if !ok {
			break
		}
		n := len(m.b)
		if !m.mapEndpoint(x, a, port) {
			return false
		}
		w.at += len(m.b) - n
	}
	if !m.mapFirst(&sipFrom) || !m.mapFirst(&sipTo) {
		return false
	}
	// An answer goes to where the request said it is awaited.
	if v := m.state().viaPort; v != 0 && m.dir == Reply {
		if m.p.Proto != packet.ProtoUDP {
			return false
		}
		m.p.SetDstPort(v)
	}
	return true
}

// mapVia translates the topmost Via header, if it is of this connection, and
// what its parameters say of it.
func (m *sipCall) mapVia(question bool) bool {
	h := &sipViaUDP
	if m.e.orig.Proto == packet.ProtoTCP {
		h = &sipViaTCP
	}
	o, r := m.e.Tuple(m.dir), m.e.Tuple(m.dir.Other())
	x, a, port, ok := m.first(h)
	if !ok || question && (a != o.Src || port != o.SrcPort) || !question && (a != o.Dst || port != o.DstPort) {
		return true
	}
	n := len(m.b)
	if !m.mapEndpoint(x, a, port) {
		return false
	}
	end := x.at + x.n + len(m.b) - n
	var text [64]byte
	if a, x, ok := m.addrParam(end, "maddr=", true); ok && a == o.Src && a != r.Dst && !m.put(x, m.appendAddr(text[:0], &r.Dst, true)) {
		return false
	}
	if a, x, ok := m.addrParam(end, "received=", false); ok && a == o.Dst && a != r.Src && !m.put(x, m.appendAddr(text[:0], &r.Src, false)) {
		return false
	}
	if v, x, found := m.numberParam(end, "rport="); found == sipFound && v >= 1024 && v == uint32(o.DstPort) && v != uint32(r.SrcPort) {
		return m.put(x, strconv.AppendUint(text[:0], uint64(r.SrcPort), 10))
	}
	return true
}

// outside is the address that the other side knows a host of this side's
// address a by.
func (m *sipCall) outside(a [16]byte) [16]byte {
	if r := m.e.Tuple(m.dir.Other()); m.e.Tuple(m.dir).Src != r.Dst {
		return r.Dst
	}
	return a
}

// toAnnounced lets x go from where it will be announced to where it is now.
func (m *sipCall) toAnnounced(x *Expectation) {
	x.Follow, x.NATDir = FollowSaved, m.dir
	x.SavedAddr, x.SavedPort = x.Tuple.Dst, x.Tuple.DstPort
	x.Tuple.Dst = m.outside(x.Tuple.Dst)
}

// announceContact registers x and announces the address in its place.
func (m *sipCall) announceContact(at match, x *Expectation) bool {
	o, r := m.e.Tuple(m.dir), m.e.Tuple(m.dir.Other())
	m.toAnnounced(x)
	from := o.SrcPort
	if v := m.state().viaPort; v != 0 {
		from = v
	}
	if x.Tuple.DstPort == from {
		x.Tuple.DstPort = r.DstPort
	}
	if !m.w.ExpectPort(m.e, m.idx, x) {
		return false
	}
	if x.Tuple.Dst == x.SavedAddr && x.Tuple.DstPort == x.SavedPort || m.putEndpoint(at, &x.Tuple.Dst, x.Tuple.DstPort) {
		return true
	}
	m.w.unexpect(x)
	return false
}

// announceStream registers a stream's pair at ports that are free and announces
// the first of them. addr becomes the address to announce.
func (m *sipCall) announceStream(at match, pair [2]*Expectation, addr *[16]byte) bool {
	for _, x := range pair {
		m.toAnnounced(x)
	}
	*addr = pair[0].Tuple.Dst
	for port := pair[0].Tuple.DstPort; ; port += 2 {
		if port == 0 {
			return false
		}
		pair[0].Tuple.DstPort, pair[1].Tuple.DstPort = port, port+1
		r := m.w.expect(m.e, m.idx, true, pair[:]...)
		if r == ExpectOK {
			break
		}
		if r != ExpectClash {
			return false
		}
	}
	if x := pair[0]; x.Tuple.DstPort == x.SavedPort || m.putPort(at, x.Tuple.DstPort) {
		return true
	}
	m.w.unexpect(pair[:]...)
	return false
}

// putPort changes a stream's port in the session description.
func (m *sipCall) putPort(x match, port uint16) bool {
	return m.put(x, strconv.AppendUint(nil, uint64(port), 10)) && m.putLength()
}

// putSDPAddress changes the connection address that a stream has of its own.
func (m *sipCall) putSDPAddress(at int, a *[16]byte) bool {
	x, found := m.sdp(&sdpConnection, &sdpMedia, at)
	return found == sipFound && m.put(x, m.appendAddr(nil, a, false)) && m.putLength()
}

// putSession changes the owner's address, and the connection address of the whole session if there is one.
func (m *sipCall) putSession(at int, a *[16]byte) bool {
	text := m.appendAddr(nil, a, false)
	x, found := m.sdp(&sdpOwner, &sdpMedia, at)
	if found != sipFound || !m.put(x, text) {
		return false
	}
	if x, found = m.sdp(&sdpConnection, &sdpMedia, at); found == sipFound && !m.put(x, text) {
		return false
	}
	return m.putLength()
}

// putLength makes Content-Length what the session description has now.
func (m *sipCall) putLength() bool {
	start, found := m.sdp(&sdpVersion, nil, 0)
	if found != sipFound {
		return false
	}
	x, found := m.header(&sipLength, 0)
	return found == sipFound && m.put(x, strconv.AppendUint(nil, uint64(len(m.b)-start.at+len("v=")), 10))
}
