package ext

import (
	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// genreName is up to 31 bytes; more are cut off.
var genreName = tables.String{Trim: 31}

var matchOSF = &tables.Match{
	Name:     "osf",
	Families: tables.V4,
	Doc:      "Matches TCP SYNs by the operating system that would send such. No fingerprints are loaded, so none is known.",
	Options: []tables.Option{
		{Name: "genre", Type: genreName, Required: true, Negatable: true, Arg: "name", Doc: "the system"},
		{Name: "ttl", Type: tables.Uint{Max: 2}, Arg: "0..2", Doc: "how the TTL is compared"},
		{Name: "log", Type: tables.Uint{Max: 2}, Arg: "0..2", Doc: "what is logged"},
	},
	Protos: []uint8{packet.ProtoTCP},
	Hooks:  hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward),
	First: func(a *tables.Args) error {
		if a.Has("genre") && a.Str("genre") == "" {
			return errGenre
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("genre")
		return " OS fingerprint match" + notOf(v) + " " + v.Str
	},
	Save:    func(a *tables.Args) string { return a.SaveOptions() },
	Depends: tables.DependsNothing,
	Compile: func(*tables.Args, *tables.Env) (tables.Pred, error) {
		return func(*tables.Context, *packet.Packet) bool { return false }, nil
	},
}

var errGenre error = tables.Usagef("osf: \"--genre\" names no system")
