package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// headlines is what a reader wants to know first.
var headlines = []struct{ metric, title string }{
	{"tcp1", "TCP, 1 flow, Gbit/s"},
	{"tcp8", "8 flows"},
	{"udp64", "64-byte UDP, full blast, delivered/s"},
	{"udp1400", "1,400-byte UDP"},
	{"udp64r.router", "router's CPU per packet at 50,000/s, µs"},
	{"ping", "ping, µs"},
	{"rr", "TCP, 1 byte there and back, µs"},
	{"conn", "TCP connections/s"},
}

// headline is the table of it. The ways to the host's network without privilege,
// which alone are measured inwards, have a table of their own.
func (r *Report) headline() [][]string {
	cells := [][]string{{""}}
	var names []string
	for _, h := range headlines {
		cells[0] = append(cells[0], h.title)
		for _, n := range r.Paths(h.metric) {
			if !slices.Contains(names, n) && r.Of(n, "tcp1in") == nil {
				names = append(names, n)
			}
		}
	}
	for _, n := range names {
		row := []string{Title(n)}
		for _, h := range headlines {
			row = append(row, number(r.Of(n, h.metric).Summary().Median, MetricOf(h.metric).Digits))
		}
		cells = append(cells, row)
	}
	return cells
}

// rootless is the table of the ways to the host's network without privilege.
func (r *Report) rootless() [][]string {
	names := r.Paths("tcp1in")
	cells := [][]string{{""}}
	for _, n := range names {
		cells[0] = append(cells[0], Title(n))
	}
	for _, m := range []string{"tcp1", "tcp8", "tcp1in", "tcp8in", "rr", "conn", "start", "memory"} {
		of := MetricOf(m)
		row := []string{of.Title + ", " + of.Unit}
		for _, n := range names {
			row = append(row, number(r.Of(n, m).Summary().Median, of.Digits))
		}
		cells = append(cells, row)
	}
	return cells
}

// Markdown writes the headline table, the goals and the in-memory cases.
func (r *Report) Markdown(w io.Writer) {
	fmt.Fprintf(w, "%s, %d CPUs, %d GB, Linux %s, %s; medians of %d rounds:\n\n", r.Machine.CPU, r.Machine.CPUs, r.Machine.MemoryGB, r.Machine.Kernel, r.Machine.Go, r.Of("sluice", "tcp1").Summary().N)
	markdown(w, r.headline())
	for _, t := range r.Tables(nil) {
		if t.Title == "Goals" || strings.HasPrefix(t.Title, "In memory") || strings.HasPrefix(t.Title, "CPU per forwarded") || strings.HasPrefix(t.Title, "UDP delivered by") || strings.HasPrefix(t.Title, "TCP to the router") || strings.HasPrefix(t.Title, "TCP from the router") {
			fmt.Fprintf(w, "\n%s:\n\n", t.Title)
			markdown(w, t.Cells)
		}
	}
}

func markdown(w io.Writer, cells [][]string) {
	for i, c := range cells {
		fmt.Fprintf(w, "| %s |\n", strings.Join(c, " | "))
		if i == 0 {
			fmt.Fprintf(w, "|%s\n", strings.Repeat(" --- |", len(c)))
		}
	}
}
