package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"
)

func (a *app) nflogCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "nflog GROUP",
		Short: "Write the packets that rules send to an NFLOG group",
		Long: `nflog writes the packets that rules with -j NFLOG --nflog-group GROUP send, as
they come, until it is interrupted: a pcapng file of raw IP packets, each with a
comment that has the rule's prefix, the hook, the interfaces and the mark.

    sluice nflog 5 | tcpdump -nr -
    sluice nflog 5 -w dropped.pcapng`,
		Args: cobra.ExactArgs(1),
		RunE: a.do(func(ctx context.Context, args []string) (err error) {
			out := a.stdout
			if file != "" {
				f, err := os.Create(file)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				out = f
			}
			status, err := a.call(ctx, []string{"nflog", args[0]}, nil, out, a.stderr)
			switch {
			case ctx.Err() != nil:
				return nil // interrupted: that is how it ends
			case err != nil:
				return err
			case status != 0:
				return exitStatus(status)
			}
			return nil
		}),
	}
	c.Flags().StringVarP(&file, "write", "w", "", "write to this `file` instead of standard output")
	return c
}
