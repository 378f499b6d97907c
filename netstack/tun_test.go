package netstack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/internal/host"
	"sluice/packet"
)

// testNS makes a network namespace of the test's own.
func testNS(t testing.TB, suffix string) *host.Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace and a TUN device")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	name := fmt.Sprintf("slc-netstack-%d-%s", os.Getpid(), suffix)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	ns, err := host.OpenNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

func run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func openTUN(t testing.TB, cfg TUNConfig) *TUN {
	t.Helper()
	d, err := OpenTUN(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func hostRoutes(t testing.TB, s ...string) (out []host.Route) {
	for _, x := range s {
		r, err := host.ParseRoute(x)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// await reads frames until one satisfies f.
func await(t testing.TB, q Queue, p *packet.Packet, f func([]byte) bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		p.Reset()
		switch err := q.Read(p); err {
		case nil:
			if f(p.Bytes()) {
				return
			}
		case ErrAgain:
			waitFD(q.FD(), 100)
		default:
			t.Fatal(err)
		}
	}
	t.Fatal("no such frame within 10 s")
}

func waitFD(fd int, ms int) {
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
}

func isUDP(payload string) func([]byte) bool {
	return func(b []byte) bool {
		return len(b) > 28 && b[0]>>4 == 4 && b[9] == 17 && string(b[28:]) == payload ||
			len(b) > 48 && b[0]>>4 == 6 && b[6] == 17 && string(b[48:]) == payload
	}
}

// turn makes an answer of a UDP frame in place: addresses and ports change
// sides, which changes no checksum.
func turn(b []byte) {
	if b[0]>>4 == 4 {
		for i := range 4 {
			b[12+i], b[16+i] = b[16+i], b[12+i]
		}
		b = b[20:]
	} else {
		for i := range 16 {
			b[8+i], b[24+i] = b[24+i], b[8+i]
		}
		b = b[40:]
	}
	b[0], b[1], b[2], b[3] = b[2], b[3], b[0], b[1]
}

func TestTUNReadWrite(t *testing.T) {
	for _, offload := range []bool{true, false} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			ns := testNS(t, "rw")
			d := openTUN(t, TUNConfig{Name: "tun0", Index: 5, MTU: 1400, Queues: 2, Offload: offload, Host: &host.End{
				NetNS: ns.String(), Addresses: prefixes("10.9.0.2/24", "fd09::2/64"),
				Routes: hostRoutes(t, "default via 10.9.0.1", "default via fd09::1", "10.77.0.0/16"),
			}})
			if !d.Made() || d.Queues() != 2 || d.Iface().Name != "tun0" || d.Iface().MTU != 1400 {
				t.Fatalf("made %v, queues %d, iface %+v", d.Made(), d.Queues(), d.Iface())
			}
			show := run(t, "ip", "-n", ns.String(), "-d", "link", "show", "tun0")
			for _, want := range []string{"mtu 1400", "multi_queue", "persist off", "qlen 1000", "numqueues 2"} {
				if !strings.Contains(show, want) {
					t.Errorf("no %q in %s", want, show)
				}
			}
			if got := strings.Contains(show, "vnet_hdr on"); got != offload {
				t.Errorf("vnet_hdr on: %v in %s", got, show)
			}
			routes := run(t, "ip", "-n", ns.String(), "route") + run(t, "ip", "-n", ns.String(), "-6", "route")
			for _, want := range []string{"default via 10.9.0.1 dev tun0", "default via fd09::1 dev tun0", "10.77.0.0/16 dev tun0 proto static scope link"} {
				if !strings.Contains(routes, want) {
					t.Errorf("no %q in %s", want, routes)
				}
			}
			for _, peer := range []string{"10.9.0.1:4000", "[fd09::1]:4000"} {
				var c net.Conn
				err := ns.Do(func() (err error) { c, err = net.Dial("udp", peer); return err })
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				msg := "over " + peer
				if _, err := c.Write([]byte(msg)); err != nil {
					t.Fatal(err)
				}
				// Either queue may have it.
				p := packet.New()
				q := eitherQueue(t, d, p, isUDP(msg))
				if r := p.Parse(); r != 0 {
					t.Fatalf("%v: % x", r, p.Bytes())
				}
				if offload != p.GSO.NeedsCsum {
					t.Errorf("partial checksum: %v with offload %v", p.GSO.NeedsCsum, offload)
				}
				if !offload && !p.VerifyL4() {
					t.Error("the checksum is wrong")
				}
				turn(p.Bytes())
				if p.GSO.NeedsCsum {
					p.GSO = packet.GSO{}
					p.FixChecksums()
				}
				if err := q.Write(p); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 100)
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				n, err := c.Read(buf)
				if err != nil || string(buf[:n]) != msg {
					t.Fatalf("%q, %v", buf[:n], err)
				}
			}
			if err := d.SetMTU(1300); err != nil {
				t.Fatal(err)
			}
			if s := run(t, "ip", "-n", ns.String(), "link", "show", "tun0"); !strings.Contains(s, "mtu 1300") || d.Iface().MTU != 1300 {
				t.Errorf("SetMTU: %s", s)
			}
			run(t, "ip", "-n", ns.String(), "link", "set", "tun0", "down")
			p := packet.New()
			p.SetBytes(append([]byte{0x45}, make([]byte, 59)...))
			if err := d.Queue(0).Write(p); err != ErrDown || p.Reason != ReasonLinkDown {
				t.Errorf("write while down: %v, %v", err, p.Reason)
			}
			d.Close()
			if out, err := exec.Command("ip", "-n", ns.String(), "link", "show", "tun0").CombinedOutput(); err == nil {
				t.Errorf("the device is there after Close: %s", out)
			}
		})
	}
}

func eitherQueue(t *testing.T, d *TUN, p *packet.Packet, f func([]byte) bool) Queue {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		fds := make([]unix.PollFd, d.Queues())
		for i := range fds {
			p.Reset()
			if err := d.Queue(i).Read(p); err == nil && f(p.Bytes()) {
				return d.Queue(i)
			} else if err != nil && err != ErrAgain {
				t.Fatal(err)
			}
			fds[i] = unix.PollFd{Fd: int32(d.Queue(i).FD()), Events: unix.POLLIN}
		}
		unix.Poll(fds, 100)
	}
	t.Fatal("no such frame within 10 s")
	return nil
}

// pump moves frames between two devices until closed, one goroutine per queue and direction.
type pump struct {
	stop   atomic.Bool
	wg     sync.WaitGroup
	frames atomic.Int64
	supers atomic.Int64
	errs   atomic.Int64
	used   [2]atomic.Int64
}

func (u *pump) run(from, to *TUN) {
	for i := range from.Queues() {
		u.wg.Add(1)
		go func() {
			defer u.wg.Done()
			runtime.LockOSThread()
			q, out := from.Queue(i), to.Queue(i)
			p := packet.New()
			for !u.stop.Load() {
				p.Reset()
				if err := q.Read(p); err == ErrAgain {
					waitFD(q.FD(), 20)
					continue
				} else if err != nil {
					u.errs.Add(1)
					continue
				}
				u.used[i%2].Add(1)
				u.frames.Add(1)
				if p.GSO.Type != 0 {
					u.supers.Add(1)
				}
				if p.Parse() != 0 {
					u.errs.Add(1)
					continue
				}
				p.SetTTL(p.TTL() - 1)
				if out.Write(p) != nil && p.Bytes()[0]>>4 == 4 {
					u.errs.Add(1)
				}
			}
		}()
	}
}

func TestTUNTransfer(t *testing.T) {
	for _, c := range []struct{ a, b bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
		t.Run(fmt.Sprintf("offload=%v,%v", c.a, c.b), func(t *testing.T) {
			na, nb := testNS(t, "a"), testNS(t, "b")
			da := openTUN(t, TUNConfig{Name: "a0", Index: 2, Queues: 2, Offload: c.a, Host: &host.End{NetNS: na.String(),
				Addresses: prefixes("10.1.0.2/24", "fd01::2/64"), Routes: hostRoutes(t, "default via 10.1.0.1", "default via fd01::1")}})
			db := openTUN(t, TUNConfig{Name: "b0", Index: 3, Queues: 2, Offload: c.b, Host: &host.End{NetNS: nb.String(),
				Addresses: prefixes("10.2.0.2/24", "fd02::2/64"), Routes: hostRoutes(t, "default via 10.2.0.1", "default via fd02::1")}})
			u := &pump{}
			u.run(da, db)
			u.run(db, da)
			defer u.wg.Wait()
			defer u.stop.Store(true)
			for _, addr := range []string{"10.2.0.2:0", "[fd02::2]:0"} {
				transfer(t, na, nb, addr)
			}
			// The data comes from a.
			if got := u.supers.Load() != 0; got != c.a {
				t.Errorf("super-packets: %v", got)
			}
			if n := u.errs.Load(); n != 0 {
				t.Errorf("%d frames failed", n)
			}
			t.Logf("%d frames, %d of them super-packets, %s to %s", u.frames.Load(), u.supers.Load(), da.Offloads(), db.Offloads())
		})
	}
}

// transfer sends 8 MB of noise from na to nb and compares hashes.
func transfer(t *testing.T, na, nb *host.Namespace, addr string) {
	t.Helper()
	var ln net.Listener
	if err := nb.Do(func() (err error) { ln, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		sum [32]byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(60 * time.Second))
		h := sha256.New()
		_, err = io.Copy(h, c)
		done <- result{[32]byte(h.Sum(nil)), err}
	}()
	var c net.Conn
	if err := na.Do(func() (err error) { c, err = net.DialTimeout("tcp", ln.Addr().String(), 20*time.Second); return err }); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(60 * time.Second))
	data := make([]byte, 8<<20)
	rand.New(rand.NewSource(1)).Read(data)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if r := <-done; r.err != nil || r.sum != sha256.Sum256(data) {
		t.Fatalf("%s: %v, hash %x", addr, r.err, r.sum)
	}
}

func TestTUNRemovedWhileReading(t *testing.T) {
	ns := testNS(t, "rm")
	d := openTUN(t, TUNConfig{Name: "tun0", Index: 2, Queues: 2, Offload: true, Host: &host.End{NetNS: ns.String(), Addresses: prefixes("10.9.0.2/24")}})
	got := make(chan error, 2)
	ready := make(chan struct{}, 2)
	for i := range 2 {
		go func() {
			q, p := d.Queue(i), packet.New()
			first := true
			for {
				p.Reset()
				if err := q.Read(p); err != nil && err != ErrAgain {
					got <- err
					return
				} else if err == ErrAgain {
					if first {
						first = false
						ready <- struct{}{}
					}
					waitFD(q.FD(), 10000)
				}
			}
		}()
	}
	<-ready
	<-ready
	run(t, "ip", "-n", ns.String(), "link", "del", "tun0")
	for range 2 {
		select {
		case err := <-got:
			if err != ErrGone {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the reader was not told")
		}
	}
	p := packet.New()
	p.SetBytes(make([]byte, 40))
	if err := d.Queue(0).Write(p); err != ErrGone {
		t.Errorf("write to a deleted device: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestTUNPremade(t *testing.T) {
	ns := testNS(t, "pre")
	ip := func(args ...string) { run(t, append([]string{"ip", "-n", ns.String()}, args...)...) }
	cfg := TUNConfig{Name: "tun0", Index: 2, Queues: 2, Offload: true, Host: &host.End{NetNS: ns.String(), Addresses: prefixes("10.9.0.2/24")}}
	refused := func(what string, words ...string) {
		t.Helper()
		d, err := OpenTUN(cfg)
		if err == nil {
			d.Close()
			t.Fatalf("%s: no error", what)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: no %q in %q", what, w, err)
			}
		}
	}
	ip("tuntap", "add", "tun0", "mode", "tun", "user", "65534")
	refused("single queue", "multi_queue", "ip -n "+ns.String()+" tuntap del dev tun0 mode tun; ip -n "+ns.String()+" tuntap add dev tun0 mode tun user root multi_queue vnet_hdr")
	ip("tuntap", "del", "tun0", "mode", "tun")

	ip("tuntap", "add", "tun0", "mode", "tun", "multi_queue")
	if d := openTUN(t, cfg); d.Offloads() == "none" {
		t.Error("a device made without vnet_hdr does not get it")
	} else {
		d.Close()
	}
	ip("tuntap", "del", "tun0", "mode", "tun", "multi_queue")

	ip("tuntap", "add", "tun0", "mode", "tap", "multi_queue", "vnet_hdr")
	refused("tap", "not a TUN device")
	ip("tuntap", "del", "tun0", "mode", "tap", "multi_queue")

	ip("tuntap", "add", "tun0", "mode", "tun", "multi_queue", "vnet_hdr")
	for range 2 { // it stays, so it can be taken again
		d := openTUN(t, cfg)
		if d.Made() {
			t.Error("a device made beforehand was taken for an own one")
		}
		refused("attached twice", "another process")
		d.Close()
		if s := run(t, "ip", "-n", ns.String(), "-d", "link", "show", "tun0"); !strings.Contains(s, "persist on") {
			t.Errorf("persistence was lost: %s", s)
		}
	}

	if _, err := OpenTUN(TUNConfig{Name: "x0", Index: 2, Host: &host.End{NetNS: "slc-netstack-none"}}); err == nil || !strings.Contains(err.Error(), "ip netns add slc-netstack-none") {
		t.Errorf("missing namespace: %v", err)
	}
	if _, err := OpenTUN(TUNConfig{Name: "x0", Index: 2, Host: &host.End{NetNS: "/etc/passwd"}}); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
		t.Errorf("not a namespace: %v", err)
	}
}

// TestTUNOffloadsFollowTheUser: what one user of a device sets is not left to the next.
func TestTUNOffloadsFollowTheUser(t *testing.T) {
	ns := testNS(t, "uso")
	run(t, "ip", "-n", ns.String(), "tuntap", "add", "tun0", "mode", "tun", "multi_queue", "vnet_hdr")
	for _, offload := range []bool{true, false, true} {
		d := openTUN(t, TUNConfig{Name: "tun0", Index: 2, Queues: 1, Offload: offload, Host: &host.End{NetNS: ns.String(), Addresses: prefixes("10.9.0.2/24")}})
		var c net.Conn
		if err := ns.Do(func() (err error) { c, err = net.Dial("udp", "10.9.0.1:4000"); return err }); err != nil {
			t.Fatal(err)
		}
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(bytes.Repeat([]byte{offloadMark(offload)}, 5000)); err != nil {
			t.Fatal(err)
		}
		p := packet.New()
		await(t, d.Queue(0), p, func(b []byte) bool { return len(b) > 1000 && b[9] == 17 && b[len(b)-1] == offloadMark(offload) })
		if want := d.offload&tunFUSO4 != 0; (p.GSO.Type == packet.GSOUDPL4) != want || want && (p.Len() != 5028 || p.GSO.Size != 1000 || p.GSO.HdrLen != 28) || !want && p.Len() != 1028 {
			t.Errorf("offload %v (%s): %d bytes, %+v", offload, d.Offloads(), p.Len(), p.GSO)
		}
		c.Close()
		d.Close()
	}
}

func offloadMark(offload bool) byte {
	if offload {
		return 0xaa
	}
	return 0x55
}

// TestTUNAddressRefused: what fails half way leaves no device behind.
func TestTUNAddressRefused(t *testing.T) {
	ns := testNS(t, "half")
	_, err := OpenTUN(TUNConfig{Name: "tun0", Index: 2, Queues: 1, Host: &host.End{NetNS: ns.String(),
		Addresses: prefixes("10.9.0.2/24"), Routes: hostRoutes(t, "default via 10.200.0.1")}})
	if err == nil {
		t.Fatal("a gateway that cannot be reached was accepted")
	}
	if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "default via 10.200.0.1 dev tun0") {
		t.Errorf("error: %v", err)
	}
	if s := run(t, "ip", "-n", ns.String(), "link"); strings.Contains(s, "tun0") {
		t.Errorf("the device stayed: %s", s)
	}
}

func TestTUNDoesNotAllocate(t *testing.T) {
	for _, offload := range []bool{true, false} {
		ns := testNS(t, fmt.Sprintf("alloc%v", offload))
		d := openTUN(t, TUNConfig{Name: "tun0", Index: 2, Queues: 1, Offload: offload, Host: &host.End{NetNS: ns.String(), Addresses: prefixes("10.9.0.2/24")}})
		var c net.Conn
		if err := ns.Do(func() (err error) { c, err = net.Dial("udp", "10.9.0.1:9"); return err }); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		q, p := d.Queue(0), packet.New()
		msg := bytes.Repeat([]byte{7}, 100)
		c.Write(msg)
		await(t, q, p, isUDP(string(msg)))
		frame := append([]byte(nil), p.Bytes()...)
		if n := testing.AllocsPerRun(200, func() {
			p.Reset()
			if err := q.Read(p); err != ErrAgain {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("offload %v: an empty read allocates %v", offload, n)
		}
		if n := testing.AllocsPerRun(200, func() {
			p.SetBytes(frame)
			if err := q.Write(p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("offload %v: a write allocates %v", offload, n)
		}
		// A full device and a frame for each read.
		for range 220 {
			if _, err := c.Write(msg); err != nil && !errors.Is(err, unix.ENOBUFS) {
				t.Fatal(err)
			}
		}
		if n := testing.AllocsPerRun(200, func() {
			p.Reset()
			if err := q.Read(p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("offload %v: a read allocates %v", offload, n)
		}
	}
}

func BenchmarkTUNWriteRead(b *testing.B) {
	ns := testNS(b, "bench")
	d := openTUN(b, TUNConfig{Name: "tun0", Index: 2, Queues: 1, Offload: true, Host: &host.End{NetNS: ns.String(), Addresses: prefixes("10.9.0.2/24")}})
	run(b, "ip", "netns", "exec", ns.String(), "sysctl", "-qw", "net.ipv4.ip_forward=1")
	run(b, "ip", "-n", ns.String(), "route", "add", "10.50.0.0/16", "dev", "tun0")
	// The namespace forwards a frame from the device back into it.
	p := packet.New()
	frame := make([]byte, 64)
	frame[0], frame[8], frame[9] = 0x45, 64, 17
	frame[3] = 64
	copy(frame[12:], []byte{10, 9, 0, 1, 10, 50, 0, 1})
	frame[25] = 44
	p.SetBytes(frame)
	p.Parse()
	p.FixChecksums()
	frame = append([]byte(nil), p.Bytes()...)
	q := d.Queue(0)
	b.ReportAllocs()
	for b.Loop() {
		p.SetBytes(frame)
		if err := q.Write(p); err != nil {
			b.Fatal(err)
		}
		for {
			p.Reset()
			if err := q.Read(p); err == nil {
				break
			} else if err != ErrAgain {
				b.Fatal(err)
			}
		}
	}
}
