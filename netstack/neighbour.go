package netstack

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"time"

	"sluice/packet"
)

// This file is ARP (RFC 826) and the host's part of neighbour discovery (RFC
// 4861) for Ethernet links. Nothing here is on the packet path: a neighbour
// that is known and fresh takes neither a lock nor a question.

// resolve asks for hop. usable: what is known still serves. Otherwise b, a
// whole frame whose destination is missing, is held. It returns whether the
// frame may go out now.
func (q *etherQueue) resolve(hop netip.Addr, usable bool, b []byte) bool {
	e := q.e
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	ask := e.asked[hop]
	if ask == nil {
		if len(e.asked) >= maxNeighbours {
			e.forget(now)
		}
		if len(e.asked) >= maxNeighbours {
			return usable
		}
		ask = &inquiry{}
		e.asked[hop] = ask
	}
	if now.Sub(ask.last) >= askEvery {
		if ask.tries >= maxTries {
			ask.tries, ask.held = 0, nil // nobody answered: begin anew, without what waited
		}
		ask.tries++
		ask.last = now
		q.ask(hop)
	}
	if !usable {
		if len(ask.held) >= maxHeld {
			ask.held = ask.held[1:]
		}
		ask.held = append(ask.held, append([]byte(nil), b...))
	}
	return usable
}

// forget drops the questions that nobody answered.
func (e *ether) forget(now time.Time) {
	if now.Sub(e.emptied) < askEvery {
		return
	}
	e.emptied = now
	maps.DeleteFunc(e.asked, func(_ netip.Addr, ask *inquiry) bool { return now.Sub(ask.last) > maxTries*askEvery })
}

// learn takes what a neighbour says of itself. Only one that was asked for, or
// that asks for us, is taken note of.
func (q *etherQueue) learn(a netip.Addr, mac MAC, unasked bool) {
	if mac[0]&1 != 0 || a.IsUnspecified() || a.IsMulticast() || q.e.own(a) {
		return
	}
	e := q.e
	e.mu.Lock()
	defer e.mu.Unlock()
	ask := e.asked[a]
	old := *e.known.Load()
	if _, have := old[a]; ask == nil && !have && (!unasked || !e.onLink(a)) {
		return
	}
	now := time.Now()
	next := make(map[netip.Addr]neighbour, len(old)+1)
	for k, n := range old {
		if now.Sub(n.confirmed) < neighbourGone && len(next) < maxNeighbours {
			next[k] = n
		}
	}
	next[a] = neighbour{mac, now}
	e.known.Store(&next)
	if ask == nil {
		return
	}
	delete(e.asked, a)
	for _, b := range ask.held {
		copy(b[q.hdr:], mac[:])
		q.put(b)
	}
}

// onLink reports whether a is in one of the link's networks.
func (e *ether) onLink(a netip.Addr) bool {
	for _, p := range *e.addrs.Load() {
		if p.Contains(a) {
			return true
		}
	}
	return a.Is6() && a.IsLinkLocalUnicast()
}

// frame begins a frame of the link's own; the payload has n bytes.
func (q *etherQueue) frame(dst MAC, typ uint16, n int) (frame, payload []byte) {
	b := make([]byte, q.hdr+etherLen+n)
	f := b[q.hdr:]
	copy(f, dst[:])
	copy(f[6:], q.e.mac[:])
	binary.BigEndian.PutUint16(f[12:], typ)
	return b, f[etherLen:]
}

// ask sends a question for a.
func (q *etherQueue) ask(a netip.Addr) {
	src, ok := q.e.source(a)
	if !ok {
		return
	}
	if a.Is4() {
		q.sendARP(1, broadcastMAC, src, MAC{}, a)
		return
	}
	to := a.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: to[13], 14: to[14], 15: to[15]})
	mac, _ := groupMAC(group)
	q.sendND(icmp6Solicit, 0, mac, src, group, a)
}

const arpLen = 28

func (q *etherQueue) sendARP(op uint16, to MAC, src netip.Addr, target MAC, dst netip.Addr) {
	b, a := q.frame(to, etherARP, arpLen)
	copy(a, []byte{0, 1, 8, 0, 6, 4})
	binary.BigEndian.PutUint16(a[6:], op)
	copy(a[8:], q.e.mac[:])
	s, d := src.As4(), dst.As4()
	copy(a[14:], s[:])
	copy(a[18:], target[:])
	copy(a[24:], d[:])
	q.put(b)
}

// arp answers questions for the router's addresses and learns from answers.
func (q *etherQueue) arp(frame []byte) {
	a := frame[etherLen:]
	if len(a) < arpLen || [6]byte(a) != [6]byte{0, 1, 8, 0, 6, 4} {
		return
	}
	op := binary.BigEndian.Uint16(a[6:])
	from, src, dst := MAC(a[8:]), netip.AddrFrom4([4]byte(a[14:])), netip.AddrFrom4([4]byte(a[24:]))
	mine := q.e.own(dst)
	q.learn(src, from, mine)
	if op == 1 && mine {
		q.sendARP(2, from, dst, from, src)
	}
}

const (
	icmp6Solicit   = 135
	icmp6Advertise = 136
	optSourceLL    = 1
	optTargetLL    = 2
	ndFromRouter   = 1 << 31
	ndSolicited    = 1 << 30
	ndOverride     = 1 << 29
)

// sendND sends a solicitation or an advertisement for target, with our Ethernet address.
func (q *etherQueue) sendND(typ uint8, flags uint32, mac MAC, src, dst, target netip.Addr) {
	const n = 32
	b, ip := q.frame(mac, etherIPv6, 40+n)
	ip[0], ip[6], ip[7] = 0x60, packet.ProtoICMPv6, 255
	binary.BigEndian.PutUint16(ip[4:], n)
	s, d, t := src.As16(), dst.As16(), target.As16()
	copy(ip[8:], s[:])
	copy(ip[24:], d[:])
	m := ip[40:]
	m[0] = typ
	binary.BigEndian.PutUint32(m[4:], flags)
	copy(m[8:], t[:])
	m[24], m[25] = optSourceLL, 1
	if typ == icmp6Advertise {
		m[24] = optTargetLL
	}
	copy(m[26:], q.e.mac[:])
	binary.BigEndian.PutUint16(m[2:], icmp6Checksum(ip))
	q.put(b)
}

// icmp6Checksum is the checksum of an ICMPv6 message in a packet without
// extension headers, whose checksum field counts as zero.
func icmp6Checksum(ip []byte) uint16 {
	m := ip[40:]
	sum := uint32(len(m)) + uint32(packet.ProtoICMPv6)
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(ip[8:40])
	add(m[:2])
	add(m[4:])
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// discovery takes neighbour solicitations and advertisements off the packet
// path, which does not know the link layer.
func (q *etherQueue) discovery(ip []byte) bool {
	if len(ip) < 64 || ip[0]>>4 != 6 || ip[6] != packet.ProtoICMPv6 || ip[40] != icmp6Solicit && ip[40] != icmp6Advertise {
		return false
	}
	// RFC 4861 section 7.1: from a neighbour, whole and sound, or ignored.
	n := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[7] != 255 || n < 24 || 40+n > len(ip) {
		return true
	}
	ip = ip[:40+n]
	m := ip[40:]
	if m[1] != 0 || binary.BigEndian.Uint16(m[2:]) != icmp6Checksum(ip) {
		return true
	}
	src, target := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(m[8:]))
	if target.IsMulticast() {
		return true
	}
	if m[0] == icmp6Advertise {
		if mac, ok := linkAddress(m[24:], optTargetLL); ok {
			q.learn(target, mac, false)
		}
		return true
	}
	if !q.e.own(target) {
		return true
	}
	mac, ok := linkAddress(m[24:], optSourceLL)
	if src.IsUnspecified() {
		// Somebody is about to take our address: say that it is ours, to all nodes.
		all := netip.AddrFrom16([16]byte{0xff, 2, 15: 1})
		to, _ := groupMAC(all)
		q.sendND(icmp6Advertise, ndFromRouter|ndOverride, to, target, all, target)
		return true
	}
	if ok {
		q.learn(src, mac, true)
	} else if known, have := (*q.e.known.Load())[src]; have {
		mac = known.mac
	} else {
		return true
	}
	q.sendND(icmp6Advertise, ndFromRouter|ndSolicited|ndOverride, mac, target, src, target)
	return true
}

// linkAddress finds an Ethernet address among a message's options.
func linkAddress(opts []byte, kind uint8) (MAC, bool) {
	for len(opts) >= 8 {
		n := int(opts[1]) * 8
		if n == 0 || n > len(opts) {
			break
		}
		if opts[0] == kind {
			return MAC(opts[2:]), true
		}
		opts = opts[n:]
	}
	return MAC{}, false
}
