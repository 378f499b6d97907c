package report

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

var titles = map[string]string{
	"linux":           "Linux, iptables-legacy, 20 rules",
	"linux-nft":       "Linux, iptables-nft, 20 rules",
	"linux-10000":     "Linux, iptables-legacy, 10,000 rules",
	"linux-nft-10000": "Linux, iptables-nft, 10,000 rules",
	"bare":            "bare copy loop",
	"bare-plain":      "bare copy loop without header",
	"wireguard":       "wireguard-go's tun package, copy loop",
	"gvisor":          "gVisor forwarding, its NAT",
	"sluice":          "sluice, 20 rules",
	"sluice-10000":    "sluice, 10,000 rules",
	"sluice-2":        "sluice, two workers",
	"sluice-plain":    "sluice, offload off",
	"uplink":          "sluice, uplink",
	"unshare":         "unshare -Urn true",
}

// Title is a path's name for people.
func Title(path string) string {
	if t := titles[path]; t != "" {
		return t
	}
	return path
}

// number prints v with so many digits behind the point and commas between thousands.
func number(v float64, digits int) string {
	if math.IsNaN(v) {
		return "–"
	}
	s := strconv.FormatFloat(v, 'f', digits, 64)
	whole, frac, _ := strings.Cut(s, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if frac != "" {
		whole += "." + frac
	}
	return sign + whole
}

func (iv Interval) text(digits int) string {
	if iv.N == 0 {
		return "–"
	}
	if iv.N == 1 {
		return number(iv.Median, digits)
	}
	return fmt.Sprintf("%s (%s–%s)", number(iv.Median, digits), number(iv.Low, digits), number(iv.High, digits))
}

// Table is a report's content as cells: the first row is the head.
type Table struct {
	Title string
	Cells [][]string
}

// Tables makes what is shown; base is an earlier report to compare with, or nil.
func (r *Report) Tables(base *Report) []Table {
	var out []Table
	if t := r.goalTable(); len(t.Cells) > 1 {
		out = append(out, t)
	}
	for _, m := range Metrics {
		names := r.Paths(m.Name)
		if len(names) == 0 {
			continue
		}
		t := Table{Title: m.Title, Cells: [][]string{{"path", m.Unit}}}
		if m.Unit == "" {
			t.Cells[0][1] = "number"
		}
		if base != nil {
			t.Cells[0] = append(t.Cells[0], "before", "now / before")
		}
		for _, n := range names {
			row := r.Of(n, m.Name)
			cells := []string{Title(n), row.Summary().text(m.Digits)}
			if base != nil {
				was, now := base.Of(n, m.Name).Summary(), row.Summary()
				cells = append(cells, was.text(m.Digits), number(now.Median/was.Median, 2))
			}
			t.Cells = append(t.Cells, cells)
		}
		out = append(out, t)
	}
	for _, s := range Sweeps {
		names := r.Paths(s.Metric)
		if len(names) == 0 {
			continue
		}
		t := Table{Title: s.Title, Cells: [][]string{{s.Axis}}}
		var xs []float64
		for _, n := range names {
			t.Cells[0] = append(t.Cells[0], Title(n))
			for _, row := range r.Sweep(n, s.Metric) {
				xs = insert(xs, row.X)
			}
		}
		for _, x := range xs {
			cells := []string{number(x, s.XDigits)}
			for _, n := range names {
				cells = append(cells, r.row(n, s.Metric, x).Summary().text(s.Digits))
			}
			t.Cells = append(t.Cells, cells)
		}
		out = append(out, t)
	}
	if t, ok := r.memoryTable(base); ok {
		out = append(out, t)
	}
	return out
}

// goalTable holds the paths against the goals.
func (r *Report) goalTable() Table {
	t := Table{Title: "Goals", Cells: [][]string{{"what", "of", "goal", "ratio or difference, paired rounds", "", "value", "reference"}}}
	for i := range Goals {
		g := &Goals[i]
		iv, verdict := g.Met(r)
		if iv.N == 0 {
			continue
		}
		m := MetricOf(g.Metric)
		ratio, reference := iv.text(2), number(r.Of(g.Base, g.Metric).Summary().Median, m.Digits)
		if g.Base == "" {
			ratio, reference = "", ""
		}
		t.Cells = append(t.Cells, []string{m.Title, Title(g.Path), g.text(), ratio, verdict,
			strings.TrimSpace(r.Of(g.Path, g.Metric).Summary().text(m.Digits) + " " + m.Unit), reference})
	}
	return t
}

func insert(xs []float64, x float64) []float64 {
	for i, v := range xs {
		if v == x {
			return xs
		}
		if v > x {
			return append(xs[:i], append([]float64{x}, xs[i:]...)...)
		}
	}
	return append(xs, x)
}

// Sweep is a metric over something that varies.
type Sweep struct {
	Metric, Title, Axis, Unit string
	Digits, XDigits           int
	LogX, LogY                bool
	Tail                      bool // X is a percentile: what is beyond it is drawn, by powers of ten
}

// Sweeps are the plots over something that varies.
var Sweeps = []Sweep{
	{"rules.cpu", "CPU per forwarded packet by the rules before the one that accepts (64-byte UDP, 20,000/s)", "rules", "µs, machine", 1, 0, true, true, false},
	{"flows.pps", "UDP delivered by the number of flows (64 bytes, full blast)", "flows", "packets/s", 0, 0, true, false, false},
	{"rr.dist", "TCP, 1 byte there and back: the distribution", "percentile", "µs", 1, 1, false, true, true},
	{"ping.dist", "ping: the distribution", "percentile", "µs", 1, 1, false, true, true},
}

// Text writes the tables for a terminal.
func (r *Report) Text(w io.Writer, base *Report) {
	fmt.Fprintf(w, "%s, %d CPUs, %d GB, Linux %s, %s; %d rounds end to end, %d in memory; medians (90 %% interval)\n", r.Machine.CPU, r.Machine.CPUs, r.Machine.MemoryGB, r.Machine.Kernel, r.Machine.Go, r.Rounds(), r.MemoryRounds())
	for _, t := range r.Tables(base) {
		fmt.Fprintf(w, "\n%s\n", t.Title)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, c := range t.Cells {
			fmt.Fprintf(tw, "  %s\n", strings.Join(c, "\t"))
		}
		tw.Flush()
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\nnote: %s", n)
	}
	fmt.Fprintln(w)
}
