package iptables

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"sluice/packet"
	"sluice/tables"
)

// TestConcurrent edits from several goroutines while others list and save.
func TestConcurrent(t *testing.T) {
	en := newEngines()
	run := ours(en)
	must := func(stdin string, argv ...string) string {
		code, out, e := run(argv, stdin)
		if code != 0 {
			t.Errorf("%q: %d %s", argv, code, e)
		}
		return out
	}
	const editors, rules = 6, 40
	var wg sync.WaitGroup
	for g := range editors {
		wg.Go(func() {
			chain := fmt.Sprintf("c%d", g)
			must("", "iptables", "-N", chain)
			for i := range rules {
				must("", "iptables", "-A", chain, "-s", fmt.Sprintf("10.%d.0.%d", g, i), "-j", "ACCEPT")
				must("", "iptables", "-A", "FORWARD", "-s", fmt.Sprintf("10.%d.0.%d", g, i), "-j", chain)
				if i%2 == 1 {
					must("", "iptables", "-D", chain, "-s", fmt.Sprintf("10.%d.0.%d", g, i), "-j", "ACCEPT")
				}
			}
			must(fmt.Sprintf("*filter\n:%s - [0:0]\n-A %[1]s -j DROP\nCOMMIT\n", chain+"r"), "iptables-restore", "-n")
		})
	}
	for range 3 {
		wg.Go(func() {
			for range rules {
				must("", "iptables", "-L", "-v", "-n", "-Z")
				save := must("", "iptables-save", "-c")
				if save != "" && !strings.HasSuffix(save, "COMMIT\n# Completed on DATE\n") {
					t.Errorf("a torn save:\n%s", save)
				}
			}
		})
	}
	wg.Wait()
	if n := strings.Count(must("", "iptables", "-S", "FORWARD"), "-A FORWARD"); n != editors*rules {
		t.Errorf("FORWARD has %d rules, want %d", n, editors*rules)
	}
	for g := range editors {
		if n := strings.Count(must("", "iptables", "-S", fmt.Sprintf("c%d", g)), "-A "); n != rules/2 {
			t.Errorf("chain c%d has %d rules, want %d", g, n, rules/2)
		}
		if s := must("", "iptables", "-S", fmt.Sprintf("c%dr", g)); !strings.Contains(s, "-j DROP") {
			t.Errorf("chain c%dr: %s", g, s)
		}
	}
}

func manyRules(n int) string {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:many - [0:0]\n")
	for i := range n {
		fmt.Fprintf(&b, "-A many -s 10.%d.%d.%d/32 -p tcp -m tcp --dport %d -j ACCEPT\n", i>>16&255, i>>8&255, i&255, i%65536)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// TestEditCostsWhatItTouches holds that an append to a long chain does not
// allocate in proportion to the chain.
func TestEditCostsWhatItTouches(t *testing.T) {
	if testing.Short() {
		t.Skip("loads 100,000 rules")
	}
	en := newEngines()
	run := ours(en)
	if code, _, e := run([]string{"iptables-restore"}, manyRules(100_000)); code != 0 {
		t.Fatal(e)
	}
	edit := func(argv ...string) {
		if code, _, e := run(argv, ""); code != 0 {
			t.Fatalf("%q: %s", argv, e)
		}
	}
	edit("iptables", "-A", "many", "-j", "DROP") // grows the slice, once
	const n = 100
	for _, c := range []struct {
		what string
		argv []string
	}{
		{"append to the long chain", []string{"iptables", "-A", "many", "-j", "DROP"}},
		{"append to another chain", []string{"iptables", "-A", "INPUT", "-j", "DROP"}},
		{"append in another table", []string{"iptables", "-t", "mangle", "-A", "INPUT", "-j", "ACCEPT"}},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			edit(c.argv...)
		}
		runtime.ReadMemStats(&after)
		if per := (after.TotalAlloc - before.TotalAlloc) / n; per > 100_000 {
			t.Errorf("%s: %d bytes allocated each, the chain's %d rules are copied or walked", c.what, per, 100_000)
		}
	}
	if got := len(en.V4.Ruleset().Table(tables.Filter).Chain("many").Rules()); got != 100_000+1+n {
		t.Errorf("%d rules", got)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			run := ours(newEngines())
			if code, _, e := run([]string{"iptables-restore"}, manyRules(n)); code != 0 {
				b.Fatal(e)
			}
			b.ReportAllocs()
			for b.Loop() {
				if code, _, e := run([]string{"iptables", "-A", "many", "-s", "1.2.3.4", "-j", "DROP"}, ""); code != 0 {
					b.Fatal(e)
				}
			}
		})
	}
}

func BenchmarkRestore(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		text := manyRules(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if code, _, e := ours(newEngines())([]string{"iptables-restore"}, text); code != 0 {
					b.Fatal(e)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/rule")
		})
	}
}

func BenchmarkReload(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		lines := script(manyRules(n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			en := newEngines()
			for b.Loop() {
				if err := en.Load(packet.IPv4, lines); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/rule")
		})
	}
}
