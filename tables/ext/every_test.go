package ext

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sluice/packet"
)

// TestEveryExtension: what the real iptables has a library for, sluice knows in
// the same families, but for what docs/differences.md says is not there yet.
func TestEveryExtension(t *testing.T) {
	libs, _ := filepath.Glob("/usr/lib/*/xtables/lib*.so")
	if len(libs) == 0 {
		t.Skip("no libraries of iptables here")
	}
	text, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	_, missing, _ := strings.Cut(string(text), "## Not there yet")
	not := []string{
		"CLUSTERIP", "ULOG", // gone from Linux
		"standard", "NAT", // the verdicts; SNAT, DNAT and their like
	}
	families := map[string][]uint8{"xt": {packet.IPv4, packet.IPv6}, "ipt": {packet.IPv4}, "ip6t": {packet.IPv6}}
	for _, lib := range libs {
		kind, name, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(lib), "lib"), ".so"), "_")
		if !ok || families[kind] == nil || slices.Contains(not, name) {
			continue // arptables, ebtables
		}
		for _, fam := range families[kind] {
			if fam == packet.IPv6 && name == "osf" || strings.Contains(missing, name) {
				continue // osf's library is for IPv4 alone
			}
			if Registry.Match(fam, name) == nil && Registry.Target(fam, name) == nil {
				t.Errorf("family %d has neither a match nor a target %s", fam, name)
			}
		}
	}
}
