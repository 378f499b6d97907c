package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"

	"sluice/e2e/lab"
	"sluice/packet"
	"sluice/router/nfqueue"
)

const twoNets = `
[router]
workers = 1
[[interface]]
name = "tun0"
addresses = ["10.1.0.1/24", "fd01::1/64"]
  [interface.host]
  netns = "{ns:one}"
  addresses = ["10.1.0.2/24", "fd01::2/64"]
  routes = ["default via 10.1.0.1", "default via fd01::1"]
[[interface]]
name = "tun1"
addresses = ["10.2.0.1/24", "fd02::1/64"]
  [interface.host]
  netns = "{ns:two}"
  addresses = ["10.2.0.2/24", "fd02::2/64"]
  routes = ["default via 10.2.0.1", "default via fd02::1"]
`

// queueAsk sends a datagram to an echo server and gives what comes back, if it does.
func queueAsk(t *testing.T, ns *lab.NS, to, text string, wait time.Duration) string {
	t.Helper()
	c, err := ns.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		return ""
	}
	b := make([]byte, 2000)
	c.SetReadDeadline(time.Now().Add(wait))
	n, _ := c.Read(b)
	return string(b[:n])
}

// queueEcho answers datagrams with what they hold.
func queueEcho(t *testing.T, ns *lab.NS, addr string) {
	pc := ns.ListenPacket(addr)
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:n], from)
		}
	}()
}

// TestNFQueue: a program decides about packets that real clients send: it lets
// pass, drops, changes the payload, marks and has the table walked again; and
// what happens without one, and with one that has enough.
func TestNFQueue(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	one, two := l.NS("one"), l.NS("two")
	s := l.Sluice(twoNets)
	queueEcho(t, two, "10.2.0.2:7")
	queueEcho(t, two, "[fd02::2]:7")
	s.Must("iptables", "-A", "FORWARD", "-m", "mark", "--mark", "9", "-j", "ACCEPT")
	s.Must("iptables", "-A", "FORWARD", "-p", "udp", "--dport", "7", "-j", "NFQUEUE", "--queue-num", "5")
	s.Must("ip6tables", "-t", "mangle", "-A", "PREROUTING", "-i", "tun0", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "6", "--queue-bypass")

	if got := queueAsk(t, one, "10.2.0.2:7", "nobody", 300*time.Millisecond); got != "" {
		t.Fatalf("without a program: %q", got)
	}
	s.AwaitDropped("nfqueue.no_program", 1)
	if got := queueAsk(t, one, "[fd02::2]:7", "bypass", deadline); got != "bypass" {
		t.Fatalf("with --queue-bypass: %q", got)
	}

	q, err := nfqueue.Open(context.Background(), s.Socket, 5, nfqueue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if _, err := nfqueue.Open(context.Background(), s.Socket, 5, nfqueue.Options{}); err == nil || !strings.Contains(err.Error(), "has a program already") {
		t.Errorf("a second program: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- queueDecide(q) }()
	for text, want := range map[string]string{"accept": "accept", "drop": "", "change me": "CHANGED!!", "repeat": "repeat"} {
		wait := deadline
		if want == "" {
			wait = 300 * time.Millisecond
		}
		if got := queueAsk(t, one, "10.2.0.2:7", text, wait); got != want {
			t.Errorf("%q comes back as %q, not %q", text, got, want)
		}
	}
	s.AwaitDropped("nfqueue.verdict", 1)
	q.Close()
	if err := <-ended; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if n := s.Counter("iptables-save", "--mark 0x9"); n != 1 {
		t.Errorf("%d packets were accepted by their mark", n)
	}

	// A program that has room for one packet, and says nothing.
	q, err = nfqueue.Open(context.Background(), s.Socket, 6, nfqueue.Options{Max: 1, FailOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := queueAsk(t, one, "[fd02::2]:7", "waits", 300*time.Millisecond); got != "" {
		t.Errorf("a packet that waits comes back: %q", got)
	}
	p, err := q.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if p.In != "tun0" || p.Out != "" || p.Hook != 0 || p.Family != packet.IPv6 || p.Queue != 6 || !bytes.HasSuffix(p.Payload, []byte("waits")) {
		t.Errorf("%+v", p)
	}
	if got := queueAsk(t, one, "[fd02::2]:7", "fail-open", deadline); got != "fail-open" {
		t.Errorf("with --fail-open: %q", got)
	}
	q.Close()
	s.AwaitDropped("nfqueue.gone", 1)
}

// queueDecide does to packets what they say.
func queueDecide(q *nfqueue.Queue) error {
	for {
		p, err := q.Recv()
		if err != nil {
			return err
		}
		d := nfqueue.Decision{ID: p.ID, Verdict: nfqueue.Accept}
		switch text := string(p.Payload[28:]); text {
		case "drop":
			d.Verdict = nfqueue.Drop
		case "repeat":
			d.Verdict, d.SetMark, d.Mark = nfqueue.Repeat, true, 9
		case "change me":
			d.Payload = append([]byte(nil), p.Payload...)
			copy(d.Payload[28:], "CHANGED!!")
			binary.BigEndian.PutUint16(d.Payload[26:], 0) // no UDP checksum
		}
		if err := q.Decide(d); err != nil {
			return err
		}
	}
}

// TestNFQueueTCP: a TCP transfer, super-packets and all, passes a program.
func TestNFQueueTCP(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	one, two := l.NS("one"), l.NS("two")
	s := l.Sluice(twoNets)
	s.Must("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "tun1", "-j", "MASQUERADE")
	s.Must("iptables", "-A", "FORWARD", "-p", "tcp", "-j", "NFQUEUE", "--queue-balance", "10:11")
	for num := range uint16(2) {
		q, err := nfqueue.Open(context.Background(), s.Socket, 10+num, nfqueue.Options{Max: 4096})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		go func() {
			for {
				p, err := q.Recv()
				if err == nil {
					err = q.Decide(nfqueue.Decision{ID: p.ID, Verdict: nfqueue.Accept})
				}
				if err != nil {
					if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
						t.Error(err)
					}
					return
				}
			}
		}()
	}
	ln := two.Listen("10.2.0.2:80")
	defer ln.Close()
	const size = 1 << 20
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		c.Write(make([]byte, size))
		c.Close()
	}()
	c, err := one.Dial("tcp", "10.2.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(2 * deadline))
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		t.Fatalf("%d of %d bytes: %v", n, size, err)
	}
	if c.LocalAddr().(*net.TCPAddr).IP.String() != "10.1.0.2" {
		t.Error(c.LocalAddr())
	}
}

// TestNFLog: what a rule sends to a group is in the file that `sluice nflog`
// writes, with the rule's prefix and the hook.
func TestNFLog(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	one, two := l.NS("one"), l.NS("two")
	s := l.Sluice(twoNets)
	queueEcho(t, two, "10.2.0.2:7")
	s.Must("iptables", "-A", "FORWARD", "-p", "udp", "--dport", "7", "-j", "NFLOG", "--nflog-group", "5", "--nflog-prefix", "to echo: ", "--nflog-size", "40")
	s.Must("iptables", "-A", "FORWARD", "-p", "udp", "--dport", "7", "-j", "NFLOG", "--nflog-group", "6")
	file := filepath.Join(t.TempDir(), "five.pcapng")
	p := l.StartCommand(s.Command("nflog", "5", "-w", file))
	size := func() int64 {
		st, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	l.Eventually(deadline, "the file's header", func() bool { return size() > 0 })
	before := size()
	if got := queueAsk(t, one, "10.2.0.2:7", "twenty bytes of text", deadline); got == "" {
		t.Fatal("no answer")
	}
	l.Eventually(deadline, "a packet in the file", func() bool { return size() > before })
	p.Stop()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	data, info, err := r.ReadPacketData()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != 40 || info.Length != 48 || !bytes.HasSuffix(data, []byte("twenty bytes")) || data[8] != 63 {
		t.Errorf("%d of %d bytes: %x", len(data), info.Length, data)
	}
	if !bytes.Contains(b, []byte(`prefix="to echo: " hook=FORWARD in=tun0 out=tun1`)) {
		t.Errorf("the comment is not there: %q", b)
	}
	if _, _, err := r.ReadPacketData(); err != io.EOF {
		t.Errorf("another packet: %v", err)
	}
}

// TestTraceTarget: the lines are those that the kernel writes for such rules.
func TestTraceTarget(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	one := l.NS("one")
	l.NS("two")
	r := l.SluiceCommand(twoNets, nil, "--log-level", "debug")
	r.Expect("sluice: ready", 6*deadline)
	for _, rule := range []string{
		"-t raw -A PREROUTING -p icmp -j TRACE", "-t raw -A PREROUTING -p icmp -m comment --comment x",
		"-N a", "-N b", "-N c", "-A INPUT -p icmp -j a", "-A INPUT -p icmp -g c", "-A a -p tcp -j DROP", "-A a -p icmp -j b",
		"-A b -p icmp -j RETURN", "-A b -j ACCEPT", "-A c", "-A c -j RETURN", "-A c -j DROP", "-t mangle -A INPUT -j ACCEPT",
	} {
		r.Must(append([]string{"iptables"}, strings.Fields(rule)...)...)
	}
	one.Must("ping", "-c1", "-W5", "10.1.0.1")
	want := "raw:PREROUTING:rule:2 raw:PREROUTING:policy:3 nat:PREROUTING:policy:1 mangle:INPUT:policy:1 filter:INPUT:rule:1 filter:a:rule:2 filter:b:rule:1 " +
		"filter:a:return:3 filter:INPUT:rule:2 filter:c:rule:1 filter:c:return:2 filter:INPUT:policy:3 nat:INPUT:policy:1"
	var got []string
	l.Eventually(deadline, "the last line", func() bool {
		got = nil
		for _, line := range strings.Split(r.Output(), "\n") {
			if _, rest, ok := strings.Cut(line, "TRACE: "); ok {
				what, packet, _ := strings.Cut(rest, " ")
				got = append(got, what)
				if !strings.HasPrefix(packet, "IN=tun0 OUT= MAC= SRC=10.1.0.2 DST=10.1.0.1 LEN=84") {
					t.Errorf("%s", line)
				}
			}
		}
		return len(got) >= 13
	})
	if strings.Join(got, " ") != want {
		t.Errorf("%s\nnot %s", strings.Join(got, " "), want)
	}
}
