package uplink_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sluice/netstack"
	"sluice/netstack/uplink"
	"sluice/packet"
	"sluice/router"
)

// patience is how long tests wait for what has to happen.
const patience = 30 * time.Second

// bed is a router with nothing but an uplink, whose own sockets are "inside":
// gVisor's TCP at one end, ours at the other, and the host's loopback behind.
type bed struct {
	t testing.TB
	*router.Router
}

var hosts = []string{"192.0.2.2", "fd00:db8::2"} // the host's loopback

func newBed(t testing.TB, edit func(*router.Config, *router.Options)) *bed {
	t.Helper()
	addrs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	cfg := &router.Config{
		Router: router.RouterConfig{Workers: 2},
		Interfaces: []router.InterfaceConfig{{
			Name: "uplink0", Type: router.TypeUplink,
			Addresses:    []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("fd00:db8::1/64")},
			HostLoopback: addrs(hosts...),
		}},
	}
	for _, to := range []string{"0.0.0.0/0", "::/0"} {
		cfg.Routes = append(cfg.Routes, router.RouteConfig{To: netip.MustParsePrefix(to), Dev: "uplink0", Table: router.TableMain, Type: router.RouteUnicast})
	}
	opt := router.Options{Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	if edit != nil {
		edit(cfg, &opt)
	}
	r, err := router.New(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		r.Close()
	})
	return &bed{t, r}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// serve runs f for each connection to a port of the host's loopback, and gives the port.
func serve(t testing.TB, host string, f func(*net.TCPConn)) string {
	t.Helper()
	at := "127.0.0.1:0"
	if host == hosts[1] {
		at = "[::1]:0"
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				f(c.(*net.TCPConn))
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return net.JoinHostPort(host, port)
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (b *bed) dial(addr string) halfCloser {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.Dial(ctx, "tcp", addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(halfCloser)
}

// noise is n bytes that are the same each time.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// exchange sends data both ways at once through c, whose other end sends back
// the sum of what it got and then data of its own.
func exchange(c halfCloser, data []byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	sum := sha256.Sum256(data)
	if len(got) < len(sum) || !bytes.Equal(got[len(got)-len(sum):], sum[:]) {
		return fmt.Errorf("the other end did not get what was sent (%d bytes came back)", len(got))
	}
	if !bytes.Equal(got[:len(got)-len(sum)], data) {
		return fmt.Errorf("%d bytes came, and are not those that were sent", len(got)-len(sum))
	}
	return nil
}

// partner is exchange's other end.
func partner(data []byte) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		done := make(chan []byte)
		go func() {
			h := sha256.New()
			io.Copy(h, c)
			done <- h.Sum(nil)
		}()
		c.Write(data)
		c.Write(<-done)
	}
}

func TestTransfer(t *testing.T) {
	data := noise(32 << 20)
	b := newBed(t, nil)
	for _, host := range hosts {
		addr := serve(t, host, partner(data))
		var wg sync.WaitGroup
		for range 4 {
			c := b.dial(addr)
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := exchange(c, data); err != nil {
					t.Errorf("%s: %v", host, err)
				}
			}()
		}
		wg.Wait()
	}
}

// TestSmallMTU: super-packets are split where the MTU asks for it.
func TestSmallMTU(t *testing.T) {
	data := noise(4 << 20)
	b := newBed(t, func(c *router.Config, _ *router.Options) { c.Interfaces[0].MTU = 1500 })
	for _, host := range hosts {
		if err := exchange(b.dial(serve(t, host, partner(data))), data); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// lossy is an uplink that loses packets, each way.
type lossy struct {
	netstack.Link
	one int64 // in so many
	n   atomic.Int64
}

type lossyQueue struct {
	netstack.Prompter
	l *lossy
}

func (l *lossy) Queue(i int) netstack.Queue {
	return &lossyQueue{l.Link.Queue(i).(netstack.Prompter), l}
}

func (q *lossyQueue) lose() bool { return rand.Int64N(q.l.one) == 0 }

func (q *lossyQueue) Write(p *packet.Packet) error {
	if q.lose() {
		q.l.n.Add(1)
		return nil
	}
	return q.Prompter.Write(p)
}

func (q *lossyQueue) Read(p *packet.Packet) error {
	for {
		err := q.Prompter.Read(p)
		if err != nil || !q.lose() {
			return err
		}
		q.l.n.Add(1)
		p.Reset()
	}
}

func TestLoss(t *testing.T) {
	data := noise(1 << 20)
	l := &lossy{one: 30}
	b := newBed(t, func(_ *router.Config, o *router.Options) {
		o.Open = func(c *router.InterfaceConfig, index int) (netstack.Link, error) {
			u, err := uplink.Open(uplink.Config{Name: c.Name, Index: index, MTU: 1500, Queues: 2, Loopback4: c.HostLoopback[0]})
			l.Link = u
			return l, err
		}
	})
	addr := serve(t, hosts[0], partner(data))
	for range 3 {
		if err := exchange(b.dial(addr), data); err != nil {
			t.Error(err)
		}
	}
	if l.n.Load() == 0 {
		t.Error("nothing was lost")
	}
}

// TestHalfClose: either side may say that it is done and go on listening.
func TestHalfClose(t *testing.T) {
	b := newBed(t, nil)
	addr := serve(t, hosts[0], func(c *net.TCPConn) {
		in, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %s", in)
	})
	c := b.dial(addr)
	io.WriteString(c, "a question")
	c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "got a question" {
		t.Errorf("%q, %v", got, err)
	}
	heard := make(chan string, 1)
	addr = serve(t, hosts[0], func(c *net.TCPConn) {
		io.WriteString(c, "that is all")
		c.CloseWrite()
		in, _ := io.ReadAll(c)
		heard <- string(in)
	})
	c = b.dial(addr)
	if got, err := io.ReadAll(c); err != nil || string(got) != "that is all" {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(c, "not for me")
	c.CloseWrite()
	if got := <-heard; got != "not for me" {
		t.Errorf("after its FIN the server heard %q", got)
	}
}

// closedPort is a port of the host's loopback that nobody listens on.
func closedPort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

func TestRefused(t *testing.T) {
	b := newBed(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c, err := b.Dial(ctx, "tcp", net.JoinHostPort(hosts[0], closedPort(t))); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v, %v", c, err)
	}
	// Nothing of the host's own can be reached that is not opened.
	for _, addr := range []string{"[::ffff:127.0.0.1]:80", "0.0.0.0:80", "240.0.0.1:80", "[::]:80", "[fe80::1]:80"} {
		if c, err := b.Dial(ctx, "tcp", addr); err == nil {
			c.Close()
			t.Errorf("%s could be reached", addr)
		}
	}
	c, err := b.Dial(ctx, "udp", net.JoinHostPort(hosts[0], closedPort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "anybody?")
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP to a closed port: %v", err)
	}
}

func TestReset(t *testing.T) {
	b := newBed(t, nil)
	addr := serve(t, hosts[0], func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})
	c := b.dial(addr)
	c.Write([]byte{1})
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset by peer") {
		t.Errorf("the host's reset: %v", err)
	}
	ended := make(chan error, 1)
	addr = serve(t, hosts[0], func(c *net.TCPConn) {
		c.Write([]byte{1})
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	c = b.dial(addr)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Router.Reload(&router.Config{Router: router.RouterConfig{Workers: 2}}); err != nil { // the uplink goes
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the host's side goes on after the uplink has gone")
	}
}

// TestBackpressure: who does not read is not drowned, and gets all in the end.
func TestBackpressure(t *testing.T) {
	b := newBed(t, nil)
	data := noise(24 << 20)
	read := make(chan struct{})
	sum := make(chan [32]byte, 1)
	addr := serve(t, hosts[0], func(c *net.TCPConn) {
		c.SetReadBuffer(64 << 10)
		<-read
		got, _ := io.ReadAll(c)
		sum <- sha256.Sum256(got)
	})
	c := b.dial(addr)
	var sent atomic.Int64
	done := make(chan error, 1)
	go func() {
		for at := 0; at < len(data); at += 64 << 10 {
			n, err := c.Write(data[at:min(at+64<<10, len(data))])
			sent.Add(int64(n))
			if err != nil {
				done <- err
				return
			}
		}
		done <- c.CloseWrite()
	}()
	// The writer comes to a stop, well before the end.
	for last, same := int64(-1), 0; same < 20; time.Sleep(20 * time.Millisecond) {
		if n := sent.Load(); n == last {
			same++
		} else {
			last, same = n, 0
		}
	}
	if n := sent.Load(); n == int64(len(data)) {
		t.Error("everything was taken though nobody reads")
	}
	close(read)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := <-sum; got != sha256.Sum256(data) {
		t.Error("what arrived is not what was sent")
	}
}

// TestSlowReader is the same the other way: inside does not read.
func TestSlowReader(t *testing.T) {
	b := newBed(t, nil)
	data := noise(24 << 20)
	var sent atomic.Int64
	addr := serve(t, hosts[0], func(c *net.TCPConn) {
		for at := 0; at < len(data); at += 64 << 10 {
			n, err := c.Write(data[at:min(at+64<<10, len(data))])
			if err != nil {
				return
			}
			sent.Add(int64(n))
		}
	})
	c := b.dial(addr)
	for last, same := int64(-1), 0; same < 20; time.Sleep(20 * time.Millisecond) {
		if n := sent.Load(); n == last {
			same++
		} else {
			last, same = n, 0
		}
	}
	if n := sent.Load(); n == int64(len(data)) {
		t.Error("everything was taken though nobody reads")
	}
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
}

func TestManyConnections(t *testing.T) {
	b := newBed(t, nil)
	addr := serve(t, hosts[0], func(c *net.TCPConn) { io.Copy(c, c) })
	var conns []halfCloser
	for range 1000 {
		conns = append(conns, b.dial(addr))
	}
	for i, c := range conns {
		fmt.Fprintf(c, "%6d", i)
	}
	for i, c := range conns {
		var got [6]byte
		if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != fmt.Sprintf("%6d", i) {
			t.Fatalf("connection %d: %q, %v", i, got, err)
		}
		c.Close()
	}
}

func TestUDP(t *testing.T) {
	b := newBed(t, nil)
	for i, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		pc, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(buf[:n], from)
			}
		}()
		_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
		c, err := b.Dial(context.Background(), "udp", net.JoinHostPort(hosts[i], port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 65536)
		for _, n := range []int{0, 1, 1400, 9000, 60000} {
			want := noise(n)
			if _, err := c.Write(want); err != nil {
				t.Fatal(err)
			}
			if k, err := c.Read(buf); err != nil || !bytes.Equal(buf[:k], want) {
				t.Errorf("%s, %d bytes: %d came back, %v", hosts[i], n, k, err)
			}
		}
	}
}

// freePort is a port of the host's that may be published.
func freePort(t *testing.T) netip.AddrPort {
	return netip.MustParseAddrPort("127.0.0.1:" + closedPort(t))
}

// TestPublish: a host port reaches inside, and who connected is known.
func TestPublish(t *testing.T) {
	port := freePort(t)
	b := newBed(t, func(c *router.Config, _ *router.Options) {
		c.Interfaces = append(c.Interfaces, router.InterfaceConfig{Name: "up2", Type: router.TypeUplink})
		for _, n := range []string{"tcp", "udp"} {
			c.Publish = append(c.Publish, router.PublishConfig{
				Listen: router.HostListen{Network: n, Addr: port}, To: netip.MustParseAddrPort("192.0.2.1:80"),
			})
		}
	})
	ln, err := b.Listen("tcp", "192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			at, _ := netip.ParseAddrPort(c.RemoteAddr().String())
			peer, _ := b.Peer(packet.ProtoTCP, at, netip.MustParseAddrPort("192.0.2.1:80"))
			fmt.Fprintf(c, "%s is %s", at.Addr(), peer)
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", port.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(c)
	if want := "192.0.2.1 is " + c.LocalAddr().String(); err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}

	pc, err := b.ListenPacket("udp", "192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	for i := range 3 { // peers of one address
		u, err := net.Dial("udp", port.String())
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.SetDeadline(time.Now().Add(patience))
		fmt.Fprint(u, i)
		buf := make([]byte, 10)
		if n, err := u.Read(buf); err != nil || string(buf[:n]) != fmt.Sprint(i) {
			t.Errorf("peer %d: %q, %v", i, buf[:n], err)
		}
	}

	// A port in use changes nothing.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = router.New(&router.Config{
		Interfaces: []router.InterfaceConfig{{Name: "u0", Type: router.TypeUplink}},
		Publish: []router.PublishConfig{{
			Listen: router.HostListen{Network: "tcp", Addr: netip.MustParseAddrPort(taken.Addr().String())}, To: netip.MustParseAddrPort("192.0.2.1:80"),
		}},
	}, router.Options{})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v", err)
	}
}

// TestRulesSeeUplink: what goes out and comes in passes the hooks, and conntrack.
func TestRulesSeeUplink(t *testing.T) {
	b := newBed(t, func(c *router.Config, _ *router.Options) {
		c.IPTables.Filter.Rules = router.Rules(
			"-A OUTPUT -o uplink0 -p tcp -m conntrack --ctstate NEW -j ACCEPT",
			"-A INPUT -i uplink0 -p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT",
			"-A INPUT -j DROP",
		)
	})
	addr := serve(t, hosts[0], func(c *net.TCPConn) { io.WriteString(c, "seen") })
	if got, err := io.ReadAll(b.dial(addr)); err != nil || string(got) != "seen" {
		t.Fatalf("%q, %v", got, err)
	}
	out, err := b.Command("", "iptables-save", "-c", "-t", "filter")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains([]byte(out), []byte("[1:")) || bytes.Contains([]byte(out), []byte("[0:0] -A INPUT -i uplink0")) {
		t.Errorf("the rules did not see it:\n%s", out)
	}
}

// TestSummary: what was allowed and what was denied is told, by the names that were asked for.
func TestSummary(t *testing.T) {
	b := newBed(t, func(c *router.Config, _ *router.Options) {
		allow, err := router.ParseAllow(hosts[0])
		if err != nil {
			t.Fatal(err)
		}
		c.DNS = &router.DNSConfig{}
		c.DNS.SetDefaults()
		c.DNS.Allow = []router.Allow{allow}
		for _, r := range router.AllowRules(packet.IPv4, "uplink0") { // the router's own sockets stand in for what is behind it
			c.IPTables.Filter.Rules = append(c.IPTables.Filter.Rules, router.Rules(strings.Replace(r, "FORWARD", "OUTPUT", 1))...)
		}
	})
	addr := serve(t, hosts[0], func(c *net.TCPConn) { io.WriteString(c, "allowed") })
	for range 2 {
		if got, err := io.ReadAll(b.dial(addr)); err != nil || string(got) != "allowed" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c, err := b.Dial(ctx, "tcp", "192.0.2.3:80"); err == nil {
		c.Close()
		t.Error("an address that is not on the list was reached")
	}
	if addrs, err := b.Resolve(ctx, "elsewhere.test"); err == nil {
		t.Errorf("a name that is not on the list is %v", addrs)
	}
	s, ok := b.Summary()
	if !ok || len(s.Allowed) != 1 || s.Allowed[0].Address != hosts[0] || s.Allowed[0].Connections != 2 {
		t.Errorf("allowed: %+v", s.Allowed)
	}
	if len(s.Denied) != 1 || s.Denied[0].Address != "192.0.2.3" || s.Denied[0].Port != 80 || s.Denied[0].Protocol != "tcp" {
		t.Errorf("denied: %+v", s.Denied)
	}
	if len(s.Refused) != 1 || s.Refused[0].Name != "elsewhere.test" {
		t.Errorf("refused names: %+v", s.Refused)
	}
}
