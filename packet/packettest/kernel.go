//go:build linux

package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// Kernel is the running kernel as a router, to compare with: a network
// namespace of the test's own with two TUN devices, tun0 (10.1.0.1/24,
// fd01::1/64) and tun1 (10.2.0.1/24, fd02::1/64), forwarding between them with
// conntrack, so that fragments are put together. It lives as long as the test.
type Kernel struct {
	t   testing.TB
	fds []int
	buf []byte
}

// vnetLen is the length of the virtio-net header on the devices.
const vnetLen = 10

// NewKernel makes one, or skips the test where that takes privileges or tools
// that are not there. The test's goroutine is in the namespace from then on.
func NewKernel(t testing.TB) *Kernel {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the kernel is asked in a network namespace")
	}
	for _, tool := range []string{"ip", "iptables-legacy", "ip6tables-legacy"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	runtime.LockOSThread() // never unlocked: the thread dies with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("cannot make a network namespace: ", err)
	}
	k := &Kernel{t: t}
	for _, x := range []string{
		"net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv6/conf/default/accept_dad=0",
		"net/ipv6/conf/default/addr_gen_mode=1", "net/ipv6/conf/all/accept_ra=0", "net/ipv4/icmp_ratelimit=0",
		"net/ipv6/icmp/ratelimit=0", "net/ipv4/icmp_msgs_per_sec=1000000", "net/ipv4/icmp_msgs_burst=1000000",
		"net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0",
	} {
		k.Sysctl(x)
	}
	k.Run("ip link set lo up")
	k.AddTUN()
	k.AddTUN()
	for _, cmd := range []string{"iptables-legacy", "ip6tables-legacy"} {
		k.Run(cmd + " -A INPUT -m conntrack --ctstate NEW") // brings conntrack and defragmentation in
	}
	k.Drain(0)
	k.Drain(1)
	return k
}

// AddTUN makes one more device: tunN with 10.N+1.0.1/24 and fd0N+1::1/64, N
// being the next number.
func (k *Kernel) AddTUN() {
	k.t.Helper()
	name, n := fmt.Sprint("tun", len(k.fds)), fmt.Sprint(len(k.fds)+1)
	k.fds = append(k.fds, k.tun(name))
	k.Run("ip addr add 10." + n + ".0.1/24 dev " + name)
	k.Run("ip -6 addr add fd0" + n + "::1/64 dev " + name + " nodad")
	k.Run("ip link set " + name + " up")
}

// Run runs a command line (split at spaces) in the namespace.
func (k *Kernel) Run(line string) string {
	k.t.Helper()
	w := strings.Fields(line)
	out, err := exec.Command(w[0], w[1:]...).CombinedOutput()
	if err != nil {
		k.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// Sysctl sets "net/ipv4/x=1"; a name this kernel has not is passed over.
func (k *Kernel) Sysctl(x string) {
	k.t.Helper()
	name, val, _ := strings.Cut(x, "=")
	if err := os.WriteFile("/proc/sys/"+name, []byte(val), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.t.Fatal(err)
	}
}

func (k *Kernel) tun(name string) int {
	k.t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		k.t.Skip("no TUN: ", err)
	}
	k.t.Cleanup(func() { unix.Close(fd) })
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		k.t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(ifr))); e != 0 {
		k.t.Fatal("TUNSETIFF: ", e)
	}
	return fd
}

// Send gives the kernel a frame on device dev; it is processed when Send returns.
func (k *Kernel) Send(dev int, b []byte) { k.send(dev, make([]byte, vnetLen), b) }

// SendGSO gives the kernel a super-packet or one with a partial checksum.
func (k *Kernel) SendGSO(dev int, g packet.GSO, b []byte) {
	h := make([]byte, vnetLen)
	if g.NeedsCsum {
		h[0] = 1
	}
	h[1] = g.Type
	for i, v := range []uint16{g.HdrLen, g.Size, g.CsumStart, g.CsumOffset} {
		binary.LittleEndian.PutUint16(h[2+2*i:], v)
	}
	k.send(dev, h, b)
}

func (k *Kernel) send(dev int, h, b []byte) {
	if _, err := unix.Write(k.fds[dev], append(h, b...)); err != nil && err != unix.EINVAL {
		k.t.Helper()
		k.t.Fatalf("writing to tun%d: %v", dev, err)
	}
}

// Offload lets all devices take super-packets and partial checksums, as a
// device of sluice's with offload does.
func (k *Kernel) Offload() {
	k.t.Helper()
	const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	for _, fd := range k.fds {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all|unix.TUN_F_USO4|unix.TUN_F_USO6); err == nil {
			continue
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, all); err != nil {
			k.t.Fatal("TUNSETOFFLOAD: ", err)
		}
	}
}

// Output is a frame that left the kernel, as the device has it: perhaps a
// super-packet, perhaps with a partial checksum.
type Output struct {
	Frame []byte
	GSO   packet.GSO
}

// Drain is what the kernel has sent on device dev so far, without the
// multicast reports and solicitations that IPv6 sends unasked.
func (k *Kernel) Drain(dev int) (out [][]byte) {
	for _, o := range k.Outputs(dev) {
		out = append(out, o.Frame)
	}
	return out
}

// Outputs is Drain with what the virtio-net headers say.
func (k *Kernel) Outputs(dev int) (out []Output) {
	if k.buf == nil {
		k.buf = make([]byte, 70000)
	}
	for {
		n, err := unix.Read(k.fds[dev], k.buf)
		if err != nil || n <= vnetLen {
			return out
		}
		h, b := k.buf[:vnetLen], append([]byte(nil), k.buf[vnetLen:n]...)
		if len(b) >= 40 && b[0]>>4 == 6 && b[24] == 0xff {
			continue
		}
		le := binary.LittleEndian
		g := packet.GSO{Type: h[1], HdrLen: le.Uint16(h[2:]), Size: le.Uint16(h[4:])}
		if h[0]&1 != 0 {
			g.NeedsCsum, g.CsumStart, g.CsumOffset = true, le.Uint16(h[6:]), le.Uint16(h[8:])
		}
		out = append(out, Output{b, g})
	}
}

// Wait is Drain that waits until there is something, at most d.
func (k *Kernel) Wait(dev int, d time.Duration) [][]byte {
	end := time.Now().Add(d)
	for {
		if out := k.Drain(dev); len(out) > 0 {
			return out
		}
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		fds := []unix.PollFd{{Fd: int32(k.fds[dev]), Events: unix.POLLIN}}
		unix.Poll(fds, int(left.Milliseconds())+1)
	}
}
