package packet_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

// merged sends packets through a Merger and gives what comes out: each group's
// packet with the payloads behind it.
func merged(m *packet.Merger, ps []*packet.Packet) []*packet.Packet {
	for _, p := range ps {
		m.Add(p)
	}
	var out []*packet.Packet
	for i := range m.Groups() {
		head, more := m.Group(i)
		rest := m.Payloads(i, nil)
		if len(rest) != more {
			panic(fmt.Sprintf("%d payloads follow, not %d", len(rest), more))
		}
		q := packet.New()
		q.Copy(head)
		for _, r := range rest {
			q.End += copy(q.Buf[q.End:], r)
		}
		out = append(out, q)
	}
	m.Reset()
	return out
}

// split undoes it, as a device without offload would.
func split(ps []*packet.Packet) (out [][]byte) {
	for _, p := range ps {
		packet.Segments(p, func(s *packet.Packet) { out = append(out, bytes.Clone(s.Bytes())) })
	}
	return out
}

func parse(t testing.TB, b []byte) *packet.Packet {
	t.Helper()
	p := packet.New()
	p.SetBytes(b)
	if r := p.Parse(); r != 0 {
		t.Fatalf("% x: %v", b, r)
	}
	return p
}

// stream is one flow whose next packet follows the last one, if it wants.
type stream struct {
	v6, tcp bool
	port    int
	seq     uint32
	id      uint16
	fixed   bool
	size    int
}

func (s *stream) frame(t testing.TB, rnd *rand.Rand) []byte {
	odd := func(n int) bool { return rnd.IntN(n) == 0 }
	size := s.size
	if odd(8) {
		size = rnd.IntN(60)
	}
	src, dst := "10.0.0.1", "9.9.9.9"
	if s.v6 {
		src, dst = "[fd00::1]", "[fd00::2]"
	}
	proto, extra := "udp", ""
	if s.tcp {
		proto, extra = "tcp", " A"
	}
	b, err := packettest.Frame(fmt.Sprintf("%s %s:%d > %s:80%s len=%d", proto, src, s.port, dst, extra, size))
	if err != nil {
		t.Fatal(err)
	}
	p := parse(t, b)
	b = p.Bytes()
	if !s.v6 {
		s.id++
		if odd(10) {
			s.id += 5
		}
		id := s.id
		if s.fixed {
			id = 7
			b[6] |= 0x40
		}
		binary.BigEndian.PutUint16(b[4:], id)
		if odd(20) {
			b[1] = 0x10
		}
		if odd(20) {
			b[8]--
		}
	} else if odd(20) {
		b[7]--
	}
	l4 := b[p.L4:]
	for i := range size {
		b[len(b)-1-i] = byte(rnd.Uint32())
	}
	if s.tcp {
		if odd(15) {
			s.seq += 3
		}
		binary.BigEndian.PutUint32(l4[4:], s.seq)
		s.seq += uint32(size)
		binary.BigEndian.PutUint32(l4[8:], 5)
		for _, bit := range []byte{packet.TCPFin, packet.TCPPsh, packet.TCPUrg, packet.TCPEce, packet.TCPCwr} {
			if odd(25) {
				l4[13] |= bit
			}
		}
		if odd(25) {
			l4[15]++ // window
		}
	}
	p.FixChecksums()
	if odd(30) {
		if s.tcp {
			l4[17]++ // a wrong checksum stays wrong
		} else {
			l4[6], l4[7] = 0, 0
		}
	}
	return bytes.Clone(b)
}

// TestMergeSplits: what is merged and split again is what came, in each flow's
// order; but for the ID of packets with DF.
func TestMergeSplits(t *testing.T) {
	joined := 0
	for round := range uint64(400) {
		rnd := rand.New(rand.NewPCG(round, 4))
		var flows []*stream
		for i := range 1 + rnd.IntN(5) {
			flows = append(flows, &stream{v6: rnd.IntN(3) == 0, tcp: rnd.IntN(2) == 0, port: 1000 + i, id: uint16(rnd.Uint32()), seq: rnd.Uint32(), fixed: rnd.IntN(2) == 0, size: 1 + rnd.IntN(1400)})
		}
		var in []*packet.Packet
		want := map[int][][]byte{}
		for range 1 + rnd.IntN(packet.MaxMerge) {
			s := flows[rnd.IntN(len(flows))]
			b := s.frame(t, rnd)
			p := parse(t, b)
			if rnd.IntN(2) == 0 && p.VerifyL4() { // as from a device: the checksum partial
				at := uint16(16)
				if !s.tcp {
					at = 6
				}
				if !(at == 6 && p.Transport()[6]|p.Transport()[7] == 0) {
					p.GSO = packet.GSO{NeedsCsum: true, CsumStart: p.L4, CsumOffset: at}
					p.FixChecksums()
				}
			}
			in = append(in, p)
			want[s.port] = append(want[s.port], b)
		}
		out := merged(&packet.Merger{}, in)
		joined += len(in) - len(out)
		got := map[int][][]byte{}
		for _, b := range split(out) {
			p := parse(t, b)
			got[int(p.SrcPort())] = append(got[int(p.SrcPort())], b)
		}
		for port, w := range want {
			g := got[port]
			if len(g) != len(w) {
				t.Fatalf("round %d, flow %d: %d packets, not %d", round, port, len(g), len(w))
			}
			for i := range w {
				a, b := bytes.Clone(w[i]), g[i]
				if a[0]>>4 == 4 && a[6]&0x40 != 0 {
					copy(a[4:6], b[4:6])
					copy(a[10:12], b[10:12])
				}
				if !bytes.Equal(a, b) {
					t.Fatalf("round %d, flow %d, packet %d:\n% x\nwas\n% x", round, port, i, b[:60], a[:60])
				}
			}
		}
	}
	if joined < 1000 {
		t.Errorf("only %d packets were joined to others", joined)
	}
}

// TestMergeConditions: the kernel's conditions one by one.
func TestMergeConditions(t *testing.T) {
	udp := func(change func(b []byte)) []byte {
		b, err := packettest.Frame("udp 10.0.0.1:1000 > 9.9.9.9:80 len=100")
		if err != nil {
			t.Fatal(err)
		}
		b[6] |= 0x40
		if change != nil {
			change(b)
		}
		p := parse2(b)
		p.FixChecksums()
		return b
	}
	tcp := func(seq uint32, change func(b []byte)) []byte {
		b, err := packettest.Frame("tcp 10.0.0.1:1000 > 9.9.9.9:80 A len=100")
		if err != nil {
			t.Fatal(err)
		}
		b[6] |= 0x40
		binary.BigEndian.PutUint32(b[24:], seq)
		if change != nil {
			change(b)
		}
		p := parse2(b)
		p.FixChecksums()
		return b
	}
	set := func(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
	id := func(v byte) func([]byte) { return func(b []byte) { b[4], b[5], b[6] = 0, v, 0 } }
	for name, c := range map[string]struct {
		in   [][]byte
		want int
	}{
		"datagrams":                {[][]byte{udp(nil), udp(nil), udp(nil)}, 1},
		"other TTL":                {[][]byte{udp(nil), udp(set(8, 9))}, 2},
		"other TOS":                {[][]byte{udp(nil), udp(set(1, 9))}, 2},
		"other port":               {[][]byte{udp(nil), udp(set(21, 9))}, 2},
		"other flow in between":    {[][]byte{udp(nil), udp(set(21, 9)), udp(nil), udp(set(21, 9))}, 2},
		"other DF":                 {[][]byte{udp(nil), udp(set(6, 0))}, 2},
		"IDs count up":             {[][]byte{udp(id(1)), udp(id(2)), udp(id(3))}, 1},
		"an ID is left out":        {[][]byte{udp(id(1)), udp(id(3))}, 2},
		"IDs stay without DF":      {[][]byte{udp(id(1)), udp(id(1))}, 2},
		"segments":                 {[][]byte{tcp(0, nil), tcp(100, nil), tcp(200, nil)}, 1},
		"a gap":                    {[][]byte{tcp(0, nil), tcp(101, nil)}, 2},
		"sent again":               {[][]byte{tcp(0, nil), tcp(0, nil)}, 2},
		"other acknowledgement":    {[][]byte{tcp(0, nil), tcp(100, set(31, 9))}, 2},
		"other window":             {[][]byte{tcp(0, nil), tcp(100, set(35, 9))}, 2},
		"PSH ends it":              {[][]byte{tcp(0, nil), tcp(100, set(33, 0x18)), tcp(200, nil)}, 2},
		"FIN ends it":              {[][]byte{tcp(0, nil), tcp(100, set(33, 0x11)), tcp(200, nil)}, 2},
		"PSH on the first":         {[][]byte{tcp(0, set(33, 0x18)), tcp(100, nil)}, 2},
		"URG":                      {[][]byte{tcp(0, nil), tcp(100, set(33, 0x30))}, 2},
		"ECE":                      {[][]byte{tcp(0, nil), tcp(100, set(33, 0x50))}, 2},
		"CWR on the first":         {[][]byte{tcp(0, set(33, 0x90)), tcp(100, nil)}, 1},
		"CWR later":                {[][]byte{tcp(0, nil), tcp(100, set(33, 0x90))}, 2},
		"SYN":                      {[][]byte{tcp(0, set(33, 2)), tcp(100, set(33, 2))}, 2},
		"reserved bit":             {[][]byte{tcp(0, nil), tcp(100, set(32, 0x51))}, 2},
		"datagram beside segments": {[][]byte{tcp(0, nil), udp(nil), tcp(100, nil), udp(nil)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var in []*packet.Packet
			for _, b := range c.in {
				in = append(in, parse(t, b))
			}
			if out := merged(&packet.Merger{}, in); len(out) != c.want {
				t.Errorf("%d packets, not %d", len(out), c.want)
			}
		})
	}
	t.Run("no datagrams", func(t *testing.T) {
		if out := merged(&packet.Merger{NoUDP: true}, []*packet.Packet{parse(t, udp(nil)), parse(t, udp(nil))}); len(out) != 2 {
			t.Errorf("%d packets, not 2", len(out))
		}
	})
	t.Run("super-packets", func(t *testing.T) {
		// Segments to 3 super-packets of 20, those to one.
		var supers []*packet.Packet
		for i := range uint32(3) {
			var in []*packet.Packet
			for j := range uint32(20) {
				in = append(in, parse(t, tcp((i*20+j)*100, nil)))
			}
			supers = append(supers, merged(&packet.Merger{}, in)...)
		}
		for i, p := range supers { // as a sender makes them
			b := p.Bytes()
			binary.BigEndian.PutUint16(b[4:], uint16(i*20))
			p.FixHeader()
		}
		out := merged(&packet.Merger{}, supers)
		if len(out) != 1 || out[0].Len() != 40+6000 || out[0].SegmentCount() != 60 {
			t.Fatalf("%d packets, the first of %d bytes", len(out), out[0].Len())
		}
		if got := split(out); len(got) != 60 {
			t.Errorf("%d segments", len(got))
		}
	})
	t.Run("no more than 65535 bytes", func(t *testing.T) {
		var in []*packet.Packet
		for i := range uint32(60) {
			b, err := packettest.Frame("tcp 10.0.0.1:1000 > 9.9.9.9:80 A len=1400")
			if err != nil {
				t.Fatal(err)
			}
			b[6] |= 0x40
			binary.BigEndian.PutUint32(b[24:], i*1400)
			parse2(b).FixChecksums()
			in = append(in, parse(t, b))
		}
		out := merged(&packet.Merger{}, in)
		if len(out) != 2 || out[0].Len() != 40+46*1400 {
			t.Errorf("%d packets, the first of %d bytes", len(out), out[0].Len())
		}
	})
}

// parse2 is a view of b itself.
func parse2(b []byte) *packet.Packet {
	p := &packet.Packet{Buf: b, End: len(b)}
	p.Family = b[0] >> 4
	p.FixHeader()
	p.Parse()
	return p
}

func TestMergeAllocs(t *testing.T) {
	var m packet.Merger
	var in []*packet.Packet
	for range packet.MaxMerge {
		b, err := packettest.Frame("udp 10.0.0.1:1000 > 9.9.9.9:80 len=36")
		if err != nil {
			t.Fatal(err)
		}
		b[6] |= 0x40
		parse2(b).FixHeader()
		in = append(in, parse(t, b))
	}
	to := make([][]byte, 0, packet.MaxMerge)
	if n := testing.AllocsPerRun(100, func() {
		for _, p := range in {
			p.GSO = packet.GSO{}
			binary.BigEndian.PutUint16(p.Bytes()[2:], uint16(p.Len()))
			binary.BigEndian.PutUint16(p.Transport()[4:], uint16(p.Len()-20))
			m.Add(p)
		}
		for i := range m.Groups() {
			m.Group(i)
			to = m.Payloads(i, to[:0])
		}
		m.Reset()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMerge(b *testing.B) {
	for _, flows := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			var m packet.Merger
			var in []*packet.Packet
			for i := range packet.MaxMerge {
				f, err := packettest.Frame(fmt.Sprintf("udp 10.0.0.1:%d > 9.9.9.9:80 len=36", 1000+i%flows))
				if err != nil {
					b.Fatal(err)
				}
				in = append(in, parse(b, f))
			}
			for n := 0; n < b.N; n += packet.MaxMerge {
				for _, p := range in {
					m.Add(p)
				}
				m.Reset()
			}
		})
	}
}

// TestFlowHash: both directions give one value, other flows mostly another; a
// packet's fragments give one value.
func TestFlowHash(t *testing.T) {
	hash := func(s string) uint32 {
		b, err := packettest.Frame(s)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, b).FlowHash()
	}
	for _, c := range [][2]string{
		{"tcp 10.0.0.1:1000 > 9.9.9.9:80 A len=1", "tcp 9.9.9.9:80 > 10.0.0.1:1000 A len=7"},
		{"udp [fd00::1]:1000 > [fd00::2]:80 len=1", "udp [fd00::2]:80 > [fd00::1]:1000 len=7"},
		{"udp 10.0.0.1:1000 > 9.9.9.9:80 len=16 frag=0+ ipid=1", "udp 10.0.0.1:1000 > 9.9.9.9:80 len=16 frag=24 ipid=1"},
	} {
		if a, b := hash(c[0]), hash(c[1]); a != b {
			t.Errorf("%s: %#x, %s: %#x", c[0], a, c[1], b)
		}
	}
	seen, low := map[uint32]bool{}, [2]int{}
	for port := 1000; port < 2000; port++ {
		h := hash(fmt.Sprintf("udp 10.0.0.1:%d > 9.9.9.9:80 len=1", port))
		seen[h] = true
		low[h%2]++
	}
	if len(seen) < 990 || low[0] < 300 || low[1] < 300 {
		t.Errorf("%d values of 1000, %v even and odd", len(seen), low)
	}
}
