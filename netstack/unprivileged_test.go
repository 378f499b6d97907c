package netstack

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/internal/host"
	"sluice/packet"
)

// unprivileged runs TestAsNobody in a namespace as uid 65534, in a mount
// namespace of its own where /dev/net/tun has the given mode.
func unprivileged(t *testing.T, ns *host.Namespace, what, mode string, setpriv ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "slc-nobody")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "netstack.test")
	copyFile(t, bin)
	script := `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 none /dev/net
mknod /dev/net/tun c 10 200
chmod ` + mode + ` /dev/net/tun
exec setpriv --reuid=65534 --regid=65534 --clear-groups ` + strings.Join(setpriv, " ") + ` ` + bin + ` -test.run '^TestAsNobody$' -test.v -test.count=1`
	cmd := exec.Command("ip", "netns", "exec", ns.String(), "unshare", "-m", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "SLUICE_TEST_NOBODY="+what)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAsNobody") {
		t.Fatalf("%s: %v\n%s", what, err, out)
	}
	return string(out)
}

func copyFile(t *testing.T, to string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTUNUnprivileged(t *testing.T) {
	ns := testNS(t, "nobody")
	ip := func(args ...string) { run(t, append([]string{"ip", "-n", ns.String()}, args...)...) }
	make := func(user string) {
		ip("tuntap", "add", "tun0", "mode", "tun", "user", user, "multi_queue", "vnet_hdr")
		ip("addr", "add", "10.9.0.2/24", "dev", "tun0")
		ip("addr", "add", "fd09::2/64", "dev", "tun0", "nodad")
		ip("link", "set", "tun0", "up")
		ip("route", "add", "default", "via", "10.9.0.1")
	}
	make("65534")
	unprivileged(t, ns, "works", "0666")
	unprivileged(t, ns, "differs", "0666")
	unprivileged(t, ns, "node", "0600")
	unprivileged(t, ns, "missing", "0666")
	unprivileged(t, ns, "elsewhere", "0666")
	ip("tuntap", "del", "tun0", "mode", "tun", "multi_queue")
	make("12345")
	unprivileged(t, ns, "owner", "0666")
	ip("tuntap", "del", "tun0", "mode", "tun", "multi_queue")
	// CAP_NET_ADMIN alone makes the device itself.
	unprivileged(t, ns, "netadmin", "0666", "--inh-caps=+net_admin", "--ambient-caps=+net_admin")
	if s := run(t, "ip", "-n", ns.String(), "link"); strings.Contains(s, "tun0") {
		t.Errorf("the device outlived its process: %s", s)
	}
}

// TestAsNobody is what TestTUNUnprivileged runs as uid 65534; by itself it does nothing.
func TestAsNobody(t *testing.T) {
	what := os.Getenv("SLUICE_TEST_NOBODY")
	if what == "" {
		return
	}
	if os.Getuid() != 65534 {
		t.Fatalf("uid %d", os.Getuid())
	}
	cfg := TUNConfig{Name: "tun0", Index: 2, MTU: 1500, Queues: 2, Offload: true, Host: &host.End{
		Addresses: prefixes("10.9.0.2/24", "fd09::2/64"), Routes: hostRoutes(t, "default via 10.9.0.1")}}
	fails := func(words ...string) {
		t.Helper()
		d, err := OpenTUN(cfg)
		if err == nil {
			d.Close()
			t.Fatal("no error")
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("no %q in %q", w, err)
			}
		}
	}
	switch what {
	case "works", "netadmin":
		d := openTUN(t, cfg)
		if d.Made() != (what == "netadmin") {
			t.Errorf("made: %v", d.Made())
		}
		c, err := net.Dial("udp", "10.9.0.1:4000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("from nobody")); err != nil {
			t.Fatal(err)
		}
		p := packet.New()
		q := eitherQueue(t, d, p, isUDP("from nobody"))
		p.Parse()
		turn(p.Bytes())
		p.GSO = packet.GSO{}
		p.FixChecksums()
		if err := q.Write(p); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "from nobody" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	case "differs":
		cfg.MTU = 1400
		cfg.Host.Addresses = prefixes("10.9.0.3/24", "fd09::2/64")
		cfg.Host.Routes = hostRoutes(t, "default via 10.9.0.1", "10.50.0.0/16 via 10.9.0.1")
		fails("CAP_NET_ADMIN", "\n  ip link set tun0 mtu 1400", "\n  ip addr add 10.9.0.3/24 dev tun0", "\n  ip route replace 10.50.0.0/16 via 10.9.0.1 dev tun0")
	case "node":
		fails("/dev/net/tun: permission denied", "chmod 0666 /dev/net/tun")
	case "missing":
		cfg.Name = "tun7"
		fails("CAP_NET_ADMIN", fmt.Sprintf("ip tuntap add dev tun7 mode tun user %s multi_queue vnet_hdr", "nobody"))
	case "elsewhere":
		cfg.Host.NetNS = "/proc/1/ns/net"
		fails("/proc/1/ns/net", "permission denied")
	case "owner":
		fails("belongs to uid 12345, not to uid 65534", "ip tuntap del dev tun0 mode tun multi_queue; ip tuntap add dev tun0 mode tun user nobody multi_queue vnet_hdr")
	default:
		t.Fatal(what)
	}
}
