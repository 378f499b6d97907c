package netstack

import (
	"encoding/binary"

	"sluice/packet"
)

// vnetHdrLen is the virtio-net header's length as TUNSETVNETHDRSZ sets it.
const vnetHdrLen = 10

const (
	vnetNeedsCsum = 1
	vnetDataValid = 2
)

// readVnet takes the virtio-net header h (host byte order) into p.GSO. false:
// it does not fit the frame, which then is not to be used.
func readVnet(h []byte, p *packet.Packet) bool {
	flags, typ := h[0], h[1]
	n := p.End - p.Off
	g := packet.GSO{Type: typ}
	if flags&vnetNeedsCsum != 0 {
		g.NeedsCsum = true
		g.CsumStart = binary.NativeEndian.Uint16(h[6:])
		g.CsumOffset = binary.NativeEndian.Uint16(h[8:])
		if int(g.CsumStart)+int(g.CsumOffset)+2 > n || g.CsumStart < 20 {
			return false
		}
	}
	if flags&(vnetDataValid|vnetNeedsCsum) != 0 {
		p.Flags |= packet.L4ChecksumOK
	}
	switch typ &^ packet.GSOECN {
	case packet.GSONone:
		g.Type = 0
	case packet.GSOTCPv4, packet.GSOTCPv6, packet.GSOUDP, packet.GSOUDPL4:
		g.HdrLen = binary.NativeEndian.Uint16(h[2:])
		g.Size = binary.NativeEndian.Uint16(h[4:])
		if !fitGSO(&g, p) {
			return false
		}
	default:
		return false
	}
	p.GSO = g
	return true
}

// fitGSO checks a super-packet's header against the frame. HdrLen is made
// anew: the kernel may put the length of the linear part there.
func fitGSO(g *packet.GSO, p *packet.Packet) bool {
	b := p.Bytes()
	typ := g.Type &^ packet.GSOECN
	if g.Size == 0 || len(b) < 20 {
		return false
	}
	v := b[0] >> 4
	if v != 4 && v != 6 || typ == packet.GSOTCPv4 && v != 4 || typ == packet.GSOTCPv6 && v != 6 {
		return false
	}
	if typ == packet.GSOUDP {
		// UFO splits into IP fragments; the checksum is partial or whole.
		return int(g.HdrLen) <= len(b)
	}
	if !g.NeedsCsum || v == 6 && g.CsumStart < 40 {
		return false
	}
	l4 := int(g.CsumStart)
	hdr := l4 + 8
	want := uint16(6)
	if typ != packet.GSOUDPL4 {
		if l4+20 > len(b) {
			return false
		}
		off := int(b[l4+12]>>4) * 4
		hdr, want = l4+off, 16
		if off < 20 {
			return false
		}
	}
	if g.CsumOffset != want || hdr > len(b) {
		return false
	}
	g.HdrLen = uint16(hdr)
	return true
}

// writeVnet puts the header for p into h.
func writeVnet(h []byte, p *packet.Packet) {
	_ = h[9]
	clear(h[:vnetHdrLen])
	g := &p.GSO
	if g.NeedsCsum {
		h[0] = vnetNeedsCsum
		binary.NativeEndian.PutUint16(h[6:], g.CsumStart)
		binary.NativeEndian.PutUint16(h[8:], g.CsumOffset)
	} else if p.Flags&packet.L4ChecksumOK != 0 {
		h[0] = vnetDataValid
	}
	if g.Type != packet.GSONone {
		h[1] = g.Type
		binary.NativeEndian.PutUint16(h[2:], g.HdrLen)
		binary.NativeEndian.PutUint16(h[4:], g.Size)
	}
}
