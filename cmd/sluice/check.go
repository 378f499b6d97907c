package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sluice/internal/config"
	"sluice/router"
)

func (a *app) checkCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Say what is wrong with a configuration",
		Long: `check reads a configuration and everything it names, touches nothing, and
prints what is wrong with file, line and column. It ends with 0 if a router
could be started with it; warnings do not change that.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(context.Context, []string) error {
			cfg, err := load(file, a.stderr)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%s: ok: %s\n", file, summary(cfg))
			return err
		}),
	}
	configFlag(cmd, &file)
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration `file`")
	cmd.MarkFlagRequired("config")
}

// load reads a configuration and says on stderr what is wrong with it, a line each.
func load(file string, stderr io.Writer) (*router.Config, error) {
	cfg, warnings, err := config.Read(file)
	for _, w := range warnings {
		fmt.Fprintf(stderr, "%s: warning: %s\n", w.Pos, w.Text)
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		fmt.Fprintln(stderr, problems)
		return nil, exitStatus(exitFailed)
	}
	return cfg, err
}

// summary is a configuration in a line.
func summary(cfg *router.Config) string {
	rules := 0
	for _, set := range []*router.RulesetConfig{&cfg.IPTables, &cfg.IP6Tables} {
		for _, line := range set.Script() {
			if len(line.Text) > 3 && (line.Text[:3] == "-A " || line.Text[:3] == "-I ") {
				rules++
			}
		}
	}
	return fmt.Sprintf("%s, %s, %s, %s",
		plural(len(cfg.Interfaces), "interface"), plural(len(cfg.Routes), "route"), plural(rules, "rule"), plural(len(cfg.Services), "service"))
}
