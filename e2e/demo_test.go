package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"sluice/e2e/lab"
)

// TestDemo runs `make demo`'s script: it ends by itself, in order, and leaves nothing.
func TestDemo(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.Need("ping", "traceroute", "curl", "iperf3", "python3", "bash")
	c := exec.Command("bash", "demo.sh")
	c.Env = append(os.Environ(), "SLUICE="+lab.Binary(t), "TMPDIR="+l.Dir)
	p := l.StartCommand(c)
	if err := p.Wait(6 * deadline); err != nil {
		t.Errorf("the demo ended with %v", err)
	}
	for _, want := range []string{
		"3 received", " 1  10.0.1.1 ", "the server says: you come from 198.51.100.1", "the client says: you come from 198.51.100.2",
		"HTTP 200", "receiver", "MASQUERADE", "[ASSURED]", "the router ended cleanly", "its devices are gone",
	} {
		if !strings.Contains(p.Output(), want) {
			t.Errorf("the demo does not show %q", want)
		}
	}
	for _, end := range []string{"client", "server"} {
		if _, err := os.Stat(fmt.Sprintf("/run/netns/sluice-demo-%s-%d", end, p.Process.Pid)); !os.IsNotExist(err) {
			t.Errorf("the namespace of the %s: %v", end, err)
		}
	}
	left, err := os.ReadDir(l.Dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoWithoutRoot runs it as an ordinary user, in a user namespace.
func TestDemoWithoutRoot(t *testing.T) {
	b := newBox(t)
	b.Need("ping", "traceroute", "curl", "iperf3", "python3", "bash", "unshare")
	wrap := b.wrap("0666", ordinary)
	if out, err := exec.Command(wrap[0], append(wrap[1:], "sh", "-c", "cd $PWD/.. && test -r e2e/demo.sh && unshare -Urnm true")...).CombinedOutput(); err != nil {
		t.Skipf("ordinary users may not read this or not make user namespaces here: %v\n%s", err, out)
	}
	c := exec.Command(wrap[0], append(wrap[1:], "bash", "demo.sh")...)
	c.Env = append(os.Environ(), "SLUICE="+lab.Binary(t), "TMPDIR="+b.Dir+"/run")
	p := b.StartCommand(c)
	if err := p.Wait(6 * deadline); err != nil || !strings.Contains(p.Output(), "its devices are gone") {
		t.Errorf("the demo ended with %v", err)
	}
	if left, err := os.ReadDir(b.Dir + "/run"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
