package ext

import (
	"syscall"

	"sluice/tables"
)

var matchNFAcct = &tables.Match{
	Name:     "nfacct",
	Families: tables.V4V6,
	Doc:      "Counts packets on an accounting object. The router has none, so that rules with it are refused, as by Linux; rules count by themselves.",
	Options: []tables.Option{{
		Name: "nfacct-name", Type: tables.String{Min: 1, Trim: 31}, Required: true, Arg: "name", Doc: "the object",
	}},
	List: func(a *tables.Args, _ bool) string { return " nfacct-name  " + a.Str("nfacct-name") },
	Check: func(a *tables.Args, _ *tables.Place) error {
		return tables.Refuse(syscall.ENOENT, "there is no accounting object %q", a.Str("nfacct-name"))
	},
}
