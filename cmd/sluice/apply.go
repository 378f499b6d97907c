package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"sluice/internal/control"
	"sluice/internal/iptables"
)

// apply is iptables-apply and ip6tables-apply.
func (b *borrowedCall) apply(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) int {
	// A signal, also that of a terminal or a pipe that is gone, must not end the
	// program before the old rules are back.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	defer signal.Stop(stop)
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	call := &iptables.Apply{
		Argv: b.argv, Stdin: stdin, Stdout: stdout, Stderr: stderr, Stop: stop,
		Call: func(argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
			status, err := b.target.call(ctx, argv, stdin, stdout, stderr)
			if err != nil {
				fmt.Fprintf(stderr, "%s: %v\n", b.tool.name, err)
				return b.failed
			}
			return status
		},
		Env: b.target.environment,
	}
	return call.Run()
}

// environment is one in which the tools' names are sluice, and act on this router.
func (t *target) environment() (env []string, done func(), err error) {
	path, err := control.Find(t.socket, t.name)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "sluice-tools-")
	if err != nil {
		return nil, nil, err
	}
	done = func() { os.RemoveAll(dir) }
	for _, tool := range tools {
		if err := os.Symlink(self, filepath.Join(dir, tool.name)); err != nil {
			done()
			return nil, nil, err
		}
	}
	return append(slices.Clone(os.Environ()), "SLUICE_SOCKET="+path, "PATH="+dir+":"+os.Getenv("PATH")), done, nil
}
