package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var targetNFLOG = &tables.Target{
	Name:     "NFLOG",
	Families: tables.V4V6,
	Doc:      "Gives the packet to those who listen to a group, as `sluice nflog` does, and goes on with the next rule.",
	Options: []tables.Option{
		{Name: "nflog-prefix", Type: tables.String{Min: 1, Trim: 63}, Arg: "text", Doc: "goes with the packet, up to 63 bytes"},
		{Name: "nflog-group", Type: tables.U16, Arg: "number", Doc: "the group; default 0"},
		{Name: "nflog-range", Type: tables.U32, Excludes: []string{"nflog-size"}, Arg: "bytes", Doc: "has no effect"},
		{Name: "nflog-size", Type: tables.U32, Arg: "bytes", Doc: "how much of the packet is given; default all"},
		{Name: "nflog-threshold", Type: tables.U16, Arg: "number", Doc: "packets to collect; accepted, each is given at once"},
	},
	First: func(a *tables.Args) error {
		if a.Has("nflog-range") {
			a.Warn("warn: --nflog-range has never worked and is no longer supported, please use --nflog-size instead")
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		var s string
		for _, o := range a.Options() {
			v := a.Get(o.Name)
			if !v.Set || o.Name == "nflog-range" || v.Lo == 0 && (o.Name == "nflog-group" || o.Name == "nflog-threshold") {
				continue
			}
			s += " --" + o.Name + " " + o.Type.Format(v)
		}
		return s
	},
	List: func(a *tables.Args, _ bool) string {
		var s string
		for _, o := range a.Options() {
			v := a.Get(o.Name)
			if !v.Set || o.Name == "nflog-range" || v.Lo == 0 && (o.Name == "nflog-group" || o.Name == "nflog-threshold") {
				continue
			}
			s += fmt.Sprintf(" %s %s", o.Name, o.Type.Format(v))
		}
		return s
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		group, prefix, size := uint16(a.Num("nflog-group")), a.Str("nflog-prefix"), -1
		if a.Has("nflog-size") {
			size = int(a.Num("nflog-size"))
		}
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.NFLog != nil {
				c.NFLog(group, prefix, size, p)
			}
			return tables.Continue
		}, nil
	},
}
