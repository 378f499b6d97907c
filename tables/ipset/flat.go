package ipset

import (
	"cmp"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// flat finds the longest IPv4 prefix with one or two memory accesses, however
// many there are: a table by the first bits, and below it nodes of one cache line
// for eight more. It never changes; a set that is edited goes without until it
// has been quiet for a while.
type flat struct {
	root   []uint32 // by the first 16 or 24 bits: a leaf, or isNode and a node
	shift  uint8    // 32 less those bits
	nodes  []flatNode
	spill  []uint32 // values of nodes with many
	leaves []leaf   // 0: none
}

// flatNode has 256 places. runs marks where the value changes, and vals are the
// values in order, or spilled and where they begin.
type flatNode struct {
	runs [4]uint64
	vals [8]uint32
}

const (
	isNode  = 1 << 31
	spilled = 1<<32 - 1

	flatMin  = 1 << 10 // elements from which on a set has one
	flatWide = 1 << 15 // … with 24 bits in the root
)

type flatPrefix struct {
	addr uint32
	leaf leaf
}

func newFlat(ps []flatPrefix) *flat {
	// A network before those in it.
	slices.SortFunc(ps, func(a, b flatPrefix) int {
		return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(a.leaf.bits, b.leaf.bits))
	})
	t := &flat{shift: 16, leaves: make([]leaf, 1)}
	if len(ps) >= flatWide {
		t.shift = 8
	}
	t.root = make([]uint32, 1<<(32-t.shift))
	// At random places of a table this large, small pages would cost more than it does.
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(&t.root[0])), 4*len(t.root)), unix.MADV_HUGEPAGE)
	t.fill(t.root, ps, t.shift, map[leaf]uint32{})
	return t
}

// fill writes the prefixes into a table, whose places stand for 1<<shift addresses each.
func (t *flat) fill(to []uint32, ps []flatPrefix, shift uint8, known map[leaf]uint32) {
	for i := 0; i < len(ps); {
		p := &ps[i]
		at := int(p.addr>>shift) & (len(to) - 1)
		if p.leaf.bits+shift <= 32 {
			id, ok := known[p.leaf]
			if !ok {
				id = uint32(len(t.leaves))
				t.leaves = append(t.leaves, p.leaf)
				known[p.leaf] = id
			}
			n := 1 << (32 - p.leaf.bits - shift)
			for j := range to[at : at+n] {
				to[at+j] = id
			}
			i++
			continue
		}
		end := i + 1
		for end < len(ps) && ps[end].addr>>shift == p.addr>>shift {
			end++
		}
		var below [256]uint32
		for j := range below {
			below[j] = to[at]
		}
		t.fill(below[:], ps[i:end], shift-8, known)
		to[at] = isNode | t.node(&below)
		i = end
	}
}

// node packs 256 places.
func (t *flat) node(places *[256]uint32) uint32 {
	var n flatNode
	var vals []uint32
	for i, v := range places {
		if i == 0 || v != places[i-1] {
			n.runs[i>>6] |= 1 << (i & 63)
			vals = append(vals, v)
		}
	}
	if copy(n.vals[:], vals) < len(vals) || len(vals) == len(n.vals) {
		n.vals[0], n.vals[7] = uint32(len(t.spill)), spilled
		t.spill = append(t.spill, vals...)
	}
	t.nodes = append(t.nodes, n)
	return uint32(len(t.nodes) - 1)
}

func (t *flat) lookup(a uint32) *leaf {
	shift := t.shift
	v := t.root[a>>shift]
	for v&isNode != 0 {
		shift -= 8
		n := &t.nodes[v&^isNode]
		at := a >> shift & 255
		run := bits.OnesCount64(n.runs[at>>6]<<(63-at&63)) - 1
		for _, w := range n.runs[:at>>6] {
			run += bits.OnesCount64(w)
		}
		if n.vals[7] == spilled {
			v = t.spill[int(n.vals[0])+run]
		} else {
			v = n.vals[run&7]
		}
	}
	return &t.leaves[v]
}
