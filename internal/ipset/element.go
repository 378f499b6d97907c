package ipset

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"sluice/packet"
	"sluice/tables/ipset"
)

// element is an element as typed: of addresses and ports, perhaps a range.
type element struct {
	typ     *ipset.Type
	family  uint8
	elem    ipset.Elem
	ip      [2]ipArg
	ips     int
	port    portArg
	hasPort bool
	hasMAC  bool
	ext     ipset.Ext
}

// addOptions are what a command takes for an element of the type.
func addOptions(t *ipset.Type, c cmd) (out []string) {
	list := t.Method() == "list"
	if c != cmdAdd {
		if list {
			out = append(out, "before", "after")
		}
		if c == cmdTest && t.NoMatch() {
			out = append(out, "nomatch")
		}
		return out
	}
	out = append(out, "timeout")
	if list {
		out = append(out, "before", "after")
	}
	if t.NoMatch() {
		out = append(out, "nomatch")
	}
	if t.Name == "hash:net,iface" {
		out = append(out, "wildcard")
	}
	return append(out, "packets", "bytes", "comment", "skbmark", "skbprio", "skbqueue")
}

var (
	missingPart = []string{"", "Second", "Third"}
	tooMany     = []string{"", "Elem separator in %s, but settype %s supports none.", "Two elem separators in %s, but settype %s supports one.",
		"Three elem separators in %s, but settype %s supports two."}
)

// cutParts takes an element's text apart at its commas, of which those in
// brackets do not count.
func cutParts(s string) (parts []string) {
	depth, from := 0, 0
	for i := range len(s) {
		switch s[i] {
		case '[':
			depth++
		case ']':
			depth--
		case ',':
			if depth == 0 {
				parts = append(parts, s[from:i])
				from = i + 1
			}
		}
	}
	return append(parts, s[from:])
}

// parseElement reads an element and the options that follow it.
func parseElement(set *ipset.Set, c cmd, name, text string, args []string) (*element, error) {
	e := &element{typ: set.Type(), family: set.Options().Family}
	if e.typ.NoFamily() {
		e.family = 0
	}
	if err := e.parse(text, name); err != nil {
		return nil, err
	}
	a := &arguments{rest: args, known: addOptions(e.typ, c), seen: map[string]bool{}}
	for len(a.rest) > 0 {
		opt, val, err := a.next(func(n string) bool { return n == "nomatch" || n == "wildcard" })
		if err == nil {
			err = e.option(opt, val)
		}
		if err != nil {
			return nil, err
		}
	}
	return e, e.allowed(c, name)
}

// parse reads an element for the command name.
func (e *element) parse(text, name string) error {
	t := e.typ
	if t.Method() == "list" {
		return e.parseList(text)
	}
	kinds := t.Parts()
	parts := cutParts(text)
	if len(parts) > len(kinds) {
		return syntaxf(tooMany[len(kinds)], text, t.Name)
	}
	for i, s := range parts[:len(parts)-1] {
		if s == "" {
			return syntaxf("%s element is missing from %s.", missingPart[i+1], text)
		}
	}
	if len(parts) < len(kinds) && !(t.Name == "bitmap:ip,mac" && len(parts) == 1) {
		return syntaxf("%s element is missing from %s.", missingPart[len(parts)], text)
	}
	if n := len(parts) - 1; n > 0 && parts[n] == "" {
		return syntaxf("%s element is missing from %s.", missingPart[n], text)
	}
	for i, s := range parts {
		if err := e.part(kinds[i], i, s, name); err != nil {
			return err
		}
	}
	return nil
}

// part reads part i of an element, of which kind it is, for the command name.
func (e *element) part(kind string, i int, s, name string) (err error) {
	family := e.family
	if family == 0 {
		family = packet.IPv4
	}
	switch kind {
	case "ip", "net":
		may := ipAny
		switch {
		case kind == "net" && family == packet.IPv6:
			may = ipSingle | ipCIDR
		case kind == "ip" && (family == packet.IPv6 || i > 0 || e.typ.Name == "bitmap:ip,mac"):
			may = ipSingle
		}
		if e.typ.Name == "bitmap:ip,mac" && strings.HasSuffix(s, "/32") {
			return e.refuse("IP/CIDR range", name)
		}
		e.ip[e.ips], err = parseIP(s, family, may)
		e.ips++
	case "port":
		e.hasPort = true
		e.port, err = parseProtoPort(s, family, e.typ.Name == "bitmap:port")
	case "mac":
		e.hasMAC = true
		e.elem.HasMAC = true
		e.elem.MAC, err = parseMAC(s)
	case "mark":
		var n uint64
		n, err = parseNumber(s, 0, 1<<32-1)
		e.elem.Mark = uint32(n)
	case "iface":
		name, dev := strings.CutPrefix(s, "physdev:")
		if len(name) > 15 {
			return syntaxf("interface name '%s' is longer than 15 characters", name)
		}
		e.elem.Iface, e.elem.Physdev = name, dev
	}
	return err
}

// parseList reads a set's name, or the old form NAME,before,NAME.
func (e *element) parseList(text string) error {
	parts := strings.Split(text, ",")
	if len(parts) != 1 {
		if len(parts) != 3 || parts[1] != "before" && parts[1] != "after" {
			return syntaxError{fmt.Sprintf("you must specify elements as setname%s[before|after]%ssetname", ",", ",")}
		}
		if err := e.option(parts[1], parts[2]); err != nil {
			return err
		}
	}
	e.elem.Set = parts[0]
	return checkName(e.elem.Set)
}

func (e *element) option(name, val string) error {
	x := &e.ext
	counter := func(dst *uint64) (err error) {
		x.HasCounters = true
		*dst, err = parseNumber(val, 0, 1<<64-2) // all ones: none were given
		return err
	}
	switch name {
	case "timeout":
		n, err := parseNumber(val, 0, ipset.MaxTimeout)
		x.HasTimeout, x.Timeout = true, uint32(n)
		return err
	case "packets":
		return counter(&x.Packets)
	case "bytes":
		return counter(&x.Bytes)
	case "comment":
		switch {
		case strings.Contains(val, `"`):
			return syntaxf(`" character is not permitted in comments`)
		case len(val) > ipset.MaxComment:
			return syntaxf("Comment is longer than the maximum allowed %d characters", ipset.MaxComment)
		}
		x.HasComment, x.Comment = true, val
	case "skbmark":
		mark, mask, _ := strings.Cut(val, "/")
		n, err := hexWord(mark, "0x")
		if err != nil {
			return syntaxf("Invalid skbmark format, it should be:  MARK/MASK or MARK (see manpage)")
		}
		m, err := hexWord(mask, "0x")
		if err != nil {
			m = 1<<32 - 1
		}
		x.HasInfo, x.Info.Mark, x.Info.MarkMask = true, n, m
	case "skbprio":
		major, minor, ok := strings.Cut(val, ":")
		a, err := hexWord(major, "")
		b, err2 := hexWord(minor, "")
		if !ok || err != nil || err2 != nil {
			return syntaxf("Invalid skbprio format, it should be:MAJOR:MINOR (see manpage)")
		}
		x.HasInfo, x.Info.Prio = true, a<<16|b&0xffff
	case "skbqueue":
		n, err := parseNumber(val, 0, 65535)
		x.HasInfo, x.Info.Queue = true, uint16(n)
		return err
	case "nomatch":
		e.elem.NoMatch = true
	case "wildcard":
		e.elem.Wildcard = true
	case "before", "after":
		if e.elem.Before != "" || e.elem.After != "" {
			return syntaxf("%s already specified", name)
		}
		if name == "before" {
			e.elem.Before = val
		} else {
			e.elem.After = val
		}
		return checkName(val)
	}
	return nil
}

func hexWord(s, prefix string) (uint32, error) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return 0, errors.New("no prefix")
	}
	n, err := strconv.ParseUint(rest, 16, 64)
	return uint32(n), err // what is above is lost, as in the real one
}

func (e *element) refuse(what, name string) error {
	return fmt.Errorf("%s is not allowed in command %s with set type %s and family %s", what, name, e.typ.Name, familyName(e.family))
}

// allowed refuses ranges where a command takes none.
func (e *element) allowed(c cmd, name string) error {
	if c != cmdTest {
		return nil
	}
	for i := range e.ip[:e.ips] {
		switch e.ip[i].kind {
		case ipRange:
			if e.typ.Name != "hash:ip" && i == 0 {
				return e.refuse("FROM-TO IP range", name)
			}
		case ipCIDR:
			if e.typ.Parts()[0] == "ip" && i == 0 && e.typ.Name != "hash:ip" {
				return e.refuse("IP/CIDR range", name)
			}
		}
	}
	if e.port.ranged {
		return e.refuse("FROM-TO port range", name)
	}
	return nil
}

// text is the element as `test` names it.
func (e *element) text() string {
	if e.typ.Method() == "list" {
		switch {
		case e.elem.Before != "":
			return e.elem.Set + " after " + e.elem.Before // the words of ipset 7.17
		case e.elem.After != "":
			return e.elem.Set + " after " + e.elem.After
		}
		return e.elem.Set
	}
	n := 0
	var parts []string
	for _, k := range e.typ.Parts() {
		switch k {
		case "ip", "net":
			a := e.ip[n]
			if n > 0 && a.kind == ipRange {
				a.kind = ipSingle // its first
			}
			parts = append(parts, a.String())
			n++
		case "iface":
			parts = append(parts, e.elem.Iface)
		case "mac":
			if e.hasMAC {
				parts = append(parts, macText(e.elem.MAC))
			}
		default:
			e.elem.Proto, e.elem.Port = e.port.proto, e.port.port
			parts = append(parts, partText(k, &e.elem, e.typ.Name))
		}
	}
	return strings.Join(parts, ",")
}

// network is one of the networks of an address argument.
type network struct {
	addr [16]byte
	bits uint8
}

// networks calls f for the networks that an argument comes to, in order: of an
// IPv4 range, the largest that fit.
func (a *ipArg) networks(f func(network) error) error {
	if a.family == packet.IPv6 || a.kind != ipRange {
		return f(network{a.addr, a.bits})
	}
	from, to := a.span()
	for at := uint64(from); at <= uint64(to); {
		n := 32
		if at != 0 {
			n = bits.TrailingZeros32(uint32(at))
		}
		for uint64(1)<<n > uint64(to)-at+1 {
			n--
		}
		if err := f(network{at4(uint32(at)), uint8(32 - n)}); err != nil {
			return err
		}
		at += 1 << n
	}
	return nil
}

// hosts calls f for the addresses of an argument, step apart.
func (a *ipArg) hosts(step uint64, f func(network) error) error {
	if a.family == packet.IPv6 {
		return f(network{a.addr, a.bits})
	}
	from, to := a.span()
	for at := uint64(from) &^ (step - 1); at <= uint64(to); at += step {
		if err := f(network{at4(uint32(at)), 32}); err != nil {
			return err
		}
	}
	return nil
}

// expand calls f for every element that the typed one comes to, in the order of
// its parts.
func (e *element) expand(set *ipset.Set, f func(*ipset.Elem) error) error {
	t, el := e.typ, e.elem
	kinds := t.Parts()
	if t.Method() == "list" || e.ips == 0 && !e.hasPort {
		return f(&el)
	}
	ports := func(f func(*ipset.Elem) error) error {
		if !e.hasPort {
			return f(&el)
		}
		el.Proto = e.port.proto
		from, to := e.port.span()
		for p := from; p <= to; p++ {
			el.Port = uint16(p)
			if err := f(&el); err != nil {
				return err
			}
		}
		return nil
	}
	second := func(f func(*ipset.Elem) error) error {
		if e.ips < 2 {
			return f(&el)
		}
		return e.ip[1].networks(func(n network) error {
			el.Addr2, el.Bits2 = n.addr, n.bits
			return f(&el)
		})
	}
	rest := func() error { return ports(func(*ipset.Elem) error { return second(f) }) }
	if e.ips == 0 {
		return ports(f)
	}
	one := func(n network) error {
		el.Addr, el.Bits = n.addr, n.bits
		return rest()
	}
	if kinds[0] == "net" {
		return e.ip[0].networks(one)
	}
	step := uint64(1)
	if o := set.Options(); o.Netmask != 0 && o.Family == packet.IPv4 {
		step = 1 << (32 - o.Netmask)
	}
	return e.ip[0].hosts(step, one)
}

// inRange refuses a range that leaves a bitmap's, before any of it is added.
func (e *element) inRange(set *ipset.Set) error {
	if e.typ.Method() != "bitmap" {
		return nil
	}
	o := set.Options()
	from, to := uint32(0), uint32(0)
	if e.ips > 0 {
		from, to = e.ip[0].span()
	} else {
		a, b := e.port.span()
		from, to = uint32(a), uint32(b)
	}
	if from < o.From || to > o.To {
		return ipset.ErrBitmapRange
	}
	return nil
}

// element is add, del and test.
func (r *runner) element(o *options, c cmd, name, setName, text string, args []string) error {
	if err := checkName(setName); err != nil {
		return err
	}
	set := r.sets.Get(setName)
	if set == nil {
		return kernel(c, ipset.ErrNoEntry)
	}
	e, err := parseElement(set, c, name, text, args)
	if errors.Is(err, errICMPFamily) {
		return syntaxError{err.Error() + "\nInvalid " + name + " command: missing setname"}
	} else if err != nil {
		return err
	}
	if c == cmdTest {
		return r.test(o, set, setName, e)
	}
	exist := o.exist
	return r.later(c, setName, func() error { return kernel(c, r.edit(set, e, c, exist)) })
}

// edit adds or deletes the elements that e comes to.
func (r *runner) edit(set *ipset.Set, e *element, c cmd, exist bool) error {
	if err := e.inRange(set); err != nil {
		return err
	}
	if a := e.ip[0]; e.typ.Method() == "hash" && e.typ.Parts()[0] == "ip" && a.kind == ipCIDR && a.bits == 0 {
		if e.typ.Name != "hash:ip" || a.addr != [16]byte{} { // else its value is what is told
			return ipset.ErrInvalidCIDR
		}
	}
	n := 0
	return e.expand(set, func(el *ipset.Elem) error {
		if n++; n%4096 == 0 && r.stopped() {
			return errSilent
		}
		if c == cmdAdd {
			return set.Add(el, &e.ext, exist)
		}
		return set.Del(el, exist)
	})
}

func (r *runner) stopped() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

var errFirst = errors.New("the first is enough")

// test asks for the first of what e comes to. What the kernel refuses to look
// for is not in the set.
func (r *runner) test(o *options, set *ipset.Set, name string, e *element) error {
	in, first := false, *e
	for i := range first.ip {
		if a := &first.ip[i]; a.kind == ipRange || i == 0 && e.typ.Parts()[0] == "ip" && a.family == packet.IPv4 {
			a.kind = ipSingle
		}
	}
	var refused ipset.Error
	err := e.inRange(set)
	if err == nil {
		err = first.expand(set, func(el *ipset.Elem) (err error) {
			if in, err = set.Test(el); err == nil {
				err = errFirst
			}
			return err
		})
	}
	if err != nil && err != errFirst && !errors.As(err, &refused) {
		return err
	}
	switch {
	case !in && !o.quiet:
		r.out.Flush()
		fmt.Fprintf(r.err, "%s is NOT in set %s.\n", e.text(), name)
		fallthrough
	case !in:
		return errSilent
	case !o.quiet:
		r.out.Flush()
		fmt.Fprintf(r.err, "Warning: %s is in set %s.\n", e.text(), name)
	}
	return nil
}

// create is the command of that name.
func (r *runner) create(o *options, name, typ string, args []string) error {
	if err := checkName(name); err != nil {
		return err
	}
	before := "Warning: " // the first
	t, opt, err := parseCreate(typ, args, func(s string) {
		if !o.quiet {
			fmt.Fprintln(r.err, before+s)
		}
		before = ""
	})
	if err != nil {
		return err
	}
	err = r.sets.Create(name, t.Name, opt)
	if errors.Is(err, ipset.ErrExistName) && o.exist && r.sets.Same(name, t.Name, opt) {
		return nil
	}
	return kernel(cmdCreate, err)
}

// typeHelp lists the options of a type.
func typeHelp(t *ipset.Type) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s type specific options:\n\n", t.Name)
	line := func(what string, opts []string) {
		fmt.Fprintf(&b, "%s\n", what)
		for _, o := range opts {
			arg := " VALUE"
			if createFlag(o) || o == "nomatch" || o == "wildcard" || o == "comment" && strings.HasPrefix(what, "create") {
				arg = ""
			}
			fmt.Fprintf(&b, "               [%s%s]\n", o, arg)
		}
	}
	parts := strings.ToUpper(strings.Join(t.Parts(), ","))
	line("create SETNAME "+t.Name, createOptions(t))
	for _, c := range []struct {
		cmd  cmd
		name string
	}{{cmdAdd, "add"}, {cmdDel, "del"}, {cmdTest, "test"}} {
		line(fmt.Sprintf("%-6s SETNAME %s %s", c.name, t.Name, parts), addOptions(t, c.cmd))
	}
	return b.String()
}

// less orders elements as `list -s` does: addresses by value, longer prefixes
// first, protocols by the length of their names, physical devices last.
func less(t *ipset.Type) func(a, b *ipset.Elem) int {
	return func(a, b *ipset.Elem) int {
		if d := slices.Compare(a.Addr[:], b.Addr[:]); d != 0 {
			return d
		}
		if a.Bits != b.Bits {
			return int(b.Bits) - int(a.Bits)
		}
		if a.Proto != b.Proto {
			x, y := protoName(a.Proto), protoName(b.Proto)
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			return strings.Compare(x, y)
		}
		if a.Port != b.Port {
			return int(a.Port) - int(b.Port)
		}
		if a.Physdev != b.Physdev {
			if b.Physdev {
				return -1
			}
			return 1
		}
		if d := strings.Compare(a.Iface, b.Iface); d != 0 {
			return d
		}
		if d := slices.Compare(a.MAC[:], b.MAC[:]); d != 0 {
			return d
		}
		if a.Mark != b.Mark {
			if a.Mark < b.Mark {
				return -1
			}
			return 1
		}
		if d := slices.Compare(a.Addr2[:], b.Addr2[:]); d != 0 {
			return d
		}
		return int(b.Bits2) - int(a.Bits2)
	}
}
