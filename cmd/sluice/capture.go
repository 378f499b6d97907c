package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/internal/control"
	"sluice/internal/pcapng"
	"sluice/router"
)

// points are where a packet can be captured.
var points = []string{"in", "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "out", "drop"}

func (a *app) captureCommand() *cobra.Command {
	var write string
	var at []string
	var count int64
	var snaplen int
	cmd := &cobra.Command{
		Use:   "capture [--at POINT,...] [-w FILE] [--count N] [MATCHES]",
		Short: "Capture packets of the running router, with what becomes of them",
		Long: `capture writes pcapng to a file or to standard output, the packets that match:
any matches of an iptables rule. A packet is written at each point that --at names:
in (as it came), out (as it left), drop (as it was dropped), or a hook (as it came
there, and as the hook left it). A comment on each says where, what the verdict was,
by which rule, and why it was dropped.

What the reader does not take in time is counted and lost, never waited for; all
packets that do not match pass as ever.`,
		Example: `  sluice capture -w web.pcapng -p tcp --dport 80
  sluice capture --at FORWARD,drop -m conntrack --ctstate INVALID | wireshark -k -i -`,
		DisableFlagParsing: true,
	}
	fs := cmd.Flags()
	fs.StringVarP(&write, "write", "w", "-", "`file` to write; - is standard output")
	fs.StringSliceVar(&at, "at", []string{"in", "out", "drop"}, "`points`: in, out, drop, a hook's name, or all")
	fs.Int64Var(&count, "count", 0, "end after `N` packets")
	fs.IntVar(&snaplen, "snaplen", 65535, "most `bytes` of a packet that are kept")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		match, err := splitFlags(cmd, args)
		if errors.Is(err, pflag.ErrHelp) {
			return cmd.Help()
		} else if err != nil {
			return err
		}
		for i, p := range at {
			k := slices.IndexFunc(points, func(x string) bool { return strings.EqualFold(x, p) })
			if strings.EqualFold(p, "all") {
				at = points
				break
			}
			if k < 0 {
				return fmt.Errorf("no point %q: %s or all", p, strings.Join(points, ", "))
			}
			at[i] = points[k]
		}
		if snaplen < 20 || snaplen > 65535 || count < 0 {
			return errors.New("--snaplen is between 20 and 65535, --count from 0 up")
		}
		out, finish := a.stdout, func() error { return nil }
		if write != "-" {
			f, err := os.Create(write)
			if err != nil {
				a.ran = true
				return err
			}
			b := bufio.NewWriter(f)
			finish = func() error { return errors.Join(b.Flush(), f.Close()) }
			out = b
		} else if isTerminal(a.stdout) {
			return errors.New("a capture is not for a terminal: -w FILE, or a pipe")
		}
		a.ran = true
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		argv := append([]string{"capture", strconv.FormatInt(count, 10), strconv.Itoa(snaplen), strings.Join(at, ",")}, match...)
		status, err := a.call(ctx, argv, nil, out, a.stderr)
		if ctx.Err() != nil {
			status, err = 0, nil // ended by a signal: what was captured is written
		}
		if failed := finish(); err == nil {
			err = failed
		}
		switch {
		case err != nil:
			return err
		case status != 0:
			return exitStatus(status)
		}
		return nil
	}
	return cmd
}

// capture answers `sluice capture`: argv is capture, count, snaplen, points, matches.
func (d *daemon) capture(ctx context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
	if len(argv) < 4 {
		fmt.Fprintln(stderr, "sluice: capture: a request without count, length and points")
		return exitUsage
	}
	count, err := strconv.ParseInt(argv[1], 10, 64)
	snaplen, err2 := strconv.Atoi(argv[2])
	if err != nil || err2 != nil || count < 0 || snaplen < 20 || snaplen > 65535 {
		fmt.Fprintf(stderr, "sluice: capture: count %s, length %s\n", argv[1], argv[2])
		return exitUsage
	}
	at := strings.Split(argv[3], ",")
	v, err := d.router.Watch(router.WatchOptions{Match: argv[4:], Count: count, Frames: snaplen})
	if err != nil {
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return exitUsage
	}
	defer v.Close()
	control.Patience(stdout, 20*time.Second)
	w, err := pcapng.NewWriter(stdout, "sluice "+version, snaplen)
	var told uint64
	for err == nil {
		t := v.Next(ctx.Done())
		if t == nil {
			break
		}
		lost := v.Lost() - told
		told += lost
		for i := range t.Frames {
			f := &t.Frames[i]
			if !slices.Contains(at, f.Hook) {
				continue
			}
			p := pcapng.Packet{Iface: f.Iface, Time: t.At, Data: f.Data, Len: f.Len, Comment: frameComment(t, f), Inbound: f.Hook == "in", Outbound: f.Hook == "out", Lost: lost}
			if p.Iface == "" {
				p.Iface = "router" // its own packet, not routed yet
			}
			lost = 0
			if err = w.Write(&p); err != nil {
				break
			}
		}
	}
	if err != nil {
		return exitFailed // nobody reads
	}
	if w.Close(time.Now(), v.Lost()) != nil {
		return exitFailed
	}
	if n := v.Lost(); n > 0 {
		fmt.Fprintf(stderr, "sluice: %d packets matched and were not captured: they came faster than they were read\n", n)
	}
	return 0
}

// frameComment says what a captured frame is.
func frameComment(t *router.Trace, f *router.TraceFrame) string {
	s := fmt.Sprintf("packet %d ", t.Seq)
	switch f.Hook {
	case "in":
		return s + "as it came in; " + ending(t)
	case "out":
		return s + "as it left"
	case "drop":
		s += "dropped: " + t.Reason
	default:
		if !f.After {
			return s + "before " + f.Hook + "; " + ending(t)
		}
		s += "after " + f.Hook + ": " + f.Verdict
		if f.Reason != "" {
			s += ", " + f.Reason
		}
	}
	if r := f.Rule; r != nil {
		if r.Num == 0 {
			s += fmt.Sprintf(", policy of %s in table %s", r.Chain, r.Table)
		} else {
			s += fmt.Sprintf(", rule %d of %s in table %s: %s", r.Num, r.Chain, r.Table, r.Text)
		}
	}
	return s
}

func ending(t *router.Trace) string {
	if t.Reason != "" {
		return t.Verdict + ": " + t.Reason
	}
	if len(t.Out) > 0 {
		return t.Verdict + " by " + t.Out[0].Iface
	}
	return t.Verdict
}
