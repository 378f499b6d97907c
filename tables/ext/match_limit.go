package ext

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"

	"sluice/packet"
	"sluice/tables"
)

// limitScale is the kernel's unit of a rate: ten thousandths of a second.
const limitScale = 10000

var limitUnits = []struct {
	name    string
	seconds uint64
}{{"second", 1}, {"minute", 60}, {"hour", 3600}, {"day", 86400}}

// rateType reads "5/minute" into Value.Lo, the average time between packets in
// ten thousandths of a second.
type rateType struct{}

func (rateType) Args() int { return 1 }

func (rateType) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	num, unit, has := strings.Cut(text[0], "/")
	mult := uint64(1)
	if has {
		mult = 0
		for _, u := range limitUnits {
			if unit != "" && len(unit) <= len(u.name) && strings.EqualFold(unit, u.name[:len(unit)]) {
				mult = u.seconds
				break
			}
		}
	}
	n := uint64(uint32(atoi(num)))
	if mult == 0 || n == 0 {
		return tables.Usagef("bad rate \"%s\"'", text[0])
	}
	v.Lo = limitScale * mult / n
	if v.Lo == 0 {
		return tables.Usagef("Rate too fast \"%s\"", text[0])
	}
	return nil
}

// Format finds the unit that shows the rate best, the day first, as iptables does.
func (rateType) Format(v *tables.Value) string {
	names := []string{"sec", "min", "hour", "day"}
	best := len(limitUnits) - 1
	for i := best - 1; i >= 0; i-- {
		mult := limitUnits[i].seconds * limitScale
		if v.Lo > mult || mult/v.Lo < mult%v.Lo {
			break
		}
		best = i
	}
	return fmt.Sprintf("%d/%s", limitUnits[best].seconds*limitScale/v.Lo, names[best])
}

// atoi reads the number at the beginning of s as C's does, which cuts it to an
// int; 0 without any.
func atoi(s string) int32 {
	s = strings.TrimLeft(s, " ")
	s, minus := strings.CutPrefix(s, "-")
	if !minus {
		s = strings.TrimPrefix(s, "+")
	}
	const most = 1<<63 - 1
	n := uint64(0)
	for i := 0; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		if d := uint64(s[i] - '0'); n <= (most-d)/10 {
			n = n*10 + d
		} else {
			n = most
		}
	}
	if minus {
		n = -n
	}
	return int32(n)
}

var matchLimit = &tables.Match{
	Name:     "limit",
	Families: tables.V4V6,
	Doc:      "Matches at a limited rate: a token bucket that the rule's packets share.",
	Options: []tables.Option{
		{Name: "limit", Type: rateType{}, Arg: "rate[/second|/minute|/hour|/day]", Doc: "average rate; default 3/hour"},
		{Name: "limit-burst", Type: tables.Uint{Max: 10000}, Arg: "number", Doc: "packets that may match at once before the rate counts; default 5"},
	},
	Final: func(a *tables.Args) error {
		if !a.Has("limit") {
			a.Set("limit", tables.Value{Lo: limitScale * 3600 / 3})
		}
		if !a.Has("limit-burst") || a.Num("limit-burst") == 0 {
			a.Set("limit-burst", tables.Value{Lo: 5})
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		s := " --limit " + rateType{}.Format(a.Get("limit"))
		if n := a.Num("limit-burst"); n != 5 {
			s += fmt.Sprintf(" --limit-burst %d", n)
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		return fmt.Sprintf(" limit: avg %s burst %d", rateType{}.Format(a.Get("limit")), a.Num("limit-burst"))
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		avg, burst := uint32(a.Num("limit")), uint32(a.Num("limit-burst"))
		cost, depth := limitCredits(avg), limitCredits(avg*burst)
		if depth < cost {
			return nil, tables.Refuse(syscall.ERANGE, "limit: a burst of %d at that rate is more than can be counted", burst)
		}
		return newBucket(int64(cost)*limitCredit, int64(depth)*limitCredit).match, nil
	},
}

// Linux counts in credits of 32 bits, and wraps around: so do the limits here.
const (
	creditsPerSecond = 32000
	limitCredit      = 1e9 / creditsPerSecond // ns
)

// limitCredits is a time in ten thousandths of a second as credits.
func limitCredits(x uint32) uint32 {
	if x > (1<<32-1)/creditsPerSecond {
		return x / limitScale * creditsPerSecond
	}
	return x * creditsPerSecond / limitScale
}

// bucket is a token bucket kept as one number: the time at which it will be full
// again. It is full at the start, and one compare-and-swap takes a token.
type bucket struct {
	cost, depth int64 // ns for a token, ns for all of them
	full        atomic.Int64
}

func newBucket(cost, depth int64) *bucket { return &bucket{cost: cost, depth: depth} }

func (b *bucket) match(_ *tables.Context, p *packet.Packet) bool {
	for {
		old := b.full.Load()
		next := max(old, p.Now) + b.cost
		if next-p.Now > b.depth {
			return false
		}
		if b.full.CompareAndSwap(old, next) {
			return true
		}
	}
}
