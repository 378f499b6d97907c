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
	bind     func(w *worker, h hooks.Hook) hooks.Func
}

// order names every stage of every hook. The priorities are Linux's.
var order = []stage{
	{"defrag", hooks.PriDefrag, hooks.At(hooks.Prerouting, hooks.Output), (*worker).defrag},
	{"raw", hooks.PriRaw, hooks.At(hooks.Prerouting, hooks.Output), table(tables.Raw)},
	{"conntrack", hooks.PriConntrack, hooks.At(hooks.Prerouting, hooks.Output), (*worker).track},
	{"mangle", hooks.PriMangle, hooks.At(hooks.Prerouting, hooks.Input, hooks.Forward, hooks.Output, hooks.Postrouting), (*worker).mangle},
	{"dnat", hooks.PriNATDst, hooks.At(hooks.Prerouting, hooks.Output), (*worker).translate},
	{"filter", hooks.PriFilter, hooks.At(hooks.Input, hooks.Forward, hooks.Output), table(tables.Filter)},
	{"security", hooks.PriSecurity, hooks.At(hooks.Input, hooks.Forward, hooks.Output), table(tables.Security)},
	{"snat", hooks.PriNATSrc, hooks.At(hooks.Input, hooks.Postrouting), (*worker).translate},
	{"helper", hooks.PriHelper, hooks.At(hooks.Input, hooks.Postrouting), (*worker).helper},
	{"confirm", hooks.PriConfirm, hooks.At(hooks.Input, hooks.Postrouting), (*worker).confirm},
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

// bind makes the stages of one hook callable for one worker.
func bind(w *worker, h hooks.Hook) []hooks.Stage {
	var out []hooks.Stage
	for _, s := range stagesOf(h) {
		out = append(out, hooks.Stage{Name: s.name, Priority: s.priority, Run: s.bind(w, h)})
	}
	return out
}

// PrintOrder writes the stages of all hooks, one hook a line.
func PrintOrder(out io.Writer) {
	for h := hooks.Hook(0); h < hooks.NumHooks; h++ {
		var names []string
		for _, s := range stagesOf(h) {
			if s.priority == hooks.PriConfirm {
				names = append(names, s.name+" last")
			} else {
				names = append(names, fmt.Sprintf("%s %d", s.name, s.priority))
			}
		}
		fmt.Fprintf(out, "%-12s %s\n", h, strings.Join(names, ", "))
	}
}
