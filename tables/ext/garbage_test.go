package ext

import (
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"sluice/hooks"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

type noRoutes struct{}

func (noRoutes) AddrType(uint8, [16]byte, *packet.Iface) uint8                 { return 1 }
func (noRoutes) ReversePath(*packet.Packet, bool, bool, bool) bool             { return true }
func (noRoutes) SourceFor(uint8, *packet.Iface, [16]byte) (a [16]byte, b bool) { return }
func (noRoutes) FirstAddr(uint8, *packet.Iface) (a [16]byte, b bool)           { return }
func (noRoutes) Ifaces() []*packet.Iface                                       { return nil }
func (noRoutes) PathMTU(*packet.Packet, bool) int                              { return 1280 }

// TestGarbage runs packets of every kind, whole, cut and scribbled on, through
// every rule that testdata accepts: none may panic.
func TestGarbage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var frames [][]byte
	for _, d := range []string{
		"tcp 10.0.0.2:5000 > 9.9.9.9:80 S mss=1460", "tcp 10.0.0.2:5000 > 9.9.9.9:80 A len=40", "udp 10.0.0.2:5000 > 9.9.9.9:53 len=30 opts=94040000",
		"udp 10.0.0.2 > 9.9.9.9 frag=8 len=16", "icmp 10.0.0.2 > 9.9.9.9 type=8 id=1", "icmp 10.0.0.2 > 9.9.9.9 type=3/4 about udp 9.9.9.9:1 > 1.2.3.4:5",
		"sctp 10.0.0.2:1 > 9.9.9.9:2 hex=0001000401000004", "dccp 10.0.0.2:1 > 9.9.9.9:2 len=20", "esp 10.0.0.2 > 9.9.9.9 len=20", "253 10.0.0.2 > 9.9.9.9",
		"tcp [fd01::2]:5000 > [fd09::9]:80 S mss=1440", "udp [fd01::2]:5000 > [fd09::9]:53 ext=hop,dest len=9", "icmp6 fd01::2 > fd09::9 type=128 id=3",
		"udp fd01::2 > fd09::9 frag=16 len=16", "sctp [fd01::2]:1 > [fd09::9]:2 hex=0001000401000004", "59 fd01::2 > fd09::9 len=3",
	} {
		frames = append(frames, packettest.MustFrame(d))
	}
	in, out := packet.NewIface(2, "lan0", 1500), packet.NewIface(3, "wan0", 1500)
	rules := 0
	for _, name := range files(t) {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			s := parseSection(t, f.Name)
			if s.kind != "accept" {
				continue
			}
			b := newBench(t)
			b.env.Routes = noRoutes{}
			for h := range hooks.NumHooks {
				if h.String() == s.chain {
					b.ctx.Hook = h
				}
			}
			first := tables.NewEngine(s.family, b.env)
			for _, text := range strings.Split(string(f.Data), "\n") {
				l, ok := parseLine(text)
				if !ok {
					s.prepare(t, first, text)
					continue
				}
				parsed, err := tables.ParseRule(Registry, s.family, s.table, s.chain, packettest.Words(l.input))
				if err != nil || parsed[0].Jump != "" {
					continue
				}
				e := tables.NewEngine(s.family, b.env)
				err = e.Commit(func(rs *tables.Ruleset) error { return rs.Table(s.table).Append(s.chain, parsed[0]) })
				if err != nil {
					t.Errorf("%s: %s: %v", name, l.input, err)
					continue
				}
				rules++
				pr := e.Program()
				b.ctx.Prepare(pr)
				for range 60 {
					fr := frames[rnd.IntN(len(frames))]
					p := packet.New()
					p.SetBytes(fr)
					if (p.Bytes()[0]>>4 == 4) != (s.family == packet.IPv4) {
						continue
					}
					for range rnd.IntN(4) {
						p.Bytes()[1+rnd.IntN(len(fr)-1)] = byte(rnd.Uint32())
					}
					if rnd.IntN(2) == 0 {
						p.End -= rnd.IntN(len(fr) - 10)
						if n := p.Len(); s.family == packet.IPv4 && n >= 20 {
							p.Bytes()[2], p.Bytes()[3] = byte(n>>8), byte(n)
							p.FixHeader()
						} else if n >= 40 {
							p.Bytes()[4], p.Bytes()[5] = byte((n-40)>>8), byte(n-40)
						}
					}
					if p.Parse() != 0 {
						continue
					}
					if s.table != tables.Raw && rnd.IntN(2) == 0 {
						b.ctx.CT.Track(p, uint8(hooks.Prerouting))
					}
					if rnd.IntN(4) > 0 {
						p.In = in
					}
					if rnd.IntN(4) > 0 {
						p.Out = out
					}
					p.Now = int64(rnd.Uint32())
					pr.Run(&b.ctx, s.table, p)
					b.ctx.CT.Release(p)
				}
			}
		}
	}
	if rules < 300 {
		t.Errorf("only %d rules ran", rules)
	}
}
