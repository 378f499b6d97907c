package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// flowing is traffic from the client that never pauses, and misses every packet
// that is lost: a flow that stays, flows that are always new, and TCP
// connections one after the other.
type flowing struct {
	b      *bed
	rounds [3]atomic.Int64 // of each kind of traffic
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	err    error
}

// burst is how many datagrams are under way at once.
const burst = 8

// flow starts it, towards a server's ports 9000 and 80.
func flow(b *bed, server string) *flowing {
	f := &flowing{b: b, stop: make(chan struct{})}
	udp, tcp := net.JoinHostPort(server, "9000"), net.JoinHostPort(server, "80")
	echo(b.server, udp)
	say(b.server, tcp, "the page")
	stays := dial(b.T.(*testing.T), b.client, "udp", udp)
	for i, round := range []func() error{
		func() error { return volley(stays) },
		func() error {
			c, err := b.client.Dial("udp", udp)
			if err != nil {
				return err
			}
			defer c.Close()
			return volley(c)
		},
		func() error {
			s, err := hear(b.client, tcp)
			if err == nil && s != "the page" {
				err = fmt.Errorf("a TCP connection brought %q", s)
			}
			return err
		},
	} {
		f.wg.Go(func() {
			for {
				select {
				case <-f.stop:
					return
				default:
				}
				if err := round(); err != nil {
					f.mu.Lock()
					f.err = err
					f.mu.Unlock()
					return
				}
				f.rounds[i].Add(1)
			}
		})
	}
	b.T.Cleanup(f.end)
	return f
}

// goesOn waits until each kind of traffic has made rounds from here on.
func (f *flowing) goesOn(when string) {
	f.b.T.Helper()
	for i := range f.rounds {
		// The first of them may have been under way already.
		n := f.rounds[i].Load() + 2
		f.b.Eventually(3*deadline, when+": more traffic", func() bool { f.fine(when); return f.rounds[i].Load() >= n })
	}
}

// fine fails the test if a packet has been lost.
func (f *flowing) fine(when string) {
	f.b.T.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		f.b.T.Fatalf("%s: after %d, %d, %d rounds: %v", when, f.rounds[0].Load(), f.rounds[1].Load(), f.rounds[2].Load(), f.err)
	}
}

func (f *flowing) end() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	f.wg.Wait()
}

// volley sends a burst of datagrams and waits for all of them to come back.
func volley(c net.Conn) error {
	c.SetDeadline(time.Now().Add(2 * deadline))
	for i := range burst {
		if _, err := fmt.Fprintf(c, "datagram %d", i); err != nil {
			return err
		}
	}
	var seen strings.Builder
	buf := make([]byte, 100)
	for range burst {
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("of %d datagrams came back only %q: %w", burst, seen.String(), err)
		}
		seen.Write(buf[len("datagram "):n])
	}
	return nil
}
