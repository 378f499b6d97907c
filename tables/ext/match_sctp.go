package ext

import (
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// sctpChunks are the chunk types with the flag letters that iptables knows, from
// bit 7 down to bit 0.
var sctpChunks = []struct {
	name  string
	typ   uint8
	flags string
}{
	{"DATA", 0, "----IUBE"}, {"INIT", 1, ""}, {"INIT_ACK", 2, ""}, {"SACK", 3, ""}, {"HEARTBEAT", 4, ""},
	{"HEARTBEAT_ACK", 5, ""}, {"ABORT", 6, "-------T"}, {"SHUTDOWN", 7, ""}, {"SHUTDOWN_ACK", 8, ""},
	{"ERROR", 9, ""}, {"COOKIE_ECHO", 10, ""}, {"COOKIE_ACK", 11, ""}, {"ECN_ECNE", 12, ""},
	{"ECN_CWR", 13, ""}, {"SHUTDOWN_COMPLETE", 14, "-------T"}, {"I_DATA", 64, "----IUBE"},
	{"RE_CONFIG", 130, ""}, {"PAD", 132, ""}, {"ASCONF", 193, ""}, {"ASCONF_ACK", 128, ""},
	{"FORWARD_TSN", 192, ""}, {"I_FORWARD_TSN", 194, ""},
}

const (
	sctpAny = iota
	sctpAll
	sctpOnly
)

// chunkSet is what --chunk-types says: types, and for some of them the flags
// that must be set or clear.
type chunkSet struct {
	how   int
	types [256]bool
	mask  [256]uint8 // flags looked at; 0: any
	value [256]uint8
}

// chunkTypes reads "all|any|only LIST"; the set is kept as its own text in
// Value.Str, so that equal sets are equal values.
type chunkTypes struct{}

func (chunkTypes) Args() int { return 2 }

func (chunkTypes) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	s, err := parseChunks(text[0], text[1])
	if err == nil {
		v.Str = s.String()
	}
	return err
}

func (chunkTypes) Format(v *tables.Value) string { return v.Str }

func parseChunks(how, list string) (*chunkSet, error) {
	s := &chunkSet{}
	switch strings.ToLower(how) {
	case "any":
		s.how = sctpAny
	case "all":
		s.how = sctpAll
	case "only":
		s.how = sctpOnly
	default:
		return nil, tables.Usagef("Match type has to be one of \"ALL\", \"ANY\" or \"ONLY\"")
	}
	if strings.EqualFold(list, "ALL") {
		for i := range s.types {
			s.types[i] = true
		}
		return s, nil
	}
	if strings.EqualFold(list, "NONE") {
		return s, nil
	}
	for _, w := range strings.Split(list, ",") {
		name, flags, _ := strings.Cut(w, ":")
		if w == "" {
			continue
		}
		known := false
		for _, c := range sctpChunks {
			if !strings.EqualFold(c.name, name) {
				continue
			}
			known = true
			s.types[c.typ] = true
			for _, f := range flags {
				i := strings.IndexByte(c.flags, byte(f)&^0x20)
				if i < 0 || f == '-' {
					return nil, tables.Usagef("Invalid flags for chunk type %d", c.typ)
				}
				bit := uint8(0x80) >> i
				s.mask[c.typ] |= bit
				if f >= 'A' && f <= 'Z' {
					s.value[c.typ] |= bit
				}
			}
		}
		if !known {
			return nil, tables.Usagef("Unknown sctp chunk `%s'", name)
		}
	}
	return s, nil
}

func (s *chunkSet) String() string { return s.text(false) }

func (s *chunkSet) text(numeric bool) string {
	out := [...]string{"any ", "all ", "only "}[s.how]
	var list []string
	for typ, set := range s.types {
		if !set {
			continue
		}
		name, letters := fmt.Sprintf("0x%04X", typ), ""
		for _, c := range sctpChunks {
			if int(c.typ) == typ {
				if !numeric {
					name = c.name
				}
				letters = c.flags
			}
		}
		if m := s.mask[typ]; m != 0 {
			name += ":"
			for i := range letters {
				switch bit := uint8(0x80) >> i; {
				case m&bit == 0:
				case s.value[typ]&bit != 0:
					name += letters[i : i+1]
				default:
					name += strings.ToLower(letters[i : i+1])
				}
			}
		}
		list = append(list, name)
	}
	switch len(list) {
	case 0:
		return out + "NONE"
	case 256:
		return out + "ALL"
	}
	return out + strings.Join(list, ",")
}

func chunksOf(v *tables.Value) *chunkSet {
	how, list, _ := strings.Cut(v.Str, " ")
	s, err := parseChunks(how, list)
	if err != nil {
		return &chunkSet{} // Str was printed from a set: it reads back
	}
	return s
}

var matchSCTP = &tables.Match{
	Name:     "sctp",
	Families: tables.V4V6,
	Doc:      "Matches SCTP ports and chunk types. Later fragments never match.",
	Protos:   []uint8{packet.ProtoSCTP},
	Options: append(portOptions("sctp"),
		tables.Option{Name: "chunk-types", Type: chunkTypes{}, Negatable: true, OnceText: "Only one `--chunk-types' allowed", TwoText: "--chunk-types requires two args",
			Arg: "(all|any|only) list", Doc: "chunk types, or ALL or NONE, each with flags as in DATA:uBe"},
	),
	Save: func(a *tables.Args) string {
		s := savePorts(a, "sport", "dport", true)
		if v := a.Get("chunk-types"); v.Set {
			s += notOf(v) + " --chunk-types " + v.Str
		}
		return s
	},
	List: func(a *tables.Args, numeric bool) string {
		s := " sctp" + listPorts(a, numeric, "sctp", "sport", "dport")
		if v := a.Get("chunk-types"); v.Set {
			s += notOf(v) + " " + chunksOf(v).text(numeric)
		}
		return s
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		sp, dp := portRange(a.Get("sport")), portRange(a.Get("dport"))
		v := a.Get("chunk-types")
		if !v.Set {
			return portsPred(sp, dp), nil
		}
		set, inverted := chunksOf(v), v.Not
		return func(c *tables.Context, p *packet.Packet) bool {
			if p.Flags&packet.HasL4 == 0 {
				return c.NoPorts(p)
			}
			if !sp.Has(p.SrcPort()) || !dp.Has(p.DstPort()) {
				return false
			}
			return set.match(c, p.Transport()[12:]) != inverted
		}, nil
	},
}

// match walks the chunks behind the common header. A packet whose chunks cannot
// be walked is dropped.
func (s *chunkSet) match(c *tables.Context, b []byte) bool {
	left := s.types
	for {
		if len(b) < 4 || b[2]|b[3] == 0 {
			c.Hotdrop = true
			return false
		}
		typ, n := b[0], int(b[2])<<8|int(b[3])
		flagged := b[1]&s.mask[typ] == s.value[typ]
		switch {
		case !s.types[typ]:
			if s.how == sctpOnly {
				return false
			}
		case !flagged:
			if s.how == sctpOnly {
				return false
			}
		case s.how == sctpAny:
			return true
		default:
			left[typ] = false
		}
		n = (n + 3) &^ 3
		if n >= len(b) {
			break
		}
		b = b[n:]
	}
	switch s.how {
	case sctpAll:
		return left == [256]bool{}
	case sctpOnly:
		return true
	}
	return false
}
