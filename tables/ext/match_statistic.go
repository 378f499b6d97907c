package ext

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	"sluice/packet"
	"sluice/tables"
)

const (
	statRandom = iota
	statNth
)

var statisticMode = oneWord{[]string{"random", "nth"}, "Bad mode \"%s\""}

// probability is a number from 0 to 1, in Value.Lo in units of 2^-31.
type probability struct{}

func (probability) Args() int { return 1 }

func (probability) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	p, rest, ok := strtod(text[0])
	if !ok || rest != "" || p < 0 || p > 1 {
		return tables.Usagef("%s: bad value for option \"--%s\", or out of range (0-1).\n", o.Ext, o.Name)
	}
	v.Lo = uint64(toUint32(math.Round(p * (1 << 31))))
	return nil
}

func (probability) Format(v *tables.Value) string {
	return strconv.FormatFloat(float64(v.Lo)/(1<<31), 'f', 11, 64)
}

// statLast is the most that --packet may be: --every and --probability are kept
// in one place, which has what was given last.
func statLast(a *tables.Args) uint64 {
	switch a.Last("every", "probability") {
	case "every":
		return a.Num("every") - 1
	case "probability":
		return a.Num("probability")
	}
	return 0
}

var matchStatistic = &tables.Match{
	Name:     "statistic",
	Families: tables.V4V6,
	Doc:      "Matches packets by chance, or every n'th.",
	Options: []tables.Option{
		{Name: "mode", Type: statisticMode, Required: true, Arg: "random|nth", Doc: "how packets are chosen"},
		{Name: "probability", Type: probability{}, Negatable: true, Excludes: []string{"every", "packet"}, Arg: "p", Doc: "random: how likely, from 0 to 1"},
		{Name: "every", Type: tables.Uint{Min: 1, Max: all32}, Negatable: true, Excludes: []string{"probability"}, Also: []string{"packet"}, Arg: "n", Doc: "nth: one packet of so many"},
		{Name: "packet", Type: tables.U32, Excludes: []string{"probability"}, Also: []string{"every"}, Arg: "p", Doc: "nth: how many packets come before the first match, from 0 to n-1"},
	},
	First: func(a *tables.Args) error {
		switch {
		case a.Num("mode") == statRandom && !a.Has("probability"):
			return tables.Usagef("--probability must be specified when using random mode")
		case a.Num("mode") == statNth && !a.Has("every") && !a.Has("packet"):
			return tables.Usagef("--every and --packet must be specified when using nth mode")
		case a.Num("packet") > statLast(a):
			return tables.Usagef("the --packet p must be 0 <= p <= n-1")
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		if a.Num("mode") == statRandom {
			v := a.Get("probability")
			return " statistic mode random" + notOf(v) + " probability " + probability{}.Format(v)
		}
		v := a.Get("every")
		s := fmt.Sprintf(" statistic mode nth%s every %d", notOf(v), v.Lo)
		if n := a.Num("packet"); n != 0 {
			s += fmt.Sprintf(" packet %d", n)
		}
		return s
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		if a.Num("mode") == statRandom {
			v := *a.Get("probability")
			return func(*tables.Context, *packet.Packet) bool { return (uint64(rand.Uint32()>>1) < v.Lo) != v.Not }, nil
		}
		last, not := uint32(a.Num("every")-1), a.Not("every")
		count := new(atomic.Uint32)
		count.Store(last - uint32(a.Num("packet"))) // the first match comes after so many packets
		return func(*tables.Context, *packet.Packet) bool {
			for {
				n := count.Load()
				next := n + 1
				if n == last {
					next = 0
				}
				if count.CompareAndSwap(n, next) {
					return (next == 0) != not
				}
			}
		}, nil
	},
}
