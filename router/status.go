package router

import (
	"sort"
	"sync"
	"time"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ext"
	"sluice/tables/synproxy"
)

// Status is what a router is doing, as `sluice status` prints it. Counters run
// since the router started.
type Status struct {
	Version    string            `json:"version"`
	PID        int               `json:"pid"`
	Config     string            `json:"config"` // file; "" for an embedded router
	Started    time.Time         `json:"started"`
	Uptime     float64           `json:"uptime_seconds"`
	Reloads    int               `json:"reloads"`
	Workers    []WorkerStatus    `json:"workers"`
	Interfaces []InterfaceStatus `json:"interfaces"`
	Forwarded  uint64            `json:"forwarded_packets"`
	Delivered  uint64            `json:"delivered_packets"` // to the router's own sockets
	Sent       uint64            `json:"sent_packets"`      // by the router's own sockets
	ICMPErrors uint64            `json:"icmp_errors_sent"`
	ICMPHeld   uint64            `json:"icmp_errors_rate_limited"`
	Hooks      []HookStatus      `json:"hooks"`
	Drops      []DropCount       `json:"drops"` // by reason, most first
	Conntrack  ConntrackStatus   `json:"conntrack"`
	Tables     []TableStatus     `json:"tables"`
	LogLost    uint64            `json:"log_lines_lost"`
	IdleTimers []ext.IdleTimer   `json:"idle_timers,omitempty"` // of IDLETIMER
	Synproxy   *synproxy.Stats   `json:"synproxy,omitempty"`    // once there was a SYNPROXY rule
	Watches    int               `json:"watches"`               // traces and captures that are under way
}

// WorkerStatus is one worker's share.
type WorkerStatus struct {
	ID      int     `json:"id"`
	Bursts  uint64  `json:"bursts"`
	Packets uint64  `json:"packets"`
	Busy    float64 `json:"busy_seconds"` // in which it did not wait for packets
	// Recalled packets went the way that their connections remembered.
	Recalled uint64 `json:"recalled_packets"`
}

// InterfaceStatus is one interface. State is "up", or "gone" after its device was removed.
type InterfaceStatus struct {
	Name      string   `json:"name"`
	Index     int      `json:"index"`
	Type      string   `json:"type"`
	State     string   `json:"state"`
	MTU       int      `json:"mtu"`
	Queues    int      `json:"queues"`
	Addresses []string `json:"addresses"`
	RxPackets uint64   `json:"rx_packets"`
	RxBytes   uint64   `json:"rx_bytes"`
	TxPackets uint64   `json:"tx_packets"`
	TxBytes   uint64   `json:"tx_bytes"`
	TxErrors  uint64   `json:"tx_errors"`
}

// HookStatus is what came to one hook of one family, as its first table has met it.
type HookStatus struct {
	Family  string `json:"family"`
	Hook    string `json:"hook"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// DropCount is the packets dropped for one reason.
type DropCount struct {
	Reason  string `json:"reason"`
	Doc     string `json:"doc"`
	Packets uint64 `json:"packets"`
}

// ConntrackStatus is the flow table's fill.
type ConntrackStatus struct {
	Count int   `json:"count"`
	Max   int64 `json:"max"`
}

// TableStatus is one table of one family.
type TableStatus struct {
	Family string        `json:"family"` // "ipv4" or "ipv6"
	Name   string        `json:"name"`
	Chains []ChainStatus `json:"chains"`
}

// ChainStatus is one chain: its rules, and for a builtin chain its policy with counters.
type ChainStatus struct {
	Name     string `json:"name"`
	Policy   string `json:"policy,omitempty"`
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
	NumRules int    `json:"num_rules"`
	// EnteredPackets and EnteredBytes are what a builtin chain has met; see tables.View.Entered.
	EnteredPackets uint64       `json:"entered_packets"`
	EnteredBytes   uint64       `json:"entered_bytes"`
	Rules          []RuleStatus `json:"rules,omitempty"`
}

// RuleStatus is one rule with its counters.
type RuleStatus struct {
	Text    string `json:"text"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Status reads all counters. It runs between the workers' bursts and holds no packet up.
func (r *Router) Status() *Status { return r.status(true) }

// Overview is Status without the rules, which may be many.
func (r *Router) Overview() *Status { return r.status(false) }

func (r *Router) status(rules bool) *Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Status{
		Version: r.opt.Version, PID: r.pid, Config: r.cfg.File, Started: r.started,
		Uptime: time.Since(r.started).Seconds(), Reloads: r.reloads,
		Conntrack: ConntrackStatus{Count: r.ct.Count(), Max: r.knobs.conntrackMax.Load()},
	}
	snap := r.fib.Load()
	at := map[int]int{}
	for _, i := range r.links {
		st := InterfaceStatus{Name: i.cfg.Name, Index: i.iface.Index, Type: i.cfg.Type, State: "up", MTU: i.iface.MTU}
		if i.gone {
			st.State = "gone"
		} else {
			st.Queues = i.link.Queues()
		}
		for _, a := range snap.Addrs(i.iface.Index) {
			st.Addresses = append(st.Addresses, a.Prefix.String())
		}
		at[i.iface.Index] = len(s.Interfaces)
		s.Interfaces = append(s.Interfaces, st)
	}
	drops := r.lostDrops
	var mu sync.Mutex
	now := r.clock()
	r.eachWorker(func(w *worker) {
		mu.Lock()
		defer mu.Unlock()
		s.Workers = append(s.Workers, WorkerStatus{w.id, w.batches, w.packets, float64(max(now-w.waited, 0)) / 1e9, w.mem.recalled})
		s.Forwarded += w.forwarded
		s.Delivered += w.delivered
		s.ICMPErrors += w.icmpSent
		s.ICMPHeld += w.icmpLimited
		for i, n := range w.drops {
			drops[i] += n
		}
		for _, d := range w.ports {
			if d == nil {
				continue
			}
			if k, ok := at[d.iface.Index]; ok {
				st := &s.Interfaces[k]
				st.RxPackets += d.rxPackets
				st.RxBytes += d.rxBytes
				st.TxPackets += d.txPackets
				st.TxBytes += d.txBytes
				st.TxErrors += d.txErrors
			}
		}
	})
	local := r.local.Stats()
	s.Sent = local.Sent
	drops[reasonLocalOutputFull] += local.OutputFull
	s.LogLost = r.logs.lost.Load()
	s.IdleTimers = ext.IdleTimers(r.ct, r.clock())
	if r.synproxied() {
		st := r.synproxy.Stats()
		s.Synproxy = &st
	}
	if p := r.watches.Load(); p != nil {
		s.Watches = len(*p)
	}
	for i, n := range drops {
		if n > 0 {
			x := packet.Reason(i)
			s.Drops = append(s.Drops, DropCount{x.String(), x.Doc(), n})
		}
	}
	sort.SliceStable(s.Drops, func(i, j int) bool { return s.Drops[i].Packets > s.Drops[j].Packets })
	for f, e := range r.engines {
		ts := tableStatus(familyNames[f], e, rules)
		s.Tables = append(s.Tables, ts...)
		s.Hooks = append(s.Hooks, hookStatus(familyNames[f], ts)...)
	}
	return s
}

// firstTable is the first table that a hook's packets meet, all of them.
var firstTable = [hooks.NumHooks]tables.TableID{
	hooks.Prerouting: tables.Raw, hooks.Output: tables.Raw,
	hooks.Input: tables.Mangle, hooks.Forward: tables.Mangle, hooks.Postrouting: tables.Mangle,
}

func hookStatus(family string, ts []TableStatus) (out []HookStatus) {
	for h := range hooks.NumHooks {
		for _, t := range ts {
			if t.Name != firstTable[h].String() {
				continue
			}
			for _, c := range t.Chains {
				if c.Name == h.String() && c.Policy != "" {
					out = append(out, HookStatus{family, h.String(), c.EnteredPackets, c.EnteredBytes})
				}
			}
		}
	}
	return out
}

var familyNames = [...]string{"ipv4", "ipv6"}

func tableStatus(family string, e *tables.Engine, rules bool) []TableStatus {
	var out []TableStatus
	v := e.View(nil)
	for id := range tables.NumTables {
		t := v.Ruleset.Table(id)
		ts := TableStatus{Family: family, Name: id.String()}
		for _, c := range t.Chains() {
			cs := chainStatus(v, c)
			if rules {
				cs.addRules(v, c, len(c.Rules()))
			}
			ts.Chains = append(ts.Chains, cs)
		}
		out = append(out, ts)
	}
	return out
}

func chainStatus(v *tables.View, c *tables.Chain) ChainStatus {
	cs := ChainStatus{Name: c.Name, NumRules: len(c.Rules())}
	if c.Builtin {
		k := v.Policy(c)
		cs.Policy, cs.Packets, cs.Bytes = c.Policy.String(), k.Packets, k.Bytes
		k = v.Entered(c)
		cs.EnteredPackets, cs.EnteredBytes = k.Packets, k.Bytes
	}
	return cs
}

func (cs *ChainStatus) addRules(v *tables.View, c *tables.Chain, limit int) {
	for _, rule := range c.Rules()[:min(limit, len(c.Rules()))] {
		k := v.Rule(rule)
		cs.Rules = append(cs.Rules, RuleStatus{"-A " + c.Name + rule.Save(), k.Packets, k.Bytes})
	}
}

// Chain is one chain's status with its first rules, up to limit; ok is false if there is no such chain.
func (r *Router) Chain(family, table, chain string, limit int) (cs ChainStatus, ok bool) {
	for f, e := range r.engines {
		if familyNames[f] != family {
			continue
		}
		v := e.View(nil)
		for id := range tables.NumTables {
			if id.String() != table {
				continue
			}
			for _, c := range v.Ruleset.Table(id).Chains() {
				if c.Name == chain {
					cs = chainStatus(v, c)
					cs.addRules(v, c, limit)
					return cs, true
				}
			}
		}
	}
	return cs, false
}
