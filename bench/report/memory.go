package report

import (
	"math"
	"strings"
)

// MemoryPath is the path under which the in-memory cases stand: the metric is
// the case's name, the values are nanoseconds per operation.
const MemoryPath = "memory"

// MemoryGoal is what an in-memory case should reach.
type MemoryGoal struct {
	Case, Base string  // Base: what it is compared with, "" for a figure of its own
	Mpps       float64 // packets: so many million a second
	Rate       float64 // operations a second, in those of Base
	Time       float64 // time per operation, in that of Base
	Nanos      float64 // time per operation
	Bytes      float64 // memory per connection
}

// MemoryGoals are the goals in memory.
var MemoryGoals = []MemoryGoal{
	{Case: "pipeline/rules=10000/flows=1000", Mpps: 10},
	{Case: "pipeline/rules=10000/flows=100000", Mpps: 5},
	{Case: "pipeline/rules=10000/flows=1000000", Mpps: 3},
	{Case: "workers=2/flows=1000", Base: "workers=1/flows=1000", Rate: 1.8},
	{Case: "workers=2/flows=100000", Base: "workers=1/flows=100000", Rate: 1.8},
	{Case: "workers=2/crossed/flows=1000", Base: "workers=1/flows=1000", Rate: 1.4},
	{Case: "workers=2/crossed/flows=100000", Base: "workers=1/flows=100000", Rate: 1.4},
	{Case: "new/rules=20", Mpps: 1},
	{Case: "new/rules=10000", Base: "new/rules=20", Rate: 0.8},
	{Case: "established/flooded-table", Base: "established/full-table", Rate: 0.7},
	{Case: "notrack/rules=100000", Base: "notrack/rules=10", Time: 2},
	{Case: "memory/connections=1000000", Bytes: 256},
	{Case: "memory/connections=1500000", Bytes: 256},
	{Case: "memory/connections=10000000", Bytes: 256},
	{Case: "collect/connections=1000000", Base: "collect/connections=1000", Time: 1.5},
	{Case: "collect/connections=10000000", Base: "collect/connections=1000", Time: 1.5},
	{Case: "set/prefixes=1000000", Base: "set/prefixes=10", Time: 2},
	{Case: "load/rules=100000", Nanos: 1e9},
	{Case: "append/rules=100000", Nanos: 20e6},
}

// MemoryRounds is how many rounds of the in-memory cases there are.
func (r *Report) MemoryRounds() int {
	n := 0
	for _, row := range r.Rows {
		if row.Path == MemoryPath {
			n = max(n, len(row.Values))
		}
	}
	return n
}

// memoryTable shows the in-memory cases.
func (r *Report) memoryTable(base *Report) (Table, bool) {
	t := Table{Title: "In memory: no device, no system call", Cells: [][]string{{"case", "ns", "Mpps", "× bare loop", "goal", "reached", ""}}}
	if base != nil {
		t.Cells[0] = append(t.Cells[0], "now / before, time")
	}
	for _, row := range r.Rows {
		name := row.Metric
		if row.Path != MemoryPath || strings.Contains(name, ":") {
			continue
		}
		iv := row.Summary()
		cells := []string{name, iv.text(1), "", "", "", "", ""}
		switch name[:strings.IndexAny(name, "/=")] {
		case "load", "append", "collect":
			cells[1] = number(iv.Median/1e6, 2) + " ms"
		case "memory":
			cells[1] = number(iv.Median, 0) + " bytes"
		case "set":
		default:
			cells[2] = number(1e3/iv.Median, 2)
		}
		if i := strings.LastIndex(name, "flows="); i >= 0 && !strings.HasPrefix(name, "bare") {
			family := name[:strings.IndexAny(name, "/=")]
			cells[3] = Ratio(r.Of(MemoryPath, family+":bare/"+name[i:]), row).text(2)
		}
		for i := range MemoryGoals {
			if g := &MemoryGoals[i]; g.Case == name {
				cells[4], cells[5], cells[6] = g.judge(r, row)
			}
		}
		if base != nil {
			cells = append(cells, number(iv.Median/base.Of(MemoryPath, name).Summary().Median, 2))
		}
		t.Cells = append(t.Cells, cells)
	}
	return t, len(t.Cells) > 1
}

func (g *MemoryGoal) judge(r *Report, row *Row) (goal, value, verdict string) {
	iv := row.Summary()
	met := false
	switch b := r.Of(MemoryPath, g.Base); {
	case g.Mpps != 0:
		goal, value = "≥ "+number(g.Mpps, 0)+" Mpps", number(1e3/iv.Median, 2)
		met = 1e3/iv.Low >= g.Mpps
	case g.Bytes != 0:
		goal, value = "≤ "+number(g.Bytes, 0)+" bytes", number(iv.Median, 0)
		met = iv.Low <= g.Bytes
	case g.Nanos != 0:
		goal, value = "≤ "+number(g.Nanos/1e6, 0)+" ms", number(iv.Median/1e6, 2)+" ms"
		met = iv.Low <= g.Nanos
	case g.Rate != 0:
		q := Ratio(b, row)
		goal, value = "≥ "+number(g.Rate, 2)+" × "+g.Base, q.text(2)
		met = q.High >= g.Rate
	default:
		q := Ratio(row, b)
		goal, value = "time ≤ "+number(g.Time, 2)+" × "+g.Base, q.text(2)
		met = q.Low <= g.Time
	}
	if math.IsNaN(iv.Median) {
		return goal, value, "not measured"
	}
	if met {
		return goal, value, "met"
	}
	return goal, value, "missed"
}

// memoryPlot is the rate over the number of flows, as a sweep's rows.
func (r *Report) memoryPlot() *Report {
	p := &Report{}
	for _, row := range r.Rows {
		name := row.Metric
		if row.Path != MemoryPath || strings.Contains(name, ":") {
			continue
		}
		line, flows, ok := strings.Cut(name, "flows=")
		line = strings.TrimSuffix(line, "/")
		x := 0.0
		for _, c := range flows {
			x = x*10 + float64(c-'0')
		}
		if !ok || line != "bare" && !strings.HasPrefix(line, "pipeline") {
			continue
		}
		for i, v := range row.Values {
			if v != nil {
				p.Add(line, "flows.mpps", x, i, 1e3 / *v)
			}
		}
	}
	return p
}

var memorySweep = Sweep{"flows.mpps", "In memory: million packets per second and core by the number of flows", "flows", "Mpps", 2, 0, true, false, false}
