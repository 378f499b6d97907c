package ipset

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestTableIsAMap plays random edits into the table and into a Go map.
func TestTableIsAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pack := func(k key) small { return small(k.addr[0]) }
	tab := newTable(7, pack, func(s small) key { return key{addr: [2]uint64{uint64(s)}} })
	want := map[uint64]uint8{}
	for i := range 200000 {
		n := uint64(r.IntN(5000))
		k := key{addr: [2]uint64{n}}
		switch r.IntN(5) {
		case 0, 1:
			tab.put(k, value{flags: uint8(i)})
			want[n] = uint8(i)
		case 2, 3:
			_, there := want[n]
			if tab.del(k) != there {
				t.Fatalf("step %d: del(%d) is not %v", i, n, there)
			}
			delete(want, n)
		default:
			v, ok := tab.find(k)
			if w, there := want[n]; ok != there || v.flags != w {
				t.Fatalf("step %d: find(%d) = %v %v, want %v %v", i, n, v.flags, ok, w, there)
			}
		}
		if tab.len() != len(want) {
			t.Fatalf("step %d: %d elements, want %d", i, tab.len(), len(want))
		}
	}
	n := 0
	tab.each(func(k key, v value) bool {
		if w, ok := want[k.addr[0]]; !ok || w != v.flags {
			t.Fatalf("each: %d is %v, want %v %v", k.addr[0], v.flags, w, ok)
		}
		n++
		return true
	})
	if n != len(want) {
		t.Fatalf("each gave %d of %d", n, len(want))
	}
}

// TestReadersBesideAWriter: what is in the table all along is always found.
func TestReadersBesideAWriter(t *testing.T) {
	pack := func(k key) small { return small(k.addr[0]) }
	tab := newTable(7, pack, func(s small) key { return key{addr: [2]uint64{uint64(s)}} })
	at := func(n int) key { return key{addr: [2]uint64{uint64(n)}} }
	for i := range 100 {
		tab.put(at(i*1000), value{})
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, ok := tab.find(at(i % 100 * 1000)); !ok {
					t.Errorf("%d is missing", i%100*1000)
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 300000 {
		n := r.IntN(20000)*2 + 1
		if r.IntN(2) == 0 {
			tab.put(at(n), value{})
		} else {
			tab.del(at(n))
		}
	}
	close(stop)
	wg.Wait()
}
