package packet_test

import (
	"bytes"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

// seeds are frames of every shape, whole and broken.
var seeds = []string{
	"tcp 10.0.0.1:1 > 10.0.0.2:2 S seq=1 mss=1460", "udp 10.0.0.1:1 > 10.0.0.2:2 len=9 nocsum", "udp 10.0.0.1:1 > 10.0.0.2:2 len=9",
	"udplite 10.0.0.1:1 > 10.0.0.2:2 len=9", "dccp 10.0.0.1:1 > 10.0.0.2:2 len=9", "sctp 10.0.0.1:1 > 10.0.0.2:2 len=9",
	"icmp 10.0.0.1 > 10.0.0.2 type=3/1 about udp 10.0.0.2:1 > 10.0.0.1:2", "esp 10.0.0.1 > 10.0.0.2 len=9",
	"udp 10.0.0.1:1 > 10.0.0.2:2 len=9 opts=0707040000000001440c05010000000000000000",
	"udp 10.0.0.1:1 > 10.0.0.2:2 len=9 opts=830704000000009404000001",
	"tcp 10.0.0.1:1 > 10.0.0.2:2 S frag=0+", "udp 10.0.0.1 > 10.0.0.2 frag=800 len=80",
	"tcp [fd00::1]:1 > [fd00::2]:2 FPA seq=1 len=90 ext=hop,dest,route,ah", "udp [fd00::1]:1 > [fd00::2]:2 frag=0+ ipid=7 len=80",
	"udp fd00::1 > fd00::2 frag=8 ipid=7 len=80", "icmp6 fd00::1 > fd00::2 len=9", "59 fd00::1 > fd00::2 len=9",
	"0 fd00::1 > fd00::2 hex=3b00c20400010000", "0 fd00::1 > fd00::2 hex=3b009e0400000000",
}

func addSeeds(f *testing.F, add func(b []byte)) {
	for _, d := range seeds {
		b := packettest.MustFrame(d)
		add(b)
		add(b[:len(b)-len(b)/3])
	}
}

// FuzzParse: no frame makes Parse, or what may follow it, panic; what it lets
// through is consistent.
func FuzzParse(f *testing.F) {
	addSeeds(f, func(b []byte) { f.Add(b, uint8(0), uint16(0), uint16(0), uint16(0)) })
	f.Add(packettest.MustFrame("tcp 10.0.0.1:1 > 10.0.0.2:2 A len=99"), uint8(packet.GSOTCPv4), uint16(10), uint16(20), uint16(16))
	f.Add(packettest.MustFrame("udp [fd00::1]:1 > [fd00::2]:2 len=99"), uint8(packet.GSOUDPL4), uint16(10), uint16(40), uint16(6))
	p, e := packet.New(), packet.New()
	f.Fuzz(func(t *testing.T, b []byte, typ uint8, size, start, offset uint16) {
		if len(b) > packet.MaxLen {
			return
		}
		p.SetBytes(b)
		p.GSO = packet.GSO{Type: typ, Size: size, NeedsCsum: start != 0, CsumStart: start, CsumOffset: offset}
		var o packet.IPOptions
		if r := p.Parse(); r != 0 {
			if typ, code, rest, ok := p.Problem(r); ok && packet.BuildICMPError(e, p, typ, code, rest, ip("10.0.0.9")) {
				wellFormed(t, e)
			}
			return
		}
		if p.Len() > len(b) || int(p.L4) > p.Len() {
			t.Fatalf("length %d of %d, transport at %d", p.Len(), len(b), p.L4)
		}
		if p.Is(packet.HasL4) && (p.Is(packet.LaterFragment) || p.Is(packet.BadHeaders)) {
			t.Fatalf("flags %#x contradict each other", p.Flags)
		}
		p.VerifyL4()
		useAccessors(p)
		if r := p.CompileOptions(&o); r != 0 {
			typ, code, rest, _ := p.Problem(r)
			packet.BuildICMPError(e, p, typ, code, rest, ip("10.0.0.9"))
		} else {
			typeOf := func(a [16]byte) uint8 { return 1 + a[3]&1 }
			if p.Family == packet.IPv4 && p.FollowSourceRoute(&o, typeOf) == 0 {
				p.ForwardOptions(&o, ip("10.0.0.9"), 7, func(a [16]byte) bool { return a[3]&1 == 0 })
			}
		}
		if packet.BuildICMPError(e, p, 3, 1, 0, p.Dst()) {
			wellFormed(t, e)
		}
		if packet.BuildTCPReset(e, p) {
			wellFormed(t, e)
		}
		n, total := 0, p.SegmentCount()
		packet.Segments(p, func(s *packet.Packet) {
			n++
			if s.NeedsFragmenting(576) && !s.ExceedsMTU(576) {
				packet.FragmentTo(s, 576, func(s *packet.Packet) {
					if r := s.Parse(); r != 0 {
						t.Fatalf("a fragment of ours: %v", r)
					}
				})
			} else if r := s.Parse(); r != 0 && r != packet.Drop6BadJumbo {
				t.Fatalf("segment %d: %v", n, r)
			}
		})
		if typ&^packet.GSOECN != packet.GSOUDP && n != total {
			t.Fatalf("%d segments, %d expected", n, total)
		}
	})
}

func useAccessors(p *packet.Packet) {
	_, _, _ = p.Src(), p.Dst(), p.Payload()
	_, _, _ = p.SrcPort(), p.DstPort(), p.TCPOptions()
	_, _, _, _ = p.TCPSeq(), p.TCPAck(), p.TCPWindow(), p.TCPFlags()
	_, _, _ = p.TTL(), p.TOS(), p.FlowLabel()
	_, _, _ = p.ICMPType()
}

// wellFormed: a packet we made is one that we would take.
func wellFormed(t *testing.T, p *packet.Packet) {
	t.Helper()
	p.Flags &^= packet.L4ChecksumOK
	if r := p.Parse(); r != 0 && r != packet.Drop6BadAddress {
		t.Fatalf("our own packet: %v: %x", r, p.Bytes())
	}
	if !p.VerifyL4() {
		t.Fatalf("our own packet's checksum: %x", p.Bytes())
	}
}

// FuzzRewrite: after any rewrites the incremental checksums are right, and are
// what a full computation gives.
func FuzzRewrite(f *testing.F) {
	addSeeds(f, func(b []byte) { f.Add(b, []byte("0123456789abcdef0123456789abcdef01234567"), uint8(0xff)) })
	f.Add(packettest.MustFrame("udp 10.0.0.1:1 > 10.0.0.2:2 len=9"), make([]byte, 40), uint8(0xff))
	p, q := packet.New(), packet.New()
	f.Fuzz(func(t *testing.T, b, vals []byte, what uint8) {
		if len(vals) < 40 || len(b) > packet.MaxLen {
			return
		}
		p.SetBytes(b)
		if p.Parse() != 0 {
			return
		}
		if !p.VerifyL4() {
			p.FixChecksums()
			p.Flags &^= packet.L4ChecksumOK
			if !p.VerifyL4() {
				return // a coverage that cannot be
			}
		}
		partial := what&128 != 0 && p.Is(packet.HasL4) && !p.Is(packet.Fragment) && (p.Proto == packet.ProtoTCP || p.Proto == packet.ProtoUDP)
		if partial {
			p.GSO = packet.GSO{NeedsCsum: true, CsumStart: p.L4, CsumOffset: map[uint8]uint16{6: 16, 17: 6}[p.Proto]}
			p.FixChecksums()
		}
		none := !partial && p.Is(packet.HasL4) && p.Proto == packet.ProtoUDP && be.Uint16(p.Transport()[6:]) == 0
		if what&1 != 0 {
			p.SetSrc([16]byte(vals))
		}
		if what&2 != 0 {
			p.SetDst([16]byte(vals[16:]))
		}
		if what&4 != 0 {
			p.SetSrcPort(be.Uint16(vals[32:]))
		}
		if what&8 != 0 {
			p.SetDstPort(be.Uint16(vals[34:]))
		}
		if what&16 != 0 {
			p.SetTTL(vals[36])
		}
		if what&32 != 0 {
			p.SetTOS(vals[37])
		}
		if what&64 != 0 && p.Is(packet.HasL4) && p.Proto == packet.ProtoTCP {
			p.SetL4Word(14, be.Uint16(vals[38:]))
		}
		if partial {
			p.CompleteChecksum()
		}
		p.Flags &^= packet.L4ChecksumOK
		if !p.VerifyL4() {
			t.Fatalf("transport checksum: %x", p.Bytes())
		}
		q.Copy(p)
		q.Mangled()
		if none {
			if be.Uint16(p.Transport()[6:]) != 0 {
				t.Fatal("a UDP checksum came from nowhere")
			}
		} else if p.Is(packet.HasL4) && !p.Is(packet.Fragment) {
			normal(p)
			normal(q)
		}
		if !bytes.Equal(p.Bytes(), q.Bytes()) {
			t.Fatalf("incremental %x\nin full     %x", p.Bytes(), q.Bytes())
		}
		src, dst := p.Src(), p.Dst()
		q.Flags &^= packet.L4ChecksumOK
		if r := q.Parse(); r != 0 && r != packet.Drop6BadAddress || q.Src() != src || q.Dst() != dst {
			t.Fatalf("after the rewrite: %v", r)
		}
	})
}

// normal makes the two zeros of ones' complement one where they may stand.
func normal(p *packet.Packet) {
	at := map[uint8]int{6: 16, 33: 6, 1: 2, 58: 2}[p.Proto]
	if at != 0 && be.Uint16(p.Transport()[at:]) == 0xffff {
		be.PutUint16(p.Transport()[at:], 0)
	}
	b := p.Bytes()
	if p.Family == packet.IPv4 && be.Uint16(b[10:]) == 0xffff {
		be.PutUint16(b[10:], 0)
	}
}
