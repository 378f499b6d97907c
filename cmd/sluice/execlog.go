package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"sluice/router"
)

// plainLog logs lines for people: "sluice: connection denied to=192.0.2.1:443".
type plainLog struct {
	w     io.Writer
	level slog.Level
	mu    *sync.Mutex
	attrs []slog.Attr
}

func newPlainLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(&plainLog{w: w, level: level, mu: &sync.Mutex{}})
}

func (l *plainLog) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level }

func (l *plainLog) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("sluice: " + r.Message)
	add := func(a slog.Attr) bool {
		if v := a.Value.Resolve().String(); v != "" {
			if strings.ContainsAny(v, " \"\t\n") {
				v = strconv.Quote(v)
			}
			b.WriteString(" " + a.Key + "=" + v)
		}
		return true
	}
	for _, a := range l.attrs {
		add(a)
	}
	r.Attrs(add)
	b.WriteByte('\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := io.WriteString(l.w, b.String())
	return err
}

func (l *plainLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *l
	c.attrs = append(slices.Clip(l.attrs), attrs...)
	return &c
}

func (l *plainLog) WithGroup(string) slog.Handler { return l }

// printSummary says what was allowed and what was denied.
func printSummary(w io.Writer, s *router.Summary) {
	for _, g := range []struct {
		word string
		list []router.Use
	}{{"allowed", s.Allowed}, {"denied", s.Denied}} {
		for _, u := range g.list {
			fmt.Fprintf(w, "sluice: %s %s\n", g.word, use(&u))
		}
	}
	for _, q := range s.Refused {
		fmt.Fprintf(w, "sluice: refused to look up %s%s\n", q.Name, times(q.Count))
	}
	if s.Lost > 0 {
		fmt.Fprintf(w, "sluice: %d more were not counted\n", s.Lost)
	}
}

func use(u *router.Use) string {
	to := u.Address
	if u.Port != 0 {
		to += " " + u.Protocol + "/" + strconv.Itoa(int(u.Port))
	} else {
		to += " " + u.Protocol
	}
	if u.Name != "" {
		to = u.Name + " " + to
	}
	return to + times(u.Connections)
}

func times(n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf(", %d times", n)
}

// learned is what was used as the flags that allow it, one a line.
func learned(s *router.Summary) string {
	var flags []string
	for _, u := range s.Allowed {
		if u.Port == 0 {
			continue
		}
		to := u.Name + ":" + strconv.Itoa(int(u.Port))
		if u.Name == "" {
			a, err := netip.ParseAddr(u.Address)
			if err != nil {
				continue
			}
			to = netip.AddrPortFrom(a, u.Port).String()
		}
		if f := "--allow " + to + "\n"; !slices.Contains(flags, f) {
			flags = append(flags, f)
		}
	}
	return strings.Join(flags, "")
}

// printRules writes the plan as a configuration for `sluice run`.
func (p *execPlan) printRules(w io.Writer) error {
	var b strings.Builder
	quote := func(list []string) string {
		out := make([]string, len(list))
		for i, s := range list {
			out[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	cfg := p.cfg.Complete()
	for i := range cfg.Interfaces {
		c := &cfg.Interfaces[i]
		fmt.Fprintf(&b, "[[interface]]\nname = %q\ntype = %q\nmtu  = %d\n", c.Name, c.Type, c.MTU)
		if len(c.Addresses) > 0 {
			fmt.Fprintf(&b, "addresses = %s\n", quote(texts(c.Addresses)))
		}
		b.WriteByte('\n')
	}
	for i := range cfg.Routes {
		fmt.Fprintf(&b, "[[route]]\nto  = %q\ndev = %q\n\n", cfg.Routes[i].To, cfg.Routes[i].Dev)
	}
	for i := range cfg.Publish {
		c := &cfg.Publish[i]
		fmt.Fprintf(&b, "[[publish]]\nlisten = %q\nto     = %q\n\n", c.Listen, c.To)
	}
	if d := cfg.DNS; d != nil {
		fmt.Fprintf(&b, "[dns]\nlisten = %s\n", quote(texts(d.Listen)))
		if len(d.Allow) > 0 {
			fmt.Fprintf(&b, "allow  = %s\nstrict = %v\n", quote(texts(d.Allow)), d.Strict)
		}
		b.WriteByte('\n')
	}
	for i := range cfg.Sets {
		c := &cfg.Sets[i]
		fmt.Fprintf(&b, "[[set]]\nname   = %q\ntype   = %q\nfamily = %q\n", c.Name, c.Type, c.Family)
		if c.Timeout != nil {
			fmt.Fprintf(&b, "timeout = %d\n", *c.Timeout)
		}
		b.WriteByte('\n')
	}
	for _, f := range []struct {
		name string
		set  *router.RulesetConfig
	}{{"iptables", &cfg.IPTables}, {"ip6tables", &cfg.IP6Tables}} {
		if len(f.set.Restore) > 0 {
			var files []string
			for _, r := range f.set.Restore {
				files = append(files, r.Path)
			}
			fmt.Fprintf(&b, "[%s]\nrestore = %s\n\n", f.name, quote(files))
		}
		for _, t := range f.set.Tables() {
			if len(t.Policy) == 0 && len(t.Rules) == 0 {
				continue
			}
			fmt.Fprintf(&b, "[%s.%s]\n", f.name, t.Name)
			if len(t.Policy) > 0 {
				var all []string
				for _, c := range t.Policy {
					all = append(all, fmt.Sprintf("%s = %q", c.Chain, c.Target))
				}
				fmt.Fprintf(&b, "policy = { %s }\n", strings.Join(all, ", "))
			}
			b.WriteString("rules = [\n")
			for _, r := range t.Rules {
				fmt.Fprintf(&b, "  %s,\n", strconv.Quote(r.Text))
			}
			b.WriteString("]\n\n")
		}
	}
	_, err := io.WriteString(w, strings.TrimSuffix(b.String(), "\n"))
	return err
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = x.String()
	}
	return out
}
