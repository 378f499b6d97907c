package tables

import (
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sluice/packet"
)

// parseIPv4 reads one to four numbers with dots between, as iptables does: the
// ones that are missing are zeros at the end.
func parseIPv4(s string) (b [4]byte, ok bool) {
	more := true
	for i := 0; more; i++ {
		var p string
		p, s, more = strings.Cut(s, ".")
		n, rest, ok := Strtoul(p, 0, 255)
		if !ok || rest != "" || i == len(b) {
			return b, false
		}
		b[i] = byte(n)
	}
	return b, true
}

// parseMask reads what follows the slash of an address.
func parseMask(fam uint8, s string) (m [16]byte, ok bool) {
	width := uint64(32)
	if fam == packet.IPv6 {
		width = 128
		if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
			return a.As16(), true
		}
	} else if strings.Contains(s, ".") {
		b, ok := parseIPv4(s)
		copy(m[:], b[:])
		return m, ok && strings.Count(s, ".") == 3
	}
	n, rest, ok := Strtoul(s, 0, width)
	if !ok || rest != "" {
		return m, false
	}
	return bitMask(int(n)), true
}

func bitMask(n int) (m [16]byte) {
	for i := range n / 8 {
		m[i] = 0xff
	}
	if n%8 != 0 {
		m[n/8] = 0xff << (8 - n%8)
	}
	return m
}

// MaskBits is the length of a contiguous mask; ok is false for others.
func MaskBits(m [16]byte) (n int, ok bool) {
	for i, b := range m {
		if b != 0xff {
			n = i*8 + bits.LeadingZeros8(^b)
			break
		}
		n = i*8 + 8
	}
	return n, m == bitMask(n)
}

const maxHostName = 255

// mappedAddr reads an IPv4 address that is written as one of IPv6.
func mappedAddr(fam uint8, s string) (out [16]byte, ok bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || fam != packet.IPv4 || !a.Is4In6() {
		return out, false
	}
	b := a.As4()
	copy(out[:], b[:])
	return out, true
}

// addrs adds to out what -s or -d names, if given: addresses, or names, with
// masks, in a list with commas.
func (ps *Parser) addrs(out []Addr, text string, given bool) ([]Addr, error) {
	if !given {
		return append(out, Addr{}), nil
	}
	width := 32
	if ps.Family == packet.IPv6 {
		width = 128
	}
	list := strings.Contains(text, ",")
	for more := true; more; {
		var s string
		s, text, more = strings.Cut(text, ",")
		s = strings.TrimLeft(s, " ")
		host, mask, has := s, "", false
		if i := strings.LastIndexByte(s, '/'); i >= 0 {
			host, mask, has = s[:i], s[i+1:], true
		}
		m := bitMask(width)
		if has {
			var ok bool
			if m, ok = parseMask(ps.Family, mask); !ok {
				return nil, Usagef("invalid mask `%s' specified", mask)
			}
		}
		var found [][16]byte
		if a, ok := ParseAddr(ps.Family, host); ok {
			found = append(found, a)
		} else if a, ok := mappedAddr(ps.Family, host); ok {
			found = append(found, a)
		} else if has && m == ([16]byte{}) {
			found = append(found, m) // under a mask of nothing the name does not matter
		} else if len(host) > maxHostName {
			return nil, Usagef("Hostname too long")
		} else if ps.Resolve != nil && host != "" {
			found = ps.Resolve(ps.Family, host)
		}
		if len(found) == 0 {
			return nil, Usagef("host/network `%s' not found", host)
		}
		for _, a := range found {
			for i := range a {
				a[i] &= m[i]
			}
			n := Addr{Addr: a, Mask: m}
			if list || !slices.Contains(out, n) { // a list may say things twice, a name's addresses under a mask do not
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// appendMasked prints an address with its mask as -S does; always with the mask.
func appendMasked(b []byte, fam uint8, a *Addr) []byte {
	if fam == packet.IPv4 {
		b = netip.AddrFrom4([4]byte(a.Addr[:4])).AppendTo(b)
	} else {
		b = append(b, ntop6(a.Addr)...)
	}
	b = append(b, '/')
	if n, ok := MaskBits(a.Mask); ok {
		return strconv.AppendInt(b, int64(n), 10)
	}
	return append(b, FormatAddr(fam, a.Mask)...)
}

// ntop6 prints an IPv6 address as glibc's inet_ntop: IPv4-compatible and
// IPv4-mapped addresses with a dotted quad.
func ntop6(b [16]byte) string {
	a := netip.AddrFrom16(b)
	high := [10]byte{}
	if [10]byte(b[:10]) != high {
		return a.String()
	}
	v4 := netip.AddrFrom4([4]byte(b[12:])).String()
	switch {
	case b[10] == 0xff && b[11] == 0xff:
		return "::ffff:" + v4
	case b[10] == 0 && b[11] == 0 && (b[12] != 0 || b[13] != 0):
		return "::" + v4
	}
	return a.String()
}
