package conntrack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugeBlock is how many slabs are made at once when a table is no longer small.
const hugeBlock = 16

// addSlab gives the slab of entry id its memory. Where a table has many entries
// that is the memory of the next slabs too, so that it can be in huge pages: at
// random places in a large table, most of the cost is to translate addresses.
func (t *Table) addSlab(id uint32) {
	first, n := id>>slabBits, uint32(1)
	if first >= hugeBlock {
		first, n = first&^(hugeBlock-1), hugeBlock
	}
	block := make([]slab, n)
	adviseHuge(unsafe.Pointer(&block[0]), uintptr(n)*unsafe.Sizeof(block[0]))
	for i := range block {
		t.slabs[first+uint32(i)].CompareAndSwap(nil, &block[i]) // another worker may have done so
	}
}

// adviseHuge asks for huge pages, as far as they fit. The system need not listen.
func adviseHuge(p unsafe.Pointer, size uintptr) {
	const page = 2 << 20
	skip := -uintptr(p) % page
	if size < skip+page {
		return
	}
	b := unsafe.Slice((*byte)(unsafe.Add(p, skip)), (size-skip)/page*page)
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
}
