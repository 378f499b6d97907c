//go:build linux

package packet_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/frag"
	"sluice/packet/packettest"
)

// lab is the kernel, and the least router of our own that does the same:
// reassembly, options, TTL, MTU, fragmentation, ICMP errors.
type lab struct {
	t     *testing.T
	k     *packettest.Kernel
	r     *frag.Reassembler
	p, e  *packet.Packet
	in    *packet.Iface
	mtu   int
	out   [][]byte
	back  [][]byte
	why   packet.Reason
	hosts func([16]byte) uint8
}

func newLab(t *testing.T) *lab {
	return &lab{
		t: t, k: packettest.NewKernel(t), r: frag.New(sysctl.NewSet()), p: packet.New(), e: packet.New(),
		in: packet.NewIface(1, "tun0", 1500), mtu: 1500,
	}
}

// router's addresses on the client's and the server's side.
func (l *lab) address(dev int) [16]byte {
	if l.p.Family == packet.IPv4 {
		return [16]byte{10, byte(dev + 1), 0, 1}
	}
	return [16]byte{0: 0xfd, 1: byte(dev + 1), 15: 1}
}

func (l *lab) error(typ, code uint8, rest uint32) {
	if packet.BuildICMPError(l.e, l.p, typ, code, rest, l.address(0)) {
		l.back = append(l.back, bytes.Clone(l.e.Bytes()))
	}
}

// route is our own way of a packet from tun0 to tun1.
func (l *lab) route(b []byte, g packet.GSO) {
	p := l.p
	l.out, l.back, l.why = nil, nil, 0
	p.SetBytes(b)
	p.GSO, p.In = g, l.in
	if l.why = p.Parse(); l.why != 0 {
		if typ, code, rest, ok := p.Problem(l.why); ok {
			l.error(typ, code, rest)
		}
		return
	}
	v, why := l.r.Add(p, frag.UserConntrackIn)
	if v == frag.Queued || v == frag.Dropped {
		l.why = why
		return
	}
	var o packet.IPOptions
	if l.why = p.CompileOptions(&o); l.why == 0 && o.SourceRoute != 0 {
		l.why = packet.DropSourceRt
	}
	if l.why != 0 {
		if typ, code, rest, ok := p.Problem(l.why); ok {
			l.error(typ, code, rest)
		}
		return
	}
	if p.TTL() <= 1 {
		if p.Family == packet.IPv4 {
			l.error(packet.ICMPTimeExceeded, 0, 0)
		} else {
			l.error(packet.ICMPv6TimeExceeded, 0, 0)
		}
		return
	}
	if p.Family == packet.IPv6 && p.Proto == packet.ProtoICMPv6 && p.Is(packet.HasL4) {
		if typ, _, _ := p.ICMPType(); typ >= 133 && typ <= 137 {
			return // neighbour discovery is not for other links; nothing here says so on its own
		}
	}
	if p.ExceedsMTU(l.mtu) {
		if p.Family == packet.IPv4 {
			l.error(packet.ICMPDestUnreach, packet.ICMPFragNeeded, uint32(l.mtu))
		} else {
			l.error(packet.ICMPv6PacketTooBig, 0, uint32(l.mtu))
		}
		return
	}
	p.SetTTL(p.TTL() - 1)
	if p.Is(packet.Options) {
		p.ForwardOptions(&o, l.address(1), 0, func(a [16]byte) bool { return l.hosts != nil && l.hosts(a) == 2 })
	}
	emit := func(s *packet.Packet) { l.out = append(l.out, bytes.Clone(s.Bytes())) }
	packet.Segments(p, func(s *packet.Packet) {
		if s.NeedsFragmenting(l.mtu) {
			packet.FragmentTo(s, l.mtu, emit)
		} else {
			emit(s)
		}
	})
}

// both sends a frame through the kernel and through route, and compares.
func (l *lab) both(what string, b []byte, g packet.GSO) bool {
	l.t.Helper()
	l.k.SendGSO(0, g, b)
	wantOut, wantBack := l.k.Drain(1), l.k.Drain(0)
	l.route(b, g)
	ok := l.same(what, b, "forwarded", l.out, wantOut)
	if l.p.Is(packet.Options) {
		l.back, wantBack = gist(l.back), gist(wantBack)
	}
	return l.same(what, b, "sent back", l.back, wantBack) && ok
}

func (l *lab) same(what string, in []byte, which string, got, want [][]byte) bool {
	l.t.Helper()
	g, w := listing(got), listing(want)
	if g == w {
		return true
	}
	l.t.Errorf("%s (%x)\n%s, ours (%v):\n%skernel's:\n%s", what, in[:min(len(in), 120)], which, l.why, g, w)
	return false
}

// gist leaves of an ICMP error only what it says: Linux puts record routes and
// the like into its own header and has filled them in what it quotes; an error
// about a source-routed packet goes back along the route.
func gist(frames [][]byte) (out [][]byte) {
	for _, b := range frames {
		n := int(b[0]&15) * 4
		if !slices.ContainsFunc(b[min(n+28, len(b)):min(n+68, len(b))], func(x byte) bool { return x == 7 || x == 0x83 || x == 0x89 }) {
			out = append(out, append(bytes.Clone(b[n:n+2]), b[n+4:n+8]...))
		}
	}
	return out
}

// listing is frames in a form to compare: what the kernel chooses at random is taken out.
func listing(frames [][]byte) string {
	var s strings.Builder
	for _, b := range frames {
		b = bytes.Clone(b)
		if len(b) >= 28 && b[0]>>4 == 4 && b[9] == 1 && b[1]&0xc0 == 0xc0 {
			b[4], b[5], b[10], b[11] = 0, 0, 0, 0
		}
		if len(b) >= 48 && b[0]>>4 == 6 {
			if b[6] == 58 {
				b[1] &= 0xf0
				b[2], b[3] = 0, 0 // flow label
			}
			at, next := 40, 6
			for b[next] != 44 && (b[next] == 0 || b[next] == 43 || b[next] == 60) && at+8 <= len(b) {
				next, at = at, at+8*(1+int(b[at+1]))
			}
			if b[next] == 44 && at+8 <= len(b) {
				clear(b[at+4 : at+8])
			}
		}
		fmt.Fprintf(&s, "  %s %x\n", packettest.Describe(b), b[:min(len(b), 100)])
		if len(b) > 100 {
			fmt.Fprintf(&s, "    +%x\n", b[100:])
		}
	}
	return s.String()
}

// Frames that Linux is asked about, IPv4 and IPv6.
var kernelFrames = []string{
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=10",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=10 nocsum ttl=2",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=10 badcsum",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=10 badip",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=10 ttl=1 tos=0x1f",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=1400 ttl=1 tos=0xff",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=1400 ttl=0",
	"icmp 10.1.0.2 > 10.2.0.2 type=8 id=1 seq=1 len=56 ttl=1",
	"icmp 10.1.0.2 > 10.2.0.2 type=3/3 ttl=1 about udp 10.2.0.2:5000 > 10.1.0.2:53",
	"icmp 10.1.0.2 > 10.2.0.2 type=40 ttl=1 len=4",
	"icmp 10.1.0.2 > 10.2.0.2 type=18 ttl=1 len=4",
	"icmp 10.1.0.2 > 10.2.0.2 type=15 ttl=1 len=4",
	"icmp 10.1.0.2 > 10.2.0.2 type=5 ttl=1 len=4",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=1600 df",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=3000 ipid=77",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=3000 ipid=77 opts=010101820b0000000000000000000000 nocsum",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 len=3000 ipid=77 opts=9404000007070400000000",
	"tcp 10.1.0.2:5000 > 10.2.0.2:80 S seq=1 mss=1460",
	"sctp 10.1.0.2:5000 > 10.2.0.2:80 len=20",
	"esp 10.1.0.2 > 10.2.0.2 len=20",
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07",                                                 // no length
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=01070104",                                           // length 1
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07ff0400",                                           // too long
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07020000",                                           // no pointer
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07030300",                                           // pointer too small
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07070400000000",                                     // record route
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=070b080a0a0a0a00000000",                             // with one there
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07070800000000",                                     // full
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=07070600000000",                                     // no room
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=0707040000000007070400000000",                       // twice
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=83070400000000",                                     // source routes
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=8907040a020001",                                     //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=83020000",                                           //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=83030300",                                           //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=8307080a0a0a0a89070400000000",                       // twice
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=4403",                                               // timestamps
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=44040400",                                           //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=44040500",                                           // overflow
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=440405f0",                                           // of the overflow
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=440405f3",                                           //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=440c05020000000000000000",                           // unknown flag
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=440805010000000000000000",                           // no room for both
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=440c05030a0202020000000000000000",                   // not ours
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=4407060000000000",                                   //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=94040000",                                           // router alert
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=94030000",                                           //
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=8604000086040000",                                   // CIPSO
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=821001020304050607080900",                           // unknown
	"udp 10.1.0.2:5000 > 10.2.0.2:53 opts=00ffffff",                                           // after the end
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10",                                                //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10 ttl=1 tos=0xb8 flow=77",                         //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=1400 ttl=1",                                        //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=1400 ttl=0",                                        //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=1600",                                              //
	"icmp6 fd01::2 > fd02::2 type=1/3 ttl=1 about udp [fd02::2]:5000 > [fd01::2]:53",          //
	"icmp6 fd01::2 > fd02::2 type=127 ttl=1 len=4",                                            //
	"icmp6 fd01::2 > fd02::2 type=128 ttl=1 len=4",                                            //
	"icmp6 fd01::2 > fd02::2 type=1/3 ttl=1 ext=dest about udp fd02::2 > fd01::2",             //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10 ext=hop",                                        //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10 ext=hop,dest,route,ah,dest",                     //
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10 ext=dest,hop",                                   // hop-by-hop not first
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10 frag=0 ipid=9",                                  // atomic
	"udp [fd01::2]:5000 > [fd02::2]:53 len=10 frag=0 ipid=9 ext=hop,dest",                     //
	"tcp [fd01::2]:5000 > [fd02::2]:80 S seq=1",                                               //
	"59 fd01::2 > fd02::2 len=10",                                                             //
	"0 fd01::2 > fd02::2 hex=3b000200000000000000 ttl=9",                                      //
	"udp [fd01::2]:5000 > [::1]:53",                                                           //
	"udp [::1]:5000 > [fd02::2]:53",                                                           //
	"udp [ff02::1]:5000 > [fd02::2]:53",                                                       //
	"0 fd01::2 > fd02::2 hex=3b00c20400010000",                                                // jumbo
	"0 fd01::2 > fd02::2 hex=3b00c20400000010",                                                // jumbo too small
	"0 fd01::2 > fd02::2 hex=3b00c20300010000",                                                //
	"0 fd01::2 > fd02::2 hex=3b000100c2040001",                                                //
	"0 fd01::2 > fd02::2 hex=3b00050200000100",                                                // router alert
	"0 fd01::2 > fd02::2 hex=3b00050100000100",                                                //
	"0 fd01::2 > fd02::2 hex=3b001e0400000000",                                                // unknown, skip
	"0 fd01::2 > fd02::2 hex=3b005e0400000000",                                                // discard
	"0 fd01::2 > fd02::2 hex=3b009e0400000000",                                                // discard and tell
	"0 fd01::2 > fd02::2 hex=3b00de0400000000",                                                // tell unless multicast
	"0 fd01::2 > fd02::2 hex=3b0001040000000100",                                              // PadN not zero
	"0 fd01::2 > fd02::2 hex=3b01010600000000000101000000000000",                              // too much padding
	"0 fd01::2 > fd02::2 hex=3b01000000000000000000000000000000",                              //
	"0 fd01::2 > fd02::2 hex=3b02" + "1e00" + "1e001e001e001e001e001e001e00" + "010400000000", // 8 options
	"0 fd01::2 > fd02::2 hex=3b02" + "1e001e00" + "1e001e001e001e001e001e001e00" + "01020000", // 9 options
	"0 fd01::2 > fd02::2 hex=3b05010400000000",                                                // longer than the packet
	"0 fd01::2 > fd02::2 hex=3b00010500000000",                                                // option longer than the header
	"0 fd01::2 > fd02::2 hex=3b00310200000000",                                                // IOAM, misaligned
	"0 fd01::2 > fd02::2 hex=3b01010031020000" + "0104000000000000",                           // IOAM
	"0 fd01::2 > fd02::2 hex=3b01070a0000000100000000" + "00000000",                           // CALIPSO
	"43 fd01::2 > fd02::2 hex=3b00",                                                           // cut short
	"60 fd01::2 > fd02::2 hex=11080000",                                                       //
	"44 fd01::2 > fd02::2 hex=1100",                                                           //
}

// TestKernelForward: each frame through the kernel and through our own.
func TestKernelForward(t *testing.T) {
	l := newLab(t)
	for _, d := range kernelFrames {
		l.both(d, packettest.MustFrame(d), packet.GSO{})
	}
}

// TestKernelCut: every frame cut short, and with bytes behind its end.
func TestKernelCut(t *testing.T) {
	l := newLab(t)
	for _, d := range []string{
		"tcp 10.1.0.2:5000 > 10.2.0.2:80 S seq=1 mss=1460 opts=07070400000000",
		"tcp [fd01::2]:5000 > [fd02::2]:80 S seq=1 mss=1460 ext=hop,dest,route,ah,dest",
	} {
		b := packettest.MustFrame(d)
		for n := 1; n <= len(b)+9; n++ {
			c := append(bytes.Clone(b), make([]byte, 9)...)[:n]
			l.both(fmt.Sprintf("%s cut to %d", d, n), c, packet.GSO{})
		}
		// The same, the header's length telling the truth.
		for n := 21; n < len(b); n++ {
			c := bytes.Clone(b[:n])
			if c[0]>>4 == 4 {
				be.PutUint16(c[2:], uint16(n))
				if n >= int(c[0]&15)*4 {
					fixHeader(c)
				}
			} else if n >= 40 {
				be.PutUint16(c[4:], uint16(n-40))
			}
			l.both(fmt.Sprintf("%s short of %d", d, n), c, packet.GSO{})
		}
	}
}

// TestKernelMutated: frames with a few bytes changed at random, the addresses apart.
func TestKernelMutated(t *testing.T) {
	l := newLab(t)
	rnd := rand.New(rand.NewPCG(5, 2))
	for i := range 4000 {
		d := kernelFrames[rnd.IntN(len(kernelFrames))]
		b := packettest.MustFrame(d)
		if len(b) > 300 {
			continue
		}
		v4 := b[0]>>4 == 4
		for range 1 + rnd.IntN(3) {
			at := rnd.IntN(len(b))
			switch {
			case v4 && (at == 6 || at == 7 || at >= 12 && at < 20):
				continue // fragments have a test of their own
			case !v4 && (at >= 8 && at < 40 || at == 0):
				continue
			}
			b[at] = byte(rnd.Uint32())
			if rnd.IntN(4) == 0 {
				b[at] = []byte{0, 1, 0xff, 4, 0x60, 0x40}[rnd.IntN(6)]
			}
		}
		if v4 && rnd.IntN(4) > 0 && int(b[0]&15)*4 <= len(b) {
			fixHeader(b)
		}
		if skipMutant(b) {
			continue
		}
		if !l.both(fmt.Sprintf("mutant %d of %s", i, d), b, packet.GSO{}) && t.Failed() {
			return
		}
	}
}

// skipMutant leaves out what the lab's router does not do: stamps of the time,
// fragments, neighbour discovery.
func skipMutant(b []byte) bool {
	if b[0]>>4 == 4 && len(b) > 20 && bytes.IndexByte(b[20:min(len(b), max(20, int(b[0]&15)*4))], 68) >= 0 {
		return true
	}
	if len(b) >= 40 && b[0]>>4 == 6 {
		return bytes.IndexByte(b[40:], 44) >= 0 || b[6] == 44 || bytes.IndexByte(b[40:], 58) >= 0 || b[6] == 58
	}
	return false
}
