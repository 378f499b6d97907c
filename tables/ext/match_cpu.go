package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var matchCPU = &tables.Match{
	Name:     "cpu",
	Families: tables.V4V6,
	Doc:      "Matches the number of the worker that handles the packet, from 0.",
	Options: []tables.Option{{
		Name: "cpu", Type: tables.U32, Required: true, Negatable: true, Arg: "number", Doc: "the worker's number",
	}},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("cpu")
		return " cpu" + notOf(v) + " " + tables.U32.Format(v)
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		n, not := a.Num("cpu"), a.Not("cpu")
		return func(c *tables.Context, _ *packet.Packet) bool { return (uint64(c.Worker) == n) != not }, nil
	},
}
