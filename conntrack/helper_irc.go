package conntrack

import (
	"bytes"
	"strconv"

	"sluice/packet"
)

// dccWords are the offers of a direct connection that carry an address.
var dccWords = []string{"SEND ", "CHAT ", "MOVE ", "TSEND ", "SCHAT "}

// ircReads is how far into a segment an offer is looked for, bytes.
const ircReads = 4095

// helpIRC looks for a DCC offer: a private message at the beginning of a
// segment of the client's, whose text begins with \1DCC.
func helpIRC(c *helpCall) bool {
	data, _, _ := tcpPayload(c.p)
	if c.dir == Reply || data == nil || !c.established() {
		return true
	}
	addr, port, off, n := readDCC(data[:min(len(data), ircReads)])
	// The address may be the client's own or the one it is translated to.
	var ip [16]byte
	be.PutUint32(ip[:], addr)
	if n == 0 || port == 0 || ip != c.e.orig.Src && ip != c.e.reply.Dst {
		return true
	}
	x := c.expectation(packet.ProtoTCP, nil, c.e.reply.Dst, port)
	return c.announce(x, off, n, writeDCC)
}

// writeDCC appends an address, as one number, and a port.
func writeDCC(b []byte, x *Expectation) []byte {
	b = strconv.AppendUint(b, uint64(be.Uint32(x.Tuple.Dst[:])), 10)
	return strconv.AppendUint(append(b, ' '), uint64(x.Tuple.DstPort), 10)
}

// readDCC finds the address and port of an offer, and where they are written; n
// is 0 if there is none. The lengths are what the shortest offer has left at each
// place, as Linux counts it.
func readDCC(data []byte) (addr uint32, port uint16, off, n int) {
	at := 0
	for at < len(data)-10 && (data[at] == ' ' || data[at] == '\r' || data[at] == '\n') {
		at++
	}
	if at < len(data)-10 {
		if !foldPrefix(data[at:], "privmsg ") {
			return 0, 0, 0, 0
		}
		at += 8
	}
	for ; at < len(data)-26; at++ {
		if data[at] != ' ' || data[at+1] != ':' {
			continue
		}
		rest, ok := bytes.CutPrefix(data[at+2:], []byte("\x01DCC "))
		if !ok {
			return 0, 0, 0, 0
		}
		at += 7
		for _, word := range dccWords {
			if bytes.HasPrefix(rest, []byte(word)) {
				addr, port, off, n = readOffer(rest[len(word):])
				return addr, port, at + len(word) + off, n
			}
		}
		at-- // no offer of those: the search goes on behind it
	}
	return 0, 0, 0, 0
}

// readOffer reads "name address port" up to the end of the line.
func readOffer(b []byte) (addr uint32, port uint16, off, n int) {
	for ; b[off] != ' '; off++ {
		if off+1 > len(b)-12 {
			return 0, 0, 0, 0
		}
	}
	off++
	rest := b[off:]
	if bytes.IndexByte(rest, '\n') < 0 {
		return 0, 0, 0, 0
	}
	v, n := decimal(rest)
	for rest[n] == ' ' {
		n++
	}
	w, m := decimal(rest[n:])
	return uint32(v), uint16(w), off, n + m
}

// decimal reads digits; what does not fit wraps around, as in Linux.
func decimal(b []byte) (v uint64, n int) {
	for n < len(b) && digit(b[n]) {
		v = v*10 + uint64(b[n]-'0')
		n++
	}
	return v, n
}
