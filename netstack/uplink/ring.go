package uplink

import (
	"math/bits"
	"sync"
)

// ring is a stream's bytes between being taken and being done with. It grows by
// doubling, and has no memory while it is empty.
type ring struct {
	buf  []byte // a power of two long
	head int
	n    int
}

const (
	minRing = 11 // 2 KB
	maxRing = 22
)

// rings are buffers for reuse, by the logarithm of their size.
var rings [maxRing + 1]sync.Pool

func getRing(size int) []byte {
	class := max(bits.Len(uint(size-1)), minRing)
	if class <= maxRing {
		if b, ok := rings[class].Get().(*[]byte); ok {
			return *b
		}
	}
	return make([]byte, 1<<class)
}

func putRing(b []byte) {
	if class := bits.Len(uint(len(b) - 1)); class <= maxRing {
		rings[class].Put(&b)
	}
}

// add appends b.
func (r *ring) add(b []byte) {
	if r.n+len(b) > len(r.buf) {
		buf := getRing(max(r.n+len(b), 1))
		r.copy(buf, 0, r.n)
		if r.buf != nil {
			putRing(r.buf)
		}
		r.buf, r.head = buf, 0
	}
	at := (r.head + r.n) & (len(r.buf) - 1)
	k := copy(r.buf[at:], b)
	copy(r.buf, b[k:])
	r.n += len(b)
}

// copy copies n bytes, from byte off on, to b.
func (r *ring) copy(b []byte, off, n int) {
	if n == 0 {
		return
	}
	at := (r.head + off) & (len(r.buf) - 1)
	k := copy(b[:n], r.buf[at:])
	copy(b[k:n], r.buf)
}

// first is the oldest bytes, as far as they lie in one piece.
func (r *ring) first() []byte {
	return r.buf[r.head:min(r.head+r.n, len(r.buf))]
}

// drop forgets the n oldest bytes.
func (r *ring) drop(n int) {
	r.n -= n
	if r.n == 0 {
		r.free()
		return
	}
	r.head = (r.head + n) & (len(r.buf) - 1)
}

func (r *ring) free() {
	if r.buf != nil {
		putRing(r.buf)
	}
	*r = ring{}
}
