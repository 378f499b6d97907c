package iptables

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/tables"
)

var (
	helpEnd    = regexp.MustCompile(`--version.*\n`)
	helpTitle  = regexp.MustCompile(`(?m)^\w+ (match|target): .*$`)
	helpOption = regexp.MustCompile(`--[a-z0-9][a-z0-9-]*`)
)

// helpOptions are the options that -h explains behind the program's own; what an
// extension is for may speak of others.
func helpOptions(text string) (out []string) {
	if at := helpEnd.FindStringIndex(text); at != nil {
		out = helpOption.FindAllString(helpTitle.ReplaceAllString(text[at[1]:], ""), -1)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// extensionHelp calls f with -h of each extension, and the options that it takes.
func extensionHelp(f func(argv, takes []string)) {
	names := func(options []tables.Option) (out []string) {
		for i := range options {
			out = append(out, "--"+options[i].Name)
			for _, alias := range options[i].Aliases {
				out = append(out, "--"+alias)
			}
		}
		slices.Sort(out)
		return out
	}
	reg := newEngines().Registry
	for _, prog := range []string{"iptables", "ip6tables"} {
		fam := packet.IPv4
		if prog == "ip6tables" {
			fam = packet.IPv6
		}
		for _, m := range reg.Matches(fam) {
			for _, name := range append([]string{m.Name}, m.Aliases...) {
				f([]string{prog, "-m", name, "-h"}, names(m.Options))
			}
		}
		for _, t := range reg.Targets(fam) {
			f([]string{prog, "-j", t.Name, "-h"}, names(t.Options))
		}
	}
}

// TestExtensionHelp: -h of an extension names all options that it takes, and
// says something of each.
func TestExtensionHelp(t *testing.T) {
	run := ours(newEngines())
	extensionHelp(func(argv, takes []string) {
		code, out, errs := run(argv, "")
		if code != 0 || errs != "" {
			t.Errorf("%q: status %d, %s", argv, code, errs)
		}
		section := out[strings.LastIndex(out, "\n\n")+2:]
		lines := strings.Split(strings.TrimSpace(section), "\n")
		if !helpTitle.MatchString(lines[0]) {
			t.Errorf("%q: the last section is\n%s", argv, section)
		}
		for _, option := range takes {
			at := slices.IndexFunc(lines[1:], func(line string) bool {
				return slices.Contains(helpOption.FindAllString(line, -1), option)
			})
			if at < 0 {
				t.Errorf("%q does not name %s:\n%s", argv, option, section)
			}
		}
		for _, line := range lines {
			if w := strings.Fields(line); len(w) < 3 {
				t.Errorf("%q: without a word: %q", argv, line)
			}
		}
	})
}

// TestHelpAttached: names that are attached to -p and -j count, which the real
// one misreads.
func TestHelpAttached(t *testing.T) {
	run := ours(newEngines())
	_, tcp, _ := run([]string{"iptables", "-p", "tcp", "-h"}, "")
	_, both, _ := run([]string{"iptables", "-p", "tcp", "-m", "tcp", "-j", "LOG", "-h"}, "")
	_, none, _ := run([]string{"iptables", "-h"}, "")
	if len(helpOptions(tcp)) == 0 || len(helpOptions(both)) <= len(helpOptions(tcp)) || len(helpOptions(none)) != 0 {
		t.Fatalf("%s%s%s", none, tcp, both)
	}
	for line, want := range map[string]string{
		"-ptcp -h": tcp, "--proto=tcp -h": tcp, "--jump=LOG -m tcp -h": both, "-jLOG -mtcp -h": both,
	} {
		if _, out, _ := run(append([]string{"iptables"}, strings.Fields(line)...), ""); out != want {
			t.Errorf("%s: %s", line, out)
		}
	}
}

// helpLines are command lines with -h among other things.
var helpLines = strings.Split(`-m tcp -h
-mtcp -h
-mtcp -nh
--match tcp --help
--mat=tcp --hel
--match=tcp --h
-m tcp -h -m udp
-m tcp -m udp -h
-m tcp -m tcp -h
-m tcp -hfoo
-m tcp --help=foo
-m tcp ! -h
-p tcp -h
-p TCP -h
-p 6 -h
-p all -h
-p icmp -h
-p icmpv6 -h
-p ipv6-icmp -h
-p 1 -h
-p 58 -h
-p sctp -h
-p udplite -h
-p ah -h
-p esp -h
-p mh -h
-p ipv6-mh -h
-p ipv6-frag -h
-p nosuch -h
-p tcp -p udp -h
-p tcp -m udp -h
-p tcp --dport 80 -h
-p 6 --dport 80 -h
-p tcp -j LOG -h
-m limit -j MARK --set-mark 1 --help
-A INPUT -m tcp -j LOG -h
-j LOG -j MARK -h
-j LOG -h
-j LOG --log-pre x -h
-g LOG -h
-j ACCEPT -h
-j DROP -h
-j nosuch -h
-m nosuch -h
-m tcp -m nosuch -h
-m NOSUCH -h
-m icmp -h
-m icmpv6 -h
-m -h
-j -h
-h
-h nosuch
-h tcp
-h -m tcp
--hel
! -h
-t nosuch -h
-A INPUT -h
-L -h
-L INPUT -N x -h
-N x -j x -h
-s 1.2.3.4 -h
-s bad..x -h
--dport 1 -h
--nosuch -h
-m mark --mark -h
-m mark --mark x -h
-m mark --mark 1 --mark 1 -h
-m comment --comment -h
-m multiport --dports 1 -h`, "\n")

// TestHelpReference: -h has the status and the error of the real one, and names
// the same extensions' options: those that the real one takes without a word
// about them too.
func TestHelpReference(t *testing.T) {
	needReference(t)
	inNamespace(t, func() {
		run := ours(newEngines())
		compare := func(argv, silent []string) {
			code, out, errs := reference(argv, "")
			if strings.Contains(errs, "missing kernel module?") {
				return // the real one then looks at no more
			}
			gotCode, gotOut, gotErrs := run(argv, "")
			if gotCode != code || gotErrs != errs || (gotOut == "") != (out == "") {
				t.Errorf("%q: status %d, %q; the real one's %d, %q", argv, gotCode, gotErrs, code, errs)
			}
			want, got := helpOptions(out), helpOptions(gotOut)
			for _, option := range want {
				if !slices.Contains(got, option) {
					t.Errorf("%q does not name %s", argv, option)
				}
			}
			for _, option := range got {
				if !slices.Contains(want, option) && !slices.Contains(silent, option) {
					t.Errorf("%q names %s", argv, option)
				}
			}
		}
		extensionHelp(compare)
		for _, line := range helpLines {
			for _, prog := range []string{"iptables", "ip6tables"} {
				compare(append([]string{prog}, strings.Fields(line)...), nil)
			}
		}
		compare([]string{"iptables", "-j", "", "-h"}, nil)
		compare([]string{"iptables", "-m", "", "-h"}, nil)
	})
}
