package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"sluice/e2e/lab"
	"sluice/router"
)

// secure serves a text over TLS, with a certificate that nobody trusts.
func secure(ns *lab.NS, addr, text string) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
	s := httptest.NewUnstartedServer(h)
	s.StartTLS()
	cert := s.TLS.Certificates
	s.Close()
	go (&http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: cert}, ErrorLog: log.New(io.Discard, "", 0)}).ServeTLS(ns.Listen(addr), "", "")
}

// TestExecStrict: a name that is not on the list is denied on an address that
// another one is allowed at, over HTTP, TLS, and what might be QUIC.
func TestExecStrict(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl", "socat")
		d.address("198.51.100.2")
		d.resolves("good.test. 300 IN A 198.51.100.1", "bad.test. 300 IN A 198.51.100.1")
		for _, a := range []string{"198.51.100.1", "198.51.100.2"} {
			website(d.ns, a+":80", "plain")
			secure(d.ns, a+":443", "secret")
			echo(d.ns, a+":443")
		}
		website(d.ns, "198.51.100.1:81", "another port")
		script := `
			get() { curl -sSk --max-time 10 "$@" 2>&1 || echo "failed"; echo; }
			get http://good.test/
			get https://good.test/
			get http://good.test:81/
			echo == denied
			get --resolve bad.test:80:198.51.100.1 http://bad.test/
			get --resolve bad.test:443:198.51.100.1 https://bad.test/
			get -H "Host: bad.test" http://good.test/
			get https://198.51.100.1/
			printf hello | socat -t 2 -T 2 - UDP:198.51.100.1:443 2>&1; echo
			echo == listed
			get -H "Host: bad.test" http://198.51.100.2/
			get --resolve bad.test:443:198.51.100.2 https://bad.test/
			printf hello | socat -t 5 -T 5 - UDP:198.51.100.2:443; echo`
		for _, strict := range []bool{true, false} {
			args := []string{"--allow", "good.test", "--allow", "198.51.100.2", "--", "sh", "-c", script}
			if strict {
				args = append([]string{"--strict"}, args...)
			}
			out, errs, _ := d.run(args...)
			open, rest, _ := strings.Cut(out, "== denied\n")
			denied, listed, _ := strings.Cut(rest, "== listed\n")
			if strings.TrimSpace(open) != "plain\nsecret\nanother port" {
				t.Errorf("strict %v: what is allowed said %q", strict, open)
			}
			if reached := strings.Contains(denied, "plain") || strings.Contains(denied, "secret") || strings.Contains(denied, "hello"); reached == strict {
				t.Errorf("strict %v: what is denied said %q", strict, denied)
			}
			if strings.TrimSpace(listed) != "plain\nsecret\nhello" {
				t.Errorf("strict %v: an address on the list said %q", strict, listed)
			}
			if said := strings.Contains(errs, "the name that it says it is for is not on the allow list") && strings.Contains(errs, "name=bad.test") && strings.Contains(errs, "denied bad.test 198.51.100.1 tcp/443"); said != strict {
				t.Errorf("strict %v: it said\n%s", strict, errs)
			}
		}
	})
}

// TestExecLearn: what a run used, written down, allows just that.
func TestExecLearn(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl")
		d.address("198.51.100.2", "198.51.100.3", "198.51.100.4")
		d.resolves("good.test. 300 IN A 198.51.100.1", "a.wild.test. 300 IN A 198.51.100.2", "bad.test. 300 IN A 198.51.100.3")
		for _, a := range []string{"198.51.100.1:80", "198.51.100.2:81", "198.51.100.4:80", "198.51.100.3:80"} {
			website(d.ns, a, "a page")
		}
		dir := d.home("out")
		use := `curl -sS --max-time 10 http://good.test/; curl -sS --max-time 10 http://a.wild.test:81/; curl -sS --max-time 10 http://198.51.100.4/`
		d.shell(use, "--learn", dir+"/flags", "--report", dir+"/learnt.json")
		flags, err := os.ReadFile(dir + "/flags")
		if err != nil || string(flags) != "--allow 198.51.100.4:80\n--allow a.wild.test:81\n--allow good.test:80\n" {
			t.Fatalf("learnt (%v):\n%s", err, flags)
		}
		args := append(strings.Fields(string(flags)), "--report", dir+"/report.json", "--", "sh", "-c", use+`; curl -sS --max-time 5 http://bad.test/; curl -sS --max-time 5 http://198.51.100.3/; curl -sS --max-time 5 http://198.51.100.3/`)
		out, errs, _ := d.run(args...)
		if strings.Count(out, "a page") != 3 {
			t.Errorf("with what was learnt:\n%s%s", out, errs)
		}
		if n := strings.Count(errs, "connection denied"); n != 1 { // each destination once
			t.Errorf("a denied connection was logged %d times:\n%s", n, errs)
		}
		var s router.Summary
		text, err := os.ReadFile(dir + "/report.json")
		if err == nil {
			err = json.Unmarshal(text, &s)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		got := fmt.Sprint(s.Allowed, s.Denied, s.Refused)
		want := "[{ 198.51.100.4 80 tcp 1} {a.wild.test 198.51.100.2 81 tcp 1} {good.test 198.51.100.1 80 tcp 1}] [{ 198.51.100.3 80 tcp 2}] [{bad.test 2}]"
		// Programs ask for both families, and some ask again.
		if i := strings.LastIndex(got, "{bad.test "); i < 0 || got[:i] != want[:strings.LastIndex(want, "{bad.test ")] {
			t.Errorf("the report:\n%s\nwanted\n%s", got, want)
		}
	})
}

// TestExecLog: --log says each new connection once, and -q says nothing.
func TestExecLog(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl", "ping")
		website(d.ns, "198.51.100.1:80", "a page")
		website(d.ns, "[2001:db8::1]:80", "a page")
		use := []string{"--", "sh", "-c", `curl -sS --max-time 10 http://198.51.100.1/; curl -sS --max-time 10 http://[2001:db8::1]/; ping -n -c 2 -i 0.2 -W 10 198.51.100.1 >/dev/null; curl -sS --max-time 5 http://198.51.100.1:81/ 2>/dev/null`}
		_, errs, _ := d.run(append([]string{"--log"}, use...)...)
		for _, want := range []string{"SRC=10.0.2.100 DST=198.51.100.1", "DST=2001:0db8:0000:0000:0000:0000:0000:0001", "PROTO=ICMP", "DPT=81"} {
			if n := strings.Count(errs, want); n == 0 || want == "PROTO=ICMP" && n != 1 {
				t.Errorf("%q is there %d times:\n%s", want, n, errs)
			}
		}
		if n := strings.Count(errs, "new: IN=exec0 OUT=uplink0"); n != 4 {
			t.Errorf("%d new connections, not 4:\n%s", n, errs)
		}
		if _, errs, _ = d.run(append([]string{"--quiet", "--device", d.kind.device, "--allow", "198.51.100.9"}, use...)...); strings.Contains(errs, "sluice:") {
			t.Errorf("--quiet says %q", errs)
		}
	})
}

// TestExecPrintRules: what is printed is a configuration, and what exec's router has.
func TestExecPrintRules(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	d.resolves("good.test. 300 IN A 198.51.100.1")
	rules := d.File("more.rules", "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport 9 -j DROP\nCOMMIT\n")
	second := d.File("second.rules", "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport 10 -j DROP\nCOMMIT\n")
	flags := []string{"--rules", rules, "--rules", second, "--allow", "good.test:443", "--allow", "*.wild.test", "--allow", "198.51.100.7", "--strict", "--publish", "8080:80", "--publish", "127.0.0.1:5353:53/udp"}
	printed := d.must(append(flags, "--print-rules")...)
	conf := d.File("printed.toml", printed)
	bin := lab.Binary(t)
	if out, err := d.command(bin, "check", "-c", conf).CombinedOutput(); err != nil {
		t.Fatalf("it cannot be read: %v\n%s\n%s", err, out, printed)
	}
	for _, want := range []string{`allow  = ["good.test:443", "*.wild.test", "198.51.100.7"]`, "strict = true", `--match-set allowed-port dst,dst -j ACCEPT`, `listen = "udp://127.0.0.1:5353"`, rules, second} {
		if !strings.Contains(printed, want) {
			t.Errorf("%q is missing:\n%s", want, printed)
		}
	}
	// The running router has those rules, and the pinned address in its set.
	c := d.sluice(append(flags, "--", "sh", "-c", "echo started; read go")...)
	c.Env = append(c.Env, "SLUICE_SOCKET="+d.Dir+"/run/x.sock")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := d.StartCommand(c)
	p.Expect("started", 2*deadline)
	tool := func(args ...string) string {
		out, err := d.command(append([]string{bin, "--socket", d.Dir + "/run/x.sock"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	save := tool("iptables-save")
	for line := range strings.Lines(printed) {
		rule, ok := strings.CutPrefix(strings.TrimSpace(line), `"-A FORWARD`)
		if rule = strings.TrimSuffix(strings.TrimSuffix(rule, ","), `"`); !ok || strings.Contains(rule, "allowed6") || strings.Contains(rule, "port6") || strings.Contains(rule, "REJECT") || strings.Contains(rule, "ctstate") || strings.Contains(rule, "prefix") {
			continue // IPv6, and what iptables-save writes in other words
		}
		if !strings.Contains(save, "-A FORWARD"+rule) {
			t.Errorf("the router has no rule %q:\n%s", rule, save)
		}
	}
	for _, want := range []string{"-p udp -m udp --dport 9 -j DROP", "-p udp -m udp --dport 10 -j DROP", "-j REJECT"} {
		if !strings.Contains(save, want) {
			t.Errorf("the router has no rule %q:\n%s", want, save)
		}
	}
	if out := tool("ipset", "list", "allowed-port"); !strings.Contains(out, "198.51.100.1,tcp:443") {
		t.Errorf("the name is not pinned:\n%s", out)
	}
	if out := tool("ipset", "list", "allowed"); !strings.Contains(out, "198.51.100.7") {
		t.Errorf("the address is not there:\n%s", out)
	}
	io.WriteString(in, "\n")
	p.Wait(2 * deadline)
}

// TestExecNames: the host's resolvers are asked as its resolv.conf says.
func TestExecNames(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	d.Need("dig", "getent")
	d.address("198.51.100.2", "198.51.100.3")
	// The first nameserver never answers.
	mute := d.ns.ListenPacket("198.51.100.2:53")
	var asked, unanswered, streams, edns atomic.Int64
	go func() {
		buf := make([]byte, 512)
		for {
			if _, _, err := mute.ReadFrom(buf); err != nil {
				return
			}
			unanswered.Add(1)
		}
	}()
	big := new(dns.Msg)
	for i := range 60 {
		rr, err := dns.NewRR(fmt.Sprintf("big.example.test. 300 IN TXT %q", strings.Repeat(fmt.Sprint(i%10), 100)))
		if err != nil {
			t.Fatal(err)
		}
		big.Answer = append(big.Answer, rr)
	}
	answer := func(tcp bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			a := new(dns.Msg).SetReply(q)
			size := dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				edns.Add(1)
				size = int(o.UDPSize())
				a.SetEdns0(4096, false)
			}
			switch name := strings.ToLower(q.Question[0].Name); {
			case name == "host.example.test.":
				asked.Add(1)
				if q.Question[0].Qtype == dns.TypeA {
					rr, _ := dns.NewRR(name + " 300 IN A 198.51.100.3")
					a.Answer = append(a.Answer, rr)
				}
			case name == "big.example.test.":
				a.Answer = big.Answer
			default:
				a.Rcode = dns.RcodeNameError
			}
			if tcp {
				streams.Add(1)
			} else {
				a.Truncate(size)
			}
			w.WriteMsg(a)
		}
	}
	for _, s := range []*dns.Server{{PacketConn: d.ns.ListenPacket("198.51.100.3:53"), Handler: answer(false)}, {Listener: d.ns.Listen("198.51.100.3:53"), Handler: answer(true)}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	d.File("resolv.conf", "nameserver 198.51.100.2\nnameserver 198.51.100.3\nsearch other.test example.test\noptions timeout:1 attempts:2 ndots:1\n")
	out := d.shell(`
		cat /etc/resolv.conf
		echo "search: $(getent ahostsv4 host | head -n 1)"
		for i in 1 2 3 4 5; do echo "again: $(dig +short +time=10 host.example.test)"; done
		echo "plain: $(dig +short +noedns +time=10 host.example.test)"
		echo "big over TCP: $(dig +short +tcp +time=10 big.example.test TXT | wc -l)"
		echo "big after a short answer: $(dig +short +time=10 big.example.test TXT | wc -l)"
		echo "cut: $(dig +ignore +noedns +time=10 big.example.test TXT | grep -c 'flags:.* tc')"
		echo "none: $(dig +time=10 nothing.example.test | grep -c NXDOMAIN)"`)
	for _, want := range []string{"nameserver 10.0.2.3\nsearch other.test example.test\noptions timeout:1 attempts:2 ndots:1\n", "search: 198.51.100.3", "plain: 198.51.100.3",
		"big over TCP: 60", "big after a short answer: 60", "cut: 1", "none: 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if n := strings.Count(out, "again: 198.51.100.3\n"); n != 5 {
		t.Errorf("%d answers, not 5", n)
	}
	if unanswered.Load() == 0 || streams.Load() == 0 || edns.Load() == 0 {
		t.Errorf("the mute server was asked %d times, %d questions came over TCP, %d with EDNS", unanswered.Load(), streams.Load(), edns.Load())
	}
	// getent asks for A; dig with EDNS and without are the same to the cache.
	if n := asked.Load(); n > 2 {
		t.Errorf("the host's resolver was asked %d times for one name", n)
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestExecUnresolved: a name of the list that does not resolve is an error before the command starts.
func TestExecUnresolved(t *testing.T) {
	d := newDen(t, execKind{"user", "tun"})
	d.resolves("good.test. 300 IN A 198.51.100.1")
	out, errs, code := d.run("--allow", "good.test", "--allow", "missing.test", "--", "echo", "started")
	if code != 125 || !strings.Contains(errs, "--allow missing.test: missing.test: no such name") || strings.Contains(out, "started") {
		t.Errorf("exit status %d\n%s%s", code, out, errs)
	}
	d.gone()
}
