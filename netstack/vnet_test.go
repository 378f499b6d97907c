package netstack

import (
	"bytes"
	"testing"

	"sluice/packet"
)

func TestVnetHeader(t *testing.T) {
	p := packet.New()
	superPacket(t, p)
	want := p.GSO
	var h [vnetHdrLen]byte
	writeVnet(h[:], p)
	p.GSO = packet.GSO{}
	if !readVnet(h[:], p) || p.GSO != want || !p.Is(packet.L4ChecksumOK) {
		t.Errorf("%+v, want %+v", p.GSO, want)
	}
	for name, spoil := range map[string]func(g *packet.GSO){
		"csum beyond":    func(g *packet.GSO) { g.CsumStart = uint16(p.Len()) },
		"csum in header": func(g *packet.GSO) { g.CsumStart = 10 },
		"csum offset":    func(g *packet.GSO) { g.CsumOffset = 6 },
		"no csum":        func(g *packet.GSO) { g.NeedsCsum = false },
		"type":           func(g *packet.GSO) { g.Type = 9 },
		"type of IPv6":   func(g *packet.GSO) { g.Type = packet.GSOTCPv6 },
		"size":           func(g *packet.GSO) { g.Size = 0 },
	} {
		p.GSO = want
		spoil(&p.GSO)
		writeVnet(h[:], p)
		if p.GSO = (packet.GSO{}); readVnet(h[:], p) {
			t.Errorf("%s: taken as %+v", name, p.GSO)
		}
	}
	// The kernel's length of the linear part is not the headers'.
	p.GSO = want
	p.GSO.HdrLen = 1234
	writeVnet(h[:], p)
	if !readVnet(h[:], p) || p.GSO.HdrLen != 40 {
		t.Errorf("header length %d", p.GSO.HdrLen)
	}
	p.SetBytes(ip4)
	clear(h[:])
	if !readVnet(h[:], p) || p.GSO != (packet.GSO{}) || p.Is(packet.L4ChecksumOK) {
		t.Errorf("a plain frame: %+v", p.GSO)
	}
	h[0] = vnetDataValid
	if !readVnet(h[:], p) || !p.Is(packet.L4ChecksumOK) {
		t.Error("a verified checksum is not known as such")
	}
	writeVnet(h[:], p)
	if h[0] != vnetDataValid {
		t.Error("a verified checksum is not passed on")
	}
}

func FuzzVnetHeader(f *testing.F) {
	p := packet.New()
	superPacket(f, p)
	var h [vnetHdrLen]byte
	writeVnet(h[:], p)
	f.Add(h[:], bytes.Clone(p.Bytes()))
	f.Add(make([]byte, vnetHdrLen), ip4)
	q := packet.New()
	f.Fuzz(func(t *testing.T, h, frame []byte) {
		if len(h) < vnetHdrLen || len(frame) > packet.MaxLen {
			return
		}
		q.SetBytes(frame)
		if !readVnet(h[:vnetHdrLen], q) {
			return
		}
		if g := q.GSO; g.NeedsCsum && int(g.CsumStart)+int(g.CsumOffset)+2 > len(frame) || g.Type != 0 && int(g.HdrLen) > len(frame) {
			t.Fatalf("%+v for %d bytes", g, len(frame))
		}
		if q.Parse() != 0 {
			return
		}
		packet.Segments(q, func(seg *packet.Packet) {
			if seg.Len() > packet.MaxLen {
				t.Fatal(seg.Len())
			}
		})
	})
}
