// Command sluice is a router in an ordinary process, and the tools for it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sluice/internal/confine"
)

// Exit statuses of sluice's own commands; the borrowed names have those of the real programs.
const (
	exitFailed = 1 // the operation failed
	exitUsage  = 2 // it was asked for in a wrong way
)

func main() {
	os.Exit(start(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// start is main with its surroundings as arguments.
func start(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if confine.IsStage(argv) {
		return confine.Stage(argv)
	}
	if args, ok := slirpArgs(argv); ok {
		return (&slirp{stdout: stdout, stderr: stderr}).run(args)
	}
	if b, ok := borrowed(argv); ok {
		return b.run(context.Background(), stdin, stdout, stderr)
	}
	app := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := app.command()
	if len(argv) > 1 && argv[1] == cobra.ShellCompRequestCmd {
		plainUsage(root)
	}
	root.SetArgs(argv[1:])
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(context.Background())
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case app.ran:
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(stderr, "sluice: %v\nTry \"%s --help\".\n", err, cmd.CommandPath())
	return exitUsage
}

// exitStatus ends the program with a status after everything was said.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// app is what the subcommands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	target
	ran bool // arguments were understood and a command has begun
}

// target is which running router is meant.
type target struct{ socket, name string }

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "A netfilter router in an ordinary process",
		Long: `sluice reads frames from TUN devices, takes them through the five netfilter
hooks with the rules of iptables, and forwards them or hands them to sockets of
its own. "sluice run" is the router; the other commands are about it.

Started under the name of one of the tools below, or with the name as first
argument, sluice is that tool and acts on the running router.`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return errors.New("a command is missing") },
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", "", "control `path` of the router (else $SLUICE_SOCKET, else the one that runs)")
	root.PersistentFlags().StringVar(&a.name, "name", "", "`name` of the router, as sluice ps shows it")
	root.AddCommand(a.runCommand(), a.checkCommand(), a.setupCommand(), a.reloadCommand(), a.statusCommand(), a.execCommand(), a.attachCommand(),
		a.psCommand(), a.sysctlCommand(), a.nflogCommand(), a.benchCommand(), a.traceCommand(), a.testCommand(), a.lintCommand(), a.captureCommand(), a.topCommand(), a.graphCommand(), a.manCommand(), a.versionCommand())
	root.AddGroup(&cobra.Group{ID: toolGroup, Title: "Tools that sluice is, too:"})
	root.AddCommand(toolCommands()...)
	completable(root)
	return root
}

// do marks that a command has begun, so that what goes wrong from here is a failure and not bad usage.
func (a *app) do(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.ran = true
		return f(cmd.Context(), args)
	}
}

// programName is the name that a program was started under.
func programName(argv []string) string {
	if len(argv) == 0 {
		return "sluice"
	}
	return filepath.Base(argv[0])
}
