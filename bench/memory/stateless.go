package memory

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"time"

	"sluice/internal/iptables"
	"sluice/router"
)

// Mixed makes n rules of mixed shapes for a chain: prefixes of all lengths,
// address ranges, ports, lists of ports, interfaces, negations. The same n gives
// the same rules. The packets of the cases here match none of them.
func Mixed(chain string, n int) []string {
	rnd := rand.New(rand.NewPCG(7, uint64(n)))
	ip := func() string {
		return fmt.Sprintf("%d.%d.%d.%d", 11+rnd.IntN(150), rnd.IntN(256), rnd.IntN(256), rnd.IntN(256))
	}
	net := func() string { return fmt.Sprintf("%s/%d", ip(), 9+rnd.IntN(24)) }
	port := func() int { return 1 + rnd.IntN(65000) }
	out := make([]string, n)
	for i := range out {
		a, b := port(), port()
		if a > b {
			a, b = b, a
		}
		var s string
		switch rnd.IntN(10) {
		case 0:
			s = "-s " + net()
		case 1:
			s = fmt.Sprintf("-s %s -d %s", net(), net())
		case 2:
			s = fmt.Sprintf("-d %s -p tcp --dport %d", ip(), port())
		case 3:
			s = fmt.Sprintf("-p udp --sport %d:%d -s %s", a, b, net())
		case 4:
			s = fmt.Sprintf("-p tcp -m multiport --dports %d,%d,%d -d %s", port(), port(), port(), net())
		case 5:
			s = fmt.Sprintf("-i wan0 -s %s", net())
		case 6:
			s = fmt.Sprintf("! -i lan0 -d %s -p udp", net())
		case 7:
			s = fmt.Sprintf("-m iprange --src-range 172.16.%d.1-172.16.%d.9 -p udp", i>>8&0xff, i>>8&0xff)
		case 8:
			s = fmt.Sprintf("! -p udp -d %s", net())
		default:
			s = fmt.Sprintf("! -s 10.0.0.0/8 -p udp --dport %d", port())
		}
		out[i] = "-A " + chain + " " + s + " -j " + []string{"ACCEPT", "DROP"}[rnd.IntN(2)]
	}
	return out
}

func mixedConfig(n int) *router.Config {
	cfg := config(0, 1)
	f := &cfg.IPTables.Filter
	for _, s := range Mixed("FORWARD", n) {
		f.Rules = append(f.Rules, router.RuleLine{Text: s})
	}
	cfg.IPTables.Raw.Rules = []router.RuleLine{{Text: "-A PREROUTING -j NOTRACK"}}
	return cfg
}

// stateless sends packets that conntrack leaves alone through n rules.
type stateless struct {
	*bed
	sent uint64
}

func newStateless(n int) (Run, error) {
	b, err := newBed(mixedConfig(n), 1)
	if err != nil {
		return nil, err
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	b.lan.queues[0].frames = udpFrames(4096, func(int) flow {
		return flow{10<<24 | rnd.Uint32()>>8, 200<<24 | rnd.Uint32()>>8, uint16(1024 + rnd.IntN(60000)), uint16(65100 + rnd.IntN(400))}
	})
	s := &stateless{bed: b}
	runtime.GC() // of what loading left
	_, err = s.Do(4096)
	return s, err
}

func (s *stateless) Do(n int) (time.Duration, error) {
	s.lan.queues[0].left = n
	d := s.step()
	s.sent += uint64(n)
	return d, s.expect(s.sent)
}

// load replaces the filter table by one of n rules, or adds one rule at its end.
type load struct {
	*bed
	save string
	add  bool
}

func newLoad(n int, add bool) (Run, error) {
	b, err := newBed(config(0, 1), 1)
	if err != nil {
		return nil, err
	}
	l := &load{bed: b, add: add, save: "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" + strings.Join(Mixed("FORWARD", n), "\n") + "\nCOMMIT\n"}
	if add {
		if err := l.run(l.save, "iptables-restore"); err != nil {
			b.Close()
			return nil, err
		}
	}
	return l, nil
}

func (l *load) run(stdin string, argv ...string) error {
	var errs strings.Builder
	if code := iptables.Run(l.r.IPTables(), argv, strings.NewReader(stdin), &errs, &errs); code != 0 {
		return fmt.Errorf("%s: %s", argv[0], errs.String())
	}
	return nil
}

func (l *load) Do(n int) (time.Duration, error) {
	start := time.Now()
	for range n {
		var err error
		if l.add {
			err = l.run("", "iptables", "-A", "FORWARD", "-s", "10.0.0.0/8", "-p", "udp", "--dport", "53", "-j", "ACCEPT")
		} else {
			err = l.run(l.save, "iptables-restore")
		}
		if err != nil {
			return 0, err
		}
	}
	d := time.Since(start)
	return d, nil
}
