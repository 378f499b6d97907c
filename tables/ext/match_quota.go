package ext

import (
	"fmt"
	"sync/atomic"

	"sluice/packet"
	"sluice/tables"
)

var matchQuota = &tables.Match{
	Name:     "quota",
	Families: tables.V4V6,
	Doc:      "Matches packets as long as together they are not longer than so many bytes; the first one that is too long ends it.",
	Options: []tables.Option{{
		Name: "quota", Type: tables.U64, Required: true, Negatable: true, Arg: "bytes", Doc: "how many bytes",
	}},
	List: func(a *tables.Args, _ bool) string { return fmt.Sprintf(" quota: %d bytes", a.Num("quota")) },
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		left, not := new(atomic.Uint64), a.Not("quota")
		left.Store(a.Num("quota"))
		return func(_ *tables.Context, p *packet.Packet) bool {
			for {
				have, n := left.Load(), uint64(p.Len())
				rest := uint64(0)
				if have >= n {
					rest = have - n
				}
				if left.CompareAndSwap(have, rest) {
					return (have >= n) != not
				}
			}
		}, nil
	},
}
