package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

// What ah, esp, ipcomp and other matches of a 32-bit range have in common. A
// range of all numbers says nothing and is not printed; without the option all
// match.

const all32 = 1<<32 - 1

// range32 is an option's range; all numbers if it was not given.
func range32(a *tables.Args, option string) (lo, hi uint32, not bool) {
	v := a.Get(option)
	if !v.Set {
		return 0, all32, false
	}
	return uint32(v.Lo), uint32(v.Hi), v.Not
}

// saveRange prints " ! --option 5:7".
func saveRange(a *tables.Args, option string) string {
	v := a.Get(option)
	if !v.Set || v.Lo == 0 && v.Hi == all32 {
		return ""
	}
	return notOf(v) + " --" + option + " " + tables.U32Range.Format(v)
}

// listRange prints "spi:5" or "spis:!5:7", without a leading space.
func listRange(a *tables.Args, option, name string) string {
	v := a.Get(option)
	switch {
	case allOf(v):
		return ""
	case v.Lo == v.Hi:
		return fmt.Sprintf("%s:%s%d", name, bang(v), v.Lo)
	}
	return fmt.Sprintf("%ss:%s%d:%d", name, bang(v), v.Lo, v.Hi)
}

// allOf: the range says nothing.
func allOf(v *tables.Value) bool { return !v.Set || v.Lo == 0 && v.Hi == all32 && !v.Not }

// l4Header is the first n bytes of the transport header. A packet that is too
// short for them is dropped; a later fragment has none.
func l4Header(c *tables.Context, p *packet.Packet, n int) []byte {
	if p.Flags&packet.LaterFragment != 0 {
		return nil
	}
	b := p.Transport()
	if len(b) < n {
		c.Hotdrop = true
		return nil
	}
	return b[:n]
}

func spiOption(name string) tables.Option {
	return tables.Option{Name: name, Type: tables.U32Range, Negatable: true, Arg: "spi[:spi]", Doc: "security parameter index, or a range of them"}
}
