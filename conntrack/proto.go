package conntrack

import "sluice/packet"

// result is what a protocol says of a packet.
type result uint8

const (
	resAccept result = iota
	resInvalid
	resDrop
	resRepeat // the connection is gone: look up again
)

const hookPrerouting = 0

// checksumOK verifies the transport checksum of what comes from outside.
func (w *Worker) checksumOK(p *packet.Packet, hook uint8) bool {
	if hook != hookPrerouting || p.Flags&packet.L4ChecksumOK != 0 || w.t.sys.checksum.Load() == 0 {
		return true
	}
	return p.VerifyL4()
}

// refresh moves the expiry to timeout from now, and counts. An established
// flow's expiry moves at most once a second: a store per packet would bounce
// the line between the workers that see its two directions.
func (w *Worker) refresh(p *packet.Packet, e *Entry, dir Dir, timeout int64) {
	st := e.Status()
	if st&FixedTimeout == 0 {
		if st&Confirmed == 0 {
			e.expiry.Store(timeout)
		} else if x, old := w.now+timeout, e.expiry.Load(); x < old || x-old >= second {
			e.expiry.Store(x)
		}
	}
	w.account(p, e, dir)
}

func (w *Worker) account(p *packet.Packet, e *Entry, dir Dir) {
	if e.flags&entryAcct != 0 {
		w.t.addCounters(p, dir)
	}
}

func (w *Worker) assure(e *Entry) {
	if e.SetStatus(Assured)&Assured == 0 {
		e.Event(EventAssured)
	}
}

// timeout reads row of e's policy or the tunable.
func (t *Table) timeout(e *Entry, row int, def int64) int64 {
	if i := t.policy(e); i != 0 {
		if v, ok := t.policyTimeout(i, row); ok {
			return v
		}
	}
	return def
}

// trackUDP: a flow that is answered, and still there two seconds after its
// first packet, is a stream: assured, with the longer timeout.
func (w *Worker) trackUDP(p *packet.Packet, e *Entry, hook uint8) result {
	t := w.t
	b := p.Transport()
	if len(b) < 8 {
		return w.invalid("short packet")
	}
	n, sum := int(be.Uint16(b[4:])), be.Uint16(b[6:])
	switch {
	case p.Proto == packet.ProtoUDPLite:
		if n == 0 {
			n = len(b)
		}
		if n < 8 || n > len(b) {
			return w.invalid("invalid checksum coverage")
		}
		if sum == 0 || !w.liteChecksumOK(p, b, n, hook) {
			return w.invalid("bad checksum")
		}
	case n < 8 || n > len(b) && p.GSO.Type == packet.GSONone:
		return w.invalid("truncated/malformed packet")
	case sum != 0 && !w.checksumOK(p, hook):
		return w.invalid("bad checksum")
	}
	dir := PacketDir(p)
	st := e.Status()
	if st&Confirmed == 0 {
		e.tcp.lastSeq = w.ms
	}
	if st&SeenReply == 0 || w.ms-e.tcp.lastSeq <= 2000 {
		w.refresh(p, e, dir, t.timeout(e, 0, secondsOf(t.sys.udp)))
		return resAccept
	}
	w.refresh(p, e, dir, t.timeout(e, 1, secondsOf(t.sys.udpStream)))
	if st&(Assured|NATClash) == 0 {
		w.assure(e)
	}
	return resAccept
}

// liteChecksumOK verifies UDP-Lite as Linux's conntrack does: over the covered
// bytes, with UDP's number in the pseudo header where RFC 3828 has UDP-Lite's.
func (w *Worker) liteChecksumOK(p *packet.Packet, b []byte, covered int, hook uint8) bool {
	if hook != hookPrerouting || w.t.sys.checksum.Load() == 0 {
		return true
	}
	src, dst := p.Src(), p.Dst()
	size := 16
	if p.Family == packet.IPv4 {
		size = 4
	}
	return packet.AddSum(packet.PseudoSum(src[:size], dst[:size], packet.ProtoUDP, len(b)), packet.Sum(b[:covered])) == 0xffff
}

// trackICMP: only queries start a connection.
func (w *Worker) trackICMP(p *packet.Packet, e *Entry) result {
	t := w.t
	def := t.sys.icmp
	if p.Proto == packet.ProtoICMPv6 {
		def = t.sys.icmpv6
	}
	if e.Status()&Confirmed == 0 && !icmpQuery(p.Proto, uint8(e.orig.DstPort>>8)) {
		return w.invalid("no query")
	}
	w.refresh(p, e, PacketDir(p), t.timeout(e, 0, secondsOf(def)))
	return resAccept
}

func icmpQuery(proto, typ uint8) bool {
	if proto == packet.ProtoICMP {
		return typ == 8 || typ == 13 || typ == 15 || typ == 17
	}
	return typ == 128 || typ == 139
}

func (w *Worker) trackGeneric(p *packet.Packet, e *Entry) result {
	w.refresh(p, e, PacketDir(p), w.t.timeout(e, 0, secondsOf(w.t.sys.generic)))
	return resAccept
}

// trackGRE: a tunnel that is answered is assured.
func (w *Worker) trackGRE(p *packet.Packet, e *Entry) result {
	t := w.t
	dir := PacketDir(p)
	if e.Status()&SeenReply == 0 {
		w.refresh(p, e, dir, t.timeout(e, 0, secondsOf(t.sys.gre)))
		return resAccept
	}
	w.refresh(p, e, dir, t.timeout(e, 1, secondsOf(t.sys.greStream)))
	if e.Status()&(Assured|NATClash) == 0 {
		w.assure(e)
	}
	return resAccept
}

// greCalls: only PPTP's version 1 carries a call id; other GRE is one connection
// for each pair of addresses.
func greCalls(l4 []byte) (src, dst uint16, ok bool) {
	if len(l4) < 8 || l4[1]&7 != 1 {
		return 0, 0, true
	}
	if be.Uint16(l4[2:]) != 0x880b {
		return 0, 0, false
	}
	return 0, be.Uint16(l4[6:]), true
}
