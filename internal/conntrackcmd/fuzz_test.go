package conntrackcmd

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet/packettest"
)

// running are the times of what expect makes, which do not begin at 1000 seconds.
var running = regexp.MustCompile(`\d+ (proto=|SYN_SENT)`)

// listing is what -L prints of the connections and the expectations.
func listing(tbl *conntrack.Table) string {
	var out bytes.Buffer
	Run(tbl, []string{"-L", "-o", "id,labels"}, nil, &out, &out, nil)
	Run(tbl, []string{"-L", "expect"}, nil, &out, &out, nil)
	return blur(running.ReplaceAllString(out.String(), "# $1"))
}

// expect gives the table a connection that has a helper, and an expectation.
func expect(t *testing.T, tbl *conntrack.Table) {
	w := tbl.NewWorker()
	p := packettest.New(t, "tcp 1.1.1.1:1000 > 2.2.2.2:21 S")
	w.Begin(tbl.Now())
	w.SetTemplate(p, tbl.Template(conntrack.Template{Helper: tbl.Helper("ftp")}))
	if !w.Track(p, 0) || !w.Help(p) || !w.Confirm(p) {
		t.Fatal(p.Reason)
	}
	w.End()
	var out bytes.Buffer
	argv := "-I expect -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 21 -t 1000 --tuple-src 4.4.4.4 --tuple-dst 5.5.5.5 --mask-src 255.255.255.0 --mask-dst 255.255.255.255 --tuple-port-src 0 --tuple-port-dst 6000 --mask-port-src 0 --mask-port-dst 65535"
	if Run(tbl, strings.Fields(argv), nil, &out, &out, nil) != 0 || tbl.ExpectCount() != 1 {
		t.Fatal(out.String())
	}
}

// many reports whether a call that fails may have changed something: the lines
// of a file stand alone, and deleting expectations fails also where it does.
func many(argv []string) bool {
	r := &runner{out: bufio.NewWriter(io.Discard), err: io.Discard}
	c, err := r.parse(argv)
	return err == nil && (c.cmd == cmdLoad || c.cmd == cmdDelete && c.table == tableExpect)
}

// FuzzCommand: no command line panics, or is silent about why it fails; one that
// fails changes nothing.
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
		expect(t, tbl)
		before := listing(tbl)
		errs.Reset()
		code := Run(tbl, argv, strings.NewReader(stdin), &out, &errs, closed)
		if code != 0 && errs.Len() == 0 {
			t.Fatalf("%q: status %d without a word", argv, code)
		}
		after := listing(tbl)
		if code != 0 && after != before && !many(argv) {
			t.Fatalf("%q fails and makes of\n%s\n%s", argv, before, after)
		}
	})
}
