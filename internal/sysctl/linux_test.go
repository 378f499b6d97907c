package sysctl

import (
	"slices"
	"testing"
)

func TestLinux(t *testing.T) {
	if !slices.IsSorted(linuxNames()) {
		t.Fatal("linux.txt is not sorted, and the search in it relies on that")
	}
	for _, c := range []struct {
		name, dev string
		ok        bool
	}{
		{"net.ipv4.ip_forward", "", true},
		{"net/ipv4/ip_forward", "", true},
		{"net.ipv4.tcp_congestion_control", "", true},
		{"net.ipv4.conf.all.rp_filter", "all", true},
		{"net.ipv6.conf.lan0.forwarding", "lan0", true},
		{"net.ipv4.conf.eth0.100.rp_filter", "eth0.100", true},
		{"net.ipv4.conf.lan0.rp_filtre", "lan0", false},
		{"net.ipv4.ip_fwd", "", false},
		{"net.ipv4.conf.", "", false},
		{"vm.swappiness", "", true},
	} {
		if dev, ok := Linux(c.name); dev != c.dev || ok != c.ok {
			t.Errorf("Linux(%q) = %q, %v", c.name, dev, ok)
		}
	}
}
