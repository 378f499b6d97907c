package wire

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rootlessMTU is what is inside where no wire is involved.
const rootlessMTU = 65520

// rootlessMetrics are what is measured of the paths below. Memory is looked at last.
var rootlessMetrics = []string{"tcp1", "tcp8", "tcp1in", "tcp8in", "rr", "conn", "start", "memory"}

// rootless is a path whose server is a program of the host, reached through the
// host's sockets: the server's namespace is the host, begin starts what gives
// the client's namespace its network.
func rootless(begin func(*lab, *Path) error) func(*lab, *Path) error {
	return func(l *lab, p *Path) error {
		s := p.server.name
		// An address on the loopback stands for the world; some programs want an
		// interface with a default route to copy.
		for _, line := range []string{
			"addr add " + serverAddr + "/32 dev lo",
			"link add ext0 type veth peer name ext1",
			"addr add 192.0.2.1/24 dev ext0",
			"link set ext0 up",
			"link set ext1 up",
			"route add default via 192.0.2.2",
		} {
			if err := run(append([]string{"ip", "-n", s}, strings.Fields(line)...)...); err != nil {
				return err
			}
		}
		p.metrics = rootlessMetrics
		return begin(l, p)
	}
}

// uplink is sluice with an uplink.
func uplink(bin string) func(*lab, *Path) error {
	return rootless(func(l *lab, p *Path) error {
		p.socket = filepath.Join(l.dir, p.Name+".sock")
		cfg, err := l.file(p.Name+".toml", fmt.Sprintf(`
[control]
socket = %q
[[interface]]
name = "exec0"
addresses = ["10.0.1.1/24"]
mtu = %d
  [interface.host]
  netns = %q
  addresses = ["%s/24"]
  routes = ["default via 10.0.1.1"]
[[interface]]
name = "uplink0"
type = "uplink"
[[route]]
to = "0.0.0.0/0"
dev = "uplink0"
%s`, p.socket, rootlessMTU, p.client.name, clientAddr, os.Getenv("SLUICE_BENCH_CONFIG")))
		if err != nil {
			return err
		}
		p.forget = func() error { return run(bin, "--socket", p.socket, "conntrack", "-F") }
		p.start = command(bin, "exec", "--quiet", "--", "true")
		p.pid, err = l.start("sluice: ready", "ip", "netns", "exec", p.server.name, bin, "run", "-c", cfg)
		return err
	})
}

// other is another program of the kind, run in the host's namespace; {client}
// in its arguments is the path of the client's.
func other(argv ...string) func(*lab, *Path) error {
	return rootless(func(l *lab, p *Path) (err error) {
		if _, err := exec.LookPath(argv[0]); err != nil {
			return err
		}
		args := []string{"ip", "netns", "exec", p.server.name}
		for _, a := range argv {
			args = append(args, strings.ReplaceAll(a, "{client}", "/run/netns/"+p.client.name))
		}
		if p.pid, err = l.start("", args...); err != nil {
			return err
		}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			out, err := exec.Command("ip", "-n", p.client.name, "route").Output()
			if err == nil && strings.Contains(string(out), "default") {
				return nil
			}
		}
		return errors.New("it gave the client no network within 10 s")
	})
}

// virtual is gvisor-tap-vsock's network, in a program made of its module.
func virtual(bin string) func(*lab, *Path) error {
	mtu := fmt.Sprint(rootlessMTU)
	return rootless(func(l *lab, p *Path) (err error) {
		p.start = beside("ip link set tap0 up mtu "+mtu+"; ip addr add 10.0.1.2/24 dev tap0; ip route add default via 10.0.1.1; true", bin, "/proc/{pid}/ns/net", mtu)
		if p.pid, err = l.start("ready", "ip", "netns", "exec", p.server.name, bin, "/run/netns/"+p.client.name, mtu); err != nil {
			return err
		}
		for _, line := range []string{"link set tap0 up mtu " + mtu, "addr add " + clientAddr + "/24 dev tap0", "route add default via 10.0.1.1"} {
			if err := run(append([]string{"ip", "-n", p.client.name}, strings.Fields(line)...)...); err != nil {
				return err
			}
		}
		return nil
	})
}

// bareNamespaces are namespaces without a network, which only the start is measured of.
func bareNamespaces(_ *lab, p *Path) error {
	p.metrics = []string{"start"}
	p.start = command("unshare", "-Urn", "true")
	return nil
}

// Rootless are the names of the ways to the host's network that need no privilege.
var Rootless = []string{"uplink", "pasta", "slirp4netns", "gvisor-tap-vsock", "unshare"}

func rootlessPaths(o *Options) []*Path {
	mtu := fmt.Sprint(rootlessMTU)
	ps := []*Path{
		{Name: "uplink", Title: "sluice, uplink", make: uplink(o.Sluice)},
		{Name: "pasta", Title: "pasta", start: command("pasta", "--config-net", "--foreground", "--quiet", "--runas", "0", "--", "true"),
			make: other("pasta", "--config-net", "--foreground", "--quiet", "--runas", "0", "--mtu", mtu, "--netns", "{client}")},
		{Name: "slirp4netns", Title: "slirp4netns", start: beside("true", "slirp4netns", "--configure", "--ready-fd=3", "--mtu", mtu, "{pid}", "tap0"),
			make: other("slirp4netns", "--configure", "--mtu", mtu, "--netns-type=path", "{client}", "tap0")},
	}
	if o.GVTap != "" {
		ps = append(ps, &Path{Name: "gvisor-tap-vsock", Title: "gvisor-tap-vsock", make: virtual(o.GVTap)})
	}
	return append(ps, &Path{Name: "unshare", Title: "unshare -Urn true", make: bareNamespaces})
}
