package ext

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/bits"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// What Linux's module is loaded with.
const (
	recentListMax  = 100   // ip_list_tot: addresses a list holds
	recentStamps   = 32    // packets remembered of an address where no rule counts hits
	recentHitLimit = 65535 // the most that --hitcount may ask for
	recentBuckets  = 128   // ip_list_hash_size
)

var recentOps = []struct{ option, title string }{{"set", "SET"}, {"rcheck", "CHECK"}, {"update", "UPDATE"}, {"remove", "REMOVE"}}

// recentSide is --rsource or --rdest; the later one, which has Value.Lo 1, holds.
type recentSide struct{ other string }

func (recentSide) Args() int                   { return 0 }
func (recentSide) Format(*tables.Value) string { return "" }

func (t recentSide) Parse(o *tables.OptionContext, _ []string, v *tables.Value) error {
	if o.Args.Has(t.other) {
		v.Lo = 1
	}
	return nil
}

// recentMask is a mask written as an address, without prefix length, in Value.A.
type recentMask struct{}

func (recentMask) Args() int { return 1 }

func (recentMask) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if strings.Contains(text[0], "/") {
		return tables.Usagef("getaddrinfo: Name or service not known\n")
	}
	return tables.HostMask.Parse(o, text, v)
}

func (recentMask) Format(v *tables.Value) string { return tables.FormatAddr(uint8(v.Lo), v.A) }

var matchRecent = &tables.Match{
	Name:     "recent",
	Families: tables.V4V6,
	Doc:      "Keeps lists of addresses with the times of their last packets, and matches by them. A list holds 100 addresses; the one not seen for longest makes room.",
	Options: []tables.Option{
		{Name: "set", Type: tables.Flag, Negatable: true, Excludes: []string{"rcheck", "update", "remove"}, Doc: "add the address to the list, or its time if it is there; always matches"},
		{Name: "rcheck", Type: tables.Flag, Negatable: true, Excludes: []string{"set", "update", "remove"}, Doc: "the address is in the list"},
		{Name: "update", Type: tables.Flag, Negatable: true, Excludes: []string{"set", "rcheck", "remove"}, Doc: "as --rcheck, and the packet's time is added if it matches"},
		{Name: "remove", Type: tables.Flag, Negatable: true, Excludes: []string{"set", "rcheck", "update"}, Doc: "take the address off the list; matches if it was there"},
		{Name: "seconds", Type: tables.Uint{Min: 1, Max: allOnes}, Arg: "seconds", Doc: "count packets of the last seconds only"},
		{Name: "reap", Type: tables.Flag, Also: []string{"seconds"}, Doc: "drop addresses from the list that are older than --seconds"},
		{Name: "hitcount", Type: tables.U32, Arg: "hits", Doc: "at least so many packets were seen"},
		{Name: "rttl", Type: tables.Flag, Excludes: []string{"set", "remove"}, Doc: "the packet's TTL is that of the packet that --set saw"},
		{Name: "name", Type: tables.String{Trim: 199}, Arg: "name", Doc: "the list; default DEFAULT"},
		{Name: "rsource", Type: recentSide{"rdest"}, Doc: "the source address (the default)"},
		{Name: "rdest", Type: recentSide{"rsource"}, Doc: "the destination address"},
		{Name: "mask", Type: recentMask{}, Arg: "netmask", Doc: "mask for the address; that of a list's first rule holds"},
	},
	First: func(a *tables.Args) error {
		if recentOp(a) < 0 {
			return tables.Usagef("recent: you must specify one of `--set', `--rcheck' `--update' or `--remove'")
		}
		return nil
	},
	Final: func(a *tables.Args) error {
		if !a.Has("name") {
			a.Set("name", tables.Value{Str: "DEFAULT"})
		}
		if a.Has("rsource") && a.Has("rdest") {
			loser := []string{"rdest", "rsource"}[a.Num("rdest")]
			a.Clear(loser)
		}
		if !a.Has("rdest") {
			a.Set("rsource", tables.Value{})
		}
		if !a.Has("mask") {
			a.Set("mask", tables.Value{A: packet.FullMask(a.Family), Lo: uint64(a.Family)})
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		op := recentOps[recentOp(a)].option
		s := notOf(a.Get(op)) + " --" + op
		if a.Has("seconds") {
			s += fmt.Sprintf(" --seconds %d", a.Num("seconds"))
		}
		if a.Has("reap") {
			s += " --reap"
		}
		if n := a.Num("hitcount"); n != 0 {
			s += fmt.Sprintf(" --hitcount %d", n)
		}
		if a.Has("rttl") {
			s += " --rttl"
		}
		s += " --name " + quoteWord(a.Str("name")) + " --mask " + recentMask{}.Format(a.Get("mask"))
		if a.Has("rdest") {
			return s + " --rdest"
		}
		return s + " --rsource"
	},
	List: func(a *tables.Args, _ bool) string {
		op := recentOps[recentOp(a)]
		s := notOf(a.Get(op.option)) + " recent: " + op.title
		if a.Has("seconds") {
			s += fmt.Sprintf(" seconds: %d", a.Num("seconds"))
		}
		if a.Has("reap") {
			s += " reap"
		}
		if n := a.Num("hitcount"); n != 0 {
			s += fmt.Sprintf(" hit_count: %d", n)
		}
		if a.Has("rttl") {
			s += " TTL-Match"
		}
		s += " name: " + a.Str("name") + " side: "
		if a.Has("rdest") {
			s += "dest"
		} else {
			s += "source"
		}
		return s + " mask: " + recentMask{}.Format(a.Get("mask"))
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		if err := recentCheck(a); err != nil {
			return nil, err
		}
		list, err := recentLists.take(a.Rule, env, 0, a.Str("name"), func(l *recentList) (*recentList, error) {
			if l == nil {
				mask := a.Get("mask").A
				if a.Family == packet.IPv4 && [4]byte(mask[:4]) == [4]byte{255, 255, 255, 255} {
					mask = full // IPv6 rules may share the list
				}
				l = newRecentList(mask)
			}
			l.remember(int(a.Num("hitcount")))
			return l, nil
		})
		if err != nil {
			return nil, err
		}
		op := recentOp(a)
		r := &recentRule{
			list: list,
			not:  a.Not(recentOps[op].option),
			set:  op == 0, update: op == 2, remove: op == 3,
			age:  int64(a.Num("seconds")) * 1e9,
			hits: int(a.Num("hitcount")),
			reap: a.Has("reap"), ttl: a.Has("rttl"), dest: a.Has("rdest"),
		}
		return r.match, nil
	},
}

// recentCheck is the kernel's.
func recentCheck(a *tables.Args) error {
	if (a.Has("set") || a.Has("remove")) && (a.Has("seconds") || a.Num("hitcount") != 0 || a.Has("reap")) {
		return errors.New("--set and --remove take neither --seconds nor --hitcount")
	}
	if n := a.Num("hitcount"); n > recentHitLimit {
		return fmt.Errorf("--hitcount %d is more than %d", n, recentHitLimit)
	}
	return checkProcName(a.Str("name"))
}

// recentOp is the index in recentOps of what the rule does; -1: none.
func recentOp(a *tables.Args) int {
	for i, op := range recentOps {
		if a.Has(op.option) {
			return i
		}
	}
	return -1
}

// full is a mask that leaves an address of either family as it is.
var full = packet.FullMask(packet.IPv6)

var recentLists shared[recentList]

// recentList is one list, shared by the rules of both families that name it.
type recentList struct {
	mask [16]byte
	seed maphash.Seed

	lock    spin // guards what follows
	buckets [recentBuckets]uint8
	entries [recentListMax + 1]recentEntry // 0: none
	used    int                            // entries that have been in use
	free    uint8                          // through older
	newest  uint8
	oldest  uint8
	stamps  []int64 // depth for each entry, ns on the packets' clock
	depth   int     // a power of two
}

type recentEntry struct {
	addr         [16]byte
	family       uint8
	ttl          uint8
	next         uint8 // in the bucket
	newer, older uint8 // by the last packet
	index, n     int   // where the next stamp goes, how many there are
}

func newRecentList(mask [16]byte) *recentList {
	return &recentList{mask: mask, seed: maphash.MakeSeed()}
}

// remember makes room for hits stamps of each address (0: the usual number). A
// list that has less forgets what it holds, as Linux's does.
func (l *recentList) remember(hits int) {
	depth := recentStamps
	if hits > 0 {
		depth = 1 << bits.Len(uint(hits-1))
	}
	if depth <= l.depth { // written by remember alone, under shared.mu
		return
	}
	stamps := make([]int64, depth*(recentListMax+1))
	l.lock.lock()
	l.buckets = [recentBuckets]uint8{}
	l.used, l.free, l.newest, l.oldest = 0, 0, 0, 0
	l.stamps, l.depth = stamps, depth
	l.lock.unlock()
}

type recentRule struct {
	list                                      *hold[recentList]
	not, set, update, remove, reap, ttl, dest bool
	age                                       int64 // ns; 0: any
	hits                                      int
}

func (r *recentRule) match(_ *tables.Context, p *packet.Packet) bool {
	l := r.list.state
	addr := p.Src()
	if r.dest {
		addr = p.Dst()
	}
	for i := range addr {
		addr[i] &= l.mask[i]
	}
	ttl := p.TTL()
	if p.Out != nil && p.Flags&packet.Local == 0 {
		ttl++ // as it was before forwarding
	}
	b := &l.buckets[maphash.Bytes(l.seed, addr[:])%recentBuckets]
	l.lock.lock()
	ret := r.look(l, b, &addr, p.Family, ttl, p.Now)
	l.lock.unlock()
	return ret
}

func (r *recentRule) look(l *recentList, b *uint8, addr *[16]byte, family, ttl uint8, now int64) bool {
	i := *b
	for ; i != 0; i = l.entries[i].next {
		if e := &l.entries[i]; e.addr == *addr && e.family == family && (!r.ttl || e.ttl == ttl || ttl == 0 || e.ttl == 0) {
			break
		}
	}
	ret := r.not
	if i == 0 {
		if !r.set {
			return ret
		}
		i = l.add(b, addr, family)
		l.touch(i, ttl, now)
		return !ret
	}
	e := &l.entries[i]
	switch {
	case r.set:
		ret = !ret
	case r.remove:
		l.drop(i)
		return !ret
	default:
		since := now - r.age
		hits := 0
		for _, s := range l.stampsOf(i)[:e.n] {
			if r.age != 0 && s < since {
				continue
			}
			if hits++; r.hits == 0 || hits >= r.hits {
				ret = !ret
				break
			}
		}
		if o := l.oldest; r.reap && !(o == i && r.update && ret) && l.last(o) < since {
			l.drop(o)
		}
	}
	if r.set || r.update && ret {
		l.touch(i, ttl, now)
	}
	return ret
}

func (l *recentList) stampsOf(i uint8) []int64 { return l.stamps[int(i)*l.depth:][:l.depth] }

// last is the entry's newest stamp.
func (l *recentList) last(i uint8) int64 { return l.stampsOf(i)[l.entries[i].index-1] }

// add makes an entry without stamps.
func (l *recentList) add(b *uint8, addr *[16]byte, family uint8) uint8 {
	if l.free == 0 && l.used == recentListMax {
		l.drop(l.oldest)
	}
	i := l.free
	if i != 0 {
		l.free = l.entries[i].older
	} else {
		l.used++
		i = uint8(l.used)
	}
	l.entries[i] = recentEntry{addr: *addr, family: family, next: *b}
	*b = i
	l.link(i)
	return i
}

// touch adds a stamp and makes the entry the newest.
func (l *recentList) touch(i uint8, ttl uint8, now int64) {
	e := &l.entries[i]
	e.index &= l.depth - 1
	l.stampsOf(i)[e.index] = now
	e.index++
	e.n = max(e.n, e.index)
	e.ttl = ttl
	if l.newest != i {
		l.unlink(i)
		l.link(i)
	}
}

func (l *recentList) link(i uint8) {
	e := &l.entries[i]
	e.newer, e.older = 0, l.newest
	if l.newest != 0 {
		l.entries[l.newest].newer = i
	} else {
		l.oldest = i
	}
	l.newest = i
}

func (l *recentList) unlink(i uint8) {
	e := &l.entries[i]
	if e.newer != 0 {
		l.entries[e.newer].older = e.older
	} else {
		l.newest = e.older
	}
	if e.older != 0 {
		l.entries[e.older].newer = e.newer
	} else {
		l.oldest = e.newer
	}
}

func (l *recentList) drop(i uint8) {
	l.unlink(i)
	e := &l.entries[i]
	at := &l.buckets[maphash.Bytes(l.seed, e.addr[:])%recentBuckets]
	for *at != i {
		at = &l.entries[*at].next
	}
	*at = e.next
	e.older = l.free
	l.free = i
}
