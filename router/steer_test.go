package router

import (
	"fmt"
	"net/netip"
	"testing"

	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/packettest"
)

// steered is a device in memory with a queue for each worker.
type steered struct {
	iface *packet.Iface
	q     []*steeredQueue
}

type steeredQueue struct {
	memLink
	held []*packet.Packet
	lost func(*packet.Packet)
	down bool
}

func (l *steered) Iface() *packet.Iface       { return l.iface }
func (l *steered) Queues() int                { return len(l.q) }
func (l *steered) Queue(i int) netstack.Queue { return l.q[i] }
func (l *steered) SetMTU(int) error           { return nil }
func (l *steered) Close() error               { return nil }
func (l *steered) Steered()                   {}

func (q *steeredQueue) OnLoss(f func(*packet.Packet)) { q.lost = f }
func (q *steeredQueue) Hold(p *packet.Packet)         { q.held = append(q.held, p) }

func (q *steeredQueue) Flush() error {
	for _, p := range q.held {
		if q.down {
			p.Reason = netstack.ReasonLinkDown
			q.lost(p)
		} else {
			q.Write(p)
		}
	}
	q.held = nil
	return nil
}

func steeredRouter(t *testing.T) (*Router, map[string]*steered) {
	links := map[string]*steered{}
	cfg := &Config{
		Router: RouterConfig{Workers: 2},
		Interfaces: []InterfaceConfig{
			{Name: "lan0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
			{Name: "wan0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
		},
		Routes: []RouteConfig{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("198.51.100.2"), Dev: "wan0"}},
	}
	r, err := New(cfg, Options{Open: func(c *InterfaceConfig, index int) (netstack.Link, error) {
		l := &steered{iface: packet.NewIface(index, c.Name, 1500)}
		for range 2 {
			l.q = append(l.q, &steeredQueue{memLink: memLink{keep: true}})
		}
		links[c.Name] = l
		return l, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, links
}

// TestHome: whichever worker a packet comes to, it leaves by the queue of the
// worker that saw its connection's first; so the device stops dealing a flow
// out to both.
func TestHome(t *testing.T) {
	r, links := steeredRouter(t)
	frame := func(s string) []byte {
		b, err := packettest.Frame(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for port := 1000; port < 1008; port++ {
		home := port & 1
		there := frame(fmt.Sprintf("udp 10.0.0.2:%d > 9.9.9.9:53 len=8", port))
		back := frame(fmt.Sprintf("udp 9.9.9.9:53 > 10.0.0.2:%d len=8", port))
		for i, c := range []struct {
			in, out string
			worker  int
			frame   []byte
		}{{"lan0", "wan0", home, there}, {"wan0", "lan0", 1 - home, back}, {"lan0", "wan0", 1 - home, there}, {"wan0", "lan0", home, back}} {
			links[c.in].q[c.worker].in = [][]byte{c.frame}
			r.Step(c.worker)
			q := links[c.out].q
			if len(q[home].out) != 1 || len(q[1-home].out) != 0 {
				t.Fatalf("port %d, packet %d: %d and %d packets left by the queues 0 and 1, home is %d", port, i, len(q[0].out), len(q[1].out), home)
			}
			q[home].out = nil
		}
	}
}

// TestHeldLoss: what a device refuses at the end of a burst is counted as lost.
func TestHeldLoss(t *testing.T) {
	r, links := steeredRouter(t)
	b, err := packettest.Frame("udp 10.0.0.2:1000 > 9.9.9.9:53 len=8")
	if err != nil {
		t.Fatal(err)
	}
	for _, down := range []bool{false, true} {
		for _, q := range links["wan0"].q {
			q.down = down
		}
		links["lan0"].q[0].in = [][]byte{b, b, b}
		r.Step(0)
	}
	s := r.Status()
	var lost uint64
	for _, d := range s.Drops {
		if d.Reason == netstack.ReasonLinkDown.String() {
			lost = d.Packets
		}
	}
	for _, i := range s.Interfaces {
		if i.Name == "wan0" && (i.TxPackets != 3 || i.TxErrors != 3) {
			t.Errorf("%d packets sent, %d errors", i.TxPackets, i.TxErrors)
		}
	}
	if lost != 3 {
		t.Errorf("%d packets counted as lost; %+v", lost, s.Drops)
	}
}
