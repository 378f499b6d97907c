package iptables

import (
	"os"
	"path/filepath"
	"testing"

	"sluice/packet"
)

func TestNetworks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "networks")
	text := "# names\ndefault\t0.0.0.0\nloopback 127.0.0.0 lo-net # an alias\nbroken\nbad 1.2.3.4.5\nlink-local 169.254\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	found := map[string][16]byte{}
	for _, n := range networks(path) {
		for _, name := range n.names {
			found[name] = n.addr
		}
	}
	want := map[string][16]byte{"default": {}, "loopback": {127}, "lo-net": {127}, "link-local": {169, 254}}
	if len(found) != len(want) {
		t.Errorf("found %v", found)
	}
	for name, addr := range want {
		if got, ok := found[name]; !ok || got != addr {
			t.Errorf("%s is %v, %v", name, got, ok)
		}
	}
	if networks(path+".none") != nil {
		t.Error("networks of a file that is not there")
	}
}

// countingNames counts what it is asked.
type countingNames struct {
	fixedNames
	asked *int
}

func (c countingNames) Name(uint8, [16]byte) string {
	*c.asked++
	return "name"
}

func TestNamesAreAskedOnce(t *testing.T) {
	asked := 0
	x := &tool{fam: packet.IPv4}
	x.Resolver = countingNames{asked: &asked}
	for range 3 {
		for i := range byte(4) {
			if got := x.name(packet.IPv4, [16]byte{10, 0, 0, i}); got != "name" {
				t.Errorf("got %q", got)
			}
		}
	}
	if asked != 4 {
		t.Errorf("asked %d times for 4 addresses", asked)
	}
}
