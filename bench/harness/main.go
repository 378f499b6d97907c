// Command harness measures sluice beside others, end to end and in memory, and
// writes the report. `make bench` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sluice/bench/memory"
	"sluice/bench/report"
	"sluice/bench/wire"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "peer" {
		fail(wire.Peer(os.Args[2:]))
		return
	}
	fail(run())
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var (
		sluice  = flag.String("sluice", "./sluice", "the binary to measure")
		before  = flag.String("before", "", "another sluice binary, measured beside as the path \"before\"")
		rounds  = flag.Int("rounds", 5, "rounds")
		each    = flag.Duration("time", 3*time.Second, "time of one measurement")
		short   = flag.Bool("short", false, "few paths and short measurements: less than five minutes")
		paths   = flag.String("paths", "", "only these paths, separated by commas; \"rootless\" stands for all that need no privilege")
		metrics = flag.String("metrics", "", "only these metrics, separated by commas: tcp1 tcp8 udp64 udp64w udp64x64 udp64r udp1400 ping rr conn start memory")
		base    = flag.String("base", "", "an earlier JSON file to compare with")
		add     = flag.String("add", "", "a JSON file of this machine to add the rounds to")
		out     = flag.String("o", "bench-report", "write FILE.json and FILE.html")
		skip    = flag.String("skip", "", "leave out a part: wire, sweeps or memory; several separated by commas")
		huge    = flag.Bool("huge", false, "in memory, also the cases that take gigabytes")
		md      = flag.String("md", "", "also write the main tables as Markdown to this file")
		docs    = flag.Bool("docs", false, "also write docs/bench/report.json and .html, and the tables in README.md and docs/performance.md anew")
		show    = flag.String("show", "", "measure nothing, show this JSON file")
	)
	flag.Parse()
	var earlier *report.Report
	var err error
	if *base != "" {
		if earlier, err = report.Load(*base); err != nil {
			return err
		}
	}
	rep := &report.Report{Version: report.Version}
	switch {
	case *show != "":
		if rep, err = report.Load(*show); err != nil {
			return err
		}
	case *add != "":
		if rep, err = report.Load(*add); err != nil {
			return err
		}
	}
	if *show == "" {
		rep.Machine, rep.When, rep.Commit = report.ThisMachine(), time.Now(), commit()
		plan := &wire.Plan{Rounds: *rounds, Time: *each, Log: os.Stderr}
		plan.Metrics, plan.Paths = list(*metrics), list(*paths)
		if i := slices.Index(plan.Paths, "rootless"); i >= 0 {
			plan.Paths = slices.Replace(plan.Paths, i, i+1, wire.Rootless...)
		}
		if *short {
			plan.Rounds, plan.Time = min(plan.Rounds, 3), time.Second
			if len(plan.Paths) == 0 {
				plan.Paths = []string{"linux", "linux-10000", "bare", "sluice", "sluice-10000"}
			}
		}
		if plan.Sluice, err = filepath.Abs(*sluice); err != nil {
			return err
		}
		if _, err := os.Stat(plan.Sluice); err != nil {
			return fmt.Errorf("%w; build it first: make build", err)
		}
		if plan.Self, err = os.Executable(); err != nil {
			return err
		}
		if *before != "" {
			if plan.Before, err = filepath.Abs(*before); err != nil {
				return err
			}
		}
		if os.Geteuid() != 0 {
			return fmt.Errorf("the paths end to end take root (network namespaces, TUN devices); `sluice bench` measures in memory without")
		}
		peers, err := os.MkdirTemp("", "sluice-peer")
		if err != nil {
			return err
		}
		defer os.RemoveAll(peers)
		for _, p := range []struct {
			name, what string
			bin        *string
		}{{"wgcopy", "wireguard-go's tun package", &plan.WG}, {"gvtap", "gvisor-tap-vsock", &plan.GVTap}} {
			if *p.bin, err = buildPeer(peers, p.name); err != nil {
				rep.Notes = append(rep.Notes, fmt.Sprintf("%s was left out: %v", p.what, err))
			}
		}
		ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
		defer cancel()
		left := list(*skip)
		plan.NoRounds, plan.NoSweeps = slices.Contains(left, "wire"), slices.Contains(left, "sweeps")
		if !plan.NoRounds || !plan.NoSweeps {
			if err := wire.Run(ctx, plan, rep); err != nil {
				return err
			}
		}
		if !slices.Contains(left, "memory") {
			flows := 1_000_000
			if *short {
				flows = 100_000
			}
			if *huge {
				flows = 0
			}
			m := &memory.Plan{Flows: flows, Rounds: plan.Rounds, Time: plan.Time / 5, Huge: *huge, Log: os.Stderr}
			if err := memory.Measure(ctx, m, rep); err != nil {
				return err
			}
		}
		if err := rep.Save(*out + ".json"); err != nil {
			return err
		}
	}
	rep.Text(os.Stdout, earlier)
	if *md != "" {
		f, err := os.Create(*md)
		if err != nil {
			return err
		}
		rep.Markdown(f)
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := page(rep, earlier, *out+".html"); err != nil || !*docs {
		return err
	}
	return document(rep)
}

func page(rep, earlier *report.Report, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(rep.HTML(f, earlier), f.Close())
}

// document puts a report into the repository's documents.
func document(rep *report.Report) error {
	if err := rep.Save("docs/bench/report.json"); err != nil {
		return err
	}
	if err := page(rep, nil, "docs/bench/report.html"); err != nil {
		return err
	}
	for _, path := range []string{"README.md", "docs/performance.md"} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text, err := rep.Fill(string(b))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// buildPeer builds one of the peers that have a module of their own.
func buildPeer(dir, name string) (string, error) {
	bin := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-o", bin, "./"+name)
	c.Dir = "bench/peers"
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return bin, nil
}

func commit() string {
	out, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	return strings.TrimSpace(string(out))
}
