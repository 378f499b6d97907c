package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sluice/conntrack"
	"sluice/internal/iptables"
	"sluice/packet"
	"sluice/router"
)

// Bounds on the number of series.
const (
	maxRules     = 1000
	maxChains    = 1000 // of a user's own
	maxAddresses = 100
)

// metrics serves /metrics in Prometheus's text format.
func (s *Server) metrics() http.Handler {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(&collector{router: s.router},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sluice_"+name, help, labels, nil)
}

var (
	descBuild   = desc("build_info", "A metric with the value 1, labelled by sluice's version.", "version")
	descStart   = desc("start_time_seconds", "When the router started, in seconds since 1970.")
	descReloads = desc("reloads_total", "Configurations that were applied since the start.")

	descIfUp      = desc("interface_up", "1 if the interface's device is there.", "interface", "type")
	descIfRx      = desc("interface_receive_packets_total", "Packets that came in over the interface.", "interface")
	descIfRxBytes = desc("interface_receive_bytes_total", "Bytes that came in over the interface.", "interface")
	descIfTx      = desc("interface_transmit_packets_total", "Packets that went out over the interface.", "interface")
	descIfTxBytes = desc("interface_transmit_bytes_total", "Bytes that went out over the interface.", "interface")
	descIfTxErr   = desc("interface_transmit_errors_total", "Packets that the device refused.", "interface")

	descForwarded = desc("forwarded_packets_total", "Packets that passed FORWARD and went out.")
	descDelivered = desc("delivered_packets_total", "Packets for the router's own sockets.")
	descSent      = desc("sent_packets_total", "Packets of the router's own sockets.")
	descICMP      = desc("icmp_errors_sent_total", "ICMP and ICMPv6 errors that were sent.")
	descICMPHeld  = desc("icmp_errors_limited_total", "ICMP and ICMPv6 errors that a rate limit held back.")
	descDrops     = desc("dropped_packets_total", "Packets that were dropped, by reason.", "reason")
	descSynproxy  = desc("synproxy_total", "What SYNPROXY saw: syn_received, cookie_valid, cookie_invalid, cookie_retrans, conn_reopened.", "event")
	descLogLost   = desc("log_lines_lost_total", "LOG lines that came faster than the log took them.")

	descHook        = desc("hook_packets_total", "Packets that came to a hook.", "family", "hook")
	descHookBytes   = desc("hook_bytes_total", "Bytes of packets that came to a hook.", "family", "hook")
	descChain       = desc("chain_packets_total", "Packets that came to a builtin chain.", "family", "table", "chain")
	descChainBytes  = desc("chain_bytes_total", "Bytes of packets that came to a builtin chain.", "family", "table", "chain")
	descPolicy      = desc("chain_policy_packets_total", "Packets that a builtin chain's policy decided.", "family", "table", "chain", "policy")
	descPolicyBytes = desc("chain_policy_bytes_total", "Bytes of packets that a builtin chain's policy decided.", "family", "table", "chain", "policy")
	descChainRules  = desc("chain_rules", "Rules in the chain.", "family", "table", "chain")
	descChainsLeft  = desc("chains_without_metrics", "Chains beyond the bound on series.")
	descRule        = desc("rule_packets_total", "Packets that a rule matched; a rule is named by its comment, else by its number.", "family", "table", "chain", "rule", "target")
	descRuleBytes   = desc("rule_bytes_total", "Bytes of packets that a rule matched.", "family", "table", "chain", "rule", "target")
	descRulesLeft   = desc("rules_without_metrics", "Rules beyond the bound on series; those with a comment come first.")

	descEntries = desc("conntrack_entries", "Connections in the table.")
	descMax     = desc("conntrack_entries_limit", "Connections that the table holds at most (nf_conntrack_max).")
	descCtStat  = desc("conntrack_events_total", "Events of the connection table, named as conntrack -S prints them.", "event")
	descNAT     = desc("nat_ports_in_use", "Source ports that NAT has given to connections, by address and protocol.", "address", "protocol")

	descWorker      = desc("worker_packets_total", "Packets that a worker took.", "worker")
	descWorkerBurst = desc("worker_bursts_total", "Batches in which a worker took them.", "worker")
	descWorkerBusy  = desc("worker_busy_seconds_total", "Time in which a worker did not wait for packets.", "worker")
)

// collector reads a router's counters when they are asked for.
type collector struct {
	router *router.Router

	mu    sync.Mutex
	ports map[natKey]int
	asked time.Time
}

type natKey struct{ addr, proto string }

// Describe tells Prometheus's library what Collect may send.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBuild, descStart, descReloads, descIfUp, descIfRx, descIfRxBytes, descIfTx, descIfTxBytes, descIfTxErr,
		descForwarded, descDelivered, descSent, descICMP, descICMPHeld, descDrops, descSynproxy, descLogLost, descHook, descHookBytes, descChain, descChainBytes, descPolicy, descPolicyBytes, descChainRules, descChainsLeft,
		descRule, descRuleBytes, descRulesLeft, descEntries, descMax, descCtStat, descNAT, descWorker, descWorkerBurst, descWorkerBusy} {
		ch <- d
	}
}

// Collect sends all metrics.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := c.router.Status()
	gauge(descBuild, 1, valid(st.Version))
	gauge(descStart, float64(st.Started.UnixMilli())/1000)
	counter(descReloads, uint64(st.Reloads))
	for _, i := range st.Interfaces {
		up := 0.0
		if i.State == "up" {
			up = 1
		}
		gauge(descIfUp, up, i.Name, i.Type)
		counter(descIfRx, i.RxPackets, i.Name)
		counter(descIfRxBytes, i.RxBytes, i.Name)
		counter(descIfTx, i.TxPackets, i.Name)
		counter(descIfTxBytes, i.TxBytes, i.Name)
		counter(descIfTxErr, i.TxErrors, i.Name)
	}
	counter(descForwarded, st.Forwarded)
	counter(descDelivered, st.Delivered)
	counter(descSent, st.Sent)
	counter(descICMP, st.ICMPErrors)
	counter(descICMPHeld, st.ICMPHeld)
	counter(descLogLost, st.LogLost)
	if p := st.Synproxy; p != nil {
		counter(descSynproxy, p.SYNReceived, "syn_received")
		counter(descSynproxy, p.CookieValid, "cookie_valid")
		counter(descSynproxy, p.CookieInvalid, "cookie_invalid")
		counter(descSynproxy, p.CookieRetrans, "cookie_retrans")
		counter(descSynproxy, p.ConnReopened, "conn_reopened")
	}
	for _, d := range st.Drops {
		counter(descDrops, d.Packets, d.Reason)
	}
	for _, h := range st.Hooks {
		counter(descHook, h.Packets, h.Family, h.Hook)
		counter(descHookBytes, h.Bytes, h.Family, h.Hook)
	}
	c.tables(st, counter, gauge)

	gauge(descEntries, float64(st.Conntrack.Count))
	gauge(descMax, float64(st.Conntrack.Max))
	var sum conntrack.Stats
	for _, s := range c.router.Conntrack().Stats() {
		sum = sum.Add(s)
	}
	for name, v := range map[string]uint64{"found": sum.Found, "invalid": sum.Invalid, "insert": sum.Insert, "insert_failed": sum.InsertFailed,
		"drop": sum.Drop, "early_drop": sum.EarlyDrop, "error": sum.Error, "clash_resolve": sum.ClashResolve} {
		counter(descCtStat, v, name)
	}
	for k, n := range c.natPorts() {
		gauge(descNAT, float64(n), k.addr, k.proto)
	}
	for _, w := range st.Workers {
		id := strconv.Itoa(w.ID)
		counter(descWorker, w.Packets, id)
		counter(descWorkerBurst, w.Bursts, id)
		ch <- prometheus.MustNewConstMetric(descWorkerBusy, prometheus.CounterValue, w.Busy, id)
	}
}

// tables sends chains and rules. Rules of a chain with the same comment are one series.
func (c *collector) tables(st *router.Status, counter func(*prometheus.Desc, uint64, ...string), gauge func(*prometheus.Desc, float64, ...string)) {
	type series struct {
		labels         [5]string
		packets, bytes uint64
	}
	var commented, numbered []*series
	chains := 0
	for _, t := range st.Tables {
		for _, ch := range t.Chains {
			name := valid(ch.Name)
			if ch.Policy != "" {
				counter(descChain, ch.EnteredPackets, t.Family, t.Name, name)
				counter(descChainBytes, ch.EnteredBytes, t.Family, t.Name, name)
				counter(descPolicy, ch.Packets, t.Family, t.Name, name, ch.Policy)
				counter(descPolicyBytes, ch.Bytes, t.Family, t.Name, name, ch.Policy)
			}
			if ch.Policy == "" {
				chains++
			}
			if chains <= maxChains || ch.Policy != "" {
				gauge(descChainRules, float64(len(ch.Rules)), t.Family, t.Name, name)
			}
			seen := map[[2]string]*series{}
			for n, r := range ch.Rules {
				comment, target := describe(r.Text)
				s := &series{[5]string{t.Family, t.Name, name, cmp.Or(comment, strconv.Itoa(n+1)), target}, r.Packets, r.Bytes}
				switch old := seen[[2]string{s.labels[3], target}]; {
				case old != nil:
					old.packets += s.packets
					old.bytes += s.bytes
					continue
				case comment != "":
					commented = append(commented, s)
				default:
					numbered = append(numbered, s)
				}
				seen[[2]string{s.labels[3], target}] = s
			}
		}
	}
	all := append(commented, numbered...)
	shown := min(len(all), maxRules)
	gauge(descRulesLeft, float64(len(all)-shown))
	gauge(descChainsLeft, float64(max(chains-maxChains, 0)))
	for _, s := range all[:shown] {
		counter(descRule, s.packets, s.labels[:]...)
		counter(descRuleBytes, s.bytes, s.labels[:]...)
	}
}

// describe finds a rule's comment and target in its text.
func describe(text string) (comment, target string) {
	words, _, err := iptables.Split(text)
	if err != nil { // too long for a restore line
		return "", ""
	}
	for i := 0; i+1 < len(words); i++ {
		switch words[i] {
		case "--comment":
			comment = valid(words[i+1])
			i++
		case "-j", "-g":
			return comment, valid(words[i+1])
		}
	}
	return comment, ""
}

// valid makes s fit for a label: UTF-8.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

// natPorts counts the connections of each address and protocol that source NAT
// gave a port. It looks at the whole table, and so at most every ten seconds.
func (c *collector) natPorts() map[natKey]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ports != nil && time.Since(c.asked) < 10*time.Second {
		return c.ports
	}
	n := map[natKey]int{}
	c.router.Conntrack().Each(func(s *conntrack.Snapshot) bool {
		if s.Status&conntrack.SrcNAT != 0 && (s.Orig.Proto == packet.ProtoTCP || s.Orig.Proto == packet.ProtoUDP) {
			n[natKey{packet.Addr(s.Reply.Family, s.Reply.Dst).String(), map[uint8]string{packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp"}[s.Orig.Proto]}]++
		}
		return true
	})
	if len(n) > maxAddresses {
		keys := make([]natKey, 0, len(n))
		for k := range n {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(a, b natKey) int {
			return cmp.Or(cmp.Compare(n[b], n[a]), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
		})
		for _, k := range keys[maxAddresses:] {
			n[natKey{"other", k.proto}] += n[k]
			delete(n, k)
		}
	}
	c.ports, c.asked = n, time.Now()
	return n
}
