package router

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

// twenty is 20 filter rules, of which the last but one accepts, with conntrack and MASQUERADE.
func twenty() *Config {
	rules := []string{"-A FORWARD -m conntrack --ctstate INVALID -j DROP"}
	for i := range 17 {
		rules = append(rules, fmt.Sprintf("-A FORWARD -s 172.16.%d.0/24 -p tcp --dport %d -j DROP", i, 1000+i))
	}
	rules = append(rules, "-A FORWARD -j ACCEPT", "-A FORWARD -j DROP")
	return edge(map[string][]string{"filter": rules, "nat": {"-A POSTROUTING -o wan0 -j MASQUERADE"}})
}

// TestNoAllocations: a packet of a tracked flow, in either direction, allocates nothing.
func TestNoAllocations(t *testing.T) {
	b := newBed(t, twenty())
	out := frame(t, "udp 10.0.1.2:5000 > 9.9.9.9:53 len=18")
	back := frame(t, "udp 9.9.9.9:53 > 198.51.100.1:5000 len=18")
	b.send("lan0", out)
	b.send("wan0", back)
	for _, l := range b.links {
		l.keep = false
	}
	w := b.w
	w.begin(b.r.clock())
	defer w.end()
	for name, x := range map[string]struct {
		in    string
		frame []byte
	}{"out": {"lan0", out}, "back": {"wan0", back}} {
		d := w.port(b.links[x.in].iface)
		sent := d.rxPackets
		n := testing.AllocsPerRun(1000, func() {
			w.batch[0].SetBytes(x.frame)
			w.burst(d, w.batch[:1])
		})
		if n != 0 {
			t.Errorf("%s: %v allocations a packet", name, n)
		}
		if d.rxPackets == sent || b.drops() != 0 {
			t.Fatalf("%s: the packets did not pass: %v", name, w.drops)
		}
	}
}

func (b *bed) drops() (n uint64) {
	for _, d := range b.w.drops {
		n += d
	}
	return n
}

// TestNoLocks: two workers under load, with rules edited and connections read
// beside them, never wait for a lock.
func TestNoLocks(t *testing.T) {
	defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(1))
	b := newBeds(t, twenty(), 2)
	for _, l := range b.links {
		l.keep = false
	}
	var workers, beside sync.WaitGroup
	stop := make(chan struct{})
	for i, w := range b.r.workers {
		// Each flow runs out on one worker and back on the other.
		out := frame(t, fmt.Sprintf("udp 10.0.1.%d:5000 > 9.9.9.9:53 len=18", i+2))
		back := frame(t, fmt.Sprintf("udp 10.0.1.%d:5000 > 9.9.9.9:53 len=18", 3-i))
		workers.Go(func() {
			for range 3000 {
				w.begin(b.r.clock())
				d := w.port(b.links["lan0"].iface)
				for range 32 {
					w.batch[0].SetBytes(out)
					w.batch[1].SetBytes(back)
					w.burst(d, w.batch[:2])
				}
				w.end()
			}
		})
	}
	var contended sync.Mutex
	for range 2 {
		beside.Go(func() { // the control: this lock has to show
			for {
				select {
				case <-stop:
					return
				default:
				}
				contended.Lock()
				runtime.Gosched()
				contended.Unlock()
				b.r.ct.Each(func(*conntrack.Snapshot) bool { return true })
				b.r.ct.Housekeep(b.r.clock())
				if err := b.r.Engine(packet.IPv4).Commit(func(*tables.Ruleset) error { return nil }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	beside.Wait()
	var prof bytes.Buffer
	if err := pprof.Lookup("mutex").WriteTo(&prof, 1); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(prof.String(), "TestNoLocks") {
		t.Error("the profile does not show the lock that this test contends for")
	}
	for _, record := range strings.Split(prof.String(), "\n\n") {
		record = strings.ReplaceAll(record, "sync.(*WaitGroup).Go", "") // what began the worker
		if strings.Contains(record, "(*worker).") && strings.Contains(record, "\tsync.") {
			t.Errorf("a worker waited for a lock:\n%s", record)
		}
	}
}
