package router

import (
	"net/netip"
	"strings"
	"testing"

	"sluice/netstack"
	"sluice/packet/packettest"
)

func masqueraded() *Config {
	return edge(map[string][]string{
		"filter": {"-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -i lan0 -j ACCEPT"},
		"nat":    {"-A POSTROUTING -o wan0 -j MASQUERADE"},
	})
}

func frame(t testing.TB, desc string) []byte {
	t.Helper()
	f, err := packettest.Frame(desc)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// only is the one packet that left, described.
func only(t *testing.T, out map[string][][]byte, iface string) string {
	t.Helper()
	if len(out) != 1 || len(out[iface]) != 1 {
		t.Fatalf("want one packet on %s, got %v", iface, out)
	}
	return packettest.Describe(out[iface][0])
}

func TestMasqueradeAndBack(t *testing.T) {
	b := newBed(t, masqueraded())
	got := only(t, b.send("lan0", frame(t, "udp 10.0.1.2:5000 > 9.9.9.9:53 ttl=64")), "wan0")
	if !strings.Contains(got, "udp 198.51.100.1:5000 > 9.9.9.9:53") || !strings.Contains(got, "ttl=63") {
		t.Errorf("out: %s", got)
	}
	got = only(t, b.send("wan0", frame(t, "udp 9.9.9.9:53 > 198.51.100.1:5000")), "lan0")
	if !strings.Contains(got, "udp 9.9.9.9:53 > 10.0.1.2:5000") {
		t.Errorf("back: %s", got)
	}
}

// TestTimeExceeded: the error about a connection's first packet is answered from
// the interface that leads back, though the connection is not confirmed.
func TestTimeExceeded(t *testing.T) {
	b := newBed(t, masqueraded())
	got := only(t, b.send("lan0", frame(t, "udp 10.0.1.2:5000 > 9.9.9.9:33434 ttl=1")), "lan0")
	if !strings.Contains(got, "10.0.1.1 > 10.0.1.2") {
		t.Errorf("%s; drops %v", got, b.reasons())
	}
	if n := b.r.ct.Count(); n != 0 {
		t.Errorf("%d connections were confirmed", n)
	}
	if b.r.Status().Conntrack.Count != 0 {
		t.Error("the packet's connection was kept")
	}
}

// TestRememberedRoute: what flows remember of routing is void as soon as routes,
// tunables or the packet's mark change.
func TestRememberedRoute(t *testing.T) {
	cfg := masqueraded()
	cfg.IPTables.NAT.Rules = nil
	b := newBed(t, cfg)
	out := frame(t, "udp 10.0.1.2:5000 > 9.9.9.9:53")
	b.send("lan0", out)
	b.send("wan0", frame(t, "udp 9.9.9.9:53 > 10.0.1.2:5000"))
	for range 3 {
		only(t, b.send("lan0", out), "wan0")
	}
	if len(b.w.flowRoutes) == 0 {
		t.Fatal("nothing is remembered")
	}
	// A route to nowhere.
	black := netstack.RouteSpec{To: netip.MustParsePrefix("9.9.9.9/32"), Type: netstack.RouteBlackhole}
	if err := b.r.fib.Update(func(tx *netstack.Tx) error { return tx.AddRoute(black) }); err != nil {
		t.Fatal(err)
	}
	if got := b.send("lan0", out); len(got) != 0 || b.reasons()["ip.blackhole"] != 1 {
		t.Errorf("over a blackhole route: %v, %v", got, b.reasons())
	}
	if err := b.r.fib.Update(func(tx *netstack.Tx) error { return tx.DelRoute(black) }); err != nil {
		t.Fatal(err)
	}
	only(t, b.send("lan0", out), "wan0")
	// Forwarding off.
	if err := b.r.sysctl.Lookup("net.ipv4.conf.lan0.forwarding").Set("0"); err != nil {
		t.Fatal(err)
	}
	if got := b.send("lan0", out); len(got["wan0"]) != 0 {
		t.Errorf("with forwarding off: %v", got)
	}
}
