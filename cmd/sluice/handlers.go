package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"sluice/internal/conntrackcmd"
	"sluice/internal/control"
	"sluice/internal/ipset"
	"sluice/internal/iptables"
	"sluice/internal/nfct"
	"sluice/router/nfqueue"
)

// handlers registers what the control socket can do.
func (d *daemon) handlers(s *control.Server) {
	engines := d.router.IPTables()
	for _, name := range iptables.Programs {
		s.Handle(name, func(_ context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
			defer d.router.Work()()
			return iptables.Run(engines, argv, stdin, stdout, stderr)
		})
	}
	s.Handle("conntrack", func(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
		return conntrackcmd.Run(d.router.Conntrack(), argv[1:], stdin, stdout, stderr, ctx.Done())
	})
	s.Handle("nfct", func(_ context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
		return nfct.Run(d.router.Conntrack(), argv, stdout, stderr)
	})
	s.Handle("nflog", func(ctx context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
		if len(argv) != 2 {
			return told(stderr, errors.New("nflog takes a group"))
		}
		group, err := strconv.ParseUint(argv[1], 10, 16)
		if err != nil {
			return told(stderr, fmt.Errorf("%q is no group: 0 to 65535", argv[1]))
		}
		return told(stderr, d.router.ServeNFLog(uint16(group), stdout, ctx.Done()))
	})
	s.Handle("nfqueue", func(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
		num, o, err := queueOptions(argv[1:])
		if err != nil {
			return told(stderr, err)
		}
		return told(stderr, d.router.ServeQueue(num, o, stdin, stdout, ctx.Done()))
	})
	s.Handle("ipset", func(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
		create := func(name string) (io.WriteCloser, error) { return control.Create(stdout, name) }
		return ipset.Run(d.router.Sets(), argv, stdin, stdout, stderr, create, ctx.Done())
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

// queueOptions reads what a program that wants a queue says of it.
func queueOptions(args []string) (num uint16, o nfqueue.Options, err error) {
	if len(args) == 0 {
		return 0, o, errors.New("nfqueue takes a queue's number")
	}
	n, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return 0, o, fmt.Errorf("%q is no queue: 0 to 65535", args[0])
	}
	for i := 1; i < len(args); i++ {
		switch {
		case args[i] == "--fail-open":
			o.FailOpen = true
		case args[i] == "--max" && i+1 < len(args):
			i++
			if o.Max, err = strconv.Atoi(args[i]); err != nil || o.Max < 1 || o.Max > 1<<16 {
				return 0, o, fmt.Errorf("--max %s: 1 to 65536 packets can wait", args[i])
			}
		default:
			return 0, o, fmt.Errorf("unknown option %q", args[i])
		}
	}
	return uint16(n), o, nil
}

// told is the exit status for err, after saying it.
func told(stderr io.Writer, err error) int {
	if err != nil {
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return exitFailed
	}
	return 0
}
