package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/packet"
)

// A testWire joins Locals as a router without rules would: what one sends is
// delivered to the one that owns the destination, itself included.
type testWire struct {
	t     testing.TB
	hosts []*testHost
	stop  chan struct{}
	wg    sync.WaitGroup

	// see, if set, looks at each packet on its way and may take it (false).
	see atomic.Pointer[func(from *testHost, p *packet.Packet) bool]
	// split makes the wire one without offload.
	split bool
}

type testHost struct {
	*Local
	name  string
	addrs []netip.Prefix
	rings *LocalRings
	kick  chan struct{}
	wire  *testWire
	mtu   atomic.Int64
}

func (w *testWire) watch(f func(from *testHost, p *packet.Packet) bool) { w.see.Store(&f) }

// newWire makes one host for each list of addresses.
func newWire(t testing.TB, tune func(*LocalOptions), hosts ...[]string) *testWire {
	t.Helper()
	w := &testWire{t: t, stop: make(chan struct{})}
	for i, list := range hosts {
		h := &testHost{name: string(rune('a' + i)), kick: make(chan struct{}, 1), wire: w}
		h.mtu.Store(1500)
		h.rings = NewLocalRings(1, 0, func(int) {
			select {
			case h.kick <- struct{}{}:
			default:
			}
		})
		for _, a := range list {
			h.addrs = append(h.addrs, netip.MustParsePrefix(a))
		}
		opt := LocalOptions{Workers: len(hosts), Output: h.rings, PathMTU: func(netip.Addr) int { return int(h.mtu.Load()) }}
		if tune != nil {
			tune(&opt)
		}
		var err error
		if h.Local, err = NewLocal(opt); err != nil {
			t.Fatal(err)
		}
		if err := h.SetAddresses(h.addrs); err != nil {
			t.Fatal(err)
		}
		w.hosts = append(w.hosts, h)
	}
	for i, h := range w.hosts {
		w.wg.Add(1)
		go w.carry(i, h)
	}
	t.Cleanup(func() {
		for _, h := range w.hosts {
			h.Close()
		}
		close(w.stop)
		w.wg.Wait()
	})
	return w
}

// carry is host h's worker. Ring i of every host belongs to it alone.
func (w *testWire) carry(i int, h *testHost) {
	defer w.wg.Done()
	p, seg := packet.New(), packet.New()
	deliver := func(p *packet.Packet) {
		for _, to := range w.hosts {
			d := p.DstAddr()
			if !to.IsOwn(d) || d.IsLoopback() && to != h {
				continue
			}
			p.Worker = uint16(i)
			to.Deliver(p)
			return
		}
	}
	for {
		if !h.rings.Get(0, p) {
			if h.rings.Arm(0) {
				select {
				case <-h.kick:
				case <-w.stop:
					return
				}
			}
			continue
		}
		if f := w.see.Load(); f != nil && !(*f)(h, p) {
			continue
		}
		if !w.split {
			deliver(p)
			continue
		}
		packet.Segments(p, func(s *packet.Packet) {
			seg.SetBytes(s.Bytes())
			if r := seg.Parse(); r != 0 {
				w.t.Errorf("segment: %s", r)
				return
			}
			deliver(seg)
		})
	}
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// eventually polls until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
