package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/internal/iptables"
	"sluice/packet"
	"sluice/router"
)

// answer is what a program leaves behind.
type answer struct {
	code        int
	stdout, err string
}

// first is the exit code and the first line of the error, also behind a warning. Which variant spoke
// is left out.
func (a answer) first() string {
	l, more, _ := strings.Cut(a.err, "\n")
	if strings.HasPrefix(l, "WARNING: ") { // the next one says more
		more, _, _ = strings.Cut(more, "\n")
		l += " " + more
	}
	l = strings.ReplaceAll(l, "(nf_tables)", "(legacy)")
	// A namespace has nobody to ask for names.
	l = strings.Replace(l, "Temporary failure in name resolution", "Name or service not known", 1)
	return fmt.Sprintf("%d %s", a.code, l)
}

// program runs an iptables program: the real one, or sluice's.
type program func(argv []string, stdin string) answer

// realThing is the real iptables 1.8.9 of one variant, in a namespace of its own.
type realThing struct {
	binary string
	jobs   chan func()
}

func newReference(t *testing.T, binary string) *realThing {
	r := &realThing{binary, make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		for f := range r.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Skip("cannot make a network namespace: ", err)
	}
	t.Cleanup(func() { close(r.jobs) })
	return r
}

func (r *realThing) run(argv []string, stdin string) (a answer) {
	done := make(chan struct{})
	r.jobs <- func() {
		defer close(done)
		cmd := &exec.Cmd{Path: r.binary, Args: argv, Env: []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "XTABLES_LOCKFILE=/dev/null"}}
		var o, e bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
		err := cmd.Run()
		var x *exec.ExitError
		if errors.As(err, &x) {
			a.code = x.ExitCode()
		} else if err != nil {
			a.code = -1
		}
		a.stdout, a.err = strings.ReplaceAll(o.String(), "\x00", " "), e.String() // bpf ends its line with a NUL
	}
	<-done
	return a
}

const (
	legacyBinary = "/usr/sbin/xtables-legacy-multi"
	nftBinary    = "/usr/sbin/xtables-nft-multi"
)

// knownHosts resolves what every host resolves.
type knownHosts struct{}

func (knownHosts) Addrs(fam uint8, name string) [][16]byte {
	if name != "localhost" || fam == packet.IPv6 {
		return nil
	}
	return [][16]byte{{127, 0, 0, 1}}
}

func (knownHosts) Name(uint8, [16]byte) string { return "" }

// ourPrograms is sluice's commands, on a router of their own.
func ourPrograms(t *testing.T) program {
	r, err := router.New(&router.Config{Router: router.RouterConfig{Workers: 1}}, router.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	engines := r.IPTables()
	engines.Resolver = knownHosts{}
	return func(argv []string, stdin string) answer {
		var o, e bytes.Buffer
		files := iptables.ClientArgs(argv)
		if files.Input != "" {
			return answer{1, "", files.OpenError(&fs.PathError{Op: "open", Err: syscall.ENOENT})}
		}
		code := iptables.Run(engines, files.Args, strings.NewReader(stdin), &o, &e)
		return answer{code, o.String(), e.String()}
	}
}

// textBench is sluice and both variants of the real thing.
type textBench struct {
	ours, legacy, nft program
}

func newTextBench(t *testing.T) *textBench {
	t.Helper()
	needRoot(t)
	b := &textBench{ours: ourPrograms(t)}
	for _, r := range []struct {
		binary, name string
		p            *program
	}{{legacyBinary, "legacy", &b.legacy}, {nftBinary, "nf_tables", &b.nft}} {
		if _, err := os.Stat(r.binary); err != nil {
			t.Skip("needs ", r.binary)
		}
		*r.p = newReference(t, r.binary).run
		if a := (*r.p)([]string{"iptables", "-V"}, ""); a.stdout != "iptables v1.8.9 ("+r.name+")\n" {
			t.Skipf("the reference is iptables 1.8.9, this is %q", a.stdout)
		}
	}
	return b
}

// textBatch is how many rules are in the tables at once, each in a chain of its own.
const textBatch = 200

func chainName(i int) string { return fmt.Sprintf("case%d", i) }

// outcome is what became of one rule in one program: its refusal, or how it is printed.
type outcome struct {
	refused string // exit code and error's first line; "": it was taken
	printed string
}

func (o outcome) String() string {
	if o.refused != "" {
		return "refused: " + o.refused + "\n"
	}
	return o.printed
}

var timers sync.Mutex

// outcomes gives rules to a program, a chain each, and takes them out again.
// Those that are likely to be taken come together in one restore; only if it
// says anything are they given one by one, as the others are.
func outcomes(run program, cs []textCase, likely func(i int) bool) []outcome {
	if slices.ContainsFunc(cs, func(c textCase) bool { return c.uses("IDLETIMER") }) {
		timers.Lock() // the kernel's have one name space, whatever the namespace
		defer timers.Unlock()
	}
	out := make([]outcome, len(cs))
	tables := map[string]bool{} // "PROGRAM TABLE"
	for _, c := range cs {
		tables[c.prog()+" "+c.table] = true
	}
	taken := make([]bool, len(cs))
	for at := range tables {
		prog, table, _ := strings.Cut(at, " ")
		var chains, rules strings.Builder
		var together []int
		fmt.Fprintf(&chains, "*%s\n:other - [0:0]\n", table)
		for i, c := range cs {
			if c.prog() != prog || c.table != table {
				continue
			}
			fmt.Fprintf(&chains, ":%s - [0:0]\n", chainName(i))
			// An estimator has to be there for the rules behind it alone.
			if likely(i) && !c.uses("RATEEST") {
				together = append(together, i)
				fmt.Fprintf(&rules, "-A %s%s\n", chainName(i), restoreWords(c.args))
			}
		}
		if len(together) > 0 {
			a := run([]string{prog + "-restore"}, chains.String()+rules.String()+"COMMIT\n")
			if a.code == 0 && a.err == "" {
				for _, i := range together {
					taken[i] = true
				}
				continue
			}
		}
		run([]string{prog + "-restore"}, chains.String()+"COMMIT\n")
	}
	for i, c := range cs {
		if taken[i] {
			continue
		}
		a := run(append([]string{c.prog(), "-t", c.table, "-A", chainName(i)}, c.args...), "")
		if a.code != 0 {
			out[i].refused = strings.ReplaceAll(a.first(), chainName(i), "CHAIN")
		} else if a.err != "" {
			out[i].printed = "warned: " + strings.ReplaceAll(a.first(), chainName(i), "CHAIN") + "\n"
		}
	}
	for at := range tables {
		prog, table, _ := strings.Cut(at, " ")
		printed := map[string]string{}
		for _, argv := range [][]string{
			{prog, "-t", table, "-S"},
			{prog, "-t", table, "-S", "-v"},
			{prog + "-save", "-c", "-t", table},
			{prog, "-t", table, "-L", "-n", "-v", "-x", "--line-numbers"},
			{prog, "-t", table, "-L", "-n"},
		} {
			a := run(argv, "")
			if a.code != 0 {
				printed["case0"] += fmt.Sprintf("%v: %s\n", argv, a.first())
			}
			for chain, text := range byChain(a.stdout) {
				printed[chain] += text
			}
		}
		for i, c := range cs {
			if c.prog() == prog && c.table == table && out[i].refused == "" {
				out[i].printed += strings.ReplaceAll(printed[chainName(i)], chainName(i), "CHAIN")
			}
		}
		run([]string{prog, "-t", table, "-F"}, "")
		run([]string{prog, "-t", table, "-X"}, "")
	}
	return out
}

// restoreWords is arguments as a restore file has them.
func restoreWords(args []string) string {
	var s strings.Builder
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for _, a := range args {
		s.WriteString(` "` + escape.Replace(a) + `"`)
	}
	return s.String()
}

var (
	ruleLine  = regexp.MustCompile(`^(?:\[\d+:\d+\] )?-A (case\d+)\b`)
	chainLine = regexp.MustCompile(`^Chain (case\d+) `)
)

// byChain takes what -S, -save or -L print apart; the lines of a listing belong
// to the chain before them.
func byChain(text string) map[string]string {
	out := map[string]string{}
	chain := ""
	for _, l := range strings.SplitAfter(text, "\n") {
		if m := ruleLine.FindStringSubmatch(l); m != nil {
			out[m[1]] += l
			continue
		}
		if strings.HasPrefix(l, "Chain ") {
			chain = ""
		}
		if m := chainLine.FindStringSubmatch(l); m != nil {
			chain = m[1]
			continue
		}
		if chain != "" && strings.TrimSpace(l) != "" {
			out[chain] += l
		}
	}
	return out
}

// diff is the indices of the cases that sluice treats otherwise than both
// variants. nf_tables is only asked where legacy differs.
func (b *textBench) diff(cs []textCase) (bad []int, all [3][]outcome) {
	one := func(int) bool { return false }
	all[0] = outcomes(b.ours, cs, one)
	all[1] = outcomes(b.legacy, cs, func(i int) bool { return all[0][i].refused == "" })
	all[2] = make([]outcome, len(cs))
	var unlike []textCase
	var at []int
	for i := range cs {
		if all[0][i] != all[1][i] {
			unlike, at = append(unlike, cs[i]), append(at, i)
		}
	}
	for j, o := range outcomes(b.nft, unlike, one) {
		i := at[j]
		all[2][i] = o
		if o == all[0][i] || cannotTell(all[1][i], o) {
			continue
		}
		if a := allowedBy(&cs[i], all[0][i], all[1][i], o); a != nil {
			meet(a.row)
			continue
		}
		bad = append(bad, i)
	}
	return bad, all
}

// shrink leaves arguments out as long as there is a difference.
func (b *textBench) shrink(c textCase) (textCase, [3]outcome) {
	var last [3]outcome
	_, all := b.diff([]textCase{c})
	for k := range all {
		last[k] = all[k][0]
	}
	for smaller := true; smaller; {
		smaller = false
		for n := 2; n >= 1 && !smaller; n-- {
			for i := 0; i+n <= len(c.args); i++ {
				x := c
				x.args = slices.Delete(slices.Clone(c.args), i, i+n)
				if bad, all := b.diff([]textCase{x}); len(bad) > 0 {
					c, smaller = x, true
					for k := range all {
						last[k] = all[k][0]
					}
					break
				}
			}
		}
	}
	return c, last
}

// TestText gives each option of each match and target, with good values and
// bad ones, to the real programs and to sluice's. Number n of the cases is
// always the same one; after the systematic ones come combinations.
func TestText(t *testing.T) {
	layer(t, "text")
	k := harvest(t)
	list := systematic(k)
	if *only != "" {
		re := regexp.MustCompile(*only)
		list = slices.DeleteFunc(list, func(c textCase) bool { return !re.MatchString(c.prog() + " " + strings.Join(c.args, " ")) })
	}
	count := uint64(*cases)
	if !*long {
		count *= 2
	} else if *cases >= 10000 {
		count = max(count, uint64(len(list))+5000)
	}
	if *only != "" {
		count = min(count, uint64(len(list)))
	}
	t.Logf("%d systematic cases", len(list))
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		t.Log("differences of docs/differences.md that were met: ", met.n)
	}()
	const shards = 2
	failed := make(chan struct{}, *failures)
	for shard := range uint64(shards) {
		b := newTextBench(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for at := shard * textBatch; at < count; at += shards * textBatch {
				var cs []textCase
				for n := *seed + at; n < *seed+min(at+textBatch, count); n++ {
					if n-1 < uint64(len(list)) {
						cs = append(cs, list[n-1])
					} else {
						cs = append(cs, randomCase(k, n))
					}
				}
				bad, all := b.diff(cs)
				// Rules of a batch may share a state by its name, and whoever comes
				// first makes it. What counts is a case alone.
				bad = slices.DeleteFunc(bad, func(i int) bool {
					bad, _ := b.diff(cs[i : i+1])
					return len(bad) == 0
				})
				results.count("text", len(cs), 0, len(bad))
				for _, i := range bad {
					select {
					case failed <- struct{}{}:
					default:
						return // enough
					}
					if *brief {
						l := unlikeLines(all[0][i], all[1][i], all[2][i])
						t.Errorf("%s -t %s %q\nsluice    %s\nlegacy    %s\nnf_tables %s", cs[i].prog(), cs[i].table, cs[i].args, l[0], l[1], l[2])
						continue
					}
					c, o := b.shrink(cs[i])
					t.Errorf("make conformance LAYER=text CASES=1 SEED=%d\n%s -t %s -A CHAIN %q\nsluice:\n%sreal, legacy:\n%sreal, nf_tables:\n%s",
						*seed+at+uint64(i), c.prog(), c.table, c.args, o[0], o[1], o[2])
				}
			}
		}()
	}
}

// unlikeLines is the first line in which the first outcome is like neither of the others.
func unlikeLines(o ...outcome) (out [3]string) {
	var lines [3][]string
	for i := range lines {
		lines[i] = strings.Split(o[i].String(), "\n")
	}
	line := func(i, n int) string { return strings.Join(lines[i][n:min(n+1, len(lines[i]))], "") }
	for n := range lines[0] {
		out = [3]string{line(0, n), line(1, min(n, len(lines[1]))), line(2, min(n, len(lines[2])))}
		if out[0] != out[1] && out[0] != out[2] {
			break
		}
	}
	return out
}
