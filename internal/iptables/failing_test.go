package iptables

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// state is all that a save shows of all tables of both families.
func state(run runner) string {
	var b strings.Builder
	for _, prog := range []string{"iptables-save", "ip6tables-save"} {
		for _, table := range tableOrder {
			_, out, _ := run([]string{prog, "-c", "-t", table}, "")
			b.WriteString(out)
		}
	}
	return b.String()
}

// TestFailingRestore: whichever line of a text is wrong, nothing changes.
func TestFailingRestore(t *testing.T) {
	run := ours(newEngines())
	before := "*filter\n:INPUT DROP [1:2]\n:mine - [0:0]\n[3:4] -A INPUT -s 1.2.3.4/32 -j mine\n[5:6] -A mine -j ACCEPT\nCOMMIT\n*nat\n[7:8] -A OUTPUT -j RETURN\nCOMMIT\n"
	if code, _, e := run([]string{"iptables-restore", "-c"}, before); code != 0 {
		t.Fatal(e)
	}
	before = state(run)
	good := strings.Split("*filter\n:INPUT ACCEPT [9:9]\n:mine - [0:0]\n:new - [0:0]\n[1:1] -A INPUT -j new\n-A new -s 9.9.9.9 -j mine\n-A mine -p tcp -m tcp --dport 22 -j LOG\n-P FORWARD DROP\n-Z\nCOMMIT", "\n")
	bad := []string{"-A INPUT -j nosuch", "-A nosuch -j ACCEPT", "foo", ":INPUT", "-D INPUT -s 8.8.8.8", "-X INPUT", "[1:2 -A INPUT", "*filter", "-A INPUT -p udp -j REJECT --reject-with tcp-reset", "-A new -g new", "-t nat -F"}
	for _, options := range [][]string{nil, {"-n"}, {"-c"}, {"-n", "-c"}, {"-t"}} {
		for at := range good {
			for _, line := range bad {
				text := strings.Join(good[:at], "\n") + "\n" + line + "\n" + strings.Join(good[at:], "\n") + "\n"
				code, _, e := run(append([]string{"iptables-restore"}, options...), text)
				if at == 0 && line == "*filter" {
					continue // one that stands before the table is no mistake in itself
				}
				if code == 0 || e == "" {
					t.Errorf("%q of\n%s: exit code %d, %q", options, text, code, e)
				}
				if after := state(run); after != before {
					t.Fatalf("%q of\n%s\nmade\n%s of\n%s", options, text, after, before)
				}
			}
		}
	}
}

// TestConcurrentRestores: of restores at the same time, one is the last as a whole.
func TestConcurrentRestores(t *testing.T) {
	run := ours(newEngines())
	text := func(g int) string {
		var b strings.Builder
		b.WriteString("*filter\n")
		for i := range 20 {
			fmt.Fprintf(&b, ":c%d - [0:0]\n-A INPUT -s 10.%d.0.%d/32 -j c%d\n", i, g, i, i)
		}
		return b.String()
	}
	const restorers = 8
	var wg sync.WaitGroup
	for g := range restorers {
		wg.Go(func() {
			for range 20 {
				if code, _, e := run([]string{"iptables-restore"}, text(g)+"COMMIT\n"); code != 0 {
					t.Error(e)
				}
				if code, _, _ := run([]string{"iptables-restore"}, text(g)+"-A INPUT -j nosuch\nCOMMIT\n"); code != 2 {
					t.Errorf("a restore that has to fail: %d", code)
				}
				_, list, _ := run([]string{"iptables", "-S", "INPUT"}, "")
				rules := strings.Split(strings.TrimSpace(list), "\n")[1:]
				if len(rules) != 20 {
					t.Errorf("a torn ruleset:\n%s", list)
					return
				}
				_, who, _ := strings.Cut(rules[0], "-s 10.")
				who, _, _ = strings.Cut(who, ".")
				if n := strings.Count(list, "-s 10."+who+".0."); n != 20 {
					t.Errorf("rules of several restores:\n%s", list)
				}
			}
		})
	}
	wg.Wait()
}

// TestCommentsSurvive: what comments.golden has is the same after a restore of its save.
func TestCommentsSurvive(t *testing.T) {
	run, again := ours(newEngines()), ours(newEngines())
	for _, s := range readTranscript(t, filepath.Join("testdata", "cmd", "comments.golden")) {
		run(s.argv, "")
	}
	_, saved, _ := run([]string{"iptables-save"}, "")
	if code, _, e := again([]string{"iptables-restore"}, saved); code != 0 {
		t.Fatal(e)
	}
	_, twice, _ := again([]string{"iptables-save"}, "")
	sameText(t, "saved again", twice, saved)
}
