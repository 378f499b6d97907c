package ext

import (
	"strings"

	"sluice/packet"
	"sluice/tables"
)

var matchHelper = &tables.Match{
	Name:     "helper",
	Families: tables.V4V6,
	Doc:      "Matches connections that another connection announced, by the helper that read the announcement.",
	Options: []tables.Option{{
		Name: "helper", Type: tables.String{Trim: 29}, Required: true, Negatable: true, Arg: "name", Doc: "the helper's name; \"\" for any",
	}},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("helper")
		return " helper match" + notOf(v) + " \"" + v.Str + "\""
	},
	Save: func(a *tables.Args) string {
		v := a.Get("helper")
		return notOf(v) + " --helper " + tables.Quote(v.Str)
	},
	Depends: tables.DependsCtState,
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		name, not := a.Str("helper"), a.Not("helper")
		if env == nil || env.CT == nil {
			return func(*tables.Context, *packet.Packet) bool { return not }, nil
		}
		ct := env.CT
		return func(c *tables.Context, p *packet.Packet) bool {
			e := c.Entry(p)
			if e == nil {
				return not
			}
			h := ct.MasterHelper(e)
			if h == nil {
				return not
			}
			// A name that begins with the helper's is enough: "ftp-2121" is ftp.
			return (name == "" || strings.HasPrefix(name, h.Name)) != not
		}, nil
	},
}
