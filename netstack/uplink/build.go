package uplink

import (
	"encoding/binary"

	"sluice/packet"
)

// ttl is what packets come in with, as from a host next door.
const ttl = 64

// headerLen is the length of a network header without options.
func headerLen(family uint8) int {
	if family == packet.IPv4 {
		return 20
	}
	return 40
}

// start makes p a packet of the flow towards inside, with n bytes after the
// network header, which are the result.
func (f *flow) start(p *packet.Packet, proto uint8, n int) []byte {
	p.Off = packet.Headroom
	hl := headerLen(f.key.family)
	p.End = p.Off + hl + n
	b := p.Buf[p.Off:p.End]
	f.ipID++
	network(b, f.key.family, proto, f.ipID, &f.key.out, &f.key.in)
	p.Flags |= packet.L4ChecksumOK
	return b[hl:]
}

// network writes a network header to b, whose length is the packet's.
func network(b []byte, family, proto uint8, id uint16, src, dst *[16]byte) {
	be := binary.BigEndian
	if family == packet.IPv4 {
		clear(b[:20])
		b[0] = 0x45
		be.PutUint16(b[2:], uint16(len(b)))
		be.PutUint16(b[4:], id)
		b[8], b[9] = ttl, proto
		copy(b[12:16], src[:4])
		copy(b[16:20], dst[:4])
		if proto == packet.ProtoTCP {
			b[6] = 0x40 // DF: segments fit, or path MTU discovery says so
		}
		be.PutUint16(b[10:], ^packet.Sum(b[:20]))
		return
	}
	be.PutUint32(b, 6<<28)
	be.PutUint16(b[4:], uint16(len(b)-40))
	b[6], b[7] = proto, ttl
	copy(b[8:24], src[:])
	copy(b[24:40], dst[:])
}

// partial leaves the transport checksum to the device: the field at at holds the pseudo header's sum.
func (f *flow) partial(p *packet.Packet, t []byte, proto uint8, at int) {
	n := 16
	if f.key.family == packet.IPv4 {
		n = 4
	}
	binary.BigEndian.PutUint16(t[at:], packet.PseudoSum(f.key.out[:n], f.key.in[:n], proto, len(t)))
	p.GSO.NeedsCsum, p.GSO.CsumStart, p.GSO.CsumOffset = true, uint16(headerLen(f.key.family)), uint16(at)
}

// quote makes p look like the packet from inside that an ICMP error is about:
// network header, and of the transport header what the error's reader needs.
func (f *flow) quote(p *packet.Packet, seq uint32, payload []byte) {
	p.Reset()
	hl := headerLen(f.key.family)
	n := 8
	if f.key.proto == packet.ProtoTCP {
		n = 20
	}
	payload = payload[:min(len(payload), 1200)]
	p.End = p.Off + hl + n + len(payload)
	b := p.Bytes()
	clear(b[:hl+n])
	network(b, f.key.family, f.key.proto, 0, &f.key.in, &f.key.out)
	t := b[hl:]
	copy(t[n:], payload)
	be := binary.BigEndian
	switch f.key.proto {
	case packet.ProtoTCP:
		be.PutUint16(t, f.key.inPort)
		be.PutUint16(t[2:], f.key.outPort)
		be.PutUint32(t[4:], seq)
		t[12], t[13] = 5<<4, packet.TCPSyn
	case packet.ProtoUDP:
		be.PutUint16(t, f.key.inPort)
		be.PutUint16(t[2:], f.key.outPort)
		be.PutUint16(t[4:], uint16(n+len(payload)))
	default:
		t[0] = 8
		if f.key.family == packet.IPv6 {
			t[0] = 128
		}
		be.PutUint16(t[4:], f.key.inPort)
		be.PutUint16(t[6:], uint16(seq))
	}
	if p.Parse() == 0 {
		p.FixChecksums()
	}
}

// icmpError queues an ICMP error about orig. from is who sends it; nil: the
// router, or the far end where that has no address.
func (q *queue) icmpError(orig *packet.Packet, typ, code uint8, rest uint32, from *[16]byte) {
	src := orig.Dst()
	if from != nil {
		src = *from
	} else if q.link.cfg.Router != nil {
		if a, ok := q.link.cfg.Router(orig.Family, orig.Src()); ok {
			src = a
		}
	}
	if packet.BuildICMPError(q.answer, orig, typ, code, rest, src) {
		q.push(q.answer.Bytes())
	}
}

// refuse queues a RST for a segment that belongs to no connection, or not to the one it names.
func (q *queue) refuse(p *packet.Packet) {
	if p.TCPFlags()&packet.TCPRst == 0 && packet.BuildTCPReset(q.answer, p) {
		q.push(q.answer.Bytes())
	}
}

// flowError queues an ICMP error about a packet of the flow that is not at hand any more.
func (q *queue) flowError(f *flow, typ, code uint8, rest uint32, from *[16]byte, seq uint32, payload []byte) {
	f.quote(q.quoted, seq, payload)
	q.icmpError(q.quoted, typ, code, rest, from)
}
