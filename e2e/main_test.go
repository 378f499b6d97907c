package e2e

import (
	"os"
	"testing"

	"sluice/e2e/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	lab.RemoveBinary()
	os.Exit(code)
}

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

func newBed(t *testing.T, config string) *bed {
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
