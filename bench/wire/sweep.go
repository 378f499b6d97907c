package wire

import (
	"context"
	"fmt"
	"time"

	"sluice/bench/report"
)

// sweep measures what rules and flows cost: CPU of the whole machine per
// delivered datagram, at a rate that all can carry.
func (plan *Plan) sweep(ctx context.Context, ps []*Path, rep *report.Report, round int) error {
	for _, p := range ps {
		switch p.Name {
		case "linux", "linux-nft", "bare", "sluice":
		default:
			continue
		}
		p.goOn()
		err := plan.sweepOne(ctx, p, rep, round)
		p.pause()
		if err != nil {
			return err
		}
		fmt.Fprintf(plan.Log, "round %d, %s: by rules and flows\n", round+1, p.Name)
	}
	return nil
}

func (plan *Plan) sweepOne(ctx context.Context, p *Path, rep *report.Report, round int) error {
	for _, n := range []int{10, 100, 1000, 10000} {
		if p.rules == nil {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.rules(Ruleset(n, false)); err != nil {
			return fmt.Errorf("%s, %d rules: %w", p.Name, n, err)
		}
		r, err := p.blast(udpLoad{size: 64, flows: 1, rate: 20000, time: max(plan.Time/2, 500*time.Millisecond)})
		if err != nil {
			return err
		}
		if r.got > 0 {
			rep.Add(p.Name, "rules.cpu", float64(n), round, r.cpu.machine/float64(r.got)*1e6)
		}
	}
	if p.rules != nil {
		if err := p.rules(Ruleset(20, true)); err != nil {
			return err
		}
	}
	for _, n := range []int{1, 16, 256, 4096, 32768} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.forget != nil {
			if err := p.forget(); err != nil {
				return err
			}
		}
		// Once through all flows, so that they exist.
		if _, err := p.blast(udpLoad{size: 64, flows: n, rate: 40000, time: time.Duration(n) * 25 * time.Microsecond}); err != nil {
			return err
		}
		r, err := p.blast(udpLoad{size: 64, flows: n, time: max(plan.Time/2, 500*time.Millisecond)})
		if err != nil {
			return err
		}
		rep.Add(p.Name, "flows.pps", float64(n), round, float64(r.got)/r.took)
	}
	return nil
}
