package play

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"sluice/router"
)

// Style is how a trace is told.
type Style struct {
	Color   bool
	Matched bool // leave out rules that do not match
	JSON    bool
	Kernel  bool // as the kernel's TRACE lines
}

// Write tells one trace.
func (s Style) Write(w io.Writer, t *router.Trace) error {
	switch {
	case s.JSON:
		return json.NewEncoder(w).Encode(t)
	case s.Kernel:
		_, err := io.WriteString(w, KernelLines(t))
		return err
	}
	_, err := io.WriteString(w, s.text(t))
	return err
}

// KernelLines are the lines that Linux logs for a packet that TRACE has marked:
// one for each rule that matched, and for the end of a chain.
func KernelLines(t *router.Trace) string {
	var b strings.Builder
	for i := range t.Steps {
		s := &t.Steps[i]
		if s.Log == "" {
			continue
		}
		what := "rule"
		switch {
		case s.Kind == router.StepPolicy, s.Bare && s.Chain == s.Hook:
			what = "policy"
		case s.Kind == router.StepReturn, s.Bare:
			what = "return"
		}
		fmt.Fprintf(&b, "TRACE: %s:%s:%s:%d %s\n", s.Table, s.Chain, what, s.Rule.Num, s.Log)
	}
	return b.String()
}

// Line is one line of a trace in words.
type Line struct {
	Step  int    `json:"step"`  // of the trace; -1: about the whole packet
	Depth int    `json:"depth"` // of indentation
	Kind  string `json:"kind"`  // a Step's kind; "packet" and "end" are about the whole
	Spans []Span `json:"spans"`
}

// Span is a piece of a line and how it is meant: "" is plain.
type Span struct {
	Class string `json:"class,omitempty"`
	Text  string `json:"text"`
}

// Classes of a Span and their colours on a terminal.
var colors = map[string]string{
	"packet": "1", "dim": "2", "bad": "31", "good": "32", "changed": "33", "table": "36",
	"hook": "1;34", "dropped": "1;31", "passed": "1;32", "held": "1;33",
}

// String is the line as a terminal without colours shows it.
func (l *Line) String() string {
	var b strings.Builder
	l.write(&b, false)
	return b.String()
}

func (l *Line) write(b *strings.Builder, color bool) {
	b.WriteString(strings.Repeat("  ", l.Depth))
	for _, s := range l.Spans {
		if code := colors[s.Class]; color && code != "" && s.Text != "" {
			b.WriteString("\x1b[" + code + "m" + s.Text + "\x1b[0m")
		} else {
			b.WriteString(s.Text)
		}
	}
}

func place(r *router.RuleRef) string {
	switch {
	case r == nil || r.File == "":
		return ""
	case r.Line == 0:
		return "  [" + r.File + "]"
	}
	return "  [" + r.File + ":" + strconv.Itoa(r.Line) + "]"
}

// text is a trace for people.
func (s Style) text(t *router.Trace) string {
	var b strings.Builder
	for _, l := range Lines(t, s.Matched) {
		l.write(&b, s.Color)
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	return b.String()
}

// Lines tells a trace; matched: without the rules that do not match.
func Lines(t *router.Trace, matched bool) (out []Line) {
	step := -1
	line := func(depth int, kind string, spans ...Span) {
		out = append(out, Line{step, depth, kind, spans})
	}
	from := ""
	switch {
	case t.Cause == "answer":
		from = "  the router's answer"
	case t.Cause != "":
		from = "  from a socket of the router's own"
	case t.In != "":
		from = "  in by " + t.In
	}
	line(0, "packet", Span{"packet", fmt.Sprintf("#%d %s", t.Seq, t.Packet)}, Span{"", from})
	for i := 0; i < len(t.Steps); i++ {
		x := &t.Steps[i]
		step = i
		d := 2 + x.Depth
		switch x.Kind {
		case router.StepHook:
			line(0, x.Kind, Span{"hook", x.Hook}, Span{"", "  "}, Span{"dim", x.Text})
		case router.StepTable:
			if i+1 < len(t.Steps) && t.Steps[i+1].Kind == router.StepPolicy && t.Steps[i+1].Result == "ACCEPT" {
				if !matched {
					line(1, x.Kind, Span{"dim", x.Table + ": policy ACCEPT"})
				}
				i++
				continue
			}
			line(1, x.Kind, Span{"table", x.Table})
		case router.StepRule:
			text := fmt.Sprintf("%d %s", x.Rule.Num, x.Rule.Text)
			if x.Matched {
				line(d, x.Kind, Span{resultClass(x.Result), "+ " + text}, Span{"dim", place(x.Rule)})
			} else if !matched {
				line(d, "miss", Span{"dim", "- " + text + place(x.Rule)})
			}
		case router.StepReturn:
			line(d+1, x.Kind, Span{"dim", "back from " + x.Chain})
		case router.StepPolicy:
			line(d, x.Kind, Span{"", "policy of " + x.Chain + ": "}, Span{resultClass(x.Result), x.Result})
		case router.StepConntrack:
			if x.Text != "" {
				line(1, x.Kind, Span{"", "conntrack: " + x.Text + ": " + x.Conn.Original})
				continue
			}
			line(1, x.Kind, Span{"", "conntrack: "}, Span{"changed", x.Conn.State}, Span{"", connText(x.Conn)})
		case router.StepRoute:
			line(0, x.Kind, Span{"hook", "routing"}, Span{"", "  " + routeText(x.Route)})
		case router.StepChange:
			why := ""
			if x.Text != "" {
				why = "  (" + x.Text + ")"
			}
			line(d+1, x.Kind, Span{"changed", fmt.Sprintf("%s: %s -> %s", x.Field, x.Before, x.After)}, Span{"dim", why})
		case router.StepNote:
			line(1, x.Kind, Span{"", x.Text})
		case router.StepDrop:
			line(0, x.Kind, Span{"dropped", "dropped: " + x.Result}, Span{"", "  " + x.Text})
		case router.StepDeliver:
			line(0, x.Kind, Span{"passed", "delivered to the router's own sockets"})
		}
	}
	if t.Lost > 0 {
		line(1, "end", Span{"", fmt.Sprintf("(%d more steps)", t.Lost)})
	}
	if t.Verdict == router.VerdictHeld {
		line(0, "end", Span{"held", "held"})
	}
	for i := range t.Out {
		line(0, "end", Span{"passed", t.Verdict + " out by " + t.Out[i].Iface}, Span{"", "  " + t.Out[i].Packet})
	}
	return out
}

// resultClass is how a rule's or policy's result is meant.
func resultClass(r string) string {
	switch {
	case strings.HasPrefix(r, "DROP"), strings.HasPrefix(r, "REJECT"):
		return "bad"
	case strings.HasPrefix(r, "ACCEPT"):
		return "good"
	}
	return ""
}

func connText(c *router.TraceConn) string {
	if c.Original == "" {
		return ""
	}
	s := "  " + c.Original
	if c.New {
		s = "  a new connection: " + c.Original
	}
	if c.Reply != "" {
		s += ", answers " + c.Reply
	}
	if c.TCP != "" && c.TCP != "NONE" {
		s += ", " + c.TCP
	}
	if c.Status != "" {
		s += " [" + c.Status + "]"
	}
	if c.Mark != 0 {
		s += fmt.Sprintf(" mark=%#x", c.Mark)
	}
	if c.Zone != 0 {
		s += fmt.Sprintf(" zone=%d", c.Zone)
	}
	return s
}

func routeText(r *router.TraceRoute) string {
	s := r.Type
	if r.Dev != "" {
		s += " dev " + r.Dev
	}
	if r.Via != "" {
		s += " via " + r.Via
	}
	if r.Prefix != "" {
		s += ": the longest match is " + r.Prefix
	}
	if r.Rule != "" {
		s += ", by rule " + r.Rule
	} else {
		s += ": no rule or route decides"
	}
	if r.Refused != "" {
		s += "; refused: " + r.Refused
	}
	return s
}

// Flags is the style as ParseStyle reads it, for a request to the router.
func (s Style) Flags() string {
	var out []string
	for name, on := range map[string]bool{"color": s.Color, "matched": s.Matched, "json": s.JSON, "kernel": s.Kernel} {
		if on {
			out = append(out, name)
		}
	}
	return strings.Join(out, ",")
}

// ParseStyle reads Flags' text; words it does not know mean nothing.
func ParseStyle(text string) (s Style) {
	for _, w := range strings.Split(text, ",") {
		switch w {
		case "color":
			s.Color = true
		case "matched":
			s.Matched = true
		case "json":
			s.JSON = true
		case "kernel":
			s.Kernel = true
		}
	}
	return s
}
