package router

import (
	"fmt"
	"io"
	"sort"
	"strings"

	"sluice/hooks"
	"sluice/tables"
)

// stage is one row of the router's order. bind makes its code for a worker and a hook.
type stage struct {
	name     string
	priority int
	hooks    hooks.Mask
	table    tables.TableID // of a stage that does nothing but walk it; else noTable
	bind     func(w *worker, h hooks.Hook) hooks.Func
	used     func(r *Router) bool // left out until it says so; nil: never left out
}

const noTable = tables.NumTables

// order names every stage of every hook. The priorities are Linux's.
var order = []stage{
	{"defrag", hooks.PriDefrag, hooks.At(hooks.Prerouting, hooks.Output), noTable, (*worker).defrag, nil},
	{"raw", hooks.PriRaw, hooks.At(hooks.Prerouting, hooks.Output), tables.Raw, table(tables.Raw), nil},
	{"conntrack", hooks.PriConntrack, hooks.At(hooks.Prerouting, hooks.Output), noTable, (*worker).track, nil},
	{"mangle", hooks.PriMangle, hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward, hooks.Output, hooks.Postrouting), tables.Mangle, (*worker).mangle, nil},
	{"dnat", hooks.PriNATDst, hooks.At(hooks.Prerouting, hooks.Output), noTable, (*worker).translate, nil},
	{"filter", hooks.PriFilter, hooks.At(hooks.Input, hooks.Forward, hooks.Output), tables.Filter, table(tables.Filter), nil},
	{"security", hooks.PriSecurity, hooks.At(hooks.Input, hooks.Forward, hooks.Output), tables.Security, table(tables.Security), nil},
	{"snat", hooks.PriNATSrc, hooks.At(hooks.Input, hooks.Postrouting), noTable, (*worker).translate, nil},
	{"helper", hooks.PriHelper, hooks.At(hooks.Input, hooks.Postrouting), noTable, (*worker).helper, nil},
	{"synproxy", hooks.PriConfirm - 1, hooks.At(hooks.Input, hooks.Postrouting), noTable, (*worker).synproxy, (*Router).synproxied},
	{"confirm", hooks.PriConfirm, hooks.At(hooks.Input, hooks.Postrouting), noTable, (*worker).confirm, nil},
}

// stagesOf gives the rows of one hook, by priority.
func stagesOf(h hooks.Hook) []stage {
	var out []stage
	for _, s := range order {
		if s.hooks.Has(h) {
			out = append(out, s)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].priority < out[j].priority })
	return out
}

// bound is the stages of one hook, bound to a worker.
type bound struct {
	rows []stage
	run  []hooks.Func
}

func bindAll(w *worker, h hooks.Hook) (b bound) {
	b.rows = stagesOf(h)
	for _, s := range b.rows {
		b.run = append(b.run, s.bind(w, h))
	}
	return b
}

// forRules makes the list that packets of a family go through under the rules
// in force, into stages and passed: a table without rules is not walked, only counted.
func (b *bound) forRules(w *worker, f int, h hooks.Hook, stages []hooks.Stage, passed []*hooks.Counter) ([]hooks.Stage, []*hooks.Counter) {
	from := 0
	for i, s := range b.rows {
		if s.used != nil && !s.used(w.r) {
			continue
		}
		if s.table != noTable {
			if n, ok := w.prog[f].Passes(s.table, h); ok {
				passed = append(passed, &w.ctx[f].Counters[n])
				continue
			}
		}
		stages = append(stages, hooks.Stage{Name: s.name, Priority: s.priority, Passed: passed[from:len(passed):len(passed)], Run: b.run[i]})
		from = len(passed)
	}
	if from < len(passed) {
		stages = append(stages, hooks.Stage{Name: "end", Passed: passed[from:]})
	}
	return stages, passed
}

// passedBy lists, for each stage that forRules makes, the counters that are
// moved before it.
func (b *bound) passedBy(w *worker, f int, h hooks.Hook) (out [][]uint32) {
	var ids []uint32
	for _, s := range b.rows {
		if s.used != nil && !s.used(w.r) {
			continue
		}
		if s.table != noTable {
			if n, ok := w.prog[f].Passes(s.table, h); ok {
				ids = append(ids, n)
				continue
			}
		}
		out, ids = append(out, ids), nil
	}
	if len(ids) > 0 {
		out = append(out, ids)
	}
	return out
}

// PrintOrder writes the stages of all hooks, one hook a line.
func PrintOrder(out io.Writer) {
	for h := hooks.Hook(0); h < hooks.NumHooks; h++ {
		var names []string
		for _, s := range stagesOf(h) {
			switch s.priority {
			case hooks.PriConfirm:
				names = append(names, s.name+" last")
			case hooks.PriConfirm - 1:
				names = append(names, s.name+" last but one")
			default:
				names = append(names, fmt.Sprintf("%s %d", s.name, s.priority))
			}
		}
		fmt.Fprintf(out, "%-12s %s\n", h, strings.Join(names, ", "))
	}
}
