// Package lab makes small networks for the end-to-end tests: network
// namespaces, a sluice between them, and real programs inside. Everything it
// makes is gone when the test ends, also when it fails.
package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Lab is one test's network.
type Lab struct {
	T      testing.TB
	Dir    string // the test's own folder
	prefix string
}

var serial atomic.Int32

// New makes an empty lab. The test is skipped where it cannot be: not root, or no TUN driver.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and TUN devices")
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	f.Close()
	l := &Lab{T: t, Dir: t.TempDir(), prefix: fmt.Sprintf("sl%d-%d", os.Getpid(), serial.Add(1))}
	// Programs that run as another user read and write here.
	for d := l.Dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	return l
}

// Need skips the test if a program is missing.
func (l *Lab) Need(programs ...string) {
	l.T.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			l.T.Skipf("needs the program %s", p)
		}
	}
}

// Has reports whether a program is there.
func (l *Lab) Has(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// NS is a network namespace.
type NS struct {
	l    *Lab
	Name string // full name, as under /run/netns
}

// NS makes a namespace. In configurations its name is written {ns:NAME}; see Expand.
func (l *Lab) NS(name string) *NS {
	l.T.Helper()
	ns := &NS{l, l.prefix + name}
	l.sh("ip", "netns", "add", ns.Name)
	l.T.Cleanup(ns.Remove)
	ns.Must("ip", "link", "set", "lo", "up")
	ns.Must("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv4.ping_group_range=0 2147483647")
	return ns
}

// Sibling is a namespace that something else will make; it is removed when the test ends.
func (ns *NS) Sibling(name string) *NS {
	other := &NS{ns.l, ns.l.prefix + name}
	ns.l.T.Cleanup(other.Remove)
	return other
}

// Remove ends what runs inside and removes the namespace.
func (ns *NS) Remove() {
	// What went into the background by itself is in nobody's process group.
	if out, err := exec.Command("ip", "netns", "pids", ns.Name).Output(); err == nil {
		for _, word := range strings.Fields(string(out)) {
			if pid, err := strconv.Atoi(word); err == nil && pid != os.Getpid() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	exec.Command("ip", "netns", "del", ns.Name).Run()
}

// Replace deletes the namespace and makes another one of the same name; what
// runs inside stays in the old one.
func (ns *NS) Replace() {
	ns.l.T.Helper()
	ns.l.sh("ip", "netns", "del", ns.Name)
	ns.l.sh("ip", "netns", "add", ns.Name)
	ns.Must("ip", "link", "set", "lo", "up")
}

// Expand replaces {ns:NAME} by the namespaces' full names and {dir} by the lab's folder.
func (l *Lab) Expand(s string) string {
	s = strings.ReplaceAll(s, "{dir}", l.Dir)
	for {
		i := strings.Index(s, "{ns:")
		if i < 0 {
			return s
		}
		j := i + strings.IndexByte(s[i:], '}')
		s = s[:i] + l.prefix + s[i+4:j] + s[j+1:]
	}
}

// File writes a file into the lab's folder, expanded, and gives its path.
func (l *Lab) File(name, content string) string {
	l.T.Helper()
	path := filepath.Join(l.Dir, name)
	if err := os.WriteFile(path, []byte(l.Expand(content)), 0o644); err != nil {
		l.T.Fatal(err)
	}
	return path
}

func (l *Lab) sh(args ...string) string {
	l.T.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		l.T.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (ns *NS) command(ctx context.Context, args []string) *exec.Cmd {
	c := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns.Name}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	return c
}

// Run runs a program inside to its end, at most a minute, and gives its whole output.
func (ns *NS) Run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// Pdeathsig is tied to the thread that starts the process, and threads that were in a namespace end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := ns.command(ctx, args).CombinedOutput()
	return string(out), err
}

// Must is Run for what has to work.
func (ns *NS) Must(args ...string) string {
	ns.l.T.Helper()
	out, err := ns.Run(args...)
	if err != nil {
		ns.l.T.Fatalf("in %s: %s: %v\n%s", ns.Name, strings.Join(args, " "), err, out)
	}
	return out
}

// Fails is Run for what must not work.
func (ns *NS) Fails(args ...string) string {
	ns.l.T.Helper()
	out, err := ns.Run(args...)
	if err == nil {
		ns.l.T.Fatalf("in %s: %s: worked, and should not\n%s", ns.Name, strings.Join(args, " "), out)
	}
	return out
}

// Proc is a program that runs in the background.
type Proc struct {
	*exec.Cmd
	l    *Lab
	mu   sync.Mutex
	out  bytes.Buffer
	done chan struct{}
	err  error
}

// Write collects the program's output.
func (p *Proc) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// Output is what it printed so far.
func (p *Proc) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Done is closed when it has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Wait waits for its end, at most d.
func (p *Proc) Wait(d time.Duration) error {
	p.l.T.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(d):
		p.l.T.Fatalf("%v did not end within %v\n%s", p.Args, d, p.Output())
		return nil
	}
}

// Expect waits until the output contains s.
func (p *Proc) Expect(s string, d time.Duration) {
	p.l.T.Helper()
	p.l.Eventually(d, fmt.Sprintf("%v to print %q", p.Args, s), func() bool {
		select {
		case <-p.done:
			if !strings.Contains(p.Output(), s) {
				p.l.T.Fatalf("%v ended (%v) before it printed %q:\n%s", p.Args, p.err, s, p.Output())
			}
		default:
		}
		return strings.Contains(p.Output(), s)
	})
}

// Stop kills it and what it started.
func (p *Proc) Stop() {
	syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Start runs a program inside in the background until the test ends.
func (ns *NS) Start(args ...string) *Proc {
	ns.l.T.Helper()
	return ns.l.start(ns.command(context.Background(), args))
}

// StartCommand runs any command in the background until the test ends.
func (l *Lab) StartCommand(c *exec.Cmd) *Proc {
	l.T.Helper()
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Setpgid, c.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	return l.start(c)
}

func (l *Lab) start(c *exec.Cmd) *Proc {
	l.T.Helper()
	p := &Proc{Cmd: c, l: l, done: make(chan struct{})}
	c.Stdout, c.Stderr = p, p
	started := make(chan error)
	go func() { // see Run
		runtime.LockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			p.err = c.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		l.T.Fatalf("%v: %v", c.Args, err)
	}
	l.T.Cleanup(func() {
		p.Stop()
		if l.T.Failed() {
			l.T.Logf("output of %v:\n%s", c.Args, p.Output())
		}
	})
	return p
}

// Eventually polls until ok, and fails the test after d.
func (l *Lab) Eventually(d time.Duration, what string, ok func() bool) {
	l.T.Helper()
	for end := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			l.T.Fatalf("waited %v for %s", d, what)
		}
	}
}

// Do runs f on a thread inside the namespace: sockets that f opens belong there.
func (ns *NS) Do(f func()) {
	ns.l.T.Helper()
	done := make(chan error)
	var enter func()
	enter = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends, and its namespace is what others take for the process's.
			defer runtime.UnlockOSThread()
			other := make(chan struct{})
			go func() { defer close(other); enter() }()
			<-other
			return
		}
		fd, err := unix.Open("/run/netns/"+ns.Name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			f()
		}
		done <- err
	}
	go enter()
	if err := <-done; err != nil {
		ns.l.T.Fatalf("namespace %s: %v", ns.Name, err)
	}
}

// Listen opens a TCP listener inside.
func (ns *NS) Listen(addr string) net.Listener {
	ns.l.T.Helper()
	var ln net.Listener
	var err error
	ns.Do(func() { ln, err = net.Listen("tcp", addr) })
	if err != nil {
		ns.l.T.Fatal(err)
	}
	ns.l.T.Cleanup(func() { ln.Close() })
	return ln
}

// ListenPacket opens a UDP socket inside.
func (ns *NS) ListenPacket(addr string) net.PacketConn {
	ns.l.T.Helper()
	var c net.PacketConn
	var err error
	ns.Do(func() { c, err = net.ListenPacket("udp", addr) })
	if err != nil {
		ns.l.T.Fatal(err)
	}
	ns.l.T.Cleanup(func() { c.Close() })
	return c
}

// Dial connects from inside, within five seconds.
func (ns *NS) Dial(network, addr string) (c net.Conn, err error) {
	return ns.DialTimeout(network, addr, 5*time.Second)
}

// DialTimeout is Dial with a limit of one's own.
func (ns *NS) DialTimeout(network, addr string, d time.Duration) (c net.Conn, err error) {
	ns.Do(func() { c, err = net.DialTimeout(network, addr, d) })
	return c, err
}
