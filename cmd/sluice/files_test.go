package main

import (
	"slices"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	for _, c := range []struct{ argv, args, input, output string }{
		{"conntrack -L", "conntrack -L", "", ""},
		{"conntrack -R f", "conntrack -R -", "f", ""},
		{"conntrack -Rf", "conntrack -R-", "f", ""},
		{"conntrack --load-file f", "conntrack --load-file -", "f", ""},
		{"conntrack --load-file=f", "conntrack --load-file=-", "f", ""},
		{"conntrack -R -", "conntrack -R -", "", ""},
		{"conntrack -R", "conntrack -R", "", ""},
		{"iptables-restore -n f", "iptables-restore -n", "f", ""},
		{"iptables-save -f f -c", "iptables-save -c", "", "f"},
		{"iptables -L", "iptables -L", "", ""},
	} {
		b, ok := borrowed(strings.Fields(c.argv))
		if !ok {
			t.Fatal(c.argv)
		}
		got := b.files()
		if !slices.Equal(got.Args, strings.Fields(c.args)) || got.Input != c.input || got.Output != c.output {
			t.Errorf("%s: %+v", c.argv, got)
		}
	}
}
