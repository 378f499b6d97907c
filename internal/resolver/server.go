package resolver

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"sluice/netstack"
)

// Stack opens the service's sockets; netstack.Local is one.
type Stack interface {
	Listen(network string, addr netip.AddrPort, owner netstack.Owner) (net.Listener, error)
	ListenPacket(network string, addr netip.AddrPort, owner netstack.Owner) (*netstack.PacketConn, error)
}

const (
	atOnce   = 512 // questions being answered by one server
	tcpConns = 256
	tcpIdle  = 10 * time.Second // RFC 7766 leaves it to us
)

// Server is a Resolver at one address, over UDP and TCP.
type Server struct {
	r      *Resolver
	pc     *netstack.PacketConn
	ln     net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	busy   chan struct{}
}

// Serve begins to answer at addr.
func (r *Resolver) Serve(s Stack, addr netip.AddrPort) (*Server, error) {
	pc, err := s.ListenPacket("udp", addr, netstack.Owner{})
	if err != nil {
		return nil, err
	}
	ln, err := s.Listen("tcp", addr, netstack.Owner{})
	if err != nil {
		pc.Close()
		return nil, err
	}
	v := &Server{r: r, pc: pc, ln: ln, busy: make(chan struct{}, atOnce)}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.wg.Add(2)
	go v.datagrams()
	go v.streams()
	return v, nil
}

// Close ends the service; questions that are being answered are dropped.
func (v *Server) Close() {
	v.cancel()
	v.pc.Close()
	v.ln.Close()
	v.wg.Wait()
}

func (v *Server) datagrams() {
	defer v.wg.Done()
	buf := make([]byte, 65536)
	for {
		n, from, to, err := v.pc.ReadFromTo(buf)
		if err != nil {
			return // closed
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:n]) != nil || q.Response {
			continue
		}
		select {
		case v.busy <- struct{}{}:
		default:
			continue // the asker will try again
		}
		v.wg.Add(1)
		go func() {
			defer func() {
				<-v.busy
				v.wg.Done()
			}()
			a := v.r.Answer(v.ctx, q)
			size := dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = max(size, int(o.UDPSize()))
			}
			a.Truncate(min(size, 65507))
			if b, err := a.Pack(); err == nil {
				v.pc.WriteFromTo(b, to, from) // it may be lost, as any datagram
			}
		}()
	}
}

func (v *Server) streams() {
	defer v.wg.Done()
	conns := make(chan struct{}, tcpConns)
	for {
		c, err := v.ln.Accept()
		if err != nil {
			return // closed
		}
		select {
		case conns <- struct{}{}:
		default:
			c.Close()
			continue
		}
		v.wg.Add(1)
		go func() {
			defer func() {
				<-conns
				v.wg.Done()
			}()
			stop := context.AfterFunc(v.ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			v.stream(c)
		}()
	}
}

// stream answers the questions of a connection, one after the other.
func (v *Server) stream(c net.Conn) {
	var head [2]byte
	for {
		c.SetDeadline(time.Now().Add(tcpIdle))
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(b) != nil || q.Response {
			return
		}
		a, err := v.r.Answer(v.ctx, q).Pack()
		if err != nil || len(a) > 65535 {
			return
		}
		c.SetDeadline(time.Now().Add(tcpIdle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}
