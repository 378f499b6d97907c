package router

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// TestOrder holds the stages of each hook and their priorities.
func TestOrder(t *testing.T) {
	var got bytes.Buffer
	PrintOrder(&got)
	const golden = "testdata/order.golden"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got:\n%swant:\n%s", got.String(), want)
	}
}

// rooms says what each room may import of the others (besides internal/sysctl).
var rooms = map[string][]string{
	"packet":                {},
	"packet/frag":           {"packet"},
	"packet/packettext":     {"packet"},
	"hooks":                 {"packet"},
	"conntrack":             {"packet"},
	"nat":                   {"packet/jhash", "packet", "conntrack"},
	"tables":                {"packet", "hooks", "conntrack", "nat", "tables/ipset", "tables/synproxy"},
	"tables/ext":            {"packet", "packet/jhash", "hooks", "conntrack", "nat", "tables", "tables/ipset", "tables/synproxy"},
	"tables/ipset":          {"packet"},
	"tables/synproxy":       {"packet", "hooks", "conntrack"},
	"internal/host":         {},
	"netstack":              {"packet", "internal/host"},
	"netstack/services":     {"packet", "netstack"},
	"netstack/uplink":       {"packet", "netstack"},
	"internal/resolver":     {"packet", "netstack", "netstack/uplink"},
	"internal/proxy":        {"netstack"},
	"internal/iptables":     {"packet", "hooks", "conntrack", "nat", "tables", "tables/ext"},
	"internal/sysctl":       {},
	"router":                {"packet", "packet/frag", "packet/packettext", "hooks", "conntrack", "nat", "tables", "tables/ext", "tables/ipset", "tables/synproxy", "netstack", "netstack/services", "netstack/uplink", "router/nfqueue", "internal/resolver", "internal/proxy", "internal/iptables", "internal/ipset", "internal/host"},
	"internal/conntrackcmd": {"packet", "conntrack"},
	"internal/ipset":        {"packet", "tables", "tables/ipset"},
}

// TestImports: imports point one way.
func TestImports(t *testing.T) {
	for room, may := range rooms {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, "sluice/"+room).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", room, err, out)
		}
		allowed := map[string]bool{"internal/sysctl": true}
		for _, m := range may {
			allowed[m] = true
		}
		for _, imp := range strings.Fields(string(out)) {
			if r, ours := strings.CutPrefix(imp, "sluice/"); ours && !allowed[r] {
				t.Errorf("%s imports %s", room, r)
			}
		}
	}
}
