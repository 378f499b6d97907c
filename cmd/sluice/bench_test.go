package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// TestBench: a case is measured, saved, and compared with itself.
func TestBench(t *testing.T) {
	file := filepath.Join(t.TempDir(), "b.json")
	run := func(args ...string) (string, string, int) {
		var out, errs bytes.Buffer
		code := start(append([]string{"sluice", "bench", "--case", "route-only", "--rounds", "2", "--time", "1ms"}, args...), strings.NewReader(""), &out, &errs)
		return out.String(), errs.String(), code
	}
	out, errs, code := run("--json", file)
	if code != 0 || !strings.Contains(out, "route-only") || !strings.Contains(errs, "round 2, route-only") {
		t.Fatalf("status %d\n%s\n%s", code, out, errs)
	}
	if out, errs, code = run("-q", "--base", file); code != 0 || errs != "" || !strings.Contains(out, "now / before") {
		t.Fatalf("status %d\n%s\n%s", code, out, errs)
	}
	if _, errs, code = run("--case", "no such case"); code != 1 || !strings.Contains(errs, `no case has "no such case" in its name`) {
		t.Errorf("status %d: %s", code, errs)
	}
	if _, errs, code = run("--base", file+"x"); code != 1 || !strings.Contains(errs, "b.jsonx") {
		t.Errorf("status %d: %s", code, errs)
	}
}
