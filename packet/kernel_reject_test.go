//go:build linux

package packet_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"sluice/packet"
	"sluice/packet/packettest"
)

// TestKernelReset: REJECT --reject-with tcp-reset, the kernel's and ours.
func TestKernelReset(t *testing.T) {
	l := newLab(t)
	l.k.Run("iptables-legacy -A FORWARD -p tcp -j REJECT --reject-with tcp-reset")
	l.k.Run("ip6tables-legacy -A FORWARD -p tcp -j REJECT --reject-with tcp-reset")
	resets := 0
	for _, ends := range []string{"10.1.0.2:5000 > 10.2.0.2:80", "[fd01::2]:5000 > [fd02::2]:80"} {
		for _, d := range []string{
			"S seq=1000 mss=1460", "S seq=4294967295 len=5", "SA seq=5 ack=77", "A seq=5 ack=77 len=9", "F seq=5", "FS seq=5 len=3",
			". seq=5 len=8", "R seq=5", "RA seq=5 ack=6", "FPU seq=9 ack=8 len=2", "S seq=1 badcsum", "S seq=1 ttl=2 tos=0xff df ipid=9",
			"A seq=1 ack=0 win=0", "S seq=1 tcpopts=0101080a0102030405060708",
		} {
			l.reset(packettest.MustFrame("tcp "+ends+" "+d), packet.GSO{}, &resets)
		}
		typ := packet.GSOTCPv4
		if ends[0] == '[' {
			typ = packet.GSOTCPv6
		}
		b, g := super(t, "tcp "+ends+" P seq=1 len=5000", typ, 1400)
		l.reset(b, g, &resets)
	}
	// A data offset that lies.
	b := packettest.MustFrame("tcp 10.1.0.2:5000 > 10.2.0.2:80 S seq=1 len=8")
	b[32] = 0xf0
	sum := be.Uint16(b[36:])
	be.PutUint16(b[36:], packet.ApplyDelta(sum, packet.Delta16(0x5002, 0xf002)))
	l.reset(b, packet.GSO{}, &resets)
	if resets < 20 {
		t.Fatalf("only %d resets were compared", resets)
	}
}

func (l *lab) reset(b []byte, g packet.GSO, n *int) {
	l.t.Helper()
	l.k.SendGSO(0, g, b)
	want := l.k.Drain(0)
	p := l.p
	p.SetBytes(b)
	p.GSO = g
	if r := p.Parse(); r != 0 {
		l.t.Fatal(r)
	}
	p.SetTTL(p.TTL() - 1)
	var got [][]byte
	if packet.BuildTCPReset(l.e, p) {
		got = append(got, bytes.Clone(l.e.Bytes()))
	}
	*n += len(want)
	l.same("reset for "+packettest.Describe(b), b, "sent back", got, want)
}

// TestKernelUnreachable: the REJECT kinds that are ICMP errors.
func TestKernelUnreachable(t *testing.T) {
	l := newLab(t)
	port := 1000
	add := func(cmd, with string) int {
		port++
		l.k.Run(fmt.Sprintf("%s -A FORWARD -p udp --dport %d -j REJECT --reject-with %s", cmd, port, with))
		return port
	}
	for i, with := range []string{
		"icmp-net-unreachable 0", "icmp-host-unreachable 1", "icmp-proto-unreachable 2", "icmp-port-unreachable 3",
		"icmp-net-prohibited 9", "icmp-host-prohibited 10", "icmp-admin-prohibited 13",
	} {
		name, code, _ := strings.Cut(with, " ")
		var c uint8
		fmt.Sscan(code, &c)
		n := add("iptables-legacy", name)
		l.unreachable(fmt.Sprintf("udp 10.1.0.2:5000 > 10.2.0.2:%d len=%d tos=%d", n, i*200, i*40), packet.ICMPDestUnreach, c)
		l.unreachable(fmt.Sprintf("udp 10.1.0.2:5000 > 10.2.0.2:%d len=9 opts=01010101", n), packet.ICMPDestUnreach, c)
	}
	for i, with := range []string{
		"icmp6-no-route 0", "icmp6-adm-prohibited 1", "icmp6-addr-unreachable 3", "icmp6-port-unreachable 4", "icmp6-policy-fail 5", "icmp6-reject-route 6",
	} {
		name, code, _ := strings.Cut(with, " ")
		var c uint8
		fmt.Sscan(code, &c)
		n := add("ip6tables-legacy", name)
		l.unreachable(fmt.Sprintf("udp [fd01::2]:5000 > [fd02::2]:%d len=%d tos=%d flow=7", n, i*280, i*40), packet.ICMPv6DestUnreach, c)
		l.unreachable(fmt.Sprintf("udp [fd01::2]:5000 > [fd02::2]:%d ext=hop,dest len=%d", n, i*280), packet.ICMPv6DestUnreach, c)
	}
}

func (l *lab) unreachable(desc string, typ, code uint8) {
	l.t.Helper()
	b := packettest.MustFrame(desc)
	l.k.Send(0, b)
	want := l.k.Drain(0)
	if len(want) != 1 {
		l.t.Errorf("%s: the kernel sent %d packets", desc, len(want))
	}
	l.p.SetBytes(b)
	if r := l.p.Parse(); r != 0 {
		l.t.Fatal(r)
	}
	l.p.SetTTL(l.p.TTL() - 1)
	l.back = nil
	l.error(typ, code, 0)
	l.same(desc, b, "sent back", l.back, want)
}
