package e2e

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"sluice/e2e/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	lab.RemoveBinary()
	os.Exit(code)
}

// deadline is how long tests wait for what has to happen.
const deadline = 10 * time.Second

// pair is the smallest network: a client behind lan0, a server behind wan0.
const pair = `
[[interface]]
name      = "lan0"
addresses = ["10.0.1.1/24", "fd00:1::1/64"]
  [interface.host]
  netns     = "{ns:client}"
  addresses = ["10.0.1.2/24", "fd00:1::2/64"]
  routes    = ["default via 10.0.1.1", "default via fd00:1::1"]

[[interface]]
name      = "wan0"
addresses = ["198.51.100.1/24", "fd00:2::1/64"]
  [interface.host]
  netns     = "{ns:server}"
  addresses = ["198.51.100.2/24", "fd00:2::2/64"]
  routes    = ["10.0.1.0/24 via 198.51.100.1", "fd00:1::/64 via fd00:2::1"]
`

// bed is that network with a router in it.
type bed struct {
	*lab.Lab
	client, server *lab.NS
	r              *lab.Sluice
}

// newBed makes one. Tests on it run side by side.
func newBed(t *testing.T, config string) *bed {
	t.Helper()
	t.Parallel()
	return newLoneBed(t, config)
}

// newLoneBed is newBed for tests that want the machine for themselves.
func newLoneBed(t *testing.T, config string) *bed {
	t.Helper()
	l := lab.New(t)
	b := &bed{Lab: l, client: l.NS("client"), server: l.NS("server")}
	b.r = l.Sluice(pair + config)
	return b
}

// serve answers each TCP connection on addr with the address it came from and a
// newline, and closes it.
func serve(ns *lab.NS, addr string) {
	ln := ns.Listen(addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(c.RemoteAddr().String() + "\n"))
			c.Close()
		}
	}()
}

// say answers each TCP connection on addr with a text.
func say(ns *lab.NS, addr, text string) {
	ln := ns.Listen(addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(text))
			c.Close()
		}
	}()
}

// hear connects from ns and gives what the other side says, without the white
// space around it.
func hear(ns *lab.NS, addr string) (string, error) {
	c, err := ns.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	s, err := io.ReadAll(c)
	return strings.TrimSpace(string(s)), err
}

// echo sends UDP datagrams on addr back where they came from.
func echo(ns *lab.NS, addr string) {
	c := ns.ListenPacket(addr)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
}
