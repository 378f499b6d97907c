package ext

import (
	"fmt"
	"strings"
	"syscall"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

var ctEvents = []string{"new", "related", "destroy", "reply", "assured", "protoinfo", "helper", "mark", "natseqinfo", "secmark"}

// eventList is a list of event names as bits in Value.Lo.
type eventList struct{ names []string }

func (eventList) Args() int { return 1 }

func (t eventList) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	for _, w := range strings.Split(text[0], ",") {
		known := false
		for i, n := range t.names {
			if n == w {
				v.Lo |= 1 << i
				known = true
			}
		}
		if !known {
			return tables.Usagef("Unknown event type \"%s\"", w)
		}
	}
	return nil
}

func (t eventList) Format(v *tables.Value) string {
	var out []string
	for i, n := range t.names {
		if v.Lo>>i&1 != 0 {
			out = append(out, n)
		}
	}
	return strings.Join(out, ",")
}

// zoneType is a zone's number in Value.Lo, or "mark" (Hi 1).
type zoneType struct{}

func (zoneType) Args() int { return 1 }

func (zoneType) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	if strings.EqualFold(text[0], "mark") {
		v.Hi = 1
		return nil
	}
	n, rest, ok := tables.Strtoul(text[0], 0, 65535)
	if !ok || rest != "" {
		return tables.Usagef("Cannot parse %s as a zone ID", text[0])
	}
	v.Lo = n
	return nil
}

func (zoneType) Format(v *tables.Value) string {
	if v.Hi == 1 {
		return "mark"
	}
	return fmt.Sprintf("%d", v.Lo)
}

var (
	ctEventType  = eventList{ctEvents}
	expEventType = eventList{[]string{"new"}}
)

// ctZone is the zone that the three options come to: they share one number, and
// together they add up their directions. CT keeps it in State as a zoneArg.
type zoneArg struct {
	v    tables.Value
	name string // zone, zone-orig, zone-reply; "": none
}

func ctZone(a *tables.Args) zoneArg {
	z, _ := a.State.(zoneArg)
	return z
}

// zoneOption is a zoneType that adds itself to State, in the order typed.
type zoneOption struct{ zoneType }

func (zoneOption) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := (zoneType{}).Parse(o, text, v); err != nil {
		return err
	}
	z := ctZone(o.Args)
	switch {
	case z.name == "" || z.name == "zone":
		z.name = o.Name
	case o.Name != "zone":
		z.name = "zone" // both directions
	}
	mark := z.v.Hi | v.Hi
	z.v = *v
	z.v.Hi = mark
	o.Args.State = z
	return nil
}

// ctText prints CT's options, each word after sep ("" or "--").
func ctText(a *tables.Args, sep string) string {
	var s string
	if a.Has("notrack") {
		s += " " + sep + "notrack"
	}
	for _, name := range []string{"helper", "timeout"} {
		if a.Has(name) && a.Str(name) != "" {
			s += " " + sep + name + " " + a.Str(name)
		}
	}
	if v := a.Get("ctevents"); v.Set {
		s += " " + sep + "ctevents " + ctEventType.Format(v)
	}
	if v := a.Get("expevents"); v.Set {
		s += " " + sep + "expevents " + expEventType.Format(v)
	}
	if z := ctZone(a); z.name != "" && (z.v.Lo != 0 || z.v.Hi != 0) {
		s += " " + sep + z.name + " " + zoneType{}.Format(&z.v)
	}
	return s
}

var targetCT = &tables.Target{
	Name:     "CT",
	Families: tables.V4V6,
	Doc:      "Says how conntrack treats the connection that the packet starts: not at all, in a zone, with a helper, with its own timeouts.",
	Tables:   tables.In(tables.Raw),
	Options: []tables.Option{
		{Name: "notrack", Type: tables.Flag, Doc: "do not track the packet"},
		{Name: "helper", Type: tables.String{}, Arg: "name", Doc: "use this helper"},
		{Name: "timeout", Type: tables.String{}, Arg: "name", Doc: "use this timeout policy"},
		{Name: "ctevents", Type: ctEventType, Arg: "event[,event]…", Doc: "report only these events"},
		{Name: "expevents", Type: expEventType, Arg: "event[,event]…", Doc: "report only these events of expectations"},
		{Name: "zone", Type: zoneOption{}, Arg: "id|mark", Doc: "put the connection into a zone"},
		{Name: "zone-orig", Type: zoneOption{}, Arg: "id|mark", Doc: "… in the original direction only"},
		{Name: "zone-reply", Type: zoneOption{}, Arg: "id|mark", Doc: "… in the reply direction only"},
	},
	Save:    func(a *tables.Args) string { return ctText(a, "--") },
	List:    func(a *tables.Args, _ bool) string { return " CT" + ctText(a, "") },
	Depends: tables.DependsMark,
	Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		if a.Has("notrack") { // then Linux looks at nothing else
			return notrack, nil
		}
		helper, timeout := a.Str("helper"), a.Str("timeout")
		if helper != "" && (a.Proto == 0 || a.ProtoNot) {
			return nil, tables.Refuse(syscall.ENOENT, "CT --helper needs a transport protocol given with -p, without \"!\"")
		}
		if timeout != "" && (a.Proto == 0 || a.ProtoNot) {
			return nil, tables.Refuse(syscall.EINVAL, "CT --timeout needs a transport protocol given with -p, without \"!\"")
		}
		z := ctZone(a)
		tm := conntrack.Template{
			Zone: uint16(z.v.Lo), ZoneMark: z.v.Hi == 1,
			Events: conntrack.Events(a.Num("ctevents")), ExpEvents: uint32(a.Num("expevents")),
		}
		switch z.name {
		case "zone-orig":
			tm.ZoneDir = conntrack.ZoneOrig
		case "zone-reply":
			tm.ZoneDir = conntrack.ZoneReply
		}
		if env == nil || env.CT == nil {
			return func(*tables.Context, *packet.Packet) tables.Result { return tables.Continue }, nil
		}
		if helper != "" {
			if tm.Helper = env.CT.HelperFor(helper, a.Family, uint8(a.Proto)); tm.Helper == nil {
				return nil, tables.Refuse(syscall.ENOENT, "there is no helper %q for this protocol", helper)
			}
		}
		if timeout != "" {
			tp, release := env.CT.HoldTimeoutPolicy(timeout)
			if tp == nil {
				return nil, tables.Refuse(syscall.ENOENT, "there is no timeout policy %q", timeout)
			}
			a.Rule.OnRemove(release)
			if !tp.Fits(a.Family, uint8(a.Proto)) {
				return nil, tables.Refuse(syscall.EINVAL, "timeout policy %q is for another protocol", timeout)
			}
			tm.Timeout = tp
		}
		t := env.CT.Template(tm)
		return func(c *tables.Context, p *packet.Packet) tables.Result {
			if c.CT != nil {
				c.CT.SetTemplate(p, t)
			}
			return tables.Continue
		}, nil
	},
}

// notrack leaves a packet alone that has been seen before (it came back through lo).
func notrack(_ *tables.Context, p *packet.Packet) tables.Result {
	if p.Ct == 0 && p.CtInfo == packet.CtNone {
		p.Flags |= packet.Untracked
		p.CtInfo = packet.CtUntracked
	}
	return tables.Continue
}
