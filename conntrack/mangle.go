package conntrack

import "sluice/packet"

// tcpPayload is a TCP segment's payload, its offset from the network header and
// its sequence number; nil if it has none.
func tcpPayload(p *packet.Packet) (data []byte, at int, seq uint32) {
	th := p.Transport()
	if len(th) < 20 {
		return nil, 0, 0
	}
	off := int(th[12]>>4) * 4
	if off < 20 || off >= len(th) {
		return nil, 0, 0
	}
	return th[off:], int(p.L4) + off, be.Uint32(th[4:])
}

// udpPayload is a UDP datagram's payload, up to the end of the packet, and its offset; nil if it has none.
func udpPayload(p *packet.Packet) (data []byte, at int) {
	b := p.Transport()
	if len(b) <= 8 {
		return nil, 0
	}
	return b[8:], int(p.L4) + 8
}

// replace puts text in the place of n bytes at off of the TCP or UDP payload
// and mends lengths and checksums. False: the packet cannot hold it.
func (c *helpCall) replace(off, n int, text []byte) bool {
	p := c.p
	at := int(p.L4) + 8
	if p.Proto == packet.ProtoTCP {
		var data []byte
		if data, at, _ = tcpPayload(p); data == nil {
			return false
		}
	}
	if at += off; off < 0 || n < 0 || at+n > p.Len() || !p.Resize(at, n, len(text)) {
		return false
	}
	copy(p.Bytes()[at:], text)
	if b := p.Transport(); p.Proto == packet.ProtoUDP && p.GSO.Type == packet.GSONone {
		be.PutUint16(b[4:], uint16(len(b)))
	}
	p.Mangled()
	return true
}

// mangle is replace that also notes by how much a TCP stream has shifted.
func (c *helpCall) mangle(off, n int, text []byte) bool {
	if !c.replace(off, n, text) {
		return false
	}
	if c.p.Proto != packet.ProtoTCP {
		return true
	}
	return c.shift(len(text) - n)
}

// shift notes that the segment at hand has grown by delta bytes.
func (c *helpCall) shift(delta int) bool {
	_, _, seq := tcpPayload(c.p)
	return c.w.ShiftSeq(c.e, c.dir, seq, int32(delta))
}

// announce expects x, which the payload names in n bytes at off. For a translated
// connection write gives what the peer reaches the announcer by, with the same
// port if nobody expects a connection there.
func (c *helpCall) announce(x *Expectation, off, n int, write func(b []byte, x *Expectation) []byte) bool {
	if !c.translated {
		return c.expect(x)
	}
	x.Follow, x.NATDir, x.SavedPort = FollowMaster, c.dir, x.Tuple.DstPort
	if !c.w.ExpectPort(c.e, c.idx, x) {
		return false
	}
	var text [64]byte
	if c.mangle(off, n, write(text[:0], x)) {
		return true
	}
	c.w.unexpect(x)
	return false
}
