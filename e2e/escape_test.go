package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"sluice/e2e/lab"
)

// shut are rules that let nothing out but TCP port 80 of 198.51.100.1.
const shut = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i exec0 -p udp --dport 53 -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i exec0 -o uplink0 -d 198.51.100.1 -p tcp --dport 80 -j ACCEPT
-A FORWARD -j REJECT
COMMIT
`

// TestExecEscapes: programs that try to get around the rules. None gets out.
func TestExecEscapes(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("python3", "curl", "dig", "ip", "unshare", "nsenter")
		website(d.ns, "198.51.100.1:80", "the one that is allowed")
		hits := listenEverywhere(d, 4444)
		dns := listenEverywhere(d, 53)
		abstract := d.StartCommand(d.command("socat", "-u", "ABSTRACT-LISTEN:sluice-escape-test,fork", "-"))
		rules := d.File("shut.rules", shut)
		p := d.StartCommand(d.sluice("--rules", rules, "--", "sh", "-c", `
			sluice=$1 router=$2
			echo "== allowed"; curl -sS --max-time 10 http://198.51.100.1/; echo
			echo "== attempts"
			try() { if timeout 10 "$@" >/dev/null 2>&1; then echo "OUT: $*"; fi; }
			try curl -sS --max-time 3 http://198.51.100.1:4444/
			try curl -sS --max-time 3 http://127.0.0.1:4444/
			try curl -sS --max-time 3 http://10.0.2.2:4444/
			try curl -sS --max-time 3 http://[2001:db8::1]:4444/
			try curl -sS --max-time 3 http://[::1]:4444/
			try dig +time=1 +tries=1 @198.51.100.1 example.org
			try dig +tcp +time=1 +tries=1 @198.51.100.1 example.org
			try "$sluice" iptables -F
			try "$sluice" --name exec-$router iptables -P FORWARD ACCEPT
			try "$sluice" --socket /proc/$router/root/run/sluice/exec-$router.sock iptables -F
			try kill -0 $router
			try kill -KILL $router
			try ls /proc/$router/fd/
			try cat /proc/$router/environ
			try ip link set exec0 down
			try ip addr add 198.51.100.9/32 dev exec0
			try ip route del default
			try mount -t tmpfs tmpfs /mnt
			try unshare -n true
			try nsenter -t $router -n true
			try nsenter -t 1 -n ip link set lo down
			try unshare -Urn ip link set exec0 down
			try unshare -Urn curl -sS --max-time 3 http://198.51.100.1:4444/
			try unshare -Urn nsenter --net=/proc/$$/ns/net ip link set exec0 down
			try socat -u /dev/null ABSTRACT-CONNECT:sluice-escape-test
			try chroot /proc/1/root true
			python3 - <<'PY'
import ctypes, os, socket, struct
def attempt(what, f):
    try:
        f()
        print("OUT:", what)
    except OSError:
        pass
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    if libc.syscall(*a) < 0:
        raise OSError(ctypes.get_errno())
attempt("io_uring", lambda: call(425, 8, ctypes.create_string_buffer(120)))
attempt("ptrace init", lambda: call(101, 16, 1, 0, 0))
import fcntl, termios
m, s = os.openpty()
attempt("TIOCSTI", lambda: fcntl.ioctl(s, termios.TIOCSTI, b"x"))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for to in ("198.51.100.1", "127.0.0.1", "10.0.2.2", "255.255.255.255", "224.0.0.1"):
    try: u.sendto(b"x", (to, 4444))
    except OSError: pass
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for to in ("2001:db8::1", "::1", "ff02::1", "::ffff:198.51.100.1"):
    try: u.sendto(b"x", (to, 4444))
    except OSError: pass
PY
			kill -KILL -1
			kill -KILL 0
			echo "== end"`, "sh", lab.Binary(t), fmt.Sprint(os.Getpid())))
		<-p.Done()
		out := p.Output()
		if !strings.Contains(out, "the one that is allowed") || !strings.Contains(out, "== attempts") {
			t.Fatalf("the attempts were not made:\n%s", out)
		}
		if strings.Contains(out, "OUT:") {
			t.Errorf("got out:\n%s", out)
		}
		if n := hits(); n != 0 {
			t.Errorf("%d packets or connections arrived outside", n)
		}
		if n := dns(); n != 0 {
			t.Errorf("%d questions arrived at another resolver", n)
		}
		select {
		case <-abstract.Done():
			t.Error("the abstract socket's server has ended")
		default:
		}
		if ws := p.ProcessState.ExitCode(); ws == 125 {
			t.Errorf("what was inside has ended its init, or the router: %v\n%s", p.ProcessState, out)
		}
		abstract.Stop()
		d.gone()
	})
}

// TestExecControl: outside, the router behind a command is controlled like any other.
func TestExecControl(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		website(d.ns, "198.51.100.1:80", "a page")
		socket := d.Dir + "/control"
		if err := os.Mkdir(socket, 0o777); err != nil {
			t.Fatal(err)
		}
		os.Chmod(socket, 0o777)
		socket += "/x.sock"
		c := d.sluice("--", "sh", "-c", `echo ready; read line; "$0" --socket `+socket+` iptables -L 2>&1; curl -sS --max-time 5 http://198.51.100.1/ 2>&1; echo; echo "status $?"`, lab.Binary(t))
		c.Env = append(c.Env, "SLUICE_SOCKET="+socket)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		p := d.StartCommand(c)
		p.Expect("ready", 2*deadline)
		if out, err := d.command(lab.Binary(t), "--socket", socket, "iptables", "-I", "FORWARD", "-j", "REJECT").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		in.Write([]byte("go\n"))
		p.Wait(3 * deadline)
		out := p.Output()
		if !strings.Contains(out, "may not control this router: it is one of those behind it") {
			t.Errorf("the tool inside said:\n%s", out)
		}
		if strings.Contains(out, "a page") {
			t.Errorf("the rule that was added outside did nothing:\n%s", out)
		}
	})
}
