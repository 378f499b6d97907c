package play

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/packet/packettest"
	"sluice/packet/packettext"
	"sluice/router"
)

// kernelLog reads the kernel's messages from now on.
type kernelLog struct {
	t  *testing.T
	fd int
}

func newKernelLog(t *testing.T) *kernelLog {
	t.Helper()
	if b, err := os.ReadFile("/proc/sys/net/netfilter/nf_log_all_netns"); err != nil || strings.TrimSpace(string(b)) != "1" {
		if err := os.WriteFile("/proc/sys/net/netfilter/nf_log_all_netns", []byte("1"), 0); err != nil {
			t.Skip("the kernel's TRACE lines cannot be had: ", err)
		}
		t.Cleanup(func() { os.WriteFile("/proc/sys/net/netfilter/nf_log_all_netns", []byte("0"), 0) })
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs /dev/kmsg: ", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	unix.Seek(fd, 0, io.SeekEnd)
	return &kernelLog{t, fd}
}

// traces gives the TRACE lines with a word in them that came so far.
func (k *kernelLog) traces(word string) (out []string) {
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(k.fd, buf)
		if err == unix.EPIPE { // overwritten before it was read
			continue
		}
		if err != nil || n <= 0 {
			return out
		}
		_, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if strings.HasPrefix(text, "TRACE: ") && strings.Contains(text+" ", word) {
			out = append(out, strings.TrimRight(text, " "))
		}
	}
}

// TestKernelTRACE: the lines that --kernel prints are those that the kernel logs
// of the same packets under the same rules.
func TestKernelTRACE(t *testing.T) {
	log := newKernelLog(t) // where the setting is: not in a namespace
	k := packettest.NewKernel(t)
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, x := range s {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	for seed := range uint64(25) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		rules := traceRules(rnd)
		cfg := &router.Config{
			Interfaces: []router.InterfaceConfig{
				{Name: "tun0", Addresses: prefixes("10.1.0.1/24")}, {Name: "tun1", Addresses: prefixes("10.2.0.1/24")},
			},
			Sysctl: []router.SysctlConfig{{Name: "net.ipv4.conf.all.rp_filter", Value: "0"}},
		}
		var restore strings.Builder
		for _, x := range cfg.IPTables.Tables() {
			fmt.Fprintf(&restore, "*%s\n", x.Name)
			if x.Name == "raw" {
				fmt.Fprintln(&restore, "-A PREROUTING -j TRACE")
				x.Rules = append(x.Rules, router.RuleLine{Text: "-A PREROUTING"}) // in its place
			}
			for _, line := range rules[x.Name] {
				fmt.Fprintln(&restore, line)
				x.Rules = append(x.Rules, router.RuleLine{Text: line})
			}
			fmt.Fprintln(&restore, "COMMIT")
		}
		c := exec.Command("iptables-legacy-restore")
		c.Stdin = strings.NewReader(restore.String())
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v %s\n%s", err, out, restore.String())
		}
		sim, err := router.NewSim(cfg, true)
		if err != nil {
			t.Fatal(err)
		}
		log.traces("")
		for n := range 12 {
			id := 1 + int(seed)*100 + n
			desc := fmt.Sprintf("tcp 10.1.0.%d:%d > 10.2.0.%d:%d S ipid=%d ttl=%d", 2+rnd.IntN(5), 4000+id, 2+rnd.IntN(5), 79+rnd.IntN(4), id, 1+rnd.IntN(5))
			if rnd.IntN(2) == 0 {
				desc = strings.Replace(strings.Replace(desc, "tcp", "udp", 1), " S ", " len=20 ", 1)
			}
			frame, err := packettext.Frame(desc)
			if err != nil {
				t.Fatal(err)
			}
			word := fmt.Sprintf(" ID=%d ", id)
			k.Send(0, frame)
			var want []string
			for end := time.Now().Add(5 * time.Second); len(want) == 0 && time.Now().Before(end); {
				want = append(want, log.traces(word)...)
			}
			ts, err := sim.Send("tun0", frame)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(KernelLines(ts[0])) {
				got = append(got, strings.TrimRight(line, " \n"))
			}
			if len(got) > 0 {
				got = got[1:] // of the rule that stands where TRACE does
			}
			if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
				t.Fatalf("seed %d: %s\nsluice\n%s\nkernel\n%s\n%s", seed, desc, a, b, restore.String())
			}
		}
		sim.Close()
		k.Drain(0)
		k.Drain(1)
	}
}

// traceRules makes rules with jumps, gotos, returns and marks.
func traceRules(rnd *rand.Rand) map[string][]string {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	match := func() string {
		return pick("", "-p tcp", "-p udp", "-s 10.1.0.2/31", "! -d 10.2.0.4", "-p tcp --dport 80", "-m mark --mark 1", "-m ttl --ttl-gt 2", "-m conntrack --ctstate NEW")
	}
	out := map[string][]string{}
	for _, t := range []string{"raw", "mangle", "filter"} {
		hooks := map[string][]string{"raw": {"PREROUTING"}, "mangle": {"PREROUTING", "FORWARD", "POSTROUTING"}, "filter": {"FORWARD"}}[t]
		lines := []string{"-N a", "-N b"}
		for range 2 + rnd.IntN(5) {
			to := []string{"-j ACCEPT", "-j RETURN", "-j DROP", "", "-j a", "-j a", "-g b", "-j b"}
			if t == "mangle" {
				to = append(to, "-j MARK --set-mark 1", "-j TTL --ttl-inc 1")
			}
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("-A %s %s %s", pick(hooks...), match(), pick(to...))))
		}
		for range rnd.IntN(4) {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("-A a %s %s", match(), pick("-j b", "-g b", "-j RETURN", "-j ACCEPT", ""))))
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("-A b %s %s", match(), pick("-j RETURN", "-j ACCEPT", "-j DROP", ""))))
		}
		out[t] = lines
	}
	out["nat"] = []string{"-A POSTROUTING -o tun1 " + match() + " -j RETURN", "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.2.0.3:81"}
	return out
}
