package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const seeRules = `
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
  "-A FORWARD -i lan0 -p tcp -m multiport --dports 80,5201 -j ACCEPT",
  "-A FORWARD -p tcp --dport 81 -j REJECT --reject-with tcp-reset",
]
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[sysctl]
"net.netfilter.nf_conntrack_acct" = 1
`

// watcher starts a command that looks at the running router and waits until it does.
func (b *bed) watcher(args ...string) (*exec.Cmd, *safeBuffer, func() string) {
	b.T.Helper()
	c := b.r.Command(args...)
	var out, errs safeBuffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		b.T.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	b.T.Cleanup(func() { c.Process.Kill() })
	return c, &out, func() string {
		b.T.Helper()
		select {
		case err := <-done:
			if err != nil {
				b.T.Fatalf("%v: %v\n%s", args, err, errs.String())
			}
		case <-time.After(30 * time.Second):
			b.T.Fatalf("%v does not end\n%s%s", args, out.String(), errs.String())
		}
		return out.String()
	}
}

// awaitWatch waits until the router is looked at by so many.
func (b *bed) awaitWatch(n int) {
	b.T.Helper()
	b.Eventually(10*time.Second, "somebody to look", func() bool { return b.r.Status().Watches == n })
}

// TestLiveTrace: what is traced is what happens to real packets; everything else goes on.
func TestLiveTrace(t *testing.T) {
	b := newBed(t, seeRules)
	serve(b.server, "198.51.100.2:80")
	_, _, wait := b.watcher("trace", "--live", "-p", "tcp", "--dport", "80", "--syn", "--count", "1")
	_, _, waitJSON := b.watcher("trace", "--live", "--json", "--count", "2", "-p", "tcp", "--dport", "81")
	_, _, waitKernel := b.watcher("trace", "--live", "--kernel", "--count", "1", "-o", "wan0", "-p", "tcp", "-m", "conntrack", "--ctstate", "NEW")
	b.awaitWatch(3)
	if _, err := hear(b.client, "198.51.100.2:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := hear(b.client, "198.51.100.2:81"); err == nil {
		t.Error("port 81 answered")
	}
	out := wait()
	for _, w := range []string{"in by lan0", "conntrack: NEW", "routing  unicast dev wan0", "+ 2 -A FORWARD -i lan0 -p tcp -m multiport --dports 80,5201 -j ACCEPT", "MASQUERADE", "forwarded out by wan0"} {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
	lines := strings.Split(strings.TrimSpace(waitJSON()), "\n")
	var first, second struct{ Verdict, Reason, Cause string }
	if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &first) != nil || json.Unmarshal([]byte(lines[1]), &second) != nil ||
		first.Verdict != "dropped" || first.Reason != "filter.FORWARD.rule" || second.Verdict != "sent" || second.Cause != "answer" {
		t.Errorf("%+v %+v\n%s", first, second, lines)
	}
	if out := waitKernel(); !strings.Contains(out, "TRACE: nat:POSTROUTING:rule:1 IN=lan0 OUT=wan0 MAC= SRC=10.0.1.2 DST=198.51.100.2") {
		t.Error(out)
	}
	b.awaitWatch(0)
	if out, errs, code := b.r.Tool("trace", "--live", "-p", "nonsense"); code == 0 || !strings.Contains(errs, "nonsense") {
		t.Errorf("%d %s%s", code, out, errs)
	}
}

// TestWatchUnderLoad: somebody who looks at everything, and one who stops
// reading, change nothing for a connection at full speed.
func TestWatchUnderLoad(t *testing.T) {
	b := newBed(t, seeRules)
	b.Need("iperf3")
	b.server.Start("iperf3", "-s")
	b.Eventually(5*time.Second, "iperf3 to listen", func() bool {
		c, err := b.server.Dial("tcp", "198.51.100.2:5201")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	// One who never reads.
	stuck := b.r.Command("capture", "--at", "all")
	pipe, err := stuck.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stuck.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stuck.Process.Kill(); pipe.Close(); stuck.Wait() }()
	_, out, _ := b.watcher("trace", "--live", "--json", "-p", "tcp")
	b.awaitWatch(2)
	said := b.client.Must("iperf3", "-c", "198.51.100.2", "-n", "64M", "-J")
	var r struct {
		End struct {
			Sent     struct{ Bytes int64 } `json:"sum_sent"`
			Received struct{ Bytes int64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(said), &r); err != nil || r.End.Received.Bytes < 60<<20 {
		t.Errorf("%v: %d bytes arrived", err, r.End.Received.Bytes)
	}
	for _, d := range b.r.Status().Drops {
		if strings.HasPrefix(d.Reason, "conntrack.") || strings.HasPrefix(d.Reason, "filter.") {
			t.Errorf("%d packets dropped: %s", d.Packets, d.Reason)
		}
	}
	b.Eventually(10*time.Second, "traces", func() bool { return out.String() != "" })
	// In the end it is cut off, and the one who reads is not.
	b.Eventually(2*time.Minute, "the end of the capture that nobody reads", func() bool { return b.r.Status().Watches == 1 })
	b.client.Must("ping", "-c", "1", "-W", "5", "10.0.1.1")
}

// TestCapture: tshark reads what was captured, and shows what became of it.
func TestCapture(t *testing.T) {
	b := newBed(t, seeRules)
	b.Need("tshark")
	serve(b.server, "198.51.100.2:80")
	f := filepath.Join(b.Dir, "see.pcapng")
	_, _, wait := b.watcher("capture", "-w", f, "--at", "all", "--count", "2", "-p", "tcp", "-m", "multiport", "--dports", "80,82", "--syn")
	b.awaitWatch(1)
	if _, err := hear(b.client, "198.51.100.2:80"); err != nil {
		t.Fatal(err)
	}
	go func() { // dropped by the policy: nobody answers
		if c, err := b.client.DialTimeout("tcp", "198.51.100.2:82", 3*time.Second); err == nil {
			c.Close()
		}
	}()
	wait()
	c := exec.Command("tshark", "-r", f, "-T", "fields", "-E", "separator=|", "-e", "frame.interface_name", "-e", "ip.src", "-e", "tcp.dstport", "-e", "frame.comment")
	c.Env = append(os.Environ(), "HOME="+b.Dir)
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{
		"lan0|10.0.1.2|80|packet 1 as it came in; forwarded by wan0",
		"lan0|10.0.1.2|80|packet 1 after FORWARD: ACCEPT, rule 2 of FORWARD in table filter: -A FORWARD -i lan0",
		"wan0|10.0.1.2|80|packet 1 before POSTROUTING", "wan0|198.51.100.1|80|packet 1 after POSTROUTING: ACCEPT", "wan0|198.51.100.1|80|packet 1 as it left",
		"lan0|10.0.1.2|82|packet 2 dropped: filter.FORWARD.policy, policy of FORWARD in table filter",
	} {
		if !strings.Contains(string(out), w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
}

// TestTop: the text shows what moves.
func TestTop(t *testing.T) {
	b := newBed(t, seeRules)
	serve(b.server, "198.51.100.2:80")
	if _, err := hear(b.client, "198.51.100.2:80"); err != nil {
		t.Fatal(err)
	}
	out := b.r.Must("top", "--once", "--interval", "200ms")
	for _, w := range []string{"lan0", "wan0", "POSTROUTING", "198.51.100.2:80", "198.51.100.1:", "-A POSTROUTING -o wan0 -j MASQUERADE"} {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
	// In a terminal: script(1) gives it one.
	b.Need("script")
	c := exec.Command("script", "-qefc", strings.Join(append([]string{}, fmt.Sprintf("stty rows 24 cols 100; exec %s top --interval 200ms", strings.Join(b.r.Command().Args, " "))), " "), "/dev/null")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var screen safeBuffer
	c.Stdout, c.Stderr = &screen, &screen
	c.Env = append(os.Environ(), "TERM=xterm")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Process.Kill()
	b.Eventually(20*time.Second, "the first view", func() bool { return strings.Contains(screen.String(), "RX PKT/S") })
	in.Write([]byte("4"))
	b.Eventually(20*time.Second, "the rules", func() bool { return strings.Contains(screen.String(), "-j MASQUERADE") })
	in.Write([]byte("q"))
	if err := c.Wait(); err != nil {
		t.Errorf("%v\n%s", err, screen.String())
	}
}

// safeBuffer is a buffer that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
