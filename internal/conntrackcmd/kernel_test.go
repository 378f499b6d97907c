package conntrackcmd

import (
	"bytes"
	"os/exec"
	"regexp"
	"sort"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet/packettest"
)

// script is typed to the real conntrack in a namespace and to ours; what they
// print must be the same but for numbers of the machine (see blur).
const script = `
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 1000 -m 5
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1001 --dport 80 --state SYN_SENT -t 1000 -w 7
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1001 --dport 80 --state SYN_SENT -t 1000 -w 7
-A -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1001 --dport 80 --state SYN_SENT -t 1000 -w 7
-I -s 1.1.1.1 -d 2.2.2.2 -p udp --sport 1001 --dport 53 -t 1000 --orig-zone 4
-I -s 1.1.1.1 -d 2.2.2.2 -p udp --sport 1001 --dport 53 -t 1000 --reply-zone 5
-I -s 1.1.1.1 -d 2.2.2.2 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 99 -t 1000
-I -s 1.1.1.1 -d 2.2.2.2 -p sctp --sport 1 --dport 2 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2 -t 1000
-I -s 1.1.1.1 -d 2.2.2.2 -p 47 --srckey 0x1 --dstkey 2 -t 1000
-I -s 1.1.1.1 -d 2.2.2.2 -p udplite --sport 1 --dport 2 -t 1000
-I -s 1.1.1.1 -d 2.2.2.2 -p 50 -t 1000
-I -s fd00::1 -d fd00::2 -p tcp --sport 1000 --dport 80 --state CLOSE -t 1000
-I -s fd00::1 -d fd00::2 -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 12 -t 1000
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1003 --dport 80 --state ESTABLISHED -u SEEN_REPLY -t 1000 --src-nat 3.3.3.3
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1004 --dport 80 --state ESTABLISHED -u SEEN_REPLY -t 1000 --dst-nat 10.0.0.1:8080
-I -s 1.1.1.1 -d 2.2.2.2 -r 2.2.2.2 -q 3.3.3.4 -p tcp --sport 1006 --dport 80 --reply-port-src 80 --reply-port-dst 1006 --state NONE -t 1000
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1005 --dport 80 -t 100
-I -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1005 --state NONE -t 100
-I -f ipv6 -s fd00::1 -d fd00::2 -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 12 -t 100
-I -p udp -s 1.1.1.1 -d 2.2.2.2 --sport 1 --dport 2
-I -p udp -s 1.1.1.1 -d 2.2.2.2 -t 5
-I -p icmp -s 1.1.1.1 -d 2.2.2.2 -t 5
-I -p sctp -s 1.1.1.1 -d 2.2.2.2 -t 5 --sport 1 --dport 2
-I -p sctp -s 1.1.1.1 -d 2.2.2.2 -t 5 --sport 1 --dport 2 --state CLOSED
-I -p gre -s 1.1.1.1 -d 2.2.2.2 -t 5
-I -p udp -s 1.1.1.1 -t 5 --sport 1 --dport 2
-I -s 1.1.1.1
-A
-C
-L
-L -f ipv6
-L -f ipv4
-L -o extended
-L -o id
-L -o extended,id,ktimestamp
-L -o timestamp
-L -o labels
-L -o xml
-L -o xml,extended,id
-L -o xml,ktimestamp
-L -o save
-L -o userspace
-L -p tcp
-L -p tcp --sport 1000
-L -p tcp --state SYN_SENT
-L -p tcp --state syn_sent
-L -p icmp --icmp-type 8
-L -p icmp --icmp-typ 8
-L -p tcp --spo 1000
-L -u ASSURED
-L -u assured
-L -u UNSET
-L -u SEEN_REPLY
-L -u ASSURED,SEEN_REPLY
-L -u FIXED_TIMEOUT
-L -m 5
-L -m 1/1
-L -m 0
-L -w 7
-L -w 0
-L --orig-zone 4
-L --orig-zone 7
-L --reply-zone 5
-L -n
-L -g
-L -j
-L -n 3.3.3.3
-L -n 3.3.3.4
-L -g 10.0.0.1
-L -j 10.0.0.1
-L -n -g
-L --src-nat=3.3.3.3
-L -s 1.1.1.0/24 -p icmp
-L -s 1.1.1.0 --mask-src 255.255.255.0 -p icmp
-L -d 2.2.2.2 -p sctp
-L -r 10.0.0.1
-L -q 3.3.3.3
-L -s fd00::1 -p tcp
-L -c 5 -p 50
-L -z -p 50
-L -z -f ipv6
-L dying
-L unconfirmed
-L expect
-L expect -o xml
-G -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 80
-G -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1999 --dport 80
-G -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 80 -o xml
-G -p tcp -s 1.1.1.1 -d 2.2.2.2
-G -p icmp -s 1.1.1.1 -d 2.2.2.2
-G
-G -p tcp
-G -s 1.1.1.1 -d fd00::1 -p udp --sport 1 --dport 2
-U -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 80 -m 7
-U -s 1.1.1.1 -d 2.2.2.2 -p tcp --sport 1000 --dport 80 -m 0xf0/0x0f
-U -s 9.9.9.9 -m 1
-D -p tcp --sport 1001 -o id
-D -p tcp --sport 1001
-D -p udp -o extended
-D -s 9.9.9.9
-L -p tcp --state FOO
-L -p foo
-L -p 300
-L -p ah
-L -p ICMP
-L -p ipv6-icmp
-L --orphan
-X
-L -o foo
-L -o id,foo
-L -o
-L -p
-L -u foo
-L -u ASSURED,
-L foo
-L -f ipv9
-L -s xx
-L -s 1.1.1.1/33
-L -s 1.1.1.1/x
-L --mask-src 255.0.0.0
-L --mask-src foo
-L -s fd00::1 -d 1.1.1.1
-L -f ipv4 -s fd00::1
-L --sport 5
-L -e NEW
-L -t 5
-L -n foo
-L -L
-L -S
-S -L
-V -L
-L --sr 8.8.8.8
-L -l foo
-E -e FOO
-C dying
-C foo
-F dying
-S foo
-F expect
-C expect
-D expect
-D expect -s 1.1.1.1
-D expect -s 1.1.1.1 -d 2.2.2.2
-I expect -s 1.1.1.1 -d 2.2.2.2 -p tcp
-V
--version
--dum -p 50
-R /nonexistent
-F -f ipv6
-F
-L
`

var blurs = []struct{ re, to string }{
	{`\bid=\d+`, "id=#"}, {`<id>\d+`, "<id>#"}, {`delta-time=\d+`, "delta-time=#"}, {`<deltatime>\d+`, "<deltatime>#"},
	{`\[start=[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\]`, "[start=#]"}, {`<start>\d+`, "<start>#"},
	{`\b(1000|9\d\d)\b( [A-Z\[s])`, "1000$2"}, {`<timeout>(1000|9\d\d)<`, "<timeout>1000<"}, {`-t (1000|9\d\d) `, "-t 1000 "},
}

// blur replaces what differs between two runs of the same thing, and sorts the
// lines: neither table has an order.
func blur(s string) string {
	for _, b := range blurs {
		s = regexp.MustCompile(b.re).ReplaceAllString(s, b.to)
	}
	l := strings.Split(s, "\n")
	sort.Strings(l)
	return strings.Join(l, "\n")
}

func TestTypedToBoth(t *testing.T) {
	if _, err := exec.LookPath("conntrack"); err != nil {
		t.Skip("needs conntrack")
	}
	k := packettest.NewKernel(t)
	k.Sysctl("net/netfilter/nf_conntrack_acct=1")
	k.Sysctl("net/netfilter/nf_conntrack_timestamp=1")
	set := sysctl.NewSet()
	tbl := conntrack.New(set, conntrack.Options{})
	set.Lookup("net.netfilter.nf_conntrack_acct").Store(1)
	set.Lookup("net.netfilter.nf_conntrack_timestamp").Store(1)
	k.Run("conntrack -F")
	for _, line := range strings.Split(strings.TrimSpace(script), "\n") {
		argv := strings.Fields(line)
		var want, got bytes.Buffer
		cmd := exec.Command("conntrack", argv...)
		cmd.Stdout, cmd.Stderr = &want, &want
		cmd.Run()
		code := Run(tbl, argv, strings.NewReader(""), &got, &got, nil)
		if w, g := blur(want.String()), blur(got.String()); w != g {
			t.Errorf("conntrack %s\nreal:\n%s\nours:\n%s", line, w, g)
		}
		if w := cmd.ProcessState.ExitCode(); w != code {
			t.Errorf("conntrack %s: exit status %d, ours %d", line, w, code)
		}
	}
}
