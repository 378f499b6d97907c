package iptables

import (
	"flag"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var randomRestores = flag.Int("random-restores", 150, "inputs that TestReferenceRandomRestore tries")

// saveLines are lines of saves, good and bad.
var saveLines = []string{
	"*filter", "*nat", "*", "* filter", "COMMIT", "COMMIT", "COMMIT ", "", "# a comment", " # none", " ", "\t", ":INPUT ACCEPT [1:2]", ":INPUT DROP [3:4]", ":INPUT - [5:6]",
	":INPUT", ":", ": -", ":a - [0:0]", ":a - [0:0]", ":a ACCEPT [0:0]", "-A INPUT", "-A a -s 1.2.3.4", "-A a -j b", "-A INPUT -j a", "-A INPUT -g a", "-A INPUT -j ACCEPT",
	"-A nosuch -j ACCEPT", "-A INPUT -j nosuch", "-A INPUT -j", "-A", "-D INPUT 1", "foo", "-N c", "-P INPUT DROP", "[1:2] -A INPUT", "[3:4] -A a -j RETURN", "[1:2",
}

// restoreLines are more lines of restores.
var restoreLines = []string{
	"*nope", "COMMIT\r", ":OUTPUT ACCEPT", ":b -", ":a DROP", ":ACCEPT - [0:0]", ":INPUT REJECT [0:0]", ":PREROUTING ACCEPT [0:0]", ":INPUT ACCEPT [x:y]",
	":INPUT ACCEPT [7]", ":INPUT ACCEPT 7:8", ":averyveryverylongnameofachainindeed - [0:0]", ":!x - [0:0]", ":\"x\" - [0:0]", "-A INPUT -g nosuch", "-I INPUT -j a",
	"-I INPUT 2 -s 1.1.1.1", "-I a 1 -p tcp", "-D INPUT -j ACCEPT", "-R INPUT 1 -s 2.2.2.2", "-R a 1 -p udp -m udp --dport 53", "-C INPUT -j a", "-C INPUT", "-F", "-F a",
	"-F nosuch", "-X", "-X a", "-X b", "-X INPUT", "-N a", "-N ACCEPT", "-N", "-E a d", "-E a b", "-E INPUT x", "-E nosuch x", "-P a DROP", "-P INPUT RETURN", "-P INPUT",
	"-Z", "-Z INPUT", "-Z INPUT 1", "-Z nosuch", "-L INPUT -n", "-S a", "-S", "-L nosuch", "-V", "-4 -A INPUT -s 4.4.4.4", "-6 -A INPUT -s ::6", "-A INPUT --ipv6 -j nosuch",
	"-6 foo", "foo -6", "-A INPUT -s 1.2.3.4,5.6.7.8 -j ACCEPT", "-A INPUT -t nat", "--append INPUT", "--app a", "--delete-chain", "-w -A INPUT", "-W 1 -A INPUT",
	"[5:6] -I INPUT 1 -s 5.5.5.5,6.6.6.6", "[1:2] -A INPUT -c 3 4", "-A INPUT -c 3 4", "[1:x] -A INPUT", "[x:2] -A INPUT", "[] -A INPUT", "[1:2] -N e", "[1:2] -F",
	"[1:2] :f - [0:0]", "[1:2] -D INPUT -s 5.5.5.5", "-A INPUT -m comment --comment \"a b\"", "-A INPUT -m comment --comment \"open", "-A INPUT -m comment --comment a\"b\"",
	"-A INPUT \"\"", "-A INPUT extra", "-A INPUT -p tcp --dport 80 -j ACCEPT", "-A INPUT -p tcp -m tcp --dport x", "-A INPUT -o eth0", "-A OUTPUT -o eth0 -j LOG",
	"-A INPUT -p udp -j REJECT --reject-with tcp-reset", "-A INPUT -j MASQUERADE", "-A INPUT -s 1.1.1.1/33", "-A INPUT -- x", "-A INPUT -j DROP -x", "-A INPUT -n",
	"-M x -A INPUT",
}

// randomSave is an input that is right in most lines; the others are of a list.
func randomSave(r *rand.Rand, lines []string) string {
	var b strings.Builder
	good := []string{":INPUT ACCEPT [1:2]", ":a - [0:0]", ":b - [3:4]", "[7:8] -A INPUT -j a", "-A a -s 1.2.3.4 -j b", "[9:9] -A b -p tcp -j ACCEPT"}
	for range 1 + r.IntN(2) {
		b.WriteString("*filter\n")
		for _, l := range good {
			if r.IntN(4) > 0 {
				b.WriteString(l + "\n")
			}
			for range r.IntN(3) - 1 {
				b.WriteString(strings.Repeat(lines[r.IntN(len(lines))]+"\n", 1+r.IntN(3)/2))
			}
		}
		if r.IntN(8) > 0 {
			b.WriteString("COMMIT\n")
		}
	}
	return b.String()
}

var reason = regexp.MustCompile(`(: line \d+ failed): .*\.`)

// kernels are targets that only the kernel refuses.
var kernels = regexp.MustCompile("-j REJECT --reject-with tcp-reset|-j MASQUERADE")

// TestReferenceRandomRestore gives the same random inputs to the real
// iptables-restore and to the one under test.
func TestReferenceRandomRestore(t *testing.T) {
	needReference(t)
	r := rand.New(rand.NewPCG(2, uint64(*randomRestores)))
	options := []string{"", "", " -n", " -n", " -c", " -n -c", " -t", " -v", " -T filter", " -T nat", " -n -v -c"}
	lines := slices.Concat(saveLines, restoreLines)
	bad := 0
	inNamespace(t, func() {
		run := ours(newEngines())
		for range *randomRestores {
			line, in := "iptables-restore"+options[r.IntN(len(options))], randomSave(r, lines)
			if strings.Contains(line, "-t") {
				in = kernels.ReplaceAllString(in, "-j DROP") // this one's -t refuses them, too
			}
			var differ strings.Builder
			for _, line := range []string{line, "iptables -S"} {
				argv, _ := shellWords(line)
				var want, got step
				want.line, got.line = line, line
				want.code, want.stdout, want.err = reference(argv, in)
				got.code, got.stdout, got.err = run(argv, in)
				got.err = reason.ReplaceAllString(got.err, "$1") // the legacy variant gives none
				if want.String() != got.String() {
					differ.WriteString("the real program:\n" + want.String() + "this one:\n" + got.String())
				}
			}
			if differ.Len() > 0 {
				// The legacy variant lists no jumps before they are committed.
				if bad++; bad <= 20 && !strings.Contains(differ.String(), "Can't find library for target") {
					t.Errorf("%s\n%s%s", line, in, differ.String())
				}
				run(strings.Fields("iptables-restore"), "*filter\nCOMMIT\n*nat\nCOMMIT\n")
				reference(strings.Fields("iptables-restore"), "*filter\nCOMMIT\n*nat\nCOMMIT\n")
			}
		}
	})
}
