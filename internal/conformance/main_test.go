// Package conformance holds sluice against Linux: the commands' text, packets
// under random and scripted rules, and whole rulesets. `make conformance` runs
// it in full, `make test` a part of it. Everything here is tests.
package conformance

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

var (
	long     = flag.Bool("long", false, "the full matrix: every scenario with every way of running sluice")
	seed     = flag.Uint64("seed", 1, "of the first random case; the others' follow it")
	cases    = flag.Int("cases", 600, "random cases of packets; the other layers take their share of it")
	layers   = flag.String("layer", "all", "text, packets, rulesets, or all")
	failures = flag.Int("failures", 4, "after so many mismatches one of the parts of a test gives up")
	brief    = flag.Bool("brief", false, "cases that differ as they are, not cut down")
	only     = flag.String("only", "", "text: the systematic cases that this regular expression is in, alone")
	update   = flag.Bool("update", false, "write what the kernel did into the scenarios")
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	results.print()
	os.Exit(code)
}

// layer skips a test of a layer that was not asked for.
func layer(t *testing.T, name string) {
	t.Helper()
	if *layers != "all" && !strings.Contains(*layers, name) {
		t.Skipf("-layer=%s", *layers)
	}
}

// variants are the ways in which sluice runs beside one kernel.
func variants(offload bool) (out []variant) {
	if !*long {
		return []variant{{workers: 1, offload: offload}, {workers: 2, offload: offload}}
	}
	for _, workers := range []int{1, 2} {
		out = append(out, variant{workers: workers, offload: offload}, variant{workers: workers, offload: offload, forget: true})
	}
	return out
}

// tally is the table at the end.
type tally struct {
	mu   sync.Mutex
	rows map[string]*row
}

type row struct{ cases, packets, mismatches int }

var results = tally{rows: map[string]*row{}}

func (r *tally) count(layer string, cases, packets, mismatches int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rows[layer] == nil {
		r.rows[layer] = &row{}
	}
	x := r.rows[layer]
	x.cases += cases
	x.packets += packets
	x.mismatches += mismatches
}

func (r *tally) print() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return
	}
	fmt.Printf("%-10s %9s %9s %11s\n", "layer", "cases", "packets", "mismatches")
	for _, name := range []string{"text", "packets", "rulesets"} {
		if x := r.rows[name]; x != nil {
			fmt.Printf("%-10s %9d %9d %11d\n", name, x.cases, x.packets, x.mismatches)
		}
	}
}
