package iptables

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sluice/packet"
	"sluice/tables"
)

// fixedNames is a Resolver that knows what every host knows.
type fixedNames struct{}

func (fixedNames) Addrs(fam uint8, name string) [][16]byte {
	if fam == packet.IPv4 && name == "localhost" {
		return [][16]byte{{127, 0, 0, 1}}
	}
	return nil
}

func (fixedNames) Name(fam uint8, addr [16]byte) string { return "" }

func newEngines() Engines {
	en := New(tables.NewEngine(packet.IPv4, &tables.Env{}), tables.NewEngine(packet.IPv6, &tables.Env{}))
	en.Resolver = fixedNames{}
	return en
}

// ours is a runner for the program under test.
func ours(en Engines) runner {
	return func(argv []string, stdin string) (int, string, string) {
		var o, e bytes.Buffer
		files := ClientArgs(argv)
		if files.Input != "" {
			return 1, "", files.OpenError(&fs.PathError{Op: "open", Err: syscall.ENOENT})
		}
		code := Run(en, files.Args, strings.NewReader(stdin), &o, &e)
		return code, dated.ReplaceAllString(o.String(), "${1}DATE"), e.String()
	}
}

// TestGolden holds the program under test against the transcripts.
func TestGolden(t *testing.T) {
	for _, name := range transcripts(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".golden"), func(t *testing.T) {
			run := ours(newEngines())
			for _, s := range readTranscript(t, name) {
				got := s
				got.code, got.stdout, got.err = run(s.argv, s.stdin)
				sameText(t, fmt.Sprintf("%s:%d: %s", name, s.at, s.line), got.String(), s.String())
			}
		})
	}
}

// TestRulesets loads real machines' rulesets and prints them back.
func TestRulesets(t *testing.T) {
	for _, name := range rulesets(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".rules"), func(t *testing.T) {
			run := ours(newEngines())
			save, list := load(t, run, name)
			sameText(t, name+" saved", save, golden(t, name, ".save"))
			sameText(t, name+" listed", list, golden(t, name, ".list"))

			// What was saved loads again, counters and all, and is the same.
			if code, out, e := run([]string{"iptables-restore", "-c"}, save); code != 0 || out+e != "" {
				t.Fatalf("iptables-restore -c of what was saved: exit code %d, %q, %q", code, out, e)
			}
			_, again, _ := run([]string{"iptables-save", "-c"}, "")
			sameText(t, name+" saved again", again, save)
		})
	}
}
