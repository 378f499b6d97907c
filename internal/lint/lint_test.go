package lint

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sluice/hooks"
	"sluice/internal/iptables"
	"sluice/packet"
	"sluice/packet/packettext"
	"sluice/router"
	"sluice/tables"
)

// loaded is a ruleset in a router without interfaces.
type loaded struct {
	t  testing.TB
	r  *router.Router
	pr *tables.Program
	c  tables.Context
	n  tables.Chains
	x  map[tables.TableID]*linter
}

func (l *loaded) linter(id tables.TableID) *linter {
	if l.x[id] == nil {
		if l.x == nil {
			l.x = map[tables.TableID]*linter{}
		}
		l.x[id] = newLinter(l.pr.Ruleset, id)
	}
	return l.x[id]
}

func load(t testing.TB, text, name string) *loaded {
	t.Helper()
	r, err := router.New(&router.Config{Router: router.RouterConfig{Workers: 1}}, router.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := iptables.LoadRestore(r.IPTables(), packet.IPv4, strings.NewReader(text), name, false); err != nil {
		t.Fatal(err)
	}
	e := r.Engine(packet.IPv4)
	l := &loaded{t: t, r: r, pr: e.Program()}
	l.c = tables.Context{CT: r.Conntrack().NewWorker(), Env: e.Env(), Alloc: packet.New, Output: func(*packet.Packet) {}}
	l.c.Prepare(l.pr)
	return l
}

func filter(rules ...string) string {
	return "*filter\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
}

// met is a tables.Tracer that notes the rules that match.
type met map[*tables.Rule]bool

func (m met) Looked(_ *tables.Chain, _ int, r *tables.Rule, matched bool) {
	if matched {
		m[r] = true
	}
}
func (met) Ran(tables.Result)                    {}
func (met) Returned(*tables.Chain, int)          {}
func (met) Policy(*tables.Chain, tables.Verdict) {}

// walk takes a packet through a table at a hook.
func (l *loaded) walk(t tables.TableID, h hooks.Hook, p *packet.Packet, m met) {
	l.c.Hook = h
	l.c.CT.Begin(1e9)
	l.pr.Trace(&l.c, t, p, &l.n, m)
	l.c.CT.End()
}

// point is a packet as lint sees it, of one number for each dimension.
type point [dims]num

func (u *universe) packet(x *point) *packet.Packet {
	proto := x[dimProto].lo
	addr := func(n num) string {
		if u.family == packet.IPv4 {
			return netip.AddrFrom4([4]byte{byte(n.lo >> 24), byte(n.lo >> 16), byte(n.lo >> 8), byte(n.lo)}).String()
		}
		var b [16]byte
		for i := range 8 {
			b[i], b[8+i] = byte(n.hi>>(56-8*i)), byte(n.lo>>(56-8*i))
		}
		return netip.AddrFrom16(b).String()
	}
	src, dst := addr(x[dimSrc]), addr(x[dimDst])
	desc := fmt.Sprintf("%d %s > %s", proto, src, dst)
	withPorts := x[dimSport].lo != unreadable && x[dimDport].lo != unreadable
	switch {
	case proto == 6 || proto == 17 || proto == 132 || proto == 136 || proto == 33:
		if !withPorts {
			desc += " frag=1480 len=64"
			break
		}
		desc = fmt.Sprintf("%d %s:%d > %s:%d", proto, src, x[dimSport].lo, dst, x[dimDport].lo)
		if f := x[dimFlags].lo; proto == 6 && f < 64 {
			for i := range 6 {
				if f>>i&1 != 0 {
					desc += " " + "FSRPAU"[i:i+1]
				}
			}
		}
	case proto == 1 && x[dimICMP].lo != unreadable:
		desc += fmt.Sprintf(" type=%d/%d", x[dimICMP].lo>>8, x[dimICMP].lo&0xff)
	}
	b, err := packettext.Frame(desc)
	if err != nil {
		panic(err)
	}
	p := packet.New()
	p.SetBytes(b)
	if p.Parse() != 0 {
		return nil
	}
	p.CtInfo = [...]packet.CtInfo{packet.CtInvalid, packet.CtEstablished, packet.CtRelated, packet.CtNew, packet.CtUntracked}[x[dimState].lo]
	iface := func(i int) *packet.Iface {
		if u.ifaces[i] == "" {
			return nil
		}
		return packet.NewIface(i+2, strings.ReplaceAll(u.ifaces[i], "\x01", "zz9"), 1500)
	}
	p.In, p.Out = iface(int(x[dimIn].lo)), iface(int(x[dimOut].lo))
	return p
}

// edges are the numbers at the ends of a set's spans and beside them, those within bounds.
func edges(s, bounds set, out []num) []num {
	for i, x := range s {
		if i > 3 && i < len(s)-3 {
			continue
		}
		for _, n := range []num{x.lo, x.hi, x.lo.prevOr(), x.hi.next()} {
			if len(bounds.and(set{{n, n}})) > 0 {
				out = append(out, n)
			}
		}
	}
	return out
}

// attack builds packets at the boundaries of a claimed rule and of those that
// are said to cover it, and holds the claim against the linear walk.
func (l *loaded) attack(f *Finding, tries int, rnd *rand.Rand) (packets, taken int) {
	id, _ := tables.TableByName(f.Table)
	x := l.linter(id)
	ch := x.t.Chain(f.Chain)
	k := x.known[f.rule]
	if k.box.empty() {
		return 0, 0 // no packet can be built that it asks for
	}
	var values [dims][]num
	for d := range values {
		for i := range x.entry[ch.Name] { // most of all what comes to the chain
			values[d] = edges(x.entry[ch.Name][i][d].and(k.box[d]), k.box[d], values[d])
		}
		values[d] = append(values[d], edges(k.box[d], k.box[d], nil)...)
		for _, n := range f.Covers {
			values[d] = edges(x.known[ch.Rules()[n-1]].box[d], k.box[d], values[d])
		}
		if d == dimICMP || d == dimSport || d == dimDport || d == dimFlags {
			for _, s := range k.box[d] { // what cannot be read is rare
				values[d] = append(values[d], s.lo, s.lo, s.lo)
			}
		}
	}
	for h := range hooks.NumHooks {
		if !tables.TableHooks[id].Has(h) {
			continue
		}
		for range tries {
			var at point
			for d := range at {
				at[d] = values[d][rnd.IntN(len(values[d]))]
			}
			// A hook's packets have the interfaces that they can have there.
			for _, d := range []int{dimIn, dimOut} {
				if can := x.start(h)[0][d]; len(can.and(set{{at[d], at[d]}})) == 0 {
					at[d] = can[rnd.IntN(len(can))].lo
				}
			}
			p := x.packet(&at)
			if p == nil {
				continue
			}
			packets++
			m := met{}
			l.walk(id, h, p, m)
			if m[f.rule] {
				l.t.Errorf("%s\n  but %s matched it at %s", f, packettext.Describe(p.Bytes()), h)
				return
			}
			for _, n := range f.Covers {
				if m[ch.Rules()[n-1]] {
					taken++
					break
				}
			}
		}
	}
	return packets, taken
}

// TestRealRulesets: on five real rulesets every claim that a rule never matches
// stands against packets at its boundaries, and the findings are those that a
// reader finds.
func TestRealRulesets(t *testing.T) {
	files, _ := filepath.Glob("../iptables/testdata/rulesets/*.rules")
	if len(files) < 5 {
		t.Fatalf("the rulesets are not there: %q", files)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		l := load(t, string(text), filepath.Base(f))
		claims, packets, held, met := 0, 0, 0, 0
		var lines []string
		for _, x := range Rules(l.pr.Ruleset) {
			lines = append(lines, x.String())
			if x.Kind != NeverMatches {
				continue
			}
			claims++
			n, taken := l.attack(&x, 120, rnd)
			packets += n
			if n > 0 {
				held++
			}
			if taken > 0 {
				met++
			}
		}
		if held > 0 && met*2 < held {
			t.Errorf("%s: of %d rules that never match %d met packets that the covering rules took", f, held, met)
		}
		t.Logf("%s: %d findings, %d of rules that never match, held against %d packets", filepath.Base(f), len(lines), claims, packets)
		if testing.Verbose() {
			t.Log("\n" + strings.Join(lines, "\n"))
		}
	}
}

func kinds(fs []Finding) (out []string) {
	for i := range fs {
		f := &fs[i]
		s := f.Kind + " " + f.Chain
		if f.Rule > 0 {
			s += fmt.Sprintf(" %d", f.Rule)
		}
		if len(f.Covers) > 0 {
			s += fmt.Sprint(" by ", f.Covers)
		}
		out = append(out, s)
	}
	return out
}

// TestAddressesThatChange: what SNPT changes, later rules see.
func TestAddressesThatChange(t *testing.T) {
	r, err := router.New(&router.Config{Router: router.RouterConfig{Workers: 1}}, router.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text := "*mangle\n-A POSTROUTING -s fd00:1::/64 -j ACCEPT\n-A POSTROUTING -s fd00:2::/64 -j SNPT --src-pfx fd00:2::/64 --dst-pfx fd00:1::/64\n-A POSTROUTING -s fd00:1::/64 -j ACCEPT\nCOMMIT\n"
	if err := iptables.LoadRestore(r.IPTables(), packet.IPv6, strings.NewReader(text), "npt", false); err != nil {
		t.Fatal(err)
	}
	if fs := Rules(r.Engine(packet.IPv6).Ruleset()); len(fs) > 0 {
		t.Error(kinds(fs))
	}
}

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules string
		want  []string
	}{
		{"nothing", filter("-A INPUT -p tcp --dport 22 -j ACCEPT", "-A INPUT -p tcp --dport 23 -j ACCEPT"), nil},
		{"same", filter("-A INPUT -p tcp --dport 22 -j ACCEPT", "-A INPUT -p tcp --dport 22 -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"wider", filter("-A INPUT -s 10.0.0.0/8 -j ACCEPT", "-A INPUT -s 10.1.0.0/16 -p tcp -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"two halves", filter("-A INPUT -s 10.0.0.0/9 -j ACCEPT", "-A INPUT -p udp -j DROP", "-A INPUT -s 10.128.0.0/9 -j DROP", "-A INPUT -s 10.0.0.0/8 -p tcp -j DROP"), []string{"never-matches INPUT 4 by [1 3]"}},
		{"a fragment has no ports", filter("-A INPUT -p udp --dport 0:65535 -j DROP", "-A INPUT -p udp -j ACCEPT"), []string{"no-dns INPUT"}},
		{"all ports", filter("-A INPUT -p udp --dport 0:1023 -j DROP", "-A INPUT -p udp --dport 1024:65535 -j DROP", "-A INPUT -p udp -m multiport --dports 53,2000 -j ACCEPT"), []string{"no-dns INPUT", "never-matches INPUT 3 by [1 2]"}},
		{"states", filter("-A INPUT -m state --state NEW,INVALID,UNTRACKED -j DROP", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A INPUT -p tcp -j DROP"), []string{"never-matches INPUT 3 by [1 2]"}},
		{"a log does not take", filter("-A INPUT -p tcp -j LOG", "-A INPUT -p tcp -j DROP"), []string{"no-answers INPUT"}},
		{"a limit does not take", filter("-A INPUT -p tcp -m limit --limit 1/s -j ACCEPT", "-A INPUT -p tcp -m limit --limit 1/s -j ACCEPT"), nil},
		{"the same mac", filter("-A INPUT -m mac --mac-source 00:11:22:33:44:55 -j ACCEPT", "-A INPUT -p tcp -m mac --mac-source 00:11:22:33:44:55 -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"another mac", filter("-A INPUT -m mac --mac-source 00:11:22:33:44:55 -j ACCEPT", "-A INPUT -p tcp -m mac --mac-source 00:11:22:33:44:56 -j DROP"), nil},
		{"itself", filter("-A INPUT -p tcp -m state --state NEW -m state --state ESTABLISHED -j DROP"), []string{"never-matches INPUT 1"}},
		{"its chain's callers", filter("-N t", "-A INPUT -p tcp -j t", "-A t -p udp -j DROP"), []string{"never-matches t 1"}},
		{"the hook", filter("-N t", "-A INPUT -j t", "-A t -o eth0 -j DROP"), []string{"never-matches t 1"}},
		{"interfaces", filter("-A INPUT -i eth+ -j ACCEPT", "-A INPUT -i eth0 -j DROP", "-A INPUT ! -i eth+ -j DROP", "-A INPUT -p tcp -j DROP"), []string{"never-matches INPUT 2 by [1]", "never-matches INPUT 4 by [1 3]"}},
		{"a chain that ends all", filter("-N t", "-A INPUT -p tcp -j t", "-A INPUT -p tcp --dport 80 -j ACCEPT", "-A t -p tcp --syn -j ACCEPT", "-A t -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"a chain that comes back", filter("-N t", "-A INPUT -p tcp -j t", "-A INPUT -p tcp --dport 80 -j ACCEPT", "-A t -p tcp --dport 80 -j RETURN", "-A t -j DROP"), []string{"no-answers INPUT"}},
		{"goto", filter("-N t", "-A INPUT -p tcp -g t", "-A INPUT -p tcp --dport 80 -j ACCEPT", "-A t -p tcp --dport 81 -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"return", filter("-N t", "-A INPUT -j t", "-A t -p tcp -j RETURN", "-A t -p tcp --dport 80 -j ACCEPT"), []string{"never-matches t 2 by [1]"}},
		{"duplicates", filter("-N t", "-A INPUT -p tcp -j t", "-A INPUT -p tcp -j t", "-A t -p tcp --dport 80 -j ACCEPT"), []string{"duplicate INPUT 2"}},
		{"chains", filter("-N a", "-N b", "-N c", "-A INPUT -j a", "-A b -j c", "-A c -p tcp -j DROP"), []string{"empty-chain INPUT 1", "unused-chain b", "unused-chain c"}},
		{"no answers", filter("-P INPUT DROP", "-P OUTPUT ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT"), []string{"no-answers INPUT", "no-dns INPUT"}},
		{"answers", filter("-P INPUT DROP", "-A INPUT -m state --state ESTABLISHED -j ACCEPT"), nil},
		{"no dns", filter("-P OUTPUT DROP", "-A OUTPUT -p tcp -j ACCEPT"), []string{"no-dns OUTPUT"}},
		{"nothing goes out", filter("-P OUTPUT DROP", "-P INPUT DROP"), nil},
		{"dns", filter("-P OUTPUT DROP", "-A OUTPUT -p udp --dport 53 -j ACCEPT", "-A OUTPUT -m state --state ESTABLISHED -j ACCEPT"), nil},
		{"forward without answers", filter("-P FORWARD DROP", "-A FORWARD -i lan0 -m state --state NEW -j ACCEPT"), []string{"no-answers FORWARD"}},
		{"dnat", "*nat\n-A PREROUTING -i wan0 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080\n-A PREROUTING -i wan0 -p tcp --dport 81 -j DNAT --to-destination 10.0.0.3:81\nCOMMIT\n" +
			filter("-P FORWARD DROP", "-P INPUT DROP", "-A INPUT -m state --state ESTABLISHED -j ACCEPT", "-A FORWARD -m state --state ESTABLISHED -j ACCEPT", "-A FORWARD -i wan0 -d 10.0.0.2 -p tcp --dport 8080 -j ACCEPT"), []string{"dnat-blocked PREROUTING 2"}},
		{"icmp", filter("-A INPUT -p icmp -j ACCEPT", "-A INPUT -p icmp --icmp-type 8 -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"icmp types", filter("-A INPUT -p icmp --icmp-type 8 -j ACCEPT", "-A INPUT -p icmp --icmp-type 3 -j DROP"), nil},
		{"flags", filter("-A INPUT -p tcp --tcp-flags SYN SYN -j ACCEPT", "-A INPUT -p tcp --syn -j DROP", "-A INPUT -p tcp --tcp-flags ACK ACK -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"ranges", filter("-A INPUT -m iprange --src-range 10.0.0.1-10.0.0.9 -j ACCEPT", "-A INPUT -s 10.0.0.4/30 -j DROP", "-A INPUT -s 10.0.0.8/30 -j DROP"), []string{"never-matches INPUT 2 by [1]"}},
		{"marks change in mangle", "*mangle\n-A PREROUTING -m mark --mark 1 -j ACCEPT\n-A PREROUTING -p tcp -j MARK --set-mark 1\n-A PREROUTING -m mark --mark 1 -j ACCEPT\nCOMMIT\n", nil},
		{"marks may change in filter", filter("-A INPUT -m mark --mark 1 -j ACCEPT", "-A INPUT -m connmark --mark 1 -j ACCEPT", "-A INPUT -p udp -j CONNMARK --set-mark 1", "-A INPUT -j MARK --set-mark 1", "-A INPUT -m mark --mark 1 -j ACCEPT", "-A INPUT -m connmark --mark 1 -j ACCEPT"), nil},
		{"TPROXY ends", "*mangle\n-A PREROUTING -p tcp --dport 80 -j TPROXY --on-port 3128\n-A PREROUTING -p tcp --dport 80 -j DROP\nCOMMIT\n", []string{"never-matches PREROUTING 2 by [1]"}},
		{"the socket match marks", "*mangle\n-A PREROUTING -m mark --mark 1 -j ACCEPT\n-A PREROUTING -m socket --restore-skmark\n-A PREROUTING -m mark --mark 1 -j ACCEPT\nCOMMIT\n", nil},
		{"labels too", filter("-A INPUT -m connlabel --label 5 -j ACCEPT", "-A INPUT -p udp -m connlabel --label 5 --set", "-A INPUT -m connlabel --label 5 -j ACCEPT"), nil},
		{"marks that nothing changes", "*mangle\n-A PREROUTING -m mark --mark 1 -j ACCEPT\n-A PREROUTING -p tcp -m mark --mark 1 -j TTL --ttl-set 9\nCOMMIT\n", []string{"never-matches PREROUTING 2 by [1]"}},
	} {
		l := load(t, c.rules, c.name)
		fs := Rules(l.pr.Ruleset)
		if got := kinds(fs); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q\n%v", c.name, got, c.want, fs)
		}
		rnd := rand.New(rand.NewPCG(3, 4))
		for i := range fs {
			if fs[i].Kind == NeverMatches {
				l.attack(&fs[i], 60, rnd)
			}
		}
	}
}

// TestAgainstAllPackets: in small worlds, where all packets can be tried, no
// claim is wrong and few are missing.
func TestAgainstAllPackets(t *testing.T) {
	claimed, never := 0, 0
	for seed := range uint64(24) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
		match := func() string {
			return strings.TrimSpace(pick("", "", "-s 10.0.0.0/31", "-s 10.0.0.2/31", "! -s 10.0.0.0/32", "-s 10.0.0.0/30") + " " +
				pick("", "-i eth0", "-i eth+", "! -i eth0") + " " +
				pick("", "", "-p udp", "-p tcp", "-p udp --dport 1:2", "-p tcp --dport 2", "-p tcp ! --dport 2", "-p tcp --dport 0:65535") + " " +
				pick("", "", "-m state --state NEW", "-m conntrack ! --ctstate NEW", "-m state --state ESTABLISHED,INVALID"))
		}
		lines := []string{"-N a", "-N b"}
		for _, ch := range []string{"INPUT", "a", "b"} {
			to := []string{"-j ACCEPT", "-j DROP", "-j RETURN", "-j REJECT", ""}
			if ch == "INPUT" {
				to = append(to, "-j a", "-g a", "-j b", "-j a")
			} else if ch == "a" {
				to = append(to, "-j b", "-g b")
			}
			for range 2 + rnd.IntN(6) {
				lines = append(lines, fmt.Sprintf("-A %s %s %s", ch, match(), pick(to...)))
			}
		}
		l := load(t, filter(lines...), "small")
		x := newLinter(l.pr.Ruleset, tables.Filter)
		m := met{}
		for src := range uint64(5) {
			for in := 1; in < len(x.ifaces); in++ {
				for _, proto := range []uint64{1, 6, 17} {
					for _, port := range []uint64{0, 1, 2, 3, 65535, unreadable} {
						for state := range uint64(5) {
							at := point{dimSrc: {0, 10<<24 + src}, dimDst: {0, 1}, dimIn: {0, uint64(in)}, dimProto: {0, proto}, dimSport: {0, port}, dimDport: {0, port}, dimState: {0, state}, dimFlags: {0, 2}, dimICMP: {0, 8 << 8}}
							if p := x.packet(&at); p != nil {
								l.walk(tables.Filter, hooks.Input, p, m)
							}
						}
					}
				}
			}
		}
		claims := map[*tables.Rule]bool{}
		for _, f := range Rules(l.pr.Ruleset) {
			if f.Kind == NeverMatches {
				claims[f.rule] = true
				if m[f.rule] {
					t.Errorf("seed %d: %s\nbut it matched\n%s", seed, f.String(), strings.Join(lines, "\n"))
				}
			}
		}
		for _, ch := range x.order {
			for i, r := range ch.Rules() {
				if !m[r] && len(x.entry[ch.Name]) > 0 {
					never++
					if claims[r] {
						claimed++
					} else if testing.Verbose() {
						t.Logf("seed %d: not told: %s %d %s\n%s", seed, ch.Name, i+1, r.Save(), strings.Join(lines, "\n"))
					}
				}
			}
		}
	}
	t.Logf("%d of %d rules that never match were told", claimed, never)
	if never < 30 || claimed*100 < never*95 {
		t.Errorf("%d of %d rules that never match were told", claimed, never)
	}
}
