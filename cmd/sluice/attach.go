package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sluice/internal/confine"
	"sluice/internal/host"
	"sluice/netstack"
	"sluice/router"
)

func (a *app) attachCommand() *cobra.Command {
	o := &execOptions{}
	var netns, userns string
	cmd := &cobra.Command{
		Use:   "attach [FLAGS] {PID | --netns PATH [--userns PATH]}",
		Short: "Give a running container's network namespace a router",
		Long: `attach makes the device exec0 in the network namespace of a process, or in the
one that --netns names, and is its router until the process ends or a signal
ends attach. It enters the user namespace that the network namespace belongs to,
so the user who made that may do it, without root. It prints "sluice: ready" when
packets flow. The flags are those of exec. What is in there keeps its own
/etc/resolv.conf; the router answers for names at the third address of the network
inside, such as 10.0.2.3.`,
		Args: cobra.MaximumNArgs(1),
	}
	o.flags(cmd.Flags())
	cmd.Flags().StringVar(&netns, "netns", "", "`path` of a network namespace, instead of a process")
	cmd.Flags().StringVar(&userns, "userns", "", "`path` of the user namespace that it belongs to (default: ours)")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		j := confine.Join{NetNS: netns, UserNS: userns}
		pid := 0
		switch {
		case len(args) == 1 && netns == "" && userns == "":
			var err error
			if pid, err = strconv.Atoi(args[0]); err != nil || pid <= 0 {
				return a.failAttach(fmt.Errorf("attach: %q is no process number", args[0]))
			}
			j = confine.OfProcess(pid)
		case len(args) == 0 && netns != "":
		default:
			return a.failAttach(errors.New("attach: either a process number or --netns is wanted"))
		}
		if o.printRules {
			plan, err := o.plan(a)
			if err != nil {
				return a.failAttach(err)
			}
			return plan.printRules(a.stdout)
		}
		if err := a.attach(ctx, o, &j, pid); err != nil {
			return a.failAttach(err)
		}
		return nil
	})
	return cmd
}

func (a *app) failAttach(err error) error {
	fmt.Fprintf(a.stderr, "sluice: %v\n", err)
	return exitStatus(exitExec)
}

// attach is the router until ctx, a signal or process pid (0: none) ends.
func (a *app) attach(ctx context.Context, o *execOptions, j *confine.Join, pid int) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if pid != 0 {
		ended, err := processEnd(pid)
		if err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() {
			<-ended
			cancel()
		}()
	}
	plan, err := o.plan(a)
	if err != nil {
		return err
	}
	j.Device = plan.device
	d := &daemon{app: a, log: o.logger(a.stderr)}
	if d.target.name == "" {
		d.target.name = "attach-" + strconv.Itoa(unix.Getpid())
	}
	server, withdraw, err := d.listen(plan.cfg)
	if err != nil {
		return err
	}
	defer withdraw()
	defer server.Close()
	server.Outside = true
	ready := make(chan struct{})
	d.router, err = router.New(plan.cfg, router.Options{Log: d.log, Version: version, Ready: func() { close(ready) }, Open: func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
		if c.Name != execIface {
			return nil, nil
		}
		dev, err := j.Open()
		if err != nil {
			return nil, err
		}
		return a.adopt(dev, c, index)
	}})
	if err != nil {
		return err
	}
	defer d.router.Close()
	if err := host.DropCapabilities(); err != nil {
		d.log.Warn("the router keeps capabilities that it does not need", "reason", err)
	}
	d.handlers(server)
	ended := make(chan error, 2)
	go func() { ended <- server.Serve() }()
	go func() { ended <- d.router.Run(ctx) }()
	<-ready
	err = plan.lookUp(ctx, d.router)
	if err == nil {
		fmt.Fprintln(a.stdout, "sluice: ready")
		<-ctx.Done()
	}
	stop()
	server.Close()
	if err == nil {
		<-ended
		<-ended
		err = o.tell(a, d.router)
	}
	return err
}

// processEnd is closed when a process has ended.
func processEnd(pid int) (<-chan struct{}, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return done, nil
}
