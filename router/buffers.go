package router

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// newBuffers makes buffers of packet.BufSize for a batch of packets, in one piece of
// memory, so that they can be in huge pages where the system grants those. Each
// starts at another place in its page: a batch's headers would otherwise all
// compete for the same few lines of the first-level cache.
func newBuffers(n int) [][]byte {
	const (
		line   = 64
		page   = 2 << 20
		stride = packet.BufSize + line // an odd number of lines
	)
	mem := make([]byte, n*stride+page)
	if at := -uintptr(unsafe.Pointer(&mem[0])) % page; n*stride >= page {
		mem = mem[at:]
		_ = unix.Madvise(mem[:n*stride/page*page], unix.MADV_HUGEPAGE) // no more than advice
	}
	out := make([][]byte, n)
	for i := range out {
		out[i] = mem[i*stride : i*stride+packet.BufSize : i*stride+packet.BufSize]
	}
	return out
}
