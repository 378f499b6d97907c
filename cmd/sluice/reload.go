package main

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Let the running router read its configuration again",
		Long: `reload lets the running router read its configuration file again. What stays
the same goes on undisturbed, connections too. If something is wrong with the
file, nothing changes, and reload prints what it is.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error { return a.ask(ctx, "reload") }),
	}
}
