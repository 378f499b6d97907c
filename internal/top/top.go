// Package top is the terminal's view of a running router: what moves where, and
// how fast.
package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/router"
)

// Sample is what a router counts at one moment.
type Sample struct {
	At          time.Time     `json:"at"`
	Status      router.Status `json:"status"`
	Connections []Connection  `json:"connections"` // the busiest
}

// Connection is one of the flow table.
type Connection struct {
	Proto   string `json:"proto"`
	From    string `json:"from"`
	To      string `json:"to"`
	NAT     string `json:"nat,omitempty"` // the reply's way, where it is not the mirror of this one
	State   string `json:"state,omitempty"`
	Timeout uint32 `json:"timeout"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Views are the tables that are shown, one at a time.
var Views = []string{"interfaces", "hooks", "connections", "rules", "drops"}

// table is a view's content: cells as they are shown, and numbers to sort by.
type table struct {
	head []string
	rows []row
}

type row struct {
	cells []string
	nums  []float64 // by column; of text columns 0
	isNum []bool
}

// rate is a difference a second.
func rate(now, was uint64, seconds float64) float64 {
	if now < was || seconds <= 0 {
		return 0 // counted anew
	}
	return float64(now-was) / seconds
}

// human is a number in four or five characters.
func human(f float64) string {
	for _, u := range []struct {
		n float64
		s string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e4, "k"}} {
		if f >= u.n {
			if u.s == "k" {
				return fmt.Sprintf("%.1fk", f/1e3)
			}
			return fmt.Sprintf("%.1f%s", f/u.n, u.s)
		}
	}
	if f > 0 && f < 10 && f != float64(int64(f)) {
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.0f", f)
}

// text and num make cells.
func (r *row) text(s string) {
	r.cells = append(r.cells, s)
	r.nums = append(r.nums, 0)
	r.isNum = append(r.isNum, false)
}

func (r *row) num(f float64) {
	r.cells = append(r.cells, human(f))
	r.nums = append(r.nums, f)
	r.isNum = append(r.isNum, true)
}

// build makes a view of two samples; was may be the zero Sample.
func build(view string, now, was *Sample) table {
	sec := now.At.Sub(was.At).Seconds()
	if was.At.IsZero() {
		sec = 0
	}
	switch view {
	case "interfaces":
		return interfaces(now, was, sec)
	case "hooks":
		return hooksOf(now, was, sec)
	case "connections":
		return connections(now, was, sec)
	case "rules":
		return rules(now, was, sec)
	}
	return drops(now, was, sec)
}

func interfaces(now, was *Sample, sec float64) table {
	t := table{head: []string{"INTERFACE", "STATE", "RX PKT/S", "RX BIT/S", "TX PKT/S", "TX BIT/S", "RX PKTS", "TX PKTS", "TX ERRORS"}}
	for i := range now.Status.Interfaces {
		n := &now.Status.Interfaces[i]
		var w router.InterfaceStatus
		for k := range was.Status.Interfaces {
			if was.Status.Interfaces[k].Name == n.Name {
				w = was.Status.Interfaces[k]
			}
		}
		var r row
		r.text(n.Name)
		r.text(n.State)
		r.num(rate(n.RxPackets, w.RxPackets, sec))
		r.num(8 * rate(n.RxBytes, w.RxBytes, sec))
		r.num(rate(n.TxPackets, w.TxPackets, sec))
		r.num(8 * rate(n.TxBytes, w.TxBytes, sec))
		r.num(float64(n.RxPackets))
		r.num(float64(n.TxPackets))
		r.num(float64(n.TxErrors))
		t.rows = append(t.rows, r)
	}
	return t
}

// flow is a row of the hooks' view.
type flow struct {
	name           string
	packets, bytes uint64
	counted        bool // bytes are
}

// flows are a packet's way in numbers: what came to each hook, and what became of it.
func flows(s *router.Status) (out []flow) {
	at := map[string]int{}
	for _, h := range s.Hooks {
		i, ok := at[h.Hook]
		if !ok {
			i = len(out)
			at[h.Hook] = i
			out = append(out, flow{name: h.Hook, counted: true})
		}
		out[i].packets += h.Packets
		out[i].bytes += h.Bytes
	}
	var dropped uint64
	for _, d := range s.Drops {
		dropped += d.Packets
	}
	for _, x := range []struct {
		name string
		n    uint64
	}{{"forwarded", s.Forwarded}, {"delivered", s.Delivered}, {"sent by own sockets", s.Sent}, {"dropped", dropped},
		{"ICMP errors sent", s.ICMPErrors}, {"ICMP errors held back", s.ICMPHeld}} {
		out = append(out, flow{name: x.name, packets: x.n})
	}
	return out
}

func hooksOf(now, was *Sample, sec float64) table {
	t := table{head: []string{"HOOK", "PKT/S", "BIT/S", "PACKETS", "BYTES"}}
	old := map[string]flow{}
	for _, x := range flows(&was.Status) {
		old[x.name] = x
	}
	for _, x := range flows(&now.Status) {
		var r row
		bytes := func(n float64) {
			if x.counted {
				r.num(n)
			} else {
				r.text("")
			}
		}
		r.text(x.name)
		r.num(rate(x.packets, old[x.name].packets, sec))
		bytes(8 * rate(x.bytes, old[x.name].bytes, sec))
		r.num(float64(x.packets))
		bytes(float64(x.bytes))
		t.rows = append(t.rows, r)
	}
	return t
}

func (c *Connection) key() string { return c.Proto + c.From + ">" + c.To }

func connections(now, was *Sample, sec float64) table {
	t := table{head: []string{"PROTO", "FROM", "TO", "NAT", "STATE", "LEFT S", "PKT/S", "BIT/S", "PACKETS", "BYTES"}}
	old := map[string]*Connection{}
	for i := range was.Connections {
		old[was.Connections[i].key()] = &was.Connections[i]
	}
	for i := range now.Connections {
		n := &now.Connections[i]
		w := old[n.key()]
		if w == nil {
			w = &Connection{}
		}
		var r row
		for _, s := range []string{n.Proto, n.From, n.To, n.NAT, n.State} {
			r.text(s)
		}
		r.num(float64(n.Timeout))
		r.num(rate(n.Packets, w.Packets, sec))
		r.num(8 * rate(n.Bytes, w.Bytes, sec))
		r.num(float64(n.Packets))
		r.num(float64(n.Bytes))
		t.rows = append(t.rows, r)
	}
	return t
}

func rules(now, was *Sample, sec float64) table {
	t := table{head: []string{"TABLE", "CHAIN", "NUM", "PKT/S", "BIT/S", "PACKETS", "RULE"}}
	type count struct{ packets, bytes uint64 }
	old := map[string]count{}
	key := func(fam, table, chain string, num int, text string) string {
		return fmt.Sprint(fam, " ", table, " ", chain, " ", num, " ", text)
	}
	for _, x := range was.Status.Tables {
		for _, c := range x.Chains {
			for i, u := range c.Rules {
				old[key(x.Family, x.Name, c.Name, i, u.Text)] = count{u.Packets, u.Bytes}
			}
			old[key(x.Family, x.Name, c.Name, -1, "")] = count{c.Packets, c.Bytes}
		}
	}
	add := func(fam, name, chain string, num int, text string, k count) {
		w := old[key(fam, name, chain, num, text)]
		var r row
		if fam == "ipv6" {
			name = "6 " + name
		}
		r.text(name)
		r.text(chain)
		if num < 0 {
			r.text("policy")
			text = chain + " policy " + text
		} else {
			r.num(float64(num + 1))
		}
		r.num(rate(k.packets, w.packets, sec))
		r.num(8 * rate(k.bytes, w.bytes, sec))
		r.num(float64(k.packets))
		r.text(text)
		t.rows = append(t.rows, r)
	}
	for _, x := range now.Status.Tables {
		for _, c := range x.Chains {
			for i, u := range c.Rules {
				add(x.Family, x.Name, c.Name, i, u.Text, count{u.Packets, u.Bytes})
			}
			if c.Policy != "" && c.Packets > 0 {
				old[key(x.Family, x.Name, c.Name, -1, c.Policy)] = old[key(x.Family, x.Name, c.Name, -1, "")]
				add(x.Family, x.Name, c.Name, -1, c.Policy, count{c.Packets, c.Bytes})
			}
		}
	}
	return t
}

func drops(now, was *Sample, sec float64) table {
	t := table{head: []string{"REASON", "PKT/S", "PACKETS", "MEANS"}}
	old := map[string]uint64{}
	for _, d := range was.Status.Drops {
		old[d.Reason] = d.Packets
	}
	for _, d := range now.Status.Drops {
		var r row
		r.text(d.Reason)
		r.num(rate(d.Packets, old[d.Reason], sec))
		r.num(float64(d.Packets))
		r.text(d.Doc)
		t.rows = append(t.rows, r)
	}
	return t
}

// arrange filters and sorts: by column col, largest numbers or first letters first, or the reverse.
func (t *table) arrange(filter string, col int, reverse bool) {
	if filter != "" {
		t.rows = slices.DeleteFunc(t.rows, func(r row) bool {
			return !strings.Contains(strings.ToLower(strings.Join(r.cells, " ")), strings.ToLower(filter))
		})
	}
	if col < 0 || col >= len(t.head) {
		return
	}
	slices.SortStableFunc(t.rows, func(a, b row) int {
		n := cmp.Compare(b.nums[col], a.nums[col])
		if n == 0 {
			n = cmp.Compare(a.cells[col], b.cells[col])
		}
		if reverse {
			return -n
		}
		return n
	})
}

// lines lays a table out in columns, at most width characters wide.
func (t *table) lines(width, sorted int) []string {
	w := make([]int, len(t.head))
	numeric := make([]bool, len(t.head))
	for i, h := range t.head {
		w[i] = len(h) + 1
	}
	for _, r := range t.rows {
		for i, c := range r.cells {
			w[i] = max(w[i], len([]rune(c)))
			numeric[i] = numeric[i] || r.isNum[i]
		}
	}
	line := func(cells []string, head bool) string {
		var b strings.Builder
		for i, c := range cells {
			if i > 0 {
				b.WriteString("  ")
			}
			if head && i == sorted {
				c += "*"
			}
			pad := strings.Repeat(" ", max(w[i]-len([]rune(c)), 0))
			switch {
			case i == len(cells)-1 && !numeric[i]:
				b.WriteString(c)
			case numeric[i]:
				b.WriteString(pad + c)
			default:
				b.WriteString(c + pad)
			}
		}
		out := []rune(b.String())
		if width > 0 && len(out) > width {
			out = append(out[:max(width-1, 0)], '…')
		}
		return string(out)
	}
	out := []string{line(t.head, true)}
	for _, r := range t.rows {
		out = append(out, line(r.cells, false))
	}
	return out
}
