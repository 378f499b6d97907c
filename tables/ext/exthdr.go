package ext

import (
	"encoding/binary"
	"fmt"
	"strings"

	"sluice/packet"
	"sluice/tables"
)

// IPv6 extension headers, as the matches for them look for them
// (ipv6_find_hdr).

const (
	headerHopByHop = 0
	headerRouting  = 43
	headerFragment = 44
	headerNone     = 59
	headerDestOpts = 60
	protoMobility  = 135
)

// findHeader gives the bytes from the first extension header of a kind to the
// end of the packet, if its first n bytes are there; nil: there is no such
// header. Where the headers cannot be followed, or this one is cut short, the
// packet is dropped.
func findHeader(c *tables.Context, p *packet.Packet, kind uint8, n int) []byte {
	h, whole := seekHeader(p.Bytes(), kind)
	if h != nil && len(h) < n {
		h, whole = nil, false
	}
	if !whole {
		c.Hotdrop = true
	}
	return h
}

// seekHeader looks for an extension header; whole is false where the headers
// before it, or its own first bytes, are cut short.
func seekHeader(b []byte, kind uint8) (h []byte, whole bool) {
	at, next := 40, b[6]
	for packet.Extension(next) {
		if len(b) < at+2 || (next == headerRouting || next == headerFragment) && len(b) < at+4 {
			return nil, false
		}
		if next == kind {
			return b[at:], true
		}
		size := (int(b[at+1]) + 1) * 8
		switch next {
		case headerFragment:
			if size = 8; binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return nil, true
			}
		case packet.ProtoAH:
			size = (int(b[at+1]) + 2) * 4
		}
		next = b[at]
		at += size
	}
	return nil, true
}

// optionList is TYPE[:LEN],… of IPv6 options, in Value.List; a Hi of 255 is any
// length.
type optionList struct{}

func (optionList) Args() int { return 1 }

func (optionList) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	for i, w := range strings.Split(text[0], ",") {
		if i == 16 {
			return tables.Usagef("too many addresses specified")
		}
		typ, length, has := strings.Cut(w, ":")
		t, err := optionNumber(o, "opt", typ)
		if err != nil {
			return err
		}
		n := uint64(255)
		if has && t&255 == 0 {
			return tables.Usagef("%s", map[string]string{"dst": "PAD0 hasn't got length", "hbh": "PAD0 has not got length"}[o.Ext])
		}
		if has {
			if n, err = optionNumber(o, "length", length); err != nil {
				return err
			}
		}
		v.List = append(v.List, tables.Range{Lo: t & 255, Hi: n & 255})
	}
	return nil
}

func optionNumber(o *tables.OptionContext, what, s string) (uint64, error) {
	digits, minus := strings.CutPrefix(s, "-")
	n, rest, ok := tables.Strtoul(digits, 0, 1<<64-1)
	if minus {
		n = -n // as strtoul has it
	}
	if !ok && len(digits) > 19 && strings.Trim(digits[:20], "0123456789") == "" {
		return 0, tables.Usagef("%s `%s' specified too big: would overflow", what, s)
	}
	if !ok {
		return 0, tables.Usagef("%s: no valid digits in %s `%s'", o.Ext, what, s)
	}
	if rest != "" {
		return 0, tables.Usagef("%s: error parsing %s `%s'", o.Ext, what, s)
	}
	return n, nil
}

func (optionList) Format(v *tables.Value) string {
	var s []string
	for _, r := range v.List {
		if r.Hi == 255 {
			s = append(s, fmt.Sprint(r.Lo))
		} else {
			s = append(s, fmt.Sprintf("%d:%d", r.Lo, r.Hi))
		}
	}
	return strings.Join(s, ",")
}

// optionsMatch is the match for a header of options, hop-by-hop or destination.
func optionsMatch(name, doc string, kind uint8) *tables.Match {
	length, list := name+"-len", name+"-opts"
	return &tables.Match{
		Name:     name,
		Families: tables.V6,
		Doc:      doc,
		Options: []tables.Option{
			{Name: length, Type: tables.U32, Negatable: true, Arg: "length", Doc: "the header's length, bytes"},
			{Name: list, Type: optionList{}, Arg: "type[:length],…", Doc: "the options that it begins with, up to 16"},
		},
		List: func(a *tables.Args, _ bool) string {
			s := " " + name
			if v := a.Get(length); v.Set {
				s += fmt.Sprintf(" length:%s%d", bang(v), v.Lo)
			}
			if v := a.Get(list); v.Set {
				s += " opts " + optionList{}.Format(v)
			}
			return s
		},
		Depends: tables.DependsL4Header,
		Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
			want, options := *a.Get(length), a.Get(list).List
			return func(c *tables.Context, p *packet.Packet) bool {
				h := findHeader(c, p, kind, 2)
				if h == nil {
					return false
				}
				n := (int(h[1]) + 1) * 8
				if len(h) < n {
					c.Hotdrop = true
					return false
				}
				if want.Set && (want.Lo == uint64(n)) == want.Not {
					return false
				}
				return beginsWith(h[2:n], options)
			}, nil
		},
	}
}

// beginsWith says whether a header's options are these, as far as these go.
func beginsWith(o []byte, want []tables.Range) bool {
	for i, w := range want {
		if len(o) == 0 || uint64(o[0]) != w.Lo {
			return false
		}
		n := 1
		if o[0] != 0 {
			if len(o) < 2 || w.Hi != 255 && w.Hi != uint64(o[1]) {
				return false
			}
			n = int(o[1]) + 2
		}
		if n > len(o) {
			return i == len(want)-1
		}
		o = o[n:]
	}
	return true
}
