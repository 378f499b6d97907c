package synproxy

import (
	"testing"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/packettest"
)

// TestSipHash: the first of the vectors that came with SipHash-2-4, those of
// whole words.
func TestSipHash(t *testing.T) {
	key := [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	words := []uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908, 0x1716151413121110}
	for n, want := range []uint64{0x726fdb47dd0e0e31, 0x93f5f5799a932462, 0x3f2acc7f57c29bdb} {
		if got := siphash(&key, words[:n]); got != want {
			t.Errorf("of %d bytes: %016x, not %016x", 8*n, got, want)
		}
	}
}

func newProxy() *Proxy {
	s := sysctl.NewSet()
	return New(conntrack.New(s, conntrack.Options{}), s, 1)
}

// TestCookie: a cookie says which MSS it was made for, to who had it, for a minute or two.
func TestCookie(t *testing.T) {
	x := newProxy()
	for _, c := range []struct {
		desc      string
		mss, want uint16
	}{
		{"tcp 10.0.0.1:5000 > 10.0.0.2:80 S seq=1000", 0, 536},
		{"tcp 10.0.0.1:5000 > 10.0.0.2:80 S seq=1000", 1300, 1300},
		{"tcp 10.0.0.1:5000 > 10.0.0.2:80 S seq=4294967295", 1459, 1440},
		{"tcp 10.0.0.1:5000 > 10.0.0.2:80 S seq=0", 65535, 1460},
		{"tcp [fd00::1]:5000 > [fd00::2]:80 S seq=7", 1000, 1220},
		{"tcp [fd00::1]:5000 > [fd00::2]:80 S seq=7", 9000, 8940},
	} {
		p := packettest.New(t, c.desc)
		p.Now = 10*minute - 1
		v := x.cookie(p, c.mss)
		setSeq(p, p.TCPSeq()+1, v+1)
		for _, later := range []int64{0, minute, 2 * minute, 255 * minute} {
			q := packet.New()
			q.Copy(p)
			q.Now += later
			want := c.want
			if later > minute {
				want = 0
			}
			if got := x.check(q); got != want {
				t.Errorf("%s, MSS %d, %d s later: %d, not %d", c.desc, c.mss, later/1e9, got, want)
			}
		}
		bad := packet.New()
		bad.Copy(p)
		bad.SetSrcPort(5001)
		if m := x.check(bad); m != 0 {
			t.Errorf("%s: another port has MSS %d", c.desc, m)
		}
		if m := newProxy().check(p); m != 0 {
			t.Errorf("%s: another secret has MSS %d", c.desc, m)
		}
	}
}

func setSeq(p *packet.Packet, seq, ack uint32) {
	p.SetL4Word(4, uint16(seq>>16))
	p.SetL4Word(6, uint16(seq))
	p.SetL4Word(8, uint16(ack>>16))
	p.SetL4Word(10, uint16(ack))
}

// TestFlood: a SYN costs no connection and no memory.
func TestFlood(t *testing.T) {
	x := newProxy()
	ct := x.ct
	w := ct.NewWorker()
	free := packet.New()
	sent := 0
	o := &Out{CT: w, Alloc: func() *packet.Packet { return free }, Send: func(p *packet.Packet) {
		if p.TCPWindow() != 0 || p.TCPFlags() != packet.TCPSyn|packet.TCPAckFlag {
			t.Fatalf("sent %s", packettest.Describe(p.Bytes()))
		}
		sent++
	}}
	rule := &Options{Has: MSS | WScale | SACKPerm | Timestamp, MSS: 1460, WScale: 7}
	p := packettest.New(t, "tcp 10.0.0.1:5000 > 10.0.0.2:80 S seq=1000 tcpopts=020405b40402080a00000064000000000103030a")
	p.CtInfo = packet.CtUntracked
	w.Begin(0)
	if n := testing.AllocsPerRun(1000, func() {
		if x.Target(o, p, rule) != hooks.Stolen {
			t.Fatal("not answered")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a SYN", n)
	}
	w.End()
	if n := ct.Count(); n != 0 {
		t.Errorf("%d connections", n)
	}
	if s := x.Stats(); s.SYNReceived != uint64(sent) {
		t.Errorf("%d SYNs counted, %d answered", s.SYNReceived, sent)
	}
}

// FuzzOptions: no header makes the proxy fall over.
func FuzzOptions(f *testing.F) {
	f.Add([]byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7})
	f.Add([]byte{8, 10, 0, 0})
	f.Add([]byte{3, 0, 3, 1})
	f.Fuzz(func(t *testing.T, opts []byte) {
		th := append(make([]byte, 20), opts[:min(len(opts)&^3, 40)]...)
		th[12] = byte(len(th)/4) << 4
		var o Options
		if !o.parse(th) {
			t.Fatal("a whole header is refused")
		}
		var room [40]byte
		if n := len(o.append(room[:0])); n%4 != 0 || n > 20 {
			t.Fatalf("%d bytes of options", n)
		}
	})
}
