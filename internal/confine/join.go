package confine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Join makes a device in a network namespace that is there already. UserNS is
// the user namespace that owns it, "" for our own.
type Join struct {
	NetNS, UserNS string // paths
	Device        Device
}

// OfProcess names the namespaces of a process.
func OfProcess(pid int) Join {
	dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
	return Join{NetNS: dir + "net", UserNS: dir + "user"}
}

// Open enters the namespaces in a process of its own and makes the device. It
// goes with the last of its queues.
func (j *Join) Open() (*Opened, error) {
	net, err := openNS(j.NetNS, unix.CLONE_NEWNET)
	if err != nil {
		return nil, err
	}
	defer unix.Close(net)
	user := -1
	if j.UserNS != "" {
		if user, err = openNS(j.UserNS, unix.CLONE_NEWUSER); err != nil {
			return nil, err
		}
		defer unix.Close(user)
		if sameFile(user, "/proc/self/ns/user") {
			user = -1
		}
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer unix.Close(ours.fd)
	pid, err := enter(user, net, theirs)
	theirs.Close()
	if err != nil {
		return nil, j.explain(err)
	}
	defer func() {
		var status syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				return
			}
		}
	}()
	defer ours.Close()
	if err := ours.send(order{Setup: &setup{Device: j.Device}}, nil); err != nil {
		return nil, err
	}
	r := &report{}
	fds, err := ours.receive(r)
	switch {
	case errors.Is(err, errClosed):
		err = ErrGone
	case err == nil && r.Error != "":
		err = errors.New(r.Error)
	case err == nil && r.Device == nil:
		err = fmt.Errorf("the stage said %+v where a device belongs", r)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	r.Device.Queues = fds
	return r.Device, nil
}

// openNS opens a namespace of a kind (CLONE_NEW…).
func openNS(path string, kind int) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("namespace %s: %w", path, err)
	}
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || got != kind {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is not a %s namespace", path, map[int]string{unix.CLONE_NEWNET: "network", unix.CLONE_NEWUSER: "user"}[kind])
	}
	return fd, nil
}

func sameFile(fd int, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// failedStep is where a child that was to enter namespaces failed.
type failedStep struct {
	step int
	err  syscall.Errno
}

func (f *failedStep) Error() string { return f.err.Error() }
func (f *failedStep) Unwrap() error { return f.err }

func (j *Join) explain(err error) error {
	var f *failedStep
	if !errors.As(err, &f) {
		return err
	}
	switch f.step {
	case stepUser:
		return fmt.Errorf("entering user namespace %s: %w: only the user who made it may, or root", j.UserNS, err)
	case stepNet:
		return fmt.Errorf("entering network namespace %s: %w: it belongs to a user namespace that was not entered (see --userns)", j.NetNS, err)
	case stepCaps:
		return fmt.Errorf("capabilities in %s: %w", j.UserNS, err)
	}
	return fmt.Errorf("starting again in the namespaces: %w", err)
}

// enter starts the stage in the namespaces; it gets the socket.
func enter(user, net int, socket *os.File) (pid int, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(pipe[0])
	e := &entering{
		user: user, net: net, report: pipe[1],
		caps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN},
		hdr:  unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
	}
	if e.path, err = syscall.BytePtrFromString("/proc/self/exe"); err != nil {
		return 0, err
	}
	argv, err := syscall.SlicePtrFromStrings([]string{stageName, "join", strconv.Itoa(int(socket.Fd()))})
	if err != nil {
		return 0, err
	}
	envp, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return 0, err
	}
	e.argv, e.envp = &argv[0], &envp[0]

	syscall.ForkLock.Lock()
	_, err = unix.FcntlInt(socket.Fd(), unix.F_SETFD, 0)
	var p uintptr
	if err == nil {
		var errno syscall.Errno
		if p, errno = e.fork(); errno != 0 {
			err = errno
		}
	}
	unix.CloseOnExec(int(socket.Fd()))
	syscall.ForkLock.Unlock()
	unix.Close(pipe[1])
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envp)
	if err != nil {
		return 0, fmt.Errorf("fork: %w", err)
	}
	var out [8]byte
	n := 0
	for {
		if n, err = unix.Read(pipe[0], out[:]); err != unix.EINTR {
			break
		}
	}
	if n == len(out) {
		syscall.Wait4(int(p), nil, 0, nil)
		return 0, &failedStep{int(binary.NativeEndian.Uint32(out[:])), syscall.Errno(binary.NativeEndian.Uint32(out[4:]))}
	}
	return int(p), nil
}

// join is the stage in namespaces that were there before: it makes the device and ends.
func (s *stage) join() int {
	var o order
	fds, err := s.sock.receive(&o)
	closeAll(fds)
	if err == nil && o.Setup == nil {
		err = errors.New("the first order is not the setup")
	}
	var opened *Opened
	if err == nil {
		opened, err = openDevice(&o.Setup.Device, false)
	}
	if err == nil {
		tuneNetwork()
		err = s.sock.send(report{Device: opened}, opened.Queues)
	} else {
		err = s.sock.send(report{Error: err.Error()}, nil)
	}
	if err != nil {
		return 125
	}
	return 0
}
