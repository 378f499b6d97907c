package conntrack

import "sluice/packet"

// helpNetBIOS: who broadcasts a question for a name is answered by any host of the network.
func helpNetBIOS(c *helpCall) bool {
	c.expectAnswers(137, 3)
	return true
}

// expectAnswers expects what answers a broadcast of the router's own, from a
// port of any host of that network, for a number of seconds.
func (c *helpCall) expectAnswers(port uint16, seconds int64) {
	ask := c.w.t.broadcast.Load()
	if ask == nil || c.dir != Original || !c.p.Is(packet.Local) {
		return
	}
	mask, ok := (*ask)(c.p)
	if !ok {
		return
	}
	x := &Expectation{Tuple: c.e.reply, Mask: TupleMask{Src: mask, SrcPort: 0xffff}, Flags: ExpectPermanent}
	x.Tuple.SrcPort = port
	c.expect(x)
	c.refresh(seconds)
}

// helpSNMP also translates addresses that messages carry.
func helpSNMP(c *helpCall) bool {
	c.expectAnswers(161, 30)
	return helpSNMPTrap(c)
}

// helpSNMPTrap puts the address that the asking host is known by in the place
// of its own, in answers and traps. What is no SNMP of version 1 or 2 (RFC 1157,
// 3416) is dropped.
func helpSNMPTrap(c *helpCall) bool {
	b := c.p.Transport()
	if !c.translated || len(b) < 8 ||
		be.Uint16(b) == 161 && c.dir != Reply || be.Uint16(b[2:]) == 162 && c.dir != Original {
		return true
	}
	if int(be.Uint16(b[4:])) != len(b) {
		return false
	}
	m := snmpMessage{b: b, from: [4]byte(c.e.orig.Src[:]), to: [4]byte(c.e.reply.Dst[:])}
	if m.from == m.to {
		return true
	}
	ok := m.message()
	if m.changed {
		c.p.Mangled()
	}
	return ok
}

// Tags of SNMP's BER encoding (X.690).
const (
	berInteger  = 0x02
	berString   = 0x04
	berNull     = 0x05
	berOID      = 0x06
	berSequence = 0x30
	berCompound = 0x20
	snmpAddress = 0x40
)

// snmpMessage translates the addresses of one message, which it reads as it
// goes. at is where in b it reads, a UDP datagram from its header on.
type snmpMessage struct {
	b        []byte
	from, to [4]byte
	at, end  int
	changed  bool
}

// message reads the whole. Where a choice of Linux's grammar ends with the value
// that holds it, a value of indefinite length shows an oddity of its decoder:
// only the last ones of the choice may be in it.
func (m *snmpMessage) message() bool {
	m.at, m.end = 8, len(m.b)
	return m.compound(berSequence, func(definite bool) bool {
		version, ok := m.primitive(berInteger)
		if !ok || len(version) != 1 || version[0] > 1 {
			return false
		}
		if _, ok = m.primitive(berString); !ok || m.at == m.end {
			return ok && definite
		}
		switch tag := m.b[m.at] | berCompound; tag {
		case 0xa0, 0xa1, 0xa2, 0xa3, 0xa5, 0xa6, 0xa7, 0xa8: // 0xa4 is version 1's trap
			return (definite || tag == 0xa8) && m.compound(tag, m.pdu)
		}
		return false
	})
}

func (m *snmpMessage) pdu(bool) bool {
	for range 3 { // request, error, index
		if _, ok := m.primitive(berInteger); !ok {
			return false
		}
	}
	return m.compound(berSequence, func(definite bool) bool {
		for { // never empty
			if !m.compound(berSequence, m.variable) {
				return false
			}
			if m.at == m.end || !definite && m.b[m.at] == 0 {
				return true
			}
		}
	})
}

// variable: a name and its value.
func (m *snmpMessage) variable(definite bool) bool {
	if _, ok := m.primitive(berOID); !ok || m.at == m.end {
		return ok && definite
	}
	switch tag := m.b[m.at]; tag {
	case berNull, 0x80, 0x81, 0x82:
		_, ok := m.primitive(tag)
		return ok
	case snmpAddress:
		v, ok := m.primitive(tag)
		if !ok || len(v) != 4 {
			return false
		}
		if [4]byte(v) == m.from {
			copy(v, m.to[:])
			m.changed = true
		}
		return definite
	case berInteger, berString, berOID, 0x41, 0x42, 0x43, 0x44, 0x46:
		_, ok := m.primitive(tag)
		return ok && definite
	}
	return false
}

// primitive reads a value with this tag.
func (m *snmpMessage) primitive(tag uint8) ([]byte, bool) {
	n, definite, ok := m.header(tag)
	if !ok || !definite {
		return nil, false
	}
	v := m.b[m.at : m.at+n]
	m.at += n
	return v, true
}

// compound reads a value with this tag, whose content f reads to its end.
func (m *snmpMessage) compound(tag uint8, f func(definite bool) bool) bool {
	n, definite, ok := m.header(tag)
	if !ok {
		return false
	}
	if !definite {
		if !f(false) || m.at+2 > m.end || m.b[m.at] != 0 || m.b[m.at+1] != 0 {
			return false
		}
		m.at += 2
		return true
	}
	end := m.end
	m.end = m.at + n
	ok = f(true) && m.at == m.end
	m.end = end
	return ok
}

// header reads a tag and a length of at most two bytes. Linux takes the tag of
// a compound value without its bit, too.
func (m *snmpMessage) header(tag uint8) (n int, definite, ok bool) {
	if m.end-m.at < 2 || (m.b[m.at]^tag)&^(tag&berCompound) != 0 {
		return 0, false, false
	}
	compound := m.b[m.at]&berCompound != 0
	n = int(m.b[m.at+1])
	m.at += 2
	switch {
	case n == 0x80:
		return 0, false, compound && m.end-m.at >= 2
	case n > 0x80:
		k := n - 0x80
		if k > 2 || k > m.end-m.at {
			return 0, false, false
		}
		for n = 0; k > 0; k-- {
			n = n<<8 | int(m.b[m.at])
			m.at++
		}
	}
	return n, true, n <= m.end-m.at
}
