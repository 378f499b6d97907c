package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"sluice/router"
)

// texts says how a string becomes a value of each type that is written as one.
var texts = map[reflect.Type]textParser{
	reflect.TypeFor[netip.Prefix]():       func(_ *decoder, s string) (any, error) { return prefix(s) },
	reflect.TypeFor[netip.Addr]():         func(_ *decoder, s string) (any, error) { return address(s) },
	reflect.TypeFor[time.Duration]():      func(_ *decoder, s string) (any, error) { return duration(s) },
	reflect.TypeFor[router.Owner]():       func(_ *decoder, s string) (any, error) { return owner(s) },
	reflect.TypeFor[router.HostRoute]():   func(_ *decoder, s string) (any, error) { return hostRoute(s) },
	reflect.TypeFor[router.MarkMatch]():   func(_ *decoder, s string) (any, error) { return mark(s) },
	reflect.TypeFor[router.Listen]():      func(_ *decoder, s string) (any, error) { return listen(s) },
	reflect.TypeFor[router.HostListen]():  hostListen,
	reflect.TypeFor[router.NameServer]():  func(_ *decoder, s string) (any, error) { return nameServer(s) },
	reflect.TypeFor[router.Allow]():       func(_ *decoder, s string) (any, error) { return router.ParseAllow(s) },
	reflect.TypeFor[netip.AddrPort]():     func(_ *decoder, s string) (any, error) { return addrPort(s) },
	reflect.TypeFor[router.RestoreFile](): restoreFile,
}

// numbers are the types of texts that may also be written as a TOML integer.
var numbers = map[reflect.Type]bool{
	reflect.TypeFor[router.MarkMatch](): true,
	reflect.TypeFor[router.Owner]():     true,
	reflect.TypeFor[time.Duration]():    true,
}

// prefix reads "10.0.0.0/8", or "default", which is the zero Prefix until it
// is known of which family. Host bits are kept: for an address they are the
// point, and where they are wrong the caller says so.
func prefix(s string) (netip.Prefix, error) {
	if s == "default" {
		return netip.Prefix{}, nil
	}
	host, bits, slash := strings.Cut(s, "/")
	a, err := address(host)
	if err != nil {
		return netip.Prefix{}, err
	}
	n := a.BitLen()
	if slash {
		i, err := strconv.Atoi(bits)
		if err != nil || i < 0 || i > n || strconv.Itoa(i) != bits {
			if strings.ContainsRune(bits, '.') {
				return netip.Prefix{}, &offsetError{len(host) + 1, fmt.Sprintf("%q: write the prefix length, not a mask", s)}
			}
			return netip.Prefix{}, &offsetError{len(host) + 1, fmt.Sprintf("bad prefix length %q in %q: want 0 to %d", bits, s, n)}
		}
		n = i
	}
	return netip.PrefixFrom(a, n), nil
}

func address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%q is not an IP address", s)
	case a.Zone() != "":
		return a, &offsetError{strings.IndexByte(s, '%'), fmt.Sprintf("%q: no %%zone here; name the interface in dev", s)}
	case a.Is4In6():
		return a, fmt.Errorf("%q is an IPv4 address written as IPv6: write %s", s, a.Unmap())
	}
	return a, nil
}

func duration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	t, err := time.ParseDuration(s)
	if err != nil || t < 0 {
		return 0, fmt.Errorf("%q is not a duration such as \"50us\" or \"0\"", s)
	}
	return t, nil
}

func owner(s string) (router.Owner, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return router.Owner{Name: s, UID: uint32(n)}, nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return router.Owner{}, fmt.Errorf("no user %q on this machine", s)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return router.Owner{}, fmt.Errorf("user %q has no number", s)
	}
	return router.Owner{Name: s, UID: uint32(n)}, nil
}

// mark reads VALUE or VALUE/MASK, as `ip rule … fwmark`.
func mark(s string) (router.MarkMatch, error) {
	val, mask, slash := strings.Cut(s, "/")
	m := router.MarkMatch{Mask: 0xffffffff}
	v, err := strconv.ParseUint(val, 0, 32)
	if err != nil {
		return m, fmt.Errorf("bad mark %q: want a value or value/mask, such as \"0x1/0xff\"", s)
	}
	m.Value = uint32(v)
	if slash {
		v, err := strconv.ParseUint(mask, 0, 32)
		if err != nil {
			return m, &offsetError{len(val) + 1, fmt.Sprintf("bad mark mask %q", mask)}
		}
		m.Mask = uint32(v)
	}
	if m.Mask == 0 {
		return m, &offsetError{len(val) + 1, "a mark mask of 0 matches everything: leave fwmark out"}
	}
	return m, nil
}

// listen reads "tcp://ADDR:PORT".
func listen(s string) (router.Listen, error) {
	network, rest, ok := strings.Cut(s, "://")
	if !ok || network != "tcp" && network != "udp" {
		return router.Listen{}, fmt.Errorf("%q: want tcp://ADDRESS:PORT or udp://ADDRESS:PORT", s)
	}
	off := len(network) + 3
	ap, err := netip.ParseAddrPort(rest)
	if err != nil {
		if host, _, found := strings.Cut(rest, ":"); found && host == "" {
			return router.Listen{}, &offsetError{off, fmt.Sprintf("%q has no address: write %s://0.0.0.0%s or %s://[::]%s", s, network, rest, network, rest)}
		}
		return router.Listen{}, &offsetError{off, fmt.Sprintf("%q is not ADDRESS:PORT", rest)}
	}
	if _, err := address(ap.Addr().String()); err != nil {
		return router.Listen{}, &offsetError{off, err.Error()}
	}
	if ap.Port() == 0 {
		return router.Listen{}, &offsetError{off + strings.LastIndexByte(rest, ':') + 1, "port 0 cannot be listened on"}
	}
	return router.Listen{Network: network, Addr: ap}, nil
}

// word is a piece of a string and its offset.
type word struct {
	text string
	off  int
}

func words(s string) []word {
	var out []word
	for i := 0; i < len(s); {
		if s[i] == ' ' || s[i] == '\t' {
			i++
			continue
		}
		j := i
		for j < len(s) && s[j] != ' ' && s[j] != '\t' {
			j++
		}
		out = append(out, word{s[i:j], i})
		i = j
	}
	return out
}

// hostRoute reads what `ip route add` takes: PREFIX [via ADDR] [src ADDR] [metric N].
func hostRoute(s string) (router.HostRoute, error) {
	r := router.HostRoute{Text: s}
	ws := words(s)
	if len(ws) == 0 {
		return r, errors.New(`an empty route; write it as for "ip route add": "default via 10.0.1.1"`)
	}
	to, err := prefix(ws[0].text)
	if err != nil {
		return r, &offsetError{ws[0].off, err.Error()}
	}
	for i := 1; i < len(ws); i += 2 {
		key := ws[i]
		if i+1 == len(ws) {
			return r, &offsetError{key.off, fmt.Sprintf("%q has no value behind it", key.text)}
		}
		val := ws[i+1]
		var err error
		switch key.text {
		case "via":
			r.Via, err = address(val.text)
		case "src":
			r.Src, err = address(val.text)
		case "metric":
			r.Metric, err = strconv.Atoi(val.text)
			if err != nil || r.Metric < 0 {
				err = fmt.Errorf("bad metric %q", val.text)
			}
		case "dev":
			return r, &offsetError{key.off, "the device is this interface: leave dev out"}
		default:
			return r, &offsetError{key.off, fmt.Sprintf("unknown word %q: a route here is PREFIX [via ADDRESS] [src ADDRESS] [metric N]", key.text)}
		}
		if err != nil {
			return r, &offsetError{val.off, err.Error()}
		}
	}
	if !to.IsValid() {
		any := netip.IPv4Unspecified()
		if r.Via.Is6() || !r.Via.IsValid() && r.Src.Is6() {
			any = netip.IPv6Unspecified()
		}
		to = netip.PrefixFrom(any, 0)
	}
	if r.To = to.Masked(); r.To != to {
		return r, &offsetError{ws[0].off, fmt.Sprintf("%s has host bits set: write %s", to, r.To)}
	}
	for _, a := range []netip.Addr{r.Via, r.Src} {
		if a.IsValid() && a.Is4() != to.Addr().Is4() {
			return r, fmt.Errorf("%s and %s are of different families", r.To, a)
		}
	}
	return r, nil
}

// maxRestore bounds a restore file, in bytes: a million rules have room in it.
const maxRestore = 256 << 20

// restoreFile reads the file.
func restoreFile(d *decoder, s string) (any, error) {
	path := d.path(s)
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular(): // reading from a pipe or a terminal would wait
		return nil, fmt.Errorf("%s is not a regular file", path)
	case st.Size() > maxRestore:
		return nil, fmt.Errorf("%s has %d bytes, and %d are the most", path, st.Size(), maxRestore)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return router.RestoreFile{Path: path, Text: text}, nil
}

// path is s, relative to the configuration's folder.
func (d *decoder) path(s string) string {
	if s == "" || filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(d.dir, s)
}

// splitArgs takes a rule apart as iptables-restore does: blanks separate,
// double quotes keep them, and within quotes a backslash keeps the next byte.
func splitArgs(s string) ([]word, *offsetError) {
	if i := strings.IndexAny(s, "\n\x00"); i >= 0 {
		return nil, &offsetError{i, "a rule is one line"}
	}
	var out []word
	var cur []byte
	quoted, escaped := false, false
	open, start := -1, -1 // where a quote was opened, where the argument begins
	flush := func() {
		if start >= 0 && (len(cur) > 0 || quoted) {
			out = append(out, word{string(cur), start})
		}
		cur, start, quoted = nil, -1, false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if open < 0 && (c == ' ' || c == '\t') {
			flush()
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case open >= 0 && escaped:
			cur, escaped = append(cur, c), false
		case open >= 0 && c == '\\':
			escaped = true
		case open >= 0 && c == '"': // ends the argument too
			open = -1
			flush()
		case c == '"':
			open, quoted = i, true
		default:
			cur = append(cur, c)
		}
	}
	if open >= 0 {
		return nil, &offsetError{open, "this quote is not closed"}
	}
	flush()
	return out, nil
}

// hostListen reads "ADDR:PORT", with tcp:// or udp:// before it, or "unix://PATH".
func hostListen(d *decoder, s string) (any, error) {
	network, rest, ok := strings.Cut(s, "://")
	if !ok {
		network, rest = "tcp", s
	}
	off := len(s) - len(rest)
	switch network {
	case "unix":
		if rest == "" {
			return router.HostListen{}, fmt.Errorf("%q has no path", s)
		}
		return router.HostListen{Network: network, Path: d.path(rest)}, nil
	case "tcp", "udp":
	default:
		return router.HostListen{}, fmt.Errorf("%q: want ADDRESS:PORT, udp://ADDRESS:PORT or unix://PATH", s)
	}
	ap, err := addrPort(rest)
	if err != nil {
		return router.HostListen{}, &offsetError{off, err.Error()}
	}
	return router.HostListen{Network: network, Addr: ap}, nil
}

// addrPort reads "ADDR:PORT".
func addrPort(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return ap, fmt.Errorf("%q is not ADDRESS:PORT (an IPv6 address in brackets)", s)
	}
	if ap.Port() == 0 {
		return ap, fmt.Errorf("%q: port 0 is none", s)
	}
	if _, err := address(ap.Addr().String()); err != nil {
		return ap, err
	}
	return ap, nil
}

// nameServer reads "ADDR" or "ADDR:PORT".
func nameServer(s string) (router.NameServer, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return router.NameServer{AddrPort: netip.AddrPortFrom(a, 53)}, nil
	}
	ap, err := addrPort(s)
	return router.NameServer{AddrPort: ap}, err
}
