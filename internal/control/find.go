package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// DefaultName is the name of a router that was given none.
const DefaultName = "sluice"

// RuntimeDir is the folder that sockets are in: for root /run/sluice, for
// others $XDG_RUNTIME_DIR/sluice, and without one a folder under $TMPDIR. Root
// does not ask $XDG_RUNTIME_DIR, which depends on how one became root.
func RuntimeDir() string { return runtimeDir(os.Geteuid(), os.Getenv) }

func runtimeDir(uid int, env func(string) string) string {
	if uid == 0 {
		return "/run/sluice"
	}
	if dir := env("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "sluice")
	}
	tmp := env("TMPDIR")
	if tmp == "" {
		tmp = "/tmp"
	}
	return filepath.Join(tmp, "sluice-"+strconv.Itoa(uid))
}

// MakeRuntimeDir makes RuntimeDir and checks that it is ours alone: in /tmp
// somebody else could have made it first.
func MakeRuntimeDir() (string, error) {
	dir := RuntimeDir()
	return dir, makeDir(dir)
}

func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("the runtime directory: %w", err)
	}
	return checkDir(dir)
}

func checkDir(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("the runtime directory: %w", err)
	}
	if st.Mode()&os.ModeSymlink != 0 && os.Geteuid() == 0 { // systemd's DynamicUser= makes /run/sluice a link into /run/private
		if st, err = os.Stat(dir); err != nil {
			return fmt.Errorf("the runtime directory: %w", err)
		}
	}
	sys, _ := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.IsDir():
		return fmt.Errorf("the runtime directory %s is not a folder", dir)
	case os.Geteuid() != 0 && (sys == nil || int(sys.Uid) != os.Geteuid()):
		return fmt.Errorf("the runtime directory %s belongs to somebody else", dir)
	case st.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others may write to the runtime directory %s: chmod 700 %s", dir, dir)
	}
	return nil
}

// Running is a router that answers.
type Running struct{ Name, Path string }

// List finds the routers of this user by name, and removes the sockets that
// routers left behind which did not end well.
func List() ([]Running, error) { return listIn(RuntimeDir()) }

func listIn(dir string) ([]Running, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	var out []Running
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if !ok || e.Type()&(os.ModeSocket|os.ModeSymlink) == 0 {
			continue
		}
		path := filepath.Join(dir, e.Name())
		live, err := alive(path)
		if live {
			if to, err := os.Readlink(path); err == nil {
				path = to
			}
			out = append(out, Running{name, path})
		} else if err == nil {
			removeStale(dir, path)
		}
	}
	slices.SortFunc(out, func(a, b Running) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// removeStale removes a dead socket, unless a router is just taking its place.
func removeStale(dir, path string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return
	}
	if live, err := alive(path); !live && err == nil {
		os.Remove(path)
	}
}

// ErrNone is Find's answer where no router runs.
var ErrNone = errors.New("no running sluice found")

// Find is the socket of the router that a tool is for: socket if it is not "",
// else $SLUICE_SOCKET, else the one that runs under name, or the only one.
func Find(socket, name string) (string, error) {
	if socket != "" {
		return socket, nil
	}
	if s := os.Getenv("SLUICE_SOCKET"); s != "" && name == "" {
		return s, nil
	}
	return findIn(RuntimeDir(), name)
}

func findIn(dir, name string) (string, error) {
	all, err := listIn(dir)
	if err != nil {
		return "", err
	}
	if name != "" {
		for _, r := range all {
			if r.Name == name {
				return r.Path, nil
			}
		}
		if len(all) == 0 {
			return "", fmt.Errorf("no sluice named %q: none is running in %s", name, dir)
		}
		return "", fmt.Errorf("no sluice named %q; running: %s", name, nameList(all))
	}
	switch len(all) {
	case 0:
		return "", fmt.Errorf("%w in %s: start one with \"sluice run -c FILE\", or name its socket with --socket or $SLUICE_SOCKET", ErrNone, dir)
	case 1:
		return all[0].Path, nil
	}
	return "", fmt.Errorf("%d sluices are running: pick one with --name: %s", len(all), nameList(all))
}

func nameList(all []Running) string {
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.Name
	}
	return strings.Join(names, ", ")
}

// SocketPath is where a router named name listens in the runtime directory,
// which it makes, and clears of what routers left behind.
func SocketPath(name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	dir, err := MakeRuntimeDir()
	if err == nil {
		_, err = listIn(dir) // for what it clears away
	}
	return filepath.Join(dir, name+".sock"), err
}

func checkName(name string) error {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00\n") || len(name) > 64 {
		return fmt.Errorf("%q cannot be a router's name", name)
	}
	return nil
}

// Announce makes a router that listens elsewhere known in the runtime
// directory under name; the returned function takes that back.
func Announce(name, socket string) (withdraw func(), err error) {
	entry, err := SocketPath(name)
	if err != nil {
		return func() {}, err
	}
	if socket, err = filepath.Abs(socket); err != nil || socket == entry {
		return func() {}, err
	}
	if err := clear(entry); err != nil {
		return func() {}, err
	}
	if err := os.Symlink(socket, entry); err != nil {
		return func() {}, err
	}
	return func() {
		if to, err := os.Readlink(entry); err == nil && to == socket {
			os.Remove(entry)
		}
	}, nil
}
