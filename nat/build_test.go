package nat

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"testing"

	"sluice/packet"
)

// ip makes an address as tuples hold it.
func ip(s string) (a [16]byte) {
	ad := netip.MustParseAddr(s)
	copy(a[:], ad.AsSlice())
	return a
}

// csum is the Internet checksum, done the slow way: the twin of what is tested.
// Only the last part may have an odd length.
func csum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i, c := range b {
			if i%2 == 0 {
				s += uint32(c) << 8
			} else {
				s += uint32(c)
			}
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// flowSpec says what a test packet is.
type flowSpec struct {
	src, dst     string
	proto        uint8
	sport, dport uint16 // ICMP: sport is the identifier
	typ, code    uint8  // ICMP
	flags        uint8  // TCP
	seq, ack     uint32
	opts         []byte // TCP
	payload      []byte
	noCsum       bool // UDP without checksum
	id           uint16
	tos, ttl     uint8
}

const (
	fin = 1
	syn = 2
	rst = 4
	psh = 8
	ack = 16
)

func udp(src string, sport uint16, dst string, dport uint16, data string) []byte {
	return flowSpec{src: src, dst: dst, proto: packet.ProtoUDP, sport: sport, dport: dport, payload: []byte(data)}.build()
}

func tcp(src string, sport uint16, dst string, dport uint16, flags uint8) []byte {
	return flowSpec{src: src, dst: dst, proto: packet.ProtoTCP, sport: sport, dport: dport, flags: flags, seq: 1000}.build()
}

func echo(src, dst string, id uint16) []byte {
	f := flowSpec{src: src, dst: dst, proto: packet.ProtoICMP, sport: id, typ: 8, payload: []byte("pingping")}
	if netip.MustParseAddr(src).Is6() {
		f.proto, f.typ = packet.ProtoICMPv6, 128
	}
	return f.build()
}

func (f flowSpec) build() []byte {
	var l4 []byte
	be := binary.BigEndian
	switch f.proto {
	case packet.ProtoTCP:
		l4 = make([]byte, 20)
		be.PutUint16(l4, f.sport)
		be.PutUint16(l4[2:], f.dport)
		be.PutUint32(l4[4:], f.seq)
		be.PutUint32(l4[8:], f.ack)
		l4 = append(l4, f.opts...)
		l4[12] = byte(len(l4)/4) << 4
		l4[13] = f.flags
		be.PutUint16(l4[14:], 65000)
	case packet.ProtoUDP, packet.ProtoUDPLite:
		l4 = make([]byte, 8)
		be.PutUint16(l4, f.sport)
		be.PutUint16(l4[2:], f.dport)
		be.PutUint16(l4[4:], uint16(8+len(f.payload)))
	case packet.ProtoICMP, packet.ProtoICMPv6:
		l4 = make([]byte, 8)
		l4[0], l4[1] = f.typ, f.code
		be.PutUint16(l4[4:], f.sport)
		be.PutUint16(l4[6:], 1)
	case packet.ProtoSCTP:
		l4 = make([]byte, 12)
		be.PutUint16(l4, f.sport)
		be.PutUint16(l4[2:], f.dport)
	case packet.ProtoDCCP:
		l4 = make([]byte, 16) // a data packet with extended sequence numbers
		be.PutUint16(l4, f.sport)
		be.PutUint16(l4[2:], f.dport)
		l4[4], l4[8] = 4, 1
	}
	l4 = append(l4, f.payload...)
	return f.wrap(l4)
}

// wrap puts an IP header before l4 and fills every checksum in.
func (f flowSpec) wrap(l4 []byte) []byte {
	src, dst := netip.MustParseAddr(f.src), netip.MustParseAddr(f.dst)
	ttl := f.ttl
	if ttl == 0 {
		ttl = 64
	}
	var b []byte
	if src.Is4() {
		b = make([]byte, 20)
		b[0], b[1], b[8], b[9] = 0x45, f.tos, ttl, f.proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(l4)))
		binary.BigEndian.PutUint16(b[4:], f.id)
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
	} else {
		b = make([]byte, 40)
		b[0], b[6], b[7] = 0x60, f.proto, ttl
		binary.BigEndian.PutUint16(b[4:], uint16(len(l4)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
	}
	b = append(b, l4...)
	seal(b, f.noCsum)
	return b
}

// checkOffset is where the checksum is in proto's header; -1: none of the Internet kind.
func checkOffset(proto uint8) int {
	switch proto {
	case packet.ProtoTCP:
		return 16
	case packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoDCCP:
		return 6
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return 2
	}
	return -1
}

func split(b []byte) (proto uint8, pseudo, l4 []byte) {
	if b[0]>>4 == 4 {
		h := int(b[0]&15) * 4
		l4 = b[h:]
		proto = b[9]
		pseudo = append([]byte{}, b[12:20]...)
	} else {
		at, next := 40, b[6]
		for next == 0 || next == 60 || next == 44 {
			n := 8
			if next != 44 {
				n = int(b[at+1])*8 + 8
			}
			next, at = b[at], at+n
		}
		proto, l4 = next, b[at:]
		pseudo = append([]byte{}, b[8:40]...)
	}
	if proto == packet.ProtoICMP {
		return proto, nil, l4
	}
	return proto, append(pseudo, 0, proto, byte(len(l4)>>8), byte(len(l4))), l4
}

// seal computes all checksums of a packet.
func seal(b []byte, noCsum bool) {
	if b[0]>>4 == 4 {
		h := int(b[0]&15) * 4
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], csum(b[:h]))
	}
	proto, pseudo, l4 := split(b)
	if proto == packet.ProtoSCTP && len(l4) >= 12 {
		copy(l4[8:12], make([]byte, 4))
		binary.LittleEndian.PutUint32(l4[8:], crc32.Checksum(l4, crc32.MakeTable(crc32.Castagnoli)))
		return
	}
	at := checkOffset(proto)
	if at < 0 || len(l4) < at+2 {
		return
	}
	l4[at], l4[at+1] = 0, 0
	if noCsum {
		return
	}
	c := csum(pseudo, l4)
	if c == 0 && (proto == packet.ProtoUDP || proto == packet.ProtoUDPLite) {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], c)
}

// verify fails the test if a checksum of b is wrong.
func verify(t testing.TB, b []byte) {
	t.Helper()
	want := append([]byte{}, b...)
	proto, _, l4 := split(want)
	at := checkOffset(proto)
	seal(want, proto == packet.ProtoUDP && l4[at]|l4[at+1] == 0)
	for i := range b {
		if b[i] != want[i] {
			t.Fatalf("wrong checksum: byte %d is %#02x, want %#02x\n%x", i, b[i], want[i], b)
		}
	}
}

// icmpError makes an error that router sends about the packet in quoted, of which
// n bytes are quoted.
func icmpError(router string, typ, code uint8, rest uint32, quoted []byte, n int) []byte {
	var dst string
	f := flowSpec{src: router, proto: packet.ProtoICMP}
	if quoted[0]>>4 == 4 {
		dst = netip.AddrFrom4([4]byte(quoted[12:16])).String()
	} else {
		dst = netip.AddrFrom16([16]byte(quoted[8:24])).String()
		f.proto = packet.ProtoICMPv6
	}
	f.dst = dst
	l4 := []byte{typ, code, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(l4[4:], rest)
	return f.wrap(append(l4, quoted[:min(n, len(quoted))]...))
}

// ports reads addresses and ports back.
func endpoints(b []byte) (src, dst netip.AddrPort) {
	_, _, l4 := split(b)
	var s, d netip.Addr
	if b[0]>>4 == 4 {
		s, d = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	} else {
		s, d = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	}
	return netip.AddrPortFrom(s, binary.BigEndian.Uint16(l4)), netip.AddrPortFrom(d, binary.BigEndian.Uint16(l4[2:]))
}

func netipPort(a string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(a), port)
}
