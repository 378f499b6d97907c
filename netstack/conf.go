package netstack

import (
	"sync"
	"sync/atomic"

	"sluice/internal/sysctl"
)

// Key4 names a tunable net.ipv4.conf.*.
type Key4 uint8

// Key6 names a tunable net.ipv6.conf.*.
type Key6 uint8

const (
	Forwarding Key4 = iota
	RPFilter
	AcceptLocal
	AcceptSourceRoute
	AcceptRedirects
	SendRedirects
	SecureRedirects
	SharedMedia
	LogMartians
	RouteLocalnet
	SrcValidMark
	BCForwarding
	DropUnicastInL2Multicast
	PromoteSecondaries
	numKeys4
)

const (
	V6Forwarding Key6 = iota
	V6ForceForwarding
	V6AcceptRedirects
	V6AcceptSourceRoute
	V6DisableIPv6
	V6HopLimit
	V6DropUnicastInL2Multicast
	V6AcceptRA
	V6Autoconf
	numKeys6
)

// combine is how Linux takes "all" and the interface's own value together.
type combine uint8

const (
	own combine = iota
	either
	both
	largest
	byForwarding // both if the interface forwards, else either
)

type confKey struct {
	name     string
	all, def int64 // defaults
	min, max int64
	how      combine
	inert    bool
}

const anyInt = 1<<31 - 1

// Linux's defaults, but that forwarding is on; a router whose forwarding is on
// has all.accept_redirects off.
var keys4 = [numKeys4]confKey{
	Forwarding:               {"forwarding", 1, 1, -anyInt - 1, anyInt, own, false},
	RPFilter:                 {"rp_filter", 0, 0, 0, 2, largest, false},
	AcceptLocal:              {"accept_local", 0, 0, -anyInt - 1, anyInt, either, false},
	AcceptSourceRoute:        {"accept_source_route", 0, 1, -anyInt - 1, anyInt, both, false},
	AcceptRedirects:          {"accept_redirects", 0, 1, -anyInt - 1, anyInt, byForwarding, false},
	SendRedirects:            {"send_redirects", 1, 1, -anyInt - 1, anyInt, either, false},
	SecureRedirects:          {"secure_redirects", 1, 1, -anyInt - 1, anyInt, either, false},
	SharedMedia:              {"shared_media", 1, 1, -anyInt - 1, anyInt, either, false},
	LogMartians:              {"log_martians", 0, 0, -anyInt - 1, anyInt, either, false},
	RouteLocalnet:            {"route_localnet", 0, 0, -anyInt - 1, anyInt, either, false},
	SrcValidMark:             {"src_valid_mark", 0, 0, -anyInt - 1, anyInt, either, false},
	BCForwarding:             {"bc_forwarding", 0, 0, -anyInt - 1, anyInt, both, false},
	DropUnicastInL2Multicast: {"drop_unicast_in_l2_multicast", 0, 0, -anyInt - 1, anyInt, either, false},
	PromoteSecondaries:       {"promote_secondaries", 0, 0, -anyInt - 1, anyInt, either, false},
}

var keys6 = [numKeys6]confKey{
	V6Forwarding:               {"forwarding", 1, 1, -anyInt - 1, anyInt, own, false},
	V6ForceForwarding:          {"force_forwarding", 0, 0, 0, 1, own, false},
	V6AcceptRedirects:          {"accept_redirects", 1, 1, -anyInt - 1, anyInt, own, false},
	V6AcceptSourceRoute:        {"accept_source_route", 0, 0, -anyInt - 1, anyInt, both, false},
	V6DisableIPv6:              {"disable_ipv6", 0, 0, -anyInt - 1, anyInt, own, false},
	V6HopLimit:                 {"hop_limit", 64, 64, 1, 255, own, false},
	V6DropUnicastInL2Multicast: {"drop_unicast_in_l2_multicast", 0, 0, -anyInt - 1, anyInt, own, false},
	V6AcceptRA:                 {"accept_ra", 1, 1, -anyInt - 1, anyInt, own, true},
	V6Autoconf:                 {"autoconf", 1, 1, -anyInt - 1, anyInt, own, true},
}

// Conf is one interface's tunables: effective values, "all" taken in, for the
// packet path to read.
type Conf struct {
	v4 [numKeys4]atomic.Int32
	v6 [numKeys6]atomic.Int32

	// Guarded by confSet.mu.
	name string
	own4 [numKeys4]*sysctl.Var
	own6 [numKeys6]*sysctl.Var
	set4 [numKeys4]bool // written since: "default" does not reach it any more
}

// V4 is the effective value of net.ipv4.conf.NAME.*.
func (c *Conf) V4(k Key4) int32 { return c.v4[k].Load() }

// V6 is the effective value of net.ipv6.conf.NAME.*.
func (c *Conf) V6(k Key6) int32 { return c.v6[k].Load() }

// confSet is the tunables of all interfaces, of "all" and of "default".
type confSet struct {
	set *sysctl.Set

	mu        sync.Mutex
	all, def  *Conf
	ifs       map[string]*Conf
	ipForward *sysctl.Var
	gen       atomic.Uint64 // counts the changes of effective values
}

func newConfSet(s *sysctl.Set) *confSet {
	cs := &confSet{set: s, ifs: map[string]*Conf{}}
	cs.all = cs.make("all", func(k *confKey) int64 { return k.all }, func(k *confKey) int64 { return k.all })
	cs.def = cs.make("default", func(k *confKey) int64 { return k.def }, func(k *confKey) int64 { return k.def })
	cs.ipForward = s.New("net.ipv4.ip_forward", 1, -anyInt-1, anyInt)
	cs.ipForward.OnChange(func(x int64) { cs.all.own4[Forwarding].Store(x) })
	cs.refresh()
	return cs
}

func (cs *confSet) make(name string, def4, def6 func(*confKey) int64) *Conf {
	c := &Conf{name: name}
	for k := range keys4 {
		key := &keys4[k]
		v := cs.set.New("net.ipv4.conf."+name+"."+key.name, def4(key), key.min, key.max)
		v.Inert = key.inert
		c.own4[k] = v.OnChange(func(int64) { cs.changed4(c, Key4(k)) })
	}
	for k := range keys6 {
		key := &keys6[k]
		v := cs.set.New("net.ipv6.conf."+name+"."+key.name, def6(key), key.min, key.max)
		v.Inert = key.inert
		c.own6[k] = v.OnChange(func(int64) { cs.changed6(c, Key6(k)) })
	}
	return c
}

// of finds or makes an interface's tunables; new ones start with "default"'s values.
func (cs *confSet) of(name string) (c *Conf, fresh bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.ifs[name]; c != nil {
		return c, false
	}
	i4, i6 := -1, -1
	c = cs.make(name,
		func(*confKey) int64 { i4++; return cs.def.own4[i4].Load() },
		func(*confKey) int64 { i6++; return cs.def.own6[i6].Load() })
	cs.ifs[name] = c
	cs.refresh()
	return c, true
}

// drop takes an interface's tunables out.
func (cs *confSet) drop(c *Conf) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.ifs[c.name] != c {
		return
	}
	delete(cs.ifs, c.name)
	for _, v := range c.own4 {
		cs.set.Remove(v.Name)
	}
	for _, v := range c.own6 {
		cs.set.Remove(v.Name)
	}
}

// hasAddress: from its first IPv4 address on, an interface no longer follows "default".
func (cs *confSet) hasAddress(c *Conf) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for k := range c.set4 {
		c.set4[k] = true
	}
}

func (cs *confSet) changed4(c *Conf, k Key4) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	x := c.own4[k].Load()
	c.set4[k] = true
	switch {
	case c == cs.all && k == Forwarding:
		if cs.forwarding() != (x != 0) {
			cs.all.own4[AcceptRedirects].Put(b2i(x == 0))
			cs.def.own4[Forwarding].Put(x)
			for _, o := range cs.ifs {
				o.own4[Forwarding].Put(x)
			}
		}
		cs.ipForward.Put(x)
	case c == cs.def:
		for _, o := range cs.ifs {
			if !o.set4[k] {
				o.own4[k].Put(x)
			}
		}
	}
	cs.refresh()
}

// forwarding is what all.forwarding was before the change: "all" has its effective value from then.
func (cs *confSet) forwarding() bool { return cs.all.v4[Forwarding].Load() != 0 }

func (cs *confSet) changed6(c *Conf, k Key6) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	x := c.own6[k].Load()
	if c == cs.all && (k == V6Forwarding || k == V6DisableIPv6 || k == V6ForceForwarding) && cs.all.v6[k].Load() != int32(x) {
		cs.def.own6[k].Put(x)
		for _, o := range cs.ifs {
			o.own6[k].Put(x)
		}
	}
	cs.refresh()
}

// refresh computes the effective values. The caller holds mu, or nobody else has cs.
func (cs *confSet) refresh() {
	cs.effective(cs.all)
	cs.effective(cs.def)
	for _, c := range cs.ifs {
		cs.effective(c)
	}
}

func (cs *confSet) effective(c *Conf) {
	for k := range keys4 {
		a, x := cs.all.own4[k].Load(), c.own4[k].Load()
		if c != cs.all {
			x = keys4[k].how.of(a, x, c.own4[Forwarding].Load() != 0)
		}
		c.v4[k].Store(int32(x))
	}
	for k := range keys6 {
		a, x := cs.all.own6[k].Load(), c.own6[k].Load()
		if c != cs.all {
			x = keys6[k].how.of(a, x, c.own6[V6Forwarding].Load() != 0)
		}
		c.v6[k].Store(int32(x))
	}
	cs.gen.Add(1)
}

func (h combine) of(all, x int64, forwarding bool) int64 {
	switch {
	case h == either || h == byForwarding && !forwarding:
		return b2i(all != 0 || x != 0)
	case h == both || h == byForwarding:
		return b2i(all != 0 && x != 0)
	case h == largest:
		return max(all, x)
	}
	return x
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
