package frag

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/packettest"
)

// cuts makes a datagram and its fragments of size bytes.
func cuts(t testing.TB, desc string, sizes ...int) (whole []byte, frames [][]byte) {
	t.Helper()
	whole, err := packettest.Frame(desc)
	if err != nil {
		t.Fatal(err)
	}
	frames, err = packettest.Fragments(desc, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return whole, frames
}

func add(t testing.TB, r *Reassembler, p *packet.Packet, b []byte, now int64) (Verdict, packet.Reason) {
	t.Helper()
	p.SetBytes(b)
	p.Now = now
	if why := p.Parse(); why != 0 {
		t.Fatalf("%x: %v", b, why)
	}
	return r.Add(p, UserConntrackIn)
}

const (
	datagram4 = "udp 10.0.0.1:1 > 10.0.0.2:2 len=4000 ipid=7 ttl=9 tos=16"
	datagram6 = "udp [fd00::1]:1 > [fd00::2]:2 len=4000 ipid=7 ttl=9 tos=16 ext=hop,route"
)

func TestEveryOrder(t *testing.T) {
	r, p := New(sysctl.NewSet()), packet.New()
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, desc := range []string{datagram4, datagram6} {
		whole, frames := cuts(t, desc, 1000, 8, 1480, 800)
		for range 100 {
			rnd.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			for i, f := range frames {
				v, why := add(t, r, p, f, 1)
				if i < len(frames)-1 {
					if v != Queued {
						t.Fatalf("fragment %d: %v %v", i, v, why)
					}
					continue
				}
				if v != Complete {
					t.Fatalf("last fragment: %v %v", v, why)
				}
			}
			if !bytes.Equal(p.Bytes(), whole) {
				t.Fatalf("\n got %x\nwant %x", p.Bytes(), whole)
			}
			head := 20
			if p.Family == packet.IPv6 {
				head = 40 + 16 + 8
			}
			if !p.Is(packet.Reassembled|packet.HasPorts) || p.Is(packet.Fragment) || int(p.FragMax) != head+1480 || !p.VerifyL4() {
				t.Fatalf("view: flags %#x, FragMax %d", p.Flags, p.FragMax)
			}
			if fmt.Sprint(p.Pieces) != "[1000 8 1480 800 720]" {
				t.Fatalf("pieces %v", p.Pieces)
			}
		}
	}
	s := r.Stats()
	if s.OKs != 200 || s.Reqds != 1000 || s.Queues != 0 || s.Memory != [2]int64{} || s.Fails != 0 {
		t.Errorf("stats %+v", s)
	}
	if r.Due(1 << 60) {
		t.Error("a deadline is left")
	}
}

func TestNotAFragment(t *testing.T) {
	r, p := New(sysctl.NewSet()), packet.New()
	for _, d := range []string{"udp 10.0.0.1:1 > 10.0.0.2:2 len=40 df", "udp [fd00::1]:1 > [fd00::2]:2 ext=hop"} {
		b := packettest.MustFrame(d)
		if v, _ := add(t, r, p, b, 1); v != Pass || !bytes.Equal(p.Bytes(), b) {
			t.Errorf("%s: %v", d, v)
		}
	}
	if v, _ := add(t, r, p, packettest.MustFrame("udp [fd00::1]:1 > [fd00::2]:2 frag=0 ipid=3 len=5"), 1); v != Complete {
		t.Error("an atomic fragment is complete at once")
	}
	if got := packettest.Describe(p.Bytes()); got != "udp [fd00::1]:1 > [fd00::2]:2 len=5" {
		t.Error(got)
	}
}

func TestOverlap(t *testing.T) {
	f := packettest.MustFrame
	first := f("17 10.0.0.1 > 10.0.0.2 frag=0+ ipid=7 len=792")
	for _, c := range []struct {
		name  string
		frame string
		want  packet.Reason
		lost  bool // the datagram is given up
	}{
		{"the same again", "17 10.0.0.1 > 10.0.0.2 frag=800+ ipid=7 len=800", DropDuplicate, false},
		{"a part again", "17 10.0.0.1 > 10.0.0.2 frag=808+ ipid=7 len=16", DropDuplicate, false},
		{"over the end", "17 10.0.0.1 > 10.0.0.2 frag=1592+ ipid=7 len=16", DropOverlap, true},
		{"over the beginning", "17 10.0.0.1 > 10.0.0.2 frag=792+ ipid=7 len=16", DropDuplicate, false},
		{"past the end", "17 10.0.0.1 > 10.0.0.2 frag=2000 ipid=7 len=8", 0, false},
		{"end before what is there", "17 10.0.0.1 > 10.0.0.2 frag=800 ipid=7 len=8", DropLength, true},
		{"empty", "17 10.0.0.1 > 10.0.0.2 frag=1600+ ipid=7 len=3", DropLength, true},
		{"another protocol", "6 10.0.0.1 > 10.0.0.2 frag=800+ ipid=7 len=800", 0, false},
		{"another identification", "17 10.0.0.1 > 10.0.0.2 frag=800+ ipid=8 len=800", 0, false},
		{"another source", "17 10.0.0.3 > 10.0.0.2 frag=800+ ipid=7 len=800", 0, false},
	} {
		r, p := New(sysctl.NewSet()), packet.New()
		add(t, r, p, first, 1)
		add(t, r, p, f("17 10.0.0.1 > 10.0.0.2 frag=800+ ipid=7 len=800"), 1)
		v, why := add(t, r, p, f(c.frame), 1)
		if why != c.want || (v == Dropped) != (why != 0) {
			t.Errorf("%s: %v %v", c.name, v, why)
		}
		v, _ = add(t, r, p, f("17 10.0.0.1 > 10.0.0.2 frag=1600 ipid=7 len=8"), 1)
		if c.name != "past the end" && (v == Complete) == c.lost {
			t.Errorf("%s: then %v", c.name, v)
		}
	}
}

func TestUsersAndZonesApart(t *testing.T) {
	r, p := New(sysctl.NewSet()), packet.New()
	_, frames := cuts(t, datagram4, 2000)
	for user := range uint32(3) {
		p.SetBytes(frames[0])
		p.Parse()
		if v, _ := r.Add(p, UserConntrackIn+user); v != Queued {
			t.Fatal(v)
		}
	}
	p.SetBytes(frames[1])
	p.Parse()
	if v, _ := r.Add(p, UserConntrackOut); v != Queued {
		t.Error("another user's fragment completed a datagram")
	}
	p.SetBytes(frames[1])
	p.Parse()
	if v, _ := r.Add(p, UserConntrackIn+1); v != Complete {
		t.Error("not completed")
	}
}

func TestIPv6LinkLocalByInterface(t *testing.T) {
	r, p := New(sysctl.NewSet()), packet.New()
	_, frames := cuts(t, "udp [fe80::1]:1 > [fe80::2]:2 len=100 ipid=7", 48)
	a, b := packet.NewIface(1, "a", 1500), packet.NewIface(2, "b", 1500)
	for _, c := range []struct {
		in   *packet.Iface
		i    int
		want Verdict
	}{{a, 0, Queued}, {b, 1, Queued}, {a, 1, Complete}} {
		p.SetBytes(frames[c.i])
		p.In = c.in
		p.Parse()
		if v, _ := r.Add(p, 0); v != c.want {
			t.Errorf("%s: %v", c.in.Name, v)
		}
	}
}

func TestTimeout(t *testing.T) {
	s := sysctl.NewSet()
	r, p := New(s), packet.New()
	whole, frames := cuts(t, datagram4, 2000)
	_, frames6 := cuts(t, datagram6, 2000)
	add(t, r, p, frames[0], 1e9)
	add(t, r, p, frames6[0], 1e9)
	add(t, r, p, packettest.MustFrame("17 10.9.9.9 > 10.0.0.2 frag=80 ipid=7 len=8"), 2e9)
	var got []string
	emit := func(first *packet.Packet, user uint32) {
		if first.Reason != DropTimeout || user != UserConntrackIn {
			t.Errorf("reason %v, user %#x", first.Reason, user)
		}
		got = append(got, packettest.Describe(first.Bytes()))
	}
	r.Expire(31e9-1, emit)
	if len(got) != 0 || !r.Due(31e9) {
		t.Errorf("early: %v", got)
	}
	r.Expire(33e9, emit)
	if len(got) != 1 || got[0] != "udp 10.0.0.1:1 > 10.0.0.2:2 ttl=9 tos=0x10 frag=0+ ipid=7 len=1992" {
		t.Errorf("IPv4: %v", got)
	}
	r.Expire(61e9, emit)
	if len(got) != 2 || got[1] != "udp [fd00::1]:1 > [fd00::2]:2 ttl=9 tos=0x10 frag=0+ ipid=7 len=1992" {
		t.Errorf("IPv6: %v", got)
	}
	if v, _ := add(t, r, p, frames[1], 62e9); v != Queued {
		t.Error("a fragment completed a datagram that was given up")
	}
	if v, _ := add(t, r, p, frames[0], 62e9); v != Complete || !bytes.Equal(p.Bytes(), whole) {
		t.Error("not completed")
	}
	if st := r.Stats(); st.Timeouts != 3 || st.Queues != 0 || st.Memory != [2]int64{} {
		t.Errorf("stats %+v", st)
	}
}

// TestTunables: each kind of queue listens to its own names.
func TestTunables(t *testing.T) {
	for _, c := range []struct {
		time, high string
		desc       string
		user       uint32
	}{
		{"net.ipv4.ipfrag_time", "net.ipv4.ipfrag_high_thresh", datagram4, UserConntrackIn},
		{"net.ipv6.ip6frag_time", "net.ipv6.ip6frag_high_thresh", datagram6, UserLocal},
		{"net.netfilter.nf_conntrack_frag6_timeout", "net.netfilter.nf_conntrack_frag6_high_thresh", datagram6, UserConntrackIn},
	} {
		s := sysctl.NewSet()
		r, p := New(s), packet.New()
		_, frames := cuts(t, c.desc, 2000)
		s.Lookup(c.time).Store(5)
		send := func() (Verdict, packet.Reason) {
			p.SetBytes(frames[0])
			p.Now = 1e9
			p.Parse()
			return r.Add(p, c.user)
		}
		if v, why := send(); v != Queued || !r.Due(6e9) || r.Due(6e9-1) {
			t.Errorf("%s: %v %v", c.time, v, why)
		}
		r.Expire(6e9, nil)
		s.Lookup(c.high).Store(0)
		if v, why := send(); v != Dropped || why != DropLimit {
			t.Errorf("%s: %v %v", c.high, v, why)
		}
	}
}

// TestMemory: no more than the limit, and one datagram, is held, and it all comes back.
func TestMemory(t *testing.T) {
	s := sysctl.NewSet()
	r, p := New(s), packet.New()
	s.Lookup("net.ipv4.ipfrag_high_thresh").Store(100000)
	dropped := 0
	for id := range 1000 {
		b := packettest.MustFrame(fmt.Sprintf("17 10.0.0.%d > 10.0.0.2 frag=0+ ipid=%d len=1392", id%200, id))
		if _, why := add(t, r, p, b, 1); why == DropLimit {
			dropped++
		}
	}
	st := r.Stats()
	if dropped < 900 || st.Memory[0] < 90000 || st.Memory[0] > 103000 {
		t.Errorf("%d dropped, %+v", dropped, st)
	}
	r.Expire(31e9, nil)
	if st := r.Stats(); st.Memory[0] != 0 || st.Queues != 0 || len(r.peers) != 0 {
		t.Errorf("after expiry %+v, %d peers", st, len(r.peers))
	}
}

// TestWorkers: several goroutines with their own packets and a housekeeper.
func TestWorkers(t *testing.T) {
	r := New(sysctl.NewSet())
	var wg sync.WaitGroup
	var mu sync.Mutex
	complete := 0
	for w := range 4 {
		wg.Go(func() {
			p := packet.New()
			for i := range 300 {
				_, frames := cuts(t, fmt.Sprintf("udp 10.0.0.%d:1 > 10.0.0.2:2 len=3000 ipid=%d", w/2, i), 800, 800)
				for j := range frames {
					if j%2 == w%2 { // two workers have half of the fragments each
						p.SetBytes(frames[j])
						p.Parse()
						if v, _ := r.Add(p, 0); v == Complete {
							mu.Lock()
							complete++
							mu.Unlock()
						}
					}
				}
				r.Expire(1, nil)
				r.Stats()
			}
		})
	}
	wg.Wait()
	// A worker that lags by more than ipfrag_max_dist fragments loses datagrams, as in Linux.
	if st := r.Stats(); st.OKs != uint64(complete) || complete+st.Queues+int(st.Fails) < 600 {
		t.Errorf("%d complete, %+v", complete, st)
	}
}

// FuzzReassemble: whatever comes, nothing panics, memory is accounted for, and
// a completed datagram has at each place a byte that some fragment had there.
func FuzzReassemble(f *testing.F) {
	f.Add([]byte{0, 2, 1, 0, 2, 2, 1, 0, 4, 2, 0, 0})
	f.Add([]byte{2, 2, 1, 1, 0, 2, 1, 1, 4, 3, 0, 1})
	f.Add([]byte{0, 2, 1, 0, 1, 2, 1, 0, 4, 2, 0, 0, 0, 2, 1, 0, 2, 2, 0, 0})
	f.Add([]byte{0, 2, 3, 1, 2, 2, 3, 1, 255, 255, 3, 1, 4, 2, 2, 1})
	p := packet.New()
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := New(sysctl.NewSet())
		sent := map[int][]byte{} // family and offset: bytes sent there
		for n := 0; len(ops) >= 4 && n < 50; n, ops = n+1, ops[4:] {
			off, size, flags, fam := int(ops[0])*8, int(ops[1])*4, ops[2], ops[3]&1
			ends := "10.0.0.1 > 10.0.0.2"
			if fam == 1 {
				ends = "fd00::1 > fd00::2"
			}
			more := ""
			if flags&1 != 0 {
				more = "+"
			}
			df := ""
			if flags&2 != 0 && fam == 0 {
				df = " df"
			}
			data := bytes.Repeat([]byte{byte(n)}, size)
			p.SetBytes(packettest.MustFrame(fmt.Sprintf("99 %s frag=%d%s ipid=1%s hex=%x", ends, off, more, df, data)))
			p.Now = int64(flags>>4) * 10e9
			if why := p.Parse(); why != 0 {
				t.Fatal(why)
			}
			for i := range size {
				sent[int(fam)<<20|off+i] = append(sent[int(fam)<<20|off+i], byte(n))
			}
			v, why := r.Add(p, 0)
			if (v == Dropped) != (why != 0) {
				t.Fatalf("%v with reason %v", v, why)
			}
			if v != Complete {
				continue
			}
			pieces, total := 0, p.Len()-int(p.L4)
			for _, x := range p.Pieces {
				pieces += int(x)
			}
			if pieces != total || p.Is(packet.Fragment) {
				t.Fatalf("%d bytes in %v", total, p.Pieces)
			}
			for i, x := range p.Transport() {
				if !bytes.Contains(sent[int(fam)<<20|i], []byte{x}) {
					t.Fatalf("byte %d is %d, which nobody sent there", i, x)
				}
			}
			whole := bytes.Clone(p.Bytes())
			if why := p.Parse(); why != 0 || !bytes.Equal(p.Bytes(), whole) {
				t.Fatalf("the datagram: %v", why)
			}
		}
		r.Expire(1<<60, func(first *packet.Packet, _ uint32) {
			if first.FragOff != 0 {
				t.Fatal("the first fragment has an offset")
			}
		})
		if st := r.Stats(); st.Queues != 0 || st.Memory != [2]int64{} || len(r.peers) != 0 || len(r.byTime) != 0 {
			t.Fatalf("left behind: %+v", st)
		}
	})
}

// FuzzAdd takes frames as they are.
func FuzzAdd(f *testing.F) {
	for _, d := range []string{
		"udp 10.0.0.1:1 > 10.0.0.2:2 frag=0+ len=80", "udp [fd00::1]:1 > [fd00::2]:2 frag=0+ len=80 ext=hop,dest,route",
		"44 fd00::1 > fd00::2 hex=2c00", "60 fd00::1 > fd00::2 frag=0 hex=1100", "udp fd00::1 > fd00::2 frag=65528 len=80",
	} {
		f.Add(packettest.MustFrame(d), packettest.MustFrame("udp [fd00::1]:1 > [fd00::2]:2 frag=80 len=8"))
	}
	p := packet.New()
	f.Fuzz(func(t *testing.T, a, b []byte) {
		r := New(sysctl.NewSet())
		for _, x := range [][]byte{a, b, a} {
			if len(x) > packet.MaxLen {
				return
			}
			p.SetBytes(x)
			if p.Parse() == 0 {
				if v, _ := r.Add(p, 1); v == Complete {
					// A hop-by-hop header that was hidden behind the fragment header is nobody's to check.
					if why := p.Parse(); why != 0 && (p.Family == packet.IPv4 || p.Bytes()[6] != hopByHop) {
						t.Fatalf("the datagram: %v", why)
					}
				}
			}
		}
		r.Expire(1<<60, func(*packet.Packet, uint32) {})
	})
}

func BenchmarkReassemble(b *testing.B) {
	r, p := New(sysctl.NewSet()), packet.New()
	_, frames := cuts(b, datagram4, 1480, 1480)
	b.ReportAllocs()
	for b.Loop() {
		for _, f := range frames {
			add(b, r, p, f, 1)
		}
	}
}
