package ext

import (
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

var (
	ipvsDir    = tables.OneOf{Words: []string{"ORIGINAL", "REPLY"}, Bad: "ipvs: Bad value for \"--vdir\" option: \"%s\""}
	ipvsMethod = tables.OneOf{Words: []string{"GATE", "IPIP", "MASQ"}, Bad: "ipvs: Bad value for \"--vmethod\" option: \"%s\""}
)

var matchIPVS = &tables.Match{
	Name:     "ipvs",
	Families: tables.V4V6,
	Doc:      "Matches connections of IPVS. The router has none: a rule matches only if all it says is that the packet belongs to none.",
	Options: []tables.Option{
		{Name: "ipvs", Type: tables.Flag, Negatable: true, Doc: "the packet belongs to such a connection"},
		{Name: "vproto", Type: ctProto{}, Negatable: true, Arg: "protocol", Doc: "the virtual service's protocol"},
		{Name: "vaddr", Type: tables.HostMask, Negatable: true, Arg: "address[/mask]", Doc: "… address"},
		{Name: "vport", Type: ipvsPort{}, Negatable: true, Arg: "port", Doc: "… port"},
		{Name: "vdir", Type: ipvsDir, Arg: "ORIGINAL|REPLY", Doc: "the packet's direction"},
		{Name: "vmethod", Type: ipvsMethod, Negatable: true, Arg: "GATE|IPIP|MASQ", Doc: "how it is forwarded"},
		{Name: "vportctl", Type: ipvsPort{}, Negatable: true, Arg: "port", Doc: "port of the controlling connection"},
	},
	First: needOption("IPVS: At least one option is required"),
	List: func(a *tables.Args, _ bool) string {
		var s string
		for _, o := range a.Options() {
			v := a.Get(o.Name)
			if !v.Set {
				continue
			}
			s += notOf(v) + " " + o.Name
			if o.Type != tables.Flag {
				s += " " + o.Type.Format(v)
			}
		}
		return s
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		yes := a.Count() == 1 && a.Not("ipvs")
		return func(*tables.Context, *packet.Packet) bool { return yes }, nil
	},
}

// ipvsPort is one port by number or service name.
type ipvsPort struct{}

func (ipvsPort) Args() int { return 1 }

func (ipvsPort) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := tables.ServiceRange.Parse(o, text, v); err != nil {
		return err
	}
	if v.Lo != v.Hi {
		return tables.Usagef("Port \"%s\" does not resolve to anything.\n", text[0])
	}
	return nil
}

func (ipvsPort) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }
