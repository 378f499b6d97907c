package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"sluice/netstack"
)

// Replies of RFC 1928, section 6.
const (
	socksOK = iota
	socksFailure
	socksNotAllowed
	socksNetUnreachable
	socksHostUnreachable
	socksRefused
	socksTTL
	socksCommand
	socksAddress
)

const greetingTimeout = 30 * time.Second

// socks speaks SOCKS5 with c.
func (s *server) socks(c net.Conn, owner netstack.Owner) {
	c.SetDeadline(time.Now().Add(greetingTimeout))
	var b [262]byte
	if _, err := io.ReadFull(c, b[:2]); err != nil || b[0] != 5 {
		return
	}
	methods := b[2 : 2+int(b[1])]
	if _, err := io.ReadFull(c, methods); err != nil {
		return
	}
	method := byte(0xff)
	for _, m := range methods {
		if m == 0 {
			method = 0
		}
	}
	if _, err := c.Write([]byte{5, method}); err != nil || method != 0 {
		return
	}
	if _, err := io.ReadFull(c, b[:4]); err != nil || b[0] != 5 {
		return
	}
	command := b[1]
	host := ""
	switch b[3] {
	case 1:
		if _, err := io.ReadFull(c, b[:4]); err != nil {
			return
		}
		host = netip.AddrFrom4([4]byte(b[:4])).String()
	case 4:
		if _, err := io.ReadFull(c, b[:16]); err != nil {
			return
		}
		host = netip.AddrFrom16([16]byte(b[:16])).String()
	case 3:
		if _, err := io.ReadFull(c, b[:1]); err != nil {
			return
		}
		name := b[1 : 1+int(b[0])]
		if _, err := io.ReadFull(c, name); err != nil {
			return
		}
		host = string(name)
	default:
		socksReply(c, socksAddress, netip.AddrPort{})
		return
	}
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return
	}
	if command != 1 { // BIND and UDP ASSOCIATE
		socksReply(c, socksCommand, netip.AddrPort{})
		return
	}
	c.SetDeadline(time.Time{})
	out, err := s.dial(s.ctx, host, binary.BigEndian.Uint16(b[:]), owner)
	if err != nil {
		s.out.Log.Debug("not connected", "proxy", s.cfg.String(), "to", host, "err", err)
		socksReply(c, socksError(err), netip.AddrPort{})
		return
	}
	defer out.Close()
	defer context.AfterFunc(s.ctx, func() { out.Close() })()
	var at netip.AddrPort
	if a, ok := out.LocalAddr().(*net.TCPAddr); ok {
		at = a.AddrPort()
	}
	if socksReply(c, socksOK, at) == nil {
		relay(c, out)
	}
}

func socksReply(c net.Conn, code byte, at netip.AddrPort) error {
	a := at.Addr().Unmap()
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	b := []byte{5, code, 0, 1}
	if a.Is6() {
		b[3] = 4
	}
	_, err := c.Write(binary.BigEndian.AppendUint16(append(b, a.AsSlice()...), at.Port()))
	return err
}

func socksError(err error) byte {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return socksRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return socksNetUnreachable
	case errors.Is(err, syscall.EHOSTUNREACH):
		return socksHostUnreachable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return socksNotAllowed
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return socksTTL
	}
	return socksFailure
}
