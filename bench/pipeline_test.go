package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/router"
)

// link gives a worker frames from memory and throws away what it sends.
type link struct {
	iface *packet.Iface
	flows [][]byte
	order []uint32
	next  int
	left  int
}

func (l *link) Iface() *packet.Iface     { return l.iface }
func (l *link) Queues() int              { return 1 }
func (l *link) Queue(int) netstack.Queue { return l }
func (l *link) SetMTU(int) error         { return nil }
func (l *link) Close() error             { return nil }
func (l *link) FD() int                  { return -1 }
func (l *link) Flush() error             { return nil }

func (l *link) Write(*packet.Packet) error { return nil }

func (l *link) Read(p *packet.Packet) error {
	if l.left == 0 {
		return netstack.ErrAgain
	}
	l.left--
	f := l.flows[l.order[l.next]]
	if l.next++; l.next == len(l.order) {
		l.next = 0
	}
	p.End = p.Off + copy(p.Buf[p.Off:], f)
	return nil
}

// rules is n filter rules, the last of which accepts, with conntrack and MASQUERADE.
func rules(n int) *router.Config {
	c := &router.Config{
		Router: router.RouterConfig{Workers: 1},
		Interfaces: []router.InterfaceConfig{
			{Name: "lan0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}},
			{Name: "wan0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
		},
		Routes: []router.RouteConfig{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("198.51.100.2"), Dev: "wan0"}},
	}
	if n > 0 {
		f := &c.IPTables.Filter
		f.Rules = append(f.Rules, router.RuleLine{Text: "-A FORWARD -m conntrack --ctstate INVALID -j DROP"})
		for i := range n - 2 {
			f.Rules = append(f.Rules, router.RuleLine{Text: fmt.Sprintf("-A FORWARD -s 172.16.%d.0/24 -p tcp --dport %d -j DROP", i%256, 1000+i)})
		}
		f.Rules = append(f.Rules, router.RuleLine{Text: "-A FORWARD -j ACCEPT"})
		c.IPTables.NAT.Rules = []router.RuleLine{{Text: "-A POSTROUTING -o wan0 -j MASQUERADE"}}
	}
	return c
}

// pipeline runs 64-byte UDP packets of so many flows, in random order, through a router.
func pipeline(b *testing.B, cfg *router.Config, flows int) {
	b.Helper()
	in := &link{}
	for i := range flows {
		f, err := packettest.Frame(fmt.Sprintf("udp 10.%d.%d.%d:%d > 9.9.9.%d:53 len=36", 1+i>>16&0x7f, i>>8&0xff, i&0xff, 1024+i%60000, i%200))
		if err != nil {
			b.Fatal(err)
		}
		in.flows = append(in.flows, f)
	}
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(flows) {
		in.order = append(in.order, uint32(i))
	}
	r, err := router.New(cfg, router.Options{Open: func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
		l := in
		if c.Name != "lan0" {
			l = &link{}
		}
		l.iface = packet.NewIface(index, c.Name, 1500)
		return l, nil
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	in.left = flows
	r.Step(0) // the first packet of each flow
	b.ReportAllocs()
	b.ResetTimer()
	in.left = b.N
	r.Step(0)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps")
	s := r.Status()
	if got := s.Forwarded; got != uint64(b.N+flows) {
		b.Fatalf("%d of %d packets were forwarded; dropped: %v", got, b.N+flows, s.Drops)
	}
}

func BenchmarkPipeline(b *testing.B) {
	for _, flows := range []int{1000, 100000} {
		b.Run(fmt.Sprintf("route-only/flows=%d", flows), func(b *testing.B) { pipeline(b, rules(0), flows) })
		for _, n := range []int{20, 1000} {
			b.Run(fmt.Sprintf("rules=%d/flows=%d", n, flows), func(b *testing.B) { pipeline(b, rules(n), flows) })
		}
	}
}

// bare is the yardstick: parse, look up, rewrite, and nothing else.
type bareKey struct {
	src, dst uint32
	ports    uint32
	proto    uint8
}

type bareFlow struct {
	key  bareKey
	src  uint32
	port uint16
}

// BenchmarkBareLoop is the least that a NAT router can do for a packet: the
// copy, the header's fields, one look-up in an open-addressing table, a new
// source with both checksums.
func BenchmarkBareLoop(b *testing.B) {
	for _, flows := range []int{1000, 100000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			size := 1
			for size < 2*flows {
				size *= 2
			}
			table := make([]bareFlow, size)
			place := func(k bareKey) int {
				h := (uint64(k.src)*0x9e3779b97f4a7c15 ^ uint64(k.dst)<<32 ^ uint64(k.ports)) * 0xff51afd7ed558ccd
				return int(h>>40) & (size - 1)
			}
			var frames [][]byte
			for i := range flows {
				f, err := packettest.Frame(fmt.Sprintf("udp 10.%d.%d.%d:%d > 9.9.9.9:53 len=36", 1+i>>16&0x7f, i>>8&0xff, i&0xff, 1024+i%60000))
				if err != nil {
					b.Fatal(err)
				}
				frames = append(frames, f)
				k := keyOf(f)
				at := place(k)
				for table[at].key.proto != 0 {
					at = (at + 1) & (size - 1)
				}
				table[at] = bareFlow{k, 0xc6336401, uint16(1024 + i)}
			}
			order := rand.New(rand.NewPCG(1, 2)).Perm(flows)
			buf := make([]byte, 2048)
			missed := 0
			b.ResetTimer()
			for n := 0; n < b.N; n++ {
				f := buf[:copy(buf, frames[order[n%flows]])]
				k := keyOf(f)
				at := place(k)
				for table[at].key != k {
					if table[at].key.proto == 0 {
						missed++
						break
					}
					at = (at + 1) & (size - 1)
				}
				fl := &table[at]
				sum := uint32(^binary.BigEndian.Uint16(f[10:])) + ^k.src>>16 + ^k.src&0xffff + fl.src>>16 + fl.src&0xffff
				binary.BigEndian.PutUint32(f[12:], fl.src)
				binary.BigEndian.PutUint16(f[10:], ^fold(sum))
				sum = uint32(^binary.BigEndian.Uint16(f[26:])) + ^k.src>>16 + ^k.src&0xffff + fl.src>>16 + fl.src&0xffff + uint32(^binary.BigEndian.Uint16(f[20:])) + uint32(fl.port)
				binary.BigEndian.PutUint16(f[20:], fl.port)
				binary.BigEndian.PutUint16(f[26:], ^fold(sum))
				f[8]--
			}
			b.StopTimer()
			if missed > 0 {
				b.Fatal("flows were not found")
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps")
		})
	}
}

func keyOf(f []byte) bareKey {
	return bareKey{binary.BigEndian.Uint32(f[12:]), binary.BigEndian.Uint32(f[16:]), binary.BigEndian.Uint32(f[20:]), f[9]}
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}
