package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sluice/router"
)

// full has every table and key of the grammar once.
const full = `
[router]
workers   = 2
busy_poll = "50us"

[control]
socket = "run/sluice.sock"

[[interface]]
name      = "lan0"
addresses = ["10.0.1.1/24", "fd00:1::1/64"]
queues    = 2
offload   = false
owner     = 65534
  [interface.host]
  netns     = "client"
  mtu       = 1400
  addresses = ["10.0.1.2/24", "fd00:1::2/64"]
  routes    = ["default via 10.0.1.1", "default via fd00:1::1 metric 5", "192.0.2.0/24 src 10.0.1.2"]

[[interface]]
name      = "wan0"
type      = "tun"
mtu       = 9000
addresses = ["10.0.2.1/24"]

[[interface]]
name = "cap0"
type = "pcap"
read = "in.pcap"
write = "out.pcap"
addresses = ["10.0.3.1/31"]

[[route]]
to = "default"
via = "10.0.2.2"

[[route]]
to = "2001:db8::/32"
via = "fe80::1"
dev = "lan0"
table = 100
metric = 7
src = "fd00:1::1"

[[route]]
to   = "192.0.2.1"
type = "blackhole"

[[rule]]
fwmark = "0x1/0xff"
from   = "10.0.1.0/24"
iif    = "lan0"
table  = 100

[[rule]]
fwmark = 2
table  = 254
priority = 100

[[rule]]
type = "prohibit"
to = "default"
family = 6

[iptables]
restore = ["base.rules"]
[iptables.filter]
policy = { FORWARD = "DROP", INPUT = "ACCEPT" }
rules = [
  "-N web",
  '-A web -m comment --comment "two words" -j ACCEPT',
]
[ip6tables.nat]
rules = ["-A POSTROUTING -j MASQUERADE"]

[[service]]
type   = "echo"
listen = ["tcp://10.0.1.1:7", "udp://[fd00:1::1]:7", "udp://0.0.0.0:9"]
uid    = 1000
gid    = 100

[sysctl]
"net.ipv4.ip_forward" = 0
net.netfilter.nf_conntrack_max = "1000"
`

// folder makes a folder with the files that full names and returns the path of a configuration in it.
func folder(t testing.TB, text string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "t.toml")
	for name, content := range map[string]string{
		"t.toml":     text,
		"in.pcap":    "",
		"base.rules": "*filter\n:base - [0:0]\n-A base -j RETURN\nCOMMIT\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestFull(t *testing.T) {
	path := folder(t, full)
	dir := filepath.Dir(path)
	cfg, warnings, err := Read(path)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v\n%v", err, warnings)
	}
	pfx, addr := netip.MustParsePrefix, netip.MustParseAddr

	check := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
		}
	}
	at := func(line, col int) router.Position { return router.Position{File: path, Line: line, Column: col} }
	check("router", cfg.Router, router.RouterConfig{Workers: 2, BusyPoll: 50 * time.Microsecond})
	check("control", cfg.Control, router.ControlConfig{Socket: dir + "/run/sluice.sock"})
	check("lan0", cfg.Interfaces[0], router.InterfaceConfig{
		Pos: at(9, 1), Name: "lan0", Type: "tun", MTU: 1500, Queues: 2,
		Addresses: []netip.Prefix{pfx("10.0.1.1/24"), pfx("fd00:1::1/64")},
		Owner:     router.Owner{Name: "65534", UID: 65534},
		Host: &router.HostConfig{
			Pos: at(15, 3), NetNS: "client", MTU: 1400,
			Addresses: []netip.Prefix{pfx("10.0.1.2/24"), pfx("fd00:1::2/64")},
			Routes: []router.HostRoute{
				{Text: "default via 10.0.1.1", To: pfx("0.0.0.0/0"), Via: addr("10.0.1.1")},
				{Text: "default via fd00:1::1 metric 5", To: pfx("::/0"), Via: addr("fd00:1::1"), Metric: 5},
				{Text: "192.0.2.0/24 src 10.0.1.2", To: pfx("192.0.2.0/24"), Src: addr("10.0.1.2")},
			},
		},
	})
	check("netns path", cfg.Interfaces[0].Host.NetNSPath(), "/run/netns/client")
	check("wan0", cfg.Interfaces[1], router.InterfaceConfig{
		Pos: at(21, 1), Name: "wan0", Type: "tun", MTU: 9000, Offload: true, Addresses: []netip.Prefix{pfx("10.0.2.1/24")},
	})
	check("cap0", cfg.Interfaces[2], router.InterfaceConfig{
		Pos: at(27, 1), Name: "cap0", Type: "pcap", MTU: 1500, Addresses: []netip.Prefix{pfx("10.0.3.1/31")},
		Read: dir + "/in.pcap", Write: dir + "/out.pcap",
	})
	check("routes", cfg.Routes, []router.RouteConfig{
		{Pos: at(34, 1), To: pfx("0.0.0.0/0"), Via: addr("10.0.2.2"), Dev: "wan0", Table: 254, Type: "unicast"},
		{Pos: at(38, 1), To: pfx("2001:db8::/32"), Via: addr("fe80::1"), Dev: "lan0", Table: 100, Metric: 7, Type: "unicast", Src: addr("fd00:1::1")},
		{Pos: at(46, 1), To: pfx("192.0.2.1/32"), Table: 254, Type: "blackhole"},
	})
	check("rules", cfg.Rules, []router.RuleConfig{
		{Pos: at(50, 1), Priority: 32765, From: pfx("10.0.1.0/24"), IIF: "lan0", FWMark: router.MarkMatch{Value: 1, Mask: 0xff}, Table: 100, Type: "unicast", Family: 4},
		{Pos: at(56, 1), Priority: 100, FWMark: router.MarkMatch{Value: 2, Mask: 0xffffffff}, Table: 254, Type: "unicast"},
		{Pos: at(61, 1), Priority: 99, Type: "prohibit", Family: 6},
	})
	check("policies", cfg.IPTables.Filter.Policy, []router.PolicyConfig{
		{Pos: at(69, 12), Chain: "FORWARD", Target: "DROP"}, {Pos: at(69, 30), Chain: "INPUT", Target: "ACCEPT"},
	})
	rule := cfg.IPTables.Filter.Rules[1]
	check("rule's place", rule.Pos, at(72, 3))
	check("rule's arguments", rule.Argv(), []string{"-A", "web", "-m", "comment", "--comment", "two words", "-j", "ACCEPT"})
	check("an argument's place", rule.Args[5].Pos, at(72, 32))
	check("services", cfg.Services, []router.ServiceConfig{{
		Pos: at(77, 1), Type: "echo", UID: 1000, GID: 100, Listen: []router.Listen{
			{Network: "tcp", Addr: netip.MustParseAddrPort("10.0.1.1:7")},
			{Network: "udp", Addr: netip.MustParseAddrPort("[fd00:1::1]:7")},
			{Network: "udp", Addr: netip.MustParseAddrPort("0.0.0.0:9")},
		},
	}})
	check("sysctl", cfg.Sysctl, []router.SysctlConfig{
		{Pos: at(84, 1), Name: "net.ipv4.ip_forward", Value: "0"},
		{Pos: at(85, 15), Name: "net.netfilter.nf_conntrack_max", Value: "1000"},
	})

	var script []string
	for _, l := range cfg.IPTables.Script() {
		script = append(script, l.Pos.String()[len(dir)+1:]+" "+l.Text)
	}
	check("script", script, []string{
		"base.rules:1:1 *filter", "base.rules:2:1 :base - [0:0]", "base.rules:3:1 -A base -j RETURN", "base.rules:4:1 COMMIT",
		"t.toml:69:12 *filter", "t.toml:69:12 :FORWARD DROP [0:0]", "t.toml:69:30 :INPUT ACCEPT [0:0]",
		"t.toml:71:3 -N web", `t.toml:72:3 -A web -m comment --comment "two words" -j ACCEPT`, "t.toml:69:12 COMMIT",
	})
}

func TestEmpty(t *testing.T) {
	cfg, warnings, err := Parse("t.toml", nil)
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	if want := (&router.Config{File: "t.toml"}); !reflect.DeepEqual(cfg, want) {
		t.Errorf("got %+v", cfg)
	}
}

// refusals: a configuration, and all that is said of it.
var refusals = []struct {
	name, text string
	want       []string
}{
	{"syntax", "[router\nworkers = 1", []string{`2:8: expected '.' or ']' to end table name, but got '\n' instead`}},
	{"twice", "[router]\nworkers = 1\nworkers = 2", []string{`3:13: Key 'router.workers' has already been defined.`}},
	{"not text", "a = \"\xff\"", []string{`1:5: invalid UTF-8 byte: 0xff`}},
	{"unknown keys, all of them", "[router]\nworker = 1\n[nonsense]\n[[interface]]\nname = \"a\"\nmut = 3\n  [interface.host]\n  adresses = []", []string{
		"2:1: unknown key worker; did you mean workers?",
		"3:1: unknown key nonsense; known here: control, dns, interface, ip6tables, iptables, proxy, publish, route, router, rule, service, set, sysctl, timeout",
		"6:1: unknown key mut; did you mean mtu?",
		"8:3: unknown key adresses; did you mean addresses?",
	}},
	{"not in this build", "[control]\n\n[[set]]\nname = \"x\"\n[[interface]]\nname = \"a\"\ntype = \"veth\"", []string{
		`3:1: set "x": no set type "": bitmap:ip bitmap:ip,mac bitmap:port hash:ip hash:mac hash:ip,mac hash:net hash:net,net hash:ip,port hash:net,port hash:ip,port,ip hash:ip,port,net hash:ip,mark hash:net,port,net hash:net,iface list:set`,
		`7:8: no interface type "veth": "tun", "uplink", "packet" or "pcap"`,
	}},
	{"timeouts", `[[timeout]]
name = "a"
protocol = "tcp"
policy = { established = 100, close = 5 }
[[timeout]]
name = "a"
protocol = "udp"
policy = { replied = 5 }
[[timeout]]
name = "b"
protocol = "udp"
policy = { established = 5 }
[[timeout]]
name = "c"
protocol = "ipx"
[[timeout]]
name = "d"
protocol = "icmp"
[iptables.raw]
rules = ["-A PREROUTING -p tcp -j CT --timeout a", "-A PREROUTING -p udp -j CT --timeout a"]
`, []string{
		`6:8: timeout policy "a" is already defined`,
		`9:1: timeout policy "b": "established" is no state of udp: ["unreplied" "replied"]`,
		`13:1: timeout policy "c": "ipx" is no protocol with timeouts`,
		`16:1: timeout policy "d": a timeout policy names states and their seconds`,
		`20:52: Invalid argument (timeout policy "a" is for another protocol)`,
	}},
	{"sets", `[[set]]
name = "a"
type = "hash:net"
timeout = 5
entries = ["10.0.0.0/8", "10.1.0.0/16 nomatch", "x.invalid/3", "11.0.0.0/8"]
[[set]]
name = "a"
type = "hash:ip"
[[set]]
name = "b"
type = "hash:ip"
netmask = 33
[[set]]
name = "c"
type = "list:set"
entries = ["a", "nope"]
[iptables.filter]
rules = ["-A INPUT -m set --match-set a src -j ACCEPT", "-A INPUT -m set --match-set gone src -j ACCEPT"]`, []string{
		`5:49: set "a": cannot parse x.invalid: resolving to IPv4 address failed`,
		`7:8: set "a" is already defined at line 1`,
		`9:1: set "b": netmask is out of the inclusive range of 1-32`,
		`16:17: set "c": Set to be added/deleted/tested as element does not exist.`,
		`18:91: Set gone doesn't exist.`,
	}},
	{"http", "[control]\nhttp = \"localhost:1\"\ntls_key = \"x\"", []string{
		"1:1: control: tls_cert and tls_key come together",
		`2:8: control.http: "localhost:1" is not ADDRESS:PORT, as 127.0.0.1:9731 is`,
	}},
	{"http for others", "[control]\nhttp = \"0.0.0.0:1\"", []string{"2:8: control.http: 0.0.0.0:1 is not a loopback address: tls_cert, tls_key and token_file are needed too"}},
	{"no http", "[control]\ntoken_file = \"x\"", []string{"2:14: control.token_file: without http there is nothing that it is for"}},
	{"types", "[router]\nworkers = \"2\"\nbusy_poll = 1.5\n[[interface]]\nname = 3\noffload = 1\naddresses = \"10.0.0.1/24\"\n[interface.host]\nroutes = [1]\n[[route]]\nto = [\"x\"]", []string{
		"2:11: router.workers: want an integer, not a string",
		"3:13: router.busy_poll: want a string, not a float",
		"5:8: interface[1].name: want a string, not an integer",
		"5:8: interface name \"\" is empty",
		"6:11: interface[1].offload: want true or false, not an integer",
		"7:13: interface[1].addresses: want a list, not a string",
		"9:11: interface[1].host.routes[1]: want a string, not an integer",
		"10:1: this route has neither via nor dev",
		"11:6: route[1].to: want a string, not a list",
	}},
	{"tables and lists", "interface = 3\n[router]\n[[control]]", []string{
		"1:13: interface: want a list, not an integer",
		"3:1: control: want one table, [control], not a list",
	}},
	{"router", "[router]\nworkers = 1000\nbusy_poll = \"soon\"", []string{
		"2:11: router.workers: 1000 is more than 256",
		`3:13: router.busy_poll: "soon" is not a duration such as "50us" or "0"`,
	}},
	{"socket", "[control]\nsocket = \"/" + strings.Repeat("x", 120) + "\"", []string{
		`2:10: control.socket: "/` + strings.Repeat("x", 120) + `" has 121 bytes, and the path of a socket has room for 107`,
	}},
	{"addresses", "[[interface]]\nname = \"a\"\naddresses = [\n  \"10.0.0.1\", \"10.0.0.256/24\",\n  \"10.0.0.1/33\", \"10.0.0.1/255.255.255.0\", \"10.0.0.0/24\", \"10.0.0.255/24\", \"127.0.0.1/8\",\n  \"224.0.0.1/4\", \"0.0.0.0/0\", \"::ffff:1.2.3.4/120\", \"fe80::1%eth0/64\", \"10.0.0.7/24\", \"10.0.0.7/25\"]", []string{
		"4:3: 10.0.0.1 has no prefix length: write 10.0.0.1/32, or a shorter one for the network around it",
		`4:15: interface[1].addresses[2]: "10.0.0.256" is not an IP address`,
		`5:13: interface[1].addresses[3]: bad prefix length "33" in "10.0.0.1/33": want 0 to 32`,
		`5:28: interface[1].addresses[4]: "10.0.0.1/255.255.255.0": write the prefix length, not a mask`,
		"5:44: 10.0.0.0/24 is the network's own address: choose one inside it",
		"5:59: 10.0.0.255/24 is the network's broadcast address: choose one below it",
		"5:76: 127.0.0.1/8 is a loopback address; the router's lo has it already",
		"6:3: 224.0.0.1/4 is a multicast address",
		"6:18: 0.0.0.0/0 is no address that an interface can have",
		`6:31: interface[1].addresses[10]: "::ffff:1.2.3.4" is an IPv4 address written as IPv6: write 1.2.3.4`,
		`6:61: interface[1].addresses[11]: "fe80::1%eth0": no %zone here; name the interface in dev`,
		"6:87: 10.0.0.7 is on a twice",
	}},
	{"names", "[[interface]]\nname = \"a\"\n[[interface]]\nname = \"a\"\n[[interface]]\nname = \"sixteen-letters-\"\n[[interface]]\nname = \"a b\"\n[[interface]]\nname = \"lo\"\n[[interface]]\nname = \"eth+\"\n[[interface]]\n[[interface]]\nname=\"all\"\n[[interface]]\nname=\"..\"\n[[interface]]\nname=\"-i\"", []string{
		`4:8: interface "a" is already defined at line 1`,
		`6:8: interface name "sixteen-letters-" has 16 bytes, and 15 are the most`,
		`8:8: interface name "a b" contains ' '`,
		`10:8: interface name "lo" is the router's own loopback`,
		`12:8: interface name "eth+" ends in +, which in a rule means any rest`,
		"13:1: this interface has no name",
		`15:6: interface name "all" means something else in sysctl names`,
		`17:6: interface name ".." is not a name`,
		`19:6: interface name "-i" begins with a character that a rule reads as something else`,
	}},
	{"an address on two interfaces", "[[interface]]\nname = \"a\"\naddresses = [\"10.0.0.1/24\"]\n[interface.host]\naddresses = [\"10.0.0.1/24\"]\n[[interface]]\nname = \"b\"\naddresses = [\"10.0.0.1/16\"]", []string{
		"5:14: 10.0.0.1 is the router's own address on a; the kernel's end needs another",
		"8:14: 10.0.0.1 is already an address of a",
	}},
	{"numbers", "[[interface]]\nname = \"a\"\nmtu = 67\nqueues = 257\n[[interface]]\nname = \"b\"\nmtu = 1279\naddresses = [\"fd00::1/64\"]\n[[interface]]\nname = \"c\"\nmtu = -1\n[[interface]]\nname = \"d\"\nmtu = 65536", []string{
		"3:7: mtu: 67 is not between 68 and 65535",
		"4:10: queues: 257 is more than the 256 that a TUN device can have",
		"7:7: mtu: 1279 is not between 1280 and 65535 for an interface with IPv6",
		"11:7: interface[3].mtu: -1 is not between 0 and 2147483647",
		"14:7: mtu: 65536 is not between 68 and 65535",
	}},
	{"keys of the other type", "[[interface]]\nname = \"a\"\nread = \"in.pcap\"\n[[interface]]\nname = \"b\"\ntype = \"pcap\"\nread = \"in.pcap\"\nqueues = 1\nowner = 3\n[interface.host]\n[[interface]]\nname = \"c\"\ntype = \"pcap\"", []string{
		`3:1: read is for interfaces of type "pcap"; this one is of type "tun"`,
		`8:1: queues is for interfaces of type "tun"; this one is of type "pcap"`,
		`9:1: owner is for interfaces of type "tun"; this one is of type "pcap"`,
		`10:1: host is for interfaces of type "tun"; this one is of type "pcap"`,
		`11:1: interface "c" of type "pcap" has neither read nor write`,
	}},
	{"capture files", "[[interface]]\nname = \"a\"\ntype = \"pcap\"\nread = \"none.pcap\"\nwrite = \"none/out.pcap\"\n[[interface]]\nname = \"b\"\ntype = \"pcap\"\nread = \"in.pcap\"\nwrite = \"in.pcap\"\n[[interface]]\nname = \"c\"\ntype = \"pcap\"\nwrite = \"in.pcap\"", []string{
		"4:8: read: stat DIR/none.pcap: no such file or directory",
		"5:9: write: stat DIR/none: no such file or directory",
		"10:9: write: the interface reads from that file",
		"14:9: write: DIR/in.pcap is already written by b",
	}},
	{"owner", "[[interface]]\nname = \"a\"\nowner = \"nobody-has-this-name\"", []string{
		`3:9: interface[1].owner: no user "nobody-has-this-name" on this machine`,
	}},
	{"host", "[[interface]]\nname = \"a\"\n[interface.host]\nnetns = \"\"\nmtu = 3\naddresses = [\"10.0.0.2/24\", \"10.0.0.0/24\"]\nroutes = [\"default via 10.1.0.1\", \"default gw 10.0.0.1\", \"10.0.0.1/8\", \"default via\", \"default dev a\", \"\", \"10.0.0.0/8 via fd00::1\", \"1.2.3.0/24 metric x\"]", []string{
		`4:9: netns: "" is neither a name under /run/netns nor a path`,
		"5:7: mtu: 3 is not between 68 and 65535",
		"6:29: 10.0.0.0/24 is the network's own address: choose one inside it",
		"7:11: via 10.1.0.1 is in no network of this end's addresses: the kernel would not take the route",
		`7:44: interface[1].host.routes[2]: unknown word "gw": a route here is PREFIX [via ADDRESS] [src ADDRESS] [metric N]`,
		"7:59: interface[1].host.routes[3]: 10.0.0.1/8 has host bits set: write 10.0.0.0/8",
		`7:81: interface[1].host.routes[4]: "via" has no value behind it`,
		"7:96: interface[1].host.routes[5]: the device is this interface: leave dev out",
		`7:104: interface[1].host.routes[6]: an empty route; write it as for "ip route add": "default via 10.0.1.1"`,
		"7:108: interface[1].host.routes[7]: 10.0.0.0/8 and fd00::1 are of different families",
		`7:153: interface[1].host.routes[8]: bad metric "x"`,
	}},
	{"routes", strings.Join([]string{
		"[[interface]]", `name = "a"`, `addresses = ["10.0.0.1/24"]`, // 1
		"[[route]]", `to = "10.5.0.0/16"`, `via = "10.9.9.9"`, // 4
		"[[route]]", `to = "10.5.0.0/16"`, `dev = "b"`, // 7
		"[[route]]", `to = "10.5.0.1/16"`, `dev = "a"`, // 10
		"[[route]]", `to = "10.6.0.0/16"`, // 13
		"[[route]]", `via = "10.0.0.2"`, // 15
		"[[route]]", `to = "default"`, `via = "10.0.0.1"`, // 17
		"[[route]]", `to = "fd00::/8"`, `via = "10.0.0.2"`, // 20
		"[[route]]", `to = "10.7.0.0/16"`, `type = "blackhole"`, `dev = "a"`, // 23
		"[[route]]", `to = "10.8.0.0/16"`, `type = "nat"`, // 27
		"[[route]]", `to = "10.9.0.0/16"`, `dev = "a"`, `table = 0`, // 30
		"[[route]]", `to = "10.10.0.0/16"`, `dev = "a"`, `src = "10.0.0.9"`, // 34
		"[[route]]", `to = "10.11.0.0/16"`, `dev = "a"`, // 38
		"[[route]]", `to = "10.11.0.0/16"`, `via = "10.0.0.2"`, // 41
		"[[route]]", `to = "10.12.0.0/16"`, `via = "fe80::1"`, // 44
		"[[route]]", `to = "fd01::/16"`, `via = "fe80::1"`, // 47
		"[[route]]", `to = "10.13.0.0/16"`, `type = "local"`, `via = "10.0.0.2"`, // 50
		"[[route]]", `to = "10.14.0.0/16"`, `type = "local"`, `dev = "b"`, // 54
	}, "\n"), []string{
		"6:7: via 10.9.9.9 cannot be reached: no interface has a network around it",
		`9:7: dev: no interface "b"; known here: a`,
		"11:6: to: 10.5.0.1/16 has host bits set: write 10.5.0.0/16",
		"13:1: this route has neither via nor dev",
		`15:1: this route has no to: write a prefix, or "default"`,
		"19:7: via 10.0.0.1 is the router's own address",
		"22:7: via 10.0.0.2 is of another family than fd00::/8",
		`26:1: a route of type "blackhole" goes nowhere: leave dev out`,
		`29:8: no route type "nat": "unicast", "local", "blackhole", "unreachable" or "prohibit"`,
		"33:9: table 0 does not exist; leave table out for the main one, 254",
		"37:7: src 10.0.0.9 is not an address of the router",
		"41:1: there is a route to 10.11.0.0/16 with metric 0 in table 254 already, at line 38",
		"46:7: via fe80::1 is of another family than 10.12.0.0/16",
		"46:7: via fe80::1 is a link-local address: name the interface in dev",
		"49:7: via fe80::1 is a link-local address: name the interface in dev",
		`53:1: a route of type "local" ends here: leave via out`,
		`57:7: dev: no interface "b"; known here: a, lo`,
	}},
	{"the routing tables' own refusals", "[[interface]]\nname = \"a\"\naddresses = [\"10.0.0.1/24\"]\n[[route]]\nto = \"10.0.0.0/24\"\ndev = \"a\"\n", []string{
		"4:1: route 10.0.0.0/24: file exists",
	}},
	{"policy rules", strings.Join([]string{
		"[[rule]]", `from = "10.0.0.1/24"`, "table = 5", // 1
		"[[rule]]", `from = "10.0.0.0/24"`, `to = "fd00::/8"`, "table = 254", // 4
		"[[rule]]", `iif = "x"`, `fwmark = "1/z"`, "table = 254", // 8
		"[[rule]]", `fwmark = "1/0"`, "family = 5", "table = 254", // 12
		"[[rule]]", `type = "blackhole"`, "table = 254", // 16
		"[[rule]]", `type = "nat"`, // 19
		"[[rule]]", // 21
	}, "\n"), []string{
		"2:8: from: 10.0.0.1/24 has host bits set: write 10.0.0.0/24",
		"6:6: to: fd00::/8 is not of family 4",
		`9:7: iif: no interface "x"`,
		`10:13: rule[3].fwmark: bad mark mask "z"`,
		"13:13: rule[4].fwmark: a mark mask of 0 matches everything: leave fwmark out",
		"14:10: family: 5 is neither 4 nor 6",
		`18:1: a rule of type "blackhole" looks in no table: leave table out`,
		`20:8: no rule type "nat": "blackhole", "unreachable" or "prohibit"; without type it looks in table`,
		"21:1: this rule has no table to look in",
	}},
	{"services", strings.Join([]string{
		"[[interface]]", `name = "a"`, `addresses = ["10.0.0.1/24"]`, // 1
		"[[service]]", `type = "ftp"`, `listen = ["tcp://10.0.0.2:7", "10.0.0.1:7", "tcp://:7", "udp://10.0.0.1:0", "tcp://10.0.0.1"]`, // 4
		"[[service]]", `listen = ["tcp://10.0.0.1:8", "tcp://10.0.0.1:8"]`, "uid = -1", "gid = 4294967295", // 7
		"[[service]]", `type = "http"`, `listen = ["udp://10.0.0.1:80"]`, // 11
		"[[service]]", `type = "echo"`, // 14
	}, "\n"), []string{
		`5:8: no service type "ftp": there are echo, discard, chargen, daytime, time, http`,
		"6:11: 10.0.0.2 is not an address of the router",
		`6:31: service[1].listen[2]: "10.0.0.1:7": want tcp://ADDRESS:PORT or udp://ADDRESS:PORT`,
		`6:52: service[1].listen[3]: "tcp://:7" has no address: write tcp://0.0.0.0:7 or tcp://[::]:7`,
		"6:73: service[1].listen[4]: port 0 cannot be listened on",
		`6:84: service[1].listen[5]: "10.0.0.1" is not ADDRESS:PORT`,
		"7:1: this service has no type: one of echo, discard, chargen, daytime, time, http",
		"8:31: tcp://10.0.0.1:8 is already listened on by the service at line 7",
		"9:7: service[2].uid: -1 is not between 0 and 4294967295",
		`10:7: gid: 4294967295 is no id, it means "none"`,
		"13:11: udp://10.0.0.1:80: the http service is for tcp",
		"14:1: this service has no listen address",
	}},
	{"sysctl", "[sysctl]\n\"net.ipv4.ip_fwd\" = 1\n\"net.ipv4.ip_default_ttl\" = 0\nnet.ipv4.conf.eth9.rp_filter = 1\n\"net/netfilter/nf_conntrack_max\" = [1]\n\"net/ipv4/ip_default_ttl\" = true", []string{
		`2:1: unknown tunable "net.ipv4.ip_fwd"; did you mean net.ipv4.ip_forward?`,
		`3:1: setting key "net.ipv4.ip_default_ttl": invalid argument "0" (an integer from 1 to 255)`,
		`4:20: net.ipv4.conf.eth9.rp_filter: no interface "eth9"`,
		"5:36: net/netfilter/nf_conntrack_max: want an integer or a string, not a list",
		"6:1: net.ipv4.ip_default_ttl is already set at line 3",
	}},
	{"ruleset's form", strings.Join([]string{
		"[iptables]", `restore = ["none.rules"]`, `rules = ["-A INPUT -j DROP"]`, // 1
		"[iptables.filter]", `policy = { PREROUTING = "DROP", INPUT = "REJECT", OUTPUT = 1 }`, // 4
		"rules = [", `  "",`, `  "iptables -A INPUT -j DROP",`, `  "A INPUT",`, `  '-A INPUT -m comment --comment "open',`, // 6
		`  "-t nat -A INPUT",`, `  3,`, `  "-A INPUT -m comment --comment -t -j ACCEPT",`, `  "-A\tINPUT --table=nat",`, `  """`, `-A INPUT \`, `   -t nat""" ]`, // 11
		"[iptables.broute]",            // 18
		"[ip6tables.nat]", "rules = 1", // 19
		`policy = { PREROUTING = "ACCEPT", OUTPUT = "DROP" }`, // 21
	}, "\n"), []string{
		"2:12: iptables.restore[1]: stat DIR/none.rules: no such file or directory",
		"3:1: iptables.rules: rules belong to a table: [iptables.filter] rules = [ … ]",
		`5:12: policy: table filter has no builtin chain "PREROUTING": INPUT, FORWARD, OUTPUT`,
		`5:33: policy of INPUT: "REJECT" is neither ACCEPT nor DROP`,
		"5:60: policy of OUTPUT: want a string, not an integer",
		"7:3: an empty rule",
		"8:4: leave the program's name out: a rule begins with -A",
		`9:4: a rule begins with a command such as -A or -N, not with "A"`,
		"10:34: iptables.filter.rules[4]: this quote is not closed",
		"11:4: leave -t out: the rule is in [iptables.filter]",
		"12:3: iptables.filter.rules[6]: want a string, not an integer",
		"14:14: leave --table=nat out: the rule is in [iptables.filter]",
		"17:4: leave -t out: the rule is in [iptables.filter]",
		"18:1: unknown key broute; known here: filter, mangle, nat, raw, restore, security",
		"20:9: ip6tables.nat.rules: want a list of rules, not an integer",
		`21:35: policy of OUTPUT: The "nat" table is not intended for filtering, the use of DROP is therefore inhibited.`,
	}},
}

// TestGateways: behind which device a gateway is, when the file does not say.
func TestGateways(t *testing.T) {
	cfg, _, err := Read(folder(t, strings.Join([]string{
		"[[interface]]", `name = "a"`, `addresses = ["10.0.0.1/8", "fd00::1/16"]`,
		"[[interface]]", `name = "b"`, `addresses = ["192.0.2.1/24"]`,
		"[[route]]", `to = "10.1.0.0/16"`, `dev = "b"`,
		"[[route]]", `to = "10.1.0.0/16"`, `dev = "a"`, `metric = 5`,
		"[[route]]", `to = "fd00:1::/32"`, `dev = "b"`,
		"[[route]]", `to = "10.2.0.0/15"`, `via = "192.0.2.9"`, // leads to no network
		"[[route]]", `to = "20.0.0.0/8"`, `via = "10.0.0.9"`, // the interface's
		"[[route]]", `to = "21.0.0.0/8"`, `via = "10.1.0.9"`, // the longer one
		"[[route]]", `to = "22.0.0.0/8"`, `via = "10.1.0.9"`, `dev = "a"`,
		"[[route]]", `to = "23.0.0.0/8"`, `via = "10.2.0.9"`,
		"[[route]]", `to = "fd10::/16"`, `via = "fd00:1::9"`,
		"[[route]]", `to = "fd11::/16"`, `via = "fd00:2::9"`,
		"[[route]]", `to = "10.1.2.0/24"`, `dev = "a"`,
		"[[route]]", `to = "24.0.0.0/8"`, `via = "10.1.2.9"`,
	}, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"20.0.0.0/8": "a", "21.0.0.0/8": "b", "22.0.0.0/8": "a", "23.0.0.0/8": "a",
		"fd10::/16": "b", "fd11::/16": "a", "24.0.0.0/8": "a",
	}
	for _, r := range cfg.Routes {
		if dev, ok := want[r.To.String()]; ok && r.Dev != dev {
			t.Errorf("the way to %s via %s is through %q, want %q", r.To, r.Via, r.Dev, dev)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			path := folder(t, c.text)
			cfg, _, err := Read(path)
			var problems Problems
			if !errors.As(err, &problems) || cfg != nil {
				t.Fatalf("accepted, or no list of problems: %v", err)
			}
			dir := filepath.Dir(path)
			var got []string
			for _, line := range strings.Split(problems.Error(), "\n") {
				rest, ok := strings.CutPrefix(line, path+":")
				if !ok {
					t.Errorf("no place in the file: %s", line)
				}
				got = append(got, strings.ReplaceAll(rest, dir, "DIR"))
			}
			compareLines(t, got, c.want)
		})
	}
}

func compareLines(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "", ""
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("problem %d:\n got %s\nwant %s", i+1, g, w)
		}
	}
}

func TestWarnings(t *testing.T) {
	_, warnings, err := Read(folder(t, "[[rule]]\ntable = 77\n[sysctl]\nnet.ipv4.tcp_congestion_control = \"bbr\"\n\"vm.swappiness\" = 1"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, w.String()[strings.Index(w.String(), "t.toml"):])
	}
	compareLines(t, got, []string{
		"t.toml:2:9: no [[route]] is in table 77, so this rule decides nothing",
		"t.toml:4:10: net.ipv4.tcp_congestion_control means nothing in sluice; it has no effect",
		"t.toml:5:1: vm.swappiness means nothing in sluice; it has no effect",
	})
}

func TestUnreadable(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestSplitArgs(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []word
	}{
		{"", nil},
		{" \t ", nil},
		{"-A INPUT", []word{{"-A", 0}, {"INPUT", 3}}},
		{`a "b c" d`, []word{{"a", 0}, {"b c", 2}, {"d", 8}}},
		{`a "" d`, []word{{"a", 0}, {"", 2}, {"d", 5}}},
		{`"a\"b\\c"`, []word{{`a"b\c`, 0}}},
		{`a\b`, []word{{`a\b`, 0}}},
		{`a"b c"d`, []word{{`ab c`, 0}, {"d", 6}}},
	} {
		got, err := splitArgs(c.in)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %v, %v", c.in, got, err)
		}
	}
	for in, off := range map[string]int{`a "b`: 2, "a\nb": 1, "\x00": 0, `"a\"`: 0} {
		if _, err := splitArgs(in); err == nil || err.off != off {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// TestTunables: what a configuration may set is what a router has.
func TestTunables(t *testing.T) {
	cfg := &router.Config{Interfaces: []router.InterfaceConfig{{Name: "cap0", Type: router.TypePcap, MTU: 1500, Write: filepath.Join(t.TempDir(), "out.pcap")}}}
	r, err := router.New(cfg, router.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	has, may := map[string]bool{}, map[string]bool{}
	for _, v := range r.Sysctl().All() {
		has[v.Name] = true
	}
	for _, v := range router.Tunables(cfg.Interfaces).All() {
		may[v.Name] = true
	}
	for name := range has {
		if !may[name] {
			t.Errorf("a router has %s, and a configuration may not set it", name)
		}
	}
	for name := range may {
		if !has[name] {
			t.Errorf("a configuration may set %s, and a router does not have it", name)
		}
	}
}

// TestTransparent: routes that make others' addresses local, and services at such addresses.
func TestTransparent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "t.toml")
	text := `
[[interface]]
name = "a"
addresses = ["10.0.0.1/24"]
[[route]]
to = "10.9.0.0/16"
type = "local"
[[route]]
to = "0.0.0.0/0"
type = "local"
dev = "lo"
table = 100
[[rule]]
fwmark = 1
table = 100
[[service]]
type = "echo"
listen = ["tcp://10.9.0.1:7"]
[[service]]
type = "echo"
listen = ["tcp://192.0.2.1:7"]
transparent = true
mark = 0x10
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if r := cfg.Routes[0]; r.Type != router.RouteLocal || r.Dev != "lo" || r.Table != router.TableLocal {
		t.Errorf("the first route: %+v", r)
	}
	if r := cfg.Routes[1]; r.Table != 100 {
		t.Errorf("the second route: %+v", r)
	}
	if s := cfg.Services[1]; !s.Transparent || s.Mark != 16 {
		t.Errorf("the second service: %+v", s)
	}
	text = strings.Replace(text, "transparent = true\n", "", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "192.0.2.1 is not an address of the router") {
		t.Errorf("without transparent: %v", err)
	}
}
