package conformance

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"strings"
	"testing"
	"time"

	"sluice/internal/conntrackcmd"
	"sluice/internal/ipset"
	"sluice/internal/iptables"
	"sluice/netstack"
	"sluice/packet"
	"sluice/router"
)

// variant is one way of running sluice. What leaves it and what it counts is
// the same in all of them.
type variant struct {
	workers int
	offload bool         // the devices take super-packets
	forget  bool         // connections do not remember decisions
	clock   func() int64 // nil: the machine's
}

func (v variant) String() string {
	s := fmt.Sprintf("%d worker", v.workers)
	if v.workers > 1 {
		s += "s"
	}
	if v.offload {
		s += ", offload"
	}
	if v.forget {
		s += ", nothing remembered"
	}
	return s
}

// memLink is an interface in memory, with a queue for each worker.
type memLink struct {
	iface   *packet.Iface
	queues  []memQueue
	offload bool
	out     []sent
	scratch *packet.Packet
}

type memQueue struct {
	*memLink
	in []sending
}

func (l *memLink) Iface() *packet.Iface       { return l.iface }
func (l *memLink) Queues() int                { return len(l.queues) }
func (l *memLink) Queue(i int) netstack.Queue { return &l.queues[i] }
func (l *memLink) SetMTU(int) error           { return nil }
func (l *memLink) Close() error               { return nil }

func (q *memQueue) FD() int      { return -1 }
func (q *memQueue) Flush() error { return nil }

func (q *memQueue) Read(p *packet.Packet) error {
	if len(q.in) == 0 {
		return netstack.ErrAgain
	}
	p.SetBytes(q.in[0].b)
	p.GSO = q.in[0].gso
	q.in = q.in[1:]
	return nil
}

func (q *memQueue) Write(p *packet.Packet) error {
	x := q.scratch
	x.Copy(p)
	emit := func(s *packet.Packet) {
		g := s.GSO
		s.CompleteChecksum()
		q.out = append(q.out, sent{q.iface.Name, bytes.Clone(s.Bytes()), super(g.Type, g.Size)})
	}
	if q.offload || x.GSO.Type == packet.GSONone {
		emit(x)
	} else {
		packet.Segments(x, emit)
	}
	return nil
}

// super is what tells a super-packet; 0: none.
func super(typ uint8, size uint16) uint32 {
	if typ == packet.GSONone {
		return 0
	}
	return uint32(typ&^packet.GSOECN)<<16 | uint32(size)
}

// ourSide is a router in memory.
type ourSide struct {
	t       testing.TB
	r       *router.Router
	v       variant
	links   map[string]*memLink
	senders []func()
	sets    bool // there are some

	listeners []*listener
}

func newOurSide(t testing.TB, s *scenario, v variant) *ourSide {
	t.Helper()
	cfg, err := s.config()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Router.Workers, cfg.Router.Forgetful = v.workers, v.forget
	x := &ourSide{t: t, v: v, links: map[string]*memLink{}}
	x.r, err = router.New(cfg, router.Options{Clock: v.clock, Open: func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
		l := &memLink{iface: packet.NewIface(index, c.Name, c.MTU), offload: v.offload, scratch: packet.New()}
		for range v.workers {
			l.queues = append(l.queues, memQueue{memLink: l})
		}
		x.links[c.Name] = l
		return l, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.closeSenders()
		x.r.Close()
	})
	if len(s.sets) > 0 {
		if why := x.load(s); why != "" {
			t.Fatal(why)
		}
	}
	return x
}

func (x *ourSide) closeSenders() {
	for _, f := range x.senders {
		f()
	}
	x.senders = nil
}

// load makes the rules the scenario's, as on the kernel's side.
func (x *ourSide) load(s *scenario) string {
	x.closeSenders()
	x.settle(x.r.Local().Stats().Delivered-1, 0)
	if had := x.sets; s.lists() || had {
		x.sets = false
		if why := x.load(&scenario{}); why != "" {
			return why
		}
	}
	if len(s.sets)+len(s.rules[0])+len(s.rules[1]) == 0 {
		defer x.ipset("", "destroy")
		defer x.ipset("", "flush")
	}
	if x.sets = len(s.sets) > 0; x.sets {
		if out := x.ipset(strings.Join(s.sets, "\n")+"\n", "restore"); out != "" {
			return "ipset restore: " + out
		}
	}
	for f, prog := range []string{"iptables-restore", "ip6tables-restore"} {
		if code, _, errs := x.iptables(restore(s.rules[f]), prog); code != 0 {
			return fmt.Sprintf("%s: %d %s\n%s", prog, code, errs, restore(s.rules[f]))
		}
	}
	x.conntrack("-F")
	for _, l := range x.links {
		l.out = nil
	}
	return ""
}

func (x *ourSide) iptables(in string, argv ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = iptables.Run(x.r.IPTables(), argv, strings.NewReader(in), &out, &errs)
	return code, out.String(), errs.String()
}

// ipset gives what the command printed.
func (x *ourSide) ipset(in string, args ...string) string {
	var out bytes.Buffer
	ipset.Run(x.r.Sets(), append([]string{"ipset"}, args...), strings.NewReader(in), &out, &out, nil, nil)
	return out.String()
}

func (x *ourSide) members() string { return members(x.ipset("", "save")) }

func (x *ourSide) conntrack(args ...string) string {
	var out, errs bytes.Buffer
	conntrackcmd.Run(x.r.Conntrack(), args, nil, &out, &errs, nil)
	return out.String()
}

func (x *ourSide) do(st *step, frames []sending, more int) (out []sent) {
	x.t.Helper()
	for _, l := range x.links {
		l.out = nil
	}
	before := x.r.Local().Stats().Delivered
	switch st.verb {
	case "do":
		w := strings.Fields(st.text)
		if w[0] == "conntrack" {
			x.conntrack(w[1:]...)
		} else {
			x.iptables("", w...)
		}
	case "send":
		x.send(st.text)
		before-- // the socket's packet is on its way, as an answer would be
	default:
		for _, f := range frames {
			i := x.workerFor(f.b)
			q := &x.links[st.dev].queues[i]
			q.in = append(q.in, f)
			x.r.Step(i)
		}
	}
	x.settle(before, more)
	for i := range 3 {
		for _, o := range x.links[fmt.Sprint("tun", i)].out {
			if len(o.b) >= 40 && o.b[0]>>4 == 6 && o.b[24] == 0xff {
				continue
			}
			out = append(out, o)
		}
	}
	return out
}

// workerFor spreads frames over the workers with no regard to their flows.
func (x *ourSide) workerFor(b []byte) int {
	h := fnv.New32a()
	h.Write(b)
	return int(h.Sum32()>>7) % x.v.workers
}

// settle gives the local sockets the time to answer what was delivered to them.
func (x *ourSide) settle(before uint64, more int) {
	deadline := time.Now().Add(500 * time.Millisecond)
	for quiet := 0; quiet < 3 && x.r.Local().Stats().Delivered != before; {
		time.Sleep(100 * time.Microsecond)
		idle := x.r.Local().Idle()
		had := x.r.Local().Stats()
		for i := range x.v.workers {
			x.r.Step(i)
		}
		if !idle || x.r.Local().Stats() != had || x.left() < more && time.Now().Before(deadline) {
			quiet = 0
		} else {
			quiet++
		}
	}
}

func (x *ourSide) left() (n int) {
	for _, l := range x.links {
		n += len(l.out)
	}
	return n
}

func (x *ourSide) send(text string) {
	x.t.Helper()
	network, from, to, payload := parseSend(x.t, text)
	ctx, cancel := context.WithCancel(context.Background())
	x.senders = append(x.senders, cancel)
	connect := func() (net.Conn, error) {
		return x.r.Local().DialContext(ctx, network, from, to, netstack.Owner{})
	}
	if network == "tcp" {
		go connect()
		return
	}
	c, err := connect()
	if err != nil {
		x.t.Logf("send %s: %v", text, err)
		return
	}
	x.senders = append(x.senders, func() { c.Close() })
	c.Write(payload)
}

func (x *ourSide) tables(family uint8) string {
	prog := "iptables-save"
	if family == packet.IPv6 {
		prog = "ip6tables-save"
	}
	code, out, errs := x.iptables("", prog, "-c")
	if code != 0 {
		x.t.Fatalf("%s: %d %s", prog, code, errs)
	}
	return out
}

func (x *ourSide) flows(bool) string {
	return x.conntrack("-L", "-o", "extended", "-f", "ipv4") + x.conntrack("-L", "-o", "extended", "-f", "ipv6")
}
