package report

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"
)

func TestInterval(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want Interval
	}{
		{[]float64{3}, Interval{3, 3, 3, 1}},
		{[]float64{5, 1, 3}, Interval{3, 1, 5, 3}},
		{[]float64{4, 1, 3, 2}, Interval{2.5, 1, 4, 4}},
		// 2·(1+8)/256 = 7 %: the second and the seventh of eight.
		{[]float64{8, 7, 6, 5, 4, 3, 2, 1}, Interval{4.5, 2, 7, 8}},
		{[]float64{7, 6, 5, 4, 3, 2, 1}, Interval{4, 1, 7, 7}},
	} {
		if got := Of(c.in); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.in, got, c.want)
		}
	}
	if !math.IsNaN(Of(nil).Median) {
		t.Error("the median of nothing is a number")
	}
}

// sample is a report in which sluice misses one goal, meets two, and one round lacks a value.
func sample() *Report {
	r := &Report{Version: Version}
	for i, v := range []float64{10, 20, 30} {
		r.Add("bare", "tcp1", 0, i, v)
		if i != 1 {
			r.Add("sluice", "tcp1", 0, i, v*0.96)
		}
		r.Add("linux", "tcp1", 0, i, v*2)
		r.Add("bare", "rr", 0, i, 100)
		r.Add("sluice", "rr", 0, i, 110+float64(i))
		for _, n := range []float64{10, 1000, 10000} {
			r.Add("linux", "rules.cpu", n, i, n/7)
			r.Add("sluice", "rules.cpu", n, i, 9)
		}
	}
	return r
}

func TestGoals(t *testing.T) {
	r := sample()
	got := map[string]string{}
	for _, g := range Goals {
		if iv, verdict := g.Met(r); iv.N > 0 {
			got[g.Metric+" "+g.Path+" "+g.Base] = verdict
		}
	}
	want := map[string]string{"tcp1 sluice bare": "met", "tcp1 sluice linux": "missed", "rr sluice bare": "met"}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	// Pairs: the round that lacks a value counts for neither side.
	if iv := Ratio(r.Of("sluice", "tcp1"), r.Of("bare", "tcp1")); iv.N != 2 || math.Abs(iv.Median-0.96) > 1e-9 {
		t.Errorf("%+v", iv)
	}
}

func TestSaveAndShow(t *testing.T) {
	r := sample()
	path := filepath.Join(t.TempDir(), "r.json")
	if err := r.Save(path); err != nil {
		t.Fatal(err)
	}
	back, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var a, b, html bytes.Buffer
	r.Text(&a, nil)
	back.Text(&b, nil)
	if a.String() != b.String() || !strings.Contains(a.String(), "0.96 (0.96–0.96)") {
		t.Errorf("shown before saving:\n%s\nafter loading:\n%s", &a, &b)
	}
	a.Reset()
	r.Text(&a, back)
	if !strings.Contains(a.String(), "now / before") || !strings.Contains(a.String(), "1.00") {
		t.Errorf("compared with itself:\n%s", &a)
	}
	a.Reset()
	r.Markdown(&a)
	if !strings.Contains(a.String(), "| sluice, 20 rules | 19.20 |") || !strings.Contains(a.String(), "≥ 0.95 × bare copy loop") {
		t.Errorf("as Markdown:\n%s", &a)
	}
	if err := r.HTML(&html, back); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "sluice, 20 rules", "0.96", "rules before the one that accepts"} {
		if !strings.Contains(html.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(html.String(), "NaN") || strings.Contains(html.String(), "Inf") {
		t.Error("the page has numbers that are none")
	}
}

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		v float64
		d int
		s string
	}{{1234567.6, 0, "1,234,568"}, {999, 0, "999"}, {-1234.5, 1, "-1,234.5"}, {0.125, 2, "0.12"}, {math.NaN(), 2, "–"}} {
		if got := number(c.v, c.d); got != c.s {
			t.Errorf("%v: %q, want %q", c.v, got, c.s)
		}
	}
}

func TestFill(t *testing.T) {
	r := sample()
	r.Add("sluice", "udp64", 0, 0, 123456)
	r.Add("uplink", "tcp1in", 0, 0, 7.25)
	text := "before\n<!-- bench:rootless -->\n<!-- bench:end -->\n<!-- bench:goals -->\nold\n<!-- bench:end -->\nbetween\n<!-- bench:headline -->\n<!-- bench:end -->\nafter\n"
	got, err := r.Fill(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n<!-- bench:rootless -->\n", "| TCP inwards, 1 flow, Gbit/s | 7.25 |", "≥ 0.95 × bare copy loop", "<!-- bench:end -->\nbetween\n", "| 123,456 |", "<!-- bench:end -->\nafter\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") {
		t.Error("what stood there stayed")
	}
	if again, err := r.Fill(got); err != nil || again != got {
		t.Errorf("filled again it is another text, %v", err)
	}
	for _, bad := range []string{"<!-- bench:nothing -->\n<!-- bench:end -->", "<!-- bench:goals -->\n", "<!-- bench:goals"} {
		if _, err := r.Fill(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
