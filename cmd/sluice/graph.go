package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"sluice/internal/config"
	"sluice/internal/graph"
	"sluice/router"
)

func (a *app) graphCommand() *cobra.Command {
	var file, rules, format, output string
	var opt graph.Options
	var only4, only6 bool
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the rules: chains, jumps, counters",
		Long: `graph draws the chains of the running router, the jumps between them and the
counters: as SVG, for Graphviz (dot) or for Markdown (mermaid).

With -c it draws those of a configuration, and with --rules those of a file as
iptables-save prints it (ip6tables-save with -6); no router has to run for it.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			if only4 != only6 {
				opt.Family = map[bool]string{true: "ipv4", false: "ipv6"}[only4]
			}
			if format == "" {
				format = map[string]string{".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".md": "mermaid"}[filepath.Ext(output)]
			}
			write, ok := map[string]func(*graph.Graph, io.Writer) error{
				"": (*graph.Graph).SVG, "svg": (*graph.Graph).SVG, "dot": (*graph.Graph).DOT, "mermaid": (*graph.Graph).Mermaid,
			}[format]
			if !ok {
				return fmt.Errorf("--format %s: it is svg, dot or mermaid", format)
			}
			tables, err := a.drawn(ctx, file, rules, only6 && !only4)
			if err != nil {
				return err
			}
			g, err := graph.Build(tables, opt)
			if err != nil {
				return err
			}
			var drawing bytes.Buffer
			if err := write(g, &drawing); err != nil {
				return err
			}
			if output == "" || output == "-" {
				_, err = a.stdout.Write(drawing.Bytes())
				return err
			}
			return os.WriteFile(output, drawing.Bytes(), 0o666)
		}),
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "draw the rules of this configuration `file`")
	f.StringVar(&rules, "rules", "", "draw the rules of this iptables-save `file`")
	f.StringVarP(&opt.Table, "table", "t", "", "only this `table` (else all that have rules)")
	f.BoolVarP(&only4, "ipv4", "4", false, "only IPv4")
	f.BoolVarP(&only6, "ipv6", "6", false, "only IPv6")
	f.StringVar(&format, "format", "", "`svg`, dot or mermaid (else by the output file's name, else svg)")
	f.StringVarP(&output, "output", "o", "", "`file` to write (else standard output)")
	f.IntVar(&opt.Limit, "limit", 40, "show this many rules of a chain, besides its jumps; 0 is all")
	cmd.MarkFlagsMutuallyExclusive("config", "rules")
	return cmd
}

// drawn gets the tables: of the running router, or of files.
func (a *app) drawn(ctx context.Context, file, rules string, six bool) ([]router.TableStatus, error) {
	var cfg *router.Config
	var err error
	switch {
	case rules != "":
		if _, err := os.Stat(rules); err != nil {
			return nil, err
		}
		if rules, err = filepath.Abs(rules); err != nil {
			return nil, err
		}
		section := map[bool]string{false: "iptables", true: "ip6tables"}[six]
		cfg, _, err = config.Parse(rules, fmt.Appendf(nil, "[%s]\nrestore = [%s]\n", section, strconv.Quote(rules)))
		var problems config.Problems
		if errors.As(err, &problems) {
			fmt.Fprintln(a.stderr, problems)
			return nil, exitStatus(exitFailed)
		}
	case file != "":
		cfg, err = load(file, a.stderr)
	default:
		var out bytes.Buffer
		status, err := a.call(ctx, []string{"status", "--json"}, nil, &out, a.stderr)
		if err != nil {
			return nil, err
		}
		if status != 0 {
			return nil, exitStatus(status)
		}
		var s router.Status
		if err := json.Unmarshal(out.Bytes(), &s); err != nil {
			return nil, err
		}
		return s.Tables, nil
	}
	if err != nil {
		return nil, err
	}
	sim, err := router.NewSim(cfg, false)
	if err != nil {
		return nil, err
	}
	defer sim.Close()
	return sim.Router().Status().Tables, nil
}
