package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

// TestSwap: two sets hold the client, what is in neither is dropped, and they
// change places while the client talks: a swap has no moment without a set. The
// same where the next set is filled with many elements meanwhile.
func TestSwap(t *testing.T) {
	for name, x := range setFamilies {
		for _, typ := range []string{"hash:ip", "hash:net counters", "list:set"} {
			t.Run(name+" "+typ, func(t *testing.T) {
				b := newBed(t, "")
				create := typ + " family " + x.family
				set := func(args string) { t.Helper(); b.r.Must(append([]string{"ipset"}, strings.Fields(args)...)...) }
				if typ == "list:set" { // the rule names a list, and its members are what is swapped
					create = "hash:ip family " + x.family
					set("create all list:set")
				}
				create += " maxelem 200000"
				set("create allowed " + create)
				set("create next " + create)
				set("add allowed " + x.client)
				set("add next " + x.client)
				named := "allowed"
				if typ == "list:set" {
					set("add all allowed")
					named = "all"
				}
				b.r.Must(x.tool, "-A", "FORWARD", "-i", "lan0", "-m", "set", "!", "--match-set", named, "src", "-j", "DROP")
				dropped := func() int { return b.r.Counter(x.tool+"-save", "-j DROP") }
				f := flow(b, x.server)
				f.goesOn("before")

				for i := range 60 { // by the command
					set("swap allowed next")
					f.fine(fmt.Sprintf("swap %d", i))
				}
				f.goesOn("60 swaps")
				// And as fast as it goes.
				many := strings.Repeat("swap allowed next\n", 50_001)
				for i := range 5 {
					b.r.MustInput(many, "ipset", "restore")
					f.goesOn(fmt.Sprintf("thousands of swaps, %d", i))
				}
				if typ == "hash:net counters" {
					for _, n := range []string{"allowed", "next"} {
						if out := b.r.Must("ipset", "list", n); !regexp.MustCompile(`(?m)^` + x.client + `\S* packets [1-9]`).MatchString(out) {
							t.Errorf("the traffic did not pass %s:\n%s", n, out)
						}
					}
				}

				// As people renew long lists: into another set, which then takes the place.
				const size = 100_000
				for round := range 2 {
					b.r.MustInput(long(create, x.client, round, size), "ipset", "restore")
					f.goesOn(fmt.Sprintf("a long list, %d", round))
					if out := b.r.Must("ipset", "-t", "list", "allowed"); !strings.Contains(out, fmt.Sprintf("Number of entries: %d\n", size+1)) {
						t.Errorf("a long list, %d:\n%s", round, out)
					}
				}
				if n := dropped(); n != 0 {
					t.Errorf("%d packets were dropped", n)
				}
				f.end()

				// The rule does drop, by the set that a swap brings.
				set("create empty " + create)
				set("swap allowed empty")
				b.client.Fails("ping", "-n", "-c", "1", "-W", "0.3", x.server)
				if n := dropped(); n != 1 {
					t.Errorf("a ping without its set: %d packets dropped", n)
				}
				set("swap allowed empty")
				b.client.Must("ping", "-n", "-c", "1", "-W", "5", x.server)
			})
		}
	}
}

// long is what ipset restore takes for a set of n elements and the client, made
// as "new" and put in the place of "allowed".
func long(create, client string, round, n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "create new %s\n", create)
	a := netip.MustParseAddr("172.16.0.1").As4()
	six := netip.MustParseAddr("fd00:99::1").As16()
	is6 := strings.Contains(client, ":")
	for i := range n {
		k := i + round*n/2 // lists have half of their elements in common
		if i == n/2 {
			fmt.Fprintf(&b, "add new %s\n", client)
		}
		if is6 {
			six[13], six[14], six[15] = byte(k>>16), byte(k>>8), byte(k)
			fmt.Fprintf(&b, "add new %s\n", netip.AddrFrom16(six))
		} else {
			a[1], a[2], a[3] = 16+byte(k>>16), byte(k>>8), byte(k)
			fmt.Fprintf(&b, "add new %s\n", netip.AddrFrom4(a))
		}
	}
	b.WriteString("swap new allowed\ndestroy new\n")
	return b.String()
}
