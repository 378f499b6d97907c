// Package services runs the router's own small servers: the [[service]] entries
// of a configuration, on sockets of the local stack.
package services

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/netstack"
)

// Service types.
const (
	Echo    = "echo"    // RFC 862
	Discard = "discard" // RFC 863
	Chargen = "chargen" // RFC 864
	Daytime = "daytime" // RFC 867
	Time    = "time"    // RFC 868
	HTTP    = "http"    // the status page, / and /status.json; TCP only
)

// Types lists the service types.
func Types() []string { return []string{Echo, Discard, Chargen, Daytime, Time, HTTP} }

// Listen is a listening address.
type Listen struct {
	Network string         // "tcp" or "udp"
	Addr    netip.AddrPort // the unspecified address: all of the router's; [::] takes IPv4 too
}

// String is the address as a configuration has it.
func (l Listen) String() string { return l.Network + "://" + l.Addr.String() }

// ParseListen reads "tcp://10.0.1.1:7" or "udp://[fd00::1]:7".
func ParseListen(s string) (Listen, error) {
	network, addr, ok := strings.Cut(s, "://")
	if !ok || network != "tcp" && network != "udp" {
		return Listen{}, fmt.Errorf("%q is not tcp://ADDRESS:PORT or udp://ADDRESS:PORT", s)
	}
	a, err := netip.ParseAddrPort(addr)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		return Listen{}, fmt.Errorf("%q: %q is not ADDRESS:PORT (an IPv6 address in brackets)", s, addr)
	}
	return Listen{network, a}, nil
}

// Config is one service.
type Config struct {
	Type     string
	Listen   []Listen
	UID, GID uint32 // what the owner match sees
	netstack.SockOpts
}

// Stack opens sockets; netstack.Local is one.
type Stack interface {
	ListenWith(network string, addr netip.AddrPort, owner netstack.Owner, opt netstack.SockOpts) (net.Listener, error)
	ListenPacketWith(network string, addr netip.AddrPort, owner netstack.Owner, opt netstack.SockOpts) (*netstack.PacketConn, error)
}

// Source tells what the status page shows: a value whose JSON form is
// /status.json. The page itself shows what it knows of it, see View. Status may
// be called from several goroutines at once.
type Source interface{ Status() any }

// Manager runs services. Its methods may be called from any goroutine.
type Manager struct {
	stack  Stack
	source Source
	log    *slog.Logger

	mu      sync.Mutex
	running map[key]*service
	closed  bool
}

// key is what makes a service the same one after a reload.
type key struct {
	typ    string
	listen Listen
	owner  netstack.Owner
	opt    netstack.SockOpts
}

func (k key) String() string { return fmt.Sprintf("service %s at %s", k.typ, k.listen) }

// conflicts says whether a and b cannot be listened on at once.
func (k key) conflicts(o key) bool {
	a, b := k.listen, o.listen
	if a.Network != b.Network || a.Addr.Port() != b.Addr.Port() {
		return false
	}
	x, y := a.Addr.Addr().Unmap(), b.Addr.Addr().Unmap()
	return x == y || x.IsUnspecified() && (x.Is6() || y.Is4()) || y.IsUnspecified() && (y.Is6() || x.Is4())
}

// NewManager makes a Manager without services. log may be nil.
func NewManager(stack Stack, source Source, log *slog.Logger) *Manager {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{stack: stack, source: source, log: log, running: map[key]*service{}}
}

// Check says what is wrong with a configuration, without a socket.
func Check(cfg []Config) error {
	_, err := keys(cfg)
	return err
}

func keys(cfg []Config) ([]key, error) {
	var out []key
	for _, c := range cfg {
		if !slices.Contains(Types(), c.Type) {
			return nil, fmt.Errorf("no service type %q (there are %s)", c.Type, strings.Join(Types(), ", "))
		}
		for _, l := range c.Listen {
			k := key{c.Type, l, netstack.Owner{UID: c.UID, GID: c.GID}, c.SockOpts}
			if l.Network != "tcp" && (l.Network != "udp" || c.Type == HTTP) {
				return nil, fmt.Errorf("%s: %s has no %s form", k, c.Type, l.Network)
			}
			for _, o := range out {
				if k.listen == o.listen {
					return nil, fmt.Errorf("%s: %s is there already", k, o)
				}
			}
			out = append(out, k)
		}
	}
	return out, nil
}

// Apply makes the services those of cfg. What stays the same keeps its sockets
// and connections. With an error (a port in use…) nothing has changed, but that
// a service whose address cfg gives to another one may have missed a datagram.
func (m *Manager) Apply(cfg []Config) error {
	want, err := keys(cfg)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return net.ErrClosed
	}
	var gone []*service
	for k, s := range m.running {
		if !slices.Contains(want, k) {
			gone = append(gone, s)
		}
	}
	// Sockets that nothing old is in the way of are opened first, so that
	// most errors show before anything is closed.
	var now, later []key
	for _, k := range want {
		if m.running[k] != nil {
			continue
		}
		if slices.ContainsFunc(gone, func(s *service) bool { return k.conflicts(s.key) }) {
			later = append(later, k)
		} else {
			now = append(now, k)
		}
	}
	var fresh []*service
	undo := func() {
		for _, s := range fresh {
			s.shut()
			s.end()
		}
	}
	open := func(ks []key) error {
		for _, k := range ks {
			s, err := m.open(k)
			if err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
			fresh = append(fresh, s)
		}
		return nil
	}
	if err := open(now); err != nil {
		undo()
		return err
	}
	for _, s := range gone {
		s.shut()
	}
	if err := open(later); err != nil {
		undo()
		for _, s := range gone { // back to where we were
			if again, err2 := m.open(s.key); err2 == nil {
				again.adopt(s)
				m.running[s.key] = again
			} else {
				s.end()
				delete(m.running, s.key)
				m.log.Error("a service could not be opened again", "service", s.key.typ, "listen", s.key.listen.String(), "err", err2)
			}
		}
		return err
	}
	for _, s := range gone {
		s.end()
		delete(m.running, s.key)
	}
	for _, s := range fresh {
		m.running[s.key] = s
	}
	return nil
}

// Listening lists the addresses that are served, sorted.
func (m *Manager) Listening() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for k := range m.running {
		out = append(out, k.typ+" "+k.listen.String())
	}
	slices.Sort(out)
	return out
}

// Close ends all services and their connections.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for k, s := range m.running {
		s.shut()
		s.end()
		delete(m.running, k)
	}
	return nil
}

// service is one listening socket and the connections that came of it.
type service struct {
	key key
	m   *Manager
	ln  net.Listener         // TCP
	pc  *netstack.PacketConn // UDP
	web *http.Server
	wg  sync.WaitGroup // the socket's goroutine

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	ended  bool
	before *service // whose listening socket this one took over
}

func (m *Manager) open(k key) (*service, error) {
	s := &service{key: k, m: m, conns: map[net.Conn]struct{}{}}
	var err error
	if k.listen.Network == "udp" {
		if s.pc, err = m.stack.ListenPacketWith("udp", k.listen.Addr, k.owner, k.opt); err != nil {
			return nil, err
		}
		s.wg.Add(1)
		go s.servePackets()
		return s, nil
	}
	if s.ln, err = m.stack.ListenWith("tcp", k.listen.Addr, k.owner, k.opt); err != nil {
		return nil, err
	}
	s.wg.Add(1)
	if k.typ == HTTP {
		s.web = &http.Server{
			Handler:           NewPage(m.source),
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       60 * time.Second,
			ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		}
		go func() {
			defer s.wg.Done()
			s.web.Serve(s.ln)
		}()
		return s, nil
	}
	go s.serveConns()
	return s, nil
}

// shut closes the listening socket; connections live on.
func (s *service) shut() {
	if s.ln != nil {
		s.ln.Close()
	} else {
		s.pc.Close()
	}
	s.wg.Wait()
}

// end closes the connections, and lets a page that is being written finish.
func (s *service) end() {
	if s.web != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if s.web.Shutdown(ctx) != nil {
			s.web.Close()
		}
		cancel()
	}
	s.mu.Lock()
	s.ended = true
	for c := range s.conns {
		c.Close()
	}
	before := s.before
	s.before = nil
	s.mu.Unlock()
	if before != nil {
		before.end()
	}
}

// adopt makes the connections of a shut service end when s does.
func (s *service) adopt(old *service) {
	s.mu.Lock()
	s.before = old
	s.mu.Unlock()
}

func (s *service) serveConns() {
	defer s.wg.Done()
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			c.Close()
			continue
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		go func() {
			defer func() {
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
				c.Close()
			}()
			streams[s.key.typ](c)
		}()
	}
}

func (s *service) servePackets() {
	defer s.wg.Done()
	answer := datagrams[s.key.typ]
	in := make([]byte, 65536)
	for {
		n, from, to, err := s.pc.ReadMsg(in)
		if err != nil {
			return // closed
		}
		if answer == nil || smallService(from.Port()) {
			continue
		}
		// Nobody waits for an error here: the answer is lost, as UDP's may be.
		s.pc.WriteMsg(answer(in[:n]), to, from)
	}
}

// smallService says whether a port is one of those that answer whatever comes:
// two of them would answer each other for ever.
func smallService(port uint16) bool {
	switch port {
	case 0, 7, 13, 17, 19, 37:
		return true
	}
	return false
}
