package router_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"time"

	"sluice/router"
)

// A router of one's own, in a program that has no privilege: it reaches the
// world by an uplink, and rules say what of it.
func Example() {
	// Something to reach: a server on the host's loopback.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello")
	}))
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port

	cfg := &router.Config{
		Interfaces: []router.InterfaceConfig{{
			Name: "uplink0", Type: router.TypeUplink,
			Addresses:    []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")},
			HostLoopback: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, // the host's 127.0.0.1
		}},
		Routes: []router.RouteConfig{{
			To: netip.MustParsePrefix("0.0.0.0/0"), Dev: "uplink0", Table: router.TableMain, Type: router.RouteUnicast,
		}},
	}
	cfg.IPTables.Filter.Rules = router.Rules(
		"-A OUTPUT -d 192.0.2.0/24 -j ACCEPT",
		"-A OUTPUT -j REJECT",
	)
	r, err := router.New(cfg, router.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
		r.Close()
	}()

	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: r.Dial, DisableKeepAlives: true}}
	res, err := client.Get(fmt.Sprintf("http://192.0.2.2:%d/", port))
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	fmt.Println(string(body))

	_, err = r.Dial(ctx, "tcp", "198.51.100.1:80")
	fmt.Println(err)
	// Output:
	// hello
	// dial tcp 198.51.100.1:80: connect: connection refused
}

// Rules change while the router runs, with iptables' own words.
func ExampleRouter_Command() {
	r, err := router.New(&router.Config{}, router.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	if _, err := r.Command("", "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "25", "-j", "DROP"); err != nil {
		fmt.Println(err)
	}
	if _, err := r.Command("", "iptables", "-A", "INPUT", "-j", "NONSENSE"); err != nil {
		fmt.Println(strings.SplitN(err.Error(), "\n", 2)[0])
	}
	rules, _ := r.Command("", "iptables", "-S", "INPUT")
	fmt.Print(rules)
	// Output:
	// iptables: exit status 2: iptables v1.8.9 (legacy): Couldn't load target `NONSENSE':No such file or directory
	// -P INPUT ACCEPT
	// -A INPUT -p tcp -m tcp --dport 25 -j DROP
}

// What listens on the router's own addresses passes INPUT.
func ExampleRouter_Listen() {
	cfg := &router.Config{Interfaces: []router.InterfaceConfig{{
		Name: "uplink0", Type: router.TypeUplink, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")},
	}}}
	r, err := router.New(cfg, router.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
		r.Close()
	}()

	ln, err := r.Listen("tcp", "192.0.2.1:7")
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := r.Dial(ctx, "tcp", "192.0.2.1:7")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	fmt.Fprint(c, "echo")
	b := make([]byte, 4)
	io.ReadFull(c, b)
	fmt.Println(string(b))
	// Output: echo
}
