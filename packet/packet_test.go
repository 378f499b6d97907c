package packet

import (
	"net/netip"
	"testing"
)

func addr(s string) [16]byte { return AddrBytes(netip.MustParseAddr(s)) }

func TestEchoRoundTrip(t *testing.T) {
	for _, c := range []struct {
		family   uint8
		src, dst string
	}{{IPv4, "192.0.2.1", "198.51.100.2"}, {IPv6, "2001:db8::1", "2001:db8:1::2"}} {
		p, q := New(), New()
		BuildEcho(p, c.family, addr(c.src), addr(c.dst), false, 7, 9, 33)
		q.SetBytes(p.Bytes())
		if r := q.Parse(); r != 0 {
			t.Fatalf("%v: Parse: %v", c, r)
		}
		if !q.VerifyL4() {
			t.Fatalf("%v: bad checksum", c)
		}
		if q.SrcAddr().String() != c.src || q.DstAddr().String() != c.dst {
			t.Fatalf("%v: addresses %v %v", c, q.SrcAddr(), q.DstAddr())
		}
		q.SetSrc(addr(c.dst))
		q.Flags &^= L4ChecksumOK
		if !q.VerifyL4() {
			t.Fatalf("%v: bad checksum after SetSrc", c)
		}
		if q.Parse() != 0 {
			t.Fatalf("%v: header checksum after SetSrc", c)
		}
	}
}
