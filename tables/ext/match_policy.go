package ext

import (
	"errors"
	"fmt"
	"slices"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

const maxPolicy = 4 // elements

// policyElem is one element of a policy: what is asked of it.
type policyElem struct {
	reqid, spi, proto, mode tables.Value
	dst, src                tables.Value
}

// policyOption is an option of the element at hand; the elements are in State,
// as *[]policyElem.
type policyOption struct {
	name string
	t    tables.Type
	at   func(e *policyElem) *tables.Value
}

func (p policyOption) Args() int { return 1 }

func (p policyOption) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	es := policyElems(o.Args)
	at := p.at(&(*es)[len(*es)-1])
	once := func() error {
		if at.Set {
			return tables.Usagef("policy match: double --%s option", p.name)
		}
		return nil
	}
	if p.name == "mode" { // the others' values are read first
		if err := once(); err != nil {
			return err
		}
	}
	if err := p.t.Parse(o, text, v); err != nil {
		return err
	}
	if err := once(); err != nil {
		return err
	}
	if p.name == "proto" && !slices.Contains([]uint64{uint64(packet.ProtoAH), uint64(packet.ProtoESP), protoIPComp}, v.Lo) {
		return tables.Usagef("policy match: protocol must be ah/esp/ipcomp")
	}
	*at = *v
	return nil
}

func (p policyOption) Format(v *tables.Value) string { return p.t.Format(v) }

func policyElems(a *tables.Args) *[]policyElem {
	es, ok := a.State.(*[]policyElem)
	if !ok {
		es = &[]policyElem{{}}
		a.State = es
	}
	return es
}

type policyNext struct{}

func (policyNext) Args() int { return 0 }

func (policyNext) Parse(o *tables.OptionContext, _ []string, _ *tables.Value) error {
	es := policyElems(o.Args)
	if len(*es) == maxPolicy {
		return tables.Usagef("policy match: maximum policy depth reached")
	}
	*es = append(*es, policyElem{})
	return nil
}

func (policyNext) Format(*tables.Value) string { return "" }

// ipsecProto is ah, esp or ipcomp by name or number.
type ipsecProto struct{}

func (ipsecProto) Args() int { return 1 }

func (ipsecProto) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	return (ctProto{}).Parse(o, text, v)
}

func (ipsecProto) Format(v *tables.Value) string {
	switch uint8(v.Lo) {
	case packet.ProtoAH:
		return "ah"
	case packet.ProtoESP:
		return "esp"
	}
	return "ipcomp"
}

const modeTunnel = 1

var (
	policyDir  = oneWord{[]string{"in", "out"}, "policy_match: invalid dir \"%s\""}
	policyKind = oneWord{[]string{"none", "ipsec"}, "policy match: invalid policy \"%s\""}
	policyMode = oneWord{[]string{"transport", "tunnel"}, "policy match: invalid mode \"%s\""}

	policyOptions = []policyOption{
		{"reqid", tables.U32, func(e *policyElem) *tables.Value { return &e.reqid }},
		{"spi", tables.Uint{Max: all32, Hex: true}, func(e *policyElem) *tables.Value { return &e.spi }},
		{"proto", ipsecProto{}, func(e *policyElem) *tables.Value { return &e.proto }},
		{"mode", policyMode, func(e *policyElem) *tables.Value { return &e.mode }},
		{"tunnel-dst", tables.HostMask, func(e *policyElem) *tables.Value { return &e.dst }},
		{"tunnel-src", tables.HostMask, func(e *policyElem) *tables.Value { return &e.src }},
	}
	policyDocs = []string{"reqid of the policy rule", "SPI of the security association", "ah, esp or ipcomp", "transport or tunnel", "the tunnel's destination", "the tunnel's source"}
	policyArgs = []string{"number", "number", "proto", "mode", "address[/mask]", "address[/mask]"}
)

var matchPolicy = &tables.Match{
	Name:     "policy",
	Families: tables.V4V6,
	Doc:      "Matches packets by the IPsec policy that they came by or leave by. The router has none: rules with --pol none match, others do not.",
	Options: func() []tables.Option {
		os := []tables.Option{
			{Name: "dir", Type: policyDir, Arg: "in|out", Doc: "the policy it came by, or leaves by"},
			{Name: "pol", Type: policyKind, Arg: "none|ipsec", Doc: "whether there is one; default ipsec"},
			{Name: "strict", Type: tables.Flag, Doc: "the elements are all of the policy"},
		}
		for i, p := range policyOptions {
			os = append(os, tables.Option{Name: p.name, Type: p, Negatable: true, Multi: true, Arg: policyArgs[i], Doc: policyDocs[i]})
		}
		return append(os, tables.Option{Name: "next", Type: policyNext{}, Multi: true, Also: []string{"strict"}, Doc: "the next element follows, up to 4"})
	}(),
	First: func(a *tables.Args) error {
		none := a.Has("pol") && a.Num("pol") == 0
		switch {
		case !a.Has("dir"):
			return tables.Usagef("policy match: neither --dir in nor --dir out specified")
		case none && a.Has("strict"):
			return tables.Usagef("policy match: policy none but --strict given")
		case none && len(*policyElems(a)) > 1:
			return tables.Usagef("policy match: policy none but policy given")
		case none:
			return nil
		}
		for i, e := range *policyElems(a) {
			if a.Has("strict") && !e.reqid.Set && !e.spi.Set && !e.proto.Set && !e.mode.Set && !e.dst.Set && !e.src.Set {
				return tables.Usagef("policy match: empty policy element %d. --strict is in effect, but at least one of reqid, spi, tunnel-src, tunnel-dst, proto or mode is required.", i)
			}
			if (e.src.Set || e.dst.Set) && (e.mode.Lo == modeTunnel) == e.mode.Not {
				return tables.Usagef("policy match: --tunnel-src/--tunnel-dst is only valid in tunnel mode")
			}
		}
		return nil
	},
	Final: func(a *tables.Args) error {
		if !a.Has("pol") {
			a.Set("pol", tables.Value{Lo: 1})
		}
		return nil
	},
	Save: func(a *tables.Args) string { return policyText(a, "--", false) },
	List: func(a *tables.Args, numeric bool) string { return " policy match" + policyText(a, "", numeric) },
	Check: func(a *tables.Args, at *tables.Place) error {
		in := a.Num("dir") == 0
		if !in && at.Hooks.Has(hooks.Prerouting) || !in && at.Hooks.Has(hooks.Input) {
			return errors.New("policy --dir out cannot be used at PREROUTING and INPUT")
		}
		if in && at.Hooks.Has(hooks.Postrouting) || in && at.Hooks.Has(hooks.Output) {
			return errors.New("policy --dir in cannot be used at POSTROUTING and OUTPUT")
		}
		return nil
	},
	Depends: tables.DependsNothing,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		none := a.Num("pol") == 0
		return func(*tables.Context, *packet.Packet) bool { return none }, nil
	},
}

// policyText prints the options, each after sep ("" or "--").
func policyText(a *tables.Args, sep string, numeric bool) string {
	s := " " + sep + "dir " + policyDir.Format(a.Get("dir")) + " " + sep + "pol " + policyKind.Format(a.Get("pol"))
	if a.Num("pol") == 0 {
		return s
	}
	if a.Has("strict") {
		s += " " + sep + "strict"
	}
	es := *policyElems(a)
	for i := range es {
		switch {
		case sep == "" && len(es) > 1:
			s += fmt.Sprintf(" [%d]", i)
		case i > 0:
			s += " --next"
		}
		for _, o := range policyOptions {
			v := o.at(&es[i])
			if !v.Set {
				continue
			}
			text := o.t.Format(v)
			if numeric && o.name == "proto" {
				text = fmt.Sprint(v.Lo)
			}
			s += notOf(v) + " " + sep + o.name + " " + text
		}
	}
	return s
}
