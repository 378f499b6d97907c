package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"sluice/e2e/lab"
)

// example prepares one of configs/ for a lab: its files are copied and its
// namespaces renamed to the lab's.
func example(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	files, err := filepath.Glob("../configs/*.rules")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		l.File(filepath.Base(f), string(text))
	}
	text, err := os.ReadFile("../configs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^(\s*netns\s*=\s*)"([\w-]+)"`).ReplaceAllString(string(text), `$1"{ns:$2}"`)
}

// sees checks which address a listener sees a connection come from.
func sees(t *testing.T, from *lab.NS, addr, want string) {
	t.Helper()
	got, err := hear(from, addr)
	if host, _, e := net.SplitHostPort(got); err != nil || e != nil || host != want {
		t.Errorf("%s sees %q from %s (%v), not %s", addr, got, from.Name, err, want)
	}
}

// refused checks that a connection fails as want says; nil: by saying nothing.
func refused(t *testing.T, from *lab.NS, addr string, want error) {
	t.Helper()
	limit := 5 * time.Second
	if want == nil {
		limit = time.Second
	}
	c, err := from.DialTimeout("tcp", addr, limit)
	if err == nil {
		c.Close()
	}
	var timeout net.Error
	if want == nil && !(errors.As(err, &timeout) && timeout.Timeout()) || want != nil && !errors.Is(err, want) {
		t.Errorf("%s from %s: %v, not %v", addr, from.Name, err, want)
	}
}

func page(t *testing.T, from *lab.NS, url string) {
	t.Helper()
	if out, err := from.Run("curl", "-sS", "-g", "--max-time", "10", url); err != nil || !strings.Contains(out, "FORWARD") {
		t.Errorf("%s: %v\n%.300s", url, err, out)
	}
}

func TestConfigHome(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan, isp := l.NS("lan"), l.NS("isp")
	r := l.Sluice(example(t, l, "home.toml"))
	lan.Must("ping", "-n", "-c", "1", "-W", "2", "203.0.113.1")
	lan.Must("ping", "-n", "-c", "1", "-W", "2", "2001:db8:0:1::1")
	serve(isp, "203.0.113.1:80")
	serve(isp, "[2001:db8:0:1::1]:80")
	serve(lan, "192.168.1.10:8443")
	wire := isp.Raw("wan0")
	sees(t, lan, "203.0.113.1:80", "203.0.113.2")
	sees(t, lan, "[2001:db8:0:1::1]:80", "2001:db8:0:1::2")
	sees(t, isp, "203.0.113.2:443", "203.0.113.1")
	sees(t, lan, "203.0.113.2:443", "192.168.1.1")
	for _, want := range []uint16{1492 - 40, 1492 - 60} {
		wire.Await(fmt.Sprint("a SYN with MSS ", want), func(p gopacket.Packet) bool {
			s, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
			return ok && s.SYN && len(s.Options) > 0 && s.Options[0].OptionType == layers.TCPOptionKindMSS &&
				uint16(s.Options[0].OptionData[0])<<8|uint16(s.Options[0].OptionData[1]) == want
		})
	}
	page(t, lan, "http://192.168.1.1/")
	refused(t, lan, "192.168.1.1:22", syscall.ECONNREFUSED)
	refused(t, isp, "203.0.113.2:80", nil)
	isp.Must("ip", "route", "add", "192.168.1.0/24", "via", "203.0.113.2")
	refused(t, isp, "192.168.1.10:8443", nil)
	// Nobody outside may claim an inside address.
	isp.Raw("wan0").Send(lab.UDP("192.168.1.99", "203.0.113.2", 1, 2, "I am inside"))
	r.AwaitDropped("ip.rp_filter", 1)
}

func TestConfigEdge(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	client, dmz, internet := l.NS("client"), l.NS("dmz"), l.NS("internet")
	r := l.Sluice(example(t, l, "edge.toml"))
	internet.Must("ip", "addr", "add", "203.0.113.9/32", "dev", "lo")
	for _, addr := range []string{"203.0.113.9:80", "[2001:db8:f::1]:80"} {
		serve(internet, addr)
	}
	for _, addr := range []string{"10.0.2.2:80", "10.0.2.2:443", "10.0.2.2:22", "[fd00:2::2]:80"} {
		serve(dmz, addr)
	}
	serve(client, "10.0.1.2:9999")
	sees(t, client, "203.0.113.9:80", "198.51.100.2")
	sees(t, client, "[2001:db8:f::1]:80", "fd00:1::2")
	sees(t, dmz, "203.0.113.9:80", "198.51.100.80")
	sees(t, internet, "198.51.100.80:80", "198.51.100.1")
	sees(t, internet, "198.51.100.80:443", "198.51.100.1")
	sees(t, internet, "198.51.100.80:2222", "198.51.100.1")
	sees(t, client, "198.51.100.80:80", "10.0.1.2")
	sees(t, client, "10.0.2.2:22", "10.0.1.2")
	sees(t, internet, "[fd00:2::2]:80", "2001:db8:f::1")
	refused(t, client, "203.0.113.9:25", syscall.ECONNREFUSED)
	refused(t, client, "[2001:db8:f::1]:25", syscall.ECONNREFUSED)
	refused(t, dmz, "10.0.1.2:9999", nil)
	r.Expect("edge drop: IN=dmz0 OUT=lan0 MAC= SRC=10.0.2.2 DST=10.0.1.2 ", deadline)
	refused(t, internet, "[fd00:1::2]:9999", nil)
	refused(t, internet, "198.51.100.2:80", nil)
	refused(t, client, "10.9.9.9:80", syscall.EHOSTUNREACH)
	client.Must("traceroute", "-n", "-N", "1", "-q", "1", "-w", "2", "10.0.1.1")
	page(t, client, "http://10.0.1.1/")
	page(t, client, "http://[fd00:1::1]/")
	exchange(t, dial(t, client, "udp", "10.0.1.1:7"), "echo")
	client.Raw("lan0").Send(lab.UDP("203.0.113.1", "10.0.2.2", 1, 2, "spoofed"))
	r.AwaitDropped("ip.rp_filter", 1)
	r.Expect("martian source", deadline) // log_martians
}

func TestConfigDocker(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	web, app, world := l.NS("web"), l.NS("app"), l.NS("world")
	r := l.Sluice(example(t, l, "docker.toml"))
	serve(web, "172.17.0.2:80")
	serve(web, "172.17.0.2:81")
	serve(app, "172.18.0.2:5432")
	serve(world, "192.0.2.1:80")
	sees(t, world, "192.0.2.2:8080", "192.0.2.1")
	sees(t, world, "192.0.2.2:5432", "192.0.2.1")
	sees(t, web, "192.0.2.1:80", "192.0.2.2")
	sees(t, app, "192.0.2.1:80", "192.0.2.2")
	page(t, world, "http://192.0.2.2/")
	page(t, web, "http://172.17.0.1/")
	refused(t, web, "172.18.0.2:5432", nil) // networks are kept apart
	if n := r.Counter("iptables-save", "-A DOCKER-ISOLATION-STAGE-2 -o br-app -j DROP"); n < 1 {
		t.Errorf("the isolation counted %d packets", n)
	}
	world.Must("ip", "addr", "add", "192.0.2.66/24", "dev", "eth0")
	if _, err := world.Run("nc", "-z", "-w", "1", "-s", "192.0.2.66", "192.0.2.2", "8080"); err == nil {
		t.Error("the administrator's rule has no effect")
	}
	world.Must("ip", "route", "add", "172.17.0.0/16", "via", "192.0.2.2")
	refused(t, world, "172.17.0.2:81", nil) // not published
}

func TestConfigPolicyRouting(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	office, guest, fast, cheap := l.NS("office"), l.NS("guest"), l.NS("isp-fast"), l.NS("isp-cheap")
	l.Sluice(example(t, l, "policy-routing.toml"))
	for _, port := range []string{"80", "873", "6885"} {
		serve(fast, "203.0.113.1:"+port)
		serve(cheap, "203.0.113.1:"+port)
	}
	serve(office, "10.1.0.2:443")
	sees(t, office, "203.0.113.1:80", "192.0.2.2")
	sees(t, office, "203.0.113.1:873", "198.51.100.2")
	sees(t, office, "203.0.113.1:6885", "198.51.100.2")
	sees(t, guest, "203.0.113.1:80", "198.51.100.2")
	sees(t, fast, "192.0.2.2:443", "192.0.2.1")
	sees(t, cheap, "198.51.100.2:443", "198.51.100.1")
	// From an address that the main table knows behind the fast provider alone.
	if got, err := cheap.Run("nc", "-d", "-w", "3", "-s", "203.0.113.1", "198.51.100.2", "443"); err != nil || !strings.HasPrefix(got, "203.0.113.1:") {
		t.Errorf("answered where it came in: %q, %v", got, err)
	}
	refused(t, guest, "10.1.0.2:443", syscall.EHOSTUNREACH)
}

func TestConfigIPv6Only(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	hosts, isp := l.NS("hosts"), l.NS("isp6")
	l.Sluice(example(t, l, "ipv6-only.toml"))
	isp.Must("ip", "addr", "add", "2001:db8:99::1/128", "dev", "lo", "nodad")
	serve(isp, "[2001:db8:99::1]:80")
	serve(hosts, "[2001:db8:1::2]:443")
	hosts.Must("ping", "-n", "-c", "1", "-W", "2", "2001:db8:99::1")
	isp.Must("ping", "-n", "-c", "1", "-W", "2", "2001:db8:1::2")
	sees(t, hosts, "[2001:db8:99::1]:80", "2001:db8:1::2")
	sees(t, isp, "[2001:db8:1::2]:443", "2001:db8:ffff::1")
	refused(t, isp, "[2001:db8:1::2]:80", syscall.EACCES)
	refused(t, hosts, "[2001:db8:1:77::1]:80", syscall.ENETUNREACH) // the rest of the prefix
	page(t, hosts, "http://[2001:db8:1::1]/")
	if out := hosts.Must("traceroute", "-6", "-n", "-N", "1", "-q", "1", "-w", "2", "2001:db8:99::1"); !strings.Contains(out, "2001:db8:1::1") {
		t.Errorf("traceroute:\n%s", out)
	}
	// What is too big for the tunnel comes through all the same.
	if out, _ := hosts.Run("ping", "-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", "1440", "2001:db8:99::1"); !strings.Contains(out, "mtu = 1480") && !strings.Contains(out, "mtu=1480") {
		t.Errorf("no packet too big:\n%s", out)
	}
	hosts.Must("ping", "-n", "-c", "1", "-W", "2", "-s", "2000", "2001:db8:99::1")
}

// TestConfigOffline runs the router of capture files, as an ordinary user where that can be tried.
func TestConfigOffline(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	config := example(t, l, "offline-pcap.toml") + "\n[control]\nsocket = \"{dir}/out/sluice.sock\"\n"
	capture, err := os.ReadFile("../configs/offline-lan.pcap")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(l.Dir+"/out", 0o755); err != nil {
		t.Fatal(err)
	}
	os.Chown(l.Dir+"/out", 65534, 65534)
	os.WriteFile(l.Dir+"/offline-lan.pcap", capture, 0o644)
	config = strings.ReplaceAll(config, `write     = "`, `write     = "out/`)
	var wrap []string
	if l.Has("setpriv") {
		wrap = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"}
	}
	r := l.SluiceCommand(config, wrap)
	if err := r.Wait(2 * deadline); err != nil {
		t.Fatalf("%v\n%s", err, r.Output())
	}
	wan, lan := readPcap(t, l.Dir+"/out/offline-wan-out.pcap"), readPcap(t, l.Dir+"/out/offline-lan-out.pcap")
	var got []string
	for _, p := range wan {
		ip, ok := p.NetworkLayer().(*layers.IPv4)
		if !ok || ip.SrcIP.String() != "198.51.100.2" || ip.TTL != 63 {
			t.Errorf("left by wan0: %v", p)
			continue
		}
		got = append(got, describe(p))
	}
	for _, want := range []string{"udp 53", "tcp 80", "icmp 8"} {
		if !strings.Contains(strings.Join(got, ", "), want) {
			t.Errorf("%s did not leave by wan0: %v", want, got)
		}
	}
	if strings.Contains(strings.Join(got, ", "), "tcp 25") {
		t.Errorf("mail left: %v", got)
	}
	got = nil
	for _, p := range lan {
		got = append(got, describe(p))
	}
	for _, want := range []string{"icmp 0", "icmp 11", "rst"} {
		if !strings.Contains(strings.Join(got, ", "), want) {
			t.Errorf("no %s among the answers: %v", want, got)
		}
	}
}

func describe(p gopacket.Packet) string {
	switch l := p.TransportLayer().(type) {
	case *layers.UDP:
		return fmt.Sprint("udp ", int(l.DstPort))
	case *layers.TCP:
		if l.RST {
			return "rst"
		}
		return fmt.Sprint("tcp ", int(l.DstPort))
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return fmt.Sprint("icmp ", l.TypeCode.Type())
	}
	return "?"
}

func readPcap(t *testing.T, name string) (out []gopacket.Packet) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, info, err := r.ReadPacketData()
		if err == io.EOF {
			return out
		}
		if err != nil || info.CaptureLength != len(data) {
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, gopacket.NewPacket(data, r.LinkType(), gopacket.Default))
	}
}

// TestEveryConfig: nothing in configs/ is without a test here.
func TestEveryConfig(t *testing.T) {
	var source strings.Builder
	tests, _ := filepath.Glob("*_test.go")
	for _, f := range tests {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	files, _ := filepath.Glob("../configs/*.toml")
	for _, f := range files {
		cases := strings.HasSuffix(f, "-test.toml") // which cmd/sluice runs
		if !cases && !strings.Contains(source.String(), `"`+filepath.Base(f)+`"`) {
			t.Errorf("%s is not driven by any test", f)
		}
	}
	if len(files) < 6 {
		t.Errorf("only %v", files)
	}
}
