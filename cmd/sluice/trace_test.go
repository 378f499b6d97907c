package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inProcess runs a command that needs no router of its own.
func inProcess(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = start(append([]string{"sluice"}, args...), strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

const seeConfig = `[[interface]]
name = "lan0"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "wan0"
addresses = ["198.51.100.1/24"]
[[route]]
to = "default"
via = "198.51.100.2"
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
  "-A FORWARD -i lan0 -p tcp --dport 80 -j ACCEPT",
]
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
`

func seeFile(t *testing.T, name, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTraceCommand(t *testing.T) {
	f := seeFile(t, "see.toml", seeConfig)
	out, errs, code := inProcess(t, "trace", "-c", f, "--in", "lan0", "tcp 10.0.1.2:4000 > 203.0.113.9:80 S", "reply", "wan0: udp 9.9.9.9:53 > 10.0.1.2:53")
	if code != 0 {
		t.Fatal(code, errs)
	}
	at := 0
	for _, want := range []string{
		"#1 tcp 10.0.1.2:4000 > 203.0.113.9:80 S seq=0  in by lan0", "conntrack: NEW", "routing  unicast dev wan0 via 198.51.100.2: the longest match is default",
		"ttl: 64 -> 63", "- 1 -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT  [" + f + ":13]", "+ 2 -A FORWARD -i lan0 -p tcp -m tcp --dport 80 -j ACCEPT  [" + f + ":14]",
		"source: 10.0.1.2:4000 -> 198.51.100.1:4000", "forwarded out by wan0", "#2 tcp 203.0.113.9:80 > 198.51.100.1:4000 SA", "in by wan0",
		"conntrack: ESTABLISHED", "forwarded out by lan0", "#3", "policy of FORWARD: DROP", "dropped: filter.FORWARD.policy",
	} {
		i := strings.Index(out[at:], want)
		if i < 0 {
			t.Fatalf("no %q in its place in\n%s", want, out)
		}
		at += i
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colours though it is no terminal")
	}
	out, _, code = inProcess(t, "trace", "-c", f, "--json", "hex:"+"4500001c000000004011000000000000", "lan0: tcp 10.0.1.2:4000 > 203.0.113.9:80 S")
	if code == 0 {
		t.Errorf("a source that no route leads to needs an interface\n%s", out)
	}
	if _, errs, code = inProcess(t, "trace", "-c", f, "hex:45"); code == 0 || !strings.Contains(errs, "no IP packet that has a source (ip.truncated): say where it comes in, as in lan0: hex:45") {
		t.Errorf("%d %s", code, errs)
	}
	out, errs, code = inProcess(t, "trace", "-c", f, "--json", "lan0: tcp 10.0.1.2:4000 > 203.0.113.9:80 S")
	var tr struct {
		Verdict string
		Steps   []struct{ Kind string }
	}
	if err := json.Unmarshal([]byte(out), &tr); err != nil || code != 0 || tr.Verdict != "forwarded" || len(tr.Steps) < 10 {
		t.Errorf("%v %d %s %s", err, code, out, errs)
	}
	out, errs, _ = inProcess(t, "trace", "-c", f, "--kernel", "lan0: tcp 10.0.1.2:4000 > 203.0.113.9:80 S")
	for _, want := range []string{
		"TRACE: raw:PREROUTING:policy:1 IN=lan0 OUT= MAC= SRC=10.0.1.2 DST=203.0.113.9 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=0 PROTO=TCP SPT=4000 DPT=80 SEQ=0 ACK=0 WINDOW=65535 RES=0x00 SYN URGP=0",
		"TRACE: filter:FORWARD:rule:2 IN=lan0 OUT=wan0", "TRACE: nat:POSTROUTING:rule:1 IN=lan0 OUT=wan0",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s%s", want, out, errs)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		say  string
	}{
		{[]string{"trace"}, exitUsage, "whose rules"},
		{[]string{"trace", "-c", f}, exitUsage, "which packet"},
		{[]string{"trace", "-c", f, "--no-such", "udp 1.2.3.4 > 5.6.7.8"}, exitUsage, "unknown flag --no-such"},
		{[]string{"trace", "-c", f, "--live"}, exitUsage, "without -c"},
		{[]string{"trace", "-c", f, "tcp 10.0.1.2:4000 > 203.0.113.9:8x"}, exitFailed, "column 21"},
		{[]string{"trace", "-c", f, "moon0: tcp 10.0.1.2:4000 > 203.0.113.9:80 S"}, exitFailed, "this configuration has lan0, wan0"},
		{[]string{"trace", "-c", f, "reply"}, exitFailed, "nothing arrived"},
		{[]string{"trace", "-c", f, "more"}, exitFailed, "no packet before"},
		{[]string{"trace", "-c", f, "+5 udp 10.0.1.2 > 9.9.9.9"}, exitFailed, "is no time"},
		{[]string{"trace", "-c", f, "--pcap", f}, exitFailed, f},
	} {
		_, errs, code := inProcess(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.say) {
			t.Errorf("%v: %d %s", c.args, code, errs)
		}
	}
	if out, _, code := inProcess(t, "trace", "--help"); code != 0 || !strings.Contains(out, "--live") {
		t.Errorf("help: %d %s", code, out)
	}
}
