package iptables

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"sluice/packet"
	"sluice/tables"
)

// Resolver turns names of hosts and networks into addresses and back. Addresses
// are in network order, IPv4 in the first four bytes.
type Resolver interface {
	// Addrs are the addresses of a host or network; none: not found.
	Addrs(fam uint8, name string) [][16]byte
	// Name is the name of an address; "": it has none.
	Name(fam uint8, addr [16]byte) string
}

func (x *tool) resolve(fam uint8, name string) [][16]byte {
	if x.Resolver == nil {
		return nil
	}
	return x.Resolver.Addrs(fam, name)
}

// name is an address' name; each is asked for once in a call, and none any more
// after an answer that took too long.
func (x *tool) name(fam uint8, addr [16]byte) string {
	if s, ok := x.names[addr]; ok || x.Resolver == nil || x.mute {
		return s
	}
	start := time.Now()
	s := x.Resolver.Name(fam, addr)
	x.mute = time.Since(start) > lookupTime/2
	if x.names == nil {
		x.names = map[[16]byte]string{}
	}
	x.names[addr] = s
	return s
}

// hostResolver asks the host: /etc/networks, then its resolver.
type hostResolver struct{}

// lookupTime bounds one question to the host's resolver.
const lookupTime = 5 * time.Second

func (hostResolver) Addrs(fam uint8, name string) [][16]byte {
	if fam == packet.IPv4 {
		for _, n := range networks("/etc/networks") {
			if n.is(name) {
				return [][16]byte{n.addr}
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	network := "ip4"
	if fam == packet.IPv6 {
		network = "ip6"
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, network, name)
	if err != nil {
		return nil
	}
	var out [][16]byte
	for _, a := range found {
		out = append(out, bytes16(fam, a))
	}
	return out
}

func bytes16(fam uint8, a netip.Addr) (out [16]byte) {
	if fam == packet.IPv4 {
		b := a.Unmap().As4()
		copy(out[:], b[:])
		return out
	}
	return a.As16()
}

func (hostResolver) Name(fam uint8, addr [16]byte) string {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	if names, err := net.DefaultResolver.LookupAddr(ctx, tables.FormatAddr(fam, addr)); err == nil && len(names) > 0 {
		return strings.TrimSuffix(names[0], ".")
	}
	if fam == packet.IPv4 {
		for _, n := range networks("/etc/networks") {
			if n.addr == addr {
				return n.names[0]
			}
		}
	}
	return ""
}

type network struct {
	names []string
	addr  [16]byte
}

func (n *network) is(name string) bool {
	for _, s := range n.names {
		if s == name {
			return true
		}
	}
	return false
}

// networks reads a file like networks(5).
func networks(path string) (out []network) {
	f, err := os.Open(path)
	if err != nil {
		return nil // a system without the file has no names for networks
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		text, _, _ := strings.Cut(sc.Text(), "#")
		w := strings.Fields(text)
		if len(w) < 2 {
			continue
		}
		if a, ok := tables.ParseAddr(packet.IPv4, w[1]); ok {
			out = append(out, network{append([]string{w[0]}, w[2:]...), a})
		}
	}
	return out
}
