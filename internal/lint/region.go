package lint

import "math/bits"

// num is a number of up to 128 bits: an address, or a small number in lo.
type num struct{ hi, lo uint64 }

func (a num) less(b num) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func (a num) next() num {
	lo, c := bits.Add64(a.lo, 1, 0)
	return num{a.hi + c, lo}
}

func (a num) prev() num {
	lo, c := bits.Sub64(a.lo, 1, 0)
	return num{a.hi - c, lo}
}

// span is an inclusive range; set is a list of them, ascending and apart.
type span struct{ lo, hi num }
type set []span

func small(lo, hi uint64) set { return set{{num{0, lo}, num{0, hi}}} }

func (a set) and(b set) (out set) {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		lo, hi := a[i].lo, a[i].hi
		if lo.less(b[j].lo) {
			lo = b[j].lo
		}
		if b[j].hi.less(hi) {
			hi = b[j].hi
		}
		if !hi.less(lo) {
			out = append(out, span{lo, hi})
		}
		if a[i].hi.less(b[j].hi) {
			i++
		} else {
			j++
		}
	}
	return out
}

// hits: a and b have something in common.
func (a set) hits(b set) bool {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i].hi.less(b[j].lo):
			i++
		case b[j].hi.less(a[i].lo):
			j++
		default:
			return true
		}
	}
	return false
}

func (a set) minus(b set) (out set) {
	j := 0
	for _, x := range a {
		for j < len(b) && b[j].hi.less(x.lo) {
			j++
		}
		rest := true
		for k := j; k < len(b) && !x.hi.less(b[k].lo); k++ {
			if x.lo.less(b[k].lo) {
				out = append(out, span{x.lo, b[k].lo.prev()})
			}
			if !b[k].hi.less(x.hi) {
				rest = false
				break
			}
			x.lo = b[k].hi.next()
		}
		if rest {
			out = append(out, x)
		}
	}
	return out
}

// or joins two sets.
func (a set) or(b set) (out set) {
	add := func(x span) {
		if n := len(out); n > 0 && !out[n-1].hi.less(x.lo.prevOr()) {
			if out[n-1].hi.less(x.hi) {
				out[n-1].hi = x.hi
			}
			return
		}
		out = append(out, x)
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		if j == len(b) || i < len(a) && a[i].lo.less(b[j].lo) {
			add(a[i])
			i++
		} else {
			add(b[j])
			j++
		}
	}
	return out
}

// prevOr is prev, of zero itself.
func (a num) prevOr() num {
	if a == (num{}) {
		return a
	}
	return a.prev()
}

func (a set) equal(b set) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Dimensions of a packet as rules see it.
const (
	dimSrc = iota
	dimDst
	dimIn
	dimOut
	dimProto
	dimSport // 65536: the packet has no ports that can be read
	dimDport
	dimState // bits of ext's state words, as numbers 0 to 4
	dimFlags // TCP flags, 64 of them; 64: none can be read
	dimICMP  // type<<8 | code; 65536: none can be read
	dims
)

const unreadable = 65536

// box is a product of sets: packets whose every property is in its set.
type box [dims]set

func (b *box) empty() bool {
	for i := range b {
		if len(b[i]) == 0 {
			return true
		}
	}
	return false
}

func (b *box) and(c *box) (out box) {
	for i := range b {
		if out[i] = b[i].and(c[i]); len(out[i]) == 0 {
			return out
		}
	}
	return out
}

func (b *box) meets(c *box) bool {
	for i := range b {
		if !b[i].hits(c[i]) {
			return false
		}
	}
	return true
}

// minus gives b without c as boxes that do not meet.
func (b *box) minus(c *box) (out []box) {
	if !b.meets(c) {
		return []box{*b}
	}
	rest := *b
	for i := range b {
		if left := rest[i].minus(c[i]); len(left) > 0 {
			piece := rest
			piece[i] = left
			out = append(out, piece)
		}
		rest[i] = rest[i].and(c[i])
	}
	return out
}

// region is a union of boxes.
type region []box

func (r region) and(c *box) (out region) {
	for i := range r {
		if x := r[i].and(c); !x.empty() {
			out = append(out, x)
		}
	}
	return out
}

// minus takes c out. Where that makes more than so many boxes, r stays as it
// is, which is more than is true.
func (r region) minus(c *box, most int) region {
	var out region
	for i := range r {
		if !r[i].meets(c) {
			if out != nil {
				out = append(out, r[i])
			}
			continue
		}
		if out == nil {
			out = append(make(region, 0, len(r)+dims), r[:i]...)
		}
		if out = append(out, r[i].minus(c)...); len(out) > most {
			return r
		}
	}
	if out == nil {
		return r
	}
	return out
}

// Bounds on the boxes of a region: of what gets to a rule, and of what is left
// of one rule's packets.
const (
	manyBoxes = 48
	mostBoxes = 1000
)

// narrow bounds a region by one that holds it and has few boxes.
func (r region) narrow(most int) region {
	if len(r) <= most {
		return r
	}
	hull := r[0]
	for i := range r[1:] {
		for d := range hull {
			hull[d] = hull[d].or(r[i+1][d])
		}
	}
	return region{hull}
}
