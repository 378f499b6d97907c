package packet

import "encoding/binary"

// MaxMerge is how many packets a Merger holds.
const MaxMerge = 64

const (
	maxSegments = 64 // of a UDP super-packet: older kernels take no more
	mergeFlows  = 256
)

// Merger joins neighbouring packets of a flow into super-packets, under the
// conditions of the kernel's generic receive offload: what comes out, split
// again, is what went in (the ID of packets with DF apart, which means nothing,
// RFC 6864). TCP segments have to follow each other with the same header
// (acknowledgement, window, options, flags but FIN and PSH, which end a
// super-packet, as does a shorter segment), UDP datagrams to be of one length,
// the last one shorter at most. Checksums are right or partial before.
//
// Groups keep the order of their first packets, and packets of one flow their
// order. The packets belong to the Merger until Reset.
type Merger struct {
	NoUDP bool // join no datagrams

	n, groups int
	packets   [MaxMerge]*Packet
	next      [MaxMerge]uint8 // the packet whose payload follows; 0: none
	group     [MaxMerge]mergeGroup
	flows     [mergeFlows]uint8 // by hash: 1 + the newest group of a flow
}

type mergeGroup struct {
	first, last uint8
	open        bool // more may follow
	count       uint8
	flags       uint8  // TCP: FIN and PSH of those that were joined
	header      uint16 // network and transport header, bytes
	size        uint16 // payload of a segment, bytes
	id          uint16 // IPv4: of the next segment
	fixed       bool   // all have the same ID
	segments    uint16
	slot        uint8 // in flows
	total       int   // length as an IP packet
	seq         uint32
}

// Len is the number of packets held.
func (m *Merger) Len() int { return m.n }

// Full says that there is no room for another packet.
func (m *Merger) Full() bool { return m.n == MaxMerge }

// Groups is the number of packets that came of it.
func (m *Merger) Groups() int { return m.groups }

// Reset forgets all packets.
func (m *Merger) Reset() {
	for i := range m.groups {
		m.flows[m.group[i].slot] = 0
	}
	clear(m.packets[:m.n])
	m.n, m.groups = 0, 0
}

// Add takes a packet; the Merger must not be full.
func (m *Merger) Add(p *Packet) {
	i := uint8(m.n)
	m.packets[i], m.next[i] = p, 0
	m.n++
	g := &m.group[m.groups]
	*g = mergeGroup{first: i, last: i, count: 1, total: p.Len()}
	ok := m.candidate(p, g)
	if g.header == 0 {
		g.slot = 0
		m.groups++
		return
	}
	h := flowSlot(p)
	if at := m.flows[h]; at != 0 {
		if o := &m.group[at-1]; o.header != 0 && sameFlow(m.packets[o.first], p) {
			if ok && o.open && m.join(o, g, p) {
				m.next[o.last], o.last = i, i
				o.count++
				return
			}
			o.open = false
		}
	}
	g.slot = h
	g.open = ok && !g.ends(p)
	m.groups++
	m.flows[h] = uint8(m.groups)
}

// candidate describes p as the beginning of a group. header stays 0 where p
// belongs to no flow that could be merged; false: p itself never is.
func (m *Merger) candidate(p *Packet, g *mergeGroup) bool {
	if p.Flags&(HasL4|Fragment|HasPorts) != HasL4|HasPorts || p.L4 != 20 && p.L4 != 40 || (p.L4 == 20) != (p.Family == IPv4) {
		return false
	}
	n := p.Len()
	t := p.Transport()
	switch p.Proto {
	case ProtoTCP:
		g.header = p.L4 + uint16(t[12]>>4)*4
		if t[12]>>4 < 5 {
			return false
		}
		g.seq = be.Uint32(t[4:])
		g.flags = t[13] & (TCPFin | TCPPsh)
	case ProtoUDP:
		g.header = p.L4 + 8
		if m.NoUDP || int(be.Uint16(t[4:])) != len(t) || t[6]|t[7] == 0 {
			return false
		}
	default:
		return false
	}
	payload := n - int(g.header)
	if payload <= 0 {
		return false
	}
	g.segments, g.size = 1, uint16(payload)
	switch p.GSO.Type &^ GSOECN {
	case GSONone:
	case GSOTCPv4, GSOTCPv6, GSOUDPL4:
		g.size = p.GSO.Size
		if g.size == 0 {
			return false
		}
		g.segments = uint16((payload + int(g.size) - 1) / int(g.size))
	default:
		return false
	}
	if p.GSO.NeedsCsum && p.GSO.CsumStart != p.L4 {
		return false
	}
	if p.Family == IPv4 {
		g.id = p.ID()
	}
	g.seq += uint32(payload)
	return true
}

// ends says whether nothing may follow p in a group.
func (g *mergeGroup) ends(p *Packet) bool {
	payload := p.Len() - int(g.header)
	if payload != int(g.segments)*int(g.size) {
		return true
	}
	return p.Proto == ProtoTCP && p.Transport()[13]&(TCPFin|TCPPsh|TCPSyn|TCPRst|TCPUrg) != 0
}

func flowSlot(p *Packet) uint8 {
	b := p.Buf[p.Off:]
	var a uint64
	if p.Family == IPv4 {
		a = binary.LittleEndian.Uint64(b[12:])
	} else {
		a = binary.LittleEndian.Uint64(b[8:])*31 ^ binary.LittleEndian.Uint64(b[16:]) ^ binary.LittleEndian.Uint64(b[24:])*131 ^ binary.LittleEndian.Uint64(b[32:])
	}
	a ^= uint64(binary.LittleEndian.Uint32(b[p.L4:]))<<13 ^ uint64(p.Proto)<<56
	return uint8((a * 0x9e3779b97f4a7c15) >> 56)
}

// sameFlow compares protocol, addresses and ports.
func sameFlow(a, b *Packet) bool {
	if a.Proto != b.Proto || a.Family != b.Family {
		return false
	}
	x, y := a.Buf[a.Off:], b.Buf[b.Off:]
	if a.Family == IPv4 {
		return binary.LittleEndian.Uint64(x[12:]) == binary.LittleEndian.Uint64(y[12:]) && binary.LittleEndian.Uint32(x[20:]) == binary.LittleEndian.Uint32(y[20:])
	}
	return [32]byte(x[8:40]) == [32]byte(y[8:40]) && binary.LittleEndian.Uint32(x[40:]) == binary.LittleEndian.Uint32(y[40:])
}

// join appends p, described by g, to o if the kernel would.
func (m *Merger) join(o, g *mergeGroup, p *Packet) bool {
	payload := p.Len() - int(g.header)
	if g.header != o.header || o.total+payload > MaxLen || int(g.size) > int(o.size) || g.segments > 1 && g.size != o.size {
		return false
	}
	head := m.packets[o.first]
	if !head.VerifyL4() || !p.VerifyL4() {
		return false
	}
	x, y := head.Buf[head.Off:], p.Buf[p.Off:]
	fixed := o.fixed
	if p.Family == IPv4 {
		if x[1] != y[1] || x[8] != y[8] || (x[6]^y[6])&0x40 != 0 {
			return false
		}
		first := be.Uint16(x[4:])
		if o.count == 1 && o.segments == 1 && y[6]&0x40 != 0 && g.id == first {
			fixed = true
		}
		if want := first + o.segments; fixed && g.id != first || !fixed && g.id != want {
			return false
		}
		if fixed && g.segments > 1 {
			return false // a super-packet's IDs count up
		}
	} else if be.Uint32(x) != be.Uint32(y) || x[7] != y[7] {
		return false
	}
	if p.Proto == ProtoTCP {
		s, t := x[p.L4:], y[p.L4:]
		const differ = TCPFin | TCPPsh
		if o.seq != be.Uint32(t[4:]) || be.Uint32(s[8:]) != be.Uint32(t[8:]) || t[13]&TCPCwr != 0 ||
			(s[13]^t[13])&^(differ|TCPCwr) != 0 || s[12] != t[12] || s[14] != t[14] || s[15] != t[15] ||
			string(s[20:o.header-p.L4]) != string(t[20:o.header-p.L4]) {
			return false
		}
		o.flags |= t[13] & differ
		o.seq = g.seq
	} else if int(o.segments)+int(g.segments) > maxSegments {
		return false
	}
	o.fixed = fixed
	o.segments += g.segments
	o.total += payload
	o.open = payload == int(g.segments)*int(o.size) && !g.ends(p)
	return true
}

// Group finishes group i and gives its first packet, ready to be sent, and how
// many packets' payloads follow; see Next. A packet that was not joined is as it came.
func (m *Merger) Group(i int) (head *Packet, more int) {
	g := &m.group[i]
	head = m.packets[g.first]
	if g.count == 1 {
		return head, 0
	}
	b := head.Buf[head.Off:]
	t := b[head.L4:]
	n := g.total - int(head.L4)
	if head.Family == IPv4 {
		old := be.Uint16(b[2:])
		be.PutUint16(b[2:], uint16(g.total))
		be.PutUint16(b[10:], ApplyDelta(be.Uint16(b[10:]), Delta16(old, uint16(g.total))))
	} else {
		be.PutUint16(b[4:], uint16(g.total-40))
	}
	head.GSO = GSO{NeedsCsum: true, HdrLen: g.header, Size: g.size, CsumStart: head.L4, CsumOffset: 16}
	switch {
	case head.Proto == ProtoUDP:
		be.PutUint16(t[4:], uint16(n))
		head.GSO.Type, head.GSO.CsumOffset = GSOUDPL4, 6
	case head.Family == IPv4:
		head.GSO.Type = GSOTCPv4
	default:
		head.GSO.Type = GSOTCPv6
	}
	if head.Proto == ProtoTCP {
		t[13] |= g.flags
		if t[13]&TCPCwr != 0 {
			head.GSO.Type |= GSOECN
		}
	}
	be.PutUint16(t[head.GSO.CsumOffset:], head.pseudo(n))
	return head, int(g.count) - 1
}

// Payloads appends the payloads that follow group i's first packet.
func (m *Merger) Payloads(i int, to [][]byte) [][]byte {
	g := &m.group[i]
	for j := m.next[g.first]; j != 0; j = m.next[j] {
		p := m.packets[j]
		to = append(to, p.Buf[p.Off+int(g.header):p.End])
	}
	return to
}

// Each calls f with the packets of group i.
func (m *Merger) Each(i int, f func(*Packet)) {
	g := &m.group[i]
	f(m.packets[g.first])
	for j := m.next[g.first]; j != 0; j = m.next[j] {
		f(m.packets[j])
	}
}
