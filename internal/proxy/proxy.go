// Package proxy lets programs of the host reach out through the router: SOCKS5
// and HTTP proxies on a Unix socket or a host port, whose connections are the
// router's own, from OUTPUT on, and belong to the user whose program asked.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/netstack"
)

// Proxy types.
const (
	SOCKS5 = "socks5" // RFC 1928: CONNECT, without authentication
	HTTP   = "http"   // RFC 9110: CONNECT, and requests for http URLs
)

// Types lists the proxy types.
func Types() []string { return []string{SOCKS5, HTTP} }

// Config is one proxy.
type Config struct {
	Type    string
	Network string // "tcp" or "unix"
	Address string // "127.0.0.1:1080", or a path
}

// String is "socks5 proxy at 127.0.0.1:1080".
func (c Config) String() string { return fmt.Sprintf("%s proxy at %s", c.Type, c.Address) }

// Nobody owns the connections of peers that are no local program: the owner
// match is false for them.
var Nobody = netstack.Owner{UID: 1<<32 - 1, GID: 1<<32 - 1}

// Outside is what proxies reach out through.
type Outside struct {
	Dial   func(ctx context.Context, to netip.AddrPort, owner netstack.Owner) (net.Conn, error)
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	Log    *slog.Logger // nil: nothing is logged
}

// Manager runs proxies. Its methods may be called from any goroutine.
type Manager struct {
	out Outside

	mu      sync.Mutex
	running map[Config]*server
	closed  bool
}

// NewManager makes a Manager without proxies.
func NewManager(out Outside) *Manager {
	if out.Log == nil {
		out.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{out: out, running: map[Config]*server{}}
}

// Apply makes the proxies those of want; what stays the same keeps its
// connections. With an error nothing has changed.
func (m *Manager) Apply(want []Config) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return net.ErrClosed
	}
	next := map[Config]*server{}
	var fresh []*server
	for _, c := range want {
		if s := m.running[c]; s != nil {
			next[c] = s
			continue
		}
		s, err := m.open(c)
		if err != nil {
			for _, s := range fresh {
				s.close()
			}
			return fmt.Errorf("%s: %w", c, err)
		}
		next[c] = s
		fresh = append(fresh, s)
	}
	for c, s := range m.running {
		if next[c] == nil {
			s.close()
		}
	}
	m.running = next
	return nil
}

// Close ends all proxies and their connections.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, s := range m.running {
		s.close()
	}
	m.running = nil
	return nil
}

// server is one proxy that runs.
type server struct {
	cfg    Config
	out    Outside
	ln     net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (m *Manager) open(c Config) (*server, error) {
	if c.Network == "unix" {
		if err := removeStale(c.Address); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen(c.Network, c.Address)
	if err != nil {
		return nil, err
	}
	s := &server{cfg: c, out: m.out, ln: ln}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Add(1)
	go s.serve()
	return s, nil
}

// removeStale takes away a socket that nobody listens on any more.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&os.ModeSocket == 0 {
		return nil // what is there, Listen will say
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("%s is in use", path)
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return os.Remove(path)
}

func (s *server) close() {
	s.cancel()
	s.ln.Close()
	s.wg.Wait()
}

func (s *server) serve() {
	defer s.wg.Done()
	for {
		c, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors, most likely
			s.out.Log.Warn("accepting", "proxy", s.cfg.String(), "err", err)
			select {
			case <-s.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer c.Close()
			defer context.AfterFunc(s.ctx, func() { c.Close() })()
			owner := ownerOf(c)
			if s.cfg.Type == SOCKS5 {
				s.socks(c, owner)
			} else {
				s.http(c, owner)
			}
		}()
	}
}

// ownerOf is whose program is at the other end of c.
func ownerOf(c net.Conn) netstack.Owner {
	switch c := c.(type) {
	case *net.UnixConn:
		raw, err := c.SyscallConn()
		if err != nil {
			return Nobody
		}
		owner := Nobody
		raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				owner = netstack.Owner{UID: cred.Uid, GID: cred.Gid}
			}
		})
		return owner
	case *net.TCPConn:
		// The kernel knows the socket at the other end if it is on this
		// machine: the same addresses, the other way round. Who it belongs to
		// is told by uid alone.
		peer, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok || !peer.IP.IsLoopback() {
			return Nobody
		}
		sock, err := netlink.SocketGet(peer, c.LocalAddr())
		if err != nil || sock == nil {
			return Nobody
		}
		return netstack.Owner{UID: sock.UID, GID: Nobody.GID}
	}
	return Nobody
}

// dialTimeout is for one address, where there are more.
const dialTimeout = 10 * time.Second

// dial connects to a host, by address or name, and says where to.
func (s *server) dial(ctx context.Context, host string, port uint16, owner netstack.Owner) (net.Conn, error) {
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a.Unmap()}
	} else if addrs, err = s.out.Lookup(ctx, host); err != nil {
		return nil, err
	}
	err := error(fmt.Errorf("%s has no address", host))
	for i, a := range addrs {
		try, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addrs)-1 {
			try, cancel = context.WithTimeout(ctx, dialTimeout)
		}
		var c net.Conn
		c, err = s.out.Dial(try, netip.AddrPortFrom(a, port), owner)
		cancel()
		if err == nil {
			return c, nil
		}
	}
	return nil, err
}

// relay copies both ways until both have ended, each end passed on as it comes.
func relay(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(a, b)
	}()
	pipe(b, a)
	<-done
}

func pipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if w, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		w.CloseWrite()
		return
	}
	dst.Close()
	src.Close()
}
