package conntrackcmd

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/internal/sysctl"
)

// listing is the table as -L -o save prints it.
func listing(tbl *conntrack.Table) string {
	var out bytes.Buffer
	Run(tbl, []string{"-L", "-o", "save"}, nil, &out, &out, nil)
	return blur(out.String())
}

// FuzzCommand: no command line panics, or is silent about why it fails; one that
// is wrong (status 2) changes nothing.
func FuzzCommand(f *testing.F) {
	script, err := os.ReadFile("testdata/commands")
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range strings.Split(string(script), "\n") {
		f.Add(l, "")
	}
	f.Add("-R -", "-A -t 10 -u UNSET -s 1.1.1.1 -d 2.2.2.2 -r 2.2.2.2 -q 1.1.1.1 -p 50\n-L\n")
	closed := make(chan struct{})
	close(closed)
	f.Fuzz(func(t *testing.T, line, stdin string) {
		argv := strings.Fields(line)
		for i, w := range argv { // files are the client's
			if strings.HasPrefix(w, "-") && strings.Contains(w, "R") || strings.HasPrefix(w, "--l") {
				argv[i] = "-R-"
			}
		}
		tbl := conntrack.New(sysctl.NewSet(), conntrack.Options{})
		var out, errs bytes.Buffer
		for _, l := range []string{"-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 1000 -m 5",
			"-I -s fd00::1 -d fd00::2 -p udp --sport 1000 --dport 53 -t 1000"} {
			if Run(tbl, strings.Fields(l), nil, &out, &errs, nil) != 0 {
				t.Fatal(errs.String())
			}
		}
		before := listing(tbl)
		errs.Reset()
		code := Run(tbl, argv, strings.NewReader(stdin), &out, &errs, closed)
		if code != 0 && errs.Len() == 0 {
			t.Fatalf("%q: status %d without a word", argv, code)
		}
		after := listing(tbl)
		if code == 2 && after != before && !strings.Contains(strings.Join(argv, " "), "-R") {
			t.Fatalf("%q is wrong and makes of\n%s\n%s", argv, before, after)
		}
	})
}
