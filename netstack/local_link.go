package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"sluice/packet"
)

// arrival is a packet on its way to gVisor, in memory of gVisor's.
type arrival struct {
	view    *buffer.View
	proto   uint8
	unicast bool // to the router alone, not by broadcast or multicast
	l4      uint16
	socket  uint32 // the one that TPROXY chose; 0: none
}

// Deliver takes a whole packet for one of the router's addresses, INPUT passed,
// and puts a copy into the ring of worker p.Worker, whose goroutine is the
// caller. p stays the caller's. It does not block, and what it allocates comes
// from gVisor's pools. False: the packet is lost, p.Reason says why.
func (l *Local) Deliver(p *packet.Packet) bool {
	if p.Flags&packet.Fragment != 0 {
		p.Reason = ReasonLocalFragment
		return false
	}
	if !sumGood(p) || udp6NoChecksum(p) {
		l.stats.badChecksum.Add(1)
		p.Reason = ReasonLocalChecksum
		return false
	}
	n := p.Len()
	r := l.rings[p.Worker]
	if !r.room(n) {
		p.Reason = ReasonLocalFull
		return false
	}
	r.put(arrival{
		view: buffer.NewViewWithData(p.Bytes()), proto: p.Proto, l4: p.L4, socket: p.Socket,
		unicast: p.Route.Type == uint8(RouteLocal) || p.Route.Type == uint8(RouteAnycast),
	}, n)
	l.stats.delivered[p.Worker].Add(1)
	return true
}

// sumGood holds a packet against its checksum. A UDP datagram may be shorter than
// the packet: its checksum is that of what its length says, which is not what
// conntrack looks at.
func sumGood(p *packet.Packet) bool {
	if p.Proto != packet.ProtoUDP || !p.Is(packet.HasL4) || p.GSO.NeedsCsum {
		return p.VerifyL4()
	}
	t := p.Transport()
	n := int(binary.BigEndian.Uint16(t[4:]))
	if n < header.UDPMinimumSize || n >= len(t) || t[6]|t[7] == 0 {
		return p.VerifyL4()
	}
	src, dst := p.SrcAddr(), p.DstAddr()
	return packet.AddSum(packet.Sum(t[:n]), packet.PseudoSum(src.AsSlice(), dst.AsSlice(), p.Proto, n)) == 0xffff
}

// udp6NoChecksum: over IPv6 a UDP checksum of zero is an error (RFC 8200, 8.1).
func udp6NoChecksum(p *packet.Packet) bool {
	if p.Proto != packet.ProtoUDP || p.Family != packet.IPv6 || !p.Is(packet.HasL4) || p.GSO.NeedsCsum {
		return false
	}
	t := p.Transport()
	return t[6]|t[7] == 0
}

// inject hands what worker i delivered to gVisor, in order.
func (l *Local) inject(i int, r *ring[arrival], wake <-chan struct{}) {
	defer l.wg.Done()
	for {
		a := r.peek()
		if a == nil {
			if r.arm() {
				select {
				case <-wake:
				case <-l.done:
					return
				}
			}
			continue
		}
		select {
		case <-l.done:
			return
		default:
		}
		n := a.view.Size()
		l.accept(i, *a)
		r.release(n)
	}
}

// accept gives one packet of worker i to gVisor, or ignores what no socket of a router
// without link layer has to do with.
func (l *Local) accept(i int, a arrival) {
	b := a.view.AsSlice()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(a.view)})
	defer pkt.DecRef() // last of all: then b may be another packet's
	d := l.link.dispatcher
	if d == nil || len(b) < header.IPv4MinimumSize {
		return
	}
	proto := ipv4.ProtocolNumber
	var src, dst netip.Addr
	if b[0]>>4 == 4 {
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	} else if len(b) >= header.IPv6MinimumSize {
		proto = ipv6.ProtocolNumber
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	} else {
		return
	}
	// To a broadcast or multicast address only UDP is meant for anyone here:
	// net.ipv4.icmp_echo_ignore_broadcasts is 1, and TCP has no such peers.
	own := l.mayHave(dst)
	if a.proto != packet.ProtoUDP && !own && !a.unicast {
		l.stats.ignored.Add(1)
		return
	}
	l4 := b[min(int(a.l4), len(b)):]
	switch a.proto {
	case packet.ProtoICMPv6:
		// Neighbour and router discovery (133-137), multicast listeners (130-132, 143).
		if len(l4) > 0 && (l4[0] >= 130 && l4[0] <= 137 || l4[0] == 143) {
			l.stats.ignored.Add(1)
			return
		}
	case packet.ProtoTCP:
		if len(l4) >= header.TCPMinimumSize && l4[header.TCPFlagsOffset]&uint8(header.TCPFlagSyn) != 0 {
			l.clampMSS(l4, src)
		}
		l.answer(i, b)
		defer l.answer(i, nil)
	}
	if a.proto == packet.ProtoICMP && own && !l.IsOwn(dst) && l.echo(b, l4) {
		return
	}
	if (!own || a.socket != 0) && (a.proto == packet.ProtoTCP || a.proto == packet.ProtoUDP) && len(l4) >= header.UDPMinimumSize {
		k := SockKey{
			Proto:  a.proto,
			Local:  netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:])),
			Remote: netip.AddrPortFrom(src, binary.BigEndian.Uint16(l4)),
		}
		if l.steer(pkt, &k, a.socket, own, l4) {
			return
		}
	}
	d.DeliverNetworkPacket(proto, pkt)
}

func (l *Local) answer(i int, b []byte) {
	l.answering.Lock()
	l.answered[i] = b
	l.answering.Unlock()
}

// resetTOS gives a reset the TOS, or traffic class, of the segment that it
// answers, without ECN, as Linux does; gVisor makes it 0.
func (l *Local) resetTOS(b []byte) {
	l.answering.Lock()
	defer l.answering.Unlock()
	n := 4
	from, to := 12, 16
	if b[0]>>4 == 6 {
		n, from, to = 16, 8, 24
	}
	for _, a := range l.answered {
		if len(a) < to+n || a[0]>>4 != b[0]>>4 || !bytes.Equal(a[from:from+n], b[to:to+n]) || !bytes.Equal(a[to:to+n], b[from:from+n]) {
			continue
		}
		if n == 4 {
			b[1] = a[1] &^ 3
			fixIPv4(b, int(b[0]&0xf)*4)
		} else {
			b[0] = b[0]&0xf0 | a[0]&0xf
			b[1] = b[1]&0xf | a[1]&0xc0
		}
		return
	}
}

// clampMSS lowers the MSS option of a SYN to what fits the path to peer, and
// corrects the checksum as RFC 1624 has it.
func (l *Local) clampMSS(t []byte, peer netip.Addr) {
	opts := t[header.TCPMinimumSize:max(header.TCPMinimumSize, min(int(t[12]>>4)*4, len(t)))]
	for o, rest := packet.NextTCPOption(opts); o != nil; o, rest = packet.NextTCPOption(rest) {
		if o[0] != header.TCPOptionMSS || len(o) != header.TCPOptionMSSLength {
			continue
		}
		mss := l.pathMTU(peer) - header.TCPMinimumSize - header.IPv4MinimumSize
		if !peer.Is4() {
			mss -= header.IPv6MinimumSize - header.IPv4MinimumSize
		}
		mss = max(mss, 88) // Linux' least: TCP_MIN_MSS
		old := int(binary.BigEndian.Uint16(o[2:]))
		if old <= mss {
			return
		}
		// The option's value may lie on an odd offset, so sum the two bytes
		// where they stand.
		sum := binary.BigEndian.Uint16(t[header.TCPChecksumOffset:])
		binary.BigEndian.PutUint16(o[2:], uint16(mss))
		was, is := uint16(old), uint16(mss)
		if (len(opts)-len(rest))%2 != 0 {
			was, is = was<<8|was>>8, is<<8|is>>8
		}
		sum = ^checksum.Combine(checksum.Combine(^sum, ^was), is)
		binary.BigEndian.PutUint16(t[header.TCPChecksumOffset:], sum)
		return
	}
}

// localLink is the NIC's lower side.
type localLink struct {
	local      *Local
	dispatcher stack.NetworkDispatcher // set once, before any packet
}

var (
	_ stack.LinkEndpoint = (*localLink)(nil)
	_ stack.GSOEndpoint  = (*localLink)(nil)
)

func (*localLink) MTU() uint32                             { return packet.MaxLen }
func (*localLink) SetMTU(uint32)                           {}
func (*localLink) MaxHeaderLength() uint16                 { return 0 }
func (*localLink) LinkAddress() tcpip.LinkAddress          { return "" }
func (*localLink) SetLinkAddress(tcpip.LinkAddress)        {}
func (*localLink) IsAttached() bool                        { return true }
func (*localLink) Wait()                                   {}
func (*localLink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*localLink) AddHeader(*stack.PacketBuffer)           {}
func (*localLink) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*localLink) Close()                                  {}
func (*localLink) SetOnCloseAction(func())                 {}
func (*localLink) GSOMaxSize() uint32                      { return packet.MaxLen }
func (*localLink) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (*localLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (k *localLink) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		k.dispatcher = d
	}
}

// WritePackets implements stack.LinkWriter: gVisor's packets go to the output.
// A full output loses them, as a full device queue would, and TCP sees a loss.
func (k *localLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	list := pkts.AsSlice()
	for _, pkt := range list {
		o := Outgoing{Len: pkt.Size(), views: pkt.AsSlices(), pkt: pkt}
		if w := pkt.Owner; w != nil {
			o.Owner, o.HasOwner = Owner{UID: w.KUID(), GID: w.KGID()}, true
			if s, ok := w.(*sock); ok {
				o.Mark, o.foreign = s.Mark, s.Transparent
			}
		}
		if g := &pkt.GSOOptions; g.Type != stack.GSONone && g.NeedsCsum {
			nh, th := len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
			o.GSO = packet.GSO{
				NeedsCsum: true, CsumStart: uint16(nh), CsumOffset: g.CsumOffset,
			}
			if pkt.Data().Size() > int(g.MSS) {
				o.GSO.Type, o.GSO.HdrLen, o.GSO.Size = packet.GSOTCPv4, uint16(nh+th), g.MSS
				if g.Type == stack.GSOTCPv6 {
					o.GSO.Type = packet.GSOTCPv6
				}
			}
		}
		k.local.send(&o)
	}
	return len(list), nil
}

// send finishes a packet of ours and gives it to the output.
func (l *Local) send(o *Outgoing) {
	head := o.views[0]
	if len(head) < header.IPv4MinimumSize {
		return
	}
	proto, off := head[9], header.IPv4MinimumSize
	if head[0]>>4 == 6 {
		proto, off = head[6], header.IPv6MinimumSize // gVisor sends no extension header before what matters here
	} else {
		off = int(head[0]&0xf) * 4
	}
	// Few packets need a look behind the network header, and those are short.
	// Where the transport header is not in the first view, look as well.
	odd := len(head) <= off+header.TCPFlagsOffset
	switch {
	case odd:
	case proto == packet.ProtoTCP:
		noDF := head[0]>>4 == 4 && head[6]&0x40 == 0
		odd = noDF || head[off+header.TCPFlagsOffset]&uint8(header.TCPFlagSyn|header.TCPFlagRst) != 0
	default:
		odd = proto == packet.ProtoICMP || proto == packet.ProtoICMPv6
	}
	if odd && o.GSO.Type == packet.GSONone {
		b := make([]byte, o.Len)
		o.CopyTo(b)
		if !l.finish(b, proto, off, o.HasOwner) {
			return
		}
		o.views, o.pkt, head = [][]byte{b}, nil, b
	}
	if !l.mayLeave(o, head, proto, off) {
		return
	}
	o.Hash = flowHash(head, proto, off)
	if l.opt.Output == nil || !l.opt.Output.Output(o) {
		l.stats.outputFull.Add(1)
		return
	}
	l.stats.sent.Add(1)
}

// finish makes of gVisor's packet what Linux would send; false: do not send it.
func (l *Local) finish(b []byte, proto uint8, off int, owned bool) bool {
	t := b[min(off, len(b)):]
	v4 := b[0]>>4 == 4
	var dst netip.Addr
	if v4 {
		dst = netip.AddrFrom4([4]byte(b[16:]))
	} else {
		dst = netip.AddrFrom16([16]byte(b[24:]))
	}
	switch {
	case proto == packet.ProtoTCP:
		if v4 && b[6]&0x40 == 0 { // Linux sends all of TCP with DF, a RST for a closed port too
			binary.BigEndian.PutUint32(b[4:], 0x4000)
			fixIPv4(b, off)
		}
		if len(t) >= header.TCPMinimumSize && t[header.TCPFlagsOffset]&uint8(header.TCPFlagSyn) != 0 {
			l.clampMSS(t, dst)
		}
		if !owned && len(t) >= header.TCPMinimumSize && t[header.TCPFlagsOffset]&uint8(header.TCPFlagRst) != 0 {
			l.resetTOS(b)
		}
	case len(t) < header.ICMPv4MinimumSize:
	case v4:
		switch typ := t[0]; typ {
		case 0: // echo reply: gVisor keeps the request's ID and DF, Linux makes its own
			binary.BigEndian.PutUint16(b[4:], uint16(rand.Uint32()))
			binary.BigEndian.PutUint16(b[6:], 0)
			fixIPv4(b, off)
		case 3, 11, 12: // errors have precedence "internetwork control"
			if !l.allowICMP(packet.IPv4, typ, t[1], dst) {
				return false
			}
			if len(t) > 9 {
				b[1] = t[9]&0x1e | 0xc0
			}
			fixIPv4(b, off)
		}
	case t[0] < 128:
		l.ownSource6(b, t, dst)
		return l.allowICMP(packet.IPv6, t[0], t[1], dst)
	}
	return true
}

func (l *Local) allowICMP(family, typ, code uint8, dst netip.Addr) bool {
	if l.opt.AllowICMP == nil || l.opt.AllowICMP(family, typ, code, dst) {
		return true
	}
	l.stats.icmpLimited.Add(1)
	return false
}

func fixIPv4(b []byte, hl int) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:hl], 0))
}

// flowHash mixes addresses and ports so that both directions give the same.
func flowHash(b []byte, proto uint8, off int) uint32 {
	var h uint64
	if b[0]>>4 == 4 {
		h = uint64(binary.BigEndian.Uint32(b[12:]) ^ binary.BigEndian.Uint32(b[16:]))
	} else if len(b) >= header.IPv6MinimumSize {
		for i := 8; i < 24; i += 8 {
			h = h*31 + (binary.BigEndian.Uint64(b[i:]) ^ binary.BigEndian.Uint64(b[i+16:]))
		}
	}
	if (proto == packet.ProtoTCP || proto == packet.ProtoUDP) && len(b) >= off+4 {
		h ^= uint64(binary.BigEndian.Uint16(b[off:])^binary.BigEndian.Uint16(b[off+2:])) << 32
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	return uint32(h >> 32)
}
