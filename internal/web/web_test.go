package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/internal/iptables"
	"sluice/router"
)

const token = "correct horse battery staple"

// start serves a router without interfaces.
func start(t *testing.T, cfg router.ControlConfig, change ...func(*Server)) (*Server, *router.Router) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := Listen(&cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	r, err := router.New(&router.Config{Router: router.RouterConfig{Workers: 1}}, router.Options{Version: "v\xff"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(s)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(r) }()
	s.Handle("POST /change", Write, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "changed") }))
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.Close()
	})
	return s, r
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate makes one for router.example and 127.0.0.1.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "router.example"}, DNSNames: []string{"router.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return file(t, "cert.pem", string(text)), file(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}))), pool
}

// ask sends a request and gives the status and the text.
func ask(t *testing.T, c *http.Client, method, url string, head ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(head); i += 2 {
		if head[i] == "Host" {
			r.Host = head[i+1]
		}
		r.Header.Set(head[i], head[i+1])
	}
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func client() *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// TestLocal: on a loopback address everybody reads, and the token is for changes.
func TestLocal(t *testing.T) {
	s, _ := start(t, router.ControlConfig{HTTP: "127.0.0.1:0", TokenFile: file(t, "token", token+"\n")})
	base := "http://" + s.Addr().String()
	c := client()
	bearer := []string{"Authorization", "Bearer " + token}
	for _, x := range []struct {
		method, path string
		head         []string
		want         int
	}{
		{"GET", "/metrics", nil, 200},
		{"GET", "/healthz", nil, 200},
		{"GET", "/readyz", nil, 200},
		{"GET", "/nothing", nil, 404},
		{"POST", "/metrics", nil, 405},
		{"POST", "/change", nil, 401},
		{"POST", "/change", bearer, 200},
		{"POST", "/change", []string{"Authorization", "Bearer " + token + "x"}, 401},
		{"POST", "/change", []string{"Authorization", "Bearer "}, 401},
		{"POST", "/change", append([]string{"Origin", "http://evil.example"}, bearer...), 403},
		{"POST", "/change", append([]string{"Origin", base}, bearer...), 200},
		{"POST", "/change", append([]string{"Origin", "null"}, bearer...), 403},
		{"GET", "/metrics", []string{"Host", "evil.example"}, 421},
		{"GET", "/metrics", []string{"Host", "evil.example:80"}, 421},
		{"GET", "/metrics", []string{"Host", "localhost"}, 200},
		{"GET", "/metrics", []string{"Host", "[::1]:80"}, 200},
		{"GET", "/login?token=wrong", nil, 401},
	} {
		if got, text := ask(t, c, x.method, base+x.path, x.head...); got != x.want {
			t.Errorf("%s %s %q: %d %q, want %d", x.method, x.path, x.head, got, text, x.want)
		}
	}
	r, err := c.Get(base + "/login?token=" + strings.ReplaceAll(token, " ", "%20"))
	if err != nil || r.StatusCode != http.StatusSeeOther || len(r.Cookies()) != 1 || !r.Cookies()[0].HttpOnly || r.Cookies()[0].SameSite != http.SameSiteStrictMode {
		t.Fatalf("%v %v", r, err)
	}
	if got, _ := ask(t, c, "POST", base+"/change", "Cookie", "sluice="+r.Cookies()[0].Value); got != 200 {
		t.Errorf("with the cookie: %d", got)
	}
}

// TestNoToken: without a token file nothing can be changed.
func TestNoToken(t *testing.T) {
	s, _ := start(t, router.ControlConfig{HTTP: "127.0.0.1:0"})
	for _, head := range [][]string{nil, {"Authorization", "Bearer "}, {"Cookie", "sluice="}} {
		if got, _ := ask(t, client(), "POST", "http://"+s.Addr().String()+"/change", head...); got != 401 {
			t.Errorf("%q: %d", head, got)
		}
	}
}

// TestElsewhere: on other addresses reading takes TLS and the token, and a name that the certificate has.
func TestElsewhere(t *testing.T) {
	cert, key, pool := certificate(t)
	s, _ := start(t, router.ControlConfig{HTTP: "0.0.0.0:0", TokenFile: file(t, "token", token), TLSCert: cert, TLSKey: key})
	_, port, _ := net.SplitHostPort(s.Addr().String())
	base := "https://127.0.0.1:" + port
	c := client()
	c.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	for _, x := range []struct {
		path string
		head []string
		want int
	}{
		{"/metrics", nil, 401},
		{"/healthz", nil, 200},
		{"/metrics", []string{"Authorization", "Bearer " + token}, 200},
		{"/metrics", []string{"Authorization", "Bearer " + token, "Host", "router.example"}, 200},
		{"/metrics", []string{"Authorization", "Bearer " + token, "Host", "other.example"}, 421},
		{"/metrics", []string{"Authorization", "Bearer " + token, "Origin", "http://127.0.0.1:" + port}, 403},
	} {
		if got, text := ask(t, c, "GET", base+x.path, x.head...); got != x.want {
			t.Errorf("%s %q: %d %q, want %d", x.path, x.head, got, text, x.want)
		}
	}
	if got, _ := ask(t, client(), "GET", "http://127.0.0.1:"+port+"/metrics", "Authorization", "Bearer "+token); got != 400 {
		t.Errorf("without TLS: %d", got)
	}
}

func TestListenErrors(t *testing.T) {
	cert, key, _ := certificate(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for want, cfg := range map[string]router.ControlConfig{
		"control.http: ":                    {HTTP: "nonsense"},
		"not a loopback address":            {HTTP: "0.0.0.0:0"},
		"a loopback address: tls_cert":      {HTTP: "[::]:0", TLSCert: cert, TLSKey: key},
		"in use":                            {HTTP: taken.Addr().String()},
		"control.token_file: open /nowhere": {HTTP: "127.0.0.1:0", TokenFile: "/nowhere"},
		"16 characters":                     {HTTP: "127.0.0.1:0", TokenFile: file(t, "token", "short\n")},
		"control.tls_cert":                  {HTTP: "127.0.0.1:0", TLSCert: key, TLSKey: cert},
	} {
		if s, err := Listen(&cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
			if s != nil {
				s.l.Close()
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	for text, want := range map[string][2]string{
		`-A FORWARD -p tcp -j ACCEPT`:                                         {"", "ACCEPT"},
		`-A FORWARD -m comment --comment "a \"b\" -j c" -g LAN`:               {`a "b" -j c`, "LAN"},
		`-A FORWARD -m comment --comment plain`:                               {"plain", ""},
		"-A FORWARD -m comment --comment \"\xff\" -j LOG --log-prefix \"-j\"": {"\ufffd", "LOG"},
		`-A`: {"", ""},
	} {
		if c, target := describe(text); c != want[0] || target != want[1] {
			t.Errorf("%s: %q, %q", text, c, target)
		}
	}
}

// TestRulesBounded: no more series than the bound, comments first, equal comments together.
func TestRulesBounded(t *testing.T) {
	s, r := start(t, router.ControlConfig{HTTP: "127.0.0.1:0"})
	var rules strings.Builder
	rules.WriteString("*filter\n")
	for i := range maxChains + 7 {
		fmt.Fprintf(&rules, "-N c%d\n", i)
	}
	for range maxRules + 5 {
		rules.WriteString("-A FORWARD -j ACCEPT\n")
	}
	for range 3 {
		rules.WriteString("-A FORWARD -m comment --comment same -j ACCEPT\n")
	}
	rules.WriteString("COMMIT\n")
	var out strings.Builder
	if status := iptables.Run(r.IPTables(), []string{"iptables-restore"}, strings.NewReader(rules.String()), &out, &out); status != 0 {
		t.Fatalf("%d\n%s", status, out.String())
	}
	_, text := ask(t, client(), "GET", "http://"+s.Addr().String()+"/metrics")
	if n := strings.Count(text, "\nsluice_rule_packets_total{"); n != maxRules {
		t.Errorf("%d series", n)
	}
	if n := strings.Count(text, "\nsluice_chain_rules{"); n != maxChains+2*17 {
		t.Errorf("%d series of chains", n)
	}
	for want, n := range map[string]int{"sluice_chains_without_metrics 7\n": 1, `rule="same"`: 2, "sluice_rules_without_metrics 6\n": 1, `sluice_chain_rules{chain="FORWARD",family="ipv4",table="filter"} 1008` + "\n": 1, "sluice_build_info{version=\"v\ufffd\"} 1\n": 1} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q is there %d times", want, got)
		}
	}
}

// TestReaderStops: clients that stop reading, of the stream and of anything
// else, are cut off, and others are served as before.
func TestReaderStops(t *testing.T) {
	var big strings.Builder
	big.WriteString("*filter\n")
	for i := range maxChainRules {
		fmt.Fprintf(&big, "-A FORWARD -p tcp --dport %d -m comment --comment \"%s\" -j ACCEPT\n", i, strings.Repeat("x", 250))
	}
	big.WriteString("COMMIT\n")
	s, r := start(t, router.ControlConfig{HTTP: "127.0.0.1:0"}, func(s *Server) {
		s.every, s.patient, s.http.WriteTimeout = time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	})
	var out strings.Builder
	if status := iptables.Run(r.IPTables(), []string{"iptables-restore"}, strings.NewReader(big.String()), &out, &out); status != 0 {
		t.Fatal(out.String())
	}
	// deaf asks for something and never reads the answer.
	deaf := func(path string) net.Conn {
		t.Helper()
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // before the window is announced
			return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
		}}
		c, err := d.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		return c
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not ", what)
			}
		}
	}
	deaf("/api/stream")
	eventually("streaming", func() bool { return s.streams.Load() == 1 })
	healthy := func() {
		t.Helper()
		if code, text := ask(t, client(), "GET", "http://"+s.Addr().String()+"/healthz"); code != 200 {
			t.Errorf("%d %s", code, text)
		}
	}
	healthy()
	eventually("cut off", func() bool { return s.streams.Load() == 0 })
	healthy()
	// More than may be served at a time, of a large answer: they go away.
	for range maxClients + 1 {
		deaf("/api/rules?family=ipv4&table=filter&chain=FORWARD")
	}
	healthy()
}
