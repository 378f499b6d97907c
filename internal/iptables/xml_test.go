package iptables

import (
	"bytes"
	"encoding/xml"
	"io"
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
	needXML(t)
	for _, in := range xmlInputs {
		for _, args := range [][]string{nil, {"-c"}, {"-v"}, {"-vc"}, {"--comb"}, {"--verb", "--c"}, {"-h"}, {"-c", "--he"}, {"-x"}, {"-cq"}, {"--foo"}, {"--help=3"}, {"-"}, {"nofile"}, {"--", "nofile"}, {"nofile", "-q"}, {"a", "b"}, {"--"}} {
			sameXML(t, in, args)
		}
	}
}

// FuzzXML: what iptables-xml makes of an input that it takes is well-formed.
func FuzzXML(f *testing.F) {
	for _, in := range append(xmlInputs, "# \xff\x01-->\n*f\x02<\n:a:b<&\"\xe9 - [1:2]\n-A a:b<&\"\xe9 --\x03>x \x04 - \"\x05\" -m <a -j a:b<&\"\xe9\nCOMMIT\n") {
		f.Add(in, true)
	}
	f.Fuzz(func(t *testing.T, in string, combine bool) {
		var out, errs bytes.Buffer
		argv := []string{"iptables-xml", "-c"}
		if !combine {
			argv = argv[:1]
		}
		switch status := XML(argv, strings.NewReader(in), &out, &errs); {
		case status < 0 || status > 2:
			t.Fatalf("exit status %d", status)
		case (status != 0) != (errs.Len() > 0):
			t.Fatalf("exit status %d, %q", status, errs.String())
		case status != 0:
			return
		}
		for d := xml.NewDecoder(&out); ; {
			if _, err := d.Token(); err == io.EOF {
				return
			} else if err != nil {
				t.Fatalf("%v in what %q became", err, in)
			}
		}
	})
}
