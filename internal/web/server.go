// Package web is the router's HTTP side: metrics, health, and who may see them.
package web

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"sluice/router"
)

// maxClients is how many connections are served at a time; more wait.
const maxClients = 128

// answerTime is how long a client may take for an answer.
const answerTime = time.Minute

// sendBuffer bounds what the kernel keeps for a client that does not read.
const sendBuffer = 256 << 10

// minToken is the least length of a token, in characters.
const minToken = 16

// Server serves one router over HTTP. On a loopback address everybody there may
// read; what changes something needs the token, and elsewhere reading does too.
type Server struct {
	l      net.Listener
	http   *http.Server
	mux    *http.ServeMux
	router *router.Router
	log    *slog.Logger

	local bool // on a loopback address
	token []byte
	names *x509.Certificate // whose names are ours too; nil without TLS

	history history
	every   time.Duration // between two readings of a stream
	patient time.Duration // a stream's client that does not read for so long is cut off
	streams atomic.Int32
	sims    chan struct{} // held while a packet is tried out
	ctx     context.Context
	stop    context.CancelFunc
}

// Access is what a handler asks of a request.
type Access int

// Public is for everybody who reaches the port, Read for who may look, Write
// for who may change something: POST requests with the token.
const (
	Public Access = iota
	Read
	Write
)

// Listen opens the port that cfg names. The error says which key is at fault.
func Listen(cfg *router.ControlConfig, log *slog.Logger) (*Server, error) {
	s := &Server{mux: http.NewServeMux(), log: log, sims: make(chan struct{}, 1), every: time.Second, patient: 5 * time.Second}
	s.ctx, s.stop = context.WithCancel(context.Background())
	addr, err := netip.ParseAddrPort(cfg.HTTP)
	if err != nil {
		return nil, fmt.Errorf("control.http: %w", err)
	}
	s.local = addr.Addr().IsLoopback()
	if cfg.TokenFile != "" {
		text, err := os.ReadFile(cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("control.token_file: %w", err)
		}
		s.token = []byte(strings.TrimSpace(string(text)))
		if len(s.token) < minToken {
			return nil, fmt.Errorf("control.token_file: %s: a token has %d characters or more; make one: head -c 24 /dev/urandom | base64 > %[1]s", cfg.TokenFile, minToken)
		}
	}
	var conf *tls.Config
	if cfg.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("control.tls_cert, control.tls_key: %w", err)
		}
		if s.names = pair.Leaf; s.names == nil {
			if s.names, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
				return nil, fmt.Errorf("control.tls_cert: %w", err)
			}
		}
		conf = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	if !s.local && (conf == nil || s.token == nil) {
		return nil, fmt.Errorf("control.http: %s is not a loopback address: tls_cert, tls_key and token_file are needed too", cfg.HTTP)
	}
	if s.l, err = net.Listen("tcp", cfg.HTTP); err != nil {
		return nil, fmt.Errorf("control.http: %w", err)
	}
	s.l = netutil.LimitListener(bounded{s.l}, maxClients)
	if conf != nil {
		s.l = tls.NewListener(s.l, conf)
	}
	s.http = &http.Server{
		Handler: s.mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: answerTime, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// bounded limits what the kernel keeps for each connection.
type bounded struct{ net.Listener }

func (l bounded) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		t.SetWriteBuffer(sendBuffer) // without it there is only more in the buffer
	}
	return c, err
}

// Addr is the address that is listened on.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Serve answers requests about r until Close.
func (s *Server) Serve(r *router.Router) error {
	s.router = r
	s.handlers()
	go s.history.keep(s.ctx, r)
	if err := s.http.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends Serve, and requests after a moment.
func (s *Server) Close() error {
	s.stop() // what streams ends
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	return s.l.Close()
}

func (s *Server) handlers() {
	s.Handle("GET /metrics", Read, s.metrics())
	s.Handle("GET /healthz", Public, http.HandlerFunc(s.health))
	s.Handle("GET /readyz", Public, http.HandlerFunc(s.ready))
	s.Handle("GET /login", Public, http.HandlerFunc(s.login))
	s.pageHandlers()
}

// Handle serves pattern, as http.ServeMux has it, to those who have access.
func (s *Server) Handle(pattern string, access Access, h http.Handler) {
	s.mux.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Content-Security-Policy", "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Referrer-Policy", "no-referrer")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		if !s.ours(r.Host) {
			http.Error(w, fmt.Sprintf("this is not %q: use the address that sluice listens on", r.Host), http.StatusMisdirectedRequest)
			return
		}
		if o := r.Header.Get("Origin"); o != "" && !sameOrigin(o, r) {
			http.Error(w, "requests of other sites' pages are not answered", http.StatusForbidden)
			return
		}
		if access == Write && !s.authorized(r) {
			s.refuse(w, "changing something takes the token of control.token_file")
			return
		}
		if access == Read && !s.local && !s.authorized(r) {
			s.refuse(w, "the token of control.token_file is needed: /login?token=…, or the header Authorization: Bearer …")
			return
		}
		h.ServeHTTP(w, r)
	}))
}

func (s *Server) refuse(w http.ResponseWriter, why string) {
	w.Header().Set("WWW-Authenticate", "Bearer")
	http.Error(w, why, http.StatusUnauthorized)
}

// ours: a name that somebody else's DNS may have led here is not answered to,
// so that no page gets at a router by rebinding its own name.
func (s *Server) ours(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if _, err := netip.ParseAddr(name); err == nil || strings.EqualFold(name, "localhost") {
		return true
	}
	return s.names != nil && s.names.VerifyHostname(name) == nil
}

func sameOrigin(origin string, r *http.Request) bool {
	u, err := url.Parse(origin)
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return err == nil && u.Scheme == scheme && strings.EqualFold(u.Host, r.Host)
}

// cookie keeps the token for a browser.
const cookie = "sluice"

func (s *Server) authorized(r *http.Request) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if c, err := r.Cookie(cookie); !ok && err == nil {
		given, _ = url.QueryUnescape(c.Value)
	}
	return s.isToken(given)
}

func (s *Server) isToken(given string) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256(s.token)
	return s.token != nil && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// MayWrite reports whether a request comes with the token.
func (s *Server) MayWrite(r *http.Request) bool { return s.authorized(r) }

// login gives a browser the token as a cookie.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	if !s.isToken(token) {
		s.refuse(w, "that is not the token")
		return
	}
	http.SetCookie(w, &http.Cookie{Name: cookie, Value: url.QueryEscape(token), Path: "/", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// health: the process answers, and so do its workers.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	done := make(chan struct{})
	go func() { s.router.Overview(); close(done) }()
	select {
	case <-done:
		fmt.Fprintln(w, "ok")
	case <-time.After(5 * time.Second):
		http.Error(w, "a worker does not answer", http.StatusServiceUnavailable)
	}
}

// ready: every interface is up.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	var gone []string
	for _, i := range s.router.Overview().Interfaces {
		if i.State != "up" {
			gone = append(gone, i.Name+" is "+cmp.Or(i.State, "unknown"))
		}
	}
	if len(gone) > 0 {
		http.Error(w, strings.Join(gone, ", "), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}
