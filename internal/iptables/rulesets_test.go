package iptables

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The rulesets of real machines in testdata/rulesets: X.save is what the real
// iptables-save -c prints after iptables-restore of X.rules, X.list what
// iptables -L -nv prints of the tables filter and nat.

func rulesets(t *testing.T) []string {
	names, err := filepath.Glob("testdata/rulesets/*.rules")
	if err != nil || len(names) != 5 {
		t.Fatalf("want five rulesets, have %v, %v", names, err)
	}
	return names
}

type runner func(argv []string, stdin string) (code int, stdout, stderr string)

// load restores a ruleset and gives what save and list print of it.
func load(t *testing.T, run runner, name string) (save, list string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if code, out, e := run([]string{"iptables-restore"}, string(text)); code != 0 || out+e != "" {
		t.Errorf("iptables-restore of %s: exit code %d, %q, %q", name, code, out, e)
	}
	if code, out, e := run([]string{"iptables-save", "-c"}, ""); code == 0 && e == "" {
		save = out
	} else {
		t.Errorf("iptables-save -c: exit code %d, %q", code, e)
	}
	for _, table := range []string{"filter", "nat"} {
		code, out, e := run([]string{"iptables", "-t", table, "-L", "-nv"}, "")
		if code != 0 || e != "" {
			t.Errorf("iptables -t %s -L: exit code %d, %q", table, code, e)
		}
		list += out
	}
	return save, list
}

func sameText(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := 0; i < len(g) || i < len(w); i++ {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b || i >= len(g) || i >= len(w) {
			t.Errorf("%s, line %d:\n got %q\nwant %q", what, i+1, a, b)
			return
		}
	}
}

func golden(t *testing.T, name, ext string) string {
	t.Helper()
	data, err := os.ReadFile(strings.TrimSuffix(name, ".rules") + ext)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestReferenceRulesets holds the recorded rulesets against the real program.
func TestReferenceRulesets(t *testing.T) {
	needReference(t)
	for _, name := range rulesets(t) {
		var save, list string
		inNamespace(t, func() { save, list = load(t, reference, name) })
		if *update {
			base := strings.TrimSuffix(name, ".rules")
			if err := os.WriteFile(base+".save", []byte(save), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(base+".list", []byte(list), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sameText(t, name+" saved", save, golden(t, name, ".save"))
		sameText(t, name+" listed", list, golden(t, name, ".list"))
	}
}
