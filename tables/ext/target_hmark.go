package ext

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/packet/jhash"
	"sluice/tables"
)

// prefixLen is a prefix length or a mask, in Value.Hi and B.
type prefixLen struct{}

func (prefixLen) Args() int { return 1 }

func (prefixLen) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	any := "0.0.0.0/"
	if o.Family == packet.IPv6 {
		any = "::/"
	}
	return tables.HostMask.Parse(o, []string{any + text[0]}, v)
}

func (prefixLen) Format(v *tables.Value) string { return fmt.Sprint(v.Hi) }

// hexWord is a number, printed as 0x with so many digits.
type hexWord struct {
	bits, digits int
}

func (hexWord) Args() int { return 1 }

func (t hexWord) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	return tables.Uint{Max: 1<<t.bits - 1}.Parse(o, text, v)
}

func (t hexWord) Format(v *tables.Value) string { return fmt.Sprintf("0x%0*x", t.digits, v.Lo) }

// hmarkTuple is a list of what is hashed; each word sets the option it stands for.
type hmarkTuple struct{}

func (hmarkTuple) Args() int { return 1 }

func (hmarkTuple) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	a := o.Args
	full := tables.Value{Hi: 32, B: packet.FullMask(o.Family), Lo: uint64(o.Family)}
	if o.Family == packet.IPv6 {
		full.Hi = 128
	}
	rest, more := text[0], true
	for more {
		if rest == "" {
			return tables.Usagef("\"--hmark-tuple\" requires a list of types with no spaces, e.g. src,dst,sport,dport,proto")
		}
		all := rest
		var w string
		w, rest, more = strings.Cut(rest, ",")
		switch w = hmarkType(w); w {
		case "src", "dst":
			a.Set("hmark-"+w+"-prefix", full)
		case "sport", "dport", "proto":
			a.Set("hmark-"+w+"-mask", tables.Value{Lo: 0xffff})
		case "spi":
			a.Set("hmark-spi-mask", tables.Value{Lo: all32})
		case "ct":
			v.Lo = 1
		default:
			return tables.Usagef("Bad type \"%s\"", all)
		}
	}
	return nil
}

// hmarkType is the first type that begins like w, in any case; "": none does.
func hmarkType(w string) string {
	for _, t := range []string{"src", "dst", "sport", "dport", "spi", "proto", "ct"} {
		if w != "" && len(w) <= len(t) && strings.EqualFold(w, t[:len(w)]) {
			return t
		}
	}
	return ""
}

func (hmarkTuple) Format(*tables.Value) string { return "ct" }

var targetHMARK = &tables.Target{
	Name:     "HMARK",
	Families: tables.V4V6,
	Doc:      "Sets the packet's mark to a hash of addresses and ports, the same number for both directions, and the same as Linux's.",
	Options: []tables.Option{
		{Name: "hmark-src-prefix", Type: prefixLen{}, Arg: "length", Doc: "bits of the source address"},
		{Name: "hmark-dst-prefix", Type: prefixLen{}, Arg: "length", Doc: "bits of the destination address"},
		{Name: "hmark-sport-mask", Type: hexWord{16, 4}, Arg: "value", Doc: "bits of the source port"},
		{Name: "hmark-dport-mask", Type: hexWord{16, 4}, Arg: "value", Doc: "bits of the destination port"},
		{Name: "hmark-spi-mask", Type: hexWord{32, 8}, Arg: "value", Doc: "AH, ESP: bits of the SPI"},
		{Name: "hmark-sport", Type: hexWord{16, 4}, Arg: "value", Doc: "binary OR with the source port"},
		{Name: "hmark-dport", Type: hexWord{16, 4}, Arg: "value", Doc: "binary OR with the destination port"},
		{Name: "hmark-spi", Type: hexWord{32, 8}, Arg: "value", Doc: "AH, ESP: binary OR with the SPI"},
		{Name: "hmark-proto-mask", Type: hexWord{16, 2}, Arg: "value", Doc: "bits of the protocol"},
		{Name: "hmark-rnd", Type: hexWord{32, 8}, Arg: "value", Doc: "the hash's seed"},
		{Name: "hmark-mod", Type: tables.Uint{Min: 1, Max: all32}, Arg: "value", Doc: "how many different marks"},
		{Name: "hmark-offset", Type: tables.U32, Arg: "value", Doc: "the lowest mark"},
		{Name: "hmark-tuple", Type: hmarkTuple{}, Arg: "[src|dst|sport|dport|spi|proto|ct],…", Doc: "what is hashed; ct: of the connection as it began"},
	},
	First: func(a *tables.Args) error {
		other := false
		for _, o := range a.Options() {
			switch o.Name {
			case "hmark-rnd", "hmark-mod", "hmark-offset":
			default:
				other = other || a.Has(o.Name)
			}
		}
		ports := a.Has("hmark-sport-mask") || a.Has("hmark-dport-mask")
		switch {
		case !a.Has("hmark-mod"):
			return tables.Usagef("--hmark-mod is mandatory")
		case !a.Has("hmark-rnd"):
			return tables.Usagef("--hmark-rnd is mandatory")
		case a.Has("hmark-spi-mask") && ports:
			return tables.Usagef("you cannot use --hmark-spi-mask and --hmark-?port-mask,at the same time")
		case !other:
			return tables.Usagef("you have to specify --hmark-tuple at least")
		}
		return nil
	},
	Final: func(a *tables.Args) error {
		if a.Num("hmark-tuple") == 0 {
			a.Clear("hmark-tuple")
		}
		return nil
	},
	List: hmarkList,
	Check: func(a *tables.Args, _ *tables.Place) error {
		if a.Has("hmark-spi") && (a.Has("hmark-sport") || a.Has("hmark-dport")) {
			return errors.New("HMARK: an SPI and ports exclude each other")
		}
		return nil
	},
	Depends: tables.DependsMark | tables.DependsL4Header,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
		h := &hmark{
			src: a.Get("hmark-src-prefix").B, dst: a.Get("hmark-dst-prefix").B, ct: a.Has("hmark-tuple"),
			mask: uint32(a.Num("hmark-sport-mask")<<16 | a.Num("hmark-dport-mask") | a.Num("hmark-spi-mask")),
			or:   uint32(a.Num("hmark-sport")<<16 | a.Num("hmark-dport") | a.Num("hmark-spi")),
			prot: uint32(a.Num("hmark-proto-mask")), seed: uint32(a.Num("hmark-rnd")),
			mod: uint32(a.Num("hmark-mod")), offset: uint32(a.Num("hmark-offset")),
		}
		return h.target, nil
	},
}

func hmarkList(a *tables.Args, _ bool) string {
	s := fmt.Sprintf(" HMARK mod %d ", a.Num("hmark-mod"))
	if a.Has("hmark-offset") {
		s += fmt.Sprintf("+ 0x%x ", a.Num("hmark-offset"))
	}
	if a.Has("hmark-tuple") {
		s += "ct, "
	}
	for _, o := range a.Options() {
		v := a.Get(o.Name)
		if !v.Set {
			continue
		}
		switch name := o.Name[len("hmark-"):]; name {
		case "mod", "offset", "tuple":
		case "src-prefix", "dst-prefix":
			if v.Hi == 128 {
				s += name + "  "
			} else {
				s += fmt.Sprintf("%s %d ", name, v.Hi)
			}
		default:
			s += fmt.Sprintf("%s 0x%x ", name, v.Lo)
		}
	}
	return s
}

type hmark struct {
	src, dst    [16]byte // masks
	mask, or    uint32   // of both ports, the source's first, or of the SPI
	prot, seed  uint32
	mod, offset uint32
	ct          bool
}

// hmarkKey is what is hashed.
type hmarkKey struct {
	src, dst, ports uint32
	proto           uint8
}

func (h *hmark) target(c *tables.Context, p *packet.Packet) tables.Result {
	var k hmarkKey
	ok := false
	switch {
	case h.ct:
		ok = h.fromFlow(&k, c.Entry(p))
	case p.Family == packet.IPv4:
		ok = h.from4(&k, p.Bytes())
	default:
		ok = h.from6(&k, p)
	}
	if ok {
		src, dst := min(k.src, k.dst), max(k.src, k.dst)
		sum := jhash.Hash3(src, dst, k.ports, h.seed) ^ uint32(k.proto)&h.prot
		p.Mark = jhash.Scale(sum, h.mod) + h.offset
	}
	return tables.Continue
}

// hmarkAddr folds an address under a mask to a word.
func hmarkAddr(a, mask []byte) (n uint32) {
	for i := 0; i < len(a); i += 4 {
		n ^= binary.BigEndian.Uint32(a[i:]) & binary.BigEndian.Uint32(mask[i:])
	}
	return n
}

// setPorts puts the greater port first, so that both directions are the same.
func (h *hmark) setPorts(k *hmarkKey, raw uint32) {
	w := raw&h.mask | h.or
	s, d := w>>16, w&0xffff
	k.ports = max(s, d)<<16 | min(s, d)
}

func (h *hmark) fromFlow(k *hmarkKey, e *conntrack.Entry) bool {
	if e == nil {
		return false
	}
	o, r := e.Tuple(conntrack.Original), e.Tuple(conntrack.Reply)
	n := 4
	if o.Family == packet.IPv6 {
		n = 16
	}
	k.src, k.dst = hmarkAddr(o.Src[:n], h.src[:]), hmarkAddr(r.Src[:n], h.dst[:])
	k.proto = o.Proto
	if o.Proto != packet.ProtoICMP {
		h.setPorts(k, uint32(o.SrcPort)<<16|uint32(r.SrcPort))
	}
	return true
}

// transportPorts reads the ports or the SPI of a transport header, as far as it is there.
func (h *hmark) transportPorts(k *hmarkKey, t []byte) {
	switch k.proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoDCCP, packet.ProtoESP, packet.ProtoSCTP, packet.ProtoUDPLite:
	case packet.ProtoAH:
		if len(t) < 4 {
			return
		}
		t = t[4:]
	default:
		return
	}
	if len(t) >= 4 {
		h.setPorts(k, binary.BigEndian.Uint32(t))
	}
}

// from4 hashes the packet, or the one that an ICMP error quotes.
func (h *hmark) from4(k *hmarkKey, b []byte) bool {
	if n := int(b[0]&15) * 4; b[9] == packet.ProtoICMP && len(b) >= n+8 {
		switch b[n] {
		case 3, 4, 5, 11, 12:
			if b = b[n+8:]; len(b) < 20 {
				return false
			}
		}
	}
	k.src, k.dst = hmarkAddr(b[12:16], h.src[:]), hmarkAddr(b[16:20], h.dst[:])
	k.proto = b[9]
	if n := int(b[0]&15) * 4; k.proto != packet.ProtoICMP && binary.BigEndian.Uint16(b[6:])&0x3fff == 0 && len(b) >= n {
		h.transportPorts(k, b[n:])
	}
	return true
}

func (h *hmark) from6(k *hmarkKey, p *packet.Packet) bool {
	b := p.Bytes()
	proto, t, fragment, ok := transport6(b)
	if !ok {
		return true // as Linux: an empty key
	}
	if proto == packet.ProtoICMPv6 && !fragment && len(t) >= 8 && t[0] > 0 && t[0] < 128 {
		if b = t[8:]; len(b) < 40 {
			return false
		}
		if proto, t, fragment, ok = transport6(b); !ok {
			return false
		}
	}
	k.src, k.dst = hmarkAddr(b[8:24], h.src[:]), hmarkAddr(b[24:40], h.dst[:])
	k.proto = proto
	if proto != packet.ProtoICMPv6 && !fragment {
		h.transportPorts(k, t)
	}
	return true
}

// transport6 finds the transport header, which for this is also an AH.
func transport6(b []byte) (proto uint8, t []byte, fragment, ok bool) {
	at, next := 40, b[6]
	for packet.Extension(next) && next != packet.ProtoAH {
		if len(b) < at+4 {
			return 0, nil, fragment, false
		}
		size := (int(b[at+1]) + 1) * 8
		if next == headerFragment {
			fragment = true
			if size = 8; binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return b[at], nil, true, !packet.Extension(b[at])
			}
		}
		next = b[at]
		at += size
	}
	return next, b[min(at, len(b)):], fragment, true
}
