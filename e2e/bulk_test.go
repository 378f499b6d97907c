package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net"
	"strings"
	"testing"
	"time"

	"sluice/e2e/lab"
)

// TestBulk carries megabytes both ways at once, through every mixture of
// offload, MTU and number of workers: what arrives is what was sent.
func TestBulk(t *testing.T) {
	for name, x := range map[string]struct {
		router, lan, wan string
	}{
		"offload both":    {"", "", ""},
		"offload lan":     {"", "", "offload = false"},
		"offload wan":     {"", "offload = false", ""},
		"offload none":    {"", "offload = false", "offload = false"},
		"smaller MTU":     {"", "mtu = 9000", "mtu = 1400"},
		"smaller, plain":  {"", "mtu = 9000", "mtu = 1400\noffload = false"},
		"larger MTU":      {"", "mtu = 1280", "mtu = 9000"},
		"one worker":      {"[router]\nworkers = 1\n", "", ""},
		"five, one queue": {"[router]\nworkers = 5\nbusy_poll = \"50us\"\n", "queues = 1", "queues = 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			b := &bed{Lab: l, client: l.NS("client"), server: l.NS("server")}
			b.r = l.Sluice(strings.NewReplacer(`name      = "lan0"`, "name = \"lan0\"\n"+x.lan, `name      = "wan0"`, "name = \"wan0\"\n"+x.wan).Replace(x.router+pair) + `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE", "-A PREROUTING -i lan0 -p tcp --dport 81 -j DNAT --to-destination 198.51.100.2:80"]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[iptables.filter]
rules = ["-A FORWARD -m conntrack --ctstate INVALID -j DROP"]
`)
			const size = 4 << 20
			data := make([]byte, size)
			rand.New(rand.NewSource(7)).Read(data)
			want := sha256.Sum256(data)
			for listen, to := range map[string]string{"198.51.100.2:80": "198.51.100.2:81", "[fd00:2::2]:80": "[fd00:2::2]:80"} {
				ln := b.server.Listen(listen)
				result := make(chan error, 2)
				go func() {
					c, err := ln.Accept()
					if err != nil {
						result <- err
						return
					}
					defer c.Close()
					result <- bothWays(c, data, want)
				}()
				c := dial(t, b.client, "tcp", to)
				if err := bothWays(c, data, want); err != nil {
					t.Errorf("%s: at the client: %v", to, err)
				}
				c.Close()
				if err := <-result; err != nil {
					t.Errorf("%s: at the server: %v", to, err)
				}
			}
			for _, addr := range []string{"198.51.100.2:9000", "[fd00:2::2]:9000"} {
				echo(b.server, addr)
				c := dial(t, b.client, "udp", addr)
				for _, n := range []int{0, 1, 1252, 1253, 1472, 1473, 8972, 30000, 65000} {
					// A datagram that finds the path's MTU is lost by right; the next is not.
					var err error
					for range 5 {
						if err = there(c, data[:n], time.Second); err == nil {
							break
						}
					}
					if err != nil {
						t.Errorf("%s: %d bytes over UDP: %v", addr, n, err)
					}
				}
			}
			for _, i := range b.r.Status().Interfaces {
				if i.TxErrors != 0 {
					t.Errorf("%s refused %d frames", i.Name, i.TxErrors)
				}
			}
			for _, d := range b.r.Status().Drops {
				if d.Reason != "ip.too_big" && d.Reason != "filter.FORWARD.rule" { // path MTU discovery; a retransmission that came late
					t.Errorf("%d packets dropped as %s", d.Packets, d.Reason)
				}
			}
		})
	}
}

// there sends a datagram and waits for it to come back.
func there(c net.Conn, data []byte, d time.Duration) error {
	c.SetDeadline(time.Now().Add(d))
	if _, err := c.Write(data); err != nil {
		return err
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	if err == nil && !bytes.Equal(buf[:n], data) {
		err = fmt.Errorf("%d bytes came back, not the %d", n, len(data))
	}
	return err
}

// bothWays sends data and receives the like at the same time.
func bothWays(c net.Conn, data []byte, want [32]byte) error {
	c.SetDeadline(time.Now().Add(6 * deadline))
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, bytes.NewReader(data))
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	h := sha256.New()
	n, err := io.Copy(h, c)
	if e := <-sent; e != nil {
		return fmt.Errorf("sending: %w", e)
	}
	if err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("received %d of %d bytes, or others: %v", n, len(data), err)
	}
	return nil
}
