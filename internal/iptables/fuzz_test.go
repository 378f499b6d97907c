package iptables

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/tables"
)

var plainName = regexp.MustCompile(`^[A-Za-z0-9_.+/:@]+$`)

// printable reports whether a ruleset has only names that the save format can
// carry: it quotes neither blanks in names of chains and interfaces nor line
// ends in comments, and a line has at most 255 words.
func printable(e *tables.Engine) bool {
	for id := range tables.NumTables {
		for _, ch := range e.Ruleset().Table(id).Chains() {
			if !plainName.MatchString(ch.Name) {
				return false
			}
			for _, r := range ch.Rules() {
				text := r.Save()
				if strings.ContainsAny(text, "\n\x00") || len(text) > 1000 {
					return false
				}
				for _, name := range []string{r.In, r.Out} {
					if name != "" && !plainName.MatchString(name) {
						return false
					}
				}
			}
		}
	}
	return true
}

// FuzzRestore: what restores, saves; what was saved restores to the same. What
// fails leaves all tables as its COMMITs before that made them.
func FuzzRestore(f *testing.F) {
	data, err := os.ReadFile("testdata/rulesets/docker.rules")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data), false)
	for _, name := range transcripts(f) {
		for _, s := range readTranscript(f, name) {
			if s.stdin != "" {
				f.Add(s.stdin, strings.HasPrefix(s.argv[0], "ip6"))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string, v6 bool) {
		if len(text) > 1<<13 {
			return
		}
		prog := "iptables"
		if v6 {
			prog = "ip6tables"
		}
		first := fuzzEngines(t)
		code, _, _ := ours(first)([]string{prog + "-restore", "-c"}, text)
		if code < 0 || code > 4 {
			t.Fatalf("exit code %d", code)
		}
		if code != 0 {
			run, rest, failed := ours(fuzzEngines(t)), text, 0
			for failed == 0 && strings.Contains(rest, "\nCOMMIT\n") {
				var part string
				part, rest, _ = strings.Cut(rest, "\nCOMMIT\n")
				failed, _, _ = run([]string{prog + "-restore", "-c"}, part+"\nCOMMIT\n")
			}
			if got, want := state(ours(first)), state(run); got != want {
				t.Fatalf("a failure left\n%s\nnot\n%s", got, want)
			}
		}
		e := first.engine(packet.IPv4)
		if v6 {
			e = first.engine(packet.IPv6)
		}
		if !printable(e) {
			return
		}
		_, saved, _ := ours(first)([]string{prog + "-save", "-c"}, "")
		second := newEngines()
		if code, out, e := ours(second)([]string{prog + "-restore", "-c"}, saved); code != 0 {
			t.Fatalf("%s does not restore: %d %s%s\nit came from %s", saved, code, out, e, text)
		}
		if _, again, _ := ours(second)([]string{prog + "-save", "-c"}, ""); again != saved {
			t.Fatalf("saved\n%s\nsaved again\n%s\nit came from %s", saved, again, text)
		}
	})
}

// What the fuzz targets' texts and command lines meet, by family.
const (
	fuzzStart  = "*filter\n:a - [0:0]\n:b - [0:0]\n[1:2] -A INPUT -j a\n[3:4] -A INPUT -s 1.2.3.4\n-A a -j b\nCOMMIT\n"
	fuzzStart6 = "*nat\n:PREROUTING ACCEPT [5:6]\n[7:8] -A POSTROUTING -p tcp -j MASQUERADE\nCOMMIT\n*filter\n:a - [0:0]\n[1:2] -A FORWARD -g a\nCOMMIT\n"
)

// fuzzEngines has rules of both families.
func fuzzEngines(t *testing.T) Engines {
	en := newEngines()
	for prog, text := range map[string]string{"iptables-restore": fuzzStart, "ip6tables-restore": fuzzStart6} {
		if code, _, e := ours(en)([]string{prog, "-c"}, text); code != 0 {
			t.Fatal(e)
		}
	}
	return en
}

// FuzzCommand: no command line upsets the program, and one that fails changes nothing.
func FuzzCommand(f *testing.F) {
	for _, name := range transcripts(f) {
		for _, s := range readTranscript(f, name) {
			if s.stdin == "" {
				f.Add(s.line)
			}
		}
	}
	f.Fuzz(func(t *testing.T, line string) {
		argv, err := shellWords(line)
		if err != nil || len(argv) == 0 {
			return
		}
		run := ours(fuzzEngines(t))
		before := state(run)
		code, _, stderr := run(argv, "")
		if code != 0 && state(run) != before {
			t.Fatalf("%q: exit code %d, and left\n%s", argv, code, state(run))
		}
		if code < 0 || code > 4 {
			t.Fatalf("%q: exit code %d", argv, code)
		}
		if code != 0 && stderr == "" {
			t.Fatalf("%q: exit code %d without a word", argv, code)
		}
	})
}
