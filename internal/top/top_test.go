package top

import (
	"errors"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"sluice/router"
)

func sample(sec int64, packets uint64) *Sample {
	s := &Sample{At: time.Unix(sec, 0)}
	s.Status = router.Status{
		Version: "v1", Forwarded: packets,
		Hooks:      []router.HookStatus{{Family: "ipv4", Hook: "FORWARD", Packets: packets, Bytes: 100 * packets}, {Family: "ipv6", Hook: "FORWARD", Packets: 2 * packets, Bytes: 100 * packets}},
		Interfaces: []router.InterfaceStatus{{Name: "lan0", State: "up", RxPackets: packets, RxBytes: 1000 * packets}, {Name: "wan0", State: "up", TxPackets: packets}},
		Drops:      []router.DropCount{{Reason: "ip.ttl_expired", Doc: "the TTL", Packets: 2 * packets}},
		Tables: []router.TableStatus{{Family: "ipv4", Name: "filter", Chains: []router.ChainStatus{{Name: "FORWARD", Policy: "DROP", Packets: packets,
			Rules: []router.RuleStatus{{Text: "-A FORWARD -j one", Packets: 1}, {Text: "-A FORWARD -j two", Packets: 3 * packets, Bytes: 3}}}}}},
	}
	s.Connections = []Connection{{Proto: "tcp", From: "10.0.0.1:1", To: "9.9.9.9:80", Packets: 5, Bytes: 5000}, {Proto: "udp", From: "10.0.0.2:2", To: "9.9.9.9:53", Packets: packets, Bytes: 100 * packets}}
	return s
}

func press(m *Model, keys ...string) {
	for _, k := range keys {
		msg := tea.KeyPressMsg{Code: []rune(k)[0], Text: k}
		switch k {
		case "tab":
			msg = tea.KeyPressMsg{Code: tea.KeyTab}
		case "enter":
			msg = tea.KeyPressMsg{Code: tea.KeyEnter}
		case "esc":
			msg = tea.KeyPressMsg{Code: tea.KeyEsc}
		}
		m.Update(msg)
	}
}

func TestModel(t *testing.T) {
	m := New(nil, time.Second)
	m.Update(sampleMsg{s: sample(10, 1000)})
	m.Update(sampleMsg{s: sample(12, 21000)}) // 10,000 packets a second
	m.Update(tea.WindowSizeMsg{Width: 120, Height: 20})
	see := func(want ...string) {
		t.Helper()
		v := m.text()
		at := 0
		for _, w := range want {
			i := strings.Index(v[at:], w)
			if i < 0 {
				t.Fatalf("no %q in its place in\n%s", w, v)
			}
			at += i
		}
	}
	see("INTERFACE", "lan0", "10.0k", "80.0M", "wan0")
	press(m, "tab")
	see("HOOK", "FORWARD", "30.0k", "16.0M", "63.0k", "4.2M", "forwarded", "10.0k", "21.0k")
	press(m, "3")
	see("PROTO", "udp", "10.0.0.2:2", "8.0M", "tcp")
	press(m, "4")
	see("RULE", "-A FORWARD -j two", "FORWARD policy DROP", "-A FORWARD -j one")
	press(m, "r")
	see("-A FORWARD -j one", "FORWARD policy DROP", "-A FORWARD -j two")
	press(m, "r", "/", "t", "w", "o")
	see("-j two", "filter: two_")
	if v := m.text(); strings.Contains(v, "-j one") {
		t.Errorf("filtered, it shows\n%s", v)
	}
	press(m, "enter", "esc", "5")
	see("REASON", "ip.ttl_expired", "20.0k", "42.0k", "the TTL")
	press(m, "p")
	m.Update(sampleMsg{s: sample(13, 0)})
	see("(paused)", "ip.ttl_expired")
	press(m, "p")
	m.Update(sampleMsg{s: sample(14, 1)}) // the router began anew: no negative rates
	press(m, "1")
	see("lan0", " 0")
	m.Update(sampleMsg{err: errors.New("the router went away")})
	see("the router went away")
	press(m, "s", "s", "s", "s", "s", "s", "s", "s", "s", "S")
	see("INTERFACE")
	if _, cmd := m.Update(tea.KeyPressMsg{Code: 'q', Text: "q"}); cmd == nil {
		t.Error("q does not quit")
	}
	m.Update(tea.WindowSizeMsg{Width: 8, Height: 3})
	for i := range Views {
		press(m, string(rune('1'+i)))
		for l := range strings.Lines(m.text()) {
			if strings.Contains(l, "INTERFACE") && len([]rune(strings.TrimSpace(l))) > 8 {
				t.Errorf("wider than the terminal: %q", l)
			}
		}
	}
}

func TestOnce(t *testing.T) {
	var b strings.Builder
	if err := Once(&b, sample(12, 21000), sample(10, 1000), nil); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"INTERFACE", "HOOK", "PROTO", "TABLE", "REASON"} {
		if !strings.Contains(b.String(), w) {
			t.Errorf("no %s", w)
		}
	}
}
