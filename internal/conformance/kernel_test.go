package conformance

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/packet"
	"sluice/packet/packettest"
	"sluice/router"
)

// A side is a router that a scenario happens to.
type side interface {
	// do makes one step; more is how many frames it is known to bring, at least.
	do(st *step, frames []sending, more int) []sent
	// tables is iptables-save -c of a family, flows is conntrack -L; quick: as
	// /proc has it, where that is nearly the same.
	tables(family uint8) string
	flows(quick bool) string
	// load makes the rules a scenario's and forgets all connections; it gives
	// why the rules are refused.
	load(s *scenario) string
	// members is what the sets hold.
	members() string
	// details is what flows leaves out, a line for each connection.
	details(family uint8) []string
	// ask carries out an ask, watch or hear line and gives what was printed.
	ask(st *step) []string
}

// kernelSide is the running kernel, in a namespace of the test's own.
type kernelSide struct {
	t  testing.TB
	k  *packettest.Kernel
	ns string // the namespace's name to the kernel

	senders []int // sockets of send lines, open until the next scenario
	loaded  [2]string
	sets    bool // there are some
	told    bool // of an MTU on the way somewhere

	listeners []*listener
}

// namespace is the network namespace that the calling thread is in.
func namespace() string {
	ns, _ := os.Readlink("/proc/thread-self/ns/net")
	return ns
}

// command is a program to run in the namespace. Elsewhere none is run: what
// these programs do would hit the machine's own network.
func (x *kernelSide) command(args ...string) *exec.Cmd {
	if ns := namespace(); ns == "" || ns != x.ns {
		panic("the test's goroutine is not in the kernel's namespace")
	}
	return exec.Command(args[0], args[1:]...)
}

// nftables brings conntrack and defragmentation in, so that no iptables rule
// has to, and holds back what the kernel sends of neighbour discovery.
const nftables = `table inet twin {
	chain in { type filter hook input priority 500; ct state new
	}
	chain out { type filter hook output priority -500; ip6 daddr ff00::/8 drop; icmpv6 type nd-redirect drop
	}
}
`

// newKernelSide makes a kernel that is configured as r is. Conntrack is asked
// for by an nft table, so that no iptables rule has to be there for it.
func newKernelSide(t testing.TB, s *scenario, r *router.Router, offload bool) *kernelSide {
	t.Helper()
	for _, tool := range []string{"nft", "conntrack", "iptables-legacy-restore", "ip6tables-legacy-restore"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	machine := namespace()
	x := &kernelSide{t: t, k: packettest.NewKernel(t)}
	if x.ns = namespace(); x.ns == machine {
		t.Fatal("no namespace of its own")
	}
	x.k.AddTUN()
	x.pipe("nft -f -", nftables)
	if offload {
		x.k.Offload()
	}
	cfg, err := s.config()
	if err != nil {
		t.Fatal(err)
	}
	lines := append(x.addresses(cfg, r), s.routing()...)
	x.sysctls(r)
	var ip [2]string // `ip -batch` has one family
	for _, l := range lines {
		v6 := strings.Contains(l, ":")
		both := !v6 && !strings.Contains(l, ".") && strings.HasPrefix(l, "rule")
		if !v6 || both {
			ip[0] += l + "\n"
		}
		if v6 || both {
			ip[1] += l + "\n"
		}
	}
	x.pipe("ip -4 -batch -", ip[0])
	x.pipe("ip -6 -batch -", ip[1])
	for _, l := range s.net {
		if spec, ok := strings.CutPrefix(l, "listen "); ok {
			network, addr, _ := strings.Cut(spec, "://")
			addr, transparent := strings.CutSuffix(addr, " transparent")
			x.listen(network, netip.MustParseAddrPort(addr), transparent)
		}
	}
	t.Cleanup(x.closeSenders)
	if why := x.load(s); why != "" {
		t.Fatal(why)
	}
	for i := range 3 {
		x.k.Drain(i)
	}
	return x
}

// addresses gives the kernel what r has beyond the first ones: MTUs, more
// addresses, and the link-local ones that r made.
func (x *kernelSide) addresses(cfg *router.Config, r *router.Router) (out []string) {
	for _, c := range cfg.Interfaces {
		out = append(out, fmt.Sprintf("link set %s mtu %d", c.Name, c.MTU))
		for _, a := range c.Addresses[2:] {
			out = append(out, fmt.Sprintf("addr add %s dev %s%s", a, c.Name, nodad(a)))
		}
	}
	fib := r.FIB().Load()
	for _, i := range fib.Ifaces() {
		for _, a := range fib.Addrs(i.Index) {
			if a.Auto && i != r.FIB().Loopback() {
				out = append(out, fmt.Sprintf("addr add %s dev %s nodad", a.Prefix, i.Name))
			}
		}
	}
	return out
}

func nodad(p netip.Prefix) string {
	if p.Addr().Is6() {
		return " nodad"
	}
	return ""
}

// sysctls gives the kernel r's tunables, those that it knows and lets be set.
func (x *kernelSide) sysctls(r *router.Router) {
	all := r.Sysctl().All()
	rank := func(name string) int {
		for i, s := range []string{".all.", ".default."} {
			if strings.Contains(name, s) {
				return i
			}
		}
		return 2
	}
	sort.SliceStable(all, func(i, j int) bool { return rank(all[i].Name) < rank(all[j].Name) })
	for _, v := range all {
		if v.ReadOnly || strings.HasPrefix(v.Name, "net.ipv6.conf.") && strings.HasSuffix(v.Name, ".disable_ipv6") {
			continue
		}
		path := "/proc/sys/" + strings.ReplaceAll(v.Name, ".", "/")
		if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) != fmt.Sprint(v.Load()) {
			os.WriteFile(path, []byte(fmt.Sprint(v.Load())), 0) // some belong to the first namespace alone
		}
	}
	x.k.Sysctl("net/ipv6/auto_flowlabels=0")
	x.k.Sysctl("net/ipv4/ip_early_demux=0") // or what a connected socket gets is not asked about its source
}

func (x *kernelSide) load(s *scenario) string {
	x.closeSenders()
	if s.lists() {
		x.load(&scenario{}) // lets go of what the rules before knew under these names
	}
	if len(s.sets) > 0 || x.sets {
		x.load0()
		x.pipe("ipset flush", "") // a list lets go of its sets
		x.pipe("ipset destroy", "")
		if x.sets = len(s.sets) > 0; x.sets {
			x.pipe("ipset restore", strings.Join(s.sets, "\n")+"\n")
		}
	}
	for f, cmd := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		text := restore(s.rules[f])
		if x.loaded[f] == text && len(s.rules[f]) == 0 && !s.uses(f) {
			continue // still as they were, and nothing will be counted
		}
		c := x.command(cmd)
		c.Stdin = strings.NewReader(text)
		x.loaded[f] = ""
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Sprintf("%s: %v\n%s\n%s", cmd, err, out, text)
		}
		x.loaded[f] = text
	}
	if x.told {
		x.pipe("ip -4 route flush cache", "")
		x.pipe("ip -6 route flush cache", "")
	}
	x.told = s.tellsMTU()
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return err.Error()
	}
	return ""
}

// load0 takes all rules away, so that nothing refers to sets.
func (x *kernelSide) load0() {
	for f, cmd := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		x.pipe(cmd, restore(nil))
		x.loaded[f] = ""
	}
}

func (x *kernelSide) members() string {
	out, err := x.command("ipset", "save").Output()
	if err != nil {
		x.t.Fatal(err)
	}
	return members(string(out))
}

func (x *kernelSide) closeSenders() {
	for _, fd := range x.senders {
		unix.Close(fd)
	}
	x.senders = nil
}

func (x *kernelSide) pipe(line, in string) string {
	x.t.Helper()
	w := strings.Fields(line)
	c := x.command(w...)
	c.Stdin = strings.NewReader(in)
	out, err := c.CombinedOutput()
	if err != nil {
		x.t.Fatalf("%s: %v\n%s\n%s", line, err, out, in)
	}
	return string(out)
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (x *kernelSide) socket(network string, a netip.AddrPort, transparent bool) int {
	x.t.Helper()
	domain, sa := sockaddr(a)
	kind := unix.SOCK_DGRAM
	if network == "tcp" {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if transparent && a.Addr().Is4() {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
	} else if transparent {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	if err := unix.Bind(fd, sa); err != nil {
		x.t.Fatalf("%s %s: %v", network, a, err)
	}
	return fd
}

func (x *kernelSide) listen(network string, a netip.AddrPort, transparent bool) {
	fd := x.socket(network, a, transparent)
	x.t.Cleanup(func() { unix.Close(fd) })
	if network == "tcp" {
		if err := unix.Listen(fd, 10); err != nil {
			x.t.Fatal(err)
		}
	}
}

func (x *kernelSide) do(st *step, frames []sending, _ int) (out []sent) {
	x.t.Helper()
	switch st.verb {
	case "do":
		w := strings.Fields(st.text)
		w[0] = strings.Replace(w[0], "tables", "tables-legacy", 1)
		x.command(w...).Run()
	case "send":
		network, from, to, payload := parseSend(x.t, st.text)
		fd := x.socket(network, from, false)
		x.senders = append(x.senders, fd)
		_, sa := sockaddr(to)
		if network == "udp" {
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		}
		unix.Connect(fd, sa)
		if network == "udp" {
			unix.Write(fd, payload)
		}
	default:
		dev := int(st.dev[3] - '0')
		for _, f := range frames {
			x.k.SendGSO(dev, f.gso, f.b)
		}
	}
	for i := range 3 {
		for _, o := range x.k.Outputs(i) {
			p := packet.Of(o.Frame)
			p.Parse()
			p.GSO = o.GSO
			p.CompleteChecksum()
			out = append(out, sent{fmt.Sprint("tun", i), p.Bytes(), super(o.GSO.Type, o.GSO.Size)})
		}
	}
	return out
}

// parseSend takes a send line apart: the socket's network, its own end, the peer, the payload.
func parseSend(t testing.TB, text string) (network string, from, to netip.AddrPort, payload []byte) {
	t.Helper()
	p := packettest.New(t, text)
	network, _, _ = strings.Cut(text, " ")
	return network, netip.AddrPortFrom(p.SrcAddr(), p.SrcPort()), netip.AddrPortFrom(p.DstAddr(), p.DstPort()), p.Payload()
}

func (x *kernelSide) tables(family uint8) string {
	cmd := "iptables-legacy-save"
	if family == packet.IPv6 {
		cmd = "ip6tables-legacy-save"
	}
	out, err := x.command(cmd, "-c").Output() // warnings apart
	if err != nil {
		x.t.Fatalf("%s: %v", cmd, err)
	}
	return string(out)
}

func (x *kernelSide) flows(quick bool) string {
	if quick {
		if b, err := os.ReadFile("/proc/thread-self/net/nf_conntrack"); err == nil {
			return strings.ReplaceAll(string(b), " zone=0 ", " ")
		}
	}
	var out []byte
	for _, f := range []string{"ipv4", "ipv6"} {
		b, err := x.command("conntrack", "-L", "-o", "extended", "-f", f).Output()
		if err != nil {
			x.t.Fatalf("conntrack -L: %v", err)
		}
		out = append(out, b...)
	}
	return string(out)
}

// counters gives the rules and policies of a save with their counters, by table
// and chain; those that nothing met only if all is set.
func counters(save string, all bool) []string {
	var out []string
	table := ""
	for _, l := range strings.Split(save, "\n") {
		switch {
		case strings.HasPrefix(l, "*"):
			table = l[1:]
		case strings.HasPrefix(l, ":"):
			w := strings.Fields(l)
			if w[1] != "-" && (all || w[2] != "[0:0]") {
				out = append(out, fmt.Sprintf("%s %s %s %s", table, w[0][1:], w[1], w[2]))
			}
		case strings.HasPrefix(l, "["):
			n, rule, _ := strings.Cut(l, " ")
			if all || n != "[0:0]" {
				out = append(out, fmt.Sprintf("%s %s %s", table, rule, n))
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return chainOf(out[i]) < chainOf(out[j]) })
	return out
}

func chainOf(l string) string {
	w := strings.Fields(l)
	if w[1] == "-A" {
		return w[0] + " " + w[2] + " "
	}
	return w[0] + " " + w[1]
}

// flow is a line of conntrack -L and its timeout.
type flow struct {
	text string
	secs int
}

// flowsOf reads conntrack -L -o extended; how many refer to an entry is left out.
func flowsOf(list string) (out []flow) {
	for _, l := range strings.Split(list, "\n") {
		w := strings.Fields(l)
		if len(w) < 6 {
			continue
		}
		n, _ := strconv.Atoi(w[4])
		w = append(w[:4], w[5:]...)
		for i := range w {
			if strings.HasPrefix(w[i], "use=") {
				w = append(w[:i], w[i+1:]...)
				break
			}
		}
		out = append(out, flow{strings.Join(w, " "), n})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].text < out[j].text })
	return out
}

func scenarioFiles(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("testdata/kernel/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	return names
}
