package services

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sluice/netstack"
	"sluice/packet"
)

// stack is a Local whose packets all come back to it, as through lo.
type stack struct {
	*netstack.Local
	owner atomic.Uint64 // the last UDP or TCP packet's uid<<32|gid from a low port
}

func newStack(t *testing.T) *stack {
	t.Helper()
	kick := make(chan struct{}, 1)
	rings := netstack.NewLocalRings(1, 0, func(int) {
		select {
		case kick <- struct{}{}:
		default:
		}
	})
	l, err := netstack.NewLocal(netstack.LocalOptions{Output: rings})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetAddresses([]netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("fd00::1/64")}); err != nil {
		t.Fatal(err)
	}
	s := &stack{Local: l}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := packet.New()
		for {
			if rings.Get(0, p) {
				if p.SrcPort() < 1024 && p.Is(packet.HasOwner) {
					s.owner.Store(uint64(p.UID)<<32 | uint64(p.GID))
				}
				l.Deliver(p)
			} else if rings.Arm(0) {
				select {
				case <-kick:
				case <-stop:
					return
				}
			}
		}
	}()
	t.Cleanup(func() { l.Close(); close(stop); <-done })
	return s
}

func (s *stack) dial(t *testing.T, url string) net.Conn {
	t.Helper()
	l := listen(t, url)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := s.DialContext(ctx, l.Network, netip.AddrPort{}, l.Addr, netstack.Owner{UID: 9})
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

func listen(t *testing.T, url string) Listen {
	t.Helper()
	l, err := ParseListen(url)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func conf(t *testing.T, typ string, urls ...string) Config {
	c := Config{Type: typ, UID: 1000, GID: 100}
	for _, u := range urls {
		c.Listen = append(c.Listen, listen(t, u))
	}
	return c
}

func ask(t *testing.T, c net.Conn, out string) {
	t.Helper()
	if _, err := c.Write([]byte(out)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(out))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != out {
		t.Fatalf("%q came back as %q: %v", out, b, err)
	}
}

func manager(t *testing.T, s *stack, src Source) *Manager {
	m := NewManager(s, src, nil)
	t.Cleanup(func() { m.Close() })
	return m
}

func TestEcho(t *testing.T) {
	s := newStack(t)
	m := manager(t, s, nil)
	if err := m.Apply([]Config{conf(t, Echo, "tcp://0.0.0.0:7", "udp://0.0.0.0:7", "tcp://[fd00::1]:7", "udp://[fd00::1]:7")}); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"tcp://10.0.0.1:7", "tcp://127.0.0.1:7", "udp://10.1.0.1:7", "udp://127.0.0.1:7", "tcp://[fd00::1]:7", "udp://[fd00::1]:7"} {
		s.owner.Store(0)
		ask(t, s.dial(t, u), "hello "+u)
		if got := s.owner.Load(); got != 1000<<32|100 {
			t.Errorf("%s: the answer's owner is %d/%d", u, got>>32, uint32(got))
		}
	}
	// All of what was sent comes back after the client's half-close.
	c := s.dial(t, "tcp://10.0.0.1:7")
	big := strings.Repeat("0123456789abcdef", 100000)
	go func() {
		io.WriteString(c, big)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	b, err := io.ReadAll(c)
	if err != nil || string(b) != big {
		t.Errorf("%d of %d bytes, %v", len(b), len(big), err)
	}
}

// TestNoLoop: a datagram from another small service gets no answer.
func TestNoLoop(t *testing.T) {
	s := newStack(t)
	m := manager(t, s, nil)
	if err := m.Apply([]Config{conf(t, Echo, "udp://10.0.0.1:7")}); err != nil {
		t.Fatal(err)
	}
	chargen, err := s.ListenPacket("udp", netip.MustParseAddrPort("10.0.0.1:19"), netstack.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer chargen.Close()
	other, err := s.ListenPacket("udp", netip.MustParseAddrPort("10.0.0.1:4000"), netstack.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	to := netip.MustParseAddrPort("10.0.0.1:7")
	chargen.WriteFromTo([]byte("loop"), netip.Addr{}, to)
	other.WriteFromTo([]byte("ask"), netip.Addr{}, to)
	b := make([]byte, 10)
	other.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, _, err := other.ReadFrom(b); err != nil || string(b[:n]) != "ask" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	// The echo answers in order, so an answer to 19 would be there by now.
	chargen.SetReadDeadline(time.Now().Add(-time.Second))
	if n, _, err := chargen.ReadFrom(b); err == nil {
		t.Errorf("an answer to port 19: %q", b[:n])
	}
}

func TestOthers(t *testing.T) {
	s := newStack(t)
	m := manager(t, s, nil)
	if err := m.Apply([]Config{
		conf(t, Discard, "tcp://10.0.0.1:9", "udp://10.0.0.1:9"),
		conf(t, Chargen, "tcp://10.0.0.1:19", "udp://10.0.0.1:19"),
		conf(t, Daytime, "tcp://10.0.0.1:13", "udp://10.0.0.1:13"),
		conf(t, Time, "tcp://10.0.0.1:37", "udp://10.0.0.1:37"),
	}); err != nil {
		t.Fatal(err)
	}
	c := s.dial(t, "tcp://10.0.0.1:9")
	io.WriteString(c, strings.Repeat("x", 100000))
	c.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("discard: %d bytes, %v", len(b), err)
	}
	c = s.dial(t, "tcp://10.0.0.1:19")
	line := make([]byte, 2*74)
	io.ReadFull(c, line)
	if string(line) != ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`+"`abcdefg\r\n"+
		`!"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`+"`abcdefgh\r\n" {
		t.Errorf("chargen: %q", line)
	}
	c.Close()
	for _, n := range []string{"tcp", "udp"} {
		c = s.dial(t, n+"://10.0.0.1:13")
		c.Write([]byte("?"))
		b := make([]byte, 100)
		k, _ := c.Read(b)
		if _, err := time.Parse("Monday, January 2, 2006 15:04:05-MST\r\n", string(b[:k])); err != nil {
			t.Errorf("daytime/%s: %q", n, b[:k])
		}
		c = s.dial(t, n+"://10.0.0.1:37")
		c.Write([]byte("?"))
		if k, _ = io.ReadFull(c, b[:4]); k != 4 || b[0] < 0xe0 {
			t.Errorf("time/%s: % x", n, b[:k])
		}
	}
	u := s.dial(t, "udp://10.0.0.1:19")
	u.Write(nil)
	b := make([]byte, 1000)
	if n, err := u.Read(b); n != 74 || err != nil {
		t.Errorf("chargen/udp: %d bytes, %v", n, err)
	}
}

type fakeStatus struct{}

func (fakeStatus) Status() any {
	return map[string]any{
		"version": "1.2", "uptime_seconds": 3723.0, "forwarded_packets": 42,
		"interfaces": []any{map[string]any{"name": "lan0", "state": "up", "mtu": 1500, "addresses": []string{"10.0.1.1/24"}, "rx_packets": 17, "rx_bytes": 2048}},
		"drops":      []any{map[string]any{"reason": "ip.ttl_expired", "doc": "the TTL ran out", "packets": 3}},
		"conntrack":  map[string]any{"count": 5, "max": 262144},
		"tables": []any{map[string]any{"family": "ipv4", "name": "filter", "chains": []any{map[string]any{
			"name": "FORWARD", "policy": "DROP", "packets": 8,
			"rules": []any{map[string]any{"text": `-A FORWARD -m comment --comment "<b>&" -j ACCEPT`, "packets": 99}},
		}}}},
	}
}

func TestHTTP(t *testing.T) {
	s := newStack(t)
	m := manager(t, s, fakeStatus{})
	if err := m.Apply([]Config{conf(t, HTTP, "tcp://10.0.0.1:80", "tcp://[fd00::1]:80")}); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return s.DialContext(ctx, "tcp", netip.AddrPort{}, netip.MustParseAddrPort(addr), netstack.Owner{})
		},
	}}
	defer client.CloseIdleConnections()
	get := func(url, accept string) (int, string, string) {
		req, _ := http.NewRequest("GET", url, nil)
		if accept != "" {
			req.Header.Set("Accept", accept)
		}
		r, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, r.Header.Get("Content-Type"), string(b)
	}
	code, typ, body := get("http://10.0.0.1:80/", "text/html,*/*")
	if code != 200 || !strings.HasPrefix(typ, "text/html") {
		t.Fatalf("%d %s", code, typ)
	}
	for _, want := range []string{"sluice 1.2", "1h2m3s", "lan0", "10.0.1.1/24", "2.0 KiB", "ip.ttl_expired", "the TTL ran out", "5 of 262144",
		"ipv4 filter FORWARD", "policy DROP, 8 packets", "&lt;b&gt;&amp;", ">99<"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, c := range []struct{ url, accept string }{{"http://[fd00::1]:80/status.json", ""}, {"http://10.0.0.1:80/", "application/json"}} {
		code, typ, body = get(c.url, c.accept)
		var v View
		if err := json.Unmarshal([]byte(body), &v); err != nil || code != 200 || typ != "application/json" || v.Conntrack.Count != 5 || v.Tables[0].Chains[0].Rules[0].Packets != 99 {
			t.Errorf("%s: %d %s %v %+v", c.url, code, typ, err, v)
		}
	}
	if code, _, _ = get("http://10.0.0.1:80/etc/passwd", ""); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

func TestReload(t *testing.T) {
	s := newStack(t)
	m := manager(t, s, fakeStatus{})
	first := []Config{
		conf(t, Echo, "tcp://10.0.0.1:7", "udp://10.0.0.1:7"),
		conf(t, Discard, "tcp://10.0.0.1:9"),
		conf(t, HTTP, "tcp://10.0.0.1:80"),
	}
	if err := m.Apply(first); err != nil {
		t.Fatal(err)
	}
	echo := s.dial(t, "tcp://10.0.0.1:7")
	ask(t, echo, "before")
	discard := s.dial(t, "tcp://10.0.0.1:9")

	// discard goes, its port becomes an echo's; the echo stays; http's owner changes.
	web := conf(t, HTTP, "tcp://10.0.0.1:80")
	web.UID = 7
	second := []Config{conf(t, Echo, "tcp://10.0.0.1:9", "udp://10.0.0.1:7", "tcp://10.0.0.1:7"), web}
	if err := m.Apply(second); err != nil {
		t.Fatal(err)
	}
	ask(t, echo, "after")
	ask(t, s.dial(t, "tcp://10.0.0.1:9"), "new")
	if _, err := discard.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the old discard's connection: %v", err)
	}
	want := "echo tcp://10.0.0.1:7,echo tcp://10.0.0.1:9,echo udp://10.0.0.1:7,http tcp://10.0.0.1:80"
	if got := strings.Join(m.Listening(), ","); got != want {
		t.Errorf("listening: %s", got)
	}

	// An error changes nothing: a port that somebody has, an address of nobody's.
	taken, err := s.Listen("tcp", netip.MustParseAddrPort("10.0.0.1:81"), netstack.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		cfg  []Config
		want error
	}{
		{[]Config{conf(t, Discard, "tcp://10.0.0.1:9", "tcp://10.0.0.1:81")}, syscall.EADDRINUSE},
		{[]Config{conf(t, Discard, "tcp://10.0.0.1:9", "tcp://10.0.0.99:9")}, syscall.EADDRNOTAVAIL},
		{[]Config{conf(t, Discard, "tcp://10.0.0.1:10"), conf(t, Discard, "tcp://0.0.0.0:81")}, syscall.EADDRINUSE},
		{[]Config{conf(t, "finger", "tcp://10.0.0.1:79")}, nil},
		{[]Config{conf(t, HTTP, "udp://10.0.0.1:79")}, nil},
		{[]Config{conf(t, Echo, "tcp://10.0.0.1:79"), conf(t, Discard, "tcp://10.0.0.1:79")}, nil},
	} {
		err := m.Apply(c.cfg)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.cfg, err, c.want)
		}
		if got := strings.Join(m.Listening(), ","); got != want {
			t.Errorf("after %v: listening %s", err, got)
		}
	}
	ask(t, echo, "still")
	ask(t, s.dial(t, "tcp://10.0.0.1:9"), "still")

	// A failure after the old socket had to be closed: it is opened again.
	taken2, err := s.Listen("tcp", netip.MustParseAddrPort("10.1.0.1:7"), netstack.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer taken2.Close()
	if err := m.Apply([]Config{conf(t, Echo, "tcp://0.0.0.0:7")}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("wildcard over a taken address: %v", err)
	}
	ask(t, echo, "once more")
	ask(t, s.dial(t, "tcp://10.0.0.1:7"), "again")

	if err := m.Apply(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := echo.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the connection outlives its service: %v", err)
	}
	if n := len(m.Listening()); n != 0 {
		t.Errorf("%d still there", n)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestParseListen(t *testing.T) {
	for _, good := range []string{"tcp://10.0.1.1:7", "udp://[fd00:1::1]:53", "tcp://0.0.0.0:80", "tcp://[::]:80"} {
		if l, err := ParseListen(good); err != nil || l.String() != good {
			t.Errorf("%s: %s, %v", good, l, err)
		}
	}
	for _, bad := range []string{"", "10.0.1.1:7", "tcp:10.0.1.1:7", "sctp://10.0.1.1:7", "tcp://10.0.1.1", "tcp://10.0.1.1:0", "tcp://host:7", "tcp://fd00::1:7", "tcp://[fe80::1%eth0]:7", "tcp://10.0.1.1:70000"} {
		if l, err := ParseListen(bad); err == nil {
			t.Errorf("%q is taken as %s", bad, l)
		}
	}
}
