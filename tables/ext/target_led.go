package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

// ledDelay is a time in ms, or "inf", which is all ones.
type ledDelay struct{}

func (ledDelay) Args() int { return 1 }

func (ledDelay) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if v.Lo = all32; text[0] == "inf" {
		return nil
	}
	n, rest, ok := tables.Strtoul(text[0], 0, all32)
	if !ok || rest != "" {
		return tables.Usagef("Delay value must be within range 0..%d", uint64(all32))
	}
	v.Lo = n
	return nil
}

func (ledDelay) Format(v *tables.Value) string {
	if v.Lo == all32 {
		return "inf"
	}
	return fmt.Sprint(v.Lo)
}

var targetLED = &tables.Target{
	Name:     "LED",
	Families: tables.V4V6,
	Doc:      "Blinks a light. The router has none: the rule counts, and nothing else happens.",
	Options: []tables.Option{
		{Name: "led-trigger-id", Type: quotedText{}, Required: true, Arg: "name", Doc: "the trigger's name"},
		{Name: "led-delay", Type: ledDelay{}, Arg: "ms|inf", Doc: "how long it stays on"},
		{Name: "led-always-blink", Type: tables.Flag, Doc: "blink also when it is on"},
	},
	List: func(a *tables.Args, _ bool) string {
		s := " led-trigger-id:" + quotedText{}.Format(a.Get("led-trigger-id"))
		if v := a.Get("led-delay"); v.Set && v.Lo != 0 {
			s += " led-delay:" + ledDelay{}.Format(v)
			if v.Lo != all32 {
				s += "ms"
			}
		}
		if a.Has("led-always-blink") {
			s += " led-always-blink"
		}
		return s
	},
	Compile: func(*tables.Args, *tables.Env) (tables.TargetFunc, error) {
		return func(*tables.Context, *packet.Packet) tables.Result { return tables.Continue }, nil
	},
}

// quotedText is a text that is always printed in quotes.
type quotedText struct{}

func (quotedText) Args() int { return 1 }

func (quotedText) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if text[0] == "" {
		return tables.Usagef("Argument must have a minimum length of 1 characters\n")
	}
	v.Str = text[0]
	return nil
}

func (quotedText) Format(v *tables.Value) string { return patternQuote(v.Str) }
