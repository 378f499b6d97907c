package router

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"sluice/conntrack"
	"sluice/internal/ipset"
	"sluice/internal/sysctl"
	"sluice/nat"
	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/frag"
)

// Config is a whole configuration, parsed and checked: what internal/config
// makes of a TOML file, or what a program that embeds the router fills in. The
// toml tags are the grammar: a key that no field here has is an error. The
// zero Config is valid: a router without interfaces.
//
// A Config is not changed once it was given to New or Reload.
type Config struct {
	File string `toml:"-"` // the file it was read from; "" for an embedded one

	Router     RouterConfig      `toml:"router"`
	Control    ControlConfig     `toml:"control"`
	Interfaces []InterfaceConfig `toml:"interface"`
	Routes     []RouteConfig     `toml:"route"`
	Rules      []RuleConfig      `toml:"rule"` // policy routing
	Sets       []SetConfig       `toml:"set"`
	Timeouts   []TimeoutConfig   `toml:"timeout"`
	IPTables   RulesetConfig     `toml:"iptables"`
	IP6Tables  RulesetConfig     `toml:"ip6tables"`
	Services   []ServiceConfig   `toml:"service"`
	Publish    []PublishConfig   `toml:"publish"`
	DNS        *DNSConfig        `toml:"dns"`
	Proxies    []ProxyConfig     `toml:"proxy"`
	Sysctl     []SysctlConfig    `toml:"sysctl"` // in the file's order
}

// Position is a place in a text file. Line and Column count from 1, columns in bytes.
type Position struct {
	File         string
	Line, Column int
}

// String is "file:line:column", as far as it is known.
func (p Position) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// RouterConfig is the table [router].
type RouterConfig struct {
	Workers  int           `toml:"workers"`   // packet workers; 0: one per CPU
	BusyPoll time.Duration `toml:"busy_poll"` // how long a worker spins before it sleeps; 0: it sleeps at once
	// Forgetful: every packet takes the whole way through the rules; nothing that
	// they decided is remembered with its connection.
	Forgetful bool `toml:"forgetful"`
}

// ControlConfig is the table [control].
type ControlConfig struct {
	Socket    string `toml:"socket"`     // path of the control socket; "": sluice.sock in the runtime directory
	HTTP      string `toml:"http"`       // ADDRESS:PORT of the HTTP server; "": none
	TokenFile string `toml:"token_file"` // what allows changes over HTTP, and reading from other machines; "": nothing does
	TLSCert   string `toml:"tls_cert"`   // PEM file; "": no TLS
	TLSKey    string `toml:"tls_key"`    // PEM file
}

// Interface types.
const (
	TypeTUN  = "tun"
	TypePcap = "pcap"
	// TypeUplink: the far side is the host's ordinary sockets.
	TypeUplink = "uplink"
	// TypePacket: an existing Ethernet device, through packet sockets.
	TypePacket = "packet"
)

// InterfaceConfig is one [[interface]].
type InterfaceConfig struct {
	Pos       Position       `toml:"-"`
	Name      string         `toml:"name"`      // 1 to 15 bytes; what -i and -o match
	Type      string         `toml:"type"`      // TypeTUN (the default), TypeUplink, TypePacket or TypePcap
	Addresses []netip.Prefix `toml:"addresses"` // the router's own, host bits kept
	MTU       int            `toml:"mtu"`       // bytes; default 1500
	Queues    int            `toml:"queues"`    // of a TUN device, or packet sockets; 0: one per worker
	Offload   bool           `toml:"offload"`   // virtio-net header, TSO and USO; default true
	Owner     Owner          `toml:"owner"`     // who may attach to the TUN device
	Read      string         `toml:"read"`      // pcap: frames that arrive; "": none
	Write     string         `toml:"write"`     // pcap: where leaving frames go; "": nowhere
	Host      *HostConfig    `toml:"host"`      // the kernel's end; nil: left as it is. Of a packet interface: NetNS alone

	HostLoopback []netip.Addr `toml:"host_loopback"` // uplink: addresses that stand for the host's 127.0.0.1 and ::1, one of a family; empty: they cannot be reached
	Source       []netip.Addr `toml:"source"`        // uplink: what the host's sockets are bound to, one of a family; empty: the host's choice
	MaxFlows     int          `toml:"max_flows"`     // uplink: connections at once; 0: 65536
}

// Owner is a user that may attach to a device.
type Owner struct {
	Name string // as written: a name or a number; "": nobody in particular
	UID  uint32 // valid if Name is not ""
}

// HostConfig is [interface.host]: the kernel's end of a TUN device.
type HostConfig struct {
	Pos       Position       `toml:"-"`
	NetNS     string         `toml:"netns"` // a name under /run/netns, or a path; "": the process' own
	Addresses []netip.Prefix `toml:"addresses"`
	Routes    []HostRoute    `toml:"routes"`
	MTU       int            `toml:"mtu"` // bytes; 0: the interface's
}

// NetNSPath is the path of the namespace's file, "" for the process' own.
func (h *HostConfig) NetNSPath() string {
	if h == nil {
		return ""
	}
	if h.NetNS == "" || strings.ContainsRune(h.NetNS, '/') {
		return h.NetNS
	}
	return filepath.Join("/run/netns", h.NetNS)
}

// HostRoute is a route of the kernel's end, written as for `ip route add`.
type HostRoute struct {
	Text   string       // as written
	To     netip.Prefix // masked
	Via    netip.Addr   // invalid: directly over the device
	Src    netip.Addr   // preferred source; invalid: the kernel's choice
	Metric int          // 0: the kernel's default
}

// Route types, with the words of `ip route`.
const (
	RouteUnicast     = "unicast"
	RouteBlackhole   = "blackhole"
	RouteUnreachable = "unreachable"
	RouteProhibit    = "prohibit"
	RouteLocal       = "local" // to the router itself
)

// Routing tables with a name.
const (
	TableDefault = 253
	TableMain    = 254
	TableLocal   = 255
)

// RouteConfig is one [[route]].
type RouteConfig struct {
	Pos    Position     `toml:"-"`
	To     netip.Prefix `toml:"to"`     // masked; "default" is 0.0.0.0/0 or ::/0, by Via
	Via    netip.Addr   `toml:"via"`    // invalid: on link
	Dev    string       `toml:"dev"`    // always set for a unicast route: filled in from Via where the file leaves it out
	Table  uint32       `toml:"table"`  // default TableMain
	Metric uint32       `toml:"metric"` // lower wins
	Type   string       `toml:"type"`   // RouteUnicast (the default) …
	Src    netip.Addr   `toml:"src"`    // preferred source of the router's own packets; invalid: chosen as Linux does
}

// RuleConfig is one [[rule]]: policy routing, as `ip rule`. Rules are met in
// order of Priority; 0 (local), 32766 (main) and 32767 (default) are there already.
type RuleConfig struct {
	Pos      Position     `toml:"-"`
	Priority uint32       `toml:"priority"` // default: below the lowest so far, from 32765 down, as `ip rule add`
	From     netip.Prefix `toml:"from"`     // invalid: any
	To       netip.Prefix `toml:"to"`       // invalid: any
	IIF      string       `toml:"iif"`      // "": any; "lo": the router's own packets
	FWMark   MarkMatch    `toml:"fwmark"`
	Table    uint32       `toml:"table"`  // 0: Type says what happens
	Type     string       `toml:"type"`   // RouteUnicast (the default: look in Table) …
	Family   uint8        `toml:"family"` // 4 or 6; 0: both, where From and To leave it open
}

// MarkMatch is a firewall mark under a mask; Mask 0 matches everything.
type MarkMatch struct{ Value, Mask uint32 }

// RulesetConfig is [iptables] or [ip6tables]. Restore files are loaded first,
// in order, as if all were one iptables-restore --noflush into an empty ruleset;
// then each table's policies and rules.
type RulesetConfig struct {
	Restore  []RestoreFile `toml:"restore"`
	Raw      TableConfig   `toml:"raw"`
	Mangle   TableConfig   `toml:"mangle"`
	NAT      TableConfig   `toml:"nat"`
	Filter   TableConfig   `toml:"filter"`
	Security TableConfig   `toml:"security"`
}

// Tables gives the tables in the order that a packet meets them.
func (r *RulesetConfig) Tables() []NamedTable {
	return []NamedTable{{"raw", &r.Raw}, {"mangle", &r.Mangle}, {"nat", &r.NAT}, {"filter", &r.Filter}, {"security", &r.Security}}
}

// NamedTable is a table under its iptables name.
type NamedTable struct {
	Name string
	*TableConfig
}

// TableConfig is [iptables.TABLE].
type TableConfig struct {
	Policy []PolicyConfig `toml:"policy"`
	Rules  []RuleLine     `toml:"rules"`
}

// PolicyConfig is one entry of policy = { … }.
type PolicyConfig struct {
	Pos    Position
	Chain  string
	Target string // ACCEPT or DROP
}

// RuleLine is one element of rules = [ … ]: an iptables command line without
// the program's name and without -t.
type RuleLine struct {
	Pos  Position
	Text string
	Args []Arg
}

// Arg is one argument of a RuleLine, quotes removed, and where it starts.
type Arg struct {
	Pos  Position
	Text string
}

// Argv is the line's arguments as text.
func (l *RuleLine) Argv() []string {
	out := make([]string, len(l.Args))
	for i, a := range l.Args {
		out[i] = a.Text
	}
	return out
}

// RestoreFile is a file in iptables-save format, already read.
type RestoreFile struct {
	Pos  Position // of the name in the configuration
	Path string   // absolute, or relative to the working directory
	Text []byte
}

// ScriptLine is one line of a ruleset as iptables-restore reads it.
type ScriptLine struct {
	Pos  Position
	Text string
	Args []Arg // of a line that came from rules = [ … ]; nil otherwise
}

// Script is the ruleset as one input of iptables-restore --noflush, line by
// line, each with the place it came from. nil if there is none.
func (r *RulesetConfig) Script() []ScriptLine {
	var out []ScriptLine
	for _, f := range r.Restore {
		for i, line := range strings.Split(strings.TrimSuffix(string(f.Text), "\n"), "\n") {
			out = append(out, ScriptLine{Pos: Position{File: f.Path, Line: i + 1, Column: 1}, Text: strings.TrimSuffix(line, "\r")})
		}
	}
	for _, t := range r.Tables() {
		if len(t.Policy) == 0 && len(t.Rules) == 0 {
			continue
		}
		var at Position
		if len(t.Policy) > 0 {
			at = t.Policy[0].Pos
		} else {
			at = t.Rules[0].Pos
		}
		out = append(out, ScriptLine{Pos: at, Text: "*" + t.Name})
		for _, p := range t.Policy {
			out = append(out, ScriptLine{Pos: p.Pos, Text: ":" + p.Chain + " " + p.Target + " [0:0]"})
		}
		for i := range t.Rules {
			out = append(out, ScriptLine{Pos: t.Rules[i].Pos, Text: t.Rules[i].Text, Args: t.Rules[i].Args})
		}
		out = append(out, ScriptLine{Pos: at, Text: "COMMIT"})
	}
	return out
}

// SetConfig is one [[set]]: an IP set, with the names of `ipset create`.
type SetConfig struct {
	Pos        Position `toml:"-"`
	Name       string   `toml:"name"`
	Type       string   `toml:"type"`
	Family     string   `toml:"family"` // inet (the default) or inet6
	HashSize   *uint32  `toml:"hashsize"`
	MaxElem    *uint32  `toml:"maxelem"`
	BucketSize *uint32  `toml:"bucketsize"`
	Netmask    *uint32  `toml:"netmask"`
	Bitmask    string   `toml:"bitmask"`
	MarkMask   *uint32  `toml:"markmask"`
	Range      string   `toml:"range"`
	Size       *uint32  `toml:"size"`
	Timeout    *uint32  `toml:"timeout"` // seconds
	Counters   bool     `toml:"counters"`
	Comment    bool     `toml:"comment"`
	SKBInfo    bool     `toml:"skbinfo"`
	ForceAdd   bool     `toml:"forceadd"`
	Entries    []string `toml:"entries"` // each what `ipset add NAME` takes
}

// Definition is the set as ipset's create and add have it.
func (c *SetConfig) Definition() ipset.Definition {
	d := ipset.Definition{Name: c.Name, Type: c.Type, Entries: c.Entries}
	text := func(name, val string) {
		if val != "" {
			d.Options = append(d.Options, name, val)
		}
	}
	number := func(name string, val *uint32) {
		if val != nil {
			text(name, fmt.Sprint(*val))
		}
	}
	flag := func(name string, on bool) {
		if on {
			d.Options = append(d.Options, name)
		}
	}
	text("family", c.Family)
	number("markmask", c.MarkMask)
	number("hashsize", c.HashSize)
	number("maxelem", c.MaxElem)
	number("netmask", c.Netmask)
	text("bitmask", c.Bitmask)
	text("range", c.Range)
	number("size", c.Size)
	number("timeout", c.Timeout)
	flag("counters", c.Counters)
	flag("comment", c.Comment)
	flag("forceadd", c.ForceAdd)
	flag("skbinfo", c.SKBInfo)
	number("bucketsize", c.BucketSize)
	return d
}

// ServiceConfig is one [[service]]: a local socket on the router itself.
type ServiceConfig struct {
	Pos    Position `toml:"-"`
	Type   string   `toml:"type"` // one of services.Types
	Listen []Listen `toml:"listen"`
	UID    uint32   `toml:"uid"` // what the owner match sees; default 0
	GID    uint32   `toml:"gid"`

	Transparent bool   `toml:"transparent"` // addresses that are not the router's will do (IP_TRANSPARENT)
	Mark        uint32 `toml:"mark"`        // of what it sends (SO_MARK)
}

// Listen is a listening address, written "tcp://10.0.1.1:7".
type Listen struct {
	Network string         // "tcp" or "udp"
	Addr    netip.AddrPort // the unspecified address: all of the router's
}

func (l Listen) String() string { return l.Network + "://" + l.Addr.String() }

// PublishConfig is one [[publish]]: a host port that reaches inside. What
// connects to it arrives as packets on an uplink.
type PublishConfig struct {
	Pos       Position       `toml:"-"`
	Listen    HostListen     `toml:"listen"`
	To        netip.AddrPort `toml:"to"`        // where the packets go, before PREROUTING
	Interface string         `toml:"interface"` // the uplink; "": the first
}

// HostListen is where on the host something is listened on: "127.0.0.1:8080",
// "udp://127.0.0.1:8080" or "unix:///run/x.sock".
type HostListen struct {
	Network string         // "tcp", "udp" or "unix"
	Addr    netip.AddrPort // of tcp and udp; [::] takes IPv4 as well
	Path    string         // of unix
}

func (l HostListen) String() string {
	if l.Network == "unix" {
		return "unix://" + l.Path
	}
	return l.Network + "://" + l.Addr.String()
}

// SysctlConfig is one entry of [sysctl].
type SysctlConfig struct {
	Pos   Position
	Name  string // "net.ipv4.ip_forward"
	Value string
}

// Defaults for what a configuration leaves out.
const (
	DefaultMTU     = 1500
	MaxNameLen     = 15    // IFNAMSIZ less the NUL
	MaxQueues      = 256   // the TUN driver's limit
	MaxWorkers     = 256   // one queue per worker must exist
	MinMTU4        = 68    // RFC 791
	MinMTU6        = 1280  // RFC 8200 section 5
	MaxMTU         = 65535 // bytes of a network packet
	RulePriorities = 32766 // first priority that `ip rule add` gives is one less
)

// SetDefaults fills in what an [[interface]] has before its keys are read.
func (c *InterfaceConfig) SetDefaults() {
	c.Type, c.MTU, c.Offload = TypeTUN, DefaultMTU, true
}

// SetDefaults fills in what a [[route]] has before its keys are read.
func (c *RouteConfig) SetDefaults() { c.Table, c.Type = TableMain, RouteUnicast }

// SetDefaults fills in what a [[rule]] has before its keys are read.
func (c *RuleConfig) SetDefaults() { c.Type = RouteUnicast }

// Interface finds an interface by name, nil if there is none.
func (c *Config) Interface(name string) *InterfaceConfig {
	for i := range c.Interfaces {
		if c.Interfaces[i].Name == name {
			return &c.Interfaces[i]
		}
	}
	return nil
}

// Tunables is the registry that a router with these interfaces has, at its
// defaults: for checking names and values without a router.
func Tunables(interfaces []InterfaceConfig) *sysctl.Set {
	s := sysctl.NewSet()
	fib := netstack.NewFIB(s)
	nat.New(conntrack.New(s, conntrack.Options{}), s)
	frag.New(s)
	newICMPLimiter(s)
	newKnobs(s)
	for i := range interfaces {
		// a bad or doubled name is refused here, and its own check reports it
		_ = fib.Update(func(tx *netstack.Tx) error {
			return tx.AddIface(packet.NewIface(i+2, interfaces[i].Name, interfaces[i].MTU))
		})
	}
	return s
}

// CheckRouting says what is wrong with a configuration's interfaces, addresses,
// routes and policy rules, the first of it, without a router. The error begins
// with the place in the configuration.
func CheckRouting(cfg *Config) error {
	links := make([]*link, len(cfg.Interfaces))
	for i := range links {
		c := &cfg.Interfaces[i]
		links[i] = &link{cfg: *c, iface: packet.NewIface(i+2, c.Name, c.MTU)}
	}
	return netstack.NewFIB(sysctl.NewSet()).Update((&Router{}).fibEdit(cfg, links))
}

// newKnobs registers and finds the tunables that the router's own code reads.
func newKnobs(s *sysctl.Set) knobs {
	return knobs{
		echoIgnore:       [2]*sysctl.Var{s.New("net.ipv4.icmp_echo_ignore_all", 0, 0, 1), s.New("net.ipv6.icmp.echo_ignore_all", 0, 0, 1)},
		errorsUseInbound: s.New("net.ipv4.icmp_errors_use_inbound_ifaddr", 0, 0, 1),
		conntrackMax:     s.Lookup("net.netfilter.nf_conntrack_max"),
		ttl4:             s.New("net.ipv4.ip_default_ttl", 64, 1, 255),
		ttl6:             s.Lookup("net.ipv6.conf.all.hop_limit"),
	}
}
