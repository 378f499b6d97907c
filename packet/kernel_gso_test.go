//go:build linux

package packet_test

import (
	"fmt"
	"testing"

	"sluice/packet"
)

// TestKernelSegment: super-packets through the kernel to a device without
// offload, and through Segments.
func TestKernelSegment(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		desc string
		typ  uint8
		size int
	}{
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 PA seq=4294960000 ack=5 ipid=65534 len=10000 df", packet.GSOTCPv4, 1448},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 FPAUC seq=1 urg=3 ipid=7 len=4344 tcpopts=0101080a0102030405060708", packet.GSOTCPv4, 1448},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 A seq=1 len=65000 tos=2", packet.GSOTCPv4 | packet.GSOECN, 1400},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 AC seq=1 len=3000 opts=94040000", packet.GSOTCPv4, 1400},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 A seq=1 len=100 ipid=3", packet.GSOTCPv4, 9},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 A seq=1 len=3000 df", packet.GSOTCPv4, 1461}, // segments larger than the MTU
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 A seq=1 len=3000 ipid=9", packet.GSOTCPv4, 1461},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 A seq=1 len=3000 ttl=1", packet.GSOTCPv4, 1400},
		{"tcp [fd01::2]:5000 > [fd02::2]:80 FPAEC seq=1 ack=7 len=7001 flow=99 tos=0x12", packet.GSOTCPv6, 1428},
		{"tcp [fd01::2]:5000 > [fd02::2]:80 PA seq=1 ack=7 len=7001 ext=hop,dest", packet.GSOTCPv6, 1400},
		{"tcp [fd01::2]:5000 > [fd02::2]:80 PA seq=1 ack=7 len=7001", packet.GSOTCPv6, 1441},
		{"udp 10.1.0.2:5000 > 10.2.0.2:443 len=9999 ipid=5 df", packet.GSOUDPL4, 1200},
		{"udp 10.1.0.2:5000 > 10.2.0.2:443 len=2400 ipid=5", packet.GSOUDPL4, 1200},
		{"udp [fd01::2]:5000 > [fd02::2]:443 len=9999", packet.GSOUDPL4, 1200},
		{"udp 10.1.0.2:5000 > 10.2.0.2:443 len=7001 ipid=5", packet.GSOUDP, 1480},
		{"udp [fd01::2]:5000 > [fd02::2]:443 len=1000", 0, 0},
		{"tcp 10.1.0.2:5000 > 10.2.0.2:80 PA seq=1 len=1000", 0, 0},
		{"udp 10.1.0.2:5000 > 10.2.0.2:443 len=3000 ipid=5", 0, 0},
	} {
		b, g := super(t, c.desc, c.typ, c.size)
		l.both(fmt.Sprintf("%s by %d", c.desc, c.size), b, g)
		t.Logf("%s: %d out, %d back", c.desc, len(l.out), len(l.back))
		if len(l.out)+len(l.back) == 0 {
			t.Errorf("%s: nothing came out", c.desc)
		}
	}
}
