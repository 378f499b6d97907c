package iptables

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/tables"
)

// slowRules are restores made to take long, by the number of lines or so.
var slowRules = []struct {
	name    string
	refused string // "": it loads
	make    func(b *strings.Builder, n int)
}{
	{"many chains", "", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, ":c%d - [0:0]\n", i)
		}
	}},
	{"many rules that call a chain each", "", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, ":c%d - [0:0]\n", i)
		}
		for i := range n {
			fmt.Fprintf(b, "-A INPUT -j c%d\n", i)
		}
	}},
	{"many rules that call one chain", "", func(b *strings.Builder, n int) {
		b.WriteString(":c - [0:0]\n")
		for i := range n {
			fmt.Fprintf(b, "-A INPUT -s 10.%d.%d.%d -j c\n", i>>16, i>>8&255, i&255)
		}
	}},
	{"deep jumps", "", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, ":c%d - [0:0]\n", i)
		}
		b.WriteString("-A INPUT -j c0\n")
		for i := range n - 1 {
			fmt.Fprintf(b, "-A c%d -j c%d\n", i, i+1)
		}
	}},
	{"more ways than can be counted", "", func(b *strings.Builder, n int) {
		for i := range n + 2 {
			fmt.Fprintf(b, ":c%d - [0:0]\n", i)
		}
		b.WriteString("-A INPUT -j c0\n")
		for i := range n {
			fmt.Fprintf(b, "-A c%d -j c%d\n-A c%d -p tcp -j c%d\n-A c%d -j c%d\n", i, i+1, i, i+1, i, i+2)
		}
	}},
	{"a long cycle", "line %d failed", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, ":c%d - [0:0]\n", i)
		}
		b.WriteString("-A INPUT -j c0\n")
		for i := range n {
			fmt.Fprintf(b, "-A c%d -j c%d\n", i, (i+1)%n)
		}
	}},
	{"inserts at the beginning", "", func(b *strings.Builder, n int) {
		for range n {
			b.WriteString("-I INPUT -j ACCEPT\n")
		}
	}},
	{"inserts and deletes at both ends", "", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, "-A INPUT -j ACCEPT\n-I INPUT 2 -j DROP\n")
			if i%2 == 0 {
				b.WriteString("-D INPUT 1\n")
			}
		}
	}},
	{"rules of many matches", "", func(b *strings.Builder, n int) {
		for i := range n / 50 {
			fmt.Fprintf(b, "-A INPUT%s -j ACCEPT\n", strings.Repeat(fmt.Sprintf(" -m mark --mark %d", i), 60))
		}
	}},
	{"one address by many ways", "", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, "-A INPUT -s 10.0.0.0/%d -p tcp -m multiport --dports %d:%d,%d -j ACCEPT\n", 1+i%32, i%60000, i%60000+77, i%7)
		}
	}},
	{"lists of addresses", "", func(b *strings.Builder, n int) {
		for i := range n / 100 {
			fmt.Fprintf(b, "-A INPUT -s 10.1.1.1,10.1.1.2,10.1.1.3,10.1.1.4,10.1.1.5,10.1.1.6,10.1.1.7,10.1.1.8,10.1.1.9,10.%d.%d.0/24 -d 10.2.0.1,10.2.0.2,10.2.0.3,10.2.0.4,10.2.0.5,10.2.0.6,10.2.0.7,10.2.0.8,10.2.0.9,10.2.0.10 -j ACCEPT\n", i>>8&255, i&255)
		}
	}},
	{"renames of chains with callers", "", func(b *strings.Builder, n int) {
		for i := range n {
			fmt.Fprintf(b, ":c%d - [0:0]\n", i)
		}
		for i := range n {
			fmt.Fprintf(b, "-A INPUT -j c%d\n", i)
		}
		for i := range n {
			fmt.Fprintf(b, "-E c%d d%d\n", i, i)
		}
	}},
	{"many tables", "", func(b *strings.Builder, n int) {
		for range n {
			b.WriteString("COMMIT\n*filter\n")
		}
	}},
}

// TestSlowRules: rules that are made to be slow load with work that grows with
// their number, or are refused after such.
func TestSlowRules(t *testing.T) {
	if testing.Short() {
		t.Skip("loads large rulesets")
	}
	for _, c := range slowRules {
		t.Run(c.name, func(t *testing.T) {
			linear(t, func(n int) func() {
				var b strings.Builder
				b.WriteString("*filter\n")
				c.make(&b, n)
				b.WriteString("COMMIT\n")
				text, en := b.String(), newEngines()
				return func() {
					code, _, errs := ours(en)([]string{"iptables-restore"}, text)
					if want := c.refused; want == "" && code != 0 || want != "" && (code != 1 || !strings.Contains(errs, fmt.Sprintf(want, strings.Count(text, "\n")))) {
						t.Fatalf("%d: status %d, %s", n, code, errs)
					}
				}
			})
		})
	}
}

// linear fails if what prepare(n) gives does quadratic work. The thread's
// processor time stands for it, the least of some runs, without the collector,
// which takes of it what it likes: eight times the size may cost thirty times as
// much, and what is quadratic costs sixty-four. Other load can only add to a run,
// so that it is repeated, both sizes in turn, until one round shows that the work
// is linear; what is not never does.
func linear(t *testing.T, prepare func(n int) (run func())) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	const n, rounds = 2500, 20
	cost := func(n int) time.Duration {
		run := prepare(n)
		runtime.GC()
		begin := threadTime()
		run()
		return threadTime() - begin
	}
	small, large := time.Duration(1<<62), time.Duration(1<<62)
	for range rounds {
		for range 3 {
			small = min(small, cost(n))
		}
		if large = min(large, cost(8*n)); large <= 30*small {
			return
		}
	}
	t.Errorf("%d take %v, %d take %v", n, small, 8*n, large)
}

// threadTime is the processor time that the calling thread has had.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// TestReloadIsLinear: a configuration of which every second rule is another one
// replaces a long chain without moving it rule by rule.
func TestReloadIsLinear(t *testing.T) {
	if testing.Short() {
		t.Skip("loads large rulesets")
	}
	linear(t, func(n int) func() {
		text := func(odd string) string {
			var b strings.Builder
			b.WriteString("*filter\n")
			for i := range n {
				to := "ACCEPT"
				if i%2 == 1 {
					to = odd
				}
				fmt.Fprintf(&b, "-A INPUT -s 10.%d.%d.%d -j %s\n", i>>16, i>>8&255, i&255, to)
			}
			b.WriteString("COMMIT\n")
			return b.String()
		}
		one, two, en := script(text("DROP")), script(text("RETURN")), newEngines()
		return func() {
			for _, s := range [][]Line{one, two} {
				if err := en.Load(4, s); err != nil {
					t.Fatal(err)
				}
			}
			if rules := en.V4.Ruleset().Table(tables.Filter).Chain("INPUT").Rules(); len(rules) != n || rules[1].Verdict != tables.VerdictReturn {
				t.Fatalf("%d rules", len(rules))
			}
		}
	})
}

// TestTooLong: lines and lists without end are refused, not gathered.
func TestTooLong(t *testing.T) {
	run := ours(newEngines())
	if code, _, errs := run([]string{"iptables-restore"}, "*filter\n-A INPUT "+strings.Repeat("x", maxLine)+"\nCOMMIT\n"); code != 2 || !strings.Contains(errs, "Error occurred at line: 2\n") {
		t.Errorf("%d %s", code, errs)
	}
	list := "10.0.0.0"
	for i := range 300 {
		list += fmt.Sprintf(",10.0.%d.%d", i>>8, i&255)
	}
	if code, _, errs := run([]string{"iptables", "-A", "INPUT", "-s", list, "-d", list}, ""); code != 2 || !strings.Contains(errs, "more than 65536 rules") {
		t.Errorf("%d %s", code, errs)
	}
}

// TestManyMatches: a rule has as many matches as the kernel has room for, and no more.
func TestManyMatches(t *testing.T) {
	args := []string{"iptables", "-A", "INPUT"}
	for range 100_000 {
		args = append(args, "-m", "mark", "--mark", "1")
	}
	run := ours(newEngines())
	if code, _, errs := run(args, ""); code != 2 || !strings.Contains(errs, "at most 2048 matches") {
		t.Errorf("%d %s", code, errs)
	}
	if code, _, errs := run(args[:3+4*2048], ""); code != 0 {
		t.Errorf("%d %s", code, errs)
	}
}

// TestRenamesAndRules: who renames chains and changes rules in turn is told so
// before that takes long.
func TestRenamesAndRules(t *testing.T) {
	if testing.Short() {
		t.Skip("loads large rulesets")
	}
	var b strings.Builder
	b.WriteString("*filter\n:a - [0:0]\n")
	for range 20_000 {
		b.WriteString("-A INPUT -j a\n-E a b\n-A INPUT -j b\n-E b a\n")
	}
	b.WriteString("COMMIT\n")
	en := newEngines()
	if code, _, errs := ours(en)([]string{"iptables-restore"}, b.String()); code != 1 || !strings.Contains(errs, "failed: Too many renames and other edits at once.") {
		t.Errorf("%d %s", code, errs)
	}
	if n := len(en.V4.Ruleset().Table(tables.Filter).Chain("INPUT").Rules()); n != 0 {
		t.Errorf("%d rules", n)
	}
}

// TestSaveStreams: what is saved goes out as it is printed, and memory for it
// does not grow with the rules but for their counters.
func TestSaveStreams(t *testing.T) {
	const n = 50_000
	en := newEngines()
	if code, _, e := ours(en)([]string{"iptables-restore"}, manyRules(n)); code != 0 {
		t.Fatal(e)
	}
	var before, after runtime.MemStats
	largest := 0
	runtime.ReadMemStats(&before)
	code := Run(en, []string{"iptables-save", "-c"}, nil, writerFunc(func(p []byte) (int, error) {
		largest = max(largest, len(p))
		return len(p), nil
	}), io.Discard)
	runtime.ReadMemStats(&after)
	if code != 0 || largest > 2*sinkSize {
		t.Errorf("status %d, %d bytes at once", code, largest)
	}
	if per := (after.TotalAlloc - before.TotalAlloc) / n; per > 24 {
		t.Errorf("%d bytes allocated for each rule", per)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestSlowReader: who does not read what is printed keeps nobody from editing.
func TestSlowReader(t *testing.T) {
	en := newEngines()
	if code, _, e := ours(en)([]string{"iptables-restore"}, manyRules(5000)); code != 0 {
		t.Fatal(e)
	}
	for _, argv := range [][]string{{"iptables-save"}, {"iptables", "-S"}, {"iptables", "-L", "-n", "-Z"}} {
		stuck, free, done := make(chan struct{}, 100), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			Run(en, argv, nil, writerFunc(func(p []byte) (int, error) {
				stuck <- struct{}{}
				<-free
				return len(p), nil
			}), io.Discard)
		}()
		<-stuck
		var errs bytes.Buffer
		if code := Run(en, []string{"iptables", "-A", "INPUT", "-j", "ACCEPT"}, nil, io.Discard, &errs); code != 0 {
			t.Errorf("%q: %s", argv, errs.String())
		}
		close(free)
		<-done
	}
}
