package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func testNS(t *testing.T, suffix string) *Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	name := fmt.Sprintf("slc-host-%d-%s", os.Getpid(), suffix)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	ns, err := OpenNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

func TestParseRoute(t *testing.T) {
	for text, want := range map[string]string{
		"default via 10.0.1.1":                 "default via 10.0.1.1",
		"default via fd00:1::1":                "::/0 via fd00:1::1",
		"default":                              "default",
		"10.0.0.0/8 via 10.0.1.1":              "10.0.0.0/8 via 10.0.1.1",
		"  fd00::/8   via fe80::1 metric 5":    "fd00::/8 via fe80::1 metric 5",
		"192.0.2.7":                            "192.0.2.7/32",
		"192.0.2.0/24 src 10.0.0.1":            "192.0.2.0/24 src 10.0.0.1",
		"10.0.0.0/8 via 10.0.1.1 src 10.0.1.2": "10.0.0.0/8 via 10.0.1.1 src 10.0.1.2",
		"":                                     "!empty",
		"10.0.0.0/8 via":                       "!nothing follows",
		"10.0.0.1/8":                           "!host bits",
		"10.0.0.0/8 via fd00::1":               "!not of the family",
		"10.0.0.0/8 dev eth0":                  "!unknown word",
		"10.0.0.0/33":                          "!neither",
		"default via 10.0.0.300":               "!via 10.0.0.300",
		"10.0.0.0/8 via 10.0.0.1 metric -3":    "!out of range",
		"10.0.0.0/8 via 10.0.0.1 metric 987654321987": "!metric",
	} {
		r, err := ParseRoute(text)
		if bad, is := strings.CutPrefix(want, "!"); is {
			if err == nil || !strings.Contains(err.Error(), bad) {
				t.Errorf("%q: %v, want %q in the error", text, err, bad)
			}
		} else if err != nil || r.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, r, err, want)
		}
	}
}

func TestNamespaceDo(t *testing.T) {
	ns := testNS(t, "do")
	in := func() (s string) {
		l, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	outside := in()
	boom := errors.New("boom")
	for range 20 {
		var inside string
		if err := ns.Do(func() error { inside = in(); return boom }); err != boom {
			t.Fatal(err)
		}
		if inside == outside || in() != outside {
			t.Fatalf("inside %s, outside %s, after %s", inside, outside, in())
		}
	}
	var own *Namespace
	if err := ns.Do(func() (err error) { own, err = OpenNamespace(ns.String()); return err }); err != nil {
		t.Fatal(err)
	}
	if !own.Own() || ns.Own() {
		t.Errorf("own: %v %v", own.Own(), ns.Own())
	}
}

func TestOpenNamespaceErrors(t *testing.T) {
	for name, want := range map[string]string{
		"slc-host-none":     "ip netns add slc-host-none",
		"/etc/passwd":       "not a network namespace",
		"/proc/self/ns/uts": "",
	} {
		ns, err := OpenNamespace(name)
		if want == "" { // another kind of namespace: entering it is refused
			if err == nil {
				err = ns.Do(func() error { return nil })
				ns.Close()
			}
			if err == nil {
				t.Errorf("%s was entered as a network namespace", name)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestApply(t *testing.T) {
	ns := testNS(t, "apply")
	ip := func(args ...string) string { return run(t, append([]string{"ip", "-n", ns.String()}, args...)...) }
	ip("tuntap", "add", "tun0", "mode", "tun", "multi_queue")
	end := &End{MTU: 1420, Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd01::2/64")}}
	for _, s := range []string{"default via 10.1.0.1", "::/0 via fd01::1", "10.5.0.0/16"} {
		r, err := ParseRoute(s)
		if err != nil {
			t.Fatal(err)
		}
		end.Routes = append(end.Routes, r)
	}
	apply := func() error {
		return ns.Do(func() error {
			if err := Tune("tun0"); err != nil {
				return err
			}
			return Apply(ns, "tun0", end, nil)
		})
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		return ip("addr", "show", "tun0") + ip("route") + ip("-6", "route")
	}
	first := state()
	for _, want := range []string{"mtu 1420", "qlen 1000", "inet 10.1.0.2/24", "inet6 fd01::2/64", "nodad", "default via 10.1.0.1", "10.5.0.0/16 dev tun0", "default via fd01::1"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in\n%s", want, first)
		}
	}
	if strings.Contains(first, "tentative") {
		t.Error("an address is not usable at once")
	}
	if err := apply(); err != nil || state() != first {
		t.Errorf("applied again: %v\n%s", err, state())
	}
	// What was named and is not any more goes, what others added stays; a
	// secondary address outlives the primary one before it.
	ip("addr", "add", "10.9.0.1/24", "dev", "tun0")
	was := end
	end = &End{MTU: 1420, Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.3/24"), netip.MustParsePrefix("fd01::2/64")}, Routes: was.Routes[:1]}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { return Apply(ns, "tun0", end, was) }); err != nil {
		t.Fatal(err)
	}
	second := state()
	for s, want := range map[string]bool{"inet 10.1.0.3/24": true, "inet 10.1.0.2/24": false, "inet6 fd01::2/64": true, "inet 10.9.0.1/24": true,
		"default via 10.1.0.1": true, "10.5.0.0/16": false, "default via fd01::1": false} {
		if strings.Contains(second, s) != want {
			t.Errorf("%q there: %v in\n%s", s, !want, second)
		}
	}
	// Nothing to do: a check alone would do, so it needs no privilege; the twin of that is in netstack.
	var d Device
	if err := ns.Do(func() (err error) { d, err = Look("tun0"); return err }); err != nil || !d.Exists || !d.TUN || !d.MultiQueue || !d.Persistent || d.VnetHdr || d.Queues != 0 || d.MTU != 1420 {
		t.Errorf("%+v, %v", d, err)
	}
	if err := ns.Do(func() (err error) { d, err = Look("lo"); return err }); err != nil || !d.Exists || d.TUN {
		t.Errorf("lo: %+v, %v", d, err)
	}
	if err := ns.Do(func() (err error) { d, err = Look("none0"); return err }); err != nil || d.Exists {
		t.Errorf("none0: %+v, %v", d, err)
	}
}

func TestDropCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it has capabilities to drop")
	}
	bin := filepath.Join(t.TempDir(), "dropcaps")
	build := exec.Command("go", "build", "-o", bin, "./testdata/dropcaps")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out := run(t, bin)
	netAdmin := fmt.Sprintf("%016x", uint64(1)<<unix.CAP_NET_ADMIN)
	threads := 0
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		k, v, _ := strings.Cut(l, ": ")
		want := map[string]string{"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "CapPrm": netAdmin, "CapEff": netAdmin, "CapBnd": netAdmin, "NoNewPrivs": "1", "has": "true false"}[k]
		if v != want {
			t.Errorf("%s: %s, want %s", k, v, want)
		}
		if k == "CapEff" {
			threads++
		}
	}
	if threads < 9 {
		t.Errorf("%d threads were looked at:\n%s", threads, out)
	}
	// Without capabilities there is nothing to drop, and no_new_privs is allowed to everybody.
	if err := os.Chmod(filepath.Dir(bin), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(bin)), 0o755); err != nil {
		t.Fatal(err)
	}
	out = run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", bin)
	if !strings.Contains(out, "CapEff: 0000000000000000") || !strings.Contains(out, "NoNewPrivs: 1") || !strings.Contains(out, "has: false false") {
		t.Errorf("without capabilities:\n%s", out)
	}
}

func TestNeeded(t *testing.T) {
	if got := fmt.Sprint(Needed("", "")); got != "[CAP_NET_ADMIN]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Needed("", "client")); got != "[CAP_NET_ADMIN CAP_SYS_ADMIN]" {
		t.Error(got)
	}
}
