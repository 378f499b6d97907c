package bench

import (
	"fmt"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"sluice/packet/packettest"
)

// BenchmarkGVisorForward is what a transit packet would cost in gVisor's own
// stack: forwarding alone, without rules, conntrack or NAT, so in its favour.
func BenchmarkGVisorForward(b *testing.B) {
	const flows = 1000
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{udp.NewProtocol},
	})
	defer s.Close()
	in, out := channel.New(256, 1500, ""), channel.New(256, 1500, "")
	for id, e := range map[tcpip.NICID]*channel.Endpoint{1: in, 2: out} {
		if err := s.CreateNIC(id, e); err != nil {
			b.Fatal(err)
		}
		addr := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4([4]byte{10, byte(100 + id), 0, 1}), PrefixLen: 24,
		}}
		if err := s.AddProtocolAddress(id, addr, stack.AddressProperties{}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.SetNICForwarding(id, ipv4.ProtocolNumber, true); err != nil {
			b.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 2}})
	var frames [][]byte
	for i := range flows {
		f, err := packettest.Frame(fmt.Sprintf("udp 10.1.%d.%d:%d > 9.9.9.%d:53 len=36", i>>8, i&0xff, 1024+i, i%200))
		if err != nil {
			b.Fatal(err)
		}
		frames = append(frames, f)
	}
	forwarded := 0
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frames[i%flows])})
		in.InjectInbound(ipv4.ProtocolNumber, p)
		p.DecRef()
		if q := out.Read(); q != nil {
			forwarded++
			q.DecRef()
		}
	}
	b.StopTimer()
	if forwarded != b.N {
		b.Fatalf("%d of %d packets were forwarded", forwarded, b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps")
}
