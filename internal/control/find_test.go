package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRuntimeDir(t *testing.T) {
	for _, c := range []struct {
		uid      int
		xdg, tmp string
		want     string
	}{
		{0, "", "", "/run/sluice"},
		{0, "/run/user/0", "", "/run/sluice"},
		{1000, "/run/user/1000", "/var/tmp", "/run/user/1000/sluice"},
		{1000, "", "/var/tmp", "/var/tmp/sluice-1000"},
		{1000, "", "", "/tmp/sluice-1000"},
		{1000, "relative", "/t", "/t/sluice-1000"},
	} {
		env := map[string]string{"XDG_RUNTIME_DIR": c.xdg, "TMPDIR": c.tmp}
		if got := runtimeDir(c.uid, func(k string) string { return env[k] }); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestMakeDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sluice")
	for range 2 { // the second time it is there
		if err := makeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", st.Mode())
	}
	os.Chmod(dir, 0o777)
	if err := makeDir(dir); err == nil {
		t.Error("a folder that others may write to was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if err := makeDir(file); err == nil {
		t.Error("a file was taken for the runtime directory")
	}
}

func listen(t *testing.T, path string) *Server {
	t.Helper()
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Serve(); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
	return s
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)

	_, err := findIn(dir, "")
	if !errors.Is(err, ErrNone) {
		t.Errorf("with none: %v", err)
	}
	if _, err := findIn(filepath.Join(dir, "none"), ""); !errors.Is(err, ErrNone) {
		t.Errorf("without a folder: %v", err)
	}

	dead := filepath.Join(dir, "dead.sock")
	stale(t, dead)
	a := listen(t, filepath.Join(dir, "a.sock"))
	if got, err := findIn(dir, ""); got != a.Path || err != nil {
		t.Errorf("with one: %q, %v", got, err)
	}
	if _, err := os.Lstat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Error("the dead socket is still there")
	}

	b := listen(t, filepath.Join(dir, "b.sock"))
	if _, err := findIn(dir, ""); err == nil || !strings.Contains(err.Error(), "--name: a, b") {
		t.Errorf("with two: %v", err)
	}
	if got, err := findIn(dir, "b"); got != b.Path || err != nil {
		t.Errorf("by name: %q, %v", got, err)
	}
	if _, err := findIn(dir, "c"); err == nil || !strings.Contains(err.Error(), "running: a, b") {
		t.Errorf("by a wrong name: %v", err)
	}
}

func TestFindOrder(t *testing.T) {
	t.Setenv("SLUICE_SOCKET", "/from/env")
	if got, _ := Find("/from/flag", ""); got != "/from/flag" {
		t.Errorf("flag: %s", got)
	}
	if got, _ := Find("", ""); got != "/from/env" {
		t.Errorf("environment: %s", got)
	}
}

func TestSocketElsewhereIsFound(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	s := listen(t, filepath.Join(t.TempDir(), "x.sock"))
	if err := os.Symlink(s.Path, filepath.Join(dir, "edge.sock")); err != nil {
		t.Fatal(err)
	}
	if got, err := findIn(dir, "edge"); got != s.Path || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	gone := filepath.Join(dir, "gone.sock")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), gone); err != nil {
		t.Fatal(err)
	}
	if all, err := listIn(dir); len(all) != 1 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Error("a link to nowhere is still there")
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"sluice": true, "exec-12": true, "": false, "../x": false, ".x": false, "a/b": false, strings.Repeat("x", 65): false} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
