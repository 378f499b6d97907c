package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGraph(t *testing.T) {
	dir := t.TempDir()
	rules := filepath.Join(dir, "x.rules")
	os.WriteFile(rules, []byte("*filter\n:FORWARD DROP [0:0]\n:LAN - [0:0]\n-A FORWARD -i lan0 -j LAN\n-A LAN -p tcp -j ACCEPT\nCOMMIT\n"), 0o644)
	call := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		status := start(append([]string{"sluice", "graph"}, args...), strings.NewReader(""), &out, &errs)
		return status, out.String(), errs.String()
	}
	for format, want := range map[string]string{"svg": "<svg ", "dot": "digraph ", "mermaid": "flowchart LR"} {
		if status, out, errs := call("--rules", rules, "--format", format); status != 0 || !strings.HasPrefix(out, want) || !strings.Contains(out, "LAN") {
			t.Errorf("%s: exit status %d, %q, %q", format, status, out, errs)
		}
	}
	file := filepath.Join(dir, "out.mmd")
	if status, _, errs := call("--rules", rules, "-o", file); status != 0 {
		t.Errorf("exit status %d, %q", status, errs)
	}
	if text, _ := os.ReadFile(file); !bytes.HasPrefix(text, []byte("flowchart")) {
		t.Errorf("%s: %q", file, text)
	}
	if status, out, errs := call("-c", "../../configs/docker.toml", "-t", "nat", "-4"); status != 0 || !strings.Contains(out, "DOCKER") || strings.Contains(out, "ipv4 filter") {
		t.Errorf("exit status %d, %q, %q", status, out, errs)
	}
	os.WriteFile(rules, []byte("*filter\n-A FORWARD --nonsense\nCOMMIT\n"), 0o644)
	for want, args := range map[string][]string{
		"x.rules:2:":         {"--rules", rules},
		"sluice: stat /no/x": {"--rules", "/no/x"},
		"--format png":       {"-c", "../../configs/home.toml", "--format", "png"},
		"no table nonsense":  {"-c", "../../configs/home.toml", "-t", "nonsense"},
		"no such file":       {"-c", filepath.Join(dir, "none.toml")},
		"none of the others": {"-c", "a", "--rules", "b"},
	} {
		if status, out, errs := call(args...); status == 0 || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%v: exit status %d, %q, %q", args, status, out, errs)
		}
	}
}
