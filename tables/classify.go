package tables

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"sluice/packet"
)

// A chain of many rules has a classifier: it gives the rules that a packet may
// match, in order. Each rule is found by one of its plain fields, the one that
// the fewest others share the value of: a prefix, an interface, a port, the
// protocol. What has none is a candidate for every packet. Where many rules
// share a value, they have a classifier of their own, by what else they ask for.
// Candidates are then compared as a whole, so that a classifier may give too
// many rules but never too few.

const (
	classifyFrom = 12 // shorter chains are walked rule by rule
	splitFrom    = 8  // rules of one value that get a classifier of their own
	maxTail      = 64 // rules that were appended since and are walked one by one
	maxPorts     = 16 // blocks of a range of ports that a rule may be listed under
	maxLists     = 96 // lists that a packet's candidates may come from
)

// class is a set of rules by fields.
type class struct {
	always   []uint32 // rules that no field tells apart here, in order
	src, dst *prefixes
	in, out  map[[2]uint64]*class
	sport    *portBlocks
	dport    *portBlocks
	proto    *[256]*class
}

// prefixes finds the rules of all prefixes that an address is in: of the
// longest, then by up of those around it.
type prefixes struct{ t bart.Table[*prefixClass] }

type prefixClass struct {
	class
	up *prefixClass
}

// portBlocks is ports by aligned blocks of powers of two: 16 is a single port.
type portBlocks struct {
	levels uint32 // those that are there
	by     map[uint32]*class
}

func blockKey(level uint, port uint16) uint32 { return uint32(level)<<16 | uint32(port)>>(16-level) }

// classifier is that of a chain's first upto rules.
type classifier struct {
	main, late *class // late: rules from mainTo to upto
	mainTo     int
	upto       int
}

// fields are what a rule can be found by.
type fields struct {
	src, dst     netip.Prefix // invalid: any
	in, out      [2]uint64    // zero: any
	sport, dport []Range      // nil: any
	proto        uint8        // 0: any
}

// Hint is plain fields of which a match says that packets must have them: where
// an address is not in Src or Dst, or a port not in SPorts or DPorts, it does not
// match and does nothing. Zero values mean any.
type Hint struct {
	Src, Dst       netip.Prefix
	SPorts, DPorts []Range
}

// innocent is what a match may depend on that a classifier keeps from being
// asked: it has no state and finds no packet malformed.
const innocent = DependsNothing | DependsLength | DependsTOS | DependsTTL | DependsMark | DependsCtState | DependsCtStatus | DependsCtMark | DependsRoutes | DependsSets

func (r *Rule) fields() (f fields) {
	f.src, f.dst = r.Src.prefix(r.Family), r.Dst.prefix(r.Family)
	if r.In != "" && !r.InNot && r.In[len(r.In)-1] != '+' {
		f.in, _ = packet.NameWords(r.In)
	}
	if r.Out != "" && !r.OutNot && r.Out[len(r.Out)-1] != '+' {
		f.out, _ = packet.NameWords(r.Out)
	}
	if !r.ProtoNot {
		f.proto = r.Proto
	}
	for _, m := range r.Matches {
		if m.Ext.Hint != nil {
			h := m.Ext.Hint(m.Args)
			narrow(&f.src, h.Src)
			narrow(&f.dst, h.Dst)
			if f.sport == nil {
				f.sport = h.SPorts
			}
			if f.dport == nil {
				f.dport = h.DPorts
			}
		}
		if m.Ext.Depends == 0 && m.Ext.Compile != nil || m.Ext.Depends&^innocent != 0 {
			break // what comes behind it must not be asked first
		}
	}
	return f
}

func narrow(p *netip.Prefix, to netip.Prefix) {
	if to.IsValid() && (!p.IsValid() || to.Bits() > p.Bits()) {
		*p = to
	}
}

// prefix is a as a prefix; invalid if it is none, or any address.
func (a *Addr) prefix(family uint8) netip.Prefix {
	n, size := 0, 16
	if family == packet.IPv4 {
		size = 4
	}
	for n < size && a.Mask[n] == 0xff {
		n++
	}
	rest, ones := n, n*8
	if n < size {
		ones += bits.LeadingZeros8(^a.Mask[n])
		if a.Mask[n]<<(ones&7) != 0 {
			return netip.Prefix{}
		}
		rest++
	}
	for ; rest < size; rest++ {
		if a.Mask[rest] != 0 {
			return netip.Prefix{}
		}
	}
	if a.Not || ones == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(packet.Addr(family, a.Addr), ones)
}

// Covering is the longest prefix that has both addresses; invalid: none has.
func Covering(a, b netip.Addr) netip.Prefix {
	x, y := a.AsSlice(), b.AsSlice()
	n := 0
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			n += bits.LeadingZeros8(d)
			break
		}
		n += 8
	}
	if n == 0 {
		return netip.Prefix{}
	}
	p, _ := a.Prefix(n)
	return p
}

// The ways to find a rule.
const (
	bySrc uint8 = iota
	byDst
	byIn
	byOut
	bySport
	byDport
	byProto
	byNothing
)

// value is what a rule asks of one field: the way, with the length of a prefix
// above it, and what there is to find.
type value struct{ way, a, b uint64 }

func (v value) by() uint8   { return uint8(v.way) }
func (v value) bits() uint8 { return uint8(v.way >> 8) }

func (f *fields) value(by uint8, id uint32) (v value, ok bool) {
	v.way = uint64(by)
	switch by {
	case bySrc, byDst:
		p := &f.src
		if by == byDst {
			p = &f.dst
		}
		if !p.IsValid() {
			return v, false
		}
		v.way |= uint64(p.Bits()) << 8
		a := words(p.Addr().As16())
		v.a, v.b = a[0], a[1]
	case byIn, byOut:
		n := f.in
		if by == byOut {
			n = f.out
		}
		v.a, v.b = n[0], n[1]
		return v, v.a|v.b != 0
	case bySport, byDport:
		l := f.sport
		if by == byDport {
			l = f.dport
		}
		if len(l) == 0 || blocks(l) > maxPorts {
			return v, false
		}
		if v.a = l[0].Lo<<16 | l[0].Hi; len(l) > 1 {
			v.b = uint64(id) + 1 // a list is a rule's own
		}
	case byProto:
		v.a = uint64(f.proto)
		return v, f.proto != 0
	}
	return v, true
}

// tally counts values. Two may share a place, and then count as more than they
// are: it serves to choose, and is cheaper than a map.
type tally []uint32

// hashSeeds differ from run to run, so that nobody can choose values that collide.
var hashSeeds = [3]uint64{rand.Uint64() | 1, rand.Uint64() | 1, rand.Uint64() | 1}

func newTally(rules int) tally { return make(tally, 1<<bits.Len(uint(rules)*8)) }

func (t tally) at(v value) *uint32 {
	hi, lo := bits.Mul64(v.way^hashSeeds[0], v.a^hashSeeds[1])
	hi, lo = bits.Mul64(hi^lo^hashSeeds[2], v.b^hashSeeds[1])
	return &t[(hi^lo)&uint64(len(t)-1)]
}

// wide is how many of n rules as wide as v a packet would meet.
func (f *fields) wide(v value, n uint32) uint32 {
	switch v.by() {
	case bySrc, byDst:
		return n >> min(v.bits(), 31)
	case bySport, byDport:
		l := f.sport
		if v.by() == byDport {
			l = f.dport
		}
		ports := uint64(0)
		for _, r := range l {
			ports += r.Hi - r.Lo + 1
		}
		return uint32(uint64(n) * ports >> 16)
	}
	return 0
}

// eachBlock cuts a range of ports into aligned blocks.
func eachBlock(r Range, yield func(level uint, port uint16)) {
	for lo, hi := r.Lo, r.Hi; lo <= hi; {
		size := uint64(1) << 16
		if lo != 0 {
			size = lo & -lo
		}
		for lo+size-1 > hi {
			size >>= 1
		}
		yield(16-uint(bits.TrailingZeros64(size)), uint16(lo))
		lo += size
	}
}

func blocks(l []Range) (n int) {
	for _, r := range l {
		eachBlock(r, func(uint, uint16) { n++ })
	}
	return n
}

// classify fills c with the rules ids, whose fields are fs[id-base]; used are
// the ways by which they have been told apart already.
func (c *class) classify(ids []uint32, fs []fields, base uint32, used uint8) {
	shared := newTally(len(ids))
	for _, id := range ids {
		f := &fs[id-base]
		for by := bySrc; by < byNothing; by++ {
			if used>>by&1 == 0 {
				if v, ok := f.value(by, id); ok {
					*shared.at(v)++
				}
			}
		}
	}
	groups, of := []group{{}}, make([]uint32, len(ids)) // group 0: those that no field tells apart
	at := make(map[value]uint32, len(ids)/2)
	for i, id := range ids {
		Yield(i)
		f := &fs[id-base]
		best, least := value{way: uint64(byNothing)}, uint32(len(ids))
		if len(ids) > 1 && used == 0 {
			least++ // a field that all share still tells packets apart
		}
		for by := bySrc; by < byNothing; by++ {
			if used>>by&1 != 0 {
				continue
			}
			v, ok := f.value(by, id)
			if !ok {
				continue
			}
			// What is wide is met by many packets, even if one rule alone has it.
			if n := *shared.at(v) + f.wide(v, uint32(len(ids))); n < least {
				best, least = v, n
			}
		}
		if best.by() != byNothing {
			n, ok := at[best]
			if !ok {
				n = uint32(len(groups))
				at[best] = n
				groups = append(groups, group{of: best})
			}
			of[i] = n
		}
		groups[of[i]].n++
	}
	// The groups' rules stand one behind the other in one array.
	all := make([]uint32, len(ids))
	sum := 0
	for i := range groups {
		g := &groups[i]
		g.ids = all[sum : sum : sum+g.n]
		sum += g.n
	}
	for i, id := range ids {
		g := &groups[of[i]]
		g.ids = append(g.ids, id)
	}
	c.always = groups[0].ids
	groups = groups[1:]
	// Wider prefixes come first, so that narrower ones find them.
	slices.SortStableFunc(groups, func(a, b group) int { return int(a.of.bits()) - int(b.of.bits()) })
	for i := range groups {
		Yield(i)
		g := &groups[i]
		f := &fs[g.ids[0]-base]
		for _, to := range c.places(f, g.of.by()) {
			if len(g.ids) >= splitFrom && to.empty() {
				to.classify(g.ids, fs, base, used|1<<g.of.by())
			} else {
				to.always = merge(to.always, g.ids)
			}
		}
	}
}

// group is rules that are found by the same value.
type group struct {
	of  value
	ids []uint32
	n   int // of ids
}

// empty: nothing is in c yet. A class is only told apart once: prefixes find
// those around them if these were there before.
func (c *class) empty() bool {
	return len(c.always) == 0 && c.src == nil && c.dst == nil && c.in == nil && c.out == nil && c.sport == nil && c.dport == nil && c.proto == nil
}

// merge joins two lists in order.
func merge(a, b []uint32) []uint32 {
	if len(a) == 0 {
		return b
	}
	out := append(slices.Clip(a), b...)
	if len(a) > 0 && a[len(a)-1] > b[0] {
		slices.Sort(out)
	}
	return out
}

// places are the classes of a value of one field, which are made if need be.
func (c *class) places(f *fields, by uint8) []*class {
	switch by {
	case bySrc:
		return []*class{addPrefix(&c.src, f.src)}
	case byDst:
		return []*class{addPrefix(&c.dst, f.dst)}
	case byIn:
		return []*class{addName(&c.in, f.in)}
	case byOut:
		return []*class{addName(&c.out, f.out)}
	case bySport:
		return addPorts(&c.sport, f.sport)
	case byDport:
		return addPorts(&c.dport, f.dport)
	}
	if c.proto == nil {
		c.proto = new([256]*class)
	}
	if c.proto[f.proto] == nil {
		c.proto[f.proto] = new(class)
	}
	return []*class{c.proto[f.proto]}
}

func addPrefix(to **prefixes, p netip.Prefix) *class {
	if *to == nil {
		*to = new(prefixes)
	}
	t := &(*to).t
	p = p.Masked()
	if x, ok := t.Get(p); ok {
		return &x.class
	}
	x := new(prefixClass)
	x.up, _ = t.LookupPrefix(p)
	t.Insert(p, x)
	return &x.class
}

func addName(to *map[[2]uint64]*class, name [2]uint64) *class {
	if *to == nil {
		*to = map[[2]uint64]*class{}
	}
	if (*to)[name] == nil {
		(*to)[name] = new(class)
	}
	return (*to)[name]
}

func addPorts(to **portBlocks, l []Range) (out []*class) {
	if *to == nil {
		*to = &portBlocks{by: map[uint32]*class{}}
	}
	for _, r := range l {
		eachBlock(r, func(level uint, port uint16) {
			(*to).levels |= 1 << level
			k := blockKey(level, port)
			c := (*to).by[k]
			if c == nil {
				c = new(class)
				(*to).by[k] = c
			}
			if !slices.Contains(out, c) {
				out = append(out, c)
			}
		})
	}
	return out
}

// index brings k's classifier up to date with rules. What is there is shared
// with other programs and stays as it is.
func (k *code) index(rules []*Rule) {
	n := len(rules)
	if n < classifyFrom {
		k.class = nil
		return
	}
	x := k.class
	if x != nil && n-x.upto <= maxTail {
		return
	}
	next := &classifier{upto: n}
	if x == nil || n-x.mainTo > max(x.mainTo/8, maxTail*4) {
		next.main, next.mainTo = classifyRules(rules, 0), n
	} else {
		next.main, next.mainTo, next.late = x.main, x.mainTo, classifyRules(rules, x.mainTo)
	}
	k.class = next
}

func classifyRules(rules []*Rule, from int) *class {
	fs := make([]fields, len(rules)-from)
	ids := make([]uint32, len(fs))
	for i := range fs {
		fs[i] = rules[from+i].fields()
		ids[i] = uint32(from + i)
	}
	c := new(class)
	c.classify(ids, fs, uint32(from), 0)
	return c
}

// candidates are the rules of one chain that a packet may match.
type candidates struct {
	lists    [maxLists][]uint32
	n        int
	tooMany  bool
	src, dst netip.Addr
	known    bool // src and dst are the packet's
}

// gather collects the lists for a packet. false: it has to be walked.
func (x *classifier) gather(g *candidates, k *key, p *packet.Packet) bool {
	if !g.known {
		g.src, g.dst, g.known = p.SrcAddr(), p.DstAddr(), true
	}
	g.n, g.tooMany = 0, false
	x.main.gather(g, k)
	if x.late != nil {
		x.late.gather(g, k)
	}
	return !g.tooMany
}

func (c *class) gather(g *candidates, k *key) {
	if len(c.always) > 0 {
		if g.n == maxLists {
			g.tooMany = true
			return
		}
		g.lists[g.n] = c.always
		g.n++
	}
	if c.src != nil {
		for x, _ := c.src.t.Lookup(g.src); x != nil; x = x.up {
			x.gather(g, k)
		}
	}
	if c.dst != nil {
		for x, _ := c.dst.t.Lookup(g.dst); x != nil; x = x.up {
			x.gather(g, k)
		}
	}
	if c.in != nil {
		if x := c.in[k.in]; x != nil {
			x.gather(g, k)
		}
	}
	if c.out != nil {
		if x := c.out[k.out]; x != nil {
			x.gather(g, k)
		}
	}
	if c.proto != nil {
		if x := c.proto[k.proto]; x != nil {
			x.gather(g, k)
		}
	}
	if k.ports {
		if c.sport != nil {
			c.sport.gather(g, k, k.sport)
		}
		if c.dport != nil {
			c.dport.gather(g, k, k.dport)
		}
	}
}

func (b *portBlocks) gather(g *candidates, k *key, port uint16) {
	for l := b.levels; l != 0; l &= l - 1 {
		if x := b.by[blockKey(uint(bits.TrailingZeros32(l)), port)]; x != nil {
			x.gather(g, k)
		}
	}
}

// next is the first candidate from rule at on; -1: there is none.
func (g *candidates) next(at int) int {
	best := uint32(1<<32 - 1)
	for i := 0; i < g.n; {
		l := g.lists[i]
		for len(l) > 0 && int(l[0]) < at {
			l = l[1:]
		}
		if len(l) == 0 {
			g.n--
			g.lists[i] = g.lists[g.n]
			continue
		}
		g.lists[i] = l
		best = min(best, l[0])
		i++
	}
	return int(int32(best))
}

// classifiable: k's packet can be told apart by its fields. Where ports cannot
// be read that should be there, rules that ask for them must be reached.
func (k *key) classifiable() bool {
	if k.lost {
		return false
	}
	if k.ports {
		return true
	}
	switch k.proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		return false
	}
	return true
}
