package ext

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync/atomic"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

// idleTimer is what rules with one label share.
type idleTimer struct {
	label string
	alarm bool
	until atomic.Int64 // on the packets' clock, ns
}

var idleTimers shared[idleTimer]

// IdleTimer is an IDLETIMER's state: whole Seconds until it runs out, 0 once it has.
type IdleTimer struct {
	Label   string `json:"label"`
	Seconds int64  `json:"seconds"`
	Alarm   bool   `json:"alarm,omitempty"`
}

// IdleTimers lists the timers of the router that ct belongs to, by label, at
// now on the packets' clock (ns).
func IdleTimers(ct *conntrack.Table, now int64) (out []IdleTimer) {
	idleTimers.each(ct, func(t *idleTimer) {
		left := max(t.until.Load()-now, 0)
		out = append(out, IdleTimer{t.label, left / 1e9, t.alarm})
	})
	sort.Slice(out, func(i, j int) bool { return out[i].Label < out[j].Label })
	return out
}

var targetIDLETIMER = &tables.Target{
	Name:     "IDLETIMER",
	Families: tables.V4V6,
	Doc:      "Starts a timer, and starts it anew with each packet; `sluice status` shows how long it runs yet. Rules with the same label share one.",
	Options: []tables.Option{
		{Name: "timeout", Type: tables.U32, Required: true, Arg: "seconds", Doc: "how long it runs without packets"},
		{Name: "label", Type: tables.String{Trim: 27}, Required: true, Arg: "name", Doc: "the timer's name"},
		{Name: "alarm", Type: tables.Flag, Doc: "a timer that wakes the machine; here, no other"},
	},
	Save: func(a *tables.Args) string {
		s := fmt.Sprintf(" --timeout %d --label %s", a.Num("timeout"), quoteWord(a.Str("label")))
		if a.Has("alarm") {
			s += " --alarm"
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		s := fmt.Sprintf(" timeout:%d label:%s", a.Num("timeout"), a.Str("label"))
		if a.Has("alarm") {
			s += " alarm"
		}
		return s
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		label := a.Str("label")
		switch {
		case a.Num("timeout") == 0, a.Num("timeout") >= (1<<31-1)/1000:
			return errors.New("IDLETIMER: the timeout is out of range")
		case label == "", label == "power", label == "subsystem", label == "uevent", strings.Contains(label, "/"):
			return errors.New("IDLETIMER: Linux cannot make a file of this label")
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		h, err := idleTimers.take(a.Rule, env, 0, a.Str("label"), func(t *idleTimer) (*idleTimer, error) {
			if t == nil {
				return &idleTimer{label: a.Str("label"), alarm: a.Has("alarm")}, nil
			}
			if t.alarm != a.Has("alarm") {
				return nil, errors.New("IDLETIMER: another rule has this label with another kind of timer")
			}
			return t, nil
		})
		if err != nil {
			return nil, err
		}
		length := int64(a.Num("timeout")) * 1e9
		if env.CT != nil { // Linux starts it with the rule, each rule anew
			h.state.until.Store(env.CT.Now() + length)
		}
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			// A whole second is as fine as it is read: no store for each packet.
			if until := p.Now + length; until-h.state.until.Load() > 1e8 {
				h.state.until.Store(until)
			}
			return tables.Continue
		}, nil
	},
}
