package packettext

import (
	"fmt"
	"net/netip"
	"strings"

	"sluice/packet"
)

// Describe says in one line what a network packet is, in the words that Frame
// reads: addresses and ports, TCP flags and numbers, ICMP type, ttl where it
// is not 64, payload length. Wrong checksums are told as badip and badcsum.
func Describe(b []byte) string {
	p := packet.Of(b)
	if r := p.Parse(); r != 0 {
		return "bad packet: " + r.String()
	}
	var s strings.Builder
	name := fmt.Sprint(p.Proto)
	for n, v := range protocols {
		if v == p.Proto {
			name = n
		}
	}
	fmt.Fprintf(&s, "%s %s > %s", name, end(p, p.SrcAddr(), p.SrcPort()), end(p, p.DstAddr(), p.DstPort()))
	describeL4(&s, p)
	if p.TTL() != 64 {
		fmt.Fprintf(&s, " ttl=%d", p.TTL())
	}
	if p.TOS() != 0 {
		fmt.Fprintf(&s, " tos=%#x", p.TOS())
	}
	if p.Is(packet.DontFragment) {
		s.WriteString(" df")
	}
	if p.Is(packet.Fragment) {
		fmt.Fprintf(&s, " frag=%d", p.FragOff)
		if p.Is(packet.MoreFragments) {
			s.WriteByte('+')
		}
		fmt.Fprintf(&s, " ipid=%d", p.FragID)
	}
	if !p.VerifyL4() {
		s.WriteString(" badcsum")
	}
	if n := len(p.Payload()); n > 0 && !isError(p) {
		fmt.Fprintf(&s, " len=%d", n)
	}
	if isError(p) {
		fmt.Fprintf(&s, " about %s", quoted(p.Payload()))
	}
	return s.String()
}

func end(p *packet.Packet, a netip.Addr, port uint16) string {
	if p.Is(packet.HasPorts) {
		return netip.AddrPortFrom(a, port).String()
	}
	return a.String()
}

func isError(p *packet.Packet) bool {
	typ, _, ok := p.ICMPType()
	return ok && (p.Proto == packet.ProtoICMPv6 && typ < 128 || p.Proto == packet.ProtoICMP && (typ >= 3 && typ <= 5 || typ == 11 || typ == 12))
}

func describeL4(s *strings.Builder, p *packet.Packet) {
	if typ, code, ok := p.ICMPType(); ok {
		fmt.Fprintf(s, " type=%d/%d", typ, code)
		t := p.Transport()
		if isError(p) {
			fmt.Fprintf(s, " rest=%d", be.Uint32(t[4:]))
		} else {
			fmt.Fprintf(s, " id=%d seq=%d", be.Uint16(t[4:]), be.Uint16(t[6:]))
		}
		return
	}
	if p.Proto != packet.ProtoTCP || !p.Is(packet.HasL4) {
		return
	}
	s.WriteByte(' ')
	f := p.TCPFlags()
	for i := range flagLetters {
		if f>>i&1 != 0 {
			s.WriteByte(flagLetters[i])
		}
	}
	if f == 0 {
		s.WriteByte('.')
	}
	fmt.Fprintf(s, " seq=%d", p.TCPSeq())
	if f&packet.TCPAckFlag != 0 {
		fmt.Fprintf(s, " ack=%d", p.TCPAck())
	}
	if w := p.TCPWindow(); w != 65535 {
		fmt.Fprintf(s, " win=%d", w)
	}
}

// quoted describes the packet in an ICMP error, which may be cut short and
// whose checksums are not looked at.
func quoted(b []byte) string {
	q := packet.Of(b)
	if len(b) >= 20 && b[0]>>4 == 4 {
		be.PutUint16(q.Bytes()[2:], uint16(len(b)))
		q.Family = packet.IPv4
		q.ParseL4()
	} else if len(b) >= 40 && b[0]>>4 == 6 {
		q.Family = packet.IPv6
		q.ParseL4()
	} else {
		return fmt.Sprintf("%d bytes", len(b))
	}
	t := q.Transport()
	sp, dp := uint16(0), uint16(0)
	ported := q.Proto == 6 || q.Proto == 17 || q.Proto == 132 || q.Proto == 136 || q.Proto == 33
	if ported && len(t) >= 4 && !q.Is(packet.LaterFragment) {
		sp, dp = be.Uint16(t), be.Uint16(t[2:])
		q.Flags |= packet.HasPorts
	}
	name := fmt.Sprint(q.Proto)
	for n, v := range protocols {
		if v == q.Proto {
			name = n
		}
	}
	return fmt.Sprintf("%s %s > %s", name, end(q, q.SrcAddr(), sp), end(q, q.DstAddr(), dp))
}
