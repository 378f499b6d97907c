package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sluice/netstack/uplink"
)

// upstream is a resolver of the host's, made of records in a zone file's form.
type upstream struct {
	addr   netip.AddrPort
	asked  atomic.Int64
	tcp    atomic.Int64
	noEDNS atomic.Bool
	mute   atomic.Bool
	zone   map[string][]dns.RR // by name and type
}

func newUpstream(t *testing.T, records ...string) *upstream {
	t.Helper()
	u := &upstream{zone: map[string][]dns.RR{}}
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		k := strings.ToLower(rr.Header().Name) + dns.TypeToString[rr.Header().Rrtype]
		u.zone[k] = append(u.zone[k], rr)
	}
	var pc net.PacketConn
	var ln net.Listener
	for range 100 { // a port that both are free at
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if ln, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if ln == nil {
		t.Fatal("no port is free for both TCP and UDP")
	}
	u.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: u}, {Listener: ln, Handler: u}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

func (u *upstream) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	u.asked.Add(1)
	if u.mute.Load() {
		return
	}
	stream := w.LocalAddr().Network() == "tcp"
	if stream {
		u.tcp.Add(1)
	}
	if u.noEDNS.Load() && q.IsEdns0() != nil {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		return
	}
	a := new(dns.Msg).SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	for range 8 { // aliases
		a.Answer = append(a.Answer, u.zone[name+dns.TypeToString[q.Question[0].Qtype]]...)
		c := u.zone[name+"CNAME"]
		if len(c) == 0 {
			break
		}
		a.Answer = append(a.Answer, c...)
		name = strings.ToLower(c[0].(*dns.CNAME).Target)
	}
	if len(a.Answer) == 0 {
		a.Rcode = dns.RcodeNameError
		soa, _ := dns.NewRR("test. 300 IN SOA ns.test. who.test. 1 2 3 4 30")
		a.Ns = []dns.RR{soa}
	}
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		a.SetEdns0(4096, o.Do())
		size = int(o.UDPSize())
	}
	if !stream {
		a.Truncate(size)
	}
	w.WriteMsg(a)
}

// fakePins notes what is pinned.
type fakePins struct {
	mu  sync.Mutex
	all map[string]time.Duration
	err error
}

func (p *fakePins) Pin(a netip.Prefix, port uint16, ttl time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[string]time.Duration{}
	}
	p.all[fmt.Sprintf("%s:%d", a, port)] = ttl
	return p.err
}

func ask(r *Resolver, name string, typ uint16) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(name, typ)
	return r.Answer(context.Background(), q)
}

func allow(t *testing.T, list ...string) (out []Allow) {
	t.Helper()
	for _, s := range list {
		a, err := ParseAllow(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}

func newResolver(t *testing.T, u *upstream, p Pins, list ...string) *Resolver {
	t.Helper()
	r, err := New(Config{Servers: []netip.AddrPort{u.addr}, Allow: allow(t, list...), Grace: time.Minute, ResolvConf: filepath.Join(t.TempDir(), "none")}, p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPins(t *testing.T) {
	u := newUpstream(t,
		"www.good.test. 300 IN CNAME edge.cdn.test.", "edge.cdn.test. 20 IN A 192.0.2.7", "edge.cdn.test. 20 IN AAAA 2001:db8::7",
		"a.wild.test. 10 IN A 192.0.2.8", "wild.test. 10 IN A 192.0.2.9", "evil.test. 10 IN A 192.0.2.66",
		`hint.wild.test. 10 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.10`)
	p := &fakePins{}
	r := newResolver(t, u, p, "www.good.test:443", "*.wild.test", "198.51.100.0/24:22")
	for _, c := range []struct {
		name string
		typ  uint16
		code int
	}{
		{"WWW.good.test.", dns.TypeA, dns.RcodeSuccess}, {"www.good.test.", dns.TypeAAAA, dns.RcodeSuccess},
		{"a.wild.test.", dns.TypeA, dns.RcodeSuccess}, {"hint.wild.test.", dns.TypeHTTPS, dns.RcodeSuccess},
		{"wild.test.", dns.TypeA, dns.RcodeRefused}, {"evil.test.", dns.TypeA, dns.RcodeRefused}, {"edge.cdn.test.", dns.TypeA, dns.RcodeRefused},
		{"none.wild.test.", dns.TypeA, dns.RcodeNameError},
	} {
		if a := ask(r, c.name, c.typ); a.Rcode != c.code {
			t.Errorf("%s: %s", c.name, dns.RcodeToString[a.Rcode])
		}
	}
	want := map[string]time.Duration{
		"192.0.2.7/32:443": 80 * time.Second, "2001:db8::7/128:443": 80 * time.Second,
		"192.0.2.8/32:0": 70 * time.Second, "192.0.2.10/32:0": 70 * time.Second, "198.51.100.0/24:22": 0,
	}
	if fmt.Sprint(p.all) != fmt.Sprint(want) {
		t.Errorf("pinned %v, want %v", p.all, want)
	}
	if n := r.Report.Name(netip.MustParseAddr("192.0.2.7")); n != "www.good.test" {
		t.Errorf("192.0.2.7 is %q", n)
	}
	s := r.Report.Summary()
	if len(s.Refused) != 3 || s.Refused[1].Name != "evil.test" || s.Refused[1].Count != 1 {
		t.Errorf("refused: %+v", s.Refused)
	}
	// No answer without its pin.
	p.err = errors.New("full")
	u.zone["b.wild.test.A"] = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "b.wild.test.", Rrtype: dns.TypeA, Class: 1, Ttl: 5}, A: net.IPv4(192, 0, 2, 99)}}
	if a := ask(r, "b.wild.test.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("an address that could not be pinned: %s", dns.RcodeToString[a.Rcode])
	}
}

// TestForged: an answer about other names pins nothing for them.
func TestForged(t *testing.T) {
	u := newUpstream(t)
	u.zone["good.test.A"] = []dns.RR{
		&dns.A{Hdr: dns.RR_Header{Name: "good.test.", Rrtype: dns.TypeA, Class: 1, Ttl: 5}, A: net.IPv4(192, 0, 2, 1)},
		&dns.A{Hdr: dns.RR_Header{Name: "other.test.", Rrtype: dns.TypeA, Class: 1, Ttl: 5}, A: net.IPv4(192, 0, 2, 66)},
	}
	p := &fakePins{}
	ask(newResolver(t, u, p, "good.test"), "good.test.", dns.TypeA)
	if len(p.all) != 1 || p.all["192.0.2.1/32:0"] == 0 {
		t.Errorf("pinned %v", p.all)
	}
}

func TestCache(t *testing.T) {
	u := newUpstream(t, "a.test. 300 IN A 192.0.2.1", "short.test. 0 IN A 192.0.2.2")
	r := newResolver(t, u, nil)
	for range 3 {
		if a := ask(r, "a.test.", dns.TypeA); len(a.Answer) != 1 {
			t.Fatal(a)
		}
		if a := ask(r, "none.test.", dns.TypeA); a.Rcode != dns.RcodeNameError {
			t.Fatal(a)
		}
	}
	if n := u.asked.Load(); n != 2 {
		t.Errorf("asked %d times for two names", n)
	}
	for range 2 {
		ask(r, "short.test.", dns.TypeA)
	}
	if n := u.asked.Load(); n != 4 {
		t.Errorf("an answer without a life was kept: %d", n)
	}
	k := question{"a.test.", dns.TypeA, dns.ClassINET, false}
	r.cache[k].asked = r.cache[k].asked.Add(-100 * time.Second)
	if ttl := ask(r, "a.test.", dns.TypeA).Answer[0].Header().Ttl; ttl > 200 {
		t.Errorf("TTL %d after 100 of 300 seconds", ttl)
	}
	r.cache[k].until = time.Now()
	ask(r, "a.test.", dns.TypeA)
	if n := u.asked.Load(); n != 5 {
		t.Errorf("an answer that is over was given: %d", n)
	}
}

func TestUpstreams(t *testing.T) {
	var big []string
	for i := range 100 {
		big = append(big, fmt.Sprintf("big.test. 60 IN A 192.0.2.%d", i))
	}
	good, bad := newUpstream(t, append(big, "a.test. 60 IN A 192.0.2.1")...), newUpstream(t)
	bad.mute.Store(true)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(s string) {
		if err := os.WriteFile(conf, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("search one.test two.test\noptions timeout:1 attempts:1 ndots:3\n")
	r, err := New(Config{Servers: []netip.AddrPort{bad.addr, good.addr}, ResolvConf: conf}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(r, "a.test.", dns.TypeA); len(a.Answer) != 1 {
		t.Errorf("with a mute resolver first: %v", a)
	}
	if d, n := r.Search(); strings.Join(d, " ") != "one.test two.test" || n != 3 {
		t.Errorf("search %v, ndots %d", d, n)
	}
	if err := r.Configure(Config{Servers: []netip.AddrPort{good.addr}, ResolvConf: conf}); err != nil {
		t.Fatal(err)
	}
	if a := ask(r, "big.test.", dns.TypeA); len(a.Answer) != 100 || good.tcp.Load() != 1 {
		t.Errorf("a large answer: %d records, %d times over TCP", len(a.Answer), good.tcp.Load())
	}
	good.noEDNS.Store(true)
	if a := ask(r, "b.test.", dns.TypeA); a.Rcode != dns.RcodeNameError {
		t.Errorf("a resolver that knows no EDNS: %s", dns.RcodeToString[a.Rcode])
	}
	good.mute.Store(true)
	if a := ask(r, "c.test.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("no resolver: %s", dns.RcodeToString[a.Rcode])
	}
	if _, err := r.Lookup(context.Background(), "c.test"); err == nil || !strings.Contains(err.Error(), "do not answer") {
		t.Errorf("Lookup: %v", err)
	}
}

func TestOddQuestions(t *testing.T) {
	r := newResolver(t, newUpstream(t), nil)
	two := new(dns.Msg).SetQuestion("a.test.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	update := new(dns.Msg).SetUpdate("test.")
	version := new(dns.Msg).SetQuestion("a.test.", dns.TypeA)
	version.SetEdns0(1232, false)
	version.IsEdns0().SetVersion(1)
	for _, c := range []struct {
		q    *dns.Msg
		code int
	}{{two, dns.RcodeFormatError}, {update, dns.RcodeNotImplemented}, {version, dns.RcodeBadVers}} {
		if a := r.Answer(context.Background(), c.q); a.Rcode != c.code {
			t.Errorf("%v: %s", c.q, dns.RcodeToString[a.Rcode])
		}
	}
}

func TestAllow(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"Example.ORG", "example.org"}, {"example.org.:443", "example.org:443"}, {"*.example.org", "*.example.org"}, {"*", "*"},
		{"bücher.example", "xn--bcher-kva.example"}, {"192.0.2.1", "192.0.2.1"}, {"192.0.2.1:80", "192.0.2.1:80"},
		{"192.0.2.9/24:22", "192.0.2.0/24:22"}, {"[2001:db8::1]:443", "[2001:db8::1]:443"}, {"2001:db8::/32", "2001:db8::/32"},
		{"_srv._tcp.example.org", "_srv._tcp.example.org"},
	} {
		if a, err := ParseAllow(c.in); err != nil || a.String() != c.out {
			t.Errorf("%q: %q, %v", c.in, a, err)
		}
	}
	for _, s := range []string{"", "a:b", "a:0", "a:65536", "a..b", "*.", "a*.b", "http://a", "a b", "a/b", strings.Repeat("a", 64) + ".b", "[::1"} {
		if a, err := ParseAllow(s); err == nil {
			t.Errorf("%q was read as %v", s, a)
		}
	}
	for _, c := range []struct {
		entry, name string
		want        bool
	}{
		{"a.b", "a.b", true}, {"a.b", "x.a.b", false}, {"*.a.b", "x.a.b", true}, {"*.a.b", "x.y.a.b", true}, {"*.a.b", "a.b", false},
		{"*.a.b", "xa.b", false}, {"*", "x", true}, {"192.0.2.1", "192.0.2.1", false},
	} {
		if got := allow(t, c.entry)[0].Matches(c.name); got != c.want {
			t.Errorf("%s matches %s: %v", c.entry, c.name, got)
		}
	}
}

func TestStrict(t *testing.T) {
	r := newResolver(t, newUpstream(t), &fakePins{}, "good.test:443", "*.web.test", "198.51.100.1")
	s := Strict{r}
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	if !s.Wants(at("10.0.0.1:1"), at("192.0.2.1:443")) || s.Wants(at("10.0.0.1:1"), at("192.0.2.1:22")) || s.Wants(at("10.0.0.1:1"), at("198.51.100.1:443")) {
		t.Error("the wrong connections are looked at")
	}
	hello := clientHello(t, "Good.test")
	for n := range len(hello) { // as it comes, byte for byte
		if v := s.Judge(at("10.0.0.1:1"), at("192.0.2.1:443"), hello[:n]); v != uplink.More {
			t.Fatalf("%d of %d bytes: %v", n, len(hello), v)
		}
	}
	split := append([]byte{22, 3, 1, 0, 10}, hello[5:15]...)
	split = append(append(split, 22, 3, 1, byte((len(hello)-15)>>8), byte(len(hello)-15)), hello[15:]...)
	get := "GET / HTTP/1.1\r\nUser-Agent: x\r\nHost: %s\r\n\r\n"
	for _, c := range []struct {
		port  string
		first string
		want  uplink.Verdict
	}{
		{"443", string(hello), uplink.Pass}, {"443", string(split), uplink.Pass}, {"443", string(clientHello(t, "evil.test")), uplink.Refuse},
		{"443", string(clientHello(t, "")), uplink.Refuse}, {"443", "SSH-2.0-x\r\n", uplink.Refuse}, {"443", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", uplink.Refuse},
		{"80", fmt.Sprintf(get, "a.web.test"), uplink.Pass}, {"80", fmt.Sprintf(get, "A.web.test:80"), uplink.Pass}, {"80", fmt.Sprintf(get, "good.test"), uplink.Refuse},
		{"80", fmt.Sprintf(get, "evil.test"), uplink.Refuse}, {"80", "GET / HTTP/1.1\r\nHost: a.web.test\r\nHost: evil.test\r\n\r\n", uplink.Refuse},
		{"80", "GET / HTTP/1.1\r\nHost: a.web.test\r\n", uplink.More}, {"80", "GET / HTTP/1.0\r\n\r\n", uplink.Refuse},
		{"80", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", uplink.Refuse}, {"80", "GE", uplink.More},
	} {
		if v := s.Judge(at("10.0.0.1:1"), at("192.0.2.1:"+c.port), []byte(c.first)); v != c.want {
			t.Errorf("%s %q: %v, want %v", c.port, c.first, v, c.want)
		}
	}
	if d := r.Report.Summary().Denied; len(d) == 0 {
		t.Error("nothing denied is reported")
	}
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, v := serverName(b); v == uplink.Pass && !strings.Contains(string(b), name) {
			t.Errorf("%q is not in it", name)
		}
		if name, v := hostHeader(b); v == uplink.Pass && name == "" {
			t.Error("passed without a name")
		}
	})
}
