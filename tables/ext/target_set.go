package ext

import (
	"fmt"
	"syscall"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ipset"
)

// setTimeout is SET's --timeout in seconds; the last one holds.
type setTimeout struct{}

func (setTimeout) Args() int { return 1 }

func (setTimeout) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	n, rest, ok := tables.Strtoul(text[0], 0, allOnes-1)
	if !ok || rest != "" {
		return tables.Usagef("Invalid value for option --timeout or out of range 0-4294967294")
	}
	o.Args.Clear(o.Name)
	v.Lo = n
	return nil
}

func (setTimeout) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

var setMaps = []string{"map-mark", "map-prio", "map-queue"}

// setTargetText prints SET's options, each after sep ("" or "--").
func setTargetText(a *tables.Args, sep string) string {
	s := ""
	put := func(name string) {
		v := a.Get(name)
		if !v.Set {
			return
		}
		s += " " + sep + name
		for _, o := range a.Options() {
			if o.Name == name && o.Type.Args() > 0 {
				s += " " + o.Type.Format(v)
			}
		}
	}
	put("add-set")
	put("exist")
	put("timeout")
	put("del-set")
	if a.Has("map-set") {
		put("map-set")
		for _, m := range setMaps {
			put(m)
		}
	}
	return s
}

var targetSET = &tables.Target{
	Name:     "SET",
	Families: tables.V4V6,
	Doc:      "Adds the packet's addresses, ports … to an IP set, deletes them from one, or gives the packet what their element carries (skbinfo), and goes on with the next rule.",
	Options: []tables.Option{
		{Name: "add-set", Type: setArg{}, Negatable: true, Arg: "name src|dst[,src|dst]…", Doc: "add to the set", OnceText: "--add-set can be specified only once"},
		{Name: "exist", Type: setFlag{}, Multi: true, Negatable: true, Doc: "an element that is there begins anew"},
		{Name: "timeout", Type: setTimeout{}, Multi: true, Negatable: true, Arg: "seconds", Doc: "timeout of the element, instead of the set's default"},
		{Name: "del-set", Type: setArg{}, Negatable: true, Arg: "name src|dst[,src|dst]…", Doc: "delete from the set", OnceText: "--del-set can be specified only once"},
		{Name: "map-set", Type: setArg{}, Negatable: true, Arg: "name src|dst[,src|dst]…", Doc: "look up in the set", OnceText: "--map-set can be specified only once"},
		{Name: "map-mark", Type: setFlag{}, Multi: true, Negatable: true, Doc: "the packet gets the element's mark"},
		{Name: "map-prio", Type: setFlag{}, Multi: true, Negatable: true, Doc: "the packet gets the element's priority"},
		{Name: "map-queue", Type: setFlag{}, Multi: true, Negatable: true, Doc: "accepted; a packet has no hardware queue here"},
	},
	First: func(a *tables.Args) error {
		add, del, mp := a.Has("add-set"), a.Has("del-set"), a.Has("map-set")
		switch {
		case !add && !del && !mp:
			return tables.Usagef("You must specify either `--add-set' or `--del-set' or `--map-set'")
		case mp && !a.Has("map-mark") && !a.Has("map-prio") && !a.Has("map-queue"):
			return tables.Usagef("You must specify flags `--map-mark' or '--map-prio` or `--map-queue'")
		case !add && a.Has("exist"):
			return tables.Usagef("Flag `--exist' can be used with `--add-set' only")
		case !add && a.Has("timeout"):
			return tables.Usagef("Option `--timeout' can be used with `--add-set' only")
		}
		return nil
	},
	Save: func(a *tables.Args) string { return setTargetText(a, "--") },
	List: func(a *tables.Args, _ bool) string { return setTargetText(a, "") },
	Check: func(a *tables.Args, at *tables.Place) error {
		if !a.Has("map-set") {
			return nil
		}
		if at.Table != tables.Mangle {
			return tables.Refuse(syscall.EINVAL, "SET --map-set is for table mangle")
		}
		late := hooks.Mask(1<<hooks.Forward | 1<<hooks.Output | 1<<hooks.Postrouting)
		if (a.Has("map-prio") || a.Has("map-queue")) && at.Hooks&^late != 0 {
			return tables.Refuse(syscall.EINVAL, "SET --map-prio and --map-queue are for FORWARD, OUTPUT and POSTROUTING")
		}
		return nil
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
		var refs [3]*ipset.Ref
		var asks [3]ipset.Query
		for i, name := range []string{"add-set", "del-set", "map-set"} {
			v := a.Get(name)
			if !v.Set {
				continue
			}
			ref, err := takeSet(a, env, v.Str)
			if err != nil {
				return nil, err
			}
			refs[i], asks[i] = ref, ipset.Query{Dims: int(v.Hi), Src: uint8(v.Lo)}
		}
		exist := a.Has("exist")
		x := ipset.Ext{HasTimeout: a.Has("timeout"), Timeout: uint32(min(a.Num("timeout"), ipset.MaxTimeout))}
		mark, prio := a.Has("map-mark"), a.Has("map-prio")
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			if r := refs[0]; r != nil {
				q := asks[0]
				q.P = p
				_ = r.Set().AddPacket(&q, x, exist)
			}
			if r := refs[1]; r != nil {
				q := asks[1]
				q.P = p
				_ = r.Set().DelPacket(&q)
			}
			if r := refs[2]; r != nil {
				q := asks[2]
				q.P = p
				if ok, info := r.Set().Match(&q); ok {
					if mark {
						p.Mark = p.Mark&^info.MarkMask ^ info.Mark
					}
					if prio {
						p.Priority = info.Prio
					}
				}
			}
			return tables.Continue
		}, nil
	},
}
