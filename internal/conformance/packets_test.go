package conformance

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// networks are what random scenarios happen in; a namespace is made for each.
var networks = [][]string{
	nil,
	{
		"listen udp://10.1.0.1:53", "listen udp://[fd01::1]:53", "mtu tun1 1400", "addr tun1 10.2.0.7/24", "addr tun1 fd02::7/64",
		"rule fwmark 0x1/0xf table 100", "route default via 10.3.0.2 dev tun2 table 100", "route default via fd03::2 dev tun2 table 100",
		"rule fwmark 0x2/0xf type blackhole", "route blackhole 10.51.0.0/16", "route unreachable fd50::/64",
	},
	{
		"sysctl net.ipv4.conf.all.rp_filter=1", "sysctl net.ipv4.conf.tun2.rp_filter=2", "sysctl net.netfilter.nf_conntrack_tcp_loose=0",
		"route 10.40.0.0/16 via 10.3.0.2 dev tun2", "route fd40::/64 via fd03::2 dev tun2",
		"rule fwmark 0x1/0x1 table 100", "route default via 10.1.0.9 dev tun0 table 100", "route default via fd01::9 dev tun0 table 100",
	},
}

// patience are timeouts that end no connection while a case lasts, on a busy
// machine, either. No two of a protocol are alike.
var patience = []string{
	"sysctl net.netfilter.nf_conntrack_tcp_timeout_close=45", "sysctl net.netfilter.nf_conntrack_sctp_timeout_closed=40",
	"sysctl net.netfilter.nf_conntrack_sctp_timeout_cookie_wait=50", "sysctl net.netfilter.nf_conntrack_sctp_timeout_cookie_echoed=60",
	"sysctl net.netfilter.nf_conntrack_sctp_timeout_shutdown_sent=70", "sysctl net.netfilter.nf_conntrack_sctp_timeout_shutdown_recd=80",
	"sysctl net.netfilter.nf_conntrack_sctp_timeout_shutdown_ack_sent=90",
}

// bench is the kernel and all of ours in one network, for any number of scenarios.
type bench struct {
	k       *kernelSide
	ours    []*ourSide
	watch   *watch
	refused *atomic.Int64 // counts the scenarios whose rules nobody takes; may be nil
}

// newBench makes one; the test's goroutine stays in the kernel's namespace.
func newBench(t testing.TB, net []string, offload bool) *bench {
	t.Helper()
	net = slices.Concat([]string{"sysctl net.ipv4.conf.all.send_redirects=0"}, patience, net) // redirects come at a rate
	for i := range 3 {
		net = append(net, fmt.Sprintf("sysctl net.ipv4.conf.tun%d.send_redirects=0", i))
	}
	s := &scenario{net: net}
	b := &bench{watch: newWatch()}
	for _, v := range variants(offload) {
		v.clock = b.watch.now.Load
		b.ours = append(b.ours, newOurSide(t, s, v))
	}
	b.k = newKernelSide(t, s, b.ours[0].r, offload)
	return b
}

// try takes all sides through s and tells how they differ.
func (b *bench) try(s *scenario) []string {
	got := *s
	c := compare{s: &got, k: b.k, before: b.watch.look}
	why := b.k.load(s)
	for _, o := range b.ours {
		ours := o.load(s)
		if (ours != "") != (why != "") {
			return []string{fmt.Sprintf("rules: the kernel says %.120q, we %.120q", why, ours)}
		}
		c.add(o)
	}
	if why != "" {
		if b.refused != nil {
			b.refused.Add(1)
		}
		return nil
	}
	c.run()
	return c.diffs()
}

// TestPackets is random scenarios. Each failing one is told with its seed, cut
// down to what it takes to fail. The seed says which network it is in, and
// whether devices offload: in the long form there is a case of each.
func TestPackets(t *testing.T) {
	layer(t, "packets")
	needRoot(t)
	probe(t)
	var wg sync.WaitGroup
	var tried, chances, refused atomic.Int64
	defer func() {
		wg.Wait()
		t.Logf("by chance: %d; rules that both refuse: %d", chances.Load(), refused.Load())
		all := tried.Load()
		if n := chances.Load(); n > 2+all/500 {
			t.Errorf("%d of %d cases differed once and not again: too many for chance", n, all)
		}
		if n := refused.Load(); n > 2+all/50 {
			t.Errorf("%d of %d cases have rules that both sides refuse: they try nothing", n, all)
		}
	}()
	end := *seed + uint64(*cases)
	run := func(next, step uint64, offload bool) {
		if next >= end {
			return
		}
		wg.Add(1)
		go func() { // on a thread of its own, which stays in the kernel's namespace
			defer wg.Done()
			net, _ := place(next)
			b := newBench(t, net, offload)
			b.refused = &refused
			for failed := 0; next < end && failed < *failures; next += step {
				s := newGenerator(next).scenario(net)
				start := time.Now()
				tried.Add(1)
				diffs := b.try(s)
				if took := time.Since(start); len(diffs) > 0 {
					// Both sides draw numbers: what is left to chance does not come
					// twice. It is told and counted, so that nothing hides there.
					first := diffs
					if diffs = b.try(s); len(diffs) == 0 {
						if took < time.Second { // else the machine is slow, and timeouts are short
							chances.Add(1)
						}
						t.Logf("seed %d: not again, so by chance:\n%s", next, strings.Join(first, "\n"))
					}
				}
				results.count("packets", 1, len(s.steps)*len(b.ours), min(1, len(diffs)))
				if len(diffs) == 0 {
					continue
				}
				failed++
				if !*brief {
					s, diffs = b.shrink(s, diffs)
				}
				t.Errorf("make conformance LAYER=packets CASES=1 SEED=%d (offload %v)\n%s\n%s", next, offload, s.format(false), strings.Join(diffs, "\n"))
			}
		}()
	}
	for at := range places * shards() {
		if next := *seed + at; *long {
			step := places * shards() / 2
			run(*seed+at%step, step, at >= step)
		} else {
			_, offload := place(next)
			run(next, places*shards(), offload)
		}
	}
}

// A case waits for the kernel most of the time, so several run side by side:
// shards in each of the places.
func shards() uint64 {
	if *long {
		return 6
	}
	return 3
}

var places = uint64(2 * len(networks))

// place is where a seed's case happens.
func place(seed uint64) (net []string, offload bool) {
	n := uint64(len(networks))
	return networks[seed%n], seed/n%2 == 1
}

// shrink leaves rules and frames out as long as there is a difference: many at
// a time at first.
func (b *bench) shrink(s *scenario, diffs []string) (*scenario, []string) {
	end := time.Now().Add(20 * time.Second)
	for n := s.pieces() / 2; n > 0; {
		smaller := false
		for i := s.pieces() - n; ; i = max(i-n, 0) {
			if time.Now().After(end) {
				return s, diffs
			}
			if x := s.without(i, n); x != nil {
				if d := b.try(x); len(d) > 0 && !strings.HasPrefix(d[0], "rules: ") {
					s, diffs, smaller = x, d, true
				}
			}
			if i == 0 || i >= s.pieces() {
				break
			}
		}
		if n = min(n, s.pieces()); !smaller || n > 1 {
			n /= 2
		}
	}
	return s, diffs
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the kernel is asked in a network namespace")
	}
}
