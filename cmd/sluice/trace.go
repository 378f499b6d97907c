package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"sluice/internal/control"
	"sluice/internal/play"
	"sluice/router"
)

type traceFlags struct {
	config, in string
	pcap       []string
	live       bool
	count      int64
	color      string
	style      play.Style
}

func (a *app) traceCommand() *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:   "trace {-c FILE [--in INTERFACE] [--pcap FILE] PACKET... | --live [MATCHES] [--count N]}",
		Short: "Show a packet's whole way, and why it goes it",
		Long: `trace shows each hook, table and chain that a packet meets, each rule with its
place and whether it matched, the connection and its state, the routing decision
and what it follows from, every change, and how it ends.

With -c the packets are made up: they go through a router of that configuration
in memory. That needs no privilege, and nothing is sent. Several packets go one
after the other, so that a connection builds up; --pcap plays a capture first.

With --live the packets are those of the running router that match: any matches
of an iptables rule. All others pass at full speed.

` + play.Syntax,
		Example: `  sluice trace -c edge.toml --in lan0 'tcp 10.0.1.2:4000 > 203.0.113.9:80 S'
  sluice trace -c edge.toml 'tcp 10.0.1.2:4000 > 203.0.113.9:80 S' reply reply
  sluice trace --live -p tcp --dport 80 --count 5`,
		DisableFlagParsing: true,
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.config, "config", "c", "", "configuration `file` of the router that packets are made up for")
	fs.StringVar(&f.in, "in", "", "`interface` that packets come in by, where they do not name one")
	fs.StringArrayVar(&f.pcap, "pcap", nil, "play a capture `file` (pcap or pcapng)")
	fs.BoolVar(&f.live, "live", false, "look at the running router")
	fs.Int64Var(&f.count, "count", 0, "with --live, end after `N` packets")
	fs.StringVar(&f.color, "color", "auto", "colours: auto, always or `never`")
	fs.BoolVar(&f.style.Matched, "matched", false, "leave out rules that do not match")
	fs.BoolVar(&f.style.JSON, "json", false, "print JSON, a line for each packet")
	fs.BoolVar(&f.style.Kernel, "kernel", false, "print the lines that Linux logs for TRACE")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rest, err := splitFlags(cmd, args)
		if errors.Is(err, pflag.ErrHelp) {
			return cmd.Help()
		} else if err != nil {
			return err
		}
		switch f.color {
		case "always":
			f.style.Color = true
		case "auto":
			f.style.Color = isTerminal(a.stdout)
		case "never":
		default:
			return fmt.Errorf("no colours %q: auto, always or never", f.color)
		}
		switch {
		case f.live && (f.config != "" || f.in != "" || len(f.pcap) > 0):
			return errors.New("--live looks at the running router: it goes without -c, --in and --pcap")
		case f.live:
			a.ran = true
			return a.ask(cmd.Context(), append([]string{"trace", strconv.FormatInt(f.count, 10), f.style.Flags()}, rest...)...)
		case f.config == "":
			return errors.New("whose rules? -c FILE for made up packets, --live for the running router")
		case len(rest) == 0 && len(f.pcap) == 0:
			return errors.New("which packet? For example: 'tcp 10.0.1.2:4000 > 203.0.113.9:80 S'")
		}
		for _, x := range rest {
			if strings.HasPrefix(x, "-") {
				return fmt.Errorf("unknown flag %s", x)
			}
		}
		return a.do(func(ctx context.Context, _ []string) error { return a.whatIf(&f, rest) })(cmd, nil)
	}
	return cmd
}

// whatIf traces made up packets.
func (a *app) whatIf(f *traceFlags, packets []string) error {
	cfg, err := load(f.config, a.stderr)
	if err != nil {
		return err
	}
	sim, err := router.NewSim(cfg, f.style.Kernel)
	if err != nil {
		return err
	}
	defer sim.Close()
	p := play.New(sim)
	p.In = f.in
	var failed error
	show := func(ts []*router.Trace) {
		for _, t := range ts {
			if err := f.style.Write(a.stdout, t); err != nil && failed == nil {
				failed = err
			}
		}
	}
	for _, file := range f.pcap {
		if err := p.Capture(file, f.in, show); err != nil {
			return err
		}
	}
	for _, item := range packets {
		ts, err := p.Play(item)
		if err != nil {
			return err
		}
		show(ts)
	}
	return failed
}

// liveTrace answers `sluice trace --live`: argv is trace, count, style, matches.
func (d *daemon) liveTrace(ctx context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
	if len(argv) < 3 {
		fmt.Fprintln(stderr, "sluice: trace: a request without count and style")
		return exitUsage
	}
	count, err := strconv.ParseInt(argv[1], 10, 64)
	if err != nil || count < 0 {
		fmt.Fprintf(stderr, "sluice: trace: --count %s: want a number from 0 up\n", argv[1])
		return exitUsage
	}
	style := play.ParseStyle(argv[2])
	v, err := d.router.Watch(router.WatchOptions{Match: argv[3:], Count: count, Log: style.Kernel})
	if err != nil {
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return exitUsage
	}
	defer v.Close()
	control.Patience(stdout, 20*time.Second)
	for {
		t := v.Next(ctx.Done())
		if t == nil {
			break
		}
		if style.Write(stdout, t) != nil {
			break
		}
	}
	if n := v.Lost(); n > 0 {
		fmt.Fprintf(stderr, "sluice: %d packets matched and were not recorded: they came faster than they were read\n", n)
	}
	return 0
}

// splitFlags reads a command's own flags wherever they stand, and gives the
// other arguments, in order; after -- nothing is its own.
func splitFlags(cmd *cobra.Command, args []string) (rest []string, err error) {
	fs := cmd.Flags()
	fs.AddFlagSet(cmd.InheritedFlags())
	find := func(arg string) *pflag.Flag {
		if name, ok := strings.CutPrefix(arg, "--"); ok {
			name, _, _ = strings.Cut(name, "=")
			return fs.Lookup(name)
		}
		if len(arg) >= 2 && arg[0] == '-' {
			return fs.ShorthandLookup(arg[1:2])
		}
		return nil
	}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(rest, args[i+1:]...), nil
		}
		if arg == "--help" || arg == "-h" {
			return nil, pflag.ErrHelp
		}
		f := find(arg)
		if f == nil {
			rest = append(rest, arg)
			continue
		}
		own := []string{arg}
		if f.NoOptDefVal == "" && !strings.Contains(arg, "=") && (len(arg) == 2 || arg[1] == '-') {
			if i++; i == len(args) {
				return nil, fmt.Errorf("flag needs an argument: %s", arg)
			}
			own = append(own, args[i])
		}
		if err := fs.Parse(own); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
