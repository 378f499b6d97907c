package router

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"sluice/internal/iptables"
	"sluice/netstack"
)

// self owns the sockets that an embedding program opens: the process' user.
func self() netstack.Owner {
	return netstack.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
}

// Dial connects to an address from the router itself: what it sends passes
// OUTPUT and POSTROUTING, as the packets of a program on a Linux router would.
// network is "tcp" or "udp", with 4 or 6 after it for one family alone; addr is
// "HOST:PORT", a name being resolved as Resolve does. The owner match sees the
// process' user and group. Dial and Listen need a Router that is Run.
func (r *Router) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	addrs, port, err := r.resolveHostPort(ctx, network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	for i, a := range addrs {
		try, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addrs)-1 {
			try, cancel = context.WithTimeout(ctx, 10*time.Second)
		}
		var c net.Conn
		c, err = r.local.DialContext(try, network, netip.AddrPort{}, netip.AddrPortFrom(a, port), self())
		cancel()
		if err == nil {
			return c, nil
		}
	}
	return nil, err
}

// SocketOptions are options of a socket: Transparent is Linux's IP_TRANSPARENT,
// what TPROXY hands packets to; Mark is SO_MARK.
type SocketOptions = netstack.SockOpts

// ListenWith is Listen with options. A transparent listener may be at an
// address that is not the router's, and accepts connections to such addresses:
// their LocalAddr is where the client meant to go.
func (r *Router) ListenWith(network, addr string, opt SocketOptions) (net.Listener, error) {
	a, err := listenAddr(network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return r.local.ListenWith(network, a, self(), opt)
}

// ListenPacketWith is ListenPacket with options; ReadMsg tells where a datagram
// was meant to go, and WriteMsg answers from there.
func (r *Router) ListenPacketWith(network, addr string, opt SocketOptions) (*netstack.PacketConn, error) {
	a, err := listenAddr(network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return r.local.ListenPacketWith(network, a, self(), opt)
}

// DialFrom is Dial from an address of the caller's choice, with options: a
// transparent socket may speak from an address that is not the router's.
func (r *Router) DialFrom(ctx context.Context, network string, from, to netip.AddrPort, opt SocketOptions) (net.Conn, error) {
	return r.local.DialWith(ctx, network, from, to, self(), opt)
}

// Listen accepts TCP connections to an address of the router's, which pass
// INPUT; ":80" is every address. network is "tcp", "tcp4" or "tcp6".
func (r *Router) Listen(network, addr string) (net.Listener, error) {
	a, err := listenAddr(network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return r.local.Listen(network, a, self())
}

// ListenPacket is Listen for datagrams; network is "udp", "udp4" or "udp6".
func (r *Router) ListenPacket(network, addr string) (net.PacketConn, error) {
	a, err := listenAddr(network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return r.local.ListenPacket(network, a, self())
}

// Command runs a command of iptables' on the router's tables, as in
// Command("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "25", "-j", "DROP"),
// and gives what it prints. The programs are iptables, iptables-save,
// iptables-restore (whose rules are stdin) and ip6tables and its own.
func (r *Router) Command(stdin string, argv ...string) (string, error) {
	var out, errs bytes.Buffer
	if len(argv) == 0 {
		return "", fmt.Errorf("no command: there are %s", strings.Join(iptables.Programs, ", "))
	}
	if code := iptables.Run(r.IPTables(), argv, strings.NewReader(stdin), &out, &errs); code != 0 {
		return out.String(), fmt.Errorf("%s: exit status %d: %s", argv[0], code, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Rules makes lines for a TableConfig, each as in a file of iptables-save: "-A
// FORWARD -j ACCEPT".
func Rules(lines ...string) []RuleLine {
	out := make([]RuleLine, len(lines))
	for i, l := range lines {
		out[i].Text = l
	}
	return out
}

func (r *Router) resolveHostPort(ctx context.Context, network, addr string) ([]netip.Addr, uint16, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, 0, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, 0, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, uint16(port), nil
	}
	all, err := r.Resolve(ctx, host)
	if err != nil {
		return nil, 0, err
	}
	var out []netip.Addr
	for _, a := range all {
		if strings.HasSuffix(network, "4") && !a.Is4() || strings.HasSuffix(network, "6") && !a.Is6() {
			continue
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, 0, fmt.Errorf("%s has no address for %s", host, network)
	}
	return out, uint16(port), nil
}

func listenAddr(network, addr string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no port", service)
	}
	if host == "" {
		host = "::"
		if strings.HasSuffix(network, "4") {
			host = "0.0.0.0"
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}
