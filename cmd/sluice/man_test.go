package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestManual: every command has a page that man can show, with what its help says.
func TestManual(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "man1")
	var out, errs bytes.Buffer
	if status := start([]string{"sluice", "man", folder}, nil, &out, &errs); status != 0 {
		t.Fatalf("exit status %d: %s", status, errs.String())
	}
	root := (&app{}).command()
	for _, c := range root.Commands() {
		text, err := os.ReadFile(filepath.Join(folder, "sluice-"+c.Name()+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Contains(text, []byte(c.Short)) {
			t.Errorf("sluice-%s.1 does not say %q", c.Name(), c.Short)
		}
	}
	text, _ := os.ReadFile(filepath.Join(folder, "sluice-iptables.1"))
	if !bytes.Contains(text, []byte("add a rule at the end of a chain")) {
		t.Errorf("the page of a tool has not its help:\n%s", text)
	}
	if _, err := exec.LookPath("man"); err != nil {
		t.Skip("man is missing (apt install man-db)")
	}
	shown, err := exec.Command("man", "-P", "cat", "--warnings", "-l", filepath.Join(folder, "sluice-run.1")).CombinedOutput()
	if err != nil || !strings.Contains(string(shown), "sluice run") || strings.Contains(string(shown), "warning") {
		t.Errorf("%v\n%s", err, shown)
	}
	if status := start([]string{"sluice", "man", "/dev/null/x"}, nil, &out, &errs); status != exitFailed {
		t.Errorf("a folder that cannot be made: exit status %d", status)
	}
}

// TestCompletion: bash reads the script, and the names of commands and tools are offered.
func TestCompletion(t *testing.T) {
	var script, offered, errs bytes.Buffer
	if status := start([]string{"sluice", "completion", "bash"}, nil, &script, &errs); status != 0 {
		t.Fatalf("exit status %d: %s", status, errs.String())
	}
	c := exec.Command("bash", "-n")
	c.Stdin = &script
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	start([]string{"sluice", "__complete", ""}, nil, &offered, &errs)
	for _, want := range []string{"\nrun\t", "\nstatus\t", "\niptables-save\t"} {
		if !strings.Contains("\n"+offered.String(), want) {
			t.Errorf("no %q in %q", want, offered.String())
		}
	}
}
