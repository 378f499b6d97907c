package router

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"sluice/internal/sysctl"
	"sluice/packet"
)

// icmpLimiter holds Linux's two limits on ICMP errors: a global token bucket
// (net.ipv4.icmp_msgs_per_sec, icmp_msgs_burst) and a bucket per destination
// (icmp_ratelimit milliseconds an error, six in a burst).
type icmpLimiter struct {
	rate4, mask4, perSec, burst *sysctl.Var
	rate6                       *sysctl.Var

	credit atomic.Int64 // global tokens
	stamp  atomic.Int64 // ns of the last refill

	mu    sync.Mutex // errors are off the packet path
	peers map[[17]byte]*peerBucket
}

type peerBucket struct{ tokens, last int64 } // milliseconds

const (
	peerBurst = 6 // XRLIM_BURST_FACTOR
	maxPeers  = 65536

	routeErrorCost  = 1000 // net.ipv4.route.error_cost, ms
	routeErrorBurst = 5000
)

func newICMPLimiter(s *sysctl.Set) *icmpLimiter {
	l := &icmpLimiter{
		rate4:  s.New("net.ipv4.icmp_ratelimit", 1000, 0, 1<<31-1),
		mask4:  s.New("net.ipv4.icmp_ratemask", 6168, 0, 1<<32-1),
		perSec: s.New("net.ipv4.icmp_msgs_per_sec", 1000, 0, 1<<31-1),
		burst:  s.New("net.ipv4.icmp_msgs_burst", 50, 0, 1<<31-1),
		rate6:  s.New("net.ipv6.icmp.ratelimit", 100, 0, 1<<31-1),
		peers:  map[[17]byte]*peerBucket{},
	}
	l.stamp.Store(-1e9) // the bucket is full at first, as a machine's is that is up for a second
	return l
}

// allow says whether an error of this type may go to dst now (ns); plen is the
// prefix length of the route there (IPv6 scales its limit with it).
func (l *icmpLimiter) allow(family, typ, code uint8, dst [16]byte, plen int, now int64) bool {
	var interval int64
	if family == packet.IPv4 {
		if typ > 31 || typ == 3 && code == 4 || l.mask4.Load()>>typ&1 == 0 {
			return true
		}
		interval = l.rate4.Load()
	} else {
		if typ == 2 || typ >= 128 {
			return true
		}
		interval = l.rate6.Load()
		if plen < 128 {
			interval >>= (128 - plen) >> 5
		}
	}
	return l.global(now) && l.peer(family, dst, interval, now/1e6)
}

func (l *icmpLimiter) global(now int64) bool {
	last := l.stamp.Load()
	if delta := min(now-last, 1e9); delta >= 2e7 || l.credit.Load() == 0 && delta > 0 {
		if add := l.perSec.Load() * delta / 1e9; add > 0 && l.stamp.CompareAndSwap(last, now) {
			l.credit.Store(min(l.credit.Load()+add, l.burst.Load()))
		}
	}
	for {
		c := l.credit.Load()
		if c <= 0 {
			return false
		}
		// Linux takes none, one or two tokens at random, so that a burst's size tells an observer nothing.
		if l.credit.CompareAndSwap(c, max(c-int64(rand.IntN(3)), 0)) {
			return true
		}
	}
}

func (l *icmpLimiter) peer(family uint8, dst [16]byte, interval, ms int64) bool {
	if interval == 0 {
		return true
	}
	var key [17]byte
	key[0] = family
	copy(key[1:], dst[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bucket(&key, ms).take(interval, peerBurst*interval, ms)
}

// routeError is the limit on errors that a route asks for (ip_error): one a
// second, five in a burst, out of the bucket that peer takes from as well.
func (l *icmpLimiter) routeError(src [16]byte, ms int64) bool {
	var key [17]byte
	key[0] = packet.IPv4
	copy(key[1:], src[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bucket(&key, ms).take(routeErrorCost, routeErrorBurst, ms)
}

func (l *icmpLimiter) bucket(key *[17]byte, ms int64) *peerBucket {
	b := l.peers[*key]
	if b == nil {
		if len(l.peers) >= maxPeers {
			for k := range l.peers { // any one: map order is random
				delete(l.peers, k)
				break
			}
		}
		b = &peerBucket{last: ms - 60000}
		l.peers[*key] = b
	}
	return b
}

func (b *peerBucket) take(cost, burst, ms int64) bool {
	b.tokens = min(b.tokens+ms-b.last, burst)
	b.last = ms
	if b.tokens < cost {
		return false
	}
	b.tokens -= cost
	return true
}

// redirectLimiter holds back ICMP redirects to a host that does not heed them
// (ip_rt_send_redirect): nine at most, ever slower, and silence then.
type redirectLimiter struct {
	mu    sync.Mutex
	hosts map[[16]byte]*redirectState
}

type redirectState struct {
	sent int
	last int64 // ms
}

const (
	redirectNumber  = 9
	redirectLoad    = 20    // ms
	redirectSilence = 20480 // ms
)

func newRedirectLimiter() *redirectLimiter {
	return &redirectLimiter{hosts: map[[16]byte]*redirectState{}}
}

func (l *redirectLimiter) allow(host [16]byte, now int64) bool {
	ms := now / 1e6
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hosts[host]
	if h == nil {
		if len(l.hosts) >= maxPeers {
			clear(l.hosts)
		}
		h = &redirectState{last: ms - redirectSilence - 1}
		l.hosts[host] = h
	}
	if ms-h.last > redirectSilence {
		h.sent = 0
	}
	if h.sent >= redirectNumber {
		h.last = ms
		return false
	}
	if h.sent == 0 || ms > h.last+redirectLoad<<h.sent {
		h.last = ms
		h.sent++
		return true
	}
	return false
}
