package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"sluice/internal/conntrackcmd"
	"sluice/internal/control"
	"sluice/internal/ipset"
	"sluice/internal/iptables"
)

// handlers registers what the control socket can do.
func (d *daemon) handlers(s *control.Server) {
	engines := d.router.IPTables()
	for _, name := range iptables.Programs {
		s.Handle(name, control.Buffered(func(_ context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
			return iptables.Run(engines, argv, stdin, stdout, stderr)
		}))
	}
	s.Handle("conntrack", func(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
		return conntrackcmd.Run(d.router.Conntrack(), argv[1:], stdin, stdout, stderr, ctx.Done())
	})
	s.Handle("ipset", func(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
		return ipset.Run(d.router.Sets(), argv, stdin, stdout, stderr, ctx.Done())
	})
	s.Handle("status", func(_ context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
		rep := report{Status: d.router.Status()}
		rep.Rules, rep.Routes = routing(d.router.FIB().Load())
		if len(argv) > 1 && argv[1] == "--json" {
			return told(stderr, writeJSON(stdout, rep))
		}
		if err := printStatus(stdout, rep.Status); err != nil {
			return told(stderr, err)
		}
		return told(stderr, printRouting(stdout, rep.Rules, rep.Routes))
	})
	s.Handle("trace", d.liveTrace)
	s.Handle("capture", d.capture)
	s.Handle("top", d.topSample)
	if d.file != "" {
		s.Handle("reload", func(_ context.Context, _ []string, _ io.Reader, _, stderr io.Writer) int {
			if !d.reload(stderr) {
				return exitFailed
			}
			return 0
		})
	}
	s.Handle("sysctl", func(_ context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
		return runSysctl(d.router.Sysctl(), argv, stdout, stderr)
	})
	started := time.Now()
	s.Handle("info", func(_ context.Context, _ []string, _ io.Reader, stdout, stderr io.Writer) int {
		return told(stderr, writeJSON(stdout, info{
			Name: d.name, PID: os.Getpid(), Version: version, Started: started, Config: d.file, Socket: d.socket,
		}))
	})
}

// told is the exit status for err, after saying it.
func told(stderr io.Writer, err error) int {
	if err != nil {
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return exitFailed
	}
	return 0
}
