package iptables

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

var xmlInputs = []string{
	"",
	"*filter\nCOMMIT\n",
	"*filter\n:INPUT DROP [0:0]\n:mine - [0:0]\n:empty - [3:4]\n-A INPUT -p tcp -m tcp --syn -j mine\n-A INPUT -p tcp -m tcp ! --syn -g mine\n" +
		"-A INPUT -p tcp -m tcp ! --tcp-flags SYN,RST SYN -j LOG --log-prefix \"a <b> & c\" --log-tcp-options\n" +
		"-A INPUT ! -s 1.2.3.4 -f -j LOG\n[5:60] -A mine -m set ! --match-set a src,dst -j RETURN\n-A mine\n-A mine -j ACCEPT\nCOMMIT\n" +
		"# Completed on Mon Nov 23 03:06:34 2026\n*nat\n:POSTROUTING ACCEPT [1:2]\n-A POSTROUTING -o eth0 -m comment --comment \"it's one\" -j MASQUERADE\nCOMMIT\n",
	"*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j LOG\n[1:2] -A INPUT -p tcp -j DROP\n-A INPUT -p tcp -j mine\nCOMMIT\n",
	"*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -j ACCEPT\n-A INPUT -p tcp -j DROP\n-A INPUT -p tcp -j LOG\n-A INPUT -p tcp -j LOG --log-uid\nCOMMIT\n",
	"*filter\n:INPUT ACCEPT\nfoo\nCOMMIT\n",
	"-A INPUT -j ACCEPT\n",
	"*filter\n:INPUT\nCOMMIT\n",
	"*filter\n:INPUT DROP [5:6]\n-A INPUT -j ACCEPT\n",
	"*filter\n:INPUT DROP [5:6]\n-A INPUT -j ACCEPT\n-I INPUT 1 -j DROP\nCOMMIT\n",
}

// TestXML holds iptables-xml against the real one.
func TestXML(t *testing.T) {
	if v, err := exec.Command("iptables", "-V").Output(); err != nil || !strings.Contains(string(v), "v1.8.9") {
		t.Skip("needs iptables 1.8.9")
	}
	for _, in := range xmlInputs {
		for _, args := range [][]string{nil, {"-c"}} {
			var wantOut, wantErr, out, errs bytes.Buffer
			c := exec.Command("iptables-xml", args...)
			c.Stdin, c.Stdout, c.Stderr = strings.NewReader(in), &wantOut, &wantErr
			if err := c.Run(); err != nil && c.ProcessState == nil {
				t.Skip("no iptables-xml: ", err)
			}
			status := XML(append([]string{"iptables-xml"}, args...), strings.NewReader(in), &out, &errs)
			if status != c.ProcessState.ExitCode() || out.String() != wantOut.String() || errs.String() != wantErr.String() {
				t.Errorf("%q %q\n got %d %s%s\nwant %d %s%s", args, in, status, out.String(), errs.String(), c.ProcessState.ExitCode(), wantOut.String(), wantErr.String())
			}
		}
	}
}
