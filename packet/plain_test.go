package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestPlain: what parsePlain and verifyPlain take, they see as the general code
// does. Frames are right ones of all shapes with a few bits turned.
func TestPlain(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	plain, verified := 0, 0
	for range 200_000 {
		b := make([]byte, 20+r.IntN(60))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[0], b[6], b[7] = 0x45, byte(r.IntN(2))<<6, 0
		b[9] = []uint8{ProtoUDP, ProtoTCP, ProtoICMP}[r.IntN(3)]
		be.PutUint16(b[2:], uint16(len(b)-r.IntN(3)))
		p := &Packet{Buf: b, End: len(b)}
		p.FixHeader()
		if r.IntN(3) == 0 {
			b[r.IntN(20)] ^= 1 << r.IntN(8)
			if r.IntN(2) == 0 {
				p.Family = IPv4
				p.FixHeader()
			}
		}
		if len(b) >= 40 && r.IntN(2) == 0 { // a right checksum
			p.Family, p.Proto, p.L4, p.Flags = IPv4, b[9], 20, HasL4
			p.End = min(len(b), max(40, int(be.Uint16(b[2:]))))
			p.fixTransport()
		}
		fast := &Packet{Buf: bytes.Clone(b), End: len(b)}
		if !fast.parsePlain() {
			continue
		}
		plain++
		slow := &Packet{Buf: b, End: len(b)}
		slow.Family = IPv4
		if reason := slow.parse4(b); reason != 0 {
			t.Fatalf("% x: dropped for %v", b, reason)
		}
		if fast.view != slow.view || fast.End != slow.End {
			t.Fatalf("% x:\n%+v\n%+v", b, fast.view, slow.view)
		}
		at, kind := slow.sumField()
		l4 := slow.Transport()
		want := kind == sumPseudo && AddSum(Sum(l4), slow.pseudo(len(l4))) == 0xffff || slow.Proto == ProtoUDP && be.Uint16(l4[at:]) == 0
		if got := fast.VerifyL4(); got != want {
			t.Fatalf("% x: verified %v, want %v", b, got, want)
		}
		if want {
			verified++
		}
	}
	if plain < 1000 || verified < 1000 {
		t.Errorf("%d frames were plain, %d verified: the test does not test", plain, verified)
	}
}
