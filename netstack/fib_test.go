package netstack

import (
	"fmt"
	"math/rand"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/internal/sysctl"
	"sluice/packet"
)

func testFIB(t testing.TB, names ...string) (*FIB, *sysctl.Set) {
	t.Helper()
	set := sysctl.NewSet()
	f := NewFIB(set)
	update(t, f, func(tx *Tx) error {
		for i, n := range names {
			if err := tx.AddIface(packet.NewIface(i+2, n, 1500)); err != nil {
				return err
			}
			if err := tx.AddAddr(i+2, netip.MustParsePrefix(fmt.Sprintf("10.0.%d.1/24", i))); err != nil {
				return err
			}
			if err := tx.AddAddr(i+2, netip.MustParsePrefix(fmt.Sprintf("fd00:%d::1/64", i))); err != nil {
				return err
			}
		}
		return nil
	})
	return f, set
}

func update(t testing.TB, f *FIB, edit func(*Tx) error) {
	t.Helper()
	if err := f.Update(edit); err != nil {
		t.Fatal(err)
	}
}

func query(dst string) *Query {
	a := netip.MustParseAddr(dst)
	return &Query{Family: familyOf(a), Dst: addr16(a)}
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestUpdateIsWholeOrNothing(t *testing.T) {
	f, set := testFIB(t, "lan0")
	before := f.Load()
	err := f.Update(func(tx *Tx) error {
		if err := tx.AddRoute(RouteSpec{To: mustPrefix("1.0.0.0/8"), Via: netip.MustParseAddr("10.0.0.2")}); err != nil {
			return err
		}
		if err := tx.AddIface(packet.NewIface(9, "wan0", 1500)); err != nil {
			return err
		}
		return tx.AddRoute(RouteSpec{To: mustPrefix("2.0.0.0/8"), Via: netip.MustParseAddr("99.0.0.2")})
	})
	if err != errGateway {
		t.Fatal(err)
	}
	if f.Load() != before {
		t.Error("a failed update was published")
	}
	if r, ok := f.Lookup(query("1.2.3.4")); ok {
		t.Errorf("a failed update's route is there: %+v", r)
	}
	if set.Lookup("net.ipv4.conf.wan0.rp_filter") != nil {
		t.Error("a failed update's tunables are there")
	}
	if set.Lookup("net.ipv4.conf.lan0.rp_filter") == nil {
		t.Error("lan0's tunables went")
	}
}

func TestSnapshotDoesNotChange(t *testing.T) {
	f, _ := testFIB(t, "lan0", "wan0")
	old := f.Load()
	for i := range 3 * copiedAt {
		update(t, f, func(tx *Tx) error {
			return tx.AddRoute(RouteSpec{To: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 0}), 16), Dev: "wan0"})
		})
	}
	update(t, f, func(tx *Tx) error { // one transaction, in place after a copy
		for i := range 3 * copiedAt {
			if err := tx.AddRoute(RouteSpec{To: netip.PrefixFrom(netip.AddrFrom4([4]byte{21, byte(i), 0, 0}), 16), Dev: "wan0"}); err != nil {
				return err
			}
			if err := tx.DelRoute(RouteSpec{To: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 0}), 16)}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, a := range []string{"20.5.0.1", "21.5.0.1"} {
		if _, ok := old.Lookup(query(a)); ok {
			t.Errorf("%s came into an old snapshot", a)
		}
		if _, ok := f.Lookup(query(a)); ok != (a == "21.5.0.1") {
			t.Errorf("%s: %v", a, ok)
		}
	}
}

func TestMetricsAndDeletion(t *testing.T) {
	f, _ := testFIB(t, "lan0", "wan0")
	to := mustPrefix("0.0.0.0/0")
	via := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.0.%d.9", i)) }
	update(t, f, func(tx *Tx) error { return tx.AddRoute(RouteSpec{To: to, Via: via(0), Metric: 20}) })
	update(t, f, func(tx *Tx) error { return tx.AddRoute(RouteSpec{To: to, Via: via(1), Metric: 10}) })
	if err := f.Update(func(tx *Tx) error { return tx.AddRoute(RouteSpec{To: to, Via: via(0), Metric: 10}) }); err != unix.EEXIST {
		t.Errorf("the same metric twice: %v", err)
	}
	want := func(dev string) {
		t.Helper()
		r, ok := f.Lookup(query("8.8.8.8"))
		if dev == "" && ok || dev != "" && (!ok || r.Dev.Name != dev || !r.Gateway) {
			t.Errorf("want %q, got %+v", dev, r)
		}
	}
	want("wan0")
	update(t, f, func(tx *Tx) error { return tx.DelRoute(RouteSpec{To: to, Metric: 10}) })
	want("lan0")
	update(t, f, func(tx *Tx) error { return tx.ReplaceRoute(RouteSpec{To: to, Via: via(1), Metric: 20}) })
	want("wan0")
	update(t, f, func(tx *Tx) error { return tx.RemoveIface(3) })
	want("")
	if err := f.Update(func(tx *Tx) error { return tx.DelRoute(RouteSpec{To: to}) }); err != unix.ESRCH {
		t.Errorf("deleting what is not there: %v", err)
	}
	if r, ok := f.Lookup(query("10.0.1.9")); ok {
		t.Errorf("a connected route outlived its interface: %+v", r)
	}
	if f.Load().IfaceByName("wan0") != nil || f.Load().Iface(3) != nil {
		t.Error("the interface is there")
	}
}

func TestResetKeepsTunables(t *testing.T) {
	f, set := testFIB(t, "lan0", "wan0")
	for _, n := range []string{"lan0", "wan0"} {
		if err := set.Lookup("net.ipv4.conf." + n + ".rp_filter").Set("1"); err != nil {
			t.Fatal(err)
		}
	}
	update(t, f, func(tx *Tx) error {
		tx.Reset()
		return tx.AddIface(packet.NewIface(7, "lan0", 1500))
	})
	s := f.Load()
	if got := s.Conf(s.IfaceByName("lan0")).V4(RPFilter); got != 1 {
		t.Errorf("lan0's rp_filter: %d", got)
	}
	if set.Lookup("net.ipv4.conf.wan0.rp_filter") != nil {
		t.Error("the tunables of an interface that went are there")
	}
	if !s.IsLocal(packet.IPv4, [16]byte{127, 1, 2, 3}) {
		t.Error("127.0.0.0/8 is not local")
	}
}

func TestRuleOrder(t *testing.T) {
	f, _ := testFIB(t, "lan0")
	update(t, f, func(tx *Tx) error {
		for range 2 {
			if err := tx.AddRule(Rule{Family: packet.IPv4, Auto: true, IIF: "lan0", Table: 7}); err != nil {
				return err
			}
		}
		return nil
	})
	var got []uint32
	for _, r := range f.Load().Rules(packet.IPv4) {
		got = append(got, r.Priority)
	}
	if want := "[0 32764 32765 32766 32767]"; fmt.Sprint(got) != want {
		t.Errorf("priorities %v, want %v", got, want)
	}
	if n := len(f.Load().Rules(packet.IPv6)); n != 2 {
		t.Errorf("%d IPv6 rules", n)
	}
	update(t, f, func(tx *Tx) error { return tx.DelRule(Rule{Family: packet.IPv4, Auto: true, IIF: "lan0"}) })
	update(t, f, func(tx *Tx) error { return tx.DelRule(Rule{Family: packet.IPv4, Priority: 32765}) })
	if err := f.Update(func(tx *Tx) error { return tx.DelRule(Rule{Family: packet.IPv4, Priority: 5}) }); err != unix.ENOENT {
		t.Errorf("deleting what is not there: %v", err)
	}
	if n := len(f.Load().Rules(packet.IPv4)); n != 3 {
		t.Errorf("%d IPv4 rules left", n)
	}
	for _, bad := range []Rule{
		{Family: 5},
		{Family: packet.IPv4, From: mustPrefix("fd00::/8")},
		{Family: packet.IPv4, Action: RouteLocal},
		{Family: packet.IPv4, Action: RouteBlackhole, Table: 5},
	} {
		if f.Update(func(tx *Tx) error { return tx.AddRule(bad) }) == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestAddrTypes(t *testing.T) {
	f, _ := testFIB(t, "lan0", "wan0")
	s := f.Load()
	lan, wan := s.IfaceByName("lan0"), s.IfaceByName("wan0")
	for _, c := range []struct {
		a    string
		dev  *packet.Iface
		want RouteType
	}{
		{"10.0.0.1", nil, RouteLocal}, {"10.0.0.1", lan, RouteLocal}, {"10.0.0.1", wan, RouteUnicast},
		{"10.0.0.2", nil, RouteUnicast}, {"10.0.0.255", nil, RouteBroadcast}, {"255.255.255.255", wan, RouteBroadcast},
		{"0.0.0.0", nil, RouteBroadcast}, {"224.0.0.5", nil, RouteMulticast}, {"127.3.3.3", nil, RouteLocal}, {"8.8.8.8", nil, RouteUnicast},
		{"fd00:0::1", nil, RouteLocal}, {"fd00:0::1", wan, RouteUnreachable}, {"fd00:0::2", nil, RouteUnicast}, {"fd00:0::2", wan, RouteUnreachable},
		{"fd00:0::", nil, RouteAnycast}, {"ff02::1", nil, RouteMulticast}, {"2001:db8::1", nil, RouteUnreachable}, {"::1", nil, RouteLocal},
	} {
		a := netip.MustParseAddr(c.a)
		if got := s.AddrType(familyOf(a), addr16(a), c.dev); got != c.want {
			t.Errorf("%s on %v: %v, want %v", c.a, c.dev, got, c.want)
		}
	}
	if !s.IsBroadcast(addr16(netip.MustParseAddr("10.0.1.255"))) || s.IsBroadcast(addr16(netip.MustParseAddr("10.0.1.254"))) {
		t.Error("IsBroadcast")
	}
}

func TestSourceFor(t *testing.T) {
	f, _ := testFIB(t, "lan0", "wan0")
	update(t, f, func(tx *Tx) error {
		if err := tx.AddAddr(2, mustPrefix("192.0.2.1/24")); err != nil {
			return err
		}
		return tx.AddIface(packet.NewIface(4, "bare0", 1500))
	})
	s := f.Load()
	for _, c := range []struct{ dev, to, want string }{
		{"lan0", "10.0.0.77", "10.0.0.1"}, {"lan0", "192.0.2.9", "192.0.2.1"}, {"lan0", "8.8.8.8", "10.0.0.1"}, {"lan0", "0.0.0.0", "10.0.0.1"},
		{"wan0", "8.8.8.8", "10.0.1.1"}, {"bare0", "8.8.8.8", "10.0.0.1"},
		{"wan0", "2001:db8::1", "fd00:1::1"}, {"wan0", "fd00::5", "fd00:1::1"}, {"wan0", "fe80::9", linkLocal("wan0").String()},
		{"bare0", "2001:db8::1", "fd00::1"}, {"bare0", "ff02::1", linkLocal("bare0").String()},
	} {
		to := netip.MustParseAddr(c.to)
		got, ok := s.SourceFor(familyOf(to), s.IfaceByName(c.dev), addr16(to))
		if !ok || Addr(familyOf(to), got) != netip.MustParseAddr(c.want) {
			t.Errorf("%s to %s: %v, want %s", c.dev, c.to, Addr(familyOf(to), got), c.want)
		}
	}
}

func frame4(src, dst string) *packet.Packet {
	p := packet.New()
	b := make([]byte, 28)
	b[0], b[3], b[8], b[9] = 0x45, 28, 64, 17
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	p.SetBytes(b)
	p.Family = packet.IPv4
	return p
}

func frame6(src, dst string) *packet.Packet {
	p := packet.New()
	b := make([]byte, 48)
	b[0], b[5], b[6], b[7] = 0x60, 8, 17, 64
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	p.SetBytes(b)
	p.Family = packet.IPv6
	return p
}

func TestInputReasons(t *testing.T) {
	f, set := testFIB(t, "lan0", "wan0")
	update(t, f, func(tx *Tx) error {
		return tx.AddRoute(RouteSpec{To: mustPrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.1.2")})
	})
	type row struct {
		src, dst string
		reason   packet.Reason
		typ      RouteType
	}
	check := func(what string, rows []row) {
		t.Helper()
		s := f.Load()
		for _, c := range rows {
			p := frame4
			if netip.MustParseAddr(c.src).Is6() {
				p = frame6
			}
			pk := p(c.src, c.dst)
			pk.In = s.IfaceByName("lan0")
			var r Route
			if reason := s.Input(pk, &r); reason != c.reason || reason == 0 && r.Type != c.typ {
				t.Errorf("%s: %s > %s: %v %v, want %v %v", what, c.src, c.dst, reason, r.Type, c.reason, c.typ)
			}
		}
	}
	check("as it comes", []row{
		{"10.0.0.5", "8.8.8.8", 0, RouteUnicast},
		{"10.0.0.5", "10.0.0.1", 0, RouteLocal},
		{"10.0.0.5", "10.0.1.1", 0, RouteLocal},
		{"10.0.0.5", "10.0.0.255", 0, RouteBroadcast},
		{"10.0.0.5", "255.255.255.255", 0, RouteBroadcast},
		{"0.0.0.0", "255.255.255.255", 0, RouteBroadcast},
		{"10.0.0.5", "224.0.0.1", 0, RouteMulticast},
		{"224.0.0.9", "8.8.8.8", ReasonMartianSource, 0},
		{"255.255.255.255", "8.8.8.8", ReasonMartianSource, 0},
		{"127.0.0.1", "8.8.8.8", ReasonMartianSource, 0},
		{"0.0.0.0", "8.8.8.8", ReasonMartianSource, 0},
		{"10.0.0.1", "8.8.8.8", ReasonMartianSource, 0},
		{"10.0.0.5", "127.0.0.1", ReasonMartianDestination, 0},
		{"10.0.0.5", "0.0.0.0", ReasonMartianDestination, 0},
		{"10.0.1.7", "8.8.8.8", 0, RouteUnicast}, // no rp_filter
		{"fd00::5", "fd00:1::9", 0, RouteUnicast},
		{"fd00::5", "fd00:1::1", 0, RouteLocal},
		{"fd00::5", "2001:db8::1", 0, RouteNone},
		{"fd00::5", "ff02::1", 0, RouteMulticast},
		{"fe80::5", "fe80::6", 0, RouteUnicast},
		{"::ffff:1.2.3.4", "fd00:1::9", 0, RouteUnicast}, // Linux does not mind
		{"::", "fd00:1::9", 0, RouteUnicast},
		{"fd00::1", "fd00:1::9", 0, RouteUnicast},
		{"::1", "fd00:1::9", ReasonMartianSource6, 0},
		{"ff02::5", "fd00:1::9", ReasonMartianSource6, 0},
		{"fd00::5", "::1", ReasonMartianDst6, 0},
		{"fd00::5", "ff01::1", ReasonMartianDst6, 0},
	})
	sysctl := func(name, value string) {
		t.Helper()
		if err := set.Lookup(name).Set(value); err != nil {
			t.Fatal(err)
		}
	}
	sysctl("net.ipv4.conf.lan0.rp_filter", "1")
	check("strict", []row{{"10.0.1.7", "8.8.8.8", ReasonRPFilter, 0}, {"10.0.0.7", "8.8.8.8", 0, RouteUnicast}, {"9.9.9.9", "10.0.0.1", ReasonRPFilter, 0}})
	sysctl("net.ipv4.conf.all.rp_filter", "2")
	check("loose", []row{{"10.0.1.7", "8.8.8.8", 0, RouteUnicast}, {"10.0.0.1", "8.8.8.8", ReasonMartianSource, 0}})
	sysctl("net.ipv4.conf.all.rp_filter", "0")
	sysctl("net.ipv4.conf.lan0.rp_filter", "0")
	sysctl("net.ipv4.conf.lan0.accept_local", "1")
	check("accept_local", []row{{"10.0.0.1", "8.8.8.8", 0, RouteUnicast}})
	sysctl("net.ipv4.conf.lan0.route_localnet", "1")
	check("route_localnet", []row{{"10.0.0.5", "127.0.0.1", 0, RouteLocal}})
	sysctl("net.ipv6.conf.lan0.disable_ipv6", "1")
	check("disable_ipv6", []row{{"fd00::5", "fd00:1::9", ReasonDisabled6, 0}, {"fd00::5", "fd00::1", ReasonDisabled6, 0}})
	sysctl("net.ipv4.ip_forward", "0")
	check("no forwarding", []row{{"10.0.0.5", "8.8.8.8", ReasonForwardingOff, 0}, {"10.0.0.5", "10.0.0.1", 0, RouteLocal}})
	if f.Load().Forwarding(f.Load().IfaceByName("lan0"), packet.IPv4) || !f.Load().Forwarding(f.Load().IfaceByName("lan0"), packet.IPv6) {
		t.Error("Forwarding")
	}
}

func TestMulticastMember(t *testing.T) {
	f, _ := testFIB(t, "lan0", "wan0")
	s := f.Load()
	for dst, want := range map[string]bool{
		"224.0.0.1": true, "224.0.0.2": false, "239.1.1.1": false,
		"ff02::1": true, "ff01::1": true, "ff02::2": true, "ff05::2": true, "ff05::1": false, "ff02::9": false,
		"ff02::1:ff00:1": false, "ff02::1:ff00:2": false,
	} {
		p := frame4
		src := "10.0.0.5"
		if netip.MustParseAddr(dst).Is6() {
			p, src = frame6, "fd00::5"
		}
		pk := p(src, dst)
		pk.In = s.IfaceByName("lan0")
		if got := s.MulticastMember(pk); got != want {
			t.Errorf("%s: %v", dst, got)
		}
	}
}

func TestRedirects(t *testing.T) {
	f, set := testFIB(t, "lan0", "wan0")
	update(t, f, func(tx *Tx) error {
		return tx.AddRoute(RouteSpec{To: mustPrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.2")})
	})
	s := f.Load()
	ask := func(src string) bool {
		p := frame4(src, "8.8.8.8")
		p.In, p.Out = s.IfaceByName("lan0"), s.IfaceByName("lan0")
		p.Route.NextHop = addr16(netip.MustParseAddr("10.0.0.2"))
		return s.SendRedirects(p)
	}
	if !ask("10.0.0.5") {
		t.Error("a neighbour is not told")
	}
	if ask("10.0.1.5") || ask("9.9.9.9") {
		t.Error("a sender from afar is told")
	}
	for _, n := range []string{"all", "lan0"} {
		set.Lookup("net.ipv4.conf." + n + ".send_redirects").Set("0")
	}
	if ask("10.0.0.5") {
		t.Error("told in spite of send_redirects")
	}
}

func TestConfFollowsLinux(t *testing.T) {
	set := sysctl.NewSet()
	f := NewFIB(set)
	get := func(n string) int64 { return set.Lookup(n).Load() }
	put := func(n, v string) {
		t.Helper()
		if err := set.Lookup(n).Set(v); err != nil {
			t.Fatal(err)
		}
	}
	put("net.ipv4.conf.default.rp_filter", "2")
	update(t, f, func(tx *Tx) error { return tx.AddIface(packet.NewIface(2, "a0", 1500)) })
	if get("net.ipv4.conf.a0.rp_filter") != 2 {
		t.Error("default does not reach a new interface")
	}
	put("net.ipv4.conf.default.rp_filter", "1")
	if get("net.ipv4.conf.a0.rp_filter") != 1 {
		t.Error("default does not reach an interface without an address")
	}
	update(t, f, func(tx *Tx) error { return tx.AddAddr(2, mustPrefix("10.0.0.1/24")) })
	put("net.ipv4.conf.default.rp_filter", "0")
	if get("net.ipv4.conf.a0.rp_filter") != 1 {
		t.Error("default reaches an interface with an address")
	}
	c := f.Conf(f.Load().Iface(2))
	put("net.ipv4.conf.all.rp_filter", "2")
	if c.V4(RPFilter) != 2 {
		t.Error("rp_filter is not the larger of all and the interface")
	}
	put("net.ipv4.conf.a0.send_redirects", "0")
	if c.V4(SendRedirects) != 1 {
		t.Error("send_redirects: all does not count")
	}
	put("net.ipv4.conf.all.send_redirects", "0")
	if c.V4(SendRedirects) != 0 {
		t.Error("send_redirects stays on")
	}
	if c.V4(AcceptSourceRoute) != 0 {
		t.Error("accept_source_route without all")
	}
	put("net/ipv4/conf/all/accept_source_route", "1")
	if c.V4(AcceptSourceRoute) != 1 {
		t.Error("accept_source_route with all")
	}
	put("net.ipv4.ip_forward", "0")
	if get("net.ipv4.conf.all.forwarding") != 0 || get("net.ipv4.conf.a0.forwarding") != 0 || get("net.ipv4.conf.default.forwarding") != 0 || c.V4(Forwarding) != 0 {
		t.Error("ip_forward is not passed on")
	}
	if get("net.ipv4.conf.all.accept_redirects") != 1 {
		t.Error("a host accepts redirects")
	}
	put("net.ipv4.conf.a0.forwarding", "1")
	if get("net.ipv4.ip_forward") != 0 || c.V4(Forwarding) != 1 {
		t.Error("an interface's forwarding is its own")
	}
	put("net.ipv4.conf.all.forwarding", "1")
	if get("net.ipv4.ip_forward") != 1 || get("net.ipv4.conf.all.accept_redirects") != 0 {
		t.Error("conf.all.forwarding is not ip_forward")
	}
	put("net.ipv6.conf.all.forwarding", "0")
	if c.V6(V6Forwarding) != 0 || f.Load().Forwarding(f.Load().Iface(2), packet.IPv6) {
		t.Error("IPv6 forwarding is not passed on")
	}
	put("net.ipv6.conf.a0.force_forwarding", "1")
	if !f.Load().Forwarding(f.Load().Iface(2), packet.IPv6) {
		t.Error("force_forwarding")
	}
	if err := set.Lookup("net.ipv4.conf.all.rp_filter").Set("3"); err == nil {
		t.Error("rp_filter 3 was accepted")
	}
}

// TestLookupsWhileChanging is for the race detector.
func TestLookupsWhileChanging(t *testing.T) {
	f, set := testFIB(t, "lan0", "wan0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := frame4("10.0.0.5", "20.0.0.1")
			var r Route
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := f.Load()
				p.In = s.Iface(2)
				s.Input(p, &r)
				s.SourceFor(packet.IPv4, s.Iface(3), [16]byte{8, 8, 8, 8})
			}
		}()
	}
	for i := range 250 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 0}), 16)
		update(t, f, func(tx *Tx) error { return tx.AddRoute(RouteSpec{To: p, Dev: "wan0"}) })
		set.Lookup("net.ipv4.conf.lan0.rp_filter").Set(fmt.Sprint(i % 3))
		if i%2 == 0 {
			update(t, f, func(tx *Tx) error { return tx.DelRoute(RouteSpec{To: p}) })
		}
	}
	close(stop)
	wg.Wait()
}

func randPrefixes(n int) []netip.Prefix {
	r := rand.New(rand.NewSource(7))
	seen := map[netip.Prefix]bool{}
	out := make([]netip.Prefix, 0, n)
	// Lengths as in a full Internet table: most are /24, then /22 to /16.
	lens := []int{24, 24, 24, 24, 24, 24, 22, 23, 20, 21, 19, 16}
	for len(out) < n {
		a := netip.AddrFrom4([4]byte{byte(11 + r.Intn(200)), byte(r.Intn(256)), byte(r.Intn(256)), 0})
		p := netip.PrefixFrom(a, lens[r.Intn(len(lens))]).Masked()
		if a.As4()[0] != 127 && !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

func bigFIB(t testing.TB, n int) *FIB {
	f, _ := testFIB(t, "lan0", "wan0")
	list := randPrefixes(n)
	update(t, f, func(tx *Tx) error {
		for i, p := range list {
			if err := tx.AddRoute(RouteSpec{To: p, Via: netip.AddrFrom4([4]byte{10, 0, 1, byte(2 + i%8)})}); err != nil {
				return err
			}
		}
		return nil
	})
	return f
}

func TestMillionRoutes(t *testing.T) {
	if testing.Short() {
		t.Skip("a million routes")
	}
	var before, after runtime.MemStats
	list := randPrefixes(1_000_000)
	runtime.GC()
	runtime.ReadMemStats(&before)
	f := bigFIB(t, len(list))
	runtime.GC()
	runtime.ReadMemStats(&after)
	perRoute := float64(after.HeapAlloc-before.HeapAlloc) / float64(len(list))
	t.Logf("%.0f bytes a route", perRoute)
	if perRoute > 250 {
		t.Errorf("%.0f bytes a route", perRoute)
	}
	s := f.Load()
	for _, p := range list[:1000] {
		r, ok := s.Lookup(&Query{Family: packet.IPv4, Dst: addr16(p.Addr())})
		if !ok || !r.Gateway || r.Dev.Name != "wan0" {
			t.Fatalf("%s: %+v", p, r)
		}
	}
	// One more costs what one costs.
	n := testing.AllocsPerRun(10, func() {
		update(t, f, func(tx *Tx) error {
			return tx.ReplaceRoute(RouteSpec{To: mustPrefix("9.9.9.0/24"), Via: netip.MustParseAddr("10.0.1.2")})
		})
	})
	if n > 200 {
		t.Errorf("one route among a million: %v allocations", n)
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	f, set := testFIB(t, "lan0", "wan0")
	set.Lookup("net.ipv4.conf.all.rp_filter").Set("1")
	update(t, f, func(tx *Tx) error {
		if err := tx.AddRule(Rule{Family: packet.IPv4, Priority: 5, From: mustPrefix("10.0.0.0/8"), Mark: 1, Mask: 1, Table: 100}); err != nil {
			return err
		}
		if err := tx.AddRoute(RouteSpec{To: mustPrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.1.2"), Table: 100}); err != nil {
			return err
		}
		return tx.AddRoute(RouteSpec{To: mustPrefix("::/0"), Via: netip.MustParseAddr("fd00:1::2")})
	})
	p4, p6 := frame4("10.0.0.5", "8.8.8.8"), frame6("fd00::5", "2001:db8::1")
	p4.Mark = 1
	bound := &Query{Family: packet.IPv4, Dst: [16]byte{10, 0, 1, 9}, Out: f.Load().Iface(3)}
	var r Route
	if n := testing.AllocsPerRun(100, func() {
		s := f.Load()
		p4.In, p6.In = s.Iface(2), s.Iface(2)
		if s.Input(p4, &r) != 0 || r.Dev.Name != "wan0" || s.Input(p6, &r) != 0 || r.Dev.Name != "wan0" {
			t.Fatalf("%+v", r)
		}
		s.Output(p4, &r)
		s.Back(p4, &r)
		s.Lookup(bound)
		s.ReversePath(p4, false, true, false)
		s.ReversePath(p6, false, true, false)
		s.AddrType(packet.IPv6, [16]byte{0xfd, 15: 1}, nil)
		s.SourceFor(packet.IPv4, s.Iface(3), [16]byte{8, 8, 8, 8})
		s.SourceFor(packet.IPv6, s.Iface(3), [16]byte{0x20, 1})
		s.ValidateSource(p4, p4.In)
		s.MulticastMember(p6)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkInput(b *testing.B) {
	for _, n := range []int{10, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f := bigFIB(b, n)
			r := rand.New(rand.NewSource(3))
			dsts := make([][4]byte, 1<<16)
			for i := range dsts {
				dsts[i] = [4]byte{byte(11 + r.Intn(100)), byte(r.Intn(256)), byte(r.Intn(256)), byte(r.Intn(256))}
			}
			p := frame4("10.0.0.5", "8.8.8.8")
			s := f.Load()
			p.In = s.Iface(2)
			var rt Route
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				copy(p.Bytes()[16:], dsts[i&(len(dsts)-1)][:])
				s.Input(p, &rt)
				i++
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	f := bigFIB(b, 1_000_000)
	s := f.Load()
	q := &Query{Family: packet.IPv4}
	x := uint32(12345)
	b.ReportAllocs()
	for b.Loop() {
		x = x*1664525 + 1013904223
		q.Dst = [16]byte{byte(11 + x>>24%100), byte(x >> 16), byte(x >> 8), 9}
		s.Lookup(q)
	}
}

func BenchmarkLoadMillionRoutes(b *testing.B) {
	list := randPrefixes(1_000_000)
	for b.Loop() {
		f, _ := testFIB(b, "lan0", "wan0")
		update(b, f, func(tx *Tx) error {
			for i, p := range list {
				if err := tx.AddRoute(RouteSpec{To: p, Via: netip.AddrFrom4([4]byte{10, 0, 1, byte(2 + i%8)})}); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func BenchmarkOneRouteAmongAMillion(b *testing.B) {
	f := bigFIB(b, 1_000_000)
	b.ReportAllocs()
	for b.Loop() {
		update(b, f, func(tx *Tx) error {
			return tx.ReplaceRoute(RouteSpec{To: mustPrefix("9.9.9.0/24"), Via: netip.MustParseAddr("10.0.1.2")})
		})
	}
}
