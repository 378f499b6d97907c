package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Namespaces do not hold everything: a terminal that is shared takes typed
// input from whoever has it open (TIOCSTI), and some socket families know no
// network namespaces (AF_VSOCK reaches the hypervisor). A filter forbids those,
// and io_uring, whose operations no filter sees.

// families that a program inside may have sockets of; each lives in the network
// namespace, or reaches no network.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ALG}

// abi is one of the system call tables that a process may use.
type abi struct {
	arch uint32 // AUDIT_ARCH_*
	or   uint32 // set in each number (x32)
	// Numbers; 0: there is none.
	ioctl, socket, socketpair, socketcall uint32
}

const ioUringSetup, ioUringRegister = 425, 427 // the same everywhere

// Where things are in struct seccomp_data, on a little-endian machine.
const (
	dataNR   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
)

// filter is the program, for these tables; another one is refused whole.
func filter(abis []abi) []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		eq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	errno := func(e unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(e)}
	}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	var out []unix.SockFilter
	for _, a := range abis {
		var b []unix.SockFilter
		// when adds body for one system call; body ends in a return.
		when := func(nr uint32, body ...unix.SockFilter) {
			if nr != 0 {
				b = append(b, unix.SockFilter{Code: load, K: dataNR}, unix.SockFilter{Code: eq, K: nr | a.or, Jf: uint8(len(body))})
				b = append(b, body...)
			}
		}
		// oneOf returns hit if the argument is one of values, else miss.
		oneOf := func(arg uint32, values []uint32, hit, miss unix.SockFilter) []unix.SockFilter {
			body := []unix.SockFilter{{Code: load, K: arg}}
			for i, v := range values {
				body = append(body, unix.SockFilter{Code: eq, K: v, Jt: uint8(len(values) - i)})
			}
			return append(body, miss, hit)
		}
		when(a.ioctl, oneOf(dataArg1, []uint32{unix.TIOCSTI, unix.TIOCLINUX}, errno(unix.EPERM), allow)...)
		when(a.socket, oneOf(dataArg0, families, allow, errno(unix.EAFNOSUPPORT))...)
		when(a.socketpair, oneOf(dataArg0, families, allow, errno(unix.EAFNOSUPPORT))...)
		when(a.socketcall, errno(unix.ENOSYS)) // its arguments are in memory, out of a filter's sight
		when(ioUringSetup, errno(unix.ENOSYS))
		when(ioUringRegister, errno(unix.ENOSYS))
		if a.or != 0 {
			// x32 shares its table's architecture: what is not its own goes on to the next.
			out = append(out, unix.SockFilter{Code: load, K: dataArch}, unix.SockFilter{Code: eq, K: a.arch, Jf: uint8(len(b))})
			out = append(out, b...)
			continue
		}
		b = append(b, allow)
		out = append(out, unix.SockFilter{Code: load, K: dataArch}, unix.SockFilter{Code: eq, K: a.arch, Jf: uint8(len(b))})
		out = append(out, b...)
	}
	return append(out, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
}

// Restrict puts the filter that commands have on the calling process.
func Restrict() error { return restrict() }

// restrict puts the filter on every thread of the process, and on what it starts.
// no_new_privs has to be set.
func restrict() error {
	if len(abis) == 0 {
		return fmt.Errorf("no system call filter is known for %s", runtime.GOARCH)
	}
	prog := filter(abis)
	f := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&f)))
	switch errno {
	case 0:
		return nil
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("the kernel has no system call filter (CONFIG_SECCOMP_FILTER): %w", errno)
	}
	return fmt.Errorf("system call filter: %w", errno)
}
