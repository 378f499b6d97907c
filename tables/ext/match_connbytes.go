package ext

import (
	"fmt"
	"slices"
	"strings"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

// oneWord is one of a list, written out, in Value.Lo; bad is the refusal (%s).
type oneWord struct {
	words []string
	bad   string
}

func (oneWord) Args() int { return 1 }

func (t oneWord) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	i := slices.Index(t.words, text[0])
	if i < 0 {
		return tables.Usagef("%s", strings.ReplaceAll(t.bad, "%s", text[0]))
	}
	v.Lo = uint64(i)
	return nil
}

func (t oneWord) Format(v *tables.Value) string { return t.words[v.Lo] }

// Values of --connbytes-mode but the first, packets.
const (
	connBytes  = 1
	connAvgPkt = 2
)

var (
	connbytesMode = oneWord{[]string{"packets", "bytes", "avgpkt"}, "Unknown --connbytes-mode `%s'"}
	connbytesDir  = oneWord{[]string{"original", "reply", "both"}, "Unknown --connbytes-dir `%s'"}
)

// byteRange is from[:to], in Value.Lo and Hi; no end is no limit.
type byteRange struct{}

func (byteRange) Args() int { return 1 }

func (byteRange) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := tables.U64Range.Parse(o, text, v); err != nil {
		return err
	}
	if !strings.Contains(text[0], ":") {
		v.Hi = 1<<64 - 1
	}
	if v.Lo > v.Hi {
		return tables.Usagef("%d should be less than %d", v.Lo, v.Hi)
	}
	if v.Lo == v.Hi {
		v.Not = false // the kernel is told "not" by the ends' order
	}
	return nil
}

func (byteRange) Format(v *tables.Value) string {
	if v.Hi == 1<<64-1 || v.Hi == 0 {
		return fmt.Sprint(v.Lo)
	}
	return fmt.Sprintf("%d:%d", v.Lo, v.Hi)
}

var matchConnBytes = &tables.Match{
	Name:     "connbytes",
	Families: tables.V4V6,
	Doc:      "Matches how much a connection has carried so far. Its rules switch on net.netfilter.nf_conntrack_acct; connections from before that never match.",
	Options: []tables.Option{
		{Name: "connbytes", Type: byteRange{}, Required: true, Negatable: true, Arg: "from[:[to]]", Doc: "so many packets or bytes, or so large an average"},
		{Name: "connbytes-mode", Type: connbytesMode, Required: true, Arg: "packets|bytes|avgpkt", Doc: "what is counted"},
		{Name: "connbytes-dir", Type: connbytesDir, Required: true, Arg: "original|reply|both", Doc: "whose packets count"},
	},
	First: func(a *tables.Args) error { // the direction is missed before the mode is
		if a.Has("connbytes") && !a.Has("connbytes-dir") {
			return tables.Usagef("connbytes: option \"--connbytes-dir\" must be specified\n")
		}
		return nil
	},
	List: func(a *tables.Args, _ bool) string {
		v := a.Get("connbytes")
		return notOf(v) + " connbytes " + byteRange{}.Format(v) +
			" connbytes mode " + connbytesMode.Format(a.Get("connbytes-mode")) +
			" connbytes direction " + connbytesDir.Format(a.Get("connbytes-dir"))
	},
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		if env != nil && env.Sysctl != nil {
			if v := env.Sysctl.Lookup("net.netfilter.nf_conntrack_acct"); v != nil && v.Load() == 0 {
				v.Store(1)
			}
		}
		v := *a.Get("connbytes")
		mode, dir := a.Num("connbytes-mode"), a.Num("connbytes-dir")
		return func(c *tables.Context, p *packet.Packet) bool {
			e := c.Entry(p)
			if e == nil || !e.Counted() {
				return false
			}
			var packets, bytes uint64
			if dir != 1 {
				packets, bytes = c.CT.Table().Counters(p.Ct, conntrack.Original)
			}
			if dir != 0 {
				n, k := c.CT.Table().Counters(p.Ct, conntrack.Reply)
				packets, bytes = packets+n, bytes+k
			}
			n := packets
			switch mode {
			case connBytes:
				n = bytes
			case connAvgPkt:
				if n = 0; packets != 0 {
					n = bytes / packets
				}
			}
			return (n >= v.Lo && n <= v.Hi) != v.Not
		}, nil
	},
}
