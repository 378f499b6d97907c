package ext

import "sluice/tables"

var matchComment = &tables.Match{
	Name:     "comment",
	Families: tables.V4V6,
	Doc:      "Keeps a remark with the rule; matches every packet.",
	Options: []tables.Option{{
		Name: "comment", Type: tables.String{Trim: 255}, Required: true,
		Arg: "text", Doc: "the remark, up to 255 bytes",
	}},
	List:    func(a *tables.Args, _ bool) string { return " /* " + a.Str("comment") + " */" },
	Depends: tables.DependsNothing,
}
