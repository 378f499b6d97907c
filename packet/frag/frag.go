// Package frag puts IP fragments together as Linux's ip_defrag and
// nf_ct_frag6_gather do, with their limits under their sysctl names, and takes
// packets apart again. Fragments are off the packet path: a Reassembler is
// shared by all workers and takes a lock.
package frag

import (
	"container/heap"
	"slices"
	"sync"
	"sync/atomic"

	"sluice/internal/sysctl"
	"sluice/packet"
)

// Who asks for reassembly: fragments never meet those of another user. A
// conntrack zone is added to the conntrack users.
const (
	UserLocal        uint32 = 0
	UserConntrackIn  uint32 = 1 << 16
	UserConntrackOut uint32 = 2 << 16
)

// Why a fragment is dropped. Fragments that wait in a queue which is given up
// go with it; they are counted in Stats.
var (
	DropOverlap   = packet.NewReason("frag.overlap", "A fragment overlaps another one in part; the whole datagram is given up (RFC 5722).")
	DropDuplicate = packet.NewReason("frag.duplicate", "The fragment's bytes have arrived before; those are kept.")
	DropLimit     = packet.NewReason("frag.memory", "Fragments hold ipfrag_high_thresh bytes, and no new datagram is begun.")
	DropLength    = packet.NewReason("frag.bad_length", "A fragment is empty, not a multiple of eight bytes, or contradicts where the datagram ends.")
	DropTooLong   = packet.NewReason("frag.too_long", "The datagram would be longer than 65535 bytes.")
	DropECN       = packet.NewReason("frag.bad_ecn", "Fragments of one datagram with and without ECN (RFC 3168 5.3).")
	DropTimeout   = packet.NewReason("frag.timeout", "The rest of the datagram did not come in time.")
)

// Verdict is what Add did.
type Verdict uint8

const (
	Pass     Verdict = iota // not a fragment, or one that Linux does not reassemble: p is as it was
	Complete                // p is the whole datagram now
	Queued                  // the bytes are kept; p is free for the caller to reuse
	Dropped                 // refused, for the reason returned
)

// Stats counts as /proc/net/snmp does (Reasm*).
type Stats struct {
	Reqds, OKs, Fails, Timeouts, Overlaps uint64 // fragments, datagrams, fragments or datagrams given up …
	Queues                                int
	Memory                                [2]int64 // bytes held, IPv4 and IPv6
}

// limits are the tunables of one kind of queue.
type limits struct {
	time, high *sysctl.Var
	mem        *int64
}

// Reassembler holds the datagrams that are not complete yet. All methods may be called from any goroutine.
type Reassembler struct {
	next atomic.Int64 // when Expire has something to do; 0: never

	v4, v6, v6ct limits
	maxDist      *sysctl.Var

	mu      sync.Mutex // guards all below
	queues  map[key]*queue
	byTime  deadlines
	peers   map[[16]byte]*peer
	stats   Stats
	scratch *packet.Packet // guarded by expiry
	expiry  sync.Mutex     // one Expire at a time
}

// New makes a Reassembler with its tunables in s.
func New(s *sysctl.Set) *Reassembler {
	r := &Reassembler{queues: map[key]*queue{}, peers: map[[16]byte]*peer{}}
	const big = 1 << 40
	set := func(time, prefix string, seconds int64, mem *int64) limits {
		s.New(prefix+"low_thresh", 3<<20, 0, big) // Linux has it and no longer evicts by it
		return limits{s.New(time, seconds, 0, 1<<31-1), s.New(prefix+"high_thresh", 4<<20, 0, big), mem}
	}
	r.v4 = set("net.ipv4.ipfrag_time", "net.ipv4.ipfrag_", 30, &r.stats.Memory[0])
	r.v6 = set("net.ipv6.ip6frag_time", "net.ipv6.ip6frag_", 60, &r.stats.Memory[1])
	r.v6ct = set("net.netfilter.nf_conntrack_frag6_timeout", "net.netfilter.nf_conntrack_frag6_", 60, &r.stats.Memory[1])
	r.maxDist = s.New("net.ipv4.ipfrag_max_dist", 64, 0, 1<<31-1)
	return r
}

// key names a datagram. IPv6 datagrams are told apart without the protocol,
// and by interface only where the destination's scope asks for it.
type key struct {
	src, dst [16]byte
	id, user uint32
	iface    int
	family   uint8
	proto    uint8
}

// run is a stretch of bytes that arrived in order.
type run struct{ start, end int }

// piece is one fragment's payload.
type piece struct {
	off  int
	data []byte
}

type queue struct {
	key      key
	lim      *limits
	deadline int64
	index    int // in Reassembler.byTime

	runs   []run // sorted, disjoint
	pieces []piece
	meat   int // bytes that are there
	length int // bytes there will be, or so far
	last   bool
	mem    int64
	ecn    uint8
	max    int // longest fragment as a packet, bytes
	maxDF  int // longest one with DF

	first []byte // the whole first fragment; nil until it came
	body  int    // where its payload begins
	next  int    // IPv6: the next-header field before the fragment header
	in    *packet.Iface
	typ   packet.PktType

	peer *peer
	rid  uint32
}

// peer counts the fragments of one IPv4 source while it has datagrams waiting.
type peer struct {
	rid  uint32
	refs int
}

// What a queue and a fragment cost besides the bytes.
const (
	queueCost = 512
	pieceCost = 256
)

// Stats is a snapshot.
func (r *Reassembler) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Queues = len(r.queues)
	return s
}

// Add takes a parsed packet. A fragment is copied and p is free again, or p
// becomes the complete datagram: with the first fragment's header, Reassembled
// set, FragMax the longest fragment's length in bytes and, on IPv4, DF set if
// the longest fragment had it.
func (r *Reassembler) Add(p *packet.Packet, user uint32) (Verdict, packet.Reason) {
	if p.Flags&packet.Fragment == 0 {
		return Pass, 0
	}
	f := fragment{p: p}
	lim := &r.v4
	if p.Family == packet.IPv4 {
		f.layout4()
	} else {
		lim = &r.v6
		if user != UserLocal {
			lim = &r.v6ct
		}
		if v, reason := f.layout6(); v != Complete {
			return v, reason
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Reqds++
	q := r.find(&f, user, lim)
	if q == nil {
		r.stats.Fails++
		return Dropped, DropLimit
	}
	r.tooFar(q, p.Now)
	reason, kill := q.check(&f)
	if reason == 0 {
		reason, kill = q.insert(&f)
	}
	if reason == DropOverlap {
		r.stats.Overlaps++
	}
	if kill {
		r.remove(q)
		r.stats.Fails++
	}
	if reason == passOn {
		return Pass, 0
	}
	if reason != 0 {
		return Dropped, reason
	}
	if !q.last || q.first == nil || q.meat != q.length {
		return Queued, 0
	}
	r.remove(q)
	if reason := q.assemble(p); reason != 0 {
		r.stats.Fails++
		return Dropped, reason
	}
	r.stats.OKs++
	return Complete, 0
}

func (r *Reassembler) find(f *fragment, user uint32, lim *limits) *queue {
	p := f.p
	k := key{src: p.Src(), dst: p.Dst(), id: p.FragID, user: user, family: p.Family}
	if p.Family == packet.IPv4 {
		k.proto = p.Proto
	} else if d := &k.dst; d[0] == 0xff || d[0] == 0xfe && d[1]&0xc0 == 0x80 {
		if p.In != nil {
			k.iface = p.In.Index
		}
	}
	if q := r.queues[k]; q != nil {
		return q
	}
	if high := lim.high.Load(); high == 0 || *lim.mem > high {
		return nil
	}
	q := &queue{key: k, lim: lim, deadline: p.Now + lim.time.Load()*1e9}
	if p.Family == packet.IPv4 && r.maxDist.Load() != 0 {
		if q.peer = r.peers[k.src]; q.peer == nil {
			q.peer = &peer{}
			r.peers[k.src] = q.peer
		}
		q.peer.refs++
	}
	r.queues[k] = q
	q.charge(queueCost)
	heap.Push(&r.byTime, q)
	r.schedule()
	return q
}

func (q *queue) charge(n int64) {
	q.mem += n
	*q.lim.mem += n
}

// tooFar empties a queue whose source sent more than ipfrag_max_dist other
// fragments since this datagram's last one: its identification may be in use again.
func (r *Reassembler) tooFar(q *queue, now int64) {
	if q.peer == nil {
		return
	}
	q.peer.rid++
	dist := q.peer.rid - q.rid
	q.rid = q.peer.rid
	if limit := r.maxDist.Load(); limit == 0 || len(q.pieces) == 0 || int64(dist) <= limit {
		return
	}
	r.stats.Fails++
	q.charge(queueCost - q.mem)
	q.runs, q.pieces, q.first = nil, nil, nil
	q.meat, q.length, q.last, q.ecn, q.max, q.maxDF = 0, 0, false, 0, 0, 0
	q.deadline = now + q.lim.time.Load()*1e9
	heap.Fix(&r.byTime, q.index)
	r.schedule()
}

// remove takes q out of everything.
func (r *Reassembler) remove(q *queue) {
	delete(r.queues, q.key)
	heap.Remove(&r.byTime, q.index)
	q.charge(-q.mem)
	if q.peer != nil {
		if q.peer.refs--; q.peer.refs == 0 {
			delete(r.peers, q.key.src)
		}
	}
	r.schedule()
}

func (r *Reassembler) schedule() {
	if len(r.byTime) == 0 {
		r.next.Store(0)
	} else {
		r.next.Store(max(r.byTime[0].deadline, 1))
	}
}

// Due says whether Expire has something to do; it costs one atomic load.
func (r *Reassembler) Due(now int64) bool {
	t := r.next.Load()
	return t != 0 && t <= now
}

// Expire gives up the datagrams whose time is over. For each one whose first
// fragment had come it calls emit with that fragment, parsed, so that an ICMP
// time exceeded (code 1) can be sent about it; the packet is only lent. Linux
// sends that for conntrack's IPv4 datagrams only if they are for the host itself.
func (r *Reassembler) Expire(now int64, emit func(first *packet.Packet, user uint32)) {
	if !r.Due(now) {
		return
	}
	r.expiry.Lock()
	defer r.expiry.Unlock()
	for q := r.overdue(now); q != nil; q = r.overdue(now) {
		if q.first == nil || emit == nil {
			continue
		}
		if r.scratch == nil {
			r.scratch = packet.New()
		}
		p := r.scratch
		p.SetBytes(q.first)
		p.In, p.PktType, p.Now = q.in, q.typ, now
		if p.Parse() == 0 {
			p.Reason = DropTimeout
			emit(p, q.key.user)
		}
	}
}

func (r *Reassembler) overdue(now int64) *queue {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byTime) == 0 || r.byTime[0].deadline > now {
		return nil
	}
	q := r.byTime[0]
	r.remove(q)
	r.stats.Timeouts++
	r.stats.Fails++
	return q
}

// deadlines is a heap of queues, the earliest first.
type deadlines []*queue

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline < d[j].deadline }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i]; d[i].index, d[j].index = i, j }
func (d *deadlines) Push(x any)        { q := x.(*queue); q.index = len(*d); *d = append(*d, q) }
func (d *deadlines) Pop() any {
	n := len(*d) - 1
	q := (*d)[n]
	(*d)[n] = nil
	*d = (*d)[:n]
	return q
}

// Fragment calls emit for each fragment of p on a link of mtu bytes; see packet.FragmentTo.
func Fragment(p *packet.Packet, mtu int, emit func(*packet.Packet)) bool {
	return packet.FragmentTo(p, mtu, emit)
}

// insert places the fragment, as inet_frag_queue_insert decides: a fragment
// within bytes that arrived in one stretch is a duplicate, any other meeting
// of two fragments spoils the datagram.
func (q *queue) insert(f *fragment) (reason packet.Reason, kill bool) {
	n := len(q.runs)
	if n == 0 || q.runs[n-1].end < f.end {
		switch {
		case n > 0 && f.off < q.runs[n-1].end:
			return DropOverlap, true
		case n > 0 && f.off == q.runs[n-1].end:
			q.runs[n-1].end = f.end
		default:
			q.runs = append(q.runs, run{f.off, f.end})
		}
	} else {
		i, _ := slices.BinarySearchFunc(q.runs, f.off, func(r run, off int) int {
			if r.end <= off {
				return -1
			}
			return 1
		})
		r := q.runs[i] // there is one: the last one ends at or after f does, and f is not empty
		switch {
		case f.end <= r.start:
			q.runs = slices.Insert(q.runs, i, run{f.off, f.end})
		case f.off >= r.start && f.end <= r.end:
			return DropDuplicate, false
		default:
			return DropOverlap, true
		}
	}
	q.keep(f)
	return 0, false
}

// keep copies the fragment's bytes and takes note of its header.
func (q *queue) keep(f *fragment) {
	b := f.p.Bytes()
	n := f.end - f.off
	var data []byte
	if f.off == 0 {
		q.first = slices.Clone(b)
		q.body, q.next = f.body, f.next
		q.in, q.typ = f.p.In, f.p.PktType
		data = q.first[f.body : f.body+n]
	} else {
		data = slices.Clone(b[f.body : f.body+n])
	}
	q.pieces = append(q.pieces, piece{f.off, data})
	q.meat += n
	q.charge(int64(len(b) + pieceCost))
	q.ecn |= 1 << (f.p.TOS() & 3)
	size := f.body + n
	q.max = max(q.max, size)
	if f.p.Flags&packet.DontFragment != 0 {
		q.maxDF = max(q.maxDF, size)
	}
}
