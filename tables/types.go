package tables

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sluice/packet"
)

// errBad and its kin are libxtables' texts for a bad argument.
func (o *OptionContext) errNear(near string, lo, hi uint64) error {
	return Usagef("%s: bad value for option \"--%s\" near \"%s\", or out of range (%d-%d).\n", o.Ext, o.Name, near, lo, hi)
}

func (o *OptionContext) errBad(text string, lo, hi uint64) error {
	return Usagef("%s: bad value for option \"--%s\", or out of range (%d-%d).\n", o.Ext, o.Name, lo, hi)
}

// Flag is the type of an option without argument.
var Flag Type = flagType{}

type flagType struct{}

func (flagType) Args() int                                    { return 0 }
func (flagType) Parse(*OptionContext, []string, *Value) error { return nil }
func (flagType) Format(*Value) string                         { return "" }

// Uint is a number in Value.Lo, in decimal, 0x hex or 0 octal as strtoul reads.
type Uint struct {
	Min, Max uint64
	Hex      bool // printed as 0x…
}

// Unsigned numbers of a width.
var (
	U8  = Uint{0, 1<<8 - 1, false}
	U16 = Uint{0, 1<<16 - 1, false}
	U32 = Uint{0, 1<<32 - 1, false}
	U64 = Uint{0, 1<<64 - 1, false}
)

func (t Uint) Args() int { return 1 }

func (t Uint) Parse(o *OptionContext, text []string, v *Value) error {
	n, rest, ok := Strtoul(text[0], t.Min, t.Max)
	if !ok || rest != "" {
		return o.errBad(text[0], t.Min, t.Max)
	}
	v.Lo = n
	return nil
}

func (t Uint) Format(v *Value) string {
	if t.Hex {
		return "0x" + strconv.FormatUint(v.Lo, 16)
	}
	return strconv.FormatUint(v.Lo, 10)
}

// UintRange is a number or a range lo:hi in Value.Lo and Hi; a missing end is
// the end of the type. The ends need not be in order.
type UintRange struct{ Max uint64 }

// Ranges of numbers of a width.
var (
	U8Range  = UintRange{1<<8 - 1}
	U16Range = UintRange{1<<16 - 1}
	U32Range = UintRange{1<<32 - 1}
	U64Range = UintRange{1<<64 - 1}
)

func (t UintRange) Args() int { return 1 }

func (t UintRange) Parse(o *OptionContext, text []string, v *Value) error {
	ends := [2]uint64{0, t.Max}
	n, err := o.parts(text[0], func(i int, s string) (string, error) {
		x, rest, ok := Strtoul(s, 0, t.Max)
		if !ok {
			return "", o.errNear(s, 0, t.Max)
		}
		if rest != "" && rest[0] != ':' {
			return "", Usagef("%s: Argument to \"--%s\" has unexpected characters near \"%s\".\n", o.Ext, o.Name, rest)
		}
		ends[i] = x
		return rest, nil
	})
	v.Lo, v.Hi = ends[0], ends[1]
	if n == 1 {
		v.Hi = v.Lo
	}
	return err
}

// parts takes an argument of at most two parts with a colon between them apart,
// from the left, as libxtables does: what comes first is complained about first.
// read gets what is left, from part i on, and gives what follows the part; it is
// not called for an empty part. n is how many parts there are.
func (o *OptionContext) parts(s string, read func(i int, s string) (rest string, err error)) (n int, err error) {
	for ; ; n++ {
		if s == "" && n < 2 {
			return n + 1, nil
		}
		if n == 2 {
			return n, Usagef("%s: Too many components for option \"--%s\" (max: 2)\n", o.Ext, o.Name)
		}
		if s[0] != ':' {
			if s, err = read(n, s); err != nil || s == "" {
				return n + 1, err
			}
		}
		s = s[1:]
	}
}

func (t UintRange) Format(v *Value) string {
	if v.Lo == v.Hi {
		return strconv.FormatUint(v.Lo, 10)
	}
	return fmt.Sprintf("%d:%d", v.Lo, v.Hi)
}

// Strtoul reads a number as C's strtoul with base 0 does and gives what follows
// it. ok is false where there is no number or it is out of range.
func Strtoul(s string, lo, hi uint64) (n uint64, rest string, ok bool) {
	d := strings.TrimLeft(s, " \t\n\v\f\r")
	if strings.HasPrefix(d, "-") {
		return 0, s, false
	}
	d = strings.TrimPrefix(d, "+")
	base, i := uint64(10), 0
	digit := func(c byte) uint64 {
		switch {
		case c >= '0' && c <= '9':
			return uint64(c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			return uint64(c|0x20-'a') + 10
		}
		return 99
	}
	switch {
	case len(d) > 2 && d[0] == '0' && d[1]|0x20 == 'x' && digit(d[2]) < 16:
		base, i = 16, 2
	case len(d) > 0 && d[0] == '0':
		base = 8
	}
	start := i
	for ; i < len(d) && digit(d[i]) < base; i++ {
		next := n*base + digit(d[i])
		if n > (1<<64-1)/base || next < n {
			return 0, s, false
		}
		n = next
	}
	if i == start || n < lo || n > hi {
		return 0, s, false
	}
	return n, d[i:], true
}

// ScanUint reads a number as scanf's %u: blanks, a sign, digits, of which those
// that do not fit make the largest number; rest is what follows.
func ScanUint(s string) (n uint64, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	i := 0
	if i < len(s) && (s[i] == '-' || s[i] == '+') {
		i++
	}
	digits := i
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(s[digits:i], 10, 64)
	if err == nil && s[0] == '-' {
		n = -n
	}
	return n, s[i:], i > digits
}

// MarkMask is value[/mask], in Value.Lo and Hi; no mask is all ones.
var MarkMask Type = markMask{}

type markMask struct{}

func (markMask) Args() int { return 1 }

func (markMask) Parse(o *OptionContext, text []string, v *Value) error {
	n, rest, ok := Strtoul(text[0], 0, 1<<32-1)
	if !ok {
		return Usagef("%s: bad integer value for option \"--%s\", or out of range.\n", o.Ext, o.Name)
	}
	v.Lo, v.Hi = n, 1<<32-1
	if strings.HasPrefix(rest, "/") {
		if v.Hi, rest, ok = Strtoul(rest[1:], 0, 1<<32-1); !ok {
			return Usagef("%s: bad integer value for option \"--%s\", or out of range.\n", o.Ext, o.Name)
		}
	}
	if rest != "" {
		return Usagef("%s: trailing garbage after value for option \"--%s\".\n", o.Ext, o.Name)
	}
	return nil
}

func (markMask) Format(v *Value) string {
	if v.Hi == 1<<32-1 {
		return fmt.Sprintf("0x%x", v.Lo)
	}
	return fmt.Sprintf("0x%x/0x%x", v.Lo, v.Hi)
}

// String is any text in Value.Str: at least Min and at most Max bytes (0: any
// length), silently cut to Trim bytes (0: not).
type String struct{ Min, Max, Trim int }

func (String) Args() int { return 1 }

func (t String) Parse(o *OptionContext, text []string, v *Value) error {
	if t.Min > 0 && len(text[0]) < t.Min {
		return Usagef("Argument must have a minimum length of %d characters\n", t.Min)
	}
	if t.Max > 0 && len(text[0]) > t.Max {
		return Usagef("Argument must have a maximum length of %d characters\n", t.Max)
	}
	v.Str = text[0]
	if t.Trim > 0 && len(v.Str) > t.Trim {
		v.Str = v.Str[:t.Trim]
	}
	return nil
}

func (String) Format(v *Value) string { return Quote(v.Str) }

// Quote prints a string as iptables-save does: in quotes where it has anything
// but letters, digits, '_' and '-'.
func Quote(s string) string {
	plain := s != ""
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
			plain = false
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c == '"' || c == '\\' || c == '\'' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

// Host is one address of the rule's family in Value.A.
var Host Type = hostType{}

type hostType struct{}

func (hostType) Args() int { return 1 }

func (hostType) Parse(o *OptionContext, text []string, v *Value) error {
	a, ok := ParseAddr(o.Family, text[0])
	if !ok {
		return Usagef("%s: Could not resolve \"%s\" for option \"--%s\".\n", o.Ext, text[0], o.Name)
	}
	v.A, v.Lo = a, uint64(o.Family)
	return nil
}

func (hostType) Format(v *Value) string { return FormatAddr(uint8(v.Lo), v.A) }

// ParseAddr reads an address of a family: IPv4 in the first four bytes.
func ParseAddr(fam uint8, s string) (out [16]byte, ok bool) {
	if fam == packet.IPv4 {
		b, ok := parseIPv4(s)
		copy(out[:], b[:])
		return out, ok
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4() || a.Zone() != "" {
		return out, false
	}
	return a.As16(), true
}

// FormatAddr prints an address as inet_ntop does.
func FormatAddr(fam uint8, a [16]byte) string {
	if fam == packet.IPv4 {
		return netip.AddrFrom4([4]byte(a[:4])).String()
	}
	return ntop6(a)
}

// HostMask is an address with an optional prefix length or mask in Value.A and
// B; Lo is the family, Hi the prefix length. The address keeps its host bits.
var HostMask Type = hostMask{}

type hostMask struct{}

func (hostMask) Args() int { return 1 }

func (hostMask) Parse(o *OptionContext, text []string, v *Value) error {
	host, mask, has := strings.Cut(text[0], "/")
	a, ok := parseHost(o.Family, host)
	if !ok && o.Resolve != nil && host != "" && len(host) <= maxHostName {
		if found := o.Resolve(o.Family, host); len(found) > 0 {
			a, ok = found[0], true
		}
	}
	if !ok {
		if _, other := parseHost(packet.IPv4+packet.IPv6-o.Family, host); other {
			return Usagef("getaddrinfo: Address family for hostname not supported\n")
		}
		return Usagef("getaddrinfo: Name or service not known\n")
	}
	width := uint64(32)
	if o.Family == packet.IPv6 {
		width = 128
	}
	v.A, v.Lo, v.Hi = a, uint64(o.Family), width
	if has {
		n, rest, ok := Strtoul(mask, 0, width)
		if !ok || rest != "" {
			m, ok := parseHost(o.Family, mask)
			if !ok {
				return Usagef("%s: bad value for option \"--%s\", neither a valid network mask nor valid CIDR (0-%d).\n", o.Ext, o.Name, width)
			}
			bits, contiguous := MaskBits(m)
			if n = uint64(bits); !contiguous {
				n = width // a mask with holes counts as all ones there
			}
		}
		v.Hi = n
	}
	v.B = bitMask(int(v.Hi))
	return nil
}

func (hostMask) Format(v *Value) string {
	s := FormatAddr(uint8(v.Lo), v.A)
	if v.Lo == uint64(packet.IPv4) && v.Hi == 32 || v.Hi == 128 {
		return s
	}
	return fmt.Sprintf("%s/%d", s, v.Hi)
}

// parseHost reads an address as getaddrinfo does: in IPv4, the last of fewer
// than four numbers fills the remaining bytes.
func parseHost(fam uint8, s string) (out [16]byte, ok bool) {
	if fam == packet.IPv6 {
		return ParseAddr(fam, s)
	}
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return out, false
	}
	for i, p := range parts {
		limit := uint64(255)
		last := i == len(parts)-1
		if last {
			limit = 1<<(8*(4-i)) - 1
		}
		n, rest, ok := Strtoul(p, 0, limit)
		if !ok || rest != "" || p[0] < '0' || p[0] > '9' {
			return out, false
		}
		if !last {
			out[i] = byte(n)
			continue
		}
		for j := 3; j >= i; j-- {
			out[j] = byte(n)
			n >>= 8
		}
	}
	return out, true
}

// OneOf is a word of a list, compared without regard to case; Value.Lo is its
// index. Bad is the text for another word (%s).
type OneOf struct {
	Words []string
	Bad   string
}

func (OneOf) Args() int { return 1 }

func (t OneOf) Parse(_ *OptionContext, text []string, v *Value) error {
	for i, w := range t.Words {
		if strings.EqualFold(w, text[0]) {
			v.Lo = uint64(i)
			return nil
		}
	}
	return Usagef("%s", strings.ReplaceAll(t.Bad, "%s", text[0]))
}

func (t OneOf) Format(v *Value) string { return t.Words[v.Lo] }

// StateList is a list of words, each of which may be cut short, as bits in
// Value.Lo. Words are in the order in which they are printed, Bits beside them;
// What names the thing in errors.
type StateList struct {
	What  string
	Words []string
	Bits  []uint64
	Try   []int  // order in which words are tried; nil: as they are
	Empty string // text for a list that ends with a comma; "": the usual one
}

func (StateList) Args() int { return 1 }

func (t StateList) Parse(_ *OptionContext, text []string, v *Value) error {
	for rest := text[0]; ; {
		w, more, comma := strings.Cut(rest, ",")
		if !comma && w == "" && t.Empty != "" {
			return Usagef("%s", t.Empty)
		}
		bit, ok := t.find(w)
		if !ok {
			return Usagef("Bad %s \"%s\"", t.What, rest)
		}
		v.Lo |= bit
		if !comma {
			return nil
		}
		rest = more
	}
}

func (t StateList) find(w string) (uint64, bool) {
	for i := range t.Words {
		if t.Try != nil {
			i = t.Try[i]
		}
		if s := t.Words[i]; w != "" && len(w) <= len(s) && strings.EqualFold(w, s[:len(w)]) {
			return t.Bits[i], true
		}
	}
	return 0, false
}

func (t StateList) Format(v *Value) string {
	var out []string
	for i, w := range t.Words {
		if b := t.Bits[i]; b != 0 && v.Lo&b == b || b == 0 && v.Lo == 0 {
			out = append(out, w)
		}
	}
	return strings.Join(out, ",")
}
