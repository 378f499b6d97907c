package ext

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/tables"
)

var (
	update = flag.Bool("update", false, "rewrite testdata/*.txtar with what the real iptables says (root, iptables 1.8.9)")
	only   = flag.String("only", "*", "the files of testdata to look at")
)

// A section of a file in testdata is named "KIND [ip6] [TABLE CHAIN]"; its lines
// are "rule text | expectation".
//
//	accept  what -S prints after "-A CHAIN "; several rules with " ; " between
//	reject  the whole error after "iptables v1.8.9 (nf_tables): ", newlines as \n
//	list    what -nL prints after the addresses, " | ", what -L does
//	refuse  what iptables-legacy says after "iptables: " where the kernel refuses
//
// A line that begins with "~" is sluice's own: there it differs on purpose. One
// that begins with "$ " is a rule that has to be there, in chain PREROUTING of
// table raw, for those behind it.
type section struct {
	kind   string
	family uint8
	table  tables.TableID
	chain  string
}

func parseSection(t *testing.T, name string) section {
	s := section{family: packet.IPv4, table: tables.Filter, chain: "INPUT"}
	w := strings.Fields(name)
	s.kind, w = w[0], w[1:]
	if len(w) > 0 && w[0] == "ip6" {
		s.family, w = packet.IPv6, w[1:]
	}
	if len(w) == 2 {
		var ok bool
		if s.table, ok = tables.TableByName(w[0]); !ok {
			t.Fatalf("section %q: no such table", name)
		}
		s.chain = w[1]
	}
	return s
}

type line struct {
	input, want string
	own         bool
}

func parseLine(text string) (l line, ok bool) {
	if strings.TrimSpace(text) == "" || strings.HasPrefix(text, "$ ") {
		return l, false
	}
	text, l.own = strings.CutPrefix(text, "~")
	l.input, l.want, _ = strings.Cut(text, "| ")
	l.input = strings.TrimSpace(l.input)
	return l, true
}

// ours is what sluice says to one line.
func (s section) ours(t *testing.T, input string, before []string) string {
	rules, err := tables.ParseRule(Registry, s.family, s.table, s.chain, packettest.Words(input))
	if err != nil {
		var e *tables.Error
		if !errors.As(err, &e) {
			return "ERROR " + err.Error()
		}
		msg := e.Msg
		if e.Before != "" {
			msg = e.Before + "\n" + msg
		}
		return "! " + msg
	}
	switch s.kind {
	case "list":
		return strings.TrimPrefix(rules[0].ListExtras(true), " ") + " | " + strings.TrimPrefix(rules[0].ListExtras(false), " ")
	case "refuse":
		e := tables.NewEngine(s.family, &tables.Env{CT: conntrack.New(sysctl.NewSet(), conntrack.Options{})})
		for _, text := range before {
			s.prepare(t, e, text)
		}
		err := e.Commit(func(rs *tables.Ruleset) error { return rs.Table(s.table).Append(s.chain, rules[0]) })
		var ee *tables.EditError
		if !errors.As(err, &ee) {
			return "accepted"
		}
		return ee.Text()
	}
	var out []string
	for _, r := range rules {
		out = append(out, strings.TrimPrefix(r.Save(), " "))
	}
	return strings.Join(out, " ; ")
}

// prepare adds a "$ " line's rule to e.
func (s section) prepare(t *testing.T, e *tables.Engine, text string) {
	spec, ok := strings.CutPrefix(text, "$ ")
	if !ok {
		return
	}
	rules, err := tables.ParseRule(Registry, s.family, tables.Raw, "PREROUTING", packettest.Words(spec))
	if err == nil {
		err = e.Commit(func(rs *tables.Ruleset) error { return rs.Table(tables.Raw).Append("PREROUTING", rules[0]) })
	}
	if err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

func (s section) check(t *testing.T, l line, before []string) {
	got, want := s.ours(t, l.input, before), l.want
	if s.kind == "reject" {
		want = "! " + strings.ReplaceAll(want, `\n`, "\n")
	}
	if got != want {
		t.Errorf("%s %s\n got %q\nwant %q", s.kind, l.input, got, want)
	}
}

func files(t *testing.T) []string {
	names, err := filepath.Glob("testdata/" + *only + ".txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no testdata", err)
	}
	return names
}

func TestText(t *testing.T) {
	for _, name := range files(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range a.Files {
				s := parseSection(t, f.Name)
				var before []string
				for _, text := range strings.Split(string(f.Data), "\n") {
					if l, ok := parseLine(text); ok {
						s.check(t, l, before)
					} else {
						before = append(before, text)
					}
				}
			}
		})
	}
}

// TestSaveFixedPoint holds that what is printed reads back as the same rule.
func TestSaveFixedPoint(t *testing.T) {
	for _, name := range files(t) {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			s := parseSection(t, f.Name)
			if s.kind != "accept" && s.kind != "list" {
				continue
			}
			for _, text := range strings.Split(string(f.Data), "\n") {
				l, ok := parseLine(text)
				if !ok {
					continue
				}
				rules, err := tables.ParseRule(Registry, s.family, s.table, s.chain, packettest.Words(l.input))
				if err != nil {
					continue // TestText says so
				}
				for _, r := range rules {
					again, err := tables.ParseRule(Registry, s.family, s.table, s.chain, packettest.Words(r.Save()))
					if err != nil || len(again) != 1 {
						t.Errorf("%s: %s does not read back: %v", name, r.Save(), err)
					} else if again[0].Save() != r.Save() {
						t.Errorf("%s: %s reads back as %s", name, r.Save(), again[0].Save())
					}
				}
			}
		}
	}
}

// programs are the family's iptables, of both kinds.
func (s section) programs() []string {
	if s.family == packet.IPv6 {
		return []string{"ip6tables", "ip6tables-legacy"}
	}
	return []string{"iptables", "iptables-legacy"}
}

// theirs is what the real iptables says to one line, in a namespace of its own.
func (s section) theirs(t *testing.T, input string) string {
	prog := map[uint8]string{packet.IPv4: "iptables", packet.IPv6: "ip6tables"}[s.family]
	run := func(prog string, args ...string) (string, string, bool) {
		var out, errs bytes.Buffer
		c := exec.Command(prog, append([]string{"-t", s.table.String()}, args...)...)
		c.Stdout, c.Stderr = &out, &errs
		err := c.Run()
		return out.String(), errs.String(), err == nil
	}
	if s.kind == "refuse" {
		_, msg, ok := run(prog+"-legacy", append([]string{"-A", s.chain}, packettest.Words(input)...)...)
		run(prog+"-legacy", "-F")
		if ok {
			return "accepted"
		}
		msg = strings.TrimPrefix(strings.TrimSuffix(msg, "\n"), prog+": ")
		return strings.TrimSuffix(msg, ".")
	}
	run(prog, "-F")
	_, msg, ok := run(prog, append([]string{"-A", s.chain}, packettest.Words(input)...)...)
	if !ok {
		msg = strings.ReplaceAll(msg, prog+" v1.8.9 (nf_tables): ", "")
		msg, _, _ = strings.Cut(msg, "\nTry `")
		return "! " + msg
	}
	if s.kind == "list" {
		var both []string
		for _, opt := range []string{"-nL", "-L"} {
			out, _, _ := run(prog, opt, s.chain)
			rows := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			row := rows[len(rows)-1]
			for _, any := range []string{"0.0.0.0/0", "::/0", "anywhere"} {
				if i := strings.LastIndex(row, any+strings.Repeat(" ", 20-len(any))); i >= 0 {
					row = row[i+20:]
					break
				}
			}
			both = append(both, strings.TrimPrefix(row, " "))
		}
		return strings.Join(both, " | ")
	}
	out, _, _ := run(prog, "-S", s.chain)
	var rules []string
	for _, row := range strings.Split(out, "\n") {
		if r, ok := strings.CutPrefix(row, "-A "+s.chain); ok {
			rules = append(rules, strings.TrimPrefix(r, " "))
		}
	}
	return strings.Join(rules, " ; ")
}

// TestTextIsTrue compares the files with the real iptables, so that they stay true.
func TestTextIsTrue(t *testing.T) {
	if testing.Short() {
		t.Skip("starts iptables some thousand times")
	}
	if v, err := exec.Command("iptables", "--version").Output(); os.Getuid() != 0 || err != nil || strings.TrimSpace(string(v)) != "iptables v1.8.9 (nf_tables)" {
		t.Skip("needs root and iptables 1.8.9")
	}
	done := make(chan struct{})
	go func() { // a thread of its own, which ends with its namespace
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Log("cannot make a network namespace:", err)
			return
		}
		for _, name := range files(t) {
			compare(t, name)
		}
	}()
	<-done
}

func compare(t *testing.T, name string) {
	a, err := txtar.ParseFile(name)
	if err != nil {
		t.Error(err)
		return
	}
	for i := range a.Files {
		f := &a.Files[i]
		s := parseSection(t, f.Name)
		var out strings.Builder
		for _, text := range strings.Split(strings.TrimSuffix(string(f.Data), "\n"), "\n") {
			l, ok := parseLine(text)
			if spec, ok := strings.CutPrefix(text, "$ "); ok {
				for _, prog := range s.programs() {
					exec.Command(prog, append([]string{"-t", "raw", "-A", "PREROUTING"}, packettest.Words(spec)...)...).Run()
				}
			}
			if !ok || l.own {
				out.WriteString(text + "\n")
				continue
			}
			got := s.theirs(t, l.input)
			if s.kind == "reject" {
				got = strings.TrimPrefix(got, "! ")
			}
			got = strings.ReplaceAll(got, "\n", `\n`)
			if got != l.want && !*update {
				t.Errorf("%s: %s %s\nfile %q\nreal %q", name, s.kind, l.input, l.want, got)
			}
			out.WriteString(l.input + " | " + got + "\n")
		}
		f.Data = []byte(out.String())
		for _, prog := range s.programs() {
			exec.Command(prog, "-t", "raw", "-F").Run()
		}
	}
	if *update {
		if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
			t.Error(err)
		}
	}
}
