package graph

import (
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// Measures of the drawing, in pixels.
const (
	margin   = 24
	line     = 18  // height of a rule
	headLine = 26  // height of a chain's head
	gap      = 18  // between chains of a column
	between  = 90  // between columns, where the arrows are
	width    = 470 // of a chain
	letters  = 41  // of a rule's match
	targets  = 310 // where its target begins
)

const style = `
svg{font:12px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;background:#fff}
text{fill:#1c2733}.t{font:600 17px system-ui,sans-serif}.h{font-weight:700}.n{fill:#5d6b7a;text-anchor:end}
.c{fill:#f7f9fb;stroke:#b9c4cf}.b{fill:#e3edf8;stroke:#6d92bd}.u{fill:#f4f4f4;stroke:#c9c9c9;stroke-dasharray:4 3}
.ACCEPT{fill:#1b7a3d}.DROP,.REJECT{fill:#b3261e}.go{fill:#2458a6}.more{fill:#5d6b7a;font-style:italic}
path{fill:none;stroke:#6d92bd;stroke-opacity:.75}path.g{stroke-dasharray:6 4}marker path{fill:#6d92bd;stroke:none}
@media(prefers-color-scheme:dark){svg{background:#12171d}text{fill:#dfe6ee}.n,.more{fill:#93a1b0}.c{fill:#1a222b;stroke:#3b4856}
.b{fill:#1d2c3f;stroke:#5b83b3}.u{fill:#171c22;stroke:#454d56}.ACCEPT{fill:#6fd38f}.DROP,.REJECT{fill:#ff8a80}.go{fill:#8ab4f8}}
`

// SVG writes the graph as a drawing of its own: chains as boxes, called ones
// right of their callers, rules in them with their counters. Arrows grow with
// the packets that took them.
func (g *Graph) SVG(w io.Writer) error {
	var b strings.Builder
	y, right := margin, 0
	for _, t := range g.tables {
		y = t.place(y)
		right = max(right, margin+len(t.layers)*(width+between)-between)
	}
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %[1]d %d\" role=\"img\" aria-label=\"iptables rules\">\n", right+margin, y, y)
	b.WriteString("<style>" + style + "</style>\n")
	b.WriteString("<defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"9\" markerHeight=\"9\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n")
	for _, t := range g.tables {
		t.draw(&b)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// place gives every chain its height and place, and returns where the next table begins.
func (t *table) place(y int) int {
	top := y + 34
	end := top
	for _, l := range t.layers {
		y := top
		for _, c := range l {
			c.y, c.h = y, headLine+line*len(c.rules)+6
			y += c.h + gap
		}
		end = max(end, y)
	}
	return end + margin
}

func (c *chain) x() int { return margin + c.layer*(width+between) }

func (t *table) draw(b *strings.Builder) {
	fmt.Fprintf(b, "<g><text class=\"t\" x=\"%d\" y=\"%d\">%s</text>\n", margin, t.layers[0][0].y-14, escape(t.title()))
	for _, c := range t.chains {
		for i, r := range c.rules {
			if r.to == nil {
				continue
			}
			x1, y1 := c.x()+width, c.y+headLine+line*i+line/2
			x2, y2 := r.to.x(), r.to.y+headLine/2
			bend := (x2-x1)/2 + 10
			class := ""
			if r.goes {
				class = ` class="g"`
			}
			fmt.Fprintf(b, "<path%s stroke-width=\"%.1f\" marker-end=\"url(#a)\" d=\"M%d %dC%d %d %d %d %d %d\"><title>%s: %s</title></path>\n",
				class, 1+float64(bits.Len64(r.packets))/8, x1, y1, x1+bend, y1, x2-bend, y2, x2, y2, escape(c.name+" → "+r.to.name), count(r.packets, r.bytes))
		}
	}
	for _, c := range t.chains {
		c.draw(b) // over the arrows that pass by
	}
	b.WriteString("</g>\n")
}

func (c *chain) draw(b *strings.Builder) {
	class := "c"
	switch {
	case c.policy != "":
		class = "b"
	case !c.called:
		class = "u"
	}
	x := c.x()
	fmt.Fprintf(b, "<g><rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\"/>\n", class, x, c.y, width, c.h)
	fmt.Fprintf(b, "<text class=\"h\" x=\"%d\" y=\"%d\">%s</text>\n", x+10, c.y+17, escape(shorter(c.head(), 60)))
	for i, r := range c.rules {
		class := "more"
		switch {
		case r.to != nil:
			class = "go"
		case r.left == 0:
			class = r.target
		}
		y := c.y + headLine + line*i + 13
		left := r.match
		if r.left > 0 {
			left = r.label()
		} else if left == "" {
			left = "every packet"
		}
		fmt.Fprintf(b, "<g><title>%[1]s</title><text x=\"%[2]d\" y=\"%[3]d\">%[4]s</text><text class=\"%[5]s\" x=\"%[6]d\" y=\"%[3]d\">%[7]s</text><text class=\"n\" x=\"%[8]d\" y=\"%[3]d\">%[9]s</text></g>\n",
			escape(r.label()+" — "+count(r.packets, r.bytes)), x+10, y, escape(shorter(left, letters)), escape(class), x+targets, escape(shorter(r.target, 15)), x+width-8, short(r.packets))
	}
	b.WriteString("</g>\n")
}
