package graph

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"sluice/router"
)

func some() []router.TableStatus {
	r := func(text string, n uint64) router.RuleStatus {
		return router.RuleStatus{Text: text, Packets: n, Bytes: n * 100}
	}
	return []router.TableStatus{
		{Family: "ipv4", Name: "raw", Chains: []router.ChainStatus{{Name: "PREROUTING", Policy: "ACCEPT"}, {Name: "OUTPUT", Policy: "ACCEPT"}}},
		{Family: "ipv4", Name: "filter", Chains: []router.ChainStatus{
			{Name: "INPUT", Policy: "DROP", Packets: 7, Bytes: 700},
			{Name: "FORWARD", Policy: "ACCEPT", Rules: []router.RuleStatus{
				r(`-A FORWARD -m comment --comment "a <b> & \"-j DEEP\" # \x01" -j ACCEPT`, 12345), r("-A FORWARD -j WIDE", 3), r("-A FORWARD -p tcp -g DEEP", 2), r("-A FORWARD", 1),
				r("-A FORWARD -s 10.0.0.1/32 -j DROP", 5), r("-A FORWARD -s 10.0.0.2/32 -j DROP", 6), r("-A FORWARD -j WIDE", 0)}},
			{Name: "OUTPUT", Policy: "ACCEPT"},
			{Name: "DEEP", Rules: []router.RuleStatus{r("-A DEEP -j RETURN", 2)}},
			{Name: "WIDE", Rules: []router.RuleStatus{r("-A WIDE -j DEEP", 3)}},
			{Name: "LOST"},
		}},
		{Family: "ipv6", Name: "filter", Chains: []router.ChainStatus{{Name: "INPUT", Policy: "DROP"}}},
	}
}

func draw(t *testing.T, opt Options, write func(*Graph, io.Writer) error) string {
	t.Helper()
	g, err := Build(some(), opt)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := write(g, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestArrange(t *testing.T) {
	g, err := Build(some(), Options{Family: "ipv4"})
	if err != nil || len(g.tables) != 1 {
		t.Fatalf("%v, %d tables", err, len(g.tables))
	}
	want := map[string]int{"INPUT": 0, "FORWARD": 0, "OUTPUT": 0, "WIDE": 1, "LOST": 1, "DEEP": 2}
	for _, c := range g.tables[0].chains {
		if c.layer != want[c.name] {
			t.Errorf("%s is in column %d", c.name, c.layer)
		}
		if c.called != (c.name == "WIDE" || c.name == "DEEP") {
			t.Errorf("%s called: %v", c.name, c.called)
		}
	}
	rules := g.tables[0].chains[1].rules
	if rules[0].target != "ACCEPT" || rules[0].to != nil || rules[1].to.name != "WIDE" || !rules[2].goes || rules[2].to.name != "DEEP" || rules[3].target != "" {
		t.Errorf("%+v", rules)
	}
}

func TestShorten(t *testing.T) {
	g, _ := Build(some(), Options{Family: "ipv4", Limit: 1})
	var got []string
	for _, r := range g.tables[0].chains[1].rules[1:] {
		got = append(got, r.label())
	}
	if s := strings.Join(got, "|"); s != "-j WIDE|-p tcp -g DEEP|… 4 more rules" {
		t.Errorf("%s", s)
	}
	if last := g.tables[0].chains[1].rules[3]; last.packets != 12 || last.bytes != 1200 {
		t.Errorf("the rest counts %d packets, %d bytes", last.packets, last.bytes)
	}
}

// TestSVG: well-formed, with every chain and an arrow for every jump.
func TestSVG(t *testing.T) {
	s := draw(t, Options{}, (*Graph).SVG)
	d := xml.NewDecoder(strings.NewReader(s))
	paths, text := 0, ""
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, s)
		}
		switch x := tok.(type) {
		case xml.StartElement:
			if x.Name.Local == "path" {
				paths++
			}
		case xml.CharData:
			text += string(x) + "\n"
		}
	}
	if paths != 1+4 { // the marker's, two to WIDE, two to DEEP
		t.Errorf("%d paths", paths)
	}
	for _, want := range []string{"INPUT (policy DROP, 7 pkts 700B)", "LOST (not called)", "12k", "every packet", "ipv6 filter"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if !strings.Contains(text, "a <b> &") || strings.Contains(text, "ipv4 raw") {
		t.Errorf("%s", text)
	}
}

func TestText(t *testing.T) {
	dot := draw(t, Options{Family: "ipv4"}, (*Graph).DOT)
	for want, n := range map[string]int{" -> ": 4, "label=\"goto\"": 1, "t0c1:r2 -> t0c3:h [style=dashed": 1, "a &lt;b&gt; &amp;": 1} {
		if strings.Count(dot, want) != n {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(dot, want), dot)
		}
	}
	m := draw(t, Options{Family: "ipv4"}, (*Graph).Mermaid)
	for want, n := range map[string]int{" --> ": 3, "-. goto .->": 1, "a #lt;b#gt; #amp;": 1, "flowchart LR\n": 1} {
		if strings.Count(m, want) != n {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(m, want), m)
		}
	}
}

func TestBuildErrors(t *testing.T) {
	if _, err := Build(some(), Options{Table: "nat"}); err == nil || !strings.Contains(err.Error(), "nat") {
		t.Error(err)
	}
	if _, err := Build(some()[:1], Options{}); err == nil {
		t.Error("a graph of nothing")
	}
	if g, err := Build(some(), Options{Table: "raw"}); err != nil || len(g.tables) != 1 {
		t.Error(err)
	}
}
