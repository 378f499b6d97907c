package e2e

import (
	"io"
	"os/exec"
	"strings"
	"testing"
)

// inTerminal has c run a shell command in a terminal of script(1)'s.
func inTerminal(c *exec.Cmd, command string) {
	c.Path, c.Args = "/usr/bin/script", []string{"script", "-qefc", command, "/dev/null"}
	c.Env = append(c.Env, "SHELL=/bin/sh")
}

// words quotes arguments for a shell.
func words(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}

// TestExecTerminal: the command has the terminal, its keys and its job control.
func TestExecTerminal(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("script")
		for _, covered := range []bool{false, true} {
			d := d
			if covered {
				d = d.covered()
			}
			c := d.sluice("--", "sh", "-c", `test -t 0 && test -t 1 && test -t 2 && echo "a terminal, $(stty size)"; trap 'echo " interrupted"; exit 9' INT; echo ready >/dev/tty; read line; echo "line: $line"; while :; do sleep 0.05; done`)
			inTerminal(c, "stty rows 33 cols 77; exec "+words(c.Args))
			in, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			p := d.StartCommand(c)
			p.Expect("ready", 2*deadline)
			io.WriteString(in, "typed\n")
			p.Expect("line: typed", 2*deadline)
			io.WriteString(in, "\x03") // Ctrl-C
			p.Wait(2 * deadline)
			if out := p.Output(); !strings.Contains(out, "a terminal, 33 77") || !strings.Contains(out, "interrupted") || p.ProcessState.ExitCode() != 9 {
				t.Errorf("covered %v: exit status %d\n%s", covered, p.ProcessState.ExitCode(), out)
			}
		}
		d.gone()
	})
}

// TestExecStops: a command that is stopped stops exec, and both go on together.
func TestExecStops(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("bash", "script")
		c := d.sluice("--", "sh", "-c", `echo started; read line; kill -TSTP $$; echo "went on with $line"; exit 7`)
		script := d.File("jobs.sh", "set -m\n"+words(c.Args)+"\necho \"stopped $?\"; jobs\nfg >/dev/null\necho \"ended $?\"\n")
		inTerminal(c, "bash "+script)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		p := d.StartCommand(c)
		p.Expect("started", 2*deadline)
		io.WriteString(in, "this\n")
		p.Wait(2 * deadline)
		out := p.Output()
		for _, want := range []string{"Stopped", "went on with this", "ended 7"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is missing", want)
			}
		}
		if t.Failed() {
			t.Logf("%s", out)
		}
		d.gone()
	})
}

// TestExecForbidden: where user namespaces are forbidden, the error names the setting.
func TestExecForbidden(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	c := d.sluice("--", "echo", "started")
	c.Args = append(c.Args[:7:7], append([]string{"unshare", "-U", "--map-current-user", "--keep-caps", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"`, "sh"}, c.Args[7:]...)...)
	out, errs, code := d.finish(c)
	if code != 125 || strings.Contains(out, "started") || !strings.Contains(errs, "user namespaces are forbidden here") || !strings.Contains(errs, "sysctl user.max_user_namespaces is 0. As root: sysctl -w user.max_user_namespaces=65536") {
		t.Errorf("exit status %d\n%s%s", code, out, errs)
	}
}
