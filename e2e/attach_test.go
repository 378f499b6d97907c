package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/e2e/lab"
)

// container is a process with user, network and mount namespaces of its own, as
// rootless engines make them, and no network yet.
type container struct {
	*lab.Proc
	d   *den
	pid int
}

func (d *den) container() *container {
	d.T.Helper()
	conf := fmt.Sprintf("%s/container-%d", d.home(fmt.Sprintf("c%d", time.Now().UnixNano())), os.Getpid())
	p := d.StartCommand(d.command("unshare", "-Urnm", "sh", "-ec", `echo "nameserver 10.0.2.3" >"$0"; mount --bind "$0" /etc/resolv.conf; ip link set lo up; echo "pid $$ is up"; exec sleep 1000`, conf))
	p.Expect("is up", 2*deadline)
	pid, err := strconv.Atoi(regexp.MustCompile(`pid (\d+)`).FindStringSubmatch(p.Output())[1])
	if err != nil {
		d.T.Fatal(err)
	}
	return &container{p, d, pid}
}

// command is a command inside, as its root.
func (c *container) command(args ...string) *exec.Cmd {
	pre := []string{"timeout", "-k", "1", "60"}
	if c.d.kind.user != "root" {
		pre = append(pre, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
	}
	pre = append(pre, "nsenter", "-t", fmt.Sprint(c.pid), "-U", "-n", "-m", "--preserve-credentials", "env", "no_proxy=*")
	args = append(pre, args...)
	return exec.Command(args[0], args[1:]...)
}

// sh runs a shell script inside.
func (c *container) sh(script string) (string, error) {
	out, err := c.command("sh", "-c", script).CombinedOutput()
	return string(out), err
}

// says fails the test if a script does not print what is wanted.
func (c *container) says(script, want string) {
	c.d.T.Helper()
	if out, err := c.sh(script); !strings.Contains(out, want) {
		c.d.T.Errorf("in the container: %s\nprinted (%v):\n%sand not %q", script, err, out, want)
	}
}

// TestAttach: a network for namespaces that are there already.
func TestAttach(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl", "nsenter", "python3", "dig")
		d.address("198.51.100.3")
		d.resolves("good.test. 300 IN A 198.51.100.1", "bad.test. 300 IN A 198.51.100.3")
		for _, a := range []string{"198.51.100.1:80", "198.51.100.3:80"} {
			website(d.ns, a, "a page")
		}
		website(d.ns, "198.51.100.1:81", "another port")
		c := d.container()
		socket := d.Dir + "/run/x.sock"
		cmd := d.tool("attach", "--allow", "good.test:80", "--publish", "127.0.0.1:8080:80", fmt.Sprint(c.pid))
		cmd.Env = append(cmd.Env, "SLUICE_SOCKET="+socket)
		a := d.StartCommand(cmd)
		a.Expect("sluice: ready", 6*deadline)
		c.says("ip -o addr show exec0; ip route", "10.0.2.100/24")
		c.says("curl -sS --max-time 20 http://good.test/", "a page")
		c.says("dig +short +tcp good.test", "198.51.100.1")
		c.says("curl -sS --max-time 20 http://good.test:81/ || echo status $?", "status 7")
		c.says("curl -sS --max-time 20 http://198.51.100.3/ || echo status $?", "status 7")
		c.says("curl -sS --max-time 20 http://bad.test/ || echo status $?", "status 6")
		d.StartCommand(c.command("python3", "-m", "http.server", "--directory", d.home("www"), "80"))
		d.Eventually(2*deadline, "the published page", func() bool {
			out, err := d.ns.Run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080/")
			return err == nil && strings.Contains(out, "Directory listing")
		})
		// The router is controlled from outside, and not from in there.
		if out, err := d.command(lab.Binary(t), "--socket", socket, "iptables", "-S", "FORWARD").CombinedOutput(); err != nil || !strings.Contains(string(out), "--match-set allowed-port dst,dst") {
			t.Errorf("iptables outside: %v\n%s", err, out)
		}
		if out, err := c.sh(lab.Binary(t) + " --socket " + socket + " iptables -F 2>&1"); err == nil || !strings.Contains(out, "may not control this router: it is one of those behind it") {
			t.Errorf("iptables inside worked:\n%s", out)
		}
		c.Stop()
		a.Wait(2 * deadline)
		if code := a.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit status %d", code)
		}
		for _, want := range []string{"allowed good.test 198.51.100.1 tcp/80", "denied 198.51.100.3 tcp/80", "refused to look up bad.test"} {
			if !strings.Contains(a.Output(), want) {
				t.Errorf("%q was not said:\n%s", want, a.Output())
			}
		}

		// By paths, until a signal; then the device is gone and another may come.
		c = d.container()
		ns := fmt.Sprintf("/proc/%d/ns/", c.pid)
		for range 2 {
			a := d.StartCommand(d.tool("attach", "--netns", ns+"net", "--userns", ns+"user"))
			a.Expect("sluice: ready", 6*deadline)
			c.says("curl -sS --max-time 20 http://bad.test/", "a page")
			a.Process.Signal(syscall.SIGTERM)
			a.Wait(2 * deadline)
			if code := a.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit status %d\n%s", code, a.Output())
			}
			d.Eventually(2*deadline, "the device to go", func() bool {
				_, err := c.sh("ip link show exec0")
				return err != nil
			})
		}

		if d.kind.user == "root" { // a pod's namespace: root's, with a name, in the node's user namespace
			pod := d.NS("pod")
			a := d.StartCommand(d.tool("attach", "--allow", "198.51.100.1", "--netns", "/run/netns/"+pod.Name))
			a.Expect("sluice: ready", 6*deadline)
			if out, err := pod.Run("curl", "-sS", "--max-time", "20", "http://198.51.100.1/"); err != nil || out != "a page" {
				t.Errorf("in the pod: %v\n%s", err, out)
			}
			refused(t, pod, "198.51.100.3:80", syscall.ECONNREFUSED)
			a.Process.Signal(syscall.SIGTERM)
			a.Wait(2 * deadline)
		}
	})
}

// TestAttachBadInput: what cannot be attached to is named.
func TestAttachBadInput(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	c := d.container()
	ns := fmt.Sprintf("/proc/%d/ns/", c.pid)
	secret := d.File("secret", "")
	os.Chmod(secret, 0o600)
	for _, x := range []struct {
		args []string
		want string
	}{
		{nil, "either a process number or --netns"},
		{[]string{"0"}, `"0" is no process number`},
		{[]string{"me"}, `"me" is no process number`},
		{[]string{"--netns", ns + "net", "1"}, "either a process number or --netns"},
		{[]string{"4194303"}, "process 4194303"},
		{[]string{fmt.Sprint(os.Getpid())}, "permission denied"},
		{[]string{"--netns", "/no/such/namespace"}, "/no/such/namespace: no such file"},
		{[]string{"--netns", secret}, "permission denied"},
		{[]string{"--netns", "/etc/hostname"}, "/etc/hostname is not a network namespace"},
		{[]string{"--netns", ns + "user"}, "is not a network namespace"},
		{[]string{"--netns", ns + "net", "--userns", ns + "net"}, "is not a user namespace"},
		{[]string{"--netns", ns + "net"}, "it belongs to a user namespace that was not entered (see --userns)"},
		{[]string{"--allow", "missing.invalid", "--rules", "/no/such/rules", fmt.Sprint(c.pid)}, "/no/such/rules"},
	} {
		out, errs, code := d.finish(d.tool("attach", x.args...))
		if code != 125 || !strings.Contains(errs, x.want) || strings.Contains(out, "ready") {
			t.Errorf("attach %q: exit status %d; %q wanted in:\n%s%s", x.args, code, x.want, out, errs)
		}
	}
}

// slirp is a running `sluice slirp4netns`.
type slirp struct {
	*lab.Proc
	exit *os.File
}

// slirp starts it with these options, a ready-fd and an exit-fd, and waits until it is ready.
func (d *den) slirp(argv0 string, args ...string) *slirp {
	d.T.Helper()
	ready, tell, err := os.Pipe()
	if err != nil {
		d.T.Fatal(err)
	}
	defer ready.Close()
	watch, exit, err := os.Pipe()
	if err != nil {
		d.T.Fatal(err)
	}
	pre := []string{lab.Binary(d.T), "slirp4netns"}
	if argv0 != "" {
		pre = []string{argv0}
	}
	c := d.command(append(append(pre, "-r", "3", "-e", "4"), args...)...)
	c.ExtraFiles = []*os.File{tell, watch}
	p := d.StartCommand(c)
	tell.Close()
	watch.Close()
	d.T.Cleanup(func() { exit.Close() })
	ready.SetReadDeadline(time.Now().Add(2 * deadline))
	if b, err := io.ReadAll(ready); err != nil || string(b) != "1" {
		syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGQUIT) // where does it hang?
		p.Wait(deadline)
		d.T.Fatalf("ready-fd gave %q (%v)\n%s", b, err, p.Output())
	}
	return &slirp{p, exit}
}

// end ends it by its exit-fd.
func (s *slirp) end(d *den) {
	d.T.Helper()
	s.exit.Close()
	s.Wait(2 * deadline)
	if code := s.ProcessState.ExitCode(); code != 0 {
		d.T.Errorf("exit status %d after exit-fd was closed\n%s", code, s.Output())
	}
}

// TestSlirp: what starts slirp4netns can start sluice.
func TestSlirp(t *testing.T) {
	t.Parallel()
	for _, k := range []execKind{{"root", "tun"}, {"user", "tun"}} {
		t.Run(k.String(), func(t *testing.T) {
			d := newDen(t, k)
			d.Need("curl", "nsenter", "dig")
			d.address("198.51.100.2")
			d.resolves("good.test. 300 IN A 198.51.100.1")
			who := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				host, _, _ := net.SplitHostPort(r.RemoteAddr)
				io.WriteString(w, "you are "+host+"\n")
			})
			for _, a := range []string{"198.51.100.1:80", "[2001:db8::1]:80"} {
				go http.Serve(d.ns.Listen(a), who)
			}
			website(d.ns, "127.0.0.1:82", "the host's loopback")

			t.Run("plain", func(t *testing.T) {
				c := d.container()
				s := d.slirp("", "-c", fmt.Sprint(c.pid), "tap0")
				c.says("ip -o addr show tap0", "inet 10.0.2.100/24")
				c.says("ip link show tap0", "mtu 1500")
				c.says("ip route", "default via 10.0.2.2 dev tap0")
				c.says("curl -sS --max-time 20 http://good.test/", "you are 198.51.100.1")
				c.says("dig +short +tcp @10.0.2.3 good.test", "198.51.100.1")
				c.says("curl -sS --max-time 20 http://10.0.2.2:82/", "the host's loopback")
				c.says("curl -sS --max-time 20 http://198.51.100.1:81/ || echo status $?", "status 7")
				c.says("ping -n -c 1 -W 10 10.0.2.2; ping -n -c 1 -W 10 198.51.100.1", "1 received")
				c.says("ip neigh show 10.0.2.2", "lladdr 52:55:0a:00:02:02")
				c.says("curl -sS --max-time 20 -6 http://[2001:db8::1]/ || echo status $?", "status 7")
				s.end(d)
				if out, err := c.sh("ip link show tap0"); err == nil {
					t.Errorf("the device is still there:\n%s", out)
				}
			})
			t.Run("everything", func(t *testing.T) {
				c := d.container()
				link := d.home("bin") + "/slirp4netns"
				if err := os.Symlink(lab.Binary(t), link); err != nil {
					t.Fatal(err)
				}
				api := d.home("api") + "/api.sock"
				ns := fmt.Sprintf("/proc/%d/ns/", c.pid)
				s := d.slirp(link, "--configure", "--mtu=65520", "--enable-ipv6", "--api-socket", api, "--cidr=10.1.2.0/24", "--macaddress=02:00:00:00:00:77", "--outbound-addr=198.51.100.2", "--outbound-addr6=2001:db8::1",
					"--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--target-type=netns", "--netns-type=path", "--userns-path="+ns+"user", ns+"net", "tap7")
				c.says("ip -o addr show tap7", "inet 10.1.2.100/24")
				c.says("ip -o addr show tap7", "inet6 fd00::100/64")
				c.says("ip link show tap7", "mtu 65520")
				c.says("ip link show tap7", "link/ether 02:00:00:00:00:77")
				c.says("curl -sS --max-time 20 http://198.51.100.1/", "you are 198.51.100.2")
				c.says("curl -sS --max-time 20 http://[2001:db8::1]/", "you are 2001:db8::1")
				c.says("ip -6 neigh show fd00::2", "lladdr 52:55:0a:01:02:02")
				c.says("dig +short @10.1.2.3 good.test", "198.51.100.1")
				c.says("curl -sS --max-time 20 http://10.1.2.2:82/ || echo status $?", "status 7")
				if caps := status(t, &lab.Sluice{Proc: s.Proc}, "Seccomp"); caps != "2" {
					t.Errorf("no system call filter: %s", caps)
				}
				// The API forwards ports of the host.
				ask := func(text string) (answer map[string]any) {
					t.Helper()
					conn, err := net.Dial("unix", api)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(2 * deadline))
					io.WriteString(conn, text)
					conn.(*net.UnixConn).CloseWrite()
					b, err := io.ReadAll(conn)
					if err == nil {
						err = json.Unmarshal(b, &answer)
					}
					if err != nil {
						t.Fatalf("%s: %v\n%s", text, err, b)
					}
					return answer
				}
				d.StartCommand(c.command("python3", "-m", "http.server", "--directory", d.home("www"), "80"))
				got := fmt.Sprint(ask(`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.1.2.100", "guest_port": 80}}`),
					ask(`{"execute": "add_hostfwd", "arguments": {"proto": "udp", "host_port": 8081, "guest_port": 81}}`), ask(`{"execute": "list_hostfwd"}`))
				if want := "map[return:map[id:1]] map[return:map[id:2]] map[entries:[map[guest_addr:10.1.2.100 guest_port:80 host_addr:127.0.0.1 host_port:8080 id:1 proto:tcp] map[guest_addr:10.1.2.100 guest_port:81 host_addr:0.0.0.0 host_port:8081 id:2 proto:udp]]]"; got != want {
					t.Errorf("the API said\n%s, not\n%s", got, want)
				}
				get := func() bool {
					out, err := d.ns.Run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080/")
					return err == nil && strings.Contains(out, "Directory listing")
				}
				d.Eventually(2*deadline, "the forwarded page", get)
				for _, x := range [][2]string{
					{`{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_port": 80}}`, "slirp_add_hostfwd failed"},
					{`{"execute": "add_hostfwd", "arguments": {"proto": "sctp", "host_port": 8082, "guest_port": 80}}`, "bad arguments.proto"},
					{`{"execute": "remove_hostfwd", "arguments": {"id": 7}}`, "bad arguments.id"},
					{`{"execute": "fly"}`, "bad request"},
					{`{"arguments": {}}`, "no execute"},
					{`nonsense`, "bad request"},
				} {
					if out := fmt.Sprint(ask(x[0])); !strings.Contains(out, x[1]) || !strings.Contains(out, "error") {
						t.Errorf("%s: %s, and not %q", x[0], out, x[1])
					}
				}
				if got := fmt.Sprint(ask(`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`)); got != "map[return:map[]]" {
					t.Errorf("remove_hostfwd: %s", got)
				}
				if get() {
					t.Error("the port is forwarded still")
				}
				s.end(d)
			})
			t.Run("bare", func(t *testing.T) {
				c := d.container()
				s := d.slirp("", "--disable-dns", fmt.Sprint(c.pid), "tap0")
				c.says("ip link show tap0", "state DOWN")
				if out, _ := c.sh("ip -o -4 addr show tap0"); strings.Contains(out, "inet") {
					t.Errorf("without -c the device has addresses: %s", out)
				}
				c.says("ip addr add 10.0.2.15/24 dev tap0; ip link set tap0 up; ip route add default via 10.0.2.2; curl -sS --max-time 20 http://198.51.100.1/", "you are 198.51.100.1")
				c.says("dig +short +time=2 +tries=1 @10.0.2.3 good.test || echo no answer", "no answer")
				s.Process.Signal(syscall.SIGTERM)
				s.Wait(2 * deadline)
			})
		})
	}
}

// TestSlirpBadInput: options as slirp4netns has them, and what it refuses.
func TestSlirpBadInput(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	c := d.container()
	pid := fmt.Sprint(c.pid)
	for _, x := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "--target-type=TYPE"},
		{[]string{"--version"}, 0, "slirp4netns version 1."},
		{nil, 1, "Usage: slirp4netns"},
		{[]string{pid}, 1, "Usage: slirp4netns"},
		{[]string{pid, "tap0", "more"}, 1, "too many arguments"},
		{[]string{"--fly", pid, "tap0"}, 1, "fly"},
		{[]string{"--target-type=bess", "/tmp/bess.sock", "tap0"}, 1, "--target-type=bess"},
		{[]string{"--target-type=vm", pid, "tap0"}, 1, "target-type"},
		{[]string{"--netns-type=name", pid, "tap0"}, 1, `netns-type must be either "path" or "pid"`},
		{[]string{"--netns-type=path", "/no/such", "tap0"}, 1, "existing path expected"},
		{[]string{"0", "tap0"}, 1, "PID must be a positive integer"},
		{[]string{"-m", "65522", pid, "tap0"}, 1, "MTU must be a positive integer (< 65522)"},
		{[]string{"--cidr=10.0.2.0/26", pid, "tap0"}, 1, "prefix length needs to be 1-25"},
		{[]string{"--cidr=10.0.2.1/24", pid, "tap0"}, 1, "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.1/24"},
		{[]string{"--cidr=fd00::/64", pid, "tap0"}, 1, "invalid CIDR"},
		{[]string{"--macaddress=02:00:00:00:00:01", pid, "tap0"}, 1, "--macaddress cannot be specified when --configure or -c is not specified"},
		{[]string{"-c", "--macaddress=02:00", pid, "tap0"}, 1, "invalid MAC address"},
		{[]string{"-c", "--outbound-addr=nowhere", pid, "tap0"}, 1, "outbound address"},
	} {
		out, errs, code := d.finish(d.tool("slirp4netns", x.args...))
		if code != x.code || !strings.Contains(out+errs, x.want) {
			t.Errorf("slirp4netns %q: exit status %d, not %d; %q wanted in:\n%s%s", x.args, code, x.code, x.want, out, errs)
		}
	}
}
