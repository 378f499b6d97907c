package wire

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sluice/bench/report"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "peer" {
		if err := Peer(os.Args[2:]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRun: every path that needs nothing from elsewhere carries every kind of
// traffic, and through sluice no datagram comes damaged or out of order.
func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and TUN devices")
	}
	for _, need := range []string{"iperf3", "iptables-legacy-restore", "conntrack"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skipf("needs the program %s", need)
		}
	}
	bin := filepath.Join(t.TempDir(), "sluice")
	if out, err := exec.Command("go", "build", "-o", bin, "sluice/cmd/sluice").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rep := &report.Report{Version: report.Version}
	names := []string{"linux", "bare", "gvisor", "sluice"}
	hosted := []string{"uplink"}
	for _, p := range []string{"pasta", "slirp4netns"} {
		if _, err := exec.LookPath(p); err == nil {
			hosted = append(hosted, p)
		}
	}
	plan := &Plan{Options: Options{Sluice: bin, Self: self, Paths: append(hosted, names...)}, Rounds: 1, Time: 200 * time.Millisecond, Log: t.Output()}
	if err := Run(t.Context(), plan, rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.Notes) > 0 {
		t.Error(rep.Notes)
	}
	for _, n := range hosted {
		for _, m := range []string{"tcp1", "tcp8", "tcp1in", "tcp8in", "rr", "conn", "start", "memory"} {
			if v := rep.Of(n, m).Summary(); v.N != 1 || v.Median <= 0 {
				t.Errorf("%s, %s: %+v", n, m, v)
			}
		}
	}
	for _, n := range names {
		for _, m := range []string{"tcp1", "tcp8", "udp64", "udp64w", "udp1400", "ping", "rr", "conn"} {
			// On a busy machine nothing may arrive in so short a time of one at a time.
			if v := rep.Of(n, m).Summary(); v.N != 1 || v.Median <= 0 && m != "udp64w" {
				t.Errorf("%s, %s: %+v", n, m, v)
			}
		}
		if n != "sluice" { // the kernel may deal a flow to both threads of another
			continue
		}
		if v := rep.Of(n, "udp.disorder").Summary(); v.Median != 0 {
			t.Errorf("%s: %v datagrams out of order or damaged", n, v.Median)
		}
	}
}
