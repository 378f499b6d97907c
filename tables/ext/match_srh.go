package ext

import (
	"encoding/binary"
	"fmt"

	"sluice/packet"
	"sluice/tables"
)

// srhNumbers are the options that compare a byte of a segment routing header.
// The three that look at one field share their number: the last one given counts.
var srhNumbers = []struct {
	name  string
	field int // offset in the header
	cmp   int // -1: less, 0: equal, 1: greater
	doc   string
}{
	{"next-hdr", 0, 0, "next header"},
	{"hdr-len-eq", 1, 0, "the length field"}, {"hdr-len-gt", 1, 1, "… is greater"}, {"hdr-len-lt", 1, -1, "… is less"},
	{"segs-left-eq", 3, 0, "segments left"}, {"segs-left-gt", 3, 1, "… are more"}, {"segs-left-lt", 3, -1, "… are less"},
	{"last-entry-eq", 4, 0, "the last entry's index"}, {"last-entry-gt", 4, 1, "… is greater"}, {"last-entry-lt", 4, -1, "… is less"},
}

var srhAddrs = []struct{ name, doc string }{
	{"psid", "the previous segment"}, {"nsid", "the next segment"}, {"lsid", "the last segment"},
}

// srhNumber is a byte; it tells the other options for its field.
type srhNumber struct{ field int }

func (srhNumber) Args() int { return 1 }

func (t srhNumber) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	if err := tables.U8.Parse(o, text, v); err != nil {
		return err
	}
	last, ok := o.Args.State.(*[5]uint64)
	if !ok {
		last = new([5]uint64)
		o.Args.State = last
	}
	last[t.field] = v.Lo
	return nil
}

func (srhNumber) Format(v *tables.Value) string { return tables.U8.Format(v) }

func srhOptions() (os []tables.Option) {
	for _, x := range srhNumbers {
		os = append(os, tables.Option{Name: "srh-" + x.name, Type: srhNumber{x.field}, Negatable: true, Arg: "number", Doc: x.doc})
	}
	os = append(os, tables.Option{Name: "srh-tag", Type: tables.U16, Negatable: true, Arg: "tag", Doc: "the tag"})
	for _, x := range srhAddrs {
		os = append(os, tables.Option{Name: "srh-" + x.name, Type: tables.HostMask, Negatable: true, Arg: "address[/mask]", Doc: x.doc})
	}
	return os
}

var matchSRH = &tables.Match{
	Name:     "srh",
	Families: tables.V6,
	Doc:      "Matches packets with a segment routing header (RFC 8754), by its fields.",
	Options:  srhOptions(),
	Final: func(a *tables.Args) error {
		for _, x := range srhNumbers {
			if v := a.Get("srh-" + x.name); v.Set {
				v.Lo = a.State.(*[5]uint64)[x.field]
			}
		}
		return nil
	},
	Save: func(a *tables.Args) string {
		return srhText(a, func(name string, v *tables.Value, value string) string {
			return notOf(v) + " --srh-" + name + " " + value
		})
	},
	List: func(a *tables.Args, _ bool) string {
		return " srh" + srhText(a, func(name string, v *tables.Value, value string) string {
			if name[1:] == "sid" {
				return " " + name + " " + bang(v) + " " + value
			}
			return " " + name + ":" + bang(v) + value
		})
	},
	Depends: tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		m := &srhMatch{tag: *a.Get("srh-tag")}
		for _, x := range srhNumbers {
			if v := a.Get("srh-" + x.name); v.Set {
				m.bytes = append(m.bytes, srhByte{x.field, x.cmp, int(v.Lo), v.Not})
			}
		}
		for i, x := range srhAddrs {
			m.sids[i] = *a.Get("srh-" + x.name)
		}
		return m.match, nil
	},
}

func srhText(a *tables.Args, one func(name string, v *tables.Value, value string) string) string {
	var s string
	for _, o := range a.Options() {
		v := a.Get(o.Name)
		if !v.Set {
			continue
		}
		value := fmt.Sprint(v.Lo)
		if o.Type == tables.HostMask {
			value = fmt.Sprintf("%s/%d", tables.FormatAddr(packet.IPv6, v.A), v.Hi)
		}
		s += one(o.Name[len("srh-"):], v, value)
	}
	return s
}

type srhByte struct {
	field, cmp, n int
	not           bool
}

type srhMatch struct {
	bytes []srhByte
	tag   tables.Value
	sids  [3]tables.Value
}

func (m *srhMatch) match(_ *tables.Context, p *packet.Packet) bool {
	h, _ := seekHeader(p.Bytes(), headerRouting)
	if len(h) < 8 || len(h) < (int(h[1])+1)*8 || h[2] != 4 || h[3] > h[4] {
		return false
	}
	for _, x := range m.bytes {
		n := int(h[x.field])
		ok := n == x.n
		switch x.cmp {
		case 1:
			ok = n > x.n
		case -1:
			ok = n < x.n
		}
		if ok == x.not {
			return false
		}
	}
	// iptables hands the tag over in the machine's byte order and Linux takes it
	// for the network's.
	if m.tag.Set && (uint64(binary.NativeEndian.Uint16(h[6:])) == m.tag.Lo) == m.tag.Not {
		return false
	}
	left := int(h[3])
	for i, seg := range [3]int{left + 1, left - 1, 0} {
		v := &m.sids[i]
		if !v.Set {
			continue
		}
		at := 8 + 16*seg
		if i == 0 && h[3] == h[4] || seg < 0 || len(h) < at+16 || sameUnder(h[at:at+16], v) == v.Not {
			return false
		}
	}
	return true
}

// sameUnder compares an address with an option's address and mask.
func sameUnder(b []byte, v *tables.Value) bool {
	for i := range b {
		if (b[i]^v.A[i])&v.B[i] != 0 {
			return false
		}
	}
	return true
}
