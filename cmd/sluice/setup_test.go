package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// root runs a command as root and returns what it prints.
func root(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// TestSetup: setup as root makes all that a router without any privilege needs.
func TestSetup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range []string{"ip", "setpriv", "ping"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	p := newPlace(t)
	ns := fmt.Sprintf("sluice-setup-%d", os.Getpid())
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	cfg := p.file("s.toml", fmt.Sprintf(`
[[interface]]
name      = "lan0"
addresses = ["10.77.1.1/24", "fd77::1/64"]
queues    = 2
owner     = %d
  [interface.host]
  netns     = %q
  mtu       = 1400
  addresses = ["10.77.1.2/24", "fd77::2/64"]
  routes    = ["default via 10.77.1.1", "default via fd77::1"]

[[interface]]
name    = "lan1"
offload = false
  [interface.host]
  netns = %q
`, nobody, ns, ns))

	asNobody := func(args ...string) []string {
		return append([]string{"ip", "netns", "exec", ns, "setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody),
			"--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", p.bin}, args...)
	}

	keepTunMode(t)
	out, err := root(t, p.bin, "setup", "-c", cfg, "--owner", fmt.Sprint(nobody))
	out = strings.Replace(out, "/dev/net/tun: users may open it now (mode 0666)\n", "", 1)
	if err != nil || out != "network namespace "+ns+": made\nlan0: set up\nlan1: set up\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := root(t, p.bin, "setup", "-c", cfg, "--owner", fmt.Sprint(nobody)); err != nil || out != "lan0: set up\nlan1: set up\n" {
		t.Errorf("the second time: %v\n%s", err, out)
	}
	if out, err := root(t, p.bin, "setup", "-c", cfg, "--owner", "1"); err == nil || !strings.Contains(out, cfg+":13:1: interface lan1: the device is there, made for uid 65534") {
		t.Errorf("for another user: %v\n%s", err, out)
	}
	for args, want := range map[string][]string{
		"-d link show lan0": {"mtu 1400", "tun type tun", "multi_queue", "vnet_hdr", "user nobody", "persist on"},
		"addr show lan0":    {"inet 10.77.1.2/24", "inet6 fd77::2/64"},
		"route":             {"default via 10.77.1.1 dev lan0"},
		"-6 route":          {"default via fd77::1 dev lan0"},
		"link show lo":      {"LOOPBACK,UP"},
	} {
		out, err := root(t, append([]string{"ip", "-n", ns}, strings.Fields(args)...)...)
		for _, w := range want {
			if err != nil || !strings.Contains(out, w) {
				t.Errorf("ip %s: %v, no %q in\n%s", args, err, w, out)
			}
		}
	}

	argv := asNobody("run", "-c", cfg)
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = p.env
	r := p.await(c)
	for _, addr := range []string{"10.77.1.1", "fd77::1"} {
		if out, err := root(t, "ip", "netns", "exec", ns, "ping", "-c1", "-W10", addr); err != nil {
			t.Errorf("ping %s: %v\n%s\n%s", addr, err, out, r.log)
		}
	}
	if out := p.must("iptables", "-S", "INPUT"); out != "-P INPUT ACCEPT\n" {
		t.Errorf("%q", out)
	}
	r.Process.Signal(syscall.SIGTERM)
	if status := r.end(t); status != 0 {
		t.Errorf("status %d\n%s", status, r.log)
	}

	if out, err := root(t, p.bin, "setup", "--remove", "-c", cfg); err != nil || out != "lan0: removed\nlan1: removed\n" {
		t.Errorf("--remove: %v\n%s", err, out)
	}
	if out, _ := root(t, "ip", "-n", ns, "-br", "link"); strings.Contains(out, "lan") {
		t.Errorf("still there:\n%s", out)
	}

	// without them, and without privilege, it says what is missing
	c = exec.Command(argv[0], argv[1:]...)
	c.Env = p.env
	status, _, errs := result(t, c, "")
	if status != 1 || !strings.Contains(errs, "lan0") || !strings.Contains(errs, "ip tuntap add") && !strings.Contains(errs, "tuntap add") {
		t.Errorf("status %d, %q", status, errs)
	}
}

// TestNetAdminAlone: the capability that the systemd unit gives is enough.
func TestNetAdminAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range []string{"ip", "setpriv", "ping"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	p := newPlace(t)
	ns := fmt.Sprintf("sluice-admin-%d", os.Getpid())
	if out, err := root(t, "ip", "netns", "add", ns); err != nil {
		t.Skip(out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	cfg := p.file("a.toml", "[[interface]]\nname = \"lan0\"\naddresses = [\"10.78.1.1/24\"]\n[interface.host]\naddresses = [\"10.78.1.2/24\"]\n")
	keepTunMode(t)
	if err := os.Chmod("/dev/net/tun", 0o666); err != nil { // as udev does
		t.Skip(err)
	}
	c := exec.Command("ip", "netns", "exec", ns, "setpriv", "--reuid", fmt.Sprint(nobody), "--regid", fmt.Sprint(nobody), "--clear-groups",
		"--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin", "--no-new-privs", p.bin, "run", "-c", cfg)
	c.Env = p.env
	r := p.await(c)
	if out, err := root(t, "ip", "netns", "exec", ns, "ping", "-c1", "-W10", "10.78.1.1"); err != nil {
		t.Errorf("ping: %v\n%s\n%s", err, out, r.log)
	}
	r.Process.Signal(syscall.SIGTERM)
	if status := r.end(t); status != 0 {
		t.Errorf("status %d\n%s", status, r.log)
	}
	if out, _ := root(t, "ip", "-n", ns, "-br", "link"); strings.Contains(out, "lan0") {
		t.Errorf("the device outlives its router:\n%s", out)
	}
}

// keepTunMode puts the mode of /dev/net/tun back when the test ends.
func keepTunMode(t *testing.T) {
	t.Helper()
	fi, err := os.Stat("/dev/net/tun")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod("/dev/net/tun", fi.Mode().Perm()) })
}
