// Package report holds what a benchmark measured, compares it, and shows it:
// as text, JSON, and HTML with plots.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// Report is a run of the benchmarks, or several added up.
type Report struct {
	Version int       // of this format
	When    time.Time // of the last run
	Commit  string
	Machine Machine
	Rows    []*Row
	Notes   []string // what could not be measured, and why
}

// Machine is where it ran.
type Machine struct {
	CPU, Kernel, Go string
	CPUs            int
	MemoryGB        int
}

// Row is one metric of one path, over the rounds. In a round that could not be
// measured, the value is absent (NaN does not exist in JSON: it is nil).
type Row struct {
	Path   string     // which router; see Paths
	Metric string     // see Metrics
	X      float64    `json:",omitempty"` // of a sweep: number of rules, of flows, quantile
	Values []*float64 // by round
}

// Load reads a report.
func Load(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if r.Version != Version {
		return nil, fmt.Errorf("%s: format %d; this program reads %d", path, r.Version, Version)
	}
	return r, nil
}

// Version is the format's number.
const Version = 1

// Save writes a report.
func (r *Report) Save(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// Rounds is how many rounds were run end to end.
func (r *Report) Rounds() int {
	n := 0
	for _, row := range r.Rows {
		if row.Path != MemoryPath {
			n = max(n, len(row.Values))
		}
	}
	return n
}

// Add records a value of a round; rounds in between count as not measured.
func (r *Report) Add(path, metric string, x float64, round int, v float64) {
	row := r.row(path, metric, x)
	if row == nil {
		row = &Row{Path: path, Metric: metric, X: x}
		r.Rows = append(r.Rows, row)
	}
	for len(row.Values) <= round {
		row.Values = append(row.Values, nil)
	}
	row.Values[round] = &v
}

func (r *Report) row(path, metric string, x float64) *Row {
	for _, row := range r.Rows {
		if row.Path == path && row.Metric == metric && row.X == x {
			return row
		}
	}
	return nil
}

// Of gives the values of a metric; nil: it was not measured.
func (r *Report) Of(path, metric string) *Row { return r.row(path, metric, 0) }

// Sweep gives a metric's rows over X, ascending.
func (r *Report) Sweep(path, metric string) []*Row {
	var rows []*Row
	for _, row := range r.Rows {
		if row.Path == path && row.Metric == metric && row.X != 0 {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b *Row) int {
		if a.X < b.X {
			return -1
		}
		return 1
	})
	return rows
}

// Paths gives the paths that have a metric, in the order in which they were measured.
func (r *Report) Paths(metric string) []string {
	var names []string
	for _, row := range r.Rows {
		if row.Metric == metric && !slices.Contains(names, row.Path) {
			names = append(names, row.Path)
		}
	}
	return names
}
