package ext

import (
	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var matchRPFilter = &tables.Match{
	Name:     "rpfilter",
	Families: tables.V4V6,
	Doc:      "Matches packets whose answer would leave by the interface they came in by (a reverse path filter).",
	Options: []tables.Option{
		{Name: "loose", Type: tables.Flag, Doc: "any interface will do"},
		{Name: "validmark", Type: tables.Flag, Doc: "use the packet's mark in the look-up"},
		{Name: "accept-local", Type: tables.Flag, Doc: "let a source that is the router's own pass"},
		{Name: "invert", Type: tables.Flag, Doc: "match packets that fail the test"},
	},
	Tables: tables.In(tables.Raw, tables.Mangle),
	Hooks:  hooks.At(hooks.Prerouting),
	List: func(a *tables.Args, _ bool) string {
		s := " rpfilter"
		for _, o := range []string{"loose", "validmark", "accept-local", "invert"} {
			if a.Has(o) {
				s += " " + o
			}
		}
		return s
	},
	Depends: tables.DependsRoutes | tables.DependsMark | tables.DependsTOS,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		loose, mark, local, invert := a.Has("loose"), a.Has("validmark"), a.Has("accept-local"), a.Has("invert")
		return func(c *tables.Context, p *packet.Packet) bool {
			return passesReversePath(c, p, loose, mark, local) != invert
		}, nil
	},
}

func passesReversePath(c *tables.Context, p *packet.Packet, loose, mark, local bool) bool {
	if p.Flags&packet.Loopback != 0 {
		return true
	}
	src, dst := p.Src(), p.Dst()
	if p.Family == packet.IPv4 {
		if src[0] == 0 && dst == [16]byte{255, 255, 255, 255} {
			return true // who asks for an address
		}
		if dst[0]&0xf0 == 0xe0 && src[0] == 0 {
			return dst[0] == 224 && dst[1] == 0 && dst[2] == 0
		}
	} else if src == ([16]byte{}) {
		return true // not routable: forwarding will drop it
	}
	return c.Env.Routes.ReversePath(p, loose, mark, local)
}
