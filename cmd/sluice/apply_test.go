package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openPTY makes a terminal: what is written to the one end is typed at the other.
func openPTY(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return keyboard, terminal
}

// asked runs a command at a terminal and, once it asks, does something about it.
func (p *place) asked(c *exec.Cmd, then func(keyboard *os.File)) (status int, stdout, stderr string) {
	p.t.Helper()
	keyboard, terminal := openPTY(p.t)
	out, errs := &buffer{}, &buffer{}
	c.Stdin, c.Stdout, c.Stderr = terminal, out, errs
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { c.Wait(); close(done) }()
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	p.eventually("the question or the end", func() bool { return ended() || strings.HasSuffix(out.String(), "(y/N) ") })
	if !ended() {
		then(keyboard)
	}
	p.eventually("the end", ended)
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// applied is what is left of a call of iptables-apply.
type applied struct {
	status        int
	stdout, error string // error: the first line
	rules         string
}

// TestApply holds iptables-apply against the real script, which acts on the
// kernel's tables in a namespace of its own.
func TestApply(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to run the real iptables-apply")
	}
	if _, err := exec.LookPath("iptables-apply"); err != nil {
		t.Skip("no iptables-apply: ", err)
	}
	p := newPlace(t)
	p.start("run", "-c", p.file("r.toml", ""))
	p.file("good.rules", "*filter\n:INPUT DROP [0:0]\n:X - [0:0]\n-A INPUT -s 10.1.1.1/32 -j X\nCOMMIT\n")
	p.file("bad.rules", "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n*mangle\n-A INPUT -j NOWHERE\nCOMMIT\n")
	for name, text := range map[string]string{
		"good.sh": "iptables -F OUTPUT && iptables -P FORWARD DROP && echo changed\n",
		"bad.sh":  "iptables -F OUTPUT\nexit 3\n",
		"slow.sh": "iptables -F OUTPUT\nexec sleep 1000\n",
	} {
		if err := os.Chmod(p.file(name, "#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args  string
		typed string
	}{
		{"good.rules", "y"},
		{"good.rules", "n"},
		{"good.rules", "\n"},
		{"good.rules", " "},
		{"good.rules", `\y`},
		{"good.rules", "\x04"},
		{"-t 1 good.rules", ""},
		{"--timeout 0 good.rules", ""},
		{"bad.rules", ""},
		{"none.rules", ""},
		{"--write saved good.rules", "Y"},
		{"-w none/saved good.rules", "y"},
		{"-c ./good.sh", "y"},
		{"-c ./good.sh", "n"},
		{"--command ./bad.sh", ""},
		{"-t 1 -c ./slow.sh", ""},
		{"-c good.sh", ""},
		{"-c good.rules", ""},
		{"-c", ""},
		{"", ""},
		{"-x", ""},
		{"--nonsense", ""},
		{"-t", ""},
		{"--timeout", ""},
		{"--version=1", ""},
		{"-t x good.rules", ""},
		{"-t -1 good.rules", ""},
		{"-t 0x1 good.rules", ""},
	} {
		t.Run(strings.ReplaceAll(c.args, "/", "_")+c.typed, func(t *testing.T) {
			p := *p
			p.t = t
			typing := func(keyboard *os.File) { keyboard.WriteString(c.typed) }
			var got [2]applied
			for i, prefix := range [][]string{
				{p.bin},
				{"unshare", "-n", "sh", "-c", `iptables -A OUTPUT -j ACCEPT; "$@"; status=$?; iptables -S >after; exit $status`, "sh"},
			} {
				a := &got[i]
				os.Remove(filepath.Join(p.dir, "saved"))
				if i == 0 {
					p.call("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n-A OUTPUT -j ACCEPT\nCOMMIT\n", "iptables-restore")
				}
				cmd := p.command(append(append(prefix, "iptables-apply"), strings.Fields(c.args)...)...)
				if i == 1 {
					cmd.SysProcAttr = nil
				}
				a.status, a.stdout, a.error = p.asked(cmd, typing)
				a.error, _, _ = strings.Cut(strings.Replace(a.error, "(nf_tables)", "(legacy)", 1), "\n")
				if i == 0 {
					a.rules = p.must("iptables", "-S")
				} else {
					after, err := os.ReadFile(filepath.Join(p.dir, "after"))
					if err != nil {
						t.Fatal(err)
					}
					a.rules = string(after)
				}
				saved, _ := os.ReadFile(filepath.Join(p.dir, "saved"))
				for _, l := range strings.Split(string(saved), "\n") {
					if !strings.HasPrefix(l, "#") {
						a.rules += l + "\n"
					}
				}
			}
			switch c.args {
			case "bad.rules": // the variants' sentences differ
				got[0].error, got[1].error = "", ""
			case "-w none/saved good.rules": // the shell's sentence
				got[1].error = "iptables-apply: open none/saved: no such file or directory"
			}
			if got[0] != got[1] {
				t.Errorf("\nsluice %+v\nreal   %+v", got[0], got[1])
			}
		})
	}
}

// TestApplyReverts: what the real script does not undo is undone: tables that
// the new rules began to use, and everything when a signal comes.
func TestApplyReverts(t *testing.T) {
	p := newPlace(t)
	p.start("run", "-c", p.file("r.toml", "[iptables.filter]\nrules = [\"-A OUTPUT -j ACCEPT\"]\n[ip6tables.raw]\nrules = [\"-N old\"]\n"))
	p.file("new.rules", "*nat\n:PREROUTING DROP [0:0]\n:X - [0:0]\n-A PREROUTING -j X\nCOMMIT\n*raw\n:PREROUTING DROP [0:0]\n-A PREROUTING -j DROP\nCOMMIT\n")
	state := func(family string) (out string) {
		for _, table := range []string{"filter", "nat", "raw"} {
			out += p.must(family, "-t", table, "-S")
		}
		return out
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		before := state(family)
		for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT} {
			c := p.command(p.bin, family+"-apply", "new.rules", "--timeout=1000", "-wsaved")
			status, out, errs := p.asked(c, func(*os.File) {
				if now := state(family); now == before || !strings.Contains(now, "-A PREROUTING -j X\n") {
					t.Errorf("%s: the new rules are not in force while it asks:\n%s", family, now)
				}
				c.Process.Signal(sig)
			})
			if want := "\nInterrupted! Better play it safe...\nReverting to old iptables rules... done.\n"; status != 255 || errs != "" || !strings.HasSuffix(out, want) {
				t.Errorf("%s, %v: status %d, %q, %q", family, sig, status, out, errs)
			}
			if now := state(family); now != before {
				t.Errorf("%s, %v: before\n%safter\n%s", family, sig, before, now)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(p.dir, "saved")); err == nil {
		t.Error("rules that were not found good are saved")
	}
}

// TestApplyWithoutRouter: bad usage is told first, then that there are no tables.
func TestApplyWithoutRouter(t *testing.T) {
	p := newPlace(t)
	p.file("new.rules", "*filter\nCOMMIT\n")
	for _, c := range []struct {
		args   string
		status int
		stderr string
	}{
		{"new.rules", 3, "iptables-apply: no running sluice found in "},
		{"-t no new.rules", 1, "Error: timeout must be a positive number\n"},
		{"-h", 0, "Usage: iptables-apply "},
		{"--version", 0, "iptables-apply 1.1 -- "},
	} {
		status, out, errs := p.call("", append([]string{"iptables-apply"}, strings.Fields(c.args)...)...)
		if status != c.status || out != "" || !strings.HasPrefix(errs, c.stderr) {
			t.Errorf("%s: %d, %q, %q", c.args, status, out, errs)
		}
	}
	if !slices.ContainsFunc(tools, func(t tool) bool { return t.name == "ip6tables-apply" }) {
		t.Error("ip6tables-apply is none of the tools")
	}
}
