package router

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// TestForeignSockets: addresses that routes make local, and transparent sockets
// at those that nothing does.
func TestForeignSockets(t *testing.T) {
	local := func(to string) RouteConfig {
		return RouteConfig{To: netip.MustParsePrefix(to), Type: RouteLocal, Table: TableLocal}
	}
	r, err := New(&Config{Router: RouterConfig{Workers: 1}, Routes: []RouteConfig{local("192.0.2.0/24"), local("203.0.113.0/24")}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		r.Close()
	})
	if _, err := r.Listen("tcp", "198.51.100.1:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listening at another's address: %v", err)
	}
	far, err := r.ListenWith("tcp", "198.51.100.1:80", SocketOptions{Transparent: true})
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	for _, x := range []struct {
		at, from, to string
		opt          SocketOptions
	}{
		{"192.0.2.1:80", "203.0.113.5:0", "192.0.2.1:80", SocketOptions{}},
		{"0.0.0.0:81", "0.0.0.0:0", "127.0.0.2:81", SocketOptions{}},
		{"0.0.0.0:82", "0.0.0.0:0", "192.0.2.7:82", SocketOptions{Mark: 5}},
	} {
		ln, err := r.Listen("tcp", x.at)
		if err != nil {
			t.Fatal(err)
		}
		c, err := r.DialFrom(ctx, "tcp", netip.MustParseAddrPort(x.from), netip.MustParseAddrPort(x.to), x.opt)
		if err != nil {
			t.Fatalf("from %s to %s: %v", x.from, x.to, err)
		}
		peer, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := peer.LocalAddr().String(); got != x.to {
			t.Errorf("to %s: the socket is at %s", x.to, got)
		}
		want, _, _ := net.SplitHostPort(x.from)
		if got, _, _ := net.SplitHostPort(peer.RemoteAddr().String()); want != "0.0.0.0" && got != want {
			t.Errorf("from %s: the peer is %s", x.from, got)
		}
		io.WriteString(c, "hello")
		c.Close()
		if b, err := io.ReadAll(peer); string(b) != "hello" {
			t.Errorf("to %s: %q, %v", x.to, b, err)
		}
		peer.Close()
		ln.Close()
	}
	if _, err := r.DialFrom(ctx, "tcp", netip.MustParseAddrPort("198.51.100.9:0"), netip.MustParseAddrPort("192.0.2.1:80"), SocketOptions{}); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("speaking from another's address: %v", err)
	}
}
