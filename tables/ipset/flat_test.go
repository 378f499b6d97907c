package ipset

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"sluice/packet"

	"github.com/gaissmai/bart"
)

// TestFlat compares with a trie: prefixes of all lengths, in places crowded, of
// equal and of different values; addresses at their edges and anywhere.
func TestFlat(t *testing.T) {
	for _, n := range []int{1, 40, 3000, flatWide + 1000} {
		r := rand.New(rand.NewPCG(3, uint64(n)))
		var all []flatPrefix
		var addrs []uint32
		twin := new(bart.Fast[leaf])
		extras := []*extra{nil, nil, new(extra), new(extra)}
		for range n {
			bits := uint8(r.IntN(33))
			if bits < 8 && r.IntN(n) > 3 {
				bits = 32
			}
			addr := r.Uint32()
			if r.IntN(2) == 0 {
				addr = addr&0x3ff | 10<<24 | uint32(r.IntN(3))<<15
			}
			addr &= ^uint32(0) << (32 - bits)
			p := netip.PrefixFrom(addrOf(packet.IPv4, [2]uint64{uint64(addr) << 32}), int(bits))
			if _, there := twin.Get(p); there {
				continue
			}
			l := leaf{value{x: extras[r.IntN(4)]}, bits}
			twin.Insert(p, l)
			all = append(all, flatPrefix{addr, l})
			last := addr | uint32(uint64(1)<<(32-bits)-1)
			addrs = append(addrs, addr, addr-1, last, last+1, r.Uint32())
		}
		f := newFlat(all)
		for _, a := range addrs {
			want, ok := twin.Lookup(addrOf(packet.IPv4, [2]uint64{uint64(a) << 32}))
			got := f.lookup(a)
			if ok != (got != &f.leaves[0]) || *got != want {
				t.Fatalf("%d prefixes, %08x: %v, want %v %v", n, a, *got, want, ok)
			}
		}
		if n >= 3000 && len(f.spill) == 0 {
			t.Errorf("%d prefixes: no node had many values", n)
		}
	}
}
