package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const resolvConf = "/etc/resolv.conf"

// arrangeFiles mounts what the command sees differently; see ownMounts.
func arrangeFiles(s *setup) error {
	if err := mountResolvConf(s.ResolvConf); err != nil {
		return err
	}
	for _, path := range s.Hide {
		if err := hide(path); err != nil {
			return fmt.Errorf("hiding %s: %w", path, bare(err))
		}
	}
	for _, path := range s.HideIfThere {
		if err := hide(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("hiding %s: %w", path, bare(err))
		}
	}
	return nil
}

// ownMounts has what is mounted outside from now on arrive here, and nothing from here there.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return explainMount("/", err)
	}
	return nil
}

// mountProc mounts the /proc of our PID namespace; false: a container that covers
// parts of its own forbids one without covers, and the outer one stays.
func mountProc() (bool, error) {
	err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, explainMount("/proc", err)
	}
	return true, nil
}

func explainMount(path string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		if why := forbidden(); why != "" {
			return fmt.Errorf("user namespaces have no rights here: %s", why)
		}
		return fmt.Errorf("mount %s: %w: a security module or a seccomp profile forbids mounting in a user namespace", path, err)
	}
	return fmt.Errorf("mount %s: %w", path, err)
}

// mountResolvConf puts text over /etc/resolv.conf, where there is one: a file
// on a tmpfs that is mounted over /proc for as long as it takes to bind it.
func mountResolvConf(text []byte) error {
	if text == nil {
		return nil
	}
	if _, err := os.Stat(resolvConf); err != nil {
		return nil // names are then asked for at 127.0.0.1, where nobody is
	}
	const at = "/proc"
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return explainMount(at, err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	const file = at + "/resolv.conf"
	if err := os.WriteFile(file, text, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(file, resolvConf, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", resolvConf, err)
	}
	return nil
}

// hide makes a folder empty, and anything else what /dev/null is.
func hide(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() {
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700")
	}
	return unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
}

// tuneNetwork lets an ordinary user do in the new network namespace what
// hurts nobody there: ping, and listen on any port. Where /proc/sys cannot be
// written to, those stay root's.
func tuneNetwork() {
	set := func(name, value string) bool { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) == nil }
	if !set("net/ipv4/ping_group_range", "0 2147483647") {
		set("net/ipv4/ping_group_range", fmt.Sprintf("%d %d", os.Getegid(), os.Getegid()))
	}
	set("net/ipv4/ip_unprivileged_port_start", "0")
}
