package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/internal/top"
)

// flagValues are the values of flags that are one of a few words, by command and
// flag, for completion.
func flagValues() map[string]map[string][]string {
	return map[string]map[string][]string{
		"capture": {"at": append([]string{"all"}, points...)},
		"graph":   {"format": {"svg", "dot", "mermaid"}, "table": {"filter", "nat", "mangle", "raw", "security"}},
		"lint":    {"ignore": findingKinds},
		"top":     {"view": top.Views},
		"trace":   {"color": {"auto", "always", "never"}},
	}
}

// completable lets shells complete the values of flags, and shows what a flag is
// for without the marks that name its argument.
func completable(root *cobra.Command) {
	values := flagValues()
	for _, cmd := range root.Commands() {
		words := values[cmd.Name()]
		if cmd.DisableFlagParsing {
			if cmd.GroupID != toolGroup {
				cmd.ValidArgsFunction = valueOf(cmd, words)
			}
			continue
		}
		for name, list := range words {
			if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)); err != nil {
				panic(err) // there is no such flag
			}
		}
	}
}

// valueOf completes the value of the flag before, for a command that reads its
// flags itself; whatever else comes may be a file.
func valueOf(cmd *cobra.Command, words map[string][]string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			if list, ok := words[strings.TrimLeft(args[len(args)-1], "-")]; ok {
				return list, cobra.ShellCompDirectiveNoFileComp
			}
		}
		return nil, cobra.ShellCompDirectiveDefault
	}
}

// plainUsage takes the back quotes out of what flags say: pflag reads an
// argument's name from them, completion shows them as they are.
func plainUsage(cmd *cobra.Command) {
	plain := func(f *pflag.Flag) { f.Usage = strings.ReplaceAll(f.Usage, "`", "") }
	cmd.Flags().VisitAll(plain)
	cmd.PersistentFlags().VisitAll(plain)
	for _, c := range cmd.Commands() {
		plainUsage(c)
	}
}
