package host

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// capset sets the calling process' capabilities on all threads. The kernel
// only reads what hdr and data hold.
func capset(hdr *unix.CapUserHeader, data *[2]unix.CapUserData) error {
	hdr.Pid = 0
	return onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(data)), 0)
}
