package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

const toolGroup = "tools"

// toolCommands are the tools' names as help, completion and manual pages list
// them; a call of one never gets here, see borrowed.
func toolCommands() []*cobra.Command {
	var out []*cobra.Command
	for _, t := range tools {
		c := &cobra.Command{
			Use: t.name + " [ARGUMENT]...", Short: t.name + " on the running router", GroupID: toolGroup,
			DisableFlagParsing: true, DisableFlagsInUseLine: true,
			Run: func(*cobra.Command, []string) {},
		}
		c.InitDefaultHelpFlag()
		c.Flags().Lookup("help").Hidden = true
		out = append(out, c)
	}
	return out
}

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man FOLDER",
		Short: "Write the manual pages",
		Long: `man writes a manual page for sluice and for each of its commands into FOLDER,
which is made if it is not there:

  sluice man /usr/local/share/man/man1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.do(func(_ context.Context, args []string) error { return writeManual(cmd.Root(), args[0]) })(cmd, args)
		},
	}
}

// writeManual writes root's manual pages; what a tool says with -h is its page's text.
func writeManual(root *cobra.Command, folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	for _, c := range root.Commands() {
		c.Long = fenced(c.Long)
		if c.GroupID != toolGroup || c.Long != "" {
			continue
		}
		t, _ := toolNamed(c.Name())
		var help bytes.Buffer
		status := (&borrowedCall{tool: t, argv: []string{t.name, "-h"}}).alone(strings.NewReader(""), &help, &help)
		c.Long = fmt.Sprintf("%s, with the command line of the program of that name, acts on the running router; see %s(8).", t.name, t.name)
		if status == 0 {
			c.Long += "\n\n```\n" + strings.TrimSpace(help.String()) + "\n```"
		}
	}
	head := &doc.GenManHeader{Section: "1", Source: "sluice " + version, Manual: "sluice"}
	return doc.GenManTree(root, head, folder)
}

// fenced marks the indented lines of a help text as they have to be marked to
// keep their line breaks in a manual page.
func fenced(text string) string {
	var out []string
	inside := false
	for _, l := range strings.Split(text, "\n") {
		if indented := strings.HasPrefix(l, "  "); indented != inside {
			inside = indented
			if indented {
				out = append(out, "")
			}
			out = append(out, "```")
			if !indented && l != "" {
				out = append(out, "")
			}
		}
		out = append(out, l)
	}
	if inside {
		out = append(out, "```")
	}
	return strings.Join(out, "\n")
}
