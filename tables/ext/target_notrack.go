package ext

import "sluice/tables"

var targetNOTRACK = &tables.Target{
	Name:     "NOTRACK",
	ListName: "CT",
	Families: tables.V4V6,
	Doc:      "Keeps conntrack off the packet: the short form of CT --notrack.",
	Tables:   tables.In(tables.Raw),
	Save:     func(*tables.Args) string { return "" },
	List:     func(*tables.Args, bool) string { return " NOTRACK" },
	Depends:  tables.DependsNothing,
	Compile:  func(*tables.Args, *tables.Env) (tables.TargetFunc, error) { return notrack, nil },
}
