package nat

import "sluice/conntrack"

// InterfaceGone ends the connections that MASQUERADE bound to an interface that
// goes down or away, and returns how many. Not for the packet path.
func (n *NAT) InterfaceGone(ifindex int) int { return n.table.DestroyIface(ifindex) }

// AddressGone ends the masqueraded connections that have addr, which an interface
// has lost, as their source, and returns how many. Not for the packet path.
func (n *NAT) AddressGone(ifindex int, addr [16]byte) int {
	return n.table.DestroyMasq(func(i int, e *conntrack.Entry) bool {
		return i == ifindex && e.Tuple(conntrack.Reply).Dst == addr
	})
}
