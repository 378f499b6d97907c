package iptables

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var randomXML = flag.Int("random-xml", 300, "inputs that TestReferenceRandomXML tries")

// xmlLines are more lines of saves.
var xmlLines = []string{
	"*filter extra", "#", "# a -- b --- c", ":c - [1:2] x", ":c - [1:2", ":c\t-\t[7:8]", "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT",
	"-A INPUT -p tcp -m tcp --dport 80 -j LOG", "-A INPUT -p tcp -m tcp --dport 80 -j MARK --set-mark 1", "-A INPUT -p tcp -m tcp ! --dport 80 -j LOG --log-prefix \"a b\"",
	"-A INPUT ! -i eth0 -j DROP", "-A INPUT -i ! eth0 -j DROP", "-A INPUT ! -f -j DROP", "-A INPUT -m comment --comment \"a b\" -j LOG",
	"-A INPUT -m comment --comment \"a <b> & 'c' \\\"d\\\" \\\\\" -j RETURN", "-A INPUT -m comment --comment x -m comment --comment y",
	"-A INPUT -m set --match-set x src,dst -j RETURN", "-A INPUT -m set ! --match-set x src,dst -m set --match-set y dst -j RETURN", "-A INPUT -m", "A INPUT", "-I INPUT",
	"--append a -j ACCEPT", "--append", "[1:2] -A INPUT -p tcp -m tcp --dport 80 -j CONNMARK --save-mark --mask 0xff", "[1] -A INPUT -j ACCEPT", "[] -A a", "[1:2]-A a",
	"[x:y] -A a -j LOG", "[1:2] foo", "[1:2]", "-A a -s 1.2.3.4 -j LOG", "-A a -s 1.2.3.4 -j MARK --set-xmark 0x1/0xf", "-A a -s 1.2.3.4 -j QUEUE", "-A a -s 1.2.3.4 -g b",
	"-A a -s 1.2.3.4 -j REJECT --reject-with icmp-port-unreachable", "-A a -j DNAT --to-destination 1.2.3.4:5 --random",
	"-A INPUT -s 1.2.3.4 -d 5.6.7.8 -i eth0 -o eth1 -p 6 -f -j ACCEPT", "-A a --jump b", "-A a --goto b", "-A a --match tcp --syn --jump LOG",
	"-A a -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", "-A a -j ACCEPT -m tcp --syn", "-A a -p tcp -j LOG -j DROP", "-A a extra", "-A a -p tcp extra more -j LOG",
	"-A a \"quoted word\" -j LOG", "-A a -c 5 6 -j LOG", "-A a ! ! -s 1.1.1.1 -j LOG", "-A a -p tcp ! -j LOG", "-A a !", "-A a -m tcp ! --tcp-flags SYN,RST SYN -j LOG",
}

// sameXML holds iptables-xml against the real one.
func sameXML(t *testing.T, in string, args []string) bool {
	t.Helper()
	var wantOut, wantErr, out, errs bytes.Buffer
	c := exec.Cmd{Path: legacyBinary, Args: append([]string{"iptables-xml"}, args...), Env: []string{"LC_ALL=C"}}
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(in), &wantOut, &wantErr
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Skip("no iptables-xml: ", err)
	}
	status := XML(append([]string{"iptables-xml"}, args...), strings.NewReader(in), &out, &errs)
	if m := noChain.FindStringSubmatch(errs.String()); m != nil && errs.String() != wantErr.String() {
		// The real one writes a rule of a chain that was not declared outside of any
		// chain, or into another one. What is left without it is to be the same.
		n, _ := strconv.Atoi(m[1])
		lines := strings.SplitAfter(in, "\n")
		if declared(lines[:n-1], lines[n-1]) {
			t.Errorf("%q %q\nthe chain of line %d is there\n got %s\nwant %s", args, in, n, errs.String(), wantErr.String())
			return false
		}
		return sameXML(t, strings.Join(slices.Delete(lines, n-1, n), ""), args)
	}
	if tables := strings.Split(in, "\n*"); len(tables) > 1 && combined.MatchString(wantOut.String()) {
		// The real one takes the first rule of a table for more of the last one of the
		// table before, where chain and conditions are the same. Tables alone have to do.
		same := sameXML(t, tables[0]+"\n", args)
		for _, table := range tables[1:] {
			same = sameXML(t, "*"+table+"\n", args) && same
		}
		return same
	}
	if status != c.ProcessState.ExitCode() || out.String() != wantOut.String() || errs.String() != wantErr.String() {
		t.Errorf("%q %q\n got %d %s%s\nwant %d %s%s", args, in, status, out.String(), errs.String(), c.ProcessState.ExitCode(), wantOut.String(), wantErr.String())
		return false
	}
	return true
}

var (
	noChain  = regexp.MustCompile(`^iptables-xml: line (\d+) failed - no chain found\n$`)
	combined = regexp.MustCompile(`<chain [^\n]*>\n(<!-- line [^\n]*\n)*<!-- Combine action`)
	appendTo = regexp.MustCompile(`.*-A[ \t]+(\S+)`)
)

// declared reports whether lines end in a table that has the chain which rule is for.
func declared(lines []string, rule string) bool {
	m := appendTo.FindStringSubmatch(rule)
	for i := len(lines) - 1; m != nil && i >= 0 && lines[i] != "COMMIT\n" && lines[i][0] != '*'; i-- {
		if f := strings.Fields(lines[i]); len(f) > 0 && f[0] == ":"+m[1] {
			return true
		}
	}
	return false
}

// needXML skips unless the real iptables-xml 1.8.9 is here.
func needXML(t *testing.T) {
	t.Helper()
	if out, err := (&exec.Cmd{Path: legacyBinary, Args: []string{"iptables", "-V"}}).Output(); err != nil || !strings.Contains(string(out), "v1.8.9") {
		t.Skip("needs iptables 1.8.9")
	}
}

// TestReferenceRandomXML gives the same random saves to the real iptables-xml
// and to the one under test.
func TestReferenceRandomXML(t *testing.T) {
	needXML(t)
	r := rand.New(rand.NewPCG(3, uint64(*randomXML)))
	lines := slices.Concat(saveLines, xmlLines)
	for bad := 0; *randomXML > 0 && bad < 20; *randomXML-- {
		if !sameXML(t, randomSave(r, lines), [][]string{nil, {"-c"}, {"-v"}, {"-cv"}}[r.IntN(4)]) {
			bad++
		}
	}
}
