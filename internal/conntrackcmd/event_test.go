package conntrackcmd

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet/packettest"
)

// safeBuffer is a buffer that a test may look at while it is written to.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestEvents expects what the real conntrack -E printed for the same packets
// and commands.
func TestEvents(t *testing.T) {
	set := sysctl.NewSet()
	tbl := conntrack.New(set, conntrack.Options{})
	set.Lookup("net.netfilter.nf_conntrack_acct").Store(1)
	w := tbl.NewWorker()
	ftp := tbl.Template(conntrack.Template{Helper: tbl.Helper("ftp")})
	pass := func(desc string) {
		p := packettest.New(t, desc)
		w.Begin(tbl.Now())
		defer w.End()
		if strings.HasPrefix(desc, "tcp") {
			w.SetTemplate(p, ftp)
		}
		if !w.Track(p, 0) || !w.Help(p) || !w.Confirm(p) {
			t.Fatalf("%s dropped: %v", desc, p.Reason)
		}
	}
	var out, expects safeBuffer
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for buf, argv := range map[*safeBuffer][]string{&out: {"-E"}, &expects: {"-E", "expect"}} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if code := Run(tbl, argv, nil, buf, buf, stop); code != 0 {
				t.Errorf("%v: exit status %d", argv, code)
			}
		}()
	}
	for deadline := time.Now().Add(10 * time.Second); tbl.Listeners() < 2; {
		if time.Now().After(deadline) {
			t.Fatal("nobody listens")
		}
		time.Sleep(time.Millisecond)
	}
	c, s := "tcp 10.1.0.2:5000 > 10.2.0.2:21 ", "tcp 10.2.0.2:21 > 10.1.0.2:5000 "
	for _, d := range []string{c + "S seq=100", s + "SA seq=500 ack=101", c + "A seq=101 ack=501",
		s + "PA seq=501 ack=101 hex=323230206869200d0a", c + "PA seq=101 ack=510 hex=5553455220780d0a",
		c + "PA seq=109 ack=510 hex=504f52542031302c312c302c322c342c310d0a",
		"udp 10.1.0.2:5000 > 10.2.0.2:53 len=3", "udp 10.2.0.2:53 > 10.1.0.2:5000 len=3",
		"tcp 10.2.0.2:20 > 10.1.0.2:1025 S seq=1", "tcp 10.2.0.2:20 > 10.1.0.2:1025 R seq=1"} {
		pass(d)
	}
	var none bytes.Buffer
	for _, l := range []string{"-D -p udp", "-I -s fd00::1 -d fd00::2 -p udp --sport 1000 --dport 80 -t 100",
		"-U -s fd00::1 -m 7", "-F"} {
		Run(tbl, strings.Fields(l), nil, &none, &none, nil)
	}
	close(stop)
	wg.Wait()
	want := `    [NEW] tcp      6 120 SYN_SENT src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=21 [UNREPLIED] src=10.2.0.2 dst=10.1.0.2 sport=21 dport=5000 helper=ftp
 [UPDATE] tcp      6 60 SYN_RECV src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=21 src=10.2.0.2 dst=10.1.0.2 sport=21 dport=5000 helper=ftp
 [UPDATE] tcp      6 432000 ESTABLISHED src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=21 src=10.2.0.2 dst=10.1.0.2 sport=21 dport=5000 [ASSURED] helper=ftp
    [NEW] udp      17 30 src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=53 [UNREPLIED] src=10.2.0.2 dst=10.1.0.2 sport=53 dport=5000
 [UPDATE] udp      17 30 src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=53 src=10.2.0.2 dst=10.1.0.2 sport=53 dport=5000
    [NEW] tcp      6 120 SYN_SENT src=10.2.0.2 dst=10.1.0.2 sport=20 dport=1025 [UNREPLIED] src=10.1.0.2 dst=10.2.0.2 sport=1025 dport=20
[DESTROY] tcp      6 120 CLOSE src=10.2.0.2 dst=10.1.0.2 sport=20 dport=1025 packets=2 bytes=80 [UNREPLIED] src=10.1.0.2 dst=10.2.0.2 sport=1025 dport=20 packets=0 bytes=0
[DESTROY] udp      17 30 src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=53 packets=1 bytes=31 src=10.2.0.2 dst=10.1.0.2 sport=53 dport=5000 packets=1 bytes=31 [USERSPACE] portid=#
    [NEW] udp      17 100 src=fd00::1 dst=fd00::2 sport=1000 dport=80 [UNREPLIED] src=fd00::2 dst=fd00::1 sport=80 dport=1000 mark=0 [USERSPACE] portid=#
 [UPDATE] udp      17 100 src=fd00::1 dst=fd00::2 sport=1000 dport=80 [UNREPLIED] src=fd00::2 dst=fd00::1 sport=80 dport=1000 mark=7 [USERSPACE] portid=#
[DESTROY] tcp      6 300 ESTABLISHED src=10.1.0.2 dst=10.2.0.2 sport=5000 dport=21 packets=4 bytes=187 src=10.2.0.2 dst=10.1.0.2 sport=21 dport=5000 packets=2 bytes=89 [ASSURED] [USERSPACE] portid=#
[DESTROY] udp      17 100 src=fd00::1 dst=fd00::2 sport=1000 dport=80 packets=0 bytes=0 [UNREPLIED] src=fd00::2 dst=fd00::1 sport=80 dport=1000 packets=0 bytes=0 mark=7 [USERSPACE] portid=#
conntrack v1.4.7 (conntrack-tools): 12 flow events have been shown.
`
	if got := near(out.String()); got != near(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, near(want))
	}
	wantX := `    [NEW] 300 proto=6 src=10.2.0.2 dst=10.1.0.2 sport=0 dport=1025 mask-src=255.255.255.255 mask-dst=255.255.255.255 sport=0 dport=65535 master-src=10.1.0.2 master-dst=10.2.0.2 sport=5000 dport=21 class=0 helper=ftp
[DESTROY] 300 proto=6 src=10.2.0.2 dst=10.1.0.2 sport=0 dport=1025 mask-src=255.255.255.255 mask-dst=255.255.255.255 sport=0 dport=65535 master-src=10.1.0.2 master-dst=10.2.0.2 sport=5000 dport=21 class=0 helper=ftp
conntrack v1.4.7 (conntrack-tools): 2 expectation events have been shown.
`
	if got := near(expects.String()); got != near(wantX) {
		t.Errorf("got:\n%s\nwant:\n%s", got, near(wantX))
	}
}

var (
	seconds = regexp.MustCompile(`(?m)^(.{10}(?:[a-z]+ +)?(?:\d+ )?)\d+ `)
	portid  = regexp.MustCompile(`portid=(\d+|#)`)
)

// near replaces what depends on the moment: the seconds left, the process.
func near(s string) string {
	return portid.ReplaceAllString(seconds.ReplaceAllString(s, "${1}N "), "portid=#")
}
