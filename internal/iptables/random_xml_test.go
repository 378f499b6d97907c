package iptables

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

var randomXML = flag.Int("random-xml", 300, "inputs that TestReferenceRandomXML tries")

// xmlLines are lines of saves, good and bad.
var xmlLines = []string{
	"*filter", "*nat", "*", "* filter", "*filter extra", "COMMIT", "COMMIT", "COMMIT ", "", "# a comment", "#", "# a -- b --- c", " # none", " ", "\t",
	":INPUT ACCEPT [1:2]", ":INPUT DROP [3:4]", ":INPUT - [5:6]", ":INPUT", ":", ": -", ":a - [0:0]", ":a - [0:0]", ":a ACCEPT [0:0]", ":c - [1:2] x", ":c - [1:2", ":c\t-\t[7:8]",
	"-A INPUT", "-A a -s 1.2.3.4", "-A a -j b", "-A INPUT -j a", "-A INPUT -g a", "-A INPUT -j ACCEPT", "-A nosuch -j ACCEPT", "-A INPUT -j nosuch", "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", "-A INPUT -p tcp -m tcp --dport 80 -j LOG",
	"-A INPUT -p tcp -m tcp --dport 80 -j MARK --set-mark 1", "-A INPUT -p tcp -m tcp ! --dport 80 -j LOG --log-prefix \"a b\"", "-A INPUT ! -i eth0 -j DROP", "-A INPUT -i ! eth0 -j DROP", "-A INPUT ! -f -j DROP",
	"-A INPUT -m comment --comment \"a b\" -j LOG", "-A INPUT -m comment --comment \"a <b> & 'c' \\\"d\\\" \\\\\" -j RETURN", "-A INPUT -m comment --comment x -m comment --comment y", "-A INPUT -m set --match-set x src,dst -j RETURN",
	"-A INPUT -m set ! --match-set x src,dst -m set --match-set y dst -j RETURN", "-A INPUT -j", "-A INPUT -m", "-A", "A INPUT", "-I INPUT", "-D INPUT 1", "foo", "--append a -j ACCEPT", "--append", "-N c", "-P INPUT DROP",
	"[1:2] -A INPUT", "[3:4] -A a -j RETURN", "[1:2] -A INPUT -p tcp -m tcp --dport 80 -j CONNMARK --save-mark --mask 0xff", "[1:2", "[1] -A INPUT -j ACCEPT", "[] -A a", "[1:2]-A a", "[x:y] -A a -j LOG", "[1:2] foo", "[1:2]",
	"-A a -s 1.2.3.4 -j LOG", "-A a -s 1.2.3.4 -j MARK --set-xmark 0x1/0xf", "-A a -s 1.2.3.4 -j QUEUE", "-A a -s 1.2.3.4 -g b", "-A a -s 1.2.3.4 -j REJECT --reject-with icmp-port-unreachable", "-A a -j DNAT --to-destination 1.2.3.4:5 --random",
	"-A INPUT -s 1.2.3.4 -d 5.6.7.8 -i eth0 -o eth1 -p 6 -f -j ACCEPT", "-A a --jump b", "-A a --goto b", "-A a --match tcp --syn --jump LOG", "-A a -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", "-A a -j ACCEPT -m tcp --syn", "-A a -p tcp -j LOG -j DROP",
	"-A a extra", "-A a -p tcp extra more -j LOG", "-A a \"quoted word\" -j LOG", "-A a -c 5 6 -j LOG", "-A a ! ! -s 1.1.1.1 -j LOG", "-A a -p tcp ! -j LOG", "-A a !", "-A a -m tcp ! --tcp-flags SYN,RST SYN -j LOG",
}

func randomSave(r *rand.Rand) string {
	var b strings.Builder
	good := []string{":INPUT ACCEPT [1:2]", ":a - [0:0]", ":b - [3:4]"}
	some := func(n int) {
		for range r.IntN(n) - 1 {
			b.WriteString(xmlLines[r.IntN(len(xmlLines))] + "\n")
		}
	}
	for range 1 + r.IntN(2) {
		b.WriteString("*filter\n")
		for _, l := range good {
			if r.IntN(8) > 0 {
				b.WriteString(l + "\n")
			}
			some(2)
		}
		for range r.IntN(5) {
			l := xmlLines[r.IntN(len(xmlLines))]
			b.WriteString(strings.Repeat(l+"\n", 1+r.IntN(3)/2))
			some(3)
		}
		if r.IntN(8) > 0 {
			b.WriteString("COMMIT\n")
		}
	}
	return b.String()
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
	if strings.Contains(errs.String(), "no chain found") && errs.String() != wantErr.String() {
		return true // the real one writes the rule outside of any chain, or into another
	}
	if status != c.ProcessState.ExitCode() || out.String() != wantOut.String() || errs.String() != wantErr.String() {
		t.Errorf("%q %q\n got %d %s%s\nwant %d %s%s", args, in, status, out.String(), errs.String(), c.ProcessState.ExitCode(), wantOut.String(), wantErr.String())
		return false
	}
	return true
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
	for bad := 0; *randomXML > 0 && bad < 20; *randomXML-- {
		if !sameXML(t, randomSave(r), [][]string{nil, {"-c"}, {"-v"}, {"-cv"}}[r.IntN(4)]) {
			bad++
		}
	}
}
