package resolver

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"sluice/packet"
)

// Use is a destination that programs connected to, or tried to.
type Use struct {
	Name        string `json:"name,omitempty"` // that the program asked for; "" if it did not ask
	Address     string `json:"address"`
	Port        uint16 `json:"port"` // 0 for protocols without
	Protocol    string `json:"protocol"`
	Connections int    `json:"connections"`
}

// Query is a name that was asked for and refused.
type Query struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// Summary is what was allowed and what was denied.
type Summary struct {
	Allowed []Use   `json:"allowed"`
	Denied  []Use   `json:"denied"`
	Refused []Query `json:"refused_names"`
	Lost    int     `json:"lost"` // not counted: there were too many different ones
}

// Report collects what a Summary tells. Its methods may be called from any goroutine.
type Report struct {
	mu      sync.Mutex
	names   map[netip.Addr]string // the name last asked for
	uses    [2]map[use]int        // denied, allowed
	queries map[string]int
	lost    int
}

type use struct {
	name string // as asked for at that time
	to   netip.AddrPort
	prot uint8
}

// maxReport bounds each of a Report's lists.
const maxReport = 16384

func newReport() *Report {
	return &Report{names: map[netip.Addr]string{}, uses: [2]map[use]int{{}, {}}, queries: map[string]int{}}
}

// refused counts a name that was not answered; true: for the first time.
func (r *Report) refused(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queries[name] == 0 && len(r.queries) >= maxReport {
		r.lost++
		return false
	}
	r.queries[name]++
	return r.queries[name] == 1
}

// named remembers that a name resolved to an address.
func (r *Report) named(a netip.Addr, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.names[a]; !ok && len(r.names) >= maxReport {
		for k := range r.names { // any
			delete(r.names, k)
			break
		}
	}
	r.names[a] = name
}

// Name is the name that was last asked for and resolved to an address; "": none.
func (r *Report) Name(a netip.Addr) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names[a.Unmap()]
}

// Count counts a connection to a destination; it gives the name that was asked
// for, and whether this is the first such connection.
func (r *Report) Count(allowed bool, proto uint8, to netip.AddrPort) (name string, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.uses[0]
	if allowed {
		m = r.uses[1]
	}
	k := use{r.names[to.Addr()], to, proto}
	if m[k] == 0 && len(m) >= maxReport {
		r.lost++
		return k.name, false
	}
	m[k]++
	return k.name, m[k] == 1
}

// Summary is what there is to tell so far, sorted.
func (r *Report) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Summary{Allowed: list(r.uses[1]), Denied: list(r.uses[0]), Refused: []Query{}, Lost: r.lost}
	for name, n := range r.queries {
		s.Refused = append(s.Refused, Query{name, n})
	}
	slices.SortFunc(s.Refused, func(a, b Query) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

func list(m map[use]int) []Use {
	out := []Use{}
	for k, n := range m {
		out = append(out, Use{k.name, k.to.Addr().String(), k.to.Port(), protocol(k.prot), n})
	}
	slices.SortFunc(out, func(a, b Use) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

func protocol(p uint8) string {
	switch p {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoICMP:
		return "icmp"
	case packet.ProtoICMPv6:
		return "icmpv6"
	case packet.ProtoSCTP:
		return "sctp"
	}
	return "other"
}
