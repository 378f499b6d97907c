package ext

import (
	"hash/maphash"
	"sync/atomic"

	"sluice/packet"
)

// The kernel counts credits in ticks of its clock; with these numbers a rate
// comes to the same here as there.
const (
	hashTick       = 4e6                   // ns
	hashTicks      = 1e9 / int64(hashTick) // a second's
	hashCredit     = uint64(1) << 39       // a tick's, where packets are counted
	hashByteCredit = uint64(1) << 24       // a tick's, where bytes are
	hashByteFull   = hashByteCredit * uint64(hashTicks)
	hashSlab       = 256
)

// packetCredits turns microseconds into credits; it wraps as the kernel's does.
func packetCredits(us uint64) uint64 { return us * (hashCredit * uint64(hashTicks) / hashScale) }

// byteCredits is what 16 bytes cost.
func byteCredits(avg uint64) uint64 { return uint64(uint32(avg)) * hashByteFull >> 32 }

var hashTables shared[hashTable]

// hashTable is what the rules of one family that name it share: a bounded hash
// table with a lock for each bucket. Idle entries are looked for a few buckets
// at a time, by the packets that come.
type hashTable struct {
	hashConfig
	cost, cap  uint64 // credits: of a packet or of 16 bytes; the most an entry may have
	rate, most uint64 // --hashlimit-rate-match: a second's, and what an interval may begin with
	life       int64  // ns
	step       int64  // ns between buckets looked at
	seed       maphash.Seed
	masks      [2][16]byte // source, destination

	buckets []hashBucket
	slabs   []atomic.Pointer[[hashSlab]hashEntry]
	limit   uint32
	swept   atomic.Int64 // when the hand last moved
	hand    atomic.Uint32

	lock spin // guards free and used
	free uint32
	used uint32
}

type hashBucket struct {
	spin
	head uint32 // 0: none
}

// hashEntry is guarded by the lock of the bucket it is in; on the free list, by the table's.
type hashEntry struct {
	key     hashKey
	next    uint32
	over    bool // the interval before was above the rate
	expires int64
	prev    int64 // ticks
	credit  uint64
	more    uint64 // bytes: times that credit may still be filled up at once
	current uint64 // --hashlimit-rate-match: seen in this interval
}

// hashKey is source, destination, and the two ports as they are in the packet.
type hashKey [36]byte

func newHashTable(k *hashConfig) *hashTable {
	t := &hashTable{hashConfig: *k, seed: maphash.MakeSeed(), life: int64(k.expire) * 1e6}
	size := min(k.size, hashMaxSize)
	if size == 0 {
		size = 8192
	}
	switch t.limit = min(k.max, hashMaxSize); {
	case t.limit == 0:
		t.limit = 8 * size
	case t.limit < size:
		t.limit = size
	}
	n := uint32(16)
	for n < size {
		n *= 2
	}
	t.buckets = make([]hashBucket, n)
	t.slabs = make([]atomic.Pointer[[hashSlab]hashEntry], t.limit/hashSlab+1)
	t.step = max(int64(k.gc)*1e6/int64(n), 1)
	for i, bits := range [2]uint8{k.src, k.dst} {
		for b := range t.masks[i] {
			t.masks[i][b] = ^byte(0xff >> min(max(int(bits)-8*b, 0), 8))
		}
	}
	switch {
	case k.rateMatch && k.bytes:
		t.rate = costToBytes(uint64(uint32(k.avg)))
		t.most = t.rate * max(k.burst, 1)
	case k.rateMatch:
		t.rate = hashScale / k.avg
		t.most = t.rate + k.burst
	case k.bytes:
		t.cost, t.cap = byteCredits(k.avg), hashByteFull
	default:
		t.cost, t.cap = packetCredits(k.avg), packetCredits(k.avg*k.burst)
	}
	return t
}

// key is false where the packet has no ports that could be read.
func (t *hashTable) key(p *packet.Packet, k *hashKey) bool {
	if t.mode&hashSrcIP != 0 {
		a := p.Src()
		for i := range a {
			k[i] = a[i] & t.masks[0][i]
		}
	}
	if t.mode&hashDstIP != 0 {
		a := p.Dst()
		for i := range a {
			k[16+i] = a[i] & t.masks[1][i]
		}
	}
	if t.mode&(hashSrcPort|hashDstPort) == 0 {
		return true
	}
	at := 0
	switch p.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP, packet.ProtoESP:
	case packet.ProtoAH:
		at = 4
	default:
		return p.Flags&packet.BadHeaders == 0
	}
	if p.Family == packet.IPv6 && p.Flags&(packet.LaterFragment|packet.BadHeaders) != 0 {
		return p.Flags&packet.BadHeaders == 0
	}
	b := p.Transport()
	if len(b) < at+4 {
		return false
	}
	if t.mode&hashSrcPort != 0 {
		copy(k[32:34], b[at:])
	}
	if t.mode&hashDstPort != 0 {
		copy(k[34:36], b[at+2:])
	}
	return true
}

// within reports whether p stays within the rate; ok is false where it cannot
// be counted.
func (t *hashTable) within(p *packet.Packet, bytes, rateMatch bool) (within, ok bool) {
	t.sweep(p.Now)
	var k hashKey
	if !t.key(p, &k) {
		return false, false
	}
	b := &t.buckets[maphash.Bytes(t.seed, k[:])&uint64(len(t.buckets)-1)]
	b.lock()
	e := t.find(b, &k)
	if e == nil {
		b.unlock()
		i := t.take()
		if i == 0 {
			return false, false
		}
		n := t.at(i)
		n.key = k
		t.fill(n, p.Now)
		b.lock()
		if e = t.find(b, &k); e == nil { // else another worker was faster
			e, n.next, b.head = n, b.head, i
			i = 0
		}
		if i != 0 {
			t.give(i)
		}
	}
	if p.Now >= e.expires {
		t.fill(e, p.Now)
	} else {
		t.refill(e, p.Now)
	}
	e.expires = p.Now + t.life
	within = t.charge(e, p.Len(), bytes, rateMatch)
	b.unlock()
	return within, true
}

func (t *hashTable) at(i uint32) *hashEntry { return &t.slabs[i/hashSlab].Load()[i%hashSlab] }

func (t *hashTable) find(b *hashBucket, k *hashKey) *hashEntry {
	for i := b.head; i != 0; {
		e := t.at(i)
		if e.key == *k {
			return e
		}
		i = e.next
	}
	return nil
}

// fill makes e what a new entry is.
func (t *hashTable) fill(e *hashEntry, now int64) {
	e.expires = now + t.life
	e.prev = now / hashTick
	e.credit, e.more, e.current, e.over = t.cap, t.burst, 0, false
}

// refill gives e the credit of the time that has passed.
func (t *hashTable) refill(e *hashEntry, now int64) {
	tick := now / hashTick
	delta := tick - e.prev
	if delta <= 0 { // workers' clocks differ by a batch
		return
	}
	if t.rateMatch {
		interval := uint64(t.interval) * uint64(hashTicks)
		if uint64(delta) < interval {
			return
		}
		e.over = e.current*interval > uint64(delta)*t.rate
		e.current = 0
		e.prev = tick
		return
	}
	e.prev = tick
	each := hashCredit
	if t.bytes {
		each = hashByteCredit
	}
	if uint64(delta) > (t.cap-min(e.credit, t.cap))/each {
		e.credit = t.cap
		return
	}
	e.credit += uint64(delta) * each
}

// charge takes what a packet costs. What is counted is the rule's affair, what
// it costs the table's.
func (t *hashTable) charge(e *hashEntry, size int, bytes, rateMatch bool) bool {
	if rateMatch {
		n := uint64(1)
		if bytes {
			n = uint64(size)
		}
		e.current += n
		return !e.over && e.current <= t.most
	}
	cost := t.cost
	if bytes {
		cost = min((uint64(size)>>hashByteShift+1)*t.cost, hashByteFull)
		if e.credit < cost && e.more > 0 {
			e.more--
			e.credit = hashByteFull
		}
	}
	if e.credit < cost {
		return false
	}
	e.credit -= cost
	return true
}

// take gives an entry that is in no bucket; 0: the table is full.
func (t *hashTable) take() uint32 {
	t.lock.lock()
	i := t.free
	if i != 0 {
		t.free = t.at(i).next
	} else if t.used < t.limit {
		t.used++
		i = t.used
	}
	t.lock.unlock()
	if i != 0 && t.slabs[i/hashSlab].Load() == nil {
		t.slabs[i/hashSlab].CompareAndSwap(nil, new([hashSlab]hashEntry))
	}
	return i
}

func (t *hashTable) give(i uint32) {
	t.lock.lock()
	t.at(i).next = t.free
	t.free = i
	t.lock.unlock()
}

// sweep looks for idle entries in as many buckets as are due, a few at most.
func (t *hashTable) sweep(now int64) {
	last := t.swept.Load()
	due := (now - last) / t.step
	if due < 1 || !t.swept.CompareAndSwap(last, now) {
		return
	}
	n := uint32(min(due, 16))
	first := t.hand.Add(n) - n
	for i := range n {
		b := &t.buckets[(first+i)&uint32(len(t.buckets)-1)]
		b.lock()
		for at := &b.head; *at != 0; {
			i := *at
			e := t.at(i)
			if now < e.expires {
				at = &e.next
				continue
			}
			*at = e.next
			t.give(i)
		}
		b.unlock()
	}
}
