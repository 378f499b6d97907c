package iptables

import "strings"

// longOpt is one long option. Two with the same id mean the same, so that an
// abbreviation which fits both is not ambiguous.
type longOpt struct {
	name string
	arg  argKind
	id   int
}

type argKind uint8

const (
	noArg argKind = iota
	needArg
	maybeArg
)

// What getopt.next gives besides option ids.
const (
	optEnd     = -1
	optWord    = 1   // an argument that is no option, in optarg
	optUnknown = '?' // unknown or ambiguous option, or an argument where none is taken
	optMissing = ':' // the argument is missing
)

// getopt reads a command line as getopt_long does: letters bundled, arguments
// attached or separate, long names abbreviated where that is unambiguous.
// Words that are no options are given in place.
type getopt struct {
	argv  []string
	ind   int // the next argument to look at
	short string
	long  []longOpt

	arg    string // the option's argument
	hasArg bool
	letter byte   // the option letter that was refused or lacks its argument
	rest   string // letters of a bundle not yet looked at
	amb    []string
	full   string // the name of an option that lacks its argument, or was given one and takes none
	words  int    // for the caller: words met
}

func newGetopt(argv []string, short string, long []longOpt) *getopt {
	return &getopt{argv: argv, ind: 1, short: short, long: long}
}

// last is the argument that was read last (argv[optind-1]).
func (g *getopt) last() string { return g.argv[g.ind-1] }

// take takes the next argument if it does not look like an option or "!".
func (g *getopt) take() (string, bool) {
	if !g.more() {
		return "", false
	}
	g.ind++
	return g.last(), true
}

func (g *getopt) more() bool {
	return g.ind < len(g.argv) && !strings.HasPrefix(g.argv[g.ind], "-") && !strings.HasPrefix(g.argv[g.ind], "!")
}

// next gives the next option's letter or id, or one of the values above.
func (g *getopt) next() int {
	g.arg, g.hasArg, g.letter, g.amb, g.full = "", false, 0, nil, ""
	if g.rest != "" {
		return g.shortOpt()
	}
	if g.ind >= len(g.argv) {
		return optEnd
	}
	a := g.argv[g.ind]
	g.ind++
	switch {
	case a == "--":
		return optEnd
	case strings.HasPrefix(a, "--"):
		return g.longOption(a[2:])
	case len(a) > 1 && a[0] == '-':
		g.rest = a[1:]
		return g.shortOpt()
	}
	g.arg, g.hasArg = a, true
	return optWord
}

func (g *getopt) shortOpt() int {
	c := g.rest[0]
	g.rest = g.rest[1:]
	g.letter = c
	i := strings.IndexByte(g.short, c)
	if i < 0 || c == ':' {
		return optUnknown
	}
	kind := noArg
	if strings.HasPrefix(g.short[i+1:], "::") {
		kind = maybeArg
	} else if strings.HasPrefix(g.short[i+1:], ":") {
		kind = needArg
	}
	switch {
	case kind == noArg:
	case g.rest != "":
		g.arg, g.hasArg, g.rest = g.rest, true, ""
	case kind == needArg:
		if g.ind >= len(g.argv) {
			return optMissing
		}
		g.arg, g.hasArg = g.argv[g.ind], true
		g.ind++
	}
	return int(c)
}

func (g *getopt) longOption(s string) int {
	name, val, eq := strings.Cut(s, "=")
	var hit *longOpt
	for i := range g.long {
		o := &g.long[i]
		if !strings.HasPrefix(o.name, name) {
			continue
		}
		if o.name == name {
			hit, g.amb = o, nil
			break
		}
		if hit != nil && (hit.id != o.id || hit.arg != o.arg) {
			g.amb = append(g.amb, o.name)
		}
		if hit == nil {
			hit = o
		}
	}
	switch {
	case len(g.amb) > 0:
		g.amb = append([]string{hit.name}, g.amb...)
		return optUnknown
	case hit == nil:
		return optUnknown
	case hit.arg == noArg && eq:
		g.full = hit.name
		return optUnknown
	case hit.arg == noArg:
	case eq:
		g.arg, g.hasArg = val, true
	case hit.arg == needArg:
		if g.ind >= len(g.argv) {
			g.full = hit.name
			return optMissing
		}
		g.arg, g.hasArg = g.argv[g.ind], true
		g.ind++
	}
	return hit.id
}
