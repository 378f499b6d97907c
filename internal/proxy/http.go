package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"sluice/netstack"
)

// http speaks HTTP with c: CONNECT makes a tunnel, requests for http URLs are
// passed on, one after the other.
func (s *server) http(c net.Conn, owner netstack.Owner) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, port, err := hostPort(addr)
			if err != nil {
				return nil, err
			}
			return s.dial(ctx, host, port, owner)
		},
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	in := bufio.NewReader(c)
	for {
		c.SetReadDeadline(time.Now().Add(2 * time.Minute))
		req, err := http.ReadRequest(in)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				answer(c, http.StatusBadRequest, "")
			}
			return
		}
		c.SetReadDeadline(time.Time{})
		if req.Method == http.MethodConnect {
			s.tunnel(c, in, req, owner)
			return
		}
		if !s.forward(c, req, transport) {
			return
		}
	}
}

func hostPort(addr string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, errors.New("no port " + strconv.Quote(port))
	}
	return host, uint16(n), nil
}

func answer(c net.Conn, code int, text string) {
	r := &http.Response{StatusCode: code, ProtoMajor: 1, ProtoMinor: 1, Close: true, ContentLength: int64(len(text)), Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}}
	r.Body = io.NopCloser(io.LimitReader(stringReader(text), int64(len(text))))
	r.Write(c)
}

type stringReader string

func (s stringReader) Read(b []byte) (int, error) { return copy(b, s), io.EOF }

func (s *server) tunnel(c net.Conn, in *bufio.Reader, req *http.Request, owner netstack.Owner) {
	host, port, err := hostPort(req.Host)
	if err != nil {
		answer(c, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	out, err := s.dial(s.ctx, host, port, owner)
	if err != nil {
		s.out.Log.Debug("not connected", "proxy", s.cfg.String(), "to", req.Host, "err", err)
		answer(c, http.StatusBadGateway, err.Error()+"\n")
		return
	}
	defer out.Close()
	defer context.AfterFunc(s.ctx, func() { out.Close() })()
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	if n := in.Buffered(); n > 0 { // what came right behind the request
		b, _ := in.Peek(n)
		if _, err := out.Write(b); err != nil {
			return
		}
	}
	relay(c, out)
}

// forward passes a request on; false: the connection ends.
func (s *server) forward(c net.Conn, req *http.Request, t *http.Transport) bool {
	if req.URL.Scheme != "http" || req.URL.Host == "" {
		answer(c, http.StatusBadRequest, "this is a proxy: it takes CONNECT, and requests for http:// URLs\n")
		return false
	}
	last := req.Close
	for _, h := range append([]string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}, req.Header.Values("Connection")...) {
		req.Header.Del(h)
	}
	req.RequestURI = ""
	res, err := t.RoundTrip(req.WithContext(s.ctx))
	if err != nil {
		s.out.Log.Debug("not connected", "proxy", s.cfg.String(), "to", req.URL.Host, "err", err)
		answer(c, http.StatusBadGateway, err.Error()+"\n")
		return false
	}
	defer res.Body.Close()
	res.Close = last
	return res.Write(c) == nil && !last && !res.Close
}
