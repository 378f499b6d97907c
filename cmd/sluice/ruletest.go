package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/spf13/cobra"

	"sluice/internal/play"
	"sluice/internal/ruletest"
)

func (a *app) testCommand() *cobra.Command {
	var cover, tap, verbose bool
	var junit, only string
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Test rules with packets and conversations",
		Long: `test runs the cases of TOML files: packets or conversations that go into a
configuration, in memory, and what is expected of each. It ends with 0 if all are
met; for one that is not it prints the trace.

  config = "edge.toml"
  [[case]]
  name = "the LAN reaches the web, and the answer comes back"
  packets = [
    { send = "tcp 10.0.1.2:4000 > 203.0.113.9:80 S", forwarded = "wan0", as = "tcp 198.51.100.2 > 203.0.113.9:80", state = "NEW" },
    { send = "reply", forwarded = "lan0", state = "ESTABLISHED" },
    { send = "wan0: tcp 9.9.9.9:1 > 198.51.100.2:23 S", dropped = "filter.INPUT.policy" },
  ]

A packet may be expected to be forwarded = "INTERFACE", delivered = true, dropped =
"REASON", rejected = "tcp-reset" or one of REJECT's types, or held = true; with as =
(how it leaves) and answer = (what the router sends because of it), both words of a
description; state, mark, connmark, rule = (what decides: part of its text, "TABLE
CHAIN NUMBER" or FILE:LINE), matched and unmatched = [rules]. pcap = "FILE" in place
of send plays a capture. In place of config, inline = holds a configuration's text.

` + play.Syntax,
		Args: cobra.MinimumNArgs(1),
		RunE: a.do(func(_ context.Context, files []string) error {
			var match func(string) bool
			if only != "" {
				re, err := regexp.Compile(only)
				if err != nil {
					return fmt.Errorf("--run: %w", err)
				}
				match = re.MatchString
			}
			var run ruletest.Run
			for _, f := range files {
				if err := run.File(f, match); err != nil {
					return err
				}
			}
			if tap {
				run.TAP(a.stdout)
			} else {
				run.Text(a.stdout, verbose, play.Style{Color: isTerminal(a.stdout)})
			}
			if cover {
				out := a.stdout
				if tap {
					out = a.stderr
				}
				run.Cover(out)
			}
			if junit != "" {
				if err := writeFile(junit, run.JUnit); err != nil {
					return err
				}
			}
			if run.Failed() > 0 {
				return exitStatus(exitFailed)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&cover, "cover", false, "list the rules that no case met")
	cmd.Flags().BoolVar(&tap, "tap", false, "print TAP (Test Anything Protocol)")
	cmd.Flags().StringVar(&junit, "junit", "", "write JUnit XML to `file`")
	cmd.Flags().StringVar(&only, "run", "", "only cases whose names match this regular `expression`")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "name cases that pass as well")
	return cmd
}

// writeFile makes a file of what f writes; - is standard output.
func writeFile(name string, f func(io.Writer) error) error {
	if name == "-" {
		return f(os.Stdout)
	}
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := f(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
