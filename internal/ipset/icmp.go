package ipset

import "fmt"

type icmpName struct {
	name     string
	typeCode uint16
}

func tc(typ, code uint16) uint16 { return typ<<8 | code }

// icmpNames are the types and codes that have names; of several names for one,
// the first is printed.
var icmpNames = []icmpName{
	{"echo-reply", tc(0, 0)}, {"pong", tc(0, 0)},
	{"network-unreachable", tc(3, 0)}, {"host-unreachable", tc(3, 1)}, {"protocol-unreachable", tc(3, 2)},
	{"port-unreachable", tc(3, 3)}, {"fragmentation-needed", tc(3, 4)}, {"source-route-failed", tc(3, 5)},
	{"network-unknown", tc(3, 6)}, {"host-unknown", tc(3, 7)}, {"network-prohibited", tc(3, 9)},
	{"host-prohibited", tc(3, 10)}, {"TOS-network-unreachable", tc(3, 11)}, {"TOS-host-unreachable", tc(3, 12)},
	{"communication-prohibited", tc(3, 13)}, {"host-precedence-violation", tc(3, 14)}, {"precedence-cutoff", tc(3, 15)},
	{"source-quench", tc(4, 0)},
	{"network-redirect", tc(5, 0)}, {"host-redirect", tc(5, 1)}, {"TOS-network-redirect", tc(5, 2)}, {"TOS-host-redirect", tc(5, 3)},
	{"echo-request", tc(8, 0)}, {"ping", tc(8, 0)},
	{"router-advertisement", tc(9, 0)}, {"router-solicitation", tc(10, 0)},
	{"ttl-zero-during-transit", tc(11, 0)}, {"ttl-zero-during-reassembly", tc(11, 1)},
	{"ip-header-bad", tc(12, 0)}, {"required-option-missing", tc(12, 1)},
	{"timestamp-request", tc(13, 0)}, {"timestamp-reply", tc(14, 0)},
	{"address-mask-request", tc(17, 0)}, {"address-mask-reply", tc(18, 0)},
}

var icmp6Names = []icmpName{
	{"no-route", tc(1, 0)}, {"communication-prohibited", tc(1, 1)}, {"address-unreachable", tc(1, 3)}, {"port-unreachable", tc(1, 4)},
	{"packet-too-big", tc(2, 0)},
	{"ttl-zero-during-transit", tc(3, 0)}, {"ttl-zero-during-reassembly", tc(3, 1)},
	{"bad-header", tc(4, 0)}, {"unknown-header-type", tc(4, 1)}, {"unknown-option", tc(4, 2)},
	{"echo-request", tc(128, 0)}, {"ping", tc(128, 0)}, {"echo-reply", tc(129, 0)}, {"pong", tc(129, 0)},
	{"router-solicitation", tc(133, 0)}, {"router-advertisement", tc(134, 0)},
	{"neighbour-solicitation", tc(135, 0)}, {"neigbour-solicitation", tc(135, 0)},
	{"neighbour-advertisement", tc(136, 0)}, {"neigbour-advertisement", tc(136, 0)},
	{"redirect", tc(137, 0)},
}

func icmpText(table []icmpName, port uint16) string {
	for _, n := range table {
		if n.typeCode == port {
			return n.name
		}
	}
	return fmt.Sprintf("%d/%d", port>>8, port&0xff)
}
