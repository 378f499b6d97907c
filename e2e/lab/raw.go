package lab

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// Raw is a packet socket on a namespace's end of a TUN device: it sends any
// bytes as a frame, and keeps the frames that the router sent there.
type Raw struct {
	ns    *NS
	fd    int
	index int
	mu    sync.Mutex
	got   []gopacket.Packet
}

// Raw opens a packet socket on a device inside.
func (ns *NS) Raw(dev string) *Raw {
	ns.l.T.Helper()
	r := &Raw{ns: ns, fd: -1}
	var err error
	ns.Do(func() {
		var ifi *net.Interface
		if ifi, err = net.InterfaceByName(dev); err != nil {
			return
		}
		r.index = ifi.Index
		if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(swap16(unix.ETH_P_ALL))); err != nil {
			return
		}
		if err = unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: swap16(unix.ETH_P_ALL), Ifindex: r.index}); err != nil {
			return
		}
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		err = unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	})
	if err != nil {
		ns.l.T.Fatalf("packet socket on %s in %s: %v", dev, ns.Name, err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		r.read(stop)
	}()
	ns.l.T.Cleanup(func() {
		close(stop)
		<-stopped
		unix.Close(r.fd)
	})
	return r
}

func swap16(v uint16) uint16 { return v>>8 | v<<8 }

func (r *Raw) read(stop chan struct{}) {
	buf := make([]byte, 1<<17)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(r.fd, buf, 0)
		if errors.Is(err, unix.ENETDOWN) {
			continue // the device went; it may come back
		}
		if err != nil {
			continue
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p := Decode(append([]byte{}, buf[:n]...))
		r.mu.Lock()
		r.got = append(r.got, p)
		r.mu.Unlock()
	}
}

// Decode is a frame without a link header as gopacket sees it.
func Decode(frame []byte) gopacket.Packet {
	first := layers.LayerTypeIPv4
	if len(frame) > 0 && frame[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(frame, first, gopacket.Default)
}

// Send sends a frame to the router.
func (r *Raw) Send(frame []byte) {
	r.ns.l.T.Helper()
	if err := r.TrySend(frame); err != nil {
		r.ns.l.T.Fatalf("sending %d bytes: %v", len(frame), err)
	}
}

// TrySend is Send for frames that the kernel itself may refuse.
func (r *Raw) TrySend(frame []byte) error {
	proto := uint16(unix.ETH_P_IP)
	if len(frame) > 0 && frame[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	for {
		err := unix.Sendto(r.fd, frame, 0, &unix.SockaddrLinklayer{Protocol: swap16(proto), Ifindex: r.index, Halen: 0})
		if err == unix.ENOBUFS { // the device's queue is full
			time.Sleep(time.Millisecond)
			continue
		}
		return err
	}
}

// Frames is what came from the router so far.
func (r *Raw) Frames() []gopacket.Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]gopacket.Packet{}, r.got...)
}

// Find gives the first frame from the router that ok likes, nil if there is none.
func (r *Raw) Find(ok func(gopacket.Packet) bool) gopacket.Packet {
	for _, p := range r.Frames() {
		if ok(p) {
			return p
		}
	}
	return nil
}

// Await waits for a frame from the router.
func (r *Raw) Await(what string, ok func(gopacket.Packet) bool) gopacket.Packet {
	r.ns.l.T.Helper()
	var found gopacket.Packet
	r.ns.l.Eventually(5*time.Second, what, func() bool {
		found = r.Find(ok)
		return found != nil
	})
	return found
}

// Build serializes layers, with lengths and checksums filled in.
func Build(ls ...gopacket.SerializableLayer) []byte {
	for i, l := range ls {
		var network gopacket.NetworkLayer
		for _, n := range ls[:i] {
			if n, ok := n.(gopacket.NetworkLayer); ok {
				network = n
			}
		}
		if s, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok && network != nil {
			s.SetNetworkLayerForChecksum(network)
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err) // a test's own mistake
	}
	return append([]byte{}, b.Bytes()...)
}

// IP4 is an IPv4 header with what tests rarely care about filled in.
func IP4(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: net.ParseIP(src).To4(), DstIP: net.ParseIP(dst).To4()}
}

// IP6 is an IPv6 header with what tests rarely care about filled in.
func IP6(src, dst string, proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
}

// UDP is a UDP datagram in IPv4 or IPv6, by the addresses.
func UDP(src, dst string, sport, dport int, payload string) []byte {
	u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	return Build(network(src, dst, layers.IPProtocolUDP), u, gopacket.Payload(payload))
}

// TCP is a TCP segment with flags of the letters S, A, F, R, P.
func TCP(src, dst string, sport, dport int, flags string, seq, ack uint32) []byte {
	t := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Seq: seq, Ack: ack, Window: 65535}
	for _, f := range flags {
		switch f {
		case 'S':
			t.SYN = true
		case 'A':
			t.ACK = true
		case 'F':
			t.FIN = true
		case 'R':
			t.RST = true
		case 'P':
			t.PSH = true
		}
	}
	return Build(network(src, dst, layers.IPProtocolTCP), t)
}

func network(src, dst string, proto layers.IPProtocol) gopacket.SerializableLayer {
	if net.ParseIP(src).To4() != nil {
		return IP4(src, dst, proto)
	}
	return IP6(src, dst, proto)
}

// Echo is a ping.
func Echo(src, dst string, id, seq uint16) []byte {
	if net.ParseIP(src).To4() != nil {
		return Build(IP4(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: id, Seq: seq}, gopacket.Payload("0123456789abcdef"))
	}
	return Build(IP6(src, dst, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)},
		gopacket.Payload(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, id), seq)), gopacket.Payload("0123456789abcdef"))
}

// ICMPError recognizes an ICMP or ICMPv6 message of a type and code.
func ICMPError(typ, code uint8) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
			return l.TypeCode == layers.CreateICMPv4TypeCode(typ, code)
		}
		l, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		return ok && l.TypeCode == layers.CreateICMPv6TypeCode(typ, code)
	}
}
