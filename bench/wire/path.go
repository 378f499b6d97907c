package wire

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Addresses of every path.
const (
	clientAddr = "10.0.1.2"
	serverAddr = "198.51.100.2"
)

const txQueueLen = 1000 // of all TUN devices, so that they lose alike

// Path is one way between a client and a server.
type Path struct {
	Name, Title string
	make        func(*lab, *Path) error

	client, server *space
	router         *space // nil: none of its own
	pid            int    // of the router's process, which leads a group; 0: the kernel
	socket         string // of sluice
	local          bool   // the router has services of its own
	forget         func() error
	rules          func(save string) error // loads other rules
	append         func(rule string) error // adds one
	metrics        []string                // what is measured; empty: all but the rootless paths' own
	sink           *sink
	start          func() error // runs `true` with such a network of its own; nil: it cannot
}

// pause stops the router's processes while others are measured: one may be at work
// on what it was sent for seconds more. goOn lets them go on.
func (p *Path) pause() { p.signal(syscall.SIGSTOP) }
func (p *Path) goOn()  { p.signal(syscall.SIGCONT) }

func (p *Path) signal(s syscall.Signal) {
	if p.pid != 0 {
		_ = syscall.Kill(-p.pid, s) // a group of its own, see lab.start
	}
}

// Options choose what is run.
type Options struct {
	Sluice string   // the binary
	Self   string   // the program that answers to "peer"
	WG     string   // the copy loop over wireguard-go's tun package; "": there is none
	GVTap  string   // gvisor-tap-vsock's network as a program; "": there is none
	Before string   // another sluice to compare with, of one worker and of two; "": none
	Paths  []string // names; empty: all
}

// paths is what can be measured, in the order of the report.
func paths(o *Options) []*Path {
	ps := []*Path{
		{Name: "linux", Title: "Linux, veth, iptables-legacy, 20 rules", make: linux("iptables-legacy-restore", 20)},
		{Name: "linux-nft", Title: "Linux, veth, iptables-nft, 20 rules", make: linux("iptables-nft-restore", 20)},
		{Name: "linux-10000", Title: "Linux, veth, iptables-legacy, 10,000 rules", make: linux("iptables-legacy-restore", 10000)},
		{Name: "linux-nft-10000", Title: "Linux, veth, iptables-nft, 10,000 rules", make: linux("iptables-nft-restore", 10000)},
		{Name: "bare", Title: "bare copy loop, virtio-net header", make: peer(o.Self, "bare", "-vnet")},
		{Name: "bare-plain", Title: "bare copy loop, no header", make: peer(o.Self, "bare")},
		{Name: "wireguard", Title: "copy loop over wireguard-go's tun package", make: peer(o.WG)},
		{Name: "gvisor", Title: "gVisor's stack forwarding, its NAT", make: peer(o.Self, "gvisor")},
		{Name: "sluice", Title: "sluice, 20 rules", make: sluice(o.Sluice, 1, true, 20)},
		{Name: "sluice-10000", Title: "sluice, 10,000 rules", make: sluice(o.Sluice, 1, true, 10000)},
		{Name: "sluice-2", Title: "sluice, 20 rules, two workers", make: sluice(o.Sluice, 2, true, 20)},
		{Name: "sluice-plain", Title: "sluice, 20 rules, offload off", make: sluice(o.Sluice, 1, false, 20)},
	}
	if o.WG == "" {
		ps = slices.DeleteFunc(ps, func(p *Path) bool { return p.Name == "wireguard" })
	}
	if o.Before != "" {
		ps = append(ps,
			&Path{Name: "before", Title: "the other sluice, 20 rules", make: sluice(o.Before, 1, true, 20)},
			&Path{Name: "before-2", Title: "the other sluice, two workers", make: sluice(o.Before, 2, true, 20)})
	}
	ps = append(ps, rootlessPaths(o)...)
	if len(o.Paths) == 0 {
		return ps
	}
	var some []*Path
	for _, p := range ps {
		for _, n := range o.Paths {
			if n == p.Name {
				some = append(some, p)
			}
		}
	}
	return some
}

func (p *Path) open(l *lab) (err error) {
	if p.client, err = l.space(p.Name + "-c"); err != nil {
		return err
	}
	if p.server, err = l.space(p.Name + "-s"); err != nil {
		return err
	}
	if err := p.make(l, p); err != nil {
		return err
	}
	if len(p.metrics) == 1 {
		return nil // nothing is sent through it
	}
	return p.serve(l)
}

// linux is the kernel's own routing between two veth pairs.
func linux(restore string, rules int) func(*lab, *Path) error {
	return func(l *lab, p *Path) (err error) {
		if _, err := exec.LookPath(restore); err != nil {
			return err
		}
		if p.router, err = l.space(p.Name + "-r"); err != nil {
			return err
		}
		c, s, r := p.client.name, p.server.name, p.router.name
		for _, line := range []string{
			fmt.Sprintf("link add lan0 netns %s type veth peer name eth0 netns %s", r, c),
			fmt.Sprintf("link add wan0 netns %s type veth peer name eth0 netns %s", r, s),
			"-n " + r + " addr add 10.0.1.1/24 dev lan0",
			"-n " + r + " addr add 198.51.100.1/24 dev wan0",
			"-n " + r + " link set lan0 up",
			"-n " + r + " link set wan0 up",
			"-n " + c + " addr add " + clientAddr + "/24 dev eth0",
			"-n " + c + " link set eth0 up",
			"-n " + c + " route add default via 10.0.1.1",
			"-n " + s + " addr add " + serverAddr + "/24 dev eth0",
			"-n " + s + " link set eth0 up",
			"-n " + s + " route add default via 198.51.100.1",
		} {
			if err := run(append([]string{"ip"}, strings.Fields(line)...)...); err != nil {
				return err
			}
		}
		if err := p.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1"); err != nil {
			return err
		}
		p.forget = func() error { return p.router.run("conntrack", "-F") }
		p.rules = func(save string) error { return p.router.pipe(save, restore) }
		p.append = func(rule string) error {
			return p.router.run(append([]string{strings.TrimSuffix(restore, "-restore")}, strings.Fields(rule)...)...)
		}
		return p.router.pipe(Ruleset(rules, rules == 20), restore)
	}
}

// ends gives the kernel's ends of two TUN devices, client's and server's, their addresses.
func (p *Path) ends() error {
	for _, e := range []struct {
		s         *space
		addr, via string
	}{{p.client, clientAddr, "10.0.1.1"}, {p.server, serverAddr, "198.51.100.1"}} {
		for _, line := range []string{
			fmt.Sprintf("link set tun0 up txqueuelen %d", txQueueLen),
			"addr add " + e.addr + "/24 dev tun0",
			"route add default via " + e.via,
		} {
			if err := run(append([]string{"ip", "-n", e.s.name}, strings.Fields(line)...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// peer is a program that makes tun0 in the namespaces it is given and carries
// frames between them; it prints "ready" when the devices are there.
func peer(argv ...string) func(*lab, *Path) error {
	if len(argv) > 1 {
		argv = append([]string{argv[0], "peer"}, argv[1:]...)
	}
	return func(l *lab, p *Path) (err error) {
		if p.pid, err = l.start("ready", append(argv, p.client.name, p.server.name)...); err != nil {
			return err
		}
		return p.ends()
	}
}

func sluice(bin string, workers int, offload bool, rules int) func(*lab, *Path) error {
	return func(l *lab, p *Path) (err error) {
		restore, err := l.file(p.Name+".rules", Ruleset(rules, rules == 20))
		if err != nil {
			return err
		}
		p.socket = filepath.Join(l.dir, p.Name+".sock")
		cfg, err := l.file(p.Name+".toml", fmt.Sprintf(`
[router]
workers = %d
[control]
socket = %q
[[interface]]
name = "lan0"
addresses = ["10.0.1.1/24"]
offload = %v
  [interface.host]
  netns = %q
  addresses = ["%s/24"]
  routes = ["default via 10.0.1.1"]
[[interface]]
name = "wan0"
addresses = ["198.51.100.1/24"]
offload = %v
  [interface.host]
  netns = %q
  addresses = ["%s/24"]
  routes = ["default via 198.51.100.1"]
[[service]]
type = "discard"
listen = ["tcp://10.0.1.1:9"]
[[service]]
type = "chargen"
listen = ["tcp://10.0.1.1:19"]
[iptables]
restore = [%q]
%s`, workers, p.socket, offload, p.client.name, clientAddr, offload, p.server.name, serverAddr, restore, os.Getenv("SLUICE_BENCH_CONFIG")))
		if err != nil {
			return err
		}
		p.local = true
		p.rules = func(save string) error {
			c := exec.Command(bin, "--socket", p.socket, "iptables-restore")
			c.Stdin = strings.NewReader(save)
			return finish(c)
		}
		p.append = func(rule string) error {
			return run(append([]string{bin, "--socket", p.socket, "iptables"}, strings.Fields(rule)...)...)
		}
		p.forget = func() error { return run(bin, "--socket", p.socket, "conntrack", "-F") }
		p.pid, err = l.start("sluice: ready", bin, "run", "-c", cfg)
		return err
	}
}
