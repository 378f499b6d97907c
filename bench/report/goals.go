package report

import (
	"fmt"
	"math"
	"strings"
)

// Metric is something that is measured.
type Metric struct {
	Name, Title, Unit string
	Less              bool // less is better
	Digits            int
}

// Metrics of the paths, in the order of the tables.
var Metrics = []Metric{
	{"tcp1", "TCP, 1 flow", "Gbit/s", false, 2},
	{"tcp1.cpu", "CPU per gigabyte, 1 flow, machine", "s", true, 2},
	{"tcp1.router", "CPU per gigabyte, 1 flow, router", "s", true, 2},
	{"tcp1.retrans", "segments sent again, 1 flow", "", true, 0},
	{"tcp8", "TCP, 8 flows", "Gbit/s", false, 2},
	{"tcp8.cpu", "CPU per gigabyte, 8 flows, machine", "s", true, 2},
	{"tcp8.router", "CPU per gigabyte, 8 flows, router", "s", true, 2},
	{"tcp8.retrans", "segments sent again, 8 flows", "", true, 0},
	{"tcp1in", "TCP inwards, 1 flow", "Gbit/s", false, 2},
	{"tcp1in.cpu", "CPU per gigabyte inwards, 1 flow, machine", "s", true, 2},
	{"tcp1in.router", "CPU per gigabyte inwards, 1 flow, router", "s", true, 2},
	{"tcp1in.retrans", "segments sent again inwards, 1 flow", "", true, 0},
	{"tcp8in", "TCP inwards, 8 flows", "Gbit/s", false, 2},
	{"tcp8in.cpu", "CPU per gigabyte inwards, 8 flows, machine", "s", true, 2},
	{"tcp8in.router", "CPU per gigabyte inwards, 8 flows, router", "s", true, 2},
	{"tcp8in.retrans", "segments sent again inwards, 8 flows", "", true, 0},
	{"udp64", "UDP, 64 bytes, full blast, delivered", "packets/s", false, 0},
	{"udp64.loss", "lost of it", "%", true, 1},
	{"udp64w", "UDP, 64 bytes, 256 under way", "packets/s", false, 0},
	{"udp64x64", "UDP, 64 bytes, full blast, 64 flows", "packets/s", false, 0},
	{"udp64r.cpu", "CPU per packet at 50,000/s, machine", "µs", true, 1},
	{"udp64r.router", "CPU per packet at 50,000/s, router", "µs", true, 1},
	{"udp64r.loss", "lost of it", "%", true, 2},
	{"udp1400", "UDP, 1,400 bytes, 1 flow, delivered", "packets/s", false, 0},
	{"udp1400.loss", "lost of it", "%", true, 1},
	{"udp.disorder", "datagrams out of order or damaged", "", true, 0},
	{"ping", "ping, median round trip", "µs", true, 1},
	{"ping.p99", "ping, 99th percentile", "µs", true, 1},
	{"rr", "TCP, 1 byte there and back, median", "µs", true, 1},
	{"rr.p99", "TCP, 1 byte there and back, 99th percentile", "µs", true, 1},
	{"local.in", "TCP to the router's own service", "Gbit/s", false, 2},
	{"local.out", "TCP from the router's own service", "Gbit/s", false, 2},
	{"conn", "TCP connections opened and closed", "1/s", false, 0},
	{"conn.cpu", "CPU per connection, machine", "µs", true, 1},
	{"conn.router", "CPU per connection, router", "µs", true, 1},
	{"load", "loading 100,000 rules under traffic", "ms", true, 0},
	{"load.lost", "packets lost meanwhile, of 5,000 a second", "", true, 0},
	{"load.late", "delayed by more than 1 ms meanwhile", "", true, 0},
	{"load.worst", "largest delay meanwhile", "ms", true, 2},
	{"append", "appending one rule to them under traffic", "ms", true, 1},
	{"append.lost", "packets lost during five of that", "", true, 0},
	{"append.late", "delayed by more than 1 ms during five of that", "", true, 0},
	{"append.worst", "largest delay during five of that", "ms", true, 2},
	{"quiet.late", "delayed by more than 1 ms, a second without changes", "", true, 0},
	{"quiet.worst", "largest delay, a second without changes", "ms", true, 2},
	{"start", "`true` in new namespaces with that network, start to end", "ms", true, 1},
	{"memory", "most memory resident", "MB", true, 1},
	{"memory.private", "memory after the loads, without the pages of files", "MB", true, 1},
}

// MetricOf finds a metric by its name.
func MetricOf(name string) *Metric {
	for i := range Metrics {
		if Metrics[i].Name == name {
			return &Metrics[i]
		}
	}
	return &Metric{Name: name, Title: name, Digits: 2}
}

// Goal is what one path should reach in relation to another.
type Goal struct {
	Metric     string
	Path, Base string
	Factor     float64 // without Base: the value itself
	Over       float64 // in place of a factor: by how much it may be more
}

// Goals of the paths end to end.
var Goals = []Goal{
	{Metric: "tcp1", Path: "sluice", Base: "bare", Factor: 0.95},
	{Metric: "tcp8", Path: "sluice", Base: "bare", Factor: 0.95},
	{Metric: "tcp1", Path: "sluice", Base: "linux", Factor: 1},
	{Metric: "tcp8", Path: "sluice", Base: "linux", Factor: 1},
	{Metric: "tcp1", Path: "sluice-10000", Base: "sluice", Factor: 0.98},
	{Metric: "tcp8", Path: "sluice-10000", Base: "sluice", Factor: 0.98},
	{Metric: "udp64", Path: "sluice", Base: "bare", Factor: 1.5},
	{Metric: "udp64", Path: "sluice", Base: "linux", Factor: 1},
	{Metric: "udp1400", Path: "sluice", Base: "bare", Factor: 2},
	{Metric: "ping", Path: "sluice", Base: "bare", Factor: 1.15},
	{Metric: "rr", Path: "sluice", Base: "bare", Factor: 1.15},
	{Metric: "conn", Path: "sluice", Base: "linux", Factor: 0.9},
	{Metric: "local.in", Path: "sluice", Factor: 8},
	{Metric: "local.out", Path: "sluice", Factor: 8},
	{Metric: "load", Path: "sluice", Factor: 1000},
	{Metric: "load.lost", Path: "sluice"},
	{Metric: "load.worst", Path: "sluice", Factor: 1},
	{Metric: "append", Path: "sluice", Factor: 20},
	{Metric: "append.lost", Path: "sluice"},
	{Metric: "append.worst", Path: "sluice", Factor: 1},
}

// Uplink's goals: ahead of the other ways without privilege, out by 2 times, and
// quick to start.
func init() {
	for _, base := range []string{"pasta", "slirp4netns", "gvisor-tap-vsock"} {
		for _, m := range []string{"tcp1", "tcp8"} {
			Goals = append(Goals, Goal{Metric: m, Path: "uplink", Base: base, Factor: 2})
		}
		for _, m := range []string{"tcp1in", "tcp8in", "conn", "rr"} {
			Goals = append(Goals, Goal{Metric: m, Path: "uplink", Base: base, Factor: 1})
		}
	}
	Goals = append(Goals,
		Goal{Metric: "memory", Path: "uplink", Base: "gvisor-tap-vsock", Factor: 1},
		Goal{Metric: "start", Path: "uplink", Base: "unshare", Over: 50})
}

// Met says whether the interval of the ratio reaches the goal, or why that is not known.
func (g *Goal) Met(r *Report) (iv Interval, verdict string) {
	if g.Over != 0 {
		iv = Difference(r.Of(g.Path, g.Metric), r.Of(g.Base, g.Metric))
		switch {
		case math.IsNaN(iv.Median):
			return iv, "not measured"
		case iv.Low <= g.Over:
			return iv, "met"
		}
		return iv, "missed"
	}
	iv = Ratio(r.Of(g.Path, g.Metric), r.Of(g.Base, g.Metric))
	if g.Base == "" {
		iv = r.Of(g.Path, g.Metric).Summary()
	}
	switch less := MetricOf(g.Metric).Less; {
	case math.IsNaN(iv.Median):
		return iv, "not measured"
	case less && iv.Low <= g.Factor, !less && iv.High >= g.Factor:
		return iv, "met"
	}
	return iv, "missed"
}

func (g *Goal) text() string {
	if g.Over != 0 {
		return fmt.Sprintf("≤ %s + %s", Title(g.Base), number(g.Over, 0))
	}
	sign := "≥"
	if MetricOf(g.Metric).Less {
		sign = "≤"
	}
	if m := MetricOf(g.Metric); g.Base == "" {
		return strings.TrimSpace(fmt.Sprintf("%s %s %s", sign, number(g.Factor, 0), m.Unit))
	}
	return fmt.Sprintf("%s %s × %s", sign, number(g.Factor, 2), Title(g.Base))
}
