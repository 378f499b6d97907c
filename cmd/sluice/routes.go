package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"sluice/netstack"
	"sluice/packet"
	"sluice/router"
)

// report is what `sluice status --json` prints.
type report struct {
	*router.Status
	Rules  []ruleLine  `json:"routing_rules"`
	Routes []routeLine `json:"routes"`
}

// ruleLine is one policy routing rule.
type ruleLine struct {
	Family   int    `json:"family"`
	Priority uint32 `json:"priority"`
	Text     string `json:"rule"` // as `ip rule` has it
}

// routeLine is one route; those to the router's own addresses are left out.
type routeLine struct {
	Table  uint32 `json:"table"`
	Type   string `json:"type"`
	To     string `json:"to"`
	Via    string `json:"via,omitempty"`
	Dev    string `json:"dev,omitempty"`
	Src    string `json:"src,omitempty"`
	Metric uint32 `json:"metric"`
}

func routing(s *netstack.Snapshot) (rules []ruleLine, routes []routeLine) {
	tables := s.Tables()
	slices.Sort(tables)
	for _, family := range []uint8{packet.IPv4, packet.IPv6} {
		for _, r := range s.Rules(family) {
			rules = append(rules, ruleLine{int(family), r.Priority, ruleText(&r)})
		}
		for _, table := range tables {
			if table == netstack.TableLocal {
				continue
			}
			s.Routes(table, family, func(e netstack.Entry) bool {
				line := routeLine{Table: table, Type: e.Type.String(), To: e.To.String(), Metric: e.Metric}
				if e.Gateway {
					line.Via = netstack.Addr(family, e.NextHop).String()
				}
				if e.Dev != nil {
					line.Dev = e.Dev.Name
				}
				if e.PrefSrc != [16]byte{} {
					line.Src = netstack.Addr(family, e.PrefSrc).String()
				}
				routes = append(routes, line)
				return true
			})
		}
	}
	return rules, routes
}

func ruleText(r *netstack.Rule) string {
	var b strings.Builder
	if r.Not {
		b.WriteString("not ")
	}
	b.WriteString("from " + prefixText(r.From.IsValid(), r.From.String()))
	if r.To.IsValid() {
		b.WriteString(" to " + r.To.String())
	}
	if r.Mark != 0 || r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x", r.Mark)
		if r.Mask != 0 && r.Mask != 1<<32-1 {
			fmt.Fprintf(&b, "/%#x", r.Mask)
		}
	}
	if r.IIF != "" {
		b.WriteString(" iif " + r.IIF)
	}
	if r.OIF != "" {
		b.WriteString(" oif " + r.OIF)
	}
	if r.Action > netstack.RouteUnicast {
		b.WriteString(" " + r.Action.String())
	} else {
		b.WriteString(" lookup " + tableName(r.Table))
	}
	return b.String()
}

func prefixText(valid bool, s string) string {
	if !valid {
		return "all"
	}
	return s
}

func tableName(t uint32) string {
	switch t {
	case netstack.TableMain:
		return "main"
	case netstack.TableLocal:
		return "local"
	case netstack.TableDefault:
		return "default"
	}
	return strconv.FormatUint(uint64(t), 10)
}

// maxShown bounds the routes that people are shown; --json has all.
const maxShown = 100

func printRouting(w io.Writer, rules []ruleLine, routes []routeLine) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nTABLE\tTO\tVIA\tDEV\tMETRIC\tTYPE")
	for i, r := range routes {
		if i == maxShown {
			fmt.Fprintf(t, "… and %s more\n", plural(len(routes)-maxShown, "route"))
			break
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", tableName(r.Table), r.To, cmp.Or(r.Via, "-"), cmp.Or(r.Dev, "-"), r.Metric, r.Type)
	}
	t.Flush()
	fmt.Fprintln(t, "\nFAMILY\tPRIORITY\tRULE")
	for _, r := range rules {
		fmt.Fprintf(t, "ipv%d\t%d\t%s\n", r.Family, r.Priority, r.Text)
	}
	return t.Flush()
}
