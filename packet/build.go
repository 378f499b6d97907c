package packet

// DefaultTTL is the TTL and hop limit of built packets; the router sets its own where its sysctls differ.
const DefaultTTL = 64

// ICMP and ICMPv6 message types that this package builds or tells apart.
const (
	ICMPEchoReply       = 0
	ICMPDestUnreach     = 3
	ICMPSourceQuench    = 4
	ICMPRedirect        = 5
	ICMPEcho            = 8
	ICMPTimeExceeded    = 11
	ICMPParamProblem    = 12
	ICMPFragNeeded      = 4 // code of ICMPDestUnreach
	ICMPv6DestUnreach   = 1
	ICMPv6PacketTooBig  = 2
	ICMPv6TimeExceeded  = 3
	ICMPv6ParamProblem  = 4
	ICMPv6EchoRequest   = 128
	ICMPv6EchoReply     = 129
	icmpv6UnknownOption = 2 // code of ICMPv6ParamProblem
)

// icmpError: only the known queries and their replies are not errors, to Linux.
func icmpError(typ uint8) bool {
	return typ != ICMPEchoReply && typ != ICMPEcho && (typ < 13 || typ > 18)
}

// MayAnswerWithError says whether an ICMP error of this kind may be sent about
// p at all, by what the packet itself shows: not about a later fragment, an
// ICMP error, a link-level or network-level multicast or broadcast, or a source
// that is not one host. Whether an IPv4 destination is a subnet's broadcast
// address is the caller's to know.
func (p *Packet) MayAnswerWithError(typ, code uint8) bool {
	if p.Family == IPv4 {
		return p.mayError4(typ)
	}
	return p.mayError6(typ, code)
}

func (p *Packet) mayError4(typ uint8) bool {
	if p.Len() < 20 || p.PktType != PktHost || p.Flags&LaterFragment != 0 {
		return false
	}
	src, dst := p.Src4(), p.Dst4()
	if dst>>28 == 14 || dst == 0xffffffff || src>>28 == 14 || src == 0xffffffff || src == 0 {
		return false
	}
	if p.Proto == ProtoICMP && icmpError(typ) {
		t := p.Transport()
		if len(t) == 0 || icmpError(t[0]) {
			return false
		}
	}
	return true
}

func (p *Packet) mayError6(typ, code uint8) bool {
	if p.Len() < 40 {
		return false
	}
	b := p.Bytes()
	if b[24] == 0xff || p.PktType != PktHost {
		if typ != ICMPv6PacketTooBig && (typ != ICMPv6ParamProblem || code != icmpv6UnknownOption) {
			return false
		}
	}
	if b[8] == 0xff || be.Uint64(b[8:]) == 0 && be.Uint64(b[16:]) == 0 {
		return false
	}
	if p.Proto == ProtoICMPv6 && p.Flags&BadHeaders == 0 {
		t := p.Transport()
		if p.Flags&LaterFragment != 0 {
			return true
		}
		if len(t) == 0 {
			return p.Flags&Fragment != 0
		}
		return t[0]&128 != 0
	}
	return true
}

// BuildICMPError makes dst the ICMP or ICMPv6 error about orig, from src, as
// Linux's icmp_send and icmp6_send do: as much of orig as fits in 576 (IPv4)
// or 1280 (IPv6) bytes, precedence "internetwork control" on IPv4. rest is the
// header's second word (MTU, parameter pointer). It is false, and dst is not
// to be sent, where MayAnswerWithError is.
func BuildICMPError(dst, orig *Packet, typ, code uint8, rest uint32, src [16]byte) bool {
	if !orig.MayAnswerWithError(typ, code) {
		return false
	}
	to := orig.Src()
	o := orig.Bytes()
	if orig.Family == IPv4 {
		n := min(len(o), 576-20-8)
		b := dst.start(IPv4, ProtoICMP, 28+n, src, to)
		b[1] = o[1]&0x1e | 0xc0
		be.PutUint16(b[4:], uint16(rand32()))
		icmpHeader(b[20:], typ, code, rest)
		copy(b[28:], o[:n])
	} else {
		n := min(len(o), 1280-40-8)
		b := dst.start(IPv6, ProtoICMPv6, 48+n, src, to)
		icmpHeader(b[40:], typ, code, rest)
		copy(b[48:], o[:n])
	}
	dst.finish(orig)
	return true
}

func icmpHeader(t []byte, typ, code uint8, rest uint32) {
	t[0], t[1], t[2], t[3] = typ, code, 0, 0
	be.PutUint32(t[4:], rest)
}

// start makes p an empty packet of n bytes with a network header and returns its bytes.
func (p *Packet) start(family, proto uint8, n int, src, dst [16]byte) []byte {
	p.Reset()
	p.End = p.Off + n
	p.Family, p.Proto = family, proto
	b := p.Bytes()
	if family == IPv4 {
		clear(b[:20])
		b[0] = 0x45
		be.PutUint16(b[2:], uint16(n))
		b[8], b[9] = DefaultTTL, proto
		copy(b[12:16], src[:4])
		copy(b[16:20], dst[:4])
	} else {
		clear(b[:8])
		b[0] = 0x60
		be.PutUint16(b[4:], uint16(n-40))
		b[6], b[7] = proto, DefaultTTL
		copy(b[8:24], src[:])
		copy(b[24:40], dst[:])
	}
	return b
}

// finish fills in the view and the checksums of a packet the router made about orig.
func (p *Packet) finish(orig *Packet) {
	p.ParseL4()
	p.FixChecksums()
	p.Flags |= Local
	p.Now, p.Worker = orig.Now, orig.Worker
}

// BuildTCPReset makes dst the reset that answers orig, as REJECT --reject-with
// tcp-reset does. It is false where none is due: not TCP, a fragment, a reset
// itself, or a wrong checksum.
func BuildTCPReset(dst, orig *Packet) bool {
	t := orig.tcp()
	if t == nil || orig.Flags&LaterFragment != 0 || t[13]&TCPRst != 0 || !orig.VerifyL4() {
		return false
	}
	if orig.Family == IPv6 {
		b := orig.Bytes()
		if b[8] == 0xff || b[24] == 0xff || zero16(b[8:]) || zero16(b[24:]) {
			return false
		}
	}
	var r []byte
	if orig.Family == IPv4 {
		b := dst.start(IPv4, ProtoTCP, 40, orig.Dst(), orig.Src())
		b[6] = 0x40 // DF, and no identification
		r = b[20:]
	} else {
		r = dst.start(IPv6, ProtoTCP, 60, orig.Dst(), orig.Src())[40:]
	}
	clear(r[:20])
	copy(r[0:2], t[2:4])
	copy(r[2:4], t[0:2])
	r[12] = 5 << 4
	if t[13]&TCPAckFlag != 0 {
		copy(r[4:8], t[8:12])
		r[13] = TCPRst
	} else {
		ack := be.Uint32(t[4:]) + uint32(len(t)) - uint32(t[12]>>4)*4
		if t[13]&TCPSyn != 0 {
			ack++
		}
		if t[13]&TCPFin != 0 {
			ack++
		}
		be.PutUint32(r[8:], ack)
		r[13] = TCPRst | TCPAckFlag
	}
	dst.finish(orig)
	return true
}

// TCPSegment is what BuildTCP makes a segment without payload of. Options are
// padded to whole words.
type TCPSegment struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8
	Window           uint16
	Options          []byte
}

// BuildTCP makes dst a segment of orig's family that the router sends because of it.
func BuildTCP(dst, orig *Packet, s *TCPSegment) {
	n := 20 + len(s.Options)
	var t []byte
	if orig.Family == IPv4 {
		b := dst.start(IPv4, ProtoTCP, 20+n, s.Src, s.Dst)
		b[6] = 0x40 // DF, and no identification
		t = b[20:]
	} else {
		t = dst.start(IPv6, ProtoTCP, 40+n, s.Src, s.Dst)[40:]
	}
	clear(t[:20])
	be.PutUint16(t, s.SrcPort)
	be.PutUint16(t[2:], s.DstPort)
	be.PutUint32(t[4:], s.Seq)
	be.PutUint32(t[8:], s.Ack)
	t[12], t[13] = uint8(n/4)<<4, s.Flags
	be.PutUint16(t[14:], s.Window)
	copy(t[20:], s.Options)
	dst.finish(orig)
}

func zero16(a []byte) bool { return be.Uint64(a) == 0 && be.Uint64(a[8:]) == 0 }

// BuildEcho makes p an echo request (or reply) of n payload bytes that count up.
func BuildEcho(p *Packet, family uint8, src, dst [16]byte, reply bool, id, seq uint16, n int) {
	typ, proto, hdr := uint8(ICMPEcho), ProtoICMP, 20
	if family == IPv6 {
		typ, proto, hdr = ICMPv6EchoRequest, ProtoICMPv6, 40
		if reply {
			typ = ICMPv6EchoReply
		}
	} else if reply {
		typ = ICMPEchoReply
	}
	b := p.start(family, proto, hdr+8+n, src, dst)
	icmpHeader(b[hdr:], typ, 0, uint32(id)<<16|uint32(seq))
	for i, d := 0, b[hdr+8:]; i < n; i++ {
		d[i] = byte(i)
	}
	p.ParseL4()
	p.FixChecksums()
}
