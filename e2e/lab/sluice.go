package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sluice/router"
)

var build struct {
	sync.Once
	path string
	err  error
	out  []byte
}

// Binary builds sluice once for all tests of a package and gives its path.
func Binary(t testing.TB) string {
	t.Helper()
	build.Do(func() {
		dir, err := os.MkdirTemp("", "sluice-bin")
		if err != nil {
			build.err = err
			return
		}
		os.Chmod(dir, 0o755)
		build.path = filepath.Join(dir, "sluice")
		// E2E_BUILD=-race looks for races in the router while the tests drive it.
		flags := strings.Fields(os.Getenv("E2E_BUILD"))
		c := exec.Command("go", append(append([]string{"build", "-o", build.path}, flags...), "sluice/cmd/sluice")...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if len(flags) > 0 {
			c.Env = os.Environ()
		}
		build.out, build.err = c.CombinedOutput()
	})
	if build.err != nil {
		t.Fatalf("building sluice: %v\n%s", build.err, build.out)
	}
	return build.path
}

// RemoveBinary is for the end of TestMain.
func RemoveBinary() {
	if build.path != "" {
		os.RemoveAll(filepath.Dir(build.path))
	}
}

// Sluice is a running router.
type Sluice struct {
	*Proc
	Config string // path of its configuration
	Socket string
	bin    string
}

// Sluice starts a router with a configuration and waits until it is ready.
// {ns:NAME} in it is a namespace's full name, {dir} the lab's folder.
func (l *Lab) Sluice(config string) *Sluice {
	l.T.Helper()
	s := l.SluiceCommand(config, nil)
	s.Expect("sluice: ready", 20*time.Second)
	return s
}

// SluiceCommand starts a router, wrapped in a command if wrap is given, with more flags for run, and does not wait.
func (l *Lab) SluiceCommand(config string, wrap []string, flags ...string) *Sluice {
	l.T.Helper()
	s := &Sluice{bin: Binary(l.T), Socket: filepath.Join(l.Dir, "sluice.sock")}
	s.Config = l.File("router.toml", config)
	if !strings.Contains(config, "[control]") {
		s.Config = l.File("router.toml", config+"\n[control]\nsocket = \"{dir}/sluice.sock\"\n")
	}
	args := append(append([]string{}, wrap...), s.bin, "--name", l.prefix, "run", "-c", s.Config)
	args = append(args, flags...)
	c := exec.Command(args[0], args[1:]...)
	s.Proc = l.StartCommand(c)
	l.T.Cleanup(func() {
		if !l.T.Failed() {
			return
		}
		if out, _, code := s.Tool("status"); code == 0 {
			l.T.Logf("the router at the end:\n%s", out)
		}
	})
	return s
}

// Tool runs one of sluice's commands on this router: Tool("iptables", "-L").
func (s *Sluice) Tool(args ...string) (stdout, stderr string, code int) {
	return s.ToolInput("", args...)
}

// ToolInput is Tool with standard input.
func (s *Sluice) ToolInput(stdin string, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, s.bin, append([]string{"--socket", s.Socket}, args...)...)
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errs
	err := c.Run()
	code = c.ProcessState.ExitCode()
	if err != nil && code < 0 {
		errs.WriteString(err.Error())
	}
	return out.String(), errs.String(), code
}

// Command is one of sluice's commands on this router, for what runs in the background.
func (s *Sluice) Command(args ...string) *exec.Cmd {
	return exec.Command(s.bin, append([]string{"--socket", s.Socket}, args...)...)
}

// Must is Tool for what has to work; it gives the standard output.
func (s *Sluice) Must(args ...string) string {
	s.l.T.Helper()
	return s.MustInput("", args...)
}

// MustInput is Must with standard input.
func (s *Sluice) MustInput(stdin string, args ...string) string {
	s.l.T.Helper()
	out, errs, code := s.ToolInput(stdin, args...)
	if code != 0 {
		s.l.T.Fatalf("sluice %s: exit status %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// Counter finds the packet count of the first rule that iptables-save -c prints with text in it; -1: no such rule.
func (s *Sluice) Counter(save, text string) int {
	s.l.T.Helper()
	for _, line := range strings.Split(s.Must(save, "-c"), "\n") {
		if strings.HasPrefix(line, "[") && strings.Contains(line, text) {
			n := 0
			for _, c := range line[1:] {
				if c < '0' || c > '9' {
					break
				}
				n = n*10 + int(c-'0')
			}
			return n
		}
	}
	return -1
}

// Status is what the router says of itself.
func (s *Sluice) Status() *router.Status {
	s.l.T.Helper()
	var st router.Status
	if err := json.Unmarshal([]byte(s.Must("status", "--json")), &st); err != nil {
		s.l.T.Fatal(err)
	}
	return &st
}

// Dropped is how many packets were dropped for a reason.
func (s *Sluice) Dropped(reason string) uint64 {
	s.l.T.Helper()
	for _, d := range s.Status().Drops {
		if d.Reason == reason {
			return d.Packets
		}
	}
	return 0
}

// AwaitDropped waits until n packets were dropped for a reason.
func (s *Sluice) AwaitDropped(reason string, n uint64) {
	s.l.T.Helper()
	for end := time.Now().Add(5 * time.Second); s.Dropped(reason) < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.l.T.Fatalf("%d packets dropped as %s, not %d; all: %+v", s.Dropped(reason), reason, n, s.Status().Drops)
		}
	}
}

// Rewrite replaces the configuration file.
func (s *Sluice) Rewrite(config string) {
	s.l.T.Helper()
	if !strings.Contains(config, "[control]") {
		config += "\n[control]\nsocket = \"{dir}/sluice.sock\"\n"
	}
	s.l.File("router.toml", config)
}

// Signal sends a signal to the router.
func (s *Sluice) Signal(sig syscall.Signal) { syscall.Kill(s.Process.Pid, sig) }
