package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"sluice/internal/config"
	"sluice/internal/control"
	"sluice/internal/host"
	"sluice/internal/web"
	"sluice/router"
)

func (a *app) runCommand() *cobra.Command {
	d := &daemon{app: a}
	var level slog.Level
	var format string
	cmd := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run a router in the foreground",
		Long: `run is the router. It stays in the foreground, logs to standard error, and
prints "sluice: ready" to standard output when every interface is up and the
control socket answers. SIGINT and SIGTERM end it, SIGHUP lets it read its
configuration again.

The control socket is --socket, else $SLUICE_SOCKET, else [control] socket in
the configuration, else NAME.sock in the runtime directory: /run/sluice for
root, $XDG_RUNTIME_DIR/sluice for others. A router that has no --name is called
"sluice".`,
		Args: cobra.NoArgs,
	}
	configFlag(cmd, &d.file)
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "least `level` that is logged: debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "text", "`format` of the log: text or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		opts := &slog.HandlerOptions{Level: level}
		switch format {
		case "text":
			d.log = slog.New(slog.NewTextHandler(a.stderr, opts))
		case "json":
			d.log = slog.New(slog.NewJSONHandler(a.stderr, opts))
		default:
			return fmt.Errorf("no log format %q: text or json", format)
		}
		return nil
	}
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error { return d.run(ctx) })
	return cmd
}

// daemon is a running router with its socket.
type daemon struct {
	*app
	file   string
	log    *slog.Logger
	router *router.Router
	name   string
	socket string

	reloads sync.Mutex // one reload at a time
}

func (d *daemon) run(ctx context.Context) error {
	cfg, err := load(d.file, d.stderr) // which a signal ends, as it ends any other command
	if err != nil {
		return err
	}
	// Signals from here on are the router's: a SIGHUP must not end it while it starts.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends a router that does not end by the first
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	server, withdraw, err := d.listen(cfg)
	if err != nil {
		return err
	}
	defer withdraw()
	defer server.Close()
	var pages *web.Server
	if cfg.Control.HTTP != "" {
		if pages, err = web.Listen(&cfg.Control, d.log); err != nil {
			return fmt.Errorf("%s: %w", d.file, err)
		}
		defer pages.Close()
	}

	ready := make(chan struct{})
	d.router, err = router.New(cfg, router.Options{Log: d.log, Version: version, Ready: func() { close(ready) }})
	if err != nil {
		return err
	}
	defer d.router.Close()
	// After the devices are made, and before the first packet.
	if err := host.DropCapabilities(needs(cfg)...); err != nil {
		d.log.Warn("the router keeps capabilities that it does not need", "reason", err)
	}
	d.handlers(server)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := server.Serve(); err != nil {
			cancel(err) // a router that nobody can talk to ends
		}
	})
	if pages != nil {
		tasks.Go(func() {
			if err := pages.Serve(d.router); err != nil {
				cancel(err)
			}
		})
	}
	tasks.Go(func() { d.attend(ctx, ready, hup) })

	err = d.router.Run(ctx)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	cancel(nil)
	d.notify("STOPPING=1")
	d.log.Info("ending")
	server.Close()
	if pages != nil {
		pages.Close()
	}
	tasks.Wait()
	return err
}

// attend says when the router is ready, and reloads on SIGHUP.
func (d *daemon) attend(ctx context.Context, ready <-chan struct{}, hup <-chan os.Signal) {
	select {
	case <-ready:
	case <-ctx.Done():
		select {
		case <-ready: // and over already, as a router of short capture files may be
		default:
			return
		}
	}
	fmt.Fprintln(d.stdout, "sluice: ready")
	d.notify("READY=1\nSTATUS=routing")
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			d.reload(logWriter{d.log})
		}
	}
}

func (d *daemon) notify(state string) {
	if err := notify(state); err != nil {
		d.log.Warn("telling the service manager", "err", err)
	}
}

// listen makes the control socket.
func (d *daemon) listen(cfg *router.Config) (s *control.Server, withdraw func(), err error) {
	withdraw = func() {}
	d.name = d.target.name
	path := d.target.socket
	if path == "" {
		path = os.Getenv("SLUICE_SOCKET")
	}
	if path == "" {
		path = cfg.Control.Socket
	}
	elsewhere := path != ""
	if !elsewhere {
		if d.name == "" {
			d.name = control.DefaultName
		}
		if path, err = control.SocketPath(d.name); err != nil {
			return nil, withdraw, err
		}
	}
	s, err = control.Listen(path)
	if live := (*control.LiveError)(nil); errors.As(err, &live) && !elsewhere {
		return nil, withdraw, fmt.Errorf("%w; give this one another --name", err)
	} else if err != nil {
		return nil, withdraw, err
	}
	s.Log = d.log
	if d.socket, err = filepath.Abs(path); err != nil {
		d.socket = path
	}
	if elsewhere {
		if d.name == "" {
			d.name = strings.TrimSuffix(filepath.Base(path), ".sock")
		}
		// tools find routers in the runtime directory; without an entry there, --socket finds this one
		if withdraw, err = control.Announce(d.name, d.socket); err != nil {
			d.log.Warn("sluice ps will not list this router", "reason", err)
		}
	}
	return s, withdraw, nil
}

// reload reads the configuration again; what is wrong with it goes to w, and
// then nothing has changed.
func (d *daemon) reload(w io.Writer) bool {
	d.reloads.Lock()
	defer d.reloads.Unlock()
	d.notify(reloading())
	defer d.notify("READY=1")
	cfg, warnings, err := config.Read(d.file)
	for _, p := range warnings {
		fmt.Fprintf(w, "%s: warning: %s\n", p.Pos, p.Text)
	}
	if err == nil {
		err = d.router.Reload(cfg)
	}
	if err != nil {
		fmt.Fprintln(w, err)
		d.log.Error("reload refused; the router goes on as it was", "file", d.file)
		return false
	}
	d.log.Info("reloaded", "file", d.file)
	return true
}

// logWriter logs what is written to it, a line each.
type logWriter struct{ log *slog.Logger }

func (l logWriter) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		l.log.Error("reload: " + strings.TrimSuffix(line, "\n"))
	}
	return len(p), nil
}
