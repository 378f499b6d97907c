package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"sluice/internal/confine"
	"sluice/internal/control"
	"sluice/internal/host"
	"sluice/packet"
	"sluice/router"
)

// execPlan is what comes of exec's flags.
type execPlan struct {
	cfg    *router.Config
	device confine.Device
	dns    []netip.Addr // the router's, for /etc/resolv.conf
}

// plan makes the router's configuration and the device that goes with it.
func (o *execOptions) plan(a *app) (*execPlan, error) {
	cfg := &router.Config{}
	if o.config != "" {
		var err error
		if cfg, err = load(o.config, a.stderr); err != nil {
			var said exitStatus
			if errors.As(err, &said) {
				err = fmt.Errorf("%s cannot be used", o.config)
			}
			return nil, err
		}
	}
	switch o.device {
	case confine.DeviceAuto, confine.DeviceTUN, confine.DeviceVeth:
	default:
		return nil, fmt.Errorf("--device %s: there are auto, tun and veth", o.device)
	}
	for _, f := range []struct {
		files []string
		set   *router.RulesetConfig
	}{{o.rules, &cfg.IPTables}, {o.rules6, &cfg.IP6Tables}} {
		for _, file := range f.files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			f.set.Restore = append(f.set.Restore, router.RestoreFile{Path: file, Text: text})
		}
	}
	net4, net6, err := o.networks()
	if err != nil {
		return nil, err
	}
	if cfg.Router.Workers == 0 {
		cfg.Router.Workers = min(runtime.NumCPU(), maxWorkers)
	}
	c := router.InterfaceConfig{}
	c.SetDefaults()
	c.Name, c.MTU = execIface, execMTU
	plan := &execPlan{cfg: cfg}
	dev := &plan.device
	*dev = confine.Device{Kind: o.device, Name: execIface, MTU: execMTU, Queues: cfg.Router.Workers}
	with4, with6 := len(o.rules) > 0 || len(o.rules6) == 0, len(o.rules6) > 0 || len(o.rules) == 0
	if with4 {
		c.Addresses = append(c.Addresses, nth(net4, 2), nth(net4, 3))
		plan.resolve(nth(net4, 3).Addr())
		dev.Addresses = append(dev.Addresses, nth(net4, 100))
		dev.Routes = append(dev.Routes, host.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Via: nth(net4, 2).Addr()})
	}
	if with6 {
		c.Addresses = append(c.Addresses, nth(net6, 2), nth(net6, 3))
		plan.resolve(nth(net6, 3).Addr())
		dev.Addresses = append(dev.Addresses, nth(net6, 0x100))
		dev.Routes = append(dev.Routes, host.Route{To: netip.MustParsePrefix("::/0"), Via: nth(net6, 2).Addr()})
	}
	up := router.InterfaceConfig{}
	up.SetDefaults()
	up.Name, up.Type, up.MTU = uplinkIface, router.TypeUplink, execMTU
	cfg.Interfaces = append(cfg.Interfaces, c, up)
	for _, r := range dev.Routes {
		out := router.RouteConfig{To: r.To, Dev: uplinkIface}
		out.SetDefaults()
		cfg.Routes = append(cfg.Routes, out)
	}
	if err := plan.restrict(o); err != nil {
		return nil, err
	}
	for _, text := range o.publish {
		p, err := parsePublish(text, dev.Addresses)
		if err != nil {
			return nil, fmt.Errorf("--publish %s: %w", text, err)
		}
		cfg.Publish = append(cfg.Publish, *p)
	}
	return plan, nil
}

// resolve makes one of the router's addresses a nameserver.
func (p *execPlan) resolve(a netip.Addr) {
	if p.cfg.DNS == nil {
		p.cfg.DNS = &router.DNSConfig{}
		p.cfg.DNS.SetDefaults()
	}
	p.cfg.DNS.Listen = append(p.cfg.DNS.Listen, netip.AddrPortFrom(a, 53))
	if len(p.dns) == 0 { // programs ask one after the other, and both are the same
		p.dns = append(p.dns, a)
	}
}

// restrict adds the rules of an allow list and of --log.
func (p *execPlan) restrict(o *execOptions) error {
	for _, text := range o.allow {
		a, err := router.ParseAllow(text)
		if err != nil {
			return fmt.Errorf("--allow %w", err)
		}
		p.cfg.DNS.Allow = append(p.cfg.DNS.Allow, a)
	}
	if o.strict && len(p.cfg.DNS.Allow) == 0 {
		return errors.New("--strict looks at the names of an --allow list, and there is none")
	}
	p.cfg.DNS.Strict = p.cfg.DNS.Strict || o.strict
	p.cfg.DNS.Learn = p.cfg.DNS.Learn || o.learn != "" || o.report != ""
	for _, f := range []struct {
		family uint8
		set    *router.RulesetConfig
	}{{packet.IPv4, &p.cfg.IPTables}, {packet.IPv6, &p.cfg.IP6Tables}} {
		if o.log {
			f.set.Mangle.Rules = append(f.set.Mangle.Rules,
				router.Rules("-A FORWARD -o "+uplinkIface+` -m conntrack --ctstate NEW -j LOG --log-level info --log-prefix "new: "`)...)
		}
		if len(o.allow) > 0 {
			f.set.Filter.Rules = append(f.set.Filter.Rules, router.Rules(router.AllowRules(f.family, uplinkIface)...)...)
		}
	}
	return nil
}

// lookUp resolves the allowed names, all at once: one that does not exist is a
// mistake, and what resolves is pinned before the command asks.
func (p *execPlan) lookUp(ctx context.Context, r *router.Router) error {
	if p.cfg.DNS == nil {
		return nil
	}
	errs := make([]error, len(p.cfg.DNS.Allow))
	var wg sync.WaitGroup
	for i, a := range p.cfg.DNS.Allow {
		if a.Name != "" && !strings.HasPrefix(a.Name, "*") {
			wg.Go(func() {
				if _, err := r.Resolve(ctx, a.Name); err != nil {
					errs[i] = fmt.Errorf("--allow %s: %w", a, err)
				}
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// parsePublish reads [ADDR:]HPORT:PORT[/udp]; inside are the command's addresses.
func parsePublish(text string, inside []netip.Prefix) (*router.PublishConfig, error) {
	p := &router.PublishConfig{Interface: uplinkIface}
	ports, proto, ok := strings.Cut(text, "/")
	if p.Listen.Network = "tcp"; ok {
		p.Listen.Network = proto
	}
	if p.Listen.Network != "tcp" && p.Listen.Network != "udp" {
		return nil, fmt.Errorf("%q is neither tcp nor udp", proto)
	}
	host, to, ok := cutLast(ports)
	if !ok {
		return nil, errors.New("[ADDR:]HPORT:PORT[/udp] is wanted")
	}
	addr := netip.IPv6Unspecified() // which takes IPv4 as well
	if a, port, ok := cutLast(host); ok {
		var err error
		if addr, err = netip.ParseAddr(strings.Trim(a, "[]")); err != nil {
			return nil, fmt.Errorf("%q is no address", a)
		}
		host = port
	}
	var number [2]uint16
	for i, s := range []string{host, to} {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no port", s)
		}
		number[i] = uint16(n)
	}
	p.Listen.Addr = netip.AddrPortFrom(addr, number[0])
	for _, in := range inside {
		// One of the peer's family where there is one, else what there is.
		if in.Addr().Is4() == addr.Unmap().Is4() || !p.To.IsValid() || addr.IsUnspecified() && in.Addr().Is4() {
			p.To = netip.AddrPortFrom(in.Addr(), number[1])
		}
		if addr.IsUnspecified() && in.Addr().Is4() {
			break
		}
	}
	return p, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// networks are the networks inside.
func (o *execOptions) networks() (net4, net6 netip.Prefix, err error) {
	var have []netip.Prefix
	addrs, _ := net.InterfaceAddrs() // without knowing, the first is as good as any
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			have = append(have, p)
		}
	}
	if o.cidr != "" {
		net4, err = netip.ParsePrefix(o.cidr)
		if err != nil || !net4.Addr().Is4() || net4.Bits() > 25 {
			return net4, net6, fmt.Errorf("--cidr %s: an IPv4 network of at most 25 bits is wanted, such as 10.0.2.0/24", o.cidr)
		}
		net4 = net4.Masked()
	} else {
		net4 = freeNetwork(have, func(n byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24) })
	}
	net6 = freeNetwork(have, func(n byte) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 6: 0x5c, 7: n}), 64)
	})
	return net4, net6, nil
}

// freeNetwork is the first network that the host is not in.
func freeNetwork(have []netip.Prefix, nth func(n byte) netip.Prefix) netip.Prefix {
	for n := byte(2); n != 0; n++ {
		if p := nth(n); !slices.ContainsFunc(have, p.Overlaps) {
			return p
		}
	}
	return nth(2)
}

// nth is the n-th address of a network, with its length.
func nth(p netip.Prefix, n uint32) netip.Prefix {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		n += uint32(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}

// hidden is what is hidden inside without being asked for: the sockets of
// routers, the user's runtime folder (a session's services, which start programs
// outside, are there), and those of the host's resolvers, which would answer for
// names behind the rules' back.
func (o *execOptions) hidden() ([]string, error) {
	list := []string{control.RuntimeDir(), "/run/systemd/resolve/io.systemd.Resolve", "/run/systemd/resolve/io.systemd.Resolve.Monitor", "/run/nscd", "/var/run/nscd"}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" || o.showRuntime {
		return list, nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return list, nil
	}
	// Some set it to a folder that is everybody's, such as /tmp: nothing in there was meant to be private.
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return list, nil
	}
	dir, err = filepath.Abs(dir)
	return append(list, dir), err
}

// resolvConf is the file inside: the host's, with the router for its nameservers.
func (p *execPlan) resolvConf() []byte {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var b strings.Builder
	for _, a := range p.dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) > 0 && (w[0] == "search" || w[0] == "domain" || w[0] == "options") {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return []byte(b.String())
}
