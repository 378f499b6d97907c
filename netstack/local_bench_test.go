package netstack

import (
	"io"
	"net"
	"testing"

	"sluice/packet"
)

// BenchmarkTCP is a bulk transfer between two stacks in one process: both ends,
// the rings between them and the copies. discard is what the service of that name does.
func BenchmarkTCP(b *testing.B) {
	reader := func(c net.Conn) io.Reader { return struct{ io.Reader }{c} } // without WriteTo
	for _, c := range []struct {
		name  string
		addr  string
		split bool
		reads func(net.Conn) io.Reader
	}{
		{"super-packets/ipv4", "10.0.0.2:7", false, reader},
		{"super-packets/ipv6", "[fd00::2]:7", false, reader},
		{"segments/ipv4", "10.0.0.2:7", true, reader},
		{"discard/ipv4", "10.0.0.2:7", false, func(c net.Conn) io.Reader { return c }},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newWire(b, nil, twoHosts...)
			w.split = c.split
			ln, err := w.hosts[1].Listen("tcp", ap(c.addr), Owner{})
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			done := make(chan int64)
			go func() {
				s, err := ln.Accept()
				if err != nil {
					done <- 0
					return
				}
				n, _ := io.Copy(io.Discard, c.reads(s))
				s.Close()
				done <- n
			}()
			conn := dial(b, w.hosts[0], "tcp", c.addr, Owner{})
			buf := make([]byte, 256<<10)
			b.SetBytes(int64(len(buf)))
			sent := int64(0)
			for b.Loop() {
				n, err := conn.Write(buf)
				if err != nil {
					b.Fatal(err)
				}
				sent += int64(n)
			}
			conn.(interface{ CloseWrite() error }).CloseWrite()
			if got := <-done; got != sent {
				b.Fatalf("%d bytes sent, %d received", sent, got)
			}
			var lost uint64
			for _, h := range w.hosts {
				s := h.Stats()
				lost += s.QueueFull + s.OutputFull
			}
			b.ReportMetric(float64(lost), "lost")
		})
	}
}

// BenchmarkPing is one echo request through the stack and its answer back.
func BenchmarkPing(b *testing.B) {
	answers := make(chan struct{}, 1)
	w := newWire(b, nil, twoHosts[0])
	w.watch(func(*testHost, *packet.Packet) bool { answers <- struct{}{}; return false })
	p := packet.New()
	packet.BuildEcho(p, packet.IPv4, a16("10.0.0.2"), a16("10.0.0.1"), false, 1, 1, 56)
	p.Parse()
	for b.Loop() {
		w.hosts[0].Deliver(p)
		<-answers
	}
}
