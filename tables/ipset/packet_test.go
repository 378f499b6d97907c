package ipset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"sluice/packet"
)

// udp is a packet from an address.
func udp(src [4]byte) *packet.Packet {
	b := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 0, 53, 0, 53, 0, 8, 0, 0}
	copy(b[12:], src[:])
	p := packet.New()
	p.SetBytes(b)
	p.Family, p.Proto, p.L4, p.Flags = packet.IPv4, packet.ProtoUDP, 20, packet.HasL4|packet.HasPorts
	return p
}

// fill makes a hash:net of n networks with prefix lengths of 8 to 32.
func fill(t testing.TB, n int) *Set {
	sets := New(nil)
	if err := sets.Create("s", "hash:net", Options{MaxElem: 2_000_000, HasMaxElem: true}); err != nil {
		t.Fatal(err)
	}
	s := sets.Get("s")
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for s.Len() < n {
		bits := 8 + r.IntN(25)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}), bits)
		if n > 1000 && bits < 20 {
			continue
		}
		e := elemOf(p.Masked())
		if err := s.Add(&e, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestTrieIsTheTable: with and without the trie the answers are the same.
func TestTrieIsTheTable(t *testing.T) {
	s := fill(t, 3000)
	p := udp([4]byte{1, 2, 3, 4})
	q := &Query{P: p, Dims: 1, Src: 1}
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		var addrs [][4]byte
		var slow []bool
		s.hash.trie.Store(nil)
		for range 2000 {
			a := [4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}
			copy(p.Buf[p.Off+12:], a[:])
			ok, _ := s.Match(q)
			addrs, slow = append(addrs, a), append(slow, ok)
		}
		s.hash.settle()
		for i, a := range addrs {
			copy(p.Buf[p.Off+12:], a[:])
			if ok, _ := s.Match(q); ok != slow[i] {
				t.Fatalf("%v: %v with the trie, %v without", a, ok, slow[i])
			}
		}
		for range 100 { // edits with the trie in place
			e := elemOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), 0, 0}), 9+r.IntN(8)).Masked())
			e.NoMatch = r.IntN(3) == 0
			if r.IntN(2) == 0 {
				s.Add(&e, nil, true)
			} else {
				s.Del(&e, true)
			}
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	for _, n := range []int{3, 2000} {
		s := fill(t, n)
		p := udp([4]byte{1, 2, 3, 4})
		q := Query{P: p, Dims: 1, Src: 1}
		for _, settle := range []bool{false, true} {
			if settle {
				s.hash.settle()
			}
			if a := testing.AllocsPerRun(100, func() { s.Match(&q) }); a != 0 {
				t.Errorf("%d networks, settled %v: %v allocations", n, settle, a)
			}
		}
	}
}

// TestSwapWithoutGap: a lookup through a name finds one of the two sets, always.
func TestSwapWithoutGap(t *testing.T) {
	sets := New(nil)
	for _, n := range []string{"a", "b"} {
		if err := sets.Create(n, "hash:ip", Options{}); err != nil {
			t.Fatal(err)
		}
		if err := sets.Get(n).AddPrefix(netip.MustParsePrefix("10.0.0.1/32"), 0); err != nil {
			t.Fatal(err)
		}
	}
	ref := sets.Take("a")
	defer ref.Release()
	if err := sets.Destroy("a"); err != ErrBusy {
		t.Errorf("a set in use is destroyed: %v", err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		q := Query{P: udp([4]byte{10, 0, 0, 1}), Dims: 1, Src: 1}
		for {
			if ok, _ := ref.Set().Match(&q); !ok {
				t.Error("not found")
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for range 20000 {
		if err := sets.Swap("a", "b"); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
}

// TestTimeout: an element is gone when its time is over, to the second.
func TestTimeout(t *testing.T) {
	var now int64
	sets := New(func() int64 { return now })
	if err := sets.Create("a", "hash:net", Options{HasTimeout: true, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	s, at := sets.Get("a"), netip.MustParseAddr("10.0.0.1")
	s.AddPrefix(netip.MustParsePrefix("10.0.0.0/24"), 0)
	s.AddPrefix(netip.MustParsePrefix("10.0.0.1/32"), 3*time.Second)
	for _, c := range []struct {
		sec  int64
		want bool
		n    int
	}{{0, true, 2}, {2, true, 2}, {3, true, 1}, {9, true, 1}, {10, false, 0}} {
		now = c.sec * int64(time.Second)
		if got := s.Contains(at); got != c.want || s.Len() != c.n {
			t.Errorf("after %d s: %v, %d elements; want %v, %d", c.sec, got, s.Len(), c.want, c.n)
		}
	}
	sets.Expire()
	if n := s.hash.store.len(); n != 0 {
		t.Errorf("%d elements are left behind", n)
	}
}

func BenchmarkNets(b *testing.B) {
	for _, n := range []int{10, 1000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := fill(b, n)
			s.hash.settle()
			r := rand.New(rand.NewPCG(7, 8))
			ps := make([]*packet.Packet, 256)
			for i := range ps {
				ps[i] = udp([4]byte{byte(1 + r.IntN(223)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
			}
			q := Query{Dims: 1, Src: 1}
			i := 0
			for b.Loop() {
				q.P = ps[i&255]
				i++
				s.Match(&q)
			}
		})
	}
}

// settle makes the trie now.
func (h *hashSet) settle() {
	if h.plainNets() {
		h.set.mu.Lock()
		defer h.set.mu.Unlock()
		h.trie.Store(h.newTrie(nil, h.wantsFlat()))
	}
}
