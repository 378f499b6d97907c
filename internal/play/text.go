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

const (
	plainColor = "0"
	bold       = "1"
	dim        = "2"
	red        = "31"
	green      = "32"
	yellow     = "33"
	blue       = "34"
	cyan       = "36"
)

func (s Style) paint(code, text string) string {
	if !s.Color || text == "" || code == plainColor {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func place(r *router.RuleRef) string {
	if r == nil || r.File == "" {
		return ""
	}
	if r.Line == 0 {
		return r.File
	}
	return r.File + ":" + strconv.Itoa(r.Line)
}

// text is a trace for people.
func (s Style) text(t *router.Trace) string {
	var b strings.Builder
	head := fmt.Sprintf("#%d %s", t.Seq, t.Packet)
	b.WriteString(s.paint(bold, head))
	switch {
	case t.Cause == "answer":
		b.WriteString("  the router's answer")
	case t.Cause != "":
		b.WriteString("  from a socket of the router's own")
	case t.In != "":
		b.WriteString("  in by " + t.In)
	}
	b.WriteByte('\n')
	line := func(depth int, format string, a ...any) {
		b.WriteString(strings.Repeat("  ", depth))
		fmt.Fprintf(&b, format, a...)
		b.WriteByte('\n')
	}
	for i := 0; i < len(t.Steps); i++ {
		x := &t.Steps[i]
		d := 2 + x.Depth
		switch x.Kind {
		case router.StepHook:
			line(0, "%s  %s", s.paint(bold+";"+blue, x.Hook), s.paint(dim, x.Text))
		case router.StepTable:
			if i+1 < len(t.Steps) && t.Steps[i+1].Kind == router.StepPolicy && t.Steps[i+1].Result == "ACCEPT" {
				if !s.Matched {
					line(1, "%s", s.paint(dim, x.Table+": policy ACCEPT"))
				}
				i++
				continue
			}
			line(1, "%s", s.paint(cyan, x.Table))
		case router.StepRule:
			text := fmt.Sprintf("%d %s", x.Rule.Num, x.Rule.Text)
			at := place(x.Rule)
			if at != "" {
				at = "  [" + at + "]"
			}
			if !x.Matched {
				if !s.Matched {
					line(d, "%s", s.paint(dim, "- "+text+at))
				}
				continue
			}
			line(d, "%s%s", s.paint(resultColor(x.Result), "+ "+text), s.paint(dim, at))
		case router.StepReturn:
			line(d+1, "%s", s.paint(dim, "back from "+x.Chain))
		case router.StepPolicy:
			line(d, "policy of %s: %s", x.Chain, s.paint(resultColor(x.Result), x.Result))
		case router.StepConntrack:
			c := x.Conn
			if x.Text != "" {
				line(1, "conntrack: %s: %s", x.Text, c.Original)
				continue
			}
			line(1, "conntrack: %s%s", s.paint(yellow, c.State), connText(c))
		case router.StepRoute:
			line(0, "%s  %s", s.paint(bold+";"+blue, "routing"), routeText(x.Route))
		case router.StepChange:
			why := ""
			if x.Text != "" {
				why = "  (" + x.Text + ")"
			}
			line(d+1, "%s%s", s.paint(yellow, fmt.Sprintf("%s: %s -> %s", x.Field, x.Before, x.After)), s.paint(dim, why))
		case router.StepNote:
			line(1, "%s", x.Text)
		case router.StepDrop:
			line(0, "%s  %s", s.paint(bold+";"+red, "dropped: "+x.Result), x.Text)
		case router.StepDeliver:
			line(0, "%s", s.paint(bold+";"+green, "delivered to the router's own sockets"))
		}
	}
	if t.Lost > 0 {
		line(1, "(%d more steps)", t.Lost)
	}
	if t.Verdict == router.VerdictHeld {
		line(0, "%s", s.paint(bold+";"+yellow, "held"))
	}
	for i := range t.Out {
		line(0, "%s  %s", s.paint(bold+";"+green, t.Verdict+" out by "+t.Out[i].Iface), t.Out[i].Packet)
	}
	b.WriteByte('\n')
	return b.String()
}

func resultColor(r string) string {
	switch {
	case strings.HasPrefix(r, "DROP"), strings.HasPrefix(r, "REJECT"):
		return red
	case strings.HasPrefix(r, "ACCEPT"):
		return green
	}
	return plainColor
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
