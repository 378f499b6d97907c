package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"sluice/e2e/lab"
)

// covered makes exec find a /proc that is covered in part, as containers have it:
// the kernel allows no other one in a user namespace then.
func (d *den) covered() *den {
	d.T.Helper()
	c := *d
	c.cover = true
	if out, err := c.command("unshare", "-Urmpf", "mount", "-t", "proc", "proc", "/proc").CombinedOutput(); err == nil {
		d.T.Skipf("the kernel allows a /proc beside one that is covered\n%s", out)
	}
	return &c
}

// reaping is what a command finds that is held by a subreaper: the numbers that
// /proc has, a way out, and no process that it could signal or trace.
const reaping = `
	sluice=$1 bystander=$2
	echo "numbers: $(python3 -c 'import os; print(os.readlink("/proc/self") == str(os.getpid()))')"
	curl -sS --max-time 10 http://198.51.100.1/; echo
	stage=$PPID router=$(awk '/^PPid/{print $2}' /proc/$PPID/status)
	word() { tr '\0' '\n' </proc/$1/cmdline | sed -n "$2p"; }
	echo "above: $(word $stage 1), $(word $router 2)"
	try() { if "$@" >/dev/null 2>&1; then echo "OUT: $*"; fi; }
	for pid in $router $stage $bystander; do
		[ -e /proc/$pid/status ] || echo "$pid is not there"
		try kill -0 $pid
		try kill -STOP $pid
		try kill -KILL $pid
		[ $pid = $stage ] || try kill -KILL -$pid # whose group is the command's
		try readlink /proc/$pid/fd/0
		try cat /proc/$pid/environ
		try python3 -c 'import os, signal, sys; signal.pidfd_send_signal(os.pidfd_open(int(sys.argv[1])), signal.SIGKILL)' $pid
		try python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0) != 0)' $pid
		try python3 -c 'import fcntl, os, signal, sys
r, w = os.pipe()
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
fcntl.fcntl(r, fcntl.F_SETOWN, int(sys.argv[1]))
fcntl.fcntl(r, 10, signal.SIGKILL)
os.write(w, b"x")
sys.exit(1)' $pid
	done
	try "$sluice" --socket "$3" iptables -F
	trap "" TERM; kill -TERM -1
	setsid sh -c 'while kill -0 '$$' 2>/dev/null; do sleep 0.05; done; curl -sS --max-time 10 http://198.51.100.1/; echo " after it"' &
	echo "== end"`

// TestExecSubreaper: where no /proc can be mounted, the command lives under a subreaper.
func TestExecSubreaper(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl", "python3", "setsid")
		d = d.covered()
		website(d.ns, "198.51.100.1:80", "a page")
		bystander := d.StartCommand(d.command("sleep", "1000"))
		open := d.home("open") // what is hidden otherwise
		c := d.sluice("--", "sh", "-c", reaping, "sh", lab.Binary(t), fmt.Sprint(bystander.Process.Pid), open+"/x.sock")
		c.Env = append(c.Env, "SLUICE_SOCKET="+open+"/x.sock")
		out, errs, code := d.finish(c)
		for _, want := range []string{"numbers: True", "a page\n", "above: sluice-inside, exec", "== end", "a page after it"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is missing", want)
			}
		}
		if strings.Contains(out, "OUT:") || strings.Contains(out, "is not there") || code != 0 {
			t.Errorf("exit status %d", code)
		}
		select {
		case <-bystander.Done():
			t.Error("a process outside was ended")
		default:
		}
		if t.Failed() {
			t.Logf("%s\n%s", out, errs)
		}
		bystander.Stop()
		if _, _, code := d.run("--kill-children", "--", "sh", "-c", `(setsid sleep 1000 & sleep 1000 &) & exit 3`); code != 3 {
			t.Errorf("--kill-children: exit status %d", code)
		}
		d.gone()
	})
}

// TestExecSubreaperKilled: nothing is left behind there either, whichever side is killed.
func TestExecSubreaperKilled(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d = d.covered()
		for _, victim := range []string{"router", "stage"} {
			// A child of the shell in front, which becomes exec: none of its business.
			p := d.StartCommand(d.command("sh", "-c", `sleep 1000 >/dev/null 2>&1 & echo "other $!"; exec "$@"`, "sh", lab.Binary(t), "exec", "--device", d.kind.device, "--", "sh", "-c",
				`setsid sh -c 'setsid sleep 1000 & sleep 1000' & sleep 1000 & echo ready; wait`))
			p.Expect("ready", 6*deadline)
			pid, other := p.Process.Pid, 0
			fmt.Sscanf(p.Output()[strings.Index(p.Output(), "other "):], "other %d", &other)
			stage := d.stageOf(pid)
			if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", stage)); link == "" || link != self(t, "pid") {
				t.Fatalf("the stage is in a PID namespace of its own: %s", link)
			}
			if victim == "router" {
				syscall.Kill(pid, syscall.SIGKILL)
			} else {
				syscall.Kill(stage, syscall.SIGKILL)
			}
			<-p.Done()
			if code := p.ProcessState.ExitCode(); victim == "stage" && code != 125 {
				t.Errorf("exit status %d\n%s", code, p.Output())
			}
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", other)); !bytes.HasPrefix(line, []byte("sleep")) {
				t.Errorf("%s killed: a child that exec had before is gone", victim)
			}
			syscall.Kill(other, syscall.SIGKILL)
			d.gone()
		}
	})
}

func self(t *testing.T, ns string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + ns)
	if err != nil {
		t.Fatal(err)
	}
	return link
}
