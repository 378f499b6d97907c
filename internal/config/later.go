package config

import (
	"strings"
)

// elsewhere has the keys that a reader of other routers' configurations, or of
// plans for this one, may try here, and what to write instead. An element of a
// list is "*".
var elsewhere = map[string]string{
	"iptables.policy":     `policies belong to a table: [iptables.filter] policy = { … }`,
	"iptables.rules":      `rules belong to a table: [iptables.filter] rules = [ … ]`,
	"ip6tables.policy":    `policies belong to a table: [ip6tables.filter] policy = { … }`,
	"ip6tables.rules":     `rules belong to a table: [ip6tables.filter] rules = [ … ]`,
	"interfaces":          `write [[interface]], once for each`,
	"routes":              `write [[route]], once for each`,
	"rules":               `policy routing is [[rule]], once for each; packet rules go into [iptables.TABLE]`,
	"services":            `write [[service]], once for each`,
	"interface.*.address": `write addresses = ["…"]`,
	"interface.*.netns":   `the kernel's end has the namespace: write it under [interface.host]`,
	"interface.*.routes":  `routes of the kernel's end go under [interface.host], the router's own are [[route]]`,
	"interface.*.gateway": `write a [[route]] with to = "default" and via = the gateway`,
}

// notHere is what to do instead of the key n; "" if the key is simply unknown.
func notHere(n node) string {
	parts := strings.Split(n.path, "\x1f")
	for i, p := range parts {
		if p != "" && p[0] >= '0' && p[0] <= '9' {
			parts[i] = "*"
		}
	}
	return elsewhere[strings.Join(parts, ".")]
}
