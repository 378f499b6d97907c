package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

var reasonTCPOptStrip = packet.NewReason("tcpoptstrip.failed", "TCPOPTSTRIP could not read the TCP header")

// tcpOptionNames are the kinds that have names, in the order they are looked for.
var tcpOptionNames = []struct {
	name string
	kind int
}{{"wscale", 3}, {"mss", 2}, {"sack-permitted", 4}, {"sack", 5}, {"timestamp", 8}, {"md5", 19}}

// optionKinds is a set of option kinds, in Value.List, lowest first.
type optionKinds struct{}

func (optionKinds) Args() int { return 1 }

func (optionKinds) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	var has [256]bool
	for _, w := range strings.Split(text[0], ",") {
		n := -1
		for _, x := range tcpOptionNames {
			if x.name == w {
				n = x.kind
			}
		}
		if n < 0 {
			k, rest, ok := tables.Strtoul(w, 0, 255)
			if !ok || rest != "" {
				return tables.Usagef("Bad TCP option value \"%s\"", w)
			}
			n = int(k)
		}
		if n < 2 {
			return tables.Usagef("Option value may not be 0 or 1")
		}
		if has[n] {
			return tables.Usagef("Option \"%s\" already specified", w)
		}
		has[n] = true
	}
	for n, ok := range has {
		if ok {
			v.List = append(v.List, tables.Range{Lo: uint64(n), Hi: uint64(n)})
		}
	}
	return nil
}

func (t optionKinds) Format(v *tables.Value) string { return t.text(v, true) }

func (optionKinds) text(v *tables.Value, numeric bool) string {
	var s []string
	for _, r := range v.List {
		name := fmt.Sprint(r.Lo)
		for _, x := range tcpOptionNames {
			if !numeric && x.kind == int(r.Lo) {
				name = x.name
			}
		}
		s = append(s, name)
	}
	return strings.Join(s, ",")
}

var targetTCPOPTSTRIP = &tables.Target{
	Name:     "TCPOPTSTRIP",
	Families: tables.V4V6,
	Doc:      "Overwrites TCP options with no-operations.",
	Tables:   tables.In(tables.Mangle),
	Protos:   []uint8{packet.ProtoTCP},
	Options: []tables.Option{{
		Name: "strip-options", Type: optionKinds{}, Arg: "kind[,kind]…", Doc: "kinds by number or name: wscale, mss, sack-permitted, sack, timestamp, md5",
	}},
	List: func(a *tables.Args, numeric bool) string {
		v := a.Get("strip-options")
		if !v.Set {
			return ""
		}
		return " TCPOPTSTRIP options " + optionKinds{}.text(v, numeric)
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		var strip [256]bool
		for _, r := range a.Get("strip-options").List {
			strip[r.Lo] = true
		}
		return func(_ *tables.Context, p *packet.Packet) tables.Result {
			if p.Flags&packet.LaterFragment != 0 {
				return tables.Continue
			}
			t := p.Transport()
			if len(t) < 20 || len(t) < int(t[12]>>4)*4 {
				p.Reason = reasonTCPOptStrip
				return tables.Drop
			}
			end := int(t[12]>>4) * 4
			for i := 20; i < end-1; {
				n := 1
				if t[i] > 1 && t[i+1] != 0 {
					n = int(t[i+1])
				}
				if i+n > end {
					break
				}
				if strip[t[i]] {
					for j := range n {
						nop(p, t, i+j)
					}
				}
				i += n
			}
			return tables.Continue
		}, nil
	},
}

// nop writes a no-operation over one byte of the transport header, keeping the
// checksum as right or wrong as it was.
func nop(p *packet.Packet, t []byte, at int) {
	w := at &^ 1
	old := [2]byte{t[w], t[w+1]}
	old[at&1] = 1
	p.SetL4Word(w, uint16(old[0])<<8|uint16(old[1]))
}
