package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 30 * time.Second

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sluice-cmd-test")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "sluice")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(status)
}

// place is a folder for routers and tools, all run as an ordinary user with a runtime directory of its own.
type place struct {
	t   *testing.T
	bin string
	dir string
	env []string
}

const nobody = 65534

func newPlace(t *testing.T) *place {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sluice-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return &place{t: t, bin: bin, dir: dir, env: []string{"XDG_RUNTIME_DIR=" + dir, "PATH=" + os.Getenv("PATH")}}
}

// file writes a file into the place.
func (p *place) file(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *place) command(argv ...string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir = p.dir
	c.Env = p.env
	c.WaitDelay = time.Second
	if os.Geteuid() == 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return c
}

// call runs sluice and returns its exit status and what it printed.
func (p *place) call(stdin string, args ...string) (status int, stdout, stderr string) {
	p.t.Helper()
	return result(p.t, p.command(append([]string{p.bin}, args...)...), stdin)
}

func result(t *testing.T, c *exec.Cmd, stdin string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errs
	err := c.Run()
	if c.ProcessState == nil {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// must is call of something that works and says nothing on stderr.
func (p *place) must(args ...string) string {
	p.t.Helper()
	status, out, errs := p.call("", args...)
	if status != 0 || errs != "" {
		p.t.Fatalf("sluice %q: status %d, stderr %q, stdout %q", args, status, errs, out)
	}
	return out
}

// running is a router under test.
type running struct {
	*exec.Cmd
	log    *buffer
	stdout *buffer
	done   chan struct{}
}

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start runs a router and waits until it is ready.
func (p *place) start(args ...string) *running {
	p.t.Helper()
	return p.await(p.command(append([]string{p.bin}, args...)...))
}

// await starts a command that is a router and waits until it is ready.
func (p *place) await(c *exec.Cmd) *running {
	p.t.Helper()
	r := &running{Cmd: c, log: &buffer{}, stdout: &buffer{}, done: make(chan struct{})}
	r.Stdout, r.Stderr = r.stdout, r.log
	if err := r.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { r.Wait(); close(r.done) }()
	p.t.Cleanup(func() { r.Process.Kill(); <-r.done })
	p.eventually("the router is ready", func() bool {
		select {
		case <-r.done:
			p.t.Fatalf("the router ended: %v\n%s", r.ProcessState, r.log)
		default:
		}
		return strings.Contains(r.stdout.String(), "sluice: ready\n")
	})
	return r
}

func (p *place) eventually(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			p.t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// end waits for the router's end and gives its exit status.
func (r *running) end(t *testing.T) int {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatalf("the router does not end\n%s", r.log)
	}
	return r.ProcessState.ExitCode()
}

func TestBorrowed(t *testing.T) {
	for _, c := range []struct {
		argv string
		want *borrowedCall
	}{
		{"sluice", nil},
		{"sluice status", nil},
		{"sluice --socket", nil},
		{"sluice --socket iptables", nil}, // the name is the flag's value
		{"sluice --verbose iptables", nil},
		{"sluice status iptables", nil},
		{"sluice nft list", nil},
		{"/usr/sbin/iptables -L", &borrowedCall{tool: tools[0], argv: []string{"iptables", "-L"}}},
		{"ip6tables-save --socket x", &borrowedCall{tool: tools[3], argv: []string{"ip6tables-save", "--socket", "x"}}},
		{"sluice iptables -L --socket x", &borrowedCall{tool: tools[0], argv: []string{"iptables", "-L", "--socket", "x"}}},
		{"sluice --socket a --name=b conntrack -L", &borrowedCall{tool: tools[6], target: target{"a", "b"}, argv: []string{"conntrack", "-L"}}},
	} {
		got, ok := borrowed(strings.Fields(c.argv))
		if ok != (c.want != nil) || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v", c.argv, got)
		}
	}
	if _, ok := borrowed(nil); ok {
		t.Error("no arguments at all are a tool's call")
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		stderr string
	}{
		{"", 2, "sluice: a command is missing\nTry \"sluice --help\".\n"},
		{"route", 2, "sluice: unknown command \"route\" for \"sluice\"\nTry \"sluice --help\".\n"},
		{"trace", 2, "sluice: whose rules? -c FILE for made up packets, --live for the running router\nTry \"sluice trace --help\".\n"},
		{"check", 2, "sluice: required flag(s) \"config\" not set\nTry \"sluice check --help\".\n"},
		{"check -c a.toml b.toml", 2, "sluice: unknown command \"b.toml\" for \"sluice check\"\nTry \"sluice check --help\".\n"},
		{"status --yaml", 2, "sluice: unknown flag: --yaml\nTry \"sluice status --help\".\n"},
		{"run -c /dev/null --log-format xml", 2, "sluice: no log format \"xml\": text or json\nTry \"sluice run --help\".\n"},
		{"check -c /nonexistent/x.toml", 1, "sluice: open /nonexistent/x.toml: no such file or directory\n"},
		{"--socket /nonexistent/x.sock status", 1, "sluice: no sluice answers on /nonexistent/x.sock: dial unix /nonexistent/x.sock: connect: no such file or directory\n"},
		{"--socket /nonexistent/x.sock iptables -L", 3, "iptables: no sluice answers on /nonexistent/x.sock: dial unix /nonexistent/x.sock: connect: no such file or directory\n"},
		{"--socket /nonexistent/x.sock conntrack -L", 1, "conntrack: no sluice answers on /nonexistent/x.sock: dial unix /nonexistent/x.sock: connect: no such file or directory\n"},
	} {
		var out, errs bytes.Buffer
		status := start(append([]string{"sluice"}, strings.Fields(c.args)...), strings.NewReader(""), &out, &errs)
		if status != c.status || errs.String() != c.stderr || out.Len() > 0 {
			t.Errorf("sluice %s: status %d, stdout %q, stderr %q", c.args, status, out.String(), errs.String())
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range []string{"--help", "run --help", "check -h", "setup --help", "status --help", "ps --help", "sysctl --help", "reload --help", "version --help"} {
		var out, errs bytes.Buffer
		if status := start(append([]string{"sluice"}, strings.Fields(args)...), strings.NewReader(""), &out, &errs); status != 0 || out.Len() < 50 || errs.Len() > 0 {
			t.Errorf("sluice %s: status %d, %q, %q", args, status, out.String(), errs.String())
		}
	}
}

func TestVersion(t *testing.T) {
	p := newPlace(t)
	if out := p.must("version"); !strings.HasPrefix(out, "sluice "+version+" (go1.") {
		t.Errorf("%q", out)
	}
	// the tools tell their version without a router
	if status, out, errs := p.call("", "conntrack", "--version"); status != 0 || out != "conntrack v1.4.7 (conntrack-tools)\n" || errs != "" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	if status, out, errs := p.call("", "iptables", "-V"); status != 0 || out != "iptables v1.8.9 (legacy)\n" || errs != "" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
}

func TestCheck(t *testing.T) {
	p := newPlace(t)
	good := p.file("good.toml", "[[interface]]\nname = \"lan0\"\naddresses = [\"10.0.0.1/24\"]\n[iptables.filter]\nrules = [\"-A INPUT -j ACCEPT\"]\n[[rule]]\ntable = 9\n")
	status, out, errs := p.call("", "check", "-c", good)
	if status != 0 || out != good+": ok: 1 interface, 0 routes, 1 rule, 0 services\n" ||
		errs != good+":7:9: warning: no [[route]] is in table 9, so this rule decides nothing\n" {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	bad := p.file("bad.toml", "[[interface]]\nname = \"interface-with-a-long-name\"\n[iptables.filter]\nrules = [\n  \"-A INPUT -p tcp --dport 80x -j ACCEPT\",\n  \"-A INPUT -j ACCEPT\",\n  \"-A INPUT -j NOWHERE\"]\n")
	status, out, errs = p.call("", "check", "-c", bad)
	lines := strings.Split(errs, "\n")
	if status != 1 || out != "" || len(lines) != 4 ||
		lines[0] != bad+`:2:8: interface name "interface-with-a-long-name" has 26 bytes, and 15 are the most` ||
		!strings.HasPrefix(lines[1], bad+":5:28: ") || !strings.Contains(lines[1], "80x") ||
		!strings.HasPrefix(lines[2], bad+":7:") || !strings.Contains(lines[2], "NOWHERE") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

func TestRouter(t *testing.T) {
	p := newPlace(t)
	cfg := p.file("r.toml", "[iptables.filter]\nrules = [\"-A INPUT -s 10.0.0.1/32 -j DROP\"]\n[sysctl]\n\"net.ipv4.ip_default_ttl\" = 99\n")
	r := p.start("run", "-c", cfg)

	t.Run("tools", func(t *testing.T) {
		if out := p.must("iptables", "-S", "INPUT"); out != "-P INPUT ACCEPT\n-A INPUT -s 10.0.0.1/32 -j DROP\n" {
			t.Errorf("%q", out)
		}
		p.must("iptables", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT")
		if status, _, errs := p.call("", "iptables", "-A", "NOCHAIN", "-j", "ACCEPT"); status != 1 || errs != "iptables: No chain/target/match by that name.\n" {
			t.Errorf("status %d, %q", status, errs)
		}
		if status, _, errs := p.call("", "iptables", "--nonsense"); status != 2 || !strings.Contains(errs, "unknown option \"--nonsense\"") {
			t.Errorf("status %d, %q", status, errs)
		}
		if status, _, errs := p.call("*filter\n:X - [0:0]\n-A X -j DROP\nCOMMIT\n", "ip6tables-restore"); status != 0 || errs != "" {
			t.Errorf("ip6tables-restore: %d, %q", status, errs)
		}
		if out := p.must("ip6tables-save"); !strings.Contains(out, "-A X -j DROP\n") {
			t.Errorf("ip6tables-save: %q", out)
		}
	})

	t.Run("files are the caller's", func(t *testing.T) {
		p.file("in.rules", "*raw\n-A PREROUTING -j NOTRACK\nCOMMIT\n")
		p.must("iptables-restore", "--noflush", "in.rules")
		p.must("iptables-save", "-t", "raw", "-f", "out.rules")
		text, err := os.ReadFile(filepath.Join(p.dir, "out.rules"))
		if err != nil || !strings.Contains(string(text), "-A PREROUTING -j CT --notrack") && !strings.Contains(string(text), "-A PREROUTING -j NOTRACK") {
			t.Errorf("%v\n%s", err, text)
		}
		if status, _, errs := p.call("", "iptables-restore", "none.rules"); status != 1 || errs != "Can't open none.rules: No such file or directory\n" {
			t.Errorf("status %d, %q", status, errs)
		}
	})

	t.Run("files of ipset", func(t *testing.T) {
		p.file("in.sets", "create s hash:ip\nadd s 1.2.3.4\n")
		p.must("ipset", "restore", "-f", "in.sets")
		p.must("ipset", "list", "-n", "-f", "one")
		if status, out, errs := p.call("list -n -f two\nversion\n", "ipset", "-"); status != 0 || errs != "" || out != "ipset> ipset> ipset v7.17, protocol version: 7\nipset> " {
			t.Errorf("ipset -: %d, %q, %q", status, out, errs)
		}
		for _, name := range []string{"one", "two"} {
			if text, err := os.ReadFile(filepath.Join(p.dir, name)); err != nil || string(text) != "s\n" {
				t.Errorf("%s: %q, %v", name, text, err)
			}
		}
		if status, _, errs := p.call("", "ipset", "save", "-f", "no/such"); status != 1 || errs != "ipset v7.17: Cannot open no/such for writing: No such file or directory\n" {
			t.Errorf("status %d, %q", status, errs)
		}
		if status, _, errs := p.call("", "ipset", "restore", "-f", "none.sets"); status != 255 || errs != "" {
			t.Errorf("status %d, %q", status, errs)
		}
		p.must("ipset", "destroy")
	})

	t.Run("conntrack", func(t *testing.T) {
		if status, out, errs := p.call("", "conntrack", "-C"); status != 0 || out != "0\n" || errs != "" {
			t.Errorf("conntrack -C: %d, %q, %q", status, out, errs)
		}
		p.file("flows", "-I -p udp -s 10.1.1.1 -d 10.1.1.2 --sport 5 --dport 6 --timeout 100\n")
		if status, out, errs := p.call("", "conntrack", "-R", "flows"); status != 0 {
			t.Errorf("conntrack -R: %d, %q, %q", status, out, errs)
		}
		if status, out, errs := p.call("", "conntrack", "-L"); status != 0 || !strings.Contains(out, "src=10.1.1.1 dst=10.1.1.2 sport=5 dport=6") {
			t.Errorf("conntrack -L: %d, %q, %q", status, out, errs)
		}
		if status, out, errs := p.call("", "conntrack", "-R", "none"); status != 2 || out != "" || !strings.HasPrefix(errs, "conntrack v1.4.7 (conntrack-tools): Failed to open file none for reading\n") {
			t.Errorf("conntrack -R none: %d, %q, %q", status, out, errs)
		}
		p.call("", "conntrack", "-F")
	})

	t.Run("conntrack -E ends with its client", func(t *testing.T) {
		c := p.command(p.bin, "conntrack", "-E")
		var out buffer
		c.Stdout = &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		p.eventually("an event", func() bool {
			p.call("", "conntrack", "-I", "-p", "udp", "-s", "10.1.1.1", "-d", "10.1.1.3", "--sport", "5", "--dport", "6", "--timeout", "100")
			p.call("", "conntrack", "-F")
			return strings.Contains(out.String(), "dst=10.1.1.3")
		})
		c.Process.Kill()
		c.Wait()
	})

	t.Run("started under a tool's name", func(t *testing.T) {
		link := filepath.Join(p.dir, "iptables")
		if err := os.Symlink(p.bin, link); err != nil {
			t.Fatal(err)
		}
		status, out, errs := result(t, p.command(link, "-S", "INPUT"), "")
		if status != 0 || !strings.Contains(out, "-A INPUT -p tcp -j ACCEPT\n") {
			t.Errorf("status %d, %q, %q", status, out, errs)
		}
	})

	t.Run("sysctl", func(t *testing.T) {
		if out := p.must("sysctl", "net.ipv4.ip_default_ttl"); out != "net.ipv4.ip_default_ttl = 99\n" {
			t.Errorf("%q", out)
		}
		if out := p.must("sysctl", "-w", "net/ipv4/ip_default_ttl=65"); out != "net.ipv4.ip_default_ttl = 65\n" {
			t.Errorf("%q", out)
		}
		if out := p.must("sysctl", "-n", "net.ipv4.ip_default_ttl"); out != "65\n" {
			t.Errorf("%q", out)
		}
		all := p.must("sysctl", "-a")
		if all != p.must("sysctl") || !strings.Contains(all, "\nnet.netfilter.nf_conntrack_max = ") {
			t.Errorf("%q", all)
		}
		below := p.must("sysctl", "net.ipv4.conf.all")
		for line := range strings.Lines(below) {
			if !strings.HasPrefix(line, "net.ipv4.conf.all.") {
				t.Errorf("net.ipv4.conf.all shows %q", line)
			}
		}
		if strings.Count(below, "\n") < 3 {
			t.Errorf("net.ipv4.conf.all shows %q", below)
		}
		for arg, want := range map[string]string{
			"net.ipv4.nonsense":                  "sluice: there is no tunable \"net.ipv4.nonsense\"\n",
			"net.ipv4.nonsense=1":                "sluice: there is no tunable \"net.ipv4.nonsense\"\n",
			"net.ipv4.tcp_congestion_control=no": "sluice: net.ipv4.tcp_congestion_control means nothing in sluice\n",
			"net.ipv4.ip_default_ttl=0":          "sluice: setting key \"net.ipv4.ip_default_ttl\": invalid argument \"0\" (an integer from 1 to 255)\n",
		} {
			if status, out, errs := p.call("", "sysctl", arg); status != 1 || out != "" || errs != want {
				t.Errorf("sysctl %s: %d, %q, %q", arg, status, out, errs)
			}
		}
	})

	t.Run("status", func(t *testing.T) {
		out := p.must("status")
		for _, want := range []string{"sluice " + version + ", pid " + fmt.Sprint(r.Process.Pid), "configuration " + cfg, "connections 0 of at most ", "INTERFACE", "ipv4    filter  INPUT ", "FAMILY  PRIORITY  RULE\nipv4    0         from all lookup local\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		var s struct {
			PID    int
			Config string
			Tables []struct{ Family, Name string }
		}
		if err := json.Unmarshal([]byte(p.must("status", "--json")), &s); err != nil || s.PID != r.Process.Pid || s.Config != cfg || len(s.Tables) != 10 {
			t.Errorf("%v: %+v", err, s)
		}
	})

	t.Run("ps", func(t *testing.T) {
		out := p.must("ps")
		for _, want := range []string{"NAME ", "\nsluice ", fmt.Sprint(r.Process.Pid), cfg, filepath.Join(p.dir, "sluice", "sluice.sock")} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		var list []info
		if err := json.Unmarshal([]byte(p.must("ps", "--json")), &list); err != nil || len(list) != 1 || list[0].PID != r.Process.Pid || list[0].Name != "sluice" {
			t.Errorf("%v: %+v", err, list)
		}
	})

	t.Run("a second one", func(t *testing.T) {
		socket := filepath.Join(p.dir, "sluice", "sluice.sock")
		status, out, errs := p.call("", "run", "-c", cfg)
		if status != 1 || out != "" || errs != "sluice: a sluice is already running on "+socket+"; give this one another --name\n" {
			t.Errorf("status %d, %q, %q", status, out, errs)
		}
		other := p.start("--name", "other", "run", "-c", cfg)
		if status, _, errs := p.call("", "status"); status != 1 || errs != "sluice: 2 sluices are running: pick one with --name: other, sluice\n" {
			t.Errorf("status %d, %q", status, errs)
		}
		if out := p.must("--name", "other", "status"); !strings.Contains(out, fmt.Sprint("pid ", other.Process.Pid)) {
			t.Errorf("%s", out)
		}
		if out := p.must("--name=other", "iptables", "-S", "INPUT"); strings.Contains(out, "tcp") {
			t.Errorf("the wrong router answered: %q", out)
		}
		elsewhere := filepath.Join(p.dir, "elsewhere.sock")
		third := p.start("run", "-c", cfg, "--socket", elsewhere)
		if out := p.must("--name", "elsewhere", "status"); !strings.Contains(out, fmt.Sprint("pid ", third.Process.Pid)) {
			t.Errorf("%s", out)
		}
		for _, x := range []*running{other, third} {
			x.Process.Signal(syscall.SIGTERM)
			if status := x.end(t); status != 0 {
				t.Errorf("status %d\n%s", status, x.log)
			}
		}
		fourth := p.start("--name", "silent", "run", "-c", cfg)
		fourth.Process.Signal(syscall.SIGSTOP)
		if _, out, errs := p.call("", "ps"); strings.Count(out, "\n") != 2 || !strings.Contains(errs, "silent.sock does not answer\n") {
			t.Errorf("with one that does not answer: %q, %q", out, errs)
		}
		fourth.Process.Signal(syscall.SIGCONT)
		fourth.Process.Signal(syscall.SIGTERM)
		if status := fourth.end(t); status != 0 {
			t.Errorf("status %d\n%s", status, fourth.log)
		}
		if out := p.must("ps"); strings.Count(out, "\n") != 2 {
			t.Errorf("after their end:\n%s", out)
		}
	})

	t.Run("reload", func(t *testing.T) {
		p.file("r.toml", "[iptables.filter]\nrules = [\"-A OUTPUT -j ACCEPT\"]\n")
		p.must("reload")
		if out := p.must("iptables", "-S"); !strings.Contains(out, "-A OUTPUT -j ACCEPT\n") || strings.Contains(out, "10.0.0.1") {
			t.Errorf("%q", out)
		}
		if out := p.must("sysctl", "-n", "net.ipv4.ip_default_ttl"); out != "64\n" {
			t.Errorf("what the file does not set any more is %q", out)
		}
		p.file("r.toml", "[iptables.filter]\nrules = [\n\"-A FORWARD -j ACCEPT\",\n\"-A OUTPUT -j NOWHERE\"]\n")
		status, out, errs := p.call("", "reload")
		if status != 1 || out != "" || !strings.HasPrefix(errs, cfg+":4:") || !strings.Contains(errs, "NOWHERE") {
			t.Errorf("status %d, %q, %q", status, out, errs)
		}
		if out := p.must("iptables", "-S"); strings.Contains(out, "FORWARD -j") {
			t.Errorf("a refused reload did something: %q", out)
		}
		p.file("r.toml", "[iptables.filter]\nrules = [\"-A FORWARD -j ACCEPT\"]\n")
		r.Process.Signal(syscall.SIGHUP)
		p.eventually("SIGHUP reloads", func() bool { return strings.Contains(p.must("iptables", "-S"), "-A FORWARD -j ACCEPT\n") })
	})

	t.Run("end", func(t *testing.T) {
		r.Process.Signal(syscall.SIGTERM)
		if status := r.end(t); status != 0 {
			t.Errorf("status %d\n%s", status, r.log)
		}
		if left, _ := filepath.Glob(filepath.Join(p.dir, "sluice", "*")); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if status, _, errs := p.call("", "iptables", "-L"); status != 3 || !strings.HasPrefix(errs, "iptables: no running sluice found in ") {
			t.Errorf("status %d, %q", status, errs)
		}
	})
}

func TestKilledRouterIsReplaced(t *testing.T) {
	p := newPlace(t)
	cfg := p.file("r.toml", "")
	r := p.start("run", "-c", cfg)
	r.Process.Kill()
	r.end(t)
	socket := filepath.Join(p.dir, "sluice", "sluice.sock")
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("a killed router leaves its socket, and there is none: %v", err)
	}
	stale := filepath.Join(p.dir, "sluice", "gone.sock")
	if err := os.Symlink(filepath.Join(p.dir, "nowhere"), stale); err != nil {
		t.Fatal(err)
	}
	again := p.start("run", "-c", cfg)
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what another router left behind is still there: %v", err)
	}
	again.Process.Signal(os.Interrupt)
	if status := again.end(t); status != 0 {
		t.Errorf("status %d\n%s", status, again.log)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be several users")
	}
	p := newPlace(t)
	p.start("run", "-c", p.file("r.toml", ""))
	socket := filepath.Join(p.dir, "sluice", "sluice.sock")
	// past the modes of folder and socket, to the check of the peer
	os.Chmod(p.dir, 0o755)
	os.Chmod(filepath.Dir(socket), 0o711)
	os.Chmod(socket, 0o666)
	c := p.command(p.bin, "--socket", socket, "status")
	c.SysProcAttr.Credential.Uid = 1234
	if status, out, errs := result(t, c, ""); status != 1 || out != "" || errs != "sluice: uid 1234 may not control this router: it belongs to uid 65534\n" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	c = exec.Command(p.bin, "--socket", socket, "status") // root
	if status, _, errs := result(t, c, ""); status != 0 || errs != "" {
		t.Errorf("root: %d, %q", status, errs)
	}
}

func TestNotify(t *testing.T) {
	p := newPlace(t)
	path := filepath.Join(p.dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	os.Chmod(path, 0o777)
	p.env = append(p.env, "NOTIFY_SOCKET="+path)
	expect := func(prefix string) {
		t.Helper()
		buf := make([]byte, 1000)
		l.SetReadDeadline(time.Now().Add(patience))
		n, err := l.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), prefix) {
			t.Fatalf("got %q, %v; want %q", buf[:n], err, prefix)
		}
	}
	r := p.start("run", "-c", p.file("r.toml", ""))
	expect("READY=1\n")
	r.Process.Signal(syscall.SIGHUP)
	expect("RELOADING=1\nMONOTONIC_USEC=")
	expect("READY=1")
	r.Process.Signal(syscall.SIGTERM)
	expect("STOPPING=1")
	r.end(t)
}

// TestOffline runs the offline configuration: what comes out is files.
func TestOffline(t *testing.T) {
	p := newPlace(t)
	for _, name := range []string{"offline-pcap.toml", "offline-lan.pcap"} {
		text, err := os.ReadFile(filepath.Join("../../configs", name))
		if err != nil {
			t.Fatal(err)
		}
		p.file(name, string(text))
	}
	status, out, errs := p.call("", "run", "-c", "offline-pcap.toml")
	if status != 0 || out != "sluice: ready\n" {
		t.Fatalf("status %d, %q\n%s", status, out, errs)
	}
	// counted by the frames: the look-up, the web connection and one ping leave; the
	// reset for mail, the router's answer to a ping and the time-exceeded return.
	// Each has the time of the recorded packet that it comes from.
	for name, want := range map[string][]int64{"offline-wan-out.pcap": {10, 20, 40}, "offline-lan-out.pcap": {30, 50, 60}} {
		if got := frames(t, filepath.Join(p.dir, name)); !slices.Equal(got, want) {
			t.Errorf("%s has frames of the times %v, want %v\n%s", name, got, want, errs)
		}
	}
}

func TestJSONLog(t *testing.T) {
	p := newPlace(t)
	r := p.start("run", "-c", p.file("r.toml", ""), "--log-format", "json", "--log-level", "debug")
	r.Process.Signal(syscall.SIGTERM)
	r.end(t)
	d := json.NewDecoder(strings.NewReader(r.log.String()))
	n := 0
	for {
		var line struct{ Level, Msg string }
		if err := d.Decode(&line); err == io.EOF {
			break
		} else if err != nil || line.Level == "" {
			t.Fatalf("%v in\n%s", err, r.log)
		}
		n++
	}
	if n == 0 {
		t.Error("nothing was logged")
	}
}
