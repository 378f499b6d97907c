package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"sluice/internal/confine"
	"sluice/internal/host"
	"sluice/netstack"
	"sluice/router"
)

// slirpName is the program whose command line and API this file takes, so that
// what starts it can start sluice instead.
const slirpName = "slirp4netns"

// slirpArgs recognizes a call under that name, or with it as first argument.
func slirpArgs(argv []string) ([]string, bool) {
	switch {
	case programName(argv) == slirpName:
		return argv[1:], true
	case len(argv) > 1 && argv[1] == slirpName:
		return argv[2:], true
	}
	return nil, false
}

const slirpUsage = `Usage: slirp4netns [OPTION]... PID|PATH [TAPNAME]
User-mode networking for unprivileged network namespaces.

-c, --configure          bring up the interface
-e, --exit-fd=FD         specify the FD for terminating slirp4netns
-r, --ready-fd=FD        specify the FD to write to when the network is configured
-m, --mtu=MTU            specify MTU (default=1500, max=65521)
-6, --enable-ipv6        enable IPv6 (experimental)
-a, --api-socket=PATH    specify API socket path
--cidr=CIDR              specify network address CIDR (default=10.0.2.0/24)
--disable-host-loopback  prohibit connecting to 127.0.0.1:* on the host namespace
--netns-type=TYPE 	 specify network namespace type ([path|pid], default=pid)
--userns-path=PATH	 specify user namespace path
--enable-sandbox         open no files but those that name resolvers (and drop all caps except CAP_NET_BIND_SERVICE)
--enable-seccomp         enable seccomp to limit syscalls (experimental)
--outbound-addr=IPv4     sets outbound ipv4 address to bound to (experimental)
--outbound-addr6=IPv6    sets outbound ipv6 address to bound to (experimental)
--disable-dns            disables 10.0.2.3 (or configured internal ip) to host dns redirect (experimental)
--macaddress=MAC         specify the MAC address of the TAP (only valid with -c)
--target-type=TYPE       specify the target type ([netns|bess], default=netns)
-h, --help               show this help and exit
-v, --version            show version and exit
`

// slirp is a call of slirp4netns.
type slirp struct {
	stdout, stderr io.Writer

	configure, ipv6, noLoopback, sandbox, seccomp, noDNS bool
	exitFD, readyFD, mtu                                 int
	api, cidr, netnsType, userns, out4, out6, mac        string
	target                                               string

	netns, tap string
	net        netip.Prefix
	cfg        *router.Config
	router     *router.Router

	mu       sync.Mutex // guards what follows
	forwards []hostForward
	lastID   int
}

func (s *slirp) run(args []string) int {
	f := pflag.NewFlagSet(slirpName, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVarP(&s.configure, "configure", "c", false, "")
	f.IntVarP(&s.exitFD, "exit-fd", "e", -1, "")
	f.IntVarP(&s.readyFD, "ready-fd", "r", -1, "")
	f.IntVarP(&s.mtu, "mtu", "m", 1500, "")
	f.BoolVarP(&s.ipv6, "enable-ipv6", "6", false, "")
	f.StringVarP(&s.api, "api-socket", "a", "", "")
	f.StringVar(&s.cidr, "cidr", "10.0.2.0/24", "")
	f.BoolVar(&s.noLoopback, "disable-host-loopback", false, "")
	f.StringVar(&s.netnsType, "netns-type", "pid", "")
	f.StringVar(&s.userns, "userns-path", "", "")
	f.BoolVar(&s.sandbox, "enable-sandbox", false, "")
	f.BoolVar(&s.seccomp, "enable-seccomp", false, "")
	f.StringVar(&s.out4, "outbound-addr", "", "")
	f.StringVar(&s.out6, "outbound-addr6", "", "")
	f.BoolVar(&s.noDNS, "disable-dns", false, "")
	f.StringVar(&s.mac, "macaddress", "", "")
	f.StringVar(&s.target, "target-type", "netns", "")
	showVersion := f.BoolP("version", "v", false, "")
	help := f.BoolP("help", "h", false, "")
	err := f.Parse(args)
	switch {
	case *help || errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(s.stdout, slirpUsage)
		return 0
	case *showVersion:
		fmt.Fprintf(s.stdout, "slirp4netns version 1.2.0\ncommit: sluice %s\nlibslirp: 4.7.0\nSLIRP_CONFIG_VERSION_MAX: 4\nlibseccomp: 2.5.4\n", version)
		return 0
	case err != nil:
		fmt.Fprintf(s.stderr, "slirp4netns: %v\n", err)
		fmt.Fprint(s.stdout, slirpUsage)
		return exitFailed
	case f.NArg() != 2:
		if f.NArg() > 2 {
			fmt.Fprintln(s.stderr, "too many arguments")
		}
		fmt.Fprint(s.stdout, slirpUsage)
		return exitFailed
	}
	s.netns, s.tap = f.Arg(0), f.Arg(1)
	if err := s.serve(); err != nil {
		fmt.Fprintln(s.stderr, err)
		return exitFailed
	}
	return 0
}

// join finds the namespaces.
func (s *slirp) join() (*confine.Join, error) {
	j := &confine.Join{NetNS: s.netns}
	switch s.netnsType {
	case "path":
		if _, err := os.Stat(s.netns); err != nil {
			return nil, errors.New("existing path expected when --netns-type=path: No such file or directory")
		}
	case "pid":
		pid, err := strconv.Atoi(s.netns)
		if err != nil || pid <= 0 {
			return nil, errors.New("PID must be a positive integer")
		}
		*j = confine.OfProcess(pid)
	default:
		return nil, errors.New("netns-type must be either \"path\" or \"pid\"")
	}
	if s.userns != "" {
		j.UserNS = s.userns
	}
	return j, nil
}

// plan makes the configuration, and the device of the namespace.
func (s *slirp) plan() (*confine.Device, error) {
	var err error
	s.net, err = netip.ParsePrefix(s.cidr)
	switch {
	case err != nil || !s.net.Addr().Is4():
		return nil, fmt.Errorf("invalid CIDR: %q", s.cidr)
	case s.net.Bits() > 25:
		return nil, errors.New("prefix length needs to be 1-25")
	case s.net != s.net.Masked():
		return nil, fmt.Errorf("CIDR needs to be a network address like %s, not like %s", s.net.Masked(), s.net)
	case s.mtu <= 0 || s.mtu >= 65522:
		return nil, errors.New("MTU must be a positive integer (< 65522)")
	case s.mac != "" && !s.configure:
		return nil, errors.New("--macaddress cannot be specified when --configure or -c is not specified")
	case s.target == "bess":
		return nil, errors.New("--target-type=bess: sluice attaches to network namespaces; for a virtual machine, use slirp4netns itself")
	case s.target != "netns":
		return nil, errors.New("target-type must be \"netns\"")
	}
	workers := min(runtime.NumCPU(), maxWorkers)
	dev := &confine.Device{Kind: confine.DeviceTAP, Name: s.tap, MTU: s.mtu, Queues: workers, Raw: !s.configure}
	if s.mac != "" {
		mac, err := net.ParseMAC(s.mac)
		if err != nil || len(mac) != 6 {
			return nil, fmt.Errorf("invalid MAC address: %q", s.mac)
		}
		dev.MAC = [6]byte(mac)
	}
	dev.Addresses = []netip.Prefix{nth(s.net, 100)}
	dev.Routes = []host.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: nth(s.net, 2).Addr()}}

	tap, up := router.InterfaceConfig{}, router.InterfaceConfig{}
	tap.SetDefaults()
	up.SetDefaults()
	tap.Name, tap.MTU = s.tap, s.mtu
	up.Name, up.Type, up.MTU = uplinkIface, router.TypeUplink, execMTU
	s.cfg = &router.Config{Router: router.RouterConfig{Workers: workers}}
	s.family(&tap, &up, s.net)
	if s.ipv6 {
		dev.Addresses = append(dev.Addresses, nth(slirpNet6, 0x100))
		dev.Routes = append(dev.Routes, host.Route{To: netip.MustParsePrefix("::/0"), Via: nth(slirpNet6, 2).Addr()})
		s.family(&tap, &up, slirpNet6)
	}
	for _, text := range []string{s.out4, s.out6} {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("outbound address %q: %w", text, err)
		}
		up.Source = append(up.Source, a)
	}
	s.cfg.Interfaces = []router.InterfaceConfig{tap, up}
	return dev, nil
}

var slirpNet6 = netip.MustParsePrefix("fd00::/64")

// family gives the router its addresses in one family: the nameserver's is the
// router's own, and the gateway's stands for the host's loopback or is, too.
func (s *slirp) family(tap, up *router.InterfaceConfig, net netip.Prefix) {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if net.Addr().Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	route := func(to netip.Prefix) {
		r := router.RouteConfig{To: to, Dev: uplinkIface}
		r.SetDefaults()
		s.cfg.Routes = append(s.cfg.Routes, r)
	}
	route(all)
	gateway, dns := nth(net, 2), nth(net, 3)
	tap.Addresses = append(tap.Addresses, dns)
	if s.noLoopback {
		tap.Addresses = append(tap.Addresses, gateway)
	} else {
		up.HostLoopback = append(up.HostLoopback, gateway.Addr())
		route(netip.PrefixFrom(gateway.Addr(), gateway.Addr().BitLen()))
	}
	if s.noDNS {
		return
	}
	if s.cfg.DNS == nil {
		s.cfg.DNS = &router.DNSConfig{}
		s.cfg.DNS.SetDefaults()
	}
	s.cfg.DNS.Listen = append(s.cfg.DNS.Listen, netip.AddrPortFrom(dns.Addr(), 53))
}

func (s *slirp) serve() error {
	dev, err := s.plan()
	if err != nil {
		return err
	}
	j, err := s.join()
	if err != nil {
		return err
	}
	j.Device = *dev
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if s.exitFD >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		unix.CloseOnExec(s.exitFD)
		go func() {
			defer cancel()
			for {
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(s.exitFD), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
					return
				}
			}
		}()
	}
	log := newPlainLog(s.stderr, slog.LevelWarn)
	ready := make(chan struct{})
	s.router, err = router.New(s.cfg, router.Options{Log: log, Version: version, Ready: func() { close(ready) }, Open: func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
		if c.Name != s.tap {
			return nil, nil
		}
		opened, err := j.Open()
		if err != nil {
			return nil, err
		}
		t := netstack.TAPConfig{Name: c.Name, Index: index, MTU: c.MTU, Addresses: c.Addresses, Proxied: s.cfg.Interfaces[1].HostLoopback}
		gateway := nth(s.net, 2).Addr().As4()
		return netstack.AdoptTAP(t, [6]byte{0x52, 0x55, gateway[0], gateway[1], gateway[2], gateway[3]}, opened.Queues)
	}})
	if err != nil {
		return err
	}
	defer s.router.Close()
	if s.api != "" {
		if st, err := os.Lstat(s.api); err == nil && st.Mode()&os.ModeSocket != 0 {
			os.Remove(s.api) // as a former one left it
		}
		l, err := net.Listen("unix", s.api)
		if err != nil {
			return err
		}
		defer l.Close()
		go s.answer(l)
	}
	if err := host.DropCapabilities(host.CapNetBindService); err != nil {
		log.Warn("the router keeps capabilities that it does not need", "reason", err)
	}
	if s.sandbox {
		if held, err := confine.OnlyFiles("/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager"); err != nil {
			return err
		} else if !held {
			log.Warn("--enable-sandbox: this kernel has no Landlock, so files stay as they are")
		}
	}
	if s.seccomp {
		if err := confine.Restrict(); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.router.Run(ctx) }()
	<-ready
	if s.readyFD >= 0 {
		if _, err := unix.Write(s.readyFD, []byte("1")); err != nil {
			return fmt.Errorf("ready-fd: %w", err)
		}
		unix.Close(s.readyFD)
	}
	return <-done
}

// hostForward is a forwarded port, as the API shows it.
type hostForward struct {
	ID        int    `json:"id"`
	Proto     string `json:"proto"`
	HostAddr  string `json:"host_addr"`
	HostPort  int    `json:"host_port"`
	GuestAddr string `json:"guest_addr"`
	GuestPort int    `json:"guest_port"`
}

// answer serves the API socket: one request and one answer a connection.
func (s *slirp) answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var req struct {
				Execute   *string         `json:"execute"`
				Arguments json.RawMessage `json:"arguments"`
			}
			var out any
			if err := json.NewDecoder(io.LimitReader(c, 64<<10)).Decode(&req); err != nil {
				err = errors.New("cannot parse JSON")
				out = apiError(err)
			} else if req.Execute == nil {
				out = apiError(errors.New("no execute found"))
			} else if got, err := s.do(*req.Execute, req.Arguments); err != nil {
				out = apiError(err)
			} else {
				out = got
			}
			if text, err := json.Marshal(out); err == nil {
				c.Write(text)
			}
		}()
	}
}

func apiError(err error) any {
	return map[string]any{"error": map[string]string{"desc": "bad request: " + err.Error()}}
}

// do carries one request out.
func (s *slirp) do(execute string, arguments json.RawMessage) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch execute {
	case "list_hostfwd":
		return map[string]any{"entries": append([]hostForward{}, s.forwards...)}, nil
	case "add_hostfwd":
		f := hostForward{HostAddr: "0.0.0.0", GuestAddr: nth(s.net, 100).Addr().String()}
		if err := json.Unmarshal(arguments, &f); err != nil && len(arguments) > 0 {
			return nil, errors.New("add_hostfwd: bad arguments")
		}
		f.ID = s.lastID + 1
		p, err := f.publish()
		if err != nil {
			return nil, fmt.Errorf("add_hostfwd: %w", err)
		}
		if slices.ContainsFunc(s.cfg.Publish, func(q router.PublishConfig) bool { return q.Listen == p.Listen }) {
			return nil, errors.New("add_hostfwd: slirp_add_hostfwd failed")
		}
		next := *s.cfg
		next.Publish = append(slices.Clone(s.cfg.Publish), *p)
		if err := s.router.Reload(&next); err != nil {
			return nil, errors.New("add_hostfwd: slirp_add_hostfwd failed")
		}
		s.cfg, s.lastID = &next, f.ID
		s.forwards = append(s.forwards, f)
		return map[string]any{"return": map[string]int{"id": f.ID}}, nil
	case "remove_hostfwd":
		var a struct{ ID int }
		_ = json.Unmarshal(arguments, &a) // what is no number names no entry
		i := slices.IndexFunc(s.forwards, func(f hostForward) bool { return f.ID == a.ID })
		if i < 0 {
			return nil, errors.New("remove_hostfwd: bad arguments.id")
		}
		next := *s.cfg
		next.Publish = slices.Delete(slices.Clone(s.cfg.Publish), i, i+1)
		if err := s.router.Reload(&next); err != nil {
			return nil, errors.New("remove_hostfwd: slirp_remove_hostfwd failed")
		}
		s.cfg = &next
		s.forwards = slices.Delete(s.forwards, i, i+1)
		return map[string]any{"return": struct{}{}}, nil
	}
	return nil, errors.New("unknown execute")
}

func (f *hostForward) publish() (*router.PublishConfig, error) {
	if f.Proto != "tcp" && f.Proto != "udp" {
		return nil, errors.New("bad arguments.proto")
	}
	if f.HostPort <= 0 || f.HostPort > 65535 {
		return nil, errors.New("bad arguments.host_port")
	}
	if f.GuestPort <= 0 || f.GuestPort > 65535 {
		return nil, errors.New("bad arguments.guest_port")
	}
	host, err := netip.ParseAddr(f.HostAddr)
	if err != nil || !host.Is4() {
		return nil, errors.New("bad arguments.host_addr")
	}
	guest, err := netip.ParseAddr(f.GuestAddr)
	if err != nil || !guest.Is4() {
		return nil, errors.New("bad arguments.guest_addr")
	}
	return &router.PublishConfig{
		Listen:    router.HostListen{Network: f.Proto, Addr: netip.AddrPortFrom(host, uint16(f.HostPort))},
		To:        netip.AddrPortFrom(guest, uint16(f.GuestPort)),
		Interface: uplinkIface,
	}, nil
}
