package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// auditType is accept, drop or reject.
type auditType struct{}

var auditTypes = []string{"accept", "drop", "reject"}

func (auditType) Args() int { return 1 }

func (auditType) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	for i, w := range auditTypes {
		if strings.EqualFold(w, text[0]) {
			v.Lo = uint64(i)
			return nil
		}
	}
	return tables.Usagef("Bad action type value \"%s\"", text[0])
}

func (auditType) Format(v *tables.Value) string { return auditTypes[v.Lo] }

const levelNotice = 5

var targetAUDIT = &tables.Target{
	Name:     "AUDIT",
	Families: tables.V4V6,
	Doc:      "Writes an audit record about the packet to the log and goes on with the next rule.",
	Options: []tables.Option{{
		Name: "type", Type: auditType{}, Required: true, Arg: "accept|drop|reject", Doc: "what is done with the packet",
	}},
	List: func(a *tables.Args, _ bool) string { return " AUDIT " + auditType{}.Format(a.Get("type")) },
	Compile: func(*tables.Args, *tables.Env) (tables.TargetFunc, error) {
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.LogLine != nil {
				c.LogLine(levelNotice, fmt.Sprintf("audit: type=1324 mark=%#x saddr=%s daddr=%s proto=%d", p.Mark, p.SrcAddr(), p.DstAddr(), p.Proto))
			}
			return tables.Continue
		}, nil
	},
}
