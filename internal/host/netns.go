// Package host deals with the kernel on behalf of a router: the kernel's ends
// of TUN devices, network namespaces, and the capabilities of the process.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace; the zero value is the process' own.
type Namespace struct {
	name string
	path string
	fd   netns.NsHandle
	in   bool // fd is valid and another namespace than the process'
	id   nsID
}

// nsID tells namespaces apart.
type nsID struct{ dev, ino uint64 }

// OpenNamespace opens a namespace by its name under /run/netns or by a path
// with a slash in it; "" is the process' own.
func OpenNamespace(name string) (*Namespace, error) {
	n := &Namespace{name: name, path: name}
	if name == "" {
		return n, nil
	}
	if !strings.ContainsRune(name, '/') {
		n.path = "/run/netns/" + name
	}
	fd, err := netns.GetFromPath(n.path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("network namespace %s is not there; make it: %s", n.path, n.makeCommand())
		}
		return nil, fmt.Errorf("network namespace %s: %w", n.path, err)
	}
	var st unix.Statfs_t
	var id unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(fd), &st), unix.Fstat(int(fd), &id)); err != nil || st.Type != unix.NSFS_MAGIC {
		fd.Close()
		return nil, fmt.Errorf("%s is not a network namespace", n.path)
	}
	n.id = nsID{id.Dev, id.Ino}
	own, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		fd.Close()
		return nil, err
	}
	defer own.Close()
	if own.Equal(fd) {
		fd.Close()
		return n, nil
	}
	n.fd, n.in = fd, true
	return n, nil
}

func (n *Namespace) makeCommand() string {
	return "ip netns add " + n.path[strings.LastIndexByte(n.path, '/')+1:]
}

// Own reports whether it is the process' own namespace.
func (n *Namespace) Own() bool { return !n.in }

// String is the namespace as it was named.
func (n *Namespace) String() string { return n.name }

// ip is how an `ip` command in this namespace begins.
func (n *Namespace) ip() string {
	switch {
	case !n.in:
		return "ip "
	case strings.HasPrefix(n.path, "/run/netns/"):
		return "ip -n " + n.path[len("/run/netns/"):] + " "
	}
	return "nsenter --net=" + n.path + " ip "
}

// Close gives the descriptor back.
func (n *Namespace) Close() {
	if n.in {
		n.fd.Close()
		n.in = false
	}
}

// Replaced reports whether the namespace's name leads to another one by now, or nowhere.
func (n *Namespace) Replaced() bool {
	if !n.in {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(n.path, &st) != nil || n.id != nsID{st.Dev, st.Ino}
}

// Do runs fn in the namespace. What fn opens stays there: a socket, a TUN
// queue. fn must not start goroutines that count on the namespace.
func (n *Namespace) Do(fn func() error) error {
	if !n.in {
		return fn()
	}
	runtime.LockOSThread()
	back, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer back.Close()
	if err := netns.Set(n.fd); err != nil {
		runtime.UnlockOSThread()
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("entering network namespace %s: %w (it takes CAP_SYS_ADMIN: start as root, or inside it with: nsenter --net=%s)", n.path, err, n.path)
		}
		return fmt.Errorf("entering network namespace %s: %w", n.path, err)
	}
	err = fn()
	if e := netns.Set(back); e != nil {
		// The thread stays locked, so that no other goroutine ever runs in the wrong namespace.
		return errors.Join(err, fmt.Errorf("leaving network namespace %s: %w", n.path, e))
	}
	runtime.UnlockOSThread()
	return err
}

// writeSysctl sets a tunable of the calling thread's namespace, such as
// net/ipv6/conf/tun0/accept_ra. Where /proc/sys is not writable it does nothing.
func writeSysctl(name, value string) {
	_ = os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}
