package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/e2e/lab"
)

// den is a namespace that stands for the host of `sluice exec`: it has the
// addresses 198.51.100.1 and 2001:db8::1, and nothing beyond.
type den struct {
	*box
	kind  execKind
	cover bool // see covered
}

// execKind is who runs exec, and on which device.
type execKind struct {
	user, device string
}

func (k execKind) String() string { return k.user + "-" + k.device }

// execKinds are all ways that exec can be run: a TUN device, and what it does
// where /dev/net/tun may not be opened.
var execKinds = []execKind{{"root", "tun"}, {"user", "tun"}, {"root", "veth"}, {"user", "veth"}}

// eachDen runs a test in each way.
func eachDen(t *testing.T, test func(t *testing.T, d *den)) {
	t.Parallel()
	for _, k := range execKinds {
		t.Run(k.String(), func(t *testing.T) { test(t, newDen(t, k)) })
	}
}

func newDen(t *testing.T, k execKind) *den {
	t.Helper()
	d := &den{box: newBox(t), kind: k}
	if k.user == "root" { // who is there without the right to go everywhere
		os.Chown(d.Dir+"/run", 0, 0)
	}
	d.ns.Must("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	d.ns.Must("ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
	if out, err := d.command("unshare", "-Urnm", "true").CombinedOutput(); err != nil {
		t.Skipf("user namespaces are not for %s here: %v\n%s", k.user, err, out)
	}
	return d
}

// command is a command in the den, as its user.
func (d *den) command(args ...string) *exec.Cmd {
	mode, then := "0666", ordinary
	if d.kind.device == "veth" {
		mode = "0600"
	}
	if d.kind.user == "root" {
		then = "exec "
	}
	if d.cover {
		then = "mount -t tmpfs tmpfs /proc/bus\n" + then
	}
	w := append(d.wrap(mode, then), args...)
	c := exec.Command(w[0], w[1:]...)
	c.Dir = d.Dir + "/run"
	c.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+d.Dir+"/run", "TMPDIR="+d.Dir+"/run")
	return c
}

// sluice is `sluice exec` with these flags and this command.
func (d *den) sluice(args ...string) *exec.Cmd { return d.tool("exec", args...) }

// tool is another of sluice's subcommands; exec and attach take the kind's device.
func (d *den) tool(name string, args ...string) *exec.Cmd {
	pre := []string{lab.Binary(d.T), name}
	if d.kind.device == "veth" && d.kind.user == "root" { // whom no mode keeps out
		pre = append(pre, "--device", "veth")
	}
	return d.command(append(pre, args...)...)
}

// runtime is where sluice's control sockets are.
func (d *den) runtime() string {
	if d.kind.user == "root" {
		return "/run/sluice"
	}
	return d.Dir + "/run/sluice"
}

// run runs it to its end, at most a minute; what it wrote, and its exit status.
func (d *den) run(args ...string) (stdout, stderr string, code int) {
	d.T.Helper()
	return d.finish(d.sluice(args...))
}

func (d *den) finish(c *exec.Cmd) (stdout, stderr string, code int) {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		d.T.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
	defer stop()
	c.Wait()
	if ctx.Err() != nil {
		d.T.Fatalf("%v did not end\n%s%s", c.Args, out.String(), errs.String())
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// must is run for what has to work; it gives the standard output.
func (d *den) must(args ...string) string {
	d.T.Helper()
	out, errs, code := d.run(args...)
	if code != 0 {
		d.T.Fatalf("sluice exec %q: exit status %d\n%s%s", args, code, out, errs)
	}
	return out
}

// shell is must for a shell script.
func (d *den) shell(script string, flags ...string) string {
	d.T.Helper()
	return d.must(append(flags, "--", "sh", "-ec", script)...)
}

// inside is how many processes and devices of exec there are in the den.
func (d *den) leftovers() string {
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		line, _ := os.ReadFile(p + "/cmdline")
		env, _ := os.ReadFile(p + "/environ")
		if strings.Contains(string(env), "XDG_RUNTIME_DIR="+d.Dir+"/run") {
			left = append(left, fmt.Sprintf("%s: %q", p, line))
		}
	}
	files, _ := os.ReadDir(d.Dir + "/run/sluice")
	for _, f := range files {
		left = append(left, f.Name())
	}
	for _, dev := range []string{"exec0"} {
		if out, err := d.ns.Run("ip", "link", "show", dev); err == nil {
			left = append(left, out)
		}
	}
	return strings.Join(left, "\n")
}

// gone waits until nothing of exec is left.
func (d *den) gone() {
	d.T.Helper()
	left := ""
	for end := time.Now().Add(2 * deadline); ; time.Sleep(20 * time.Millisecond) {
		if left = d.leftovers(); left == "" {
			return
		}
		if time.Now().After(end) {
			d.T.Fatalf("left behind:\n%s", left)
		}
	}
}

// TestExecProcess: what the command is, and what passes through.
func TestExecProcess(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		uid := map[string]string{"root": "0", "user": "65534"}[d.kind.user]
		out := d.shell(`id -u; id -g; pwd; echo "$GREETING"; cat; grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/self/status; exec 3<&-; echo pids: /proc/[0-9]*; cat /etc/resolv.conf`)
		lines := strings.Split(out, "\n")
		if lines[0] != uid || lines[1] != uid || lines[2] != d.Dir+"/run" {
			t.Errorf("user, group, folder: %q", lines[:3])
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if !strings.Contains(out, set+":\t0000000000000000\n") {
				t.Errorf("%s is not empty", set)
			}
		}
		if !strings.Contains(out, "NoNewPrivs:\t1\n") || !strings.Contains(out, "Seccomp:\t2\n") {
			t.Errorf("no_new_privs, filter:\n%s", out)
		}
		if !strings.Contains(out, "pids: /proc/1 /proc/") || strings.Contains(out, fmt.Sprintf("/proc/%d ", os.Getpid())) {
			t.Errorf("processes inside:\n%s", out)
		}
		if !strings.Contains(out, "nameserver 10.0.2.3\n") {
			t.Errorf("resolv.conf:\n%s", out)
		}

		c := d.sluice("--", "sh", "-c", `read line; echo "got $line"; echo err >&2; cat <&5; echo "$GREETING"; exit 7`)
		c.Env = append(c.Env, "GREETING=hello")
		c.Stdin = strings.NewReader("a line\n")
		given := d.File("given", "a descriptor of the caller's\n")
		f, err := os.Open(given)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c.ExtraFiles = []*os.File{nil, nil, f}
		stdout, stderr, code := d.finish(c)
		if stdout != "got a line\na descriptor of the caller's\nhello\n" || !strings.HasSuffix(stderr, "err\n") || code != 7 {
			t.Errorf("%q, %q, %d", stdout, stderr, code)
		}
		if fallback := strings.Contains(stderr, "using a veth pair and packet sockets"); fallback != (d.kind == execKind{"user", "veth"}) {
			t.Errorf("what is said of the device: %q", stderr)
		}
		d.gone()
	})
}

// TestExecStatus: exit statuses as env(1) has them, and errors before the command starts.
func TestExecStatus(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	script := d.File("script", "echo no interpreter named\n")
	os.Chmod(script, 0o755)
	bad := d.File("bad.rules", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j NOSUCH\nCOMMIT\n")
	busy := d.ns.Listen("127.0.0.1:8099")
	defer busy.Close()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"--", "sh", "-c", "exit 42"}, 42, ""},
		{[]string{"--", "sh", "-c", "kill -TERM $$"}, -1, ""},
		{[]string{script}, 0, ""},
		{[]string{"--", d.Dir}, 126, "permission denied"},
		{[]string{bad}, 126, "permission denied"},
		{[]string{"no-such-program"}, 127, "no such file"},
		{[]string{"./no-such-program"}, 127, "no such file"},
		{[]string{"--", ""}, 127, "no such file"},
		{nil, 125, "a command is missing"},
		{[]string{"--nonsense", "true"}, 125, "unknown flag"},
		{[]string{"--device", "tap", "true"}, 125, "--device tap"},
		{[]string{"--cidr", "10.0.0.0/30", "true"}, 125, "--cidr 10.0.0.0/30"},
		{[]string{"--rules", bad, "--", "sh", "-c", "echo started"}, 125, bad + ":3"},
		{[]string{"--rules", "/no/such/file", "true"}, 125, "/no/such/file"},
		{[]string{"--hide", "/no/such/file", "true"}, 125, "/no/such/file"},
		{[]string{"--publish", "80", "true"}, 125, "--publish 80"},
		{[]string{"--publish", "1:2/sctp", "true"}, 125, "sctp"},
		{[]string{"--publish", "127.0.0.1:8099:80", "--", "sh", "-c", "echo started"}, 125, "127.0.0.1:8099"},
	} {
		out, errs, code := d.run(c.args...)
		if code != c.code || !strings.Contains(strings.ToLower(errs), strings.ToLower(c.want)) || strings.Contains(out, "started") {
			t.Errorf("exec %q: exit status %d, want %d; %q wanted in:\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
	d.gone()
}

// TestExecReaches: TCP, UDP, ping, both families, and what the host's network answers.
func TestExecReaches(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl", "ping", "socat")
		web := strings.Repeat("0123456789abcdef", 1<<16)
		for _, addr := range []string{"198.51.100.1:80", "[2001:db8::1]:80"} {
			website(d.ns, addr, web)
		}
		website(d.ns, "127.0.0.1:80", "the host's loopback")
		echo(d.ns, "198.51.100.1:7")
		echo(d.ns, "[2001:db8::1]:7")
		out := d.shell(`
			for url in http://198.51.100.1/ http://[2001:db8::1]/; do curl -sS --max-time 20 $url | wc -c; done
			for to in 198.51.100.1:7 [2001:db8::1]:7; do printf hello | socat -t 5 -T 5 - UDP:$to; echo; done
			ping -n -c 1 -W 5 198.51.100.1 | grep received
			ping -n -c 1 -W 5 2001:db8::1 | grep received
			ping -n -c 1 -W 5 10.0.2.2 | grep received
			curl -sS --max-time 5 http://198.51.100.1:81/ 2>&1 || echo "status $?"
			curl -sS --max-time 5 http://127.0.0.1/ 2>&1 || echo "status $?"
			curl -sS --max-time 5 http://10.0.2.2/ 2>&1 || echo "status $?"`)
		if n := strings.Count(out, strconv.Itoa(len(web))); n != 2 {
			t.Errorf("%d whole pages", n)
		}
		if n := strings.Count(out, "hello"); n != 2 {
			t.Errorf("%d echoes", n)
		}
		if n := strings.Count(out, "1 received"); n != 3 {
			t.Errorf("%d pings answered", n)
		}
		if n := strings.Count(out, "status 7"); n != 3 || strings.Contains(out, "the host's loopback") {
			t.Errorf("%d connections refused, of 3", n)
		}
		if t.Failed() {
			t.Log(out)
		}
	})
}

// TestExecThousand: a thousand connections at once, each carrying both ways.
func TestExecThousand(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("python3")
		ln := d.ns.Listen("198.51.100.1:9")
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
		out := d.must("--", "python3", "-c", `
import socket
all = []
for i in range(1000):
    s = socket.create_connection(("198.51.100.1", 9), 30)
    all.append(s)
for i, s in enumerate(all):
    s.sendall(b"%08d" % i * 100)
for i, s in enumerate(all):
    s.shutdown(socket.SHUT_WR)
good = 0
for i, s in enumerate(all):
    got = b""
    while True:
        b = s.recv(65536)
        if not b: break
        got += b
    good += got == b"%08d" % i * 100
print(good)
`)
		if strings.TrimSpace(out) != "1000" {
			t.Errorf("%s connections were whole", out)
		}
	})
}

// TestExecPublish: host ports reach inside.
func TestExecPublish(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("python3", "curl", "socat")
		if err := os.Mkdir(d.Dir+"/www", 0o755); err != nil {
			t.Fatal(err)
		}
		page := d.File("www/index.html", "a page from inside")
		p := d.StartCommand(d.sluice("--publish", "127.0.0.1:8080:80", "--publish", "198.51.100.1:5353:53/udp", "--", "sh", "-c",
			"socat -T 20 UDP-RECVFROM:53,fork EXEC:cat & exec python3 -m http.server --directory "+filepath.Dir(page)+" 80"))
		get := func() bool {
			out, err := d.ns.Run("curl", "-sS", "--max-time", "2", "http://127.0.0.1:8080/")
			return err == nil && strings.Contains(out, "a page from inside")
		}
		d.Eventually(deadline, "the published page", get)
		d.Eventually(deadline, "the published UDP port", func() bool {
			out, _ := d.ns.Run("sh", "-c", "printf hello | socat -t 1 - UDP:198.51.100.1:5353")
			return strings.Contains(out, "hello")
		})
		p.Process.Signal(syscall.SIGTERM) // to the shell in front
		d.Eventually(deadline, "an end", func() bool { return !get() })
	})
}

// TestExecRules: rules from a file; packets of the command pass FORWARD from exec0 to uplink0.
func TestExecRules(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		website(d.ns, "198.51.100.1:80", "allowed")
		website(d.ns, "198.51.100.1:81", "forbidden")
		website(d.ns, "[2001:db8::1]:80", "six")
		rules := d.File("deny.rules", `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i exec0 -o uplink0 -p tcp --dport 80 -j ACCEPT
-A FORWARD -i exec0 -o uplink0 -j REJECT --reject-with icmp-admin-prohibited
COMMIT
`)
		out := d.shell(`
			curl -sS --max-time 5 http://198.51.100.1/; echo
			curl -sS --max-time 5 http://198.51.100.1:81/ 2>&1 || echo "four $?"
			curl -sS --max-time 5 http://[2001:db8::1]/ 2>&1 || echo "six $?"`, "--rules", rules)
		if !strings.Contains(out, "allowed\n") || !strings.Contains(out, "four 7") || !strings.Contains(out, "six 7") {
			t.Errorf("with rules:\n%s", out)
		}
	})
}

// TestExecOutlives: the router lives until the last process inside has ended, unless those are to end with the command.
func TestExecOutlives(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		website(d.ns, "198.51.100.1:80", "still there")
		mark := d.Dir + "/run/mark"
		out := d.shell(`
			(while kill -0 $$ 2>/dev/null; do sleep 0.05; done; curl -sS --max-time 5 http://198.51.100.1/) &
			exit 0`)
		if !strings.Contains(out, "still there") {
			t.Errorf("the child that outlived the command said %q", out)
		}
		_, _, code := d.run("--kill-children", "--", "sh", "-c", `(sleep 100; touch `+mark+`) & exit 3`)
		if code != 3 {
			t.Errorf("exit status %d", code)
		}
		d.gone()
	})
}

// stageOf finds the process that holds the namespaces, as a child of exec's.
func (d *den) stageOf(pid int) int {
	d.T.Helper()
	stage := 0
	d.Eventually(deadline, "the process that holds the namespaces", func() bool {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for _, tid := range tasks(pid) {
			more, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
			text = append(append(text, ' '), more...)
		}
		for _, w := range strings.Fields(string(text)) {
			n, _ := strconv.Atoi(w)
			if line, _ := os.ReadFile("/proc/" + w + "/cmdline"); bytes.HasPrefix(line, []byte("sluice-inside")) {
				stage = n
			}
		}
		return stage != 0
	})
	return stage
}

func tasks(pid int) (out []int) {
	dirs, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, e := range dirs {
		n, _ := strconv.Atoi(e.Name())
		out = append(out, n)
	}
	return out
}

// TestExecKilled: whichever side is killed, nothing is left behind.
func TestExecKilled(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		for _, victim := range []string{"router", "inside"} {
			p := d.StartCommand(d.sluice("--", "sh", "-c", `setsid sleep 1000 & sleep 1000 & echo ready; wait`))
			p.Expect("ready", 2*deadline)
			stage := d.stageOf(p.Process.Pid)
			if d.leftovers() == "" {
				t.Fatal("what is looked for afterwards is not there now")
			}
			if victim == "router" {
				syscall.Kill(p.Process.Pid, syscall.SIGKILL)
			} else {
				syscall.Kill(stage, syscall.SIGKILL)
				<-p.Done()
				if code := p.ProcessState.ExitCode(); code != 125 || !strings.Contains(p.Output(), "was killed") {
					t.Errorf("exit status %d\n%s", code, p.Output())
				}
			}
			d.gone()
		}
	})
}

// TestExecSignals: what exec is sent the command gets.
func TestExecSignals(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		for _, s := range []struct {
			name string
			sig  syscall.Signal
		}{{"TERM", syscall.SIGTERM}, {"INT", syscall.SIGINT}, {"HUP", syscall.SIGHUP}, {"USR1", syscall.SIGUSR1}} {
			p := d.StartCommand(d.sluice("--", "sh", "-c", `trap 'echo got it; exit 9' `+s.name+`; echo ready; while :; do sleep 0.05; done`))
			p.Expect("ready", 2*deadline)
			p.Process.Signal(s.sig)
			p.Wait(2 * deadline)
			if code := p.ProcessState.ExitCode(); code != 9 || !strings.Contains(p.Output(), "got it") {
				t.Errorf("%s: exit status %d\n%s", s.name, code, p.Output())
			}
		}
		// Without a handler the signal ends the command, and exec ends by the same one.
		p := d.StartCommand(d.sluice("--", "sh", "-c", `echo ready; exec sleep 1000`))
		p.Expect("ready", 2*deadline)
		p.Process.Signal(syscall.SIGTERM)
		p.Wait(2 * deadline)
		if ws := p.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGTERM {
			t.Errorf("ended with %v", p.ProcessState)
		}
		d.gone()
	})
}

// TestExecHides: the runtime folder and what is asked for are empty inside.
func TestExecHides(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		if err := os.Mkdir(d.Dir+"/secrets", 0o755); err != nil {
			t.Fatal(err)
		}
		d.File("secrets/key", "a secret")
		file := d.File("docker.sock", "another secret")
		d.File("run/session", "a session's socket")
		uid := 65534
		if d.kind.user == "root" {
			uid = 0
		}
		for _, p := range []string{d.Dir + "/run", d.Dir + "/run/session"} {
			os.Chown(p, uid, uid)
		}
		look := `cd /; cat "$1/secrets/key" "$1/docker.sock" "$1/run/session" 2>&1; ls -A "$1/run"; echo end; (umount "$1/run"; unshare -Urm umount "$1/run") 2>&1; cat "$1/run/session"`
		out, errs, _ := d.run("--hide", d.Dir+"/secrets", "--hide", file, "--", "sh", "-c", look, "sh", d.Dir)
		if strings.Contains(out, "secret\n") || strings.Contains(out, "a secret") || strings.Contains(out, "another") || strings.Contains(out, "a session's") || !strings.Contains(out, "end\n") {
			t.Errorf("inside:\n%s%s", out, errs)
		}
		out, _, _ = d.run("--show-runtime-dir", "--", "sh", "-c", look, "sh", d.Dir)
		for _, want := range []string{"a secret", "another secret", "a session's socket"} {
			if !strings.Contains(out, want) {
				t.Errorf("with nothing hidden, %q is missing:\n%s", want, out)
			}
		}
		if files := d.shell("ls -A "+d.runtime(), "--show-runtime-dir"); files != "" {
			t.Errorf("the router's sockets are there: %s", files)
		}
	})
}

// website serves a text over HTTP.
func website(ns *lab.NS, addr, text string) {
	go http.Serve(ns.Listen(addr), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }))
}

// listenEverywhere listens on every address of the den, TCP and UDP, and counts what arrives.
func listenEverywhere(d *den, port int) (hits func() int) {
	n := make(chan struct{}, 1024)
	count := 0
	for _, a := range []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::")} {
		addr := netip.AddrPortFrom(a, uint16(port)).String()
		var ln net.Listener
		var pc net.PacketConn
		var err error
		d.ns.Do(func() {
			lc := net.ListenConfig{}
			net := "4"
			if a.Is6() {
				net = "6"
			}
			if ln, err = lc.Listen(context.Background(), "tcp"+net, addr); err == nil {
				pc, err = lc.ListenPacket(context.Background(), "udp"+net, addr)
			}
		})
		if err != nil {
			d.T.Fatal(err)
		}
		d.T.Cleanup(func() { ln.Close(); pc.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				n <- struct{}{}
				c.Close()
			}
		}()
		go func() {
			b := make([]byte, 100)
			for {
				if _, _, err := pc.ReadFrom(b); err != nil {
					return
				}
				n <- struct{}{}
			}
		}()
	}
	return func() int {
		for {
			select {
			case <-n:
				count++
			default:
				return count
			}
		}
	}
}
