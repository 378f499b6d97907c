package confine

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal, whose foreground the command has while
// it runs, if we had it.
type terminal struct {
	fd    int // -1: there is none
	group int // our own process group

	mu    sync.Mutex
	given bool
}

func openTerminal() *terminal {
	t := &terminal{fd: -1, group: unix.Getpgrp()}
	if fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
		t.fd = fd
	}
	return t
}

// ours reports whether we are in the terminal's foreground.
func (t *terminal) ours() bool {
	if t.fd < 0 {
		return false
	}
	group, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && group == t.group
}

// give makes group the terminal's foreground if that is ours to give.
func (t *terminal) give(group int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.given && t.ours() {
		// From now on we write from the background, and take the terminal back from there.
		dispose(unix.SIGTTOU, sigIgnore)
		t.given = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group) == nil
	}
}

// take brings the terminal back.
func (t *terminal) take() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.given {
		unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, t.group)
		t.given = false
	}
}

// suspend stops us, and what else is in our job, as sig stopped the command;
// when we go on, so does the command.
func (t *terminal) suspend(sig, group int) {
	t.take()
	if sig == int(unix.SIGSTOP) {
		stopSelf(unix.SIGSTOP)
	} else {
		// The others in our process group, a shell's pipeline, first; ourselves by a
		// signal to this very thread, so that we are stopped when the call returns.
		dispose(unix.SIGTSTP, sigIgnore)
		syscall.Kill(0, unix.SIGTSTP)
		dispose(unix.SIGTSTP, sigDefault)
		stopSelf(unix.SIGTSTP)
	}
	t.give(group)
	syscall.Kill(-group, unix.SIGCONT)
}

func stopSelf(sig syscall.Signal) { unix.Tgkill(os.Getpid(), unix.Gettid(), sig) }

const sigDefault, sigIgnore = 0, 1

// dispose says what the kernel does with a signal; os/signal cannot bring the
// default of a stop signal back once it was ignored.
func dispose(sig syscall.Signal, how uintptr) {
	action := struct{ handler, flags, restorer, mask uintptr }{handler: how}
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}
