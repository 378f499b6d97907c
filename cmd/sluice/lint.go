package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sluice/internal/iptables"
	"sluice/internal/lint"
	"sluice/packet"
	"sluice/router"
)

var findingKinds = []string{lint.NeverMatches, lint.Duplicate, lint.EmptyChain, lint.Unused, lint.DNATBlocked, lint.NoAnswers, lint.NoDNS}

func (a *app) lintCommand() *cobra.Command {
	var file string
	var asJSON, six bool
	var ignore []string
	cmd := &cobra.Command{
		Use:   "lint {-c FILE | RULES...}",
		Short: "Find rules that cannot be meant",
		Long: `lint reads a configuration, or files in iptables-save format, and tells of

  never-matches  a rule that no packet can match: earlier rules take all of it,
                 its own matches exclude each other, or its chain is not come to
                 with such packets
  duplicate      a rule that says what an earlier one of its chain says
  empty-chain    a jump to a chain without rules
  unused-chain   a chain that nothing leads to
  dnat-blocked   a DNAT whose new connections FORWARD lets not through
  no-answers     a policy or rule that drops what belongs to established connections
  no-dns         the same of the router's own DNS

Every claim that a rule never matches holds for all packets; matches that cannot
be reasoned about (limit, recent …) make it claim less. It ends with 0 if there is
nothing to tell, and with 1 if there is.`,
		RunE: a.do(func(_ context.Context, args []string) error {
			if (file == "") == (len(args) == 0) {
				a.ran = false
				return errors.New("-c FILE for a configuration, or files in iptables-save format")
			}
			for _, k := range ignore {
				if !contains(findingKinds, k) {
					a.ran = false
					return fmt.Errorf("--ignore: no kind %q: %s", k, strings.Join(findingKinds, ", "))
				}
			}
			var all []lint.Finding
			if file != "" {
				cfg, err := load(file, a.stderr)
				if err != nil {
					return err
				}
				sim, err := router.NewSim(cfg, false)
				if err != nil {
					return err
				}
				defer sim.Close()
				for _, fam := range []uint8{packet.IPv4, packet.IPv6} {
					all = append(all, lint.Rules(sim.Router().Engine(fam).Ruleset())...)
				}
			}
			for _, name := range args {
				found, err := lintFile(name, six)
				if err != nil {
					return err
				}
				all = append(all, found...)
			}
			kept := all[:0]
			for _, f := range all {
				if !contains(ignore, f.Kind) {
					kept = append(kept, f)
				}
			}
			if asJSON {
				e := json.NewEncoder(a.stdout)
				e.SetIndent("", "  ")
				if kept == nil {
					kept = []lint.Finding{}
				}
				if err := e.Encode(kept); err != nil {
					return err
				}
			} else {
				for i := range kept {
					if _, err := fmt.Fprintln(a.stdout, kept[i].String()); err != nil {
						return err
					}
				}
			}
			if len(kept) > 0 {
				return exitStatus(exitFailed)
			}
			return nil
		}),
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration `file`")
	cmd.Flags().BoolVarP(&six, "ipv6", "6", false, "the files are ip6tables'")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringSliceVar(&ignore, "ignore", nil, "do not tell of these `kinds` of finding")
	return cmd
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if strings.TrimSpace(x) == strings.TrimSpace(s) {
			return true
		}
	}
	return false
}

// lintFile lints a file in iptables-save format.
func lintFile(name string, six bool) ([]lint.Finding, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sim, err := router.NewSim(&router.Config{}, false)
	if err != nil {
		return nil, err
	}
	defer sim.Close()
	family := packet.IPv4
	if six {
		family = packet.IPv6
	}
	if err := iptables.LoadRestore(sim.Router().IPTables(), family, f, name, false); err != nil {
		return nil, err
	}
	found := lint.Rules(sim.Router().Engine(family).Ruleset())
	for i := range found {
		if found[i].Source.File == "" { // a chain without rules
			found[i].Source.File = name
		}
	}
	return found, nil
}
