package nat

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"

	"sluice/conntrack"
	"sluice/packet"
)

// helpers is the NAT part of conntrack's helpers.
type helpers struct{ n *NAT }

// Expected makes a connection that a helper announced follow its master: it
// comes from whom the master's announcer talks to, and goes to the announcer,
// at the port that was announced. That settles both manips, so the connection
// does not meet the nat table. A clash shows at Confirm.
func (h helpers) Expected(w *conntrack.Worker, p *packet.Packet, e *conntrack.Entry, x *conntrack.Expectation) {
	n := h.n
	master := w.Table().At(x.Master)
	if master.Generation() != x.MasterGen {
		return
	}
	from := master.Tuple(x.NATDir)
	n.settle(w, e, &Range{Min: from.Dst, Max: from.Dst, Flags: MapIPs}, Src)
	n.settle(w, e, &Range{
		Min: from.Src, Max: from.Src, MinPort: x.SavedPort, MaxPort: x.SavedPort,
		Flags: MapIPs | ProtoSpecified,
	}, Dst)
}

// FTP rewrites an announced address to the one that the peer reaches the
// announcer by, with the same port if nobody expects a connection there.
func (h helpers) FTP(w *conntrack.Worker, p *packet.Packet, e *conntrack.Entry, dir conntrack.Dir, form conntrack.FTPForm, off, n int, x *conntrack.Expectation) bool {
	addr := e.Tuple(dir.Other()).Dst
	x.NAT, x.NATDir, x.SavedPort = true, dir, x.Tuple.DstPort
	if !expectPort(w, p, e, x) {
		return false
	}
	var text [64]byte
	b := announce(text[:0], form, p.Family, &addr, x.Tuple.DstPort)
	if mangleTCP(w, p, e, dir, off, n, b) {
		return true
	}
	w.Table().DeleteExpectations(func(o *conntrack.Expectation) bool { return o == x })
	return false
}

// TFTP expects the server's answer, which comes from a port of its own choice,
// at the port that the client's request was given.
func (h helpers) TFTP(w *conntrack.Worker, p *packet.Packet, e *conntrack.Entry, x *conntrack.Expectation) bool {
	x.NAT, x.NATDir, x.SavedPort = true, conntrack.Original, e.Tuple(conntrack.Original).SrcPort
	return w.Expect(e, p.Ct, x) == conntrack.ExpectOK
}

// expectPort registers x at its port, or at a higher one that is free.
func expectPort(w *conntrack.Worker, p *packet.Packet, e *conntrack.Entry, x *conntrack.Expectation) bool {
	low := x.Tuple.DstPort
	span := 65535 - int(low)
	for left := min(span, maxAttempts); ; left-- {
		switch w.Expect(e, p.Ct, x) {
		case conntrack.ExpectOK:
			return true
		case conntrack.ExpectClash:
		default:
			return false
		}
		if left <= 0 {
			return false
		}
		x.Tuple.DstPort = low + uint16(rand.IntN(span))
	}
}

// announce writes an address and port in one of FTP's notations (RFC 959, 2428).
// IPv6 addresses are written in full, as Linux writes them.
func announce(b []byte, form conntrack.FTPForm, family uint8, addr *[16]byte, port uint16) []byte {
	dec := func(v uint64) { b = strconv.AppendUint(b, v, 10) }
	switch form {
	case conntrack.FTPPort, conntrack.FTPPasv:
		for _, v := range addr[:4] {
			dec(uint64(v))
			b = append(b, ',')
		}
		dec(uint64(port >> 8))
		b = append(b, ',')
		dec(uint64(port & 0xff))
	case conntrack.FTPEprt:
		if family == packet.IPv4 {
			b = append(b, "|1|"...)
			for i, v := range addr[:4] {
				if i > 0 {
					b = append(b, '.')
				}
				dec(uint64(v))
			}
		} else {
			b = append(b, "|2|"...)
			const hex = "0123456789abcdef"
			for i, v := range addr {
				if i > 0 && i%2 == 0 {
					b = append(b, ':')
				}
				b = append(b, hex[v>>4], hex[v&15])
			}
		}
		b = append(b, '|')
		dec(uint64(port))
		b = append(b, '|')
	case conntrack.FTPEpsv:
		b = append(b, "|||"...)
		dec(uint64(port))
		b = append(b, '|')
	}
	return b
}

// mangleTCP replaces n bytes at off of a TCP payload, mends lengths and checksums,
// and notes by how much the stream has shifted.
func mangleTCP(w *conntrack.Worker, p *packet.Packet, e *conntrack.Entry, dir conntrack.Dir, off, n int, text []byte) bool {
	th := p.Transport()
	if len(th) < 20 || off < 0 || n < 0 {
		return false
	}
	seq := binary.BigEndian.Uint32(th[4:])
	at := int(p.L4) + int(th[12]>>4)*4 + off
	if at+n > p.Len() || !p.Resize(at, n, len(text)) {
		return false
	}
	copy(p.Bytes()[at:], text)
	p.Mangled()
	return w.ShiftSeq(e, dir, seq, int32(len(text)-n))
}
