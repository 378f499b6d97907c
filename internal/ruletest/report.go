package ruletest

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"

	"sluice/internal/play"
	"sluice/router"
)

// Text writes what people read: failures with their traces, then the counts.
func (r *Run) Text(w io.Writer, verbose bool, style play.Style) {
	packets := 0
	for i := range r.Results {
		x := &r.Results[i]
		packets += x.Packets
		if len(x.Failures) == 0 {
			if verbose {
				fmt.Fprintf(w, "ok    %s: %s\n", x.File, x.Name)
			}
			continue
		}
		fmt.Fprintf(w, "FAIL  %s: %s\n", x.File, x.Name)
		for _, f := range x.Failures {
			fmt.Fprintf(w, "  %s: %s\n    %s\n", f.Pos, f.Item, f.Text)
			for _, t := range f.Trace {
				var b strings.Builder
				style.Write(&b, t)
				for line := range strings.Lines(b.String()) {
					fmt.Fprintf(w, "    | %s", line)
				}
			}
		}
	}
	fmt.Fprintf(w, "%d cases, %d packets, %d failed\n", len(r.Results), packets, r.Failed())
}

// TAP writes the Test Anything Protocol, version 13.
func (r *Run) TAP(w io.Writer) {
	fmt.Fprintf(w, "TAP version 13\n1..%d\n", len(r.Results))
	for i := range r.Results {
		x := &r.Results[i]
		not := ""
		if len(x.Failures) > 0 {
			not = "not "
		}
		fmt.Fprintf(w, "%sok %d - %s: %s\n", not, i+1, x.File, strings.ReplaceAll(x.Name, "#", "\\#"))
		for _, f := range x.Failures {
			fmt.Fprintf(w, "# %s: %s\n#   %s\n", f.Pos, f.Item, f.Text)
			for _, t := range f.Trace {
				var b strings.Builder
				play.Style{}.Write(&b, t)
				for line := range strings.Lines(b.String()) {
					fmt.Fprintf(w, "# %s", line)
				}
			}
		}
	}
}

type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes the XML that build servers read.
func (r *Run) JUnit(w io.Writer) error {
	var all junitSuites
	for i := range r.Results {
		x := &r.Results[i]
		if n := len(all.Suites); n == 0 || all.Suites[n-1].Name != x.File {
			all.Suites = append(all.Suites, junitSuite{Name: x.File})
		}
		s := &all.Suites[len(all.Suites)-1]
		c := junitCase{Name: x.Name, Class: x.File, Time: fmt.Sprintf("%.6f", x.Time.Seconds())}
		s.Tests++
		if len(x.Failures) > 0 {
			s.Failures++
			var b strings.Builder
			for _, f := range x.Failures {
				fmt.Fprintf(&b, "%s: %s\n%s\n", f.Pos, f.Item, f.Text)
				for _, t := range f.Trace {
					play.Style{}.Write(&b, t)
				}
			}
			c.Failure = &junitFailure{Message: x.Failures[0].Text, Text: b.String()}
		}
		s.Cases = append(s.Cases, c)
	}
	for i := range all.Suites {
		var sum float64
		for _, x := range r.Results {
			if x.File == all.Suites[i].Name {
				sum += x.Time.Seconds()
			}
		}
		all.Suites[i].Time = fmt.Sprintf("%.6f", sum)
	}
	io.WriteString(w, xml.Header)
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// Uncovered lists the rules that no case met, in the order of their files, and
// how many rules there are.
func (r *Run) Uncovered() (out []router.RuleRef, all int) {
	for _, c := range r.rules {
		all++
		if !c.met {
			out = append(out, c.ref)
		}
	}
	slices.SortFunc(out, func(a, b router.RuleRef) int {
		if n := strings.Compare(a.File, b.File); n != 0 {
			return n
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return strings.Compare(a.Table+a.Chain+a.Text, b.Table+b.Chain+b.Text)
	})
	return out, all
}

// Cover writes Uncovered.
func (r *Run) Cover(w io.Writer) {
	missing, all := r.Uncovered()
	share := 100.0
	if all > 0 {
		share = 100 * float64(all-len(missing)) / float64(all)
	}
	fmt.Fprintf(w, "%d of %d rules were met (%.1f%%)\n", all-len(missing), all, share)
	for _, x := range missing {
		fmt.Fprintf(w, "  not met: %s:%d: %s: %s\n", x.File, x.Line, x.Table, x.Text)
	}
}
