package netstack

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"

	"sluice/packet"
)

// FuzzLocal: whatever passes Parse, the stack neither panics nor answers with
// something that does not parse.
func FuzzLocal(f *testing.F) {
	add := func(p *packet.Packet) { f.Add(append([]byte{}, p.Bytes()...)) }
	for _, dst := range []string{"10.0.0.1", "fd00::1"} {
		src := "10.0.0.2"
		fam := packet.IPv4
		if dst != "10.0.0.1" {
			src, fam = "fd00::2", packet.IPv6
		}
		add(l4(src, dst, packet.ProtoTCP, tcpSyn(4000, 7, 1460)))
		add(l4(src, dst, packet.ProtoTCP, tcpSyn(4000, 8, 1)))
		add(l4(src, dst, packet.ProtoTCP, append([]byte{1, 1, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 10 << 4, 0x12, 1, 1, 0, 0, 0, 0},
			1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 5, 2, 3, 3, 7, 0, 0, 0)))
		u := l4(src, dst, packet.ProtoUDP, udpHeader(4000, 7, 20))
		add(u)
		add(l4(src, dst, packet.ProtoUDP, udpHeader(4000, 99, 1300)))
		add(l4(src, dst, 99, make([]byte, 20)))
		p := packet.New()
		packet.BuildEcho(p, fam, a16(src), a16(dst), false, 1, 2, 20)
		add(p)
		// ICMP errors about a packet of ours.
		mine := l4(dst, src, packet.ProtoTCP, tcpSyn(7, 4000, 1460))
		e := packet.New()
		for _, c := range [][2]uint8{{3, 4}, {3, 3}, {11, 0}, {1, 4}, {2, 0}, {3, 0}, {4, 1}} {
			if packet.BuildICMPError(e, mine, c[0], c[1], 1280, a16(src)) {
				add(e)
			}
		}
	}
	// IPv4 options: record route, timestamp, source route; IPv6 extension headers.
	for _, o := range [][]byte{
		{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0},
		{131, 7, 4, 10, 0, 0, 9, 0}, {148, 4, 0, 0}, {136, 4, 1, 2}, {1, 1, 1, 0},
	} {
		p := packet.New()
		packet.BuildEcho(p, packet.IPv4, a16("10.0.0.2"), a16("10.0.0.1"), false, 1, 2, 20)
		b := append([]byte{}, p.Bytes()[:20]...)
		b[0] = 0x40 | byte(5+len(o)/4)
		b = append(append(b, o...), p.Bytes()[20:]...)
		b[2], b[3] = byte(len(b)>>8), byte(len(b))
		f.Add(b)
	}
	for _, ext := range [][]byte{
		{0, 17, 0, 1, 4, 0, 0, 0, 0}, {60, 17, 0, 1, 4, 0, 0, 0, 0}, {60, 17, 0, 0x81, 4, 0, 0, 0, 0}, {43, 17, 0, 0, 1, 0, 0, 0, 0}, {44, 17, 0, 0, 0, 0, 0, 0, 1},
	} {
		p := l4("fd00::2", "fd00::1", packet.ProtoUDP, udpHeader(4000, 7, 12))
		b := append([]byte{}, p.Bytes()[:40]...)
		b[6] = ext[0]
		b = append(append(b, ext[1:]...), p.Bytes()[40:]...)
		b[5] = byte(len(b) - 40)
		f.Add(b)
	}
	var bad atomic.Pointer[[]byte] // TCP answers from another goroutine
	l, err := NewLocal(LocalOptions{Output: checkOutput(func(o *Outgoing) bool {
		p := packet.New()
		p.End = p.Off + o.CopyTo(p.Buf[p.Off:])
		p.GSO = o.GSO
		p.Flags = packet.Local
		if p.Parse() != 0 || !p.VerifyL4() {
			b := append([]byte{}, p.Bytes()...)
			bad.Store(&b)
		}
		return true
	})})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	if err := l.SetAddresses([]netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}); err != nil {
		f.Fatal(err)
	}
	ln, err := l.Listen("tcp", ap("[::]:7"), Owner{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ln.Close() })
	pc, err := l.ListenPacket("udp", ap("[::]:7"), Owner{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { pc.Close() })
	p := packet.New()
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > packet.MaxLen {
			return
		}
		p.SetBytes(b)
		if len(b) >= 20 && b[0]>>4 == 4 {
			if hl := int(b[0]&15) * 4; hl >= 20 && hl <= len(b) {
				fixIPv4(p.Bytes(), hl)
			}
		}
		if p.Parse() != 0 {
			return
		}
		p.FixChecksums()
		if p.Flags&packet.Fragment != 0 || udp6NoChecksum(p) {
			return
		}
		l.accept(0, arrival{view: buffer.NewViewWithData(p.Bytes()), proto: p.Proto, l4: p.L4})
		if b := bad.Swap(nil); b != nil {
			t.Fatalf("answer: % x", *b)
		}
	})
}

type checkOutput func(*Outgoing) bool

func (f checkOutput) Output(o *Outgoing) bool { return f(o) }
