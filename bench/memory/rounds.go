package memory

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"sluice/bench/report"
)

// Plan is how much Measure does.
type Plan struct {
	Rounds int
	Time   time.Duration // of one measurement
	Huge   bool          // also the cases that take gigabytes
	Flows  int           // leave out cases with more flows; 0: no limit
	Match  string        // only cases whose name contains it
	Log    io.Writer     // progress
}

// Measure adds rounds of the cases to a report: nanoseconds per operation.
// Cases whose names begin alike are measured in turn, and the bare loop with as
// many flows before each.
func Measure(ctx context.Context, plan *Plan, rep *report.Report) error {
	var groups [][]Case
	for _, c := range Cases() {
		if c.Huge && !plan.Huge || plan.Flows > 0 && c.Flows > plan.Flows || !strings.Contains(c.Name, plan.Match) {
			continue
		}
		if n := len(groups); n > 0 && family(groups[n-1][0]) == family(c) {
			groups[n-1] = append(groups[n-1], c)
		} else {
			groups = append(groups, []Case{c})
		}
	}
	first := rep.MemoryRounds()
	for _, g := range groups {
		if family(g[0]) == "bare" && len(groups) > 1 {
			continue // beside the others
		}
		if err := plan.group(ctx, g, rep, first); err != nil {
			return err
		}
	}
	return nil
}

func family(c Case) string { return c.Name[:strings.IndexAny(c.Name, "/=")] }

// ready is a case with the number of operations that take the wanted time.
type ready struct {
	Case
	run Run
	n   int
}

func (plan *Plan) group(ctx context.Context, g []Case, rep *report.Report, first int) error {
	var all []*ready
	defer func() {
		for _, r := range all {
			r.run.Close()
		}
		runtime.GC()
	}()
	open := func(c Case) error {
		if slices.ContainsFunc(all, func(r *ready) bool { return r.Name == c.Name }) {
			return nil
		}
		run, err := c.Setup()
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		all = append(all, &ready{c, run, 1})
		return nil
	}
	for _, c := range g {
		for _, b := range Cases() {
			if family(b) == "bare" && b.Flows == c.Flows && family(c) != "established" {
				if err := open(b); err != nil {
					return err
				}
			}
		}
		if err := open(c); err != nil {
			return err
		}
	}
	for round := range plan.Rounds {
		for _, r := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			if round == 0 {
				if err := r.calibrate(plan.Time); err != nil {
					return err
				}
			}
			d, err := r.run.Do(r.n)
			if err != nil {
				return fmt.Errorf("%s: %w", r.Name, err)
			}
			ns := float64(d.Nanoseconds()) / float64(r.n)
			if s, ok := r.run.(Sized); ok {
				ns = s.Bytes()
			}
			name := r.Name
			if family(r.Case) == "bare" && family(g[0]) != "bare" {
				name = family(g[0]) + ":" + name // of those pairs
			}
			rep.Add(report.MemoryPath, name, 0, first+round, ns)
			if family(r.Case) == "bare" && family(g[0]) == "pipeline" {
				rep.Add(report.MemoryPath, r.Name, 0, first+round, ns)
			}
			unit := "ns"
			if _, ok := r.run.(Sized); ok {
				unit = "bytes"
			}
			fmt.Fprintf(plan.Log, "round %d, %s: %.1f %s a %s\n", first+round+1, r.Name, ns, unit, r.Unit)
		}
	}
	return nil
}

// calibrate finds n, and warms the case up.
func (r *ready) calibrate(d time.Duration) error {
	for {
		took, err := r.run.Do(r.n)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		if took >= d/4 || r.Unit != "packet" && took*2 >= d {
			r.n = max(1, int(float64(r.n)*float64(d)/float64(max(took, 1))))
			return nil
		}
		r.n *= 2
	}
}
