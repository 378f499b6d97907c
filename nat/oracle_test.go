package nat

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernel is a router made of the running kernel, in a network namespace of its
// own, between two TUN devices: c0 (10.0.1.1, fd00:1::1) where the client 10.0.1.2
// is, and s0 (10.0.2.1, fd00:2::1) where the server 10.0.2.2 is. What sluice
// does to a packet is compared with what it does.
type kernel struct {
	t    *testing.T
	devs map[string]int
}

// newKernel needs root and the tools; without them the test is skipped. The
// test's goroutine stays on its thread, in the namespace, until the end, and the
// thread dies with it.
func newKernel(t *testing.T) *kernel {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the kernel is asked in a network namespace")
	}
	for _, tool := range []string{"ip", "iptables-legacy-restore", "conntrack"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("cannot make a network namespace: ", err)
	}
	k := &kernel{t: t, devs: map[string]int{}}
	k.sh("ip link set lo up")
	k.sysctl("net/ipv6/conf/default/accept_dad", "0")
	k.sysctl("net/ipv6/conf/default/addr_gen_mode", "1")
	k.sysctl("net/ipv4/ip_forward", "1")
	k.sysctl("net/ipv4/conf/all/send_redirects", "0")
	k.sysctl("net/ipv4/conf/default/send_redirects", "0")
	k.sysctl("net/ipv6/conf/all/forwarding", "1")
	for _, d := range []struct{ name, v4, v6 string }{
		{"c0", "10.0.1.1/24", "fd00:1::1/64"}, {"s0", "10.0.2.1/24", "fd00:2::1/64"},
	} {
		k.devs[d.name] = k.tun(d.name)
		k.sh("ip addr add " + d.v4 + " dev " + d.name)
		k.sh("ip -6 addr add " + d.v6 + " dev " + d.name + " nodad")
		k.sh("ip link set " + d.name + " up")
	}
	k.sh("ip route add default via 10.0.2.2 dev s0")
	k.sh("ip -6 route add default via fd00:2::2 dev s0")
	return k
}

func (k *kernel) sh(line string) string {
	k.t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		k.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

func (k *kernel) sysctl(name, value string) {
	k.t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		k.t.Fatal(err)
	}
}

// tun makes and attaches a device of the thread's namespace.
func (k *kernel) tun(name string) int {
	k.t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		k.t.Skip("no TUN devices: ", err)
	}
	k.t.Cleanup(func() { unix.Close(fd) })
	req, err := unix.NewIfreq(name)
	if err != nil {
		k.t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		k.t.Skip("cannot make a TUN device: ", err)
	}
	return fd
}

// rules replaces the nat table of both families (as iptables-save prints its lines).
func (k *kernel) rules(v4, v6 []string) {
	k.t.Helper()
	for cmd, lines := range map[string][]string{"iptables-legacy-restore": v4, "ip6tables-legacy-restore": v6} {
		c := exec.Command(cmd)
		c.Stdin = strings.NewReader("*nat\n" + strings.Join(lines, "\n") + "\nCOMMIT\n")
		if out, err := c.CombinedOutput(); err != nil {
			k.t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
}

// raw replaces the raw table of both families.
func (k *kernel) raw(lines ...string) {
	k.t.Helper()
	for _, cmd := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		c := exec.Command(cmd)
		c.Stdin = strings.NewReader("*raw\n" + strings.Join(lines, "\n") + "\nCOMMIT\n")
		if out, err := c.CombinedOutput(); err != nil {
			k.t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
}

// send puts a packet in at dev.
func (k *kernel) send(dev string, b []byte) {
	k.t.Helper()
	if _, err := unix.Write(k.devs[dev], b); err != nil {
		k.t.Fatal(err)
	}
}

// recv takes the next packet that leaves by dev; nil if none does. The kernel's own
// chatter (neighbour and router discovery, MLD) is left out.
func (k *kernel) recv(dev string) []byte { return k.recvFor(dev, 2*time.Second) }

// recvFor is recv with a limit to its patience.
func (k *kernel) recvFor(dev string, wait time.Duration) []byte {
	k.t.Helper()
	deadline := time.Now().Add(wait)
	buf := make([]byte, 65536)
	for time.Now().Before(deadline) {
		n, err := unix.Read(k.devs[dev], buf)
		if err == unix.EAGAIN {
			fds := []unix.PollFd{{Fd: int32(k.devs[dev]), Events: unix.POLLIN}}
			unix.Poll(fds, 10)
			continue
		}
		if err != nil {
			k.t.Fatal(err)
		}
		if b := buf[:n]; !chatter(b) {
			return bytes.Clone(b)
		}
	}
	return nil
}

func chatter(b []byte) bool {
	if b[0]>>4 == 6 {
		proto, _, l4 := split(b)
		return proto == 58 && l4[0] >= 130 && l4[0] <= 143 && l4[0] != 137
	}
	return b[9] == 2 // IGMP
}

func (k *kernel) flush() { k.sh("conntrack -F") }

// list is conntrack -L, for messages.
func (k *kernel) list() string {
	return fmt.Sprint(k.sh("conntrack -L"), k.sh("conntrack -L -f ipv6"))
}
