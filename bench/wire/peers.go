package wire

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/internal/host"
)

// Peer is what the program does when it is started as `peer KIND [-vnet] NS NS`:
// it carries frames between tun0 of the one namespace and tun0 of the other
// until it is ended.
func Peer(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: peer bare|gvisor [-vnet] CLIENT SERVER")
	}
	kind, vnet := args[0], args[1] == "-vnet"
	ends := args[len(args)-2:]
	var fds [2]int
	for i, e := range ends {
		ns, err := host.OpenNamespace(e)
		if err != nil {
			return err
		}
		if err := ns.Do(func() (err error) { fds[i], err = openTUN(vnet); return err }); err != nil {
			return err
		}
	}
	ended := make(chan error, 2)
	switch kind {
	case "bare":
		go copyLoop(fds[0], fds[1], ended)
		go copyLoop(fds[1], fds[0], ended)
	case "gvisor":
		if err := gvisorForward(fds); err != nil {
			return err
		}
	default:
		return fmt.Errorf("no peer is called %q", kind)
	}
	fmt.Println("ready")
	return <-ended
}

// openTUN makes tun0 with one queue, which blocks.
func openTUN(vnet bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	req, err := unix.NewIfreq("tun0")
	if err != nil {
		return 0, err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if vnet {
		flags |= unix.IFF_VNET_HDR
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return 0, os.NewSyscallError("TUNSETIFF", err)
	}
	if vnet {
		const csumTSOUSO = 0x01 | 0x02 | 0x04 | 0x20 | 0x40
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, csumTSOUSO); err != nil {
			return 0, os.NewSyscallError("TUNSETOFFLOAD", err)
		}
	}
	return fd, nil
}

// copyLoop is one read and one write per frame, and nothing else.
func copyLoop(from, to int, ended chan<- error) {
	runtime.LockOSThread()
	buf := make([]byte, 1<<17)
	at := uintptr(unsafe.Pointer(&buf[0]))
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(from), at, uintptr(len(buf)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			ended <- errno
			return
		}
		syscall.RawSyscall(unix.SYS_WRITE, uintptr(to), at, n)
	}
}
