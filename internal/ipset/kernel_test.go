package ipset

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/tables/ipset"
)

// real is ipset in a network namespace of its own; its files are in dir.
type real struct{ netns, dir string }

func newReal(t *testing.T) *real {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	out, err := exec.Command("ipset", "version").Output()
	if err != nil || !strings.HasPrefix(string(out), banner+",") {
		t.Skipf("needs ipset 7.17, this is %q (%v)", out, err)
	}
	r := &real{fmt.Sprintf("slcips-%d", os.Getpid()), t.TempDir()}
	if out, err := exec.Command("ip", "netns", "add", r.netns).CombinedOutput(); err != nil {
		t.Skipf("no network namespace: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", r.netns).Run() })
	return r
}

// result is what a command printed and its exit status.
type result struct {
	out, err string
	status   int
}

func (r *real) run(t *testing.T, stdin string, args ...string) (res result) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.netns, "ipset"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = r.dir, strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// ours is the program under test; what it writes to files is lost.
func ours(s *ipset.Sets, stdin string, args ...string) result {
	return oursIn(noFiles, nil, s, stdin, args...)
}

func noFiles(string) (io.WriteCloser, error) { return os.OpenFile(os.DevNull, os.O_WRONLY, 0) }

func oursIn(files func(name string) (io.WriteCloser, error), stop <-chan struct{}, s *ipset.Sets, stdin string, args ...string) result {
	var out, errs bytes.Buffer
	status := Run(s, append([]string{"ipset"}, args...), strings.NewReader(stdin), &out, &errs, files, stop)
	return result{out.String(), errs.String(), status}
}

// withFiles takes what is in dir, and adds it to what a command printed.
func (r result) withFiles(t *testing.T, dir string) result {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		name := filepath.Join(dir, e.Name())
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.Remove(name)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.out += fmt.Sprintf("file %s:\n%s", e.Name(), b)
	}
	return r
}

var (
	initval = regexp.MustCompile(`initval(>| )0x[0-9a-f]{8}`)
	memory  = regexp.MustCompile(`(Size in memory: |<memsize>)\d+`)
	entries = regexp.MustCompile(`(?m)^(add [^\n]*|<member>[^\n]*|[0-9a-f.:]+[0-9a-f][^\n]*)(\n|$)`)
)

// plain takes out what has no fixed value, and the order of a hash.
func (r result) plain() result {
	r.out = initval.ReplaceAllString(r.out, "initval${1}X")
	r.out = memory.ReplaceAllString(r.out, "${1}N")
	lines := strings.SplitAfter(r.out, "\n")
	for i := 0; i < len(lines); {
		j := i
		for j < len(lines) && entries.MatchString(lines[j]) {
			j++
		}
		slices.Sort(lines[i:j])
		i = max(j, i+1)
	}
	r.out = strings.Join(lines, "")
	return r
}

// shell takes a line apart at blanks; '…' is one word.
func shell(line string) (out []string) {
	for line = strings.TrimLeft(line, " "); line != ""; line = strings.TrimLeft(line, " ") {
		var w string
		if line[0] == '\'' {
			w, line, _ = strings.Cut(line[1:], "'")
		} else {
			w, line, _ = strings.Cut(line, " ")
		}
		out = append(out, w)
	}
	return out
}

// diff is what two results do not share.
func diff(got, want result) string {
	var b strings.Builder
	if got.status != want.status {
		fmt.Fprintf(&b, "status %d, want %d\n", got.status, want.status)
	}
	g, w := strings.Split(got.out+got.err, "\n"), strings.Split(want.out+want.err, "\n")
	for i := range max(len(g), len(w)) {
		var x, y string
		if i < len(g) {
			x = g[i]
		}
		if i < len(w) {
			y = w[i]
		}
		if x != y {
			fmt.Fprintf(&b, " got %s\nwant %s\n", x, y)
		}
	}
	return b.String()
}

var secondsLeft = regexp.MustCompile(` timeout \d+`)

// lateBy gives got want's seconds that are left of a timeout where two or fewer
// lie between: the two programs are asked one after the other.
func lateBy(got, want string) string {
	theirs := secondsLeft.FindAllString(want, -1)
	if len(theirs) != len(secondsLeft.FindAllString(got, -1)) {
		return got
	}
	i := -1
	return secondsLeft.ReplaceAllStringFunc(got, func(ours string) string {
		i++
		var a, b int
		fmt.Sscanf(ours, " timeout %d", &a)
		fmt.Sscanf(theirs[i], " timeout %d", &b)
		if max(a-b, b-a) <= 2 {
			return theirs[i]
		}
		return ours
	})
}

// TestCommands gives the real ipset and this one the same command lines, and
// compares what they print, and the files that they make.
// In testdata/commands a line that begins with "<" is standard input (\n for a
// new line) for the next one, which may then be empty: no arguments.
func TestCommands(t *testing.T) {
	k := newReal(t)
	text, err := os.ReadFile("testdata/commands")
	if err != nil {
		t.Fatal(err)
	}
	sets, dir := ipset.New(nil), t.TempDir()
	t.Chdir(dir)
	files := func(name string) (io.WriteCloser, error) { return os.Create(name) }
	input, n := "", 0
	for i, line := range strings.Split(string(text), "\n") {
		if in, ok := strings.CutPrefix(line, "<"); ok {
			input = strings.ReplaceAll(in, `\n`, "\n")
			continue
		}
		if line == "" && input == "" || line != "" && line[0] == '#' {
			continue
		}
		n++
		args := shell(line)
		want, got := k.run(t, input, args...).withFiles(t, k.dir), oursIn(files, nil, sets, input, args...).withFiles(t, dir)
		if !slices.Contains(args, "-s") {
			want, got = want.plain(), got.plain()
		} else {
			for _, r := range []*result{&want, &got} {
				r.out = memory.ReplaceAllString(initval.ReplaceAllString(r.out, "initval${1}X"), "${1}N")
			}
		}
		input = ""
		got.out = lateBy(got.out, want.out)
		if got != want {
			t.Errorf("line %d: ipset %s\n%s", i+1, line, diff(got, want))
		}
	}
	t.Logf("%d commands", n)
}
