// Package resolver is the router's DNS service: it forwards questions to the
// host's resolvers, and can pin what names on an allow list resolve to into
// sets that rules ask, for as long as the answers hold.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Config is what a Resolver does.
type Config struct {
	Servers []netip.AddrPort // asked in this order; empty: those of ResolvConf
	Allow   []Allow          // empty: every name is answered and nothing is pinned
	Pass    bool             // names outside the list are answered too, not pinned; else refused
	Grace   time.Duration    // how long an address stays pinned after its TTL

	ResolvConf string // path; "": /etc/resolv.conf
	Log        *slog.Logger
}

// Pins holds the addresses that connections may go to. Its methods may be called
// from any goroutine.
type Pins interface {
	// Pin allows connections to addresses, to ports of TCP and UDP, or with
	// port 0 to all, for ttl from now on; ttl 0: for good.
	Pin(addr netip.Prefix, port uint16, ttl time.Duration) error
}

// Limits of what is kept.
const (
	cacheEntries = 8192
	maxTTL       = time.Hour
	negativeTTL  = 60 * time.Second
	udpSize      = 1232 // what we take over UDP: fits any path
)

// Resolver answers questions. Its methods may be called from any goroutine.
type Resolver struct {
	log    *slog.Logger
	pins   Pins
	Report *Report

	flight singleflight.Group

	mu      sync.Mutex
	cfg     Config
	cache   map[question]*answer
	pinned  map[pin]time.Time // until when
	conf    *dns.ClientConfig // of ResolvConf
	confAt  time.Time         // its modification time
	checked time.Time
}

// question is the key of the cache.
type question struct {
	name  string
	typ   uint16
	class uint16
	do    bool
}

type answer struct {
	msg   *dns.Msg
	asked time.Time
	until time.Time
}

type pin struct {
	prefix netip.Prefix
	port   uint16
}

// New makes a resolver. pins may be nil where nothing is to be pinned.
func New(cfg Config, pins Pins) (*Resolver, error) {
	r := &Resolver{log: cfg.Log, pins: pins, Report: newReport(), cache: map[question]*answer{}, pinned: map[pin]time.Time{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r, r.Configure(cfg)
}

// Configure changes what the resolver does; addresses that are pinned stay so
// for their time.
func (r *Resolver) Configure(cfg Config) error {
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	r.mu.Lock()
	r.cfg = cfg
	r.mu.Unlock()
	for _, a := range cfg.Allow {
		if a.Prefix.IsValid() {
			if err := r.pin(a.Prefix, a.Port, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Resolver) config() Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg
}

// upstream is whom to ask, how long to wait and how often.
func (r *Resolver) upstream() (servers []string, timeout time.Duration, attempts int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	timeout, attempts = 5*time.Second, 2
	if now := time.Now(); now.Sub(r.checked) > time.Second {
		r.checked = now
		if st, err := os.Stat(r.cfg.ResolvConf); err == nil && (r.conf == nil || st.ModTime() != r.confAt) {
			if c, err := dns.ClientConfigFromFile(r.cfg.ResolvConf); err == nil {
				r.conf, r.confAt = c, st.ModTime()
			}
		}
	}
	if r.conf != nil {
		timeout, attempts = time.Duration(max(r.conf.Timeout, 1))*time.Second, max(r.conf.Attempts, 1)
	}
	if len(r.cfg.Servers) > 0 {
		for _, s := range r.cfg.Servers {
			servers = append(servers, s.String())
		}
	} else if r.conf != nil {
		for _, s := range r.conf.Servers {
			servers = append(servers, net.JoinHostPort(s, r.conf.Port))
		}
	}
	if len(servers) == 0 {
		servers = []string{"127.0.0.1:53"} // resolv.conf(5)
	}
	return servers, timeout, attempts
}

// Search is the search domains and the ndots of the host's resolv.conf.
func (r *Resolver) Search() (domains []string, ndots int) {
	r.upstream()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conf == nil {
		return nil, 1
	}
	return r.conf.Search, r.conf.Ndots
}

// Answer answers a question as the router's service does: from the list, the
// cache, or the host's resolvers. It gives an answer in any case.
func (r *Resolver) Answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	fail := func(code int) *dns.Msg {
		return new(dns.Msg).SetRcode(q, code)
	}
	if q.Opcode != dns.OpcodeQuery {
		return fail(dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 {
		return fail(dns.RcodeFormatError)
	}
	if o := q.IsEdns0(); o != nil && o.Version() != 0 {
		a := fail(dns.RcodeBadVers)
		a.SetEdns0(udpSize, false)
		return a
	}
	cfg := r.config()
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	_, _, listed := ports(cfg.Allow, name)
	if len(cfg.Allow) > 0 && !listed && !cfg.Pass {
		if r.Report.refused(name) {
			r.log.Warn("name refused: it is not on the allow list", "name", name)
		}
		return fail(dns.RcodeRefused)
	}
	a, err := r.ask(ctx, q)
	if err != nil {
		r.log.Debug("no answer from the host's resolvers", "name", name, "err", err)
		return fail(dns.RcodeServerFailure)
	}
	a.Id, a.Question, a.RecursionDesired = q.Id, q.Question, q.RecursionDesired
	if o := q.IsEdns0(); o != nil {
		a.SetEdns0(udpSize, o.Do())
	}
	if err := r.learn(name, a, listed && len(cfg.Allow) > 0, &cfg); err != nil {
		r.log.Error("pinning an address", "name", name, "err", err)
		return fail(dns.RcodeServerFailure)
	}
	return a
}

// learn remembers which name an address answered for, and pins it if the name is on the list.
func (r *Resolver) learn(name string, a *dns.Msg, listed bool, cfg *Config) error {
	for _, x := range addresses(name, a) {
		r.Report.named(x.addr, name)
		if !listed {
			continue
		}
		some, all, _ := ports(cfg.Allow, name)
		if all {
			some = []uint16{0}
		}
		for _, port := range some {
			if err := r.pin(netip.PrefixFrom(x.addr, x.addr.BitLen()), port, x.ttl+cfg.Grace); err != nil {
				return err
			}
		}
	}
	return nil
}

// pin asks for a pin, never a shorter one than there is.
func (r *Resolver) pin(p netip.Prefix, port uint16, ttl time.Duration) error {
	if r.pins == nil {
		return nil
	}
	if ttl > 0 {
		ttl = max(ttl.Truncate(time.Second), time.Second)
	}
	now := time.Now()
	until := now.Add(ttl)
	if ttl == 0 {
		until = now.Add(1 << 62)
	}
	k := pin{p, port}
	r.mu.Lock()
	if old := r.pinned[k]; old.After(until) { // another name's answer holds longer
		ttl = old.Sub(now)
	} else {
		r.pinned[k] = until
		if len(r.pinned) > cacheEntries {
			for k, t := range r.pinned {
				if t.Before(now) {
					delete(r.pinned, k)
				}
			}
		}
	}
	r.mu.Unlock()
	if ttl > 24*365*time.Hour {
		ttl = 0
	}
	return r.pins.Pin(p, port, ttl)
}

type found struct {
	addr netip.Addr
	ttl  time.Duration
}

// addresses are what name resolved to in an answer: along its aliases, and what
// an HTTPS record hints at.
func addresses(name string, a *dns.Msg) (out []found) {
	names := map[string]bool{name: true}
	canon := func(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }
	for range len(a.Answer) { // aliases may come in any order
		before := len(names)
		for _, rr := range a.Answer {
			if c, ok := rr.(*dns.CNAME); ok && names[canon(c.Hdr.Name)] {
				names[canon(c.Target)] = true
			}
		}
		if len(names) == before {
			break
		}
	}
	add := func(ip net.IP, ttl uint32) {
		if x, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, found{x.Unmap(), min(time.Duration(ttl)*time.Second, 24*time.Hour)})
		}
	}
	for _, rr := range a.Answer {
		if !names[canon(rr.Header().Name)] {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			add(rr.A, rr.Hdr.Ttl)
		case *dns.AAAA:
			add(rr.AAAA, rr.Hdr.Ttl)
		case *dns.HTTPS:
			hints(rr.Value, rr.Hdr.Ttl, add)
		case *dns.SVCB:
			hints(rr.Value, rr.Hdr.Ttl, add)
		}
	}
	return out
}

func hints(kv []dns.SVCBKeyValue, ttl uint32, add func(net.IP, uint32)) {
	for _, v := range kv {
		var ips []net.IP
		switch v := v.(type) {
		case *dns.SVCBIPv4Hint:
			ips = v.Hint
		case *dns.SVCBIPv6Hint:
			ips = v.Hint
		}
		for _, ip := range ips {
			add(ip, ttl)
		}
	}
}

// ask answers from the cache, or asks the host's resolvers, once for all who wait.
func (r *Resolver) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	do := false
	if o := q.IsEdns0(); o != nil {
		do = o.Do()
	}
	k := question{strings.ToLower(q.Question[0].Name), q.Question[0].Qtype, q.Question[0].Qclass, do}
	if a := r.cached(k); a != nil {
		return a, nil
	}
	ch := r.flight.DoChan(fmt.Sprint(k, q.CheckingDisabled), func() (any, error) {
		ask := new(dns.Msg)
		ask.SetQuestion(q.Question[0].Name, k.typ)
		ask.Question[0].Qclass = k.class
		ask.CheckingDisabled = q.CheckingDisabled
		ask.SetEdns0(udpSize, do)
		a, err := r.exchange(ask)
		if err == nil && !q.CheckingDisabled {
			r.keep(k, a)
		}
		return a, err
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return strip(res.Val.(*dns.Msg).Copy()), nil
	}
}

// strip takes out the EDNS record, which is between two neighbours.
func strip(m *dns.Msg) *dns.Msg {
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return m
}

// exchange asks the servers in turn: over UDP, and again over TCP what does not fit.
func (r *Resolver) exchange(q *dns.Msg) (*dns.Msg, error) {
	servers, timeout, attempts := r.upstream()
	err := errors.New("no resolvers")
	for range attempts {
		for _, s := range servers {
			q.Id = dns.Id()
			c := dns.Client{Net: "udp", Timeout: timeout, UDPSize: udpSize}
			a, _, e := c.Exchange(q, s)
			if e == nil && a.Truncated || errors.Is(e, dns.ErrBuf) {
				c.Net = "tcp"
				a, _, e = c.Exchange(q, s)
			}
			switch {
			case e != nil:
				err = e
			case a.Rcode == dns.RcodeServerFailure || a.Rcode == dns.RcodeRefused || a.Rcode == dns.RcodeNotImplemented:
				if len(servers) == 1 {
					return a, nil
				}
				err = fmt.Errorf("%s: %s", s, dns.RcodeToString[a.Rcode])
			case a.Rcode == dns.RcodeFormatError && q.IsEdns0() != nil: // it knows no EDNS
				strip(q)
				if a, _, e := c.Exchange(q, s); e == nil {
					return a, nil
				}
			default:
				return a, nil
			}
		}
	}
	return nil, err
}

// cached is a kept answer with the time that has passed taken off its TTLs.
func (r *Resolver) cached(k question) *dns.Msg {
	now := time.Now()
	r.mu.Lock()
	a := r.cache[k]
	r.mu.Unlock()
	if a == nil || !now.Before(a.until) {
		return nil
	}
	m := strip(a.msg.Copy())
	passed := uint32(now.Sub(a.asked) / time.Second)
	for _, part := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range part {
			h := rr.Header()
			h.Ttl -= min(h.Ttl, passed)
		}
	}
	return m
}

// keep caches an answer for as long as it says (RFC 2308 for those that say no).
func (r *Resolver) keep(k question, a *dns.Msg) {
	if a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		return
	}
	ttl := maxTTL
	for _, rr := range a.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if len(a.Answer) == 0 {
		soa := false
		for _, rr := range a.Ns {
			if s, ok := rr.(*dns.SOA); ok {
				soa = true
				ttl = min(negativeTTL, time.Duration(min(s.Minttl, s.Hdr.Ttl))*time.Second)
			}
		}
		if !soa {
			return
		}
	}
	if ttl <= 0 {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for old, x := range r.cache { // a map's order is as good as any to choose whom to forget
		if len(r.cache) < cacheEntries {
			break
		}
		if old != k || !now.Before(x.until) {
			delete(r.cache, old)
		}
	}
	r.cache[k] = &answer{a, now, now.Add(ttl)}
}

// Lookup resolves a name as a program behind the router would: what it gives is
// pinned. An error says that the name has no address.
func (r *Resolver) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	name, err := Canonical(name)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	codes := map[int]bool{}
	for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
		q := new(dns.Msg)
		q.SetQuestion(dns.Fqdn(name), typ)
		a := r.Answer(ctx, q)
		codes[a.Rcode] = true
		for _, x := range addresses(name, a) {
			out = append(out, x.addr)
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case codes[dns.RcodeNameError]:
		return nil, fmt.Errorf("%s: no such name", name)
	case codes[dns.RcodeRefused]:
		return nil, fmt.Errorf("%s: refused", name)
	case codes[dns.RcodeServerFailure]:
		return nil, fmt.Errorf("%s: the host's resolvers do not answer", name)
	}
	return nil, fmt.Errorf("%s has no address", name)
}
