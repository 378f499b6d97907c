package wire

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"sluice/bench/report"
)

// Plan is how much is measured.
type Plan struct {
	Options
	Rounds  int
	Time    time.Duration // of one measurement
	Metrics []string      // names as in report.Metrics, by their first part; empty: all
	Log     io.Writer     // progress

	NoRounds, NoSweeps bool // leave out the paths' rounds, or what varies rules and flows
}

func (p *Plan) wants(metric string) bool {
	if len(p.Metrics) == 0 {
		return true
	}
	for _, m := range p.Metrics {
		if m == metric {
			return true
		}
	}
	return false
}

// Run makes all paths and measures them in turn, adding so many rounds to the report.
// When ctx ends, what was made is taken away and what was measured stays in the report.
func Run(ctx context.Context, plan *Plan, rep *report.Report) error {
	l, err := newLab()
	if err != nil {
		return err
	}
	defer l.close()
	var ps []*Path
	for _, p := range paths(&plan.Options) {
		if err := p.open(l); err != nil {
			rep.Notes = append(rep.Notes, fmt.Sprintf("%s was left out: %v", p.Title, err))
			fmt.Fprintf(plan.Log, "%s: %v\n", p.Name, err)
			continue
		}
		p.pause()
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		return fmt.Errorf("no path could be made")
	}
	first := rep.Rounds()
	for round := range plan.Rounds {
		if !plan.NoSweeps && (len(plan.Metrics) == 0 || plan.wants("sweeps")) {
			if err := plan.sweep(ctx, ps, rep, first+round); err != nil {
				return err
			}
		}
		if plan.NoRounds {
			continue
		}
		for i := range ps {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p := ps[(i+round)%len(ps)]
			t := time.Now()
			p.goOn()
			err := plan.measure(p, rep, first+round)
			p.pause()
			if err != nil {
				rep.Notes = append(rep.Notes, fmt.Sprintf("%s, round %d: %v", p.Title, first+round+1, err))
				fmt.Fprintf(plan.Log, "%s: %v\n", p.Name, err)
			}
			fmt.Fprintf(plan.Log, "round %d, %s: %.1f s\n", first+round+1, p.Name, time.Since(t).Seconds())
		}
	}
	return nil
}

func (plan *Plan) measure(p *Path, rep *report.Report, round int) error {
	wants := func(metric string) bool {
		if len(p.metrics) > 0 && !slices.Contains(p.metrics, metric) {
			return false
		}
		return plan.wants(metric)
	}
	add := func(metric string, v float64) { rep.Add(p.Name, metric, 0, round, v) }
	if p.forget != nil {
		if err := p.forget(); err != nil {
			return err
		}
	}
	for name, load := range map[string]struct {
		flows int
		in    bool
	}{"tcp1": {flows: 1}, "tcp8": {flows: 8}, "tcp1in": {1, true}, "tcp8in": {8, true}} {
		if !wants(name) || load.in && len(p.metrics) == 0 {
			continue
		}
		b, err := p.iperf(load.flows, load.in, plan.Time)
		if err != nil {
			return err
		}
		add(name, b.gbit)
		add(name+".cpu", b.cpu.machine/(b.bytes/1e9))
		if p.pid != 0 {
			add(name+".router", b.cpu.router/(b.bytes/1e9))
		}
		add(name+".retrans", b.retrans)
	}
	wrong := 0.0
	udp := func(name string, u udpLoad) error {
		if !wants(name) {
			return nil
		}
		u.time = plan.Time
		r, err := p.blast(u)
		if err != nil {
			return err
		}
		wrong += float64(r.disorder + r.damaged)
		if u.rate == 0 {
			add(name, float64(r.got)/r.took)
		} else if r.got > 0 {
			add(name+".cpu", r.cpu.machine/float64(r.got)*1e6)
			if p.pid != 0 {
				add(name+".router", r.cpu.router/float64(r.got)*1e6)
			}
		}
		if u.window == 0 && r.sent > 0 {
			add(name+".loss", max(0, 100*(1-float64(r.got)/float64(r.sent))))
		}
		return nil
	}
	for _, u := range []struct {
		name string
		load udpLoad
	}{
		{"udp64", udpLoad{size: 64, flows: 1}},
		{"udp64w", udpLoad{size: 64, flows: 1, window: 256}},
		{"udp64x64", udpLoad{size: 64, flows: 64}},
		{"udp64r", udpLoad{size: 64, flows: 1, rate: 50000}},
		{"udp1400", udpLoad{size: 1400, flows: 1}},
	} {
		if err := udp(u.name, u.load); err != nil {
			return err
		}
	}
	if wants("udp64") {
		add("udp.disorder", wrong)
	}
	for name, f := range map[string]func(time.Duration) ([]float64, error){"ping": p.pings, "rr": p.requests} {
		if !wants(name) {
			continue
		}
		t, err := f(plan.Time)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		at := func(q float64) float64 { return t[min(len(t)-1, int(q/100*float64(len(t))))] }
		add(name, at(50))
		add(name+".p99", at(99))
		for _, q := range []float64{1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9} {
			rep.Add(p.Name, name+".dist", q, round, at(q))
		}
	}
	for name, send := range map[string]bool{"local.in": true, "local.out": false} {
		if !p.local || !wants(name) {
			continue
		}
		v, err := p.ours(plan.Time, send)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		add(name, v)
	}
	if wants("conn") {
		n, cpu, err := p.connections(plan.Time)
		if err != nil {
			return fmt.Errorf("connections: %w", err)
		}
		add("conn", n)
		if n > 0 {
			add("conn.cpu", cpu.machine/(n*plan.Time.Seconds())*1e6)
			if p.pid != 0 {
				add("conn.router", cpu.router/(n*plan.Time.Seconds())*1e6)
			}
		}
	}
	if p.append != nil && slices.Contains([]string{"linux", "sluice", "before"}, p.Name) && wants("rules") {
		if err := plan.changes(p, rep, round); err != nil {
			return fmt.Errorf("changing rules: %w", err)
		}
	}
	if p.start != nil && wants("start") {
		v, err := p.starts(9)
		if err != nil {
			return fmt.Errorf("start: %w", err)
		}
		add("start", v)
	}
	if slices.Contains(p.metrics, "memory") && plan.wants("memory") {
		most, private, err := peak(p.pid)
		if err != nil {
			return fmt.Errorf("memory: %w", err)
		}
		add("memory", most)
		add("memory.private", private)
	}
	return nil
}
