package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sluice/conntrack"
	"sluice/internal/top"
	"sluice/packet"
	"sluice/tables"
)

// topConnections bounds the connections of one sample.
const topConnections = 500

func (a *app) topCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	var views []string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the running router in the terminal",
		Long: `top shows interfaces, hooks, the busiest connections and rules, and drops by
reason, with their rates. Keys: tab or 1 to 5 for the view, s and S for the column
to sort by, r to reverse, / to filter, space to pause, q to quit.

Connections have counters while net.netfilter.nf_conntrack_acct is 1. --once prints
all views as text, with the rates over one interval.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < 100*time.Millisecond {
				return errors.New("--interval: at least 100ms")
			}
			for _, v := range views {
				if !slices.Contains(top.Views, v) {
					return fmt.Errorf("no view %q: %s", v, strings.Join(top.Views, ", "))
				}
			}
			if !once && !isTerminal(a.stdout) {
				return errors.New("top needs a terminal; --once prints text")
			}
			a.ran = true
			source := func() (*top.Sample, error) {
				var out, errs bytes.Buffer
				ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
				defer cancel()
				status, err := a.call(ctx, []string{"top"}, nil, &out, &errs)
				if err != nil {
					return nil, err
				}
				if status != 0 {
					return nil, fmt.Errorf("%s", bytes.TrimSpace(errs.Bytes()))
				}
				s := &top.Sample{}
				return s, json.Unmarshal(out.Bytes(), s)
			}
			if !once {
				return top.New(source, interval).Run(a.stdin, a.stdout)
			}
			was, err := source()
			if err != nil {
				return err
			}
			select {
			case <-time.After(interval):
			case <-cmd.Context().Done():
				return cmd.Context().Err()
			}
			now, err := source()
			if err != nil {
				return err
			}
			return top.Once(a.stdout, now, was, views)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print text and end")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "`time` between two looks")
	cmd.Flags().StringSliceVar(&views, "view", nil, "with --once, only these `views`")
	return cmd
}

// topSample answers `sluice top`.
func (d *daemon) topSample(_ context.Context, _ []string, _ io.Reader, stdout, stderr io.Writer) int {
	return told(stderr, json.NewEncoder(stdout).Encode(top.Sample{At: time.Now(), Status: *d.router.Status(), Connections: busiest(d.router.Conntrack(), topConnections)}))
}

// busiest are the connections with the most bytes, or packets, or time left.
func busiest(t *conntrack.Table, most int) []top.Connection {
	var all []top.Connection
	less := func(a, b top.Connection) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(b.Packets, a.Packets), cmp.Compare(b.Timeout, a.Timeout))
	}
	t.Each(func(s *conntrack.Snapshot) bool {
		c := top.Connection{Proto: tables.ProtocolName(s.Orig.Proto), State: s.Name(), Timeout: s.Timeout,
			Packets: s.Packets[0] + s.Packets[1], Bytes: s.Bytes[0] + s.Bytes[1]}
		if c.Proto == "" {
			c.Proto = fmt.Sprint(s.Orig.Proto)
		}
		c.From, c.To = endOf(&s.Orig, false), endOf(&s.Orig, true)
		if from, to := endOf(&s.Reply, true), endOf(&s.Reply, false); !icmp(&s.Orig) && (from != c.From || to != c.To) {
			c.NAT = from + " > " + to
		}
		all = append(all, c)
		if len(all) >= 4*most { // keep the best so far
			slices.SortFunc(all, less)
			all = all[:most]
		}
		return true
	})
	slices.SortFunc(all, less)
	return all[:min(len(all), most)]
}

func icmp(u *conntrack.Tuple) bool {
	return u.Proto == packet.ProtoICMP || u.Proto == packet.ProtoICMPv6
}

// endOf is one end of a tuple.
func endOf(u *conntrack.Tuple, dst bool) string {
	a, port := u.SrcAddr(), u.SrcPort
	if dst {
		a, port = u.DstAddr(), u.DstPort
	}
	switch u.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		return netip.AddrPortFrom(a, port).String()
	}
	return a.String()
}
