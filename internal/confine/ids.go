package confine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mapIDs gives the namespace's users and groups the numbers that they have
// outside: all of them where we may, else the caller's own alone.
func mapIDs(attr *syscall.SysProcAttr) error {
	var has [2]bool
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for i, c := range []uint{unix.CAP_SETUID, unix.CAP_SETGID} {
		has[i] = data[0].Effective>>c&1 != 0
	}
	if has[0] && has[1] && data[0].Effective>>unix.CAP_SETFCAP&1 != 0 {
		var err error
		if attr.UidMappings, err = ownMap("/proc/self/uid_map"); err != nil {
			return err
		}
		if attr.GidMappings, err = ownMap("/proc/self/gid_map"); err != nil {
			return err
		}
		attr.GidMappingsEnableSetgroups = true
		return nil
	}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	return nil
}

// ownMap is the identity on what our own namespace knows.
func ownMap(path string) ([]syscall.SysProcIDMap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []syscall.SysProcIDMap
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if len(w) != 3 {
			return nil, fmt.Errorf("%s: %q", path, line)
		}
		first, err1 := strconv.Atoi(w[0])
		size, err2 := strconv.Atoi(w[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: size})
	}
	return out, nil
}

// explainNamespaces says which setting keeps us from making namespaces.
func explainNamespaces(err error) error {
	why := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		why = forbidden()
		if why == "" {
			why = "the process is in a chroot, or a container's seccomp profile or security module forbids it; allow unshare(2) and clone(2) with CLONE_NEWUSER there"
		}
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		why = limited()
		if why == "" {
			why = "a limit on namespaces is reached: sysctl user.max_user_namespaces, user.max_net_namespaces, user.max_mnt_namespaces, user.max_pid_namespaces"
		}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		why = "the kernel was built without user namespaces (CONFIG_USER_NS)"
	default:
		return fmt.Errorf("making namespaces: %w", err)
	}
	return fmt.Errorf("user namespaces are forbidden here: %w: %s", bare(err), why)
}

func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// forbidden looks for the settings of distributions that forbid user namespaces.
func forbidden() string {
	for _, s := range []struct{ name, bad, good string }{
		{"kernel.unprivileged_userns_clone", "0", "1"},             // Debian's
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"}, // Ubuntu's
		{"kernel.apparmor_restrict_unprivileged_unconfined", "1", "0"},
	} {
		if os.Geteuid() != 0 && sysctl(s.name) == s.bad {
			return fmt.Sprintf("sysctl %s is %s. As root: sysctl -w %s=%s", s.name, s.bad, s.name, s.good)
		}
	}
	return limited()
}

// limited names a limit that allows no namespace at all.
func limited() string {
	for _, kind := range []string{"user", "net", "mnt", "pid"} {
		name := "user.max_" + kind + "_namespaces"
		if sysctl(name) == "0" {
			return fmt.Sprintf("sysctl %s is 0. As root: sysctl -w %s=65536", name, name)
		}
	}
	return ""
}

func sysctl(name string) string {
	text, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
