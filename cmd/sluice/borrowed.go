package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"sluice/conntrack"
	"sluice/internal/conntrackcmd"
	"sluice/internal/control"
	ipsetcmd "sluice/internal/ipset"
	"sluice/internal/iptables"
	"sluice/internal/nfct"
	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ipset"
)

// tool is a program whose command line sluice takes.
type tool struct {
	name string
	// failed is the exit status when there is no router to ask.
	failed int
}

// tools are the names that sluice answers to.
var tools = []tool{
	{"iptables", 3}, {"ip6tables", 3}, // as when the real one cannot initialize a table
	{"iptables-save", 1}, {"ip6tables-save", 1},
	{"iptables-restore", 1}, {"ip6tables-restore", 1},
	{"conntrack", 1}, {"ipset", 1}, {"nfct", 1}, {"iptables-xml", 1},
	{"iptables-apply", 3}, {"ip6tables-apply", 3}, // as when there are no tables
}

func toolNamed(name string) (tool, bool) {
	for _, t := range tools {
		if t.name == name {
			return t, true
		}
	}
	return tool{}, false
}

// borrowedCall is a call of one of the tools.
type borrowedCall struct {
	tool
	target
	argv []string // argv[0] is the tool's name
}

// borrowed recognizes such a call: by the name the program was started under,
// or by the first argument, which --socket and --name may precede. From the
// name on every argument is the tool's own.
func borrowed(argv []string) (*borrowedCall, bool) {
	if t, ok := toolNamed(programName(argv)); ok {
		return &borrowedCall{tool: t, argv: append([]string{t.name}, argv[1:]...)}, true
	}
	var to target
	for i := 1; i < len(argv); i++ {
		if t, ok := toolNamed(argv[i]); ok {
			return &borrowedCall{tool: t, target: to, argv: argv[i:]}, true
		}
		flag, value, eq := strings.Cut(argv[i], "=")
		var dst *string
		switch flag {
		case "--socket":
			dst = &to.socket
		case "--name":
			dst = &to.name
		default:
			return nil, false
		}
		if !eq {
			if i++; i == len(argv) {
				return nil, false
			}
			value = argv[i]
		}
		*dst = value
	}
	return nil, false
}

func (b *borrowedCall) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
	switch b.tool.name {
	case "iptables-xml":
		return iptables.XML(b.argv, stdin, stdout, stderr)
	case "iptables-apply", "ip6tables-apply":
		return b.apply(ctx, stdin, stdout, stderr)
	}
	path, err := control.Find(b.socket, b.target.name)
	if err != nil {
		if b.speaksAlone() {
			return b.alone(stdin, stdout, stderr)
		}
		fmt.Fprintf(stderr, "%s: %v\n", b.tool.name, err)
		return b.failed
	}
	if b.tool.name == "ipset" {
		return b.ipset(ctx, path, stdin, stdout, stderr)
	}
	files := b.files()
	if files.Input != "" {
		f, err := os.Open(files.Input)
		if err != nil && b.tool.name == "conntrack" {
			fmt.Fprint(stderr, conntrackOpenError(files.Input))
			return exitUsage
		} else if err != nil {
			fmt.Fprint(stderr, files.OpenError(err))
			return exitFailed
		}
		defer f.Close()
		stdin = f
	}
	if files.Output != "" {
		f, err := os.Create(files.Output)
		if err != nil {
			fmt.Fprint(stderr, files.OpenError(err))
			return exitFailed
		}
		defer f.Close()
		stdout = f
	}
	status, err := control.Call(ctx, path, files.Args, stdin, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", b.tool.name, err)
		return b.failed
	}
	return status
}

// ipset is a call of that program, with the files that its -f names.
func (b *borrowedCall) ipset(ctx context.Context, path string, stdin io.Reader, stdout, stderr io.Writer) int {
	if name, ok := ipsetcmd.InputFile(b.argv); ok {
		f, err := os.Open(name)
		if err != nil {
			return 255
		}
		defer f.Close()
		stdin = f
	}
	status, err := control.CallCreating(ctx, path, b.argv, stdin, stdout, stderr, createFile)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", b.tool.name, err)
		return b.failed
	}
	return status
}

func createFile(name string) (io.WriteCloser, error) { return os.Create(name) }

// files are those that the command line names: they are the caller's, and the
// router gets their content.
func (b *borrowedCall) files() iptables.ClientFiles {
	switch b.tool.name {
	case "nfct":
		return iptables.ClientFiles{Args: b.argv}
	case "conntrack":
	default:
		return iptables.ClientArgs(b.argv)
	}
	for i, a := range b.argv {
		if i == 0 {
			continue
		}
		name, ok := "", false
		at := i
		switch {
		case (a == "-R" || a == "--load-file") && i+1 < len(b.argv):
			name, ok, at = b.argv[i+1], true, i+1
		case strings.HasPrefix(a, "--load-file="):
			name, ok = a[len("--load-file="):], true
		case strings.HasPrefix(a, "-R"):
			name, ok = a[len("-R"):], true
		}
		if ok && name != "" && name != "-" {
			args := slices.Clone(b.argv)
			args[at] = strings.TrimSuffix(a, name) + "-"
			if at > i {
				args[at] = "-"
			}
			return iptables.ClientFiles{Args: args, Input: name}
		}
	}
	return iptables.ClientFiles{Args: b.argv}
}

// conntrackOpenError is what conntrack says of a file that it cannot load.
func conntrackOpenError(name string) string {
	return fmt.Sprintf("conntrack v1.4.7 (conntrack-tools): Failed to open file %s for reading\nTry `conntrack -h' or 'conntrack --help' for more information.\n", name)
}

// speaksAlone: what is asked for takes no router.
func (b *borrowedCall) speaksAlone() bool {
	for _, a := range b.argv[1:] {
		switch a {
		case "-V", "--version", "-h", "--help":
			return true
		case "help", "version":
			return b.tool.name == "ipset"
		}
	}
	return false
}

// alone runs the tool on empty tables that no packet meets.
func (b *borrowedCall) alone(stdin io.Reader, stdout, stderr io.Writer) int {
	switch b.tool.name {
	case "iptables-xml", "iptables-apply", "ip6tables-apply":
		return b.run(context.Background(), stdin, stdout, stderr)
	case "ipset":
		return ipsetcmd.Run(ipset.New(nil), b.argv, stdin, stdout, stderr, createFile, nil)
	case "nfct":
		return nfct.Run(conntrack.New(sysctl.NewSet(), conntrack.Options{}), b.argv, stdout, stderr)
	case "conntrack":
		return conntrackcmd.Run(conntrack.New(sysctl.NewSet(), conntrack.Options{}), b.argv[1:], stdin, stdout, stderr, nil)
	}
	engines := iptables.New(tables.NewEngine(packet.IPv4, &tables.Env{}), tables.NewEngine(packet.IPv6, &tables.Env{}))
	return iptables.Run(engines, b.argv, stdin, stdout, stderr)
}

// call finds the router and runs argv on it.
func (t *target) call(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	path, err := control.Find(t.socket, t.name)
	if err != nil {
		return 0, err
	}
	return control.Call(ctx, path, argv, stdin, stdout, stderr)
}

// ask is call for sluice's own commands.
func (a *app) ask(ctx context.Context, argv ...string) error {
	status, err := a.call(ctx, argv, nil, a.stdout, a.stderr)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w (is it another user's?)", err)
	case err != nil:
		return err
	case status != 0:
		return exitStatus(status)
	}
	return nil
}
