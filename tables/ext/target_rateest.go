package ext

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// estimator measures a rate as Linux's gen_estimator does: every interval the
// average moves towards what was counted in it. Nothing ticks; whoever looks
// makes up for the intervals that have passed.
type estimator struct {
	mu      spin
	defined bool
	estimatorTimes

	next                   int64 // end of the present interval, ns; 0: not begun
	bytes, packets         uint64
	lastBytes, lastPackets uint64
	avgBytes, avgPackets   uint64 // per second, times 256
}

// estimatorTimes are how often it moves, 0.25 s << interval, and how far, 2^-ewma.
type estimatorTimes struct{ interval, ewma int }

var estimators shared[estimator]

// catchUp ends the intervals that are over at now; mu is held.
func (e *estimator) catchUp(now int64) {
	length := int64(250_000_000) << e.interval
	if e.next == 0 {
		e.next = now + length
	}
	for n := 0; now >= e.next; n++ {
		step := func(avg *uint64, count, last uint64) {
			rate := (count - last) << (10 - e.interval)
			*avg += rate>>e.ewma - *avg>>e.ewma
		}
		step(&e.avgBytes, e.bytes, e.lastBytes)
		step(&e.avgPackets, e.packets, e.lastPackets)
		if e.bytes == e.lastBytes && n > 1<<10 && n > 64<<e.ewma { // nothing moves any more
			e.next += (now - e.next) / length * length
		}
		e.lastBytes, e.lastPackets = e.bytes, e.packets
		e.next += length
	}
}

// count adds a packet.
func (e *estimator) count(now int64, n int) {
	e.mu.lock()
	e.catchUp(now)
	e.bytes += uint64(n)
	e.packets++
	e.mu.unlock()
}

// rates are bytes and packets per second.
func (e *estimator) rates(now int64) (bytes, packets uint64) {
	e.mu.lock()
	e.catchUp(now)
	bytes, packets = e.avgBytes>>8, e.avgPackets>>8
	e.mu.unlock()
	return bytes, packets
}

// duration is a time in microseconds in Value.Lo, written with s, ms or us.
type duration struct{ what string }

func (duration) Args() int { return 1 }

func (t duration) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	x, unit, ok := strtod(text[0])
	switch strings.ToLower(unit) {
	case "s", "sec", "secs":
		x *= 1e6
	case "ms", "msec", "msecs":
		x *= 1e3
	case "us", "usec", "usecs", "":
	default:
		ok = false
	}
	if !ok {
		return tables.Usagef("RATEEST: bad %s value \"%s\"", t.what, text[0])
	}
	v.Lo = uint64(toUint32(x))
	return nil
}

func (duration) Format(v *tables.Value) string { return microseconds(v.Lo) }

func microseconds(n uint64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1fs", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1fms", float64(n)/1e3)
	}
	return fmt.Sprintf("%dus", n)
}

var targetRATEEST = &tables.Target{
	Name:     "RATEEST",
	Families: tables.V4V6,
	Doc:      "Measures the rate of the packets that come by, for the match rateest.",
	Options: []tables.Option{
		{Name: "rateest-name", Type: tables.String{Trim: 15}, Required: true, Arg: "name", Doc: "what it is called"},
		{Name: "rateest-interval", Type: duration{"interval"}, Required: true, Arg: "time", Doc: "how often it measures: 250ms to 8s"},
		{Name: "rateest-ewmalog", Type: duration{"ewmalog"}, Required: true, Arg: "time", Doc: "how long it remembers"},
	},
	First: func(a *tables.Args) error {
		interval, memory := float64(a.Num("rateest-interval")), float64(a.Num("rateest-ewmalog"))
		i := 0
		for i <= 5 && interval > float64(int(250_000)<<i) {
			i++
		}
		if i > 5 {
			return tables.Usagef("RATEEST: interval value is too large")
		}
		ewma := 1
		for ewma < 32 && interval/-math.Log(1-1/float64(int(1)<<ewma)) <= memory {
			ewma++
		}
		// What does not fit into 32 bits of microseconds could not be read back.
		if ewma--; ewma == 0 || ewma >= 31 || 250_000<<i<<ewma > all32 {
			return tables.Usagef("RATEEST: ewmalog value is out of range")
		}
		a.State = estimatorTimes{i, ewma}
		return nil
	},
	Final: func(a *tables.Args) error {
		t := a.State.(estimatorTimes)
		a.Set("rateest-interval", tables.Value{Lo: 250_000 << t.interval})
		a.Set("rateest-ewmalog", tables.Value{Lo: 250_000 << t.interval << t.ewma})
		return nil
	},
	Save: func(a *tables.Args) string {
		return fmt.Sprintf(" --rateest-name %s --rateest-interval %s --rateest-ewmalog %s", quoteWord(a.Str("rateest-name")),
			microseconds(a.Num("rateest-interval")), microseconds(a.Num("rateest-ewmalog")))
	},
	List: func(a *tables.Args, _ bool) string {
		return fmt.Sprintf(" name %s interval %s ewmalog %s", a.Str("rateest-name"),
			microseconds(a.Num("rateest-interval")), microseconds(a.Num("rateest-ewmalog")))
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		times := a.State.(estimatorTimes)
		h, err := estimators.take(a.Rule, env, 0, a.Str("rateest-name"), func(e *estimator) (*estimator, error) {
			if e == nil {
				e = &estimator{}
			}
			if e.defined && e.estimatorTimes != times {
				return nil, errors.New("RATEEST: another rule has this name with other times")
			}
			e.defined, e.estimatorTimes = true, times
			return e, nil
		})
		if err != nil {
			return nil, err
		}
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			h.state.count(p.Now, p.Len())
			return tables.Continue
		}, nil
	},
}
