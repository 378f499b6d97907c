package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sluice/internal/iptables"
	"sluice/netstack/uplink"
	"sluice/router"
	"sluice/tables/ipset"
)

// checker finds what is wrong between values that are each well-formed, and
// fills in what one value says about another.
type checker struct {
	*decoder
	cfg      *router.Config
	resolver iptables.Resolver // nil: the host's
	links    links             // of the routes seen so far
	ipsets   *ipset.Sets       // as configured; without any if something is wrong with them
}

func (c *checker) check() {
	c.router()
	c.interfaces()
	c.routes()
	c.rules()
	if len(c.errs) == 0 {
		c.routing()
	}
	c.services()
	c.publish()
	c.dns()
	c.proxies()
	c.sysctls()
	*c.cfg = *c.cfg.Complete()
	c.sets()
	c.timeouts()
	c.rulesets()
}

// pos is where a value is that is given by its path: table, element, key…
func (c *checker) pos(parts ...any) router.Position {
	return c.place(c.ix.vals, path(parts))
}

func (c *checker) keyPos(parts ...any) router.Position {
	return c.place(c.ix.keys, path(parts))
}

// has reports whether the file says anything at the path.
func (c *checker) has(parts ...any) bool {
	_, ok := c.ix.vals[path(parts)]
	return ok
}

func path(parts []any) string {
	p := ""
	for _, x := range parts {
		switch x := x.(type) {
		case string:
			p = join(p, x)
		case int:
			p = join(p, strconv.Itoa(x))
		}
	}
	return p
}

func (c *checker) router() {
	r := &c.cfg.Router
	if r.Workers > router.MaxWorkers {
		c.errorf(c.pos("router", "workers"), "router.workers: %d is more than %d", r.Workers, router.MaxWorkers)
	}
	if s := &c.cfg.Control.Socket; *s != "" {
		*s = c.path(*s)
		if len(*s) > 107 {
			c.errorf(c.pos("control", "socket"), "control.socket: %q has %d bytes, and the path of a socket has room for 107", *s, len(*s))
		}
	}
	c.http()
}

// http checks what can be checked without the files being there.
func (c *checker) http() {
	k := &c.cfg.Control
	files := []struct {
		key  string
		path *string
	}{{"token_file", &k.TokenFile}, {"tls_cert", &k.TLSCert}, {"tls_key", &k.TLSKey}}
	for _, f := range files {
		if *f.path != "" {
			*f.path = c.path(*f.path)
			if k.HTTP == "" {
				c.errorf(c.pos("control", f.key), "control.%s: without http there is nothing that it is for", f.key)
			}
		}
	}
	if (k.TLSCert == "") != (k.TLSKey == "") {
		c.errorf(c.pos("control"), "control: tls_cert and tls_key come together")
	}
	if k.HTTP == "" {
		return
	}
	addr, err := netip.ParseAddrPort(k.HTTP)
	switch {
	case err != nil:
		c.errorf(c.pos("control", "http"), "control.http: %q is not ADDRESS:PORT, as 127.0.0.1:9731 is", k.HTTP)
	case !addr.Addr().IsLoopback() && (k.TLSCert == "" || k.TokenFile == ""):
		c.errorf(c.pos("control", "http"), "control.http: %s is not a loopback address: tls_cert, tls_key and token_file are needed too", k.HTTP)
	}
}

func (c *checker) interfaces() {
	names := map[string]router.Position{}
	addrs := map[netip.Addr]string{}
	files := map[string]string{}
	for i := range c.cfg.Interfaces {
		f := &c.cfg.Interfaces[i]
		at := func(parts ...any) router.Position { return c.pos(append([]any{"interface", i}, parts...)...) }
		key := func(k string) router.Position { return c.keyPos("interface", i, k) }
		has := func(k string) bool { return c.has("interface", i, k) }

		if say := badName(f.Name); !has("name") {
			c.errorf(f.Pos, "this interface has no name")
		} else if say != "" {
			c.errorf(at("name"), "interface name %q %s", f.Name, say)
		} else if first, dup := names[f.Name]; dup {
			c.errorf(at("name"), "interface %q is already defined at line %d", f.Name, first.Line)
		} else {
			names[f.Name] = f.Pos
		}

		if f.Type == router.TypeUplink && !has("mtu") {
			f.MTU = uplink.DefaultMTU
		}
		six := false
		for j, p := range f.Addresses {
			six = six || p.Addr().Is6()
			c.ownAddress(at("addresses", j), p, f.Name, addrs)
		}
		least := router.MinMTU4
		if six {
			least = router.MinMTU6
		}
		if f.MTU < least || f.MTU > router.MaxMTU {
			why := ""
			if six {
				why = " for an interface with IPv6"
			}
			c.errorf(at("mtu"), "mtu: %d is not between %d and %d%s", f.MTU, least, router.MaxMTU, why)
		}
		if f.Queues > router.MaxQueues {
			c.errorf(at("queues"), "queues: %d is more than the %d that a TUN device can have", f.Queues, router.MaxQueues)
		}

		for k, types := range keysOf {
			if has(k) && !slices.Contains(types, f.Type) {
				c.errorf(key(k), "%s is for interfaces of type %q; this one is of type %q", k, types[0], f.Type)
			}
		}
		switch f.Type {
		case router.TypeTUN:
		case router.TypePacket:
			for _, k := range []string{"addresses", "routes", "mtu"} {
				if c.has("interface", i, "host", k) {
					c.errorf(c.keyPos("interface", i, "host", k), "host.%s: the kernel is to have none on a device of type \"packet\"; only netns is for it", k)
				}
			}
		case router.TypePcap:
			f.Offload = false
			c.pcap(i, f, files)
		case router.TypeUplink:
			f.Offload = false
			c.onePerFamily(i, "host_loopback", f.HostLoopback)
			c.onePerFamily(i, "source", f.Source)
		default:
			c.errorf(at("type"), "no interface type %q: \"tun\", \"uplink\", \"packet\" or \"pcap\"", f.Type)
		}
		if f.Host != nil {
			c.host(i, f)
		}
	}
	c.hostMeetsRouter(addrs)
}

// keysOf says which types of interface some keys are for.
var keysOf = map[string][]string{
	"read":          {router.TypePcap},
	"write":         {router.TypePcap},
	"queues":        {router.TypeTUN, router.TypePacket},
	"offload":       {router.TypeTUN},
	"owner":         {router.TypeTUN},
	"host":          {router.TypeTUN, router.TypePacket},
	"host_loopback": {router.TypeUplink},
	"source":        {router.TypeUplink},
	"max_flows":     {router.TypeUplink},
}

// onePerFamily checks a list that has one address of each family at most.
func (c *checker) onePerFamily(i int, key string, list []netip.Addr) {
	for j, a := range list {
		if !a.IsValid() {
			continue
		}
		if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			c.errorf(c.pos("interface", i, key, j), "%s: %s cannot be that", key, a)
		}
		for _, b := range list[:j] {
			if b.IsValid() && a.Is4() == b.Is4() {
				c.errorf(c.pos("interface", i, key, j), "%s: there is %s already, and one address of a family is the most", key, b)
			}
		}
	}
}

// badName says what is wrong with an interface's name, by the kernel's rules
// and those of what the name is used in.
func badName(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > router.MaxNameLen:
		return "has " + strconv.Itoa(len(name)) + " bytes, and 15 are the most"
	case name == "." || name == "..":
		return "is not a name"
	case name == "lo":
		return "is the router's own loopback"
	case name == "all" || name == "default":
		return "means something else in sysctl names"
	case strings.HasSuffix(name, "+"):
		return "ends in +, which in a rule means any rest"
	case strings.HasPrefix(name, "!") || strings.HasPrefix(name, "-"):
		return "begins with a character that a rule reads as something else"
	}
	for _, r := range name {
		if r <= ' ' || r == 0x7f || strings.ContainsRune("/:%\"\\*", r) {
			return "contains " + strconv.QuoteRune(r)
		}
	}
	return ""
}

// ownAddress checks one address of the router.
func (c *checker) ownAddress(at router.Position, p netip.Prefix, name string, seen map[netip.Addr]string) {
	if !p.IsValid() {
		return // reported already, or "default"
	}
	a := p.Addr()
	if say := badHost(p); say != "" {
		c.errorf(at, "%s %s", p, say)
		return
	}
	if p.IsSingleIP() && !strings.ContainsRune(c.raw(at), '/') {
		c.errorf(at, "%s has no prefix length: write %s/%d, or a shorter one for the network around it", a, a, a.BitLen())
		return
	}
	if other, dup := seen[a]; dup {
		if other == name {
			c.errorf(at, "%s is on %s twice", a, name)
		} else {
			c.errorf(at, "%s is already an address of %s", a, other)
		}
		return
	}
	seen[a] = name
}

// raw is the text at a place, up to the end of the value.
func (c *checker) raw(at router.Position) string {
	if at.Line == 0 {
		return ""
	}
	s := string(c.ix.text[c.ix.lines[at.Line-1]+at.Column-1:])
	if len(s) > 0 {
		if end := strings.IndexByte(s[1:], s[0]); end >= 0 {
			return s[:end+2]
		}
	}
	return s
}

// badHost says why p's address cannot be an interface's.
func badHost(p netip.Prefix) string {
	a := p.Addr()
	switch {
	case a.IsUnspecified():
		return "is no address that an interface can have"
	case a.IsMulticast():
		return "is a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	case a.IsLoopback():
		return "is a loopback address; the router's lo has it already"
	case a.Is4() && p.Bits() < 31 && a == p.Masked().Addr():
		return "is the network's own address: choose one inside it"
	case a.Is4() && p.Bits() < 31 && a == lastOf(p):
		return "is the network's broadcast address: choose one below it"
	}
	return ""
}

// lastOf is the last address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func (c *checker) pcap(i int, f *router.InterfaceConfig, files map[string]string) {
	if f.Read == "" && f.Write == "" {
		c.errorf(f.Pos, "interface %q of type \"pcap\" has neither read nor write", f.Name)
	}
	if f.Read != "" {
		f.Read = c.path(f.Read)
		if st, err := os.Stat(f.Read); err != nil {
			c.errorf(c.pos("interface", i, "read"), "read: %v", err)
		} else if st.IsDir() {
			c.errorf(c.pos("interface", i, "read"), "read: %s is a folder", f.Read)
		}
	}
	if f.Write == "" {
		return
	}
	f.Write = c.path(f.Write)
	if st, err := os.Stat(filepath.Dir(f.Write)); err != nil {
		c.errorf(c.pos("interface", i, "write"), "write: %v", err)
	} else if !st.IsDir() {
		c.errorf(c.pos("interface", i, "write"), "write: %s is not a folder", filepath.Dir(f.Write))
	}
	if other, dup := files[f.Write]; dup {
		c.errorf(c.pos("interface", i, "write"), "write: %s is already written by %s", f.Write, other)
	}
	if f.Write == f.Read {
		c.errorf(c.pos("interface", i, "write"), "write: the interface reads from that file")
	}
	files[f.Write] = f.Name
}

// host checks the kernel's end of a TUN device.
func (c *checker) host(i int, f *router.InterfaceConfig) {
	h := f.Host
	at := func(parts ...any) router.Position {
		return c.pos(append([]any{"interface", i, "host"}, parts...)...)
	}
	if c.has("interface", i, "host", "netns") && (h.NetNS == "" || h.NetNS == "." || h.NetNS == "..") {
		c.errorf(at("netns"), "netns: %q is neither a name under /run/netns nor a path", h.NetNS)
	}
	if h.MTU != 0 && (h.MTU < router.MinMTU4 || h.MTU > router.MaxMTU) {
		c.errorf(at("mtu"), "mtu: %d is not between %d and %d", h.MTU, router.MinMTU4, router.MaxMTU)
	}
	var nets []netip.Prefix
	for j, p := range h.Addresses {
		if !p.IsValid() {
			continue
		}
		if say := badHost(p); say != "" {
			c.errorf(at("addresses", j), "%s %s", p, say)
			continue
		}
		nets = append(nets, p.Masked())
	}
	for j, r := range h.Routes {
		if !r.Via.IsValid() || r.Via.IsLinkLocalUnicast() {
			continue
		}
		// what a route without via puts on the link can be a gateway too
		reach := contains(nets, r.Via)
		for _, o := range h.Routes[:j] {
			reach = reach || !o.Via.IsValid() && o.To.IsValid() && o.To.Contains(r.Via)
		}
		if !reach {
			c.errorf(at("routes", j), "via %s is in no network of this end's addresses: the kernel would not take the route", r.Via)
		}
	}
}

func contains(nets []netip.Prefix, a netip.Addr) bool {
	for _, n := range nets {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// hostMeetsRouter finds addresses that both ends of a device would have.
func (c *checker) hostMeetsRouter(own map[netip.Addr]string) {
	for i := range c.cfg.Interfaces {
		h := c.cfg.Interfaces[i].Host
		if h == nil {
			continue
		}
		for j, p := range h.Addresses {
			if name, dup := own[p.Addr()]; dup && p.IsValid() {
				c.errorf(c.pos("interface", i, "host", "addresses", j), "%s is the router's own address on %s; the kernel's end needs another", p.Addr(), name)
			}
		}
	}
}
