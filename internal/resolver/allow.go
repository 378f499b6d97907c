package resolver

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Allow is one entry of an allow list: a name, or addresses, and the port that
// connections may go to.
type Allow struct {
	Name   string       // lower case, ASCII, no dot at the end; "*.example.org" is every name below example.org, "*" every name
	Prefix netip.Prefix // instead of a name
	Port   uint16       // 0: any
}

// ParseAllow reads "example.org", "*.example.org:443", "192.0.2.1", "192.0.2.0/24:22",
// "[2001:db8::1]:443" or "2001:db8::/32".
func ParseAllow(s string) (Allow, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return Allow{Prefix: netip.PrefixFrom(ap.Addr(), ap.Addr().BitLen()), Port: ap.Port()}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return Allow{Prefix: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return Allow{Prefix: p.Masked()}, nil
	}
	var out Allow
	host, port, ok := strings.Cut(s, ":")
	if ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return out, fmt.Errorf("%q: %q is no port; want NAME, NAME:PORT or *.NAME:PORT", s, port)
		}
		out.Port = uint16(n)
	}
	if p, err := netip.ParsePrefix(host); err == nil {
		out.Prefix = p.Masked()
		return out, nil
	}
	name, err := Canonical(strings.TrimPrefix(host, "*."))
	switch {
	case host == "*":
		out.Name = "*"
		return out, nil
	case err != nil:
		return out, fmt.Errorf("%q: %w", s, err)
	case strings.HasPrefix(host, "*."):
		name = "*." + name
	}
	out.Name = name
	return out, nil
}

// Canonical is a domain name in lower case, ASCII, without the dot at its end.
func Canonical(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	ascii, err := idna.Punycode.ToASCII(strings.ToLower(name))
	if err != nil {
		return "", fmt.Errorf("%q is no domain name", name)
	}
	if ascii == "" || len(ascii) > 253 {
		return "", fmt.Errorf("%q is no domain name", name)
	}
	for _, label := range strings.Split(ascii, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("%q is no domain name", name)
		}
		for _, c := range []byte(label) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte("*/\\:@[]\"'", c) >= 0 {
				return "", fmt.Errorf("%q is no domain name: it contains %q", name, c)
			}
		}
	}
	return ascii, nil
}

// String is the entry as ParseAllow reads it.
func (a Allow) String() string {
	s := a.Name
	if a.Prefix.IsValid() {
		s = a.Prefix.String()
		if a.Prefix.IsSingleIP() {
			s = a.Prefix.Addr().String()
			if a.Port != 0 {
				return netip.AddrPortFrom(a.Prefix.Addr(), a.Port).String()
			}
		}
	}
	if a.Port != 0 {
		s += ":" + strconv.Itoa(int(a.Port))
	}
	return s
}

// Matches says whether a canonical name is meant.
func (a Allow) Matches(name string) bool {
	if base, ok := strings.CutPrefix(a.Name, "*"); ok { // ".example.org", or "" for every name
		return strings.HasSuffix(name, base) && len(name) > len(base)
	}
	return a.Name != "" && a.Name == name
}

// ports are the ports that connections to a name may go to; all: to any.
// ok is false for a name that is not on the list.
func ports(list []Allow, name string) (some []uint16, all, ok bool) {
	for _, a := range list {
		if !a.Matches(name) {
			continue
		}
		ok = true
		if a.Port == 0 {
			return nil, true, true
		}
		some = append(some, a.Port)
	}
	return some, false, ok
}
