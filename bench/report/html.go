package report

import (
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
)

// HTML writes the report as one page: plots as SVG, then the tables.
func (r *Report) HTML(w io.Writer, base *Report) error {
	var plots []template.HTML
	for _, name := range []string{"tcp1", "tcp8", "udp64", "udp1400", "rr", "conn"} {
		m := MetricOf(name)
		if names := r.Paths(name); len(names) > 0 {
			plots = append(plots, template.HTML(r.bars(m, names)))
		}
	}
	for i := range Sweeps {
		if names := r.Paths(Sweeps[i].Metric); len(names) > 0 {
			plots = append(plots, template.HTML(r.lines(&Sweeps[i], names)))
		}
	}
	if m := r.memoryPlot(); len(m.Rows) > 0 {
		plots = append(plots, template.HTML(m.lines(&memorySweep, m.Paths("flows.mpps"))))
	}
	return page.Execute(w, map[string]any{"R": r, "Plots": plots, "Tables": r.Tables(base), "When": r.When.UTC().Format("2006-01-02 15:04 MST")})
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>sluice: measurements</title>
<style>
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left;font-weight:normal}
tr:first-child{font-weight:bold;background:#f4f4f4}svg{margin:.7em 0;max-width:100%;height:auto}h2{font-size:1.1em;margin:1.4em 0 .2em}
</style>
<h1>sluice: measurements</h1>
<p>{{.R.Machine.CPU}}, {{.R.Machine.CPUs}} CPUs, {{.R.Machine.MemoryGB}} GB, Linux {{.R.Machine.Kernel}}, {{.R.Machine.Go}}; {{.When}}, commit {{.R.Commit}}; {{.R.Rounds}} rounds end to end, {{.R.MemoryRounds}} in memory.
Client, router and server share the machine. Values are medians; in brackets the interval that holds the true median with 90 %. Ratios are of pairs of the same round.</p>
{{range .Plots}}{{.}}
{{end}}{{range .Tables}}<h2>{{.Title}}</h2>
<table>{{range .Cells}}<tr>{{range .}}<td>{{.}}</td>{{end}}</tr>
{{end}}</table>
{{end}}{{range .R.Notes}}<p>{{.}}</p>{{end}}
`))

const (
	barHeight = 22
	left      = 250
	width     = 900
)

var palette = []string{"#1f5fa8", "#d1622b", "#3b8f4a", "#8a4fa3", "#7a7a7a", "#c23b4e", "#2a9d9d", "#a8861f", "#555f9f", "#b05f8f", "#5f8f2f", "#333333"}

func esc(s string) string { return template.HTMLEscapeString(s) }

// bars is one bar per path, with its interval.
func (r *Report) bars(m *Metric, names []string) string {
	var b strings.Builder
	top := 0.0
	for _, n := range names {
		top = math.Max(top, r.Of(n, m.Name).Summary().High)
	}
	h := 40 + barHeight*len(names)
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" width="%d" height="%d" xmlns="http://www.w3.org/2000/svg" font-family="system-ui,sans-serif" font-size="12"><text x="0" y="18" font-size="14" font-weight="bold">%s, %s</text>`, width, h, width, h, esc(m.Title), esc(m.Unit))
	x := func(v float64) float64 { return left + v/top*(width-left-170) }
	for i, n := range names {
		iv := r.Of(n, m.Name).Summary()
		y := 30 + barHeight*i
		color := "#9aa7b5"
		if strings.HasPrefix(n, "sluice") {
			color = palette[0]
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left-8, y+15, esc(Title(n)), left, y+3, x(iv.Median)-left, barHeight-6, color)
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#222"/><text x="%.1f" y="%d">%s</text>`, x(iv.Low), x(iv.High), y+barHeight/2, y+barHeight/2, x(iv.High)+6, y+15, esc(number(iv.Median, m.Digits)))
	}
	b.WriteString("</svg>")
	return b.String()
}

// lines is a metric over something that varies, a line per path.
func (r *Report) lines(s *Sweep, names []string) string {
	const height, bottom, upper, lx, rx = 390, 350, 50, 60, 620
	scale := func(log bool, v float64) float64 {
		if log {
			return math.Log10(math.Max(v, 1e-9))
		}
		return v
	}
	scaleX := func(v float64) float64 {
		if s.Tail {
			return -math.Log10(1 - v/100)
		}
		return scale(s.LogX, v)
	}
	x0, x1, y0, y1 := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, n := range names {
		for _, row := range r.Sweep(n, s.Metric) {
			if iv := row.Summary(); iv.N > 0 {
				x0, x1 = math.Min(x0, scaleX(row.X)), math.Max(x1, scaleX(row.X))
				y0, y1 = math.Min(y0, scale(s.LogY, iv.Median)), math.Max(y1, scale(s.LogY, iv.Median))
			}
		}
	}
	if s.LogY {
		y0, y1 = math.Floor(y0), math.Ceil(y1)
	} else {
		y0, y1 = 0, y1*1.1
	}
	if x1 <= x0 {
		x1 = x0 + 1
	}
	if y1 <= y0 {
		y1 = y0 + 1
	}
	px := func(v float64) float64 { return lx + (scaleX(v)-x0)/(x1-x0)*(rx-lx) }
	py := func(v float64) float64 { return bottom - (scale(s.LogY, v)-y0)/(y1-y0)*(bottom-upper) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" width="%d" height="%d" xmlns="http://www.w3.org/2000/svg" font-family="system-ui,sans-serif" font-size="12"><text x="0" y="18" font-size="14" font-weight="bold">%s</text>`, width, height, width, height, esc(s.Title))
	fmt.Fprintf(&b, `<path d="M%d %dV%dH%d" fill="none" stroke="#222"/><text x="%d" y="%d" text-anchor="middle">%s</text><text x="0" y="%d">%s</text>`, lx, upper, bottom, rx, (lx+rx)/2, height-6, esc(s.Axis), upper-10, esc(s.Unit))
	for _, v := range marks(y0, y1, s.LogY) {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e4e4e4"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`, lx, rx, py(v), py(v), lx-6, py(v)+4, short(v))
	}
	across, label := marks(x0, x1, s.LogX), short
	if s.Tail {
		across, label = []float64{1, 50, 90, 99, 99.9}, func(v float64) string { return fmt.Sprint(v) }
	}
	for _, v := range across {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, px(v), bottom+16, label(v))
	}
	for i, n := range names {
		color := palette[i%len(palette)]
		var path strings.Builder
		for _, row := range r.Sweep(n, s.Metric) {
			iv := row.Summary()
			if iv.N == 0 {
				continue
			}
			op := "L"
			if path.Len() == 0 {
				op = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", op, px(row.X), py(iv.Median))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`, px(row.X), py(iv.Median), color)
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.8"/><rect x="%d" y="%d" width="12" height="3" fill="%s"/><text x="%d" y="%d">%s</text>`, path.String(), color, rx+20, upper+20*i, color, rx+38, upper+6+20*i, esc(Title(n)))
	}
	b.WriteString("</svg>")
	return b.String()
}

// marks are the axis's labelled values between a and b (logarithms, if log).
func marks(a, b float64, log bool) []float64 {
	var out []float64
	if log {
		for e := math.Ceil(a - 1e-9); e <= b+1e-9; e++ {
			out = append(out, math.Pow(10, e))
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10(b-a)))
	for (b-a)/step < 4 {
		step /= 2
	}
	for v := math.Ceil(a/step) * step; v <= b+1e-9; v += step {
		out = append(out, v)
	}
	return out
}

func short(v float64) string {
	switch {
	case v >= 1e6:
		return number(v/1e6, 0) + "M"
	case v >= 1e4:
		return number(v/1e3, 0) + "k"
	case v >= 10 || v == math.Trunc(v):
		return number(v, 0)
	}
	return fmt.Sprintf("%.3g", v)
}
