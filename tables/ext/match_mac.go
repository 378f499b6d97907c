package ext

import (
	"fmt"
	"strings"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// macAddr is an Ethernet address in the first six bytes of Value.A.
type macAddr struct{}

func (macAddr) Args() int { return 1 }

func (macAddr) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	parts := strings.Split(text[0], ":")
	for i, s := range parts {
		n, ok := hexByte(s)
		if !ok || len(parts) != 6 {
			return tables.Usagef("Invalid MAC address specified.")
		}
		v.A[i] = n
	}
	return nil
}

// hexByte reads at most two characters as C's strtol does: blanks and a sign
// may come first, and nothing is 0.
func hexByte(s string) (byte, bool) {
	if len(s) > 2 {
		return 0, false
	}
	d := strings.TrimLeft(s, " ")
	d, minus := strings.CutPrefix(d, "-")
	if !minus {
		d = strings.TrimPrefix(d, "+")
	}
	if d == "" && s != "" {
		return 0, false
	}
	n := 0
	for _, c := range strings.ToLower(d) {
		i := strings.IndexRune("0123456789abcdef", c)
		if i < 0 {
			return 0, false
		}
		n = n<<4 | i
	}
	if minus {
		n = -n
	}
	return byte(n), true
}

func (macAddr) Format(v *tables.Value) string {
	m := v.A
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

var matchMAC = &tables.Match{
	Name:     "mac",
	Families: tables.V4V6,
	Doc:      "Matches the source address of an Ethernet frame. A TUN device carries no Ethernet header, so there it matches nothing, negated or not, as on Linux.",
	Options: []tables.Option{
		{Name: "mac-source", Type: macAddr{}, Required: true, Negatable: true, Arg: "XX:XX:XX:XX:XX:XX", Doc: "source MAC address"},
	},
	Hooks:   hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward),
	Depends: tables.DependsNothing,
	List: func(a *tables.Args, _ bool) string {
		return " MAC" + notOf(a.Get("mac-source")) + " " + macAddr{}.Format(a.Get("mac-source"))
	},
	Compile: func(*tables.Args, *tables.Env) (tables.Pred, error) {
		return func(*tables.Context, *packet.Packet) bool { return false }, nil
	},
}
