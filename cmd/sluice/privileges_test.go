package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sluice/internal/host"
	"sluice/router"
)

func TestNeeds(t *testing.T) {
	for _, c := range []struct {
		cfg  router.Config
		want []host.Capability
	}{
		{router.Config{}, []host.Capability{host.CapNetAdmin}},
		{router.Config{Interfaces: []router.InterfaceConfig{{}, {Host: &router.HostConfig{}}}}, []host.Capability{host.CapNetAdmin}},
		{router.Config{Interfaces: []router.InterfaceConfig{{}, {Host: &router.HostConfig{NetNS: "x"}}}}, []host.Capability{host.CapNetAdmin, host.CapSysAdmin}},
	} {
		if got := needs(&c.cfg); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c.cfg, got)
		}
	}
}

// TestRootDrops: every thread of a router that root started has CAP_NET_ADMIN at most.
func TestRootDrops(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p := newPlace(t)
	cfg := p.file("r.toml", "")
	// a /run of its own: root's runtime directory is not the test's to use
	c := exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs tmpfs /run && exec "$@"`, "sh", p.bin, "run", "-c", cfg, "--socket", filepath.Join(p.dir, "r.sock"))
	r := p.await(c)
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(r.Process.Pid) + "/task/*/status")
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			_, rest, _ := strings.Cut(string(status), "\n"+set+":\t")
			caps, err := strconv.ParseUint(rest[:16], 16, 64)
			if err != nil || caps&^(1<<12) != 0 {
				t.Errorf("%s: %s %x, %v", task, set, caps, err)
			}
		}
		if !strings.Contains(string(status), "\nNoNewPrivs:\t1\n") {
			t.Errorf("%s: no no_new_privs", task)
		}
	}
	r.Process.Signal(syscall.SIGTERM)
	if status := r.end(t); status != 0 {
		t.Errorf("status %d\n%s", status, r.log)
	}
}
