package confine

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock (a security module that a process puts on itself) holds what
// namespaces do not: which processes may be signalled, and which files opened.

// Scopes of Linux 6.12, the sixth version of the interface: signals and traces,
// and abstract Unix sockets, stay among processes of the same domain.
const (
	scopedVersion = 6
	scopeAbstract = 1
	scopeSignal   = 2
)

// landlockVersion is the kernel's version of the interface; 0: it has none.
func landlockVersion() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// newRuleset makes a ruleset of so many of the attributes' bytes.
func newRuleset(attr *unix.LandlockRulesetAttr, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), size, 0)
	if errno != 0 {
		return -1, fmt.Errorf("landlock: %w", errno)
	}
	return int(fd), nil
}

// scope puts the calling thread into a domain of its own, together with what it
// starts: none of them can signal or trace a process outside, the other
// threads of this one apart. no_new_privs has to be set.
func scope() error {
	fd, err := newRuleset(&unix.LandlockRulesetAttr{Scoped: scopeSignal | scopeAbstract}, 24)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(fd), 0, 0); errno != 0 {
		return fmt.Errorf("landlock: %w", errno)
	}
	return nil
}

// fileRights are all rights to files that there have been since the first version.
const fileRights = 1<<13 - 1

// OnlyFiles keeps the process, all of its threads, from opening any file but
// these and what is below them, which it may read. Descriptors that it has stay
// good. Where the kernel has no Landlock nothing is done, and false given.
func OnlyFiles(paths ...string) (bool, error) {
	if landlockVersion() == 0 {
		return false, nil
	}
	fd, err := newRuleset(&unix.LandlockRulesetAttr{Handled_access_fs: fileRights}, 8)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	for _, path := range paths {
		at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return false, &os.PathError{Op: "open", Path: path, Err: err}
		}
		rights := uint64(unix.LANDLOCK_ACCESS_FS_READ_FILE)
		var st unix.Stat_t
		if unix.Fstat(at, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			rights |= unix.LANDLOCK_ACCESS_FS_READ_DIR
		}
		attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(at)}
		_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
		unix.Close(at)
		if errno != 0 {
			return false, fmt.Errorf("landlock: %s: %w", path, errno)
		}
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(fd), 0, 0); errno != 0 {
		return false, fmt.Errorf("landlock: %w", errno)
	}
	return true, nil
}
