package conformance

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// allowance is a difference of rules' text that docs/differences.md has.
type allowance struct {
	row  string // what the row, or another part of it, says
	is   func(c *textCase, ours, real outcome) bool
	both bool // both variants have to differ in this way
}

// allowances are all of them; what is not here is a mismatch.
var allowances = []allowance{
	{row: "SECMARK labels", both: true, is: func(c *textCase, ours, real outcome) bool {
		return c.uses("SECMARK") && (ours.refused == "" || c.value(nothing, "selctx")) &&
			(strings.Contains(real.refused, "No chain/target/match by that name") || strings.Contains(real.refused, "No such file or directory"))
	}},
	{row: "numbers that do not fit", is: func(c *textCase, ours, real outcome) bool {
		return ours.refused != "" && (real.refused == "" || tooLarge.MatchString(ours.refused) || c.uses("connlabel")) &&
			((c.uses("udp") || c.uses("dccp")) && c.value(tooLargePort, "sport", "source-port", "dport", "destination-port") ||
				c.uses("conntrack") && c.value(tooLargePort, "ctorigsrcport", "ctorigdstport", "ctreplsrcport", "ctrepldstport") ||
				c.uses("TPROXY") && c.value(tooLargePort, "on-port") ||
				c.uses("connlabel") && c.value(tooLarge, "label") ||
				c.uses("hashlimit") && (c.value(letters, "hashlimit-burst") || c.value(wraps, "hashlimit-burst")) ||
				c.uses("time") && c.value(wraps, "timestart", "timestop", "datestart", "datestop"))
	}},
	{row: "`eui64` in `-L`", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("eui64") && c.uses("QUEUE") && lineEnd.ReplaceAllString(real.printed, "") == lineEnd.ReplaceAllString(ours.printed, "")
	}},
	{row: "name of `CT --timeout`", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("CT") && real.refused == "" && ours.refused == "" && cutPolicy.ReplaceAllString(ours.printed, "$1") == real.printed
	}},
	{row: "RATEEST's times", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("RATEEST") && !usage(real) && strings.Contains(ours.refused, "RATEEST: ewmalog value is out of range")
	}},
	{row: "a range of all values", is: func(c *textCase, ours, real outcome) bool {
		return ours.refused == "" && real.refused == "" && leavesOut(ours.printed, real.printed, everything)
	}},
	{row: "`--tcp-flags` with a mask of none", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("tcp") && real.refused == "" && leavesOut(ours.printed, real.printed, maskOfNone)
	}},
	{row: "`time` with no day left", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("time") && strings.Contains(ours.refused, "leaves no day") && !usage(real)
	}},
	{row: "`time` with all days", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("time") && leavesOut(real.printed, ours.printed, allDays)
	}},
	{row: "names with special characters", is: func(c *textCase, ours, real outcome) bool {
		quotes := c.uses("osf") || c.uses("RATEEST") || c.uses("rateest") || c.uses("recent") || c.uses("TEE") || c.uses("hashlimit")
		return real.refused == "" && (quotes && withoutQuotes(ours.printed) == withoutQuotes(real.printed) || c.uses("osf") && strings.Contains(ours.refused, "names no system"))
	}},
	{row: "prefix of `NFLOG` above 63 bytes", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("NFLOG") && withoutQuotes(longPrefix.ReplaceAllString(real.printed, "$1$2")) == withoutQuotes(ours.printed)
	}},
	{row: "labels with blanks", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("IDLETIMER") && withoutQuotes(ours.printed) == withoutQuotes(real.printed)
	}},
	{row: "`hashlimit` below 16 bytes/s", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("hashlimit") && real.refused == "" && (strings.ReplaceAll(ours.printed, " 1b/s", " 0b/s") == real.printed || c.value(letters, "hashlimit-burst"))
	}},
	{row: "other empty lists", is: func(c *textCase, ours, real outcome) bool {
		return real.refused == "" && slices.Contains(c.args, "") && strings.Contains(ours.refused, "Empty interface") ||
			!usage(real) && (c.uses("physdev") && strings.Contains(ours.refused, "names no interface") || c.uses("dccp") && strings.Contains(ours.refused, "names no type"))
	}},
	{row: "`cluster --cluster-local-nodemask` above 32", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("cluster") && c.value(above32, "cluster-local-nodemask") && strings.Contains(real.refused, `"--cluster-local-nodemask", or out of range (1-32)`)
	}},
	{row: "`recent --seconds 4294967295`", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("recent") && strings.NewReplacer("--seconds 4294967295", "--seconds -1", "seconds: 4294967295", "seconds: -1").Replace(ours.printed) == real.printed
	}},
	{row: "`-eq` given twice", is: func(c *textCase, ours, real outcome) bool {
		return c.uses("rateest") && strings.Contains(real.refused, "can't specify lt/gt/eq twice")
	}},
	{row: "SNPT and DNPT with `::/0`", is: func(c *textCase, ours, real outcome) bool {
		return (c.uses("SNPT") || c.uses("DNPT")) && leavesOut(ours.printed, real.printed, noPrefix)
	}},
	{row: "`--to-ports 5-7/9`", is: func(c *textCase, ours, real outcome) bool {
		return (c.uses("MASQUERADE") || c.uses("SNAT")) && ours.refused == "" && strings.Contains(real.refused, "Port `0' not valid")
	}},
}

// allowedBy is the allowance for a difference; nil: there is none.
func allowedBy(c *textCase, ours, legacy, nft outcome) *allowance {
	for i := range allowances {
		a := &allowances[i]
		one, other := a.is(c, ours, legacy), a.is(c, ours, nft)
		if one && other || !a.both && (one || other) {
			return a
		}
	}
	return nil
}

// cannotTell: this kernel lacks what the rule needs, so there is nothing to compare with.
func cannotTell(legacy, nft outcome) bool {
	const lacks = "missing kernel module?"
	return strings.Contains(legacy.refused, lacks) && strings.Contains(nft.refused, lacks)
}

// usage: it was refused as it was read, and not by the kernel.
func usage(o outcome) bool { return strings.HasPrefix(o.refused, "2 ") }

// uses: the rule names the extension, or the protocol that loads it.
func (c *textCase) uses(name string) bool {
	for i, a := range c.args {
		if i+1 < len(c.args) && c.args[i+1] == name && (a == "-m" || a == "-j" || a == "-p") {
			return true
		}
	}
	return false
}

// value: one of the options, perhaps cut short, has a value like this.
func (c *textCase) value(like *regexp.Regexp, options ...string) bool {
	for i, a := range c.args[:max(len(c.args)-1, 0)] {
		for _, o := range options {
			if len(a) > 4 && strings.HasPrefix("--"+o, a) && like.MatchString(c.args[i+1]) {
				return true
			}
		}
	}
	return false
}

var (
	tooLargePort = regexp.MustCompile(`\d{6,}|[7-9]\d{4}|6[6-9]\d{3}|65[6-9]\d\d|655[4-9]\d|6553[6-9]`)
	tooLarge     = regexp.MustCompile(`\d{5,}|0[xX][\da-fA-F]{5,}`)
	wraps        = regexp.MustCompile(`\d{9,}`)
	nothing      = regexp.MustCompile(`^$`)
	above32      = regexp.MustCompile(`^ *\+?(0[xX][\da-fA-F]{2,}|0\d{2,}|3[3-9]|[4-9]\d|[1-9]\d{2,})`)
	noPrefix     = regexp.MustCompile(` (--)?(src|dst)-pfx ::/\d+`)
	allDays      = regexp.MustCompile(` --monthdays 1,2,.*,30,31\b| on 1st,2nd,.*,30th,31st\b|( --weekdays| on) Mon,Tue,Wed,Thu,Fri,Sat,Sun\b`)
	longPrefix   = regexp.MustCompile(`(nflog-prefix (?:"[^"\n]{63}|[^"\s]{63}))[^"\n]*?("|\s|$)`)
	cutPolicy    = regexp.MustCompile(`(timeout \S{4})\S*`)
	lineEnd      = regexp.MustCompile(`(?m) *(eui64 )?$`)
	letters      = regexp.MustCompile(`\d+.*[a-zA-Z]`)
	everything   = regexp.MustCompile(` (! )?--[a-z]+ 0:(65535|4294967295)\b| [a-z]+:!?0:(65535|4294967295)\b`)
	maskOfNone   = regexp.MustCompile(` (! )?--tcp-flags NONE [A-Z,]+| flags:!?(NONE|0x00)/[A-Z0-9a-fx,]+`)
)

// leavesOut: without some parts, which it has, one text is the other.
func leavesOut(ours, real string, part *regexp.Regexp) bool {
	return ours != real && part.MatchString(ours) && part.ReplaceAllString(ours, "") == part.ReplaceAllString(real, "")
}

func withoutQuotes(s string) string { return strings.NewReplacer(`"`, "", `\`, "").Replace(s) }

// met counts how often each difference was met.
var met struct {
	sync.Mutex
	n map[string]int
}

func meet(row string) {
	met.Lock()
	defer met.Unlock()
	if met.n == nil {
		met.n = map[string]int{}
	}
	met.n[row]++
}

// TestAllowancesAreListed: every difference that is passed over has its row in
// docs/differences.md.
func TestAllowancesAreListed(t *testing.T) {
	text, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range allowances {
		if !strings.Contains(string(text), a.row) {
			t.Errorf("docs/differences.md has nothing of %q", a.row)
		}
	}
}
