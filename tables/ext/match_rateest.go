package ext

import (
	"fmt"
	"math"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
)

// bitRate is a rate in bytes per second in Value.Lo, written in bits or bytes
// with a unit, which may be left out: then it is 0.
type bitRate struct{}

func (bitRate) Args() int { return 0 }

func (bitRate) Takes(string) bool { return true }

var rateUnits = map[string]float64{"": 1, "bit": 1, "bps": 8}

func (bitRate) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if text[0] == "" {
		return nil
	}
	x, unit, ok := strtod(text[0])
	unit = strings.ToLower(unit)
	scale := 1.0
	if len(unit) > 3 {
		power, base := strings.IndexByte("kmgt", unit[0])+1, 1000.0
		rest := unit[1:]
		if strings.HasPrefix(rest, "i") {
			base, rest = 1024, rest[1:]
		}
		if power == 0 {
			ok = false
		}
		scale, unit = math.Pow(base, float64(power)), rest
	}
	k, known := rateUnits[unit]
	if !ok || !known {
		return tables.Usagef("rateest: could not parse rate `%s'", text[0])
	}
	v.Lo = uint64(toUint32(x * scale * k / 8))
	return nil
}

func (bitRate) Format(v *tables.Value) string {
	switch bits := float64(v.Lo) * 8; {
	case bits >= 1e9:
		return fmt.Sprintf("%.0fMbit", bits/1e6)
	case bits >= 1e6:
		return fmt.Sprintf("%.0fKbit", bits/1e3)
	default:
		return fmt.Sprintf("%.0fbit", bits)
	}
}

// packetRate is a number of packets per second; it may be left out.
type packetRate struct{}

func (packetRate) Args() int { return 0 }

func (packetRate) Takes(string) bool { return true }

func (packetRate) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if text[0] == "" {
		return nil
	}
	n, rest, ok := tables.Strtoul(text[0], 0, all32)
	if !ok || rest != "" {
		return tables.Usagef("rateest: could not parse pps `%s'", text[0])
	}
	v.Lo = n
	return nil
}

func (packetRate) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

// compareMode is --rateest-lt and its kin: the last one given, which has the
// highest Value.Lo, counts.
type compareMode struct{}

func (compareMode) Args() int { return 0 }

func (t compareMode) Parse(o *tables.OptionContext, _ []string, v *tables.Value) error {
	for _, m := range rateModes {
		if o.Args.Has("rateest-" + m) {
			v.Lo++
		}
	}
	return nil
}

func (compareMode) Format(*tables.Value) string { return "" }

var rateModes = []string{"lt", "gt", "eq"}

func rateestOptions() []tables.Option {
	text := func(o tables.Option) tables.Option {
		o.OnceText, o.NotText = "rateest: can't specify --"+o.Name+" twice", "rateest: "+strings.TrimRight(o.Name, "12")+" can't be inverted"
		return o
	}
	os := []tables.Option{
		text(tables.Option{Name: "rateest1", Aliases: []string{"rateest"}, Type: tables.String{Trim: 15}, Arg: "name", Doc: "an estimator, made by RATEEST"}),
		text(tables.Option{Name: "rateest2", Type: tables.String{Trim: 15}, Arg: "name", Doc: "another, to compare it with"}),
		text(tables.Option{Name: "rateest-delta", Type: tables.Flag, Doc: "compare how far the rates are below those given"}),
	}
	for _, m := range rateModes {
		o := text(tables.Option{Name: "rateest-" + m, Type: compareMode{}, Negatable: true, Multi: true, Doc: "the rate is less, greater, or equal"})
		os = append(os, o)
	}
	for _, n := range []string{"rateest-bps1", "rateest-bps2"} {
		os = append(os, text(tables.Option{Name: n, Type: bitRate{}, Arg: "[rate]", Doc: "a rate with its unit: 100kbit, 5mbps"}))
	}
	for _, n := range []string{"rateest-pps1", "rateest-pps2"} {
		os = append(os, text(tables.Option{Name: n, Type: packetRate{}, Arg: "[number]", Doc: "packets per second"}))
	}
	os[7].Aliases, os[9].Aliases = []string{"rateest-bps"}, []string{"rateest-pps"}
	return os
}

func rateMode(a *tables.Args) (name string, not bool) {
	last := uint64(0)
	for _, m := range rateModes {
		if v := a.Get("rateest-" + m); v.Set && v.Lo >= last {
			name, not, last = m, v.Not, v.Lo
		}
	}
	return name, not
}

// rateKinds says what is compared.
func rateKinds(a *tables.Args) (bytes, packets bool) {
	return a.Has("rateest-bps1") || a.Has("rateest-bps2"), a.Has("rateest-pps1") || a.Has("rateest-pps2")
}

var matchRateest = &tables.Match{
	Name:     "rateest",
	Families: tables.V4V6,
	Doc:      "Matches while the rate that a RATEEST rule measures is below, above or equal to a rate, or to another's.",
	Options:  rateestOptions(),
	Save:     rateestSave,
	List:     rateestList,
	Check: func(a *tables.Args, _ *tables.Place) error {
		m, _ := rateMode(a)
		bytes, packets := rateKinds(a)
		if m == "" || !bytes && !packets {
			return tables.Refuse(0, "rateest: there is nothing to compare")
		}
		for _, h := range a.State.([]*hold[estimator]) {
			if !h.state.defined {
				return tables.Refuse(syscall.ENOENT, "rateest: there is no estimator of this name")
			}
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		names := []string{a.Str("rateest1")}
		if a.Has("rateest2") {
			names = append(names, a.Str("rateest2"))
		}
		// An estimator may be defined by a rule that is compiled later: Check sees.
		var hs []*hold[estimator]
		for _, n := range names {
			h, err := estimators.take(a.Rule, env, 0, n, func(e *estimator) (*estimator, error) {
				if e == nil {
					e = &estimator{}
				}
				return e, nil
			})
			if err != nil {
				return nil, err
			}
			hs = append(hs, h)
		}
		a.State = hs
		return rateestPred(a, hs), nil
	},
}

func rateestPred(a *tables.Args, hs []*hold[estimator]) tables.Pred {
	mode, not := rateMode(a)
	bytes, packets := rateKinds(a)
	delta := a.Has("rateest-delta")
	want := [2][2]uint64{{a.Num("rateest-bps1"), a.Num("rateest-pps1")}, {a.Num("rateest-bps2"), a.Num("rateest-pps2")}}
	compare := func(x, y uint64) bool {
		switch mode {
		case "lt":
			return x < y
		case "gt":
			return x > y
		}
		return x == y
	}
	return func(_ *tables.Context, p *packet.Packet) bool {
		var side [2][2]uint64
		side[1] = want[1]
		for i, h := range hs {
			b, n := h.state.rates(p.Now)
			if delta {
				b, n = below(want[i][0], b), below(want[i][1], n)
			}
			side[i] = [2]uint64{b, n}
		}
		ok := true
		if bytes {
			ok = compare(side[0][0], side[1][0])
		}
		if packets {
			ok = ok && compare(side[0][1], side[1][1])
		}
		return ok != not
	}
}

// below is how far x is below limit, 0 if it is above.
func below(limit, x uint64) uint64 {
	if limit >= x {
		return limit - x
	}
	return 0
}

func rateestSave(a *tables.Args) string {
	mode, not := rateMode(a)
	bytes, packets := rateKinds(a)
	delta, rel := a.Has("rateest-delta"), a.Has("rateest2")
	var s string
	cmp := " --rateest-" + mode
	if not {
		cmp = " ! --rateest-" + mode
	}
	if mode == "" {
		cmp = ""
	}
	if delta {
		s = " --rateest-delta"
	}
	rate := func(kind string, n string) string {
		v := a.Get("rateest-" + kind + n)
		if kind == "bps" {
			return " --rateest-bps" + n + " " + bitRate{}.Format(v)
		}
		return " --rateest-pps" + n + " " + packetRate{}.Format(v)
	}
	var kinds []string
	if bytes {
		kinds = append(kinds, "bps")
	}
	if packets {
		kinds = append(kinds, "pps")
	}
	if rel {
		s += " --rateest1 " + quoteWord(a.Str("rateest1"))
		for _, k := range kinds {
			if delta {
				s += rate(k, "1")
			}
		}
		s += cmp
		for _, k := range kinds {
			if delta {
				s += rate(k, "2")
			} else {
				s += " --rateest-" + k
			}
		}
		return s + " --rateest2 " + quoteWord(a.Str("rateest2"))
	}
	s += " --rateest " + quoteWord(a.Str("rateest1"))
	for _, k := range kinds {
		if delta {
			s += rate(k, "1") + cmp + rate(k, "2")
		} else {
			s += cmp + strings.Replace(rate(k, "2"), k+"2 ", k+" ", 1)
		}
	}
	return s
}

func rateestList(a *tables.Args, numeric bool) string {
	mode, not := rateMode(a)
	bytes, packets := rateKinds(a)
	delta, rel := a.Has("rateest-delta"), a.Has("rateest2")
	cmp := " " + mode
	if not {
		cmp = " ! " + mode
	}
	rate := func(kind, n string) string {
		v := a.Get("rateest-" + kind + n)
		if kind == "bps" && !numeric {
			return " " + bitRate{}.Format(v)
		}
		return fmt.Sprint(" ", v.Lo)
	}
	s := " rateest match " + a.Str("rateest1")
	if delta {
		s += " delta"
	}
	side := func(n string) (t string) {
		for i, k := range []string{"bps", "pps"} {
			if i == 0 && !bytes || i == 1 && !packets {
				continue
			}
			t += " " + k
			if delta {
				t += rate(k, n)
			}
		}
		return t
	}
	if rel {
		return s + side("1") + cmp + " " + a.Str("rateest2") + side("2")
	}
	if bytes {
		s += " bps"
		if delta {
			s += rate("bps", "1")
		}
		s += rate("bps", "2") + cmp
	}
	if packets {
		s += " pps"
		if delta {
			s += rate("pps", "1")
		}
		s += cmp + rate("pps", "2")
	}
	return s
}
