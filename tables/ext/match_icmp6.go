package ext

import (
	"sluice/packet"
	"sluice/tables"
)

var matchICMP6 = func() *tables.Match {
	m := icmpMatch("icmp6", "icmpv6-type", "ipv6-icmp", tables.V6, packet.ProtoICMPv6, icmpType{"ICMPv6", icmpNames6})
	m.Aliases = []string{"icmpv6", "ipv6-icmp"}
	return m
}()
