package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"sluice/internal/host"
)

// lab keeps what was made, to take it away again.
type lab struct {
	prefix string
	dir    string
	undo   []func()
}

func newLab() (*lab, error) {
	dir, err := os.MkdirTemp("", "sluice-bench")
	if err != nil {
		return nil, err
	}
	l := &lab{prefix: fmt.Sprintf("slb%d-", os.Getpid()), dir: dir}
	l.undo = append(l.undo, func() { os.RemoveAll(dir) })
	return l, nil
}

func (l *lab) close() {
	for i := len(l.undo) - 1; i >= 0; i-- {
		l.undo[i]()
	}
	l.undo = nil
}

func (l *lab) file(name, content string) (string, error) {
	path := filepath.Join(l.dir, name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// space is a network namespace.
type space struct {
	name string
	h    *host.Namespace
}

// space makes a namespace.
func (l *lab) space(name string) (*space, error) {
	s := &space{name: l.prefix + name}
	if err := run("ip", "netns", "add", s.name); err != nil {
		return nil, err
	}
	l.undo = append(l.undo, func() { run("ip", "netns", "del", s.name) })
	var err error
	if s.h, err = host.OpenNamespace(s.name); err != nil {
		return nil, err
	}
	l.undo = append(l.undo, s.h.Close)
	return s, s.run("sh", "-c", "ip link set lo up; sysctl -qw net.ipv4.ip_local_port_range='2000 65000' net.ipv4.tcp_rmem='4096 131072 16777216' net.ipv4.tcp_wmem='4096 131072 16777216' net.ipv6.conf.all.disable_ipv6=1")
}

func (s *space) run(argv ...string) error {
	return run(append([]string{"ip", "netns", "exec", s.name}, argv...)...)
}

// pipe runs a program inside with standard input.
func (s *space) pipe(in string, argv ...string) error {
	c := exec.Command("ip", append([]string{"netns", "exec", s.name}, argv...)...)
	c.Stdin = strings.NewReader(in)
	return finish(c)
}

func run(argv ...string) error { return finish(exec.Command(argv[0], argv[1:]...)) }

func finish(c *exec.Cmd) error {
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// start runs a program until the lab is closed, and waits until it has printed
// a line with ready (if that is not empty).
func (l *lab) start(ready string, argv ...string) (pid int, err error) {
	c := exec.Command(argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var diag bytes.Buffer
	c.Stderr = &diag
	gone, found, started := make(chan struct{}), make(chan bool, 1), make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig follows the thread that starts the process
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err != nil {
			return
		}
		r := bufio.NewScanner(out)
		for r.Scan() {
			if ready != "" && strings.Contains(r.Text(), ready) {
				select {
				case found <- true:
				default:
				}
			}
		}
		io.Copy(io.Discard, out)
		c.Wait()
		close(gone)
	}()
	if err := <-started; err != nil {
		return 0, err
	}
	l.undo = append(l.undo, func() {
		c.Process.Signal(syscall.SIGTERM)
		syscall.Kill(-c.Process.Pid, syscall.SIGCONT) // it may be paused
		select {
		case <-gone:
		case <-time.After(3 * time.Second):
			syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
			<-gone
		}
	})
	if ready == "" {
		return c.Process.Pid, nil
	}
	select {
	case <-found:
		return c.Process.Pid, nil
	case <-gone:
		return 0, fmt.Errorf("%s ended: %s", strings.Join(argv, " "), bytes.TrimSpace(diag.Bytes()))
	case <-time.After(30 * time.Second):
		return 0, fmt.Errorf("%s was not ready within 30 s", strings.Join(argv, " "))
	}
}
