package iptables

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write what the real iptables 1.8.9 answers into testdata")

const (
	legacyBinary = "/usr/sbin/xtables-legacy-multi"
	nftBinary    = "/usr/sbin/xtables-nft-multi"
)

// inNamespace runs f on a thread of its own in a new, empty network namespace,
// which ends with the thread.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("no network namespace here: %v", err)
	}
}

// needReference skips unless the real iptables 1.8.9 (legacy) works here.
func needReference(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	out, err := referenceCommand(legacyBinary, "iptables", "-V").Output()
	if err != nil || strings.TrimSpace(string(out)) != "iptables v1.8.9 (legacy)" {
		t.Skipf("no iptables 1.8.9 here: %q, %v", out, err)
	}
	inNamespace(t, func() {
		if out, e := referenceCommand(legacyBinary, "iptables", "-S").CombinedOutput(); e != nil {
			err = errors.New(string(out))
		}
	})
	if err != nil {
		t.Skipf("the kernel has no ip_tables: %v", err)
	}
}

func referenceCommand(binary string, argv ...string) *exec.Cmd {
	return &exec.Cmd{
		Path: binary, Args: argv,
		Env: []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "XTABLES_LOCKFILE=/dev/null"},
	}
}

// reference runs the real program of the thread's namespace.
func reference(argv []string, stdin string) (code int, stdout, stderr string) {
	return runReference(legacyBinary, argv, stdin)
}

func runReference(binary string, argv []string, stdin string) (code int, stdout, stderr string) {
	cmd := referenceCommand(binary, argv...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	err := cmd.Run()
	var x *exec.ExitError
	switch {
	case errors.As(err, &x):
		code = x.ExitCode()
	case err != nil:
		return -1, "", err.Error()
	}
	return code, normalise(o.String()), strings.ReplaceAll(e.String(), "(nf_tables)", "(legacy)")
}

// TestReference holds the transcripts against the real program.
func TestReference(t *testing.T) {
	needReference(t)
	for _, name := range transcripts(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".golden"), func(t *testing.T) {
			steps := readTranscript(t, name)
			real := make([]step, len(steps))
			play := func(binary string, nft bool) {
				for i, s := range steps {
					code, stdout, stderr := runReference(binary, s.argv, s.stdin)
					if s.nft == nft {
						real[i] = s
						real[i].code, real[i].stdout, real[i].err = code, stdout, stderr
					}
				}
			}
			inNamespace(t, func() { play(legacyBinary, false) })
			if slices.ContainsFunc(steps, func(s step) bool { return s.nft }) {
				inNamespace(t, func() { play(nftBinary, true) })
			}
			var out strings.Builder
			for i, s := range steps {
				if got := real[i].String(); !*update && got != s.String() {
					t.Errorf("%s:%d: the real program answers\n%s, the transcript has\n%s", name, s.at, got, s.String())
				}
				out.WriteString(real[i].String())
			}
			if *update {
				if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
