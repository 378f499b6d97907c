package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"sluice/internal/confine"
	"sluice/internal/host"
	"sluice/netstack"
	"sluice/router"
)

// Exit statuses of exec when the command's own cannot be had, as env(1) has them.
const exitExec = 125 // exec itself failed; 126 and 127: the command cannot be run, or is not there

const (
	execIface   = "exec0"   // the command's side
	uplinkIface = "uplink0" // the host's sockets
	execMTU     = 65520     // bytes; on both
	maxWorkers  = 4         // one command seldom keeps more busy
)

// execOptions are exec's flags.
type execOptions struct {
	rules, rules6 []string
	config        string
	publish       []string
	allow         []string
	strict        bool
	learn         string
	log           bool
	quiet         bool
	report        string
	printRules    bool
	hide          []string
	showRuntime   bool
	killChildren  bool
	device        string
	cidr          string
}

func (a *app) execCommand() *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use:   "exec [FLAGS] [--] COMMAND [ARGUMENT]...",
		Short: "Run a command behind a router of its own, without root",
		Long: `exec runs a command in namespaces of its own, as the user that it is started
by, without capabilities, and with a router as its only way to any network. The
router is an ordinary process outside, and takes every packet through the rules:
the command is behind the interface exec0, whose packets pass FORWARD.

Standard streams, signals, terminal, working directory and environment are the
command's. The exit status is the command's; 125 if exec itself fails, 126 if the
command cannot be run, 127 if it is not there. The router lives until the last
process inside has ended.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.printRules {
				return a.do(func(context.Context, []string) error {
					plan, err := o.plan(a)
					if err != nil {
						return err
					}
					return plan.printRules(a.stdout)
				})(cmd, args)
			}
			if len(args) == 0 {
				return a.execUsage(errors.New("exec: a command is missing"))
			}
			return a.do(func(ctx context.Context, args []string) error { return a.exec(o, args) })(cmd, args)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return a.execUsage(err) })
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.flags(f)
	f.StringArrayVar(&o.hide, "hide", nil, "`path` that is empty inside; may be given more than once")
	f.BoolVar(&o.showRuntime, "show-runtime-dir", false, "leave $XDG_RUNTIME_DIR visible inside, but for sluice's own sockets")
	f.BoolVar(&o.killChildren, "kill-children", false, "end what the command leaves behind when it ends")
	return cmd
}

// flags are those of exec that attach has, too.
func (o *execOptions) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.rules, "rules", nil, "IPv4 rules: a `file` in iptables-save's format; may be given more than once. Without --rules6 there is no IPv6 inside then")
	f.StringArrayVar(&o.rules6, "rules6", nil, "IPv6 rules: a `file` in ip6tables-save's format; may be given more than once. Without --rules there is no IPv4 inside then")
	f.StringVarP(&o.config, "config", "c", "", "configuration `file`, to which exec adds its interfaces")
	f.StringArrayVar(&o.allow, "allow", nil, "`destination` that may be reached, and no other: DOMAIN[:PORT], *.DOMAIN[:PORT], an address or a network; may be given more than once")
	f.BoolVar(&o.strict, "strict", false, "with --allow: look at the server's name that clients send to ports 443 (TLS) and 80 (HTTP), too, and refuse UDP there")
	f.StringVar(&o.learn, "learn", "", "write the --allow flags for what was used to a `file`, one a line, at the end")
	f.StringVar(&o.report, "report", "", "write what was allowed and what denied to a `file`, as JSON")
	f.BoolVar(&o.log, "log", false, "log each new connection")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "say nothing of what is denied, and print no summary")
	f.BoolVar(&o.printRules, "print-rules", false, "print the router's configuration, sets and rules, and run nothing")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "host `port` that reaches inside: [ADDR:]HPORT:PORT[/udp]; may be given more than once")
	f.StringVar(&o.device, "device", confine.DeviceAuto, "network `device` inside: tun, veth, or auto: tun where it can be had")
	f.StringVar(&o.cidr, "cidr", "", "IPv4 `network` inside (default: the first of 10.0.2.0/24, 10.0.3.0/24… that the host is not in)")
}

// execUsage says what is wrong with exec's arguments.
func (a *app) execUsage(err error) error {
	fmt.Fprintf(a.stderr, "sluice: %v\nTry \"sluice exec --help\".\n", err)
	return exitStatus(exitExec)
}

// exec does the whole; its errors are those of before the command starts.
func (a *app) exec(o *execOptions, command []string) error {
	status, err := a.execute(o, command)
	if err != nil {
		fmt.Fprintf(a.stderr, "sluice: %v\n", err)
		return exitStatus(exitExec)
	}
	if status == 0 {
		return nil
	}
	return exitStatus(status)
}

func (a *app) execute(o *execOptions, command []string) (status int, err error) {
	plan, err := o.plan(a)
	if err != nil {
		return 0, err
	}
	d := &daemon{app: a, log: o.logger(a.stderr)}
	if d.target.name == "" {
		d.target.name = fmt.Sprintf("exec-%d", os.Getpid())
	}
	server, withdraw, err := d.listen(plan.cfg)
	if err != nil {
		return 0, err
	}
	defer withdraw()
	defer server.Close()
	server.Outside = true

	hide, err := o.hidden()
	if err != nil {
		return 0, err
	}
	p, err := confine.Start(&confine.Config{
		Command: command, Device: plan.device, ResolvConf: plan.resolvConf(),
		Hide: o.hide, HideIfThere: hide, KillChildren: o.killChildren, Remove: d.socket,
	})
	if err != nil {
		return 0, err
	}
	started := false
	defer func() {
		if !started {
			p.Kill()
		}
	}()
	ready := make(chan struct{})
	d.router, err = router.New(plan.cfg, router.Options{Log: d.log, Version: version, Ready: func() { close(ready) }, Open: func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
		if c.Name != execIface {
			return nil, nil
		}
		dev, err := p.Device()
		if err != nil {
			return nil, err
		}
		return a.adopt(dev, c, index)
	}})
	if err != nil {
		return 0, err
	}
	defer d.router.Close()
	if err := p.Ready(); err != nil {
		return 0, err
	}
	if err := host.Renounce(); err != nil {
		d.log.Warn("the router keeps capabilities that it does not need", "reason", err)
	}
	d.handlers(server)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 2)
	go func() { ended <- server.Serve() }()
	go func() { ended <- d.router.Run(ctx) }()
	<-ready
	if err := plan.lookUp(ctx, d.router); err != nil {
		return 0, err
	}

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	if err := p.Go(); err != nil {
		return 0, err
	}
	started = true
	go func() {
		for s := range signals {
			p.Signal(s.(syscall.Signal))
		}
	}()
	exit, err := p.Wait()
	server.Close()
	cancel()
	<-ended
	<-ended
	if err := o.tell(a, d.router); err != nil {
		return 0, err
	}
	if err != nil {
		return 0, err
	}
	if exit.Failed {
		fmt.Fprintf(a.stderr, "sluice: %s\n", exit.Text)
		return exit.Code, nil
	}
	if exit.Status.Signaled() {
		d.router.Close()
		withdraw()
		return dieBy(exit.Status.Signal()), nil
	}
	return exit.Status.ExitStatus(), nil
}

func (o *execOptions) logger(w io.Writer) *slog.Logger {
	switch {
	case o.log:
		return newPlainLog(w, slog.LevelInfo)
	case o.quiet:
		return newPlainLog(w, slog.LevelError)
	}
	return newPlainLog(w, slog.LevelWarn)
}

// tell says what the command reached and what it was denied.
func (o *execOptions) tell(a *app, r *router.Router) error {
	s, ok := r.Summary()
	if !ok {
		return nil
	}
	if len(o.allow) > 0 && !o.quiet {
		printSummary(a.stderr, &s)
	}
	if o.learn != "" {
		if err := os.WriteFile(o.learn, []byte(learned(&s)), 0o666); err != nil {
			return err
		}
	}
	if o.report == "" {
		return nil
	}
	f, err := os.Create(o.report)
	if err != nil {
		return err
	}
	return errors.Join(writeJSON(f, s), f.Close())
}

// passedOn are the signals that the command gets when we get them; those of the
// terminal go to it anyway.
var passedOn = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE, unix.SIGWINCH, unix.SIGVTALRM, unix.SIGPROF, unix.SIGIO, unix.SIGPWR,
}

// dieBy ends the process by the signal that ended the command. It returns an
// exit status where that does not end it, as in an init.
func dieBy(sig syscall.Signal) int {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	signal.Reset(sig)
	unix.Tgkill(os.Getpid(), unix.Gettid(), sig)
	return 128 + int(sig)
}

// adopt makes the command's device a link of the router.
func (a *app) adopt(dev *confine.Opened, c *router.InterfaceConfig, index int) (netstack.Link, error) {
	if dev.Instead != "" {
		fmt.Fprintf(a.stderr, "sluice: %s: using a veth pair and packet sockets instead of a TUN device\n", dev.Instead)
	}
	if dev.Kind == confine.DeviceVeth {
		return netstack.AdoptPacket(netstack.PacketConfig{Name: c.Name, Index: index, MTU: c.MTU, Addresses: c.Addresses}, dev.MAC, dev.Queues)
	}
	return netstack.AdoptTUN(netstack.TUNConfig{Name: c.Name, Index: index, MTU: c.MTU, Offload: true}, dev.Queues)
}
