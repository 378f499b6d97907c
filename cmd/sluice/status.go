package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/router"
)

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the running router is doing",
		Long: `status shows the running router's interfaces with their counters, what was
dropped and why, its connections, tables and routes. --json prints all of it,
every rule with its counters too.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			argv := []string{"status"}
			if asJSON {
				argv = append(argv, "--json")
			}
			return a.ask(ctx, argv...)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printStatus is what people read.
func printStatus(w io.Writer, s *router.Status) error {
	fmt.Fprintf(w, "sluice %s, pid %d, up %s", s.Version, s.PID, time.Duration(s.Uptime*float64(time.Second)).Truncate(time.Second))
	if s.Reloads > 0 {
		fmt.Fprintf(w, ", reloaded %s", plural(s.Reloads, "time"))
	}
	fmt.Fprintf(w, "\nconfiguration %s\n", cmp.Or(s.Config, "none"))
	fmt.Fprintf(w, "forwarded %d, delivered %d, sent %d packets; %d ICMP errors sent, %d held back\n",
		s.Forwarded, s.Delivered, s.Sent, s.ICMPErrors, s.ICMPHeld)
	fmt.Fprintf(w, "connections %d of at most %d\n", s.Conntrack.Count, s.Conntrack.Max)

	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	section := func(head string) { fmt.Fprintf(t, "\n%s\n", head) }
	section("INTERFACE\tTYPE\tSTATE\tMTU\tRX PACKETS\tRX BYTES\tTX PACKETS\tTX BYTES\tTX ERRORS\tADDRESSES")
	for _, i := range s.Interfaces {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n",
			i.Name, i.Type, i.State, i.MTU, i.RxPackets, i.RxBytes, i.TxPackets, i.TxBytes, i.TxErrors, cmp.Or(strings.Join(i.Addresses, " "), "-"))
	}
	t.Flush()

	section("WORKER\tPACKETS\tBURSTS")
	for _, k := range s.Workers {
		fmt.Fprintf(t, "%d\t%d\t%d\n", k.ID, k.Packets, k.Bursts)
	}
	t.Flush()

	if len(s.Drops) > 0 {
		section("DROPPED\tREASON\tMEANING")
		for _, d := range s.Drops {
			fmt.Fprintf(t, "%d\t%s\t%s\n", d.Packets, d.Reason, d.Doc)
		}
		t.Flush()
	}

	section("FAMILY\tTABLE\tCHAIN\tPOLICY\tPACKETS\tBYTES\tRULES")
	for _, tab := range s.Tables {
		for _, c := range tab.Chains {
			if plain(&tab) {
				continue
			}
			if c.Policy == "" {
				fmt.Fprintf(t, "%s\t%s\t%s\t-\t-\t-\t%d\n", tab.Family, tab.Name, c.Name, len(c.Rules))
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\n", tab.Family, tab.Name, c.Name, c.Policy, c.Packets, c.Bytes, len(c.Rules))
		}
	}
	if len(s.IdleTimers) > 0 {
		section("IDLE TIMER\tSECONDS LEFT")
		for _, i := range s.IdleTimers {
			fmt.Fprintf(t, "%s\t%d\n", i.Label, i.Seconds)
		}
	}
	if p := s.Synproxy; p != nil {
		section("SYNPROXY\tSYN RECEIVED\tCOOKIE VALID\tINVALID\tRETRANS\tREOPENED")
		fmt.Fprintf(t, "\t%d\t%d\t%d\t%d\t%d\n", p.SYNReceived, p.CookieValid, p.CookieInvalid, p.CookieRetrans, p.ConnReopened)
	}
	if s.LogLost > 0 {
		fmt.Fprintf(t, "\n%d LOG lines were lost: they came faster than the log took them\n", s.LogLost)
	}
	return t.Flush()
}

// plain: nobody has changed the table.
func plain(t *router.TableStatus) bool {
	for _, c := range t.Chains {
		if c.Policy != "ACCEPT" || len(c.Rules) > 0 {
			return false
		}
	}
	return true
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
