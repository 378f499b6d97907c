package ext

import (
	"fmt"
	"strings"
	"syscall"

	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ipset"
)

const setDimMax = 6

// setArg is a set's name and what its parts look at: the name in Value.Str, in
// Lo the parts (bit by bit) that look at the source, in Hi how many there are.
type setArg struct{}

func (setArg) Args() int { return 2 }

func (setArg) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if o.Typed == "set" {
		o.Warn("--set option deprecated, please use --match-set")
	}
	name := text[0]
	if len(name) > ipset.MaxName {
		return tables.Usagef("setname `%s' too long, max %d characters.", name, ipset.MaxName)
	}
	if o.Env != nil && o.Env.Sets != nil {
		set := o.Env.Sets.Get(name)
		if set == nil {
			return tables.Usagef("Set %s doesn't exist.\n", name)
		}
		if fam := set.Family(); fam != 0 && fam != o.Family {
			return tables.Usagef("The protocol family of set %s is %s, which is not applicable.\n", name,
				map[uint8]string{packet.IPv4: "IPv4", packet.IPv6: "IPv6"}[fam])
		}
	}
	v.Str = name
	for i, w := range strings.Split(text[1], ",") {
		if i == setDimMax {
			return tables.Usagef("Can't be more src/dst options than %d.", setDimMax)
		}
		switch {
		case strings.HasPrefix(w, "src"):
			v.Lo |= 1 << i
		case strings.HasPrefix(w, "dst"):
		default:
			return tables.Usagef("You must spefify (the comma separated list of) 'src' or 'dst'.")
		}
		v.Hi++
	}
	return nil
}

func (setArg) Format(v *tables.Value) string {
	parts := make([]string, v.Hi)
	for i := range parts {
		parts[i] = "dst"
		if v.Lo>>i&1 != 0 {
			parts[i] = "src"
		}
	}
	return quoteWord(v.Str) + " " + strings.Join(parts, ",")
}

// setFlag may be given again; where it means something with "!", that stays.
type setFlag struct{}

func (setFlag) Args() int                   { return 0 }
func (setFlag) Format(*tables.Value) string { return "" }

func (setFlag) Parse(o *tables.OptionContext, _ []string, v *tables.Value) error {
	v.Not = v.Not || o.Args.Not(o.Name)
	o.Args.Clear(o.Name)
	return nil
}

// setCounter is a value to compare a counter with.
type setCounter struct{ what string }

func (setCounter) Args() int { return 1 }

func (t setCounter) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if v.Not && o.Name != t.what+"-eq" {
		return tables.Usagef("--%s option cannot be inverted", o.Name)
	}
	n, rest, ok := tables.Strtoul(text[0], 0, 1<<64-1)
	if !ok || rest != "" {
		return tables.Usagef("Cannot parse %s as a counter value", text[0])
	}
	v.Lo = n
	return nil
}

func (setCounter) Format(v *tables.Value) string { return fmt.Sprint(v.Lo) }

var setCompares = []struct {
	name string
	op   ipset.CompareOp
}{{"eq", ipset.Equal}, {"lt", ipset.Less}, {"gt", ipset.Greater}}

func setCounterOptions() (out []tables.Option) {
	for _, what := range []string{"packets", "bytes"} {
		names := []string{what + "-eq", what + "-lt", what + "-gt"}
		for i, c := range setCompares {
			out = append(out, tables.Option{
				Name: names[i], Type: setCounter{what}, Shares: names, OnceText: "only one of the --" + what + "-[eq|lt|gt] is allowed", Arg: "value", Negatable: true,
				Doc: "the element's counter of " + what + " is " + map[string]string{"eq": "value", "lt": "below value", "gt": "above value"}[c.name],
			})
		}
	}
	return out
}

// setCompare is what the options say about one of the counters.
func setCompare(a *tables.Args, what string) (c ipset.Compare) {
	for _, x := range setCompares {
		if v := a.Get(what + "-" + x.name); v.Set {
			c.Op, c.Value = x.op, v.Lo
			if v.Not {
				c.Op = ipset.NotEqual
			}
		}
	}
	return c
}

// setText prints the match, each option after sep ("" or "--").
func setText(a *tables.Args, sep string) string {
	m := a.Get("match-set")
	s := notOf(m) + " " + sep + "match-set " + setArg{}.Format(m)
	if a.Has("return-nomatch") {
		s += " " + sep + "return-nomatch"
	}
	for _, o := range []string{"update-counters", "update-subcounters"} {
		if a.Not(o) {
			s += " ! " + sep + o
		}
	}
	for _, what := range []string{"packets", "bytes"} {
		for _, c := range setCompares {
			if v := a.Get(what + "-" + c.name); v.Set {
				s += notOf(v) + " " + sep + what + "-" + c.name + " " + fmt.Sprint(v.Lo)
			}
		}
	}
	return s
}

var matchSet = &tables.Match{
	Name:     "set",
	Families: tables.V4V6,
	Doc:      "Matches by an IP set, which ipset(8) makes and fills. src and dst say what of the packet each part of the set's elements is compared with.",
	Options: append([]tables.Option{
		{Name: "match-set", Aliases: []string{"set"}, Type: setArg{}, Negatable: true, Arg: "name src|dst[,src|dst]…", Doc: "the packet is in the set",
			OnceText: "--match-set can be specified only once"},
		{Name: "return-nomatch", Type: setFlag{}, Multi: true, NotText: "--return-nomatch flag cannot be inverted", Doc: "elements marked nomatch match, and nothing else"},
		{Name: "update-counters", Type: setFlag{}, Multi: true, Negatable: true, Doc: "with !, the element's counters stay as they are"},
		{Name: "update-subcounters", Type: setFlag{}, Multi: true, Negatable: true, Doc: "with !, counters in the sets of a list stay as they are"},
	}, setCounterOptions()...),
	First: func(a *tables.Args) error {
		if !a.Has("match-set") {
			return tables.Usagef("You must specify `--match-set' with proper arguments")
		}
		return nil
	},
	Save:    func(a *tables.Args) string { return setText(a, "--") },
	List:    func(a *tables.Args, _ bool) string { return setText(a, "") },
	Depends: tables.DependsSets,
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		v := a.Get("match-set")
		ref, err := takeSet(a, env, v.Str)
		if err != nil {
			return nil, err
		}
		proto := ipset.Query{
			Dims: int(v.Hi), Src: uint8(v.Lo),
			Count:    [2]ipset.Compare{setCompare(a, "packets"), setCompare(a, "bytes")},
			NoUpdate: a.Not("update-counters"), NoSubUpdate: a.Not("update-subcounters"),
			ReturnNoMatch: a.Has("return-nomatch"),
		}
		proto.Cmp = proto.Count != [2]ipset.Compare{}
		not := v.Not
		return func(c *tables.Context, p *packet.Packet) bool {
			set := ref.Set()
			if !set.Steady(p) {
				c.NotRepeatable()
			}
			q := proto
			q.P = p
			ok, _ := set.Match(&q)
			return ok != not
		}, nil
	},
}

// takeSet holds a set for as long as the rule is there.
func takeSet(a *tables.Args, env *tables.Env, name string) (*ipset.Ref, error) {
	if env == nil || env.Sets == nil {
		return nil, tables.Refuse(syscall.ENOENT, "there are no sets here")
	}
	ref := env.Sets.Take(name)
	if ref == nil {
		return nil, tables.Refuse(syscall.ENOENT, "there is no set %q", name)
	}
	a.Rule.OnRemove(ref.Release)
	return ref, nil
}
