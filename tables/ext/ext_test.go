package ext

import (
	"strings"
	"testing"

	"sluice/packet"
	"sluice/tables"
)

func TestSmoke(t *testing.T) {
	for _, s := range []string{
		"-p tcp --dport 80 -j LOG --log-prefix x | -p tcp -m tcp --dport 80 -j LOG --log-prefix x",
		"-m limit --limit 5/m -j ACCEPT | -m limit --limit 5/min -j ACCEPT",
		"-s 1.2.3.4/8 ! -i eth+ -p tcp ! --syn -g foo | -s 1.0.0.0/8 ! -i eth+ -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -g foo",
	} {
		in, want, _ := strings.Cut(s, " | ")
		rs, err := tables.ParseRule(Registry, packet.IPv4, tables.Filter, "INPUT", strings.Fields(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if got := rs[0].Save()[1:]; got != want {
			t.Errorf("%s:\n got %s\nwant %s", in, got, want)
		}
	}
}
