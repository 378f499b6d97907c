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
	pages, err := filepath.Glob(filepath.Join(folder, "*.1"))
	if err != nil || len(pages) < 30 {
		t.Fatal(pages, err)
	}
	c := exec.Command("man", append([]string{"-P", "cat", "--warnings", "-l"}, pages...)...)
	c.Env = append(os.Environ(), "MANWIDTH=80", "LC_ALL=C.UTF-8")
	var shown, complaints bytes.Buffer
	c.Stdout, c.Stderr = &shown, &complaints
	if err := c.Run(); err != nil || complaints.Len() > 0 {
		t.Errorf("%v\n%s", err, complaints.String())
	}
	if n := strings.Count(shown.String(), "\nSYNOPSIS\n"); n != len(pages) {
		t.Errorf("%d of %d pages have a synopsis", n, len(pages))
	}
	if !strings.Contains(shown.String(), "\n         tcp 10.0.1.2:4000 > 203.0.113.9:80 S\n         lan0: udp [fd00:1::2]") {
		t.Error("examples are no lines of their own")
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
	for _, x := range []struct{ line, want string }{
		{"", "run\tRun"}, {"", "status\tShow"}, {"", "iptables-save\t"}, {"trace --co", "--config\tconfiguration file of"}, {"trace --color ", "never\n"},
		{"capture --at ", "PREROUTING\n"}, {"top --view ", "hooks\n"}, {"graph --format ", "mermaid\n"}, {"lint --ignore ", "unused-chain\n"},
	} {
		offered.Reset()
		start(append([]string{"sluice", "__complete"}, strings.Split(x.line, " ")...), nil, &offered, &errs)
		if !strings.Contains("\n"+offered.String(), "\n"+x.want) || strings.Contains(offered.String(), "`") {
			t.Errorf("after %q: no %q in %q", x.line, x.want, offered.String())
		}
	}
}
