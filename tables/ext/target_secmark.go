package ext

import (
	"errors"

	"sluice/packet"
	"sluice/tables"
)

var targetSECMARK = &tables.Target{
	Name:     "SECMARK",
	Families: tables.V4V6,
	Doc:      "Gives the packet a security label. sluice keeps the label as text; nothing here enforces a policy on it.",
	Options: []tables.Option{
		{Name: "selctx", Type: tables.String{Trim: 255}, Required: true, Arg: "label", Doc: "the label, such as an SELinux context"},
	},
	Tables:  tables.In(tables.Mangle, tables.Security),
	Depends: tables.DependsNothing,
	Save:    func(a *tables.Args) string { return " --selctx " + quoteWord(a.Str("selctx")) },
	List:    func(a *tables.Args, _ bool) string { return " SECMARK selctx " + a.Str("selctx") },
	Check: func(a *tables.Args, _ *tables.Place) error {
		if a.Str("selctx") == "" {
			return errors.New("a security label cannot be empty")
		}
		return nil
	},
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		label := packet.SecLabel(a.Str("selctx"))
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			p.SecMark = label
			return tables.Continue
		}, nil
	},
}
