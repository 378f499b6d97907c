package graph

import (
	"fmt"
	"io"
	"strings"
)

// DOT writes the graph for Graphviz: a cluster for each table, a record for each
// chain, an edge for each rule that leads to another chain.
func (g *Graph) DOT(w io.Writer) error {
	var b strings.Builder
	b.WriteString("digraph sluice {\n  rankdir=LR;\n  node [shape=plain, fontname=\"monospace\", fontsize=10];\n  edge [fontname=\"monospace\", fontsize=9];\n")
	for i, t := range g.tables {
		fmt.Fprintf(&b, "  subgraph cluster_%d {\n    label=%s;\n", i, quote(t.title()))
		for j, c := range t.chains {
			fmt.Fprintf(&b, "    t%dc%d [label=<<table border=\"0\" cellborder=\"1\" cellspacing=\"0\"><tr><td port=\"h\" colspan=\"2\"><b>%s</b></td></tr>", i, j, escape(c.head()))
			for k, r := range c.rules {
				fmt.Fprintf(&b, "<tr><td align=\"left\">%s</td><td align=\"right\" port=\"r%d\">%s</td></tr>", escape(shorter(r.label(), 100)), k, escape(count(r.packets, r.bytes)))
			}
			b.WriteString("</table>>];\n")
		}
		b.WriteString("  }\n")
	}
	g.edges(func(t, from, at, to int, r *rule) {
		style := ""
		if r.goes {
			style = " [style=dashed, label=\"goto\"]"
		}
		fmt.Fprintf(&b, "  t%dc%d:r%d -> t%dc%d:h%s;\n", t, from, at, t, to, style)
	})
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// edges calls f for each rule that leads to a chain: indexes of the table, the
// chain, the rule in it, and the chain it leads to.
func (g *Graph) edges(f func(t, from, at, to int, r *rule)) {
	for i, t := range g.tables {
		at := map[*chain]int{}
		for j, c := range t.chains {
			at[c] = j
		}
		for j, c := range t.chains {
			for k := range c.rules {
				if r := &c.rules[k]; r.to != nil {
					f(i, j, k, at[r.to], r)
				}
			}
		}
	}
}

func quote(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;")

// escape makes s the text of an element; what XML may not hold becomes U+FFFD.
func escape(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0xfffe || r == 0xffff {
			return 0xfffd
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	return escaper.Replace(s)
}

// Mermaid writes the graph as a flowchart, as Markdown renderers draw it.
func (g *Graph) Mermaid(w io.Writer) error {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for i, t := range g.tables {
		fmt.Fprintf(&b, "  subgraph t%d[\"%s\"]\n", i, mermaid(t.title()))
		for j, c := range t.chains {
			lines := []string{"<b>" + mermaid(c.head()) + "</b>"}
			for _, r := range c.rules {
				lines = append(lines, mermaid(shorter(r.label(), 100))+" <i>"+mermaid(count(r.packets, r.bytes))+"</i>")
			}
			fmt.Fprintf(&b, "    t%dc%d[\"%s\"]\n", i, j, strings.Join(lines, "<br/>"))
		}
		b.WriteString("  end\n")
	}
	g.edges(func(t, from, _, to int, r *rule) {
		arrow := "-->"
		if r.goes {
			arrow = "-. goto .->"
		}
		fmt.Fprintf(&b, "  t%dc%d %s t%dc%d\n", t, from, arrow, t, to)
	})
	_, err := io.WriteString(w, b.String())
	return err
}

// mermaid writes what the syntax would take for its own as entity codes.
func mermaid(s string) string {
	return strings.NewReplacer("#", "#35;", "&", "#amp;", "<", "#lt;", ">", "#gt;", `"`, "#quot;", "`", "#96;").Replace(strings.ToValidUTF8(s, "\ufffd"))
}
