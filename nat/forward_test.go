package nat

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
)

// TestForward: at once and step by step the bytes are the same, whatever is
// translated, also where checksums are missing, wrong, 0 or all ones.
func TestForward(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 5))
	b := newBox(t)
	b.w.Begin(b.now)
	defer b.w.End()
	random := func() (a [16]byte) { binary.BigEndian.PutUint32(a[:], r.Uint32()); return a }
	first, once, steps := packet.New(), packet.New(), packet.New()
	for range 20_000 {
		spec := flowSpec{src: "10.0.0.1", dst: "9.9.9.9", proto: packet.ProtoUDP, sport: uint16(r.Uint32()), dport: uint16(r.Uint32()), flags: syn, ttl: uint8(2 + r.IntN(254))}
		if r.IntN(2) == 0 {
			spec.proto = packet.ProtoTCP
		}
		first.SetBytes(spec.build())
		first.Parse()
		if !b.w.Track(first, hookPrerouting) {
			t.Fatal("no connection was made")
		}
		e := b.w.Entry(first)
		reply := *e.Tuple(conntrack.Reply)
		if r.IntN(2) == 0 {
			reply.Dst, reply.DstPort = random(), uint16(r.Uint32())
			e.SetStatus(conntrack.SrcNAT)
		}
		if r.IntN(2) == 0 {
			reply.Src, reply.SrcPort = random(), uint16(r.Uint32())
			e.SetStatus(conntrack.DstNAT)
		}
		b.w.AlterReply(e, reply)
		for _, d := range []conntrack.Dir{conntrack.Original, conntrack.Reply} {
			u := e.Tuple(d)
			once.SetBytes(spec.build())
			once.Parse()
			once.SetSrc(u.Src)
			once.SetDst(u.Dst)
			once.SetSrcPort(u.SrcPort)
			once.SetDstPort(u.DstPort)
			check := once.Transport()[6:8]
			if spec.proto == packet.ProtoTCP {
				check = once.Transport()[16:18]
			}
			if i := r.IntN(8); i < 3 {
				binary.BigEndian.PutUint16(check, [3]uint16{0, 0xffff, uint16(r.Uint32())}[i])
			}
			frame := bytes.Clone(once.Bytes())
			steps.SetBytes(frame)
			steps.Parse()
			Forward(once, e, d)
			Translate(steps, e, Dst, d)
			steps.SetTTL(steps.TTL() - 1)
			Translate(steps, e, Src, d)
			if !bytes.Equal(once.Bytes(), steps.Bytes()) {
				t.Fatalf("%v, status %x, direction %v:\n% x\n% x\n% x", u, e.Status(), d, frame, once.Bytes(), steps.Bytes())
			}
		}
		b.w.Release(first)
	}
}
