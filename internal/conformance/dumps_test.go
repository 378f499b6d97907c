package conformance

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"sluice/packet"
	"sluice/tables/ext"
)

// dump builds a ruleset as iptables-save writes it.
type dump struct {
	*rand.Rand
	fam  uint8
	b    strings.Builder
	body []string
}

// shapes makes rulesets that are built as other programs build theirs, of any size.
var shapes = []struct {
	name string
	make func(d *dump, size int)
	fams []uint8
}{
	{"docker", (*dump).docker, []uint8{packet.IPv4}},
	{"kubernetes", (*dump).kubernetes, []uint8{packet.IPv4, packet.IPv6}},
	{"ufw", (*dump).ufw, []uint8{packet.IPv4, packet.IPv6}},
	{"firewalld", (*dump).firewalld, []uint8{packet.IPv4, packet.IPv6}},
	{"fail2ban", (*dump).fail2ban, []uint8{packet.IPv4, packet.IPv6}},
	{"shorewall", (*dump).shorewall, []uint8{packet.IPv4}},
	{"openwrt", (*dump).openwrt, []uint8{packet.IPv4, packet.IPv6}},
	{"csf", (*dump).csf, []uint8{packet.IPv4}},
}

func newDump(fam uint8, seed uint64) *dump {
	return &dump{Rand: rand.New(rand.NewPCG(seed, 0xd0c)), fam: fam}
}

func (d *dump) has(match string) bool { return ext.Registry.Match(d.fam, match) != nil }

// table begins a table; chains are NAME or NAME=POLICY.
func (d *dump) table(name string, chains ...string) {
	fmt.Fprintf(&d.b, "*%s\n", name)
	d.chain(chains...)
}

func (d *dump) chain(chains ...string) {
	for _, c := range chains {
		name, policy, ok := strings.Cut(c, "=")
		if !ok {
			policy = "-"
		}
		fmt.Fprintf(&d.b, ":%s %s [0:0]\n", name, policy)
	}
}

func (d *dump) add(format string, a ...any) {
	d.body = append(d.body, "-A "+fmt.Sprintf(format, a...))
}

func (d *dump) commit() {
	for _, l := range d.body {
		d.b.WriteString(l + "\n")
	}
	d.body = nil
	d.b.WriteString("COMMIT\n")
}

func (d *dump) f(v4, v6 string) string {
	if d.fam == packet.IPv6 {
		return v6
	}
	return v4
}

func (d *dump) host() string {
	if d.fam == packet.IPv6 {
		return fmt.Sprintf("fd%02x::%x/128", 1+d.IntN(4), 2+d.IntN(9))
	}
	return fmt.Sprintf("%s.%d/32", pickFrom(d, "10.1.0", "10.2.0", "172.17.0", "192.168.7", "9.9.9"), 2+d.IntN(9))
}

func (d *dump) net() string {
	if d.fam == packet.IPv6 {
		return pickFrom(d, "fd01::/64", "fd02::/64", "2001:db8::/32", "fc00::/7", "fe80::/10")
	}
	return pickFrom(d, "10.1.0.0/24", "10.2.0.0/24", "172.17.0.0/16", "192.168.0.0/16", "10.0.0.0/8", "9.9.9.0/24")
}

func (d *dump) port() int { return pickFrom(d, 22, 25, 53, 80, 443, 5000, 8080, 9, 30000+d.IntN(9)) }

func pickFrom[T any](d *dump, of ...T) T { return of[d.IntN(len(of))] }

func (d *dump) docker(size int) {
	d.table("nat", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT", "DOCKER")
	d.add("PREROUTING -m addrtype --dst-type LOCAL -j DOCKER")
	d.add("OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER")
	d.add("POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE")
	d.add("DOCKER -i docker0 -j RETURN")
	for i := range size {
		d.add("POSTROUTING -s 172.17.0.%d/32 -d 172.17.0.%d/32 -p tcp -m tcp --dport 80 -j MASQUERADE", i%200+2, i%200+2)
		d.add("DOCKER ! -i docker0 -p %s -m %[1]s --dport %d -j DNAT --to-destination 172.17.0.%d:%d", pickFrom(d, "tcp", "udp"), d.port(), i%200+2, d.port())
	}
	d.commit()
	d.table("filter", "INPUT=ACCEPT", "FORWARD=DROP", "OUTPUT=ACCEPT", "DOCKER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-USER")
	d.add("FORWARD -j DOCKER-USER")
	d.add("FORWARD -j DOCKER-ISOLATION-STAGE-1")
	d.add("FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	d.add("FORWARD -o docker0 -j DOCKER")
	d.add("FORWARD -i docker0 ! -o docker0 -j ACCEPT")
	d.add("FORWARD -i docker0 -o docker0 -j ACCEPT")
	for i := range size {
		d.add("DOCKER -d 172.17.0.%d/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport %d -j ACCEPT", i%200+2, d.port())
	}
	d.add("DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2")
	d.add("DOCKER-ISOLATION-STAGE-1 -j RETURN")
	d.add("DOCKER-ISOLATION-STAGE-2 -o br-1 -j DROP")
	d.add("DOCKER-ISOLATION-STAGE-2 -j RETURN")
	d.add("DOCKER-USER -j RETURN")
	d.commit()
}

func (d *dump) kubernetes(size int) {
	d.table("mangle", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "FORWARD=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT", "KUBE-KUBELET-CANARY")
	d.commit()
	d.table("nat", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT", "KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ")
	d.add("PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES")
	d.add("OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES")
	d.add("POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING")
	d.add("KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000")
	d.add("KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN")
	d.add("KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0")
	d.add("KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully")
	cidr := d.f("10.2.0.0/24", "fd02::/64")
	for i := range size {
		svc, proto, port := fmt.Sprintf("KUBE-SVC-%08X", i*7919+1), pickFrom(d, "tcp", "udp"), d.port()
		ip := d.f(fmt.Sprintf("10.96.%d.%d/32", i/250, i%250+1), fmt.Sprintf("fd00:96::%x/128", i+1))
		d.chain(svc)
		d.add("KUBE-SERVICES -d %s -p %s -m comment --comment \"default/web-%d:http cluster IP\" -m %[2]s --dport %[4]d -j %[5]s", ip, proto, i, port, svc)
		if i%3 == 0 {
			d.add("KUBE-NODEPORTS -p %s -m comment --comment \"default/web-%d:http\" -m %[1]s --dport %[3]d -j %[4]s", proto, i, 30000+i, svc)
		}
		d.add("%s ! -s %s -d %s -p %s -m comment --comment \"default/web-%d:http cluster IP\" -m %[4]s --dport %[6]d -j KUBE-MARK-MASQ", svc, cidr, ip, proto, i, port)
		eps := 1 + d.IntN(4)
		for e := range eps {
			sep := fmt.Sprintf("KUBE-SEP-%08X", i*7919+e*104729+3)
			d.chain(sep)
			to := d.f(fmt.Sprintf("10.2.0.%d", (i+e)%250+2), fmt.Sprintf("fd02::%x", (i+e)%250+2))
			if e < eps-1 && d.has("statistic") {
				d.add("%s -m comment --comment \"default/web-%d:http\" -m statistic --mode random --probability %.11f -j %s", svc, i, 1/float64(eps-e), sep)
			} else {
				d.add("%s -m comment --comment \"default/web-%d:http\" -j %s", svc, i, sep)
			}
			d.add("%s -s %s -m comment --comment \"default/web-%d:http\" -j KUBE-MARK-MASQ", sep, d.f(to+"/32", to+"/128"), i)
			d.add("%s -p %s -m comment --comment \"default/web-%d:http\" -m %[2]s -j DNAT --to-destination %[4]s", sep, proto, i, d.f(fmt.Sprintf("%s:8080", to), fmt.Sprintf("[%s]:8080", to)))
		}
	}
	d.add("KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
	d.commit()
	d.table("filter", "INPUT=ACCEPT", "FORWARD=ACCEPT", "OUTPUT=ACCEPT", "KUBE-FIREWALL", "KUBE-FORWARD", "KUBE-EXTERNAL-SERVICES")
	d.add("INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES")
	d.add("INPUT -j KUBE-FIREWALL")
	d.add("FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD")
	d.add("OUTPUT -j KUBE-FIREWALL")
	d.add("KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP")
	d.add("KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP")
	d.add("KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT")
	d.add("KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	for i := range size / 10 {
		d.add("KUBE-EXTERNAL-SERVICES -d %s -p tcp -m comment --comment \"default/none-%d has no endpoints\" -m tcp --dport %d -j REJECT --reject-with %s", d.host(), i, d.port(), d.f("icmp-port-unreachable", "icmp6-port-unreachable"))
	}
	d.commit()
}

func (d *dump) ufw(size int) {
	u := d.f("ufw", "ufw6")
	var chains []string
	for _, where := range []string{"before-logging-input", "before-logging-output", "before-logging-forward", "before-input", "before-output", "before-forward", "after-input", "after-output", "after-forward",
		"after-logging-input", "after-logging-output", "after-logging-forward", "reject-input", "reject-output", "reject-forward", "track-input", "track-output", "track-forward",
		"logging-deny", "logging-allow", "user-input", "user-output", "user-forward", "user-limit", "user-limit-accept", "skip-to-policy-input", "not-local"} {
		chains = append(chains, u+"-"+where)
	}
	d.table("filter", append([]string{"INPUT=DROP", "FORWARD=DROP", "OUTPUT=ACCEPT"}, chains...)...)
	for _, h := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		l := strings.ToLower(h)
		for _, at := range []string{"before-logging", "before", "after", "after-logging", "reject", "track"} {
			d.add("%s -j %s-%s-%s", h, u, at, l)
		}
	}
	icmp := d.f("icmp -m icmp --icmp-type", "ipv6-icmp -m icmp6 --icmpv6-type")
	d.add("%s-before-input -i lo -j ACCEPT", u)
	if d.fam == packet.IPv6 {
		d.add("%s-before-input -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT", u)
		d.add("%s-before-input -s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type 129 -j ACCEPT", u)
	}
	d.add("%s-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", u)
	d.add("%s-before-input -m conntrack --ctstate INVALID -j %[1]s-logging-deny", u)
	d.add("%s-before-input -m conntrack --ctstate INVALID -j DROP", u)
	for _, typ := range d.icmpTypes() {
		d.add("%s-before-input -p %s %d -j ACCEPT", u, icmp, typ)
		d.add("%s-before-forward -p %s %d -j ACCEPT", u, icmp, typ)
	}
	d.add("%s-before-input -p udp -m udp --sport %s --dport %s -j ACCEPT", u, d.f("67", "547"), d.f("68", "546"))
	d.add("%s-before-input -j %[1]s-not-local", u)
	d.add("%s-before-input -d %s -p udp -m udp --dport 5353 -j ACCEPT", u, d.f("224.0.0.251/32", "ff02::fb/128"))
	d.add("%s-before-input -j %[1]s-user-input", u)
	d.add("%s-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", u)
	d.add("%s-before-forward -j %[1]s-user-forward", u)
	d.add("%s-before-output -o lo -j ACCEPT", u)
	d.add("%s-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", u)
	d.add("%s-before-output -j %[1]s-user-output", u)
	for _, p := range []int{137, 138} {
		d.add("%s-after-input -p udp -m udp --dport %d -j %[1]s-skip-to-policy-input", u, p)
	}
	if d.fam == packet.IPv4 {
		d.add("%s-after-input -m addrtype --dst-type BROADCAST -j %[1]s-skip-to-policy-input", u)
	}
	d.add("%s-after-logging-input -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"", u)
	d.add("%s-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"", u)
	d.add("%s-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN", u)
	d.add("%s-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"", u)
	d.add("%s-not-local -m addrtype --dst-type LOCAL -j RETURN", u)
	d.add("%s-not-local -m addrtype --dst-type MULTICAST -j RETURN", u)
	if d.fam == packet.IPv4 {
		d.add("%s-not-local -m addrtype --dst-type BROADCAST -j RETURN", u)
	}
	d.add("%s-not-local -m limit --limit 3/min --limit-burst 10 -j %[1]s-logging-deny", u)
	d.add("%s-not-local -j DROP", u)
	d.add("%s-skip-to-policy-input -j DROP", u)
	d.add("%s-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT", u)
	d.add("%s-track-output -p udp -m conntrack --ctstate NEW -j ACCEPT", u)
	d.add("%s-user-limit -m limit --limit 3/min -j LOG --log-prefix \"[UFW LIMIT BLOCK] \"", u)
	d.add("%s-user-limit -j REJECT --reject-with %s", u, d.f("icmp-port-unreachable", "icmp6-port-unreachable"))
	d.add("%s-user-limit-accept -j ACCEPT", u)
	for i := range size {
		where := pickFrom(d, "input", "input", "forward")
		switch i % 5 {
		case 0:
			d.add("%s-user-%s -p tcp -m tcp --dport %d -j ACCEPT", u, where, d.port())
			d.add("%s-user-%s -p udp -m udp --dport %d -j ACCEPT", u, where, d.port())
		case 1:
			d.add("%s-user-%s -s %s -p tcp -m tcp --dport %d -j ACCEPT", u, where, d.net(), d.port())
		case 2:
			d.add("%s-user-%s -s %s -j DROP", u, where, d.host())
		case 3:
			d.add("%s-user-%s -p tcp -m multiport --dports %d,%d:%d -m comment --comment \"'dapp_App%d'\" -j ACCEPT", u, where, 80, 8000, 8080, i)
		case 4:
			d.add("%s-user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --set --name DEFAULT --mask %s --rsource", u, d.f("255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
			d.add("%s-user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --update --seconds 3000 --hitcount 6 --name DEFAULT --mask %s --rsource -j %[1]s-user-limit", u, d.f("255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
			d.add("%s-user-input -p tcp -m tcp --dport 22 -j %[1]s-user-limit-accept", u)
		}
	}
	d.commit()
}

func (d *dump) icmpTypes() []int {
	if d.fam == packet.IPv6 {
		return []int{1, 2, 3, 4, 128}
	}
	return []int{3, 11, 12, 8}
}

func (d *dump) firewalld(size int) {
	zones := []string{"public", "internal", "trusted", "block"}[:2+min(size/10, 2)]
	ifaces := []string{"eth0", "eth1", "eth2", "eth0"}
	for _, table := range []string{"raw", "mangle", "nat", "filter"} {
		hook := map[string][]string{"raw": {"PREROUTING"}, "mangle": {"PREROUTING"}, "nat": {"PREROUTING", "POSTROUTING"}, "filter": {"INPUT", "FORWARD"}}[table]
		var chains []string
		for _, h := range hooksOf[table] {
			chains = append(chains, h+"=ACCEPT")
		}
		for _, h := range hook {
			chains = append(chains, h+"_ZONES")
			for _, z := range zones {
				short := map[string]string{"PREROUTING": "PRE", "POSTROUTING": "POST", "INPUT": "IN", "FORWARD": "FWD"}[h] + "_" + z
				chains = append(chains, short, short+"_pre", short+"_log", short+"_deny", short+"_allow", short+"_post")
			}
		}
		d.table(table, chains...)
		for _, h := range hook {
			if table == "filter" {
				d.add("%s -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT", h)
				d.add("%s -i lo -j ACCEPT", h)
			}
			if table == "raw" && d.fam == packet.IPv6 && d.has("rpfilter") {
				d.add("PREROUTING -p ipv6-icmp -m icmp6 --icmpv6-type 134 -j ACCEPT")
				d.add("PREROUTING -m rpfilter --validmark --invert -j DROP")
			}
			d.add("%s -j %[1]s_ZONES", h)
			dir := "-i"
			if h == "POSTROUTING" {
				dir = "-o"
			}
			for i, z := range zones {
				short := map[string]string{"PREROUTING": "PRE", "POSTROUTING": "POST", "INPUT": "IN", "FORWARD": "FWD"}[h] + "_" + z
				if i%2 == 1 {
					side := map[string]string{"-i": "-s", "-o": "-d"}[dir]
					d.add("%s_ZONES %s %s -g %s", h, side, d.net(), short)
				}
				d.add("%s_ZONES %s %s -g %s", h, dir, ifaces[i], short)
				for _, part := range []string{"pre", "log", "deny", "allow", "post"} {
					d.add("%s -j %[1]s_%s", short, part)
				}
				switch table {
				case "filter":
					for range size / len(zones) {
						d.add("%s_allow -p %s -m %[2]s --dport %d -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT", short, pickFrom(d, "tcp", "udp"), d.port())
					}
					d.add("%s_log -m limit --limit 1/sec -j LOG --log-prefix \"rich_rule_%s: \"", short, z)
					d.add("%s_deny -s %s -j REJECT --reject-with %s", short, d.host(), d.f("icmp-host-prohibited", "icmp6-adm-prohibited"))
					d.add("%s -p %s -j ACCEPT", short, d.f("icmp", "ipv6-icmp"))
					switch z {
					case "trusted":
						d.add("%s -j ACCEPT", short)
					case "block":
						d.add("%s -j REJECT --reject-with %s", short, d.f("icmp-host-prohibited", "icmp6-adm-prohibited"))
					}
				case "nat":
					if h == "POSTROUTING" && z == "public" {
						d.add("%s_allow ! -o lo -j MASQUERADE", short)
					} else if h == "PREROUTING" {
						d.add("%s_allow -p tcp -m tcp --dport %d -m mark --mark 0x%x -j DNAT --to-destination %s", short, d.port(), 0x64+i, d.f("10.2.0.9:80", "[fd02::9]:80"))
					}
				case "mangle":
					d.add("%s_allow -p tcp -m tcp --dport %d -j MARK --set-xmark 0x%x/0xffffffff", short, d.port(), 0x64+i)
				case "raw":
					d.add("%s_allow -p udp -m udp --dport 137 -j CT --helper netbios-ns", short)
				}
			}
			d.add("%s_ZONES -g %s", h, map[string]string{"PREROUTING": "PRE", "POSTROUTING": "POST", "INPUT": "IN", "FORWARD": "FWD"}[h]+"_"+zones[0])
			if table == "filter" {
				d.add("%s -m conntrack --ctstate INVALID -j DROP", h)
				d.add("%s -j REJECT --reject-with %s", h, d.f("icmp-host-prohibited", "icmp6-adm-prohibited"))
			}
		}
		d.commit()
	}
}

func (d *dump) fail2ban(size int) {
	jails := []string{"f2b-sshd", "f2b-nginx-http-auth", "f2b-postfix", "f2b-recidive"}
	d.table("filter", append([]string{"INPUT=ACCEPT", "FORWARD=ACCEPT", "OUTPUT=ACCEPT"}, jails...)...)
	d.add("INPUT -p tcp -m multiport --dports 22 -j f2b-sshd")
	d.add("INPUT -p tcp -m multiport --dports 80,443 -j f2b-nginx-http-auth")
	d.add("INPUT -p tcp -m multiport --dports 25,465,587 -j f2b-postfix")
	d.add("INPUT -p tcp -j f2b-recidive")
	for range size {
		d.add("%s -s %s -j REJECT --reject-with %s", jails[d.IntN(len(jails))], d.host(), d.f("icmp-port-unreachable", "icmp6-port-unreachable"))
	}
	for _, j := range jails {
		d.add("%s -j RETURN", j)
	}
	d.commit()
}

func (d *dump) shorewall(size int) {
	zones := map[string]string{"net": "eth0", "loc": "eth1", "dmz": "eth2"}
	order := []string{"net", "loc", "dmz"}
	var chains []string
	for _, a := range order {
		chains = append(chains, a+"-fw", "fw-"+a, a+"_frwd", zones[a]+"_in", zones[a]+"_out", zones[a]+"_fwd")
		for _, b := range order {
			if a != b {
				chains = append(chains, a+"-"+b)
			}
		}
	}
	d.table("filter", append([]string{"INPUT=DROP", "FORWARD=DROP", "OUTPUT=DROP", "Broadcast", "Drop", "Invalid", "NotSyn", "Reject", "dynamic", "logdrop", "logreject", "reject", "smurfs", "tcpflags", "logflags", "smurflog"}, chains...)...)
	d.add("Broadcast -m addrtype --dst-type BROADCAST -j DROP")
	d.add("Broadcast -m addrtype --dst-type MULTICAST -j DROP")
	d.add("Broadcast -m addrtype --dst-type ANYCAST -j DROP")
	d.add("Drop")
	d.add("Drop -p tcp -m tcp --dport 113 -m comment --comment Auth -j reject")
	d.add("Drop -j Broadcast")
	d.add("Drop -p icmp -m icmp --icmp-type 3/4 -m comment --comment \"Needed ICMP types\" -j ACCEPT")
	d.add("Drop -p icmp -m icmp --icmp-type 11 -m comment --comment \"Needed ICMP types\" -j ACCEPT")
	d.add("Drop -j Invalid")
	d.add("Drop -p udp -m multiport --dports 135,445 -m comment --comment SMB -j DROP")
	d.add("Drop -p udp -m udp --sport 137 --dport 1024:65535 -m comment --comment SMB -j DROP")
	d.add("Drop -p tcp -j NotSyn")
	d.add("Invalid -m conntrack --ctstate INVALID -j DROP")
	d.add("NotSyn -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP")
	for _, z := range order {
		dev := zones[z]
		d.add("INPUT -i %s -j %[1]s_in", dev)
		d.add("FORWARD -i %s -j %[1]s_fwd", dev)
		d.add("OUTPUT -o %s -j %[1]s_out", dev)
		d.add("%s_in -m conntrack --ctstate INVALID,NEW,UNTRACKED -j dynamic", dev)
		d.add("%s_in -m conntrack --ctstate INVALID,NEW,UNTRACKED -j smurfs", dev)
		d.add("%s_in -p tcp -j tcpflags", dev)
		d.add("%s_in -j %s-fw", dev, z)
		d.add("%s_out -j fw-%s", dev, z)
		d.add("%s_fwd -m conntrack --ctstate INVALID,NEW,UNTRACKED -j smurfs", dev)
		d.add("%s_fwd -p tcp -j tcpflags", dev)
		d.add("%s_fwd -j %s_frwd", dev, z)
		for _, b := range order {
			if b == z {
				continue
			}
			d.add("%s_frwd -o %s -j %[1]s-%s", z, zones[b], b)
			c := z + "-" + b
			d.add("%s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", c)
			d.add("%s -m conntrack --ctstate INVALID -j DROP", c)
			for range size / 6 {
				d.add("%s -s %s -d %s -p tcp -m multiport --dports %d,%d -j %s", c, d.net(), d.host(), d.port(), 6000+d.IntN(9), pickFrom(d, "ACCEPT", "reject", "DROP"))
			}
			if z == "net" {
				d.add("%s -j Drop", c)
				d.add("%s -j LOG --log-prefix \"Shorewall:%[1]s:DROP:\" --log-level 6", c)
				d.add("%s -j DROP", c)
			} else {
				d.add("%s -j ACCEPT", c)
			}
		}
		d.add("%s-fw -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", z)
		d.add("%s-fw -p icmp -m icmp --icmp-type 8 -m comment --comment Ping -j ACCEPT", z)
		d.add("%s-fw -p tcp -m tcp --dport 22 -j ACCEPT", z)
		d.add("%s-fw -j Reject", z)
		d.add("%s-fw -g reject", z)
		d.add("fw-%s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", z)
		d.add("fw-%s -j ACCEPT", z)
	}
	d.add("INPUT -i lo -j ACCEPT")
	d.add("INPUT -j Reject")
	d.add("INPUT -g reject")
	d.add("FORWARD -j Reject")
	d.add("FORWARD -j LOG --log-prefix \"Shorewall:FORWARD:REJECT:\" --log-level 6")
	d.add("FORWARD -g reject")
	d.add("OUTPUT -o lo -j ACCEPT")
	d.add("OUTPUT -g reject")
	d.add("Reject -j Broadcast")
	d.add("Reject -p udp -m udp --dport 137:139 -m comment --comment SMB -j reject")
	d.add("logdrop -j DROP")
	d.add("logflags -j LOG --log-prefix \"Shorewall:logflags:DROP:\" --log-level 6 --log-ip-options")
	d.add("logflags -j DROP")
	d.add("logreject -j reject")
	d.add("reject -m addrtype --src-type BROADCAST -j DROP")
	d.add("reject -s 224.0.0.0/4 -j DROP")
	d.add("reject -p igmp -j DROP")
	d.add("reject -p tcp -j REJECT --reject-with tcp-reset")
	d.add("reject -p udp -j REJECT --reject-with icmp-port-unreachable")
	d.add("reject -p icmp -j REJECT --reject-with icmp-host-unreachable")
	d.add("reject -j REJECT --reject-with icmp-host-prohibited")
	d.add("smurflog -j LOG --log-prefix \"Shorewall:smurfs:DROP:\" --log-level 6")
	d.add("smurflog -j DROP")
	d.add("smurfs -s 0.0.0.0/32 -j RETURN")
	d.add("smurfs -m addrtype --src-type BROADCAST -g smurflog")
	d.add("smurfs -s 224.0.0.0/4 -g smurflog")
	for _, f := range []string{"FIN,SYN,RST,PSH,ACK,URG FIN,PSH,URG", "FIN,SYN,RST,PSH,ACK,URG NONE", "SYN,RST SYN,RST", "FIN,RST FIN,RST", "FIN,SYN FIN,SYN"} {
		d.add("tcpflags -p tcp -m tcp --tcp-flags %s -g logflags", f)
	}
	d.add("tcpflags -p tcp -m tcp --sport 0 --tcp-flags FIN,SYN,RST,ACK SYN -g logflags")
	d.commit()
	d.table("mangle", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "FORWARD=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT", "tcpre", "tcfor", "tcpost")
	d.add("PREROUTING -j tcpre")
	d.add("FORWARD -j MARK --set-xmark 0x0/0xff")
	d.add("FORWARD -j tcfor")
	d.add("POSTROUTING -j tcpost")
	d.add("tcpre -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x2/0xff")
	d.commit()
	d.table("nat", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT", "dnat", "net_dnat", "eth0_masq")
	d.add("PREROUTING -j dnat")
	d.add("POSTROUTING -o eth0 -j eth0_masq")
	d.add("dnat -i eth0 -j net_dnat")
	for range size / 10 {
		d.add("net_dnat -p tcp -m tcp --dport %d -j DNAT --to-destination 10.3.0.%d", d.port(), 2+d.IntN(9))
	}
	d.add("eth0_masq -s 10.1.0.0/24 -j MASQUERADE")
	d.commit()
}

func (d *dump) openwrt(size int) {
	zones := map[string]string{"lan": "br-lan", "wan": "eth1"}
	var chains []string
	for _, z := range []string{"lan", "wan"} {
		for _, c := range []string{"input", "output", "forward", "src_ACCEPT", "src_REJECT", "dest_ACCEPT", "dest_REJECT"} {
			chains = append(chains, "zone_"+z+"_"+c)
		}
	}
	d.table("mangle", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "FORWARD=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT")
	d.add("FORWARD -o eth1 -p tcp -m tcp --tcp-flags SYN,RST SYN -m comment --comment \"!fw3: Zone wan MTU fixing\" -j TCPMSS --clamp-mss-to-pmtu")
	d.commit()
	if d.fam == packet.IPv4 {
		d.table("nat", "PREROUTING=ACCEPT", "INPUT=ACCEPT", "OUTPUT=ACCEPT", "POSTROUTING=ACCEPT", "postrouting_rule", "prerouting_rule", "zone_wan_postrouting", "zone_wan_prerouting", "zone_lan_prerouting")
		d.add("PREROUTING -m comment --comment \"!fw3: Custom prerouting rule chain\" -j prerouting_rule")
		d.add("PREROUTING -i br-lan -m comment --comment \"!fw3\" -j zone_lan_prerouting")
		d.add("PREROUTING -i eth1 -m comment --comment \"!fw3\" -j zone_wan_prerouting")
		d.add("POSTROUTING -j postrouting_rule")
		d.add("POSTROUTING -o eth1 -m comment --comment \"!fw3\" -j zone_wan_postrouting")
		d.add("zone_wan_postrouting -m comment --comment \"!fw3\" -j MASQUERADE")
		for i := range size / 4 {
			d.add("zone_wan_prerouting -p tcp -m tcp --dport %d -m comment --comment \"!fw3: Forward%d\" -j DNAT --to-destination 10.1.0.%d:%d", d.port(), i, 2+d.IntN(9), d.port())
			d.add("zone_lan_prerouting -s 10.1.0.0/24 -d 10.2.0.1/32 -p tcp -m tcp --dport %d -m comment --comment \"!fw3: Forward%d (reflection)\" -j DNAT --to-destination 10.1.0.%d", d.port(), i, 2+d.IntN(9))
		}
		d.commit()
	}
	d.table("filter", append([]string{"INPUT=ACCEPT", "FORWARD=DROP", "OUTPUT=ACCEPT", "forwarding_rule", "input_rule", "output_rule", "reject", "syn_flood"}, chains...)...)
	d.add("INPUT -i lo -m comment --comment \"!fw3\" -j ACCEPT")
	for _, h := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		name := map[string]string{"INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}[h]
		d.add("%s -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment \"!fw3\" -j ACCEPT", h)
		if h == "INPUT" {
			d.add("INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment \"!fw3\" -j syn_flood")
		}
		dir := "-i"
		if h == "OUTPUT" {
			dir = "-o"
		}
		for _, z := range []string{"lan", "wan"} {
			d.add("%s %s %s -m comment --comment \"!fw3\" -j zone_%s_%s", h, dir, zones[z], z, name)
		}
	}
	d.add("FORWARD -m comment --comment \"!fw3\" -j reject")
	d.add("reject -p tcp -m comment --comment \"!fw3\" -j REJECT --reject-with tcp-reset")
	d.add("reject -m comment --comment \"!fw3\" -j REJECT --reject-with %s", d.f("icmp-port-unreachable", "icmp6-port-unreachable"))
	d.add("syn_flood -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 25/sec --limit-burst 50 -m comment --comment \"!fw3\" -j RETURN")
	d.add("syn_flood -m comment --comment \"!fw3\" -j DROP")
	for _, z := range []string{"lan", "wan"} {
		if d.fam == packet.IPv4 {
			d.add("zone_%s_input -m conntrack --ctstate DNAT -m comment --comment \"!fw3: Accept port redirections\" -j ACCEPT", z)
			d.add("zone_%s_forward -m conntrack --ctstate DNAT -m comment --comment \"!fw3: Accept port forwards\" -j ACCEPT", z)
		}
		d.add("zone_%s_dest_ACCEPT -o %s -m conntrack --ctstate INVALID -m comment --comment \"!fw3: Prevent NAT leakage\" -j DROP", z, zones[z])
		d.add("zone_%s_dest_ACCEPT -o %s -m comment --comment \"!fw3\" -j ACCEPT", z, zones[z])
		d.add("zone_%s_dest_REJECT -o %s -m comment --comment \"!fw3\" -j reject", z, zones[z])
		d.add("zone_%s_src_ACCEPT -i %s -m conntrack --ctstate NEW,UNTRACKED -m comment --comment \"!fw3\" -j ACCEPT", z, zones[z])
		d.add("zone_%s_src_REJECT -i %s -m comment --comment \"!fw3\" -j reject", z, zones[z])
		d.add("zone_%s_output -m comment --comment \"!fw3\" -j zone_%[1]s_dest_ACCEPT", z)
	}
	for i := range size {
		d.add("zone_wan_input -p %s -m %[1]s --dport %d -m comment --comment \"!fw3: Rule%d\" -j ACCEPT", pickFrom(d, "tcp", "udp"), d.port(), i)
	}
	for _, typ := range d.icmpTypes() {
		d.add("zone_wan_input -p %s %d -m limit --limit 1000/sec -m comment --comment \"!fw3: Allow-ICMP\" -j ACCEPT", d.f("icmp -m icmp --icmp-type", "ipv6-icmp -m icmp6 --icmpv6-type"), typ)
	}
	d.add("zone_lan_forward -m comment --comment \"!fw3: Zone lan to wan forwarding policy\" -j zone_wan_dest_ACCEPT")
	d.add("zone_lan_forward -m comment --comment \"!fw3\" -j zone_lan_dest_ACCEPT")
	d.add("zone_lan_input -m comment --comment \"!fw3\" -j zone_lan_src_ACCEPT")
	d.add("zone_wan_forward -p esp -m comment --comment \"!fw3: Allow-IPSec-ESP\" -j zone_lan_dest_ACCEPT")
	d.add("zone_wan_forward -m comment --comment \"!fw3\" -j zone_wan_dest_REJECT")
	d.add("zone_wan_input -m comment --comment \"!fw3\" -j zone_wan_src_REJECT")
	d.commit()
}

func (d *dump) csf(size int) {
	d.table("filter", "INPUT=DROP", "FORWARD=DROP", "OUTPUT=DROP", "ALLOWIN", "ALLOWOUT", "DENYIN", "DENYOUT", "INVALID", "INVDROP", "LOCALINPUT", "LOCALOUTPUT", "LOGDROPIN", "LOGDROPOUT", "SMTPOUTPUT", "PORTFLOOD")
	d.add("INPUT -s 10.2.0.2/32 ! -i lo -p tcp -m tcp --dport 53 -j ACCEPT")
	d.add("INPUT -s 10.2.0.2/32 ! -i lo -p udp -m udp --sport 53 -j ACCEPT")
	d.add("INPUT ! -i lo -j LOCALINPUT")
	d.add("INPUT -i lo -j ACCEPT")
	d.add("INPUT ! -i lo -p tcp -j INVALID")
	for _, p := range []int{20, 21, 22, 25, 53, 80, 110, 143, 443, 465} {
		d.add("INPUT ! -i lo -p tcp -m conntrack --ctstate NEW -m tcp --dport %d -j ACCEPT", p)
		d.add("OUTPUT ! -o lo -p tcp -m conntrack --ctstate NEW -m tcp --dport %d -j ACCEPT", p)
		d.add("INPUT ! -i lo -p udp -m conntrack --ctstate NEW -m udp --dport %d -j ACCEPT", p)
	}
	d.add("INPUT ! -i lo -p tcp -m conntrack --ctstate NEW -m tcp --dport 8080 -m connlimit --connlimit-above 20 --connlimit-mask 32 --connlimit-saddr -j REJECT --reject-with tcp-reset")
	d.add("INPUT ! -i lo -p icmp -m icmp --icmp-type 8 -m limit --limit 1/sec -j ACCEPT")
	d.add("INPUT ! -i lo -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	d.add("INPUT ! -i lo -p tcp -m tcp --dport 5000 -m conntrack --ctstate NEW -m recent --set --name 5000 --mask 255.255.255.255 --rsource")
	d.add("INPUT ! -i lo -p tcp -m tcp --dport 5000 -m conntrack --ctstate NEW -m recent --update --seconds 3000 --hitcount 5 --name 5000 --mask 255.255.255.255 --rsource -j PORTFLOOD")
	d.add("INPUT ! -i lo -j LOGDROPIN")
	d.add("OUTPUT ! -o lo -j LOCALOUTPUT")
	d.add("OUTPUT -j SMTPOUTPUT")
	d.add("OUTPUT -o lo -j ACCEPT")
	d.add("OUTPUT ! -o lo -p tcp -j INVALID")
	d.add("OUTPUT ! -o lo -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	d.add("OUTPUT ! -o lo -j LOGDROPOUT")
	d.add("PORTFLOOD -m limit --limit 30/min -j LOG --log-prefix \"Firewall: *Port Flood* \"")
	d.add("PORTFLOOD -j DROP")
	for i := range size {
		h := d.host()
		switch i % 4 {
		case 0:
			d.add("ALLOWIN -s %s ! -i lo -j ACCEPT", h)
			d.add("ALLOWOUT -d %s ! -o lo -j ACCEPT", h)
		default:
			d.add("DENYIN -s %s ! -i lo -j DROP", h)
			d.add("DENYOUT -d %s ! -o lo -j LOGDROPOUT", h)
		}
	}
	for _, f := range []string{"FIN,SYN,RST,PSH,ACK,URG NONE", "FIN,SYN,RST,PSH,ACK,URG FIN,SYN,RST,PSH,ACK,URG", "FIN,SYN FIN,SYN", "SYN,RST SYN,RST", "FIN,RST FIN,RST", "FIN,ACK FIN", "PSH,ACK PSH", "ACK,URG URG"} {
		d.add("INVALID -p tcp -m tcp --tcp-flags %s -j INVDROP", f)
	}
	d.add("INVALID -m conntrack --ctstate INVALID -j INVDROP")
	d.add("INVALID -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j INVDROP")
	d.add("INVDROP -j DROP")
	d.add("LOCALINPUT ! -i lo -j ALLOWIN")
	d.add("LOCALINPUT ! -i lo -j DENYIN")
	d.add("LOCALOUTPUT ! -o lo -j ALLOWOUT")
	d.add("LOCALOUTPUT ! -o lo -j DENYOUT")
	for _, p := range []int{23, 67, 68, 111, 113, 135, 139, 445, 500, 513, 520} {
		d.add("LOGDROPIN -p tcp -m tcp --dport %d -j DROP", p)
		d.add("LOGDROPIN -p udp -m udp --dport %d -j DROP", p)
	}
	for _, p := range []string{"tcp", "udp", "icmp"} {
		d.add("LOGDROPIN -p %s -m limit --limit 30/min -j LOG --log-prefix \"Firewall: *%s_IN Blocked* \"", p, strings.ToUpper(p))
	}
	d.add("LOGDROPIN -j DROP")
	d.add("LOGDROPOUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 30/min -j LOG --log-prefix \"Firewall: *TCP_OUT Blocked* \" --log-uid")
	d.add("LOGDROPOUT -j DROP")
	d.add("SMTPOUTPUT -o lo -p tcp -m multiport --dports 25,465,587 -j ACCEPT")
	d.add("SMTPOUTPUT -p tcp -m multiport --dports 25,465,587 -m owner --uid-owner 0 -j ACCEPT")
	d.add("SMTPOUTPUT -p tcp -m multiport --dports 25,465,587 -j REJECT --reject-with icmp-port-unreachable")
	d.commit()
}
