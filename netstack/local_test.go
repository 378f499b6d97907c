package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sluice/packet"
)

var twoHosts = [][]string{
	{"10.0.0.1/24", "10.9.0.1/24", "fd00::1/64", "fe80::1/64"},
	{"10.0.0.2/24", "fd00::2/64", "fe80::2/64"},
}

func echoServer(t testing.TB, h *testHost, network, addr string, owner Owner) net.Listener {
	t.Helper()
	ln, err := h.Listen(network, ap(addr), owner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				c.Close()
			}()
		}
	}()
	return ln
}

func dial(t testing.TB, h *testHost, network, addr string, owner Owner) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := h.DialContext(ctx, network, netip.AddrPort{}, ap(addr), owner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(60 * time.Second))
	return c
}

// exchange sends n random bytes and wants them back.
func exchange(t testing.TB, c net.Conn, n int) {
	t.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	want := sha256.Sum256(data)
	go func() {
		c.Write(data)
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
		}
	}()
	h := sha256.New()
	if m, err := io.Copy(h, io.LimitReader(c, int64(n))); err != nil || m != int64(n) {
		t.Fatalf("got %d of %d bytes back: %v", m, n, err)
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		t.Fatal("the bytes that came back differ")
	}
}

func TestTCPEcho(t *testing.T) {
	for _, split := range []bool{false, true} {
		for _, addr := range []string{"10.0.0.2:7", "[fd00::2]:7", "[fe80::2]:7"} {
			t.Run(fmt.Sprintf("%s split=%v", addr, split), func(t *testing.T) {
				w := newWire(t, nil, twoHosts...)
				w.split = split
				echoServer(t, w.hosts[1], "tcp", addr, Owner{})
				exchange(t, dial(t, w.hosts[0], "tcp", addr, Owner{}), 3<<20)
			})
		}
	}
}

// TestTCPPauses: pauses on the way, as a busy machine makes, do not stop a transfer.
// With gVisor's CUBIC one exchange in a hundred stood still for ever.
func TestTCPPauses(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWire(t, nil, twoHosts...)
			w.split = true
			var n atomic.Int64
			r := rand.New(rand.NewPCG(seed, 0))
			at := map[int64]bool{}
			for range 3 {
				at[r.Int64N(400)] = true
			}
			w.watch(func(h *testHost, _ *packet.Packet) bool {
				if at[n.Add(1)] {
					time.Sleep(60 * time.Millisecond)
				}
				return true
			})
			echoServer(t, w.hosts[1], "tcp", "10.0.0.2:7", Owner{})
			exchange(t, dial(t, w.hosts[0], "tcp", "10.0.0.2:7", Owner{}), 2<<20)
		})
	}
}

// TestTCPToItself goes out and comes back in, also from a loopback address.
func TestTCPToItself(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	echoServer(t, w.hosts[0], "tcp", "[::]:7", Owner{})
	for _, addr := range []string{"127.0.0.1:7", "[::1]:7", "10.9.0.1:7", "[fd00::1]:7"} {
		var seen atomic.Int64
		w.watch(func(*testHost, *packet.Packet) bool { seen.Add(1); return true })
		c := dial(t, w.hosts[0], "tcp", addr, Owner{})
		exchange(t, c, 100000)
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != ap(addr).Addr() {
			t.Errorf("to %s from %s: Linux would take the address itself", addr, got)
		}
		if seen.Load() == 0 {
			t.Errorf("%s: the packets did not pass the output", addr)
		}
	}
}

// TestSource: connections come from the address that the routes choose.
func TestSource(t *testing.T) {
	w := newWire(t, func(o *LocalOptions) {
		o.Source = func(dst netip.Addr) (netip.Addr, bool) {
			return netip.MustParseAddr("10.9.0.1"), dst.Is4()
		}
	}, twoHosts...)
	echoServer(t, w.hosts[1], "tcp", "0.0.0.0:7", Owner{})
	c := dial(t, w.hosts[0], "tcp", "10.0.0.2:7", Owner{})
	if got := c.LocalAddr().(*net.TCPAddr).IP.String(); got != "10.9.0.1" {
		t.Errorf("source %s, want 10.9.0.1", got)
	}
	exchange(t, c, 1000)
}

// probe sends one built packet from outside into h and collects what h says,
// until want of it holds.
type probe struct {
	h   *testHost
	mu  sync.Mutex
	out []*packet.Packet
}

func newProbe(t testing.TB, tune func(*LocalOptions)) *probe {
	w := newWire(t, tune, twoHosts[0])
	pr := &probe{h: w.hosts[0]}
	w.watch(func(_ *testHost, p *packet.Packet) bool {
		q := packet.New()
		q.Copy(p)
		pr.mu.Lock()
		pr.out = append(pr.out, q)
		pr.mu.Unlock()
		return false
	})
	return pr
}

func (pr *probe) take() []*packet.Packet {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	out := pr.out
	pr.out = nil
	return out
}

func (pr *probe) send(t testing.TB, p *packet.Packet) {
	t.Helper()
	if r := p.Parse(); r != 0 {
		t.Fatalf("the test's packet: %s", r)
	}
	p.Worker = 0
	if !pr.h.Deliver(p) {
		t.Fatalf("not delivered: %s", p.Reason)
	}
}

// one waits for one packet, and makes sure that it is well formed.
func (pr *probe) one(t testing.TB) *packet.Packet {
	t.Helper()
	var got []*packet.Packet
	eventually(t, "an answer", func() bool { got = append(got, pr.take()...); return len(got) > 0 })
	if len(got) != 1 {
		t.Fatalf("%d packets, want 1", len(got))
	}
	p := got[0]
	p.Flags &^= packet.L4ChecksumOK
	if r := p.Parse(); r != 0 {
		t.Fatalf("bad packet: %s", r)
	}
	if !p.VerifyL4() {
		t.Fatal("bad checksum")
	}
	return p
}

// none waits until h has dealt with all it got, and wants no answer.
func (pr *probe) none(t testing.TB) {
	t.Helper()
	p := packet.New()
	packet.BuildEcho(p, packet.IPv4, a16("10.0.0.99"), a16("10.0.0.1"), false, 0xbeef, 1, 8)
	pr.send(t, p)
	if got := pr.one(t); got.DstAddr().String() != "10.0.0.99" {
		t.Fatalf("an answer to %s, where none was due", got.DstAddr())
	}
}

func a16(s string) [16]byte { return packet.AddrBytes(netip.MustParseAddr(s)) }

// l4 makes a packet with the given transport header and payload.
func l4(src, dst string, proto uint8, b []byte) *packet.Packet {
	p := packet.New()
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	var h []byte
	if d.Is4() {
		h = make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 60, proto
		h[2], h[3] = byte((20+len(b))>>8), byte(20+len(b))
		s4, d4 := s.As4(), d.As4()
		copy(h[12:], s4[:])
		copy(h[16:], d4[:])
	} else {
		h = make([]byte, 40)
		h[0], h[6], h[7] = 0x60, proto, 60
		h[4], h[5] = byte(len(b)>>8), byte(len(b))
		s6, d6 := s.As16(), d.As16()
		copy(h[8:], s6[:])
		copy(h[24:], d6[:])
	}
	p.SetBytes(append(h, b...))
	p.FixHeader()
	p.Parse()
	p.FixHeader()
	p.ParseL4()
	p.FixChecksums()
	return p
}

func udpHeader(sport, dport uint16, payload int) []byte {
	n := 8 + payload
	b := make([]byte, n)
	b[0], b[1], b[2], b[3], b[4], b[5] = byte(sport>>8), byte(sport), byte(dport>>8), byte(dport), byte(n>>8), byte(n)
	return b
}

func tcpSyn(sport, dport uint16, mss uint16) []byte {
	return []byte{byte(sport >> 8), byte(sport), byte(dport >> 8), byte(dport), 0, 0, 0, 9, 0, 0, 0, 0,
		6 << 4, 2, 0x40, 0, 0, 0, 0, 0, 2, 4, byte(mss >> 8), byte(mss)}
}

func TestPing(t *testing.T) {
	pr := newProbe(t, nil)
	for _, c := range []struct{ src, dst string }{
		{"10.0.0.2", "10.0.0.1"}, {"192.0.2.7", "10.9.0.1"}, {"2001:db8::7", "fd00::1"}, {"fe80::7", "fe80::1"}, {"::1", "::1"},
	} {
		fam := packet.IPv4
		if netip.MustParseAddr(c.dst).Is6() {
			fam = packet.IPv6
		}
		p := packet.New()
		packet.BuildEcho(p, fam, a16(c.src), a16(c.dst), false, 77, 3, 1000)
		if fam == packet.IPv4 {
			p.Buf[p.Off+6] |= 0x40 // DF, as ping -M do
			p.FixHeader()
		}
		p.SetTOS(0x10)
		p.Flags |= packet.Loopback
		pr.send(t, p)
		q := pr.one(t)
		if q.SrcAddr().String() != c.dst || q.DstAddr().String() != c.src {
			t.Errorf("%s: answer from %s to %s", c.dst, q.SrcAddr(), q.DstAddr())
		}
		if q.Is(packet.HasOwner) || q.TTL() != 64 || q.Is(packet.DontFragment) {
			t.Errorf("%s: flags %x, TTL %d; want no owner, no DF, TTL 64", c.dst, q.Flags, q.TTL())
		}
		if typ, _, _ := q.ICMPType(); fam == packet.IPv4 && typ != 0 || fam == packet.IPv6 && typ != 129 {
			t.Errorf("%s: type %d", c.dst, typ)
		}
		if fam == packet.IPv4 && q.TOS() != 0x10 {
			t.Errorf("%s: TOS %x, want the request's", c.dst, q.TOS())
		}
		if !bytes.Equal(q.Transport()[4:], p.Transport()[4:]) {
			t.Errorf("%s: the payload differs", c.dst)
		}
	}
	// Nobody's address, broadcast, multicast: silence.
	for _, dst := range []string{"10.0.0.3", "10.0.0.255", "255.255.255.255", "224.0.0.1"} {
		p := packet.New()
		packet.BuildEcho(p, packet.IPv4, a16("10.0.0.2"), a16(dst), false, 1, 1, 8)
		pr.send(t, p)
	}
	for _, dst := range []string{"fd00::3", "ff02::1"} {
		p := packet.New()
		packet.BuildEcho(p, packet.IPv6, a16("fd00::2"), a16(dst), false, 1, 1, 8)
		pr.send(t, p)
	}
	pr.none(t)
	if n := pr.h.Stats().Ignored; n != 6 {
		t.Errorf("%d packets ignored, want 6", n)
	}
}

func TestQuiet(t *testing.T) {
	pr := newProbe(t, nil)
	// Neighbour and router solicitation, MLD query: a TUN device has none of it.
	for _, typ := range []byte{130, 133, 134, 135, 136, 137, 143} {
		b := make([]byte, 24)
		b[0] = typ
		a := netip.MustParseAddr("fd00::1").As16()
		copy(b[8:], a[:])
		pr.send(t, l4("fe80::9", "fd00::1", packet.ProtoICMPv6, b))
	}
	if err := pr.h.SetAddresses([]netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00:5::1/64")}); err != nil {
		t.Fatal(err)
	}
	pr.none(t)
}

func TestClosedPorts(t *testing.T) {
	pr := newProbe(t, nil)
	for _, c := range []struct{ src, dst string }{{"10.0.0.2", "10.9.0.1"}, {"fd00::2", "fd00::1"}} {
		v4 := netip.MustParseAddr(c.dst).Is4()

		pr.send(t, l4(c.src, c.dst, packet.ProtoTCP, tcpSyn(4000, 81, 1460)))
		q := pr.one(t)
		if q.Proto != packet.ProtoTCP || q.TCPFlags() != packet.TCPRst|packet.TCPAckFlag || q.TCPAck() != 10 || q.TCPSeq() != 0 {
			t.Errorf("SYN to a closed port: proto %d flags %x seq %d ack %d", q.Proto, q.TCPFlags(), q.TCPSeq(), q.TCPAck())
		}
		if v4 && (!q.Is(packet.DontFragment) || q.ID() != 0) {
			t.Errorf("RST: DF %v, ID %d; Linux: DF, 0", q.Is(packet.DontFragment), q.ID())
		}
		if q.SrcAddr().String() != c.dst || q.SrcPort() != 81 || q.DstPort() != 4000 || q.Is(packet.HasOwner) || q.TTL() != 64 {
			t.Errorf("RST from %s:%d, flags %x, TTL %d", q.SrcAddr(), q.SrcPort(), q.Flags, q.TTL())
		}

		p := l4(c.src, c.dst, packet.ProtoUDP, udpHeader(4000, 81, 700))
		p.SetTOS(0x08)
		pr.send(t, p)
		q = pr.one(t)
		typ, code, _ := q.ICMPType()
		if v4 && (typ != 3 || code != 3 || q.TOS() != 0xc8 || q.Len() != 576) {
			t.Errorf("port unreachable: type %d code %d TOS %x length %d; Linux: 3 3 c8 576", typ, code, q.TOS(), q.Len())
		}
		if !v4 && (typ != 1 || code != 4 || q.Len() != 40+8+p.Len()) {
			t.Errorf("port unreachable: type %d code %d length %d", typ, code, q.Len())
		}
		quoted := q.Transport()[8:]
		if !bytes.Equal(quoted, p.Bytes()[:len(quoted)]) || q.SrcAddr().String() != c.dst || q.Is(packet.HasOwner) {
			t.Errorf("port unreachable from %s: wrong quote or owner", q.SrcAddr())
		}

		pr.send(t, l4(c.src, c.dst, 99, make([]byte, 40)))
		q = pr.one(t)
		typ, code, _ = q.ICMPType()
		if v4 && (typ != 3 || code != 2) || !v4 && (typ != 4 || code != 1) {
			t.Errorf("unknown protocol: type %d code %d", typ, code)
		}
	}
	// No error about an error, nor to a broadcast.
	pr.send(t, l4("10.0.0.2", "10.0.0.255", packet.ProtoUDP, udpHeader(4000, 81, 10)))
	pr.send(t, l4("10.0.0.2", "10.0.0.255", packet.ProtoTCP, tcpSyn(4000, 81, 1460)))
	pr.none(t)
}

func TestICMPLimit(t *testing.T) {
	var asked atomic.Int64
	pr := newProbe(t, func(o *LocalOptions) {
		o.AllowICMP = func(family, typ, code uint8, dst netip.Addr) bool {
			if family != packet.IPv4 || typ != 3 || code != 3 || dst.String() != "10.0.0.2" {
				t.Errorf("asked about family %d type %d code %d to %s", family, typ, code, dst)
			}
			return asked.Add(1) <= 60
		}
	})
	for range 100 {
		pr.send(t, l4("10.0.0.2", "10.0.0.1", packet.ProtoUDP, udpHeader(4000, 81, 10)))
	}
	n := 0
	eventually(t, "100 questions", func() bool { n += len(pr.take()); return asked.Load() == 100 && n == 60 })
	if s := pr.h.Stats(); s.ICMPLimited != 40 {
		t.Errorf("%d held back, want 40", s.ICMPLimited)
	}
}

func TestBadChecksum(t *testing.T) {
	pr := newProbe(t, nil)
	for _, p := range []*packet.Packet{
		l4("10.0.0.2", "10.0.0.1", packet.ProtoTCP, tcpSyn(1, 2, 1460)),
		l4("fd00::2", "fd00::1", packet.ProtoUDP, udpHeader(1, 2, 5)),
	} {
		p.Buf[p.End-1] ^= 1
		p.Flags &^= packet.L4ChecksumOK
		if pr.h.Deliver(p) || p.Reason != ReasonLocalChecksum {
			t.Errorf("a bad checksum is delivered (%s)", p.Reason)
		}
	}
	p := l4("fd00::2", "fd00::1", packet.ProtoUDP, udpHeader(1, 2, 5))
	p.Transport()[6], p.Transport()[7] = 0, 0
	p.Flags &^= packet.L4ChecksumOK
	if pr.h.Deliver(p) {
		t.Error("UDP over IPv6 without checksum is delivered")
	}
	if n := pr.h.Stats().BadChecksum; n != 3 {
		t.Errorf("%d counted, want 3", n)
	}
}

func TestFragmentRefused(t *testing.T) {
	pr := newProbe(t, nil)
	p := l4("10.0.0.2", "10.0.0.1", packet.ProtoUDP, udpHeader(1, 2, 32))
	p.Buf[p.Off+6] |= 0x20
	p.FixHeader()
	p.Parse()
	if pr.h.Deliver(p) || p.Reason != ReasonLocalFragment {
		t.Errorf("a fragment is delivered (%s)", p.Reason)
	}
}

// TestOwner: every packet of a socket has its owner; listeners hand it on.
func TestOwner(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	server, client := Owner{1000, 1001}, Owner{2000, 2001}
	var bad, syns, fins atomic.Int64
	var first atomic.Pointer[string]
	w.watch(func(from *testHost, p *packet.Packet) bool {
		want := client
		if from == w.hosts[1] {
			want = server
		}
		if p.Proto == packet.ProtoTCP && p.TCPFlags()&packet.TCPSyn != 0 {
			syns.Add(1)
			if syns.Load() <= 2 { // lose the first SYN and SYN-ACK: see the retransmissions
				if !p.Is(packet.HasOwner) {
					bad.Add(1)
				}
				return false
			}
		}
		if p.Proto == packet.ProtoTCP && p.TCPFlags()&packet.TCPFin != 0 {
			fins.Add(1)
		}
		if !p.Is(packet.HasOwner) || p.UID != want.UID || p.GID != want.GID {
			bad.Add(1)
			s := fmt.Sprintf("from %s: owner %v %d/%d, TCP flags %x", from.name, p.Is(packet.HasOwner), p.UID, p.GID, p.TCPFlags())
			first.CompareAndSwap(nil, &s)
		}
		return true
	})
	for _, addr := range []string{"10.0.0.2:7", "[fd00::2]:7"} {
		echoServer(t, w.hosts[1], "tcp", addr, server)
		c := dial(t, w.hosts[0], "tcp", addr, client)
		exchange(t, c, 200000)
		c.Close()

		pc, err := w.hosts[1].ListenPacket("udp", ap(addr), server)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			b := make([]byte, 100)
			n, from, err := pc.ReadFrom(b)
			if err == nil {
				pc.WriteTo(b[:n], from)
			}
		}()
		u := dial(t, w.hosts[0], "udp", addr, client)
		exchange(t, u, 64)
	}
	eventually(t, "four FINs", func() bool { return fins.Load() >= 4 })
	if bad.Load() != 0 {
		t.Errorf("%d packets without their owner; first: %s", bad.Load(), *first.Load())
	}
	if syns.Load() < 6 {
		t.Errorf("%d SYNs seen: the retransmissions are missing", syns.Load())
	}
}

// TestOwnerOfReset: a connection torn down by its owner says whose RST it is.
func TestOwnerOfReset(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	ln, err := w.hosts[1].Listen("tcp", ap("10.0.0.2:7"), Owner{5, 6})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	rst := make(chan packet.Packet, 10)
	w.watch(func(from *testHost, p *packet.Packet) bool {
		if from == w.hosts[1] && p.Proto == packet.ProtoTCP && p.TCPFlags()&packet.TCPRst != 0 {
			select {
			case rst <- *p:
			default:
			}
		}
		return true
	})
	c := dial(t, w.hosts[0], "tcp", "10.0.0.2:7", Owner{})
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("unread"))
	eventually(t, "data", func() bool {
		for _, x := range w.hosts[1].Sockets() {
			if x.State == "ESTABLISHED" && x.HasOwner && x.Owner == (Owner{5, 6}) {
				return true
			}
		}
		return false
	})
	buf := make([]byte, 1)
	if _, err := s.Read(buf); err != nil {
		t.Fatal(err)
	}
	s.Close() // with unread data: a reset
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(buf); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read after reset: %v", err)
	}
	select {
	case p := <-rst:
		if !(&p).Is(packet.HasOwner) || p.UID != 5 || p.GID != 6 {
			t.Errorf("RST's owner: %v %d/%d", (&p).Is(packet.HasOwner), p.UID, p.GID)
		}
	default:
		// gVisor may end with FIN instead where all data had been read.
	}
}

func TestUDP(t *testing.T) {
	w := newWire(t, nil, []string{"10.0.0.1/24", "10.9.0.1/24", "fd00::1/64", "fd00:9::1/64"}, []string{"10.0.0.2/24", "fd00::2/64"})
	pc, err := w.hosts[0].ListenPacket("udp", ap("[::]:53"), Owner{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		b := make([]byte, 70000)
		for {
			n, from, to, err := pc.ReadFromTo(b)
			if err != nil {
				return
			}
			pc.WriteFromTo(b[:n], to, from)
		}
	}()
	// A connected socket takes answers from the address that it asked, only.
	for _, addr := range []string{"10.0.0.1:53", "10.9.0.1:53", "[fd00::1]:53", "[fd00:9::1]:53"} {
		c := dial(t, w.hosts[1], "udp", addr, Owner{})
		for _, n := range []int{1, 1400, 9000, 65000} {
			out := bytes.Repeat([]byte{byte(n), 1, 2}, n/3+1)[:n]
			if _, err := c.Write(out); err != nil {
				t.Fatal(err)
			}
			in := make([]byte, 70000)
			m, err := c.Read(in)
			if err != nil || !bytes.Equal(in[:m], out) {
				t.Fatalf("%s: %d bytes out, %d back: %v", addr, n, m, err)
			}
		}
	}
	// To a broadcast address; the answer's source is chosen by routing.
	c, err := w.hosts[1].ListenPacket("udp4", ap("10.0.0.2:4000"), Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.watch(func(from *testHost, p *packet.Packet) bool {
		if p.DstAddr() == netip.MustParseAddr("10.0.0.255") {
			p.Worker = 1
			w.hosts[0].Deliver(p)
			return false
		}
		return true
	})
	if _, err := c.WriteFromTo([]byte("who"), netip.Addr{}, ap("10.0.0.255:53")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, from, to, err := c.ReadFromTo(b)
	if err != nil || string(b[:n]) != "who" || from.Port() != 53 || !w.hosts[0].IsOwn(from.Addr()) || to.String() != "10.0.0.2" {
		t.Fatalf("%q from %s to %s: %v", b[:n], from, to, err)
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, _, err := c.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %v", err)
	}
	if _, err := c.WriteFromTo(make([]byte, 65508), netip.Addr{}, ap("10.0.0.1:53")); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("65508 bytes: %v", err)
	}
}

// TestUDPRefused: port unreachable reaches the connected socket.
func TestUDPRefused(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	for _, addr := range []string{"10.0.0.2:9", "[fd00::2]:9"} {
		c := dial(t, w.hosts[0], "udp", addr, Owner{})
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", addr, err)
		}
	}
}

func TestErrors(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	h := w.hosts[0]
	ln := echoServer(t, h, "tcp", "10.0.0.1:7", Owner{})
	for _, c := range []struct {
		network, addr string
		want          error
	}{
		{"tcp", "10.0.0.1:7", syscall.EADDRINUSE},
		{"tcp", "0.0.0.0:7", syscall.EADDRINUSE},
		{"tcp", "[::]:7", syscall.EADDRINUSE},
		{"tcp", "10.0.0.77:7", syscall.EADDRNOTAVAIL},
		{"tcp", "[fd00::77]:7", syscall.EADDRNOTAVAIL},
		{"tcp", "10.9.0.1:7", nil},
		{"tcp6", "[::]:7", nil},
	} {
		l2, err := h.Listen(c.network, ap(c.addr), Owner{})
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("listen %s %s: %v, want %v", c.network, c.addr, err, c.want)
		}
		if err == nil {
			l2.Close()
		}
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	ln2, err := h.Listen("tcp", ap("10.0.0.1:7"), Owner{})
	if err != nil {
		t.Fatalf("the port is not free after Close: %v", err)
	}
	ln2.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := h.DialContext(ctx, "tcp", netip.AddrPort{}, ap("10.0.0.2:99"), Owner{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a closed port: %v", err)
	}
	gone, cancel2 := context.WithCancel(context.Background())
	cancel2()
	if _, err := h.DialContext(gone, "tcp", netip.AddrPort{}, ap("10.0.0.2:99"), Owner{}); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a cancelled context: %v", err)
	}
	if s := h.Sockets(); len(s) != 0 {
		t.Errorf("sockets left over: %+v", s)
	}
}

func TestSockets(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	a, b := w.hosts[0], w.hosts[1]
	echoServer(t, b, "tcp", "[::]:7", Owner{10, 20})
	pc, err := b.ListenPacket("udp", ap("10.0.0.2:53"), Owner{11, 21})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	c := dial(t, a, "tcp", "10.0.0.2:7", Owner{30, 40})
	c.Write([]byte("x"))
	c.Read(make([]byte, 1))
	client := c.LocalAddr().(*net.TCPAddr).AddrPort()
	var list []Socket
	eventually(t, "three sockets", func() bool { list = b.Sockets(); return len(list) == 3 })
	want := []Socket{
		{packet.ProtoTCP, netip.AddrPortFrom(netip.Addr{}, 7), netip.AddrPort{}, "LISTEN", Owner{10, 20}, true},
		{packet.ProtoTCP, ap("10.0.0.2:7"), client, "ESTABLISHED", Owner{10, 20}, true},
		{packet.ProtoUDP, ap("10.0.0.2:53"), netip.AddrPort{}, "BOUND", Owner{11, 21}, true},
	}
	for i := range want {
		if list[i] != want[i] {
			t.Errorf("socket %d: %+v, want %+v", i, list[i], want[i])
		}
	}
	for _, q := range []struct {
		proto         uint8
		local, remote string
		state         string
	}{
		{packet.ProtoTCP, "10.0.0.2:7", client.String(), "ESTABLISHED"},
		{packet.ProtoTCP, "10.0.0.2:7", "10.0.0.1:1", "LISTEN"},
		{packet.ProtoTCP, "[fd00::2]:7", "[fd00::1]:1", "LISTEN"},
		{packet.ProtoTCP, "10.0.0.2:8", "10.0.0.1:1", ""},
		{packet.ProtoUDP, "10.0.0.2:53", "10.0.0.1:1", "BOUND"},
	} {
		s, ok := b.LookupSocket(q.proto, ap(q.local), ap(q.remote))
		if ok != (q.state != "") || s.State != q.state {
			t.Errorf("lookup %s < %s: %+v %v, want state %q", q.local, q.remote, s, ok, q.state)
		}
	}
}

// TestAddressChange: what stays is untouched, what goes is gone.
func TestAddressChange(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	a, b := w.hosts[0], w.hosts[1]
	echoServer(t, b, "tcp", "0.0.0.0:7", Owner{})
	keep := dial(t, a, "tcp", "10.0.0.2:7", Owner{})
	pfx := func(s ...string) (out []netip.Prefix) {
		for _, x := range s {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	if err := b.SetAddresses(pfx("10.0.0.2/24", "10.5.0.1/16")); err != nil {
		t.Fatal(err)
	}
	exchange(t, dial(t, a, "tcp", "10.5.0.1:7", Owner{}), 1000)
	keep.Write([]byte("y"))
	if n, err := keep.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("the connection did not survive: %v", err)
	}
	if b.IsOwn(netip.MustParseAddr("fd00::2")) || !b.IsOwn(netip.MustParseAddr("127.0.0.1")) {
		t.Error("IsOwn is wrong")
	}
	// Another prefix length, under a live connection, and back again.
	for _, s := range []string{"10.0.0.2/16", "10.0.0.2/24"} {
		if err := b.SetAddresses(pfx(s)); err != nil {
			t.Fatal(err)
		}
		keep.Write([]byte("z"))
		if n, err := keep.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatalf("%s: the connection did not survive: %v", s, err)
		}
	}
	if err := b.SetAddresses(pfx("224.0.0.1/4")); err == nil {
		t.Error("a multicast address is taken")
	}
	if !b.IsOwn(netip.MustParseAddr("10.0.0.2")) {
		t.Error("a refused change changed something")
	}
}

// TestMSS: SYNs say what the route's MTU allows, both ways.
func TestMSS(t *testing.T) {
	for _, c := range []struct {
		addr    string
		mtu     int64
		syn, sa int
	}{
		{"10.0.0.2:7", 1500, 1460, 1460},
		{"10.0.0.2:7", 1400, 1360, 1460},
		{"[fd00::2]:7", 1280, 1220, 1440},
	} {
		w := newWire(t, nil, twoHosts...)
		w.split = true
		w.hosts[0].mtu.Store(c.mtu)
		var mu sync.Mutex
		mss := map[string]int{}
		largest := 0
		w.watch(func(from *testHost, p *packet.Packet) bool {
			mu.Lock()
			defer mu.Unlock()
			if p.TCPFlags()&packet.TCPSyn != 0 {
				o := p.TCPOptions()
				for i := 0; i+3 < len(o) && o[i] != 0; {
					if o[i] == 1 {
						i++
						continue
					}
					if o[i] == 2 {
						mss[from.name] = int(o[i+2])<<8 | int(o[i+3])
					}
					i += int(o[i+1])
				}
				q := *p
				q.Flags &^= packet.L4ChecksumOK
				if !q.VerifyL4() {
					t.Error("the clamped SYN has a wrong checksum")
				}
			}
			if n := p.SegmentLen(); from == w.hosts[0] && n > largest {
				largest = n
			}
			return true
		})
		echoServer(t, w.hosts[1], "tcp", c.addr, Owner{})
		exchange(t, dial(t, w.hosts[0], "tcp", c.addr, Owner{}), 300000)
		mu.Lock()
		// gVisor keeps room for SACK blocks that a segment may not have.
		if mss["a"] != c.syn || mss["b"] != c.sa || largest > int(c.mtu) || largest < int(c.mtu)-28 {
			t.Errorf("%s, MTU %d: MSS %d and %d, largest segment %d; want %d, %d, the MTU", c.addr, c.mtu, mss["a"], mss["b"], largest, c.syn, c.sa)
		}
		mu.Unlock()
	}
}

// TestPMTU: a narrower link behind the first one is found out.
func TestPMTU(t *testing.T) {
	for _, c := range []struct {
		addr, router string
	}{{"10.0.0.2:7", "10.0.0.254"}, {"[fd00::2]:7", "fd00::fe"}} {
		t.Run(c.addr, func(t *testing.T) {
			const mtu = 1300
			w := newWire(t, nil, twoHosts...)
			var errs, late atomic.Int64
			w.watch(func(from *testHost, p *packet.Packet) bool {
				if p.SegmentLen() <= mtu {
					return true
				}
				if p.Family == packet.IPv4 && !p.Is(packet.DontFragment) {
					t.Error("TCP without DF")
				}
				typ, code := uint8(3), uint8(4)
				if p.Family == packet.IPv6 {
					typ, code = 2, 0
				}
				e := packet.New()
				if !packet.BuildICMPError(e, p, typ, code, mtu, a16(c.router)) {
					t.Error("no ICMP error")
				}
				if r := e.Parse(); r != 0 {
					t.Errorf("ICMP error: %s", r)
				}
				for i, h := range w.hosts {
					if h == from {
						e.Worker = uint16(i)
					}
				}
				from.Deliver(e)
				if errs.Add(1) > 200 {
					late.Add(1)
				}
				return false
			})
			echoServer(t, w.hosts[1], "tcp", c.addr, Owner{})
			exchange(t, dial(t, w.hosts[0], "tcp", c.addr, Owner{}), 1<<20)
			if errs.Load() == 0 {
				t.Error("no packet was too big: the test tests nothing")
			}
			if late.Load() != 0 {
				t.Errorf("%d packets too big: the path MTU is not learnt", errs.Load())
			}
		})
	}
}

// TestLoss: connections survive a wire that loses one packet in fifty.
func TestLoss(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	w.split = true
	var n, lost atomic.Int64
	w.watch(func(*testHost, *packet.Packet) bool {
		if n.Add(1)%50 == 0 {
			lost.Add(1)
			return false
		}
		return true
	})
	echoServer(t, w.hosts[1], "tcp", "10.0.0.2:7", Owner{})
	exchange(t, dial(t, w.hosts[0], "tcp", "10.0.0.2:7", Owner{}), 1<<20)
	if lost.Load() == 0 {
		t.Error("nothing was lost")
	}
}

// TestTunables: TTL and port range are those that were set.
func TestTunables(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	a := w.hosts[0]
	if err := a.SetTTL(77, 99); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPortRange(50000, 50009); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPortRange(60000, 50000); err == nil {
		t.Error("a port range that ends before it begins is taken")
	}
	var wrong atomic.Int64
	w.watch(func(from *testHost, p *packet.Packet) bool {
		want := map[uint8]uint8{packet.IPv4: 77, packet.IPv6: 99}[p.Family]
		if from == a && (p.TTL() != want || p.SrcPort() < 50000 || p.SrcPort() > 50009) {
			wrong.Add(1)
		}
		return true
	})
	for _, addr := range []string{"10.0.0.2:7", "[fd00::2]:7"} {
		echoServer(t, w.hosts[1], "tcp", addr, Owner{})
		exchange(t, dial(t, a, "tcp", addr, Owner{}), 10000)
		pc, err := w.hosts[1].ListenPacket("udp", ap(addr), Owner{})
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		if _, err := dial(t, a, "udp", addr, Owner{}).Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, _, _, err := pc.ReadFromTo(make([]byte, 9)); n != 1 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d packets with another TTL or port", n)
	}
}

// shortWriter takes one byte less than it is asked to, and says so without an error.
type shortWriter struct{ took int64 }

func (w *shortWriter) Write(b []byte) (int, error) {
	w.took += int64(len(b) - 1)
	return len(b) - 1, nil
}

// TestCopy: io.Copy from a connection gives all of it, whether it is kept or
// thrown away, heeds the read deadline, and ends at a writer that takes less.
func TestCopy(t *testing.T) {
	w := newWire(t, nil, twoHosts...)
	ln, err := w.hosts[1].Listen("tcp", ap("10.0.0.2:7"), Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	want := make([]byte, 3<<20)
	for i := range want {
		want[i] = byte(i ^ i>>8 ^ i>>16)
	}
	for name, to := range map[string]io.Writer{"kept": &bytes.Buffer{}, "thrown away": io.Discard} {
		out := dial(t, w.hosts[0], "tcp", "10.0.0.2:7", Owner{})
		in, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			out.Write(want)
			out.(interface{ CloseWrite() error }).CloseWrite()
		}()
		n, err := io.Copy(to, in)
		if err != nil || n != int64(len(want)) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		if b, ok := to.(*bytes.Buffer); ok && !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s: the bytes are others", name)
		}
		in.Close()
		out.Close()
		out = dial(t, w.hosts[0], "tcp", "10.0.0.2:7", Owner{})
		if in, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		in.SetReadDeadline(time.Now().Add(-time.Second))
		out.Write(want[:1000])
		var timeout net.Error
		if n, err := io.Copy(to, in); !errors.As(err, &timeout) || !timeout.Timeout() || n != 0 {
			t.Errorf("%s, behind the deadline: %d bytes, %v", name, n, err)
		}
		in.SetReadDeadline(time.Time{})
		out.(interface{ CloseWrite() error }).CloseWrite()
		var short shortWriter
		if n, err := io.Copy(&short, in); err != io.ErrShortWrite || n != short.took {
			t.Errorf("to a short writer: %d bytes of %d, %v", n, short.took, err)
		}
		in.Close()
		out.Close()
	}
}
