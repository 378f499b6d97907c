package tables

import (
	"encoding/binary"
	"strconv"

	"sluice/packet"
)

// AppendLog appends the line that Linux's LOG writes about p to b, from the
// prefix to the last space, without level and newline. flags are Log… bits. It
// allocates only if b is too small; 512 bytes suffice for most packets.
func AppendLog(b []byte, prefix string, flags uint8, p *packet.Packet) []byte {
	b = append(b, prefix...)
	b = append(b, "IN="...)
	if p.In != nil {
		b = append(b, p.In.Name...)
	}
	b = append(b, " OUT="...)
	if p.Out != nil {
		b = append(b, p.Out.Name...)
	}
	b = append(b, ' ')
	if p.In != nil {
		b = append(b, "MAC= "...) // layer-3 devices have no link-level header
	}
	l := logLine{b, flags}
	done := true
	if p.Family == packet.IPv4 {
		done = l.ipv4(p.Bytes(), true)
	} else {
		done = l.ipv6(p.Bytes(), true)
	}
	if !done {
		return l.b // cut short: Linux stops at once there
	}
	if flags&LogUID != 0 && p.Flags&packet.HasOwner != 0 {
		l.num("UID=", uint64(p.UID))
		l.num("GID=", uint64(p.GID))
	}
	if p.Mark != 0 {
		l.hex("MARK=0x", uint64(p.Mark), 1)
	}
	return l.b
}

type logLine struct {
	b     []byte
	flags uint8
}

func (l *logLine) str(s string) { l.b = append(l.b, s...) }

// num appends "NAME=5 ".
func (l *logLine) num(name string, n uint64) {
	l.b = append(l.b, name...)
	l.b = strconv.AppendUint(l.b, n, 10)
	l.b = append(l.b, ' ')
}

// hex appends "NAMEff " with at least so many digits.
func (l *logLine) hex(name string, n uint64, digits int) {
	l.b = append(l.b, name...)
	l.digits(n, digits, "0123456789abcdef")
	l.b = append(l.b, ' ')
}

func (l *logLine) digits(n uint64, digits int, alphabet string) {
	for digits < 16 && n>>(4*digits) != 0 {
		digits++
	}
	for i := digits - 1; i >= 0; i-- {
		l.b = append(l.b, alphabet[n>>(4*i)&15])
	}
}

func (l *logLine) opt(o []byte) {
	l.str("OPT (")
	for _, c := range o {
		l.digits(uint64(c), 2, "0123456789ABCDEF")
	}
	l.str(") ")
}

func (l *logLine) incomplete(n int) {
	l.str("INCOMPLETE [")
	l.b = strconv.AppendInt(l.b, int64(n), 10)
	l.str(" bytes] ")
}

func (l *logLine) addr4(a []byte) {
	for i, c := range a[:4] {
		if i > 0 {
			l.b = append(l.b, '.')
		}
		l.b = strconv.AppendUint(l.b, uint64(c), 10)
	}
	l.b = append(l.b, ' ')
}

func (l *logLine) addr6(a []byte) {
	for i := 0; i < 16; i += 2 {
		if i > 0 {
			l.b = append(l.b, ':')
		}
		l.digits(uint64(be16(a[i:])), 4, "0123456789abcdef")
	}
	l.b = append(l.b, ' ')
}

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// tail is what is left of b from at on; nothing if at is beyond it.
func tail(b []byte, at int) []byte {
	if at > len(b) {
		return nil
	}
	return b[at:]
}

// ipv4 appends a packet's fields; outer is false for one that an ICMP error
// quotes. False: the line ends here.
func (l *logLine) ipv4(b []byte, outer bool) bool {
	if len(b) < 20 {
		l.str("TRUNCATED")
		return false
	}
	l.str("SRC=")
	l.addr4(b[12:])
	l.str("DST=")
	l.addr4(b[16:])
	l.num("LEN=", uint64(be16(b[2:])))
	l.str("TOS=0x")
	l.digits(uint64(b[1]&0x1e), 2, "0123456789ABCDEF")
	l.str(" PREC=0x")
	l.digits(uint64(b[1]&0xe0), 2, "0123456789ABCDEF")
	l.b = append(l.b, ' ')
	l.num("TTL=", uint64(b[8]))
	l.num("ID=", uint64(be16(b[4:])))
	frag := be16(b[6:])
	for i, s := range [...]string{"CE ", "DF ", "MF "} {
		if frag&(0x8000>>i) != 0 {
			l.str(s)
		}
	}
	later := frag&0x1fff != 0
	if later {
		l.num("FRAG:", uint64(frag&0x1fff))
	}
	ihl := int(b[0]&15) * 4
	if l.flags&LogIPOptions != 0 && ihl > 20 {
		if len(b) < ihl {
			l.str("TRUNCATED")
			return false
		}
		l.opt(b[20:ihl])
	}
	t := tail(b, ihl)
	left := len(b) - ihl
	switch b[9] {
	case packet.ProtoTCP:
		return l.tcp(t, left, later)
	case packet.ProtoUDP, packet.ProtoUDPLite:
		return l.udp(t, left, later, b[9])
	case packet.ProtoICMP:
		l.icmp4(t, left, later, outer)
	case packet.ProtoAH:
		l.spi("PROTO=AH ", t, left, later, 12)
	case packet.ProtoESP:
		l.spi("PROTO=ESP ", t, left, later, 8)
	default:
		l.num("PROTO=", uint64(b[9]))
	}
	return true
}

// spi is AH and ESP: the index is in the last word of the first need bytes for
// AH (8 bytes in, after 4), the first word for ESP.
func (l *logLine) spi(name string, t []byte, left int, later bool, need int) {
	if later && need == 12 {
		return // Linux says nothing of a later fragment of AH
	}
	l.str(name)
	switch {
	case later:
	case len(t) < need:
		l.incomplete(left)
	case need == 12:
		l.hex("SPI=0x", uint64(be32(t[4:])), 1)
	default:
		l.hex("SPI=0x", uint64(be32(t)), 1)
	}
}

func (l *logLine) tcp(t []byte, left int, later bool) bool {
	l.str("PROTO=TCP ")
	if later {
		return true
	}
	if len(t) < 20 {
		l.incomplete(left)
		return false
	}
	l.num("SPT=", uint64(be16(t)))
	l.num("DPT=", uint64(be16(t[2:])))
	if l.flags&LogTCPSeq != 0 {
		l.num("SEQ=", uint64(be32(t[4:])))
		l.num("ACK=", uint64(be32(t[8:])))
	}
	l.num("WINDOW=", uint64(be16(t[14:])))
	l.hex("RES=0x", uint64(t[12]&tcpReserved)<<2, 2)
	if t[12]&1 != 0 {
		l.str("AE ") // accurate ECN (RFC 9768), once a reserved bit
	}
	for i, s := range [...]string{"CWR ", "ECE ", "URG ", "ACK ", "PSH ", "RST ", "SYN ", "FIN "} {
		if t[13]&(0x80>>i) != 0 {
			l.str(s)
		}
	}
	l.num("URGP=", uint64(be16(t[18:])))
	if n := int(t[12]>>4) * 4; l.flags&LogTCPOptions != 0 && n > 20 {
		if len(t) < n {
			l.str("OPT (TRUNCATED)")
			return false
		}
		l.opt(t[20:n])
	}
	return true
}

// tcpReserved are the bits that RES shows, in the header's 13th byte.
const tcpReserved = 0x0e

func (l *logLine) udp(t []byte, left int, later bool, proto uint8) bool {
	if proto == packet.ProtoUDP {
		l.str("PROTO=UDP ")
	} else {
		l.str("PROTO=UDPLITE ")
	}
	if later {
		return true
	}
	if len(t) < 8 {
		l.incomplete(left)
		return false
	}
	l.num("SPT=", uint64(be16(t)))
	l.num("DPT=", uint64(be16(t[2:])))
	l.num("LEN=", uint64(be16(t[4:])))
	return true
}

// icmpNeeds is how long a message of each type must be for its fields to be shown.
var icmpNeeds = [19]uint8{0: 4, 3: 28, 4: 28, 5: 28, 8: 4, 11: 28, 12: 28, 13: 20, 14: 20, 17: 12, 18: 12}

func (l *logLine) icmp4(t []byte, left int, later, outer bool) {
	l.str("PROTO=ICMP ")
	if later {
		return
	}
	if len(t) < 8 {
		l.incomplete(left)
		return
	}
	typ, code := t[0], t[1]
	l.num("TYPE=", uint64(typ))
	l.num("CODE=", uint64(code))
	if int(typ) < len(icmpNeeds) && left < int(icmpNeeds[typ]) {
		l.incomplete(left)
		return
	}
	switch typ {
	case 0, 8:
		l.num("ID=", uint64(be16(t[4:])))
		l.num("SEQ=", uint64(be16(t[6:])))
	case 12:
		l.num("PARAMETER=", uint64(t[4]))
	case 3, 4, 5, 11:
		if typ == 5 {
			l.str("GATEWAY=")
			l.addr4(t[4:])
		}
		if outer {
			l.b = append(l.b, '[')
			l.ipv4(t[8:], false)
			l.str("] ")
		}
		if typ == 3 && code == 4 {
			l.num("MTU=", uint64(be16(t[6:])))
		}
	}
}

// ipv6 is ipv4's twin.
func (l *logLine) ipv6(b []byte, outer bool) bool {
	if len(b) < 40 {
		l.str("TRUNCATED")
		return false
	}
	l.str("SRC=")
	l.addr6(b[8:])
	l.str("DST=")
	l.addr6(b[24:])
	l.num("LEN=", uint64(be16(b[4:]))+40)
	w := be32(b)
	l.num("TC=", uint64(w>>20&0xff))
	l.num("HOPLIMIT=", uint64(b[7]))
	l.num("FLOWLBL=", uint64(w&0xfffff))
	at, next, later, ok := l.extensions(b)
	if !ok {
		return false
	}
	t, left := tail(b, at), len(b)-at
	switch next {
	case packet.ProtoTCP:
		return l.tcp(t, left, later)
	case packet.ProtoUDP, packet.ProtoUDPLite:
		return l.udp(t, left, later, next)
	case packet.ProtoICMPv6:
		return l.icmp6(t, left, later, outer)
	}
	l.num("PROTO=", uint64(next))
	return true
}

// extensions walks the extension headers and shows them; ok is false where the
// line ends.
func (l *logLine) extensions(b []byte) (at int, next uint8, later, ok bool) {
	opts := l.flags&LogIPOptions != 0
	at, next = 40, b[6]
	for {
		switch next {
		case 0, 43, 44, 50, 51, 60:
		default:
			return at, next, later, true
		}
		h := tail(b, at)
		if len(h) < 2 {
			l.str("TRUNCATED")
			return at, next, later, false
		}
		if opts {
			l.str("OPT ( ")
		}
		n := (int(h[1]) + 1) * 8
		switch next {
		case 44:
			l.str("FRAG:")
			if len(h) < 8 {
				l.str("TRUNCATED ")
				return at, next, later, false
			}
			off := be16(h[2:])
			l.b = strconv.AppendUint(l.b, uint64(off&0xfff8), 10)
			l.b = append(l.b, ' ')
			if off&1 != 0 {
				l.str("INCOMPLETE ")
			}
			l.hex("ID:", uint64(be32(h[4:])), 8)
			later = later || off&0xfff8 != 0
			n = 8
		case 51:
			if opts {
				l.str("AH ")
				if later {
					l.b = append(l.b, ')')
					return at, next, later, false
				}
				if len(h) < 12 {
					l.incomplete(len(h))
					l.b = append(l.b, ')')
					return at, next, later, false
				}
				l.hex("SPI=0x", uint64(be32(h[4:])), 1)
			}
			n = (int(h[1]) + 2) * 4
		case 50:
			if opts {
				l.str("ESP ")
				switch {
				case later:
					l.b = append(l.b, ')')
				case len(h) < 8:
					l.incomplete(len(h))
					l.b = append(l.b, ')')
				default:
					l.hex("SPI=0x", uint64(be32(h)), 1)
					l.b = append(l.b, ')')
				}
			}
			return at, next, later, false
		default:
			if later {
				if opts {
					l.b = append(l.b, ')')
				}
				return at, next, later, false
			}
		}
		if opts {
			l.str(") ")
		}
		next = h[0]
		at += n
	}
}

func (l *logLine) icmp6(t []byte, left int, later, outer bool) bool {
	l.str("PROTO=ICMPv6 ")
	if later {
		return true
	}
	if len(t) < 8 {
		l.incomplete(left)
		return false
	}
	typ := t[0]
	l.num("TYPE=", uint64(typ))
	l.num("CODE=", uint64(t[1]))
	switch typ {
	case 128, 129:
		l.num("ID=", uint64(be16(t[4:])))
		l.num("SEQ=", uint64(be16(t[6:])))
	case 1, 2, 3, 4:
		if typ == 4 {
			l.hex("POINTER=", uint64(be32(t[4:])), 8)
		}
		if outer {
			l.b = append(l.b, '[')
			l.ipv6(t[8:], false)
			l.str("] ")
		}
		if typ == 2 {
			l.num("MTU=", uint64(be32(t[4:])))
		}
	}
	return true
}
