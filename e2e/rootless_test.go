package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// alone is a router with both devices in one namespace, its own.
const alone = `
[[interface]]
name      = "lan0"
addresses = ["10.0.1.1/24", "fd00:1::1/64"]
owner     = "65534"
  [interface.host]
  addresses = ["10.0.1.2/24", "fd00:1::2/64"]
  routes    = ["192.0.2.0/24 via 10.0.1.1"]

[[interface]]
name      = "wan0"
addresses = ["198.51.100.1/24", "fd00:2::1/64"]
owner     = "65534"
  [interface.host]
  addresses = ["198.51.100.2/24", "fd00:2::2/64"]

[[service]]
type   = "http"
listen = ["tcp://10.0.1.1:80"]

[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]

[control]
socket = "{dir}/run/sluice.sock"
`

// box is a namespace in which an ordinary user runs a router.
type box struct {
	*lab.Lab
	ns *lab.NS
}

const ordinary = "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps -all --bounding-set -all "
const netAdmin = "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps -all,+net_admin --ambient-caps -all,+net_admin --bounding-set -all,+net_admin "

func newBox(t *testing.T) *box {
	t.Helper()
	t.Parallel()
	l := lab.New(t)
	l.Need("setpriv")
	if err := os.Mkdir(l.Dir+"/run", 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chown(l.Dir+"/run", 65534, 65534)
	return &box{l, l.NS("box")}
}

// wrap is a command line in the namespace that sees a /dev/net/tun of this mode,
// in a mount namespace of its own, and the lab's resolv.conf if it has one, and
// goes on with the command that follows.
func (b *box) wrap(mode, then string) []string {
	script := fmt.Sprintf(`set -e
mkdir -p %[1]s/dev
mount -t tmpfs -o mode=755 tmpfs %[1]s/dev
mknod -m %[2]s %[1]s/dev/tun c 10 200
mount --bind %[1]s/dev/tun /dev/net/tun
[ ! -e %[1]s/resolv.conf ] || mount --bind %[1]s/resolv.conf /etc/resolv.conf
%[3]s "$0" "$@"`, b.Dir, mode, then)
	return []string{"ip", "netns", "exec", b.ns.Name, "sh", "-c", script}
}

func (b *box) run(config, mode, then string) *lab.Sluice {
	r := b.SluiceCommand(config, b.wrap(mode, then))
	r.Socket = b.Dir + "/run/sluice.sock"
	return r
}

// routes shows that the router in the box does its work.
func (b *box) routes(t *testing.T, r *lab.Sluice) {
	t.Helper()
	r.Expect("sluice: ready", 6*deadline)
	b.ns.Must("ping", "-n", "-c", "1", "-W", "2", "10.0.1.1")
	b.ns.Must("ping", "-n", "-c", "1", "-W", "2", "fd00:1::1")
	if out := b.ns.Must("curl", "-sS", "--max-time", "10", "http://10.0.1.1/"); !strings.Contains(out, "lan0") {
		t.Errorf("the page:\n%s", out)
	}
	in, out := b.ns.Raw("lan0"), b.ns.Raw("wan0")
	in.Send(lab.UDP("10.0.1.77", "198.51.100.77", 1000, 2000, "through it"))
	p := out.Await("a packet through the router", isUDP(2000))
	if src := p.NetworkLayer().NetworkFlow().Src().String(); src != "198.51.100.1" {
		t.Errorf("it comes from %s", src)
	}
	u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	out.Send(lab.UDP("198.51.100.77", "198.51.100.1", 2000, int(u.SrcPort), "and back"))
	in.Await("the answer", func(p gopacket.Packet) bool {
		u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		return ok && u.DstPort == 1000 && p.NetworkLayer().NetworkFlow().Dst().String() == "10.0.1.77"
	})
	r.Must("iptables", "-A", "FORWARD", "-j", "ACCEPT")
}

// TestWithoutRoot: on devices that were made for the user, the router needs nothing.
func TestWithoutRoot(t *testing.T) {
	b := newBox(t)
	for dev, addr := range map[string][2]string{"lan0": {"10.0.1.2/24", "fd00:1::2/64"}, "wan0": {"198.51.100.2/24", "fd00:2::2/64"}} {
		b.ns.Must("ip", "tuntap", "add", dev, "mode", "tun", "user", "65534", "multi_queue", "vnet_hdr")
		b.ns.Must("ip", "addr", "add", addr[0], "dev", dev)
		b.ns.Must("ip", "addr", "add", addr[1], "dev", dev, "nodad")
		b.ns.Must("ip", "link", "set", dev, "up")
	}
	b.ns.Must("ip", "route", "add", "192.0.2.0/24", "via", "10.0.1.1")
	for range 2 { // the devices outlive a router
		r := b.run(alone, "0666", ordinary)
		b.routes(t, r)
		if who := status(t, r, "Uid"); who != "65534" {
			t.Errorf("the router runs as uid %s", who)
		}
		if caps := status(t, r, "CapEff"); caps != "0000000000000000" {
			t.Errorf("capabilities: %s", caps)
		}
		r.Must("reload")
		r.Signal(syscall.SIGTERM)
		if err := r.Wait(deadline); err != nil {
			t.Errorf("ended with %v", err)
		}
		b.ns.Must("ip", "link", "show", "lan0")
	}
}

// TestSetup: what root does once with `sluice setup` is enough for a user to run on.
func TestSetup(t *testing.T) {
	b := newBox(t)
	config := strings.ReplaceAll(alone, "[interface.host]", "[interface.host]\n  netns = \"{ns:box}\"")
	file := b.File("setup.toml", config)
	setup := func(args ...string) string {
		t.Helper()
		argv := append(b.wrap("0666", "exec"), lab.Binary(t), "setup", "-c", file)
		out, err := exec.Command(argv[0], append(argv[1:], args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("setup %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	setup()
	setup() // again: nothing to do
	r := b.run(config, "0666", ordinary)
	b.routes(t, r)
	if caps := status(t, r, "CapEff"); caps != "0000000000000000" {
		t.Errorf("capabilities: %s", caps)
	}
	r.Signal(syscall.SIGTERM)
	r.Wait(deadline)
	setup("--remove")
	if out := b.ns.Must("ip", "-br", "link"); strings.Contains(out, "lan0") || strings.Contains(out, "wan0") {
		t.Errorf("after setup --remove:\n%s", out)
	}
}

// TestSetupNamespace: setup makes the namespaces that are missing.
func TestSetupNamespace(t *testing.T) {
	b := newBox(t)
	made := b.ns.Sibling("made")
	file := b.File("setup.toml", strings.NewReplacer("[interface.host]", "[interface.host]\n  netns = \"{ns:made}\"", `owner     = "65534"`, "").Replace(alone))
	out, err := exec.Command(lab.Binary(t), "setup", "-c", file).CombinedOutput()
	if err != nil {
		t.Fatalf("setup: %v\n%s", err, out)
	}
	if got := made.Must("ip", "-br", "addr"); !strings.Contains(got, "10.0.1.2/24") || !strings.Contains(got, "fd00:2::2/64") {
		t.Errorf("in the new namespace:\n%s", got)
	}
}

// TestNetAdminAlone: with CAP_NET_ADMIN and nothing else the router makes its devices itself.
func TestNetAdminAlone(t *testing.T) {
	b := newBox(t)
	r := b.run(alone, "0666", netAdmin)
	b.routes(t, r)
	if caps := status(t, r, "CapEff"); caps != "0000000000001000" {
		t.Errorf("capabilities: %s", caps)
	}
	r.Signal(syscall.SIGKILL)
	r.Wait(deadline)
	b.Eventually(deadline, "the devices to go", func() bool {
		out := b.ns.Must("ip", "-br", "link")
		return !strings.Contains(out, "lan0") && !strings.Contains(out, "wan0")
	})
}

// TestRootDropsCapabilities: started as root, the router keeps what it needs.
func TestRootDropsCapabilities(t *testing.T) {
	b := newBed(t, "")
	if caps := status(t, b.r, "CapEff"); caps != "0000000000201000" { // CAP_NET_ADMIN, and CAP_SYS_ADMIN for the namespaces
		t.Errorf("effective: %s", caps)
	}
	for _, set := range []string{"CapPrm", "CapInh", "CapAmb"} {
		if caps := status(t, b.r, set); strings.Trim(caps, "0") != "" && caps != "0000000000201000" {
			t.Errorf("%s: %s", set, caps)
		}
	}
	if status(t, b.r, "NoNewPrivs") != "1" {
		t.Error("no_new_privs is not set")
	}
	b.client.Must("ping", "-n", "-c", "1", "-W", "2", "198.51.100.2")
	b.r.Must("reload")
}

func status(t *testing.T, r *lab.Sluice, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(text), "\n") {
		if v, ok := strings.CutPrefix(l, field+":"); ok {
			return strings.Fields(v)[0]
		}
	}
	t.Fatalf("no %s in\n%s", field, text)
	return ""
}

// TestMendingCommands: what a user may not do is said with the commands that
// mend it; running those as root, one failure after the other, leads to a router.
func TestMendingCommands(t *testing.T) {
	b := newBox(t)
	// From all wrong: another's device, and one without queues.
	b.ns.Must("ip", "tuntap", "add", "lan0", "mode", "tun", "user", "1234", "multi_queue", "vnet_hdr")
	b.ns.Must("ip", "tuntap", "add", "wan0", "mode", "tun", "user", "65534")
	var said []string
	for range 10 {
		r := b.run(alone, "0666", ordinary)
		b.Eventually(2*deadline, "an end or a beginning", func() bool {
			select {
			case <-r.Done():
				return true
			default:
				return strings.Contains(r.Output(), "sluice: ready")
			}
		})
		out := r.Output()
		if strings.Contains(out, "sluice: ready") {
			if len(said) < 2 || !strings.Contains(said[0], "interface lan0: ") || !strings.Contains(said[0], "interface wan0: ") {
				t.Errorf("only this was missing:\n%s", strings.Join(said, "\n"))
			}
			b.routes(t, r)
			return
		}
		said = append(said, out)
		_, commands, ok := strings.Cut(out, "As root:")
		if !ok {
			t.Fatalf("no command that mends it:\n%s", out)
		}
		for _, c := range regexp.MustCompile(`[;\n]|As root:`).Split(commands, -1) {
			if c = strings.TrimSpace(c); strings.HasPrefix(c, "ip ") {
				if out, err := b.ns.Run("sh", "-c", c); err != nil {
					t.Fatalf("%s: %v\n%s\nfrom:\n%s", c, err, out, said[len(said)-1])
				}
			}
		}
	}
	t.Errorf("that does not end:\n%s", strings.Join(said, "\n"))
}

// TestTUNNodeForbidden: a node that only root may open is named, with its command.
func TestTUNNodeForbidden(t *testing.T) {
	b := newBox(t)
	r := b.run(alone, "0600", ordinary)
	if err := r.Wait(deadline); err == nil || !strings.Contains(r.Output(), "chmod 0666 /dev/net/tun") {
		t.Errorf("%v\n%s", err, r.Output())
	}
}
