package nat

import (
	"math/rand/v2"
	"sync"
	"testing"

	"sluice/conntrack"
)

// TestBySource compares the index with a map and a list, the slow obvious way.
func TestBySource(t *testing.T) {
	type key struct {
		src  source
		addr [16]byte
		port uint16
	}
	b := newBySource()
	refs := map[key]int{}
	var live []key
	any := Range{}
	r := rand.New(rand.NewPCG(1, 2))
	random := func() key {
		o := tuple("10.0.0.1", uint16(r.IntN(300)), "9.9.9.9", 53, 17)
		o.Src[3] = byte(r.IntN(8))
		m := ip("192.0.2.1")
		m[3] = byte(r.IntN(3))
		return key{sourceOf(&o), m, uint16(1000 + r.IntN(3))}
	}
	for i := 0; i < 60000; i++ {
		if i < 30000 && r.IntN(3) != 0 || len(live) == 0 {
			k := random()
			b.add(k.src, k.addr, k.port)
			refs[k]++
			live = append(live, k)
			o := conntrack.Tuple{Src: k.src.addr, SrcPort: k.src.port, Proto: 17, Family: 4}
			got := o
			if !b.find(&o, &got, &any) || got.Src != k.addr || got.SrcPort != k.port {
				t.Fatalf("the newest mapping is not found first: %v, want %v", got, k)
			}
		} else {
			n := r.IntN(len(live))
			k := live[n]
			live[n] = live[len(live)-1]
			live = live[:len(live)-1]
			b.remove(k.src, k.addr, k.port)
			if refs[k]--; refs[k] == 0 {
				delete(refs, k)
			}
		}
		if b.len() != len(refs) && i%100 == 0 {
			t.Fatalf("%d mappings are held, %d live", b.len(), len(refs))
		}
	}
	for k := range refs {
		o := conntrack.Tuple{Src: k.src.addr, SrcPort: k.src.port, Proto: 17, Family: 4}
		only := Range{Min: k.addr, Max: k.addr, MinPort: k.port, MaxPort: k.port, Flags: MapIPs | ProtoSpecified}
		got := o
		if !b.find(&o, &got, &only) || got.Src != k.addr || got.SrcPort != k.port {
			t.Fatalf("%v is lost", k)
		}
	}
	for _, k := range live {
		b.remove(k.src, k.addr, k.port)
	}
	if b.len() != 0 {
		t.Fatalf("%d mappings are left", b.len())
	}
	k := random()
	b.remove(k.src, k.addr, k.port) // what is not there does no harm
}

func TestBySourceConcurrent(t *testing.T) {
	b := newBySource()
	var wg sync.WaitGroup
	for g := 0; g < 4; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; i < 5000; i++ {
				o := tuple("10.0.0.1", uint16(i%500), "9.9.9.9", 53, 17)
				to := ip("192.0.2.1")
				b.add(sourceOf(&o), to, uint16(g))
				got := o
				if !b.find(&o, &got, &Range{MinPort: uint16(g), MaxPort: uint16(g), Flags: ProtoSpecified}) || got.SrcPort != uint16(g) {
					t.Error("a mapping is lost")
					return
				}
				b.remove(sourceOf(&o), to, uint16(g))
			}
		}()
	}
	wg.Wait()
	if b.len() != 0 {
		t.Fatalf("%d mappings are left", b.len())
	}
}

func BenchmarkBySource(b *testing.B) {
	s := newBySource()
	to := ip("192.0.2.1")
	for i := 0; i < 100000; i++ {
		o := tuple("10.0.0.1", uint16(i), "9.9.9.9", 53, 17)
		o.Src[2] = byte(i >> 16)
		s.add(sourceOf(&o), to, uint16(i))
	}
	b.ReportAllocs()
	o := tuple("10.0.9.1", 7, "9.9.9.9", 53, 17)
	for b.Loop() {
		s.add(sourceOf(&o), to, 7)
		s.remove(sourceOf(&o), to, 7)
	}
}
