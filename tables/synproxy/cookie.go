package synproxy

import (
	"encoding/binary"

	"sluice/packet"
)

// A SYN/ACK's sequence number is all that is remembered of a SYN: a hash of the
// ends, the client's sequence number, the minute, and which MSS of a short list
// it offered (D. J. Bernstein's SYN cookies, as Linux lays them out).

// The MSS values that a cookie tells apart, as Linux has them.
var (
	mss4 = [4]uint16{536, 1300, 1440, 1460}
	mss6 = [4]uint16{1280 - 60, 1480 - 60, 1500 - 60, 9000 - 60}
)

const (
	minute     = 60e9 // ns
	maxMinutes = 2    // a cookie of this age is too old
	dataMask   = 1<<24 - 1
)

func mssTable(family uint8) *[4]uint16 {
	if family == packet.IPv6 {
		return &mss6
	}
	return &mss4
}

// hash mixes the ends of a segment, in the direction of the client's, with count.
func (x *Proxy) hash(p *packet.Packet, which, count uint32) uint32 {
	src, dst := p.Src(), p.Dst()
	be := binary.BigEndian
	words := [...]uint64{
		uint64(which)<<32 | uint64(count), uint64(p.SrcPort())<<16 | uint64(p.DstPort()),
		be.Uint64(src[:]), be.Uint64(src[8:]), be.Uint64(dst[:]), be.Uint64(dst[8:]),
	}
	return uint32(siphash(&x.key, words[:]))
}

// cookie is the sequence number that answers the SYN p, whose MSS is mss.
func (x *Proxy) cookie(p *packet.Packet, mss uint16) uint32 {
	t := mssTable(p.Family)
	i := uint32(len(t) - 1)
	for i > 0 && mss < t[i] {
		i--
	}
	count := uint32(p.Now / minute)
	return x.hash(p, 0, 0) + p.TCPSeq() + count<<24 + (x.hash(p, 1, count)+i)&dataMask
}

// check gives the MSS of the SYN that p, a client's ACK, followed; 0: p
// acknowledges no cookie of ours.
func (x *Proxy) check(p *packet.Packet) uint16 {
	v := p.TCPAck() - 1 - x.hash(p, 0, 0) - (p.TCPSeq() - 1)
	count := uint32(p.Now / minute)
	age := (count - v>>24) & 0xff
	if age >= maxMinutes {
		return 0
	}
	t := mssTable(p.Family)
	if i := (v - x.hash(p, 1, count-age)) & dataMask; i < uint32(len(t)) {
		return t[i]
	}
	return 0
}
