package ruletest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sluice/router"
)

// rejectTypes are what the router's answer to a rejected packet says.
var rejectTypes = map[string][]string{
	"tcp-reset":              {"tcp", "R"},
	"icmp-net-unreachable":   {"icmp", "type=3/0"},
	"icmp-host-unreachable":  {"icmp", "type=3/1"},
	"icmp-proto-unreachable": {"icmp", "type=3/2"},
	"icmp-port-unreachable":  {"icmp", "type=3/3"},
	"icmp-net-prohibited":    {"icmp", "type=3/9"},
	"icmp-host-prohibited":   {"icmp", "type=3/10"},
	"icmp-admin-prohibited":  {"icmp", "type=3/13"},
	"icmp6-no-route":         {"icmp6", "type=1/0"},
	"icmp6-adm-prohibited":   {"icmp6", "type=1/1"},
	"icmp6-addr-unreachable": {"icmp6", "type=1/3"},
	"icmp6-port-unreachable": {"icmp6", "type=1/4"},
	"icmp6-policy-fail":      {"icmp6", "type=1/5"},
	"icmp6-reject-route":     {"icmp6", "type=1/6"},
}

// judge says which expectations the traces of a packet do not meet.
func (p *packetSpec) judge(ts []*router.Trace) (bad []string) {
	fail := func(format string, a ...any) { bad = append(bad, fmt.Sprintf(format, a...)) }
	t := ts[0]
	is := t.Verdict
	if t.Reason != "" {
		is += " (" + t.Reason + ")"
	} else if len(t.Out) > 0 {
		is += " (out by " + t.Out[0].Iface + ")"
	}
	var answers []string
	for _, a := range ts[1:] {
		for i := range a.Out {
			answers = append(answers, a.Out[i].Packet)
		}
	}
	switch {
	case p.Forwarded != nil:
		if t.Verdict != router.VerdictForwarded && t.Verdict != router.VerdictSent {
			fail("want it forwarded, it was %s", is)
		} else if *p.Forwarded != "" && t.Out[0].Iface != *p.Forwarded {
			fail("want it out by %s, it left by %s", *p.Forwarded, t.Out[0].Iface)
		}
	case p.Delivered != nil && t.Verdict != router.VerdictDelivered:
		fail("want it delivered, it was %s", is)
	case p.Held != nil && t.Verdict != router.VerdictHeld:
		fail("want it held, it was %s", is)
	case p.Dropped != nil:
		if t.Verdict != router.VerdictDropped {
			fail("want it dropped, it was %s", is)
		} else if *p.Dropped != "" && t.Reason != *p.Dropped {
			fail("want it dropped for %s, it was for %s", *p.Dropped, t.Reason)
		}
	case p.Rejected != nil:
		want := rejectTypes[*p.Rejected]
		fits := func(a string) bool {
			words := strings.Fields(a)
			if want == nil {
				return true
			}
			if want[1] == "R" {
				return words[0] == "tcp" && len(words) > 4 && strings.Contains(words[4], "R")
			}
			return words[0] == want[0] && slices.Contains(words, want[1])
		}
		if t.Verdict != router.VerdictDropped {
			fail("want it rejected, it was %s", is)
		} else if !slices.ContainsFunc(answers, fits) {
			fail("want it rejected with %s, the router answered %s", *p.Rejected, listOr(answers, "nothing"))
		}
	}
	if p.As != "" {
		if len(t.Out) == 0 {
			fail("want it to leave as %q, it was %s", p.As, is)
		} else if miss := fitsWords(t.Out[0].Packet, p.As); miss != "" {
			fail("want it to leave as %q, it left as %q: %s", p.As, t.Out[0].Packet, miss)
		}
	}
	if p.Answer != "" && !slices.ContainsFunc(answers, func(a string) bool { return fitsWords(a, p.Answer) == "" }) {
		fail("want the answer %q, the router sent %s", p.Answer, listOr(answers, "nothing"))
	}
	state, mark, connmark := "", "0x0", "0x0"
	var matched []*router.RuleRef
	for i := range t.Steps {
		switch s := &t.Steps[i]; {
		case s.Kind == router.StepConntrack && state == "":
			state = s.Conn.State
			connmark = fmt.Sprintf("0x%x", s.Conn.Mark)
		case s.Kind == router.StepChange && s.Field == "mark":
			mark = s.After
		case s.Kind == router.StepChange && s.Field == "connmark":
			connmark = s.After
		case s.Kind == router.StepRule && s.Matched:
			matched = append(matched, s.Rule)
		}
	}
	if p.State != "" && state != p.State {
		fail("want state %s, it was %s", p.State, state)
	}
	if p.Mark != nil && mark != fmt.Sprintf("0x%x", *p.Mark) {
		fail("want mark 0x%x, it was %s", *p.Mark, mark)
	}
	if p.ConnMark != nil && connmark != fmt.Sprintf("0x%x", *p.ConnMark) {
		fail("want connmark 0x%x, it was %s", *p.ConnMark, connmark)
	}
	if p.Rule != "" {
		switch {
		case t.Rule == nil:
			fail("want rule %q to decide, none did", p.Rule)
		case !isRule(t.Rule, p.Rule):
			fail("want rule %q to decide, it was %s", p.Rule, ruleName(t.Rule))
		}
	}
	for _, want := range p.Matched {
		if !slices.ContainsFunc(matched, func(r *router.RuleRef) bool { return isRule(r, want) }) {
			fail("want rule %q to match, it did not", want)
		}
	}
	for _, want := range p.Unmatched {
		if slices.ContainsFunc(matched, func(r *router.RuleRef) bool { return isRule(r, want) }) {
			fail("want rule %q not to match, it did", want)
		}
	}
	return bad
}

func listOr(s []string, none string) string {
	if len(s) == 0 {
		return none
	}
	return strconv.Quote(strings.Join(s, "; "))
}

func ruleName(r *router.RuleRef) string {
	if r.Num == 0 {
		return fmt.Sprintf("the policy of %s in table %s", r.Chain, r.Table)
	}
	return fmt.Sprintf("rule %d of %s in table %s: %s", r.Num, r.Chain, r.Table, r.Text)
}

// isRule: the rule is the one that text names. A policy is "table CHAIN policy".
func isRule(r *router.RuleRef, text string) bool {
	num := strconv.Itoa(r.Num)
	if r.Num == 0 {
		num = "policy"
	}
	if text == r.Table+" "+r.Chain+" "+num {
		return true
	}
	if r.File != "" && (text == fmt.Sprintf("%s:%d", r.File, r.Line) || strings.HasSuffix(r.File+":"+strconv.Itoa(r.Line), "/"+text)) {
		return true
	}
	return r.Text != "" && strings.Contains(r.Text, text)
}

// fitsWords holds a description against the words that are wanted: protocol and
// ends first, an address without its port fits any port, * fits any end; then
// each further word has to be there. It says what does not fit.
func fitsWords(desc, want string) string {
	d, w := strings.Fields(desc), strings.Fields(want)
	for i, x := range w {
		switch {
		case i < 4 && (len(d) <= i || !fitsEnd(d[i], x)):
			return fmt.Sprintf("no %q", x)
		case i >= 4 && !slices.Contains(d[4:], x):
			if strings.HasPrefix(x, "ttl=64") || x == "tos=0" {
				continue // what a description leaves out
			}
			return fmt.Sprintf("no %q", x)
		}
	}
	return ""
}

func fitsEnd(have, want string) bool {
	if want == "*" || have == want {
		return true
	}
	a, err := netip.ParseAddrPort(have)
	return err == nil && a.Addr().String() == want
}
