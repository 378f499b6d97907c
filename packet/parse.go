package packet

import (
	"encoding/binary"
	"math/bits"
)

// viewFlags are those that Parse and ParseL4 decide.
const viewFlags = Fragment | LaterFragment | MoreFragments | DontFragment | Options | HasL4 | HasPorts | BadHeaders

// transport is what Parse needs to know of a protocol: how long the fixed part
// of its header is, and the flags of a packet that has it.
type transport struct {
	min   uint16
	flags Flags
}

var transports = func() (t [256]transport) {
	for i := range t {
		t[i].flags = HasL4
	}
	t[ProtoICMP].min, t[ProtoICMPv6].min = 8, 8
	t[ProtoTCP] = transport{20, HasL4 | HasPorts}
	t[ProtoUDP] = transport{8, HasL4 | HasPorts}
	t[ProtoUDPLite] = transport{8, HasL4 | HasPorts}
	t[ProtoDCCP] = transport{12, HasL4 | HasPorts}
	t[ProtoSCTP] = transport{12, HasL4 | HasPorts}
	return t
}()

// Parse checks what Linux checks when a packet comes in (ip_rcv, ipv6_rcv with
// its hop-by-hop options), cuts off what lies beyond the packet's own length,
// and fills the view. It returns 0, or why the packet has to be dropped; see
// Problem for the ICMP error that may be due. IPv4 options are looked at later,
// by CompileOptions, as Linux does it after PREROUTING.
func (p *Packet) Parse() Reason {
	if p.parsePlain() {
		return 0
	}
	p.Flags &^= viewFlags
	p.FragOff, p.FragID, p.errAt = 0, 0, 0
	if p.PktType == PktOtherHost {
		return DropOtherHost
	}
	b := p.Bytes()
	if len(b) == 0 {
		return DropTruncated
	}
	switch b[0] >> 4 {
	case 4:
		p.Family = IPv4
		if r := p.parse4(b); r != 0 {
			return r
		}
	case 6:
		p.Family = IPv6
		if r := p.parse6(b); r != 0 {
			return r
		}
	default:
		return DropBadVersion
	}
	if p.GSO.NeedsCsum || p.GSO.Type != GSONone {
		return p.checkOffload()
	}
	return 0
}

// parsePlain is Parse for what comes most: TCP or UDP over IPv4 without options,
// no fragment, nothing left to offload. false: it is another packet, or not right.
func (p *Packet) parsePlain() bool {
	b := p.Bytes()
	if len(b) < 28 || p.PktType == PktOtherHost || p.GSO.NeedsCsum || p.GSO.Type != GSONone {
		return false
	}
	h := (*[28]byte)(b)
	le := binary.LittleEndian
	w0, w1, w2 := le.Uint64(h[:]), le.Uint64(h[8:]), uint64(le.Uint32(h[16:]))
	const fragment = 0xff3f << 48 // its offset and MF
	n, proto := bits.ReverseBytes16(uint16(w0>>16)), uint8(w1>>8)
	if uint8(w0) != 0x45 || w0&fragment != 0 || int(n) > len(b) || n < 28 || proto != ProtoUDP && (proto != ProtoTCP || n < 40) {
		return false
	}
	s, c := bits.Add64(w0, w1, 0)
	s, c = bits.Add64(s, w2, c)
	if fold64(s+c) != 0xffff {
		return false
	}
	p.End = p.Off + int(n)
	p.Family, p.Proto, p.L4, p.FragOff, p.errAt = IPv4, proto, 20, 0, 0
	p.FragID = uint32(bits.ReverseBytes16(uint16(w0 >> 32)))
	f := p.Flags&^viewFlags | HasL4 | HasPorts
	if w0&(0x40<<48) != 0 {
		f |= DontFragment
	}
	p.Flags = f
	return true
}

func (p *Packet) parse4(b []byte) Reason {
	if len(b) < 20 {
		return DropTruncated
	}
	h := (*[20]byte)(b)
	ihl := int(h[0]&15) * 4
	if ihl < 20 {
		return DropBadHeader
	}
	if len(b) < ihl {
		return DropTruncated
	}
	if ihl == 20 && headerSum(h) != 0xffff || ihl > 20 && Sum(b[:ihl]) != 0xffff {
		return DropBadSum
	}
	n := int(be.Uint16(h[2:]))
	if n > len(b) {
		return DropTruncated
	}
	if n < ihl {
		return DropBadLength
	}
	p.End = p.Off + n
	p.view4(h, n)
	return 0
}

// headerSum is Sum of a header without options, but for its byte order, which
// is of no matter to what it is compared with.
func headerSum(h *[20]byte) uint16 {
	s, c := bits.Add64(binary.LittleEndian.Uint64(h[:]), binary.LittleEndian.Uint64(h[8:]), 0)
	s, c = bits.Add64(s, uint64(binary.LittleEndian.Uint32(h[16:])), c)
	return fold64(s + c)
}

// view4 fills the view of a packet of n bytes whose header h is known to be whole.
func (p *Packet) view4(h *[20]byte, n int) {
	ihl := uint16(h[0]&15) * 4
	proto := h[9]
	p.Proto = proto
	p.L4 = ihl
	p.FragID = uint32(be.Uint16(h[4:]))
	f := p.Flags
	if ihl > 20 {
		f |= Options
	}
	w := be.Uint16(h[6:])
	if w&0x4000 != 0 {
		f |= DontFragment
	}
	if w&0x3fff != 0 {
		f |= Fragment
		if w&0x2000 != 0 {
			f |= MoreFragments
		}
		if p.FragOff = w & 0x1fff << 3; p.FragOff != 0 {
			p.Flags = f | LaterFragment
			return
		}
	}
	if k := transports[proto]; n-int(ihl) >= int(k.min) {
		f |= k.flags
	}
	p.Flags = f
}

func (p *Packet) parse6(b []byte) Reason {
	if len(b) < 40 {
		return Drop6Truncated
	}
	if p.Flags&(Local|Loopback) == 0 && badAddress6(b) {
		return Drop6BadAddress
	}
	n := int(be.Uint16(b[4:]))
	if n != 0 || b[6] != hopByHop {
		if n+40 > len(b) {
			return Drop6Truncated
		}
		b = b[:n+40]
		p.End = p.Off + len(b)
	}
	if b[6] == hopByHop {
		if r := p.hopOptions(b); r != 0 {
			return r
		}
	}
	p.view6(b)
	return 0
}

// badAddress6 are the addresses ipv6_rcv refuses from a wire (RFC 4291 2.5.3, 2.7).
func badAddress6(b []byte) bool {
	if b[8] == 0xff { // multicast source
		return true
	}
	if b[24] == 0xff && b[25]&15 <= 1 { // reserved and interface-local scope
		return true
	}
	return loopback6(b[8:24]) || loopback6(b[24:40])
}

func loopback6(a []byte) bool { return be.Uint64(a) == 0 && be.Uint64(a[8:]) == 1 }

// IPv6 next header values of the headers that are walked over.
const (
	hopByHop  uint8 = 0
	routingH  uint8 = 43
	fragmentH uint8 = 44
	destOpts  uint8 = 60
)

// Extension says whether h is an IPv6 extension header that is walked over.
func Extension(h uint8) bool {
	switch h {
	case hopByHop, routingH, fragmentH, destOpts, ProtoAH:
		return true
	}
	return false
}

// view6 walks the extension headers. Where they cannot be followed it sets
// BadHeaders: Linux forwards such a packet unless a rule asks for its protocol.
func (p *Packet) view6(b []byte) {
	next, at := b[6], 40
	f := p.Flags
	for Extension(next) {
		if len(b) < at+8 && (len(b) < at+2 || next == fragmentH) {
			if next == fragmentH {
				f |= Fragment // not even a whole fragment header; reassembly drops it
			}
			p.Proto, p.L4, p.Flags = next, uint16(at), f|BadHeaders
			return
		}
		h := next
		next = b[at]
		switch h {
		case fragmentH:
			w := be.Uint16(b[at+2:])
			f |= Fragment
			if w&1 != 0 {
				f |= MoreFragments
			}
			p.FragOff = w &^ 7
			p.FragID = be.Uint32(b[at+4:])
			at += 8
			if p.FragOff != 0 {
				f |= LaterFragment
				if Extension(next) {
					f |= BadHeaders
				}
				p.Proto, p.L4, p.Flags = next, uint16(at), f
				return
			}
		case ProtoAH:
			at += (int(b[at+1]) + 2) * 4
		default:
			at += (int(b[at+1]) + 1) * 8
		}
		if at > len(b) {
			p.Proto, p.L4, p.Flags = next, uint16(len(b)), f|BadHeaders
			return
		}
	}
	p.Proto, p.L4 = next, uint16(at)
	if k := transports[next]; len(b)-at >= int(k.min) && next != ProtoNone {
		f |= k.flags
	}
	p.Flags = f
}

// NextHeaderAt is the offset of the field of an IPv6 packet that names its
// transport protocol: in the last header before that. The extension headers
// must be whole (no BadHeaders).
func (p *Packet) NextHeaderAt() int {
	b := p.Bytes()
	field, at := 6, 40
	for Extension(b[field]) && at+8 <= len(b) {
		n := int(b[at+1])*8 + 8
		switch b[field] {
		case fragmentH:
			n = 8
		case ProtoAH:
			n = int(b[at+1])*4 + 8
		}
		field, at = at, at+n
	}
	return field
}

// ParseL4 fills the view again after a rewrite that changed the packet's
// structure. The network header must be whole and its lengths true. A partial
// checksum moves with the transport header.
func (p *Packet) ParseL4() {
	b := p.Bytes()
	old := p.L4
	p.Flags &^= viewFlags
	p.FragOff, p.FragID = 0, 0
	switch {
	case p.Family == IPv4 && len(b) >= 20 && int(b[0]&15)*4 >= 20 && len(b) >= int(b[0]&15)*4:
		p.view4((*[20]byte)(b), len(b))
	case p.Family == IPv6 && len(b) >= 40:
		p.view6(b)
	default:
		p.Proto, p.L4 = 0, 0
	}
	if p.GSO.CsumStart == old {
		p.GSO.CsumStart = p.L4
	}
}

// checkOffload refuses an offload header that does not fit, so that nothing
// later has to doubt it; one that is void is cleared.
func (p *Packet) checkOffload() Reason {
	g := &p.GSO
	n := p.Len()
	if g.NeedsCsum && (g.CsumStart < p.L4 || int(g.CsumStart)+int(g.CsumOffset)+2 > n) {
		return DropBadOffload
	}
	switch t := g.Type &^ GSOECN; t {
	case GSONone:
		g.Type, g.Size = GSONone, 0
		return 0
	case GSOTCPv4, GSOTCPv6:
		if p.Proto != ProtoTCP || (t == GSOTCPv4) != (p.Family == IPv4) {
			return DropBadOffload
		}
	case GSOUDPL4, GSOUDP:
		if p.Proto != ProtoUDP {
			return DropBadOffload
		}
	default:
		return DropBadOffload
	}
	if g.Size == 0 || p.Flags&(HasL4|Fragment) != HasL4 {
		return DropBadOffload
	}
	if p.Proto == ProtoTCP && p.TCPHeaderLen() == 0 {
		return DropBadOffload
	}
	return 0
}
