package sysctl

import (
	_ "embed"
	"slices"
	"strings"
	"sync"
)

// linux.txt has the names that a Linux 6.18 offers and some that older ones did, one a line and sorted, with
// * for the interface in net.ipv4.conf.* and its kin.
//
//go:embed linux.txt
var linuxText string

var linuxNames = sync.OnceValue(func() []string { return strings.Fields(linuxText) })

// Linux reports whether the kernel has a tunable of this name, whether or not
// it means anything here. An interface's name in it is returned as dev.
func Linux(name string) (dev string, ok bool) {
	generic, dev := splitDev(strings.ReplaceAll(name, "/", "."))
	_, ok = slices.BinarySearch(linuxNames(), generic)
	return dev, ok
}

// Linux reports whether the kernel has a tunable of this name, so that setting
// one that is not in s deserves a warning rather than an error.
func (s *Set) Linux(name string) bool {
	_, ok := Linux(name)
	return ok
}

// splitDev takes the interface out of net.ipv4.conf.DEV.x; DEV may have dots itself.
func splitDev(name string) (generic, dev string) {
	for _, p := range []string{"net.ipv4.conf.", "net.ipv6.conf.", "net.ipv4.neigh.", "net.ipv6.neigh."} {
		if rest, found := strings.CutPrefix(name, p); found {
			if i := strings.LastIndexByte(rest, '.'); i > 0 {
				return p + "*" + rest[i:], rest[:i]
			}
		}
	}
	return name, ""
}
