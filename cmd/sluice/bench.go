package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sluice/bench/memory"
	results "sluice/bench/report"
)

// benchCommand measures the packet path in memory. It needs no privilege, no
// device and no running router.
func (a *app) benchCommand() *cobra.Command {
	var (
		plan         = memory.Plan{Rounds: 3, Time: 500 * time.Millisecond}
		save, before string
		quiet        bool
	)
	cmd := &cobra.Command{
		Use:   "bench [--case TEXT] [--rounds N] [--json FILE] [--base FILE]",
		Short: "Measure the packet path in memory",
		Long: `bench takes packets from memory through the whole router and back to memory:
no device, no system call, no privilege. It prints nanoseconds for each packet,
millions of packets per second, multiples of a bare loop (parse, look up,
rewrite) of the same run, and the goals.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			if plan.Huge {
				plan.Flows = 0
			}
			var base *results.Report
			if before != "" {
				var err error
				if base, err = results.Load(before); err != nil {
					return err
				}
			}
			if plan.Log = a.stderr; quiet {
				plan.Log = io.Discard
			}
			rep := &results.Report{Version: results.Version, When: time.Now(), Commit: version, Machine: results.ThisMachine()}
			if err := memory.Measure(ctx, &plan, rep); err != nil {
				return err
			}
			if len(rep.Rows) == 0 {
				return fmt.Errorf("no case has %q in its name", plan.Match)
			}
			rep.Text(a.stdout, base)
			if save != "" {
				return rep.Save(save)
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&plan.Match, "case", "", "only cases with `text` in their name")
	f.IntVar(&plan.Rounds, "rounds", plan.Rounds, "rounds")
	f.DurationVar(&plan.Time, "time", plan.Time, "time of one measurement")
	f.BoolVar(&plan.Huge, "huge", false, "also the cases that take gigabytes of memory")
	f.StringVar(&save, "json", "", "write the values to a `file`")
	f.StringVar(&before, "base", "", "compare with an earlier --json `file`")
	f.IntVar(&plan.Flows, "flows", 1_000_000, "leave out cases with more flows than `N`")
	f.BoolVarP(&quiet, "quiet", "q", false, "print no values while measuring")
	return cmd
}
