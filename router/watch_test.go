package router

import (
	"strings"
	"testing"
	"time"
)

// TestWatch: only what matches is recorded, what was asked for and no more, and
// the router does the same as ever.
func TestWatch(t *testing.T) {
	cfg := masqueraded()
	b, plain := newBed(t, cfg), newBed(t, masqueraded())
	open := func(opt WatchOptions) *Watch {
		t.Helper()
		v, err := b.r.Watch(opt)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	web := open(WatchOptions{Match: strings.Fields("-p tcp --dport 80"), Count: 2})
	out := open(WatchOptions{Match: strings.Fields("-o wan0 -p udp")})
	old := open(WatchOptions{Match: strings.Fields("-m conntrack --ctstate ESTABLISHED"), Frames: 64})
	all := open(WatchOptions{Queue: 4})
	got := 0
	for _, x := range []struct{ in, desc string }{
		{"lan0", "tcp 10.0.1.2:4000 > 203.0.113.9:80 S"}, {"wan0", "tcp 203.0.113.9:80 > 198.51.100.1:4000 SA seq=1 ack=1"},
		{"lan0", "udp 10.0.1.2:4000 > 203.0.113.9:53"}, {"lan0", "tcp 10.0.1.3:4003 > 203.0.113.9:443 S"},
		{"lan0", "tcp 10.0.1.4:4004 > 203.0.113.9:80 S"}, {"lan0", "tcp 10.0.1.5:4005 > 203.0.113.9:80 S"},
	} {
		f := frame(t, x.desc)
		with, without := b.send(x.in, f), plain.send(x.in, f)
		for iface := range without {
			for i := range without[iface] {
				if string(with[iface][i]) != string(without[iface][i]) {
					t.Errorf("%s: watched, another packet left", x.desc)
				}
				got++
			}
		}
	}
	if got != 6 {
		t.Errorf("%d packets left", got)
	}
	next := func(v *Watch) string {
		select {
		case x, ok := <-v.Traces():
			if !ok {
				return "closed"
			}
			x.text()
			return x.Packet
		default:
			return "nothing"
		}
	}
	for _, x := range []struct {
		v    *Watch
		want string
	}{
		{web, "tcp 10.0.1.2:4000 > 203.0.113.9:80"}, {web, "tcp 10.0.1.4:4004 > 203.0.113.9:80"},
		{out, "udp 10.0.1.2:4000"}, {out, "nothing"},
		{old, "tcp 203.0.113.9:80 > 198.51.100.1:4000"}, {old, "nothing"},
		{all, "tcp 10.0.1.2:4000"}, {all, "tcp 203.0.113.9:80"}, {all, "udp"}, {all, "tcp 10.0.1.3"}, {all, "nothing"},
	} {
		if s := next(x.v); !strings.HasPrefix(s, x.want) {
			t.Errorf("got %q, want %q", s, x.want)
		}
	}
	done := make(chan struct{})
	defer time.AfterFunc(10*time.Second, func() { close(done) }).Stop()
	if x := web.Next(done); x != nil || !web.ended.Load() {
		t.Errorf("more than two: %v", x)
	}
	if all.Lost() != 2 {
		t.Errorf("%d were lost", all.Lost())
	}
	for _, v := range []*Watch{web, out, old, all} {
		v.Close()
	}
	if b.r.watches.Load() != nil || b.w.watching != nil {
		t.Error("somebody still watches")
	}
	if _, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp --dport x")}); err == nil {
		t.Error("a bad port was taken")
	}
	if _, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp -j ACCEPT")}); err == nil {
		t.Error("a target was taken")
	}
}

// TestWatchAnswers: the router's own answer to a recorded packet is recorded with it.
func TestWatchAnswers(t *testing.T) {
	b := newBed(t, edge(map[string][]string{"filter": {"-A FORWARD -p tcp -j REJECT"}}))
	unlimited(b.r, edge(nil))
	v, err := b.r.Watch(WatchOptions{Match: strings.Fields("-p tcp")})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	b.send("lan0", frame(t, "udp 10.0.1.2:4000 > 203.0.113.9:53"), frame(t, "tcp 10.0.1.2:4000 > 203.0.113.9:80 S"))
	first, second := nextSoon(t, v), nextSoon(t, v)
	if first.Reason != "filter.FORWARD.rule" || first.Rule == nil || first.Rule.Text != "-A FORWARD -p tcp -j REJECT --reject-with icmp-port-unreachable" {
		t.Errorf("%+v", first.Rule)
	}
	if second.Cause != "answer" || !strings.HasPrefix(second.Packet, "icmp 10.0.1.1 > 10.0.1.2 type=3/3") {
		t.Errorf("%s: %s", second.Cause, second.Packet)
	}
}

// nextSoon is Next of a trace that must come.
func nextSoon(t *testing.T, v *Watch) *Trace {
	t.Helper()
	done := make(chan struct{})
	timer := time.AfterFunc(10*time.Second, func() { close(done) })
	defer timer.Stop()
	x := v.Next(done)
	if x == nil {
		t.Fatal("nothing was recorded")
	}
	return x
}
