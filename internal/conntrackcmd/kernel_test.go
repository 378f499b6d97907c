package conntrackcmd

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet/packettest"
)

var blurs = []struct{ re, to string }{
	{`\bid=\d+`, "id=#"}, {`<id>\d+`, "<id>#"}, {`delta-time=\d+`, "delta-time=#"}, {`<deltatime>\d+`, "<deltatime>#"},
	{`\[start=[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\]`, "[start=#]"}, {`<start>\d+`, "<start>#"},
	{`\b(1000|9\d\d)\b( [A-Z\[s])`, "1000$2"}, {`<timeout>(1000|9\d\d)<`, "<timeout>1000<"}, {`-t (1000|9\d\d) `, "-t 1000 "},
}

// blur replaces what differs between two runs of the same thing, and sorts the
// lines: neither table has an order.
func blur(s string) string {
	for _, b := range blurs {
		s = regexp.MustCompile(b.re).ReplaceAllString(s, b.to)
	}
	l := strings.Split(s, "\n")
	sort.Strings(l)
	return strings.Join(l, "\n")
}

// TestTypedToBoth holds what both print, on each stream, and their exit status
// against each other, but for numbers of the machine (see blur).
func TestTypedToBoth(t *testing.T) {
	if _, err := exec.LookPath("conntrack"); err != nil {
		t.Skip("needs conntrack")
	}
	script, err := os.ReadFile("testdata/commands")
	if err != nil {
		t.Fatal(err)
	}
	k := packettest.NewKernel(t)
	k.Sysctl("net/netfilter/nf_conntrack_acct=1")
	k.Sysctl("net/netfilter/nf_conntrack_timestamp=1")
	set := sysctl.NewSet()
	tbl := conntrack.New(set, conntrack.Options{})
	set.Lookup("net.netfilter.nf_conntrack_acct").Store(1)
	set.Lookup("net.netfilter.nf_conntrack_timestamp").Store(1)
	k.Run("conntrack -F")
	closed := make(chan struct{}) // no command of ours waits for events
	close(closed)
	input, n := "", 0
	for i, line := range strings.Split(strings.TrimSpace(string(script)), "\n") {
		if in, ok := strings.CutPrefix(line, "<"); ok {
			input = strings.ReplaceAll(in, `\n`, "\n")
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		n++
		argv := strings.Fields(line)
		var want, wantErr, got, gotErr bytes.Buffer
		late, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		cmd := exec.CommandContext(late, "conntrack", argv...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &want, &wantErr
		cmd.Run()
		if late.Err() != nil {
			t.Errorf("line %d: conntrack %s does not end", i+1, line)
		}
		cancel()
		code := Run(tbl, argv, strings.NewReader(input), &got, &gotErr, closed)
		input = ""
		if w, g := blur(want.String()), blur(got.String()); w != g {
			t.Errorf("line %d: conntrack %s\nreal:\n%s\nours:\n%s", i+1, line, w, g)
		}
		if w, g := blur(wantErr.String()), blur(gotErr.String()); w != g {
			t.Errorf("line %d: conntrack %s\nreal:\n%s\nours:\n%s", i+1, line, w, g)
		}
		if w := cmd.ProcessState.ExitCode(); w != code {
			t.Errorf("line %d: conntrack %s: exit status %d, ours %d", i+1, line, w, code)
		}
	}
	t.Logf("%d commands", n)
}
