package wire

import (
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// gvisorForward lets gVisor's stack forward between two TUN devices, with its
// own NAT (masquerading) and no rules.
func gvisorForward(fds [2]int) error {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{udp.NewProtocol, tcp.NewProtocol},
	})
	for i, addr := range [2][4]byte{{10, 0, 1, 1}, {198, 51, 100, 1}} {
		id := tcpip.NICID(i + 1)
		e, err := fdbased.New(&fdbased.Options{FDs: []int{fds[i]}, MTU: 1500, PacketDispatchMode: fdbased.Readv})
		if err != nil {
			return err
		}
		if err := s.CreateNIC(id, e); err != nil {
			return fmt.Errorf("gVisor: %s", err)
		}
		if err := s.AddProtocolAddress(id, tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(addr), PrefixLen: 24},
		}, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("gVisor: %s", err)
		}
		if _, err := s.SetNICForwarding(id, ipv4.ProtocolNumber, true); err != nil {
			return fmt.Errorf("gVisor: %s", err)
		}
	}
	lan, err := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{10, 0, 0, 0}), tcpip.MaskFrom(string([]byte{255, 0, 0, 0})))
	if err != nil {
		return err
	}
	s.SetRouteTable([]tcpip.Route{{Destination: lan, NIC: 1}, {Destination: header.IPv4EmptySubnet, NIC: 2}})
	accept := &stack.AcceptTarget{NetworkProtocol: header.IPv4ProtocolNumber}
	all := stack.IPHeaderFilter{Dst: tcpip.AddrFrom4([4]byte{}), DstMask: tcpip.AddrFrom4([4]byte{}), Src: tcpip.AddrFrom4([4]byte{}), SrcMask: tcpip.AddrFrom4([4]byte{})}
	t := stack.Table{
		Rules: []stack.Rule{
			{Filter: all, Target: accept}, // PREROUTING
			{Filter: all, Target: accept}, // INPUT
			{Filter: all, Target: accept}, // OUTPUT
			{Filter: all, Target: &stack.MasqueradeTarget{NetworkProtocol: header.IPv4ProtocolNumber}},
			{Filter: all, Target: accept}, // POSTROUTING
			{Filter: all, Target: &stack.ErrorTarget{NetworkProtocol: header.IPv4ProtocolNumber}},
		},
		BuiltinChains: [stack.NumHooks]int{stack.Prerouting: 0, stack.Input: 1, stack.Forward: stack.HookUnset, stack.Output: 2, stack.Postrouting: 3},
		Underflows:    [stack.NumHooks]int{stack.Prerouting: 0, stack.Input: 1, stack.Forward: stack.HookUnset, stack.Output: 2, stack.Postrouting: 4},
	}
	s.IPTables().ReplaceTable(stack.NATID, t, false)
	return nil
}
