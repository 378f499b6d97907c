package ipset

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"sluice/tables/ipset"
)

func saved(s *ipset.Sets) string { return ours(s, "", "save", "-s").out }

// script gives f the command lines and standard inputs of testdata/commands.
func script(f *testing.F, line func(string), input func(string)) {
	text, err := os.ReadFile("testdata/commands")
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range strings.Split(string(text), "\n") {
		if in, ok := strings.CutPrefix(l, "<"); ok {
			input(strings.ReplaceAll(in, `\n`, "\n"))
		} else {
			line(l)
		}
	}
}

// fixedPoint restores what sets save into none, and wants the same saved again,
// unless times run.
func fixedPoint(t *testing.T, sets *ipset.Sets) {
	t.Helper()
	for _, r := range sets.Refs() {
		if r.Name() == "" || strings.ContainsAny(r.Name(), " \t\r\n\v\f\"") {
			return // the format has no way to write that down
		}
	}
	text := saved(sets)
	again := ipset.New(nil)
	if res := ours(again, text, "restore"); res.status != 0 {
		t.Fatalf("%q does not restore: %s", text, res.err)
	}
	if got := saved(again); got != text && !strings.Contains(text, " timeout ") {
		t.Fatalf("saved\n%q\nthen\n%q", text, got)
	}
}

// long takes minutes, in Linux as well: each of its elements is looked for.
const long = "create h hash:ip,port\ndel -! h 10.0.0.0/16,0-65535\n"

// briefly is ours for what a fuzzer makes; ok: it did not take long.
func briefly(sets *ipset.Sets, stdin string, args ...string) (res result, ok bool) {
	stop := make(chan struct{})
	late := time.AfterFunc(200*time.Millisecond, func() { close(stop) })
	res = oursIn(noFiles, stop, sets, stdin, args...)
	return res, late.Stop()
}

// offline has names not looked up: a server may let the fuzzer wait for seconds.
func offline(f *testing.F) {
	was := net.DefaultResolver
	f.Cleanup(func() { net.DefaultResolver = was })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }}
}

// FuzzRestore: whatever restores, or fails half-way, saves to what restores to
// the same.
func FuzzRestore(f *testing.F) {
	offline(f)
	var all strings.Builder
	script(f, func(l string) { all.WriteString(l + "\n"); f.Add(l + "\n") }, func(in string) { f.Add(in) })
	for _, t := range ipset.Types() {
		f.Add("create a " + t.Name + " counters comment\nadd a 1.1.1.1\nadd a 1.1.1.1,80\nadd a 1.1.1.0/24\n")
	}
	f.Add(long)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 || huge(text) {
			return
		}
		sets := ipset.New(nil)
		res, ok := briefly(sets, text, "restore")
		if !ok {
			return
		}
		if res.status != 0 && res.err == "" && !quiet(text) {
			t.Fatalf("%q: status %d without a word", text, res.status)
		}
		fixedPoint(t, sets)
	})
}

// FuzzCommand: no command line panics; one that fails changes nothing, if it
// names no range of elements and reads no others.
func FuzzCommand(f *testing.F) {
	offline(f)
	script(f, func(l string) { f.Add(l, "") }, func(in string) { f.Add("restore", in) })
	f.Add("restore", long)
	f.Fuzz(func(t *testing.T, line, stdin string) {
		args := shell(line)
		if huge(line) || huge(stdin) || len(line) > 1024 || len(stdin) > 1024 {
			return
		}
		sets := ipset.New(nil)
		ours(sets, "create a hash:ip\nadd a 1.1.1.1\ncreate n hash:net comment\nadd n 10.0.0.0/8 comment x\ncreate l list:set\nadd l a\n", "restore")
		before := saved(sets)
		res, ok := briefly(sets, stdin, args...)
		if !ok {
			return
		}
		if many := strings.ContainsAny(line, "/-"); res.status != 0 && !many && stdin == "" && saved(sets) != before {
			t.Fatalf("%q fails and makes of\n%s\n%s", args, before, saved(sets))
		}
		fixedPoint(t, sets)
	})
}

// huge says that a text may name more elements than a fuzzer has time for.
func huge(s string) bool {
	for _, w := range []string{"/", "-", "hashsize", "bucketsize", "range", "size"} {
		if strings.Contains(s, w) && len(s) > 600 {
			return true
		}
	}
	return false
}

// quiet says that a text may ask for no messages.
func quiet(s string) bool { return strings.Contains(s, "-q") }
