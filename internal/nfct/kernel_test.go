package nfct

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet/packettest"
)

// lines are typed one after the other.
const lines = `list timeout
add timeout t1 inet tcp established 100 close 10 close_wait 10
add timeout t1 inet tcp established 100
add timeout t2 inet udp replied 50
add timeout t3 inet6 udp unreplied 5
list timeout
get timeout t1
get timeout nope
delete timeout nope
add timeout
add timeout x
add timeout x inet
add timeout x inet tcp
add timeout x bogus tcp established 1
add timeout x inet bogus established 1
add timeout x inet tcp foo 1
add timeout x inet tcp established
add timeout x inet tcp established abc
add timeout x1 inet udp replied 5x UNREPLIED 4
add timeout x2 inet udp replied 1 replied 2
add timeout x3 inet udp unreplied 1 replied
add timeout x4 inet udp foo
list timeout extra
get timeout
get timeout a b
delete timeout
delete timeout a b
delete timeout t2
timeout list
flush timeout x
flush timeout
timeout list
add timeout a inet udplite replied 9
add timeout b inet icmp timeout 9
add timeout c inet6 icmpv6 timeout 9
add timeout d inet sctp established 9
add timeout e inet dccp open 9
add timeout f inet gre replied 9
timeout add g inet generic timeout 9
add timeout averyveryveryveryveryverylongnamethatistoolong inet udp replied 9
get timeout averyveryveryveryveryverylongnamethatistoolong
add timeout l inet tcp retrans 5 unacknowledged 6 syn_sent2 7 last_ack 8
add timeout x inet icmp replied 2
add timeout x inet 17 replied 5
list timeout
default-get timeout
default-get timeout inet
default-get timeout inet udp x
default-get timeout inet tcp
default-get timeout inet sctp
default-get timeout inet6 icmpv6
default-get timeout inet dccp
default-get timeout bogus tcp
default-get timeout inet bogus
default-set timeout inet
default-set timeout inet tcp
default-set timeout inet tcp foo 1
default-set timeout inet tcp established
default-set timeout inet dccp open 5
default-set timeout inet tcp established 1000 close 7
default-get timeout inet tcp
add timeout y inet tcp close_wait 1
get timeout y
disable timeout x
timeout bogus
helper bogus
bogus timeout
list bogus
version x
help timeout
version timeout
version
help
default-set helper x
list`

// TestAsNFCT holds output, messages and exit status against the real program's.
func TestAsNFCT(t *testing.T) {
	if _, err := exec.LookPath("nfct"); err != nil {
		t.Skip("needs nfct")
	}
	packettest.NewKernel(t)
	table := conntrack.New(sysctl.NewSet(), conntrack.Options{})
	for _, l := range strings.Split(lines, "\n") {
		var out, errs, ours, oursErr bytes.Buffer
		c := exec.Command("nfct", strings.Fields(l)...)
		c.Stdout, c.Stderr = &out, &errs
		c.Run()
		status := Run(table, append([]string{"nfct"}, strings.Fields(l)...), &ours, &oursErr)
		if status != c.ProcessState.ExitCode() || ours.String() != out.String() || oursErr.String() != errs.String() {
			t.Errorf("nfct %s\nreal: %d\n%s%s\nours: %d\n%s%s", l, c.ProcessState.ExitCode(), &out, &errs, status, &ours, &oursErr)
		}
	}
}

// TestInUse: what a rule names is not deleted, and flush leaves it.
func TestInUse(t *testing.T) {
	table := conntrack.New(sysctl.NewSet(), conntrack.Options{})
	do := func(line, want string, status int) {
		t.Helper()
		var out bytes.Buffer
		if got := Run(table, append([]string{"nfct"}, strings.Fields(line)...), &out, &out); got != status || out.String() != want {
			t.Errorf("%s: %d %q", line, got, &out)
		}
	}
	do("add timeout t inet udp replied 9", "", 0)
	_, release := table.HoldTimeoutPolicy("t")
	do("delete timeout t", "nfct v1.4.7: netlink error: Device or resource busy\n", 1)
	do("flush timeout", "", 0)
	if table.TimeoutPolicy("t") == nil {
		t.Error("flush deleted what is in use")
	}
	release()
	do("delete timeout t", "", 0)
	do("add timeout t inet udp replied 4294968", "nfct v1.4.7: netlink error: Invalid argument\n", 1)
	do("list helper", "nfct v1.4.7: netlink error: Invalid argument\nnfct v1.4.7: sluice has no helpers in other programs; its own are named by -j CT --helper\n", 1)
}
