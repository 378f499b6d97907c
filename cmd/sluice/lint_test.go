package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestLintCommand(t *testing.T) {
	good := seeFile(t, "good.toml", seeConfig)
	if out, errs, code := inProcess(t, "lint", "-c", good); code != 0 || out != "" {
		t.Errorf("%d %s%s", code, out, errs)
	}
	bad := seeFile(t, "bad.rules", "*filter\n:x - [0:0]\n-A INPUT -p tcp -j ACCEPT\n-A INPUT -p tcp --dport 22 -j DROP\nCOMMIT\n")
	out, errs, code := inProcess(t, "lint", bad)
	if code != exitFailed || !strings.Contains(out, bad+":4: never-matches: table filter: -A INPUT -p tcp -m tcp --dport 22 -j DROP: taken before by rule 1 (line 3)") || !strings.Contains(out, "unused-chain") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	out, _, code = inProcess(t, "lint", "--json", "--ignore", "unused-chain", bad)
	var found []struct {
		Kind   string
		Covers []int
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil || code != exitFailed || len(found) != 1 || found[0].Kind != "never-matches" || len(found[0].Covers) != 1 {
		t.Errorf("%v %s", err, out)
	}
	if _, errs, code := inProcess(t, "lint"); code != exitUsage {
		t.Errorf("%d %s", code, errs)
	}
	if _, errs, code := inProcess(t, "lint", seeFile(t, "x.rules", "*filter\n-A NOWHERE -j ACCEPT\nCOMMIT\n")); code != exitFailed || !strings.Contains(errs, "x.rules:2") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestTestCommand(t *testing.T) {
	conf := seeFile(t, "see.toml", seeConfig)
	file := func(expect string) string {
		return seeFile(t, "t.toml", "config = \""+conf+"\"\n[[case]]\nname = \"web\"\npackets = [{ send = \"lan0: tcp 10.0.1.2:4000 > 203.0.113.9:80 S\", "+expect+" }]\n")
	}
	out, errs, code := inProcess(t, "test", "--cover", "-v", file(`forwarded = "wan0"`))
	if code != 0 || !strings.Contains(out, "1 cases, 1 packets, 0 failed") || !strings.Contains(out, "2 of 3 rules were met") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	junit := seeFile(t, "junit.xml", "")
	out, errs, code = inProcess(t, "test", "--tap", "--junit", junit, file(`dropped = ""`))
	if code != exitFailed || !strings.Contains(out, "not ok 1") || !strings.Contains(out, "# forwarded out by wan0") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if text, err := os.ReadFile(junit); err != nil || !strings.Contains(string(text), `failures="1"`) {
		t.Errorf("%v %s", err, text)
	}
	if _, errs, code := inProcess(t, "test", "/no/such.toml"); code != exitFailed {
		t.Errorf("%d %s", code, errs)
	}
	if _, errs, code := inProcess(t, "test"); code != exitUsage {
		t.Errorf("%d %s", code, errs)
	}
}

func TestCaptureAndTopUsage(t *testing.T) {
	for _, args := range [][]string{{"capture", "--at", "nowhere"}, {"capture", "--snaplen", "5"}, {"top", "--interval", "1ms"}, {"top", "--once", "--view", "x"}, {"top"}} {
		if _, errs, code := inProcess(t, args...); code != exitUsage {
			t.Errorf("%v: %d %s", args, code, errs)
		}
	}
}
