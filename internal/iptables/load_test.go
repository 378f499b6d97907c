package iptables

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/tables"
)

func script(text string) []Line {
	lines, err := ReadScript(strings.NewReader(text), "edge.rules")
	if err != nil {
		panic(err)
	}
	return lines
}

func saved(t *testing.T, en Engines, args ...string) string {
	t.Helper()
	code, out, e := ours(en)(append([]string{"iptables-save"}, args...), "")
	if code != 0 || e != "" {
		t.Fatalf("iptables-save: %d, %s", code, e)
	}
	var keep []string
	for _, l := range strings.Split(out, "\n") {
		if !strings.HasPrefix(l, "#") {
			keep = append(keep, l)
		}
	}
	return strings.Join(keep, "\n")
}

const small = `*filter
:INPUT DROP [5:6]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -j web
-A web -s 10.0.0.0/8 -j ACCEPT
-A web -s 10.0.0.0/8 -j ACCEPT
-A web -j DROP
COMMIT
`

func TestLoadKeepsCounters(t *testing.T) {
	en := newEngines()
	if err := en.Load(packet.IPv4, script(small)); err != nil {
		t.Fatal(err)
	}
	run := ours(en)
	// Give every rule a counter of its own.
	n := 0
	if err := en.V4.Commit(func(rs *tables.Ruleset) error {
		tab := rs.Table(tables.Filter)
		for _, ch := range tab.Chains() {
			for i := range ch.Rules() {
				n++
				if err := tab.SetRuleCounters(ch.Name, i+1, tables.Counter{Packets: uint64(n), Bytes: uint64(10 * n)}); err != nil {
					return err
				}
			}
		}
		return tab.SetPolicyCounters("INPUT", tables.Counter{Packets: 77, Bytes: 78})
	}); err != nil {
		t.Fatal(err)
	}
	before := saved(t, en, "-c")
	if !strings.Contains(before, ":INPUT DROP [77:78]") || !strings.Contains(before, "[2:20] -A INPUT -p tcp") {
		t.Fatalf("counters were not set:\n%s", before)
	}

	t.Run("the same script changes nothing", func(t *testing.T) {
		if err := en.Load(packet.IPv4, script(small)); err != nil {
			t.Fatal(err)
		}
		sameText(t, "saved", saved(t, en, "-c"), before)
	})
	t.Run("an error changes nothing", func(t *testing.T) {
		err := en.Load(packet.IPv4, script(strings.Replace(small, "-A web -j DROP", "-A web -j NOSUCH", 1)))
		if err == nil {
			t.Fatal("a missing target was accepted")
		}
		sameText(t, "saved", saved(t, en, "-c"), before)
	})
	t.Run("checking changes nothing", func(t *testing.T) {
		if err := en.Check(packet.IPv4, script("*nat\n-A OUTPUT -j ACCEPT\nCOMMIT\n")); err != nil {
			t.Fatal(err)
		}
		sameText(t, "saved", saved(t, en, "-c"), before)
	})
	t.Run("rules that stay keep their counters", func(t *testing.T) {
		changed := strings.NewReplacer(
			"-A INPUT -i lo -j ACCEPT\n", "-A INPUT -i eth9 -j DROP\n-A INPUT -i lo -j ACCEPT\n",
			":web -", ":extra - [0:0]\n:web -",
			"-A web -s 10.0.0.0/8 -j ACCEPT\n-A web -s 10.0.0.0/8 -j ACCEPT\n", "-A web -s 10.0.0.0/8 -j ACCEPT\n-A web -s 11.0.0.0/8 -j extra\n",
		).Replace(small)
		if err := en.Load(packet.IPv4, script(changed)); err != nil {
			t.Fatal(err)
		}
		sameText(t, "saved", saved(t, en, "-c"), `*filter
:INPUT DROP [77:78]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:extra - [0:0]
:web - [0:0]
[0:0] -A INPUT -i eth9 -j DROP
[1:10] -A INPUT -i lo -j ACCEPT
[2:20] -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
[3:30] -A FORWARD -j web
[4:40] -A web -s 10.0.0.0/8 -j ACCEPT
[0:0] -A web -s 11.0.0.0/8 -j extra
[6:60] -A web -j DROP
COMMIT
`)
	})
	t.Run("chains that are gone", func(t *testing.T) {
		if err := en.Load(packet.IPv4, script("*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")); err != nil {
			t.Fatal(err)
		}
		sameText(t, "saved", saved(t, en, "-c"), `*filter
:INPUT ACCEPT [77:78]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[1:10] -A INPUT -i lo -j ACCEPT
COMMIT
`)
		if code, _, e := run([]string{"iptables", "-L", "web"}, ""); code != 1 {
			t.Errorf("chain web is still there: %d, %s", code, e)
		}
	})
}

// TestLoadFixedPoint loads each real ruleset over each other one.
func TestLoadFixedPoint(t *testing.T) {
	var texts []string
	for _, name := range rulesets(t) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(data))
	}
	for i, a := range texts {
		for j, b := range texts {
			en := newEngines()
			for _, text := range []string{a, b} {
				if err := en.Load(packet.IPv4, script(text)); err != nil {
					t.Fatal(err)
				}
			}
			plain := newEngines()
			if err := plain.Load(packet.IPv4, script(b)); err != nil {
				t.Fatal(err)
			}
			for id := range tables.NumTables {
				sameText(t, fmt.Sprintf("ruleset %d over %d, table %s", j, i, id),
					saved(t, en, "-t", id.String()), saved(t, plain, "-t", id.String()))
			}
		}
	}
}

func TestScriptErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"-A INPUT -j ACCEPT\n", "edge.rules:1:1: rules belong to a table: a line like *filter has to come first"},
		{"*flter\nCOMMIT\n", `edge.rules:1:1: there is no table "flter"`},
		{"*filter\n-A INPUT -j ACCEPT\n", "edge.rules:1:1: this table has no COMMIT"},
		{"*filter\n-A INPUT -s 1.2.3.4/33 -j ACCEPT\nCOMMIT\n", "edge.rules:2:13: invalid mask `33' specified"},
		{"*filter\n-A INPUT --dport 80\nCOMMIT\n", `edge.rules:2:10: unknown option "--dport"`},
		{"*filter\n[1:2] -A INPUT -p foo\nCOMMIT\n", `edge.rules:2:19: unknown protocol "foo" specified`},
		{"*filter\n-A INPUT -j NOSUCH\nCOMMIT\n", "edge.rules:2:13: Couldn't load target `NOSUCH':No such file or directory"},
		{"*filter\n-A INPUT -g nosuch\nCOMMIT\n", "edge.rules:2:13: goto 'nosuch' is not a chain"},
		{"*filter\n-A NOSUCH -j ACCEPT\nCOMMIT\n", "edge.rules:2:4: No chain/target/match by that name"},
		{"*filter\n-A INPUT   -p tcp extra\nCOMMIT\n", "edge.rules:2:19: Bad argument `extra'"},
		{"*filter\n-D INPUT 7\nCOMMIT\n", "edge.rules:2:4: Index of deletion too big"},
		{"*filter\n:INPUT REJECT\nCOMMIT\n", "edge.rules:2:1: Can't set policy `REJECT' on `INPUT' line 2: Bad policy name"},
		{"*filter\n-L\nCOMMIT\n", "edge.rules:2:1: -L shows something: not in a script"},
		{"*filter\n-V\nCOMMIT\n", "edge.rules:2:1: not in a script"},
		{"*filter\n:a -\n:b -\n-A a -j b\n-A b -j a\n-A INPUT -j a\nCOMMIT\n", "Too many levels of symbolic links"},
		{"*filter\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\n-A INPUT -p udp -j REJECT --reject-with tcp-reset\nCOMMIT\n", "edge.rules:4:1: Invalid argument"},
		{"*nat\nCOMMIT\n*filter\n-A INPUT -j MASQUERADE\nCOMMIT\n", "edge.rules:4:1: Invalid argument"},
		{"*filter\n-A INPUT -j ACCEPT\n-A INPUT -p udp -m tcp --dport 5\n-A INPUT -j ACCEPT\nCOMMIT\n", "edge.rules:3:1: TCP match requires '-p tcp'"},
	} {
		en := newEngines()
		err := en.Load(packet.IPv4, script(c.text))
		var at *ScriptError
		switch {
		case !errors.As(err, &at):
			t.Errorf("%q: got %v, want a ScriptError", c.text, err)
		case !strings.Contains(err.Error(), c.want):
			t.Errorf("%q:\n got %s\nwant %s", c.text, err, c.want)
		}
		if s := saved(t, en); s != "" {
			t.Errorf("%q left rules:\n%s", c.text, s)
		}
	}
}

func TestParseRules(t *testing.T) {
	en := newEngines()
	at := func(n int, text string) Line { return Line{File: "edge.toml", Line: 10 + n, Column: 4, Text: text} }
	err := ParseRules(en, packet.IPv4, tables.Filter, []Line{
		at(0, "-N web"), at(1, `-A web -m comment --comment "two words" -j ACCEPT`), at(2, "-A FORWARD -j web"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
-A FORWARD -j web
-A web -m comment --comment "two words" -j ACCEPT
COMMIT
`
	sameText(t, "saved", saved(t, en), want)

	err = ParseRules(en, packet.IPv4, tables.Filter, []Line{at(0, "-A web -j DROP"), at(1, "-A web -p nosuch")})
	var e *ScriptError
	if !errors.As(err, &e) || e.Index != 1 || e.Line != 11 || e.Column != 14 || e.Text != "-A web -p nosuch" {
		t.Errorf("got %+v", err)
	}
	words := []Line{{File: "edge.toml", Line: 3, Column: 2, Text: "-A web -p nosuch", Words: []Word{{"-A", 3, 2}, {"web", 3, 5}, {"-p", 4, 1}, {"nosuch", 5, 9}}}}
	if err = ParseRules(en, packet.IPv4, tables.Filter, words); !errors.As(err, &e) || e.Line != 5 || e.Column != 9 {
		t.Errorf("got %+v", err)
	}
	sameText(t, "saved after errors", saved(t, en), want)

	file := "*filter\n:web - [0:0]\n-A web -j DROP\nCOMMIT\n*nat\n-A OUTPUT -j ACCEPT\nCOMMIT\n"
	if err := LoadRestore(en, packet.IPv4, strings.NewReader(file), "x", true); err != nil {
		t.Fatal(err)
	}
	sameText(t, "saved after a restore", saved(t, en, "-t", "filter"),
		strings.Replace(want, `-m comment --comment "two words" -j ACCEPT`, "-j DROP", 1))
	if err := LoadRestore(en, packet.IPv4, strings.NewReader(file+"*raw\n-A X\nCOMMIT\n"), "x", false); err == nil || !strings.Contains(err.Error(), "x:9:4:") {
		t.Errorf("got %v", err)
	}
	if s := saved(t, en); !strings.Contains(s, "-A FORWARD -j web") {
		t.Errorf("an error in the last table changed the first:\n%s", s)
	}
}

// TestBecomeRandom turns random chains into others and looks whether what is
// left is what was asked for, and whether what could stay has stayed.
func TestBecomeRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	en := newEngines()
	some := func() string {
		var b strings.Builder
		b.WriteString("*filter\n")
		for range r.IntN(30) {
			fmt.Fprintf(&b, "-A FORWARD -s 10.0.0.%d/32 -j ACCEPT\n", r.IntN(20))
		}
		return b.String() + "COMMIT\n"
	}
	rules := func() []*tables.Rule { return en.V4.Ruleset().Table(tables.Filter).Chain("FORWARD").Rules() }
	for i := range 300 {
		text := some()
		before := rules()
		if err := en.Load(packet.IPv4, script(text)); err != nil {
			t.Fatal(err)
		}
		var have []string
		after := rules()
		for _, rule := range after {
			have = append(have, "-A FORWARD"+rule.Save()+"\n")
		}
		sameText(t, fmt.Sprintf("round %d", i), "*filter\n"+strings.Join(have, "")+"COMMIT\n", text)

		stayed := 0
		for _, a := range after {
			if slices.Contains(before, a) {
				stayed++
			}
		}
		if want := len(kept(before, after)); stayed < want {
			t.Errorf("round %d: %d rules stayed the same, %d could have", i, stayed, want)
		}
		// Loading the same again leaves every rule as it is.
		if err := en.Load(packet.IPv4, script(text)); err != nil || !slices.Equal(rules(), after) {
			t.Errorf("round %d: the same script changed rules: %v", i, err)
		}
	}
}
