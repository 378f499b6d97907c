package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sluice/internal/sysctl"
)

func (a *app) sysctlCommand() *cobra.Command {
	var all, valuesOnly, write bool
	cmd := &cobra.Command{
		Use:   "sysctl [-a] [-n] [NAME[=VALUE]]...",
		Short: "Show and set the router's tunables",
		Long: `sysctl shows and sets the running router's tunables under the kernel's names.
A NAME that others begin with (net.ipv4.conf.all) shows those; without any NAME
all are shown. What is set is gone when the router ends; [sysctl] in the
configuration keeps it.`,
		Example: `  sluice sysctl net.netfilter.nf_conntrack_max
  sluice sysctl net.ipv4.conf.all.rp_filter=1`,
		RunE: a.do(func(ctx context.Context, args []string) error {
			argv := []string{"sysctl"}
			if valuesOnly {
				argv = append(argv, "-n")
			}
			argv = append(argv, "--")
			if !all {
				argv = append(argv, args...)
			}
			return a.ask(ctx, argv...)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show all, as without NAME")
	cmd.Flags().BoolVarP(&write, "write", "w", false, "taken for the habit's sake: NAME=VALUE sets with and without it")
	cmd.Flags().BoolVarP(&valuesOnly, "values", "n", false, "show values without names")
	return cmd
}

// runSysctl is the router's side.
func runSysctl(set *sysctl.Set, argv []string, stdout, stderr io.Writer) int {
	valuesOnly := false
	args := argv[1:]
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		valuesOnly = valuesOnly || args[0] == "-n"
		args = args[1:]
	}
	show := func(v *sysctl.Var) {
		if valuesOnly {
			fmt.Fprintln(stdout, v.Load())
		} else {
			fmt.Fprintf(stdout, "%s = %d\n", v.Name, v.Load())
		}
	}
	if len(args) == 0 {
		for _, v := range set.All() {
			show(v)
		}
		return 0
	}
	status := 0
	for _, arg := range args {
		name, value, assign := strings.Cut(arg, "=")
		name = strings.ReplaceAll(strings.TrimSpace(name), "/", ".")
		v := set.Lookup(name)
		var err error
		switch {
		case v == nil && !assign && showBelow(set, name, show):
		case v == nil && set.Linux(name):
			err = fmt.Errorf("%s means nothing in sluice", name)
		case v == nil:
			err = fmt.Errorf("there is no tunable %q", name)
		case assign:
			if err = v.Set(value); err == nil {
				show(v)
			}
		default:
			show(v)
		}
		if err != nil {
			fmt.Fprintf(stderr, "sluice: %v\n", err)
			status = exitFailed
		}
	}
	return status
}

// showBelow shows what name is a folder of.
func showBelow(set *sysctl.Set, name string, show func(*sysctl.Var)) bool {
	found := false
	for _, v := range set.All() {
		if strings.HasPrefix(v.Name, strings.TrimSuffix(name, ".")+".") {
			show(v)
			found = true
		}
	}
	return found
}
