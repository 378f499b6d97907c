package ruletest

import (
	"encoding/binary"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/internal/play"
)

// TestExamples: the examples in configs/ hold.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../configs/*-test.toml")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	var run Run
	for _, f := range files {
		if err := run.File(f, nil); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	run.Text(&b, true, play.Style{})
	if run.Failed() > 0 {
		t.Error(b.String())
	}
	missing, all := run.Uncovered()
	if all < 20 || len(missing) == 0 || len(missing) > all*3/4 {
		t.Errorf("%d of %d rules were not met", len(missing), all)
	}
}

const head = `inline = '''
[[interface]]
name = "a0"
addresses = ["10.0.1.1/24", "fd00:1::1/64"]
[[interface]]
name = "b0"
addresses = ["10.0.2.1/24", "fd00:2::1/64"]
[iptables.mangle]
rules = ["-A PREROUTING -p tcp --dport 80 -j MARK --set-mark 7", "-A PREROUTING -p tcp --dport 80 -j CONNMARK --save-mark"]
[iptables.filter]
rules = ["-A FORWARD -p tcp --dport 23 -j REJECT", "-A FORWARD -p udp -j DROP"]
[ip6tables.filter]
rules = ["-A FORWARD -p tcp --dport 23 -j REJECT --reject-with icmp6-adm-prohibited"]
'''
`

func runText(t *testing.T, text string) (*Run, error) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &Run{}
	return r, r.File(f, nil)
}

// TestExpectations: each expectation holds where it is true and fails where it is not.
func TestExpectations(t *testing.T) {
	web, telnet, dns := "tcp 10.0.1.2:4000 > 10.0.2.2:80 S", "tcp 10.0.1.2:4000 > 10.0.2.2:23 S", "udp 10.0.1.2:4000 > 10.0.2.2:53"
	for _, c := range []struct{ send, good, bad, say string }{
		{web, `forwarded = "b0"`, `forwarded = "a0"`, "it left by b0"},
		{web, `forwarded = ""`, `delivered = true`, "want it delivered, it was forwarded"},
		{web, `as = "tcp 10.0.1.2 > 10.0.2.2:80 S ttl=63"`, `as = "tcp 10.0.1.2 > 10.0.2.2:80 S ttl=62"`, `no "ttl=62"`},
		{web, `mark = 7`, `mark = 8`, "want mark 0x8, it was 0x7"},
		{web, `connmark = 7`, `connmark = 6`, "want connmark 0x6, it was 0x7"},
		{web, `state = "NEW"`, `state = "ESTABLISHED"`, "it was NEW"},
		{web, `matched = ["MARK --set-xmark"]`, `matched = ["REJECT"]`, "to match, it did not"},
		{web, `unmatched = ["REJECT"]`, `unmatched = ["CONNMARK"]`, "not to match, it did"},
		{web, `rule = "filter FORWARD policy"`, `rule = "filter FORWARD 1"`, "to decide, it was the policy"},
		{telnet, `rejected = "icmp-port-unreachable"`, `rejected = "tcp-reset"`, "want it rejected with tcp-reset"},
		{telnet, `answer = "icmp 10.0.1.1 > 10.0.1.2 type=3/3"`, `answer = "icmp 10.0.1.1 > 10.0.1.2 type=3/4"`, "want the answer"},
		{dns, `dropped = "filter.FORWARD.rule"`, `dropped = "filter.FORWARD.policy"`, "it was for filter.FORWARD.rule"},
		{dns, `dropped = ""`, `held = true`, "want it held"},
		{"tcp [fd00:1::2]:4000 > [fd00:2::2]:23 S", `rejected = "icmp6-adm-prohibited"`, `rejected = "icmp6-no-route"`, "want it rejected with"},
	} {
		r, err := runText(t, head+"[[case]]\npackets = [{ send = \""+c.send+"\", "+c.good+" }]\n")
		if err != nil || r.Failed() != 0 {
			t.Errorf("%s: %v %+v", c.good, err, r.Results)
		}
		r, err = runText(t, head+"[[case]]\npackets = [{ send = \""+c.send+"\", "+c.bad+" }]\n")
		if err != nil || r.Failed() != 1 || !strings.Contains(r.Results[0].Failures[0].Text, c.say) {
			t.Errorf("%s: %v %+v", c.bad, err, r.Results)
		}
	}
}

// TestBrokenFiles: what is wrong is named with its line.
func TestBrokenFiles(t *testing.T) {
	whole, err := os.ReadFile("../../configs/offline-lan.pcap")
	if err != nil {
		t.Fatal(err)
	}
	const header, record = 24, 16
	first := int(binary.LittleEndian.Uint32(whole[header+8:])) // captured bytes of the first packet
	cut := filepath.Join(t.TempDir(), "cut.pcap")
	if err := os.WriteFile(cut, whole[:header+record+first+record+5], 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, say string }{
		{"[[case]]\npackets = [{ send = \"x\", what = 1 }]", "x.toml:2:26: unknown key"},
		{"[[case]\n", "x.toml:2:7: "},
		{"", "no [[case]]"},
		{"[[case]]\npackets = []", "x.toml:1:1: case 1: no packets"},
		{"[[case]]\npackets = [{ send = \"udp 10.0.1.2 > 10.0.2.2\" }]", "want the configuration"},
		{head + "[[case]]\npackets = [\n{ send = \"udp 10.0.1.2 > 10.0.2.2\" },\n{ send = \"udp 10.0.1.2 > 10.0.2\" }]", ":18:1: case 1: \"udp 10.0.1.2 > 10.0.2\", column 16"},
		{head + "[[case]]\npackets = [{ send = \"udp 10.0.1.2 > 10.0.2.2\", dropped = \"\", forwarded = \"\" }]", "one of forwarded"},
		{head + "[[case]]\npackets = [{ send = \"udp 10.0.1.2 > 10.0.2.2\", rejected = \"so\" }]", "REJECT's types"},
		{head + "[[case]]\npackets = [{ pcap = \"no.pcap\" }]", "no.pcap"},
		{head + "[[case]]\nin = \"a0\"\npackets = [{ pcap = \"" + cut + "\" }]", "17:12: case 1: " + cut + ": packet 2: unexpected EOF"},
		{head + "[[case]]\npackets = [{ pcap = \"x.toml\" }]", "x.toml"},
	} {
		_, err := runText(t, c.text)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func TestReports(t *testing.T) {
	r, err := runText(t, head+`
[[case]]
name = "good # one"
packets = [{ send = "tcp 10.0.1.2:4000 > 10.0.2.2:80 S", forwarded = "b0" }]
[[case]]
name = "bad one"
packets = [{ send = "tcp 10.0.1.2:4000 > 10.0.2.2:80 S", dropped = "" }]
`)
	if err != nil {
		t.Fatal(err)
	}
	var tap, junit, cover strings.Builder
	r.TAP(&tap)
	if !strings.HasPrefix(tap.String(), "TAP version 13\n1..2\nok 1 - ") || !strings.Contains(tap.String(), "good \\# one\nnot ok 2 - ") || !strings.Contains(tap.String(), "# forwarded out by b0") {
		t.Error(tap.String())
	}
	if err := r.JUnit(&junit); err != nil {
		t.Fatal(err)
	}
	var s junitSuites
	if err := xml.Unmarshal([]byte(junit.String()), &s); err != nil || len(s.Suites) != 1 || s.Suites[0].Tests != 2 || s.Suites[0].Failures != 1 || s.Suites[0].Cases[1].Failure == nil {
		t.Errorf("%v %s", err, junit.String())
	}
	r.Cover(&cover)
	if !strings.Contains(cover.String(), "2 of 5 rules were met (40.0%)") || !strings.Contains(cover.String(), "filter: -A FORWARD -p udp -j DROP") {
		t.Error(cover.String())
	}
}
