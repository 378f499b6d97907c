package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ipset"
)

// oldNames are set types' names before ipset 5.
var oldNames = map[string]string{
	"ipmap": "bitmap:ip", "macipmap": "bitmap:ip,mac", "portmap": "bitmap:port", "iphash": "hash:ip", "nethash": "hash:net",
	"ipporthash": "hash:ip,port", "ipportiphash": "hash:ip,port,ip", "ipportnethash": "hash:ip,port,net",
	"iptree": "hash:ip", "iptreemap": "hash:ip", "setlist": "list:set",
}

// createOptions are what `create` takes for a type, in the order of its help.
func createOptions(t *ipset.Type) (out []string) {
	switch t.Method() {
	case "hash":
		if !t.NoFamily() {
			out = append(out, "family")
		}
		if t.Name == "hash:ip,mark" {
			out = append(out, "markmask")
		}
		out = append(out, "hashsize", "maxelem")
		if masks(t) {
			out = append(out, "netmask", "bitmask")
		}
		return append(out, "timeout", "counters", "comment", "forceadd", "skbinfo", "bucketsize", "initval")
	case "bitmap":
		out = append(out, "range")
		if t.Name == "bitmap:ip" {
			out = append(out, "netmask")
		}
	default:
		out = append(out, "size")
	}
	return append(out, "timeout", "counters", "comment", "skbinfo")
}

// masks reports whether addresses of the type's sets can be masked.
func masks(t *ipset.Type) bool {
	return t.Name == "hash:ip" || t.Name == "hash:ip,port" || t.Name == "hash:net,net"
}

func familyName(f uint8) string {
	switch f {
	case packet.IPv4:
		return "inet"
	case packet.IPv6:
		return "inet6"
	}
	return "unspec"
}

// arguments walks the options of a command.
type arguments struct {
	rest  []string
	known []string
	seen  map[string]bool
}

// next is the next option; flag says which take no argument.
func (a *arguments) next(flag func(string) bool) (name, val string, err error) {
	word := a.rest[0]
	name = strings.TrimPrefix(word, "--")
	if !slices.Contains(a.known, name) {
		return "", "", usagef("Unknown argument: `%s'", word)
	}
	a.rest = a.rest[1:]
	if !flag(name) {
		if len(a.rest) == 0 {
			return "", "", usagef("Missing mandatory argument of option `%s'", name)
		}
		val, a.rest = a.rest[0], a.rest[1:]
	}
	what := name
	switch name {
	case "network", "from": // what a range says, too
		what = "range"
	case "-4", "-6":
		what = "family"
	}
	if a.seen[what] {
		return "", "", syntaxf("%s already specified", name)
	}
	a.seen[what], a.seen[name] = true, true
	return name, val, nil
}

func createFlag(name string) bool {
	switch name {
	case "counters", "comment", "forceadd", "skbinfo", "-4", "-6":
		return true
	}
	return false
}

// ignored are options of before ipset 5 that mean nothing any more, by type.
func ignored(t *ipset.Type) []string {
	switch t.Name {
	case "hash:ip":
		return []string{"probes", "resize", "gc"}
	case "hash:net":
		return []string{"probes", "resize"}
	case "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net":
		return []string{"probes", "resize", "from", "to", "network"}
	}
	return nil
}

// parseCreate reads what follows `create SETNAME`; warn is told what is ignored.
func parseCreate(typ string, args []string, warn func(string)) (*ipset.Type, ipset.Options, error) {
	var o ipset.Options
	if n, old := oldNames[typ]; old {
		typ = n
	}
	t := ipset.TypeNamed(typ)
	if t == nil {
		return nil, o, syntaxf("typename '%s' is unknown", typ)
	}
	o.Family = packet.IPv4
	a := &arguments{rest: args, known: createOptions(t), seen: map[string]bool{}}
	if slices.Contains(a.known, "family") {
		a.known = append(a.known, "-4", "-6")
	}
	old := ignored(t)
	a.known = append(a.known, old...)
	if t.Method() == "bitmap" {
		a.known = append(a.known, "from", "to")
		if t.Name != "bitmap:port" {
			a.known = append(a.known, "network")
		}
	}
	for i, w := range args { // what the others mean depends on it
		var err error
		switch {
		case w == "-6" && slices.Contains(a.known, w):
			o.Family = packet.IPv6
		case strings.TrimPrefix(w, "--") == "family" && i+1 < len(args) && slices.Contains(a.known, "family"):
			o.Family, err = parseFamily(args[i+1])
		}
		if err != nil {
			return nil, o, err
		}
	}
	warned := map[string]bool{}
	for len(a.rest) > 0 {
		name, val, err := a.next(createFlag)
		if err == nil && slices.Contains(old, name) {
			if name == "network" {
				name = "from"
			}
			for _, n := range []string{name, "network", "range"} { // they may come again
				delete(a.seen, n)
			}
			if !warned[name] {
				warn(fmt.Sprintf("Option '--%s %s' is ignored. Please upgrade your syntax.", name, val))
			}
			warned[name] = true
			continue
		}
		if err == nil {
			err = createOption(t, &o, name, val)
		}
		if err != nil {
			return nil, o, err
		}
	}
	if o.Family == 0 {
		return nil, o, kernel(cmdCreate, ipset.ErrInvalidFamily)
	}
	if a.seen["netmask"] && a.seen["bitmask"] {
		return nil, o, syntaxf("bitmask and netmask are mutually exclusive, provide only one")
	}
	switch {
	case t.Method() != "bitmap":
	case !a.seen["range"]:
		return nil, o, usagef("Mandatory option `range' is missing")
	case a.seen["from"] && !a.seen["to"]:
		return nil, o, usagef("Mandatory option `to' is missing")
	}
	return t, o, nil
}

func parseFamily(s string) (uint8, error) {
	switch s {
	case "inet", "ipv4", "-4":
		return packet.IPv4, nil
	case "inet6", "ipv6", "-6":
		return packet.IPv6, nil
	case "any", "unspec":
		return 0, nil
	}
	return 0, syntaxf("unknown inet family %s", s)
}

func createOption(t *ipset.Type, o *ipset.Options, name, val string) error {
	number := func(dst *uint32, lo, hi uint64) error {
		n, err := parseNumber(val, lo, hi)
		*dst = uint32(n)
		return err
	}
	switch name {
	case "hashsize":
		if err := number(&o.HashSize, 0, math.MaxUint32); err != nil {
			return err
		}
		o.HashSize = max(o.HashSize, 1)
	case "maxelem":
		o.HasMaxElem = true
		return number(&o.MaxElem, 0, math.MaxUint32)
	case "bucketsize":
		n, err := parseNumber(val, 0, 255)
		o.BucketSize = max(uint8(n), 1)
		return err
	case "initval":
		return number(&o.InitVal, 0, math.MaxUint32)
	case "markmask":
		return number(&o.MarkMask, 0, math.MaxUint32)
	case "size":
		err := number(&o.Size, 0, math.MaxUint32)
		o.Size = max(o.Size, 1)
		return err
	case "timeout":
		o.HasTimeout = true
		return number(&o.Timeout, 0, ipset.MaxTimeout)
	case "counters":
		o.Counters = true
	case "comment":
		o.Comment = true
	case "forceadd":
		o.ForceAdd = true
	case "skbinfo":
		o.SKBInfo = true
	case "netmask":
		width := uint64(32)
		if o.Family == packet.IPv6 {
			width = 128
		}
		n, err := parseNumber(val, 1, width)
		if err != nil {
			return syntaxError{err.Error() + fmt.Sprintf("\nSyntax error: netmask is out of the inclusive range of 1-%d", width)}
		}
		if o.Netmask = uint8(n); uint64(o.Netmask) == width {
			o.Netmask = 0
		}
	case "bitmask":
		ip, err := parseIP(val, o.Family, ipAny) // what follows the address means nothing
		if err != nil {
			return syntaxError{err.Error() + fmt.Sprintf("\nSyntax error: bitmask is not valid for family = %s", familyName(o.Family))}
		}
		switch ip.addr {
		case [16]byte{}:
			return kernel(cmdCreate, ipset.ErrInvalidNetmask)
		case packet.FullMask(o.Family): // as a netmask of the full width: none
		default:
			o.Bitmask, o.HasBitmask = ip.addr, true
		}
	case "range", "network":
		return parseRange(t, o, val)
	case "from", "to":
		var at uint32
		if t.Name == "bitmap:port" {
			n, err := parsePort(val, "tcp")
			if err != nil {
				return err
			}
			at = uint32(n)
		} else {
			ip, err := parseIP(val, packet.IPv4, ipSingle)
			if err != nil {
				return err
			}
			at = ip.v4()
		}
		if name == "from" {
			o.From = at
		} else {
			o.To = at
		}
	}
	return nil
}

// parseRange reads the range of a bitmap.
func parseRange(t *ipset.Type, o *ipset.Options, s string) error {
	if t.Name == "bitmap:port" {
		p, err := parseProtoPort(s, packet.IPv4, true)
		if err != nil {
			return err
		}
		if !p.ranged {
			return usagef("Mandatory option `to' is missing")
		}
		o.From, o.To = uint32(p.port), uint32(p.to)
		return nil
	}
	ip, err := parseIP(s, packet.IPv4, ipAny)
	if err != nil {
		return err
	}
	if ip.kind == ipSingle {
		return syntaxf("IP/cidr or IP-IP range must be specified: %s", s)
	}
	if ip.kind == ipCIDR && ip.bits == 32 {
		return kernel(cmdCreate, ipset.ErrInvalidCIDR)
	}
	o.From, o.To = ip.span()
	return nil
}

// parseNumber reads a number as strtoull does with base 0.
func parseNumber(s string, lo, hi uint64) (uint64, error) {
	neg := strings.HasPrefix(s, "-")
	n, rest, ok := tables.Strtoul(strings.TrimPrefix(s, "-"), 0, math.MaxUint64)
	if !ok && rest == s || rest != "" || s == "" || neg && !ok {
		if _, err := strconv.ParseUint(strings.TrimPrefix(s, "-"), 0, 64); err == nil || strings.TrimLeft(strings.TrimPrefix(s, "-"), "0123456789") != "" || s == "" || s == "-" {
			return 0, syntaxf("'%s' is invalid as number", s)
		}
		return 0, syntaxf("'%s' is out of range %d-%d", s, lo, hi)
	}
	if neg || n < lo || n > hi {
		return 0, syntaxf("'%s' is out of range %d-%d", s, lo, hi)
	}
	return n, nil
}

type ipKind uint8

const (
	ipSingle ipKind = 1 << iota
	ipCIDR
	ipRange
	ipAny = ipSingle | ipCIDR | ipRange
)

// ipArg is an address, a network or a range of addresses, as typed.
type ipArg struct {
	kind   ipKind
	family uint8
	addr   [16]byte
	bits   uint8
	to     uint32 // end of an IPv4 range
}

func (a *ipArg) v4() uint32 { return binary.BigEndian.Uint32(a.addr[:]) }

// span is the first and last IPv4 address.
func (a *ipArg) span() (from, to uint32) {
	from = a.v4()
	switch a.kind {
	case ipSingle:
		return from, from
	case ipRange:
		return min(from, a.to), max(from, a.to)
	}
	if a.bits == 0 {
		return 0, math.MaxUint32
	}
	mask := ^uint32(0) << (32 - a.bits)
	return from & mask, from | ^mask
}

func (a *ipArg) String() string {
	s := tables.FormatAddr(a.family, a.addr)
	switch a.kind {
	case ipCIDR:
		if a.family == packet.IPv4 && a.bits == 32 || a.bits == 128 {
			break
		}
		s += "/" + strconv.Itoa(int(a.bits))
	case ipRange:
		s += "-" + v4(a.to).String()
	}
	return s
}

func v4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func at4(n uint32) (a [16]byte) {
	binary.BigEndian.PutUint32(a[:], n)
	return a
}

// unescape takes the brackets off a name, and gives what follows them.
func unescape(s string) (name, rest string, err error) {
	if !strings.HasPrefix(s, "[") {
		return "", s, nil
	}
	i := strings.IndexByte(s, ']')
	if i < 0 {
		return "", "", syntaxf("cannot find closing escape character ']' in %s", s)
	}
	return s[1:i], s[i+1:], nil
}

// parseIP reads an address, network or range; allowed says which may be.
func parseIP(s string, family uint8, allowed ipKind) (a ipArg, err error) {
	a.family, a.kind = family, ipSingle
	a.bits = 32
	if family == packet.IPv6 {
		a.bits = 128
	}
	host, rest, err := unescape(s)
	if err != nil {
		return a, err
	}
	if host == "" {
		i := strings.IndexAny(s, "/-")
		if i < 0 {
			i = len(s)
		}
		host, rest = s[:i], s[i:]
	}
	refuse := func() error {
		switch {
		case allowed == ipSingle:
			return syntaxf("plain IP address must be supplied: %s", s)
		case allowed&ipRange == 0:
			return syntaxf("IP address or IP/cidr must be specified: %s", s)
		}
		return syntaxf("IP address or IP-IP range must be specified: %s", s)
	}
	switch {
	case rest == "/" || rest == "-":
		return a, syntaxf("cannot parse %s: resolving to %s address failed", s, familyWord(family))
	case strings.HasPrefix(rest, "/"):
		if allowed&ipCIDR == 0 {
			return a, refuse()
		}
		n, err := parseNumber(rest[1:], 0, uint64(a.bits))
		if err != nil {
			return a, err
		}
		a.kind, a.bits = ipCIDR, uint8(n)
	case strings.HasPrefix(rest, "-"):
		if allowed&ipRange == 0 {
			return a, refuse()
		}
		a.kind = ipRange
	case rest != "":
		return a, syntaxf("cannot parse %s: resolving to %s address failed", s, familyWord(family))
	}
	if a.addr, err = resolve(host, family); err != nil {
		return a, err
	}
	if a.kind == ipRange {
		end, _, err := unescape(rest[1:])
		if err != nil {
			return a, err
		}
		if end == "" {
			end = rest[1:]
		}
		to, err := resolve(end, family)
		if err != nil {
			return a, err
		}
		a.to = binary.BigEndian.Uint32(to[:])
	}
	return a, nil
}

func familyWord(f uint8) string {
	if f == packet.IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// resolve reads an address as getaddrinfo does, or looks a name up.
func resolve(host string, family uint8) (out [16]byte, err error) {
	if family == packet.IPv4 {
		if n, ok := aton(host); ok {
			return at4(n), nil
		}
	} else if a, err := netip.ParseAddr(host); err == nil && a.Is6() && a.Zone() == "" {
		return a.As16(), nil
	}
	failed := syntaxf("cannot parse %s: resolving to %s address failed", host, familyWord(family))
	if strings.Trim(host, "0123456789.:") == "" || strings.Contains(host, ":") {
		return out, failed
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return out, failed
	}
	for _, ip := range ips {
		a, ok := netip.AddrFromSlice(ip)
		if a = a.Unmap(); ok && a.Is4() == (family == packet.IPv4) {
			return packet.AddrBytes(a), nil
		}
	}
	return out, failed
}

// aton reads an IPv4 address of one to four numbers, the last of which fills
// what remains.
func aton(s string) (n uint32, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return 0, false
	}
	for i, p := range parts {
		last := i == len(parts)-1
		limit, width := uint64(255), 8
		if last {
			width = 8 * (4 - i)
			limit = 1<<width - 1
		}
		if p == "" || p[0] < '0' || p[0] > '9' {
			return 0, false
		}
		v, rest, ok := tables.Strtoul(p, 0, limit)
		if !ok || rest != "" {
			return 0, false
		}
		n = uint32(uint64(n)<<width | v)
	}
	return n, true
}

// portArg is a protocol and a port, or a range of ports, as typed.
type portArg struct {
	proto    uint8
	port, to uint16
	ranged   bool
}

func (p *portArg) span() (from, to int) {
	if !p.ranged {
		return int(p.port), int(p.port)
	}
	return int(min(p.port, p.to)), int(max(p.port, p.to))
}

// parsePort reads a port's number or name.
func parsePort(s, proto string) (uint16, error) {
	if name, _, err := unescape(s); err == nil && name != "" {
		s = name
	}
	n, err := parseNumber(s, 0, 65535)
	if err == nil {
		return uint16(n), nil
	}
	if p, ok := tables.ServicePort(s, proto); ok {
		return p, nil
	}
	return 0, syntaxError{fmt.Sprintf("%s\nSyntax error: '%s' is invalid as number\ncannot parse '%s' as a %s port", err, proto, s, proto)}
}

// errICMPFamily marks an error that ipset says more of.
var errICMPFamily = errors.New("")

// parseProtoPort reads [PROTO:]PORT[-PORT]. plain: TCP and UDP alone.
func parseProtoPort(s string, family uint8, plain bool) (p portArg, err error) {
	proto := "tcp"
	p.proto = packet.ProtoTCP
	if i := strings.IndexByte(s, ':'); i > 0 && i+1 < len(s) {
		proto, s = s[:i], s[i+1:]
		if p.proto, err = parseProto(proto); err != nil {
			return p, err
		}
	}
	switch p.proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoUDPLite:
		if plain && p.proto != packet.ProtoTCP && p.proto != packet.ProtoUDP {
			return p, syntaxf("Only protocols TCP and UDP are valid")
		}
		from, to := s, ""
		if name, rest, err := unescape(s); err != nil {
			return p, err
		} else if name != "" {
			from, to, p.ranged = name, strings.TrimPrefix(rest, "-"), strings.HasPrefix(rest, "-")
		} else {
			from = s
			if i := strings.IndexByte(s, '-'); i > 0 && i+1 < len(s) {
				from, to, p.ranged = s[:i], s[i+1:], true
			}
		}
		if p.port, err = parsePort(from, proto); err == nil && p.ranged {
			p.to, err = parsePort(to, proto)
		}
		return p, err
	case packet.ProtoICMP, packet.ProtoICMPv6:
		table, what := icmpNames, "ICMP"
		if p.proto == packet.ProtoICMPv6 {
			table, what = icmp6Names, "ICMPv6"
		}
		if plain {
			return p, syntaxf("Only protocols TCP and UDP are valid")
		}
		if (p.proto == packet.ProtoICMP) != (family == packet.IPv4) {
			return p, fmt.Errorf("Syntax error: Protocol %s can be used with family %s only%w", what, map[string]string{"ICMP": "inet", "ICMPv6": "inet6"}[what], errICMPFamily)
		}
		for _, n := range table {
			if strings.EqualFold(n.name, s) {
				p.port = n.typeCode
				return p, nil
			}
		}
		typ, code, _ := strings.Cut(s, "/")
		if typ == "" || code == "" {
			return p, syntaxError{fmt.Sprintf("Cannot parse %s as an %s type/code.", s, what)}
		}
		t, err := parseNumber(typ, 0, 255)
		if err != nil {
			return p, err
		}
		c, err := parseNumber(code, 0, 255)
		p.port = uint16(t<<8 | c)
		return p, err
	}
	if n, err := parseNumber(s, 0, 65535); err != nil || n != 0 {
		return p, syntaxf("Protocol %s can be used with pseudo port value 0 only.", proto)
	}
	return p, nil
}

func parseProto(s string) (uint8, error) {
	switch strings.ToLower(s) {
	case "icmpv6", "ipv6-icmp":
		return packet.ProtoICMPv6, nil
	}
	if n, rest, ok := tables.Strtoul(s, 0, 255); ok && rest == "" {
		return uint8(n), nil
	}
	if n, ok := tables.ProtocolByName(strings.ToLower(s)); ok && s != "all" {
		return n, nil
	}
	return 0, syntaxf("cannot parse '%s' as a protocol", s)
}

func protoName(n uint8) string {
	switch n {
	case packet.ProtoICMPv6:
		return "ipv6-icmp"
	case 0:
		return "ip"
	}
	if s := tables.ProtocolName(n); s != "" {
		return s
	}
	return strconv.Itoa(int(n))
}

// parseMAC reads an Ethernet address: six numbers with colons.
func parseMAC(s string) (m [6]byte, err error) {
	parts := strings.Split(s, ":")
	bad := syntaxf("cannot parse '%s' as ethernet address", s)
	if len(parts) != 6 {
		return m, bad
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) > 2 {
			return m, bad
		}
		m[i] = byte(n)
	}
	return m, nil
}
