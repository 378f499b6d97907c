package packet

import "net/netip"

// Src is the source address in network order, IPv4 in the first four bytes.
func (p *Packet) Src() (a [16]byte) {
	if p.Family == IPv4 {
		copy(a[:4], p.Buf[p.Off+12:p.Off+16])
	} else {
		copy(a[:], p.Buf[p.Off+8:p.Off+24])
	}
	return a
}

// Dst is the destination address, as Src.
func (p *Packet) Dst() (a [16]byte) {
	if p.Family == IPv4 {
		copy(a[:4], p.Buf[p.Off+16:p.Off+20])
	} else {
		copy(a[:], p.Buf[p.Off+24:p.Off+40])
	}
	return a
}

// Src4 is an IPv4 source address in host order.
func (p *Packet) Src4() uint32 { return be.Uint32(p.Buf[p.Off+12:]) }

// Dst4 is an IPv4 destination address in host order.
func (p *Packet) Dst4() uint32 { return be.Uint32(p.Buf[p.Off+16:]) }

// Addr makes a netip.Addr of an address as Src gives it.
func Addr(family uint8, a [16]byte) netip.Addr {
	if family == IPv4 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

// AddrBytes is the reverse of Addr.
func AddrBytes(a netip.Addr) (b [16]byte) {
	if a.Is4() {
		v := a.As4()
		copy(b[:], v[:])
		return b
	}
	return a.As16()
}

// FullMask is the mask of an address of its own, which is also a family's last address.
func FullMask(family uint8) (m [16]byte) {
	n := 16
	if family == IPv4 {
		n = 4
	}
	for i := range n {
		m[i] = 0xff
	}
	return m
}

// SrcAddr is the source address.
func (p *Packet) SrcAddr() netip.Addr { return Addr(p.Family, p.Src()) }

// DstAddr is the destination address.
func (p *Packet) DstAddr() netip.Addr { return Addr(p.Family, p.Dst()) }

// SrcPort is the source port, 0 where the packet has none.
func (p *Packet) SrcPort() uint16 {
	if p.Flags&HasPorts == 0 {
		return 0
	}
	return be.Uint16(p.Buf[p.Off+int(p.L4):])
}

// DstPort is the destination port, 0 where the packet has none.
func (p *Packet) DstPort() uint16 {
	if p.Flags&HasPorts == 0 {
		return 0
	}
	return be.Uint16(p.Buf[p.Off+int(p.L4)+2:])
}

// TTL is the time to live or the hop limit.
func (p *Packet) TTL() uint8 {
	if p.Family == IPv4 {
		return p.Buf[p.Off+8]
	}
	return p.Buf[p.Off+7]
}

// TOS is the type of service or the traffic class, ECN bits included.
func (p *Packet) TOS() uint8 {
	if p.Family == IPv4 {
		return p.Buf[p.Off+1]
	}
	return uint8(be.Uint16(p.Buf[p.Off:]) >> 4)
}

// ID is the IPv4 identification; 0 for IPv6.
func (p *Packet) ID() uint16 {
	if p.Family == IPv4 {
		return be.Uint16(p.Buf[p.Off+4:])
	}
	return 0
}

// FlowHash mixes addresses, protocol and ports so that both directions of a flow
// give the same; fragments of a packet do too.
func (p *Packet) FlowHash() uint32 {
	b := p.Buf[p.Off:]
	var h uint64
	if p.Family == IPv4 {
		h = uint64(be.Uint32(b[12:]) ^ be.Uint32(b[16:]))
	} else {
		h = be.Uint64(b[8:]) ^ be.Uint64(b[24:]) ^ (be.Uint64(b[16:])^be.Uint64(b[32:]))*31
	}
	h ^= uint64(p.Proto) << 56
	if p.Flags&(HasPorts|Fragment) == HasPorts {
		h ^= uint64(be.Uint16(b[p.L4:])^be.Uint16(b[p.L4+2:])) << 32
	}
	return uint32((h ^ h>>33) * 0xff51afd7ed558ccd >> 33)
}

// FlowLabel is the IPv6 flow label; 0 for IPv4.
func (p *Packet) FlowLabel() uint32 {
	if p.Family == IPv6 {
		return be.Uint32(p.Buf[p.Off:]) & 0xfffff
	}
	return 0
}

// TCP flag bits, as TCPFlags gives them.
const (
	TCPFin uint8 = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAckFlag
	TCPUrg
	TCPEce
	TCPCwr
)

func (p *Packet) tcp() []byte {
	if p.Proto != ProtoTCP || p.Flags&HasL4 == 0 {
		return nil
	}
	return p.Transport()
}

// TCPFlags is the header's flag byte; 0 where there is no TCP header.
func (p *Packet) TCPFlags() uint8 {
	if t := p.tcp(); t != nil {
		return t[13]
	}
	return 0
}

// TCPSeq is the sequence number.
func (p *Packet) TCPSeq() uint32 {
	if t := p.tcp(); t != nil {
		return be.Uint32(t[4:])
	}
	return 0
}

// TCPAck is the acknowledgment number.
func (p *Packet) TCPAck() uint32 {
	if t := p.tcp(); t != nil {
		return be.Uint32(t[8:])
	}
	return 0
}

// TCPWindow is the window field, unscaled.
func (p *Packet) TCPWindow() uint16 {
	if t := p.tcp(); t != nil {
		return be.Uint16(t[14:])
	}
	return 0
}

// TCPHeaderLen is the header's length in bytes by its data offset; 0 where
// there is no TCP header, or the offset is below 5 or beyond the packet.
func (p *Packet) TCPHeaderLen() int {
	t := p.tcp()
	if t == nil {
		return 0
	}
	n := int(t[12]>>4) * 4
	if n < 20 || n > len(t) {
		return 0
	}
	return n
}

// TCPOptions is the options' bytes, a part of the packet; nil where there are none.
func (p *Packet) TCPOptions() []byte {
	n := p.TCPHeaderLen()
	if n <= 20 {
		return nil
	}
	return p.Transport()[20:n]
}

// NextTCPOption is the first of opts, its kind and length with it, and what
// follows; nil where the list ends or is damaged. No-operations are passed over.
func NextTCPOption(opts []byte) (opt, rest []byte) {
	for len(opts) > 0 && opts[0] == 1 {
		opts = opts[1:]
	}
	if len(opts) < 2 || opts[0] == 0 || opts[1] < 2 || int(opts[1]) > len(opts) {
		return nil, nil
	}
	return opts[:opts[1]], opts[opts[1]:]
}

// ICMPType is the type of an ICMP or ICMPv6 message; ok is false without one.
func (p *Packet) ICMPType() (typ, code uint8, ok bool) {
	if p.Flags&HasL4 == 0 || p.Proto != ProtoICMP && p.Proto != ProtoICMPv6 {
		return 0, 0, false
	}
	t := p.Transport()
	return t[0], t[1], true
}

// Payload is the bytes after the transport header (TCP with its options); for
// a protocol whose header is not known, and on a later fragment, all after the network header.
func (p *Packet) Payload() []byte {
	t := p.Transport()
	if p.Flags&HasL4 == 0 {
		return t
	}
	if p.Proto == ProtoTCP {
		n := p.TCPHeaderLen()
		if n == 0 {
			n = 20
		}
		return t[n:]
	}
	return t[transports[p.Proto].min:]
}
