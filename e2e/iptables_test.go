package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sluice/e2e/lab"
)

// bare is a router without interfaces: tables that no packet meets.
func bare(t *testing.T, config string) *lab.Sluice {
	t.Helper()
	t.Parallel()
	return lab.New(t).Sluice(config)
}

// TestIptablesCommands goes through the commands of the tool as one session.
func TestIptablesCommands(t *testing.T) {
	r := bare(t, "")
	s := func(want ...string) {
		t.Helper()
		if got := strings.TrimSpace(r.Must("iptables", "-S")); got != strings.Join(append([]string{"-P INPUT ACCEPT", "-P FORWARD ACCEPT", "-P OUTPUT ACCEPT"}, want...), "\n") {
			t.Errorf("-S prints\n%s", got)
		}
	}
	run := func(line string) {
		t.Helper()
		if out, errs, code := r.Tool(append([]string{"iptables"}, strings.Fields(line)...)...); code != 0 || out+errs != "" {
			t.Errorf("iptables %s: exit status %d, %q, %q", line, code, out, errs)
		}
	}
	fails := func(line string, status int, want string) {
		t.Helper()
		out, errs, code := r.Tool(append([]string{"iptables"}, strings.Fields(line)...)...)
		if code != status || out != "" || !strings.Contains(errs, want) {
			t.Errorf("iptables %s: exit status %d, %q, %q", line, code, out, errs)
		}
	}
	run("-A INPUT -s 10.0.0.1 -j ACCEPT")
	run("-A INPUT -s 10.0.0.3 -j ACCEPT")
	run("-I INPUT 2 -s 10.0.0.2 -j DROP")
	s("-A INPUT -s 10.0.0.1/32 -j ACCEPT", "-A INPUT -s 10.0.0.2/32 -j DROP", "-A INPUT -s 10.0.0.3/32 -j ACCEPT")
	run("-C INPUT -s 10.0.0.2 -j DROP")
	fails("-C INPUT -s 10.0.0.2 -j ACCEPT", 1, "Bad rule (does a matching rule exist in that chain?)")
	run("-R INPUT 3 -s 10.0.0.4 -p tcp --dport 22 -j REJECT")
	run("-D INPUT 1")
	s("-A INPUT -s 10.0.0.2/32 -j DROP", "-A INPUT -s 10.0.0.4/32 -p tcp -m tcp --dport 22 -j REJECT --reject-with icmp-port-unreachable")
	run("-D INPUT -s 10.0.0.2 -j DROP")
	fails("-D INPUT -s 10.0.0.2 -j DROP", 1, "Bad rule")
	fails("-D INPUT 9", 1, "Index of deletion too big")
	run("-N web")
	fails("-N web", 1, "Chain already exists")
	run("-A web -p tcp -m multiport --dports 80,443 -j ACCEPT")
	run("-A INPUT -j web")
	fails("-X web", 1, "")
	run("-E web www")
	s("-N www", "-A INPUT -s 10.0.0.4/32 -p tcp -m tcp --dport 22 -j REJECT --reject-with icmp-port-unreachable", "-A INPUT -j www", "-A www -p tcp -m multiport --dports 80,443 -j ACCEPT")
	if out := r.Must("iptables", "-L", "INPUT", "-n", "--line-numbers"); !strings.Contains(out, "Chain INPUT (policy ACCEPT)\nnum  target     prot opt source               destination") ||
		!regexp.MustCompile(`(?m)^1    REJECT     (tcp|6   ) +-- +10\.0\.0\.4 +0\.0\.0\.0/0 +tcp dpt:22 reject-with icmp-port-unreachable`).MatchString(out) {
		t.Errorf("-L:\n%s", out)
	}
	if out := r.Must("iptables", "-L", "-v", "-n", "-x"); !strings.Contains(out, "pkts      bytes target     prot opt in     out     source               destination") ||
		!strings.Contains(out, "Chain www (1 references)") {
		t.Errorf("-L -v -n -x:\n%s", out)
	}
	run("-P FORWARD DROP")
	if out := r.Must("iptables", "-S", "FORWARD"); out != "-P FORWARD DROP\n" {
		t.Errorf("-S FORWARD: %q", out)
	}
	run("-P FORWARD ACCEPT")
	fails("-P www DROP", 1, "")
	run("-F INPUT")
	run("-F www")
	run("-X www")
	s()
	run("-w -t nat -A POSTROUTING -o wan0 -j MASQUERADE")
	run("-t nat -Z")
	run("-t raw -A PREROUTING -j NOTRACK")
	run("-t mangle -A FORWARD -j MARK --set-mark 1")
	run("-t security -A FORWARD -j ACCEPT")
	fails("-t nat -A POSTROUTING -j DROP", 2, "is not intended for filtering")
	fails("-A INPUT -j NOWHERE", 2, "")
	fails("-t nowhere -L", 3, "")
	fails("-A INPUT --dport 5", 2, "unknown option")
	fails("-A NOCHAIN -j ACCEPT", 1, "No chain/target/match by that name")
	if out := r.Must("iptables", "--version"); !strings.HasPrefix(out, "iptables v1.8.9") {
		t.Errorf("--version: %q", out)
	}
	// A loop is refused, and leaves nothing.
	run("-N a")
	run("-N b")
	run("-A a -j b")
	run("-A INPUT -j a")
	fails("-A b -j a", 1, "Too many levels of symbolic links")
	if out := r.Must("iptables", "-S", "b"); out != "-N b\n" {
		t.Errorf("the refused rule stayed: %q", out)
	}
}

// TestSaveRestore: what iptables-save prints, iptables-restore takes, and the other way round.
func TestSaveRestore(t *testing.T) {
	r := bare(t, "")
	text := `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
COMMIT
*filter
:INPUT DROP [12:3456]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
[7:700] -A INPUT -p tcp -m tcp --dport 80 -j web
[0:0] -A web -m comment --comment "a \"quoted\" comment" -j ACCEPT
COMMIT
`
	r.MustInput(text, "iptables-restore", "-c")
	plain := func() string {
		var keep []string
		for _, l := range strings.Split(r.Must("iptables-save", "-c"), "\n") {
			if !strings.HasPrefix(l, "#") {
				keep = append(keep, l)
			}
		}
		return strings.Join(keep, "\n")
	}
	first := plain()
	for _, want := range []string{":INPUT DROP [12:3456]", "[7:700] -A INPUT -p tcp -m tcp --dport 80 -j web", `[0:0] -A web -m comment --comment "a \"quoted\" comment" -j ACCEPT`, "-j CT --notrack"} {
		if !strings.Contains(first, want) {
			t.Errorf("%q is not in\n%s", want, first)
		}
	}
	r.MustInput(r.Must("iptables-save", "-c"), "iptables-restore", "--counters")
	if again := plain(); again != first {
		t.Errorf("saved, restored, saved:\n%s\nnot\n%s", again, first)
	}
	// --test changes nothing, an error changes nothing and names the line.
	r.MustInput("*filter\n-F\nCOMMIT\n", "iptables-restore", "--test")
	_, errs, code := r.ToolInput("*filter\n-F\n-A INPUT -p tcp --dport nonsense -j ACCEPT\nCOMMIT\n", "iptables-restore")
	if code == 0 || !strings.Contains(errs, "line") || !strings.Contains(errs, "3") {
		t.Errorf("an error in line 3: exit status %d, %q", code, errs)
	}
	_, errs, code = r.ToolInput("*filter\n-F\n", "iptables-restore") // no COMMIT
	if again := plain(); again != first {
		t.Errorf("after failed restores (%d, %q):\n%s\nnot\n%s", code, errs, again, first)
	}
	// --noflush adds.
	r.MustInput("*filter\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n", "iptables-restore", "--noflush")
	if again := plain(); !strings.Contains(again, "[7:700] -A INPUT -p tcp -m tcp --dport 80 -j web") || !strings.Contains(again, "-A INPUT -p udp -j ACCEPT") {
		t.Errorf("--noflush:\n%s", again)
	}
	// IPv6 is its own world.
	r.MustInput("*filter\n:INPUT DROP [0:0]\n-A INPUT -s fd00::/8 -p ipv6-icmp -j ACCEPT\nCOMMIT\n", "ip6tables-restore")
	if out := r.Must("ip6tables-save"); !strings.Contains(out, "-A INPUT -s fd00::/8 -p ipv6-icmp -j ACCEPT") || strings.Contains(plain(), "ipv6-icmp") {
		t.Errorf("ip6tables-save:\n%s", out)
	}
}

// TestRulesets: the rulesets of real machines, into a running router and back.
func TestRulesets(t *testing.T) {
	r := bare(t, "")
	const dir = "../internal/iptables/testdata/rulesets/"
	files, err := filepath.Glob(dir + "*.rules")
	if err != nil || len(files) != 5 {
		t.Fatalf("%d rulesets, %v", len(files), err)
	}
	date := regexp.MustCompile(`(?m)^(# (Generated by|Completed).* on ).*$`)
	for _, f := range files {
		rules, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(strings.TrimSuffix(f, ".rules") + ".save")
		if err != nil {
			t.Fatal(err)
		}
		// Each into empty tables: restore replaces only the tables it names.
		for _, table := range []string{"raw", "mangle", "nat", "filter", "security"} {
			r.Must("iptables", "-t", table, "-F")
			r.Must("iptables", "-t", table, "-X")
		}
		if out, errs, code := r.ToolInput(string(rules), "iptables-restore"); code != 0 || out+errs != "" {
			t.Errorf("%s: exit status %d\n%s%s", f, code, out, errs)
			continue
		}
		got := r.Must("iptables-save", "-c")
		for _, section := range strings.SplitAfter(date.ReplaceAllString(string(want), "${1}DATE"), "COMMIT\n") {
			if i := strings.Index(section, "*"); i >= 0 && !strings.Contains(date.ReplaceAllString(got, "${1}DATE"), section[i:]) {
				t.Errorf("%s: iptables-save does not print this:\n%.2000s\nbut\n%.2000s", f, section[i:], got)
			}
		}
	}
}

// TestMultiCall: under a tool's name sluice is that tool.
func TestMultiCall(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	r := l.Sluice("")
	bin := lab.Binary(t)
	for _, name := range []string{"iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore", "conntrack"} {
		link := filepath.Join(l.Dir, name)
		if err := os.Symlink(bin, link); err != nil {
			t.Fatal(err)
		}
		args := map[string][]string{"iptables": {"-S"}, "ip6tables": {"-S"}, "conntrack": {"-L"}}[name]
		c := exec.Command(link, args...)
		c.Env = append(os.Environ(), "SLUICE_SOCKET="+r.Socket)
		if strings.HasSuffix(name, "restore") {
			c.Stdin = strings.NewReader("*filter\n-A INPUT -m comment --comment by-symlink -j ACCEPT\nCOMMIT\n")
		}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if strings.HasPrefix(name, "ip") && len(args) == 1 && !strings.Contains(string(out), "-P INPUT ACCEPT") {
			t.Errorf("%s -S:\n%s", name, out)
		}
	}
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		if r.Counter(save, "by-symlink") < 0 && !strings.Contains(r.Must(save), "by-symlink") {
			t.Errorf("%s does not show the rule", save)
		}
	}
	if _, errs, code := (func() (string, string, int) {
		c := exec.Command(bin, "--socket", filepath.Join(l.Dir, "nobody.sock"), "iptables", "-L")
		out, _ := c.CombinedOutput()
		return "", string(out), c.ProcessState.ExitCode()
	})(); code != 3 || !strings.Contains(errs, "nobody.sock") {
		t.Errorf("without a router: exit status %d, %q", code, errs)
	}
}

// TestCounters: rules count what passed, -Z prints and zeroes, -c sets.
func TestCounters(t *testing.T) {
	b := newBed(t, `
[iptables.filter]
rules = ["-A FORWARD -p icmp -j ACCEPT"]
`)
	b.client.Must("ping", "-n", "-c", "3", "-i", "0.05", "-s", "100", "198.51.100.2")
	if out := b.r.Must("iptables", "-L", "FORWARD", "-v", "-x", "-n"); !regexp.MustCompile(`(?m)^ +6 +768 ACCEPT `).MatchString(out) {
		t.Errorf("six packets of 128 bytes:\n%s", out)
	}
	if out := b.r.Must("iptables", "-L", "FORWARD", "-v", "-x", "-n", "-Z"); !regexp.MustCompile(`(?m)^ +6 +768 ACCEPT `).MatchString(out) {
		t.Errorf("-L -Z prints what it zeroes:\n%s", out)
	}
	if n := b.r.Counter("iptables-save", "-A FORWARD"); n != 0 {
		t.Errorf("%d after -Z", n)
	}
	b.r.Must("iptables", "-A", "FORWARD", "-c", "10", "1000", "-p", "tcp", "-j", "ACCEPT")
	if n := b.r.Counter("iptables-save", "-p tcp"); n != 10 {
		t.Errorf("-c 10 1000: %d", n)
	}
	for i := range 20 {
		b.r.Must("iptables", "-I", "FORWARD", "-m", "comment", "--comment", fmt.Sprint("no. ", i))
	}
	b.client.Must("ping", "-n", "-c", "1", "198.51.100.2")
	if n := b.r.Counter("iptables-save", "-p icmp"); n != 2 {
		t.Errorf("the rule counts %d packets after others were put before it", n)
	}
}
