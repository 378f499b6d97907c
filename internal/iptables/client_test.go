package iptables

import (
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestClientArgs(t *testing.T) {
	for _, c := range []struct {
		argv, args, in, out string
		stdin               bool
	}{
		{"iptables -A INPUT -j ACCEPT", "iptables -A INPUT -j ACCEPT", "", "", false},
		{"iptables-restore", "iptables-restore", "", "", true},
		{"iptables-restore -n", "iptables-restore -n", "", "", true},
		{"iptables-restore -n file", "iptables-restore -n", "file", "", true},
		{"ip6tables-restore file -n", "ip6tables-restore -n", "file", "", true},
		{"iptables-restore -- -n", "iptables-restore --", "-n", "", true},
		{"iptables-restore -T nat file", "iptables-restore -T nat", "file", "", true},
		{"iptables-restore -Tnat file", "iptables-restore -Tnat", "file", "", true},
		{"iptables-restore --table nat file", "iptables-restore --table nat", "file", "", true},
		{"iptables-restore -w 5 file", "iptables-restore -w 5", "file", "", true},
		{"iptables-restore -w -n file", "iptables-restore -w -n", "file", "", true},
		{"iptables-restore a b", "iptables-restore a b", "", "", false},
		{"iptables-restore -V file", "iptables-restore -V file", "", "", false},
		{"iptables-restore -x file", "iptables-restore -x file", "", "", false},
		{"/usr/sbin/iptables-save -c", "/usr/sbin/iptables-save -c", "", "", false},
		{"iptables-save -f out", "iptables-save", "", "out", false},
		{"iptables-save -fout -t nat -c", "iptables-save -t nat -c", "", "out", false},
		{"iptables-save --file=out --table nat", "iptables-save -t nat", "", "out", false},
		{"iptables-save -c --file out -M x", "iptables-save -c -M x", "", "out", false},
		{"iptables-save -cf out", "iptables-save -c", "", "out", false},
		{"iptables-save -f out extra", "iptables-save extra", "", "out", false},
		{"iptables-save -x -f out", "iptables-save -x -f out", "", "", false},
		{"iptables-save -V -f out", "iptables-save -V -f out", "", "", false},
		{"iptables-save -f", "iptables-save -f", "", "", false},
	} {
		argv := strings.Fields(c.argv)
		kept := slices.Clone(argv)
		f := ClientArgs(argv)
		if got := strings.Join(f.Args, " "); got != c.args || f.Input != c.in || f.Output != c.out || f.NeedsStdin != c.stdin {
			t.Errorf("%s: got %q, in %q, out %q, stdin %v", c.argv, got, f.Input, f.Output, f.NeedsStdin)
		}
		if !slices.Equal(argv, kept) {
			t.Errorf("%s: the arguments were changed to %q", c.argv, argv)
		}
	}
	f := ClientArgs([]string{"iptables-save", "-f", "/x/y"})
	if got := f.OpenError(&fs.PathError{Op: "open", Path: "/x/y", Err: syscall.ENOENT}); got != "Failed to open file, error: No such file or directory\n" {
		t.Error(got)
	}
}
