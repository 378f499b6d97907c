package host

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Capability is a Linux capability, by its number.
type Capability uint8

// What a router may need.
const (
	CapNetAdmin Capability = unix.CAP_NET_ADMIN // make devices, set the kernel's ends up
	CapSysAdmin Capability = unix.CAP_SYS_ADMIN // enter another network namespace
	CapNetRaw   Capability = unix.CAP_NET_RAW   // packet sockets

	CapNetBindService Capability = unix.CAP_NET_BIND_SERVICE // listen on ports below 1024
)

func (c Capability) String() string {
	switch c {
	case CapNetAdmin:
		return "CAP_NET_ADMIN"
	case CapSysAdmin:
		return "CAP_SYS_ADMIN"
	case CapNetRaw:
		return "CAP_NET_RAW"
	case CapNetBindService:
		return "CAP_NET_BIND_SERVICE"
	}
	return fmt.Sprintf("capability %d", uint8(c))
}

// Needed lists the capabilities that running and reloading takes if the
// kernel's ends live in these namespaces ("" for the process' own). On devices
// that were set up beforehand in its own namespace a router needs none.
func Needed(namespaces ...string) []Capability {
	for _, n := range namespaces {
		if n != "" {
			return []Capability{CapNetAdmin, CapSysAdmin}
		}
	}
	return []Capability{CapNetAdmin}
}

// Effective is the set of capabilities that the process can use, one bit each.
func Effective() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

// Has reports whether the process can use c.
func Has(c Capability) bool {
	set, err := Effective()
	return err == nil && set>>c&1 != 0
}

// DropCapabilities gives up every capability but those in keep that the
// process has, on all of its threads and for good: they go from the bounding
// set and the ambient set as well, and no_new_privs keeps programs that it
// starts from getting any by a file's mode. A process without capabilities is
// left as it is, but for no_new_privs.
//
// Linux keeps capabilities per thread, so each call is made on every thread
// by syscall.AllThreadsSyscall, which works in programs without cgo; in one
// with cgo this is an error and nothing is changed.
func DropCapabilities(keep ...Capability) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	var mask uint64
	for _, c := range keep {
		mask |= 1 << c
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	had := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	if had == 0 {
		return nil
	}
	if err := clearAmbient(); err != nil {
		return err
	}
	if had>>unix.CAP_SETPCAP&1 != 0 {
		for c := uintptr(0); c < 64; c++ {
			if mask>>c&1 != 0 {
				continue
			}
			err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
			if errors.Is(err, unix.EINVAL) {
				break // past the last one that this kernel knows
			}
			if err != nil {
				return fmt.Errorf("bounding set: %w", err)
			}
		}
	}
	left := had & mask
	data = [2]unix.CapUserData{
		{Effective: uint32(left), Permitted: uint32(left)},
		{Effective: uint32(left >> 32), Permitted: uint32(left >> 32)},
	}
	if err := capset(&hdr, &data); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// Renounce gives up every capability on all threads, for good, and with
// no_new_privs programs that are started get none either. The bounding set
// stays as it is: a program whose file has capabilities (ping often is one) would
// not start without them in it, and as it is runs without getting them.
func Renounce() error {
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := clearAmbient(); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := capset(&hdr, &[2]unix.CapUserData{}); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

func clearAmbient() error {
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	return nil
}

// onAllThreads makes a system call on every thread of the process.
//
//go:uintptrescapes
func onAllThreads(trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(trap, a, b, c); errno != 0 {
		if errno == unix.ENOTSUP {
			return errors.New("threads cannot be reached in a program with cgo (build with CGO_ENABLED=0)")
		}
		return errno
	}
	return nil
}
