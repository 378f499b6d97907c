package confine

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process with threads may not enter a user namespace, and Go programs always
// have threads. So a fork enters the namespaces before the program begins anew.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// entering is what the child needs, all of it made beforehand: between fork and
// exec it may neither allocate nor grow its stack.
type entering struct {
	user, net  int // namespaces' descriptors; user is -1 where it is our own
	report     int // a pipe's end that takes the step that failed, and why
	path       *byte
	argv, envp **byte
	caps       []uintptr

	hdr  unix.CapUserHeader
	data [2]unix.CapUserData
	out  [2]int32
}

// Steps of entering, as they are reported.
const (
	stepUser = iota + 1
	stepNet
	stepCaps
	stepExec
)

// fork starts the child and gives its pid.
//
//go:noinline
//go:norace
//go:nocheckptr
func (e *entering) fork() (pid uintptr, errno syscall.Errno) {
	beforeFork()
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	e.out[0] = stepUser
	if e.user >= 0 {
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(e.user), unix.CLONE_NEWUSER, 0); errno != 0 {
			goto failed
		}
	}
	e.out[0] = stepNet
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(e.net), unix.CLONE_NEWNET, 0); errno != 0 {
		goto failed
	}
	// Capabilities outlive exec where the user is not root inside only as ambient ones.
	e.out[0] = stepCaps
	if _, _, errno = syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&e.hdr)), uintptr(unsafe.Pointer(&e.data[0])), 0); errno != 0 {
		goto failed
	}
	e.data[0].Inheritable, e.data[1].Inheritable = e.data[0].Permitted, e.data[1].Permitted
	if _, _, errno = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&e.hdr)), uintptr(unsafe.Pointer(&e.data[0])), 0); errno != 0 {
		goto failed
	}
	for i := range e.caps {
		if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, e.caps[i], 0, 0, 0); errno != 0 {
			goto failed
		}
	}
	e.out[0] = stepExec
	_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(e.path)), uintptr(unsafe.Pointer(e.argv)), uintptr(unsafe.Pointer(e.envp)))
failed:
	e.out[1] = int32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(e.report), uintptr(unsafe.Pointer(&e.out)), unsafe.Sizeof(e.out))
	for {
		syscall.RawSyscall(unix.SYS_EXIT, 125, 0, 0)
	}
}
