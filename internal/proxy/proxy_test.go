package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"sluice/netstack"
)

// outside stands in for the router: the host's network, and a note of who asked.
type outside struct {
	mu     sync.Mutex
	owners []netstack.Owner
}

func (o *outside) dial(ctx context.Context, to netip.AddrPort, owner netstack.Owner) (net.Conn, error) {
	o.mu.Lock()
	o.owners = append(o.owners, owner)
	o.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, "tcp", to.String())
}

func lookup(_ context.Context, name string) ([]netip.Addr, error) {
	if name != "server.test" {
		return nil, fmt.Errorf("%s: no such name", name)
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

func start(t *testing.T, cfg ...Config) *outside {
	t.Helper()
	o := &outside{}
	m := NewManager(Outside{Dial: o.dial, Lookup: lookup})
	t.Cleanup(func() { m.Close() })
	if err := m.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	return o
}

func free(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func web(t *testing.T) (addr string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, b)
	}))
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return "server.test:" + port
}

func TestSOCKS5(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	tcp := free(t)
	o := start(t, Config{SOCKS5, "unix", sock}, Config{SOCKS5, "tcp", tcp})
	addr := web(t)
	for _, at := range [][2]string{{"unix", sock}, {"tcp", tcp}} {
		d, err := proxy.SOCKS5(at[0], at[1], nil, proxy.Direct)
		if err != nil {
			t.Fatal(err)
		}
		client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: d.(proxy.ContextDialer).DialContext, DisableKeepAlives: true}}
		res, err := client.Post("http://"+addr+"/x", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		if string(b) != "POST /x body" {
			t.Errorf("%q", b)
		}
		if _, err := d.Dial("tcp", "nowhere.test:80"); err == nil || !strings.Contains(err.Error(), "general SOCKS server failure") {
			t.Errorf("an unknown name: %v", err)
		}
		if _, err := d.Dial("tcp", free(t)); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a closed port: %v", err)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	me := netstack.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if o.owners[0] != me {
		t.Errorf("over the Unix socket: %+v, not %+v", o.owners[0], me)
	}
	if last := o.owners[len(o.owners)-1]; last.UID != me.UID {
		t.Errorf("over loopback: uid %d, not %d", last.UID, me.UID)
	}
}

// TestSOCKSGarbage: what is no SOCKS5 gets an end, or the reply that RFC 1928 has for it.
func TestSOCKSGarbage(t *testing.T) {
	addr := free(t)
	start(t, Config{SOCKS5, "tcp", addr})
	for _, c := range []struct{ in, out string }{
		{"\x04\x01\x00\x50", ""}, {"GET / HTTP/1.1\r\n\r\n", ""}, {"\x05\x01\x02", "\x05\xff"}, {"\x05\x00", "\x05\xff"},
		{"\x05\x01\x00\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		{"\x05\x01\x00\x05\x01\x00\x09", "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"},
		{"\x05\x01\x00\x05\x01\x00\x03\x05ab", "\x05\x00"},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, c.in)
		conn.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(conn)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) || !strings.HasPrefix(string(got), c.out) || c.out == "" && len(got) > 0 {
			t.Errorf("%q: %q, %v; want %q", c.in, got, err, c.out)
		}
		conn.Close()
	}
}

func TestHTTP(t *testing.T) {
	at := free(t)
	o := start(t, Config{HTTP, "tcp", at})
	addr := web(t)
	u := &url.URL{Scheme: "http", Host: at}
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(u)}}
	for range 2 { // the second on the same connection
		res, err := client.Post("http://"+addr+"/y", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != "POST /y body" {
			t.Errorf("%q", b)
		}
	}
	res, err := client.Get("http://nowhere.test/")
	if err != nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("an unknown name: %v, %v", res, err)
	}
	for _, c := range []struct{ in, status string }{
		{"CONNECT " + addr + " HTTP/1.1\r\n\r\nGET /z HTTP/1.0\r\n\r\n", "200"}, {"CONNECT nowhere.test:1 HTTP/1.1\r\n\r\n", "502"},
		{"CONNECT x HTTP/1.1\r\n\r\n", "400"}, {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "400"}, {"rubbish\r\n\r\n", "400"},
	} {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, c.in)
		in := bufio.NewReader(conn)
		line, err := in.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+c.status) {
			t.Errorf("%q: %q, %v", c.in, line, err)
		}
		if rest, _ := io.ReadAll(in); c.status == "200" && !strings.HasSuffix(string(rest), "GET /z ") {
			t.Errorf("through the tunnel: %q", rest)
		}
		conn.Close()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.owners) == 0 || o.owners[0].UID != uint32(os.Getuid()) {
		t.Errorf("owners: %+v", o.owners)
	}
}

// TestStale: a socket that nobody listens on is taken over, one in use is not.
func TestStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	m := NewManager(Outside{})
	defer m.Close()
	if err := m.Apply([]Config{{SOCKS5, "unix", path}}); err == nil {
		t.Error("a socket in use was taken")
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if err := m.Apply([]Config{{SOCKS5, "unix", path}}); err != nil {
		t.Error(err)
	}
}
