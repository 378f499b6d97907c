package conntrack

import "sluice/packet"

// icmpError says whether a type announces trouble with the packet it quotes.
func icmpError(family, typ uint8) bool {
	if family == packet.IPv4 {
		switch typ {
		case 3, 4, 5, 11, 12:
			return true
		}
		return false
	}
	return typ < 128
}

// trackError looks at ICMP before its tuple is: an error belongs to the
// connection of the packet it quotes, what is broken is invalid, neighbour
// discovery and listener discovery are left alone. done: nothing more to do.
func (w *Worker) trackError(p *packet.Packet, hook uint8, tmpl *Template) (done bool) {
	b := p.Transport()
	if len(b) < 8 {
		return w.badICMP(p, "short packet")
	}
	if !w.checksumOK(p, hook) {
		return w.badICMP(p, "bad checksum")
	}
	typ := b[0]
	var inner []byte
	if p.Family == packet.IPv4 {
		if typ > 18 {
			return w.badICMP(p, "invalid icmp type")
		}
		if !icmpError(p.Family, typ) {
			return false
		}
		inner = b[8:]
	} else {
		switch {
		case typ >= 130 && typ <= 136, typ == 143:
			p.CtInfo = packet.CtUntracked
			return true
		case typ == 137:
			return w.trackRedirect(p, b, tmpl)
		case !icmpError(p.Family, typ):
			return false
		}
		inner = b[8:]
	}
	return w.related(p, inner, tmpl)
}

func (w *Worker) badICMP(p *packet.Packet, why string) bool {
	w.stat(statError)
	w.why = why
	w.logInvalid(p)
	return true
}

// related gives p the connection that the quoted packet belongs to.
func (w *Worker) related(p *packet.Packet, inner []byte, tmpl *Template) bool {
	t := w.t
	zone, _ := tmpl.zones()
	u, _, ok := t.InnerTuple(inner, p.Family, zone)
	if !ok {
		return w.badICMP(p, "the quoted packet is not whole")
	}
	inv, ok := u.Invert()
	if !ok {
		return w.badICMP(p, "the quoted packet is not whole")
	}
	e, idx, d := t.lookup(&inv, t.hashTuple(&inv), w.now)
	if _, rz := tmpl.zones(); rz != zone {
		e, idx, d = t.lookupOther(&inv, rz, w.now, e, idx, d)
	}
	if e == nil {
		return w.badICMP(p, "no connection for the quoted packet")
	}
	// The error must go to whom the quoted packet came from, as that one was seen here.
	if e.Tuple(d).Dst != p.Dst() {
		return w.badICMP(p, "the quoted packet came from another host")
	}
	p.Ct = idx
	if p.CtInfo = packet.CtRelated; d == Reply {
		p.CtInfo = packet.CtRelatedReply
	}
	return true
}

// trackRedirect: an ICMPv6 redirect quotes its packet in an option (RFC 4861 4.6.3).
func (w *Worker) trackRedirect(p *packet.Packet, b []byte, tmpl *Template) bool {
	if ip := p.Bytes(); ip[7] != 255 || b[1] != 0 || len(b) < 40 {
		return w.badICMP(p, "the quoted packet is not whole")
	}
	for o := b[40:]; len(o) >= 8; {
		n := int(o[1]) * 8
		if n == 0 || n > len(o) {
			break
		}
		if o[0] == 4 {
			return w.related(p, o[8:n], tmpl)
		}
		o = o[n:]
	}
	return w.badICMP(p, "the quoted packet is not whole")
}
