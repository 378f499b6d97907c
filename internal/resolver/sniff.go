package resolver

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"

	"sluice/netstack/uplink"
	"sluice/packet"
)

// Strict is an uplink.Checker that lets connections to ports 443 and 80 pass only
// if the name that the client says there, in TLS's server name or in HTTP's Host
// header, is on the allow list: an address that one name resolved to may serve others.
// Addresses that are on the list themselves are not looked at.
type Strict struct {
	*Resolver
}

var _ uplink.Checker = Strict{}

// Wants implements uplink.Checker.
func (s Strict) Wants(_, out netip.AddrPort) bool {
	if out.Port() != 443 && out.Port() != 80 {
		return false
	}
	cfg := s.config()
	for _, a := range cfg.Allow {
		if a.Prefix.IsValid() && a.Prefix.Contains(out.Addr()) && (a.Port == 0 || a.Port == out.Port()) {
			return false
		}
	}
	return len(cfg.Allow) > 0
}

// Unseen implements uplink.Checker.
func (s Strict) Unseen(_, out netip.AddrPort) {
	if name, first := s.Report.Count(false, packet.ProtoUDP, out); first {
		s.log.Warn("connection denied: names are looked at in TCP alone", "protocol", "udp", "to", out.String(), "name", name)
	}
}

// Judge implements uplink.Checker.
func (s Strict) Judge(_, out netip.AddrPort, first []byte) uplink.Verdict {
	name, verdict := "", uplink.More
	if out.Port() == 443 {
		name, verdict = serverName(first)
	} else {
		name, verdict = hostHeader(first)
	}
	if verdict == uplink.Pass {
		verdict = uplink.Refuse
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		some, all, ok := ports(s.config().Allow, name)
		for _, p := range some {
			all = all || p == out.Port()
		}
		if ok && all {
			verdict = uplink.Pass
		}
	}
	if verdict == uplink.Refuse {
		if s.Report.strict(name, out) {
			s.log.Warn("connection denied: the name that it says it is for is not on the allow list", "to", out.String(), "name", name)
		}
	}
	return verdict
}

// strict counts a connection that was ended for the name it said.
func (r *Report) strict(name string, to netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := use{name, to, 6}
	if r.uses[0][k] == 0 && len(r.uses[0]) >= maxReport {
		r.lost++
		return false
	}
	r.uses[0][k]++
	return r.uses[0][k] == 1
}

// reader takes a byte string apart; it fails when it is too short.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.ok = false
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// number reads a number of n bytes.
func (r *reader) number(n int) int {
	v := 0
	for _, c := range r.take(n) {
		v = v<<8 | int(c)
	}
	return v
}

// vector reads a vector whose length has n bytes.
func (r *reader) vector(n int) reader {
	k := r.number(n)
	return reader{r.take(k), r.ok}
}

// serverName finds the server name in a TLS ClientHello (RFC 8446, 4.1.2; RFC
// 6066, 3): Pass with the name, Refuse for what is none, More while it is not all there.
func serverName(b []byte) (string, uplink.Verdict) {
	var hello []byte // of the records that are there
	for whole := true; whole && len(b) > 0; {
		if b[0] != 22 || len(b) > 1 && b[1] != 3 {
			return "", uplink.Refuse
		}
		if len(b) < 5 {
			break
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if n == 0 || n > 1<<14 {
			return "", uplink.Refuse
		}
		whole = len(b) >= 5+n
		hello = append(hello, b[5:min(5+n, len(b))]...)
		b = b[min(5+n, len(b)):]
		if len(hello) >= 4 && len(hello) >= 4+int(hello[1])<<16|int(hello[2])<<8|int(hello[3]) {
			break
		}
	}
	if len(hello) > 0 && hello[0] != 1 {
		return "", uplink.Refuse
	}
	if len(hello) < 4 {
		return "", uplink.More
	}
	if n := int(hello[1])<<16 | int(hello[2])<<8 | int(hello[3]); len(hello)-4 < n {
		return "", uplink.More
	}
	r := reader{hello[1:], true}
	r = r.vector(3)
	r.take(2 + 32)
	r.vector(1)
	r.vector(2)
	r.vector(1)
	ext := r.vector(2)
	for ext.ok && len(ext.b) > 0 {
		typ := ext.number(2)
		body := ext.vector(2)
		if typ != 0 || !body.ok {
			continue
		}
		list := body.vector(2)
		for list.ok && len(list.b) > 0 {
			kind := list.number(1)
			name := list.vector(2)
			if kind == 0 && name.ok {
				return string(name.b), uplink.Pass
			}
		}
	}
	return "", uplink.Refuse
}

// hostHeader finds the host of an HTTP/1 request.
func hostHeader(b []byte) (string, uplink.Verdict) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	if f := bytes.Fields(line); ok && (len(f) != 3 || !bytes.HasPrefix(f[2], []byte("HTTP/1."))) {
		return "", uplink.Refuse
	}
	host := ""
	for ok {
		line, rest, ok = bytes.Cut(rest, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if !ok {
			return "", uplink.More // the header may go on, with a second Host
		}
		if len(line) == 0 {
			if host == "" {
				return "", uplink.Refuse
			}
			return host, uplink.Pass
		}
		key, value, colon := bytes.Cut(line, []byte(":"))
		if !colon {
			return "", uplink.Refuse
		}
		if !strings.EqualFold(string(key), "host") {
			continue
		}
		if host != "" {
			return "", uplink.Refuse
		}
		host = string(bytes.TrimSpace(value))
		if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
			host = host[:i]
		}
	}
	return "", uplink.More
}
